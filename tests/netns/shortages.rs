//! What a host may run out of, or take away, while a tunnel is at work: each is survived, and told where somebody has to act.

use crate::bulk::{self, moves_unaltered};
use crate::cores::{Group, two_cores};
use crate::implementation::{Hindrance, Implementation, RINGTUN_TWO, ringtun, ringtun_itself};
use crate::lab::{eventually, sh};
use crate::pair::{A, B, Pair, Side, V4, V6};
use crate::updown::{DEFAULT, Site, peer};
use std::path::PathBuf;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(15);

/// Two devices that have shaken hands.
fn pair() -> Option<Pair> {
    if !ringtun_itself() || !bulk::ready() {
        return None;
    }
    Pair::connected(RINGTUN_TWO, RINGTUN_TWO)
}

/// What the process of A has said.
fn said(pair: &Pair) -> String {
    pair[A].device.as_ref().and_then(|device| device.process.as_ref()).expect("a process").said()
}

fn pid(pair: &Pair, side: Side) -> u32 {
    pair[side].device.as_ref().and_then(|device| device.process.as_ref()).expect("a process").pid()
}

/// The process of A is the one that it was, and has not panicked.
#[track_caller]
fn lives(pair: &mut Pair) {
    let ended = pair[A].device.as_mut().expect("a device").process().ended();
    assert!(ended.is_none() && !pair.tell().contains("panicked"), "{ended:?} {}", pair.tell());
}

/// Datagrams from one side to the other as fast as they go, for a second.
fn flood(pair: &Pair, from: Side) {
    let to = pair[from.other()].inner(V4);
    let script = format!(
        "import socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
end = time.monotonic() + 1
while time.monotonic() < end:
    for _ in range(50):
        try:
            s.sendto(bytes(1300), ('{to}', 9))
        except OSError:
            pass"
    );
    let mut sender = pair[from].host.start("python3", &["-c", &script]);
    sender.wait(SOON);
}

#[test]
fn a_full_socket_buffer_holds_back_what_is_sent_and_alters_nothing() {
    static LITTLE: Hindrance = Hindrance {
        behind: &["env", "LOG_LEVEL=info"],
        options: &["--workers", "2", "--buffers", "16", "--socket-buffer", "262144"],
    };
    if !ringtun_itself() || !bulk::ready() {
        return;
    }
    let little = Implementation::Hindered(&LITTLE);
    let Some(mut pair) = Pair::connected(little, RINGTUN_TWO) else { return };
    // A link that is much slower than its sender, and holds more than the socket's buffer does.
    pair[A].host.run("tc qdisc add dev wire root tbf rate 80mbit burst 128kb limit 64mb");
    flood(&pair, A);
    let dropped = pair[A].host.run(&format!("cat /sys/class/net/{}/statistics/tx_dropped", pair[A].name()));
    assert!(dropped.trim() != "0", "the queue of the TUN device was never full: {}", pair.tell());
    pair.expect_ping(A, V4);
    for inner in [V4, V6] {
        moves_unaltered(&pair, inner, 1);
    }
    let link = pair[A].host.run("tc -s qdisc show dev wire");
    assert!(link.contains("dropped 0,"), "the link dropped what the socket should have held back: {link}");
    lives(&mut pair);
    assert_eq!(pair.tell().matches("WARN").count(), 0, "{}", pair.tell());
}

#[test]
fn a_process_that_was_stopped_goes_on_where_it_was() {
    let Some(mut pair) = pair() else { return };
    for side in [A, B] {
        let process = |signal: &str| drop(sh(&format!("kill -s {signal} {}", pid(&pair, side))));
        // What comes meanwhile fills the queue of its TUN device, and the buffer of its socket.
        process("STOP");
        flood(&pair, A);
        assert!(pair.ping(A, V4, Duration::from_secs(1)).is_err(), "it was not stopped");
        process("CONT");
        let healed = pair.ping(A, V4, Duration::from_secs(5));
        healed.unwrap_or_else(|error| panic!("{side:?} was stopped: {error}\n{}", pair.tell()));
        moves_unaltered(&pair, V6, 2);
    }
    lives(&mut pair);
}

/// The least number that no file of the process has.
fn next_descriptor(pid: u32) -> u64 {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("a running process");
    let open: Vec<u64> =
        open.flatten().filter_map(|file| file.file_name().into_string().ok()?.parse().ok()).collect();
    (0..).find(|number| !open.contains(number)).expect("a number")
}

/// Time that the process has been busy, in ticks of 10 ms.
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a running process");
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime")
}

#[test]
fn without_file_descriptors_traffic_goes_on_and_control_comes_back_by_itself() {
    let Some(mut pair) = pair() else { return };
    let (pid, name) = (pid(&pair, A), pair[A].name().to_owned());
    let limit = |number: u64| drop(sh(&format!("prlimit --pid {pid} --nofile={number}:")).expect("prlimit"));
    let shows = format!("timeout 2 wg show {name} listen-port");
    limit(next_descriptor(pid));
    let before = ticks(pid);
    let waiting: Vec<_> =
        (0..3).map(|_| pair[A].host.start("timeout", &["8", "wg", "show", &name])).collect();
    assert!(pair[A].host.try_run(&shows).is_err(), "there were file descriptors left");
    moves_unaltered(&pair, V4, 2);
    std::thread::sleep(Duration::from_secs(1));
    // Not by what `wg show` tells, which would wait for long.
    let said = said(&pair);
    let told = said.lines().filter(|line| line.contains("control connections")).count();
    assert_eq!(told, 1, "{said}");
    assert!(said.contains("prlimit --nofile="), "no remedy: {said}");
    let idle = ticks(pid);
    std::thread::sleep(Duration::from_secs(1));
    assert!(
        ticks(pid) - idle < 30,
        "it spins: {} ticks a second, {} before",
        ticks(pid) - idle,
        idle - before
    );
    // New sockets cannot be had, either, until the limit is lifted.
    limit(4096);
    eventually("it answers again", SOON, || pair[A].host.try_run(&shows).is_ok());
    drop(waiting);
    pair.expect_ping(B, V6);
    lives(&mut pair);
}

#[test]
fn a_port_that_cannot_be_opened_for_want_of_descriptors_is_opened_later() {
    let Some(mut pair) = pair() else { return };
    let (pid, name) = (pid(&pair, A), pair[A].name().to_owned());
    let limit = |number: u64| drop(sh(&format!("prlimit --pid {pid} --nofile={number}:")).expect("prlimit"));
    pair[A].host.run(&format!("ip link set {name} down"));
    eventually("its sockets are closed", SOON, || !pair[A].host.run("ss -Hlun").contains(":51820"));
    limit(next_descriptor(pid));
    pair[A]
        .host
        .run(&format!("ip link set {name} up; ip addr replace {}/64 dev {name} nodad", pair[A].inner(V6)));
    assert!(pair.ping(A, V4, Duration::from_secs(2)).is_err(), "there were file descriptors left");
    let told = said(&pair);
    assert!(told.contains("no UDP socket can be opened") && told.contains("prlimit --nofile="), "{told}");
    limit(4096);
    eventually("it is opened", SOON, || pair.ping(A, V4, Duration::from_secs(1)).is_ok());
    lives(&mut pair);
}

#[test]
fn a_memory_group_that_leaves_nothing_to_spare_is_enough() {
    let Some(mut pair) = pair() else { return };
    let Some(group) = Group::new("memory") else { return };
    for inner in [V4, V6] {
        moves_unaltered(&pair, inner, 8);
    }
    let process = pair[A].device.as_mut().expect("a device").process();
    let resident = process.status_kib("VmRSS:") << 10;
    group.enter(process.pid());
    // Pages that it has stay charged to where it was; any further one is the group's, which has room for few.
    group.set_memory(1 << 20);
    for inner in [V4, V6] {
        moves_unaltered(&pair, inner, 8);
        pair.expect_ping(B, inner);
    }
    for _ in 0..20 {
        pair[A].host.run(&format!("wg show {}", pair[A].name()));
    }
    let process = pair[A].device.as_mut().expect("a device").process();
    let now = process.status_kib("VmRSS:") << 10;
    println!("{resident} bytes resident before, {now} after");
    lives(&mut pair);
}

#[test]
fn cores_that_are_taken_away_in_mid_traffic_cost_no_packet() {
    let Some(mut pair) = pair() else { return };
    let (Some(cores), Some(group)) = (two_cores(), Group::new("cpuset")) else { return };
    group.set_cores(&cores.join(","));
    group.enter(pid(&pair, A));
    let pinger = pair.pinger();
    for cores in [cores[0].clone(), cores[1].clone(), cores.join(",")] {
        group.set_cores(&cores);
        moves_unaltered(&pair, V4, 2);
    }
    let (sent, received) = pinger.outcome();
    assert!(sent > 5 && received == sent, "{received} of {sent} pings\n{}", pair.tell());
    lives(&mut pair);
}

/// A file system of so many KiB over a directory of this host, taken away with its owner.
struct Small(PathBuf);

impl Small {
    fn over(path: PathBuf, kib: u32) -> Small {
        sh(&format!("mount -t tmpfs -o size={kib}k none {}", path.display())).expect("a tmpfs");
        Small(path)
    }

    fn fill(&self) {
        let file = self.0.join("fill");
        let _ = sh(&format!("dd if=/dev/zero of={} bs=1k 2>/dev/null", file.display()));
    }

    fn empty(&self) {
        std::fs::remove_file(self.0.join("fill")).expect("the file that fills it");
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = sh(&format!("umount -l {}", self.0.display()));
    }
}

#[test]
fn a_full_disk_loses_no_configuration() {
    let Some(site) = Site::new() else { return };
    let before = site.look();
    let small = Small::over(site.directory.clone(), 64);
    site.write("Address = 192.168.96.1/24\n# mine", &peer("AllowedIPs = 10.7.0.0/16"));
    site.done("up");
    let text = site.read();
    let other = peer("AllowedIPs = 10.8.0.0/16");
    let key = other.split("PublicKey = ").nth(1).expect("a key").lines().next().expect("a key").to_owned();
    site.host.run(&format!("wg set {} peer {key} allowed-ips 10.8.0.0/16", site.name));
    small.fill();
    let is_told = |verb: &str, said: &str| {
        let named = said.contains(&site.file().display().to_string());
        assert!(said.contains("No space left") && named, "{verb}: {said}");
        assert_eq!(site.read(), text, "{verb}: the file was altered");
        let left = sh(&format!("ls -A {}", small.0.display())).expect("a directory");
        assert_eq!(left.split_whitespace().count(), 2, "{verb}: a temporary file stayed: {left}");
    };
    is_told("save", &site.refused("save"));
    let add = format!(
        "{} peer add laptop --interface {} --endpoint 10.99.0.1:4500 2>&1",
        ringtun().display(),
        site.file().display()
    );
    is_told("peer add", &site.host.try_run(&add).expect_err("there is no room for it"));
    let peers = site.host.run(&format!("wg show {} peers", site.name));
    assert_eq!(peers.lines().count(), 2, "half a peer was added: {peers}");
    small.empty();
    site.done("save");
    assert!(site.read().contains(&key) && site.read().contains("# mine"), "{}", site.read());

    // What is to be saved as it goes down stays up until it can be.
    site.write_whole(&site.read().replace("# mine", "SaveConfig = true"));
    let (text, up) = (site.read(), site.look());
    small.fill();
    let said = site.refused("down");
    assert!(said.contains("No space left") && said.contains("SaveConfig="), "{said}");
    assert_eq!((site.read(), site.look()), (text, up), "{said}");
    small.empty();
    site.done("down");
    assert!(site.read().contains(&key) && site.is_gone());
    assert_eq!(site.look(), before);
}

/// Runs ringtun with a small /run/ringtun of its own, which `FILL` fills. The script has `RINGTUN` and `FILE`.
fn with_small_run(site: &Site, script: &str) -> Result<String, String> {
    let script = script
        .replace("RINGTUN", &ringtun().display().to_string())
        .replace("FILE", &site.file().display().to_string())
        .replace("FILL", "dd if=/dev/zero of=/run/ringtun/fill bs=1k 2>/dev/null");
    let mount = "mkdir -p /run/ringtun; mount -t tmpfs -o size=16k none /run/ringtun; exec 2>&1";
    site.host.try_run(&format!("unshare -m sh -c '{mount}; {script}'"))
}

#[test]
fn a_full_run_directory_is_told_and_leaves_the_host_as_it_was() {
    let Some(site) = Site::new() else { return };
    let before = site.look();
    let is_told = |said: &str| {
        assert!(said.contains("No space left") && said.contains("/run/ringtun"), "{said}");
        assert!(!said.contains("panicked"), "{said}");
        eventually("it is gone", SOON, || site.is_gone());
        assert_eq!(site.look(), before, "{said}");
    };
    site.write("Address = 192.168.96.1/24", &peer("AllowedIPs = 10.7.0.0/16"));
    is_told(&with_small_run(&site, "FILL; RINGTUN up FILE").expect_err("it has no room for its notes"));

    // More routes than there is room for, in notes that are there. What was noted before is undone all the same.
    let routes: Vec<String> = (0..400).map(|i| format!("10.8.{}.{}/32", i / 200, i % 200)).collect();
    site.write("Address = 192.168.96.1/24", &peer(DEFAULT));
    let more = site.read().replace("AllowedIPs = ", &format!("AllowedIPs = {}, ", routes.join(", ")));
    let file = site.directory.join("more");
    std::fs::write(&file, more).expect("a file");
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("its mode");
    let script = "RINGTUN up FILE || exit 9; FILL; cp $(dirname FILE)/more FILE; RINGTUN reload FILE && exit 8; \
                  grep -qx finished /run/ringtun/NAME || exit 7; grep -q 10.8. /run/ringtun/NAME && exit 6; RINGTUN down FILE";
    let said =
        with_small_run(&site, &script.replace("NAME", &site.name)).unwrap_or_else(|error| panic!("{error}"));
    is_told(&said);
}
