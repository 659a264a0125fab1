//! Peers that outgrow their worker.

use super::*;
use crate::dataplane::assist::Assist;
use crate::dataplane::stats::WorkerStats;
use crate::device::balance::WEIGHED;
use crate::device::balance::policy::Direction;
use crate::device::events::EventKind;

const SECOND: Duration = Duration::from_secs(1);
const MEGABYTE: u64 = 1 << 20;

/// A connected pair, and the counters of `a`'s workers.
struct Bench {
    pair: Pair,
    workers: Vec<Arc<WorkerStats>>,
    /// Whether the peer sends what [`Self::pass`] has it move, and is not sent it.
    receives: bool,
}

impl Bench {
    fn new(workers: usize) -> Bench {
        let mut pair = Pair::new();
        let workers: Vec<Arc<WorkerStats>> = (0..workers).map(|_| Arc::default()).collect();
        pair.a.device.follow_workers(workers.clone(), Arc::new(Assist::new(Vec::new())));
        let request = PeerRequest {
            allowed_ips: vec![allow("10.0.0.0/8"), allow("fd00::/8")],
            ..PeerRequest::new(public(2))
        };
        pair.a.apply(pair.now, &SetRequest { peers: vec![request], ..SetRequest::default() });
        pair.handshake();
        pair.a.steer.clear();
        Bench { pair, workers, receives: false }
    }

    fn shared(&self) -> Arc<PeerShared> {
        let id = self.pair.a.peer();
        Arc::clone(&self.pair.a.peers[&id])
    }

    /// `seconds` in which the owner is busy for so many thousandths, and the peer moves so much a second.
    fn pass(&mut self, seconds: u32, busy: u64, megabytes: u64) {
        let shared = self.shared();
        for _ in 0..seconds {
            self.pair.now = self.pair.now + SECOND;
            let now = self.pair.now;
            if let Some(owner) = self.workers.get(usize::from(shared.owner())) {
                owner.io_awake_nanos.fetch_add(busy * 1_000_000, Relaxed);
            }
            let traffic = &shared.traffic;
            let moved = if self.receives { &traffic.rx_bytes } else { &traffic.tx_bytes };
            moved.fetch_add(megabytes * MEGABYTE, Relaxed);
            if megabytes > 0 {
                shared.authenticated_received(now);
                if !shared.armed.swap(true, Relaxed) {
                    self.pair.a.event(now, Event::Activity(shared.id));
                }
            }
            while self.pair.a.device.poll_timeout().is_some_and(|due| due <= now) {
                self.pair.a.device.handle_timeout(at(now));
                self.pair.a.drain();
            }
        }
    }

    fn steered(&mut self) -> Vec<(Prefix, Option<Target>)> {
        std::mem::take(&mut self.pair.a.steer)
    }

    fn counts(&self) -> (u64, u64, u64) {
        let stats = self.pair.a.device.stats();
        (stats.peers_spread, stats.peers_drawn_back, stats.peers_spread_now)
    }
}

fn both(target: Target) -> Vec<(Prefix, Option<Target>)> {
    vec![(prefix("10.0.0.0/8"), Some(target)), (prefix("fd00::/8"), Some(target))]
}

#[test]
fn a_peer_that_outgrows_its_worker_is_spread_and_drawn_back_when_it_calms() {
    let mut bench = Bench::new(WORKERS.into());
    let owner = bench.shared().owner();
    bench.pass(20, 1000, 100);
    assert_eq!(bench.steered(), both(Target::Spread));
    assert_eq!(bench.counts(), (1, 0, 1));
    assert!(bench.pair.a.device.peer_infos().all(|peer| peer.spread));
    bench.pass(60, 600, 100);
    assert_eq!(bench.steered(), [], "it goes on as before");
    bench.pass(10, 50, 10);
    assert_eq!(bench.steered(), both(Target::Worker(owner)));
    assert_eq!(bench.counts(), (1, 1, 0));
}

#[test]
fn a_peer_whose_traffic_keeps_one_worker_busy_has_others_help_until_it_calms_and_that_is_told() {
    use Direction::{Received, Sealed, Sent};
    for (receives, directions) in [(true, vec![Received]), (false, vec![Sent, Sealed])] {
        let mut bench = Bench::new(WORKERS.into());
        bench.receives = receives;
        bench.pair.a.device.follow_events(true);
        bench.pass(30, 1000, 100);
        let counts = |bench: &Bench| {
            let stats = bench.pair.a.device.stats();
            let opening = [stats.peers_assisted, stats.peers_unassisted, stats.peers_assisted_now];
            let sealing =
                [stats.peers_seal_assisted, stats.peers_seal_unassisted, stats.peers_seal_assisted_now];
            if receives { [opening, sealing] } else { [sealing, opening] }
        };
        let helped = |bench: &Bench| {
            let shared = bench.shared();
            if receives { shared.assisted.load(Relaxed) } else { shared.seal_assisted.load(Relaxed) }
        };
        assert_eq!((counts(&bench), helped(&bench)), ([[1, 0, 1], [0; 3]], true));
        bench.pass(10, 50, 10);
        assert_eq!((counts(&bench), helped(&bench)), ([[1, 1, 0], [0; 3]], false));
        let told: Vec<_> = bench.pair.a.happened();
        for by_all in [true, false] {
            let of_it: Vec<_> = told
                .iter()
                .filter_map(|kind| match kind {
                    EventKind::Shared { direction, by_all: all } if *all == by_all => Some(*direction),
                    _ => None,
                })
                .collect();
            assert_eq!(of_it, directions, "{told:?}");
        }
    }
}

#[test]
fn prefixes_given_to_a_spread_peer_are_spread_and_a_removed_peer_is_forgotten() {
    let mut bench = Bench::new(WORKERS.into());
    bench.pass(20, 1000, 100);
    bench.steered();
    let now = bench.pair.now;
    let more = PeerRequest { allowed_ips: vec![allow("11.0.0.0/8")], ..PeerRequest::new(public(2)) };
    bench.pair.a.apply(now, &SetRequest { peers: vec![more], ..SetRequest::default() });
    assert_eq!(bench.steered(), [(prefix("11.0.0.0/8"), Some(Target::Spread))]);

    let gone = PeerRequest { remove: true, ..PeerRequest::new(public(2)) };
    bench.pair.a.apply(now, &SetRequest { peers: vec![gone], ..SetRequest::default() });
    assert_eq!(bench.counts(), (1, 0, 0));
    assert!(bench.steered().iter().all(|(_, target)| target.is_none()));
    let again = PeerRequest { allowed_ips: vec![allow("11.0.0.0/8")], ..PeerRequest::new(public(2)) };
    bench.pair.a.apply(now, &SetRequest { peers: vec![again], ..SetRequest::default() });
    assert!(matches!(bench.steered()[..], [(_, Some(Target::Worker(_)))]));
}

#[test]
fn of_two_heavy_peers_one_goes_to_another_worker_at_once_and_with_its_next_session() {
    let mut bench = Bench::new(WORKERS.into());
    let (now, shared) = (bench.pair.now, bench.shared());
    let other = PeerRequest { allowed_ips: vec![allow("11.0.0.0/8")], ..PeerRequest::new(public(3)) };
    bench.pair.a.only = Some(shared.id.slot);
    bench.pair.a.apply(now, &SetRequest { peers: vec![other], ..SetRequest::default() });
    let other = bench.pair.a.peers.values().find(|peer| peer.id != shared.id).map(Arc::clone).unwrap();
    let (before, index) = (shared.owner(), bench.pair.a.send[&shared.id].local_index());
    assert_eq!(index as u8, before);
    bench.pair.a.device.peers.give(other.id.slot, before);
    bench.pair.a.device.follow_events(true);
    bench.steered();
    for _ in 0..20 {
        other.traffic.tx_bytes.fetch_add(90 * MEGABYTE, Relaxed);
        bench.pass(1, 1000, 100);
        if bench.pair.a.device.stats().peers_given > 0 {
            break;
        }
    }
    // The heavier one makes more than half, so the other goes.
    assert_eq!((shared.owner(), bench.pair.a.device.stats().peers_given), (before, 1));
    assert!(bench.pair.a.happened().contains(&EventKind::Given { worker: other.owner() }));
    assert_ne!(other.owner(), before);
    assert_eq!(bench.steered(), [(prefix("11.0.0.0/8"), Some(Target::Worker(other.owner())))]);

    bench.pair.a.device.give_peer(shared.id, other.owner());
    bench.pair.a.drain();
    assert_eq!(bench.steered(), both(Target::Worker(other.owner())));
    assert_eq!(bench.pair.a.send[&shared.id].local_index(), index, "the session stays where it is");
    bench.pair.now = bench.pair.now + Duration::from_secs(121);
    bench.pair.handshake();
    let renewed = bench.pair.a.send[&shared.id].local_index();
    assert_eq!(renewed as u8, other.owner());
}

#[test]
fn one_worker_is_never_watched_and_a_quiet_device_is_not_woken() {
    for (workers, busy) in [(1, 1000), (3, 20)] {
        let mut bench = Bench::new(workers);
        let mut wakes = 0;
        for _ in 0..60 {
            let due = bench.pair.a.device.poll_timeout();
            wakes += u32::from(due.is_some_and(|due| due <= bench.pair.now + SECOND));
            bench.pass(1, busy, 100);
        }
        assert_eq!((bench.steered(), bench.counts()), (vec![], (0, 0, 0)));
        assert!(wakes < 30, "{wakes} timeouts in a minute");
    }
}

#[test]
fn the_ticks_end_with_the_load() {
    let mut bench = Bench::new(WORKERS.into());
    bench.pass(20, 1000, 100);
    bench.pass(10, 0, 0);
    assert_eq!(bench.counts(), (1, 1, 0));
    assert_eq!(bench.pair.a.device.balancer.next(), None);
}

/// The ticks until a peer among many is spread, and what was counted. In one of them it is removed while the others are
/// still looked at.
fn among_many(removed_in: Option<u32>) -> (u32, (u64, u64, u64)) {
    let mut bench = Bench::new(WORKERS.into());
    bench.pair.a.only = Some(bench.pair.a.peer().slot);
    let now = bench.pair.now;
    let strangers = (0..3 * WEIGHED).map(|n| {
        let mut key = [9; 32];
        key[..4].copy_from_slice(&n.to_le_bytes());
        PeerRequest::new(PublicKey(key))
    });
    bench.pair.a.apply(now, &SetRequest { peers: strangers.collect(), ..SetRequest::default() });
    let gone = PeerRequest { remove: true, ..PeerRequest::new(public(2)) };
    let (shared, mut ticks) = (bench.shared(), 0);
    while bench.counts().0 == 0 && ticks < 20 {
        bench.pair.now = bench.pair.now + SECOND;
        let now = bench.pair.now;
        bench.workers[usize::from(shared.owner())].io_awake_nanos.fetch_add(1_000_000_000, Relaxed);
        shared.traffic.tx_bytes.fetch_add(100 * MEGABYTE, Relaxed);
        shared.authenticated_received(now);
        if !shared.armed.swap(true, Relaxed) {
            bench.pair.a.event(now, Event::Activity(shared.id));
        }
        let (mut calls, mut removed) = (0, false);
        while bench.pair.a.device.poll_timeout().is_some_and(|due| due <= now) {
            bench.pair.a.device.handle_timeout(at(now));
            bench.pair.a.drain();
            let is_first = calls == 0 && bench.pair.a.device.balancer.is_weighing();
            calls += u32::from(is_first || calls > 0);
            ticks += u32::from(is_first);
            if is_first && removed_in == Some(ticks) {
                bench.pair.a.apply(now, &SetRequest { peers: vec![gone.clone()], ..SetRequest::default() });
                removed = true;
            }
        }
        if removed {
            break;
        }
    }
    (ticks, bench.counts())
}

#[test]
fn a_peer_that_is_removed_while_others_are_looked_at_is_not_spread() {
    let (ticks, counts) = among_many(None);
    assert_eq!(counts, (1, 0, 1), "it is spread once it is known what all others move");
    assert_eq!(among_many(Some(ticks)), (ticks, (0, 0, 0)));
}
