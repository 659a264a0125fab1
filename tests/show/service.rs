//! The service manager's view: the unit, and what the service reports to it.

use crate::implementation::{ringtun, ringtun_itself};
use crate::lab::{Host, Process, find_program, ready, serial, sh, skip};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the manager of one test listens; gone with it.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

const PATIENCE: Duration = Duration::from_secs(15);

/// The unit that is installed, with the program where it was built.
fn unit() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/systemd/ringtun@.service");
    let text = std::fs::read_to_string(path).expect("the unit");
    text.replace("/usr/bin/ringtun", env!("CARGO_BIN_EXE_ringtun"))
}

impl Manager {
    fn new() -> Manager {
        let path = std::env::temp_dir().join(format!("rt-manager-{}-{}.sock", std::process::id(), serial()));
        let socket = UnixDatagram::bind(&path).expect("a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Manager { socket, path }
    }

    #[track_caller]
    fn hear(&self) -> String {
        let mut buffer = [0; 512];
        let len = self.socket.recv(&mut buffer).expect("word from the service");
        String::from_utf8_lossy(&buffer[..len]).into_owned()
    }

    /// The next word that begins so; reports between are left out.
    #[track_caller]
    fn hear_of(&self, beginning: &str) -> String {
        loop {
            let word = self.hear();
            if word.starts_with(beginning) {
                return word;
            }
            assert!(word.starts_with("STATUS="), "{word} where {beginning} was expected");
        }
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[test]
fn systemd_finds_no_fault_with_the_unit() {
    if find_program("systemd-analyze").is_none() {
        return skip("systemd-analyze is not installed");
    }
    let directory = std::env::temp_dir().join(format!("rt-unit-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory");
    let file = directory.join("ringtun@.service");
    std::fs::write(&file, unit()).expect("a file");
    let verified =
        sh(&format!("systemd-analyze verify --man=no --recursive-errors=no {} 2>&1", file.display()));
    std::fs::remove_dir_all(&directory).expect("the directory");
    let said = verified.unwrap_or_else(|error| panic!("{error}"));
    assert!(!said.contains("ringtun@"), "{said}");
}

#[test]
fn the_unit_says_ready_by_notification_and_drops_what_it_does_not_need() {
    let text = unit();
    for line in ["Type=notify", "NoNewPrivileges=yes", "ProtectSystem=strict", "DeviceAllow=/dev/net/tun rw"]
    {
        assert!(text.lines().any(|one| one == line), "{line}");
    }
    let bounding =
        text.lines().find(|line| line.starts_with("CapabilityBoundingSet=")).expect("a bounding set");
    assert!(!bounding.contains("CAP_SYS_ADMIN"), "{bounding}");
}

#[test]
fn a_manager_hears_ready_status_and_stopping() {
    if !ready() || !ringtun_itself() {
        return;
    }
    let host = Host::namespace();
    let manager = Manager::new();
    let name = format!("rt{}s{}", std::process::id() % 10_000_000, serial());
    let mut command = host.command(&ringtun().display().to_string(), &["-f", "--workers", "1", &name]);
    command.env("NOTIFY_SOCKET", &manager.path);
    let mut process = Process::start(command);
    let first = manager.hear();
    assert!(first.starts_with(&format!("READY=1\nMAINPID={}\n", process.pid())), "{first}");
    host.run(&format!("ip link show {name}"));
    assert!(
        Path::new(&format!("/var/run/wireguard/{name}.sock")).exists(),
        "ready before there was a socket"
    );
    let status = manager.hear();
    assert!(status.starts_with("STATUS=0 peers, 0 with a session; receiving 0 bit/s"), "{status}");
    process.signal("TERM");
    manager.hear_of("STOPPING=1");
    assert!(process.wait(PATIENCE).is_some_and(|status| status.success()), "{}", process.said());
}

/// What setpriv(1) calls the capabilities that the unit leaves.
fn capabilities() -> String {
    let text = unit();
    let kept =
        text.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).expect("a bounding set");
    let names =
        kept.split_whitespace().map(|name| format!(",+{}", name.trim_start_matches("CAP_").to_lowercase()));
    format!("-all{}", names.collect::<String>())
}

fn service(host: &Host, manager: &Manager, name: &str, text: &str) -> (PathBuf, Process) {
    service_by(&ringtun(), host, manager, name, text)
}

/// A configuration in a directory of its own, and the service that runs it in a namespace with no more than the unit's
/// capabilities.
fn service_by(program: &Path, host: &Host, manager: &Manager, name: &str, text: &str) -> (PathBuf, Process) {
    let directory = std::env::temp_dir().join(format!("rt-service-{name}"));
    std::fs::create_dir_all(&directory).expect("a directory");
    let file = directory.join(format!("{name}.conf"));
    std::fs::write(&file, text).expect("a file");
    sh(&format!("chmod 600 {}", file.display())).expect("chmod");
    let file_name = file.display().to_string();
    let (program, bounds) = (program.display().to_string(), capabilities());
    let words = ["--bounding-set", &bounds, "--no-new-privs", &program, "service", &file_name];
    let mut command = host.command("setpriv", &words);
    command.env("NOTIFY_SOCKET", &manager.path);
    (file, Process::start(command))
}

#[test]
fn a_service_is_ready_when_the_tunnel_is_up_reloads_and_takes_it_down() {
    if !ready() || !ringtun_itself() {
        return;
    }
    let (host, manager) = (Host::namespace(), Manager::new());
    let name = format!("rt{}v{}", std::process::id() % 10_000_000, serial());
    let key = sh("wg genkey").expect("wg genkey");
    let text = format!("[Interface]\nPrivateKey = {key}ListenPort = 4500\nAddress = 192.168.96.1/24\n");
    let (file, mut process) = service(&host, &manager, &name, &text);
    let first = manager.hear();
    assert!(
        first.starts_with(&format!("READY=1\nMAINPID={}\n", process.pid())),
        "{first}: {}",
        process.said()
    );
    let shown = host.run(&format!("ip -o addr show {name}"));
    assert!(shown.contains("inet 192.168.96.1/24"), "ready before the address was there: {shown}");
    // The sockets are bound once the interface is seen to be up, without CAP_SYS_ADMIN too.
    assert!(!host.run("ss -Hlun sport = 4500").is_empty(), "{}", process.said());
    std::fs::write(&file, text.replace("4500", "4600")).expect("a change");
    process.signal("HUP");
    assert!(manager.hear_of("RELOADING=1").contains("MONOTONIC_USEC="));
    assert!(manager.hear_of("READY=1").ends_with("STATUS=Reloaded"), "{}", process.said());
    assert_eq!(host.run(&format!("wg show {name} listen-port")).trim(), "4600");
    process.signal("TERM");
    manager.hear_of("STOPPING=1");
    assert!(process.wait(PATIENCE).is_some_and(|status| status.success()), "{}", process.said());
    assert!(host.try_run(&format!("ip link show {name}")).is_err(), "the interface is still there");
    std::fs::remove_dir_all(file.parent().expect("a directory")).expect("the directory");
}

#[test]
fn a_service_whose_tunnel_ends_by_itself_fails() {
    if !ready() || !ringtun_itself() {
        return;
    }
    let (host, manager) = (Host::namespace(), Manager::new());
    let name = format!("rt{}w{}", std::process::id() % 10_000_000, serial());
    let key = sh("wg genkey").expect("wg genkey");
    let (file, mut process) = service(&host, &manager, &name, &format!("[Interface]\nPrivateKey = {key}"));
    manager.hear_of("READY=1");
    host.run(&format!("ip link del {name}"));
    manager.hear_of("STOPPING=1");
    assert!(process.wait(PATIENCE).is_some_and(|status| !status.success()), "{}", process.said());
    assert!(process.said().contains("the tunnel ended by itself"), "{}", process.said());
    std::fs::remove_dir_all(file.parent().expect("a directory")).expect("the directory");
}

#[test]
fn a_service_whose_program_was_replaced_or_removed_takes_its_tunnel_down() {
    if !ready() || !ringtun_itself() {
        return;
    }
    for upgrade in [true, false] {
        let (host, manager) = (Host::namespace(), Manager::new());
        let name = format!("rt{}u{}", std::process::id() % 10_000_000, serial());
        let program = std::env::temp_dir().join(format!("rt-program-{name}"));
        std::fs::copy(ringtun(), &program).expect("a copy");
        let key = sh("wg genkey").expect("wg genkey");
        let text = format!("[Interface]\nPrivateKey = {key}Address = 192.168.96.1/24\n");
        let (file, mut process) = service_by(&program, &host, &manager, &name, &text);
        manager.hear_of("READY=1");
        std::fs::remove_file(&program).expect("the copy");
        if upgrade {
            std::fs::copy("/bin/true", &program).expect("another");
        }
        process.signal("TERM");
        assert!(process.wait(PATIENCE).is_some_and(|status| status.success()), "{}", process.said());
        assert!(process.said().contains(&format!("ip link delete dev {name}")), "{}", process.said());
        assert!(host.try_run(&format!("ip link show {name}")).is_err(), "the interface is still there");
        let _ = std::fs::remove_file(&program);
        std::fs::remove_dir_all(file.parent().expect("a directory")).expect("the directory");
    }
}

/// A short field as systemd-journald takes it.
fn field(name: &str, value: &str) -> String {
    let len = char::from(u8::try_from(value.len()).expect("a short value"));
    format!("{name}\n{len}\0\0\0\0\0\0\0{value}\n")
}

#[test]
fn the_journal_hears_of_every_step_and_which_tunnel_it_is_about() {
    if !ready() || !ringtun_itself() {
        return;
    }
    let (host, journal) = (Host::namespace(), Manager::new());
    let name = format!("rt{}j{}", std::process::id() % 10_000_000, serial());
    let directory = std::env::temp_dir().join(format!("rt-journal-{name}"));
    std::fs::create_dir_all(&directory).expect("a directory");
    let file = directory.join(format!("{name}.conf"));
    let key = sh("wg genkey").expect("wg genkey");
    std::fs::write(&file, format!("[Interface]\nPrivateKey = {key}PostUp = exit 3\n")).expect("a file");
    // A /run of its own, where the test listens in the journal's place, and a file that is said to be the journal's stream.
    let script = format!(
        "chmod 600 {file}; mount -t tmpfs none /run; mkdir -p /run/systemd/journal; touch /run/systemd/journal/socket; \
         mount --bind {socket} /run/systemd/journal/socket; touch {stream}; \
         JOURNAL_STREAM=$(stat -c %d:%i {stream}) LOG_LEVEL=info {program} up {file} 2>{stream}",
        file = file.display(),
        socket = journal.path.display(),
        stream = directory.join("stream").display(),
        program = ringtun().display(),
    );
    assert!(host.try_run(&format!("unshare -m sh -ec '{script}'")).is_err(), "PostUp fails, and up does not");
    let expected = [
        (format!("[#] ringtun {name}"), "6"),
        (format!("[#] wg addconf {name} <(ringtun strip {})", file.display()), "6"),
        (format!("[#] ip link set mtu 1420 up dev {name}"), "6"),
        ("[#] exit 3".to_owned(), "6"),
        (format!("[#] ip link delete dev {name}"), "6"),
        ("`exit 3`: exit status: 3".to_owned(), "3"),
    ];
    let mut expected =
        expected.iter().map(|(message, severity)| field("MESSAGE", message) + &field("PRIORITY", severity));
    let mut wanted = expected.next();
    // Words of the tunnel's own process come between those of `up`.
    while let Some(beginning) = &wanted {
        let heard = journal.hear();
        assert!(heard.contains(&field("RINGTUN_INTERFACE", &name)), "{heard}");
        if heard.starts_with(beginning) {
            wanted = expected.next();
        }
    }
    assert_eq!(std::fs::read_to_string(directory.join("stream")).expect("a stream"), "", "told twice");
    std::fs::remove_dir_all(&directory).expect("the directory");
}
