//! Handshake messages in and out (kernel `receive.c`: `wg_receive_handshake_packet`, and `send.c`).

use super::{Device, Now};
use crate::crypto::stack;
use crate::dataplane::{Control, HandshakeDatagram, IncomingHandshake, PeerId};
use crate::io::Endpoint;
use crate::noise::REKEY_TIMEOUT;
use crate::noise::handshake::{HandshakeError, IncomingInitiation};
use crate::noise::session::{RecvSession, SendSession};
use crate::wire::message::{CookieReply, Initiation, MessageKind, RESPONSE_LEN, Response, classify, index};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// Both halves of a new session.
type SessionHalves = (Arc<SendSession>, Box<RecvSession>);

impl Device {
    /// Takes one handshake message. The worker has verified MAC1 of types 1 and 2, and under load MAC2, too.
    pub(super) fn receive_handshake(&mut self, now: Now, message: &IncomingHandshake) {
        if !self.is_up() || self.identity.is_none() {
            self.stats.dropped_not_ready += 1;
            return;
        }
        // A sender that has a cookie receives at its address, and that address has a budget.
        if message.proven && !self.limiter.allow(message.from.ip(), now.mono) {
            self.stats.dropped_rate_limited += 1;
            return;
        }
        match classify(message.datagram.bytes()) {
            Some(MessageKind::Initiation) => self.receive_initiation(now, message),
            Some(MessageKind::Response) => self.receive_response(now, message),
            Some(MessageKind::CookieReply) => self.receive_cookie(now, message),
            Some(MessageKind::Data) | None => self.stats.dropped_malformed += 1,
        }
    }

    fn receive_initiation(&mut self, now: Now, message: &IncomingHandshake) {
        let answer = stack::leaving_nothing(|| self.answer(now, message.datagram.bytes()));
        let Some((id, response, session)) = answer else { return };
        self.stats.initiations_accepted += 1;
        self.count_received(now, id, message);
        self.install(now, id, session);
        // The owner's worker sends it, after it has taken the receiving half: order within one queue.
        self.send(now, id, &response);
        self.check_timers(now, id.slot);
    }

    /// Whose initiation it is, the response to it, and the session that comes of it. `None` where it was refused,
    /// which is counted.
    fn answer(&mut self, now: Now, message: &[u8]) -> Option<(PeerId, [u8; RESPONSE_LEN], SessionHalves)> {
        let identity = self.identity.as_ref()?;
        let opened = Initiation::parse(message)
            .ok_or(HandshakeError::Decrypt)
            .and_then(|initiation| IncomingInitiation::open(identity, &initiation));
        let incoming = opened.map_err(|error| self.stats.refuse(error)).ok()?;
        let Some(peer) = self.peers.find(&incoming.remote).and_then(|slot| self.peers.get_mut(slot)) else {
            self.stats.dropped_unknown_peer += 1;
            return None;
        };
        let id = peer.shared.id;
        let outstanding = peer.handshake.pending_index();
        let index = self.indices.allocate(peer.shared.owner, id.slot, &mut *self.entropy);
        let answer = peer.handshake.respond(identity, incoming, index, now.mono, &mut *self.entropy);
        let (mut response, keys) = match answer {
            Ok(answer) => answer,
            Err(error) => {
                self.indices.free(index);
                self.stats.refuse(error);
                return None;
            }
        };
        // An initiation of ours may have given way to the peer's.
        if let Some(outstanding) = outstanding.filter(|_| peer.handshake.pending_index() != outstanding) {
            self.indices.free(outstanding);
        }
        peer.jar.seal(&mut response, now.mono);
        Some((id, response, keys.into_halves(peer.sessions.birth(now.mono))))
    }

    fn receive_response(&mut self, now: Now, message: &IncomingHandshake) {
        let (Some(identity), Some(response)) = (&self.identity, Response::parse(message.datagram.bytes()))
        else {
            self.stats.dropped_malformed += 1;
            return;
        };
        let peer = self.indices.slot(response.receiver).and_then(|slot| self.peers.get_mut(slot));
        let Some(peer) = peer.filter(|peer| peer.handshake.pending_index() == Some(response.receiver)) else {
            return self.stats.refuse(HandshakeError::Unexpected);
        };
        let birth = peer.sessions.birth(now.mono);
        let completed = stack::leaving_nothing(|| {
            peer.handshake.complete(identity, &response).map(|keys| keys.into_halves(birth))
        });
        let session = match completed {
            Ok(session) => session,
            Err(error) => return self.stats.refuse(error),
        };
        let id = peer.shared.id;
        self.stats.responses_accepted += 1;
        self.count_received(now, id, message);
        self.install(now, id, session);
        if let Some(peer) = self.peers.by_id(id) {
            peer.timers.handshake_complete(now.mono);
            peer.last_handshake = Some(now.wall);
            // The responder may not send before it has received something on this session: what is staged, or else
            // this keepalive.
            self.out.one(peer.shared.owner, Control::Confirm(Arc::clone(&peer.shared)));
        }
        self.check_timers(now, id.slot);
    }

    /// Takes a cookie reply. It is not authenticated by a handshake, so it moves no endpoint and no timer (kernel:
    /// `wg_cookie_message_consume`). The next retry carries the cookie.
    fn receive_cookie(&mut self, now: Now, message: &IncomingHandshake) {
        let Some(reply) = CookieReply::parse(message.datagram.bytes()) else {
            self.stats.dropped_malformed += 1;
            return;
        };
        let peer = self.indices.slot(reply.receiver).and_then(|slot| self.peers.get_mut(slot));
        if peer.is_some_and(|peer| peer.jar.accept(&reply, now.mono)) {
            self.stats.cookies_accepted += 1;
        } else {
            self.stats.dropped_unexpected += 1;
        }
    }

    /// Notes that an authentic handshake message arrived.
    fn count_received(&mut self, now: Now, id: PeerId, message: &IncomingHandshake) {
        if let Some(peer) = self.peers.by_id(id) {
            peer.shared.traffic.rx_bytes.fetch_add(message.datagram.bytes().len() as u64, Relaxed);
            peer.shared.authenticated_received(now.mono);
        }
        self.heard_from(id, Endpoint { addr: message.from, from: message.to });
    }

    /// Hands both halves of a new session to their owner, and frees what it replaced.
    fn install(&mut self, now: Now, id: PeerId, (send, receive): SessionHalves) {
        let Some(peer) = self.peers.by_id(id) else { return };
        peer.timers.session_derived(now.mono);
        let freed = peer.sessions.install(Arc::clone(&send));
        let shared = Arc::clone(&peer.shared);
        self.out.one(shared.owner, Control::Install(Arc::clone(&shared), receive, send));
        self.drop_freed(&shared, freed);
    }

    /// Begins a handshake that a packet, a rekey or a keepalive needs. Without a key or an endpoint, what waits for
    /// it is dropped, so that its senders get ICMP unreachable at once.
    pub(super) fn want_handshake(&mut self, now: Now, slot: u32) {
        let ready = self.is_up() && self.identity.is_some();
        let Some(peer) = self.peers.get_mut(slot) else { return };
        if !ready || peer.endpoint.is_none() {
            self.out.purge_staged(&peer.shared);
            return;
        }
        // A response just sent may still bring the session (kernel: it sets `last_sent_handshake`, too).
        let answered =
            peer.sessions.answered().is_some_and(|answered| now.mono.since(answered) < REKEY_TIMEOUT);
        if !answered && peer.timers.want_handshake(now.mono) {
            self.initiate(now, slot);
        }
    }

    /// Sends an initiation.
    pub(super) fn initiate(&mut self, now: Now, slot: u32) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let id = peer.shared.id;
        let (Some(identity), Some(_)) = (&self.identity, peer.endpoint) else {
            return self.out.purge_staged(&peer.shared);
        };
        let outstanding = peer.handshake.pending_index();
        let index = self.indices.allocate(peer.shared.owner, slot, &mut *self.entropy);
        let timestamp = self.clock.stamp(now.wall);
        let initiation = stack::leaving_nothing(|| {
            peer.handshake.initiate(identity, index, timestamp, now.mono, &mut *self.entropy)
        });
        let Ok(mut message) = initiation else {
            // A low-order public key: no handshake will ever succeed.
            self.indices.free(index);
            return self.out.purge_staged(&peer.shared);
        };
        if let Some(outstanding) = outstanding {
            self.indices.free(outstanding);
        }
        peer.jar.seal(&mut message, now.mono);
        peer.timers.initiation_sent(now.mono, &mut *self.entropy);
        self.stats.initiations_sent += 1;
        self.send(now, id, &message);
    }

    /// Sends a sealed handshake message to the peer's endpoint through its owner.
    fn send(&mut self, now: Now, id: PeerId, message: &[u8]) {
        let Some(peer) = self.peers.by_id(id) else { return };
        let (Some(endpoint), Some(datagram)) = (peer.endpoint, HandshakeDatagram::new(message)) else {
            return;
        };
        peer.shared.handshake_index.store(index(message).unwrap_or_default(), Relaxed);
        peer.shared.authenticated_sent(now.mono);
        peer.shared.traffic.tx_bytes.fetch_add(message.len() as u64, Relaxed);
        self.out.one(peer.shared.owner, Control::Send(id.slot, endpoint, datagram));
    }
}
