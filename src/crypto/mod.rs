//! Primitives: the AEAD over trains, X25519, BLAKE2s, randomness. The room imports no other.

pub mod aead;
pub mod hash;
mod hchacha;
#[cfg(target_arch = "x86_64")]
pub mod lanes;
pub mod random;
pub mod secret;
mod segment;
pub mod stack;
mod wiped;
pub mod x25519;

/// What the tests of this room and of the room `noise` share.
#[cfg(test)]
pub(crate) mod testing {
    use crate::crypto::random::Entropy;

    /// The bytes that `digits` (an even number of hexadecimal digits) spells.
    pub(crate) fn hex(digits: &str) -> Vec<u8> {
        assert!(digits.len().is_multiple_of(2));
        (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
    }

    /// As [`hex`], of a fixed length.
    pub(crate) fn hex_array<const N: usize>(digits: &str) -> [u8; N] {
        hex(digits).try_into().unwrap()
    }

    /// A reproducible stream of bytes (SplitMix64).
    pub(crate) struct Seeded(pub(crate) u64);

    impl Entropy for Seeded {
        fn fill(&mut self, out: &mut [u8]) {
            for chunk in out.chunks_mut(8) {
                self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut word = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                chunk.copy_from_slice(&(word ^ (word >> 31)).to_le_bytes()[..chunk.len()]);
            }
        }
    }
}
