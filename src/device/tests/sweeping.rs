//! What is done for a few peers at a time, and what happens meanwhile.

use super::*;
use crate::device::lifecycle::SWEPT;
use proptest::prelude::*;

/// More peers than are dealt with in one call.
const MANY: u32 = 3 * SWEPT;

fn strangers() -> impl Iterator<Item = PublicKey> {
    (0..MANY).map(|n| {
        let mut key = [9; 32];
        key[..4].copy_from_slice(&n.to_le_bytes());
        PublicKey(key)
    })
}

/// Two ends with a session, of which `a` has many other peers: that of `b` is in the middle.
fn crowded() -> Pair {
    let mut pair = Pair::new();
    let (before, behind): (Vec<_>, Vec<_>) = strangers().partition(|key| key.0[0] % 2 == 0);
    let b = PeerRequest { endpoint: Some(pair.b.addr), ..PeerRequest::new(public(2)) };
    let peers = before.into_iter().map(PeerRequest::new).chain([b]);
    let peers = peers.chain(behind.into_iter().map(PeerRequest::new)).collect();
    pair.a.apply(pair.now, &SetRequest { replace_peers: true, peers, ..SetRequest::default() });
    pair.a.settle(pair.now);
    pair.a.only = Some(pair.a.device.peers.find(&public(2)).unwrap());
    pair.handshake();
    assert_eq!(pair.talks(), (true, true));
    pair
}

fn key(seed: u8) -> SetRequest {
    SetRequest { private_key: Some(Some(private(seed))), ..SetRequest::default() }
}

impl Side {
    fn begin(&mut self, now: Instant, request: SetRequest) -> Transaction {
        let transaction = self.device.begin(at(now), request, &mut |wanted| Ok(wanted.port)).unwrap();
        self.drain();
        transaction
    }

    /// Does a number of steps of a transaction. True where it is done.
    fn steps(&mut self, now: Instant, transaction: &mut Transaction, mut count: usize) -> bool {
        let done = self.device.go_on(at(now), transaction, &mut || {
            count = count.saturating_sub(1);
            count > 0
        });
        self.drain();
        done
    }
}

#[test]
fn whoever_needs_a_handshake_while_another_key_is_taken_in_has_it_by_that_key_and_keeps_its_session() {
    for steps in [2, MANY as usize / 16] {
        let mut pair = crowded();
        let mut change = pair.a.begin(pair.now, key(3));
        assert!(!pair.a.steps(pair.now, &mut change, steps));
        // The other end learns of the new key, and begins.
        let peers = vec![PeerRequest { endpoint: Some(pair.a.addr), ..PeerRequest::new(public(3)) }];
        pair.b.apply(pair.now, &SetRequest { replace_peers: true, peers, ..SetRequest::default() });
        pair.now = pair.now + Duration::from_secs(1);
        pair.b.event(pair.now, Event::NeedHandshake(pair.b.peer()));
        pair.exchange();
        assert_eq!(pair.talks(), (true, true), "{steps}");
        while !pair.a.steps(pair.now, &mut change, 1) {}
        assert_eq!(pair.talks(), (true, true), "what came of the new key stays");
        assert_eq!(pair.a.device.indices.len(), 1, "what came of the old key is gone");
    }
}

#[test]
fn all_sessions_of_another_key_are_gone_at_the_end_of_the_transaction() {
    let mut pair = crowded();
    let mut change = pair.a.begin(pair.now, key(3));
    while !pair.a.steps(pair.now, &mut change, 1) {}
    assert_eq!((pair.a.receive.len(), pair.a.device.indices.len()), (0, 0));
}

#[test]
fn an_interface_that_goes_down_answers_nobody_while_its_peers_are_taken_down_and_comes_up_whole() {
    let mut pair = crowded();
    pair.a.device.set_up(at(pair.now), false);
    pair.a.drain();
    assert_eq!(
        (pair.a.receive.len(), pair.a.binds.last()),
        (1, Some(&None)),
        "not its turn yet, but no socket"
    );
    pair.now = pair.now + Duration::from_secs(6);
    pair.b.device.initiate(at(pair.now), pair.b.peer().slot);
    pair.b.drain();
    pair.exchange();
    assert_eq!(pair.a.device.stats().dropped_not_ready, 1);
    for settles in [true, false] {
        if settles {
            pair.a.settle(pair.now);
            assert_eq!((pair.a.receive.len(), pair.a.device.indices.len()), (0, 0));
            assert_eq!(pair.a.device.poll_timeout(), None);
        }
        // Up again, also before all were taken down: the lost session is made anew.
        pair.a.device.set_up(at(pair.now), true);
        pair.a.drain();
        assert!(pair.a.receive.is_empty(), "none outlives the interface");
        pair.advance(Duration::from_secs(7));
        assert_eq!(pair.talks(), (true, true));
        pair.a.device.set_up(at(pair.now), false);
        pair.a.drain();
    }
}

#[test]
fn sources_are_let_go_of_with_another_mark_also_where_peers_go_meanwhile() {
    let mut pair = crowded();
    let from = Some(LocalAddr { ip: pair.a.addr.ip(), interface: 7 });
    let heard = Endpoint { addr: pair.b.addr, from };
    let id = pair.a.peer();
    pair.a.event(pair.now, Event::Roamed(id, heard));
    assert_eq!(pair.a.endpoint(), Some(heard));
    let mut peers: Vec<_> =
        strangers().map(|key| PeerRequest { remove: true, ..PeerRequest::new(key) }).collect();
    peers.truncate(MANY as usize / 2);
    let request = SetRequest { fwmark: Some(7), peers, ..SetRequest::default() };
    let mut change = pair.a.begin(pair.now, request);
    pair.a.device.routes_changed();
    while !pair.a.steps(pair.now, &mut change, 1) {
        pair.a.device.check_sources();
        pair.a.drain();
    }
    while pair.a.device.has_unchecked_sources() {
        pair.a.device.check_sources();
    }
    assert_eq!(pair.a.endpoint(), Some(Endpoint { from: None, ..heard }));
    assert_eq!(pair.talks(), (true, true));
}

/// What may happen between two steps of a transaction.
#[derive(Clone, Copy, Debug)]
enum Between {
    Down,
    Up,
    RoutesChanged,
    Timeout,
    Speak,
    Pause,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever happens between the steps of a transaction: at its end the peers are those that it names, and nothing is left
    /// of the others.
    #[test]
    fn a_transaction_that_anything_interrupts_leaves_nothing_behind(
        between in proptest::collection::vec((1..200_usize, prop_oneof![
            Just(Between::Down), Just(Between::Up), Just(Between::RoutesChanged), Just(Between::Timeout), Just(Between::Speak),
            Just(Between::Pause),
        ]), 0..20),
        replace: bool,
        seed in 3u8..5,
    ) {
        let mut pair = crowded();
        let peers: Vec<_> = strangers().step_by(3).map(|key| PeerRequest { remove: !replace, ..PeerRequest::new(key) }).collect();
        let left = if replace { peers.len() } else { MANY as usize + 1 - peers.len() };
        let request = SetRequest { fwmark: Some(9), replace_peers: replace, peers, ..key(seed) };
        let mut change = pair.a.begin(pair.now, request);
        let mut done = false;
        for (steps, between) in between {
            done = done || pair.a.steps(pair.now, &mut change, steps);
            match between {
                Between::Down => pair.a.device.set_up(at(pair.now), false),
                Between::Up => pair.a.device.set_up(at(pair.now), true),
                Between::RoutesChanged => pair.a.device.routes_changed(),
                Between::Timeout => pair.a.device.handle_timeout(at(pair.now)),
                Between::Speak => pair.b.event(pair.now, Event::NeedHandshake(pair.b.peer())),
                Between::Pause => pair.now = pair.now + Duration::from_secs(3),
            }
            pair.a.device.check_sources();
            pair.a.drain();
            pair.exchange();
        }
        while !done {
            done = pair.a.steps(pair.now, &mut change, 50);
        }
        prop_assert_eq!(pair.a.device.peers.len(), left);
        // The other end has the old key: nothing can have come of what it said.
        prop_assert_eq!(pair.a.receive.len(), 0);
        pair.a.device.set_up(at(pair.now), false);
        pair.a.drain();
        pair.a.settle(pair.now);
        prop_assert_eq!((pair.a.device.indices.len(), pair.a.device.schedule.len()), (0, 0));
        prop_assert_eq!(pair.a.device.poll_timeout(), None);
    }
}
