//! Time as an argument: a monotonic instant that a real clock or a simulator supplies.

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

/// A token bucket, kept as the time at which it is full again. It is full at first.
#[derive(Clone, Copy, Default, Debug)]
pub struct TokenBucket(Instant);

impl TokenBucket {
    /// Whether there is a token that fills in `cost` in a bucket that fills in `size`.
    pub fn has(self, now: Instant, cost: Duration, size: Duration) -> bool {
        self.0.since(now) + cost <= size
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
