//! The peers by slot, as all workers see them: one table for the whole device, published together with the routes whose
//! values are its slots.
//!
//! A published directory never changes. The next one shares the leaves in which nothing changed. So a worker that still
//! has earlier routes has the peers that these meant, and a slot may have another peer in the next directory.

use crate::dataplane::PeerShared;
use std::collections::VecDeque;
use std::sync::Arc;

/// Slots of a leaf. A directory of 100,000 peers has 391 leaves, and one more peer copies a leaf and a list of leaves.
const LEAF: usize = 256;

/// Most leaves freed in one go. One with 256 peers takes some 150 µs.
const FREED: usize = 8;

type Leaf = [Option<Arc<PeerShared>>; LEAF];

/// Peers by slot. Reading takes no lock and counts no reference.
#[derive(Clone, Default)]
pub struct PeerDirectory {
    leaves: Vec<Arc<Leaf>>,
}

impl PeerDirectory {
    /// The peer in this slot.
    pub fn get(&self, slot: u32) -> Option<&Arc<PeerShared>> {
        let slot = slot as usize;
        self.leaves.get(slot / LEAF)?[slot % LEAF].as_ref()
    }

    /// All peers, by slot.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<PeerShared>> {
        self.leaves.iter().flat_map(|leaf| leaf.iter().flatten())
    }
}

/// Makes directories. The device has it, and gives what it makes to the workers.
#[derive(Default)]
pub struct DirectoryWriter {
    next: PeerDirectory,
    changed: bool,
    published: Arc<PeerDirectory>,
    /// Earlier directories in which a worker may still read, the oldest first.
    replaced: VecDeque<Arc<PeerDirectory>>,
    /// What was the replaced directories', and is to be freed.
    garbage: Vec<Arc<Leaf>>,
}

impl DirectoryWriter {
    /// Puts a peer into its slot.
    pub fn insert(&mut self, peer: Arc<PeerShared>) {
        let slot = peer.id.slot;
        self.set(slot, Some(peer));
    }

    /// Leaves a slot empty.
    pub fn remove(&mut self, slot: u32) {
        self.set(slot, None);
    }

    fn set(&mut self, slot: u32, peer: Option<Arc<PeerShared>>) {
        let slot = slot as usize;
        let leaves = &mut self.next.leaves;
        if leaves.len() <= slot / LEAF {
            leaves.resize_with(slot / LEAF + 1, || Arc::new([const { None }; LEAF]));
        }
        Arc::make_mut(&mut leaves[slot / LEAF])[slot % LEAF] = peer;
        self.changed = true;
    }

    /// The directory that was published last.
    pub fn published(&self) -> &Arc<PeerDirectory> {
        &self.published
    }

    /// Whether the next directory is another than the last.
    pub fn is_changed(&self) -> bool {
        self.changed
    }

    /// The directory of the peers as they are now. It is the same as before where nothing changed.
    pub fn publish(&mut self) -> Arc<PeerDirectory> {
        if std::mem::take(&mut self.changed) {
            let leaves = &mut self.next.leaves;
            while leaves.last().is_some_and(|leaf| leaf.iter().all(Option::is_none)) {
                leaves.pop();
            }
            let new = Arc::new(self.next.clone());
            self.replaced.push_back(std::mem::replace(&mut self.published, new));
        }
        self.reclaim();
        Arc::clone(&self.published)
    }

    /// Takes back directories in which no worker reads any more. A worker that lets go of one never frees it: this does, and
    /// where that is much, [`Self::free_some`] goes on.
    pub fn reclaim(&mut self) {
        while let Some(oldest) = self.replaced.front_mut().and_then(Arc::get_mut) {
            self.garbage.append(&mut oldest.leaves);
            self.replaced.pop_front();
        }
        self.free_some();
    }

    /// Whether [`Self::free_some`] has something to do.
    pub fn has_garbage(&self) -> bool {
        !self.garbage.is_empty()
    }

    /// Frees a bounded number of the peers that only earlier directories had.
    pub fn free_some(&mut self) {
        let mut freed = 0;
        while let Some(mut leaf) = self.garbage.pop() {
            // The other leaves are also the next directory's, which costs nothing.
            freed += usize::from(Arc::get_mut(&mut leaf).is_some());
            if freed == FREED {
                return;
            }
        }
        self.garbage.shrink_to(FREED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::PeerId;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn peer(slot: u32, epoch: u32) -> Arc<PeerShared> {
        Arc::new(PeerShared::new(PeerId { slot, epoch }, 0))
    }

    fn ids(directory: &PeerDirectory) -> Vec<PeerId> {
        directory.iter().map(|peer| peer.id).collect()
    }

    proptest! {
        /// Every directory that was published goes on saying what held when it was.
        #[test]
        fn a_published_directory_never_changes(
            transactions in prop::collection::vec(prop::collection::vec((0..700_u32, any::<bool>()), 0..20), 1..20)
        ) {
            let (mut writer, mut model) = (DirectoryWriter::default(), BTreeMap::new());
            let mut published = Vec::new();
            for (epoch, changes) in (1..).zip(transactions) {
                for (slot, insert) in changes {
                    if insert {
                        writer.insert(peer(slot, epoch));
                        model.insert(slot, PeerId { slot, epoch });
                    } else {
                        writer.remove(slot);
                        model.remove(&slot);
                    }
                }
                published.push((writer.publish(), model.clone()));
            }
            for (directory, model) in published {
                prop_assert_eq!(ids(&directory), model.values().copied().collect::<Vec<_>>());
                for slot in 0..1000 {
                    prop_assert_eq!(directory.get(slot).map(|peer| peer.id), model.get(&slot).copied());
                }
            }
        }
    }

    #[test]
    fn what_no_worker_reads_any_more_is_freed_by_the_writer_in_order() {
        let mut writer = DirectoryWriter::default();
        let first = peer(0, 1);
        writer.insert(Arc::clone(&first));
        let (held, mut later) = (writer.publish(), Vec::new());
        for epoch in 2..5 {
            writer.insert(peer(0, epoch));
            later.push(writer.publish());
        }
        drop(later);
        writer.reclaim();
        assert_eq!((Arc::strong_count(&first), writer.replaced.len()), (2, 3), "a worker has the first");
        drop(held);
        assert_eq!(Arc::strong_count(&first), 2, "the worker frees nothing");
        writer.reclaim();
        assert_eq!((Arc::strong_count(&first), writer.replaced.len()), (1, 0));
    }

    #[test]
    fn the_room_of_many_peers_goes_back_when_they_are_gone() {
        let mut writer = DirectoryWriter::default();
        (0..10_000).for_each(|slot| writer.insert(peer(slot, 1)));
        assert_eq!(writer.publish().leaves.len(), 40);
        (1..10_000).for_each(|slot| writer.remove(slot));
        assert_eq!(writer.publish().leaves.len(), 1);
    }
}
