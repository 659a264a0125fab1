//! Balance: which peers outgrow one core, and which calmed down again. What is sent to one is spread over all workers by flow; of
//! what one sends, all workers open a part for its owner (`dataplane/assist.rs`). Where a peer is spread and still keeps a worker busy
//! while others are not, that is one flow: they seal a part of it for that worker. Where several peers are too much for one worker
//! only together, one is given to another worker: what is sent to it at once, what it sends with its next session, within two
//! minutes.
//!
//! A worker counts the time that it is awake; its share of the time that passed is how busy it is. The timer check that active peers
//! get every few seconds anyway takes these shares, and where one is [`ENGAGED`] or more since the last time, they are taken
//! every [`TICK`] from then on, until all are below it and no peer is shared. So a quiet device is never woken for it, and a
//! heavy load is noticed within about ten seconds. What to do then is decided by [`Policy`], which is pure.
//!
//! **Order.** Spreading goes by the hash of the flow: a flow has one worker before a change and one worker after it, and each
//! keeps its order. The change itself is made at once, as the kernel's own `tun_flow_update` does, and not when the old
//! queue has run empty: packets of a flow that moves and still wait in the old worker's TUN queue (1024 frames at most) can be
//! overtaken by those that came after the change. None is lost for it, nor taken for a replay, since counters are given out
//! when packets are sealed. It happens to a flow at most once a change, and a peer changes when it is given to another worker,
//! when it is spread and, seven ticks later at the earliest, when it is drawn back. What a peer sends can be overtaken in the same
//! way as it begins to use a session of another owner. Waiting for a pause would avoid it, but a peer that keeps a worker
//! too busy does not pause. On the way back there is no hurry: it waits for a tick in which no worker was hot, so that all of
//! them slept now and then, which they do only once their queues are empty.

pub(super) mod policy;

use super::Device;
use super::events::EventKind;
use super::peer::{Peer, Watch};
use super::table::next_batch;
use crate::dataplane::assist::Assist;
use crate::dataplane::stats::WorkerStats;
use crate::dataplane::{PeerId, PeerShared};
use crate::index::{ReceiverIndex, WorkerCount};
use crate::time::Instant;
use Direction::{Received, Sealed, Sent};
use policy::{Decision, Direction, Engaged, Loads, PeerLoad, Policy};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Time between two samples of the workers' busy shares.
const TICK: Duration = Duration::from_secs(1);
/// Busy share in thousandths from which the workers are sampled every tick.
const ENGAGED: u16 = 100;
/// Number of peers that are looked at in one call, in some 0.1 ms.
pub(super) const WEIGHED: u32 = 2048;

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
    assist: Option<Arc<Assist>>,
    /// Whether all peers are assisted, whatever the load.
    shares_all: bool,
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

    /// How a peer is shared, by direction.
    pub(super) fn sharing(&self, id: PeerId) -> [Option<Engaged>; 3] {
        self.policy.sharing(id)
    }

    /// Has a peer shared as it was in another process, and looks at the workers soon where there is one.
    pub(super) fn restore(&mut self, id: PeerId, sharing: [Option<Engaged>; 3]) {
        self.policy.restore(id, sharing);
        if self.policy.is_engaged() {
            self.next = Some(Instant::START);
        }
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
    /// Has all peers that are added from now on assisted, whatever the load.
    pub fn share_all(&mut self) {
        self.balancer.shares_all = true;
    }

    /// Has a peer that was just added assisted, where all are.
    pub(super) fn share_added(&mut self, peer: &PeerShared) {
        if self.balancer.shares_all {
            peer.assisted.store(true, Relaxed);
            peer.seal_assisted.store(true, Relaxed);
            self.count_shared();
        }
    }

    /// Sets the workers' counters, one a worker in order, and what they share to help each other. From then on peers that
    /// outgrow one core are shared. With fewer than two workers none ever is.
    pub fn follow_workers(&mut self, workers: Vec<Arc<WorkerStats>>, assist: Arc<Assist>) {
        let count = workers.len();
        self.balancer = Balancer {
            awake: vec![0; count],
            busy: vec![0; count],
            workers,
            assist: Some(assist),
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
            let (workers, passed) = (self.out.workers(), weighing.passed);
            let load = self.peers.get_mut(slot).and_then(|peer| load(peer, passed, workers));
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
                Decision::Begin(_, id) if self.peers.by_id(id).is_none() => self.forget_load(id),
                Decision::Begin(direction, id) => self.share_peer(direction, id, true),
                Decision::End(direction, id) => self.share_peer(direction, id, false),
                Decision::Give(id, worker) => self.give_peer(id, worker),
            }
        }
        self.end_tick(now);
    }

    /// Begins or ends to share what a peer moves in a direction.
    fn share_peer(&mut self, direction: Direction, id: PeerId, shared: bool) {
        let stats = &mut self.stats;
        match (direction, shared) {
            (Sent, true) => stats.peers_spread += 1,
            (Sent, false) => stats.peers_drawn_back += 1,
            (Received, true) => stats.peers_assisted += 1,
            (Received, false) => stats.peers_unassisted += 1,
            (Sealed, true) => stats.peers_seal_assisted += 1,
            (Sealed, false) => stats.peers_seal_unassisted += 1,
        }
        let Some(peer) = self.peers.by_id(id) else { return };
        match direction {
            Sent => {
                peer.spread = shared;
                self.steer_peer(id);
            }
            Received => peer.shared.assisted.store(shared || self.balancer.shares_all, Relaxed),
            Sealed => peer.shared.seal_assisted.store(shared || self.balancer.shares_all, Relaxed),
        }
        self.note(id, EventKind::Shared { direction, by_all: shared });
    }

    /// Gives a peer to another worker: what is sent to it from now on, and what it sends from its next session on.
    pub fn give_peer(&mut self, id: PeerId, worker: u8) {
        if self.peers.by_id(id).is_some() {
            self.stats.peers_given += 1;
            self.peers.give(id.slot, worker);
            self.steer_peer(id);
            self.note(id, EventKind::Given { worker });
        }
    }

    fn end_tick(&mut self, now: Instant) {
        self.count_shared();
        let goes_on = self.balancer.engaged() || self.balancer.policy.is_engaged();
        self.balancer.next = goes_on.then(|| now + TICK);
        if !goes_on {
            self.balancer.policy.pause();
        }
    }

    /// Notes that a peer was removed.
    pub(super) fn forget_load(&mut self, id: PeerId) {
        self.balancer.policy.forget(id);
        self.count_shared();
    }

    fn count_shared(&mut self) {
        let policy = &self.balancer.policy;
        self.stats.peers_spread_now = policy.count(Sent) as u64;
        self.stats.peers_assisted_now = policy.count(Received) as u64;
        self.stats.peers_seal_assisted_now = policy.count(Sealed) as u64;
        let all = usize::from(self.balancer.shares_all);
        if let Some(assist) = &self.balancer.assist {
            assist.engage(policy.count(Received) + policy.count(Sealed) + all);
        }
    }

    /// Steers all that is for a peer anew.
    fn steer_peer(&mut self, id: PeerId) {
        let Some(peer) = self.peers.by_id(id) else { return };
        let target = peer.target();
        for &prefix in &peer.allowed {
            self.out.steer(prefix, Some(target));
        }
    }
}

/// What a peer moved since the last tick, which was `passed` nanoseconds ago. `None` where that is nothing.
fn load(peer: &mut Peer, passed: u64, workers: WorkerCount) -> Option<PeerLoad> {
    let shared = &peer.shared;
    let total = (shared.traffic.tx_bytes.load(Relaxed), shared.traffic.rx_bytes.load(Relaxed));
    let seen = std::mem::replace(&mut peer.sampled, total);
    if seen == total {
        return None;
    }
    let rate = |now: u64, before: u64| per_second(now.wrapping_sub(before), passed, 1_000_000_000);
    let (sent, received) = (rate(total.0, seen.0), rate(total.1, seen.1));
    let owner = shared.owner();
    let current = peer.sessions.current();
    let receiver = current.map_or(owner, |session| ReceiverIndex(session.local_index()).owner(workers));
    Some(PeerLoad { id: shared.id, owner, receiver, sent, received })
}
