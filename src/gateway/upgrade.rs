//! A running tunnel goes on in another program, which is started for that.
//!
//! The running process is confined and starts nothing. So whoever asks for the upgrade starts the program, and that asks the running
//! process for its tunnel ([`crate::tunnel::Predecessor`]).

use crate::gateway::executable::{BACKGROUND_CHILD, ProgramFile, READY};
use crate::gateway::successor::ProcessNote;
use crate::gateway::{Failure, client};
use crate::tunnel::Predecessor;
use serde::Serialize;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How long the program may take to have the tunnel. It gives up before by itself.
const LIMIT: Duration = Duration::from_secs(45);
/// How long it is looked whether the running process goes on, after a failure.
const AFTERWARDS: Duration = Duration::from_secs(12);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// What is to go on where.
#[derive(Debug)]
pub struct UpgradeRequest<'a> {
    /// The interface.
    pub interface: &'a str,
    /// The program.
    pub program: &'a Path,
    /// How many workers there are to be. `None` is as many as there are.
    pub workers: Option<u16>,
}

/// A process that has the tunnel, or had it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ServingProcess {
    /// Its number.
    pub pid: u32,
    /// The version of its program.
    pub version: String,
}

/// An upgrade that was done.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Upgraded {
    /// The interface.
    pub interface: String,
    /// Who had the tunnel.
    pub from: ServingProcess,
    /// Who has it now.
    pub to: ServingProcess,
    /// What all of it took, in milliseconds. The tunnel stood still for a small part of that.
    pub took_ms: u64,
}

/// Whether the running process is of the program at `program`, so that there is nothing to upgrade.
///
/// # Errors
///
/// Where the tunnel does not run, or cannot be handed over.
pub fn is_up_to_date(interface: &str, program: &Path) -> Result<bool, Failure> {
    let mut running = Predecessor::ask(interface).map_err(Failure::Tunnel)?;
    let note = ProcessNote::parse(&running.belongings().note).and_then(|note| note.program);
    let file = ProgramFile::at(program);
    let file = file.map_err(Failure::of(format!("cannot look at {}", program.display())))?;
    Ok(note == Some(file))
}

/// Starts the program and waits until it has the tunnel.
///
/// # Errors
///
/// Where the tunnel does not run, or the program does not take it over. Then it goes on where it was, unless the error says
/// otherwise.
pub fn run(request: &UpgradeRequest<'_>) -> Result<Upgraded, Failure> {
    let UpgradeRequest { interface, program, workers } = request;
    let begun = Instant::now();
    let from = serving(interface)?;
    let mut command = Command::new(program);
    command.args(["take-over", interface]);
    if let Some(workers) = workers {
        command.args(["--workers", &workers.to_string()]);
    }
    command
        .env(BACKGROUND_CHILD, "1")
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let child = command.spawn().map_err(Failure::of(format!("cannot start {}", program.display())))?;
    if let Err(why) = until_ready(child) {
        return Err(undone(interface, &from, format!("{} {why}", program.display())));
    }
    let to = serving(interface)?;
    let took_ms = begun.elapsed().as_millis().try_into().unwrap_or(u64::MAX);
    Ok(Upgraded { interface: (*interface).to_owned(), from, to, took_ms })
}

fn serving(interface: &str) -> Result<ServingProcess, Failure> {
    let status = client::open(interface)?.short_status().map_err(Failure::of(interface))?;
    let status = status.ok_or_else(|| {
        Failure::new(format!(
            "{interface} is served by another implementation than ringtun, which cannot go on here"
        ))
    })?;
    Ok(ServingProcess { pid: status.pid, version: status.version })
}

/// How a program failed to take a tunnel over.
enum NotReady {
    Ended(std::process::ExitStatus),
    Silent,
    Unknown(std::io::Error),
}

impl std::fmt::Display for NotReady {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            NotReady::Ended(status) => write!(f, "did not take it over ({status})"),
            NotReady::Silent => write!(f, "did not take it over within {} s, and was ended", LIMIT.as_secs()),
            NotReady::Unknown(error) => write!(f, "cannot be waited for: {error}"),
        }
    }
}

fn until_ready(mut child: Child) -> Result<(), NotReady> {
    let (word, words) = mpsc::channel();
    if let Some(pipe) = child.stdout.take() {
        let listen = move || {
            let mut said = Vec::new();
            // A pipe that cannot be read says nothing, as one that is closed.
            let _ = pipe.take(READY.len() as u64).read_to_end(&mut said);
            let _ = word.send(said);
        };
        std::thread::Builder::new().name("ringtun-word".into()).spawn(listen).map_err(NotReady::Unknown)?;
    }
    match words.recv_timeout(LIMIT) {
        Ok(said) if said == READY => Ok(()),
        Ok(_) => Err(child.wait().map_or_else(NotReady::Unknown, NotReady::Ended)),
        Err(_) => {
            // It may have ended meanwhile.
            let _ = child.kill();
            let _ = child.wait();
            Err(NotReady::Silent)
        }
    }
}

/// The failure, with what became of the tunnel.
fn undone(interface: &str, from: &ServingProcess, why: String) -> Failure {
    let until = Instant::now() + AFTERWARDS;
    loop {
        match serving(interface) {
            Ok(now) if now == *from => {
                return Failure::new(format!(
                    "{why}; {interface} goes on in process {}, with the program that it had (version {})",
                    now.pid, now.version
                ));
            }
            Ok(now) => {
                return Failure::new(format!("{why}; {interface} is served by process {} now", now.pid));
            }
            Err(_) if Instant::now() < until => std::thread::sleep(POLL_INTERVAL),
            Err(failure) => {
                return Failure::new(format!(
                    "{why}; and process {}, which had it, does not answer: {failure:#}",
                    from.pid
                ));
            }
        }
    }
}
