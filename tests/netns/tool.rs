//! The standard tool, `wg`, on a ringtun device.

use crate::implementation::{Device, RINGTUN};
use crate::lab::{Host, Process, eventually, ready};
use crate::pair::{A, B, Pair, Pinger, Side, V4, V6, key_pair};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

/// A device alone in a namespace.
fn alone() -> Option<(Arc<Host>, Device)> {
    if !ready() {
        return None;
    }
    let host = Arc::new(Host::namespace());
    let device = Device::start(&host, RINGTUN);
    host.run(&format!("ip link set {} up", device.name));
    Some((host, device))
}

/// A public key of our choice: any 32 bytes are one.
fn public_key(number: u32) -> String {
    let mut bytes = [7; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    STANDARD.encode(bytes)
}

/// `wg VERB DEVICE FILE`.
#[track_caller]
fn wg(host: &Host, verb: &str, name: &str, text: &str) {
    host.try_run_with_file(text, &format!("wg {verb} {name} $FILE"))
        .unwrap_or_else(|error| panic!("{error}"));
}

/// `wg show NAME allowed-ips`, each peer's in order.
fn allowed_ips(host: &Host, name: &str) -> BTreeSet<(String, Vec<String>)> {
    let shown = host.run(&format!("wg show {name} allowed-ips"));
    let entry = |line: &str| {
        let (key, list) = line.split_once('\t').expect("a key and a list");
        let mut list: Vec<String> =
            list.split(' ').filter(|word| *word != "(none)").map(str::to_owned).collect();
        list.sort();
        (key.to_owned(), list)
    };
    shown.lines().map(entry).collect()
}

/// A configuration of peers, and what `allowed_ips` must then give.
fn peers_with(lists: impl Iterator<Item = Vec<String>>) -> (String, BTreeSet<(String, Vec<String>)>) {
    let mut text = format!("[Interface]\nPrivateKey = {}\n", key_pair().0);
    let mut expected = BTreeSet::new();
    for (number, mut list) in lists.enumerate() {
        let key = public_key(u32::try_from(number).expect("few peers"));
        let _ = writeln!(text, "[Peer]\nPublicKey = {key}");
        for part in list.chunks(64) {
            let _ = writeln!(text, "AllowedIPs = {}", part.join(", "));
        }
        list.sort();
        expected.insert((key, list));
    }
    (text, expected)
}

/// Sets a configuration, reads it back, sets what was read, and reads that.
#[track_caller]
fn reads_back(text: &str, expected: &BTreeSet<(String, Vec<String>)>) {
    let Some((host, device)) = alone() else { return };
    let name = &device.name;
    wg(&host, "setconf", name, text);
    assert!(&allowed_ips(&host, name) == expected, "not read back as set");
    let shown = host.run(&format!("wg showconf {name}"));
    wg(&host, "setconf", name, &shown);
    assert!(&allowed_ips(&host, name) == expected, "not read back as set again");
}

#[test]
fn a_peer_of_130560_allowed_ips_reads_back_exactly() {
    let each = (1..=255).flat_map(|i| (0..=255).map(move |j| (i, j)));
    let list =
        each.flat_map(|(i, j)| [format!("{i}.{j}.4.0/24"), format!("2001:db8:{i:x}:{:x}::/64", j + 1)]);
    let (text, expected) = peers_with(std::iter::once(list.collect()));
    reads_back(&text, &expected);
}

#[test]
fn forty_peers_of_fifty_two_allowed_ips_read_back_exactly() {
    let list = |peer| {
        (0..26)
            .flat_map(move |i| [format!("10.{peer}.{i}.0/25"), format!("fd00:{}::{}/128", peer + 1, i + 1)])
    };
    let (text, expected) = peers_with((0..40).map(|peer| list(peer).collect()));
    reads_back(&text, &expected);
}

#[test]
fn a_thousand_peers_come_and_go() {
    let Some((host, device)) = alone() else { return };
    let name = &device.name;
    let list = |peer: u32| vec![format!("10.{}.{}.0/24", peer / 256, peer % 256)];
    let (text, expected) = peers_with((0..1000).map(list));
    wg(&host, "setconf", name, &text);
    assert!(allowed_ips(&host, name) == expected);
    // Every second one goes, in one operation.
    let mut removal = format!("wg set {name}");
    for number in (0..1000).step_by(2) {
        let _ = write!(removal, " peer {} remove", public_key(number));
    }
    host.run(&removal);
    let left: BTreeSet<_> = allowed_ips(&host, name).into_iter().map(|(key, _)| key).collect();
    assert_eq!(left, (0..1000).skip(1).step_by(2).map(public_key).collect());
    wg(&host, "syncconf", name, &text);
    assert!(allowed_ips(&host, name) == expected, "syncconf brings the others back");
    wg(&host, "setconf", name, "[Interface]\n");
    assert!(allowed_ips(&host, name).is_empty(), "setconf without peers removes all");
}

#[test]
fn an_allowed_ip_belongs_to_the_peer_it_was_last_given_to() {
    let Some((host, device)) = alone() else { return };
    let name = &device.name;
    let [one, two] = [public_key(1), public_key(2)];
    host.run(&format!("wg set {name} peer {one} allowed-ips 10.0.0.0/8,10.1.2.0/24,fd00::/8"));
    host.run(&format!("wg set {name} peer {two} allowed-ips 10.1.2.99/24"));
    let of = |list: &[&str]| list.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    let expected = [(one, of(&["10.0.0.0/8", "fd00::/8"])), (two, of(&["10.1.2.0/24"]))];
    assert_eq!(allowed_ips(&host, name), expected.into());
}

#[test]
fn secrets_are_hidden_unless_asked_for() {
    let Some(mut pair) = Pair::new(RINGTUN, RINGTUN) else { return };
    let (psk, _) = key_pair();
    pair.psk = Some(psk.clone());
    pair.configure(V4);
    let (host, name, private) = (&pair[A].host, pair[A].name(), &pair[A].private);
    let hidden = host.run(&format!("wg show {name}"));
    assert!(
        hidden.contains("(hidden)") && !hidden.contains(private.as_str()) && !hidden.contains(&psk),
        "{hidden}"
    );
    let shown = host.run(&format!("WG_HIDE_KEYS=never wg show {name}"));
    assert!(shown.contains(private.as_str()) && shown.contains(&psk), "{shown}");
    pair.expect_ping(A, V4);
    let process = pair[A].device.as_mut().expect("a device").process();
    let said = process.said();
    assert!(!said.contains(&psk), "a secret was logged");
}

#[test]
fn what_is_set_is_what_is_shown() {
    let Some(pair) = Pair::connected(RINGTUN, RINGTUN) else { return };
    let (host, name) = (&pair[A].host, pair[A].name());
    let show = |what: &str| host.run(&format!("wg show {name} {what}")).trim().to_owned();
    let key = &pair[B].public;
    assert_eq!(show("public-key"), pair[A].public);
    assert_eq!(show("listen-port"), "51820");
    assert_eq!(show("peers"), *key);
    assert_eq!(show("endpoints"), format!("{key}\t{}", pair[B].endpoint(V4)));
    assert_eq!(show("persistent-keepalive"), format!("{key}\toff"));
    host.run(&format!("wg set {name} fwmark 0x1234 peer {key} persistent-keepalive 25"));
    assert_eq!(show("fwmark"), "0x1234");
    assert_eq!(show("persistent-keepalive"), format!("{key}\t25"));
    pair.expect_ping(A, V4);
    host.run(&format!("wg set {name} fwmark off peer {key} persistent-keepalive off"));
    assert_eq!((show("fwmark"), show("persistent-keepalive")), ("off".into(), format!("{key}\toff")));

    let dump = show("dump");
    let rows: Vec<Vec<&str>> = dump.lines().map(|line| line.split('\t').collect()).collect();
    assert_eq!(rows[0], [pair[A].private.as_str(), &pair[A].public, "51820", "off"]);
    let networks = format!("{}/32,{}/128", pair[B].inner(V4), pair[B].inner(V6));
    assert_eq!(rows[1][..4], [key.as_str(), "(none)", &pair[B].endpoint(V4), &networks]);
    for (at, what) in [(4, "latest handshake"), (5, "received"), (6, "sent")] {
        assert!(rows[1][at].parse::<u64>().is_ok_and(|number| number > 0), "{what}: {dump}");
    }
    assert_eq!(rows[1][7], "off");
}

#[test]
fn received_and_sent_bytes_agree_between_the_sides() {
    let Some(pair) = Pair::connected(RINGTUN, RINGTUN) else { return };
    pair.iperf3(V4, "-n 4M");
    let transfer = |side: Side| {
        let shown = pair[side].host.run(&format!("wg show {} transfer", pair[side].name()));
        let words: Vec<u64> =
            shown.split_whitespace().skip(1).map(|word| word.parse().expect("a number")).collect();
        (words[0], words[1])
    };
    // What is under way settles.
    std::thread::sleep(Duration::from_millis(500));
    let ((received_a, sent_a), (received_b, sent_b)) = (transfer(A), transfer(B));
    // A few handshake messages, which some count on one side only; and a full socket may drop some.
    let agree = |sent: u64, received: u64| received <= sent + 2048 && received + 2048 + sent / 20 >= sent;
    assert!(agree(sent_a, received_b), "A sent {sent_a}, B received {received_b}");
    assert!(agree(sent_b, received_a), "B sent {sent_b}, A received {received_a}");
    // iperf3 hangs up once the last byte is written, not once it has arrived.
    assert!(received_b > 1 << 20, "B received {received_b}");
}

#[test]
fn syncconf_and_addconf_leave_a_session_alone() {
    let Some(pair) = Pair::connected(RINGTUN, RINGTUN) else { return };
    let (host, name) = (&pair[A].host, pair[A].name());
    let before = pair[A].wg_show("latest-handshakes");
    let pings = pair.pinger();
    let other = public_key(9);
    wg(host, "addconf", name, &format!("[Peer]\nPublicKey = {other}\nAllowedIPs = 10.77.0.0/16\n"));
    let peers = host.run(&format!("wg show {name} peers"));
    assert!(peers.contains(&other) && peers.contains(&pair[B].public), "{peers}");
    wg(host, "syncconf", name, &pair.configuration(A, Some(V4)));
    assert_eq!(host.run(&format!("wg show {name} peers")).trim(), pair[B].public);
    let (sent, received) = pings.outcome();
    assert!(sent > 0 && sent == received, "{received} of {sent} pings came back");
    assert_eq!(pair[A].wg_show("latest-handshakes"), before, "the session was renewed");
}

/// Runs a change while pings and a TCP stream go through the tunnel; both must be alive after it.
fn under_traffic(change: impl FnOnce(&Pair)) {
    let Some(pair) = Pair::connected(RINGTUN, RINGTUN) else { return };
    let server = pair[B].host.iperf3_server();
    let target = pair[B].inner(V4);
    eventually("the server listens", Duration::from_secs(5), || {
        pair[A].host.try_run(&format!("iperf3 -c {target} -n 1K")).is_ok()
    });
    let client: Process = pair[A].host.start("iperf3", &["-c", target, "-t", "6"]);
    let pings: Pinger = pair.pinger();
    std::thread::sleep(Duration::from_secs(1));
    change(&pair);
    let said = client.wait_said();
    assert!(said.contains("receiver") && !said.contains("error"), "{said}{}", pair.tell());
    let (sent, received) = pings.outcome();
    // The change itself may cost some, but not half of them.
    assert!(received * 2 > sent, "{received} of {sent} pings came back\n{}", pair.tell());
    drop(server);
    pair.expect_ping(B, V6);
}

#[test]
fn the_listen_port_changes_under_traffic() {
    under_traffic(|pair| {
        for port in [51821, 51999, 51820] {
            pair[A].host.run(&format!("wg set {} listen-port {port}", pair[A].name()));
            std::thread::sleep(Duration::from_millis(300));
            assert_eq!(
                pair[A].host.run(&format!("wg show {} listen-port", pair[A].name())).trim(),
                port.to_string()
            );
        }
        eventually("the far side follows", Duration::from_secs(5), || {
            pair[B].wg_show("endpoints") == pair[A].endpoint(V4)
        });
    });
}

#[test]
fn other_peers_come_change_and_go_under_traffic() {
    under_traffic(|pair| {
        let name = pair[A].name();
        for number in 0..40 {
            let key = public_key(number);
            pair[A].host.run(&format!(
                "wg set {name} peer {key} allowed-ips 10.50.{number}.0/24 endpoint 198.18.0.20:9"
            ));
            pair[A]
                .host
                .run(&format!("wg set {name} peer {key} allowed-ips 10.51.{number}.0/24,10.52.0.0/16"));
            if number % 2 == 0 {
                pair[A].host.run(&format!("wg set {name} peer {key} remove"));
            }
        }
        let left = pair[A].host.run(&format!("wg show {name} peers"));
        assert_eq!(left.lines().count(), 21, "{left}");
    });
}

#[test]
fn the_peer_itself_is_removed_and_added_under_traffic() {
    under_traffic(|pair| {
        let (host, name) = (&pair[A].host, pair[A].name());
        host.run(&format!("wg set {name} peer {} remove", pair[B].public));
        std::thread::sleep(Duration::from_millis(300));
        pair.configure_side(A, Some(V4));
    });
}

#[test]
fn a_new_private_key_ends_sessions_and_makes_new_ones() {
    let Some(mut pair) = Pair::connected(RINGTUN, RINGTUN) else { return };
    let (old, (private, public)) = (pair[A].public.clone(), key_pair());
    pair[A].private = private;
    pair[A].public = public;
    for side in [A, B] {
        pair.configure_side(side, Some(V4));
    }
    pair.expect_ping(A, V4);
    assert_ne!(pair[B].wg_show("allowed-ips"), "", "{old} was replaced");
    assert_eq!(pair[B].host.run(&format!("wg show {} peers", pair[B].name())).trim(), pair[A].public);
}
