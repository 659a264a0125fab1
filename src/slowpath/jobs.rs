//! Operations of the control socket on their way: each in slices, so that handshakes, timers and events are served in between.
//!
//! Transactions are carried out one after the other, and only as fast as the workers take what comes of them. Questions are
//! answered side by side, each as fast as its asker reads. An answer is begun between two transactions, so that none shows
//! half of one, unless it is so long that its asker reads while the next transaction is carried out.

use crate::crypto::stack;
use crate::device::status::{Listing, Status};
use crate::device::uapi::{self, Dump, Operation, SetParser, SetRequest};
use crate::device::{Device, Now, Transaction};
use crate::sys::clock::Clock;
use crate::sys::link;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::sync::mpsc::Sender;
use zeroize::Zeroizing;

/// How long a slice of all questions together is, and one of a transaction.
const SLICE: Duration = Duration::from_millis(1);
/// One operation, and where its answer goes, piece by piece; the end of the pieces is the end of the answer.
pub(super) struct Request {
    pub(super) operation: Operation,
    pub(super) answer: Sender<Zeroizing<String>>,
}

/// All that is under way: one operation a connection at most.
#[derive(Default)]
pub(super) struct Jobs {
    asked: VecDeque<Question>,
    waiting: VecDeque<(SetParser, Sender<Zeroizing<String>>)>,
    change: Option<Change>,
}

struct Question {
    answer: Answer,
    to: Sender<Zeroizing<String>>,
    begun: bool,
}

enum Answer {
    Dump(Dump),
    Listing(Listing),
}

/// A transaction, once it was read.
struct Change {
    /// `None` while what may fail of it is tried.
    transaction: Option<Transaction>,
    to: Sender<Zeroizing<String>>,
}

/// What became of a slice of a transaction.
pub(super) enum SliceOutcome {
    /// There is more to do, or nothing.
    Going,
    /// One was read: begin it, and tell [`Jobs::begun`].
    Read(Box<SetRequest>),
    /// One is done.
    Done,
}

impl Question {
    /// Whether its asker takes another piece, or is gone.
    fn is_read(&self) -> bool {
        self.to.is_closed() || self.to.capacity() > 0
    }
}

impl Jobs {
    /// Takes an operation in; `status` tells how things stand, the peers left out.
    pub(super) fn add(&mut self, request: Request, status: impl FnOnce() -> Status) {
        let Request { operation, answer: to } = request;
        let answer = match operation {
            Operation::Set(body) => return self.waiting.push_back((SetParser::new(body), to)),
            Operation::Get => Answer::Dump(Dump::default()),
            Operation::Status => Answer::Listing(Listing::new(&status())),
        };
        self.asked.push_back(Question { answer, to, begun: false });
    }

    /// Whether a slice has something to do.
    pub(super) fn has_questions(&self) -> bool {
        self.asked.iter().any(|question| self.may_answer(question))
    }

    /// Whether a transaction is read or carried out.
    pub(super) fn has_changes(&self) -> bool {
        self.change.is_some() || !self.waiting.is_empty()
    }

    fn may_answer(&self, question: &Question) -> bool {
        (question.begun || self.change.is_none()) && question.is_read()
    }

    /// A slice of answers: one piece each, as far as there is time.
    pub(super) fn answer(&mut self, device: &Device) {
        let mut more = slice();
        for _ in 0..self.asked.len() {
            let Some(mut question) = self.asked.pop_front() else { return };
            if question.to.is_closed() {
                continue;
            }
            if !self.may_answer(&question) {
                self.asked.push_back(question);
                continue;
            }
            question.begun = true;
            let mut piece = uapi::chunk();
            let done = match &mut question.answer {
                Answer::Dump(dump) => device.dump(dump, &mut piece, &mut more),
                Answer::Listing(listing) => device.list(listing, &mut piece, &mut more),
            };
            // There is room, as was asked before; an asker who has gone needs no answer.
            let _ = question.to.try_send(piece);
            if !done {
                self.asked.push_back(question);
            }
            if !more() {
                return;
            }
        }
    }

    /// A slice of the transaction that is carried out, or else of reading the next.
    pub(super) fn change(&mut self, device: &mut Device, now: Now) -> SliceOutcome {
        let mut more = slice();
        if let Some(Change { transaction: Some(transaction), .. }) = &mut self.change {
            if !device.go_on(now, transaction, &mut more) {
                return SliceOutcome::Going;
            }
            self.finish(Ok(()));
            return SliceOutcome::Done;
        }
        let Some((parser, _)) = self.waiting.front_mut() else { return SliceOutcome::Going };
        let parsed = stack::leaving_nothing(|| parser.go_on(&mut |name| link::index(name).ok(), &mut more));
        let Some(parsed) = parsed else { return SliceOutcome::Going };
        let Some((_, to)) = self.waiting.pop_front() else { return SliceOutcome::Going };
        self.change = Some(Change { transaction: None, to });
        match parsed {
            Ok(request) => SliceOutcome::Read(Box::new(request)),
            Err(error) => {
                log::error!("{error}");
                self.finish(Err(error.errno));
                SliceOutcome::Done
            }
        }
    }

    /// The transaction that was read last has begun, or cannot.
    pub(super) fn begun(&mut self, begun: Result<Transaction, i32>) {
        match (begun, &mut self.change) {
            (Ok(begun), Some(change)) => change.transaction = Some(begun),
            (Err(errno), _) => self.finish(Err(errno)),
            (Ok(_), None) => {}
        }
    }

    fn finish(&mut self, result: Result<(), i32>) {
        if let Some(change) = self.change.take() {
            // The only piece of this answer; its client may have gone.
            let _ = change.to.try_send(Zeroizing::new(uapi::answer(result)));
        }
    }
}

/// Whether this slice goes on; to be asked after each step.
fn slice() -> impl FnMut() -> bool {
    let end = Clock.now() + SLICE;
    move || Clock.now() < end
}
