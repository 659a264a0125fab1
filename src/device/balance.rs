//! Balance: which peers outgrow one core and are spread over all workers by flow, and which calmed down and go back.
//!
//! A worker counts the time that it is awake; its share of the time that passed is how busy it is. The timer check that active peers
//! get every few seconds anyway takes these shares, and where one is [`ENGAGED`] or more since the last time, they are taken
//! every [`TICK`] from then on, until all are below it and no peer is spread. So a quiet device is never woken for it, and a
//! heavy load is noticed within about ten seconds. What to do then is decided by [`Policy`], which is pure.
//!
//! **Order.** Spreading goes by the hash of the flow: a flow has one worker before a change and one worker after it, and each
//! keeps its order. The change itself is made at once, as the kernel's own `tun_flow_update` does, and not when the old
//! queue has run empty: packets of a flow that moves and still wait in the old worker's TUN queue (1024 frames at most) can be
//! overtaken by those that came after the change. None is lost for it, nor taken for a replay, since counters are given out
//! when packets are sealed. It happens to a flow at most once a change, and a peer changes at most when it is spread and, seven
//! ticks later at the earliest, when it is drawn back. Waiting for a pause would avoid it, but a peer that keeps a worker
//! too busy does not pause. On the way back there is no hurry: it waits for a tick in which no worker was hot, so that all of
//! them slept now and then, which they do only once their queues are empty.

use super::Device;
use super::peer::{Peer, Watch};
use super::table::next_batch;
use crate::dataplane::PeerId;
use crate::dataplane::stats::WorkerStats;
use crate::io::steer::Target;
use crate::time::Instant;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Time between two samples of the workers' busy shares.
const TICK: Duration = Duration::from_secs(1);
/// Busy share in thousandths from which the workers are sampled every tick.
const ENGAGED: u16 = 100;
/// Busy share in thousandths from which a worker is hot.
const HOT: u16 = 900;
/// Number of consecutive ticks for which a worker is hot before its heaviest peer is spread.
const HOT_TICKS: u8 = 2;
/// Mean busy share in thousandths of the other workers below which they have room for a part of a peer.
const ROOM: u32 = 750;
/// Number of ticks for which a spread peer sends less than half of what it did, before it is drawn back. They need
/// not be consecutive, but a tick in which it sends more starts the count anew.
const CALM_TICKS: u8 = 5;
/// Most peers that are spread at a time. Each sent most of what a worker sent and has not calmed down since, so more
/// than a few are not to be expected.
const MAX_SPREAD: usize = 256;

/// Number of peers that are looked at in one call, in some 0.1 ms.
pub(super) const WEIGHED: u32 = 2048;

/// What one peer moved in a tick, in bytes a second.
#[derive(Clone, Copy, Debug)]
struct PeerLoad {
    id: PeerId,
    owner: u8,
    sent: u64,
    received: u64,
}

/// What to do with a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Decision {
    Spread(PeerId),
    DrawBack(PeerId),
}

/// A peer that is spread.
#[derive(Clone, Copy)]
struct Spread {
    /// What the peer sent when it was spread, in bytes a second.
    rate: u64,
    calm: u8,
}

/// Decides which peers are spread and drawn back. It knows neither devices nor clocks.
///
/// It does not oscillate under constant load, since a peer goes back only while no worker is hot. Then all that is
/// offered is carried, and that is no less than what the hot worker carried of it before.
#[derive(Default)]
struct Policy {
    /// Number of consecutive ticks for which each worker was hot.
    hot: Vec<u8>,
    spread: HashMap<PeerId, Spread>,
}

/// What one worker does for its peers in a tick, in bytes a second.
#[derive(Clone, Copy, Default)]
struct Share {
    sent: u64,
    received: u64,
    heaviest: Option<PeerLoad>,
}

impl Policy {
    /// Takes in the busy shares of a tick, in thousandths. True where [`Self::decide`] is to be called.
    fn observe(&mut self, busy: &[u16]) -> bool {
        self.hot.resize(busy.len(), 0);
        for (streak, &busy) in self.hot.iter_mut().zip(busy) {
            *streak = if busy >= HOT { streak.saturating_add(1) } else { 0 };
        }
        !self.spread.is_empty() || self.hot.iter().any(|&streak| streak > 0)
    }

    /// Notes that no tick follows, so that later ones do not count as consecutive with this one.
    fn pause(&mut self) {
        self.hot.fill(0);
    }

    /// What to change after a tick, given what the peers moved in it. Peers that moved nothing may be left out.
    fn decide(&mut self, busy: &[u16], loads: Loads) -> Vec<Decision> {
        let mut changes = self.draw_back(busy, &loads.spread);
        let shares = self.shares(busy.len(), loads);
        for (worker, share) in shares.iter().enumerate() {
            let Some(peer) = share.heaviest else { continue };
            let long_hot = self.hot.get(worker).is_some_and(|&streak| streak >= HOT_TICKS);
            if long_hot && helps(share, &peer) && has_room(busy, worker) && self.spread.len() < MAX_SPREAD {
                self.spread.insert(peer.id, Spread { rate: peer.sent, calm: 0 });
                self.hot[worker] = 0; // the next one only once this one's effect is seen
                changes.push(Decision::Spread(peer.id));
            }
        }
        changes
    }

    fn draw_back(&mut self, busy: &[u16], peers: &[PeerLoad]) -> Vec<Decision> {
        let moved: HashMap<PeerId, u64> = peers.iter().map(|peer| (peer.id, peer.sent)).collect();
        let any_hot = busy.iter().any(|&busy| busy >= HOT);
        let mut changes = Vec::new();
        self.spread.retain(|id, spread| {
            let sent = moved.get(id).copied().unwrap_or(0);
            spread.calm = if sent < spread.rate / 2 { spread.calm.saturating_add(1) } else { 0 };
            let back = spread.calm >= CALM_TICKS && !any_hot;
            if back {
                changes.push(Decision::DrawBack(*id));
            }
            !back
        });
        changes
    }

    /// What each worker does. A spread peer's packets leave from all workers, and still arrive at its owner.
    fn shares(&self, workers: usize, loads: Loads) -> Vec<Share> {
        let Loads { mut shares, spread } = loads;
        shares.resize(workers, Share::default());
        let mut everywhere = 0;
        for peer in spread {
            let Some(share) = shares.get_mut(usize::from(peer.owner)) else { continue };
            if self.spread.contains_key(&peer.id) {
                share.received += peer.received;
                everywhere += peer.sent / workers as u64;
            } else {
                share.add(&peer);
            }
        }
        shares.iter_mut().for_each(|share| share.sent += everywhere);
        shares
    }

    /// Takes in what a peer moved in a tick.
    fn weigh(&self, loads: &mut Loads, peer: PeerLoad) {
        if self.spread.contains_key(&peer.id) {
            return loads.spread.push(peer);
        }
        let owner = usize::from(peer.owner);
        if loads.shares.len() <= owner {
            loads.shares.resize(owner + 1, Share::default());
        }
        loads.shares[owner].add(&peer);
    }
}

/// What the peers moved in a tick: those that are spread, and the sums of the others by owner.
#[derive(Default)]
struct Loads {
    shares: Vec<Share>,
    spread: Vec<PeerLoad>,
}

impl Share {
    fn add(&mut self, peer: &PeerLoad) {
        self.received += peer.received;
        self.sent += peer.sent;
        if self.heaviest.is_none_or(|heaviest| heaviest.sent < peer.sent) {
            self.heaviest = Some(*peer);
        }
    }
}

/// Whether spreading `peer` takes enough off its worker. It has to make the larger part of what the worker sends, and
/// no small part of all that the worker moves; a worker that is busy receiving would keep what keeps it busy.
fn helps(share: &Share, peer: &PeerLoad) -> bool {
    peer.sent > share.sent / 2 && share.sent >= share.received / 2
}

/// Whether the workers other than `worker` have room. There must be some.
fn has_room(busy: &[u16], worker: usize) -> bool {
    let others = busy.iter().enumerate().filter(|&(other, _)| other != worker);
    let (count, sum) = others.fold((0, 0), |(count, sum), (_, &busy)| (count + 1, sum + u32::from(busy)));
    count > 0 && sum < count * ROOM
}

/// The samples of the workers' busy shares, and when the next is due.
#[derive(Default)]
pub(super) struct Balancer {
    workers: Vec<Arc<WorkerStats>>,
    /// Nanoseconds for which each worker was awake at the last sample.
    awake: Vec<u64>,
    /// Busy share of each worker between the last two samples.
    busy: Vec<u16>,
    sampled: Instant,
    next: Option<Instant>,
    policy: Policy,
    /// The peers' part of the present tick, while some are still to be looked at.
    weighing: Option<Weighing>,
}

/// What the peers moved in a tick, as far as that is known.
struct Weighing {
    /// Nanoseconds that the tick covers.
    passed: u64,
    left: Range<u32>,
    loads: Loads,
}

impl Balancer {
    /// When [`Device::balance`] is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.next
    }

    /// Whether [`Device::balance`] has peers to look at.
    pub(super) fn is_weighing(&self) -> bool {
        self.weighing.is_some()
    }

    /// Takes a sample, and returns the nanoseconds since the last one. A worker counts its time awake turn by turn,
    /// so a sleep under way is no part of it.
    fn sample(&mut self, now: Instant) -> u64 {
        let passed = now.as_nanos().saturating_sub(self.sampled.as_nanos()).max(1);
        for ((stats, seen), busy) in self.workers.iter().zip(&mut self.awake).zip(&mut self.busy) {
            let awake = stats.io_awake_nanos.load(Relaxed);
            *busy = per_second(awake.saturating_sub(*seen), passed, 1000).min(1000) as u16;
            *seen = awake;
        }
        self.sampled = now;
        passed
    }

    /// Whether any worker is busy enough to go on sampling.
    fn engaged(&self) -> bool {
        self.busy.iter().any(|&busy| busy >= ENGAGED)
    }
}

/// `count` events in `nanos` nanoseconds, as a rate for each `unit`.
fn per_second(count: u64, nanos: u64, unit: u64) -> u64 {
    let scaled = u128::from(count) * u128::from(unit) / u128::from(nanos.max(1));
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

impl Device {
    /// Sets the workers' counters, one a worker in order. From then on peers that outgrow one core are spread. With
    /// fewer than two workers none ever is.
    pub fn follow_workers(&mut self, workers: Vec<Arc<WorkerStats>>) {
        let count = workers.len();
        self.balancer = Balancer {
            awake: vec![0; count],
            busy: vec![0; count],
            workers,
            ..std::mem::take(&mut self.balancer)
        };
    }

    /// Called at each timer check of an active peer: decides whether the workers are busy enough to measure them.
    pub(super) fn glance(&mut self, now: Instant, slot: u32) {
        let balancer = &mut self.balancer;
        let active = self.peers.get(slot).is_some_and(|peer| peer.watch == Watch::On);
        let idle = balancer.workers.len() < 2 || balancer.next.is_some();
        if !active || idle || now.since(balancer.sampled) < TICK {
            return;
        }
        balancer.sample(now);
        balancer.next = balancer.engaged().then(|| now + TICK);
    }

    /// Carries out one tick, where it is due: the workers' part, then that of some peers a call, and at the end what follows.
    pub(super) fn balance(&mut self, now: Instant) {
        if let Some(weighing) = self.balancer.weighing.take() {
            return self.weigh(now, weighing);
        }
        if self.balancer.next.is_none_or(|due| due > now) {
            return;
        }
        let passed = self.balancer.sample(now);
        let Balancer { policy, busy, .. } = &mut self.balancer;
        let (left, loads) = (self.peers.slots(), Loads::default());
        match policy.observe(busy) {
            true => self.weigh(now, Weighing { passed, left, loads }),
            false => self.end_tick(now),
        }
    }

    /// Takes in what some peers moved. The first tick after a while covers too long a time, but that is never used: the policy
    /// spreads after two consecutive hot ticks and draws back what is spread, and looks at the peers in all of these.
    fn weigh(&mut self, now: Instant, mut weighing: Weighing) {
        for slot in next_batch(&mut weighing.left, WEIGHED) {
            let load = self.peers.get_mut(slot).and_then(|peer| load(peer, weighing.passed));
            load.into_iter().for_each(|load| self.balancer.policy.weigh(&mut weighing.loads, load));
        }
        if !weighing.left.is_empty() {
            self.balancer.weighing = Some(weighing);
            return;
        }
        let Balancer { policy, busy, .. } = &mut self.balancer;
        for change in policy.decide(busy, weighing.loads) {
            match change {
                // It was removed since it was looked at.
                Decision::Spread(id) if self.peers.by_id(id).is_none() => self.forget_load(id),
                Decision::Spread(id) => {
                    self.stats.peers_spread += 1;
                    self.steer_peer(id, true);
                }
                Decision::DrawBack(id) => {
                    self.stats.peers_drawn_back += 1;
                    self.steer_peer(id, false);
                }
            }
        }
        self.end_tick(now);
    }

    fn end_tick(&mut self, now: Instant) {
        let spread = self.balancer.policy.spread.len();
        self.stats.peers_spread_now = spread as u64;
        let goes_on = self.balancer.engaged() || spread > 0;
        self.balancer.next = goes_on.then(|| now + TICK);
        if !goes_on {
            self.balancer.policy.pause();
        }
    }

    /// Notes that a peer was removed.
    pub(super) fn forget_load(&mut self, id: PeerId) {
        self.balancer.policy.spread.remove(&id);
        self.stats.peers_spread_now = self.balancer.policy.spread.len() as u64;
    }

    fn steer_peer(&mut self, id: PeerId, spread: bool) {
        let Some(peer) = self.peers.by_id(id) else { return };
        peer.spread = spread;
        let target = peer.target();
        for &prefix in &peer.allowed {
            self.out.steer(prefix, Some(target));
        }
        log::debug!("peer {}: {}", id.slot, if target == Target::Spread { "spread" } else { "drawn back" });
    }
}

/// What a peer moved since the last tick, which was `passed` nanoseconds ago. `None` where that is nothing.
fn load(peer: &mut Peer, passed: u64) -> Option<PeerLoad> {
    let shared = &peer.shared;
    let total = (shared.traffic.tx_bytes.load(Relaxed), shared.traffic.rx_bytes.load(Relaxed));
    let seen = std::mem::replace(&mut peer.sampled, total);
    if seen == total {
        return None;
    }
    let rate = |now: u64, before: u64| per_second(now.wrapping_sub(before), passed, 1_000_000_000);
    let (sent, received) = (rate(total.0, seen.0), rate(total.1, seen.1));
    Some(PeerLoad { id: shared.id, owner: shared.owner, sent, received })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn peer(slot: u32, owner: u8, sent: u64) -> PeerLoad {
        PeerLoad { id: PeerId { slot, epoch: slot }, owner, sent, received: 0 }
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
        let peers = [peer(0, 0, 100), peer(1, 1, 900), peer(2, 1, 300)];
        assert_eq!(tick(&mut policy, &[100, 900], &peers), []);
        assert_eq!(tick(&mut policy, &[100, 899], &peers), [], "not running");
        assert_eq!(tick(&mut policy, &[100, 950], &peers), []);
        assert_eq!(tick(&mut policy, &[100, 950], &peers), [Decision::Spread(id(1))]);
    }

    #[test]
    fn nothing_is_spread_where_it_would_not_help() {
        let equals = [peer(0, 0, 500), peer(1, 0, 500)];
        let receiving = [PeerLoad { received: 1000, ..peer(0, 0, 100) }];
        let alone = [peer(0, 0, 1000)];
        let cases: [(&[u16], &[PeerLoad]); 4] = [
            (&[1000, 0], &equals),
            (&[1000, 0], &receiving),
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
        assert_eq!(tick(&mut policy, &[500, 500], &[]), [Decision::DrawBack(id(0))]);
        assert!(!policy.observe(&[500, 500]), "nothing is left to be decided");
    }

    #[test]
    fn one_peer_at_a_time_is_taken_from_a_worker() {
        let mut policy = Policy::default();
        let peers = [peer(0, 0, 1000), peer(1, 0, 900), peer(2, 0, 50)];
        let spread: Vec<_> = (0..4).map(|_| tick(&mut policy, &[1000, 0, 0, 0], &peers)).collect();
        assert_eq!(spread, [vec![], vec![Decision::Spread(id(0))], vec![], vec![Decision::Spread(id(1))]]);
    }

    #[test]
    fn the_spread_are_bounded() {
        let mut policy = Policy::default();
        for slot in 0..2 * MAX_SPREAD as u32 {
            for _ in 0..2 {
                tick(&mut policy, &[1000, 0], &[peer(slot, 0, 1000)]);
            }
        }
        assert_eq!(policy.spread.len(), MAX_SPREAD);
    }

    /// Workers that carry 1000 each, and share it among what is offered to them.
    fn carried(workers: usize, offered: &[PeerLoad], policy: &Policy) -> (Vec<u16>, Vec<PeerLoad>) {
        let parts = |peer: &PeerLoad| -> Vec<u64> {
            let spread = policy.spread.contains_key(&peer.id);
            let part = |worker| match spread {
                true => peer.sent / workers as u64,
                false => peer.sent * u64::from(worker == usize::from(peer.owner)),
            };
            (0..workers).map(part).collect()
        };
        let mut load = vec![0; workers];
        for peer in offered {
            load.iter_mut().zip(parts(peer)).for_each(|(load, part)| *load += part);
        }
        let through = |peer: &PeerLoad| {
            let shares = parts(peer).into_iter().zip(&load);
            shares.map(|(part, &load)| part * 1000 / load.max(1000)).sum()
        };
        let peers = offered.iter().map(|peer| PeerLoad { sent: through(peer), ..*peer }).collect();
        (load.into_iter().map(|load| load.min(1000) as u16).collect(), peers)
    }

    proptest! {
        #[test]
        fn constant_load_never_makes_a_peer_go_back_and_forth(
            workers in 2usize..9,
            loads in proptest::collection::vec((0usize..8, 16u64..4000), 1..20),
        ) {
            let offered: Vec<_> = loads
                .iter()
                .zip(0..)
                .map(|(&(owner, sent), slot)| peer(slot, (owner % workers) as u8, sent))
                .collect();
            let mut policy = Policy::default();
            let mut spread = std::collections::HashSet::new();
            for _ in 0..100 {
                let (busy, peers) = carried(workers, &offered, &policy);
                for change in tick(&mut policy, &busy, &peers) {
                    match change {
                        Decision::Spread(id) => prop_assert!(spread.insert(id)),
                        Decision::DrawBack(id) => prop_assert!(false, "{id:?} drawn back"),
                    }
                }
            }
        }

        #[test]
        fn a_lone_worker_never_spreads(ticks in proptest::collection::vec((0u16..=1000, 0u64..4000), 0..50)) {
            let mut policy = Policy::default();
            for (busy, sent) in ticks {
                prop_assert_eq!(tick(&mut policy, &[busy], &[peer(0, 0, sent)]), []);
            }
        }
    }
}
