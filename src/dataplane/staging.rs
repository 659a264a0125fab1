//! How much all workers of a device together stage for peers without a session.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Most bytes that one device stages: 128 super-packets of 64 KiB, or 5,900 packets of 1420 bytes.
pub const MAX_STAGED_BYTES: usize = 8 << 20;
/// The part of a memory group's limit that staging takes at most, as a divisor.
const PART_OF_GROUP: u64 = 16;
/// Bytes that are staged whatever the memory group allows: a few super-packets.
const LEAST: usize = 256 << 10;
/// The part of the device's room that one peer's frames in one worker take at most, as a divisor. So a peer that does
/// not answer leaves room to others.
const PART_OF_PEER: usize = 4;

/// How many bytes are staged now, and how many there may be.
#[derive(Debug)]
pub struct Staging {
    limit: usize,
    used: AtomicUsize,
}

impl Staging {
    /// Room for [`MAX_STAGED_BYTES`], or less where the memory group that the process is in may use no more than `group` bytes.
    pub fn within(group: Option<u64>) -> Staging {
        let part =
            group.map_or(usize::MAX, |bytes| usize::try_from(bytes / PART_OF_GROUP).unwrap_or(usize::MAX));
        Staging { limit: part.clamp(LEAST, MAX_STAGED_BYTES), used: AtomicUsize::new(0) }
    }

    /// Bytes that one peer may have staged in one worker.
    pub fn share(&self) -> usize {
        self.limit / PART_OF_PEER
    }

    /// Takes room for `bytes`. False where there is not that much.
    pub fn take(&self, bytes: usize) -> bool {
        let taken = |used: usize| used.checked_add(bytes).filter(|&used| used <= self.limit);
        self.used.fetch_update(Relaxed, Relaxed, taken).is_ok()
    }

    /// Gives back room of `bytes` that was taken.
    pub fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Relaxed);
    }

    /// Bytes staged now.
    #[cfg(feature = "internals")]
    pub fn used(&self) -> usize {
        self.used.load(Relaxed)
    }
}

impl Default for Staging {
    fn default() -> Staging {
        Staging::within(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memory_group_lowers_the_bound_and_never_to_nothing() {
        let limit = |group| Staging::within(group).limit;
        assert_eq!(limit(None), MAX_STAGED_BYTES);
        assert_eq!(limit(Some(32 << 20)), 2 << 20);
        assert_eq!(limit(Some(0)), LEAST);
        assert_eq!(limit(Some(u64::MAX)), MAX_STAGED_BYTES);
    }

    #[test]
    fn workers_that_stage_at_once_never_have_more_than_the_bound() {
        let staging = Staging::within(Some(0));
        let frame = 1000;
        let taken: usize = std::thread::scope(|scope| {
            let take = || (0..LEAST / frame).filter(|_| staging.take(frame)).count();
            let workers = [(); 4].map(|()| scope.spawn(take));
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        assert_eq!(taken, LEAST / frame);
        assert_eq!(staging.used(), taken * frame);
        staging.give_back(taken * frame);
        assert!(staging.take(LEAST) && !staging.take(1));
    }
}
