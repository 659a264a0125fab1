//! Drives the peers' timers: the deadlines in order, and the timer checks that read what the workers stamped.
//!
//! A worker that finds [`PeerShared::armed`] clear sets it and sends [`Event::Activity`]; from then on the slow path checks by
//! itself at least every [`KEEPALIVE_TIMEOUT`]. That is often enough: a stamp made after a check asks for nothing sooner than
//! that time after itself. Once nothing moved between two checks the flag is cleared again, so an idle peer costs one heap
//! entry at most.
//!
//! [`PeerShared::armed`]: crate::dataplane::PeerShared::armed
//! [`Event::Activity`]: crate::dataplane::Event::Activity

use super::events::{DisconnectReason, EventKind};
use super::history::millis;
use super::peer::Watch;
use super::table::PeerTable;
use super::{Device, Now};
use crate::dataplane::{Control, PeerId, PeerShared};
use crate::noise::KEEPALIVE_TIMEOUT;
use crate::noise::timers::Due;
use crate::time::Instant;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::fence;
use std::time::Duration;

/// Number of peers checked in one call: 32 handshakes take some 2 ms, during which handshake messages wait.
const CHECKS_PER_CALL: usize = 32;
/// Shortest pause between two timer checks of one peer: an action that a worker has not carried out yet stays due until then.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
/// Deadlines of peers, the earliest first.
#[derive(Default)]
pub(super) struct Schedule {
    deadlines: BTreeSet<(Instant, u32)>,
}

impl Schedule {
    /// The earliest deadline.
    pub(super) fn next(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Moves a peer's deadline.
    pub(super) fn set(&mut self, peers: &mut PeerTable, slot: u32, at: Option<Instant>) {
        let Some(peer) = peers.get_mut(slot) else { return };
        if peer.scheduled == at {
            return;
        }
        self.forget(slot, peer.scheduled);
        peer.scheduled = at;
        if let Some(at) = at {
            self.deadlines.insert((at, slot));
        }
    }

    /// Forgets the deadline of a peer that is about to go.
    pub(super) fn forget(&mut self, slot: u32, scheduled: Option<Instant>) {
        if let Some(at) = scheduled {
            self.deadlines.remove(&(at, slot));
        }
    }

    /// Takes the next peer whose deadline has passed. The deadline is used up.
    fn pop(&mut self, peers: &mut PeerTable, now: Instant) -> Option<u32> {
        if self.next()? > now {
            return None;
        }
        let (_, slot) = self.deadlines.pop_first()?;
        if let Some(peer) = peers.get_mut(slot) {
            peer.scheduled = None;
        }
        Some(slot)
    }

    #[cfg(feature = "internals")]
    pub(super) fn len(&self) -> usize {
        self.deadlines.len()
    }
}

impl Device {
    /// Checks the timers of the peers whose deadlines have passed.
    pub(super) fn run_timers(&mut self, now: Now) {
        self.balance(now.mono);
        self.sweep(now);
        self.steer_some();
        self.directory.free_some();
        for _ in 0..CHECKS_PER_CALL {
            let Some(slot) = self.schedule.pop(&mut self.peers, now.mono) else { return };
            self.check_timers(now, slot);
        }
    }

    /// Notes that a worker's stamps of an unwatched peer moved.
    pub(super) fn activity(&mut self, now: Now, id: PeerId) {
        let up = self.is_up();
        let Some(peer) = self.peers.by_id(id) else { return };
        if up {
            peer.watch = Watch::On;
            // Its stamp may be of the very instant of the last check.
            peer.seen = None;
            self.check_timers(now, id.slot);
        } else {
            // The event crossed the interface's going down, and nobody watches the peer.
            peer.shared.armed.store(false, Relaxed);
        }
    }

    /// Does what is due for a peer and sets its next deadline.
    pub(super) fn check_timers(&mut self, now: Now, slot: u32) {
        if !self.is_up() {
            self.schedule.set(&mut self.peers, slot, None);
            return;
        }
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let (shared, freed) = (Arc::clone(&peer.shared), peer.sessions.expire(now.mono));
        self.drop_freed(&shared, freed);
        self.check_connection(now, slot);
        while let Some(due) = self.due(now, slot) {
            self.act(now, &shared, due);
        }
        let next = self.next_timer_check(now.mono, slot).map(|at| at.max(now.mono + SHORTEST_PAUSE));
        self.schedule.set(&mut self.peers, slot, next);
        self.glance(now.mono, slot);
    }

    /// Has the driver check a peer's timers as soon as it can.
    pub(super) fn check_timers_soon(&mut self, now: Now, slot: u32) {
        self.schedule.set(&mut self.peers, slot, Some(now.mono));
    }

    fn due(&mut self, now: Now, slot: u32) -> Option<Due> {
        let peer = self.peers.get_mut(slot)?;
        let activity = peer.shared.activity();
        let due = peer.timers.poll(now.mono, &activity, &mut *self.entropy);
        if let Some(stamp) = peer.timers.take_handled() {
            peer.shared.unanswered_handled(stamp);
            self.data_unanswered(slot, stamp);
        }
        due
    }

    fn act(&mut self, now: Now, peer: &PeerShared, due: Due) {
        let id = peer.id;
        match due {
            Due::Keepalive => self.keepalive(now, id.slot),
            Due::Initiate => {
                // The source address may be the trouble (kernel: `wg_expired_retransmit_handshake`,
                // `wg_expired_new_handshake`). The kernel lets go of it even while the peer is heard, and then what is sent
                // until the peer speaks again leaves with another source, which a translator before the peer does not let in.
                if !self.heard_since_initiation(id) {
                    self.clear_source(id);
                }
                self.initiate(now, id.slot);
            }
            Due::GiveUp => {
                self.stats.given_up += 1;
                if let Some(peer) = self.peers.by_id(id) {
                    peer.history().given_up_ms = Some(millis(now.wall));
                }
                self.note(id, EventKind::GivenUp);
                self.clear_handshake(id.slot);
                self.out.purge_staged(peer);
            }
            Due::ZeroKeys => {
                self.clear_handshake(id.slot);
                self.drop_sessions(now, id.slot, DisconnectReason::Expired);
                self.note(id, EventKind::KeysWiped);
            }
        }
    }

    /// Sends a keepalive, or begins the handshake that it needs first (kernel: `wg_packet_send_keepalive`).
    fn keepalive(&mut self, now: Now, slot: u32) {
        let Some(peer) = self.peers.get(slot) else { return };
        if let Some(session) = peer.sessions.current().filter(|session| session.usable(now.mono)) {
            let (owner, shared) = (self.owner_of(session.local_index()), Arc::clone(&peer.shared));
            self.out.one(owner, Control::Keepalive(shared));
        } else {
            self.want_handshake(now, slot);
        }
    }

    /// When the next timer check is due. Decides on the way whether the slow path goes on watching the peer's time stamps.
    fn next_timer_check(&mut self, now: Instant, slot: u32) -> Option<Instant> {
        let peer = self.peers.get_mut(slot)?;
        let mut activity = peer.shared.activity();
        if peer.watch == Watch::On && activity.last_authenticated == peer.seen {
            peer.watch = Watch::Off;
            peer.shared.armed.store(false, Relaxed);
            // Pairs with the fence of `PeerShared::arm`: a worker that still sees the flag set has its stamp seen here.
            fence(SeqCst);
            activity = peer.shared.activity();
        }
        // A stamp was made meanwhile, with or without a worker's event under way.
        if peer.watch != Watch::On && activity.last_authenticated != peer.seen {
            peer.shared.armed.store(true, Relaxed);
            peer.watch = Watch::On;
        }
        peer.seen = activity.last_authenticated;
        let watched = match peer.watch {
            Watch::On => Some(now + KEEPALIVE_TIMEOUT),
            Watch::Off => None,
        };
        let deadlines =
            [peer.timers.next(&activity), peer.sessions.next_expiry(), peer.connected_until(), watched];
        deadlines.into_iter().flatten().min()
    }
}
