//! Transport sessions (paper, sections 5.4.5 and 5.4.6). The sealing half is shared by all workers, as its counter is
//! atomic; the opening half has one owner.

mod record;

pub use record::{RecvRecord, SendRecord};

use crate::crypto::aead::{AeadKey, Opened, counter};
use crate::crypto::stack;
use crate::noise::counter::SendCounter;
use crate::noise::replay::ReplayWindow;
use crate::noise::{
    KEEPALIVE_TIMEOUT, REJECT_AFTER_MESSAGES, REJECT_AFTER_TIME, REKEY_AFTER_MESSAGES, REKEY_AFTER_TIME,
    REKEY_TIMEOUT,
};
use crate::time::Instant;
use crate::wire::message::{DATA_HEADER_LEN, DataHeader};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Age from which on a receiving initiator rekeys: so late that nothing it sends later may be answered in time
/// (kernel `keep_key_fresh` of `receive.c`).
const REKEY_ON_RECEIVE_AFTER: Duration =
    REJECT_AFTER_TIME.saturating_sub(KEEPALIVE_TIMEOUT).saturating_sub(REKEY_TIMEOUT);

/// Which side of the handshake this device was.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Role {
    /// It sent the initiation: it rekeys by time, and may send at once.
    Initiator,
    /// It sent the response: it may send only once the initiator's first packet confirmed the session.
    Responder,
}

/// What a finished handshake yields.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct SessionKeys {
    /// The key that seals what this end sends.
    pub send: [u8; 32],
    /// The key that opens what this end receives.
    pub receive: [u8; 32],
    /// The local index, which the remote puts in its messages.
    pub local_index: u32,
    /// The remote's index, which this end puts in its messages.
    pub remote_index: u32,
    /// This end's role in the handshake.
    #[zeroize(skip)]
    pub role: Role,
}

impl SessionKeys {
    /// Expands the keys into both halves, born `now`. Each half is allocated by itself: it lives for a time of its
    /// own, and holds nothing of the other.
    pub fn halves(&self, now: Instant) -> (Arc<SendSession>, Box<RecvSession>) {
        (stack::clean(|| self.sending(now)), stack::clean(|| self.receiving(now)))
    }

    /// Expands the keys into both halves, and drops them.
    #[cfg(feature = "internals")]
    pub fn into_halves(self, now: Instant) -> (Arc<SendSession>, Box<RecvSession>) {
        self.halves(now)
    }

    fn sending(&self, now: Instant) -> Arc<SendSession> {
        Arc::new(SendSession {
            key: AeadKey::new(&self.send),
            counter: SendCounter::default(),
            remote_index: self.remote_index,
            local_index: self.local_index,
            born: now,
            role: self.role,
        })
    }

    fn receiving(&self, now: Instant) -> Box<RecvSession> {
        Box::new(RecvSession {
            key: Arc::new(AeadKey::new(&self.receive)),
            window: ReplayWindow::default(),
            local_index: self.local_index,
            born: now,
            role: self.role,
        })
    }
}

impl fmt::Debug for SessionKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionKeys")
            .field("local_index", &self.local_index)
            .field("remote_index", &self.remote_index)
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

/// The sealing half of a session. Any worker may use it.
pub struct SendSession {
    key: AeadKey,
    /// The counter of the next message.
    counter: SendCounter,
    remote_index: u32,
    local_index: u32,
    born: Instant,
    role: Role,
}

impl SendSession {
    /// The remote's index.
    pub fn remote_index(&self) -> u32 {
        self.remote_index
    }
    /// The local index of the same session.
    pub fn local_index(&self) -> u32 {
        self.local_index
    }
    /// When the handshake finished.
    pub fn born(&self) -> Instant {
        self.born
    }
    /// This end's role in the handshake.
    pub fn role(&self) -> Role {
        self.role
    }
    /// Reserves `n` consecutive counters and returns the first. `None` where that would exceed REJECT_AFTER_MESSAGES.
    /// No counter is ever handed out twice, whatever worker asks.
    pub fn reserve(&self, n: u64) -> Option<u64> {
        self.counter.reserve(n, REJECT_AFTER_MESSAGES)
    }
    /// Whether any counter of it was reserved.
    pub fn is_used(&self) -> bool {
        self.counter.next() > 0
    }
    /// Whether it may still be used for sending: its age is below REJECT_AFTER_TIME, and counters are left.
    pub fn usable(&self, now: Instant) -> bool {
        now.since(self.born) < REJECT_AFTER_TIME && self.counter.next() < REJECT_AFTER_MESSAGES
    }
    /// Whether sending now should start a new handshake: after REKEY_AFTER_MESSAGES in both roles, and after
    /// REKEY_AFTER_TIME as the initiator.
    pub fn wants_rekey(&self, now: Instant) -> bool {
        self.counter.next() > REKEY_AFTER_MESSAGES
            || self.role == Role::Initiator && now.since(self.born) >= REKEY_AFTER_TIME
    }
    /// Writes the message headers with the receiver index, and seals every segment of `train` with counters from
    /// `first` on.
    ///
    /// # Panics
    ///
    /// On a segment shorter than a data message: see [`AeadKey::seal_train`].
    pub fn seal_train(&self, first: u64, train: &mut [u8], stride: usize) {
        for (i, segment) in (0..).zip(train.chunks_mut(stride.max(1))) {
            if let Some(header) = segment.first_chunk_mut::<DATA_HEADER_LEN>() {
                DataHeader { receiver: self.remote_index, counter: first.wrapping_add(i) }.write(header);
            }
        }
        self.key.seal_train(first, train, stride);
    }
}

/// The opening half of a session, owned by the worker that the low byte of its index names.
pub struct RecvSession {
    key: Arc<AeadKey>,
    window: ReplayWindow,
    local_index: u32,
    born: Instant,
    role: Role,
}

/// What became of each segment of a train: bit `i` for segment `i`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Received {
    /// The segments that are authentic and fresh, and so to be delivered.
    pub fresh: Opened,
    /// The segments that are authentic, but were seen before or are too old.
    pub replayed: Opened,
}

impl RecvSession {
    /// The local index.
    pub fn local_index(&self) -> u32 {
        self.local_index
    }
    /// When the handshake finished.
    #[cfg(feature = "internals")]
    pub fn born(&self) -> Instant {
        self.born
    }
    /// This end's role in the handshake.
    pub fn role(&self) -> Role {
        self.role
    }
    /// Whether the session is too old to open anything (REJECT_AFTER_TIME).
    pub fn expired(&self, now: Instant) -> bool {
        now.since(self.born) >= REJECT_AFTER_TIME
    }
    /// Whether receiving now should make the initiator rekey, at an age over REJECT_AFTER_TIME - KEEPALIVE_TIMEOUT -
    /// REKEY_TIMEOUT.
    pub fn wants_rekey(&self, now: Instant) -> bool {
        self.role == Role::Initiator && now.since(self.born) >= REKEY_ON_RECEIVE_AFTER
    }
    /// Opens every segment in place, then runs the authentic ones through the replay window in order.
    ///
    /// The caller sees to it that each segment's receiver index is this session's, since the index is not
    /// authenticated.
    pub fn open_train(&mut self, train: &mut [u8], stride: usize) -> Received {
        let opened = self.key.open_train(train, stride);
        self.admit(train, stride, opened)
    }

    /// The key, for a thread that opens trains while their owner does other things. The owner then [admits](Self::admit) them.
    pub fn key(&self) -> &Arc<AeadKey> {
        &self.key
    }

    /// Runs the segments that [opened](AeadKey::open_train) under this session's key through the replay window, in order.
    pub fn admit(&mut self, train: &[u8], stride: usize, opened: Opened) -> Received {
        let mut received = Received::default();
        for (i, segment) in train.chunks(stride.max(1)).enumerate().filter(|(i, _)| opened.is_ok(*i)) {
            let fresh = counter(segment).is_some_and(|counter| self.window.accept(counter));
            if fresh { received.fresh.mark(i) } else { received.replayed.mark(i) }
        }
        received
    }
}

#[cfg(test)]
mod tests;
