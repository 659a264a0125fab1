//! `ringtun upgrade`: a tunnel goes on in another process, under traffic.

mod owners;
mod setbacks;

use crate::implementation::{Implementation, Io, RINGTUN, RINGTUN_TWO, ringtun, ringtun_itself};
use crate::lab::{Host, Process, eventually};
use crate::pair::{A, B, Pair, Side, V4, ping_counts};
use serde_json::Value;
use std::time::Duration;

pub(crate) const SOON: Duration = Duration::from_secs(20);
/// How many upgrades there are in a row, where the environment names no other number.
const UPGRADES: usize = 10;

/// `ringtun upgrade` with these words; what it said.
pub(crate) fn try_upgrade(host: &Host, name: &str, words: &str) -> Result<String, String> {
    host.try_run(&format!("{} upgrade {name} {words}", ringtun().display()))
}

/// What a tunnel says of itself.
pub(crate) fn status(host: &Host, name: &str) -> Value {
    let said = host.run(&format!("{} status {name} --json", ringtun().display()));
    serde_json::from_str::<Value>(&said).unwrap()[0]["status"].take()
}

/// The process that has the tunnel.
pub(crate) fn process(host: &Host, name: &str) -> u32 {
    status(host, name)["pid"].as_u64().unwrap() as u32
}

impl Pair {
    /// Upgrades the tunnel of a side, which must succeed. The number of the new process.
    #[track_caller]
    fn upgrade(&self, side: Side, words: &str) -> u32 {
        let (host, name) = (&self[side].host, self[side].name());
        let before = process(host, name);
        let said = try_upgrade(host, name, words).unwrap_or_else(|error| panic!("{error}{}", self.tell()));
        let after = process(host, name);
        assert!(after != before && said.contains(&format!("process {after} ")), "{said}");
        assert!(said.contains(&format!("in place of {before} ")), "{said}");
        eventually("the process before is gone", SOON, || !exists(before));
        after
    }
}

/// Whether a process runs. One that has ended and waits for its parent does not.
pub(crate) fn exists(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Pings, 100 a second.
struct FastPings(Process);

impl FastPings {
    fn start(pair: &Pair) -> FastPings {
        FastPings(pair[A].host.start("ping", &["-i", "0.01", pair[B].inner(V4)]))
    }

    /// Ends them. How many were lost, and the longest time in milliseconds until one came back.
    fn outcome(mut self) -> (u32, f64) {
        std::thread::sleep(Duration::from_millis(500));
        self.0.signal("INT");
        self.0.wait(SOON);
        let said = self.0.said();
        let (sent, received) = ping_counts(&said);
        let times = said
            .lines()
            .filter_map(|line| line.split("time=").nth(1)?.split(' ').next()?.parse::<f64>().ok());
        // The last may have been under way.
        let is_last_missing = !said.contains(&format!("icmp_seq={sent} "));
        (sent - received - u32::from(is_last_missing), times.fold(0.0, f64::max))
    }
}

/// A stream of TCP from A to B and one back, for so many seconds.
fn streams(pair: &Pair, seconds: u32) -> (Option<Process>, Process) {
    let server = pair[B].host.iperf3_server();
    let seconds = seconds.to_string();
    let words = ["-c", pair[B].inner(V4), "-t", &seconds, "-i", "1", "--bidir", "-J"];
    (server, pair[A].host.start("iperf3", &words))
}

/// The megabits of each second, and each way, that a stream carried.
fn carried(stream: Process) -> Vec<f64> {
    let said = stream.wait_said();
    let value: Value = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"));
    let intervals = value["intervals"].as_array().unwrap();
    let rate = |sum: &Value| sum["bits_per_second"].as_f64().unwrap() / 1e6;
    intervals.iter().flat_map(|one| [rate(&one["sum"]), rate(&one["sum_bidir_reverse"])]).collect()
}

fn handshakes(pair: &Pair) -> [String; 2] {
    [A, B].map(|side| pair[side].wg_show("latest-handshakes"))
}

#[test]
fn a_tunnel_goes_on_in_another_process_and_nobody_notices() {
    if !ringtun_itself() {
        return;
    }
    let syscalls = Implementation::Ringtun { workers: 2, io: Io::Syscalls };
    for implementation in [RINGTUN, RINGTUN_TWO, syscalls] {
        let Some(mut pair) = Pair::connected(implementation, RINGTUN) else { return };
        let before = handshakes(&pair);
        let (_server, stream) = streams(&pair, 5);
        let pings = FastPings::start(&pair);
        for side in [A, B, A, B] {
            std::thread::sleep(Duration::from_millis(700));
            pair.upgrade(side, "");
        }
        let carried = carried(stream);
        assert!(carried.len() >= 10 && carried.iter().all(|&rate| rate > 1.0), "{carried:?}");
        let (lost, longest) = pings.outcome();
        println!("{implementation:?}: the longest ping took {longest} ms beside {carried:.0?} Mb/s");
        assert_eq!(lost, 0, "{implementation:?}");
        assert!(longest < 500.0, "{longest} ms");
        assert_eq!(handshakes(&pair), before, "no session was made anew");
        let first = pair[A].device.as_mut().unwrap().process();
        assert!(first.wait(SOON).is_some_and(|status| status.success()), "{}", first.said());
        assert!(!first.said().contains("refused"), "{}", first.said());
        assert_eq!(status(&pair[A].host, pair[A].name())["refused_calls"], 0);
    }
}

/// What a process has: files, threads, and memory in KiB.
fn held(pid: u32) -> (usize, usize, u64) {
    let count = |what: &str| std::fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    (count("fd"), count("task"), line.split_whitespace().next().unwrap().parse().unwrap())
}

#[test]
fn nothing_is_left_over_however_often_a_tunnel_is_handed_over_under_load() {
    if !ringtun_itself() {
        return;
    }
    let upgrades = std::env::var("RINGTUN_UPGRADES").ok().and_then(|count| count.parse().ok());
    let upgrades: usize = upgrades.unwrap_or(UPGRADES);
    let Some(pair) = Pair::connected(RINGTUN_TWO, RINGTUN_TWO) else { return };
    let before = handshakes(&pair);
    let (_server, stream) = streams(&pair, (upgrades as u32 * 2 / 3).max(5));
    let pings = FastPings::start(&pair);
    let mut all = Vec::new();
    for _ in 0..upgrades {
        let pid = pair.upgrade(A, "");
        std::thread::sleep(Duration::from_millis(400));
        all.push(held(pid));
    }
    let carried = carried(stream);
    assert!(carried.iter().all(|&rate| rate > 1.0), "{carried:?}");
    let (lost, longest) = pings.outcome();
    println!(
        "{upgrades} upgrades: the longest ping took {longest} ms; files, threads, KiB: {:?}",
        [all[0], all[upgrades - 1]]
    );
    assert_eq!(lost, 0);
    // The sessions live for two minutes.
    assert!(upgrades > UPGRADES || handshakes(&pair) == before, "no session was made anew");
    let ((files, threads, kib), (first_files, first_threads, first_kib)) = (all[upgrades - 1], all[0]);
    assert!(files <= first_files + 2 && threads <= first_threads + 1, "{all:?}");
    assert!(kib < first_kib * 3 / 2 + 4096, "{all:?}");
    let (host, name) = (&pair[A].host, pair[A].name());
    assert!(host.run(&format!("ip -d link show {name}")).contains("numqueues 2 "));
    assert_eq!(host.run("ss -uln | grep -c :51820").trim(), "4");
    let ours = |pid: &&str| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "ringtun")
    };
    let pids = host.run(&format!("ip netns pids {}", host.name()));
    assert_eq!(pids.split_whitespace().filter(ours).count(), 1, "{pids}");
}

#[test]
fn there_may_be_more_workers_afterwards_or_fewer() {
    if !ringtun_itself() {
        return;
    }
    for io in [Io::Uring, Io::Syscalls] {
        let Some(pair) = Pair::connected(Implementation::Ringtun { workers: 1, io }, RINGTUN_TWO) else {
            return;
        };
        let before = handshakes(&pair);
        let pings = FastPings::start(&pair);
        for workers in [3, 2, 1, 1, 4, 2] {
            pair.upgrade(A, &format!("--workers {workers}"));
            let (host, name) = (&pair[A].host, pair[A].name());
            let status = status(host, name);
            assert_eq!(status["workers"].as_array().unwrap().len(), workers);
            assert_eq!(status["udp_steering"], workers > 1);
            // What went with the process before is gone a moment after it.
            let queues = format!("numqueues {workers} ");
            eventually(&queues, SOON, || host.run(&format!("ip -d link show {name}")).contains(&queues));
            let sockets = || host.run("ss -uln | grep -c :51820").trim().parse::<usize>().unwrap();
            eventually("as many sockets", SOON, || sockets() == 2 * workers);
            let (_server, stream) = streams(&pair, 1);
            let carried = carried(stream);
            assert!(carried.iter().all(|&rate| rate > 1.0), "{workers}: {carried:?}");
        }
        let (lost, longest) = pings.outcome();
        println!("{io:?}: the longest ping took {longest} ms");
        // A packet that is read in the moment in which a queue is closed is lost with it.
        assert!(lost <= 2, "{lost}");
        assert_eq!(handshakes(&pair), before, "no session was made anew");
    }
}
