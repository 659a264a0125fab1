//! The counter of the messages that are sent with one key, by whatever thread.

use super::atomic::{AtomicU64, Ordering::Relaxed};

/// Hands out counters, none of them twice. It has a cache line of its own, so that workers which reserve counters leave the key in
/// the caches of the others.
#[derive(Default)]
#[repr(align(64))]
pub(super) struct SendCounter {
    next: AtomicU64,
}

impl SendCounter {
    /// A counter of which all below `next` were handed out already.
    pub(super) fn from(next: u64) -> SendCounter {
        SendCounter { next: AtomicU64::new(next) }
    }

    /// Reserves `n` consecutive counters below `limit` and returns the first. `None` where there are no more so many.
    pub(super) fn reserve(&self, n: u64, limit: u64) -> Option<u64> {
        // A compare-and-swap, not an addition that is checked afterwards: callers who are refused leave no trace, so no
        // number of them can carry the counter past the limit and around. Relaxed, as only the counter itself matters.
        let advance = |first: u64| first.checked_add(n).filter(|next| *next <= limit);
        self.next.fetch_update(Relaxed, Relaxed, advance).ok()
    }

    /// The counter that is handed out next.
    pub(super) fn next(&self) -> u64 {
        self.next.load(Relaxed)
    }
}
