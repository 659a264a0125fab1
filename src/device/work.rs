//! The Diffie-Hellman that a handshake message asks for, as a value: any thread may do it, while the device goes on with other
//! things.

use crate::crypto::stack;
use crate::dataplane::PeerId;
use crate::io::LocalAddr;
use crate::noise::handshake::{
    Answered, Answering, Completing, HandshakeError, Identity, IncomingInitiation,
};
use crate::noise::session::SessionKeys;
use crate::wire::message::Initiation;
use std::net::SocketAddr;
use std::sync::Arc;

/// Where a handshake message came from.
#[derive(Clone, Copy)]
pub(super) struct Arrival {
    pub(super) from: SocketAddr,
    pub(super) to: Option<LocalAddr>,
    /// Its length in bytes.
    pub(super) len: usize,
}

enum Task {
    Open(Arc<Identity>, Initiation),
    Answer(PeerId, Answering),
    Complete(PeerId, Completing),
}

/// What came of a task. The numbers are the local indices of the sessions.
pub(super) enum WorkOutcome {
    Opened(Result<IncomingInitiation, HandshakeError>),
    Answered(PeerId, u32, Result<Answered, HandshakeError>),
    Completed(PeerId, u32, Result<SessionKeys, HandshakeError>),
}

/// Work to do for a handshake message: one or two Diffie-Hellmans, some 50 µs. It holds secrets, in one place on the heap. They are
/// used and dropped there, as memory that they were moved out of would keep them.
pub struct HandshakeWork(Box<(Task, Arrival)>);

/// Work that was done.
pub struct HandshakeResult(Box<(WorkOutcome, Arrival)>);

impl HandshakeWork {
    pub(super) fn open(identity: Arc<Identity>, initiation: Initiation, arrival: Arrival) -> HandshakeWork {
        HandshakeWork(stack::clean(move || Box::new((Task::Open(identity, initiation), arrival))))
    }

    pub(super) fn answer(id: PeerId, answering: Answering, arrival: Arrival) -> HandshakeWork {
        HandshakeWork(stack::clean(move || Box::new((Task::Answer(id, answering), arrival))))
    }

    pub(super) fn complete(id: PeerId, completing: Completing, arrival: Arrival) -> HandshakeWork {
        HandshakeWork(stack::clean(move || Box::new((Task::Complete(id, completing), arrival))))
    }

    /// Does the work. It leaves no secret on the stack.
    pub fn run(self) -> HandshakeResult {
        stack::leaving_nothing(|| {
            let (task, arrival) = &*self.0;
            match task {
                Task::Open(identity, initiation) => {
                    let opened = IncomingInitiation::open(identity, initiation);
                    HandshakeResult::new(*arrival, || WorkOutcome::Opened(opened))
                }
                Task::Answer(id, answering) => {
                    let answered = answering.work();
                    HandshakeResult::new(*arrival, || WorkOutcome::Answered(*id, answering.index(), answered))
                }
                Task::Complete(id, completing) => {
                    let keys = completing.work();
                    HandshakeResult::new(*arrival, || WorkOutcome::Completed(*id, completing.index(), keys))
                }
            }
        })
    }
}

impl HandshakeResult {
    /// The outcome is made where nothing lies that its unused bytes could take along.
    fn new(arrival: Arrival, outcome: impl FnOnce() -> WorkOutcome) -> HandshakeResult {
        HandshakeResult(stack::clean(|| Box::new((outcome(), arrival))))
    }

    pub(super) fn parts(&self) -> &(WorkOutcome, Arrival) {
        &self.0
    }
}
