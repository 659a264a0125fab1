//! What a worker sends to other threads: events and handshake messages to the slow path, misdirected datagrams to
//! other workers. Each of them is woken at most once a turn.

use crate::dataplane::misdirected::Misdirected;
use crate::dataplane::stats::{WorkerStats, add};
use crate::dataplane::{Event, Inbox, IncomingHandshake, LOAD_MEMORY, Links, PeerShared, SlowPathInbox};
use crate::index::WorkerCount;
use crate::io::Notice;
use crate::time::{Instant, TokenBucket};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// The time in which another report of a handshake message with a wrong MAC1, or of a packet with a wrong source, may be made.
const SAMPLE_COST: Duration = Duration::from_millis(250);
/// Such reports at once, as time: 16 of each.
const SAMPLE_BURST: Duration = Duration::from_secs(4);
/// Shortest time between two lines of log about routing loops.
const LOOP_INTERVAL: Duration = Duration::from_secs(60);

/// The outgoing side of a worker's mailboxes, and its counters.
pub(super) struct WorkerOutbox {
    pub(super) id: u8,
    pub(super) stats: Arc<WorkerStats>,
    slow: SlowPathInbox,
    workers: Vec<Inbox>,
    ring_slow: bool,
    ring_workers: Vec<bool>,
    wrong_macs: TokenBucket,
    refusal_reports: TokenBucket,
}

impl WorkerOutbox {
    pub(super) fn new(id: u8, links: &Links) -> WorkerOutbox {
        WorkerOutbox {
            id,
            stats: Arc::clone(&links.workers[usize::from(id)].stats),
            slow: links.slow.clone(),
            workers: links.workers.clone(),
            ring_slow: false,
            ring_workers: vec![false; links.workers.len()],
            wrong_macs: TokenBucket::default(),
            refusal_reports: TokenBucket::default(),
        }
    }

    /// Queues an event. False where the queue is full; then the caller sees to it that the event is tried again.
    pub(super) fn emit(&mut self, event: Event) -> bool {
        let queued = self.slow.events.push(event).is_ok();
        if queued {
            self.ring_slow = true;
        } else {
            add(&self.stats.events_deferred, 1);
        }
        queued
    }

    /// How many workers there are.
    pub(super) fn workers(&self) -> WorkerCount {
        WorkerCount::nearest(self.workers.len())
    }

    /// Has the slow path rung at the end of the turn.
    pub(super) fn ring_slow_path(&mut self) {
        self.ring_slow = true;
    }

    /// Announces to the slow path that the peer's stamps moved, unless it watches them.
    pub(super) fn activity(&mut self, peer: &PeerShared) {
        if peer.arm() && !self.emit(Event::Activity(peer.id)) {
            peer.armed.store(false, Relaxed);
        }
    }

    /// Asks the slow path for a handshake, unless this or another worker did so just now.
    pub(super) fn need_handshake(&mut self, peer: &PeerShared, now: Instant) {
        if !peer.may_ask(now) || peer.handshake_wanted.swap(true, Relaxed) {
            return;
        }
        if self.emit(Event::NeedHandshake(peer.id)) {
            peer.note_asked(now);
        } else {
            peer.handshake_wanted.store(false, Relaxed);
        }
    }

    /// Reports a handshake message with a wrong MAC1, unless many were reported of late.
    pub(super) fn wrong_mac1(&mut self, from: SocketAddr, now: Instant) {
        if self.wrong_macs.draw(now, SAMPLE_COST, SAMPLE_BURST) {
            self.emit(Event::WrongMac1(from));
        }
    }

    /// Counts packets of a peer's whose source is not the peer's, and reports the last, unless many were reported of late.
    pub(super) fn refused_sources(&mut self, peer: &PeerShared, count: usize, last: IpAddr, now: Instant) {
        add(&self.stats.rx_bad_source, count);
        peer.refused_sources.fetch_add(count as u64, Relaxed);
        if self.refusal_reports.draw(now, SAMPLE_COST, SAMPLE_BURST) {
            self.emit(Event::SourceRefused(peer.id, last));
        }
    }

    /// Whether a cookie must be asked for, since too many handshake messages wait, or did a moment ago.
    pub(super) fn slow_path_is_loaded(&self, now: Instant) -> bool {
        if self.slow.handshakes.is_loaded() {
            self.slow.loaded_at.store(now.as_nanos(), Relaxed);
            return true;
        }
        let last = self.slow.loaded_at.load(Relaxed);
        last != 0 && now.since(Instant::from_nanos(last)) < LOAD_MEMORY
    }

    /// Passes a handshake message to the slow path, or drops it where the queue is full. A flood ends at this bound.
    pub(super) fn handshake(&mut self, message: IncomingHandshake) {
        if self.slow.handshakes.push(message) {
            self.ring_slow = true;
            add(&self.stats.rx_handshakes, 1);
        } else {
            add(&self.stats.rx_handshakes_dropped, 1);
        }
    }

    /// Passes `count` data messages to their owner.
    pub(super) fn misdirected(
        &mut self,
        owner: u8,
        count: usize,
        len: usize,
        misdirected: impl FnOnce() -> Misdirected,
    ) {
        let owner = usize::from(owner);
        let Some(inbox) = self.workers.get(owner) else {
            add(&self.stats.rx_unknown_index, count);
            return;
        };
        if !(inbox.misdirected.has_room(len) && inbox.misdirected.push(misdirected())) {
            add(&self.stats.misdirected_dropped, count);
            return;
        }
        self.ring_workers[owner] = true;
        add(&self.stats.misdirected_out, count);
    }

    /// Queues a notice for the log, or drops it where too many wait.
    pub(super) fn notice(&mut self, worker: u8, notice: Notice) {
        if self.slow.notices.push((worker, notice)).is_ok() {
            self.ring_slow = true;
        } else {
            add(&self.stats.notices_dropped, 1);
        }
    }

    /// Queues a notice of a routing loop, unless this or another worker did so a short while ago.
    pub(super) fn routing_loop(&mut self, to: SocketAddr, now: Instant) {
        let last = self.slow.looped_at.load(Relaxed);
        let is_soon = last != 0 && now.since(Instant::from_nanos(last)) < LOOP_INTERVAL;
        let is_first = |at: &AtomicU64| at.compare_exchange(last, now.as_nanos(), Relaxed, Relaxed).is_ok();
        if !is_soon && is_first(&self.slow.looped_at) {
            self.notice(self.id, Notice::RoutingLoop { to });
        }
    }

    /// Wakes every thread for which something was queued in this turn.
    pub(super) fn ring(&mut self) {
        if std::mem::take(&mut self.ring_slow) {
            self.slow.waker.wake();
        }
        for (ring, inbox) in self.ring_workers.iter_mut().zip(&self.workers) {
            if std::mem::take(ring) {
                inbox.waker.wake();
            }
        }
    }
}
