//! Which destinations refused trains of which segment size. The memory is small and bounded. It keeps one narrow path
//! from costing a failed system call a train, or everybody's UDP_SEGMENT.

use std::net::IpAddr;

/// Most destinations remembered. A further one takes the place of the oldest. 64 × 40 bytes.
const MEMORY: usize = 64;
/// Number of trains after which a destination is tried again, as its path may have grown.
const TRY_AGAIN_AFTER: u32 = 4096;

struct NarrowPath {
    to: IpAddr,
    /// Size in bytes of the smallest segment refused.
    size: usize,
    /// Number of trains until the destination is forgotten.
    left: u32,
}

/// The destinations that refuse trains.
#[derive(Default)]
pub(super) struct NarrowPaths {
    entries: Vec<NarrowPath>,
    oldest: usize,
}

impl NarrowPaths {
    /// Remembers that segments of `size` bytes do not pass to `to` as a train.
    pub(super) fn add(&mut self, to: IpAddr, size: usize) {
        if let Some(known) = self.entries.iter_mut().find(|entry| entry.to == to) {
            known.size = known.size.min(size);
            known.left = TRY_AGAIN_AFTER;
            return;
        }
        let entry = NarrowPath { to, size, left: TRY_AGAIN_AFTER };
        if self.entries.len() < MEMORY {
            self.entries.push(entry);
        } else {
            self.entries[self.oldest] = entry;
            self.oldest = (self.oldest + 1) % MEMORY;
        }
    }

    /// Whether a train of segments of `size` bytes to `to` would be refused. Counts the train where it would.
    pub(super) fn refuses(&mut self, to: IpAddr, size: usize) -> bool {
        let Some(at) = self.entries.iter().position(|entry| entry.to == to && entry.size <= size) else {
            return false;
        };
        self.entries[at].left -= 1;
        if self.entries[at].left == 0 {
            self.entries.swap_remove(at);
            self.oldest = 0;
        }
        true
    }

    /// Number of destinations remembered now.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.oldest = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(n: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, n])
    }

    #[test]
    fn only_that_destination_and_that_size_or_more_are_refused() {
        let mut narrow = NarrowPaths::default();
        narrow.add(ip(1), 1400);
        narrow.add(ip(1), 1300);
        assert!(narrow.refuses(ip(1), 1300) && narrow.refuses(ip(1), 1452));
        assert!(!narrow.refuses(ip(1), 1299) && !narrow.refuses(ip(2), 1452));
    }

    #[test]
    fn the_memory_is_bounded_and_the_newest_stay() {
        let mut narrow = NarrowPaths::default();
        (0..=255).for_each(|n| narrow.add(ip(n), 1400));
        assert_eq!(narrow.len(), MEMORY);
        assert!(narrow.refuses(ip(255), 1400) && !narrow.refuses(ip(0), 1400));
    }

    #[test]
    fn a_path_is_tried_again_after_a_while() {
        let mut narrow = NarrowPaths::default();
        narrow.add(ip(1), 1400);
        let refused = (0..TRY_AGAIN_AFTER + 1).filter(|_| narrow.refuses(ip(1), 1400)).count();
        assert_eq!(refused, TRY_AGAIN_AFTER as usize);
        assert_eq!(narrow.len(), 0);
    }
}
