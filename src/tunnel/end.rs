//! The end of a tunnel, which any thread may wait for.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The way in which a tunnel ended.
#[derive(Clone, Debug)]
pub(super) enum Outcome {
    /// It was stopped, or its configuration socket was removed.
    Stopped,
    /// It goes on in the process of this number.
    HandedOver(u32),
    /// Its interface was deleted.
    Deleted(Arc<io::Error>),
    /// Something else happened.
    Failed(Arc<io::Error>),
}

/// Keeps the outcome of a tunnel, once there is one.
#[derive(Default, Debug)]
pub(super) struct End {
    outcome: Mutex<Option<Outcome>>,
    ended: Condvar,
}

/// Held by the tunnel's thread. If that panics, dropping this ends the tunnel, too.
pub(super) struct Ending(pub(super) Arc<End>);

impl End {
    /// Sets the outcome, unless there is one already.
    fn set(&self, outcome: Outcome) {
        self.lock().get_or_insert(outcome);
        self.ended.notify_all();
    }

    /// Waits for the outcome, for no longer than `limit`. `None` where the tunnel still runs.
    pub(super) fn wait(&self, limit: Option<Duration>) -> Option<Outcome> {
        let until = limit.map(|limit| Instant::now() + limit);
        let mut outcome = self.lock();
        while outcome.is_none() {
            outcome = match until.map(|until| until.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => return None,
                Some(left) => {
                    self.ended.wait_timeout(outcome, left).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.ended.wait(outcome).unwrap_or_else(PoisonError::into_inner),
            };
        }
        outcome.clone()
    }

    /// Locks the outcome. Nothing that holds the lock can panic half way, so it is good even where it is poisoned.
    fn lock(&self) -> MutexGuard<'_, Option<Outcome>> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ending {
    pub(super) fn with(self, outcome: Outcome) {
        self.0.set(outcome);
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.set(Outcome::Failed(Arc::new(io::Error::other("its thread panicked"))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_who_wait_hear_of_the_end_and_a_panic_is_one() {
        let end = Arc::new(End::default());
        assert!(end.wait(Some(Duration::ZERO)).is_none());
        let waiting = [(); 2].map(|()| {
            std::thread::spawn({
                let end = Arc::clone(&end);
                move || end.wait(None)
            })
        });
        let ending = Ending(Arc::clone(&end));
        std::thread::spawn(move || {
            let _ending = ending;
            panic!("on purpose");
        })
        .join()
        .unwrap_err();
        for waiter in waiting {
            assert!(matches!(waiter.join().unwrap(), Some(Outcome::Failed(_))));
        }
        Ending(Arc::clone(&end)).with(Outcome::Stopped);
        assert!(matches!(end.wait(Some(Duration::ZERO)), Some(Outcome::Failed(_))), "the first stays");
    }
}
