//! Limits of a peer: a rate each way, and a quota. Workers draw from them once for each batch of packets, before they open or
//! seal it, and without a lock.

mod bucket;
mod record;
mod settings;

pub use bucket::PacketBatch;
pub use record::LimitsRecord;
pub use settings::{LimitSettings, QuotaSetting, RateSetting};

use crate::time::Instant;
use bucket::RateLimit;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Which way a packet goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LimitedWay {
    /// From the peer.
    In,
    /// To the peer.
    Out,
}

/// The limits of a peer that has some, or had some.
#[derive(Debug, Default)]
pub struct PeerLimits {
    inbound: RateLimit,
    outbound: RateLimit,
    quota: Quota,
    limited_in: AtomicU64,
    limited_out: AtomicU64,
}

/// What became of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Admission {
    /// How many of its packets, from the first, may pass.
    pub count: usize,
    /// What became of the quota: `Some(true)` where this batch used it up, `Some(false)` where its time had come to begin anew.
    pub quota: Option<bool>,
}

/// How far a quota is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct QuotaUse {
    /// Bytes that passed.
    pub used: u64,
    /// When it begins anew, in seconds since the Unix epoch.
    pub ends: u64,
}

impl PeerLimits {
    /// Sets the limits. A quota of the same period keeps what was used of it. `wall` is the time since the Unix epoch.
    pub fn set(&self, settings: &LimitSettings, now: Instant, wall: Duration) {
        self.inbound.set(settings.inbound);
        self.outbound.set(settings.outbound);
        self.quota.set(settings.quota, now, wall);
    }

    /// The limits that are set.
    pub fn settings(&self) -> LimitSettings {
        LimitSettings {
            inbound: self.inbound.setting(),
            outbound: self.outbound.setting(),
            quota: self.quota.setting(),
        }
    }

    /// How far the quota is used, where there is one.
    pub fn quota_use(&self) -> Option<QuotaUse> {
        self.quota.setting()?;
        Some(QuotaUse { used: self.quota.used.load(Relaxed), ends: self.quota.ends_wall.load(Relaxed) })
    }

    /// Goes on from how far another process had the quota used, if it is of the same time.
    pub fn recall(&self, before: QuotaUse) {
        if self.quota.ends_wall.load(Relaxed) == before.ends {
            self.quota.used.fetch_max(before.used, Relaxed);
        }
    }

    /// Packets from the peer, and packets to it, that did not pass.
    pub fn limited(&self) -> (u64, u64) {
        (self.limited_in.load(Relaxed), self.limited_out.load(Relaxed))
    }

    /// Draws for a batch.
    pub fn admit(&self, way: LimitedWay, now: Instant, batch: PacketBatch) -> Admission {
        let renewed = self.quota.renew(now);
        let (rate, limited) = match way {
            LimitedWay::In => (&self.inbound, &self.limited_in),
            LimitedWay::Out => (&self.outbound, &self.limited_out),
        };
        let count = match self.quota.is_used_up() {
            false => rate.draw(now, batch),
            true if self.quota.then.setting().is_none() => 0,
            true => self.quota.then.draw(now, batch),
        };
        limited.fetch_add((batch.count - count) as u64, Relaxed);
        let used_up = self.quota.take(batch.bytes(count) as u64);
        Admission { count, quota: if used_up { Some(true) } else { renewed.then_some(false) } }
    }

    /// Gives back what was drawn for bytes from the peer that turned out not to be its own.
    #[cold]
    pub fn refund(&self, bytes: usize) {
        self.inbound.refund(bytes as u64);
        self.quota.give_back(bytes as u64);
    }
}

/// A quota, whose end is kept on both clocks: workers have the monotonic one, people the other.
#[derive(Debug, Default)]
struct Quota {
    /// In bytes; 0 is no quota.
    bytes: AtomicU64,
    /// In seconds.
    period: AtomicU64,
    used: AtomicU64,
    /// In nanoseconds of the monotonic clock.
    ends: AtomicU64,
    /// In seconds since the Unix epoch.
    ends_wall: AtomicU64,
    /// What is left once it is used up.
    then: RateLimit,
}

impl Quota {
    fn set(&self, setting: Option<QuotaSetting>, now: Instant, wall: Duration) {
        let Some(QuotaSetting { bytes, period, then }) = setting else {
            return self.bytes.store(0, Relaxed);
        };
        let seconds = period.as_secs().max(1);
        if self.bytes.load(Relaxed) == 0 || self.period.swap(seconds, Relaxed) != seconds {
            let ends = (wall.as_secs() / seconds + 1).saturating_mul(seconds);
            self.used.store(0, Relaxed);
            self.period.store(seconds, Relaxed);
            self.ends_wall.store(ends, Relaxed);
            self.ends.store((now + Duration::from_secs(ends).saturating_sub(wall)).as_nanos(), Relaxed);
        }
        self.then.set(then.map(RateSetting::of));
        self.bytes.store(bytes, Relaxed);
    }

    fn setting(&self) -> Option<QuotaSetting> {
        let (bytes, period) = (self.bytes.load(Relaxed), Duration::from_secs(self.period.load(Relaxed)));
        let then = self.then.setting().map(|rate| rate.bits_per_second);
        (bytes != 0).then_some(QuotaSetting { bytes, period, then })
    }

    fn is_used_up(&self) -> bool {
        let bytes = self.bytes.load(Relaxed);
        bytes != 0 && self.used.load(Relaxed) >= bytes
    }

    /// Counts bytes. Returns whether they used the quota up.
    fn take(&self, count: u64) -> bool {
        let bytes = self.bytes.load(Relaxed);
        if bytes == 0 || count == 0 {
            return false;
        }
        let before = self.used.fetch_add(count, Relaxed);
        before < bytes && before.saturating_add(count) >= bytes
    }

    fn give_back(&self, count: u64) {
        if self.bytes.load(Relaxed) != 0 {
            let _ = self.used.fetch_update(Relaxed, Relaxed, |used| Some(used.saturating_sub(count)));
        }
    }

    /// Begins the quota anew where its time has come. Returns whether this call did.
    fn renew(&self, now: Instant) -> bool {
        let ends = self.ends.load(Relaxed);
        if self.bytes.load(Relaxed) == 0 || now.as_nanos() < ends {
            return false;
        }
        let period = self.period.load(Relaxed).max(1);
        let missed = (now.as_nanos() - ends) / 1_000_000_000 / period + 1;
        let later = Duration::from_secs(missed.saturating_mul(period));
        let next = (Instant::from_nanos(ends) + later).as_nanos();
        if self.ends.compare_exchange(ends, next, Relaxed, Relaxed).is_err() {
            return false;
        }
        self.ends_wall.fetch_add(later.as_secs(), Relaxed);
        self.used.swap(0, Relaxed) > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WALL: Duration = Duration::from_secs(86_400 * 20_000 + 3600);

    fn limited(quota: Option<QuotaSetting>) -> PeerLimits {
        let limits = PeerLimits::default();
        limits.set(&LimitSettings { quota, ..LimitSettings::default() }, Instant::START, WALL);
        limits
    }

    fn day(bytes: u64, then: Option<u64>) -> Option<QuotaSetting> {
        Some(QuotaSetting { bytes, period: Duration::from_secs(86_400), then })
    }

    fn batch(count: usize) -> PacketBatch {
        PacketBatch { count, each: 1000, total: 1000 * count }
    }

    #[test]
    fn a_quota_blocks_until_its_time_is_over() {
        let limits = limited(day(3500, None));
        let admit = |now| limits.admit(LimitedWay::In, now, batch(2));
        assert_eq!(admit(Instant::START), Admission { count: 2, quota: None });
        assert_eq!(admit(Instant::START), Admission { count: 2, quota: Some(true) });
        assert_eq!(admit(Instant::START), Admission { count: 0, quota: None });
        assert_eq!((limits.limited(), limits.quota_use().unwrap().used), ((2, 0), 4000));
        assert_eq!(limits.quota_use().unwrap().ends, 86_400 * 20_001, "midnight");
        let midnight = Instant::START + Duration::from_secs(86_400 - 3600);
        assert_eq!(admit(midnight), Admission { count: 2, quota: Some(false) });
        assert_eq!(limits.quota_use(), Some(QuotaUse { used: 2000, ends: 86_400 * 20_002 }));
        let later = midnight + Duration::from_secs(86_400 * 5 + 7);
        admit(later);
        assert_eq!(limits.quota_use(), Some(QuotaUse { used: 2000, ends: 86_400 * 20_007 }));
    }

    #[test]
    fn a_quota_goes_on_in_the_same_period_alone() {
        let limits = limited(day(5000, None));
        let ends = limits.quota_use().unwrap().ends;
        limits.recall(QuotaUse { used: 4000, ends: ends - 86_400 });
        assert_eq!(limits.quota_use().unwrap().used, 0);
        limits.recall(QuotaUse { used: 4000, ends });
        limits.recall(QuotaUse { used: 3000, ends });
        assert_eq!(limits.quota_use().unwrap().used, 4000);
    }

    #[test]
    fn what_is_left_of_a_used_quota_is_a_rate_for_both_ways() {
        let limits = limited(day(1000, Some(80_000)));
        let admit = |way, now| limits.admit(way, now, batch(50)).count;
        assert_eq!(admit(LimitedWay::Out, Instant::START), 50);
        let burst = RateSetting::of(80_000).burst / 1000;
        assert_eq!(admit(LimitedWay::Out, Instant::START) as u64, burst.min(50));
        assert_eq!(admit(LimitedWay::In, Instant::START), 0);
        assert_eq!(admit(LimitedWay::In, Instant::START + Duration::from_millis(1000)), 10);
    }

    #[test]
    fn a_change_keeps_what_was_used_unless_the_period_is_another() {
        let limits = limited(day(5000, None));
        limits.admit(LimitedWay::In, Instant::START, batch(2));
        let set =
            |quota| limits.set(&LimitSettings { quota, ..LimitSettings::default() }, Instant::START, WALL);
        set(day(9000, None));
        assert_eq!(limits.quota_use().unwrap().used, 2000);
        limits.refund(1500);
        assert_eq!(limits.quota_use().unwrap().used, 500);
        set(Some(QuotaSetting { bytes: 9000, period: Duration::from_secs(60), then: None }));
        assert_eq!(limits.quota_use().unwrap().used, 0);
        set(None);
        assert_eq!((limits.quota_use(), limits.settings()), (None, LimitSettings::default()));
        assert_eq!(limits.admit(LimitedWay::In, Instant::START, batch(9)).count, 9);
    }
}
