//! Handshake messages on their way from the workers to the slow path. Those whose senders proved their address by a cookie go
//! first: a flood of others, which anybody can send from anywhere, is not waited for.

use crate::dataplane::IncomingHandshake;
use crossbeam::queue::ArrayQueue;

/// Messages with a valid cookie that may wait for the slow path, 4096 × ~220 bytes. Further ones are dropped and counted.
pub const HANDSHAKE_QUEUE: usize = 4096;
/// The part of that which others may take. A cookie is asked for long before this bound, except where many workers have taken some
/// at once.
const UNPROVEN: usize = 4;
/// The part of it from which on a cookie is asked for (kernel: MAX_QUEUED_INCOMING_HANDSHAKES / 8).
const LOAD: usize = 8;
/// Number of waiting handshake messages from which on a cookie is asked for.
#[cfg(test)]
pub const UNDER_LOAD: usize = HANDSHAKE_QUEUE / LOAD;

/// The queue of all workers to the slow path.
pub struct HandshakeQueue {
    proven: ArrayQueue<IncomingHandshake>,
    others: ArrayQueue<IncomingHandshake>,
}

impl HandshakeQueue {
    /// A queue for `room` messages with a cookie, and a part of that for others.
    pub fn new(room: usize) -> HandshakeQueue {
        HandshakeQueue { proven: ArrayQueue::new(room), others: ArrayQueue::new(room / UNPROVEN) }
    }

    /// Adds a message. False where there is no room, and it is dropped.
    pub fn push(&self, message: IncomingHandshake) -> bool {
        let queue = if message.proven { &self.proven } else { &self.others };
        queue.push(message).is_ok()
    }

    /// Takes the message that is next.
    pub fn pop(&self) -> Option<IncomingHandshake> {
        self.proven.pop().or_else(|| self.others.pop())
    }

    /// Number of messages that wait.
    pub fn waiting(&self) -> usize {
        self.proven.len() + self.others.len()
    }

    /// Whether so many wait that a cookie must be asked for.
    pub fn is_loaded(&self) -> bool {
        self.proven.len().max(self.others.len()) >= self.proven.capacity() / LOAD
    }
}
