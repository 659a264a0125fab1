//! `up`, `down`, `save`, `reload`: a configuration becomes a tunnel of this host, and is taken back.
//!
//! ```text
//!   ringtun NAME > PreUp > resolve names > choose MTU > keys and peers > addresses > MTU, up > DNS > routes, rules, nft > PostUp
//! ```
//!
//! Order and effect are wg-quick(8)'s. Each step that outlives the interface is noted in the [`journal`] before it is
//! done. Where a step fails, or a signal arrives, what was noted is undone from the last to the first. From the same
//! notes `down`, or the next `up`, cleans up after an `up` that was killed.

pub(in crate::gateway) mod apply;
mod dns;
mod down;
mod firewall;
mod hooks;
pub(in crate::gateway) mod host;
mod iptables;
mod journal;
mod lock;
mod membership;
mod policy;
mod reload;
mod rights;
mod rollback;
mod routes;
mod snapshot;

pub use down::{down, save};
pub(in crate::gateway) use hooks::{find as find_program, lone as hook_command};
pub(in crate::gateway) use lock::HooksLock;
pub use membership::{add_routes_of, remove_peer, run_commands};
pub use reload::reload;

use crate::gateway::config::{Address, Config, LoadError, Loaded, Permissions, Place, Table, allowed_ips};
use crate::gateway::control::ControlSocket;
use crate::gateway::interrupt::Interrupt;
use crate::gateway::{Failure, executable, ipv6};
use crate::routing::Prefix;
use crate::sys::link;
use crate::tunnel::leaving;
use host::Host;
use journal::{Journal, Trace};
use lock::CommandLock;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

type Result<T> = std::result::Result<T, Failure>;

/// Where a command reports its steps, line by line.
pub struct Console<'a>(&'a mut dyn FnMut(&str));

impl<'a> Console<'a> {
    /// A console that calls `say` for each line.
    pub fn new(say: &'a mut dyn FnMut(&str)) -> Console<'a> {
        Console(say)
    }

    /// Reports a step, as the command that would do the same.
    fn command(&mut self, text: &str) {
        (self.0)(&format!("[#] {text}"));
    }

    /// Reports something that the person should know.
    fn remark(&mut self, text: &str) {
        (self.0)(&format!("[!] {text}"));
    }
}

/// The options of `up` on the command line, beside what the file says.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Whether to clamp the MSS of forwarded TCP connections.
    pub clamp_mss: bool,
}

/// The configuration file from which a tunnel was brought up, if `up` noted it.
pub(in crate::gateway) fn noted_file(interface: &str) -> Option<PathBuf> {
    Journal::open(interface).traces().into_iter().find_map(|trace| match trace {
        Trace::File(file) => Some(file),
        _ => None,
    })
}

impl Place {
    /// The file of a running tunnel: the one that `up` noted, or else the one of its name.
    pub fn of_running(interface: &str) -> Option<Place> {
        let noted = noted_file(interface).map(|file| Place { file, interface: interface.to_owned() });
        noted.or_else(|| Place::find(interface).ok())
    }
}

/// Replaces the clamping rules by those for another MTU, in bytes, where `up` was asked to clamp.
pub(in crate::gateway) fn update_clamp(interface: &str, mtu: u32) -> Result<()> {
    if !Journal::open(interface).has(&Trace::Clamp) {
        return Ok(());
    }
    firewall::clamp(interface, mtu, &mut Console::new(&mut |line| log::debug!("{line}")))
}

/// The interface's MTU in bytes, as the paths to the endpoints gave it when `up` last asked. `None` until `up` is done.
pub(in crate::gateway) fn noted_mtu(interface: &str) -> Option<u32> {
    let traces = Journal::open(interface).traces();
    let mtu = traces.iter().rev().find_map(|trace| match trace {
        Trace::Mtu(bytes) => Some(*bytes),
        _ => None,
    });
    mtu.filter(|_| traces.contains(&Trace::Finished))
}

/// One run of a command over one interface.
struct Session<'a> {
    name: String,
    /// The path of the configuration, which hooks may want to read.
    file: PathBuf,
    host: Host,
    console: Console<'a>,
    interrupt: Interrupt,
    journal: Journal,
    /// What keeps other commands from changing this tunnel meanwhile.
    _lock: Option<CommandLock>,
}

impl<'a> Session<'a> {
    /// Begins a run, after waiting for another command that is at work on this tunnel.
    fn new(place: &Place, mut console: Console<'a>) -> Result<Session<'a>> {
        let name = &place.interface;
        let interrupt = Interrupt::catch()?;
        let lock = CommandLock::take(name, &mut console, &interrupt)?;
        Ok(Session {
            name: name.clone(),
            file: place.file.clone(),
            host: Host::new().map_err(Failure::of("cannot speak netlink"))?,
            console,
            interrupt,
            journal: Journal::open(name),
            _lock: lock,
        })
    }

    /// Reports and does one step, unless a signal arrived.
    fn step<T>(&mut self, command: &str, act: impl FnOnce(&Host) -> std::io::Result<T>) -> Result<T> {
        self.explained(command, act, |_, _| None)
    }

    /// Does as [`Self::step`]. `explain` may know better words than the kernel's for what failed.
    fn explained<T>(
        &mut self,
        command: &str,
        act: impl FnOnce(&Host) -> std::io::Result<T>,
        explain: impl FnOnce(&Session<'_>, &std::io::Error) -> Option<String>,
    ) -> Result<T> {
        self.interrupt.check()?;
        self.console.command(command);
        act(&self.host).map_err(|error| match explain(self, &error) {
            Some(why) => Failure::new(format!("{command}: {why}")),
            None => Failure::of(command)(error),
        })
    }

    /// Why the interface cannot have an IPv6 address or route. `None` where it can, and for IPv4.
    fn without_ipv6(&self, v6: bool) -> Option<String> {
        let why = v6.then(|| ipv6::why_not(&self.name)).flatten()?;
        // What `up` made is gone by the time that the remedy is read.
        if self.journal.is_unfinished() { ipv6::why_not("default").or(Some(why)) } else { Some(why) }
    }

    /// Reports and does one step that no signal may prevent. A failure is reported. Returns whether there was none.
    fn regardless(&mut self, command: &str, act: impl FnOnce(&Host) -> std::io::Result<()>) -> bool {
        self.console.command(command);
        let done = act(&self.host);
        self.report(done.map_err(Failure::of(command)))
    }

    /// Reports a failure, if there is one. Returns whether there was none.
    fn report(&mut self, done: Result<()>) -> bool {
        done.map_err(|failure| self.console.remark(&format!("{failure:#}"))).is_ok()
    }

    fn hooks(&mut self, hooks: &[String]) -> Result<()> {
        let place = hooks::HookContext { interface: &self.name, file: &self.file };
        hooks::run(hooks, place, &mut self.console, &self.interrupt)
    }

    /// Starts the process that runs the peers' hooks, where the file has some and none runs.
    fn start_peer_hooks(&mut self, loaded: &Loaded) -> Result<()> {
        if loaded.document.peer_hooks(&loaded.config).is_empty() || HooksLock::is_held(&self.name) {
            return Ok(());
        }
        self.interrupt.check()?;
        let said = format!("ringtun peer-hooks {} {}", self.name, self.file.display());
        self.console.command(&said);
        let program = executable::path().map_err(Failure::of(&said))?;
        let mut command = Command::new(program);
        command.args(["peer-hooks", &self.name]).arg(&self.file).stdin(Stdio::null());
        let status = command.status().map_err(Failure::of(&said))?;
        if status.success() { Ok(()) } else { Err(Failure::new(format!("{said}: {status}"))) }
    }

    fn index(&self) -> Result<Option<u32>> {
        let link = self.host.link(&self.name).map_err(Failure::of(&self.name))?;
        Ok(link.map(|link| link.index))
    }

    fn control(&self) -> Result<ControlSocket> {
        ControlSocket::find(&self.name)
            .ok_or_else(|| Failure::new(format!("`{0}' is not up: ringtun up {0}", self.name)))
    }

    /// Undoes what was noted, from the last to the first. All of it is tried; failures are reported.
    fn undo_all(&mut self) {
        for trace in self.journal.traces().into_iter().rev() {
            let undone = down::undo(self, &trace);
            self.report(undone);
        }
        self.journal.forget();
    }
}

/// Runs a program with `input` on its standard input, after reporting the command.
fn program(console: &mut Console<'_>, name: &str, arguments: &[&str], input: &str) -> Result<()> {
    let said = format!("{name} {}", arguments.join(" "));
    console.command(&said);
    let path = hooks::find(name).ok_or_else(|| Failure::new(format!("{name} is not installed")))?;
    let mut command = Command::new(path);
    let mut child = command.args(arguments).stdin(Stdio::piped()).spawn().map_err(Failure::of(&said))?;
    if let Some(mut pipe) = child.stdin.take() {
        pipe.write_all(input.as_bytes()).map_err(Failure::of(&said))?;
    }
    let status = child.wait().map_err(Failure::of(&said))?;
    if status.success() { Ok(()) } else { Err(Failure::new(format!("{said}: {status}"))) }
}

fn load(given: &str, permissions: Permissions, console: &mut Console<'_>) -> Result<Loaded> {
    Ok(read(given, permissions, console)?)
}

fn read(
    given: &str,
    permissions: Permissions,
    console: &mut Console<'_>,
) -> std::result::Result<Loaded, LoadError> {
    let loaded = Place::find(given)?.load(permissions)?;
    for warning in &loaded.warnings {
        console.remark(&warning.describe(&loaded.place.file));
    }
    Ok(loaded)
}

/// The routes that `up` would add and that another tunnel, which is up, has already, each with that tunnel's name. There
/// are none where the kernel does not answer.
pub fn conflicting_routes(interface: &str, config: &Config) -> Vec<(Prefix, String)> {
    if config.interface.table != Table::Auto {
        return Vec::new();
    }
    let mut wanted = allowed_ips(config);
    let connected = |prefix: &Prefix| {
        let networks = config.interface.addresses.iter().map(Address::network);
        networks.into_iter().any(|network| network.len() <= prefix.len() && network.contains(prefix.addr()))
    };
    wanted.retain(|prefix| prefix.len() > 0 && !connected(prefix));
    Host::new().and_then(|host| host.conflicting_routes(interface, &wanted)).unwrap_or_default()
}

/// Whether the file asks for clamping by a comment `# ClampMSS = true`.
fn asks_to_clamp(loaded: &Loaded) -> bool {
    let bytes = loaded.document.bytes();
    bytes.split(|&byte| byte == b'\n').any(is_clamp_line)
}

fn is_clamp_line(line: &[u8]) -> bool {
    let Some(comment) = line.trim_ascii().strip_prefix(b"#") else { return false };
    let mut parts = comment.splitn(2, |&byte| byte == b'=').map(<[u8]>::trim_ascii);
    let (key, value) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    key.eq_ignore_ascii_case(b"ClampMSS") && value.eq_ignore_ascii_case(b"true")
}

/// Brings the tunnel `given`, a name or a file, up, or leaves the host as it was.
///
/// # Errors
///
/// Where a step fails or a signal arrives. All that was done is undone then.
pub fn up(given: &str, options: Options, mut console: Console<'_>) -> Result<()> {
    rights::check("up", given)?;
    let loaded = load(given, Permissions::Refuse, &mut console)?;
    let mut session = Session::new(&loaded.place, console)?;
    refuse_what_is_there(&session)?;
    if session.journal.has_remains() {
        session.console.remark("what a tunnel that was killed left behind is removed first");
        session.undo_all();
    }
    let clamp = options.clamp_mss || asks_to_clamp(&loaded);
    let done = apply::bring_up(&mut session, &loaded, clamp);
    if done.is_err() {
        session.undo_all();
    }
    done
}

/// Whether there is an interface of this name, and whether there is a process. The interface of a process that was
/// killed a moment ago is given time to go.
fn what_is_there(session: &Session<'_>) -> Result<(bool, bool)> {
    let begun = Instant::now();
    loop {
        let found = (session.index()?.is_some(), ControlSocket::find(&session.name).is_some());
        if found != (true, false) || !leaving::may_go(&session.name, begun) {
            return Ok(found);
        }
        std::thread::sleep(leaving::POLL_INTERVAL);
    }
}

fn refuse_what_is_there(session: &Session<'_>) -> Result<()> {
    let name = &session.name;
    let (link, process) = what_is_there(session)?;
    match (link, process) {
        (false, false) => Ok(()),
        (false, true) => Err(Failure::new(format!(
            "`{name}' is up in another network namespace, or was renamed: expected a name that no process serves"
        ))),
        (true, true) if session.journal.is_unfinished() => Err(Failure::new(format!(
            "`{name}' is half up, since `ringtun up` was killed: ringtun down {name} removes what is there"
        ))),
        (true, true) => Err(Failure::new(format!(
            "`{name}' already exists: ringtun reload {name} changes it, ringtun down {name} removes it"
        ))),
        (true, false) if link::is_tunnel(name) => Err(Failure::new(format!(
            "`{name}' already exists, and is none of ringtun's: ip link delete dev {name} removes it"
        ))),
        (true, false) => Err(Failure::new(format!(
            "`{name}' already exists, and is no tunnel: give the configuration's file another name"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clamping_is_asked_for_by_a_comment() {
        for line in ["# ClampMSS = true", "#clampmss=TRUE", "  ## ClampMSS = true"] {
            assert_eq!(is_clamp_line(line.as_bytes()), !line.contains("##"), "{line}");
        }
        for line in ["# ClampMSS = false", "ClampMSS = true", "# about ClampMSS = true", "#", ""] {
            assert!(!is_clamp_line(line.as_bytes()), "{line}");
        }
    }
}
