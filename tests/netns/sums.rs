//! Sums that must agree: what the workers count, what the kernel counts for the interfaces, what wg(8) and the metrics tell; and that
//! what one end sent is what the other received.

use crate::implementation::{RINGTUN_TWO, ringtun, ringtun_itself};
use crate::lab::{find_program, skip, wait_for};
use crate::pair::{A, B, Node, Pair, Side, V4};
use std::collections::BTreeMap;
use std::time::Duration;

/// Bytes of Ethernet, IPv4 and UDP headers around a message.
const OUTER_HEADERS: u64 = 14 + 20 + 8;

/// Everything that is counted at one end, by name.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Counts(BTreeMap<String, u64>);

impl Counts {
    /// The workers' counters, summed, and the slow path's have the names that `status` gives them. The others begin with who tells
    /// them: `tun` and `wire` are the kernel's counters of the interface and of the outer one, `wg` is wg(8), `metrics` the metrics.
    fn of(node: &Node) -> Counts {
        let (host, name, program) = (&node.host, node.name(), ringtun().display().to_string());
        let mut counts = BTreeMap::new();
        let told = host.run(&format!("{program} status {name} --json"));
        let told: serde_json::Value = serde_json::from_str(&told).expect("JSON");
        let workers = told[0]["status"]["workers"].as_array().expect("workers");
        assert_eq!(workers.len(), 2);
        for part in workers.iter().chain([&told[0]["status"]["handshakes"]]) {
            for (counter, count) in part.as_object().expect("counters") {
                *counts.entry(counter.clone()).or_default() += count.as_u64().unwrap_or_default();
            }
        }
        for (who, link) in [("tun", name), ("wire", &host.link)] {
            for what in ["tx_packets", "rx_packets", "tx_bytes", "rx_bytes"] {
                let count = host.run(&format!("cat /sys/class/net/{link}/statistics/{what}"));
                counts.insert(format!("{who} {what}"), count.trim().parse().expect("a number"));
            }
        }
        let transfer = host.run(&format!("wg show {name} transfer"));
        let metrics = host.run(&format!("{program} status {name} --prometheus"));
        for (at, way) in [(1, "received"), (2, "sent")] {
            // Without a peer there is no line of it.
            let told = transfer.split_whitespace().nth(at).map_or(0, |text| text.parse().expect("a number"));
            counts.insert(format!("wg {way}"), told);
            let metric = format!("wireguard_{way}_bytes_total{{");
            let line = metrics.lines().find(|line| line.starts_with(&metric));
            let value = line.and_then(|line| line.rsplit(' ').next());
            counts.insert(format!("metrics {way}"), value.map_or(0, |text| text.parse().expect("a number")));
        }
        Counts(counts)
    }

    fn get(&self, name: &str) -> u64 {
        *self.0.get(name).unwrap_or_else(|| panic!("no counter {name}"))
    }

    fn sum(&self, names: &[&str]) -> u64 {
        names.iter().map(|name| self.get(name)).sum()
    }

    /// What was counted since.
    fn since(&self, before: &Counts) -> Counts {
        Counts(
            self.0.iter().map(|(name, count)| (name.clone(), count.wrapping_sub(before.get(name)))).collect(),
        )
    }

    /// What is other than zero, for a failure's message.
    fn told(&self) -> String {
        let moved = self.0.iter().filter(|(_, count)| **count > 0);
        moved.map(|(name, count)| format!("{name} {count}, ")).collect()
    }
}

/// The counts of both ends, once nothing moves.
fn quiet(pair: &Pair) -> [Counts; 2] {
    let traffic = |counts: &[Counts; 2]| {
        counts
            .each_ref()
            .map(|counts| counts.sum(&["tx_frames", "rx_trains", "wire tx_packets", "wire rx_packets"]))
    };
    let mut last = [A, B].map(|side| Counts::of(&pair[side]));
    let quiet = wait_for(Duration::from_secs(20), || {
        std::thread::sleep(Duration::from_millis(200));
        let now = [A, B].map(|side| Counts::of(&pair[side]));
        let is_quiet = traffic(&now) == traffic(&last);
        last = now;
        is_quiet.then(|| last.clone())
    });
    quiet.expect("an end of the traffic")
}

/// Leaves nothing on the wire but outer packets: no neighbours are looked for, and there is no IPv6.
fn silence(pair: &Pair) {
    for side in [A, B] {
        let (host, other) = (&pair[side].host, &pair[side.other()]);
        let hardware = other.host.run(&format!("cat /sys/class/net/{}/address", other.host.link));
        let endpoint = other.endpoint(V4);
        let outer = endpoint.split(':').next().expect("an address");
        let link = &host.link;
        host.run(&format!("echo 1 >/proc/sys/net/ipv6/conf/{link}/disable_ipv6"));
        host.run(&format!("ip neigh replace {outer} lladdr {} dev {link} nud permanent", hardware.trim()));
    }
}

/// Bytes both ways by TCP, with a window that no buffer on the way is too small for, so that nothing is lost; and pings.
fn talk(pair: &Pair, megabytes: u32) {
    for way in ["", "-R"] {
        pair.iperf3(V4, &format!("{way} -n {megabytes}M -w 128K"));
    }
    for side in [A, B] {
        pair[side].host.run(&format!("ping -q -c 20 -i 0.02 -s 999 {}", pair[side.other()].inner(V4)));
    }
}

/// What must agree at one end, and what it sent with what the other received.
fn check(side: Side, me: &Counts, other: &Counts) {
    let equal = |what: &str, one: u64, another: u64| {
        assert_eq!(one, another, "{side:?}: {what}\nhere: {}\nthere: {}", me.told(), other.told());
    };
    // The kernel counts a super-packet once, both ways: a frame that is read, a write that it takes.
    equal("frames are what the interface sent", me.get("tx_frames"), me.get("tun tx_packets"));
    equal("each is one read", me.get("io_tun_reads"), me.get("tx_frames"));
    equal("writes are what the interface received", me.get("io_tun_writes"), me.get("tun rx_packets"));
    equal("no write was refused", me.get("io_tun_write_errors"), 0);
    equal("each run is one write", me.get("rx_runs"), me.get("io_tun_writes"));
    for way in ["sent", "received"] {
        equal("wg and the metrics", me.get(&format!("wg {way}")), me.get(&format!("metrics {way}")));
    }
    equal("bytes that arrive", me.get("wg sent"), other.get("wg received"));
    let dropped = ["rx_bad_source", "rx_bad_inner", "rx_replayed", "rx_decrypt_failed", "rx_expired"];
    let packets = other.get("rx_packets") + other.sum(&dropped);
    equal("packets that arrive, or are dropped for a reason", me.get("tx_packets"), packets);
    equal("keepalives that arrive", me.get("tx_keepalives"), other.get("rx_keepalives"));
    equal("handshake messages that arrive", me.get("tx_handshakes"), other.get("rx_handshakes"));
    equal("initiations", me.get("initiations_sent"), other.get("initiations_accepted"));
    equal("responses", me.get("responses_accepted"), other.get("initiations_accepted"));
    let datagrams = me.get("io_udp_sent_datagrams");
    let made = me.sum(&["tx_packets", "tx_keepalives", "tx_handshakes", "tx_cookies"]);
    equal("each message is a datagram", made, datagrams);
    equal("datagrams that arrive", datagrams, other.sum(&["rx_owned", "rx_handshakes"]));
    equal("no datagram was refused", me.get("io_udp_send_errors"), 0);
    equal("the wire loses nothing", me.get("wire tx_packets"), other.get("wire rx_packets"));
}

#[test]
fn workers_kernel_and_tools_count_alike_and_one_end_receives_what_the_other_sent() {
    if !ringtun_itself() {
        return;
    }
    for program in ["iperf3", "ethtool"] {
        if find_program(program).is_none() {
            return skip(&format!("{program} is not installed"));
        }
    }
    let Some(pair) = Pair::new(RINGTUN_TWO, RINGTUN_TWO) else { return };
    silence(&pair);
    let before = quiet(&pair);
    pair.configure(V4);
    pair.expect_ping(A, V4);
    talk(&pair, 8);
    // B has no AllowedIPs for where this comes from.
    let (host, name) = (&pair[A].host, pair[A].name());
    host.run(&format!("ip addr add 10.99.0.77/32 dev {name}"));
    assert!(host.try_run(&format!("ping -q -c 3 -i 0.1 -W 1 -I 10.99.0.77 {}", pair[B].inner(V4))).is_err());
    let after = quiet(&pair);
    let [a, b] = [0, 1].map(|end| after[end].since(&before[end]));
    assert_eq!(b.get("rx_bad_source"), 3, "{}", b.told());
    for (side, me, other) in [(A, &a, &b), (B, &b, &a)] {
        check(side, me, other);
        assert!(me.get("tx_super_packets") > 0 && me.get("rx_super_packets") > 0, "{}", me.told());
        // The cable takes a train whole, and counts it once.
        assert_eq!(me.get("io_udp_sends"), me.get("wire tx_packets"), "{side:?}: {}", me.told());
        assert!(me.get("io_udp_sends") < me.get("io_udp_sent_datagrams"), "{}", me.told());
    }

    // Where the kernel cuts trains before the cable, that counts datagrams.
    for side in [A, B] {
        pair[side].host.run(&format!("ethtool -K {} tx-udp-segmentation off", pair[side].host.link));
    }
    let before = quiet(&pair);
    talk(&pair, 2);
    let after = quiet(&pair);
    let [a, b] = [0, 1].map(|end| after[end].since(&before[end]));
    for (side, me, other) in [(A, &a, &b), (B, &b, &a)] {
        check(side, me, other);
        let datagrams = me.get("io_udp_sent_datagrams");
        assert_eq!(datagrams, me.get("wire tx_packets"), "{side:?}: {}", me.told());
        let bytes = me.get("wg sent") + datagrams * OUTER_HEADERS;
        assert_eq!(bytes, me.get("wire tx_bytes"), "{side:?}: {}", me.told());
    }
}
