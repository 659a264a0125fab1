//! One command at a time: for one tunnel, and on one host for the choice of a routing table.
//!
//! A command locks `/run/ringtun/NAME~`; `~` is in no interface's name. The lock ends with the process that holds it.

use super::journal::{DIRECTORY, unwritable};
use super::{Console, Failure, Result, hooks};
use crate::gateway::interrupt::Interrupt;
use rustix::fs::{FlockOperation, flock};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long another command is waited for. A slow `up`, with its hooks and names, usually takes less.
const LOCK_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the last hooks of a tunnel that is gone are waited for: somewhat longer than they are given.
const HOOKS_TIMEOUT: Duration = Duration::from_secs(12);
/// Pause between two attempts to take the lock.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The right of one command to change a tunnel, until it is dropped.
pub(super) struct CommandLock {
    path: PathBuf,
    _lock: File,
}

impl CommandLock {
    /// Waits for the lock of the tunnel `name`, or with an empty name for that of the host's routing tables. `None`
    /// where no lock is needed: in a hook, whose command has the lock already, and where nothing can be written here, so
    /// that nobody else has a lock either.
    pub(super) fn take(
        name: &str,
        console: &mut Console<'_>,
        interrupt: &Interrupt,
    ) -> Result<Option<CommandLock>> {
        if !name.is_empty() && std::env::var(hooks::LOCK_HELD).is_ok_and(|holder| holder == name) {
            return Ok(None);
        }
        let path = Path::new(DIRECTORY).join(format!("{name}~"));
        let begun = Instant::now();
        let mut reported = false;
        loop {
            match try_lock(&path) {
                Ok(Some(lock)) => return Ok(Some(CommandLock { path, _lock: lock })),
                Ok(None) => {}
                Err(error) if error.kind() == ErrorKind::ReadOnlyFilesystem => return Ok(None),
                Err(error) => return Err(unwritable(&path, error)),
            }
            interrupt.check()?;
            let holder = holder(&path);
            if begun.elapsed() > LOCK_TIMEOUT {
                return Err(Failure::new(format!(
                    "another ringtun (process {holder}) has been at work on `{name}' for a minute: wait for it, or end it"
                )));
            }
            if !reported && !name.is_empty() {
                console.remark(&format!(
                    "waiting for another ringtun (process {holder}), which is at work on {name}"
                ));
                reported = true;
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }
}

/// What the process holds that runs the peers' hooks of a tunnel, until it is dropped: `/run/ringtun/NAME~hooks`.
pub(in crate::gateway) struct HooksLock {
    path: PathBuf,
    _lock: File,
}

impl HooksLock {
    fn path(name: &str) -> PathBuf {
        Path::new(DIRECTORY).join(format!("{name}~hooks"))
    }

    /// Takes the lock of the tunnel `name`. An earlier tunnel of this name may have hooks that still run, which are waited for.
    pub(in crate::gateway) fn take(name: &str) -> Result<HooksLock> {
        let path = HooksLock::path(name);
        let begun = Instant::now();
        loop {
            if let Some(lock) = try_lock(&path).map_err(|error| unwritable(&path, error))? {
                return Ok(HooksLock { path, _lock: lock });
            }
            if begun.elapsed() > HOOKS_TIMEOUT {
                let holder = holder(&path);
                return Err(Failure::new(format!("process {holder} runs the hooks of `{name}' already")));
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Whether a process runs the hooks of the tunnel `name`.
    pub(super) fn is_held(name: &str) -> bool {
        let Ok(file) = File::open(HooksLock::path(name)) else { return false };
        matches!(flock(&file, FlockOperation::NonBlockingLockExclusive), Err(rustix::io::Errno::WOULDBLOCK))
    }

    /// Waits until nobody runs the hooks of the tunnel `name`. False where that takes too long.
    pub(super) fn wait_for_end(name: &str) -> bool {
        let begun = Instant::now();
        while HooksLock::is_held(name) {
            if begun.elapsed() > HOOKS_TIMEOUT {
                return false;
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        true
    }
}

impl Drop for HooksLock {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path); // while it is locked, so that nobody else's goes
    }
}

impl Drop for CommandLock {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path); // while it is locked, so that nobody else's goes
    }
}

/// Tries once to lock the file. `None` where another process has it.
fn try_lock(path: &Path) -> std::io::Result<Option<File>> {
    std::fs::create_dir_all(DIRECTORY)?;
    let mut file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
        locked => locked?,
    }
    // The holder may have removed the file between the two steps. Then this lock is on nothing.
    let stands =
        std::fs::metadata(path).is_ok_and(|there| file.metadata().is_ok_and(|own| own.ino() == there.ino()));
    if !stands {
        return Ok(None);
    }
    // Those who wait are told who has it. Where /run is full they are not, but the lock holds all the same.
    let _ = file.set_len(0).and_then(|()| file.write_all(std::process::id().to_string().as_bytes()));
    Ok(Some(file))
}

fn holder(path: &Path) -> String {
    let mut text = String::new();
    let read = File::open(path).and_then(|mut file| file.read_to_string(&mut text));
    if read.is_ok() && !text.is_empty() { text } else { "unknown".into() }
}
