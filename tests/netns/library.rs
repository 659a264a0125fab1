//! The library in programs that are not ringtun: the examples, with traffic between them.

use crate::implementation::stand_in;
use crate::lab::{Host, Process, eventually, join, ready, serial, skip};
use crate::pair::key_pair;
use ringtun::index::WorkerCount;
use ringtun::io::tun::{Tun, TunConfig};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// Within this what is expected happens.
pub(crate) const SOON: Duration = Duration::from_secs(20);
/// Bits of signals in /proc/PID/status: hang-up, interrupt, termination, a child's end, the users' two.
const SIGNALS: [u32; 6] = [1, 2, 15, 17, 10, 12];

/// The program that an example becomes. Cargo builds examples together with all tests, but not with one test program alone.
fn example(name: &str) -> PathBuf {
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--locked", "--offline", "--example", name])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let tests = std::env::current_exe().unwrap();
    tests.parent().and_then(|deps| deps.parent()).unwrap().join("examples").join(name)
}

/// Two hosts on a wire, at 198.18.0.1 and 198.18.0.2.
pub(crate) fn hosts() -> Option<[Host; 2]> {
    if !ready() {
        return None;
    }
    if stand_in() {
        skip("another program stands in ringtun's place");
        return None;
    }
    let hosts = [Host::namespace(), Host::namespace()];
    join(&hosts[0], &hosts[1]);
    for (host, last) in hosts.iter().zip(1..) {
        host.run(&format!("ip addr add 198.18.0.{last}/24 dev {}", host.link));
    }
    Some(hosts)
}

/// The name of a new interface.
pub(crate) fn name() -> String {
    format!("rt{}n{}", std::process::id() % 10_000_000, serial())
}

/// Gives the interface an address in the tunnel, and sets it up.
pub(crate) fn set_up(host: &Host, name: &str, last: u8) {
    eventually("the interface is there", SOON, || host.try_run(&format!("ip link show {name}")).is_ok());
    host.run(&format!("ip addr add 10.99.0.{last}/24 dev {name} && ip link set {name} up"));
}

/// Waits until pings come back.
pub(crate) fn expect_pings(host: &Host, last: u8, processes: &[&Process]) {
    let ping = || host.try_run(&format!("ping -c 3 -i 0.2 -w 5 10.99.0.{last}")).is_ok();
    let said = || processes.iter().map(|process| process.said()).collect::<String>();
    assert!(crate::lab::wait_for(SOON, || ping().then_some(())).is_some(), "no ping: {}", said());
}

/// The example `tunnel` on `host`, with its peer at the other end.
pub(crate) fn tunnel(host: &Host, name: &str, private: &str, peer: &str, peer_last: u8) -> Process {
    let program = example("tunnel").display().to_string();
    let endpoint = format!("198.18.0.{peer_last}:51820");
    let mut command = host.command(&program, &[name, "51820", peer, &endpoint, "10.99.0.0/24"]);
    command.env("PRIVATE_KEY", private);
    Process::start(command)
}

#[test]
fn ten_lines_are_a_tunnel_that_handles_no_signal() {
    let Some([a, b]) = hosts() else { return };
    let (keys, names) = ([key_pair(), key_pair()], [name(), name()]);
    let mut first = tunnel(&a, &names[0], &keys[0].0, &keys[1].1, 2);
    let second = tunnel(&b, &names[1], &keys[1].0, &keys[0].1, 1);
    set_up(&a, &names[0], 1);
    set_up(&b, &names[1], 2);
    expect_pings(&a, 2, &[&first, &second]);
    let status = std::fs::read_to_string(format!("/proc/{}/status", first.pid())).unwrap();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
    let caught = u64::from_str_radix(caught.trim(), 16).unwrap();
    for signal in SIGNALS {
        assert_eq!(caught >> (signal - 1) & 1, 0, "signal {signal} is caught: {caught:x}");
    }
    first.signal("TERM");
    let status = first.wait(SOON).expect("it ends");
    assert_eq!(status.signal(), Some(15), "nobody caught it: {}", first.said());
}

/// Waits for a connection, and sends the files over it.
fn hand_in(listener: &UnixListener, files: &[BorrowedFd<'_>]) {
    let (stream, _) = listener.accept().unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(files)));
    sendmsg(&stream, &[IoSlice::new(b"x")], &mut ancillary, SendFlags::empty()).unwrap();
}

#[test]
fn a_process_without_rights_carries_a_tunnel_over_files_that_were_handed_in() {
    let Some([a, b]) = hosts() else { return };
    let names = [name(), name()];
    let directory = std::env::temp_dir().join(format!("rt-{}-{}", std::process::id(), serial()));
    std::fs::create_dir(&directory).unwrap();
    let open_to_all = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    open_to_all(&directory, 0o755);
    // A copy, as the build's own directory may be closed to nobody.
    let program = directory.join("handed_in");
    std::fs::copy(example("handed_in"), &program).unwrap();
    let (place, control) = (directory.join("files"), directory.join("control"));
    let listener = UnixListener::bind(&place).unwrap();
    open_to_all(&place, 0o777);
    let control_listener = UnixListener::bind(&control).unwrap();
    let config = TunConfig { name: names[0].clone(), queues: WorkerCount::ONE, mtu: 1420, offloads: true };
    let mut made = a.within(|| Tun::create(&config)).unwrap();
    let device = made.queues.remove(0);
    let (program, path) = (program.display().to_string(), place.display().to_string());
    let unprivileged =
        ["--reuid", "65534", "--regid", "65534", "--clear-groups", "--bounding-set", "-all", &program, &path];
    let process = a.start("setpriv", &unprivileged);
    hand_in(&listener, &[device.as_fd(), control_listener.as_fd()]);
    drop((device, control_listener));
    let key = || process.said().split("public key ").nth(1)?.split(',').next().map(str::to_owned);
    let key = crate::lab::wait_for(SOON, key).unwrap_or_else(|| panic!("no tunnel: {}", process.said()));
    // Who has the name asks it as any other, at the place that its socket has.
    let (private, public) = key_pair();
    let bytes = |key: &str| ringtun::PublicKey::from_base64(key).unwrap().0;
    let hex: String = bytes(&public).iter().map(|byte| format!("{byte:02x}")).collect();
    let set = format!("set=1\nlisten_port=51820\npublic_key={hex}\nallowed_ip=10.99.0.2/32\n\n");
    assert_eq!(ask(&control, &set), "errno=0\n\n");
    let second = tunnel(&b, &names[1], &private, &key, 1);
    set_up(&a, &names[0], 1);
    set_up(&b, &names[1], 2);
    expect_pings(&b, 1, &[&process, &second]);
    assert!(ask(&control, "get=1\n\n").contains("rx_bytes="), "{}", process.said());
    a.run(&format!("ip link delete dev {}", names[0]));
    let mut process = process;
    let status = process.wait(SOON).expect("it ends with the interface");
    assert!(!status.success() && process.said().contains("Deleted"), "{}", process.said());
    std::fs::remove_dir_all(directory).unwrap();
}

fn ask(socket: &std::path::Path, request: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}
