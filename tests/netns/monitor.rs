//! `ringtun monitor`: what it tells of whom, and how it ends.

use crate::implementation::{RINGTUN, ringtun, ringtun_itself};
use crate::lab::{Process, eventually, find_program, skip, wait_for};
use crate::pair::{A, B, Pair, Side, V4, key_pair};
use std::process::{Command, Stdio};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(12);

fn pair() -> Option<Pair> {
    ringtun_itself().then(|| Pair::new(RINGTUN, RINGTUN))?
}

/// `ringtun monitor` with these words, once it follows.
fn monitor(pair: &Pair, words: &[&str]) -> Process {
    let program = ringtun().display().to_string();
    let mut arguments = vec!["monitor"];
    arguments.extend(words);
    let process = pair[A].host.start(&program, &arguments);
    // A change that is told shows that it follows.
    eventually("it follows", SOON, || {
        let (key, name) = (key_pair().1, pair[A].name());
        pair[A].host.run(&format!("wg set {name} peer {key} && wg set {name} peer {key} remove"));
        process.said().contains("removed")
    });
    process
}

#[track_caller]
fn expect(process: &Process, words: &[&str]) {
    eventually(&format!("{words:?} are told"), SOON, || {
        process.said().lines().any(|line| words.iter().all(|word| line.contains(word)))
    });
}

#[test]
fn peers_that_connect_are_told_with_time_tunnel_and_key() {
    let Some(pair) = pair() else { return };
    pair.configure_side(A, None);
    let text = monitor(&pair, &[pair[A].name()]);
    let json = monitor(&pair, &[pair[A].name(), "--json"]);
    pair.configure_side(B, Some(V4));
    pair.expect_ping(B, V4);
    let (from, key) = (pair[B].endpoint(V4), pair[B].public.clone());
    let name = pair[A].name();
    expect(&text, &["Z ", &format!(" {name} {key}: initiation from {from} answered")]);
    expect(&text, &[&format!(" {name} {key}: connected, at {from}")]);
    expect(
        &json,
        &[
            "\"event\":\"connected\"",
            &format!("\"peer\":\"{key}\""),
            &format!("\"interface\":\"{name}\""),
            &format!("\"endpoint\":\"{from}\""),
        ],
    );
    assert!(json.said().lines().all(|line| line.starts_with('{') && line.ends_with('}')), "{}", json.said());
    pair[A].host.run(&format!("wg set {name} peer {key} remove"));
    expect(&text, &[&key, "disconnected: the peer was removed"]);
}

#[test]
fn it_ends_with_the_tunnel_with_its_reader_and_at_ctrl_c() {
    let Some(mut pair) = pair() else { return };
    let name = pair[A].name().to_owned();
    let mut one = monitor(&pair, &[&name]);
    let mut interrupted = monitor(&pair, &[]);
    interrupted.signal("INT");
    assert!(interrupted.wait(SOON).is_some_and(|status| status.success()), "{}", interrupted.said());

    let mut unread = Command::new(ringtun())
        .args(["monitor", &name])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(unread.stdout.take());
    let ended = wait_for(SOON, || unread.try_wait().unwrap());
    let _ = unread.kill();
    assert!(ended.is_some_and(|status| status.success()), "{ended:?}");

    pair[A].device = None;
    assert!(one.wait(SOON).is_some_and(|status| status.success()), "{}", one.said());
    assert!(one.said().contains(&format!("{name} is gone")), "{}", one.said());
    let refused = pair[A].host.try_run(&format!("{} monitor {name}", ringtun().display())).unwrap_err();
    assert!(refused.contains(&format!("no tunnel {name} runs here")), "{refused}");
}

#[test]
fn all_tunnels_are_followed_also_those_that_come_later() {
    let Some(mut pair) = pair() else { return };
    let all = monitor(&pair, &[]);
    pair.restart(B);
    let told = |side: Side| {
        let name = pair[side].name().to_owned();
        pair[side].host.run(&format!("wg set {name} peer {}", key_pair().1));
        all.said().lines().any(|line| line.contains(&format!(" {name} ")) && line.contains("added"))
    };
    for side in [A, B] {
        eventually(&format!("{side:?} is followed"), SOON, || told(side));
    }
}

#[test]
fn one_that_does_not_read_holds_up_nobody_and_is_told_what_is_missing() {
    let Some(pair) = pair() else { return };
    let name = pair[A].name();
    let stopped = monitor(&pair, &[name]);
    stopped.signal("STOP");
    // Each round tells of two thousand peers: far more than waits for a follower, and than fits a socket.
    let many: String = (0..1000).map(|_| format!(" peer {}", key_pair_like())).collect();
    let none =
        many.split_whitespace().filter(|word| *word != "peer").map(|key| format!(" peer {key} remove"));
    let none: String = none.collect();
    let script = format!("for i in 1 2 3 4 5 6; do wg set {name}{many}; wg set {name}{none}; done");
    pair[A].host.try_run_with_file(&script, "sh $FILE").unwrap();
    pair.configure(V4);
    pair.expect_ping(A, V4);
    stopped.signal("CONT");
    // What is missing is told with what happens next, once there is room for it.
    eventually("what is missing is told", SOON, || {
        pair[A].host.run(&format!("wg set {name} peer {}", key_pair().1));
        stopped.said().contains("events are missing here")
    });
    let key = key_pair().1;
    pair[A].host.run(&format!("wg set {name} peer {key}"));
    expect(&stopped, &[&key, "added"]);
}

/// Arguments: address, port, public key. Initiations whose MAC1 is right, and whose contents nobody can open.
const FLOOD: &str = r"
import base64, hashlib, os, socket, sys
key = hashlib.blake2s(b'mac1----' + base64.b64decode(sys.argv[3])).digest()
message = b'\1\0\0\0' + os.urandom(112)
message += hashlib.blake2s(message, key=key, digest_size=16).digest() + bytes(16)
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect((sys.argv[1], int(sys.argv[2])))
for _ in range(20000):
    s.send(message)
";

#[test]
fn a_flood_is_told_as_it_begins_and_ends_and_so_is_what_a_worker_cannot_send() {
    if find_program("python3").is_none() {
        return skip("python3 is not installed");
    }
    let Some(pair) = pair() else { return };
    pair.configure(V4);
    pair.expect_ping(A, V4);
    let json = monitor(&pair, &[pair[A].name(), "--json"]);
    let endpoint = pair[A].endpoint(V4);
    let (address, port) = endpoint.rsplit_once(':').unwrap();
    let flood = pair[B].host.start("python3", &["-c", FLOOD, address, port, &pair[A].public]);
    assert_eq!(flood.wait_said(), "", "the flood itself failed");
    expect(&json, &["\"event\":\"flood_began\""]);
    expect(&json, &["\"event\":\"flood_ended\""]);
    let outer = pair[B].endpoint(V4);
    let outer = outer.split(':').next().unwrap();
    pair[A].host.run(&format!("ip route add prohibit {outer}/32"));
    assert!(pair.ping(A, V4, Duration::from_secs(2)).is_err());
    expect(&json, &["\"event\":\"worker_notice\"", "\"worker\":0", outer]);
}

/// Any 32 bytes are a public key.
fn key_pair_like() -> String {
    use base64::Engine;
    use std::hash::{BuildHasher, RandomState};
    let bytes: Vec<u8> = (0..4).flat_map(|at| RandomState::new().hash_one(at).to_be_bytes()).collect();
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
