//! Hosts (a namespace, or a guest with a kernel of its own), processes in them, and wires between them. Everything made
//! here goes away with its owner, also when a test panics.

use crate::common::guest::Guest;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// No command of a test takes longer, in seconds: one that does hangs (`wg`, when the device does not answer), and is ended.
const COMMAND_LIMIT_SECONDS: &str = "90";
/// No process that a test waits for takes longer.
const PROCESS_LIMIT: Duration = Duration::from_secs(200);

/// Numbers the namespaces and devices of this process.
static SERIAL: AtomicU32 = AtomicU32::new(0);

/// The next number.
pub(crate) fn serial() -> u32 {
    SERIAL.fetch_add(1, Ordering::Relaxed)
}

/// Says loudly that a test did not run. Written past libtest's capture, so that it is seen when the test passes.
pub(crate) fn skip(because: &str) {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("a test");
    let _ = writeln!(std::io::stderr(), "SKIPPED: {name} because {because}");
}

/// Why no namespaces and TUN devices can be had here.
fn missing() -> Option<String> {
    if sh("id -u").map(|uid| uid.trim() != "0").unwrap_or(true) {
        return Some("it needs root".into());
    }
    if !Path::new("/dev/net/tun").exists() {
        return Some("there is no /dev/net/tun".into());
    }
    ["ip", "wg", "ping", "iperf3", "setpriv"]
        .iter()
        .find(|program| find_program(program).is_none())
        .map(|program| format!("{program} is not installed (scripts/test installs it)"))
}

/// Whether tests on namespaces can run; says so where they cannot.
pub(crate) fn ready() -> bool {
    static SWEEP: Once = Once::new();
    if let Some(because) = missing() {
        skip(&because);
        return false;
    }
    SWEEP.call_once(sweep);
    true
}

/// Removes namespaces that a killed run left behind: those of this prefix whose process is gone.
fn sweep() {
    for line in sh("ip netns list").unwrap_or_default().lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        let owner = name.strip_prefix("rt-").and_then(|rest| rest.split('-').next());
        let Some(owner) = owner.and_then(|pid| pid.parse::<u32>().ok()) else { continue };
        if !Path::new(&format!("/proc/{owner}")).exists() {
            let _ = sh(&format!("ip netns del {name}"));
        }
    }
}

/// The path of a program that PATH, or an administrator's PATH, finds.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    path.split(':').map(|directory| Path::new(directory).join(name)).find(|path| path.is_file())
}

/// Runs a shell script where the test itself runs.
pub(crate) fn sh(script: &str) -> Result<String, String> {
    output(Command::new("timeout").args(["-k", "2", COMMAND_LIMIT_SECONDS, "sh", "-c", script]), script)
}

/// Runs a command to its end; its output, or what it said when it failed.
fn output(command: &mut Command, script: &str) -> Result<String, String> {
    let done = command.stdin(Stdio::null()).output().map_err(|error| format!("{script}: {error}"))?;
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    if done.status.success() {
        return Ok(text);
    }
    Err(format!("`{script}`: {}: {text}{}", done.status, String::from_utf8_lossy(&done.stderr)))
}

/// A process that ends with its owner.
pub(crate) struct Process {
    child: Child,
    log: Option<PathBuf>,
}

impl Process {
    /// Starts `command`, which must not fork, with its output in a file of its own. Should the test process die, it is ended.
    pub(crate) fn start(mut command: Command) -> Process {
        let log = std::env::temp_dir().join(format!("rt-{}-{}.log", std::process::id(), serial()));
        let file = std::fs::File::create(&log).expect("a log file");
        let again = file.try_clone().expect("a log file");
        command.stdin(Stdio::null()).stdout(file).stderr(again);
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Process { child, log: Some(log) }
    }

    /// Wraps a child that was started with its own pipes.
    pub(crate) fn adopt(child: Child) -> Process {
        Process { child, log: None }
    }

    /// Its id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has said so far.
    pub(crate) fn said(&self) -> String {
        let bytes = self.log.as_ref().map(std::fs::read).and_then(Result::ok).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Its exit status, once it has ended.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child of ours")
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        wait_for(limit, || self.ended())
    }

    /// Waits for its end, and gives what it said, with its status when that is not success.
    pub(crate) fn wait_said(mut self) -> String {
        match self.wait(PROCESS_LIMIT) {
            Some(status) if status.success() => self.said(),
            status => format!("{status:?} {}", self.said()),
        }
    }

    /// Sends a signal by name.
    pub(crate) fn signal(&self, name: &str) {
        let _ = sh(&format!("kill -s {name} {}", self.pid()));
    }

    /// A value in KiB out of /proc/PID/status.
    pub(crate) fn status_kib(&self, key: &str) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("a running process");
        let line = status
            .lines()
            .find(|line| line.starts_with(key))
            .unwrap_or_else(|| panic!("no {key} in {status}"));
        line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("a number")
    }

    /// Names of its threads.
    pub(crate) fn threads(&self) -> Vec<String> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).expect("a running process");
        let name =
            |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        tasks.flatten().map(|task| name(task).trim().to_owned()).collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended().is_none() {
            self.signal("TERM");
            if self.wait(Duration::from_secs(3)).is_none() {
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
        }
        if let Some(log) = &self.log {
            let _ = std::fs::remove_file(log);
        }
    }
}

/// Asks until there is an answer, at most for `limit`.
pub(crate) fn wait_for<T>(limit: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let until = Instant::now() + limit;
    loop {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if Instant::now() > until {
            return None;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until a condition holds; panics with its name when it does not come to hold.
#[track_caller]
pub(crate) fn eventually(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    assert!(wait_for(limit, || holds().then_some(())).is_some(), "not within {limit:?}: {what}");
}

/// A machine on the wire.
pub(crate) struct Host {
    place: Place,
    /// Its interface to the wire.
    pub(crate) link: String,
}

enum Place {
    Namespace(String),
    Guest(Guest),
}

impl Host {
    /// A new namespace with its loopback up.
    pub(crate) fn namespace() -> Host {
        let name = format!("rt-{}-{}", std::process::id(), serial());
        sh(&format!("ip netns add {name}")).expect("a namespace");
        let host = Host { place: Place::Namespace(name), link: "wire".into() };
        host.run("ip link set lo up");
        host
    }

    /// A guest with a kernel of its own, its network card in the namespace of `neighbour`.
    pub(crate) fn guest(neighbour: &Host) -> Host {
        Host { place: Place::Guest(Guest::boot(neighbour)), link: "eth0".into() }
    }

    /// The namespace's name; a guest has none.
    pub(crate) fn name(&self) -> &str {
        match &self.place {
            Place::Namespace(name) => name,
            Place::Guest(_) => panic!("a guest is no namespace"),
        }
    }

    /// Whether it is a guest.
    pub(crate) fn is_guest(&self) -> bool {
        matches!(self.place, Place::Guest(_))
    }

    /// Runs a shell script to its end; its output, or what it said when it failed.
    pub(crate) fn try_run(&self, script: &str) -> Result<String, String> {
        match &self.place {
            Place::Namespace(_) => {
                let limited = ["-k", "2", COMMAND_LIMIT_SECONDS, "sh", "-c", script];
                output(&mut self.command("timeout", &limited), script)
            }
            Place::Guest(guest) => guest.run(script),
        }
    }

    /// Runs a shell script that must succeed; its output.
    #[track_caller]
    pub(crate) fn run(&self, script: &str) -> String {
        self.try_run(script).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Writes a file for `wg` and its like, runs a script that names it as `$FILE`, and removes it.
    pub(crate) fn try_run_with_file(&self, text: &str, script: &str) -> Result<String, String> {
        if self.is_guest() {
            return self.try_run(&format!("FILE=/tmp/file\ncat >$FILE <<'EOF'\n{text}\nEOF\n{script}"));
        }
        let path = std::env::temp_dir().join(format!("rt-{}-{}.conf", std::process::id(), serial()));
        std::fs::write(&path, text).map_err(|error| error.to_string())?;
        let result = self.try_run(&format!("FILE={}\n{script}", path.display()));
        let _ = std::fs::remove_file(path);
        result
    }

    /// A command in this namespace; the process started becomes the program itself. It is ended should the test thread end.
    pub(crate) fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM", "ip", "netns", "exec", self.name(), program]).args(arguments);
        command
    }

    /// Starts a program in this namespace and leaves it running.
    pub(crate) fn start(&self, program: &str, arguments: &[&str]) -> Process {
        Process::start(self.command(program, arguments))
    }

    /// What `work` yields on a thread that has entered this namespace: a socket stays in it.
    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = std::fs::File::open(format!("/run/netns/{}", self.name())).expect("a namespace");
        let enter_and_work = move || {
            let kind = Some(rustix::thread::LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(namespace.as_fd(), kind).expect("to enter it");
            work()
        };
        std::thread::scope(|scope| scope.spawn(enter_and_work).join()).expect("no panic")
    }

    /// Starts iperf3's server; it serves until the guard is dropped (a guest's, until the guest ends).
    pub(crate) fn iperf3_server(&self) -> Option<Process> {
        if self.is_guest() {
            self.run("pidof iperf3 >/dev/null || iperf3 -s -D");
            return None;
        }
        let server = self.start("iperf3", &["-s"]);
        let listens = || self.try_run("ss -Hltn sport = :5201").is_ok_and(|said| !said.is_empty());
        eventually("iperf3's server listens", Duration::from_secs(20), listens);
        Some(server)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Place::Namespace(name) = &self.place {
            // What daemonized in it is ours, too.
            let _ = sh(&format!("for pid in $(ip netns pids {name}); do kill -s KILL $pid; done"));
            let _ = sh(&format!("ip netns del {name}"));
        }
    }
}

/// Joins two namespaces by a cable.
pub(crate) fn join(a: &Host, b: &Host) {
    a.run(&format!("ip link add {} type veth peer name {} netns {}", a.link, b.link, b.name()));
    a.run(&format!("ip link set {} up", a.link));
    b.run(&format!("ip link set {} up", b.link));
}
