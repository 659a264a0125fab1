use super::*;
use crate::device::uapi::{CHUNK, Dump, chunk};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::net::IpAddr;

const NOW: Instant = Instant::START;

fn peer(seed: u8, allowed: &[&str]) -> PeerRequest {
    PeerRequest {
        allowed_ips: allowed.iter().map(|text| allow(text)).collect(),
        ..PeerRequest::new(public(seed))
    }
}

fn set(peers: Vec<PeerRequest>) -> SetRequest {
    SetRequest { peers, ..SetRequest::default() }
}

fn allowed(side: &Side, seed: u8) -> Vec<Prefix> {
    let device = &side.device;
    let found = device.peer_infos().find(|peer| *peer.public_key == public(seed));
    found.map(|peer| peer.allowed_ips.to_vec()).unwrap_or_default()
}

fn lookup(side: &Side, addr: &str) -> Option<u32> {
    side.routes.last()?.lookup(addr.parse().unwrap())
}

#[test]
fn a_prefix_has_one_owner_the_last_it_was_given_to() {
    let mut side = Side::new(1);
    side.apply(NOW, &set(vec![peer(2, &["10.0.0.0/8", "fd00::/8"]), peer(3, &["10.0.0.9/8"])]));
    assert_eq!(
        (allowed(&side, 2), allowed(&side, 3)),
        (vec![prefix("fd00::/8")], vec![prefix("10.0.0.0/8")])
    );
    assert_eq!(
        (lookup(&side, "10.1.1.1"), lookup(&side, "fd00::1"), lookup(&side, "11.0.0.1")),
        (Some(1), Some(0), None)
    );
    assert_eq!(side.routes.len(), 1, "one table a transaction");
}

#[test]
fn a_minus_takes_a_prefix_from_its_owner_only() {
    let mut side = Side::new(1);
    side.apply(
        NOW,
        &set(vec![peer(2, &["10.0.0.0/8"]), peer(3, &["-10.0.0.0/8", "11.0.0.0/8", "-12.0.0.0/8"])]),
    );
    assert_eq!(allowed(&side, 2), [prefix("10.0.0.0/8")]);
    side.apply(NOW, &set(vec![peer(2, &["-10.0.0.0/8"])]));
    assert_eq!((allowed(&side, 2), lookup(&side, "10.1.1.1")), (vec![], None));
    assert_eq!(allowed(&side, 3), [prefix("11.0.0.0/8")]);
}

#[test]
fn replaced_prefixes_are_gone_and_unchanged_ones_are_not_steered_anew() {
    let mut side = Side::new(1);
    side.apply(NOW, &set(vec![peer(2, &["10.0.0.0/8", "11.0.0.0/8"])]));
    assert_eq!(side.steer.len(), 2);
    side.steer.clear();
    let mut request = set(vec![peer(2, &["11.0.0.0/8", "12.0.0.0/8"])]);
    request.peers[0].replace_allowed_ips = true;
    side.apply(NOW, &request);
    let worker = side.peers[&side.peer()].owner();
    assert_eq!(
        side.steer,
        [(prefix("10.0.0.0/8"), None), (prefix("12.0.0.0/8"), Some(Target::Worker(worker)))]
    );
}

#[test]
fn a_transaction_publishes_only_what_changed() {
    let mut side = Side::new(1);
    side.apply(NOW, &set(vec![peer(2, &["10.0.0.0/8"])]));
    side.apply(NOW, &set(vec![peer(2, &["10.0.0.0/8"])]));
    assert_eq!(side.routes.len(), 1, "nothing");
    side.apply(NOW, &set(vec![peer(3, &[])]));
    assert_eq!((side.routes.len(), side.peers.len()), (2, 2), "another peer");
    assert!(Arc::ptr_eq(&side.routes[0], &side.routes[1]), "the same routes");
}

#[test]
fn peers_are_shared_out_evenly_and_keep_their_worker() {
    let mut side = Side::new(1);
    side.apply(NOW, &set((2..11).map(|seed| peer(seed, &[])).collect()));
    let owners = |side: &Side| side.device.peers().iter().map(|shared| shared.owner()).collect::<Vec<_>>();
    assert_eq!(owners(&side), [0, 1, 2, 0, 1, 2, 0, 1, 2]);
    let remove = |seed| PeerRequest { remove: true, ..peer(seed, &[]) };
    side.apply(NOW, &set(vec![remove(3), remove(6), peer(20, &[]), peer(21, &[])]));
    assert_eq!(owners(&side), [0, 2, 0, 2, 0, 1, 2, 1, 1]);
}

#[test]
fn a_slot_is_reused_only_after_no_route_names_it_and_under_another_epoch() {
    let mut side = Side::new(1);
    side.apply(NOW, &set(vec![peer(2, &["10.0.0.0/8"])]));
    let old = side.peer();
    side.apply(NOW, &SetRequest { replace_peers: true, ..set(vec![peer(3, &[])]) });
    assert_ne!(side.peer().slot, old.slot, "routes of before are still about");
    side.apply(NOW, &SetRequest { replace_peers: true, ..set(vec![peer(4, &[])]) });
    assert_eq!(side.peer().slot, old.slot);
    assert_ne!(side.peer().epoch, old.epoch);
}

#[test]
fn removing_or_updating_only_a_peer_that_is_not_there_is_no_error_and_adds_none() {
    let mut side = Side::new(1);
    let remove = PeerRequest { remove: true, ..peer(2, &["10.0.0.0/8"]) };
    let update = PeerRequest { update_only: true, ..peer(3, &["11.0.0.0/8"]) };
    side.apply(NOW, &set(vec![remove, update]));
    assert_eq!((side.peers.len(), side.routes.len()), (0, 0));
    side.apply(NOW, &set(vec![peer(3, &[]), PeerRequest { update_only: true, ..peer(3, &["11.0.0.0/8"]) }]));
    assert_eq!(allowed(&side, 3), [prefix("11.0.0.0/8")]);
}

#[test]
fn a_peer_set_again_keeps_what_is_not_named() {
    let mut pair = Pair::connected();
    let before = pair.a.device.uapi_get();
    pair.a.log.clear();
    pair.a.apply(pair.now, &set(vec![peer(2, &[])]));
    assert_eq!((pair.a.device.uapi_get(), pair.a.log.len()), (before, 0));
}

#[test]
fn more_peers_than_the_limit_are_refused_whole() {
    let mut side = Side::new(1);
    let many = std::iter::repeat_n(peer(2, &[]), crate::device::table::MAX_PEERS + 1).collect();
    let refused = side.device.apply(at(NOW), &set(many), &mut no_bind).unwrap_err();
    assert_eq!(refused.errno(), 12);
    assert_eq!(side.device.peers().len(), 0);
}

#[test]
fn a_hundred_thousand_prefixes_fit_one_transaction_and_move_in_another() {
    // Each /24 of 255 × 256 networks, once for either family.
    let prefixes =
        (0..255u8).flat_map(|high| (0..=255u8).map(move |low| (high, low))).flat_map(|(high, low)| {
            let six = std::net::Ipv6Addr::from([0xfd, 0, high, low, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            [Prefix::new(IpAddr::from([10, high, low, 0]), 24), Prefix::new(IpAddr::V6(six), 32)]
        });
    let ips: Vec<_> = prefixes.map(|prefix| AllowedIp { prefix: prefix.unwrap(), remove: false }).collect();
    assert_eq!(ips.len(), 130_560);
    let mut side = Side::new(1);
    side.apply(NOW, &set(vec![PeerRequest { allowed_ips: ips.clone(), ..peer(2, &[]) }, peer(3, &[])]));
    assert_eq!((allowed(&side, 2).len(), side.steer.len()), (130_560, 130_560));
    side.apply(NOW, &set(vec![PeerRequest { allowed_ips: ips, ..peer(3, &[]) }]));
    assert_eq!((allowed(&side, 2).len(), allowed(&side, 3).len()), (0, 130_560));
    assert_eq!((lookup(&side, "10.254.255.1"), lookup(&side, "fd00:fe07::1")), (Some(1), Some(1)));
    assert_eq!(side.routes.len(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn ownership_agrees_with_a_map_whatever_is_given_and_taken(
        steps in proptest::collection::vec((2u8..5, 0u8..8, any::<bool>(), 0u8..12), 0..60),
    ) {
        let mut side = Side::new(1);
        let mut model: BTreeMap<Prefix, u8> = BTreeMap::new();
        for (seed, network, minus, other) in steps {
            let net = Prefix::new(IpAddr::from([10, network, 0, 0]), 16).unwrap();
            let mut request = peer(seed, &[]);
            request.allowed_ips = vec![AllowedIp { prefix: net, remove: minus }];
            request.replace_allowed_ips = other == 0;
            request.remove = other == 1;
            if other < 2 {
                model.retain(|_, owner| *owner != seed);
            }
            if minus && model.get(&net) == Some(&seed) {
                model.remove(&net);
            } else if !minus && !request.remove {
                model.insert(net, seed);
            }
            side.apply(NOW, &set(vec![request]));
        }
        let mut actual = BTreeMap::new();
        for seed in 2..5 {
            for net in allowed(&side, seed) {
                prop_assert_eq!(actual.insert(net, seed), None);
            }
        }
        prop_assert_eq!(&actual, &model);
        // What was steered adds up to what is owned.
        let mut steered = BTreeMap::new();
        for (net, target) in &side.steer {
            match target {
                Some(target) => steered.insert(*net, *target),
                None => steered.remove(net),
            };
        }
        let owner = |seed: u8| side.device.peer_infos().find(|peer| *peer.public_key == public(seed)).unwrap().shared.owner();
        let expected: BTreeMap<_, _> =
            model.iter().map(|(net, seed)| (*net, Target::Worker(owner(*seed)))).collect();
        prop_assert_eq!(steered, expected);
    }
}

/// A transaction carried out one step at a time; `between` is done after each.
fn in_slices(side: &mut Side, request: &SetRequest, mut between: impl FnMut(&mut Side)) -> usize {
    let mut transaction = side.device.begin(at(NOW), request.clone(), &mut no_bind).unwrap();
    let mut slices = 1;
    while !side.device.go_on(at(NOW), &mut transaction, &mut || false) {
        side.drain();
        between(side);
        slices += 1;
    }
    side.drain();
    slices
}

fn many_prefixes() -> Vec<AllowedIp> {
    (0..1000u32).map(|n| allow(&format!("10.{}.{}.0/24", n / 256, n % 256))).collect()
}

#[test]
fn a_transaction_in_slices_ends_as_one_at_once() {
    let first =
        set((2..6).map(|seed| PeerRequest { allowed_ips: many_prefixes(), ..peer(seed, &[]) }).collect());
    let mut second = set(vec![
        PeerRequest { replace_allowed_ips: true, ..peer(5, &["11.0.0.0/8"]) },
        PeerRequest { remove: true, ..peer(3, &[]) },
        PeerRequest { persistent_keepalive: Some(9), ..peer(7, &["10.1.0.0/16"]) },
    ]);
    for replace_peers in [false, true] {
        second.replace_peers = replace_peers;
        let (mut whole, mut sliced) = (Side::new(1), Side::new(1));
        for request in [&first, &second] {
            whole.apply(NOW, request);
            assert!(in_slices(&mut sliced, request, |_| ()) > 5);
        }
        assert_eq!(whole.device.uapi_get(), sliced.device.uapi_get());
        assert_eq!(whole.routes.len(), sliced.routes.len(), "routes are published once a transaction");
        for addr in ["10.1.1.1", "10.3.200.1", "11.1.1.1", "12.0.0.1"] {
            assert_eq!(lookup(&whole, addr), lookup(&sliced, addr), "{addr}");
        }
        assert_eq!(whole.steer, sliced.steer);
    }
}

#[test]
fn no_step_of_a_transaction_is_longer_for_a_peer_with_many_prefixes() {
    let mut side = Side::new(1);
    let mut steered = 0;
    let request = set(vec![PeerRequest { allowed_ips: many_prefixes(), ..peer(2, &[]) }]);
    let mut transaction = side.device.begin(at(NOW), request, &mut no_bind).unwrap();
    // However much time there is: what was steered has yet to be told to the kernel.
    while !side.device.go_on(at(NOW), &mut transaction, &mut || true) {
        side.drain();
        assert!(side.steer.len() - steered <= 256);
        steered = side.steer.len();
    }
    side.drain();
    assert_eq!(side.steer.len(), 1000);
    let remove = set(vec![PeerRequest { remove: true, ..peer(2, &[]) }]);
    assert!(in_slices(&mut side, &remove, |_| ()) >= 1000 / 64);
}

#[test]
fn between_two_slices_handshakes_are_answered() {
    let mut pair = Pair::new();
    let request = set((50..150).map(|seed| peer(seed, &[])).collect());
    let mut transaction = pair.b.device.begin(at(pair.now), request, &mut no_bind).unwrap();
    let mut slices = 0;
    while !pair.b.device.go_on(at(pair.now), &mut transaction, &mut || false) {
        pair.b.drain();
        slices += 1;
        if slices == 50 {
            pair.handshake();
            assert_eq!(pair.a.device.stats().responses_accepted, 1);
        }
    }
    pair.b.drain();
    assert!(slices > 100);
    assert_eq!((pair.b.device.peers().len(), pair.b.device.stats().initiations_accepted), (101, 1));
}

#[test]
fn an_answer_in_slices_is_the_whole_answer_and_no_piece_outgrows_its_room() {
    let mut side = Side::new(1);
    side.apply(NOW, &set(vec![PeerRequest { allowed_ips: many_prefixes(), ..peer(2, &[]) }]));
    side.apply(NOW, &set((3..200).map(|seed| peer(seed, &["fd00::/8"])).collect()));
    let (mut dump, mut told, mut pieces) = (Dump::default(), String::new(), 0);
    loop {
        let mut piece = chunk();
        let mut steps = 3;
        let done = side.device.dump(&mut dump, &mut piece, &mut || {
            steps -= 1;
            steps > 0
        });
        assert_eq!(piece.capacity(), CHUNK, "a string that grew leaves keys behind");
        told += &piece;
        pieces += 1;
        if done {
            break;
        }
    }
    assert!(pieces > 10);
    assert_eq!(told, *side.device.uapi_get());
}

#[test]
fn a_peer_that_goes_while_an_answer_is_under_way_is_left_out_whole() {
    let mut side = Side::new(1);
    side.apply(
        NOW,
        &set(vec![peer(2, &[]), PeerRequest { allowed_ips: many_prefixes(), ..peer(3, &[]) }, peer(4, &[])]),
    );
    let (mut dump, mut told) = (Dump::default(), chunk());
    for _ in 0..2 {
        assert!(!side.device.dump(&mut dump, &mut told, &mut || false));
    }
    side.apply(NOW, &set(vec![PeerRequest { remove: true, ..peer(3, &[]) }]));
    assert!(side.device.dump(&mut dump, &mut told, &mut || true));
    let peers = told.lines().filter(|line| line.starts_with("public_key=")).count();
    assert_eq!((peers, told.contains("allowed_ip="), told.ends_with("errno=0\n\n")), (2, false, true));
}
