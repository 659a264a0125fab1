//! Which workers may have staged frames for a peer, for whoever makes it possible to send them.

use super::atomic::Ordering::{Relaxed, SeqCst};
use super::atomic::{AtomicU64, fence};

/// A bit for each worker. Where there are more workers than bits, some share one: then a worker may be rung for another's frames.
#[derive(Debug, Default)]
pub(super) struct StagedNotes(AtomicU64);

impl StagedNotes {
    /// Notes that `worker` has staged frames. The worker then looks once more whether it can send them: either it sees what has
    /// just been published, or [`Self::take`] sees the note.
    pub(super) fn leave(&self, worker: u8) {
        self.0.fetch_or(bit(worker), Relaxed);
        fence(SeqCst);
    }

    /// Takes all notes. To be called after something was published that lets workers send.
    pub(super) fn take(&self) -> Noted {
        fence(SeqCst);
        Noted(match self.0.load(Relaxed) {
            0 => 0,
            _ => self.0.swap(0, Relaxed),
        })
    }
}

/// Notes that were taken.
#[derive(Clone, Copy)]
pub(super) struct Noted(u64);

impl Noted {
    /// Whether `worker` may have staged frames.
    pub(super) fn names(self, worker: u8) -> bool {
        self.0 & bit(worker) != 0
    }
}

fn bit(worker: u8) -> u64 {
    1 << (u32::from(worker) % u64::BITS)
}
