//! One hook: a command with a limit on its time, whose output goes to the log.

use std::io::{ErrorKind, PipeReader, Read, Result, pipe};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long a hook may take.
const HOOK_LIMIT: Duration = Duration::from_secs(60);
/// Pause between two looks at a hook that runs.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Most bytes of a hook's output that are logged.
const MOST_OUTPUT: usize = 2048;

/// What became of a hook.
#[derive(Debug)]
pub(super) struct HookOutcome {
    /// How it ended. `None` where it was ended, as it took too long or the tunnel is gone.
    pub(super) status: Option<ExitStatus>,
    /// What it said, or the beginning of that.
    pub(super) said: String,
}

/// Runs a command until its end, its time limit, or until `ended` says that there is no more time. All that it started ends
/// with it then.
pub(super) fn run(mut command: Command, ended: &AtomicBool) -> Result<HookOutcome> {
    let (mut reader, writer) = pipe()?;
    rustix::io::ioctl_fionbio(&reader, true)?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer).process_group(0);
    let mut child = command.spawn()?;
    // It holds this end of the pipe, too.
    drop(command);
    let mut said = Vec::new();
    let until = Instant::now() + HOOK_LIMIT;
    let status = loop {
        read_what_is_there(&mut reader, &mut said);
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if Instant::now() > until || ended.load(Ordering::Relaxed) {
            end(&mut child);
            break None;
        }
        std::thread::sleep(POLL_INTERVAL);
    };
    read_what_is_there(&mut reader, &mut said);
    Ok(HookOutcome { status, said: String::from_utf8_lossy(&said).trim_end().to_owned() })
}

/// Reads until nothing more waits, so that a hook never waits for its reader. What is too much is dropped.
fn read_what_is_there(reader: &mut PipeReader, said: &mut Vec<u8>) {
    let mut piece = [0; 4096];
    loop {
        match reader.read(&mut piece) {
            Ok(0) => return,
            Ok(count) => {
                let room = MOST_OUTPUT - said.len();
                said.extend_from_slice(piece.get(..count.min(room)).unwrap_or_default());
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// Ends the command and what it started, which is in its process group.
fn end(child: &mut Child) {
    // Either may be gone already.
    let _ = rustix::process::kill_process_group(
        rustix::process::Pid::from_child(child),
        rustix::process::Signal::KILL,
    );
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn what_a_hook_says_on_either_output_is_kept_and_bounded() {
        let ended = AtomicBool::new(false);
        let outcome = run(sh("echo one; echo two >&2; exit 3"), &ended).unwrap();
        assert_eq!((outcome.status.and_then(|status| status.code()), &*outcome.said), (Some(3), "one\ntwo"));
        let outcome = run(sh("head -c 300000 /dev/zero | tr '\\0' x"), &ended).unwrap();
        assert!(outcome.status.is_some_and(|status| status.success()));
        assert_eq!(outcome.said.len(), MOST_OUTPUT);
    }

    #[test]
    fn a_hook_that_outlives_its_tunnel_is_ended_with_all_that_it_started() {
        let ended = AtomicBool::new(true);
        let begun = Instant::now();
        let outcome = run(sh("sleep 600 & echo $!; wait"), &ended).unwrap();
        assert!(outcome.status.is_none() && begun.elapsed() < HOOK_LIMIT);
        // Its parent is ended too soon to say this, on a busy machine.
        if let Ok(pid) = outcome.said.parse::<u32>() {
            let gone = || {
                let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
                stat.map_or(true, |stat| stat.contains(") Z "))
            };
            while !gone() && begun.elapsed() < HOOK_LIMIT {
                std::thread::sleep(POLL_INTERVAL);
            }
            assert!(gone());
        }
    }
}
