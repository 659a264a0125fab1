//! Going to the background as wireguard-go does: the command returns once device and socket exist.
//!
//! There is no fork without exec: the process starts itself again, with [`BACKGROUND_CHILD`] set and standard output as a pipe.
//! The child writes [`READY`] and drops its standard files. Anything else on the pipe means that the child failed, and
//! then its message already stands on standard error.

use crate::gateway::executable::{self, BACKGROUND_CHILD, READY};
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::process::{Command, ExitCode, Stdio};

/// Whether this process is the child, which stays.
pub(super) fn is_child() -> bool {
    std::env::var_os(BACKGROUND_CHILD).is_some()
}

/// Whether WG_PROCESS_FOREGROUND=1 asks for the foreground, as for wireguard-go.
pub(super) fn asks_for_foreground() -> bool {
    std::env::var("WG_PROCESS_FOREGROUND").is_ok_and(|value| value == "1")
}

/// Starts the child with the same arguments, and waits until it is ready or failed.
pub(super) fn spawn_and_wait() -> std::io::Result<ExitCode> {
    let mut child = Command::new(executable::path()?)
        .args(std::env::args_os().skip(1))
        .env(BACKGROUND_CHILD, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut word = Vec::new();
    if let Some(mut pipe) = child.stdout.take() {
        pipe.by_ref().take(READY.len() as u64).read_to_end(&mut word)?;
    }
    if word == READY {
        return Ok(ExitCode::SUCCESS);
    }
    let status = child.wait()?;
    Ok(ExitCode::from(
        status.code().and_then(|code| u8::try_from(code).ok()).filter(|&code| code != 0).unwrap_or(1),
    ))
}

/// Called once device and socket exist. The child tells its parent so, and lets go of terminal and directory. In the
/// foreground nothing changes.
pub(super) fn ready() {
    if !is_child() {
        return;
    }
    // Each of these may fail without harm: the child leads a session already, or its parent was killed meanwhile.
    let _ = rustix::process::setsid();
    let _ = rustix::process::chdir("/");
    let _ = std::io::stdout().write_all(READY);
    let _ = std::io::stdout().flush();
    if let Ok(null) = OpenOptions::new().read(true).write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
    }
}
