use super::*;
use crate::device::peer::Watch;
use crate::noise::{REJECT_AFTER_TIME, REKEY_ATTEMPT_TIME};

fn watch(side: &mut Side) -> (Watch, bool) {
    let id = side.peer();
    let armed = side.peers[&id].armed.load(Relaxed);
    (side.device.peers.by_id(id).unwrap().watch, armed)
}

/// What a worker does with every packet.
fn announce(side: &mut Side, now: Instant) {
    let id = side.peer();
    if !side.peers[&id].armed.swap(true, Relaxed) {
        side.event(now, Event::Activity(id));
    }
}

fn keepalive(seconds: u16, seed: u8) -> SetRequest {
    let peer = PeerRequest { persistent_keepalive: Some(seconds), ..PeerRequest::new(public(seed)) };
    SetRequest { peers: vec![peer], ..SetRequest::default() }
}

#[test]
fn an_unanswered_handshake_is_retried_and_given_up() {
    let mut pair = Pair::new();
    pair.lossy = true;
    pair.handshake();
    pair.advance(REKEY_ATTEMPT_TIME * 2);
    let stats = pair.a.device.stats();
    assert!((15..=20).contains(&stats.initiations_sent), "{stats:?}");
    assert_eq!((stats.given_up, pair.a.purged.len(), pair.a.device.indices.len()), (1, 1, 0));
}

#[test]
fn received_data_is_acknowledged_while_nobody_announces_it() {
    let mut pair = Pair::connected();
    let id = pair.b.peer();
    pair.b.peers[&id].data_received(pair.now);
    announce(&mut pair.b, pair.now);
    assert_eq!(watch(&mut pair.b), (Watch::On, true));
    pair.advance(Duration::from_secs(9));
    let sent = pair.b.log.iter().filter(|name| **name == "Keepalive").count();
    pair.advance(Duration::from_secs(2));
    let log = |side: &Side| side.log.iter().filter(|name| **name == "Keepalive").count();
    assert_eq!(log(&pair.b), sent + 1);
    // Watched again since the keepalive left, the next packet is found without an event.
    let before = log(&pair.b);
    pair.b.peers[&id].authenticated_sent(pair.now);
    announce(&mut pair.b, pair.now);
    assert_eq!(watch(&mut pair.b), (Watch::On, true));
    pair.b.peers[&id].data_received(pair.now);
    pair.advance(Duration::from_secs(11));
    assert_eq!(log(&pair.b), before + 1);
}

#[test]
fn unanswered_data_starts_a_handshake() {
    let mut pair = Pair::connected();
    pair.lossy = true;
    pair.a.peers[&pair.a.peer()].data_sent(pair.now);
    announce(&mut pair.a, pair.now);
    pair.advance(Duration::from_secs(16));
    assert_eq!(pair.a.device.stats().initiations_sent, 2);
}

#[test]
fn a_peer_that_went_quiet_is_not_watched_any_more() {
    let mut pair = Pair::connected();
    let id = pair.b.peer();
    pair.b.peers[&id].authenticated_received(pair.now);
    announce(&mut pair.b, pair.now);
    pair.advance(Duration::from_secs(30));
    assert_eq!(watch(&mut pair.b), (Watch::Off, false));
    pair.b.peers[&id].authenticated_received(pair.now);
    announce(&mut pair.b, pair.now);
    assert_eq!(watch(&mut pair.b), (Watch::On, true));
}

#[test]
fn keys_are_zeroed_long_after_the_last_session() {
    let mut pair = Pair::connected();
    pair.advance(REJECT_AFTER_TIME * 3 + Duration::from_secs(1));
    for side in [&mut pair.a, &mut pair.b] {
        assert_eq!((side.send.len(), side.receive.len(), side.device.indices.len()), (0, 0, 0));
        assert_eq!(side.device.poll_timeout(), None, "an idle peer has no deadline");
    }
}

#[test]
fn a_persistent_keepalive_starts_the_handshake_and_goes_on() {
    let mut pair = Pair::new();
    pair.a.apply(pair.now, &keepalive(25, 2));
    pair.advance(Duration::from_secs(1));
    assert_eq!(pair.talks(), (true, true));
    let count = |pair: &Pair| pair.a.log.iter().filter(|name| **name == "Keepalive").count();
    let before = count(&pair);
    pair.advance(Duration::from_secs(101));
    let sent = count(&pair) - before;
    assert!((3..=5).contains(&sent), "{sent}");
    pair.a.apply(pair.now, &keepalive(0, 2));
    let before = count(&pair);
    pair.advance(Duration::from_secs(60));
    assert_eq!(count(&pair), before);
}

#[test]
fn deadlines_do_not_pile_up() {
    let mut pair = Pair::connected();
    for _ in 0..200 {
        pair.a.apply(pair.now, &keepalive(65535, 2));
        pair.now = pair.now + Duration::from_millis(1);
        pair.a.device.handle_timeout(at(pair.now));
        pair.a.apply(pair.now, &keepalive(0, 2));
    }
    assert!(pair.a.device.schedule.len() <= 70, "{}", pair.a.device.schedule.len());
}

#[test]
fn ten_thousand_idle_peers_have_no_deadline() {
    let mut side = Side::new(1);
    let now = Instant::START;
    let peers = (0..10_000u32).map(|n| {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&n.to_le_bytes());
        key[31] = 64;
        PeerRequest::new(PublicKey(key))
    });
    side.apply(now, &SetRequest { peers: peers.collect(), ..SetRequest::default() });
    side.device.set_up(at(now), true);
    side.drain();
    side.settle(now);
    assert_eq!((side.peers.len(), side.device.poll_timeout()), (10_000, None));
    let size = size_of::<crate::device::peer::Peer>() + size_of::<PeerShared>();
    assert!(size <= 1024, "{size} bytes a peer");
}
