//! `doctor` as root and as nobody.

use crate::implementation::ringtun_itself;
use crate::lab::{ready, sh, skip};
use serde_json::Value;
use std::process::Command;

fn doctor(command: &mut Command) -> (Value, Option<i32>) {
    let done = command.output().expect("ringtun runs");
    let report = serde_json::from_slice(&done.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&done.stderr)));
    (report, done.status.code())
}

fn finding<'a>(report: &'a Value, what: &str) -> &'a Value {
    let findings = report["findings"].as_array().expect("findings");
    findings.iter().find(|one| one["what"] == what).unwrap_or_else(|| panic!("no {what} in {report}"))
}

#[test]
fn a_host_with_tun_devices_can_run_tunnels_and_is_left_as_it_was() {
    if !ready() || !ringtun_itself() {
        return;
    }
    let interfaces = || sh("ip -o link | wc -l").expect("ip");
    let before = interfaces();
    let (report, code) = doctor(Command::new(env!("CARGO_BIN_EXE_ringtun")).args(["doctor", "--json"]));
    assert_eq!((code, &report["can_run"]), (Some(0), &Value::Bool(true)), "{report}");
    assert_eq!(finding(&report, "TUN offloads")["level"], "ok", "{report}");
    assert!(report["workers"].as_u64() >= Some(1), "{report}");
    assert_eq!(interfaces(), before);
    for one in report["findings"].as_array().expect("findings") {
        let troubled = ["warn", "missing", "fatal"].iter().any(|level| one["level"] == *level);
        let no_ipv6 = one["what"] == "IPv6 forwarding";
        assert!(!troubled || one["remedy"].is_string() || no_ipv6, "a fault without remedy: {one}");
    }
}

#[test]
fn an_unprivileged_user_learns_what_was_not_looked_at() {
    if !ready() || !ringtun_itself() {
        return;
    }
    // A copy that nobody may execute wherever the build lies.
    let copy = std::env::temp_dir().join(format!("rt-doctor-{}", std::process::id()));
    std::fs::copy(env!("CARGO_BIN_EXE_ringtun"), &copy).expect("a copy");
    let as_nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let runs = Command::new("setpriv").args(as_nobody).arg(&copy).arg("--version").status();
    if !runs.is_ok_and(|status| status.success()) {
        skip("nobody may not execute programs of the temporary directory");
    } else {
        let (report, code) =
            doctor(Command::new("setpriv").args(as_nobody).arg(&copy).args(["doctor", "--json"]));
        assert_eq!(code, Some(0), "{report}");
        assert_eq!(finding(&report, "TUN")["level"], "unknown", "{report}");
        assert!(
            finding(&report, "TUN")["remedy"].as_str().is_some_and(|remedy| remedy.contains("root")),
            "{report}"
        );
    }
    std::fs::remove_file(copy).expect("the copy");
}
