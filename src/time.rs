//! Time as an argument: a monotonic instant that a real clock or a simulator supplies.

use serde::{Deserialize, Serialize};
use std::ops::{Add, Sub};
use std::time::Duration;

/// Nanoseconds on a monotonic clock whose epoch is arbitrary but the same for the whole process.
///
/// The first instant any clock hands out is at least [`Instant::START`], so that 0 can mean "never" in atomics.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Instant(u64);

impl Instant {
    /// One nanosecond: the earliest instant.
    pub const START: Instant = Instant(1);

    /// The instant `nanos` nanoseconds after the clock's epoch.
    pub const fn from_nanos(nanos: u64) -> Instant {
        Instant(nanos)
    }

    /// Nanoseconds since the clock's epoch.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// How long ago `earlier` was; zero if it lies ahead.
    pub fn since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// A time as it is handed from one process to another: how far it is from the moment of the hand-over.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Offset {
    /// Nanoseconds after that moment; what lies before it is negative.
    nanos: i64,
}

impl Offset {
    /// How far `instant` is from `moment`.
    pub fn of(instant: Instant, moment: Instant) -> Offset {
        let nanos = i128::from(instant.0) - i128::from(moment.0);
        Offset { nanos: i64::try_from(nanos).unwrap_or(if nanos < 0 { i64::MIN } else { i64::MAX }) }
    }

    /// The instant so far from `moment`, or the nearest that a clock has.
    pub fn from(self, moment: Instant) -> Instant {
        Instant(moment.0.saturating_add_signed(self.nanos))
    }
}

/// A token bucket, kept as the time at which it is full again. It is full at first.
#[derive(Clone, Copy, Default, Debug)]
pub struct TokenBucket(Instant);

impl TokenBucket {
    /// Whether there is a token that fills in `cost` in a bucket that fills in `size`.
    pub fn has(self, now: Instant, cost: Duration, size: Duration) -> bool {
        self.0.since(now) + cost <= size
    }

    /// Whether nothing is missing.
    pub fn is_full(self, now: Instant) -> bool {
        self.0 <= now
    }

    /// Takes such a token. False where there is none.
    pub fn draw(&mut self, now: Instant, cost: Duration, size: Duration) -> bool {
        let enough = self.has(now, cost, size);
        if enough {
            self.0 = self.0.max(now) + cost;
        }
        enough
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;
    fn add(self, by: Duration) -> Instant {
        Instant(self.0.saturating_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for Instant {
    type Output = Instant;
    fn sub(self, by: Duration) -> Instant {
        Instant(self.0.saturating_sub(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_time_is_as_far_from_the_hand_over_on_the_other_side(at in 1..u64::MAX / 4, moment in 1..u64::MAX / 4) {
            let (at, moment) = (Instant(at), Instant(moment));
            prop_assert_eq!(Offset::of(at, moment).from(moment), at);
            let later = Duration::from_secs(7);
            prop_assert_eq!(Offset::of(at, moment).from(moment + later), at + later);
        }
    }

    #[test]
    fn a_time_that_no_clock_has_is_the_nearest_that_it_has() {
        let most = Instant(u64::MAX);
        assert_eq!(Offset::of(most, Instant::START).from(Instant::START), Instant(i64::MAX as u64 + 1));
        assert_eq!(Offset::of(Instant::START, most).from(Instant::START), Instant(0));
    }
}
