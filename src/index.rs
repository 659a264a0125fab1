//! A receiver index: 32 bits, of which the low eight name the owning worker, modulo the number of workers, and the rest are random.
//!
//! A classic-BPF program on the SO_REUSEPORT group picks the owner's socket by the low byte, which is the first on
//! the wire, so that a peer's packets arrive on its owner's core.

/// Largest number of workers: how many the low byte can name.
pub const MAX_WORKERS: usize = 256;

/// How many workers a tunnel has: 1 to [`MAX_WORKERS`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WorkerCount(u16);

impl WorkerCount {
    /// One worker.
    pub const ONE: WorkerCount = WorkerCount(1);

    /// The possible number of workers that is nearest to `count`.
    pub const fn nearest(count: usize) -> WorkerCount {
        WorkerCount(match count {
            0 => 1,
            1..=MAX_WORKERS => count as u16,
            _ => MAX_WORKERS as u16,
        })
    }

    /// The number.
    pub const fn get(self) -> usize {
        self.0 as usize
    }

    /// The numbers of the workers.
    pub fn iter(self) -> impl Iterator<Item = u8> {
        (0..self.0).map(|worker| worker as u8)
    }
}

/// A receiver index as it stands in messages.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ReceiverIndex(pub u32);

impl ReceiverIndex {
    /// The index owned by `worker`, with `random` in the upper 24 bits. The low byte of `random` is ignored.
    pub const fn new(worker: u8, random: u32) -> ReceiverIndex {
        ReceiverIndex((random & 0xffff_ff00) | worker as u32)
    }

    /// The owner, among so many workers. The low byte is above their number where the index was drawn by another process, with
    /// more workers, whose successor this one is.
    pub const fn owner(self, workers: WorkerCount) -> u8 {
        (self.0 as u8 as u16 % workers.0) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn low_byte_names_the_worker_and_the_rest_is_random(worker: u8, random: u32) {
            let index = ReceiverIndex::new(worker, random);
            prop_assert_eq!(index.0 as u8, worker);
            prop_assert_eq!(index.0 >> 8, random >> 8);
        }
    }

    /// Each bit of the result is a bit of one of the two, whatever the others are: so flipping one at a time shows all there is.
    #[test]
    fn every_bit_comes_from_where_it_should_for_every_worker() {
        for worker in 0..=u8::MAX {
            for base in [0, u32::MAX, 0x5555_5555, 0xaaaa_aaaa] {
                let ReceiverIndex(index) = ReceiverIndex::new(worker, base);
                assert_eq!(index, base & !0xff | u32::from(worker));
                for bit in (0..32).map(|bit| 1 << bit) {
                    let ReceiverIndex(flipped) = ReceiverIndex::new(worker, base ^ bit);
                    assert_eq!(flipped ^ index, bit & !0xff);
                }
            }
        }
    }

    #[test]
    fn worker_comes_first_on_the_wire() {
        // What the steering program reads with one byte load.
        assert_eq!(ReceiverIndex::new(7, 0xaabb_ccdd).0.to_le_bytes(), [7, 0xcc, 0xbb, 0xaa]);
    }

    #[test]
    fn a_tunnel_has_at_least_one_worker_and_no_more_than_can_be_named() {
        let counts = [0, 1, 2, MAX_WORKERS, MAX_WORKERS + 1, usize::MAX]
            .map(|count| WorkerCount::nearest(count).get());
        assert_eq!(counts, [1, 1, 2, MAX_WORKERS, MAX_WORKERS, MAX_WORKERS]);
    }

    #[test]
    fn an_index_of_more_workers_has_an_owner_among_fewer() {
        let owners =
            |workers| [0, 1, 2, 3, 255].map(|byte| ReceiverIndex(byte).owner(WorkerCount::nearest(workers)));
        assert_eq!(owners(1), [0; 5]);
        assert_eq!(owners(2), [0, 1, 0, 1, 1]);
        assert_eq!(owners(256), [0, 1, 2, 3, 255]);
    }

    #[test]
    fn every_worker_has_a_byte() {
        for workers in [1, 2, 3, 255, 256].map(WorkerCount::nearest) {
            assert!(workers.iter().all(|worker| ReceiverIndex::new(worker, 0).owner(workers) == worker));
        }
    }
}
