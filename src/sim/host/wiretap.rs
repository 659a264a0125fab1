//! What no run may show, seen from within a host: a nonce that is used twice, a key that is used too long, a handshake begun too
//! soon, and what is left behind.

use super::SimHost;
use crate::dataplane::PeerId;
use crate::noise::session::SendSession;
use crate::noise::{REJECT_AFTER_TIME, REKEY_TIMEOUT};
use crate::sim::io::SentDatagram;
use crate::sim::net::Datagram;
use crate::time::Instant;
use crate::wire::message::{DataHeader, MessageKind, classify, index};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// How long a key is remembered: longer than anything that was sealed with it waits for its socket.
const MEMORY: Duration = Duration::from_secs(1200);

/// One key to send with.
struct WatchedKey {
    born: Instant,
    counters: HashSet<u64>,
}

/// What a host did so far that bears on what it may do.
#[derive(Default)]
pub(super) struct Wiretap {
    /// The keys, by the peer's slot and the index that the peer gave.
    keys: HashMap<(u32, u32), WatchedKey>,
    /// The sending halves that were installed, by local index.
    sessions: Vec<(u32, Weak<SendSession>)>,
    /// When an initiation was last decided on, by the peer's slot.
    initiated: HashMap<u32, Instant>,
    found: Vec<String>,
}

impl Wiretap {
    /// Notes a session that is given to its owner.
    pub(super) fn installed(&mut self, now: Instant, peer: PeerId, send: &Arc<SendSession>) {
        self.keys.retain(|_, key| now.since(key.born) < MEMORY);
        self.sessions.retain(|(_, session)| session.strong_count() > 0);
        let key = WatchedKey { born: send.born(), counters: HashSet::new() };
        self.keys.insert((peer.slot, send.remote_index()), key);
        self.sessions.push((send.local_index(), Arc::downgrade(send)));
    }

    /// Goes on as the wiretap of another process, in which peers have other slots, by the old ones.
    pub(super) fn taken_over(self, slots: &HashMap<u32, u32>) -> Wiretap {
        let Wiretap { keys, initiated, found, .. } = self;
        let slot = |old: u32| slots.get(&old).copied().unwrap_or(u32::MAX);
        Wiretap {
            keys: keys.into_iter().map(|((peer, index), key)| ((slot(peer), index), key)).collect(),
            sessions: Vec::new(),
            initiated: initiated.into_iter().map(|(peer, at)| (slot(peer), at)).collect(),
            found,
        }
    }

    /// Notes a session that was taken over.
    pub(super) fn restored(&mut self, index: u32, send: &Arc<SendSession>) {
        self.sessions.push((index, Arc::downgrade(send)));
    }

    /// Notes a handshake message that the slow path decided to send.
    pub(super) fn decided(&mut self, now: Instant, slot: u32, message: &[u8]) {
        if classify(message) != Some(MessageKind::Initiation) {
            return;
        }
        if let Some(last) = self.initiated.insert(slot, now)
            && now.since(last) < REKEY_TIMEOUT
        {
            let pause = now.since(last);
            self.found.push(format!("timer: initiations to peer {slot} within {pause:?} at {now:?}"));
        }
    }

    /// Forgets when handshakes began, as the device begins another life.
    pub(super) fn forget_initiations(&mut self) {
        self.initiated.clear();
    }

    /// Checks what a worker sends.
    pub(super) fn sent(&mut self, out: &SentDatagram) {
        let header =
            DataHeader::parse(&out.bytes).filter(|_| classify(&out.bytes) == Some(MessageKind::Data));
        let (Some(header), Some(slot)) = (header, out.peer) else { return };
        let DataHeader { receiver, counter } = header;
        let Some(key) = self.keys.get_mut(&(slot, receiver)) else {
            return self.found.push(format!("key: data for index {receiver:#x} without a session"));
        };
        if !key.counters.insert(counter) {
            self.found.push(format!("nonce: counter {counter} sent twice to index {receiver:#x}"));
        }
        let age = out.sealed.since(key.born);
        if age >= REJECT_AFTER_TIME {
            self.found.push(format!("timer: sealed with a key {age:?} old at {:?}", out.sealed));
        }
    }

    /// The sending halves that still exist although their sessions were dropped.
    fn left_over(&self, indices: &HashMap<u32, PeerId>) -> usize {
        let gone = |(index, session): &&(u32, Weak<SendSession>)| {
            session.strong_count() > 0 && !indices.contains_key(index)
        };
        self.sessions.iter().filter(gone).count()
    }
}

impl SimHost {
    /// Checks that the low byte of a receiver index that this host announces names a worker.
    pub(super) fn check_index(&mut self, datagram: &Datagram) {
        let announced = match datagram.kind() {
            Some(MessageKind::Initiation | MessageKind::Response) => index(&datagram.bytes),
            _ => None,
        };
        let Some(index) = announced else { return };
        if usize::from(index as u8) >= usize::from(self.config.workers) {
            self.violations.push(format!("index {index:#x} names no worker"));
        }
    }

    /// Everything that no run may show, of this host.
    pub fn violations(&self) -> impl Iterator<Item = &String> {
        self.violations.iter().chain(&self.wiretap.found)
    }

    /// What the host has and should not, once it is at rest with nothing under way: buffers, sessions and indices of nobody.
    pub fn leaks(&self) -> Vec<String> {
        let mut leaks = Vec::new();
        for (id, lane) in self.lanes.iter().enumerate() {
            let held = lane.io.held_buffers();
            if held > 0 {
                leaks.push(format!("leak: worker {id} holds {held} buffers"));
            }
        }
        let installed = self.indices.len();
        let received: usize = self.lanes.iter().map(|lane| lane.worker.sessions()).sum();
        if received != installed {
            leaks.push(format!("leak: {installed} sessions were installed, {received} are received on"));
        }
        let [peers, indices, _] = self.device.held();
        // Each peer may have an initiation outstanding.
        if !(installed..=installed + peers).contains(&indices) {
            leaks.push(format!("leak: {indices} indices for {installed} sessions of {peers} peers"));
        }
        let left_over = self.wiretap.left_over(&self.indices);
        if left_over > 0 {
            leaks.push(format!("leak: {left_over} keys of dropped sessions"));
        }
        leaks
    }
}
