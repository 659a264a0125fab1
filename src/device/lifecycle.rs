//! Interface up and down, the local key, peers added and removed (kernel `device.c`, `peer.c`, `netlink.c`).

use super::attempts::Attempts;
use super::outputs::Broadcast;
use super::peer::{Peer, Watch};
use super::{BindRequest, Device, Now};
use crate::crypto::stack;
use crate::crypto::x25519::{PrivateKey, PublicKey, SharedSecret};
use crate::dataplane::PeerShared;
use crate::noise::cookie::{CookieJar, GateKeys};
use crate::noise::handshake::{Handshake, Identity};
use crate::time::Instant;
use std::io::Error;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

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
            (InterfaceState::Binding(..) | InterfaceState::Up, false) => self.stop(),
            (InterfaceState::Unbound(_), false) => self.link = InterfaceState::Down,
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
                attempts.failed(now.mono, &error);
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
        self.link = InterfaceState::Up;
        self.port = port;
        for slot in self.peers.slots() {
            if let Some(peer) = self.peers.get_mut(slot).filter(|peer| peer.interrupted) {
                peer.interrupted = false;
                peer.timers.start_with_handshake(now.mono);
                self.check_timers_soon(now, slot);
            } else {
                self.restart_timers(now, slot);
            }
        }
    }

    fn stop(&mut self) {
        self.link = InterfaceState::Down;
        for slot in self.peers.slots() {
            if let Some(peer) = self.peers.get_mut(slot) {
                peer.interrupted |= peer.sessions.current().is_some();
            }
            self.forget_secrets(slot);
            if let Some(peer) = self.peers.get_mut(slot) {
                self.out.purge_staged(&peer.shared);
                peer.watch = Watch::Off;
                peer.shared.armed.store(false, Relaxed);
            }
            self.schedule.set(&mut self.peers, slot, None);
        }
        self.schedule.clear();
        self.out.bind(None);
    }

    /// Makes a peer's timers run. If it has a persistent keepalive, the first is due now.
    fn restart_timers(&mut self, now: Now, slot: u32) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        peer.timers.start(now.mono);
        if peer.timers.persistent_keepalive() > 0 {
            self.check_timers_soon(now, slot);
        }
    }

    /// Sets another private key, or none. Sessions are dropped, and made anew with the next packet or keepalive. The
    /// timestamps accepted from peers stay, so that no old initiation can be replayed if the key comes back.
    pub(super) fn set_private_key(&mut self, now: Now, key: Option<PrivateKey>) {
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
            return;
        }
        let keys = identity.as_ref().map(|identity| GateKeys::new(identity.public(), &mut *self.entropy));
        self.identity = identity;
        self.out.all(Broadcast::Identity(keys.map(Box::new)));
        for slot in self.peers.slots() {
            self.forget_secrets(slot);
            if let Some(peer) = self.peers.get_mut(slot) {
                peer.handshake.identity_changed();
                // Packets that waited for a key may now ask for a handshake again at once.
                peer.shared.forget_asked();
            }
            if self.is_up() {
                self.restart_timers(now, slot);
            }
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
        if let Some(peer) = self.peers.get(id.slot) {
            self.directory.insert(Arc::clone(&peer.shared));
        }
        id.slot
    }

    /// Removes a peer with all that belongs to it. What the workers have staged for it goes with the next directory.
    pub(super) fn remove_peer(&mut self, slot: u32) {
        self.allowed.remove_some(&mut self.peers, slot, usize::MAX);
        let Some(mut peer) = self.peers.remove(slot) else { return };
        self.forget_load(peer.shared.id);
        self.directory.remove(slot);
        peer.handshake.pending_index().into_iter().for_each(|index| self.indices.free(index));
        // From now on nothing is sent to it; the owner withdraws its session.
        peer.shared.sending.set_endpoint(None);
        let freed = peer.sessions.clear();
        self.drop_freed(&peer.shared, freed);
    }

    /// Drops a peer's sessions and handshake and stops its timers; its configuration stays.
    fn forget_secrets(&mut self, slot: u32) {
        self.clear_handshake(slot);
        self.drop_sessions(slot);
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

    /// Forgets all sessions.
    pub(super) fn drop_sessions(&mut self, slot: u32) {
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
