//! The waker and the mailboxes of a worker (`src/sys/waker.rs`, `src/io/uring/mod.rs`). Whoever leaves something rings after
//! that, and a worker that was rung does not sleep before it has checked its mailboxes.

use loom::sync::{Arc, Mutex};
use loom::thread;

/// What a worker and whoever rings it share. The kernel locks an eventfd in each call, and the queue is linearizable: both are
/// modelled as values behind a lock.
#[derive(Default)]
struct Shared {
    /// Controls that wait.
    mailbox: Mutex<usize>,
    /// The eventfd: whether it was written to since it was read.
    rung: Mutex<bool>,
}

impl Shared {
    /// Leaves a control and rings.
    fn leave(&self) {
        *self.mailbox.lock().expect("no panic") += 1;
        *self.rung.lock().expect("no panic") = true;
    }

    /// Takes all controls.
    fn take(&self) -> usize {
        std::mem::take(&mut *self.mailbox.lock().expect("no panic"))
    }

    /// Takes the ring back; whether there was one.
    fn clear(&self) -> bool {
        std::mem::take(&mut *self.rung.lock().expect("no panic"))
    }

    fn is_rung(&self) -> bool {
        *self.rung.lock().expect("no panic")
    }
}

/// The worker's side of the rules, each of which can be broken.
#[derive(Clone, Copy)]
struct Rules {
    /// A ring that an enter amid a turn took is remembered until the next wait.
    remembers: bool,
    /// The ring is taken back before the mailboxes are looked at.
    clears_first: bool,
}

/// Runs `turns` turns and then a wait; whether the worker would sleep, having taken how many controls.
fn work(shared: &Shared, turns: usize, rules: Rules) -> (bool, usize) {
    let (mut remembered, mut taken) = (false, 0);
    for turn in 0..turns {
        // The wait before the turn takes what came.
        if turn > 0 && rules.clears_first {
            shared.clear();
        }
        remembered = false;
        taken += shared.take();
        if turn > 0 && !rules.clears_first {
            shared.clear();
        }
        // TUN writes are handed over amid the turn: the enter takes every completion, the waker's too.
        remembered |= shared.clear() && rules.remembers;
    }
    (!remembered && !shared.is_rung(), taken)
}

/// Two controls are left while a worker makes two turns: it never sleeps with one waiting that nobody will ring it for.
fn explore(rules: Rules) {
    loom::model(move || {
        let shared = Arc::new(Shared::default());
        let other = Arc::clone(&shared);
        let sender = thread::spawn(move || {
            for _ in 0..2 {
                other.leave();
            }
        });
        let (sleeps, taken) = work(&shared, 2, rules);
        sender.join().expect("the sender ends");
        let waiting = shared.take();
        assert_eq!(taken + waiting, 2, "none is lost");
        assert!(!sleeps || waiting == 0 || shared.is_rung(), "asleep with {waiting} controls waiting");
    });
}

#[test]
fn a_worker_that_remembers_a_ring_never_sleeps_with_a_control_waiting() {
    explore(Rules { remembers: true, clears_first: true });
}

#[test]
#[should_panic(expected = "asleep with")]
fn a_ring_that_is_forgotten_amid_a_turn_is_slept_through() {
    explore(Rules { remembers: false, clears_first: true });
}

#[test]
#[should_panic(expected = "asleep with")]
fn a_ring_that_is_taken_back_after_the_look_is_slept_through() {
    explore(Rules { remembers: true, clears_first: false });
}
