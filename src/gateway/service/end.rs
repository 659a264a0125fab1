//! How the tunnel's process ended, whether it is a child of this one or not: one that took the tunnel over is none.

use crate::sys::process;
use rustix::process::{WaitOptions, wait};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};
use tokio::io::unix::AsyncFd;
use tokio::time::sleep;

/// How long after the end of a process the kernel may take to say how it ended: a socket is closed before.
const LATE: Duration = Duration::from_secs(1);
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// What became of the tunnel's process.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    /// It ended as it should.
    Ended,
    /// It did not; the words say how it ended.
    Crashed(String),
}

impl From<ExitStatus> for Fate {
    fn from(status: ExitStatus) -> Fate {
        match (status.signal(), status.code()) {
            (Some(number), _) => Fate::Crashed(format!("was killed by signal {number}{}", meaning(number))),
            (None, Some(0)) => Fate::Ended,
            (None, code) => Fate::Crashed(format!("ended with exit status {}", code.unwrap_or_default())),
        }
    }
}

/// What the signals that end programs are called, and what is behind them.
fn meaning(signal: i32) -> &'static str {
    match signal {
        4 => " (SIGILL)",
        6 => " (SIGABRT: it panicked, and said why in the log)",
        7 => " (SIGBUS)",
        9 => " (SIGKILL: somebody did that, or the kernel for want of memory)",
        11 => " (SIGSEGV)",
        31 => " (SIGSYS: it made a system call that it never makes)",
        _ => "",
    }
}

/// Takes note of the children that ended, all of them. Returns what became of those that are the tunnel's process; of several, the
/// crash.
pub(super) fn reap(is_tunnel: impl Fn(u32) -> bool) -> Option<Fate> {
    let ended = std::iter::from_fn(|| wait(WaitOptions::NOHANG).ok().flatten());
    worst(ended.filter_map(|(pid, status)| {
        let is_tunnel = is_tunnel(pid.as_raw_nonzero().get().cast_unsigned());
        is_tunnel.then(|| ExitStatus::from_raw(status.as_raw()).into())
    }))
}

/// The last crash, or else that something ended.
fn worst(fates: impl Iterator<Item = Fate>) -> Option<Fate> {
    fates.reduce(|before, now| if now == Fate::Ended { before } else { now })
}

/// What became of a tunnel's process that ended before its number was known: if one of the children crashed, it is that.
pub(super) async fn fate_of_unknown() -> Option<Fate> {
    let until = Instant::now() + LATE;
    let mut found = None;
    while Instant::now() < until {
        found = worst(found.into_iter().chain(reap(|_| true)));
        if let Some(Fate::Crashed(_)) = found {
            break;
        }
        sleep(LOOK_INTERVAL).await;
    }
    found
}

/// The tunnel's process.
pub(super) struct Watched {
    pub(super) pid: u32,
    /// Readable once it has ended. `None` where the kernel has no such file.
    end: Option<AsyncFd<OwnedFd>>,
}

impl Watched {
    pub(super) fn new(pid: u32) -> Watched {
        Watched { pid, end: process::end_of(pid).ok() }
    }

    /// Waits for the end of the process. Where the kernel has no such word, this never ends.
    pub(super) async fn ended(&self) {
        match &self.end {
            Some(end) => drop(end.readable().await), // what is wrong with it, the next look finds
            None => std::future::pending().await,
        }
    }

    /// What became of the process, if it is no child and has ended. `None` where the kernel does not say.
    pub(super) async fn fate(&self) -> Option<Fate> {
        let end = self.end.as_ref()?.get_ref();
        let until = Instant::now() + LATE;
        loop {
            match process::exit_status(self.pid, end.as_fd()) {
                Ok(status) => return Some(status.into()),
                // Its parent may just be hearing of it.
                Err(_) if Instant::now() < until => sleep(LOOK_INTERVAL).await,
                Err(_) => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_is_not_hidden_by_what_else_ended() {
        let crash = Fate::from(ExitStatus::from_raw(6));
        assert!(matches!(&crash, Fate::Crashed(how) if how.contains("signal 6 (SIGABRT")));
        assert_eq!(
            Fate::from(ExitStatus::from_raw(2 << 8)),
            Fate::Crashed("ended with exit status 2".into())
        );
        let both = [Fate::from(ExitStatus::from_raw(0)), crash.clone()];
        assert_eq!(worst(both.clone().into_iter()), Some(crash.clone()));
        assert_eq!(worst(both.into_iter().rev()), Some(crash));
        assert_eq!(worst([Fate::Ended, Fate::Ended].into_iter()), Some(Fate::Ended));
        assert_eq!(worst(std::iter::empty()), None);
    }
}
