//! Peers by slot and by public key.

use super::peer::Peer;
use crate::crypto::x25519::PublicKey;
use crate::dataplane::PeerId;
use crate::index::WorkerCount;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::ops::Range;

/// Most peers that a device may have (kernel: MAX_PEERS_PER_DEVICE).
pub(super) const MAX_PEERS: usize = 1 << 20;

/// All peers. Slots are small numbers and are reused; an epoch never is.
pub(super) struct PeerTable {
    slots: Vec<Option<Box<Peer>>>,
    free: Vec<u32>,
    /// Slots that the workers' routes may still name. They are not reused before the next table is published, or a
    /// packet for the old peer could be sealed for the new one.
    released: Vec<u32>,
    by_key: HashMap<PublicKey, u32>,
    /// Slots by epoch: in the order in which their peers were added.
    by_epoch: BTreeMap<u32, u32>,
    /// Number of peers that each worker owns.
    load: Vec<u32>,
    next_epoch: u32,
}

impl PeerTable {
    pub(super) fn new(workers: WorkerCount) -> PeerTable {
        PeerTable {
            slots: Vec::new(),
            free: Vec::new(),
            released: Vec::new(),
            by_key: HashMap::new(),
            by_epoch: BTreeMap::new(),
            load: vec![0; workers.get()],
            next_epoch: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    pub(super) fn find(&self, key: &PublicKey) -> Option<u32> {
        self.by_key.get(key).copied()
    }

    pub(super) fn get(&self, slot: u32) -> Option<&Peer> {
        self.slots.get(slot as usize)?.as_deref()
    }

    pub(super) fn get_mut(&mut self, slot: u32) -> Option<&mut Peer> {
        self.slots.get_mut(slot as usize)?.as_deref_mut()
    }

    /// The peer with this slot and epoch, unless it was removed.
    pub(super) fn by_id(&mut self, id: PeerId) -> Option<&mut Peer> {
        self.get_mut(id.slot).filter(|peer| peer.shared.id == id)
    }

    /// All slots, those that are free among them, for [`next_batch`].
    pub(super) fn slots(&self) -> Range<u32> {
        0..self.slots.len() as u32
    }

    /// Peers in the order they were added.
    pub(super) fn in_order(&self) -> impl Iterator<Item = &Peer> {
        self.by_epoch.values().filter_map(|&slot| self.get(slot))
    }

    /// The first peer at or behind place `order` in the order of addition, and its own place.
    pub(super) fn added_from(&self, order: u32) -> Option<(u32, &Peer)> {
        let (&at, &slot) = self.by_epoch.range(order..).next()?;
        Some((at, self.get(slot)?))
    }

    /// Makes room for `count` peers in all, as a table that grew while they came would stop for milliseconds.
    pub(super) fn reserve(&mut self, count: usize) {
        self.by_key.reserve(count.saturating_sub(self.by_key.len()));
    }

    /// Adds the peer that `make` builds for a new identity and its owner: the worker with the fewest peers.
    pub(super) fn insert(&mut self, key: PublicKey, make: impl FnOnce(PeerId, u8) -> Peer) -> PeerId {
        self.insert_for(key, None, make)
    }

    /// Does as [`Self::insert`], for an owner that is known already.
    pub(super) fn insert_for(
        &mut self,
        key: PublicKey,
        owner: Option<u8>,
        make: impl FnOnce(PeerId, u8) -> Peer,
    ) -> PeerId {
        let fewest = || (0..self.load.len()).min_by_key(|&worker| self.load[worker]).unwrap_or(0);
        let owner = owner.map_or_else(fewest, usize::from);
        self.load[owner] += 1;
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() as u32 - 1
        });
        let id = PeerId { slot, epoch: self.next_epoch };
        self.next_epoch = self.next_epoch.wrapping_add(1);
        self.by_key.insert(key, slot);
        self.by_epoch.insert(id.epoch, slot);
        self.slots[slot as usize] = Some(Box::new(make(id, owner as u8)));
        id
    }

    /// Gives a peer to another worker.
    pub(super) fn give(&mut self, slot: u32, worker: u8) {
        let Some(peer) = self.slots.get(slot as usize).and_then(Option::as_ref) else { return };
        self.load[usize::from(peer.shared.owner())] -= 1;
        self.load[usize::from(worker)] += 1;
        peer.shared.give_to(worker);
    }

    /// Removes a peer. Its slot is reused after [`Self::recycle`].
    pub(super) fn remove(&mut self, slot: u32) -> Option<Box<Peer>> {
        let peer = self.slots.get_mut(slot as usize)?.take()?;
        self.by_key.remove(&peer.public_key);
        self.by_epoch.remove(&peer.shared.id.epoch);
        self.load[usize::from(peer.shared.owner())] -= 1;
        self.released.push(slot);
        Some(peer)
    }

    /// Notes that no route names a removed peer any more. Where many peers were removed, their room is given back.
    pub(super) fn recycle(&mut self) {
        self.free.append(&mut self.released);
        let used = self.slots.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
        if used < self.slots.len() / 2 {
            self.slots.truncate(used);
            self.free.retain(|&slot| (slot as usize) < used);
            self.slots.shrink_to_fit();
            self.free.shrink_to_fit();
            self.released.shrink_to_fit();
        }
        give_back_room(&mut self.by_key);
    }
}

/// Takes the next `most` slots off those that are left. So what concerns all peers is done for a few at a time. A peer that
/// was added meanwhile may be among them or not.
pub(super) fn next_batch(left: &mut Range<u32>, most: u32) -> Range<u32> {
    let batch = left.start..left.end.min(left.start.saturating_add(most));
    left.start = batch.end;
    batch
}

/// Number of entries whose room a table keeps though it is nearly empty.
const KEPT: usize = 1024;

/// Shrinks a table in which less than an eighth is used.
fn give_back_room<K: Eq + Hash, V>(table: &mut HashMap<K, V>) {
    if table.capacity() > KEPT && table.len() < table.capacity() / 8 {
        table.shrink_to(2 * table.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::x25519::SharedSecret;
    use crate::dataplane::PeerShared;
    use crate::noise::cookie::CookieJar;
    use crate::noise::handshake::Handshake;
    use std::sync::Arc;

    fn add(table: &mut PeerTable, number: u32) -> PeerId {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&number.to_le_bytes());
        let key = PublicKey(bytes);
        table.insert(key, |id, owner| {
            let handshake = Handshake::new(key, SharedSecret([0; 32]));
            Peer::new(key, Arc::new(PeerShared::new(id, owner)), handshake, CookieJar::new(&key))
        })
    }

    #[test]
    fn the_room_of_many_peers_goes_back_when_they_are_gone_and_slots_stay_unique() {
        let mut table = PeerTable::new(WorkerCount::nearest(2));
        let ids: Vec<PeerId> = (0..10_000).map(|number| add(&mut table, number)).collect();
        ids.iter().filter(|id| id.slot != 7).for_each(|id| assert!(table.remove(id.slot).is_some()));
        table.recycle();
        assert!(table.slots.capacity() < 1000 && table.by_key.capacity() <= 4 * KEPT && table.free.len() < 8);
        assert_eq!(table.in_order().map(|peer| peer.shared.id).collect::<Vec<_>>(), [ids[7]]);
        let fresh: std::collections::HashSet<u32> =
            (0..100).map(|number| add(&mut table, 20_000 + number).slot).collect();
        assert!(fresh.len() == 100 && !fresh.contains(&7) && table.len() == 101);
    }
}
