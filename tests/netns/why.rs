//! `ringtun why`: faults are staged, and each is diagnosed rightly; what works has no diagnosis.

use crate::implementation::{Hindrance, Implementation, RINGTUN, ringtun, ringtun_itself};
use crate::lab::{Process, eventually, find_program, serial, sh, skip};
use crate::pair::{A, B, Pair, Side, V4, key_pair};
use crate::updown::{SOON, Site, peer};
use serde_json::Value;

fn pair() -> Option<Pair> {
    ringtun_itself().then(|| Pair::new(RINGTUN, RINGTUN))?
}

/// What `ringtun why` says with these words.
struct Said {
    status: i32,
    value: Value,
}

impl Said {
    fn of(host: &crate::lab::Host, words: &str) -> Said {
        let said = host.run(&format!("{} why {words} --json; echo \"status $?\"", ringtun().display()));
        let (text, status) = said.trim_end().rsplit_once("status ").expect("a status");
        let value = serde_json::from_str(text).unwrap_or(Value::Null);
        Said { status: status.parse().expect("a number"), value }
    }

    fn causes(&self) -> Vec<&str> {
        let causes = self.value["causes"].as_array().map(Vec::as_slice).unwrap_or_default();
        causes.iter().filter_map(|cause| cause["kind"].as_str()).collect()
    }

    /// The first cause, with its certainty, and all its words.
    #[track_caller]
    fn expect(&self, status: i32, kind: &str, certain: bool, words: &[&str]) {
        let first = &self.value["causes"][0];
        let told = (self.status, first["kind"].as_str(), first["certain"].as_bool());
        assert_eq!(told, (status, Some(kind), Some(certain)), "{:#}", self.value);
        let text = format!("{} -> {}", first["found"], first["remedy"]);
        for word in words {
            assert!(text.contains(word), "{word}: {text}");
        }
    }
}

impl Pair {
    /// What is said on one side about the other.
    fn why(&self, side: Side, more: &str) -> Said {
        let (name, key) = (self[side].name(), &self[side.other()].public);
        Said::of(&self[side].host, &format!("{name} {key} {more}"))
    }

    /// Has a side try to reach the other, until dropped.
    fn trying(&self, side: Side) -> Process {
        self[side].host.start("ping", &["-i", "0.5", self[side.other()].inner(V4)])
    }

    /// The configuration of a side, with other AllowedIPs.
    fn configure_allowing(&self, side: Side, allowed: &str) {
        let text = self.configuration(side, Some(V4));
        let lines = text.lines().map(|line| match line.starts_with("AllowedIPs") {
            true => format!("AllowedIPs = {allowed}\n"),
            false => format!("{line}\n"),
        });
        let script = format!("wg setconf {} $FILE", self[side].name());
        self[side].host.try_run_with_file(&lines.collect::<String>(), &script).unwrap();
    }
}

#[test]
fn a_peer_that_is_connected_has_no_diagnosis() {
    let Some(pair) = pair() else { return };
    pair.configure(V4);
    pair.expect_ping(A, V4);
    for side in [A, B] {
        let said = pair.why(side, "--wait 2");
        assert_eq!((said.status, said.causes(), &said.value["connected"]), (0, vec![], &Value::Bool(true)));
        assert_eq!(said.value["facts"]["sizes"]["largest"], 1420, "{:#}", said.value);
    }
    let text = pair[A].host.run(&format!(
        "{} why {} {} --wait 0 --passive",
        ringtun().display(),
        pair[A].name(),
        &pair[B].public[..8]
    ));
    assert!(text.contains(": connected, since ") && text.contains(&pair[B].endpoint(V4)), "{text}");
}

#[test]
fn a_peer_that_only_waits_for_something_to_do_connects_as_it_is_asked_about() {
    let Some(pair) = pair() else { return };
    pair.configure(V4);
    assert_eq!(pair.why(A, "--wait 0 --passive").status, 1, "nothing was tried yet");
    let said = pair.why(A, "--wait 3");
    assert_eq!((said.status, said.causes()), (0, vec![]), "{:#}", said.value);
}

#[test]
fn nobody_of_that_name_and_no_such_tunnel_are_told_apart() {
    let Some(pair) = pair() else { return };
    pair.configure(V4);
    let name = pair[A].name();
    assert_eq!(Said::of(&pair[A].host, &format!("{name} nobody")).status, 2);
    assert_eq!(Said::of(&pair[A].host, "rt-none nobody").status, 1);
    let stranger = key_pair().1;
    Said::of(&pair[A].host, &format!("{name} {stranger}")).expect(1, "unknown_peer", true, &[&stranger]);
    pair[A].host.run(&format!("ip link set {name} down"));
    pair.why(A, "").expect(1, "interface_down", true, &[&format!("ip link set {name} up")]);
}

#[test]
fn a_firewall_at_the_other_end_is_named_there_and_guessed_here() {
    let Some(pair) = pair() else { return };
    if find_program("nft").is_none() {
        return skip("nft is not installed");
    }
    pair.configure_side(A, Some(V4));
    pair.configure_side(B, None);
    pair[B].host.run("nft add table inet f; nft 'add chain inet f input { type filter hook input priority 0; policy drop; }'");
    let _trying = pair.trying(A);
    pair.why(A, "--wait 1").expect(1, "nothing_comes_back", false, &["--dport 51820", &pair[A].public]);
    let said = pair.why(B, "--wait 1");
    said.expect(1, "local_firewall", true, &["nft insert rule inet f input udp dport 51820 accept"]);
    pair[B].host.run("nft insert rule inet f input udp dport 51820 accept");
    eventually("the remedy helps", SOON, || pair.why(B, "--wait 5").status == 0);
}

#[test]
fn a_wrong_key_at_either_side_is_named_with_the_right_one() {
    let Some(mut pair) = pair() else { return };
    // A has another key than B knows.
    pair.configure_side(A, Some(V4));
    let own = std::mem::replace(&mut pair[A].public, key_pair().1);
    pair.configure_side(B, Some(V4));
    let trying = pair.trying(A);
    let mut said = pair.why(B, "--wait 2");
    eventually("A is heard", SOON, || {
        said = pair.why(B, "--wait 2");
        said.causes().contains(&"wrong_key")
    });
    said.expect(1, "wrong_key", true, &[&format!("PublicKey = {own}"), &pair[A].public]);
    drop(trying);
    // A has another key for B than B has.
    pair[A].public = own;
    pair.configure_side(B, Some(V4));
    let own = std::mem::replace(&mut pair[B].public, key_pair().1);
    pair.configure_side(A, Some(V4));
    let _trying = pair.trying(A);
    eventually("A is heard", SOON, || {
        said = pair.why(B, "--wait 2");
        said.value["causes"][0]["found"].to_string().contains("another public key than this end's")
    });
    said.expect(1, "wrong_key", true, &[&format!("PublicKey = {own}")]);
}

#[test]
fn preshared_keys_that_differ_are_seen_from_both_ends() {
    let Some(mut pair) = pair() else { return };
    pair.configure_side(B, None);
    pair.psk = Some(key_pair().0);
    pair.configure_side(A, Some(V4));
    let _trying = pair.trying(A);
    pair.why(A, "--wait 6").expect(1, "preshared_key", true, &["do not authenticate", "PresharedKey"]);
    let mut said = pair.why(B, "--passive --wait 1");
    eventually("A tries once more", SOON, || {
        said = pair.why(B, "--passive --wait 1");
        said.causes() == ["preshared_key"]
    });
    said.expect(1, "preshared_key", false, &["uses none of the sessions"]);
}

/// A library that sets the clock of a program a day back, and the words that put it before one.
fn a_day_behind() -> Option<&'static Hindrance> {
    if find_program("cc").is_none() {
        skip("cc is not installed");
        return None;
    }
    const SOURCE: &str = "#define _GNU_SOURCE\n#include <time.h>\n#include <sys/syscall.h>\n#include <unistd.h>\n\
        int clock_gettime(clockid_t clock, struct timespec *now) {\n\
        int done = syscall(SYS_clock_gettime, clock, now);\n\
        if (done == 0 && clock == CLOCK_REALTIME) now->tv_sec -= 86400;\n\
        return done;\n}\n";
    let library = std::env::temp_dir().join(format!("rt-{}-{}.so", std::process::id(), serial()));
    let source = library.with_extension("c");
    std::fs::write(&source, SOURCE).unwrap();
    sh(&format!("cc -shared -fPIC -o {} {}; rm {1}", library.display(), source.display())).unwrap();
    let preload: &'static str = Box::leak(format!("LD_PRELOAD={}", library.display()).into_boxed_str());
    let behind: &'static [&'static str] = Box::leak(Box::new(["env", preload]));
    Some(Box::leak(Box::new(Hindrance { behind, options: &["--workers", "1"] })))
}

#[test]
fn a_client_whose_clock_was_set_back_is_named() {
    if !ringtun_itself() {
        return;
    }
    let Some(behind) = a_day_behind() else { return };
    let Some(pair) = Pair::connected(RINGTUN, RINGTUN) else { return };
    // The same client, started anew with another clock.
    let (private, name) = (pair[A].private.clone(), pair[A].name().to_owned());
    pair[A].host.run(&format!("ip link set {name} down"));
    let device = crate::implementation::Device::start(&pair[A].host, Implementation::Hindered(behind));
    let text = pair.configuration(A, Some(V4)).replace(&pair[A].private, &private);
    let late = &device.name;
    pair[A].host.run(&format!(
        "ip addr del 10.99.0.1/24 dev {name}; ip addr add 10.99.0.1/24 dev {late}; ip link set {late} up"
    ));
    pair[A].host.try_run_with_file(&text, &format!("wg setconf {late} $FILE")).unwrap();
    let _trying = pair.trying(A);
    let mut said = pair.why(B, "--wait 0 --passive");
    eventually("it is heard", SOON, || {
        said = pair.why(B, "--wait 0 --passive");
        said.causes().contains(&"clock")
    });
    // The session of before is still there.
    said.expect(3, "clock", true, &["its clock was set back"]);
}

#[test]
fn an_address_that_is_not_the_peers_is_named() {
    let Some(pair) = pair() else { return };
    pair.configure(V4);
    pair.expect_ping(A, V4);
    pair[A].host.run(&format!("ip addr add 10.99.0.77/24 dev {}", pair[A].name()));
    let script = format!("ping -q -c 3 -w 3 -I 10.99.0.77 {}", pair[B].inner(V4));
    assert!(pair[A].host.try_run(&script).is_err());
    let said = pair.why(B, "--wait 1");
    said.expect(3, "allowed_ips", true, &["10.99.0.77", "10.99.0.1/32", "add 10.99.0.77/32"]);
    assert!(
        said.value["facts"]["device"]["peer"]["refused_sources"].as_u64().is_some_and(|count| count >= 3)
    );
    assert_eq!(pair.why(A, "--wait 1").status, 0);
}

#[test]
fn an_endpoint_behind_the_tunnel_itself_is_named() {
    let Some(pair) = pair() else { return };
    pair.configure(V4);
    let endpoint = pair[B].endpoint(V4);
    let address = endpoint.split(':').next().unwrap();
    pair[A].host.run(&format!("ip route add {address}/32 dev {}", pair[A].name()));
    pair.why(A, "--wait 1").expect(1, "endpoint_in_tunnel", true, &[&endpoint, "AllowedIPs"]);
    pair[A].host.run(&format!("ip route del {address}/32; ip route add unreachable {address}/32"));
    pair.why(A, "--wait 1").expect(1, "no_route", true, &[&endpoint]);
}

#[test]
fn a_peer_of_which_nothing_is_known_is_told_to_begin() {
    let Some(pair) = pair() else { return };
    pair.configure_side(B, None);
    let said = pair.why(B, "--wait 1");
    said.expect(1, "no_endpoint", false, &["nothing at all arrived", "UDP port 51820", &pair[B].public]);
}

#[test]
fn a_way_that_drops_large_packets_is_named_with_the_mtu_that_passes() {
    let Some(pair) = pair() else { return };
    if find_program("nft").is_none() {
        return skip("nft is not installed");
    }
    pair.configure(V4);
    pair.expect_ping(A, V4);
    pair[B]
        .host
        .run("nft add table inet f; nft 'add chain inet f input { type filter hook input priority 0; }'");
    pair[B].host.run("nft add rule inet f input udp length gt 1300 drop");
    let said = pair.why(A, "--wait 1");
    said.expect(3, "mtu", true, &["MTU = "]);
    let largest = said.value["facts"]["sizes"]["largest"].as_u64().unwrap();
    // Of 1,300 bytes of UDP, 8 are its header and 32 the tunnel's own; what is inside is padded to 16.
    assert_eq!(largest, (1300 - 8 - 32) / 16 * 16);
    for side in [A, B] {
        pair[side].host.run(&format!("ip link set {} mtu {largest}", pair[side].name()));
    }
    assert_eq!(pair.why(A, "--wait 1").status, 0, "the remedy helps");
}

#[test]
fn forwarding_and_translation_that_are_missing_are_named() {
    let Some(pair) = pair() else { return };
    pair.configure_allowing(A, "0.0.0.0/0");
    pair.configure_side(B, None);
    pair[A].host.run(&format!("ip route add 203.0.113.0/24 dev {}", pair[A].name()));
    pair[B]
        .host
        .run("ip link add out type veth peer name far && ip link set far up && ip addr add 203.0.113.1/24 dev out && ip link set out up");
    pair[B].host.run("sysctl -qw net.ipv4.ip_forward=0");
    pair.expect_ping(A, V4);
    let _asking = pair[A].host.start("ping", &["-i", "0.2", "203.0.113.9"]);
    let said = pair.why(B, "--wait 2");
    said.expect(3, "forwarding", true, &["203.0.113.9", "sysctl -w net.ipv4.ip_forward=1"]);
    pair[B].host.run("sysctl -qw net.ipv4.ip_forward=1");
    let said = pair.why(B, "--wait 2");
    said.expect(3, "nat", false, &["by way of out", "10.99.0.1/32", "asquerade"]);
    // Whoever answers needs no translation: here that is this host's other address.
    pair[B].host.run("ip addr add 203.0.113.9/32 dev out");
    assert_eq!(pair.why(B, "--wait 2").status, 0);
}

#[test]
fn a_name_without_an_address_is_named() {
    let Some(site) = Site::new() else { return };
    let address = "Address = 192.168.96.1/24";
    let section = peer("# Name = office\nAllowedIPs = 192.168.96.2/32\nEndpoint = 10.99.0.2:51820");
    site.write(address, &section);
    site.done("up");
    site.write(address, &section.replace("10.99.0.2:51820", "no-such-host.invalid:51820"));
    let said = Said::of(&site.host, &format!("{} office --wait 0", site.name));
    said.expect(1, "name_unresolved", false, &["no-such-host.invalid:51820"]);
    assert_eq!(said.value["facts"]["name"], "office");
    // The other end of the wire has no tunnel at all.
    site.write(address, &section);
    let said = Said::of(&site.host, &format!("{} OFFICE --wait 1", site.name));
    said.expect(1, "nothing_comes_back", false, &["10.99.0.2:51820"]);
}
