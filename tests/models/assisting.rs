//! Trains that workers do for each other (`src/dataplane/assist.rs`, `src/dataplane/worker/reorder.rs`): each is done once by
//! somebody, returns to its owner, and is released in order, and a session ends after that.

use loom::sync::{Arc, Mutex};
use loom::thread;
use std::collections::VecDeque;

/// A train: its owner, and its place in that one's order. A worker is two owners, of the trains that it opens and of those that it
/// seals.
type Train = (usize, usize);

/// The rules, each of which can be broken.
#[derive(Clone, Copy)]
struct Rules {
    /// A train that finds no room is done by its owner at once.
    does_itself: bool,
    /// An owner has no more trains under way than there is room for to return.
    is_bounded: bool,
    /// A train that returns goes to its place, whenever it comes.
    keeps_places: bool,
    /// All trains are released before the owner goes on.
    drains: bool,
    /// It goes on to end their session.
    ends: bool,
}

const ALL: Rules =
    Rules { does_itself: true, is_bounded: true, keeps_places: true, drains: true, ends: true };
const LASTING: Rules = Rules { drains: false, ends: false, ..ALL };

/// The queues. Those of the program are linearizable: they are modelled as values behind a lock.
struct Shared {
    jobs: Mutex<VecDeque<Train>>,
    done: Vec<Mutex<VecDeque<Train>>>,
    /// Trains that may wait to be begun.
    room: usize,
    /// Trains of one owner that may be under way.
    ahead: usize,
}

impl Shared {
    /// False where there is no room.
    fn give(&self, train: Train) -> bool {
        let mut jobs = self.jobs.lock().expect("no panic");
        let has_room = jobs.len() < self.room;
        if has_room {
            jobs.push_back(train);
        }
        has_room
    }

    fn take(&self) -> Option<Train> {
        self.jobs.lock().expect("no panic").pop_front()
    }

    /// Does one train, of whatever owner. False where none is left to begin.
    fn work_once(&self) -> bool {
        self.take().map(|train| self.finish(train)).is_some()
    }

    /// Returns a train that was done to its owner. Where there is no room, it is lost.
    fn finish(&self, train: Train) {
        let mut done = self.done[train.0].lock().expect("no panic");
        if done.len() < self.ahead {
            done.push_back(train);
        }
    }
}

/// One owner, and what it released.
struct Owner {
    shared: Arc<Shared>,
    rules: Rules,
    id: usize,
    first: usize,
    waiting: VecDeque<(Train, bool)>,
    released: Vec<Train>,
    has_session: bool,
}

impl Owner {
    fn new(shared: &Arc<Shared>, rules: Rules, id: usize) -> Owner {
        let shared = Arc::clone(shared);
        Owner {
            shared,
            rules,
            id,
            first: 0,
            waiting: VecDeque::new(),
            released: Vec::new(),
            has_session: true,
        }
    }

    fn arrives(&mut self) {
        while self.rules.is_bounded && self.waiting.len() >= self.shared.ahead {
            self.linger();
        }
        let train = (self.id, self.first + self.waiting.len());
        let is_given = self.shared.give(train);
        self.waiting.push_back((train, !is_given && self.rules.does_itself));
    }

    fn put(&mut self, train: Train) {
        let at = if self.rules.keeps_places { train.1 - self.first } else { 0 };
        let place = self.waiting.get_mut(at).expect("a train that waits");
        *place = (train, true);
    }

    fn release(&mut self) {
        loop {
            while let Some(train) = { self.shared.done[self.id].lock().expect("no panic").pop_front() } {
                self.put(train);
            }
            match self.waiting.front().copied() {
                Some((train, true)) => {
                    assert!(self.has_session, "released after its session ended");
                    self.waiting.pop_front();
                    self.released.push(train);
                    self.first += 1;
                }
                Some(_) if self.shared.work_once() => {}
                _ => return,
            }
        }
    }

    fn linger(&mut self) {
        self.release();
        thread::yield_now();
    }

    /// `count` trains arrive, then the session ends.
    fn live(mut self, count: usize) -> Owner {
        for _ in 0..count {
            self.arrives();
        }
        self.release();
        while self.rules.drains && !self.waiting.is_empty() {
            self.linger();
        }
        self.has_session = !self.rules.ends;
        self
    }
}

/// Owners with so many trains each, the first on this thread, and all of them at work for the others.
fn explore(rules: Rules, trains: &'static [usize], room: usize, ahead: usize) {
    loom::model(move || {
        let done = trains.iter().map(|_| Mutex::default()).collect();
        let shared = Arc::new(Shared { jobs: Mutex::default(), done, room, ahead });
        let others: Vec<_> = (1..trains.len())
            .map(|id| {
                let owner = Owner::new(&shared, rules, id);
                thread::spawn(move || {
                    if trains[id] > 0 {
                        return owner.live(trains[id]);
                    }
                    owner.shared.work_once();
                    owner
                })
            })
            .collect();
        let mut owners = vec![Owner::new(&shared, rules, 0).live(trains[0])];
        owners.extend(others.into_iter().map(|other| other.join().expect("it ends")));
        for mut owner in owners {
            // What is released only now comes too late for a session that has ended.
            owner.release();
            let expected: Vec<Train> = (0..trains[owner.id]).map(|number| (owner.id, number)).collect();
            assert_eq!(owner.released, expected, "each once and in order");
        }
    });
}

#[test]
fn trains_that_another_worker_does_are_released_in_order_before_the_session_ends() {
    explore(ALL, &[3, 0], 3, 3);
}

#[test]
fn two_helpers_bring_trains_back_in_any_order() {
    explore(LASTING, &[2, 0, 0], 2, 2);
}

#[test]
fn owners_do_each_others_trains() {
    explore(ALL, &[2, 1], 3, 2);
}

#[test]
fn a_worker_that_waits_with_what_it_received_sends_and_both_are_released_in_order() {
    loom::model(|| {
        let done = [(); 2].map(|()| Mutex::default()).into();
        let shared = Arc::new(Shared { jobs: Mutex::default(), done, room: 3, ahead: 2 });
        let helper = Arc::clone(&shared);
        let helper = thread::spawn(move || helper.work_once());
        let [mut opened, mut sealed] = [0, 1].map(|kind| Owner::new(&shared, ALL, kind));
        for owner in [&mut opened, &mut sealed] {
            owner.arrives();
            owner.arrives();
            owner.release();
        }
        while !opened.waiting.is_empty() || !sealed.waiting.is_empty() {
            opened.linger();
            sealed.linger();
        }
        helper.join().expect("it ends");
        assert_eq!(opened.released, [(0, 0), (0, 1)]);
        assert_eq!(sealed.released, [(1, 0), (1, 1)]);
    });
}

#[test]
fn an_owner_that_finds_the_queue_full_does_the_train_itself() {
    explore(ALL, &[3, 0], 1, 3);
}

#[test]
fn an_owner_with_too_many_under_way_waits_for_the_oldest() {
    explore(ALL, &[3, 0], 3, 1);
}

#[test]
#[should_panic(expected = "each once and in order")]
fn a_train_that_finds_no_room_and_is_not_done_is_lost() {
    explore(Rules { does_itself: false, ..LASTING }, &[3, 0], 1, 3);
}

#[test]
#[should_panic(expected = "each once and in order")]
fn with_more_under_way_than_can_return_one_is_lost() {
    explore(Rules { is_bounded: false, ..LASTING }, &[2, 0, 0], 2, 1);
}

#[test]
#[should_panic(expected = "each once and in order")]
fn trains_that_are_released_as_they_come_are_out_of_order() {
    explore(Rules { keeps_places: false, ..LASTING }, &[2, 0, 0], 2, 2);
}

#[test]
#[should_panic(expected = "released after its session ended")]
fn a_session_that_ends_at_once_ends_before_its_trains() {
    explore(Rules { drains: false, ..ALL }, &[2, 0], 2, 2);
}
