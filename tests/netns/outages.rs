//! Outages of the network around a tunnel, each in the middle of traffic: it heals by itself in good time, nothing is lost of its
//! configuration, nothing inner leaves outside of it, and the log says what is wrong without being filled.

use crate::bulk;
use crate::implementation::{RINGTUN_TWO, ringtun_itself};
use crate::lab::{Host, eventually, find_program, skip, wait_for};
use crate::pair::{A, B, Family, Pair, Side, V4, V6};
use std::time::{Duration, Instant};

/// How long healing may take, on a busy machine: more than one retry of a handshake.
const HEALS: Duration = Duration::from_secs(12);
/// Most lines that an outage may add to the log, however many packets it costs.
const LINES: usize = 8;

/// Where a script runs.
#[derive(Clone, Copy, PartialEq, Debug)]
enum At {
    A,
    B,
    Router,
}

/// What goes wrong, and what somebody then does about it. The words in scripts are replaced by addresses: see [`words`].
struct Outage {
    name: &'static str,
    breaks: &'static [(At, &'static str)],
    /// Whether nothing passes until it is mended.
    cuts: bool,
    mends: &'static [(At, &'static str)],
}

const BASE: &str = "IP route replace default via NEAR_GATE dev wire";
const BY_ROUTER: &str = "IP route replace default via FAR_GATE dev far";

const OUTAGES: &[Outage] = &[
    Outage {
        name: "the link goes down and comes up",
        breaks: &[(At::A, "ip link set wire down")],
        cuts: true,
        mends: &[(At::A, "ip link set wire up"), (At::A, BASE)],
    },
    Outage {
        name: "the far end of the link goes down and comes up",
        breaks: &[(At::B, "ip link set wire down")],
        cuts: true,
        mends: &[(At::B, "ip link set wire up"), (At::A, BASE)],
    },
    Outage {
        name: "the address goes and comes",
        breaks: &[(At::A, "IP addr del NEAR/LENGTH dev wire; IP route del default || true")],
        cuts: true,
        mends: &[(At::A, "IP addr add NEAR/LENGTH dev wire NODAD"), (At::A, BASE)],
    },
    Outage {
        name: "another address takes the place of the first",
        breaks: &[
            (At::A, "IP addr add OTHER/LENGTH dev wire NODAD; IP addr del NEAR/LENGTH dev wire"),
            (At::A, BASE),
        ],
        cuts: false,
        mends: &[
            (At::A, "IP addr add NEAR/LENGTH dev wire NODAD; IP addr del OTHER/LENGTH dev wire"),
            (At::A, BASE),
        ],
    },
    Outage {
        name: "the route goes and comes",
        breaks: &[(At::A, "IP route del default")],
        cuts: true,
        mends: &[(At::A, BASE)],
    },
    Outage {
        name: "the route says that the endpoint is unreachable",
        breaks: &[(At::A, "IP route add unreachable ENDPOINT")],
        cuts: true,
        mends: &[(At::A, "IP route del unreachable ENDPOINT")],
    },
    Outage {
        name: "the route forbids the endpoint",
        breaks: &[(At::A, "IP route add prohibit ENDPOINT")],
        cuts: true,
        mends: &[(At::A, "IP route del prohibit ENDPOINT")],
    },
    Outage {
        name: "the route swallows what goes to the endpoint",
        breaks: &[(At::A, "IP route add blackhole ENDPOINT")],
        cuts: true,
        mends: &[(At::A, "IP route del blackhole ENDPOINT")],
    },
    Outage {
        name: "the firewall refuses what leaves",
        breaks: &[(
            At::A,
            "nft 'table inet cut { chain out { type filter hook output priority 0; udp dport 51820 drop; }; }'",
        )],
        cuts: true,
        mends: &[(At::A, "nft delete table inet cut")],
    },
    Outage {
        name: "the default route changes to another uplink",
        breaks: &[(At::A, BY_ROUTER)],
        cuts: false,
        mends: &[(At::A, BASE)],
    },
    Outage {
        name: "the uplink dies and another takes over",
        breaks: &[(At::A, "ip link set wire down"), (At::A, BY_ROUTER)],
        cuts: false,
        mends: &[(At::A, "ip link set wire up"), (At::A, BASE)],
    },
    Outage {
        name: "a router on the way has a smaller MTU",
        breaks: &[
            (At::A, BY_ROUTER),
            (At::Router, "ip link set near mtu 1300"),
            (At::B, "ip link set near mtu 1300"),
        ],
        cuts: false,
        mends: &[
            (At::Router, "ip link set near mtu 1500"),
            (At::B, "ip link set near mtu 1500"),
            (At::A, BASE),
        ],
    },
    Outage {
        name: "the own link has a smaller MTU",
        breaks: &[(At::A, "ip link set wire mtu 1300"), (At::B, "ip link set wire mtu 1300")],
        cuts: false,
        mends: &[(At::A, "ip link set wire mtu 1500"), (At::B, "ip link set wire mtu 1500")],
    },
];

/// What the words in a script stand for: with the family's prefix length, and without the search for duplicates.
fn words(family: Family) -> [(&'static str, &'static str); 9] {
    match family {
        V4 => [
            ("IP ", "ip "),
            ("NODAD", ""),
            ("LENGTH", "24"),
            ("NEAR_GATE", "198.18.0.20"),
            ("FAR_GATE", "198.19.1.1"),
            ("NEAR", "198.18.0.10"),
            ("OTHER", "198.18.0.11"),
            ("ENDPOINT", "203.0.113.9/32"),
            ("SERVICE", "203.0.113.9"),
        ],
        V6 => [
            ("IP ", "ip -6 "),
            ("NODAD", "nodad"),
            ("LENGTH", "64"),
            ("NEAR_GATE", "2001:db8::20"),
            ("FAR_GATE", "2001:db8:1::1"),
            ("NEAR", "2001:db8::10"),
            ("OTHER", "2001:db8::11"),
            ("ENDPOINT", "2001:db8:9::9/128"),
            ("SERVICE", "[2001:db8:9::9]"),
        ],
    }
}

/// Two gateways, joined by a wire and by a router besides. B is spoken to at an address of its loopback interface.
struct Stage {
    pair: Pair,
    router: Host,
    family: Family,
}

impl Stage {
    fn new(family: Family) -> Option<Stage> {
        let pair = Pair::new(RINGTUN_TWO, RINGTUN_TWO)?;
        let stage = Stage { pair, router: Host::namespace(), family };
        for (side, link, subnet) in [(A, "far", 1), (B, "near", 2)] {
            let host = &stage.pair[side].host;
            let name = stage.router.name();
            host.run(&format!(
                "ip link add {link} type veth peer name {link} netns {name} && ip link set {link} up"
            ));
            for (place, last) in [(&**host, 2), (&stage.router, 1)] {
                place.run(&format!(
                    "ip link set {link} up; ip addr add 198.19.{subnet}.{last}/24 dev {link}
                     ip addr add 2001:db8:{subnet}::{last}/64 dev {link} nodad"
                ));
            }
            // What a network manager does to IPv6 addresses after a link was down.
            host.run("for f in /proc/sys/net/ipv6/conf/*/keep_addr_on_down; do echo 1 >$f; done");
            host.run("for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 >$f; done");
            // That the second address of a subnet outlives the first.
            host.run("sysctl -qw net.ipv4.conf.all.promote_secondaries=1");
        }
        stage.router.run(
            "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
             ip route add 203.0.113.9 via 198.19.2.2; ip route add 2001:db8:9::9 via 2001:db8:2::2",
        );
        let b = &stage.pair[B];
        b.host.run(
            "ip addr add 203.0.113.9/32 dev lo; ip addr add 2001:db8:9::9/128 dev lo nodad
             ip route add 198.19.1.0/24 via 198.19.2.1; ip route add 2001:db8:1::/64 via 2001:db8:2::1",
        );
        stage.run(At::A, BASE);
        stage.spy();
        stage.pair.configure_side(A, Some(family));
        stage
            .run(At::A, &format!("wg set {} peer {} endpoint SERVICE:51820", stage.pair[A].name(), b.public));
        // Only A speaks first, as a client does.
        stage.pair.configure_side(B, None);
        stage.pair.expect_ping(A, V4);
        Some(stage)
    }

    /// Leads A to where B is spoken to, until B answers from there. During an outage B may have answered from another address, which
    /// A then follows, and what is under way from there leads it back once more.
    fn speak_to_service(&self) {
        let (name, peer) = (self.pair[A].name(), &self.pair[B].public);
        let service = self.filled("SERVICE:51820");
        eventually("B is spoken to where it answers", HEALS, || {
            if self.pair[A].wg_show("endpoints") != service {
                self.run(At::A, &format!("wg set {name} peer {peer} endpoint {service}"));
            }
            let passes = self.pair.ping(A, V4, Duration::from_secs(1)).is_ok();
            passes && self.pair[A].wg_show("endpoints") == service
        });
    }

    fn filled(&self, script: &str) -> String {
        words(self.family).iter().fold(script.to_owned(), |script, (word, is)| script.replace(word, is))
    }

    fn run(&self, at: At, script: &str) {
        let script = self.filled(script);
        match at {
            At::A => self.pair[A].host.run(&script),
            At::B => self.pair[B].host.run(&script),
            At::Router => self.router.run(&script),
        };
    }

    /// Counts what comes in of the tunnel's inner addresses by anything but the tunnel.
    fn spy(&self) {
        for host in [&*self.pair[B].host, &self.router] {
            host.run(
                "nft -f - <<'END'
table inet spy {
  counter leaked { }
  chain in {
    type filter hook prerouting priority -300;
    iifname { wire, far, near } ip saddr 10.99.0.0/24 counter name leaked
    iifname { wire, far, near } ip daddr 10.99.0.0/24 counter name leaked
    iifname { wire, far, near } ip6 saddr fd99::/64 counter name leaked
    iifname { wire, far, near } ip6 daddr fd99::/64 counter name leaked
  }
}
END",
            );
        }
    }

    fn leaked(&self) -> bool {
        let counted = |host: &Host| !host.run("nft list counter inet spy leaked").contains("packets 0 ");
        counted(&self.pair[B].host) || counted(&self.router)
    }

    /// A side's configuration without what roaming changes.
    fn configuration(&self, side: Side) -> String {
        let shown = self.pair[side].host.run(&format!("wg showconf {}", self.pair[side].name()));
        shown.lines().filter(|line| !line.starts_with("Endpoint")).map(|line| format!("{line}\n")).collect()
    }

    fn log_lines(&self) -> usize {
        self.pair.tell().lines().count()
    }

    /// Both inner families pass, in packets of every size.
    #[track_caller]
    fn heals(&self, what: &str) -> Duration {
        let begun = Instant::now();
        let pings = |inner: Family, size: u32| {
            let to = self.pair[B].inner(inner);
            self.pair[A].host.try_run(&format!("ping -q -c 1 -W 1 -s {size} {to}")).is_ok()
        };
        for (inner, size) in [(V4, 16), (V4, 1392), (V6, 1372)] {
            let passed = wait_for(HEALS, || pings(inner, size).then_some(()));
            assert!(passed.is_some(), "{what}: {size} bytes over {inner:?}\n{}", self.pair.tell());
        }
        begun.elapsed()
    }
}

fn heals_by_itself(family: Family) {
    if !ringtun_itself() || !bulk::ready() {
        return;
    }
    if find_program("nft").is_none() {
        return skip("nft is not installed");
    }
    let Some(stage) = Stage::new(family) else { return };
    let before = [A, B].map(|side| stage.configuration(side));
    // Traffic all the while, in both directions.
    let _pings = [(A, B), (B, A)].map(|(from, to)| {
        stage.pair[from].host.start("ping", &["-q", "-i", "0.02", stage.pair[to].inner(V6)])
    });
    for outage in OUTAGES {
        stage.speak_to_service();
        let lines = stage.log_lines();
        outage.breaks.iter().for_each(|(at, script)| stage.run(*at, script));
        if outage.cuts {
            let passes = stage.pair.ping(A, V4, Duration::from_secs(1));
            assert!(passes.is_err(), "{}: nothing is broken", outage.name);
        } else {
            let took = stage.heals(outage.name);
            bulk::moves_unaltered(&stage.pair, V4, 1);
            println!("{}, {family:?}: {took:?}", outage.name);
        }
        outage.mends.iter().for_each(|(at, script)| stage.run(*at, script));
        let took = stage.heals(&format!("{}, mended", outage.name));
        println!("{}, {family:?}: mended after {took:?}", outage.name);
        let more = stage.log_lines() - lines;
        assert!(more <= LINES, "{}: {more} lines\n{}", outage.name, stage.pair.tell());
        assert_eq!([A, B].map(|side| stage.configuration(side)), before, "{}", outage.name);
    }
    assert!(!stage.leaked(), "something inner was seen outside of the tunnel");
    let told = stage.pair.tell();
    assert!(!told.contains("panicked") && !told.contains("offload switched off"), "{told}");
}

#[test]
fn a_tunnel_over_ipv4_heals_after_each_outage() {
    heals_by_itself(V4);
}

#[test]
fn a_tunnel_over_ipv6_heals_after_each_outage() {
    heals_by_itself(V6);
}
