//! Where peers are, and from which local addresses they are spoken to (kernel `socket.c`).

use super::events::EventKind;
use super::table::next_batch;
use super::{Departure, Device};
use crate::dataplane::PeerId;
use crate::io::Endpoint;

/// Number of peers whose sources are checked in one call. Each takes two questions to the kernel, so all take about 2
/// ms.
const BATCH: u32 = 256;

impl Device {
    /// Notes that an authentic message came from `heard.addr` to `heard.from`, so that this is where the peer is.
    pub(super) fn heard_from(&mut self, id: PeerId, heard: Endpoint) {
        if self.take_heard(id, heard) {
            self.send_staged(id);
        }
    }

    /// Does as [`Self::heard_from`] where what is staged for the peer is about to be sent anyway. True where the endpoint is
    /// another one now.
    pub(super) fn take_heard(&mut self, id: PeerId, heard: Endpoint) -> bool {
        let Some(peer) = self.peers.by_id(id) else { return false };
        peer.heard.replace(heard) != Some(heard) && self.pin(id, heard)
    }

    /// Sets the endpoint by which to speak to the peer. It has the local address that the peer spoke to, as long as the
    /// route leaves by the interface on which it did (kernel `send4`). Otherwise the route chooses the source.
    fn pin(&mut self, id: PeerId, heard: Endpoint) -> bool {
        let (to, port, mark) = (heard.addr, self.port, self.mark);
        let from = heard.from.filter(|&from| (self.may_depart)(&Departure { to, from, port, mark }));
        self.publish_endpoint(id, Endpoint { addr: to, from })
    }

    /// Stores an endpoint and publishes it to the workers, if it is another one.
    pub(super) fn set_endpoint(&mut self, id: PeerId, endpoint: Endpoint) {
        if self.publish_endpoint(id, endpoint) {
            self.send_staged(id);
        }
    }

    fn publish_endpoint(&mut self, id: PeerId, endpoint: Endpoint) -> bool {
        let Some(peer) = self.peers.by_id(id) else { return false };
        let before = peer.endpoint.replace(endpoint);
        let is_another = before != Some(endpoint);
        if is_another {
            peer.shared.sending.set_endpoint(Some(endpoint));
        }
        if before.map(|before| before.addr) != Some(endpoint.addr) {
            self.note(id, EventKind::Moved { to: endpoint.addr });
        }
        is_another
    }

    fn send_staged(&mut self, id: PeerId) {
        if let Some(peer) = self.peers.by_id(id) {
            self.out.send_staged(&peer.shared);
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

    /// Notes that a route, a rule, an address or an interface changed, so that the sources of peers have to be
    /// checked.
    pub fn routes_changed(&mut self) {
        self.unchecked = self.peers.slots();
    }

    /// Whether [`Self::check_sources`] has something to do.
    pub fn has_unchecked_sources(&self) -> bool {
        !self.unchecked.is_empty()
    }

    /// Checks the sources of some peers after the routes changed. A source that was let go is taken again where its
    /// way is there again.
    pub fn check_sources(&mut self) {
        for slot in next_batch(&mut self.unchecked, BATCH) {
            let heard = self.peers.get_mut(slot).and_then(|peer| Some((peer.shared.id, peer.heard?)));
            if let Some((id, heard)) = heard
                && self.pin(id, heard)
            {
                self.send_staged(id);
            }
        }
    }
}
