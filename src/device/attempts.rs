//! Attempts to bind, while somebody else has the port: again and again, with pauses that grow.

use crate::sys::error::errno;
use crate::time::Instant;
use std::io::Error;
use std::time::Duration;

/// Our own sockets on the same port may still be closing in the workers, so that the first pauses are short.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
/// An attempt costs a system call or two; nobody waits longer for a port that is free.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long our own sockets may take to close before "in use" is believed.
pub(super) const PORT_RELEASE: Duration = Duration::from_millis(500);

/// What was tried since the interface went up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Attempts {
    since: Instant,
    pause: Duration,
    /// When the next one is due.
    pub(super) next: Instant,
    /// Why the last one failed.
    pub(super) errno: i32,
    /// The error that was logged last.
    logged: Option<i32>,
}

impl Attempts {
    pub(super) fn new(now: Instant) -> Attempts {
        Attempts { since: now, pause: FIRST_PAUSE, next: now, errno: 0, logged: None }
    }

    /// One failed. The error is logged once, and another error again.
    pub(super) fn failed(&mut self, now: Instant, error: &Error) {
        self.errno = errno(error).unwrap_or(libc::EIO);
        self.next = now + self.pause;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        let may_be_ours = self.errno == libc::EADDRINUSE && now.since(self.since) < PORT_RELEASE;
        if !may_be_ours && self.logged != Some(self.errno) {
            self.logged = Some(self.errno);
            log::error!("{error}; trying again until it can be bound");
        }
    }

    /// One succeeded.
    pub(super) fn succeeded(&self, port: u16) {
        if self.logged.is_some() {
            log::info!("UDP port {port} is bound now");
        }
    }
}
