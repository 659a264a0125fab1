//! Whether a peer is connected: whether there is a session that both ends are known to have, and on which the peer answers.
//!
//! The initiator knows that with the response, the responder with the first message on the session. It ends with the session,
//! where none has succeeded that in time, or as soon as the peer has answered nothing for four initiations.

use super::events::{DisconnectReason, EventKind};
use super::history::{Disconnection, History, RefusedMessage, Sighting, millis};
use super::peer::Peer;
use super::{Device, Now};
use crate::dataplane::PeerId;
use crate::noise::REJECT_AFTER_TIME;
use crate::time::Instant;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering::Relaxed;

impl Peer {
    /// What was tried since the peer was last connected.
    pub(super) fn history(&mut self) -> &mut History {
        self.history.get_or_insert_default()
    }

    /// When the session with which is sent becomes too old, if the peer is connected by it.
    pub(super) fn connected_until(&self) -> Option<Instant> {
        self.shared.connected_since()?;
        self.sessions.current().map(|session| session.born() + REJECT_AFTER_TIME)
    }

    fn rx_bytes(&self) -> u64 {
        self.shared.traffic.rx_bytes.load(Relaxed)
    }
}

impl Device {
    /// Notes that both ends are known to have a session.
    pub(super) fn connect(&mut self, now: Now, id: PeerId) {
        let Some(peer) = self.peers.by_id(id) else { return };
        peer.history = peer.history.take().and_then(|history| history.settled()).map(Box::new);
        if peer.shared.connected_since().is_none() {
            peer.shared.note_connected(now.wall);
            let endpoint = peer.endpoint.map(|endpoint| endpoint.addr);
            self.note(id, EventKind::Connected { endpoint });
        }
    }

    /// Notes that the peer is not connected any more, where it was.
    pub(super) fn disconnect(&mut self, now: Now, slot: u32, why: DisconnectReason) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        if peer.shared.note_disconnected() {
            peer.history().disconnected = Some(Disconnection { at_ms: millis(now.wall), why });
            let id = peer.shared.id;
            self.note(id, EventKind::Disconnected { why });
        }
    }

    /// Compares what is noted with what is now: a session that became too old, or on which the peer speaks again.
    pub(super) fn check_connection(&mut self, now: Now, slot: u32) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let id = peer.shared.id;
        if peer.shared.connected_since().is_some() {
            if peer.connected_until().is_none_or(|until| until <= now.mono) {
                self.note(id, EventKind::SessionExpired);
                self.disconnect(now, slot, DisconnectReason::Expired);
            }
        } else if peer.sessions.current().is_some_and(|session| session.usable(now.mono))
            && peer.history.as_ref().is_some_and(|history| history.has_heard(peer.rx_bytes()))
        {
            self.connect(now, id);
        }
    }

    /// Notes that data has gone unanswered since `since`.
    pub(super) fn data_unanswered(&mut self, slot: u32, since: Instant) {
        if let Some(peer) = self.peers.get_mut(slot) {
            let rx_bytes = peer.rx_bytes();
            peer.history().silent_since(since, rx_bytes);
        }
    }

    /// Notes that an initiation is sent.
    pub(super) fn initiation_sent(&mut self, now: Now, id: PeerId, to: SocketAddr) {
        let Some(peer) = self.peers.by_id(id) else { return };
        let rx_bytes = peer.rx_bytes();
        let history = peer.history();
        history.silent_since(now.mono, rx_bytes);
        history.unanswered = history.unanswered.saturating_add(1);
        history.sent = Some(Sighting { at_ms: millis(now.wall), address: to });
        let silent = history.is_silent(now.mono);
        self.stats.initiations_sent += 1;
        self.note(id, EventKind::InitiationSent { to });
        if silent {
            self.disconnect(now, id.slot, DisconnectReason::Unanswered);
        }
    }

    /// Notes that an initiation of the peer's is answered.
    pub(super) fn initiation_answered(&mut self, now: Now, id: PeerId, from: SocketAddr) {
        let Some(peer) = self.peers.by_id(id) else { return };
        let again = peer.sessions.answered().is_some();
        let history = peer.history();
        history.unused_answers = if again { history.unused_answers.saturating_add(1) } else { 1 };
        history.answered = Some(Sighting { at_ms: millis(now.wall), address: from });
        self.stats.initiations_accepted += 1;
        self.note(id, EventKind::InitiationAnswered { from, again });
    }

    /// Notes that a handshake message of the peer's was refused, in its history.
    pub(super) fn remember_refused(&mut self, id: PeerId, response: bool, refused: RefusedMessage) {
        let Some(peer) = self.peers.by_id(id) else { return };
        let history = peer.history();
        match response {
            true => history.refused_response = Some(refused),
            false => {
                history.refused_initiation = Some(refused);
                history.refused_initiations = history.refused_initiations.saturating_add(1);
            }
        }
    }

    /// Notes that packets of the peer's are dropped, whose source is not among its AllowedIPs.
    pub(super) fn source_refused(&mut self, now: Now, id: PeerId, source: IpAddr) {
        if let Some(peer) = self.peers.by_id(id) {
            peer.history().refused_source = Some((millis(now.wall), source));
            self.note(id, EventKind::SourceRefused { source });
        }
    }
}
