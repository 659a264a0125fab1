//! What cannot be done ends with a message and an exit code: never a panic, never a hang.

use crate::implementation::{Device, RINGTUN, ringtun, ringtun_itself, stand_in};
use crate::lab::{Host, Process, ready, serial};
use std::sync::Arc;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(15);

/// Ends with the code, and says every one of the words.
#[track_caller]
pub(crate) fn fails(mut process: Process, code: i32, words: &[&str]) {
    let status = process.wait(SOON).expect("it hangs");
    let said = process.said();
    assert!(!said.contains("panicked"), "{said}");
    assert_eq!(status.code(), Some(code), "{said}");
    let lower = said.to_lowercase();
    for word in words {
        assert!(lower.contains(word), "no {word:?} in {said:?}");
    }
}

/// A device name of its own.
fn name() -> String {
    format!("rt{}n{}", std::process::id() % 10_000_000, serial())
}

#[test]
fn a_listen_port_in_use_is_refused_and_the_device_lives_on() {
    if !ready() {
        return;
    }
    let host = Arc::new(Host::namespace());
    let [first, second] = [0, 1].map(|_| Device::start(&host, RINGTUN));
    for device in [&first, &second] {
        host.run(&format!("ip link set {} up", device.name));
    }
    host.run(&format!("wg set {} listen-port 51820", first.name));
    let error =
        host.try_run(&format!("wg set {} listen-port 51820", second.name)).expect_err("two on one port");
    assert!(error.to_lowercase().contains("in use"), "{error}");
    for port in [51821, 51822] {
        host.run(&format!("wg set {} listen-port {port}", second.name));
        assert_eq!(host.run(&format!("wg show {} listen-port", second.name)).trim(), port.to_string());
    }
    assert_eq!(host.run(&format!("wg show {} listen-port", first.name)).trim(), "51820");
}

#[test]
fn without_permission_it_says_so() {
    if !ready() {
        return;
    }
    let host = Host::namespace();
    // A copy where anybody may read it.
    let copy = std::env::temp_dir().join(format!("rt-{}-{}-bin", std::process::id(), serial()));
    std::fs::copy(ringtun(), &copy).expect("a copy");
    let nobody =
        ["--reuid", "65534", "--regid", "65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"];
    let (program, name) = (copy.display().to_string(), name());
    let arguments = [&nobody[..], &[&program, "-f", &name]].concat();
    let process = host.start("setpriv", &arguments);
    let words: &[&str] = if stand_in() { &["permitted"] } else { &["permi", "root"] };
    fails(process, 1, words);
    let _ = std::fs::remove_file(copy);
}

#[test]
fn without_dev_net_tun_it_says_so() {
    if !ready() {
        return;
    }
    let host = Host::namespace();
    let script = format!("mount -t tmpfs none /dev/net && exec {} -f {}", ringtun().display(), name());
    fails(host.start("unshare", &["-m", "sh", "-c", &script]), 1, &["/dev/net/tun"]);
}

#[test]
fn a_directory_for_sockets_that_cannot_be_made_is_told() {
    if !ready() || !ringtun_itself() {
        return;
    }
    let host = Host::namespace();
    // /var/run is /run; a file in the directory's place, seen by this process only.
    let script = format!(
        "mount -t tmpfs none /run && touch /run/wireguard && exec {} -f {}",
        ringtun().display(),
        name()
    );
    fails(host.start("unshare", &["-m", "sh", "-c", &script]), 1, &["wireguard"]);
}

#[test]
fn wrong_usage_is_exit_code_2_and_makes_nothing() {
    if !ready() || !ringtun_itself() {
        return;
    }
    let host = Host::namespace();
    let program = ringtun().display().to_string();
    let wrong: [&[&str]; 7] = [
        &[],
        &["-f"],
        &["--no-such-option", "wg0"],
        &["-f", "name-of-sixteen-c"],
        &["-f", "a/b"],
        &["-f", ""],
        &["-f", "wg0", "wg1"],
    ];
    for arguments in wrong {
        fails(host.start(&program, arguments), 2, &[]);
    }
    let wrong =
        [["--workers", "none"], ["--io", "magic"], ["--buffers", "15"], ["--socket-buffer", "262143"]];
    for options in wrong {
        let arguments = ["-f", options[0], options[1], "wg0"];
        fails(host.start(&program, &arguments), 2, &[options[0]]);
    }
    let links = host.run("ip -br link");
    assert_eq!(links.lines().count(), 1, "more than lo: {links}");
}

#[test]
fn a_mistyped_verb_makes_no_interface_and_names_what_was_meant() {
    if !ready() || !ringtun_itself() {
        return;
    }
    let host = Host::namespace();
    let program = ringtun().display().to_string();
    let mistyped: [(&[&str], &str); 7] = [
        (&["staus"], "ringtun status"),
        (&["dwon"], "ringtun down"),
        (&["dwon", "wg0"], "ringtun down"),
        (&["pubky"], "ringtun pubkey"),
        (&["list"], "ringtun show"),
        (&["-f", "relaod"], "ringtun reload"),
        (&["setconf", "wg0", "/etc/wireguard/wg0.conf"], "wg setconf"),
    ];
    for (arguments, meant) in mistyped {
        fails(host.start(&program, arguments), 2, &["did you mean", meant]);
    }
    fails(host.start(&program, &["-f", "up"]), 2, &[]);
    let links = host.run("ip -br link");
    assert_eq!(links.lines().count(), 1, "more than lo: {links}");
}

#[test]
fn a_name_that_looks_like_a_verb_is_one_behind_two_dashes() {
    if !ready() || !ringtun_itself() {
        return;
    }
    let host = Host::namespace();
    let program = ringtun().display().to_string();
    // A directory of sockets of its own: other tests may want the same name.
    host.run(&format!("unshare -m sh -c 'mount -t tmpfs none /run && {program} -- shows'"));
    host.run("ip link delete shows");
}

#[test]
fn a_terminal_is_told_what_was_made() {
    if !ready() || !ringtun_itself() {
        return;
    }
    let (host, name, program) = (Host::namespace(), name(), ringtun().display().to_string());
    let said = host.run(&format!("timeout 20 script -qec '{program} {name}' /dev/null"));
    for words in ["created", &name, &format!("ip link delete dev {name}")] {
        assert!(said.contains(words), "no {words:?} in {said:?}");
    }
    host.run(&format!("ip link delete dev {name}"));
    // Of another name: the first one's process may take a while to end.
    let name = self::name();
    let said = host.run(&format!("{program} {name} 2>&1"));
    assert_eq!(said, "", "a script hears nothing");
    host.run(&format!("ip link delete dev {name}"));
}

#[test]
fn nobody_is_advised_to_delete_an_interface_that_is_no_tunnel() {
    if !ready() || !ringtun_itself() {
        return;
    }
    let host = Host::namespace();
    let program = ringtun().display().to_string();
    let directory = std::env::temp_dir().join(format!("rt-{}-{}", std::process::id(), serial()));
    std::fs::create_dir(&directory).expect("a directory");
    let file = directory.join("lo.conf").display().to_string();
    host.run(&format!("umask 077; printf '[Interface]\nPrivateKey = %s\n' $(wg genkey) > {file}"));
    for arguments in [&["-f", "lo"][..], &["up", &file], &["down", &file]] {
        let error = host.try_run(&format!("{program} {}", arguments.join(" "))).expect_err("lo is taken");
        assert!(error.contains("no tunnel") && !error.contains("ip link del"), "{error}");
    }
    let _ = std::fs::remove_dir_all(&directory);
}
