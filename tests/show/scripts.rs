//! The scripts of the tree: what they leave behind, what they check first, and what they say to a wrong use.

use crate::lab::{Host, find_program, ready, serial, sh, skip, wait_for};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

fn tree() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Programs that a script finds, and no others, save those of /usr/sbin: gone with their owner.
struct Programs(PathBuf);

impl Programs {
    /// Those that every script needs, and `fakes`: shell scripts by name.
    fn new(fakes: &[(&str, &str)]) -> Programs {
        let path = std::env::temp_dir().join(format!("rt-programs-{}-{}", std::process::id(), serial()));
        std::fs::create_dir_all(&path).expect("a directory");
        let programs = Programs(path);
        let needed = "bash sh dirname id mktemp cat sed tr tail grep sleep env rm cut awk sort head chmod mkdir realpath ip setsid unshare mount readlink kill";
        for name in needed.split(' ') {
            if let Some(real) = find_program(name) {
                symlink(real, programs.0.join(name)).expect("a link");
            }
        }
        for (name, text) in fakes {
            let path = programs.0.join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("a program");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("its mode");
        }
        programs
    }

    /// Runs a script of the tree to its end.
    fn run(&self, script: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(tree().join(script));
        command
            .args(arguments)
            .env_clear()
            .env("PATH", &self.0)
            .env("HOME", &self.0)
            .env("SEEN", self.0.join("seen"));
        command.stdin(Stdio::null()).output().expect("the script")
    }

    /// What the fakes wrote down.
    fn seen(&self) -> String {
        std::fs::read_to_string(self.0.join("seen")).unwrap_or_default()
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Writes down its arguments and fails.
const FAKE_APT: &str = "echo \"$@\" >>\"$SEEN\"; exit 1";

/// Whether a process runs that was started with this word.
fn runs(word: &str) -> bool {
    let own = std::process::id().to_string();
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
    processes.filter(|entry| entry.file_name().to_str() != Some(&own)).any(|entry| {
        std::fs::read(entry.path().join("cmdline"))
            .is_ok_and(|line| line.split(|byte| *byte == 0).any(|part| part == word.as_bytes()))
    })
}

/// What a killed run of the tests would leave: a daemon that has left its group, a namespace, a control socket.
#[test]
fn nothing_stays_of_an_enclosed_command_that_is_killed() {
    if !ready() {
        return;
    }
    let word = format!("rt-enclosed-{}-{}", std::process::id(), serial());
    let host = Host::namespace();
    let trace = format!("/run/{word}");
    let script =
        format!("ip netns add {word}; touch {trace}; setsid sh -c 'sleep 600; :' {word} & echo ready; wait");
    let mut command = Command::new(tree().join("scripts/enclosed"));
    command.args(["sh", "-c", &script]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut enclosed = command.spawn().expect("scripts/enclosed");
    let mut said = String::new();
    BufReader::new(enclosed.stdout.take().expect("its output")).read_line(&mut said).expect("a line");
    assert_eq!(said, "ready\n");
    assert!(wait_for(Duration::from_secs(5), || runs(&word).then_some(())).is_some(), "the daemon runs");
    enclosed.kill().expect("a child");
    enclosed.wait().expect("a child");
    assert!(
        wait_for(Duration::from_secs(5), || (!runs(&word)).then_some(())).is_some(),
        "its daemon runs on"
    );
    let namespaces = sh("ip netns list").expect("namespaces");
    assert!(!namespaces.contains(&word), "{namespaces}");
    assert!(namespaces.contains(host.name()), "others' namespaces stay: {namespaces}");
    assert!(!Path::new(&trace).exists());
}

#[test]
fn an_enclosed_command_has_its_own_exit_code_and_its_orphans_are_reaped() {
    if !ready() {
        return;
    }
    let enclosed = |script: &str| {
        let mut command = Command::new(tree().join("scripts/enclosed"));
        command.args(["sh", "-c", script]).stdin(Stdio::null()).status().expect("scripts/enclosed").code()
    };
    assert_eq!(enclosed("exit 7"), Some(7));
    // A zombie would look like a daemon that does not end.
    let orphan = "(sleep 0.2 & echo $! >/run/orphan); sleep 1; ! test -e /proc/$(cat /run/orphan)";
    assert_eq!(enclosed(orphan), Some(0));
}

/// A stage that would last for minutes is ended in its middle.
#[test]
fn an_interrupted_test_run_leaves_no_file_behind() {
    if !ready() {
        return;
    }
    let cargo = "[ \"$1\" != --version ] || { echo cargo 9.9.9; exit; }; echo begun; sleep 600";
    let programs = Programs::new(&[("cargo", cargo)]);
    let files = programs.0.join("files");
    std::fs::create_dir(&files).expect("a directory");
    let left = || std::fs::read_dir(&files).expect("the directory").count();
    let mut command = Command::new(tree().join("scripts/test"));
    command.args(["--no-install", "format"]).env_clear().env("PATH", &programs.0).env("HOME", &programs.0);
    command.env("TMPDIR", &files).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut run = command.spawn().expect("scripts/test");
    let lines = BufReader::new(run.stdout.take().expect("its output")).lines();
    assert!(lines.map_while(Result::ok).any(|line| line == "begun"), "the stage began");
    assert_ne!(left(), 0);
    sh(&format!("kill -TERM {}", run.id())).expect("a child");
    assert_eq!(run.wait().expect("a child").code(), Some(143));
    assert_eq!(left(), 0);
}

#[test]
fn a_missing_value_is_a_wrong_use_and_is_named() {
    for script in ["scripts/demo", "scripts/fuzz"] {
        for arguments in [&["--seconds"][..], &["--seconds", "soon"], &["--seconds", "0"]] {
            let done = Programs::new(&[("apt-get", FAKE_APT)]).run(script, arguments);
            let said = String::from_utf8_lossy(&done.stderr);
            assert_eq!(done.status.code(), Some(2), "{script} {arguments:?}: {said}");
            assert!(
                said.contains("--seconds wants a whole number above zero"),
                "{script} {arguments:?}: {said}"
            );
        }
    }
}

#[test]
fn options_of_fuzzing_that_do_not_go_together_are_a_wrong_use() {
    for (arguments, expected) in [
        (&["--from", "/nowhere"][..], "--from wants a directory"),
        (&["--from", "/"], "--from goes with --minimize"),
        (&["--renew"], "--renew goes with --coverage"),
        (&["--coverage", "nothing"], "there is no target nothing; there are message "),
    ] {
        let done = Programs::new(&[]).run("scripts/fuzz", arguments);
        let said = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(expected), "{arguments:?}: {said}");
    }
}

/// A minute of installing packages is lost when the compiler turns out to be too old only then.
#[test]
fn an_old_compiler_is_told_of_before_anything_is_installed() {
    if !ready() {
        return;
    }
    for script in ["scripts/demo", "scripts/test", "scripts/compare", "scripts/package", "scripts/install"] {
        let programs = Programs::new(&[("apt-get", FAKE_APT), ("cargo", "echo cargo 1.63.0")]);
        let done = programs.run(script, &[]);
        let said = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(1), "{script}: {said}");
        assert!(said.contains("cargo is 1.63.0, but Rust 1."), "{script}: {said}");
        assert_eq!(programs.seen(), "", "{script}");
    }
}

#[test]
fn what_is_written_in_python_brings_python() {
    if sh("id -u").is_ok_and(|uid| uid.trim() != "0") {
        return skip("packages are installed by root alone");
    }
    for script in ["scripts/bench", "scripts/memory", "perf/profile"] {
        for arguments in [&[][..], &["--help"]] {
            let programs = Programs::new(&[("apt-get", FAKE_APT)]);
            let done = programs.run(script, arguments);
            let said = String::from_utf8_lossy(&done.stderr);
            assert!(said.contains("python3"), "{script}: what it installs is said: {said}");
            assert_eq!(programs.seen().lines().next(), Some("-q update"), "{script}: {said}");
            assert_eq!(done.status.code(), Some(1), "{script}: {said}");
        }
    }
}

/// What takes minutes says how long it has taken, and what it did last.
#[test]
fn a_download_shows_that_it_goes_on() {
    let script = "source scripts/lib.sh; with_progress 'apt-get install' sh -c 'echo Get:1 gcc; sleep 12'";
    let done = Command::new("bash").args(["-c", script]).current_dir(tree()).output().expect("bash");
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{said}");
    assert_eq!(said, "   apt-get install: 10 s, Get:1 gcc\n");
}

#[test]
fn a_download_that_fails_shows_all_that_it_said() {
    let script =
        "source scripts/lib.sh; with_progress 'the fetch' sh -c 'echo one; echo two >&2; exit 3'; echo on";
    let done = Command::new("bash").args(["-c", script]).current_dir(tree()).output().expect("bash");
    assert_eq!(done.status.code(), Some(1));
    assert_eq!(
        String::from_utf8_lossy(&done.stderr),
        "one\ntwo\nerror: the fetch failed (3); its output stands above\n"
    );
    assert_eq!(String::from_utf8_lossy(&done.stdout), "");
}
