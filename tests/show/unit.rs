//! The unit and the target as systemd reads them, a service's exit status, and what `scripts/install --uninstall` leaves.

use crate::implementation::{ringtun, ringtun_itself};
use crate::lab::{Host, find_program, ready, serial, sh, skip};
use std::path::{Path, PathBuf};

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts")
}

/// All values of a key in a unit.
fn values(unit: &str, key: &str) -> Vec<String> {
    let text = std::fs::read_to_string(scripts().join("systemd").join(unit)).expect("the unit");
    let lines = text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    lines.flat_map(str::split_whitespace).map(str::to_owned).collect()
}

/// A directory of its own, gone with its owner.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        let path = std::env::temp_dir().join(format!("rt-units-{}-{}", std::process::id(), serial()));
        std::fs::create_dir_all(&path).expect("a directory");
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_tunnel_without_a_file_fails_to_start_and_a_file_with_a_mistake_is_not_tried_again() {
    assert_eq!(values("ringtun@.service", "AssertPathExists"), ["/etc/wireguard/%i.conf"]);
    assert!(
        values("ringtun@.service", "ConditionPathExists").is_empty(),
        "a start that does nothing succeeds"
    );
    let kept_down = values("ringtun@.service", "RestartPreventExitStatus");
    assert_eq!(values("ringtun@.service", "Restart"), ["on-failure"]);
    if !ready() || !ringtun_itself() {
        return;
    }
    let (folder, host) = (Folder::new(), Host::namespace());
    let file = folder.0.join(format!("rt{}x.conf", std::process::id() % 10_000_000));
    let key = sh("wg genkey").expect("wg genkey");
    let good = format!("[Interface]\nPrivateKey = {key}");
    let status = |text: Option<&str>, mode: u32| {
        let _ = std::fs::remove_file(&file);
        if let Some(text) = text {
            std::fs::write(&file, text).expect("a file");
            sh(&format!("chmod {mode} {}", file.display())).expect("chmod");
        }
        let script = format!("timeout 20 {} service {} 2>&1; echo $?", ringtun().display(), file.display());
        host.run(&script).trim_end().lines().last().unwrap_or_default().to_owned()
    };
    for (case, text, mode) in [
        ("a mistake", Some(format!("{good}garbage\n")), 600),
        ("no file", None, 600),
        ("keys for everyone", Some(good.clone()), 644),
    ] {
        let ended = status(text.as_deref(), mode);
        assert!(kept_down.contains(&ended), "{case}: {ended}, not of {kept_down:?}");
    }
    // What may be otherwise in a moment is tried again.
    let ended = status(Some(&format!("{good}PostUp = false\n")), 600);
    assert!(ended != "0" && !kept_down.contains(&ended), "{ended} of {kept_down:?}");
}

#[test]
fn the_target_starts_the_tunnels_that_are_enabled() {
    if find_program("systemctl").is_none() {
        return skip("systemctl is not installed");
    }
    let folder = Folder::new();
    let root = folder.0.display();
    let units = format!("{root}/usr/lib/systemd/system");
    sh(&format!(
        "mkdir -p {units} {root}/etc && cp {0}/systemd/* {units} && echo 0123456789abcdef0123456789abcdef >{root}/etc/machine-id",
        scripts().display()
    ))
    .expect("units");
    sh(&format!("systemctl --root={root} enable ringtun@wg0 2>&1")).expect("it can be enabled");
    for target in ["multi-user.target", "ringtun.target"] {
        let link = format!("{root}/etc/systemd/system/{target}.wants/ringtun@wg0.service");
        assert!(std::fs::symlink_metadata(&link).is_ok(), "{link}");
    }
    sh(&format!("systemctl --root={root} disable ringtun@wg0 2>&1")).expect("it can be disabled");
    let left = sh(&format!("find {root}/etc/systemd -type l")).expect("a listing");
    assert!(left.is_empty(), "{left}");
    assert_eq!(values("ringtun@.service", "PartOf"), ["ringtun.target"]);
}

#[test]
fn what_runs_from_a_program_that_is_uninstalled_is_taken_down_first() {
    if !ready() || !ringtun_itself() {
        return;
    }
    let (folder, host) = (Folder::new(), Host::namespace());
    let prefix = folder.0.join("prefix");
    let (prefix, install) = (prefix.display(), scripts().join("install"));
    let install = format!("{} --prefix {prefix}", install.display());
    host.run(&format!("RINGTUN_BIN={} {install} 2>&1", ringtun().display()));
    let names = ["u", "b"].map(|kind| format!("rt{}{kind}{}", std::process::id() % 10_000_000, serial()));
    let [up, bare] = &names;
    let file = folder.0.join(format!("{up}.conf"));
    let key = sh("wg genkey").expect("wg genkey");
    let peer = sh("wg genkey | wg pubkey").expect("wg pubkey");
    let log = folder.0.join("log");
    std::fs::write(
        &file,
        format!(
            "[Interface]\nPrivateKey = {key}Address = 192.168.96.1/24\nPostDown = echo down >{}\n\
             [Peer]\nPublicKey = {peer}AllowedIPs = 0.0.0.0/0\n",
            log.display()
        ),
    )
    .expect("a file");
    sh(&format!("chmod 600 {}", file.display())).expect("chmod");
    host.run(&format!("{prefix}/bin/ringtun up {} 2>&1 && {prefix}/bin/ringtun {bare} 2>&1", file.display()));
    // A tunnel of another program is none of this one's business.
    let other = format!("rt{}o{}", std::process::id() % 10_000_000, serial());
    host.run(&format!("{} {other}", ringtun().display()));
    let dry = host.run(&format!("{install} --uninstall --dry-run 2>&1"));
    assert!(dry.contains(&format!("ringtun down {}", file.display())), "{dry}");
    host.run(&format!("ip link show {up} && ip link show {bare}"));
    let said = host.run(&format!("{install} --uninstall 2>&1"));
    for name in &names {
        assert!(host.try_run(&format!("ip link show {name}")).is_err(), "{name} is still there: {said}");
    }
    assert!(log.exists(), "hooks did not run: {said}");
    assert!(!host.run("ip rule").contains("51820"), "{said}");
    host.run(&format!("ip link show {other} && ip link del {other}"));
    assert!(!Path::new(&format!("{prefix}/bin/ringtun")).exists());
}
