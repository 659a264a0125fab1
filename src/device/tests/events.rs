//! What happens, as events; and whether a peer is connected.

use super::*;
use crate::device::events::{DisconnectReason, EventKind, RefusalReason};
use crate::noise::{REJECT_AFTER_TIME, REKEY_TIMEOUT};
use std::sync::atomic::Ordering::Relaxed;

impl Side {
    /// What happened since the last call.
    fn happened(&mut self) -> Vec<EventKind> {
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
    pair.advance(Duration::from_secs(1));
    let ended = [EventKind::Disconnected { why: DisconnectReason::Expired }];
    assert_eq!((news(&mut pair.a), news(&mut pair.b)), (ended.to_vec(), ended.to_vec()));
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
