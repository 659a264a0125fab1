//! Randomness, which the protocol's code takes as an argument.

use ring::rand::{SecureRandom, SystemRandom};

/// A source of random bytes: the operating system's, or under simulation a seeded one.
pub trait Entropy {
    /// Fills `out` with random bytes.
    fn fill(&mut self, out: &mut [u8]);

    /// A uniform 32-bit number.
    fn next_u32(&mut self) -> u32 {
        let mut bytes = [0; 4];
        self.fill(&mut bytes);
        u32::from_le_bytes(bytes)
    }
}

/// The operating system's generator.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    /// Fills `out`.
    ///
    /// # Panics
    ///
    /// Where the system has no randomness to give, as no key can be made without it.
    fn fill(&mut self, out: &mut [u8]) {
        assert!(SystemRandom::new().fill(out).is_ok(), "the system's random number generator failed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_draws_differ() {
        let (mut first, mut second) = ([0; 32], [0; 32]);
        SystemEntropy.fill(&mut first);
        SystemEntropy.fill(&mut second);
        assert_ne!(first, [0; 32]);
        assert_ne!(first, second);
    }
}
