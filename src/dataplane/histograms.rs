//! How large a worker's turns are, and how long they take, counted by powers of two.

use crate::dataplane::stats::{WorkerStats, add};
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Buckets with an upper bound. Each holds twice as large values as the one before; one more has what is larger still.
const BOUNDED: usize = 16;
/// Upper bound of the first bucket of times, in nanoseconds.
const FIRST_NANOS: u64 = 1024;

/// How often a value of which size was seen. One thread adds, anyone reads.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDED + 1],
    sum: AtomicU64,
}

/// A [`Histogram`] as it was at one time.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct HistogramCounts {
    /// Upper bound of the first bucket, itself included. The bound of each other is twice that of the one before; the last has none.
    pub first: u64,
    /// How many values fell into each bucket.
    pub buckets: Vec<u64>,
    /// The sum of all values.
    pub sum: u64,
}

impl Histogram {
    /// Adds a value to the bucket that its multiple of the first bucket's bound belongs to.
    fn add(&self, value: u64, first: u64) {
        let multiple = value.div_ceil(first).max(1);
        let bucket = (u64::BITS - (multiple - 1).leading_zeros()) as usize;
        add(&self.buckets[bucket.min(BOUNDED)], 1);
        add(&self.sum, value as usize);
    }

    fn counts(&self, first: u64) -> HistogramCounts {
        let buckets = self.buckets.iter().map(|bucket| bucket.load(Relaxed)).collect();
        HistogramCounts { first, buckets, sum: self.sum.load(Relaxed) }
    }
}

/// The histograms of one worker's turns that moved packets.
#[derive(Debug, Default)]
pub struct Histograms {
    packets: Histogram,
    nanos: Histogram,
}

impl Histograms {
    /// Packets in a turn, both ways together.
    pub fn turn_packets(&self) -> HistogramCounts {
        self.packets.counts(1)
    }

    /// Time that a turn took, in nanoseconds, the worker's share of the kernel's work in it included.
    pub fn turn_nanos(&self) -> HistogramCounts {
        self.nanos.counts(FIRST_NANOS)
    }
}

/// What a worker remembers of its turns, to fill its histograms from counters that it has anyway.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// Packets moved up to the last turn.
    packets: u64,
    /// Time awake up to the last wait, in nanoseconds.
    awake: u64,
    /// Whether the last turn moved packets. How long it took is known after the next wait.
    moved: bool,
}

impl Turns {
    /// Notes the end of a turn. `awake` is the time awake up to the wait before it, in nanoseconds.
    pub(super) fn note(&mut self, stats: &WorkerStats, awake: u64, into: &Histograms) {
        if self.moved {
            into.nanos.add(awake.saturating_sub(self.awake), FIRST_NANOS);
        }
        let packets = stats.tx_packets.load(Relaxed).wrapping_add(stats.rx_packets.load(Relaxed));
        let moved = packets.wrapping_sub(self.packets);
        *self = Turns { packets, awake, moved: moved > 0 };
        if moved > 0 {
            into.packets.add(moved, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_falls_into_the_first_bucket_whose_bound_is_not_below_it() {
        let histogram = Histogram::default();
        for value in [0, 1, 2, 3, 4, 5, 1 << 15, (1 << 15) + 1, 1 << 40] {
            histogram.add(value, 1);
        }
        let counts = histogram.counts(1);
        assert_eq!(counts.buckets[..4], [2, 1, 2, 1]);
        assert_eq!(counts.buckets[15..], [1, 2]);
        assert_eq!(counts.buckets.iter().sum::<u64>(), 9);
        let times = Histogram::default();
        [1, 1024, 1025].iter().for_each(|&nanos| times.add(nanos, FIRST_NANOS));
        assert_eq!(times.counts(FIRST_NANOS).buckets[..2], [2, 1]);
    }

    #[test]
    fn only_turns_that_moved_packets_count_with_the_time_that_they_took() {
        let (stats, histograms, mut turns) =
            (WorkerStats::default(), Histograms::default(), Turns::default());
        // Each turn: packets moved in it, and the time awake up to the wait before it.
        for (packets, awake) in [(0, 10), (3, 20), (0, 5020), (0, 5030), (1, 5040)] {
            add(&stats.rx_packets, packets);
            turns.note(&stats, awake, &histograms);
        }
        let (packets, nanos) = (histograms.turn_packets(), histograms.turn_nanos());
        assert_eq!((packets.buckets.iter().sum::<u64>(), packets.sum), (2, 4));
        assert_eq!((nanos.buckets.iter().sum::<u64>(), nanos.sum), (1, 5000), "the last is not over");
    }
}
