use super::*;
use crate::crypto::x25519::SharedSecret;
use crate::dataplane::handshakes::UNDER_LOAD;
use crate::noise::{REJECT_AFTER_TIME, REKEY_TIMEOUT};
use proptest::prelude::*;
use std::sync::atomic::AtomicBool;

/// The initiation that `a` sends, not delivered.
fn initiation(pair: &mut Pair) -> HandshakeDatagram {
    pair.a.event(pair.now, Event::NeedHandshake(pair.a.peer()));
    pair.a.sends.pop_back().unwrap().1
}

#[test]
fn a_handshake_gives_both_ends_the_same_session() {
    let mut pair = Pair::connected();
    let (a, b) = (pair.a.peer(), pair.b.peer());
    assert_eq!(pair.a.send[&a].remote_index(), pair.b.send[&b].local_index());
    assert_eq!(pair.b.send[&b].remote_index(), pair.a.send[&a].local_index());
    assert_eq!(pair.talks(), (true, true));
}

#[test]
fn a_handshake_message_counts_as_traffic() {
    let pair = Pair::connected();
    let bytes = |side: &Side| {
        let shared = &side.peers[&side.peer()];
        (shared.traffic.tx_bytes.load(Relaxed), shared.traffic.rx_bytes.load(Relaxed))
    };
    assert_eq!((bytes(&pair.a), bytes(&pair.b)), ((148, 92), (92, 148)));
}

#[test]
fn a_response_leaves_after_its_session_was_installed_and_a_responder_waits_for_confirmation() {
    let mut pair = Pair::new();
    let datagram = initiation(&mut pair);
    pair.b.log.clear();
    pair.b.receive_handshake(pair.now, pair.a.addr, datagram, 0);
    assert_eq!(pair.b.log, ["SendStaged", "Install", "Send"]);
    assert!(pair.b.send.is_empty());
    pair.exchange();
    assert_eq!(pair.b.send.len(), 1);
}

#[test]
fn an_initiator_sends_at_once_so_that_the_responder_may() {
    let mut pair = Pair::new();
    let datagram = initiation(&mut pair);
    pair.b.receive_handshake(pair.now, pair.a.addr, datagram, 0);
    let (_, response) = pair.b.sends.pop_front().unwrap();
    pair.a.log.clear();
    pair.a.receive_handshake(pair.now, pair.b.addr, response, 0);
    let order: Vec<_> = pair.a.log.iter().copied().filter(|name| *name != "SendStaged").collect();
    assert_eq!(order, ["Install", "Keepalive"]);
}

/// When a side's last handshake completed.
fn last(side: &Side) -> Option<Duration> {
    side.device.peer_infos().next().unwrap().last_handshake
}

#[test]
fn the_time_of_a_handshake_is_when_both_ends_had_it() {
    let mut pair = Pair::new();
    let datagram = initiation(&mut pair);
    pair.b.receive_handshake(pair.now, pair.a.addr, datagram, 0);
    assert_eq!(last(&pair.b), None);
    pair.exchange();
    assert_eq!((last(&pair.a), last(&pair.b)), (Some(at(pair.now).wall), Some(at(pair.now).wall)));
}

#[test]
fn indices_are_freed_with_their_sessions() {
    let mut pair = Pair::connected();
    for _ in 0..10 {
        pair.now = pair.now + Duration::from_secs(125);
        pair.handshake();
        assert_eq!(pair.talks(), (true, true));
        for side in [&pair.a, &pair.b] {
            assert_eq!((side.device.indices.len(), side.receive.len()), (2, 2), "current and previous");
        }
    }
    pair.advance(REJECT_AFTER_TIME);
    assert!(pair.a.device.indices.len() <= 2);
    let remove = |seed| SetRequest {
        peers: vec![PeerRequest { remove: true, ..PeerRequest::new(public(seed)) }],
        ..SetRequest::default()
    };
    pair.a.apply(pair.now, &remove(2));
    pair.b.apply(pair.now, &remove(1));
    for side in [&pair.a, &pair.b] {
        assert_eq!((side.device.indices.len(), side.receive.len(), side.peers.len()), (0, 0, 0));
    }
}

#[test]
fn a_replaced_session_receives_until_it_is_too_old() {
    let mut pair = Pair::connected();
    let first = pair.b.send[&pair.b.peer()].remote_index();
    pair.now = pair.now + Duration::from_secs(125);
    pair.handshake();
    assert_ne!(pair.b.send[&pair.b.peer()].remote_index(), first);
    assert!(pair.a.receive.contains_key(&first));
    pair.advance(REJECT_AFTER_TIME - Duration::from_secs(125));
    assert!(!pair.a.receive.contains_key(&first));
}

#[test]
fn a_retry_replaces_the_outstanding_initiation() {
    let mut pair = Pair::new();
    pair.lossy = true;
    let late = initiation(&mut pair);
    pair.advance(REKEY_TIMEOUT + Duration::from_secs(1));
    assert_eq!((pair.a.device.stats().initiations_sent, pair.a.device.indices.len()), (2, 1));
    pair.b.receive_handshake(pair.now, pair.a.addr, late, 0);
    let (_, response) = pair.b.sends.pop_front().unwrap();
    pair.a.receive_handshake(pair.now, pair.b.addr, response, 0);
    assert_eq!(pair.a.device.stats().dropped_unexpected, 1);
    assert!(pair.a.send.is_empty());
}

#[test]
fn under_load_a_message_without_cookie_gets_one_and_does_not_move_the_endpoint() {
    let mut pair = Pair::new();
    let datagram = initiation(&mut pair);
    pair.b.receive_handshake(pair.now, pair.a.addr, datagram, UNDER_LOAD);
    assert!(pair.b.receive.is_empty() && pair.b.endpoint().is_none());
    let (endpoint, reply) = pair.b.sends.pop_front().unwrap();
    assert_eq!((endpoint.addr, reply.bytes().len()), (pair.a.addr, 64));

    let elsewhere = SocketAddr::from(([198, 51, 100, 1], 9));
    pair.a.receive_handshake(pair.now, elsewhere, reply, 0);
    assert_eq!(pair.a.device.stats().cookies_accepted, 1);
    assert_eq!(pair.a.endpoint().map(|endpoint| endpoint.addr), Some(pair.b.addr));

    // The retry carries the cookie.
    pair.now = pair.now + REKEY_TIMEOUT + Duration::from_secs(1);
    pair.a.device.handle_timeout(at(pair.now));
    pair.a.drain();
    let (_, retry) = pair.a.sends.pop_front().unwrap();
    pair.b.receive_handshake(pair.now, pair.a.addr, retry, UNDER_LOAD);
    assert_eq!(pair.b.device.stats().initiations_accepted, 1);
    pair.exchange();
    assert_eq!(pair.talks(), (true, true));
}

#[test]
fn under_load_a_source_with_a_cookie_has_a_budget() {
    let mut pair = Pair::new();
    let datagram = initiation(&mut pair);
    pair.b.receive_handshake(pair.now, pair.a.addr, datagram, UNDER_LOAD);
    let (_, reply) = pair.b.sends.pop_front().unwrap();
    pair.a.receive_handshake(pair.now, pair.b.addr, reply, 0);
    pair.now = pair.now + REKEY_TIMEOUT + Duration::from_secs(1);
    pair.a.device.handle_timeout(at(pair.now));
    pair.a.drain();
    let (_, retry) = pair.a.sends.pop_front().unwrap();
    for _ in 0..20 {
        pair.b.receive_handshake(pair.now, pair.a.addr, retry.clone(), UNDER_LOAD);
    }
    let stats = pair.b.device.stats();
    assert!(stats.dropped_rate_limited >= 10 && stats.initiations_accepted == 1, "{stats:?}");
}

#[test]
fn a_replayed_initiation_is_refused_and_moves_nothing() {
    let mut pair = Pair::new();
    let datagram = initiation(&mut pair);
    pair.b.receive_handshake(pair.now, pair.a.addr, datagram.clone(), 0);
    pair.exchange();
    pair.now = pair.now + Duration::from_secs(1);
    pair.b.receive_handshake(pair.now, SocketAddr::from(([198, 51, 100, 1], 9)), datagram, 0);
    assert_eq!(pair.b.device.stats().dropped_replayed, 1);
    assert_eq!(pair.b.endpoint().map(|endpoint| endpoint.addr), Some(pair.a.addr));
    assert_eq!(pair.b.device.indices.len(), 1);
}

#[test]
fn an_initiation_of_a_stranger_is_dropped() {
    let mut pair = Pair::new();
    let datagram = initiation(&mut pair);
    let remove = PeerRequest { remove: true, ..PeerRequest::new(public(1)) };
    pair.b.apply(pair.now, &SetRequest { peers: vec![remove], ..SetRequest::default() });
    pair.b.receive_handshake(pair.now, pair.a.addr, datagram, 0);
    assert_eq!(pair.b.device.stats().dropped_unknown_peer, 1);
    assert!(pair.b.sends.is_empty());
}

#[test]
fn ends_that_start_at_once_get_one_session_and_one_of_them_renews_it() {
    let mut pair = Pair::connected();
    pair.now = pair.now + Duration::from_secs(125);
    for side in [&mut pair.a, &mut pair.b] {
        let id = side.peer();
        side.device.drop_sessions(at(pair.now), id.slot, DisconnectReason::Expired);
        side.drain();
        side.event(pair.now, Event::NeedHandshake(id));
        assert_eq!(side.sends.len(), 1);
    }
    let (from_a, from_b) = (pair.a.sends.pop_front().unwrap().1, pair.b.sends.pop_front().unwrap().1);
    pair.a.receive_handshake(pair.now, pair.b.addr, from_b, 0);
    pair.b.receive_handshake(pair.now, pair.a.addr, from_a, 0);
    pair.advance(Duration::from_secs(20));
    assert_eq!(pair.talks(), (true, true));
    let (a, b) = (&pair.a.send[&pair.a.peer()], &pair.b.send[&pair.b.peer()]);
    assert_eq!((a.remote_index(), b.remote_index()), (b.local_index(), a.local_index()));
    assert_ne!(a.role(), b.role());
    let sent = [&pair.a, &pair.b].map(|side| side.device.stats().initiations_sent);
    assert_eq!(sent, [2, 1], "nothing had to be tried again");
}

#[test]
fn a_response_is_refused_once_the_peers_own_handshake_has_taken_effect() {
    for keep in [true, false] {
        let mut pair = Pair::connected();
        pair.now = pair.now + Duration::from_secs(125);
        let withheld = initiation(&mut pair);
        pair.b.receive_handshake(pair.now, pair.a.addr, withheld, 0);
        let (_, withheld) = pair.b.sends.pop_front().unwrap();
        // The smaller key keeps its initiation when they cross, until the other's session is used.
        let young = if keep { Duration::from_secs(1) } else { REKEY_TIMEOUT };
        for _ in 0..4 {
            pair.now = pair.now + young;
            pair.b.device.initiate(at(pair.now), pair.b.peer().slot);
            pair.b.drain();
            pair.exchange();
            assert_eq!(pair.talks(), (true, true));
        }
        let (id, before) = (pair.a.peer(), pair.a.device.indices.len());
        let current = pair.a.send[&id].local_index();
        pair.a.receive_handshake(pair.now, pair.b.addr, withheld, 0);
        assert_eq!(pair.a.device.stats().dropped_unexpected, 1);
        assert_eq!((pair.a.send[&id].local_index(), pair.a.device.indices.len()), (current, before));
        assert_eq!(pair.talks(), (true, true));
    }
}

fn psk(byte: u8, seed: u8) -> SetRequest {
    let peer = PeerRequest {
        preshared_key: Some(Box::new(SharedSecret([byte; 32]))),
        ..PeerRequest::new(public(seed))
    };
    SetRequest { peers: vec![peer], ..SetRequest::default() }
}

#[test]
fn a_response_just_sent_holds_back_an_own_initiation() {
    let mut pair = Pair::new();
    let datagram = initiation(&mut pair);
    pair.b.receive_handshake(pair.now, pair.a.addr, datagram, 0);
    pair.b.sends.clear();
    let id = pair.b.peer();
    pair.b.event(pair.now + REKEY_TIMEOUT - Duration::from_nanos(1), Event::NeedHandshake(id));
    assert_eq!(pair.b.sends.len(), 0);
    pair.b.event(pair.now + REKEY_TIMEOUT, Event::NeedHandshake(id));
    assert_eq!(pair.b.sends.len(), 1, "the response was lost");
}

#[test]
fn a_preshared_key_takes_effect_with_the_next_handshake() {
    let mut pair = Pair::connected();
    pair.b.apply(pair.now, &psk(5, 1));
    assert_eq!(pair.talks(), (true, true), "the session stays");
    pair.now = pair.now + Duration::from_secs(125);
    pair.handshake();
    assert_eq!(pair.a.device.stats().dropped_not_authentic, 1, "the response does not open");
    pair.a.apply(pair.now, &psk(5, 2));
    pair.advance(REKEY_TIMEOUT + Duration::from_secs(1));
    assert_eq!(pair.a.device.stats().responses_accepted, 2);
    assert_eq!(pair.talks(), (true, true));
}

#[test]
fn a_low_order_peer_or_one_without_endpoint_is_never_initiated_to() {
    let mut pair = Pair::new();
    pair.b.event(pair.now, Event::NeedHandshake(pair.b.peer()));
    assert_eq!((pair.b.sends.len(), pair.b.purged.len()), (0, 1), "no endpoint");

    let mut peer = PeerRequest::new(PublicKey([0; 32]));
    peer.endpoint = Some(pair.b.addr);
    pair.a.apply(pair.now, &SetRequest { replace_peers: true, peers: vec![peer], ..SetRequest::default() });
    let id = pair.a.peer();
    pair.a.peers[&id].handshake_wanted.store(true, Relaxed);
    pair.a.event(pair.now, Event::NeedHandshake(id));
    assert_eq!((pair.a.sends.len(), pair.a.purged.len(), pair.a.device.indices.len()), (0, 1, 0));
    assert!(!pair.a.peers[&id].handshake_wanted.load(Relaxed));
}

#[test]
fn a_request_that_crossed_the_new_session_starts_no_handshake() {
    let mut pair = Pair::connected();
    pair.now = pair.now + Duration::from_secs(30);
    pair.handshake();
    assert_eq!(pair.a.device.stats().initiations_sent, 1);
}

#[test]
fn an_authentic_initiation_moves_the_endpoint() {
    let mut pair = Pair::connected();
    pair.now = pair.now + Duration::from_secs(125);
    pair.a.addr = SocketAddr::from(([203, 0, 113, 5], 1234));
    pair.handshake();
    let to = LocalAddr { ip: pair.b.addr.ip(), interface: 7 };
    assert_eq!(pair.b.endpoint(), Some(Endpoint { addr: pair.a.addr, from: Some(to) }));
    assert_eq!(pair.talks(), (true, true));
}

#[test]
fn a_roaming_peer_is_found_by_all_workers_and_its_source_is_kept_while_it_may_be() {
    let mut pair = Pair::connected();
    let id = pair.b.peer();
    let local = |last| LocalAddr { ip: [10, 0, 0, last].into(), interface: 1 };
    pair.b.device.set_source_oracle(Box::new(move |departure| departure.from == local(1)));
    let addr = SocketAddr::from(([203, 0, 113, 5], 1234));
    let roam = |from| Event::Roamed(id, Endpoint { addr, from: Some(from) });
    pair.b.event(pair.now, roam(local(1)));
    assert_eq!(pair.b.endpoint(), Some(Endpoint { addr, from: Some(local(1)) }));
    pair.b.event(pair.now, roam(local(2)));
    assert_eq!(pair.b.endpoint(), Some(Endpoint { addr, from: None }));
    pair.b.event(pair.now, roam(local(1)));
    pair.b.event(pair.now, Event::SourceGone(id));
    assert_eq!(pair.b.endpoint(), Some(Endpoint { addr, from: None }));
    let stale = PeerId { epoch: id.epoch + 1, ..id };
    pair.b.log.clear();
    pair.b.event(pair.now, Event::Roamed(stale, Endpoint { addr: pair.a.addr, from: None }));
    assert!(pair.b.log.is_empty());
}

#[test]
fn sources_are_let_go_and_taken_again_as_the_routes_change() {
    let mut pair = Pair::connected();
    let (heard, may) = (pair.b.endpoint().unwrap(), Arc::new(AtomicBool::new(false)));
    assert!(heard.from.is_some());
    let oracle = Arc::clone(&may);
    pair.b.device.set_source_oracle(Box::new(move |_| oracle.load(Relaxed)));
    for leads in [false, true] {
        may.store(leads, Relaxed);
        pair.b.device.routes_changed();
        assert!(pair.b.device.has_unchecked_sources());
        pair.b.device.check_sources();
        pair.b.drain();
        let from = heard.from.filter(|_| leads);
        assert_eq!(pair.b.endpoint(), Some(Endpoint { from, ..heard }));
        assert!(!pair.b.device.has_unchecked_sources());
        assert_eq!(pair.talks(), (true, true));
    }
}

#[test]
fn only_the_session_that_waits_can_be_confirmed() {
    let mut pair = Pair::connected();
    let (id, index) = (pair.b.peer(), pair.b.send[&pair.b.peer()].local_index());
    let before = last(&pair.b);
    pair.now = pair.now + Duration::from_secs(10);
    pair.b.log.clear();
    pair.b.event(pair.now, Event::Confirmed(id, index ^ 0x100));
    assert!(pair.b.log.is_empty());
    pair.b.event(pair.now, Event::Confirmed(id, index));
    assert_eq!((last(&pair.b), pair.b.log.as_slice()), (before, &["SendStaged"][..]), "no second handshake");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_damaged_datagram_is_accepted_or_makes_the_device_panic(
        kind in 0u8..6, length in 0usize..=148, fill: u8, at_byte in 0usize..148, flip: u8, waiting in 0usize..2,
    ) {
        let mut pair = Pair::new();
        let original = initiation(&mut pair).bytes().to_vec();
        let mut bytes = original.clone();
        bytes.truncate(length);
        if let Some(byte) = bytes.first_mut() {
            *byte = kind;
        }
        if let Some(byte) = bytes.get_mut(at_byte) {
            *byte ^= flip;
        }
        bytes.resize([length, 64, 92, 148][usize::from(fill) % 4], fill);
        let datagram = HandshakeDatagram::new(&bytes).unwrap();
        pair.b.receive_handshake(pair.now, pair.a.addr, datagram, waiting * UNDER_LOAD);
        // MAC2, which is looked at under load, is all that may differ in what is accepted.
        let genuine = bytes.len() == original.len() && bytes[..132] == original[..132];
        prop_assert_eq!(pair.b.device.stats().initiations_accepted, u64::from(genuine && waiting == 0));
    }
}
