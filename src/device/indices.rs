//! The receiver indices in use, of outstanding initiations and of sessions. They are random and unique, and freed
//! with what they name.

use crate::crypto::random::Entropy;
use crate::index::ReceiverIndex;
use std::collections::HashMap;

/// The slot of the peer to which each index belongs. A peer has at most eight: seven sessions and an initiation. So
/// with [`super::table::MAX_PEERS`] peers on one worker, half of the 2^24 values are in use that its low byte leaves.
#[derive(Default)]
pub(super) struct IndexTable {
    slots: HashMap<u32, u32>,
}

impl IndexTable {
    /// A fresh index that `worker` owns. A collision is drawn again; at most every second draw is one.
    pub(super) fn allocate(&mut self, worker: u8, slot: u32, entropy: &mut dyn Entropy) -> u32 {
        loop {
            let ReceiverIndex(index) = ReceiverIndex::new(worker, entropy.next_u32());
            if let std::collections::hash_map::Entry::Vacant(vacant) = self.slots.entry(index) {
                vacant.insert(slot);
                return index;
            }
        }
    }

    /// Takes an index that another process drew. False where it is in use.
    pub(super) fn claim(&mut self, index: u32, slot: u32) -> bool {
        self.slots.insert(index, slot).is_none()
    }

    /// The slot of the peer that `index` belongs to.
    pub(super) fn slot(&self, index: u32) -> Option<u32> {
        self.slots.get(&index).copied()
    }

    pub(super) fn free(&mut self, index: u32) {
        self.slots.remove(&index);
    }

    #[cfg(feature = "internals")]
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Script(Vec<u32>);

    impl Entropy for Script {
        fn fill(&mut self, out: &mut [u8]) {
            out.copy_from_slice(&self.0.remove(0).to_le_bytes());
        }
    }

    #[test]
    fn a_collision_draws_again_and_the_low_byte_names_the_worker() {
        let mut table = IndexTable::default();
        let mut script = Script(vec![0x1111_1100, 0x1111_11ff, 0x2222_2200]);
        assert_eq!(table.allocate(7, 0, &mut script), 0x1111_1107);
        assert_eq!(table.allocate(7, 1, &mut script), 0x2222_2207);
        assert_eq!((table.slot(0x1111_1107), table.slot(0x2222_2207)), (Some(0), Some(1)));
    }

    #[test]
    fn a_freed_index_may_be_drawn_again() {
        let mut table = IndexTable::default();
        let index = table.allocate(0, 3, &mut Script(vec![0xabcd_ef00]));
        table.free(index);
        assert_eq!(table.slot(index), None);
        assert_eq!(table.allocate(0, 4, &mut Script(vec![0xabcd_ef00])), index);
    }
}
