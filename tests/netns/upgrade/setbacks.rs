//! Upgrades that fail, at whatever point: the tunnel goes on where it was.

use super::{SOON, process, try_upgrade};
use crate::implementation::{Hindrance, Implementation, RINGTUN_TWO, ringtun, ringtun_itself, uapi_socket};
use crate::lab::{Host, eventually, ready, serial};
use crate::pair::{A, B, Pair, V4};
use std::path::PathBuf;

/// A program in Python that begins to take a tunnel over as a later version might, and comes to the end that is named.
const SUCCESSOR: &str = r#"#!/usr/bin/env python3
import os, socket, sys, time
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[2] if sys.argv[2].startswith("/") else "/var/run/wireguard/%s.sock" % sys.argv[2])
def ask(text):
    s.sendall(text)
    said, files = b"", []
    while not said.startswith(b"\n") and b"\n\n" not in said:
        data, more, _, _ = socket.recv_fds(s, 65536, 253)
        if not data:
            return said.decode(), files
        said += data
        files += more
    return said.decode(), files
end = os.path.basename(sys.argv[0]).split("-")[-1]
text, files = ask(b"handover=offer\n\n")
assert "errno=0" in text and len(files) > 4, text
if end == "offered":
    sys.exit(3)
text, files = ask(b"handover=state\n\n")
assert "errno=0" in text and len(files) == 5, text
state = os.pread(files[0], 1 << 20, 0)
assert state[:8] == b"ringtun\0", state[:8]
assert os.fstat(files[0]).st_nlink == 0
if end == "declined":
    ask(b"taken=0\n\n")
    time.sleep(1)
    assert not any(os.pread(files[0], 1 << 20, 0)), "it is wiped"
    sys.exit(4)
if end == "late":
    # The other side loses patience before.
    time.sleep(11)
    try:
        text, _ = ask(b"taken=1\n\n")
    except OSError:
        text = ""
    assert "errno=0" not in text, text
    sys.exit(5)
os.kill(os.getpid(), 9)
"#;

/// A successor that comes to this end, gone with it.
struct BadSuccessor(PathBuf);

impl BadSuccessor {
    fn new(end: &str) -> BadSuccessor {
        let path =
            std::env::temp_dir().join(format!("rt-successor-{}-{}-{end}", std::process::id(), serial()));
        std::fs::write(&path, SUCCESSOR).unwrap();
        std::process::Command::new("chmod").arg("755").arg(&path).status().unwrap();
        BadSuccessor(path)
    }
}

impl Drop for BadSuccessor {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn where_the_successor_fails_the_tunnel_goes_on_as_before() {
    if !ringtun_itself() {
        return;
    }
    let Some(pair) = Pair::connected(RINGTUN_TWO, RINGTUN_TWO) else { return };
    let (host, name) = (&pair[A].host, pair[A].name());
    let before = (process(host, name), pair[A].wg_show("latest-handshakes"));
    let pings = pair.pinger();
    let fails = |program: &str| {
        let error = try_upgrade(host, name, &format!("--program {program}")).unwrap_err();
        assert!(error.contains("exit status: 1: "), "{error}");
        assert_eq!((process(host, name), pair[A].wg_show("latest-handshakes")), before, "{program}");
        error
    };
    let goes_on = format!("{name} goes on in process {}", before.0);
    assert!(fails("/bin/false").contains(&goes_on));
    assert!(fails("/nonexistent").contains("cannot start /nonexistent"));
    let ends =
        [("offered", "status: 3"), ("declined", "status: 4"), ("late", "status: 5"), ("killed", "signal: 9")];
    for (end, status) in ends {
        let successor = BadSuccessor::new(end);
        let error = fails(&successor.0.display().to_string());
        assert!(error.contains(status) && error.contains(&goes_on), "{end}: {error}");
        let (_server, stream) = super::streams(&pair, 1);
        let carried = super::carried(stream);
        assert!(carried.iter().all(|&rate| rate > 1.0), "{end}: {carried:?}");
    }
    assert_eq!(pings.missing(), [0; 0], "what came while it stood still waited");
    // And it is handed over all the same.
    pair.upgrade(A, "");
    pair.expect_ping(B, V4);
}

const FEW_FILES: Hindrance =
    Hindrance { behind: &["prlimit", "--nofile=600:600"], options: &["--workers", "2"] };

#[test]
fn what_the_new_program_needs_and_cannot_have_leaves_the_old_one_in_place() {
    if !ringtun_itself() {
        return;
    }
    let Some(pair) = Pair::connected(Implementation::Hindered(&FEW_FILES), RINGTUN_TWO) else { return };
    let (host, name) = (&pair[A].host, pair[A].name());
    let (before, pings) = (process(host, name), pair.pinger());
    // As many workers cannot have as many files.
    let error = try_upgrade(host, name, "--workers 256").unwrap_err();
    assert!(
        error.contains("file descriptors") && error.contains(&format!("goes on in process {before}")),
        "{error}"
    );
    // The socket is its owner's alone.
    let stranger =
        host.command("setpriv", &["--reuid", "65534", ringtun().to_str().unwrap(), "upgrade", name]);
    let mut stranger = crate::lab::Process::start(stranger);
    assert!(stranger.wait(SOON).is_some_and(|status| status.code() == Some(1)), "{}", stranger.said());
    assert!(stranger.said().contains("only root may ask"), "{}", stranger.said());
    // Nor does one get anything who may connect.
    host.run(&format!("chmod 777 {}", uapi_socket(name)));
    let ask = format!(
        "import os, socket; os.setuid(65534); s = socket.socket(socket.AF_UNIX); s.connect('{}'); s.sendall(b'handover=QUESTION\\n\\n'); print(socket.recv_fds(s, 999, 9))",
        uapi_socket(name)
    );
    for question in ["offer", "state"] {
        let ask = ask.replace("QUESTION", question);
        let said = host.run(&format!("python3 -c \"{ask}\""));
        assert!(said.contains("errno=-1") && said.contains(", [], "), "{said}");
    }
    let (sent, received) = pings.outcome();
    assert_eq!((process(host, name), sent), (before, received));
}

#[test]
fn one_of_another_program_and_the_first_process_of_a_container_stay_where_they_are() {
    if !ready() || !ringtun_itself() {
        return;
    }
    let host = Host::namespace();
    let name = format!("rt{}u{}", std::process::id() % 10_000_000, serial());
    let program = ringtun().display().to_string();
    let mut first = host.start("unshare", &["--pid", "--fork", "--kill-child", &program, "-f", &name]);
    eventually("it runs", SOON, || host.try_run(&format!("wg show {name}")).is_ok());
    let error = try_upgrade(&host, &name, "").unwrap_err();
    assert!(
        error.contains("hands its tunnel to no other") && error.contains("goes on in process 1"),
        "{error}"
    );
    assert!(first.ended().is_none());
    host.run(&format!("ip link del {name}"));
    let error = try_upgrade(&host, &name, "").unwrap_err();
    assert!(error.contains(&format!("no tunnel {name} runs here")), "{error}");
}
