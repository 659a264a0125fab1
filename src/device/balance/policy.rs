//! The policy of [balance](super): what to do for a worker that is hot. It knows neither devices nor clocks.

use super::Direction::{self, Received, Sent};
use crate::dataplane::PeerId;
use std::collections::HashMap;

/// Busy share in thousandths from which a worker is hot.
const HOT: u16 = 900;
/// Number of consecutive ticks for which a worker is hot before it is relieved of its heaviest peer.
const HOT_TICKS: u8 = 2;
/// Mean busy share in thousandths of the other workers below which they have room for a part of a peer.
const ROOM: u32 = 750;
/// Number of ticks for which a shared peer moves less than half of what it did, before it is its owner's alone again. They
/// need not be consecutive, but a tick in which it moves more starts the count anew.
const CALM_TICKS: u8 = 5;
/// Most peers that are shared at a time, each way. Each made most of what a worker moved and has not calmed down since, so
/// more than a few are not to be expected.
const MAX_SHARED: usize = 256;

/// What one peer moved in a tick, in bytes a second.
#[derive(Clone, Copy, Debug)]
pub(super) struct PeerLoad {
    pub(super) id: PeerId,
    pub(super) owner: u8,
    pub(super) sent: u64,
    pub(super) received: u64,
}

impl PeerLoad {
    fn moved(&self, direction: Direction) -> u64 {
        match direction {
            Sent => self.sent,
            Received => self.received,
        }
    }
}

/// What to do with a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Decision {
    /// Share what it moves in this direction among all workers.
    Begin(Direction, PeerId),
    /// Leave that to its owner again.
    End(Direction, PeerId),
}

/// A peer that is shared in one direction.
#[derive(Clone, Copy)]
struct Engaged {
    /// What the peer moved when that began, in bytes a second.
    rate: u64,
    calm: u8,
}

/// Decides which peers are shared.
///
/// It does not oscillate under constant load, since a peer goes back only while no worker is hot. Then all that is
/// offered is carried, and that is no less than what the hot worker carried of it before.
#[derive(Default)]
pub(super) struct Policy {
    /// Number of consecutive ticks for which each worker was hot.
    hot: Vec<u8>,
    /// The peers that are shared, by [`Direction`].
    engaged: [HashMap<PeerId, Engaged>; 2],
}

/// What one worker does for its peers in a tick, in bytes a second.
#[derive(Clone, Copy, Default)]
struct Share {
    /// What it moves, by [`Direction`].
    moved: [u64; 2],
    /// The peer that makes most of it and is not shared yet.
    heaviest: [Option<PeerLoad>; 2],
}

impl Policy {
    /// Takes in the busy shares of a tick, in thousandths. True where [`Self::decide`] is to be called.
    pub(super) fn observe(&mut self, busy: &[u16]) -> bool {
        self.hot.resize(busy.len(), 0);
        for (streak, &busy) in self.hot.iter_mut().zip(busy) {
            *streak = if busy >= HOT { streak.saturating_add(1) } else { 0 };
        }
        self.is_engaged() || self.hot.iter().any(|&streak| streak > 0)
    }

    /// Notes that no tick follows, so that later ones do not count as consecutive with this one.
    pub(super) fn pause(&mut self) {
        self.hot.fill(0);
    }

    /// Whether any peer is shared.
    pub(super) fn is_engaged(&self) -> bool {
        self.engaged.iter().any(|peers| !peers.is_empty())
    }

    /// Number of peers that are shared in a direction.
    pub(super) fn count(&self, direction: Direction) -> usize {
        self.engaged[direction as usize].len()
    }

    /// Notes that a peer was removed.
    pub(super) fn forget(&mut self, id: PeerId) {
        for peers in &mut self.engaged {
            peers.remove(&id);
        }
    }

    fn has(&self, direction: Direction, id: PeerId) -> bool {
        self.engaged[direction as usize].contains_key(&id)
    }

    /// What to change after a tick, given what the peers moved in it. Peers that moved nothing may be left out.
    pub(super) fn decide(&mut self, busy: &[u16], loads: Loads) -> Vec<Decision> {
        let mut changes = self.ends(busy, &loads.engaged);
        let shares = self.shares(busy.len(), loads);
        for (worker, share) in shares.iter().enumerate() {
            let long_hot = self.hot.get(worker).is_some_and(|&streak| streak >= HOT_TICKS);
            if !long_hot || !has_room(busy, worker) {
                continue;
            }
            let useful = [Sent, Received]
                .into_iter()
                .find_map(|direction| Some((direction, share.helped(direction)?)));
            if let Some((direction, peer)) =
                useful.filter(|(direction, _)| self.count(*direction) < MAX_SHARED)
            {
                let rate = peer.moved(direction);
                self.engaged[direction as usize].insert(peer.id, Engaged { rate, calm: 0 });
                self.hot[worker] = 0; // the next one only once this one's effect is seen
                changes.push(Decision::Begin(direction, peer.id));
            }
        }
        changes
    }

    /// The peers that calmed down.
    fn ends(&mut self, busy: &[u16], peers: &[PeerLoad]) -> Vec<Decision> {
        let any_hot = busy.iter().any(|&busy| busy >= HOT);
        let mut changes = Vec::new();
        for direction in [Sent, Received] {
            let moved: HashMap<PeerId, u64> =
                peers.iter().map(|peer| (peer.id, peer.moved(direction))).collect();
            self.engaged[direction as usize].retain(|id, engaged| {
                let moved = moved.get(id).copied().unwrap_or(0);
                engaged.calm = if moved < engaged.rate / 2 { engaged.calm.saturating_add(1) } else { 0 };
                let ends = engaged.calm >= CALM_TICKS && !any_hot;
                if ends {
                    changes.push(Decision::End(direction, *id));
                }
                !ends
            });
        }
        changes
    }

    /// What each worker does. A spread peer's packets leave from all workers, and still arrive at its owner.
    fn shares(&self, workers: usize, loads: Loads) -> Vec<Share> {
        let Loads { mut shares, engaged } = loads;
        shares.resize(workers, Share::default());
        let mut everywhere = 0;
        for peer in engaged {
            let Some(share) = shares.get_mut(usize::from(peer.owner)) else { continue };
            if self.has(Sent, peer.id) {
                everywhere += peer.sent / workers as u64;
            } else {
                share.add(Sent, &peer, true);
            }
            share.add(Received, &peer, !self.has(Received, peer.id));
        }
        shares.iter_mut().for_each(|share| share.moved[Sent as usize] += everywhere);
        shares
    }

    /// Takes in what a peer moved in a tick.
    pub(super) fn weigh(&self, loads: &mut Loads, peer: PeerLoad) {
        if self.has(Sent, peer.id) || self.has(Received, peer.id) {
            return loads.engaged.push(peer);
        }
        let owner = usize::from(peer.owner);
        if loads.shares.len() <= owner {
            loads.shares.resize(owner + 1, Share::default());
        }
        loads.shares[owner].add(Sent, &peer, true);
        loads.shares[owner].add(Received, &peer, true);
    }
}

/// What the peers moved in a tick: those that are shared, and the sums of the others by owner.
#[derive(Default)]
pub(super) struct Loads {
    shares: Vec<Share>,
    engaged: Vec<PeerLoad>,
}

impl Share {
    /// Adds what a peer moves in a direction; `may_lead` where it is not shared in it.
    fn add(&mut self, direction: Direction, peer: &PeerLoad, may_lead: bool) {
        self.moved[direction as usize] += peer.moved(direction);
        let heaviest = &mut self.heaviest[direction as usize];
        if may_lead && heaviest.is_none_or(|heaviest| heaviest.moved(direction) < peer.moved(direction)) {
            *heaviest = Some(*peer);
        }
    }

    /// The peer whose sharing in this direction takes enough off the worker. It has to make the larger part of what the worker
    /// moves in it, and no small part of all; a worker that is busy with the other direction would keep what keeps it busy.
    fn helped(&self, direction: Direction) -> Option<PeerLoad> {
        let (this, all) = (self.moved[direction as usize], self.moved[0] + self.moved[1]);
        self.heaviest[direction as usize].filter(|peer| peer.moved(direction) > this / 2 && this >= all / 3)
    }
}

/// Whether the workers other than `worker` have room. There must be some.
fn has_room(busy: &[u16], worker: usize) -> bool {
    let others = busy.iter().enumerate().filter(|&(other, _)| other != worker);
    let (count, sum) = others.fold((0, 0), |(count, sum), (_, &busy)| (count + 1, sum + u32::from(busy)));
    count > 0 && sum < count * ROOM
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
        assert_eq!(tick(&mut policy, &[100, 950], &peers), [Decision::Begin(Sent, id(1))]);
    }

    #[test]
    fn nothing_is_spread_where_it_would_not_help() {
        let equals = [peer(0, 0, 500), peer(1, 0, 500)];
        let alone = [peer(0, 0, 1000)];
        let cases: [(&[u16], &[PeerLoad]); 3] = [
            (&[1000, 0], &equals),
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
        let peers = [peer(0, 0, 1000), peer(1, 0, 900), peer(2, 0, 50)];
        let spread: Vec<_> = (0..4).map(|_| tick(&mut policy, &[1000, 0, 0, 0], &peers)).collect();
        assert_eq!(
            spread,
            [vec![], vec![Decision::Begin(Sent, id(0))], vec![], vec![Decision::Begin(Sent, id(1))]]
        );
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
    fn a_worker_with_two_heavy_senders_to_it_is_not_assisted() {
        let mut policy = Policy::default();
        let peers = [0, 1].map(|slot| PeerLoad { received: 1000, ..peer(slot, 0, 0) });
        for _ in 0..10 {
            assert_eq!(tick(&mut policy, &[1000, 0], &peers), []);
        }
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
        let parts = |peer: &PeerLoad| -> Vec<u64> {
            let spread = policy.engaged[Sent as usize].contains_key(&peer.id);
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
                        Decision::Begin(Sent, id) => prop_assert!(spread.insert(id)),
                        Decision::Begin(Received, id) => prop_assert!(false, "{id:?} sends nothing"),
                        Decision::End(_, id) => prop_assert!(false, "{id:?} drawn back"),
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
