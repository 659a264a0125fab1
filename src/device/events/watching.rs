//! Events on their way out of the device. While nobody follows them, none is made.

use super::{DeviceEvent, EventKind, RefusalReason};
use crate::crypto::x25519::PublicKey;
use crate::dataplane::PeerId;
use crate::device::Device;
use crate::noise::handshake::HandshakeError;
use crate::time::{Instant, TokenBucket};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

/// Most events that wait for the driver, which takes them after each call: 4,096 × ~120 bytes. A call makes more only where a
/// transaction concerns many peers.
const MAX_WAITING_EVENTS: usize = 4096;
/// The time in which another event about a refused message may be made: five a second.
const REFUSAL_COST: Duration = Duration::from_millis(200);
/// Such events at once, as time: 20.
const REFUSAL_BURST: Duration = Duration::from_secs(4);

/// What happened and was not taken yet.
#[derive(Default)]
pub(in crate::device) struct EventQueue {
    followed: bool,
    waiting: VecDeque<DeviceEvent>,
    lost: u64,
    refusals: RefusalBudget,
}

/// How many events about refused messages may be made. Anyone can send what causes one: a copy of a peer's message will do.
#[derive(Default)]
struct RefusalBudget {
    bucket: TokenBucket,
    left_out: u64,
}

impl RefusalBudget {
    /// How many were left out before one that may be made now. `None` where it may not.
    fn next(&mut self, now: Instant) -> Option<u64> {
        if !self.bucket.draw(now, REFUSAL_COST, REFUSAL_BURST) {
            self.left_out += 1;
            return None;
        }
        Some(std::mem::take(&mut self.left_out))
    }
}

impl EventQueue {
    /// How many refusals were left out before one of which an event may be made now. `None` where none may, or nobody follows.
    fn next_refusal(&mut self, now: Instant) -> Option<u64> {
        if self.followed { self.refusals.next(now) } else { None }
    }

    fn push(&mut self, peer: Option<PublicKey>, kind: EventKind) {
        match self.waiting.len() < MAX_WAITING_EVENTS {
            true => self.waiting.push_back(DeviceEvent { peer, kind }),
            false => self.lost += 1,
        }
    }

    fn pop(&mut self) -> Option<DeviceEvent> {
        let event = self.waiting.pop_front();
        if event.is_none() && self.lost > 0 {
            let count = std::mem::take(&mut self.lost);
            return Some(DeviceEvent { peer: None, kind: EventKind::Lost { count } });
        }
        event
    }
}

/// Which message of a peer's was refused, and why.
#[derive(Clone, Copy)]
pub(in crate::device) enum Refused {
    /// A peer's initiation.
    InitiationOf(PeerId, HandshakeError),
    /// A response to an initiation to this peer.
    ResponseOf(PeerId, HandshakeError),
}

impl Device {
    /// Says whether somebody takes events. Until then none is made, and what was not taken is forgotten as they cease.
    pub fn follow_events(&mut self, followed: bool) {
        self.events.followed = followed;
        if !followed {
            self.events.waiting = VecDeque::new();
            self.events.lost = 0;
        }
    }

    /// The next event that was not taken yet. Like outputs they are to be taken after each call.
    pub fn next_event(&mut self) -> Option<DeviceEvent> {
        self.events.pop()
    }

    /// Notes what happened to a peer.
    pub(in crate::device) fn note(&mut self, id: PeerId, kind: EventKind) {
        if self.events.followed
            && let Some(peer) = self.peers.by_id(id)
        {
            self.events.push(Some(peer.public_key), kind);
        }
    }

    /// Notes what happened to the peer of this key, which may be about to go.
    pub(in crate::device) fn note_key(&mut self, key: PublicKey, kind: EventKind) {
        if self.events.followed {
            self.events.push(Some(key), kind);
        }
    }

    /// Notes what happened to the device. Its words are made only where somebody follows.
    pub(in crate::device) fn note_device(&mut self, kind: impl FnOnce() -> EventKind) {
        if self.events.followed {
            self.events.push(None, kind());
        }
    }

    /// Notes that a handshake message of a peer's was refused, which came from there.
    pub(in crate::device) fn note_refused(&mut self, now: Instant, from: SocketAddr, refused: Refused) {
        let Some(left_out) = self.events.next_refusal(now) else { return };
        let (id, kind) = match refused {
            Refused::InitiationOf(id, error) => {
                (id, EventKind::InitiationRefused { from, why: error.into(), key: None, left_out })
            }
            Refused::ResponseOf(id, error) => {
                (id, EventKind::ResponseRefused { from, why: error.into(), left_out })
            }
        };
        self.note(id, kind);
    }

    /// Notes that an initiation was refused which does not tell whose it is, or has this key, which is no peer's.
    pub(in crate::device) fn note_stranger(
        &mut self,
        now: Instant,
        from: SocketAddr,
        why: RefusalReason,
        key: Option<PublicKey>,
    ) {
        if let Some(left_out) = self.events.next_refusal(now) {
            let key = key.map(|key| key.to_base64());
            self.events.push(None, EventKind::InitiationRefused { from, why, key, left_out });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_about_refused_messages_are_bounded_and_the_rest_is_counted() {
        let mut budget = RefusalBudget::default();
        let at = |millis| Instant::START + Duration::from_millis(millis);
        assert_eq!((0..1000).filter(|_| budget.next(at(0)) == Some(0)).count(), 20);
        assert_eq!(budget.next(at(199)), None);
        assert_eq!(budget.next(at(200)), Some(981));
        assert_eq!(budget.next(at(10_000)), Some(0));
    }

    #[test]
    fn what_nobody_takes_is_bounded_and_counted() {
        let mut queue = EventQueue::default();
        for _ in 0..MAX_WAITING_EVENTS + 7 {
            queue.push(None, EventKind::Down);
        }
        let taken: Vec<EventKind> = std::iter::from_fn(|| queue.pop()).map(|event| event.kind).collect();
        assert_eq!(taken.len(), MAX_WAITING_EVENTS + 1);
        assert_eq!(taken.last(), Some(&EventKind::Lost { count: 7 }));
    }
}
