//! What happens, as events; and whether a peer is connected.

use super::*;
use crate::dataplane::handshakes::UNDER_LOAD;
use crate::device::events::{DisconnectReason, EventKind, RefusalReason};
use crate::noise::cookie::CookieJar;
use crate::noise::{REJECT_AFTER_TIME, REKEY_ATTEMPT_TIME, REKEY_TIMEOUT};
use std::sync::atomic::Ordering::Relaxed;

impl Side {
    /// What happened since the last call.
    pub(super) fn happened(&mut self) -> Vec<EventKind> {
        std::iter::from_fn(|| self.device.next_event()).map(|event| event.kind).collect()
    }

    fn connected(&self) -> bool {
        self.peers[&self.peer()].connected_since().is_some()
    }

    fn heard_bytes(&self, count: u64) {
        self.peers[&self.peer()].traffic.rx_bytes.fetch_add(count, Relaxed);
    }
}

fn followed() -> Pair {
    let mut pair = Pair::new();
    for side in [&mut pair.a, &mut pair.b] {
        side.device.follow_events(true);
    }
    pair
}

#[test]
fn nothing_is_noted_while_nobody_follows() {
    let mut pair = Pair::connected();
    assert_eq!((pair.a.happened(), pair.b.happened()), (vec![], vec![]));
    pair.a.device.follow_events(true);
    pair.a.device.set_up(at(pair.now), false);
    pair.a.device.follow_events(false);
    assert_eq!(pair.a.happened(), []);
}

#[test]
fn a_handshake_connects_the_initiator_with_the_response_and_the_responder_with_its_use() {
    let mut pair = followed();
    let (to_a, to_b) = (pair.a.addr, pair.b.addr);
    pair.a.event(pair.now, Event::NeedHandshake(pair.a.peer()));
    assert_eq!(pair.a.happened(), [EventKind::InitiationSent { to: to_b }]);
    let initiation = pair.a.sends.pop_front().unwrap().1;
    pair.b.receive_handshake(pair.now, to_a, initiation, 0);
    let answered = EventKind::InitiationAnswered { from: to_a, again: false };
    assert_eq!(pair.b.happened(), [answered, EventKind::Moved { to: to_a }]);
    assert!(!pair.b.connected(), "the initiator may never get the answer");
    pair.exchange();
    let connected = EventKind::Connected { endpoint: Some(to_b) };
    assert_eq!(pair.a.happened(), [EventKind::ResponseReceived { from: to_b }, connected]);
    let connected = EventKind::Connected { endpoint: Some(to_a) };
    assert_eq!(pair.b.happened(), [EventKind::SessionConfirmed, connected]);
    assert!(pair.a.connected() && pair.b.connected());
}

#[test]
fn another_session_in_time_is_no_news_and_the_end_of_the_last_one_is() {
    let mut pair = followed();
    pair.handshake();
    pair.advance(Duration::from_secs(125));
    pair.handshake();
    let news = |side: &mut Side| {
        let mut kinds = side.happened();
        kinds.retain(|kind| matches!(kind, EventKind::Connected { .. } | EventKind::Disconnected { .. }));
        kinds
    };
    assert_eq!((news(&mut pair.a).len(), news(&mut pair.b).len()), (1, 1));
    pair.advance(REJECT_AFTER_TIME - Duration::from_secs(1));
    assert!(pair.a.connected() && pair.b.connected());
    pair.a.happened();
    pair.b.happened();
    pair.advance(Duration::from_secs(1));
    let ended = vec![EventKind::SessionExpired, EventKind::Disconnected { why: DisconnectReason::Expired }];
    assert_eq!((pair.a.happened(), pair.b.happened()), (ended.clone(), ended));
    assert!(!pair.a.connected() && !pair.b.connected());
    pair.handshake();
    assert!(pair.a.connected() && pair.b.connected());
}

#[test]
fn a_peer_that_answers_nothing_is_disconnected_long_before_its_session_ends() {
    let mut pair = followed();
    pair.handshake();
    pair.lossy = true;
    pair.b.device.set_up(at(pair.now), false);
    let id = pair.a.peer();
    pair.a.peers[&id].data_sent(pair.now);
    pair.a.event(pair.now, Event::Activity(id));
    pair.advance(Duration::from_secs(19));
    assert!(pair.a.connected(), "what was sent may still be answered");
    pair.advance(Duration::from_secs(3));
    assert!(!pair.a.connected());
    let why = DisconnectReason::Unanswered;
    assert!(pair.a.happened().contains(&EventKind::Disconnected { why }));
    // It speaks again on the session that there still is.
    pair.a.heard_bytes(32);
    pair.advance(REKEY_TIMEOUT + Duration::from_secs(1));
    assert!(pair.a.connected());
}

#[test]
fn a_peer_that_sends_initiations_and_takes_no_answer_is_not_connected_by_them() {
    let mut pair = followed();
    pair.handshake();
    pair.lossy = true;
    let id = pair.a.peer();
    pair.a.peers[&id].data_sent(pair.now);
    pair.a.event(pair.now, Event::Activity(id));
    pair.advance(Duration::from_secs(22));
    assert!(!pair.a.connected());
    pair.a.happened();
    let to = pair.a.addr;
    pair.b.now_sends_an_initiation(pair.now);
    let initiation = pair.b.sends.pop_back().unwrap().1;
    pair.a.receive_handshake(pair.now, to, initiation, 0);
    pair.a.settle(pair.now + Duration::from_secs(1));
    let kinds = pair.a.happened();
    assert!(kinds.iter().any(|kind| matches!(kind, EventKind::InitiationAnswered { .. })), "{kinds:?}");
    assert!(!pair.a.connected(), "{kinds:?}");
}

impl Side {
    fn now_sends_an_initiation(&mut self, now: Instant) {
        let id = self.peer();
        self.device.initiate(at(now), id.slot);
        self.drain();
    }
}

#[test]
fn peers_that_come_and_go_and_the_interface_are_told() {
    let mut pair = followed();
    pair.handshake();
    pair.a.happened();
    pair.a.device.set_up(at(pair.now), false);
    pair.a.drain();
    let why = DisconnectReason::InterfaceDown;
    assert_eq!(pair.a.happened(), [EventKind::Down, EventKind::Disconnected { why }]);
    pair.a.device.set_up(at(pair.now), true);
    pair.a.drain();
    assert!(pair.a.happened().contains(&EventKind::Up { port: 51820 }));
    pair.advance(Duration::from_secs(6));
    assert!(pair.a.connected());
    pair.a.happened();
    let key = *pair.a.device.peer_infos().next().unwrap().public_key;
    let gone = PeerRequest { remove: true, ..PeerRequest::new(key) };
    let come = PeerRequest::new(PublicKey([9; 32]));
    pair.a.apply(pair.now, &SetRequest { peers: vec![gone, come], ..SetRequest::default() });
    let why = DisconnectReason::Removed;
    let told = [EventKind::Disconnected { why }, EventKind::PeerRemoved, EventKind::PeerAdded];
    assert_eq!(pair.a.happened(), told);
}

#[test]
fn a_refused_initiation_tells_why_and_whose_it_is() {
    let mut pair = followed();
    let from = pair.a.addr;
    let key = pair.a.device.public_key().unwrap().to_base64();
    let initiation = |pair: &mut Pair| {
        pair.now = pair.now + Duration::from_secs(6);
        pair.a.now_sends_an_initiation(pair.now);
        pair.a.sends.pop_back().unwrap().1
    };
    let copy = initiation(&mut pair);
    pair.b.receive_handshake(pair.now, from, copy.clone(), 0);
    pair.b.happened();
    pair.now = pair.now + Duration::from_secs(1);
    pair.b.receive_handshake(pair.now, from, copy, 0);
    let refused = |why, key| EventKind::InitiationRefused { from, why, key, left_out: 0 };
    assert_eq!(pair.b.happened(), [refused(RefusalReason::Replayed, None)]);
    let peer = pair.b.device.peers.get(0).unwrap();
    assert_eq!(peer.history.as_ref().unwrap().refused_initiation.unwrap().why, RefusalReason::Replayed);

    let removed = PeerRequest { remove: true, ..PeerRequest::new(*pair.a.device.public_key().unwrap()) };
    pair.b.apply(pair.now, &SetRequest { peers: vec![removed], ..SetRequest::default() });
    pair.b.happened();
    let unknown = initiation(&mut pair);
    pair.b.receive_handshake(pair.now, from, unknown, 0);
    assert_eq!(pair.b.happened(), [refused(RefusalReason::UnknownKey, Some(key.clone()))]);
    pair.b.event(pair.now, Event::WrongMac1(from));
    assert_eq!(pair.b.happened(), [refused(RefusalReason::WrongMac1, None)]);
    let strangers = pair.b.device.strangers.list();
    assert_eq!(strangers.len(), 2);
    assert!(strangers.iter().any(|one| one.key.as_deref() == Some(&key) && one.from == from));
}

#[test]
fn an_idle_peer_has_no_history_and_one_that_tries_has_until_it_connects() {
    let mut pair = followed();
    assert!(pair.a.device.peers.get(0).unwrap().history.is_none());
    pair.lossy = true;
    pair.a.event(pair.now, Event::NeedHandshake(pair.a.peer()));
    pair.advance(Duration::from_secs(11));
    let tried = pair.a.device.peers.get(0).unwrap().history.clone().unwrap();
    assert_eq!((tried.unanswered, tried.sent.unwrap().address), (3, pair.b.addr));
    pair.lossy = false;
    pair.a.sends.clear();
    pair.advance(REKEY_TIMEOUT * 2);
    assert!(pair.a.connected());
    assert!(pair.a.device.peers.get(0).unwrap().history.is_none());
}

/// The initiation that `a` sends, not delivered.
fn initiation(pair: &mut Pair) -> HandshakeDatagram {
    pair.a.now_sends_an_initiation(pair.now);
    pair.a.sends.pop_back().unwrap().1
}

/// The same message with other bytes, and what proves that its sender knows whom it is for.
fn forged(
    original: &HandshakeDatagram,
    at_byte: usize,
    bytes: &[u8],
    to: u8,
    now: Instant,
) -> HandshakeDatagram {
    let mut message = original.bytes().to_vec();
    message[at_byte..at_byte + bytes.len()].copy_from_slice(bytes);
    CookieJar::new(&public(to)).seal(&mut message, now);
    HandshakeDatagram::new(&message).unwrap()
}

#[test]
fn an_initiation_that_nobody_can_have_sent_is_refused_as_what_it_is() {
    /// Where the sender's ephemeral public key stands, and behind it the sealed static one.
    const EPHEMERAL: usize = 8;
    let mut pair = followed();
    let (from, now) = (pair.a.addr, pair.now);
    let good = initiation(&mut pair);
    let low_order = forged(&good, EPHEMERAL, &[0; 32], 2, now);
    let damaged = forged(&good, EPHEMERAL + 32, &[0; 32], 2, now);
    for (message, why) in [(low_order, RefusalReason::LowOrder), (damaged, RefusalReason::NotAuthentic)] {
        pair.b.receive_handshake(now, from, message, 0);
        assert_eq!(pair.b.happened(), [EventKind::InitiationRefused { from, why, key: None, left_out: 0 }]);
    }
    assert_eq!(pair.b.device.stats().dropped_not_authentic, 2);
    pair.b.receive_handshake(now, from, HandshakeDatagram::new(&[1, 0, 0, 0]).unwrap(), 0);
    assert_eq!(pair.b.device.stats().dropped_malformed, 1);
    assert_eq!(pair.b.happened(), []);
    pair.b.receive_handshake(now, from, good, 0);
    assert_eq!(pair.b.device.stats().initiations_accepted, 1);
}

#[test]
fn initiations_within_twenty_milliseconds_are_refused() {
    let mut pair = followed();
    let from = pair.a.addr;
    for (millis, accepted) in [(0, 1), (19, 1), (1, 2)] {
        pair.now = pair.now + Duration::from_millis(millis);
        let message = initiation(&mut pair);
        pair.b.receive_handshake(pair.now, from, message, 0);
        assert_eq!(pair.b.device.stats().initiations_accepted, accepted, "after {millis} ms more");
    }
    assert_eq!(pair.b.device.stats().dropped_flood, 1);
    let why = RefusalReason::TooSoon;
    let refused = EventKind::InitiationRefused { from, why, key: None, left_out: 0 };
    assert!(pair.b.happened().contains(&refused));
}

#[test]
fn a_refused_response_tells_why() {
    let mut pair = followed();
    let (to, from) = (pair.a.addr, pair.b.addr);
    let psk = PeerRequest {
        preshared_key: Some(Box::new(crate::crypto::x25519::SharedSecret([5; 32]))),
        ..PeerRequest::new(public(1))
    };
    let request = |peer: PeerRequest| SetRequest { peers: vec![peer], ..SetRequest::default() };
    pair.b.apply(pair.now, &request(psk.clone()));
    let answer = |pair: &mut Pair| {
        let message = initiation(pair);
        pair.b.receive_handshake(pair.now, to, message, 0);
        pair.a.happened();
        pair.b.sends.pop_back().unwrap().1
    };
    let refused = |why| [EventKind::ResponseRefused { from, why, left_out: 0 }];
    let response = answer(&mut pair);
    pair.a.receive_handshake(pair.now, from, response, 0);
    assert_eq!(pair.a.happened(), refused(RefusalReason::NotAuthentic));
    pair.now = pair.now + REKEY_TIMEOUT;
    pair.a.apply(pair.now, &request(PeerRequest { public_key: public(2), ..psk }));
    let response = answer(&mut pair);
    pair.a.receive_handshake(pair.now, from, response.clone(), 0);
    assert!(pair.a.connected());
    pair.a.happened();
    pair.a.receive_handshake(pair.now, from, response, 0);
    assert_eq!(pair.a.happened(), refused(RefusalReason::Unexpected));
}

#[test]
fn under_load_a_cookie_is_asked_for_and_a_source_that_has_one_gets_its_share() {
    let mut pair = followed();
    let from = pair.a.addr;
    let message = initiation(&mut pair);
    pair.b.receive_handshake(pair.now, from, message, UNDER_LOAD);
    let reply = pair.b.sends.pop_back().unwrap().1;
    pair.a.happened();
    pair.a.receive_handshake(pair.now, pair.b.addr, reply, 0);
    assert_eq!(pair.a.happened(), [EventKind::CookieAsked]);
    pair.now = pair.now + REKEY_TIMEOUT;
    let message = initiation(&mut pair);
    for _ in 0..20 {
        pair.b.receive_handshake(pair.now, from, message.clone(), UNDER_LOAD);
    }
    let why = RefusalReason::RateLimited;
    let refused = EventKind::InitiationRefused { from, why, key: None, left_out: 0 };
    assert!(pair.b.happened().contains(&refused));
    assert!(pair.b.device.stats().dropped_rate_limited >= 10);
}

#[test]
fn a_handshake_that_is_given_up_and_keys_that_are_wiped_are_told() {
    let mut pair = followed();
    pair.handshake();
    pair.a.happened();
    pair.advance(REJECT_AFTER_TIME * 3 + Duration::from_secs(1));
    assert!(pair.a.happened().contains(&EventKind::KeysWiped));
    pair.lossy = true;
    pair.handshake();
    pair.advance(REKEY_ATTEMPT_TIME * 2);
    assert_eq!(pair.a.happened().last(), Some(&EventKind::GivenUp));
}

#[test]
fn another_private_key_ends_the_connection() {
    let mut pair = followed();
    pair.handshake();
    pair.a.happened();
    let request = SetRequest { private_key: Some(Some(private(9))), ..SetRequest::default() };
    pair.a.apply(pair.now, &request);
    let why = DisconnectReason::KeyChanged;
    assert_eq!(pair.a.happened(), [EventKind::Disconnected { why }]);
}

#[test]
fn what_workers_report_of_a_peer_is_told() {
    let mut pair = followed();
    let (id, source) = (pair.b.peer(), [172, 16, 0, 1].into());
    pair.b.happened();
    pair.b.event(pair.now, Event::SourceRefused(id, source));
    assert_eq!(pair.b.happened(), [EventKind::SourceRefused { source }]);
    for used_up in [true, false] {
        pair.b.event(pair.now, Event::Quota(id, used_up));
        assert_eq!(pair.b.happened(), [EventKind::Quota { used_up }]);
    }
}

#[test]
fn a_port_that_cannot_be_bound_is_told_once() {
    let mut side = Side::new(1);
    side.device.follow_events(true);
    side.bind_answer = Err(98);
    side.device.set_up(at(Instant::START), true);
    side.drain();
    assert_eq!(side.happened(), [], "it may be in use by this very device, for a moment");
    for seconds in 1..10 {
        side.settle(Instant::START + Duration::from_secs(seconds));
    }
    assert!(side.binds.len() > 5, "it is tried again");
    let told = side.happened();
    assert!(
        matches!(&told[..], [EventKind::Unbound { port: 0, error }] if error.contains("in use")),
        "{told:?}"
    );
}

/// A peer that is removed, or an interface that goes down, while its handshake message is worked on, leaves one count and no
/// index behind.
#[test]
fn what_ends_while_a_message_is_worked_on_is_counted_once() {
    type End = fn(&mut Side, Instant, u8);
    let removed: End = |side, now, key| {
        let gone = PeerRequest { remove: true, ..PeerRequest::new(public(key)) };
        side.apply(now, &SetRequest { peers: vec![gone], ..SetRequest::default() });
    };
    let down: End = |side, now, _| {
        side.device.set_up(at(now), false);
        side.drain();
    };
    for (end, at_step) in [(removed, 1), (removed, 2), (down, 1), (down, 2)] {
        for damaged in [false, true] {
            let mut pair = followed();
            let (now, from) = (pair.now, pair.a.addr);
            let mut message = initiation(&mut pair);
            if damaged {
                message = forged(&message, 40, &[0; 32], 2, now);
            }
            let incoming = |datagram, from| IncomingHandshake { datagram, from, to: None, proven: false };
            let mut work = pair.b.device.begin_handshake(at(now), &incoming(message, from));
            for step in 1.. {
                let Some(result) = work.take().map(|work| work.run()) else { break };
                if step == at_step {
                    end(&mut pair.b, now, 1);
                }
                work = pair.b.device.continue_handshake(at(now), result);
            }
            pair.b.drain();
            assert_eq!(
                (pair.b.settled(), pair.b.device.indices.len()),
                (1, 0),
                "{:?}",
                pair.b.device.stats()
            );
        }
    }
    for end in [removed, down] {
        let mut pair = followed();
        let (now, from) = (pair.now, pair.b.addr);
        let message = initiation(&mut pair);
        pair.b.receive_handshake(now, pair.a.addr, message, 0);
        let datagram = pair.b.sends.pop_back().unwrap().1;
        let incoming = IncomingHandshake { datagram, from, to: None, proven: false };
        let work = pair.a.device.begin_handshake(at(now), &incoming).unwrap().run();
        end(&mut pair.a, now, 2);
        assert!(pair.a.device.continue_handshake(at(now), work).is_none());
        pair.a.drain();
        assert_eq!((pair.a.settled(), pair.a.device.indices.len()), (1, 0), "{:?}", pair.a.device.stats());
    }
}
