//! Handshake messages in and out (kernel `receive.c`: `wg_receive_handshake_packet`, and `send.c`).

use super::events::{EventKind, RefusalReason, Refused};
use super::history::{RefusedMessage, millis};
use super::work::{Arrival, HandshakeResult, HandshakeWork, WorkOutcome};
use super::{Device, Now};
use crate::crypto::stack;
use crate::crypto::x25519::PublicKey;
use crate::dataplane::{Control, HandshakeDatagram, IncomingHandshake, PeerId};
use crate::io::Endpoint;
use crate::noise::REKEY_TIMEOUT;
use crate::noise::handshake::{Answered, HandshakeError, Identity, IncomingInitiation};
use crate::noise::session::{RecvSession, SendSession, SessionKeys};
use crate::sys::trace;
use crate::wire::message::{CookieReply, Initiation, MessageKind, Response, classify, index};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// The roles of a handshake, as tracepoints tell them.
const INITIATOR: u8 = 0;
const RESPONDER: u8 = 1;

/// Both halves of a new session.
type SessionHalves = (Arc<SendSession>, Box<RecvSession>);

impl Device {
    /// Takes one handshake message. The worker has verified MAC1 of types 1 and 2, and under load MAC2, too. Returns the work
    /// that it makes, if it makes any.
    pub(super) fn take_handshake(&mut self, now: Now, message: &IncomingHandshake) -> Option<HandshakeWork> {
        let Some(identity) = self.identity.clone().filter(|_| self.is_up()) else {
            self.stats.dropped_not_ready += 1;
            return None;
        };
        // A sender that has a cookie receives at its address, and that address has a budget.
        if message.proven && !self.limiter.allow(message.from.ip(), now.mono) {
            self.stats.dropped_rate_limited += 1;
            self.refuse_stranger(now, message.from, RefusalReason::RateLimited, None);
            return None;
        }
        let bytes = message.datagram.bytes();
        let arrival = Arrival { from: message.from, to: message.to, len: bytes.len() };
        match classify(bytes) {
            Some(MessageKind::Initiation) => match Initiation::parse(bytes) {
                Some(initiation) => return Some(HandshakeWork::open(identity, initiation, arrival)),
                None => self.stats.dropped_malformed += 1,
            },
            Some(MessageKind::Response) => return self.take_response(now, &identity, bytes, arrival),
            Some(MessageKind::CookieReply) => self.take_cookie(now, message),
            Some(MessageKind::Data) | None => self.stats.dropped_malformed += 1,
        }
        None
    }

    /// Goes on with a handshake message after some of its work was done. What waited for the interface or for the identity of
    /// then is dropped. Whatever becomes of a message is counted once.
    pub(super) fn go_on_with_handshake(
        &mut self,
        now: Now,
        result: HandshakeResult,
    ) -> Option<HandshakeWork> {
        let (outcome, arrival) = result.parts();
        let Some(identity) = self.identity.clone().filter(|_| self.is_up()) else {
            self.stats.dropped_not_ready += 1;
            if let WorkOutcome::Answered(_, index, _) = outcome {
                self.indices.free(*index);
            }
            return None;
        };
        match outcome {
            WorkOutcome::Opened(Ok(incoming)) => {
                return self.begin_answer(now, &identity, incoming, *arrival);
            }
            WorkOutcome::Opened(Err(error)) => {
                self.stats.refuse(*error);
                self.refuse_stranger(now, arrival.from, (*error).into(), None);
            }
            WorkOutcome::Answered(id, index, answered) => {
                if self.take_answer(now, *id, &identity, answered, arrival).is_none() {
                    self.indices.free(*index);
                }
            }
            WorkOutcome::Completed(id, index, keys) => {
                self.take_completion(now, *id, *index, keys, arrival);
            }
        }
        None
    }

    /// Finds whose initiation it is, and begins the answer. A refused one is counted.
    fn begin_answer(
        &mut self,
        now: Now,
        identity: &Identity,
        incoming: &IncomingInitiation,
        arrival: Arrival,
    ) -> Option<HandshakeWork> {
        let slot = self.peers.find(&incoming.remote);
        slot.into_iter().for_each(|slot| self.renew(now, slot));
        let Some(peer) = slot.and_then(|slot| self.peers.get_mut(slot)) else {
            self.stats.dropped_unknown_peer += 1;
            self.refuse_stranger(now, arrival.from, RefusalReason::UnknownKey, Some(incoming.remote));
            return None;
        };
        let id = peer.shared.id;
        let index = self.indices.allocate(peer.shared.owner(), id.slot, &mut *self.entropy);
        match peer.handshake.begin_answer(identity, incoming, index, now.mono, &mut *self.entropy) {
            Ok(answering) => {
                trace::handshake_begun(id.slot, RESPONDER);
                Some(HandshakeWork::answer(id, answering, arrival))
            }
            Err(error) => {
                self.indices.free(index);
                self.refuse(now, arrival.from, Refused::InitiationOf(id, error), error);
                None
            }
        }
    }

    /// Takes in an answer, and sends it. `None` where it is refused, which is counted.
    fn take_answer(
        &mut self,
        now: Now,
        id: PeerId,
        identity: &Identity,
        answered: &Result<Answered, HandshakeError>,
        arrival: &Arrival,
    ) -> Option<()> {
        self.renew(now, id.slot);
        let Some(peer) = self.peers.by_id(id) else {
            // It was removed while the answer was worked out.
            self.stats.dropped_unknown_peer += 1;
            return None;
        };
        let outstanding = peer.handshake.pending_index();
        let taken = answered.as_ref().map_err(|error| *error).and_then(|answered| {
            peer.handshake.answered(identity, answered, now.mono)?;
            Ok(answered)
        });
        let answered = match taken {
            Ok(answered) => answered,
            Err(error) => {
                self.refuse(now, arrival.from, Refused::InitiationOf(id, error), error);
                return None;
            }
        };
        // An initiation of ours may have given way to the peer's.
        if let Some(outstanding) = outstanding.filter(|_| peer.handshake.pending_index() != outstanding) {
            self.indices.free(outstanding);
        }
        let mut response = answered.response;
        peer.jar.seal(&mut response, now.mono);
        let session = answered.keys.halves(peer.sessions.birth(now.mono));
        let heard = self.count_received(now, id, arrival);
        self.initiation_answered(now, id, arrival.from);
        self.heard_from(id, heard);
        self.install(now, id, session);
        // The session's owner sends it, after it has taken the receiving half: order within one queue.
        self.send(now, id, &response);
        trace::handshake_finished(id.slot, RESPONDER);
        self.check_timers(now, id.slot);
        Some(())
    }

    fn take_response(
        &mut self,
        now: Now,
        identity: &Arc<Identity>,
        bytes: &[u8],
        arrival: Arrival,
    ) -> Option<HandshakeWork> {
        let Some(response) = Response::parse(bytes) else {
            self.stats.dropped_malformed += 1;
            return None;
        };
        let slot = self.indices.slot(response.receiver);
        slot.into_iter().for_each(|slot| self.renew(now, slot));
        let Some(peer) = slot.and_then(|slot| self.peers.get_mut(slot)) else {
            self.stats.refuse(HandshakeError::Unexpected);
            return None;
        };
        let id = peer.shared.id;
        match peer.handshake.begin_completion(identity, &response) {
            Ok(completing) => Some(HandshakeWork::complete(id, completing, arrival)),
            Err(error) => {
                self.refuse(now, arrival.from, Refused::ResponseOf(id, error), error);
                None
            }
        }
    }

    fn take_completion(
        &mut self,
        now: Now,
        id: PeerId,
        index: u32,
        keys: &Result<SessionKeys, HandshakeError>,
        arrival: &Arrival,
    ) {
        self.renew(now, id.slot);
        let Some(peer) = self.peers.by_id(id) else {
            // It was removed while the keys were worked out, and its handshake with it.
            return self.stats.refuse(HandshakeError::Unexpected);
        };
        let completed = keys.as_ref().map_err(|error| *error).and_then(|keys| {
            peer.handshake.completed(index)?;
            Ok(keys.halves(peer.sessions.birth(now.mono)))
        });
        let session = match completed {
            Ok(session) => session,
            Err(error) => return self.refuse(now, arrival.from, Refused::ResponseOf(id, error), error),
        };
        self.stats.responses_accepted += 1;
        self.note(id, EventKind::ResponseReceived { from: arrival.from });
        let heard = self.count_received(now, id, arrival);
        // What is staged goes when the session has taken effect, which is soon.
        self.take_heard(id, heard);
        let owner = self.owner_of(session.0.local_index());
        self.install(now, id, session);
        if let Some(peer) = self.peers.by_id(id) {
            peer.timers.handshake_complete(now.mono);
            peer.shared.note_handshake(now.wall);
            // The responder may not send before it has received something on this session: what is staged, or else
            // this keepalive.
            self.out.one(owner, Control::Confirm(Arc::clone(&peer.shared)));
        }
        trace::handshake_finished(id.slot, INITIATOR);
        self.connect(now, id);
        self.check_timers(now, id.slot);
    }

    /// Takes a cookie reply. It is not authenticated by a handshake, so it moves no endpoint and no timer (kernel:
    /// `wg_cookie_message_consume`). The next retry carries the cookie.
    fn take_cookie(&mut self, now: Now, message: &IncomingHandshake) {
        let Some(reply) = CookieReply::parse(message.datagram.bytes()) else {
            self.stats.dropped_malformed += 1;
            return;
        };
        let peer = self.indices.slot(reply.receiver).and_then(|slot| self.peers.get_mut(slot));
        if let Some(peer) = peer
            && peer.jar.accept(&reply, now.mono)
        {
            let id = peer.shared.id;
            self.stats.cookies_accepted += 1;
            peer.history().cookie_asked_ms = Some(millis(now.wall));
            self.note(id, EventKind::CookieAsked);
        } else {
            self.stats.dropped_unexpected += 1;
        }
    }

    /// Counts and notes a handshake message of a peer's that was refused.
    fn refuse(&mut self, now: Now, from: SocketAddr, refused: Refused, error: HandshakeError) {
        self.stats.refuse(error);
        let (id, response) = match refused {
            Refused::InitiationOf(id, _) => (id, false),
            Refused::ResponseOf(id, _) => (id, true),
        };
        // What answers nothing says nothing: a copy may have overtaken it.
        if error != HandshakeError::Unexpected {
            let refused = RefusedMessage { at_ms: millis(now.wall), from, why: error.into() };
            self.remember_refused(id, response, refused);
        }
        self.note_refused(now.mono, from, refused);
    }

    /// Notes that a handshake message was refused which does not tell whose it is.
    pub(super) fn refuse_stranger(
        &mut self,
        now: Now,
        from: SocketAddr,
        why: RefusalReason,
        key: Option<PublicKey>,
    ) {
        self.strangers.note(millis(now.wall), from, why, key);
        self.note_stranger(now.mono, from, why, key);
    }

    /// Notes that an authentic handshake message arrived. Returns where the peer is.
    fn count_received(&mut self, now: Now, id: PeerId, arrival: &Arrival) -> Endpoint {
        if let Some(peer) = self.peers.by_id(id) {
            peer.shared.traffic.rx_bytes.fetch_add(arrival.len as u64, Relaxed);
            peer.shared.authenticated_received(now.mono);
            if let Some(history) = peer.history.as_mut().filter(|_| peer.shared.connected_since().is_none()) {
                history.leave_out(arrival.len as u64);
            }
        }
        Endpoint { addr: arrival.from, from: arrival.to }
    }

    /// Hands both halves of a new session to the owner that its index names, and frees what it replaced.
    fn install(&mut self, now: Now, id: PeerId, (send, receive): SessionHalves) {
        let Some(peer) = self.peers.by_id(id) else { return };
        peer.timers.session_derived(now.mono);
        let freed = peer.sessions.install(Arc::clone(&send));
        let shared = Arc::clone(&peer.shared);
        let owner = self.owner_of(send.local_index());
        self.out.one(owner, Control::Install(Arc::clone(&shared), receive, send));
        self.drop_freed(&shared, freed);
    }

    /// Begins a handshake that a packet, a rekey or a keepalive needs. Without a key or an endpoint, what waits for
    /// it is dropped, so that its senders get ICMP unreachable at once.
    pub(super) fn want_handshake(&mut self, now: Now, slot: u32) {
        self.renew(now, slot);
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

    /// Whether data of the peer's came after the outstanding initiation had been sent.
    pub(super) fn heard_since_initiation(&mut self, id: PeerId) -> bool {
        let Some(peer) = self.peers.by_id(id) else { return false };
        let heard = peer.shared.activity().last_data_received;
        peer.handshake.pending_since().is_some_and(|sent| heard.is_some_and(|heard| heard > sent))
    }

    /// Sends an initiation.
    pub(super) fn initiate(&mut self, now: Now, slot: u32) {
        self.renew(now, slot);
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let id = peer.shared.id;
        let (Some(identity), Some(endpoint)) = (&self.identity, peer.endpoint) else {
            return self.out.purge_staged(&peer.shared);
        };
        let outstanding = peer.handshake.pending_index();
        let index = self.indices.allocate(peer.shared.owner(), slot, &mut *self.entropy);
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
        self.initiation_sent(now, id, endpoint.addr);
        self.send(now, id, &message);
        trace::handshake_begun(slot, INITIATOR);
    }

    /// Sends a sealed handshake message to the peer's endpoint, through the owner of the session that it is about.
    fn send(&mut self, now: Now, id: PeerId, message: &[u8]) {
        let Some(peer) = self.peers.by_id(id) else { return };
        let (Some(endpoint), Some(datagram)) = (peer.endpoint, HandshakeDatagram::new(message)) else {
            return;
        };
        let index = index(message).unwrap_or_default();
        peer.shared.handshake_index.store(index, Relaxed);
        peer.shared.authenticated_sent(now.mono);
        peer.shared.traffic.tx_bytes.fetch_add(message.len() as u64, Relaxed);
        self.out.one(self.owner_of(index), Control::Send(id.slot, endpoint, datagram));
    }
}
