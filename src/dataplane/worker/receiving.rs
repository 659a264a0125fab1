//! A session that is received on, and where its peer is.

use super::outbox::WorkerOutbox;
use crate::dataplane::record::RestoredSession;
use crate::dataplane::stats::add;
use crate::dataplane::{Event, PeerShared};
use crate::io::{Endpoint, LocalAddr};
use crate::noise::session::{RecvSession, SendSession};
use std::net::SocketAddr;
use std::sync::Arc;

/// Where a train came from, and how.
#[derive(Clone, Copy)]
pub(super) struct Origin {
    pub(super) from: SocketAddr,
    pub(super) to: Option<LocalAddr>,
    /// Outer ECN bits.
    pub(super) ecn: u8,
}

/// A session that is received on.
pub(super) struct Receiving {
    pub(super) peer: Arc<PeerShared>,
    pub(super) session: Box<RecvSession>,
    /// The sending half, held until the session takes effect.
    send: Option<Arc<SendSession>>,
    /// Whether the session has taken effect, and whether the slow path was notified of it.
    effective: bool,
    reported: bool,
    /// Where the peer last spoke from, and to, as it was reported to the slow path, and the endpoint's revision then.
    heard: Option<(Endpoint, u32)>,
}

impl Receiving {
    /// A session of `peer` that has not taken effect yet.
    pub(super) fn new(
        peer: &Arc<PeerShared>,
        session: Box<RecvSession>,
        send: Arc<SendSession>,
    ) -> Receiving {
        Receiving {
            peer: Arc::clone(peer),
            session,
            send: Some(send),
            effective: false,
            reported: false,
            heard: None,
        }
    }

    /// A session on which another process received.
    pub(super) fn restored(restored: RestoredSession) -> Receiving {
        let RestoredSession { peer, receive: session, send, effective } = restored;
        Receiving { peer, session, send, effective, reported: effective, heard: None }
    }

    /// Whether the session has taken effect.
    pub(super) fn is_effective(&self) -> bool {
        self.effective
    }

    /// Makes the session take effect, since the other end is known to have it: publishes its sending half, and
    /// notifies the slow path for the packets of all workers.
    pub(super) fn take_effect(&mut self, outbox: &mut WorkerOutbox) {
        self.effective = true;
        if let Some(send) = self.send.take() {
            self.peer.sending.publish(&send);
        }
        if !self.reported {
            // Where the event finds no room, the slow path is notified with the next packet.
            self.reported = outbox.emit(Event::Confirmed(self.peer.id, self.session.local_index()));
        }
    }

    /// Notes that the peer spoke authentically from `origin`, so that this is where it is now (rule 7; kernel
    /// `wg_socket_set_endpoint_from_skb`).
    ///
    /// All workers send there from now on, and the slow path is notified. It also decides whether the local address may be
    /// pinned: where none was pinned so far, none is until it says so.
    pub(super) fn roam(&mut self, outbox: &mut WorkerOutbox, origin: Origin) {
        let published = self.peer.sending.load();
        let known = published.endpoint().filter(|known| same_address(known.addr, origin.from));
        let seen = Endpoint { addr: origin.from, from: origin.to.or(known.and_then(|known| known.from)) };
        let revision = published.revision();
        let is_reported = |(heard, then): (Endpoint, u32)| {
            then == revision && same_address(heard.addr, seen.addr) && heard.from == seen.from
        };
        if known.is_some_and(|known| known.from == seen.from) || self.heard.is_some_and(is_reported) {
            return;
        }
        // Where the event finds no room, both are done with the next packet.
        if outbox.emit(Event::Roamed(self.peer.id, seen)) {
            self.heard = Some((seen, revision));
            add(&outbox.stats.rx_roamed, 1);
            if known.is_none_or(|known| known.from.is_some()) {
                self.peer.sending.follow(seen, revision);
            }
        }
    }
}

/// Whether both have the same address and port. An IPv6 flow label does not count (kernel `endpoint_eq`).
fn same_address(a: SocketAddr, b: SocketAddr) -> bool {
    match (a, b) {
        (SocketAddr::V6(a), SocketAddr::V6(b)) => {
            a.ip() == b.ip() && a.port() == b.port() && a.scope_id() == b.scope_id()
        }
        _ => a == b,
    }
}
