//! Transport sessions (paper, sections 5.4.5 and 5.4.6). Sealing is shared (the counter is atomic), opening is owned.

use crate::crypto::aead::{AeadKey, Opened, counter};
use crate::crypto::stack;
use crate::noise::replay::ReplayWindow;
use crate::noise::{
    KEEPALIVE_TIMEOUT, REJECT_AFTER_MESSAGES, REJECT_AFTER_TIME, REKEY_AFTER_MESSAGES, REKEY_AFTER_TIME,
    REKEY_TIMEOUT,
};
use crate::time::Instant;
use crate::wire::message::{DATA_HEADER_LEN, DataHeader};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Age from which on the initiator rekeys when it receives: so late that no answer may come from it in time
/// (kernel `keep_key_fresh` of `receive.c`).
const REKEY_ON_RECEIVE_AFTER: Duration =
    REJECT_AFTER_TIME.saturating_sub(KEEPALIVE_TIMEOUT).saturating_sub(REKEY_TIMEOUT);

/// Which side of the handshake this device was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Sent the initiation: rekeys by time, may send at once.
    Initiator,
    /// Sent the response: may send only once the initiator's first packet confirmed the session.
    Responder,
}

/// What a finished handshake yields.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct SessionKeys {
    /// Seals what we send.
    pub send: [u8; 32],
    /// Opens what we receive.
    pub receive: [u8; 32],
    /// Our index: what the remote puts in its messages.
    pub local_index: u32,
    /// Its index: what we put in ours.
    pub remote_index: u32,
    /// Our role.
    #[zeroize(skip)]
    pub role: Role,
}

impl SessionKeys {
    /// Expands the keys into both halves, born `now`. Each lives for a time of its own, and so takes nothing of the other along.
    pub fn into_halves(self, now: Instant) -> (Arc<SendSession>, Box<RecvSession>) {
        (stack::clean(|| self.sending(now)), stack::clean(|| self.receiving(now)))
    }

    fn sending(&self, now: Instant) -> Arc<SendSession> {
        Arc::new(SendSession {
            key: AeadKey::new(&self.send),
            counter: AtomicU64::new(0),
            remote_index: self.remote_index,
            local_index: self.local_index,
            born: now,
            role: self.role,
        })
    }

    fn receiving(&self, now: Instant) -> Box<RecvSession> {
        Box::new(RecvSession {
            key: AeadKey::new(&self.receive),
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

/// The sealing half: any worker may use it.
pub struct SendSession {
    key: AeadKey,
    counter: AtomicU64,
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
    /// Our index for the same session.
    pub fn local_index(&self) -> u32 {
        self.local_index
    }
    /// When the handshake finished.
    pub fn born(&self) -> Instant {
        self.born
    }
    /// Our role.
    pub fn role(&self) -> Role {
        self.role
    }
    /// Reserves `n` consecutive counters and returns the first; `None` when that would reach REJECT_AFTER_MESSAGES.
    /// No counter is ever handed out twice, whatever worker asks.
    pub fn reserve(&self, n: u64) -> Option<u64> {
        // A compare-and-swap, not an addition that is checked afterwards: callers who are refused leave no trace, so no
        // number of them can carry the counter past the limit and around. Relaxed, as only the counter itself matters.
        let advance = |first: u64| first.checked_add(n).filter(|next| *next <= REJECT_AFTER_MESSAGES);
        self.counter.fetch_update(Relaxed, Relaxed, advance).ok()
    }
    /// Whether anything was sealed with it.
    pub fn is_used(&self) -> bool {
        self.counter.load(Relaxed) > 0
    }
    /// Whether its age still allows sending (below REJECT_AFTER_TIME) and counters are left.
    pub fn usable(&self, now: Instant) -> bool {
        now.since(self.born) < REJECT_AFTER_TIME && self.counter.load(Relaxed) < REJECT_AFTER_MESSAGES
    }
    /// Whether sending now should start a new handshake: REKEY_AFTER_MESSAGES for both roles, REKEY_AFTER_TIME for the initiator.
    pub fn wants_rekey(&self, now: Instant) -> bool {
        self.counter.load(Relaxed) > REKEY_AFTER_MESSAGES
            || self.role == Role::Initiator && now.since(self.born) >= REKEY_AFTER_TIME
    }
    /// Writes the message headers (receiver index) and seals every segment of `train` with counters from `first`.
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

/// The opening half: owned by the worker that the low byte of its index names.
pub struct RecvSession {
    key: AeadKey,
    window: ReplayWindow,
    local_index: u32,
    born: Instant,
    role: Role,
}

/// What became of each segment of a train: bit `i` for segment `i`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Received {
    /// Authentic and fresh: deliver.
    pub fresh: Opened,
    /// Authentic but seen before, or too old.
    pub replayed: Opened,
}

impl RecvSession {
    /// Our index.
    pub fn local_index(&self) -> u32 {
        self.local_index
    }
    /// When the handshake finished.
    #[cfg(feature = "internals")]
    pub fn born(&self) -> Instant {
        self.born
    }
    /// Our role.
    pub fn role(&self) -> Role {
        self.role
    }
    /// Whether it is too old to open anything (REJECT_AFTER_TIME).
    pub fn expired(&self, now: Instant) -> bool {
        now.since(self.born) >= REJECT_AFTER_TIME
    }
    /// Whether receiving now should make the initiator rekey: age over REJECT_AFTER_TIME - KEEPALIVE_TIMEOUT - REKEY_TIMEOUT.
    pub fn wants_rekey(&self, now: Instant) -> bool {
        self.role == Role::Initiator && now.since(self.born) >= REKEY_ON_RECEIVE_AFTER
    }
    /// Opens every segment in place, then runs the authentic ones through the replay window in order.
    ///
    /// That a segment's receiver index is this session's is the caller's to see to: the index is not authenticated.
    pub fn open_train(&mut self, train: &mut [u8], stride: usize) -> Received {
        let opened = self.key.open_train(train, stride);
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
