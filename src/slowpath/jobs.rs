//! Operations of the control socket, and what the tunnel's owner asks for, on their way: each in slices, so that handshakes, timers and events are served in between.
//!
//! Transactions are carried out one after the other, and only as fast as the workers take what comes of them. Questions are
//! answered side by side, each as fast as its asker reads. An answer is begun between two transactions, so that none shows
//! half of one, unless it is so long that its asker reads while the next transaction is carried out.

use crate::crypto::stack;
use crate::device::status::{Listing, Status};
use crate::device::uapi::{self, Dump, Operation, SetParser, SetRequest};
use crate::device::{ConfigureError, Device, Now, Transaction};
use crate::slowpath::handle::{Look, OwnerCommand, Running};
use crate::sys::clock::Clock;
use crate::sys::link;
use std::collections::VecDeque;
use std::sync::mpsc::SyncSender;
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

/// All that is under way: one operation a connection and one command a thread of the owner's at most.
#[derive(Default)]
pub(super) struct Jobs {
    asked: VecDeque<Question>,
    looks: VecDeque<Look>,
    waiting: VecDeque<(Pending, Requester)>,
    change: Option<CurrentChange>,
}

/// A transaction that is to be carried out.
enum Pending {
    /// As text, from the control socket.
    Text(SetParser),
    /// From the tunnel's owner.
    Ready(Box<SetRequest>),
}

/// Who is told what became of a transaction.
enum Requester {
    Connection(Sender<Zeroizing<String>>),
    Owner(SyncSender<Result<(), ConfigureError>>),
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
struct CurrentChange {
    /// `None` while what may fail of it is tried.
    transaction: Option<Transaction>,
    to: Requester,
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
            Operation::Set(body) => {
                let wanted = Pending::Text(SetParser::new(body));
                return self.waiting.push_back((wanted, Requester::Connection(to)));
            }
            Operation::Get => Answer::Dump(Dump::default()),
            Operation::Status => Answer::Listing(Listing::new(&status())),
        };
        self.asked.push_back(Question { answer, to, begun: false });
    }

    /// Takes a command of the tunnel's owner in.
    pub(super) fn command(&mut self, command: OwnerCommand) {
        match command {
            OwnerCommand::Configure(request, to) => {
                self.waiting.push_back((Pending::Ready(request), Requester::Owner(to)));
            }
            OwnerCommand::Look(look) => self.looks.push_back(look),
        }
    }

    /// Whether a slice has something to do.
    pub(super) fn has_questions(&self) -> bool {
        !self.looks.is_empty() && self.change.is_none()
            || self.asked.iter().any(|question| self.may_answer(question))
    }

    /// Whether a transaction is read or carried out.
    pub(super) fn has_changes(&self) -> bool {
        self.change.is_some() || !self.waiting.is_empty()
    }

    fn may_answer(&self, question: &Question) -> bool {
        (question.begun || self.change.is_none()) && question.is_read()
    }

    /// A slice of answers: one piece each, as far as there is time.
    pub(super) fn answer(&mut self, device: &Device, running: Running) {
        let mut more = slice();
        while self.change.is_none() && more() {
            let Some(look) = self.looks.pop_front() else { break };
            look(device, running);
        }
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
        if let Some(CurrentChange { transaction: Some(transaction), .. }) = &mut self.change {
            if !device.go_on(now, transaction, &mut more) {
                return SliceOutcome::Going;
            }
            self.finish(Ok(()));
            return SliceOutcome::Done;
        }
        let Some((wanted, to)) = self.waiting.pop_front() else { return SliceOutcome::Going };
        let request = match wanted {
            Pending::Ready(request) => request,
            Pending::Text(mut parser) => {
                let index = &mut |name: &str| link::index(name).ok();
                let parsed = stack::leaving_nothing(|| parser.go_on(index, &mut more));
                match parsed {
                    None => {
                        self.waiting.push_front((Pending::Text(parser), to));
                        return SliceOutcome::Going;
                    }
                    Some(Ok(request)) => Box::new(request),
                    Some(Err(error)) => {
                        log::error!("{error}");
                        to.answer_errno(Err(error.errno));
                        return SliceOutcome::Done;
                    }
                }
            }
        };
        self.change = Some(CurrentChange { transaction: None, to });
        SliceOutcome::Read(request)
    }

    /// The transaction that was read last has begun, or cannot.
    pub(super) fn begun(&mut self, begun: Result<Transaction, ConfigureError>) {
        match (begun, &mut self.change) {
            (Ok(begun), Some(change)) => change.transaction = Some(begun),
            (Err(error), _) => self.finish(Err(error)),
            (Ok(_), None) => {}
        }
    }

    fn finish(&mut self, result: Result<(), ConfigureError>) {
        if let Some(change) = self.change.take() {
            change.to.answer(result);
        }
    }
}

impl Requester {
    fn answer(self, result: Result<(), ConfigureError>) {
        match self {
            Requester::Connection(_) => {
                if let Err(ConfigureError::Socket(error)) = &result {
                    log::error!("the configuration is refused: {error}");
                }
                self.answer_errno(result.map_err(|error| error.errno()));
            }
            // Who does not wait any more needs no answer.
            Requester::Owner(to) => drop(to.try_send(result)),
        }
    }

    /// To a connection alone: the owner sends nothing that must be parsed.
    fn answer_errno(self, result: Result<(), i32>) {
        if let Requester::Connection(to) = self {
            // The only piece of this answer; its client may have gone.
            let _ = to.try_send(Zeroizing::new(uapi::answer(result)));
        }
    }
}

/// Whether this slice goes on; to be asked after each step.
fn slice() -> impl FnMut() -> bool {
    let end = Clock.now() + SLICE;
    move || Clock.now() < end
}
