//! The hash of a worker's tables, whose keys are small integers that nobody outside chooses.

use std::hash::Hasher;

/// Hashes a receiver index or a slot. A receiver index is random except for the low byte, which is the same in all indices of a
/// worker. The multiplication spreads the random bits, and the shift brings the best of them to where the table reads first.
#[derive(Default)]
pub(super) struct IndexHasher(u64);

impl Hasher for IndexHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u32(u32::from(byte) << 8 ^ self.0 as u32);
        }
    }
    fn write_u32(&mut self, index: u32) {
        let spread = u64::from(index).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = spread ^ (spread >> 32);
    }
}
