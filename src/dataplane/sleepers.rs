//! Which workers sleep, for whoever has work that they could do.

use super::atomic::Ordering::{Relaxed, SeqCst};
use super::atomic::{AtomicBool, fence};

/// The notes of all workers. A worker that is neither noted to sleep nor rung looks for work before it sleeps.
pub(super) struct Sleepers {
    /// Workers that sleep, or are about to, and may be rung.
    asleep: Box<[AtomicBool]>,
}

impl Sleepers {
    /// The notes of so many workers, all awake.
    pub(super) fn new(workers: usize) -> Sleepers {
        Sleepers { asleep: (0..workers).map(|_| AtomicBool::new(false)).collect() }
    }

    /// Rings sleeping workers, one for each of `waiting` pieces of work that are there to be taken already.
    pub(super) fn ring(&self, caller: u8, mut waiting: usize, mut wake: impl FnMut(usize)) {
        if waiting == 0 {
            return;
        }
        // Pairs with the fence of `may_sleep`: either the sleeper sees the work, or it is seen to sleep.
        fence(SeqCst);
        for (number, asleep) in
            self.asleep.iter().enumerate().filter(|(number, _)| *number != usize::from(caller))
        {
            if asleep.load(Relaxed) && asleep.swap(false, Relaxed) {
                wake(number);
                waiting -= 1;
                if waiting == 0 {
                    return;
                }
            }
        }
    }

    /// Notes that a worker is about to sleep. False where there is work, for which it stays awake.
    pub(super) fn may_sleep(&self, worker: u8, has_work: impl FnOnce() -> bool) -> bool {
        let asleep = &self.asleep[usize::from(worker)];
        asleep.store(true, Relaxed);
        fence(SeqCst);
        let may = !has_work();
        if !may {
            asleep.store(false, Relaxed);
        }
        may
    }

    /// Notes that a worker is awake. It writes only where the worker was noted to sleep: the notes of all share a cache line.
    pub(super) fn awake(&self, worker: u8) {
        let asleep = &self.asleep[usize::from(worker)];
        if asleep.load(Relaxed) {
            asleep.store(false, Relaxed);
        }
    }
}
