//! Where peers are, and from which of our addresses they are spoken to (kernel `socket.c`).

use super::outputs::Broadcast;
use super::{Departure, Device};
use crate::dataplane::PeerId;
use crate::io::Endpoint;

/// Peers whose sources are checked at once: two questions to the kernel each, about 2 ms in all.
const BATCH: usize = 256;

impl Device {
    /// An authentic message came from `heard.addr` to `heard.from`: that is where the peer is.
    pub(super) fn heard_from(&mut self, id: PeerId, heard: Endpoint) {
        let Some(peer) = self.peers.by_id(id) else { return };
        if peer.heard == Some(heard) {
            return;
        }
        peer.heard = Some(heard);
        self.pin(id, heard);
    }

    /// Speaks to the peer from the address that it spoke to, as long as the route leaves by the interface on which it did
    /// (kernel `send4`); else the route chooses.
    fn pin(&mut self, id: PeerId, heard: Endpoint) {
        let (to, port, mark) = (heard.addr, self.port, self.mark);
        let from = heard.from.filter(|&from| (self.may_depart)(&Departure { to, from, port, mark }));
        self.set_endpoint(id, Endpoint { addr: to, from });
    }

    /// Stores an endpoint and tells the workers, if it is another one.
    pub(super) fn set_endpoint(&mut self, id: PeerId, endpoint: Endpoint) {
        let Some(peer) = self.peers.by_id(id) else { return };
        if peer.endpoint.replace(endpoint) != Some(endpoint) {
            self.out.all(Broadcast::Endpoint(id, Some(endpoint)));
        }
    }

    /// Lets the kernel's route choose the source again (kernel: `wg_socket_clear_peer_endpoint_src`).
    pub(super) fn clear_source(&mut self, id: PeerId) {
        let Some(peer) = self.peers.by_id(id) else { return };
        peer.heard = None;
        if let Some(endpoint @ Endpoint { from: Some(_), .. }) = peer.endpoint {
            self.set_endpoint(id, Endpoint { from: None, ..endpoint });
        }
    }

    /// A route, a rule, an address or an interface changed: what peers are spoken to from has to be checked.
    pub fn routes_changed(&mut self) {
        self.unchecked = self.peers.slots();
    }

    /// Whether [`Self::check_sources`] has something to do.
    pub fn has_unchecked_sources(&self) -> bool {
        !self.unchecked.is_empty()
    }

    /// Checks the sources of some peers after the routes changed. A source let go before is taken again where its way is
    /// mended.
    pub fn check_sources(&mut self) {
        for _ in 0..BATCH {
            let Some(slot) = self.unchecked.pop() else { return };
            let heard = self.peers.get_mut(slot).and_then(|peer| Some((peer.shared.id, peer.heard?)));
            if let Some((id, heard)) = heard {
                self.pin(id, heard);
            }
        }
    }
}
