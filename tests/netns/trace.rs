//! The scripts `perf/*.bt`, run by bpftrace beside a tunnel with traffic.

use crate::implementation::{RINGTUN_TWO, ringtun, ringtun_itself};
use crate::lab::{Process, find_program, skip, wait_for};
use crate::pair::{A, B, Pair, V4};
use std::process::Command;
use std::time::Duration;

/// How long bpftrace may take until its tracepoints are in place: it compiles first.
const ATTACHED: Duration = Duration::from_secs(60);
/// How long it may take to print after it is told to end.
const SOON: Duration = Duration::from_secs(30);

/// bpftrace with these words, in a mount namespace that has the kernel's tracing files: without them it complains at its end.
fn bpftrace(words: &[&str]) -> Process {
    let mut command = Command::new("setpriv");
    let script = "mount -t tracefs none /sys/kernel/tracing 2>/dev/null; exec bpftrace \"$@\"";
    command.args(["--pdeathsig", "TERM", "unshare", "-m", "sh", "-c", script, "sh"]).args(words);
    command.env("BPFTRACE_STRLEN", "64");
    Process::start(command)
}

/// A pair, where bpftrace can look at it; says so where it cannot.
fn traced_pair() -> Option<Pair> {
    if !ringtun_itself() {
        return None;
    }
    if find_program("bpftrace").is_none() {
        skip("bpftrace is not installed (scripts/test installs it)");
        return None;
    }
    let pair = Pair::connected(RINGTUN_TWO, RINGTUN_TWO)?;
    let program = format!("usdt:{}:ringtun:turn_end {{ exit(); }}", ringtun().display());
    let mut trial = bpftrace(&["-e", &program]);
    let ended = wait_for(ATTACHED, || {
        // A turn, for the trial to end with.
        let _ = pair.ping(A, V4, Duration::from_secs(1));
        trial.ended()
    });
    if !ended.is_some_and(|status| status.success()) {
        skip(&format!("bpftrace cannot trace a program here: {}", trial.said().trim()));
        return None;
    }
    Some(pair)
}

/// What a script of `perf/` prints about the tunnel of `side`, told to end some seconds after it has begun and `meanwhile` is done.
#[track_caller]
fn printed(pair: &Pair, script: &str, meanwhile: impl FnOnce()) -> String {
    let path = format!("{}/perf/{script}.bt", env!("CARGO_MANIFEST_DIR"));
    let pid = pair[A].device.as_ref().unwrap().process.as_ref().unwrap().pid().to_string();
    let mut process = bpftrace(&["-p", &pid, &path, &ringtun().display().to_string()]);
    let begun = wait_for(ATTACHED, || process.said().contains("Ctrl-C ends it").then_some(()));
    assert!(begun.is_some(), "{script}: {}", process.said());
    std::thread::sleep(Duration::from_secs(3));
    meanwhile();
    process.signal("INT");
    assert!(process.wait(SOON).is_some_and(|status| status.success()), "{script}: {}", process.said());
    process.said()
}

#[track_caller]
fn expect(said: &str, maps: &[&str]) {
    for map in maps {
        assert!(said.contains(map), "{map}: {said}");
    }
    assert!(!said.contains("ERROR") || said.contains("RLIMIT_MEMLOCK"), "{said}");
}

#[test]
fn every_script_tells_of_a_tunnel_with_traffic_what_it_says_it_does() {
    let Some(pair) = traced_pair() else { return };
    let _server = pair[B].host.iperf3_server();
    let target = pair[B].inner(V4);
    let ready = wait_for(SOON, || pair[A].host.try_run(&format!("iperf3 -c {target} -n 1K")).ok());
    assert!(ready.is_some(), "{}", pair.tell());
    let _client = pair[A].host.start("iperf3", &["-c", target, "--bidir", "-b", "50M", "-t", "600"]);

    let said = printed(&pair, "batches", || ());
    expect(
        &said,
        &[
            "@frames_a_turn_from_the_host:",
            "@super_packets_in_a_hundred_frames:",
            "@messages_a_train_sealed:",
        ],
    );
    expect(
        &said,
        &[
            "@datagrams_a_train_received:",
            "@messages_a_train_opened:",
            "@datagrams_a_send:",
            "@writes_a_call_to_the_host:",
        ],
    );
    let said = printed(&pair, "turns", || ());
    expect(&said, &["@turn_us_by_pid_and_worker[", "@longest_us_by_pid_and_worker["]);
    let said = printed(&pair, "stages", || ());
    for stage in ["seal", "open", "to the wire", "to the host", "else", "between", "asleep"] {
        expect(&said, &[&format!(", {stage}]: ")]);
    }
    let said = printed(&pair, "wakeups", || ());
    expect(
        &said,
        &["@wakeups_by_pid_and_second[", "@slept_us:", "@awake_us:", "@frames_and_trains_a_wakeup:"],
    );
    // An interface that goes down loses its sessions: the next packet wants a handshake.
    let again = || {
        let name = pair[A].name();
        pair[A].host.run(&format!("ip link set {name} down && ip link set {name} up"));
        pair.expect_ping(A, V4);
        std::thread::sleep(Duration::from_secs(1));
    };
    let said = printed(&pair, "handshakes", again);
    expect(&said, &["initiator]: ", "@us[initiator]:"]);
}
