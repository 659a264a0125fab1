//! The TAI64N timestamps of initiations (paper, section 5.4.2), rounded down as the kernel does.

use std::time::Duration;

/// TAI64's label of the Unix epoch: 2^62, and the ten seconds that TAI was ahead (kernel `tai64n_now`).
const UNIX_EPOCH_LABEL: u64 = (1 << 62) + 10;
/// The largest label: those from 2^63 on are reserved. A clock that is further off stays there.
const MAX_LABEL: u64 = (1 << 63) - 1;
/// What nanoseconds are rounded down to a multiple of: the largest power of two below the pause between two
/// initiations.
const GRAIN_NANOS: u32 = 1 << 24;
const NANOS_PER_SECOND: u32 = 1_000_000_000;

/// A timestamp: twelve bytes, big-endian, so that they compare in order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Tai64N(pub [u8; 12]);

impl Tai64N {
    fn new(label: u64, nanos: u32) -> Tai64N {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&label.to_be_bytes());
        bytes[8..].copy_from_slice(&nanos.to_be_bytes());
        Tai64N(bytes)
    }

    /// The timestamp one nanosecond later.
    fn successor(self) -> Tai64N {
        let [a, b, c, d, e, f, g, h, nanos @ ..] = self.0;
        let (label, nanos) = (u64::from_be_bytes([a, b, c, d, e, f, g, h]), u32::from_be_bytes(nanos));
        if nanos + 1 < NANOS_PER_SECOND { Tai64N::new(label, nanos + 1) } else { Tai64N::new(label + 1, 0) }
    }
}

/// Hands out timestamps that never repeat or fall back, whatever the wall clock does.
#[derive(Default, Debug)]
pub struct Tai64NClock {
    last: Tai64N,
}

impl Tai64NClock {
    /// A clock whose next timestamp is greater than `last`.
    pub fn after(last: Tai64N) -> Tai64NClock {
        Tai64NClock { last }
    }

    /// The timestamp that was handed out last.
    pub fn last(&self) -> Tai64N {
        self.last
    }

    /// The timestamp for `wall`, the time since the Unix epoch. It is rounded down to 2^24 ns as the kernel does, so
    /// that clients are not fingerprinted by it. Where it would not be greater than the last one, it is the one just
    /// above that.
    pub fn stamp(&mut self, wall: Duration) -> Tai64N {
        let label = UNIX_EPOCH_LABEL.saturating_add(wall.as_secs()).min(MAX_LABEL);
        let nanos = wall.subsec_nanos() / GRAIN_NANOS * GRAIN_NANOS;
        self.last = Tai64N::new(label, nanos).max(self.last.successor());
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::testing::hex_array;
    use proptest::prelude::*;

    #[test]
    fn a_stamp_is_the_label_and_whitened_nanoseconds() {
        let mut clock = Tai64NClock::default();
        assert_eq!(clock.stamp(Duration::new(0, 0)).0, hex_array::<12>("400000000000000a00000000"));
        assert_eq!(clock.stamp(Duration::new(1, 0x0123_4567)).0, hex_array::<12>("400000000000000b01000000"));
        assert_eq!(clock.stamp(Duration::new(1_000_000_000, 999_999_999)).0[8..], [0x3b, 0, 0, 0]);
    }

    #[test]
    fn a_clock_that_stands_or_jumps_back_still_gives_greater_stamps() {
        let mut clock = Tai64NClock::default();
        let first = clock.stamp(Duration::from_secs(1000));
        let standing = clock.stamp(Duration::from_secs(1000));
        let back = clock.stamp(Duration::from_secs(10));
        let forth = clock.stamp(Duration::from_secs(1001));
        assert!(first < standing && standing < back && back < forth);
        assert_eq!(forth, Tai64NClock::default().stamp(Duration::from_secs(1001)));
    }

    #[test]
    fn a_full_second_of_repeats_carries_into_the_label() {
        let last = Tai64N::new(UNIX_EPOCH_LABEL, NANOS_PER_SECOND - 1);
        let mut clock = Tai64NClock { last };
        assert_eq!(clock.stamp(Duration::ZERO), Tai64N::new(UNIX_EPOCH_LABEL + 1, 0));
    }

    proptest! {
        #[test]
        fn stamps_grow_strictly_whatever_the_clock_does(walls: Vec<(u64, u32)>) {
            let mut clock = Tai64NClock::default();
            let mut last = Tai64N::default();
            for (seconds, nanos) in walls {
                let next = clock.stamp(Duration::new(seconds, nanos % NANOS_PER_SECOND));
                prop_assert!(next > last);
                last = next;
            }
        }
    }
}
