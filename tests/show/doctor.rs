//! `doctor` as root and as nobody.

use crate::implementation::ringtun_itself;
use crate::lab::{Host, find_program, ready, sh, skip};
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

/// What `doctor` finds in a namespace after `rules`, with one configuration `wg7` of these lines below `[Interface]`.
fn behind(rules: &str, lines: &str) -> Value {
    let host = Host::namespace();
    let key = sh("wg genkey").expect("wg genkey");
    let file = format!("[Interface]\nPrivateKey = {key}{lines}\n");
    let script = format!(
        "{rules}\nunshare -m sh -ec 'mount -t tmpfs none /run; mount -t tmpfs none /etc/wireguard; \
         umask 077; cat >/etc/wireguard/wg7.conf; {} doctor --json' <<'EOF'\n{file}EOF",
        env!("CARGO_BIN_EXE_ringtun")
    );
    let said = host.run(&script);
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"))
}

#[track_caller]
fn assert_told(report: &Value, what: &str, words: &[&str]) {
    let one = finding(report, what);
    assert_eq!(one["level"], "warn", "{one}");
    let text = format!("{} {}", one["found"], one["remedy"]);
    assert!(words.iter().all(|word| text.contains(word)), "{words:?} in {one}");
}

#[test]
fn a_firewall_in_the_tunnels_way_is_told_with_the_configurations_port() {
    if !ready() || !ringtun_itself() {
        return;
    }
    let chain = |rules: &str| {
        format!(
            "nft 'add table inet f; add chain inet f in {{ type filter hook input priority 0; policy accept; }}; {rules}'"
        )
    };
    let port = "ListenPort = 4500";
    let shut = chain("add rule inet f in ct state established accept; add rule inet f in counter drop");
    assert_told(
        &behind(&shut, port),
        "firewall input",
        &["inet f in", "4500 (wg7)", "udp dport 4500 accept"],
    );
    let other = chain("add rule inet f in udp dport 51820 accept; add rule inet f in reject");
    assert_told(&behind(&other, port), "firewall input", &["udp dport 4500 accept"]);
    let open = chain("add rule inet f in udp dport 4500 accept; add rule inet f in drop");
    let report = behind(&open, port);
    assert_eq!(finding(&report, "firewall input")["level"], "ok", "{report}");
    assert_eq!(finding(&report, "firewall forward")["level"], "ok", "{report}");

    let forward =
        "nft 'add table ip f; add chain ip f fo { type filter hook forward priority 0; policy drop; }'";
    assert_told(&behind(forward, port), "firewall forward", &["ip f fo", "wg7", "policy"]);
    let hook = format!("{port}\nPostUp = iptables -A FORWARD -i %i -j ACCEPT");
    assert_eq!(finding(&behind(forward, &hook), "firewall forward")["level"], "ok");
}

#[test]
fn rules_of_iptables_are_read_as_well() {
    if !ready() || !ringtun_itself() {
        return;
    }
    for program in ["iptables-nft", "iptables-legacy"] {
        if find_program(program).is_none() {
            return skip(&format!("{program} is not installed"));
        }
        let shut = format!(
            "{program} -P FORWARD DROP; {program} -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT; {program} -A INPUT -j REJECT"
        );
        let report = behind(&shut, "ListenPort = 4500");
        assert_told(&report, "firewall input", &["INPUT", "4500 (wg7)", "-p udp --dport 4500 -j ACCEPT"]);
        assert_told(&report, "firewall forward", &["FORWARD", "policy", "-I FORWARD -i wg7 -j ACCEPT"]);
        let open = format!(
            "{program} -I FORWARD -i wg+ -j ACCEPT; {program} -I INPUT -p udp -m multiport --dports 53,4500 -j ACCEPT"
        );
        let report = behind(&format!("{shut}; {open}"), "ListenPort = 4500");
        assert_eq!(finding(&report, "firewall input")["level"], "ok", "{report}");
        assert_eq!(finding(&report, "firewall forward")["level"], "ok", "{report}");
    }
}

#[test]
fn root_without_the_right_to_make_interfaces_is_promised_no_worker() {
    if !ready() || !ringtun_itself() {
        return;
    }
    let without = ["--bounding-set", "-net_admin", env!("CARGO_BIN_EXE_ringtun"), "doctor"];
    let (report, code) = doctor(Command::new("setpriv").args(without).arg("--json"));
    assert_eq!(
        (code, &report["can_run"], &report["workers"]),
        (Some(1), &false.into(), &0.into()),
        "{report}"
    );
    let rights = finding(&report, "rights");
    assert_eq!(rights["level"], "fatal", "{rights}");
    assert!(rights["remedy"].as_str().is_some_and(|remedy| remedy.contains("NET_ADMIN")), "{rights}");
    let text = Command::new("setpriv").args(without).output().expect("ringtun runs").stdout;
    let text = String::from_utf8_lossy(&text);
    assert!(text.contains("No tunnel can run here") && !text.contains("would get"), "{text}");
}
