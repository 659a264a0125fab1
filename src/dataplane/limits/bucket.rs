//! A token bucket that several workers draw from without a lock.

use super::settings::RateSetting;
use crate::time::Instant;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Parts of a nanosecond in which time is kept here, so that a byte of a fast rate costs more than nothing. The clock's time in these
/// parts fits 64 bits for 36 years.
const PARTS: u64 = 16;
/// Those parts in a second.
const SECOND: u128 = 1_000_000_000 * PARTS as u128;

/// Packets that come together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PacketBatch {
    /// How many there are.
    pub count: usize,
    /// The bytes of each but the last, which may be shorter.
    pub each: usize,
    /// The bytes of all.
    pub total: usize,
}

impl PacketBatch {
    /// The bytes of the first `count` packets.
    pub fn bytes(&self, count: usize) -> usize {
        if count == self.count { self.total } else { count * self.each }
    }
}

/// A token bucket: the time at which it is full again, which draws move on. Relaxed orderings do, as nothing else depends on it.
#[derive(Debug, Default)]
pub(super) struct RateLimit {
    /// In bits a second; 0 is no limit.
    rate: AtomicU64,
    /// In bytes.
    burst: AtomicU64,
    /// In [`PARTS`] of a nanosecond of the clock.
    full_at: AtomicU64,
}

/// A token bucket as plain data.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct BucketRecord {
    rate: u64,
    burst: u64,
    /// When it is full, in [`PARTS`] of a nanosecond from the moment of the record on.
    ahead: i64,
}

impl RateLimit {
    /// Sets the rate. What was drawn before stays drawn.
    pub(super) fn set(&self, setting: Option<RateSetting>) {
        self.burst.store(setting.map_or(0, |setting| setting.burst), Relaxed);
        self.rate.store(setting.map_or(0, |setting| setting.bits_per_second), Relaxed);
    }

    pub(super) fn setting(&self) -> Option<RateSetting> {
        let (bits_per_second, burst) = (self.rate.load(Relaxed), self.burst.load(Relaxed));
        (bits_per_second != 0).then_some(RateSetting { bits_per_second, burst })
    }

    /// The bucket as plain data, at `now`.
    pub(super) fn record(&self, now: Instant) -> BucketRecord {
        let ahead = i128::from(self.full_at.load(Relaxed)) - i128::from(now.as_nanos()) * i128::from(PARTS);
        BucketRecord {
            rate: self.rate.load(Relaxed),
            burst: self.burst.load(Relaxed),
            ahead: i64::try_from(ahead).unwrap_or(if ahead < 0 { i64::MIN } else { i64::MAX }),
        }
    }

    /// Takes over a bucket of which a record was made at `then`.
    pub(super) fn restore(&self, record: &BucketRecord, then: Instant) {
        let now = then.as_nanos().saturating_mul(PARTS);
        self.rate.store(record.rate, Relaxed);
        self.burst.store(record.burst, Relaxed);
        self.full_at.store(now.saturating_add_signed(record.ahead), Relaxed);
    }

    /// How many packets of the batch, from its first, may pass now.
    pub(super) fn draw(&self, now: Instant, batch: PacketBatch) -> usize {
        let rate = self.rate.load(Relaxed);
        if rate == 0 {
            return batch.count;
        }
        let now = now.as_nanos().saturating_mul(PARTS);
        let each = cost(batch.each as u64, rate);
        // A packet that is larger than the burst passes where nothing else does.
        let size = cost(self.burst.load(Relaxed), rate).max(each);
        let mut full_at = self.full_at.load(Relaxed);
        loop {
            let begin = full_at.max(now);
            // A rate that was lower before may have left more to wait for than this bucket holds.
            let room = size.saturating_sub(begin - now);
            let count = match cost(batch.total as u64, rate) <= room {
                true => batch.count,
                false => (room.checked_div(each).unwrap_or(0) as usize).min(batch.count.saturating_sub(1)),
            };
            if count == 0 {
                return 0;
            }
            let next = begin.saturating_add(cost(batch.bytes(count) as u64, rate));
            match self.full_at.compare_exchange_weak(full_at, next, Relaxed, Relaxed) {
                Ok(_) => return count,
                Err(other) => full_at = other,
            }
        }
    }

    /// Gives back what was drawn for bytes that were nobody's.
    pub(super) fn refund(&self, bytes: u64) {
        let rate = self.rate.load(Relaxed);
        if rate != 0 {
            let refund = cost(bytes, rate);
            let _ =
                self.full_at.fetch_update(Relaxed, Relaxed, |full_at| Some(full_at.saturating_sub(refund)));
        }
    }
}

/// The time in which so many bytes pass, in [`PARTS`] of a nanosecond.
fn cost(bytes: u64, rate: u64) -> u64 {
    let cost = u128::from(bytes) * 8 * SECOND / u128::from(rate);
    u64::try_from(cost).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn limit(bits_per_second: u64, burst: u64) -> RateLimit {
        let limit = RateLimit::default();
        limit.set(Some(RateSetting { bits_per_second, burst }));
        limit
    }

    fn batch(count: usize, each: usize) -> PacketBatch {
        PacketBatch { count, each, total: count * each }
    }

    #[test]
    fn without_a_rate_all_passes() {
        let limit = RateLimit::default();
        assert_eq!(limit.draw(Instant::START, batch(64, 1420)), 64);
        assert_eq!(limit.setting(), None);
    }

    #[test]
    fn of_a_batch_the_first_pass_that_there_is_room_for() {
        let limit = limit(8000, 3000); // 1000 bytes a second
        assert_eq!(limit.draw(Instant::START, batch(5, 1000)), 3);
        assert_eq!(limit.draw(Instant::START, batch(5, 1000)), 0);
        let at = |millis| Instant::START + Duration::from_millis(millis);
        let last_is_short = PacketBatch { count: 2, each: 1000, total: 1400 };
        assert_eq!(limit.draw(at(1200), last_is_short), 1);
        limit.refund(1000);
        assert_eq!(limit.draw(at(1450), last_is_short), 2);
    }

    #[test]
    fn a_packet_larger_than_the_burst_passes_after_a_pause() {
        let limit = limit(8000, 100);
        assert_eq!(limit.draw(Instant::START, batch(1, 1000)), 1);
        assert_eq!(limit.draw(Instant::START + Duration::from_millis(900), batch(1, 1000)), 0);
        assert_eq!(limit.draw(Instant::START + Duration::from_secs(1), batch(1, 1000)), 1);
    }

    #[test]
    fn a_rate_that_rises_leaves_nothing_to_wait_for() {
        let limit = limit(8, 1000);
        assert_eq!(limit.draw(Instant::START, batch(1, 1000)), 1);
        limit.set(Some(RateSetting { bits_per_second: 8_000_000, burst: 1000 }));
        assert_eq!(limit.draw(Instant::START, batch(1, 1000)), 0);
        limit.set(None);
        assert_eq!(limit.draw(Instant::START, batch(1, 1000)), 1);
    }

    /// Several workers that draw as fast as they can, at a time that stands still, have a burst among them.
    #[test]
    fn workers_draw_from_one_bucket() {
        let limit = limit(1_000_000_000, 1_000_000);
        let draw = || (0..10_000).map(|_| limit.draw(Instant::START, batch(3, 10))).sum::<usize>();
        let all: usize = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4).map(|_| scope.spawn(draw)).collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        assert_eq!(all, 100_000);
    }

    proptest! {
        /// Whoever always has more to send gets the rate over any second, and the burst once.
        #[test]
        fn a_second_is_worth_the_rate(
            megabits in 1_u64..1000, size in 40_usize..1420, count in 1_usize..65, gaps in prop::collection::vec(1_u64..2000, 200)
        ) {
            let rate = megabits * 1_000_000;
            let setting = RateSetting::of(rate);
            let limit = limit(rate, setting.burst);
            let (mut now, mut passed) = (Instant::START, 0u64);
            let mut gaps = gaps.iter().cycle();
            let end = Instant::START + Duration::from_secs(3);
            let mut from_second = None;
            while now < end {
                // As much as the rate lets pass in two milliseconds, and more.
                for _ in 0..1 + rate / 8 / 500 / (size * count) as u64 {
                    passed += (limit.draw(now, batch(count, size)) * size) as u64;
                }
                if from_second.is_none() && now.since(Instant::START) >= Duration::from_secs(1) {
                    from_second = Some((now, passed));
                }
                now = now + Duration::from_micros(*gaps.next().unwrap());
            }
            let (since, before) = from_second.unwrap();
            let expected = rate as f64 / 8.0 * now.since(since).as_secs_f64();
            let share = (passed - before) as f64 / expected;
            prop_assert!((0.98..1.02).contains(&share), "{share}");
        }
    }
}
