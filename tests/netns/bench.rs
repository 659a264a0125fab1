//! `ringtun bench`: that its results are whole, and that nothing of it stays behind, however it ends.

use crate::implementation::{ringtun, ringtun_itself};
use crate::lab::{Host, Process, eventually, ready, serial};
use serde_json::Value;
use std::path::PathBuf;
use std::time::Duration;

/// How long a process may take to end once it is told to, and what it started after it.
const SOON: Duration = Duration::from_secs(15);
/// How long a run of a few tests of a second each may take.
const RUN: Duration = Duration::from_secs(120);

/// A namespace that stands for a host, and a directory for results.
struct Stage {
    host: Host,
    directory: PathBuf,
    /// Interfaces, routes and settings before.
    before: String,
}

impl Stage {
    fn new() -> Option<Stage> {
        if !ready() || !ringtun_itself() {
            return None;
        }
        let host = Host::namespace();
        let directory = std::env::temp_dir().join(format!("rt-{}-{}", std::process::id(), serial()));
        std::fs::create_dir(&directory).unwrap();
        let before = state(&host);
        Some(Stage { host, directory, before })
    }

    /// Starts `ringtun bench` with these words in the directory.
    fn start(&self, words: &str) -> Process {
        let program = ringtun().display().to_string();
        let script = format!("cd {} && exec {program} bench {words}", self.directory.display());
        self.host.start("sh", &["-c", &script])
    }

    /// Runs it to its end, which must be a good one; what it said.
    #[track_caller]
    fn run(&self, words: &str) -> String {
        let mut process = self.start(words);
        let status = process.wait(RUN).unwrap_or_else(|| panic!("{words}: no end: {}", process.said()));
        assert!(status.success(), "{words}: {status}: {}", process.said());
        self.expect_nothing_left(process.pid());
        process.said()
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.directory.join(name)).unwrap()).unwrap()
    }

    /// That no process, socket, file, interface, route or setting of a run is there.
    #[track_caller]
    fn expect_nothing_left(&self, pid: u32) {
        eventually("its processes are gone", SOON, || processes_of(pid).is_empty());
        for side in ["a", "b"] {
            let socket = PathBuf::from(format!("/var/run/wireguard/rtb{pid}{side}.sock"));
            assert!(!socket.exists(), "{}", socket.display());
        }
        assert_eq!(state(&self.host), self.before);
        let named = std::fs::read_dir(std::env::temp_dir()).unwrap().flatten();
        let left: Vec<_> = named.map(|entry| entry.file_name()).filter(|name| is_of(name, pid)).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn is_of(name: &std::ffi::OsStr, pid: u32) -> bool {
    name.to_string_lossy().contains(&format!("rtb{pid}"))
}

/// What a run must not change.
fn state(host: &Host) -> String {
    host.run("ip -o link; ip -o address; ip route show table all; sysctl -a 2>/dev/null | grep -E 'forward|rmem|wmem|rp_filter'")
}

/// The processes that a run started: tunnels, by their names, and the load, by its addresses.
fn processes_of(pid: u32) -> Vec<String> {
    let lines = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let status = std::fs::read_to_string(entry.path().join("status")).ok()?;
        let is_child = status.lines().any(|line| line == format!("PPid:\t{pid}"));
        (line.contains(&format!("rtb{pid}")) || is_child).then_some(line)
    });
    lines.collect()
}

/// That a figure is there and above 0.
#[track_caller]
fn expect_positive(value: &Value, figures: &[&str]) {
    for figure in figures {
        assert!(value[figure].as_f64().is_some_and(|number| number > 0.0), "{figure}: {value}");
    }
}

#[test]
fn a_run_measures_everything_and_leaves_nothing() {
    let Some(stage) = Stage::new() else { return };
    let said = stage.run("--seconds 1 --json all.json --svg all.svg");
    let all = stage.json("all.json");
    let tests = all["tests"].as_array().unwrap();
    let names: Vec<&str> = tests.iter().map(|test| test["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["tcp1", "tcp8", "reverse", "udp16", "rtt"]);
    for test in tests {
        let (results, costs): (&[&str], &[&str]) = match test["name"].as_str().unwrap() {
            "udp16" => (&["packets_per_second"], &["cores", "cores_per_mpps"]),
            "rtt" => (&["p50_us", "p99_us"], &[]),
            _ => (&["gbps"], &["cores", "cores_per_gbps"]),
        };
        for part in ["tunnel", "veth", "ratio"] {
            expect_positive(&test[part], results);
        }
        expect_positive(&test["tunnel"], costs);
        expect_positive(&test["rounds"][0]["tunnel"], results);
        let load = test["load"].as_str().unwrap();
        assert_eq!(load.starts_with("iperf"), test["tunnel"]["gbps"].is_number(), "{load}");
    }
    assert!(tests[4]["tunnel"]["p50_us"].as_f64() <= tests[4]["tunnel"]["p99_us"].as_f64());
    for (part, fact) in
        [("host", "cpu"), ("host", "kernel"), ("program", "aead"), ("program", "io"), ("program", "version")]
    {
        assert!(all[part][fact].as_str().is_some_and(|text| !text.is_empty()), "{part}.{fact}: {all}");
    }
    expect_positive(&all["host"], &["cores"]);
    expect_positive(&all["program"], &["workers"]);
    assert!(all["program"]["tun_offloads"].as_array().is_some_and(|list| !list.is_empty()), "{all}");
    let drawing = std::fs::read_to_string(stage.directory.join("all.svg")).unwrap();
    assert!(drawing.starts_with("<svg") && drawing.trim_end().ends_with("</svg>"), "{drawing}");
    for words in [
        "round 1 of 1: tcp1: one TCP stream, the tunnel",
        "bare veth",
        "round trip while idle, p50",
        "per Gb/s",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
}

#[test]
fn own_streams_take_iperf3s_place_and_results_are_compared() {
    let Some(stage) = Stage::new() else { return };
    let only = "--seconds 1 --only reverse,rtt --workers 1";
    let said = stage.run(&format!("{only} --rounds 2 --no-iperf3 --json before.json"));
    assert!(said.contains("round 2 of 2: reverse"), "{said}");
    let before = stage.json("before.json");
    assert_eq!(before["tests"][0]["load"], "own");
    assert_eq!(before["tests"][0]["rounds"].as_array().map(Vec::len), Some(2));
    assert_eq!(before["program"]["workers"], 1);
    expect_positive(&before["tests"][0]["tunnel"], &["gbps", "cores_per_gbps"]);
    // The table and the JSON on standard output are one or the other, and options of the tunnels are their environment's.
    let printed = stage.run(&format!("{only} --json - 2>/dev/null"));
    let after: Value = serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"));
    std::fs::write(stage.directory.join("after.json"), &printed).unwrap();
    assert!(after["tests"][0]["load"].as_str().is_some_and(|load| load.starts_with("iperf")), "{after}");
    let said = stage.run("--compare before.json after.json --svg both.svg");
    for words in ["before.json", "reverse", "throughput", "what differs", "load of reverse"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let told = stage.run("--compare before.json after.json --json -");
    let told: Value = serde_json::from_str(&told).unwrap();
    expect_positive(&told["figures"][0], &["ratio"]);
    assert!(std::fs::read_to_string(stage.directory.join("both.svg")).unwrap().contains("after.json"));
}

#[test]
fn options_of_the_tunnels_come_from_the_environment_and_stand_in_the_result() {
    let Some(stage) = Stage::new() else { return };
    let program = ringtun().display().to_string();
    let text = stage.host.run(&format!(
        "RINGTUN_IO=syscalls RINGTUN_HTTP=9 {program} bench --seconds 1 --only rtt --json - 2>/dev/null"
    ));
    let result: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(result["program"]["io"], "syscalls");
    assert_eq!(result["program"]["environment"], serde_json::json!({ "RINGTUN_IO": "syscalls" }));
}

/// Starts a long run, and waits until both tunnels carry its load.
fn amid_a_load(stage: &Stage, words: &str) -> Process {
    let process = stage.start(&format!("--seconds 600 --only tcp8 {words}"));
    eventually("it measures", SOON, || {
        process.said().contains("tcp8") && processes_of(process.pid()).len() >= 2
    });
    std::thread::sleep(Duration::from_millis(500));
    process
}

#[test]
fn a_run_that_is_interrupted_leaves_nothing() {
    let Some(stage) = Stage::new() else { return };
    for (signal, words) in [("INT", ""), ("TERM", "--no-iperf3 --json never.json")] {
        let mut process = amid_a_load(&stage, words);
        process.signal(signal);
        let status = process.wait(SOON).unwrap_or_else(|| panic!("no end: {}", process.said()));
        assert_eq!(status.code(), Some(1), "{}", process.said());
        assert!(process.said().contains("interrupted"), "{}", process.said());
        stage.expect_nothing_left(process.pid());
    }
    assert_eq!(std::fs::read_dir(&stage.directory).unwrap().count(), 0, "a result of nothing");
}

#[test]
fn a_run_that_is_killed_leaves_nothing() {
    let Some(stage) = Stage::new() else { return };
    let mut process = amid_a_load(&stage, "");
    process.signal("KILL");
    assert!(process.wait(SOON).is_some());
    stage.expect_nothing_left(process.pid());
}

#[test]
fn what_is_missing_is_named_with_its_remedy() {
    let Some(stage) = Stage::new() else { return };
    let program = ringtun().display().to_string();
    let said = |before: &str, words: &str| {
        stage.host.try_run(&format!("{before} {program} bench --seconds 1 --only rtt {words}")).unwrap_err()
    };
    let without = |right: &str| format!("setpriv --bounding-set=-{right} --inh-caps=-{right}");
    assert!(said(&without("net_admin"), "").contains("needs root: sudo ringtun bench"));
    assert!(
        said(&without("sys_admin"), "")
            .contains("cannot make a network namespace: it needs root with CAP_SYS_ADMIN")
    );
    let hidden = "unshare -m sh -c 'mount -t tmpfs none /dev && exec \"$@\"' --";
    assert!(said(hidden, "").contains("modprobe tun"));
    assert!(said("", "--json /nonexistent/file").contains("cannot write /nonexistent/file"));
    let none =
        stage.host.try_run(&format!("{program} bench --compare /proc/version /proc/version")).unwrap_err();
    assert!(none.contains("expected the JSON of `ringtun bench`"), "{none}");
    let unknown = stage.host.try_run(&format!("{program} bench --only ping")).unwrap_err();
    assert!(unknown.contains("udp16"), "{unknown}");
}
