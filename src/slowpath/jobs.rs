//! Operations of the control socket and commands of the tunnel's owner, carried out in slices, so that handshakes, timers
//! and events are served in between.
//!
//! Transactions are carried out one after the other, and only as fast as the workers take what comes of them. Queries are
//! answered side by side, each as fast as its asker reads. An answer begins between two transactions, so that none shows
//! half of one, unless it is so long that its asker still reads while the next transaction is carried out.

use crate::crypto::stack;
use crate::device::status::{Listing, Status};
use crate::device::uapi::{self, Dump, Operation, SetParser, SetRequest};
use crate::device::{ConfigureError, Device, Now, Transaction};
use crate::slowpath::handle::{OwnerCommand, Query, Running};
use crate::sys::clock::Clock;
use crate::sys::link;
use std::collections::VecDeque;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::SyncSender;
use std::time::Duration;
use tokio::sync::mpsc::Sender;
use zeroize::Zeroizing;

/// How long a slice is: one of all answers together, and one of a transaction.
const SLICE: Duration = Duration::from_millis(1);
/// One operation, and where its answer goes, piece by piece. The end of the pieces is the end of the answer.
pub(super) struct Request {
    pub(super) operation: Operation,
    pub(super) answer: Sender<Zeroizing<String>>,
    /// The connection, where files are to be passed through it.
    pub(super) connection: Option<UnixStream>,
}

/// All that is under way: at most one operation for each connection, and one command for each of the owner's threads.
#[derive(Default)]
pub(super) struct Jobs {
    replies: VecDeque<Reply>,
    queries: VecDeque<Query>,
    waiting: VecDeque<(Pending, Requester)>,
    change: Option<CurrentChange>,
}

/// A transaction that is to be carried out.
enum Pending {
    /// A transaction as text, from the control socket.
    Text(SetParser),
    /// A transaction from the tunnel's owner.
    Ready(Box<SetRequest>),
}

/// Where the outcome of a transaction goes.
enum Requester {
    Connection(Sender<Zeroizing<String>>),
    Owner(SyncSender<Result<(), ConfigureError>>),
}

struct Reply {
    answer: Answer,
    to: Sender<Zeroizing<String>>,
    begun: bool,
}

enum Answer {
    Dump(Dump),
    Listing(Listing),
}

/// A transaction that was read.
struct CurrentChange {
    /// `None` until it has begun, which may fail.
    transaction: Option<Transaction>,
    to: Requester,
}

/// What became of a slice of a transaction.
pub(super) enum SliceOutcome {
    /// There is more to do, or nothing at all.
    Going,
    /// A transaction was read: begin it, and report that with [`Jobs::begun`].
    Read(Box<SetRequest>),
    /// A transaction is done.
    Done,
}

impl Reply {
    /// Whether its asker takes another piece, or is gone.
    fn is_read(&self) -> bool {
        self.to.is_closed() || self.to.capacity() > 0
    }
}

impl Jobs {
    /// Takes an operation in. `status` yields the device's status without its peers.
    pub(super) fn add(
        &mut self,
        operation: Operation,
        to: Sender<Zeroizing<String>>,
        status: impl FnOnce() -> Status,
    ) {
        let answer = match operation {
            Operation::Set(body) => {
                let wanted = Pending::Text(SetParser::new(body));
                return self.waiting.push_back((wanted, Requester::Connection(to)));
            }
            Operation::Get => Answer::Dump(Dump::default()),
            Operation::GetPeers(named) => Answer::Dump(Dump::of(named)),
            Operation::Status => Answer::Listing(Listing::new(&status(), true)),
            // The driver answers these itself.
            Operation::Monitor | Operation::Diagnose { .. } | Operation::Offer | Operation::HandOver => {
                return;
            }
            Operation::StatusOfNoPeers => Answer::Listing(Listing::new(&status(), false)),
        };
        self.replies.push_back(Reply { answer, to, begun: false });
    }

    /// Takes in a command of the tunnel's owner.
    pub(super) fn command(&mut self, command: OwnerCommand) {
        match command {
            OwnerCommand::Configure(request, to) => {
                self.waiting.push_back((Pending::Ready(request), Requester::Owner(to)));
            }
            OwnerCommand::Query(query) => self.queries.push_back(query),
        }
    }

    /// Whether a slice of answers has something to do.
    pub(super) fn has_answers_due(&self) -> bool {
        !self.queries.is_empty() && self.change.is_none()
            || self.replies.iter().any(|reply| self.may_answer(reply))
    }

    /// Whether a transaction is being read or carried out, or waits for that.
    pub(super) fn has_changes(&self) -> bool {
        self.change.is_some() || !self.waiting.is_empty()
    }

    /// Whether a transaction is being carried out.
    pub(super) fn is_changing(&self) -> bool {
        self.change.is_some()
    }

    fn may_answer(&self, reply: &Reply) -> bool {
        (reply.begun || self.change.is_none()) && reply.is_read()
    }

    /// Does a slice of answers: one piece each, as far as there is time.
    pub(super) fn answer(&mut self, device: &Device, running: Running) {
        let mut more = slice();
        while self.change.is_none() && more() {
            let Some(query) = self.queries.pop_front() else { break };
            query(device, running);
        }
        for _ in 0..self.replies.len() {
            let Some(mut reply) = self.replies.pop_front() else { return };
            if reply.to.is_closed() {
                continue;
            }
            if !self.may_answer(&reply) {
                self.replies.push_back(reply);
                continue;
            }
            reply.begun = true;
            let mut piece = uapi::chunk();
            let done = match &mut reply.answer {
                Answer::Dump(dump) => device.dump(dump, &mut piece, &mut more),
                Answer::Listing(listing) => device.list(listing, &mut piece, &mut more),
            };
            if !piece.is_empty() {
                // There is room, as was checked before. An asker who has gone needs no answer.
                let _ = reply.to.try_send(piece);
            }
            if !done {
                self.replies.push_back(reply);
            }
            if !more() {
                return;
            }
        }
    }

    /// Does a slice of the transaction that is carried out, or else of reading the next.
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
                        log::error!("the configuration is refused: {error}");
                        to.answer_errno(Err(error.errno));
                        return SliceOutcome::Done;
                    }
                }
            }
        };
        self.change = Some(CurrentChange { transaction: None, to });
        SliceOutcome::Read(request)
    }

    /// Notes that the transaction that was read last has begun, or why it cannot.
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
            // An asker that waits no more needs no answer.
            Requester::Owner(to) => drop(to.try_send(result)),
        }
    }

    /// Answers a connection, and nobody else: the owner's requests are not parsed, so they cannot fail so.
    fn answer_errno(self, result: Result<(), i32>) {
        if let Requester::Connection(to) = self {
            // This is the only piece of the answer; its client may have gone.
            let _ = to.try_send(Zeroizing::new(uapi::answer(result)));
        }
    }
}

/// Returns the closure that says whether this slice goes on, to be called after each step.
fn slice() -> impl FnMut() -> bool {
    let end = Clock.now() + SLICE;
    move || Clock.now() < end
}
