//! Frames that wait for a session (`src/dataplane/notes.rs`, which is explored itself). A worker that stages a frame notes that and
//! looks once more; whoever publishes a session takes the notes after that. So a frame is sent, or its worker is rung.

use crate::notes::StagedNotes;
use loom::sync::atomic::{AtomicBool, Ordering::Relaxed};
use loom::sync::{Arc, Mutex};
use loom::thread;

/// What they share. The session promises as little as a flag can: the order that counts is that of the notes.
struct Shared {
    notes: StagedNotes,
    session: AtomicBool,
    rung: Vec<Mutex<bool>>,
}

impl Shared {
    fn has_session(&self) -> bool {
        self.session.load(Relaxed)
    }

    /// What a worker does with a frame, and with a ring. Whether it still has the frame.
    fn stage(&self, worker: u8, notes_first: bool) -> bool {
        if self.has_session() {
            return false;
        }
        if !notes_first && self.has_session() {
            return false;
        }
        self.notes.leave(worker);
        !notes_first || !self.has_session()
    }

    /// A session is published, and those are rung who wait for it.
    fn publish(&self, workers: u8) {
        self.session.store(true, Relaxed);
        let noted = self.notes.take();
        for worker in (0..workers).filter(|&worker| noted.names(worker)) {
            *self.rung[usize::from(worker)].lock().expect("no panic") = true;
        }
    }
}

/// `workers` of them stage a frame while a session is published, by the owner and by the slow path.
fn explore(workers: u8, publishers: usize, notes_first: bool) {
    loom::model(move || {
        let rung = (0..workers).map(|_| Mutex::default()).collect();
        let shared =
            Arc::new(Shared { notes: StagedNotes::default(), session: AtomicBool::new(false), rung });
        let stagers: Vec<_> = (0..workers)
            .map(|worker| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || shared.stage(worker, notes_first))
            })
            .collect();
        let others: Vec<_> = (1..publishers)
            .map(|_| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || shared.publish(workers))
            })
            .collect();
        shared.publish(workers);
        others.into_iter().for_each(|other| other.join().expect("it ends"));
        for (worker, stager) in stagers.into_iter().enumerate() {
            let waits = stager.join().expect("it ends");
            let rung = *shared.rung[worker].lock().expect("no panic");
            assert!(!waits || rung, "the frame of worker {worker} waits, and nobody rings it");
        }
    });
}

#[test]
fn a_frame_is_sent_or_its_worker_is_rung() {
    explore(1, 1, true);
}

#[test]
fn frames_of_two_workers_are_sent_or_they_are_rung() {
    explore(2, 1, true);
}

#[test]
fn a_frame_is_sent_or_its_worker_is_rung_whoever_of_two_publishes() {
    explore(1, 2, true);
}

#[test]
#[should_panic(expected = "nobody rings it")]
fn a_worker_that_looks_before_it_notes_keeps_its_frame() {
    explore(1, 1, false);
}
