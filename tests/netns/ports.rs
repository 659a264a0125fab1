//! A listen port that somebody else has: reported once, tried again until it is free, and never claimed meanwhile.

use crate::implementation::{Device, RINGTUN_TWO, ringtun, ringtun_itself, uapi_socket};
use crate::lab::{Host, eventually, ready};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(15);
const PORT: u16 = 51820;

/// What `wg show` says of the port.
fn listens(host: &Host, name: &str) -> String {
    host.run(&format!("wg show {name} listen-port")).trim().to_owned()
}

/// What `ringtun VERB NAME` prints.
fn says(host: &Host, verb: &str, name: &str) -> String {
    host.run(&format!("{} {verb} {name}", ringtun().display()))
}

fn complaints(device: &mut Device) -> Vec<String> {
    let said = device.process().said();
    said.lines().filter(|line| line.contains("in use")).map(str::to_owned).collect()
}

#[test]
fn a_port_in_use_is_told_once_and_taken_when_it_is_free() {
    if !ready() || !ringtun_itself() {
        return;
    }
    let host = Arc::new(Host::namespace());
    let [holder, mut device] = [0, 1].map(|_| Device::start(&host, RINGTUN_TWO));
    let name = device.name.clone();
    for name in [&holder.name, &name] {
        host.run(&format!("wg set {name} listen-port {PORT}"));
        assert_eq!(listens(&host, name), PORT.to_string(), "down: what is configured");
    }
    host.run(&format!("ip link set {} up", holder.name));
    eventually("the first has it", SOON, || says(&host, "status", &holder.name).contains("UDP by BPF"));
    let told_once = |device: &mut Device, before: usize| {
        host.run(&format!("ip link set {name} up"));
        eventually("it is told", SOON, || complaints(device).len() > before);
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(complaints(device).len(), before + 1, "{}", device.process().said());
    };
    told_once(&mut device, 0);
    // Nobody says that it listens; everything else works.
    assert_eq!(listens(&host, &name), "0");
    assert!(!host.run(&format!("wg show {name}")).contains("listening port"));
    for (verb, word) in [("status", "in use"), ("show --verbose", "in use"), ("show --json", "51820")] {
        let shown = says(&host, verb, &name);
        assert!(shown.contains(word), "{verb}: {shown}");
    }
    host.run(&format!("wg set {name} fwmark 9"));
    let error = host.try_run(&format!("wg set {name} listen-port {PORT}")).expect_err("it is in use");
    assert!(error.to_lowercase().contains("in use"), "{error}");
    assert_eq!(listens(&host, &name), "0");
    host.run(&format!("ip link set {name} down"));
    eventually("down, it shows what is configured", SOON, || listens(&host, &name) == PORT.to_string());
    let before = complaints(&mut device).len();
    told_once(&mut device, before);
    host.run(&format!("wg set {} listen-port 51821", holder.name));
    eventually("it has the port", SOON, || listens(&host, &name) == PORT.to_string());
    assert!(!says(&host, "status", &name).contains("in use"));
    assert_eq!(host.run(&format!("wg show {name} fwmark")).trim(), "0x9");
    let sockets = host.run(&format!("ss -Hulpn sport = :{PORT}"));
    assert!(sockets.contains(&format!("pid={},", device.process().pid())), "{sockets}");
}

/// One transaction's error number.
fn set_port(name: &str, port: u16) -> i32 {
    let mut stream = UnixStream::connect(uapi_socket(name)).expect("a device");
    write!(stream, "set=1\nlisten_port={port}\n\n").expect("it reads");
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).expect("it answers");
    answer.trim().strip_prefix("errno=").and_then(|number| number.parse().ok()).expect("an error number")
}

#[test]
fn a_port_of_our_own_is_free_at_once() {
    if !ready() || !ringtun_itself() {
        return;
    }
    let host = Arc::new(Host::namespace());
    let mut device = Device::start(&host, RINGTUN_TWO);
    let name = device.name.clone();
    host.run(&format!("ip link set {name} up"));
    eventually("it listens", SOON, || listens(&host, &name) != "0");
    for round in 0..200 {
        for port in [PORT, PORT + 1] {
            assert_eq!(set_port(&name, port), 0, "to {port} in round {round}");
        }
    }
    for _ in 0..20 {
        host.run(&format!("ip link set {name} down && ip link set {name} up"));
    }
    eventually("it listens", SOON, || says(&host, "status", &name).contains("UDP by BPF"));
    assert_eq!(complaints(&mut device), Vec::<String>::new());
}
