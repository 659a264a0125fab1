//! One configuration transaction (kernel `netlink.c`: `wg_set_device`, `set_peer`).

use super::lifecycle::Link;
use super::table::MAX_PEERS;
use super::uapi::{PeerRequest, SetRequest};
use super::{BindRequest, Device, Now};
use crate::crypto::x25519::SharedSecret;
use crate::io::Endpoint;

/// ENOMEM: more peers than [`MAX_PEERS`] (the kernel's answer, too).
const ENOMEM: i32 = 12;

/// Binds sockets to a port and mark while the old ones stay open; returns the port bound, or an error number.
pub type Bind<'a> = &'a mut dyn FnMut(BindRequest) -> Result<u16, i32>;

impl Device {
    /// Applies a validated request, whole or, with an error number, not at all.
    ///
    /// `bind` is called at most once and before anything else changes: when the interface is up and `listen_port` asks for
    /// another port. What it bound replaces the workers' sockets (the driver hands them out with
    /// [`crate::dataplane::Control::Rebind`] once this returned); if it fails the old port stays.
    pub fn apply(&mut self, now: Now, request: &SetRequest, bind: Bind<'_>) -> Result<(), i32> {
        if self.peers_after(request) > MAX_PEERS {
            return Err(ENOMEM);
        }
        self.apply_socket(now, request, bind)?;
        if request.replace_peers {
            for slot in self.peers.slots() {
                self.remove_peer(slot);
            }
        }
        if let Some(key) = &request.private_key {
            self.set_private_key(now, key.clone());
        }
        for peer in &request.peers {
            self.apply_peer(now, peer);
        }
        self.allowed.publish(&self.peers, &mut self.out);
        self.peers.recycle();
        Ok(())
    }

    /// An upper bound of the peers there will be.
    fn peers_after(&self, request: &SetRequest) -> usize {
        let kept = if request.replace_peers { 0 } else { self.peers.len() };
        let may_add = |peer: &&PeerRequest| {
            let known = !request.replace_peers && self.peers.find(&peer.public_key).is_some();
            !(peer.remove || peer.update_only || known)
        };
        kept + request.peers.iter().filter(may_add).count()
    }

    /// Port and mark. Either change may alter the route to every peer, so sources are chosen anew.
    fn apply_socket(&mut self, now: Now, request: &SetRequest, bind: Bind<'_>) -> Result<(), i32> {
        let mark = request.fwmark.unwrap_or(self.mark);
        let port = request.listen_port.unwrap_or(self.port);
        let moves = match self.link {
            Link::Up => port != self.port,
            Link::Unbound => request.listen_port.is_some(),
            Link::Down | Link::Binding(_) => false,
        };
        let bound = if moves { bind(BindRequest { port, mark })? } else { port };
        if (bound, mark) != (self.port, self.mark) {
            self.clear_sources();
        }
        if self.is_up() && !moves && mark != self.mark {
            self.out.mark(mark);
        }
        self.mark = mark;
        self.port = bound;
        if moves && self.link == Link::Unbound {
            self.start(now, bound);
        }
        Ok(())
    }

    fn clear_sources(&mut self) {
        let ids: Vec<_> = self.peers.iter().map(|peer| peer.shared.id).collect();
        for id in ids {
            self.clear_source(id);
        }
    }

    fn apply_peer(&mut self, now: Now, request: &PeerRequest) {
        let slot = match self.peers.find(&request.public_key) {
            Some(slot) if request.remove => return self.remove_peer(slot),
            Some(slot) => {
                self.apply_psk(slot, request.preshared_key.as_ref());
                slot
            }
            // Our own key is skipped silently, so that one list of peers may serve all of them (kernel: `set_peer`).
            None if request.remove
                || request.update_only
                || self.public_key() == Some(&request.public_key) =>
            {
                return;
            }
            None => {
                let psk = request.preshared_key.clone().unwrap_or(SharedSecret([0; 32]));
                self.add_peer(request.public_key, psk)
            }
        };
        if let Some(addr) = request.endpoint {
            self.apply_endpoint(slot, Endpoint { addr, from: None });
        }
        self.apply_allowed_ips(slot, request);
        if let Some(seconds) = request.persistent_keepalive {
            self.apply_keepalive(now, slot, seconds);
        }
    }

    /// Takes effect with the next handshake; sessions stay.
    fn apply_psk(&mut self, slot: u32, psk: Option<&SharedSecret>) {
        if let (Some(peer), Some(psk)) = (self.peers.get_mut(slot), psk) {
            peer.handshake.set_psk(psk.clone());
        }
    }

    fn apply_endpoint(&mut self, slot: u32, endpoint: Endpoint) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        peer.heard = None;
        let id = peer.shared.id;
        self.set_endpoint(id, endpoint);
    }

    fn apply_allowed_ips(&mut self, slot: u32, request: &PeerRequest) {
        if request.replace_allowed_ips {
            self.allowed.remove_all(&mut self.peers, slot);
        }
        for allowed in &request.allowed_ips {
            if allowed.remove {
                self.allowed.remove(&mut self.peers, slot, allowed.prefix);
            } else {
                self.allowed.insert(&mut self.peers, slot, allowed.prefix);
            }
        }
    }

    fn apply_keepalive(&mut self, now: Now, slot: u32, seconds: u16) {
        let up = self.is_up();
        let Some(peer) = self.peers.get_mut(slot) else { return };
        peer.timers.set_persistent_keepalive(seconds);
        if up {
            self.look_soon(now, slot);
        }
    }
}
