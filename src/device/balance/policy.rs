//! The policy of [balance](super): what to do for a worker that is hot. It knows neither devices nor clocks.

use crate::dataplane::PeerId;
use Direction::{Received, Sealed, Sent};
use serde::{Deserialize, Serialize};
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
/// Busy share in thousandths up to which a worker may come by a peer that it is given.
const FILLED: u64 = 750;
/// The least part of what a worker moves, as a divisor, that a peer makes which is given to another.
const WORTH: u64 = 8;
/// Most peers that are shared at a time, each way. Each made most of what a worker moved and has not calmed down since, so
/// more than a few are not to be expected.
const MAX_SHARED: usize = 256;

/// Which way data goes, and how that is shared.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// From the TUN device to the peer. Sharing it is to spread the peer.
    Sent,
    /// From the peer to the TUN device. Sharing it is to have the owner assisted.
    Received,
    /// From the TUN device to a peer that is spread already, which helps none of its flows. Sharing it is to have the worker
    /// assisted that seals a flow.
    Sealed,
}

/// What one peer moved in a tick, in bytes a second.
#[derive(Clone, Copy, Debug)]
pub(super) struct PeerLoad {
    pub(super) id: PeerId,
    /// The worker that seals what is sent to it, unless it is spread.
    pub(super) owner: u8,
    /// The worker that receives what it sends: the owner of its session.
    pub(super) receiver: u8,
    pub(super) sent: u64,
    pub(super) received: u64,
}

impl PeerLoad {
    fn total(&self) -> u64 {
        self.sent.saturating_add(self.received)
    }

    fn moved(&self, direction: Direction) -> u64 {
        match direction {
            Sent | Sealed => self.sent,
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
    /// Give the peer to this worker.
    Give(PeerId, u8),
}

/// A peer that is shared in one direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(in crate::device) struct Engaged {
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
    engaged: [HashMap<PeerId, Engaged>; 3],
}

/// What one worker does for its peers in a tick, in bytes a second.
#[derive(Clone, Copy, Default)]
struct Share {
    /// What it moves, by [`Direction`].
    moved: [u64; 2],
    /// The peer that makes most of it and is not shared yet, by [`Direction`].
    heaviest: [Option<PeerLoad>; 2],
    /// The two peers that make most of both directions, the heavier first, of those that are this worker's alone.
    whole: [Option<PeerLoad>; 2],
    /// What it receives of peers that were given away and have yet to begin another session.
    leaving: u64,
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

    /// How a peer is shared, by direction.
    pub(super) fn sharing(&self, id: PeerId) -> [Option<Engaged>; 3] {
        std::array::from_fn(|direction| self.engaged[direction].get(&id).copied())
    }

    /// Has a peer shared as it was in another process.
    pub(super) fn restore(&mut self, id: PeerId, sharing: [Option<Engaged>; 3]) {
        for (engaged, sharing) in self.engaged.iter_mut().zip(sharing) {
            engaged.extend(sharing.map(|sharing| (id, sharing)));
        }
    }

    fn has(&self, direction: Direction, id: PeerId) -> bool {
        self.engaged[direction as usize].contains_key(&id)
    }

    /// What to change after a tick, given what the peers moved in it. Peers that moved nothing may be left out.
    pub(super) fn decide(&mut self, busy: &[u16], mut loads: Loads) -> Vec<Decision> {
        let mut changes = self.ends(busy, &loads.engaged);
        let mut in_one_flow = self.in_one_flow(&loads.engaged);
        let coming = std::mem::take(&mut loads.coming);
        let shares = self.shares(busy.len(), loads);
        let mut expected = expected(busy, &shares, &coming);
        for (worker, share) in shares.iter().enumerate() {
            let long_hot = self.hot.get(worker).is_some_and(|&streak| streak >= HOT_TICKS);
            if !long_hot || !has_room(busy, worker) {
                continue;
            }
            if let Some((peer, part)) = share.surplus(busy[worker]) {
                let least = (0..expected.len()).min_by_key(|&worker| expected[worker]).unwrap_or(worker);
                if expected[least] + part <= FILLED {
                    expected[least] += part;
                    self.hot[worker] = 0;
                    changes.push(Decision::Give(peer, least as u8));
                    continue;
                }
            }
            let useful = [Sent, Received]
                .into_iter()
                .find_map(|direction| Some((direction, share.helped(direction)?)))
                .or_else(|| Some((Sealed, in_one_flow.take_if(|peer| peer.sent >= share.all() / 2)?)));
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
        for direction in [Sent, Received, Sealed] {
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

    /// The peer that is spread and makes the larger part of what all those are sent. Where a worker is hot although it is spread,
    /// and the others are not, one of its flows is too much for that worker. `None` where it is assisted with that already.
    fn in_one_flow(&self, peers: &[PeerLoad]) -> Option<PeerLoad> {
        let spread = || peers.iter().filter(|peer| self.has(Sent, peer.id));
        let all: u64 = spread().map(|peer| peer.sent).sum();
        spread().find(|peer| peer.sent > all / 2 && !self.has(Sealed, peer.id)).copied()
    }

    /// What each worker does. A spread peer's packets leave from all workers, and still arrive at its owner.
    fn shares(&self, workers: usize, loads: Loads) -> Vec<Share> {
        let Loads { mut shares, engaged, .. } = loads;
        shares.resize(workers, Share::default());
        let mut everywhere = 0;
        for peer in engaged {
            if self.has(Sent, peer.id) {
                everywhere += peer.sent / workers as u64;
            } else if let Some(share) = shares.get_mut(usize::from(peer.owner)) {
                share.add(Sent, &peer, true);
            }
            if let Some(share) = shares.get_mut(usize::from(peer.receiver)) {
                share.add(Received, &peer, !self.has(Received, peer.id));
            }
        }
        shares.iter_mut().for_each(|share| share.moved[Sent as usize] += everywhere);
        shares
    }

    /// Takes in what a peer moved in a tick.
    pub(super) fn weigh(&self, loads: &mut Loads, peer: PeerLoad) {
        if self.engaged.iter().any(|peers| peers.contains_key(&peer.id)) {
            return loads.engaged.push(peer);
        }
        let (owner, receiver) = (usize::from(peer.owner), usize::from(peer.receiver));
        if loads.shares.len() <= owner.max(receiver) {
            loads.shares.resize(owner.max(receiver) + 1, Share::default());
        }
        loads.shares[owner].add(Sent, &peer, true);
        loads.shares[receiver].add(Received, &peer, true);
        if owner == receiver {
            loads.shares[owner].add_whole(peer);
        } else {
            loads.shares[receiver].leaving += peer.received;
            *loads.coming.entry((peer.receiver, peer.owner)).or_default() += peer.received;
        }
    }
}

/// What the peers moved in a tick: those that are shared, and the sums of the others by owner.
#[derive(Default)]
pub(super) struct Loads {
    shares: Vec<Share>,
    engaged: Vec<PeerLoad>,
    /// What peers send that were given away and have yet to begin another session, by who receives it and who will.
    coming: HashMap<(u8, u8), u64>,
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

    /// Takes in a peer that is this worker's alone.
    fn add_whole(&mut self, peer: PeerLoad) {
        let [first, second] = &mut self.whole;
        let is_above = |other: &Option<PeerLoad>| other.is_none_or(|other| other.total() < peer.total());
        if is_above(first) {
            *second = first.replace(peer);
        } else if is_above(second) {
            *second = Some(peer);
        }
    }

    /// The peer to give to another worker, and the busy share that it makes of this worker's, which is `busy`. It makes no more
    /// than half, as it would only take the trouble elsewhere otherwise. `None` also while another is on its way.
    fn surplus(&self, busy: u16) -> Option<(PeerId, u64)> {
        let all = self.all();
        let peer = self.whole.iter().flatten().find(|peer| peer.total() <= all / 2)?;
        let is_settled = self.leaving < all / WORTH;
        (is_settled && peer.total() >= all / WORTH && all > 0)
            .then(|| (peer.id, scaled(busy, peer.total(), all)))
    }

    fn all(&self) -> u64 {
        self.moved.iter().sum()
    }

    /// The peer whose sharing in this direction takes enough off the worker. It has to make the larger part of what the worker
    /// moves in it, and no small part of all; a worker that is busy with the other direction would keep what keeps it busy.
    fn helped(&self, direction: Direction) -> Option<PeerLoad> {
        let (this, all) = (self.moved[direction as usize], self.all());
        self.heaviest[direction as usize].filter(|peer| peer.moved(direction) > this / 2 && this >= all / 3)
    }
}

/// The part of a busy share that `moved` makes, of `all` that the worker moves.
fn scaled(busy: u16, moved: u64, all: u64) -> u64 {
    (u128::from(busy) * u128::from(moved) / u128::from(all.max(1))) as u64
}

/// How busy the workers will be once all peers have come that were given to them, in thousandths.
fn expected(busy: &[u16], shares: &[Share], coming: &HashMap<(u8, u8), u64>) -> Vec<u64> {
    let mut expected: Vec<u64> = busy.iter().map(|&busy| u64::from(busy)).collect();
    for (&(receiver, owner), &received) in coming {
        let receiver = usize::from(receiver);
        if let (Some(share), Some(&busy)) = (shares.get(receiver), busy.get(receiver))
            && let Some(expected) = expected.get_mut(usize::from(owner))
        {
            *expected += scaled(busy, received, share.all());
        }
    }
    expected
}

/// Whether the workers other than `worker` have room. There must be some.
fn has_room(busy: &[u16], worker: usize) -> bool {
    let others = busy.iter().enumerate().filter(|&(other, _)| other != worker);
    let (count, sum) = others.fold((0, 0), |(count, sum), (_, &busy)| (count + 1, sum + u32::from(busy)));
    count > 0 && sum < count * ROOM
}

#[cfg(test)]
mod tests;
