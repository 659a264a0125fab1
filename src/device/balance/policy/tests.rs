use super::*;
use proptest::prelude::*;

fn peer(slot: u32, owner: u8, sent: u64) -> PeerLoad {
    PeerLoad { id: PeerId { slot, epoch: slot }, owner, receiver: owner, sent, received: 0 }
}

fn id(slot: u32) -> PeerId {
    PeerId { slot, epoch: slot }
}

fn tick(policy: &mut Policy, busy: &[u16], peers: &[PeerLoad]) -> Vec<Decision> {
    if !policy.observe(busy) {
        return Vec::new();
    }
    let mut loads = Loads::default();
    peers.iter().for_each(|&peer| policy.weigh(&mut loads, peer));
    policy.decide(busy, loads)
}

#[test]
fn the_heaviest_peer_of_a_worker_hot_for_two_ticks_is_spread() {
    let mut policy = Policy::default();
    let peers = [peer(0, 0, 100), peer(1, 1, 900), peer(2, 1, 100)];
    assert_eq!(tick(&mut policy, &[100, 900], &peers), []);
    assert_eq!(tick(&mut policy, &[100, 899], &peers), [], "not running");
    assert_eq!(tick(&mut policy, &[100, 950], &peers), []);
    assert_eq!(tick(&mut policy, &[100, 950], &peers), [Decision::Begin(Sent, id(1))]);
}

#[test]
fn nothing_is_spread_where_it_would_not_help() {
    let alone = [peer(0, 0, 1000)];
    let cases: [(&[u16], &[PeerLoad]); 2] = [
        (&[1000, 800, 700], &alone), // no room elsewhere
        (&[1000], &alone),           // no elsewhere
    ];
    for (busy, peers) in cases {
        let mut policy = Policy::default();
        for _ in 0..10 {
            assert_eq!(tick(&mut policy, busy, peers), [], "{busy:?}");
        }
    }
}

#[test]
fn a_peer_that_fell_below_half_for_five_ticks_is_drawn_back() {
    let mut policy = Policy::default();
    for _ in 0..2 {
        tick(&mut policy, &[1000, 0], &[peer(0, 0, 1000)]);
    }
    for sent in [500, 499, 0, 499, 499, 500, 1, 1, 1, 1] {
        assert_eq!(tick(&mut policy, &[500, 500], &[peer(0, 0, sent)]), []);
    }
    assert_eq!(tick(&mut policy, &[500, 950], &[]), [], "queues may be full");
    assert_eq!(tick(&mut policy, &[500, 500], &[]), [Decision::End(Sent, id(0))]);
    assert!(!policy.observe(&[500, 500]), "nothing is left to be decided");
}

#[test]
fn one_peer_at_a_time_is_taken_from_a_worker() {
    let mut policy = Policy::default();
    let mut peers = [peer(0, 0, 1000), peer(1, 0, 900), peer(2, 0, 50)];
    let mut two_ticks = |peers: &[PeerLoad]| [(); 2].map(|()| tick(&mut policy, &[1000, 0, 0, 0], peers));
    assert_eq!(two_ticks(&peers), [vec![], vec![Decision::Give(id(1), 1)]]);
    (peers[1].owner, peers[1].receiver) = (1, 1);
    assert_eq!(two_ticks(&peers), [vec![], vec![Decision::Begin(Sent, id(0))]]);
}

#[test]
fn a_worker_that_is_hot_with_what_one_peer_sends_it_is_assisted_until_that_calms_down() {
    let mut policy = Policy::default();
    let receiving = |received| PeerLoad { received, ..peer(0, 0, 100) };
    assert_eq!(tick(&mut policy, &[1000, 0], &[receiving(1000)]), []);
    assert_eq!(tick(&mut policy, &[1000, 0], &[receiving(1000)]), [Decision::Begin(Received, id(0))]);
    for _ in 0..10 {
        assert_eq!(tick(&mut policy, &[1000, 500], &[receiving(1700)]), [], "it is already");
    }
    for _ in 1..CALM_TICKS {
        assert_eq!(tick(&mut policy, &[500, 100], &[receiving(499)]), []);
    }
    assert_eq!(tick(&mut policy, &[500, 100], &[receiving(499)]), [Decision::End(Received, id(0))]);
    assert!(!policy.observe(&[500, 100]));
}

#[test]
fn one_flow_of_a_spread_peer_is_sealed_by_all_until_it_calms_down() {
    let mut policy = Policy::default();
    let mut two_ticks =
        |busy: [u16; 2], sent| [(); 2].map(|()| tick(&mut policy, &busy, &[peer(0, 0, sent)]));
    assert_eq!(two_ticks([1000, 0], 1000), [vec![], vec![Decision::Begin(Sent, id(0))]]);
    assert_eq!(two_ticks([1000, 1000], 1900), [vec![], vec![]], "all of them are busy");
    assert_eq!(two_ticks([100, 1000], 1000), [vec![Decision::Begin(Sealed, id(0))], vec![]]);
    assert_eq!(two_ticks([500, 1000], 1500), [vec![], vec![]], "it is already");
    assert_eq!(two_ticks([100, 100], 499), [vec![], vec![]]);
    assert_eq!(two_ticks([100, 100], 499), [vec![], vec![]]);
    let ends = vec![Decision::End(Sent, id(0)), Decision::End(Sealed, id(0))];
    assert_eq!(two_ticks([100, 100], 499), [ends, vec![]]);
    assert!(!policy.observe(&[100, 100]));
}

#[test]
fn no_other_worker_seals_for_one_that_is_hot_with_something_else() {
    let mut policy = Policy::default();
    for _ in 0..2 {
        tick(&mut policy, &[1000, 0], &[peer(0, 0, 1000)]);
    }
    // A spread peer that is light now, and two of whom neither is heavy enough to be given away.
    let others = [1, 2].map(|slot| peer(slot, 1, 4000));
    for _ in 0..10 {
        assert_eq!(tick(&mut policy, &[300, 1000], &[peer(0, 0, 600), others[0], others[1]]), []);
    }
}

/// The decisions of so many ticks in which the first of as many workers as there are busy shares has these peers.
fn decided(ticks: usize, busy: &[u16], peers: &[PeerLoad]) -> Vec<Decision> {
    let mut policy = Policy::default();
    (0..ticks).flat_map(|_| tick(&mut policy, busy, peers)).collect()
}

#[test]
fn of_several_heavy_peers_one_is_given_to_the_least_busy_worker() {
    let sent = [peer(0, 0, 500), peer(1, 0, 500), peer(2, 1, 100)];
    assert_eq!(decided(2, &[1000, 200, 100], &sent), [Decision::Give(id(0), 2)]);
    let received = [0, 1].map(|slot| PeerLoad { received: 1000, ..peer(slot, 0, 0) });
    assert_eq!(decided(2, &[1000, 0], &received), [Decision::Give(id(0), 1)]);
    let unequal = [peer(0, 0, 600), peer(1, 0, 400)];
    assert_eq!(decided(2, &[1000, 0], &unequal), [Decision::Give(id(1), 1)], "the other one's trouble");
}

#[test]
fn no_peer_is_given_where_that_would_not_help() {
    let equals = [peer(0, 0, 500), peer(1, 0, 500)];
    assert_eq!(decided(10, &[1000, 300], &equals), [], "the other worker would be as busy");
    let one = [peer(0, 0, 950), peer(1, 0, 50)];
    assert_eq!(decided(2, &[1000, 0], &one), [Decision::Begin(Sent, id(0))], "the light one changes nothing");
}

#[test]
fn a_peer_on_its_way_counts_where_it_goes_and_nothing_follows_it_before_it_is_there() {
    let leaving = PeerLoad { owner: 1, received: 400, ..peer(0, 0, 0) };
    let others = [1, 2].map(|slot| PeerLoad { received: 300, ..peer(slot, 0, 0) });
    let peers = [leaving, others[0], others[1]];
    assert_eq!(decided(10, &[1000, 0, 0], &peers), []);
    // Worker 1 will be busy with what comes, so worker 2 gets what worker 3 has too much of.
    let fourth = [4, 5].map(|slot| PeerLoad { received: 500, ..peer(slot, 3, 0) });
    let all = [leaving, others[0], others[1], fourth[0], fourth[1]];
    assert_eq!(decided(2, &[1000, 0, 100, 1000], &all), [Decision::Give(id(4), 2)]);
}

#[test]
fn the_spread_are_bounded() {
    let mut policy = Policy::default();
    for slot in 0..2 * MAX_SHARED as u32 {
        for _ in 0..2 {
            tick(&mut policy, &[1000, 0], &[peer(slot, 0, 1000)]);
        }
    }
    assert_eq!(policy.engaged[Sent as usize].len(), MAX_SHARED);
}

/// Workers that carry 1000 each, and share it among what is offered to them.
fn carried(workers: usize, offered: &[PeerLoad], policy: &Policy) -> (Vec<u16>, Vec<PeerLoad>) {
    let parts = |peer: &PeerLoad, direction: Direction| -> Vec<u64> {
        let worker = if direction == Sent { peer.owner } else { peer.receiver };
        let part = |at| match policy.has(direction, peer.id) {
            true => peer.moved(direction) / workers as u64,
            false => peer.moved(direction) * u64::from(at == usize::from(worker)),
        };
        (0..workers).map(part).collect()
    };
    let mut load = vec![0; workers];
    for (peer, direction) in offered.iter().flat_map(|peer| [(peer, Sent), (peer, Received)]) {
        load.iter_mut().zip(parts(peer, direction)).for_each(|(load, part)| *load += part);
    }
    let through = |peer: &PeerLoad, direction| {
        let shares = parts(peer, direction).into_iter().zip(&load);
        shares.map(|(part, &load)| part * 1000 / load.max(1000)).sum()
    };
    let through = |peer| PeerLoad { sent: through(peer, Sent), received: through(peer, Received), ..*peer };
    let peers = offered.iter().map(through).collect();
    (load.into_iter().map(|load| load.min(1000) as u16).collect(), peers)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn constant_load_never_makes_a_peer_go_back_and_forth(
        workers in 2usize..9,
        loads in proptest::collection::vec((0usize..8, 0u64..4000, 0u64..4000, 1usize..130), 1..20),
    ) {
        let mut offered: Vec<_> = loads
            .iter()
            .zip(0..)
            .map(|(&(owner, sent, received, _), slot)| {
                PeerLoad { received, ..peer(slot, (owner % workers) as u8, sent) }
            })
            .collect();
        let mut policy = Policy::default();
        let mut begun = std::collections::HashSet::new();
        let (mut given, mut last) = (vec![0; loads.len()], 0);
        for now in 0..1000 {
            // Each peer renews its session at its own times.
            for (peer, &(.., every)) in offered.iter_mut().zip(&loads) {
                if now % every == 0 {
                    peer.receiver = peer.owner;
                }
            }
            let (busy, peers) = carried(workers, &offered, &policy);
            for change in tick(&mut policy, &busy, &peers) {
                match change {
                    Decision::Begin(direction, id) => prop_assert!(begun.insert((direction as u8, id))),
                    Decision::End(_, id) => prop_assert!(false, "{id:?} drawn back"),
                    Decision::Give(id, worker) => {
                        let slot = id.slot as usize;
                        prop_assert_ne!(offered[slot].owner, worker);
                        offered[slot].owner = worker;
                        given[slot] += 1;
                        last = now;
                    }
                }
            }
        }
        prop_assert!(last < 600 && given.iter().all(|&times| times <= 3), "{given:?}, last at {last}");
    }

    #[test]
    fn a_lone_worker_never_spreads(ticks in proptest::collection::vec((0u16..=1000, 0u64..4000), 0..50)) {
        let mut policy = Policy::default();
        for (busy, sent) in ticks {
            prop_assert_eq!(tick(&mut policy, &[busy], &[peer(0, 0, sent)]), []);
        }
    }
}
