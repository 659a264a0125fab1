//! Interface up and down, the local key, peers added and removed (kernel `device.c`, `peer.c`, `netlink.c`).

use super::attempts::Attempts;
use super::events::{DisconnectReason, EventKind};
use super::outputs::Broadcast;
use super::peer::{Peer, Watch};
use super::table::next_batch;
use super::{BindRequest, Device, Now};
use crate::crypto::stack;
use crate::crypto::x25519::{PrivateKey, PublicKey, SharedSecret};
use crate::dataplane::PeerShared;
use crate::noise::cookie::{CookieJar, GateKeys};
use crate::noise::handshake::{Handshake, Identity};
use crate::time::Instant;
use std::io::Error;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// Number of peers that are taken up or down in one call, in about a quarter of a millisecond.
pub(super) const SWEPT: u32 = 256;

/// The peers that are not taken up or down yet after the interface was.
pub(super) struct InterfaceSweep {
    up: bool,
    left: Range<u32>,
}

/// The state of the interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum InterfaceState {
    Down,
    /// Up; sockets were asked for at this time.
    Binding(Now, Attempts),
    /// Up, but without sockets. Binding is tried again, and another port may succeed sooner.
    Unbound(Attempts),
    Up,
}

impl Device {
    /// Takes the interface up or down. Sockets are opened or closed, and going down drops the sessions (kernel
    /// `wg_open`, `wg_stop`).
    pub fn set_up(&mut self, now: Now, up: bool) {
        match (self.link, up) {
            (InterfaceState::Down, true) => self.bind(now, Attempts::new(now.mono)),
            (InterfaceState::Binding(..) | InterfaceState::Up, false) => self.stop(now),
            (InterfaceState::Unbound(_), false) => {
                self.link = InterfaceState::Down;
                self.note_device(|| EventKind::Down);
            }
            (InterfaceState::Binding(..) | InterfaceState::Unbound(_) | InterfaceState::Up, true)
            | (InterfaceState::Down, false) => {}
        }
    }

    fn bind(&mut self, now: Now, attempts: Attempts) {
        self.link = InterfaceState::Binding(now, attempts);
        self.out.bind(Some(BindRequest { port: self.port, mark: self.mark }));
    }

    /// When to try again to bind, where binding failed.
    pub(super) fn next_attempt(&self) -> Option<Instant> {
        match self.link {
            InterfaceState::Unbound(attempts) => Some(attempts.next),
            _ => None,
        }
    }

    /// Tries again to bind, where it is time.
    pub(super) fn try_again(&mut self, now: Now) {
        if let InterfaceState::Unbound(attempts) = self.link
            && attempts.next <= now.mono
        {
            self.bind(now, attempts);
        }
    }

    /// Takes the driver's answer to [`super::Output::Bind`]: the port, or why there is none (EADDRINUSE). In that
    /// case the device is without sockets until a later attempt, or one with another port, succeeds.
    pub fn bound(&mut self, result: Result<u16, Error>) {
        let InterfaceState::Binding(now, mut attempts) = self.link else { return };
        match result {
            Ok(port) => {
                attempts.succeeded(port);
                self.start(now, port);
            }
            Err(error) => {
                if attempts.failed(now.mono, &error) {
                    let port = self.port;
                    self.note_device(|| EventKind::Unbound { port, error: error.to_string() });
                }
                self.link = InterfaceState::Unbound(attempts);
            }
        }
    }

    /// Notes that the sockets are there. Persistent keepalives begin, and where a session was lost in going down,
    /// another handshake begins.
    ///
    /// The kernel drops sessions, too, and begins no handshake (`wg_open` sends what is staged). Then the other end
    /// sends on a dead session until 15 s have passed without an answer.
    pub(super) fn start(&mut self, now: Now, port: u16) {
        self.begin_sweep(now, true);
        self.link = InterfaceState::Up;
        self.port = port;
        self.note_device(|| EventKind::Up { port });
        self.sweep(now);
    }

    /// Closes the sockets. From now on no handshake is answered and no timer runs, so the sessions, which nothing can use
    /// without sockets, may go in batches.
    fn stop(&mut self, now: Now) {
        self.begin_sweep(now, false);
        self.link = InterfaceState::Down;
        self.note_device(|| EventKind::Down);
        self.sweep(now);
        self.out.bind(None);
    }

    /// Begins to take all peers up or down. What is left of an earlier change is carried out at once.
    fn begin_sweep(&mut self, now: Now, up: bool) {
        while self.sweep.is_some() {
            self.sweep(now);
        }
        self.sweep = Some(InterfaceSweep { up, left: self.peers.slots() });
    }

    /// Takes some peers up or down, where the interface was and this is not done for all.
    pub(super) fn sweep(&mut self, now: Now) {
        let Some(InterfaceSweep { up, left }) = &mut self.sweep else { return };
        let (up, batch) = (*up, next_batch(left, SWEPT));
        if left.start >= left.end {
            self.sweep = None;
        }
        for slot in batch {
            match up {
                true => self.take_up(now, slot),
                false => self.take_down(now, slot),
            }
        }
    }

    fn take_up(&mut self, now: Now, slot: u32) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        // The peer itself may have been faster.
        if std::mem::take(&mut peer.interrupted) && peer.sessions.current().is_none() {
            peer.timers.start_with_handshake(now.mono);
            self.check_timers_soon(now, slot);
        } else {
            self.restart_timers(now, slot);
        }
    }

    fn take_down(&mut self, now: Now, slot: u32) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        peer.interrupted |= peer.sessions.current().is_some();
        self.forget_secrets(now, slot, DisconnectReason::InterfaceDown);
        if let Some(peer) = self.peers.get_mut(slot) {
            self.out.purge_staged(&peer.shared);
            peer.watch = Watch::Off;
            peer.shared.armed.store(false, Relaxed);
        }
        self.schedule.set(&mut self.peers, slot, None);
    }

    /// Makes a peer's timers run. If it has a persistent keepalive, the first is due now.
    fn restart_timers(&mut self, now: Now, slot: u32) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        peer.timers.start(now.mono);
        if peer.timers.persistent_keepalive() > 0 {
            self.check_timers_soon(now, slot);
        }
    }

    /// Sets another private key, or none. True where it is another: then [`Self::renew`] is to be called for all peers.
    pub(super) fn set_private_key(&mut self, key: Option<PrivateKey>) -> bool {
        let (identity, is_same) = stack::leaving_nothing(|| {
            let identity = key.map(|key| Arc::new(Identity::new(key)));
            let is_same = same_key(self.identity.as_deref(), identity.as_deref());
            (identity, is_same)
        });
        // The device is no peer of its own (kernel: `wg_set_device`).
        if let Some(slot) = identity.as_ref().and_then(|identity| self.peers.find(identity.public())) {
            self.remove_peer(slot);
        }
        if is_same {
            return false;
        }
        let keys = identity.as_ref().map(|identity| GateKeys::new(identity.public(), &mut *self.entropy));
        self.identity = identity;
        self.cookies.clone_from(&keys);
        self.out.all(Broadcast::Identity(keys.map(Box::new)));
        self.identity_number = self.identity_number.wrapping_add(1);
        true
    }

    /// Drops what a peer has of an earlier private key. Sessions are made anew with the next packet or keepalive. The
    /// timestamp accepted from the peer stays, so that no old initiation can be replayed if the key comes back.
    ///
    /// Among many peers this takes a while, and who needs a handshake meanwhile has this done first.
    pub(super) fn renew(&mut self, now: Now, slot: u32) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        if std::mem::replace(&mut peer.identity, self.identity_number) == self.identity_number {
            return;
        }
        self.forget_secrets(now, slot, DisconnectReason::KeyChanged);
        if let Some(peer) = self.peers.get_mut(slot) {
            peer.handshake.identity_changed();
            // Packets that waited for a key may now ask for a handshake again at once.
            peer.shared.forget_asked();
        }
        if self.is_up() {
            self.restart_timers(now, slot);
        }
    }

    /// Adds a peer, with a preshared key if it has one.
    pub(super) fn add_peer(&mut self, key: PublicKey, psk: Option<&SharedSecret>) -> u32 {
        let id = stack::leaving_nothing(|| {
            self.peers.insert(key, |id, owner| {
                let psk = psk.cloned().unwrap_or(SharedSecret([0; 32]));
                let handshake = Handshake::new(key, psk);
                Peer::new(key, Arc::new(PeerShared::new(id, owner)), handshake, CookieJar::new(&key))
            })
        });
        if let Some(peer) = self.peers.get_mut(id.slot) {
            peer.identity = self.identity_number;
            let shared = Arc::clone(&peer.shared);
            self.share_added(&shared);
            self.directory.insert(shared);
        }
        self.note_key(key, EventKind::PeerAdded);
        id.slot
    }

    /// Removes a peer with all that belongs to it. What the workers have staged for it goes with the next directory.
    pub(super) fn remove_peer(&mut self, slot: u32) {
        self.allowed.remove_some(&mut self.peers, slot, usize::MAX);
        let Some(mut peer) = self.peers.remove(slot) else { return };
        if peer.shared.note_disconnected() {
            self.note_key(peer.public_key, EventKind::Disconnected { why: DisconnectReason::Removed });
        }
        self.note_key(peer.public_key, EventKind::PeerRemoved);
        self.schedule.forget(slot, peer.scheduled);
        self.forget_load(peer.shared.id);
        self.directory.remove(slot);
        peer.handshake.pending_index().into_iter().for_each(|index| self.indices.free(index));
        // From now on nothing is sent to it; the owner withdraws its session.
        peer.shared.sending.set_endpoint(None);
        let freed = peer.sessions.clear();
        self.drop_freed(&peer.shared, freed);
    }

    /// Drops a peer's sessions and handshake and stops its timers; its configuration stays.
    fn forget_secrets(&mut self, now: Now, slot: u32, why: DisconnectReason) {
        self.clear_handshake(slot);
        self.drop_sessions(now, slot, why);
        if let Some(peer) = self.peers.get_mut(slot) {
            peer.timers.stop();
        }
    }

    /// Forgets the outstanding initiation.
    pub(super) fn clear_handshake(&mut self, slot: u32) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        if let Some(index) = peer.handshake.pending_index() {
            self.indices.free(index);
        }
        peer.handshake.clear();
    }

    /// Forgets all sessions, for the reason `why`.
    pub(super) fn drop_sessions(&mut self, now: Now, slot: u32, why: DisconnectReason) {
        self.disconnect(now, slot, why);
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let (shared, freed) = (Arc::clone(&peer.shared), peer.sessions.clear());
        self.drop_freed(&shared, freed);
    }
}

fn same_key(one: Option<&Identity>, other: Option<&Identity>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => one.private() == other.private(),
        (one, other) => one.is_none() && other.is_none(),
    }
}
