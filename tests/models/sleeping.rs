//! Who sleeps while trains wait (`src/dataplane/sleepers.rs`, which is explored itself). An owner leaves its trains before it rings, and
//! a worker notes that it is about to sleep before it looks for some: so either it sees them, or it is rung.

use crate::sleepers::Sleepers;
use loom::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use loom::sync::{Arc, Mutex};
use loom::thread;

/// What workers share. The queue is modelled by the number of its trains, and promises as little as a number can: the order
/// that counts is that of [`Sleepers`]. The kernel locks an eventfd in each call.
struct Shared {
    sleepers: Sleepers,
    trains: AtomicUsize,
    rung: Vec<Mutex<bool>>,
}

impl Shared {
    fn new(workers: usize) -> Shared {
        let rung = (0..workers).map(|_| Mutex::default()).collect();
        Shared { sleepers: Sleepers::new(workers), trains: AtomicUsize::new(0), rung }
    }

    /// What worker 0 does with `count` trains that arrived: all but one are for others to open.
    fn share_out(&self, count: usize) {
        self.trains.fetch_add(count, Relaxed);
        let waiting = self.trains.load(Relaxed).saturating_sub(1);
        self.sleepers.ring(0, waiting, |number| *self.rung[number].lock().expect("no panic") = true);
    }

    fn may_sleep(&self, worker: u8) -> bool {
        self.sleepers.may_sleep(worker, || self.trains.load(Relaxed) > 0)
    }

    /// Takes the ring back; whether there was one.
    fn clear(&self, worker: u8) -> bool {
        std::mem::take(&mut *self.rung[usize::from(worker)].lock().expect("no panic"))
    }
}

/// Each of `workers - 1` workers goes to sleep once or, where something else wakes it, twice, while worker 0 shares out enough for
/// all. None sleeps through it.
fn explore(workers: u8, naps: usize) {
    loom::model(move || {
        let shared = Arc::new(Shared::new(workers.into()));
        let helpers: Vec<_> = (1..workers)
            .map(|worker| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    for _ in 1..naps {
                        // Something else wakes it, with or without a ring of ours.
                        shared.may_sleep(worker);
                        shared.clear(worker);
                        shared.sleepers.awake(worker);
                    }
                    shared.may_sleep(worker)
                })
            })
            .collect();
        shared.share_out(workers.into());
        for (worker, helper) in (1..).zip(helpers) {
            let sleeps = helper.join().expect("the helper ends");
            assert!(!sleeps || shared.clear(worker), "worker {worker} sleeps through it");
        }
    });
}

#[test]
fn a_worker_sees_a_train_or_is_rung() {
    explore(2, 1);
}

#[test]
fn a_worker_that_something_else_woke_sees_a_train_or_is_rung() {
    explore(2, 2);
}

#[test]
fn two_workers_see_a_train_or_are_rung() {
    explore(3, 1);
}

#[test]
fn nobody_is_rung_who_is_awake() {
    loom::model(|| {
        let shared = Arc::new(Shared::new(2));
        assert!(shared.may_sleep(1));
        shared.sleepers.awake(1);
        shared.share_out(2);
        assert!(!shared.clear(1));
        assert!(!shared.may_sleep(1), "there is something to do");
        shared.share_out(2);
        assert!(!shared.clear(1), "and so it did not sleep");
    });
}
