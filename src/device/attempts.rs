//! Attempts to bind a port that somebody else has. They are repeated with pauses that grow.

use crate::sys::error::errno;
use crate::time::Instant;
use std::io::Error;
use std::time::Duration;

/// The first pause. It is short, since this device's own sockets on the same port may still be closing in the
/// workers.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
/// The longest pause. An attempt costs a system call or two, and nobody waits longer for a port that is free.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long this device's own sockets may take to close before "in use" is believed.
pub(super) const PORT_RELEASE: Duration = Duration::from_millis(500);

/// The attempts to bind since the interface went up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Attempts {
    since: Instant,
    pause: Duration,
    /// When the next attempt is due.
    pub(super) next: Instant,
    /// The error number of the last attempt.
    pub(super) errno: i32,
    /// The error that was logged last.
    logged: Option<i32>,
}

impl Attempts {
    pub(super) fn new(now: Instant) -> Attempts {
        Attempts { since: now, pause: FIRST_PAUSE, next: now, errno: 0, logged: None }
    }

    /// Notes that an attempt failed. An error is logged once; another error is logged again. Returns whether it was.
    pub(super) fn failed(&mut self, now: Instant, error: &Error) -> bool {
        self.errno = errno(error).unwrap_or(libc::EIO);
        self.next = now + self.pause;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        let may_be_ours = self.errno == libc::EADDRINUSE && now.since(self.since) < PORT_RELEASE;
        let is_news = !may_be_ours && self.logged != Some(self.errno);
        if is_news {
            self.logged = Some(self.errno);
            log::error!("{error}; trying again until it can be bound");
        }
        is_news
    }

    /// Notes that an attempt succeeded.
    pub(super) fn succeeded(&self, port: u16) {
        if self.logged.is_some() {
            log::info!("UDP port {port} is bound now");
        }
    }
}
