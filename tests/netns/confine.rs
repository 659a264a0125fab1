//! What the process of a running tunnel has given up.

use crate::implementation::{Device, Hindrance, Implementation, RINGTUN_TWO, ringtun_itself};
use crate::lab::{Host, eventually, ready};
use crate::updown::{SOON, Site};
use std::sync::Arc;

/// The value of a line of /proc/PID/status.
fn status(pid: u32, key: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {key} in {text}")).trim().to_owned()
}

fn capabilities(pid: u32, key: &str) -> u64 {
    u64::from_str_radix(&status(pid, key), 16).unwrap()
}

/// The numbers of linux/capability.h: CAP_NET_BIND_SERVICE, CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF.
const NEEDED: u64 = 1 << 10 | 1 << 12 | 1 << 13 | 1 << 39;
const SYS_ADMIN: u64 = 1 << 21;

/// Whether no thread of a process has other capabilities than `allowed`, new privileges to come by, or all system calls.
fn is_confined(pid: u32, allowed: u64) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let mut threads =
        threads.map(|thread| thread.unwrap().file_name().into_string().unwrap().parse().unwrap());
    threads.all(|thread| {
        let has_only = |set| capabilities(thread, set) & !allowed == 0;
        let is = |key, value: &str| status(thread, key) == value;
        has_only("CapEff") && has_only("CapPrm") && is("NoNewPrivs", "1") && is("Seccomp", "2")
    })
}

/// The tunnel's process, as its command line ends with the interface's name.
fn daemon_of(name: &str) -> u32 {
    let ends_so = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.ends_with(format!("\0{name}\0").as_bytes())
    };
    let mut processes = std::fs::read_dir("/proc").unwrap();
    let id = |name: std::ffi::OsString| name.into_string().ok()?.parse().ok();
    processes.find_map(|process| id(process.unwrap().file_name()).filter(ends_so)).expect("it runs")
}

const UNCONFINED: Hindrance = Hindrance { behind: &[], options: &["--unconfined"] };

#[test]
fn a_tunnel_keeps_only_what_it_needs_and_all_of_it_where_that_is_asked_for() {
    if !ready() || !ringtun_itself() {
        return;
    }
    let host = Arc::new(Host::namespace());
    let mut device = Device::start(&host, RINGTUN_TWO);
    let pid = device.process().pid();
    eventually("it is confined", SOON, || is_confined(pid, NEEDED | SYS_ADMIN));
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert!(core.split_whitespace().skip(4).eq(["0", "0", "bytes"]), "{core}");

    let mut unconfined = Device::start(&host, Implementation::Hindered(&UNCONFINED));
    let pid = unconfined.process().pid();
    assert_eq!(capabilities(pid, "CapPrm"), capabilities(std::process::id(), "CapPrm"));
    assert_eq!((status(pid, "Seccomp"), status(pid, "NoNewPrivs")), ("0".into(), "0".into()));
}

#[test]
fn a_tunnel_that_up_started_has_no_right_over_the_system() {
    let Some(site) = Site::new() else { return };
    site.write("Address = 10.9.0.1/24", "");
    site.done("up");
    let pid = daemon_of(&site.name);
    eventually("it is confined", SOON, || is_confined(pid, NEEDED));
    site.done("down");
}
