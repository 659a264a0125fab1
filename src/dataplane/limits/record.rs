//! A peer's limits as plain data, for another process in which they go on.

use super::{PeerLimits, Quota};
use crate::dataplane::limits::bucket::BucketRecord;
use crate::time::{Instant, Offset};
use serde::{Deserialize, Serialize};
use std::sync::atomic::Ordering::Relaxed;

/// The limits of a peer, and how far they are used.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LimitsRecord {
    inbound: BucketRecord,
    outbound: BucketRecord,
    quota: QuotaRecord,
    limited: (u64, u64),
}

/// A quota, and how far it is used.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct QuotaRecord {
    bytes: u64,
    period_seconds: u64,
    used: u64,
    ends: Offset,
    ends_wall_seconds: u64,
    then: BucketRecord,
}

impl PeerLimits {
    /// The limits as plain data, at `now`.
    pub fn record(&self, now: Instant) -> LimitsRecord {
        let Quota { bytes, period, used, ends, ends_wall, then } = &self.quota;
        let quota = QuotaRecord {
            bytes: bytes.load(Relaxed),
            period_seconds: period.load(Relaxed),
            used: used.load(Relaxed),
            ends: Offset::of(Instant::from_nanos(ends.load(Relaxed)), now),
            ends_wall_seconds: ends_wall.load(Relaxed),
            then: then.record(now),
        };
        let (inbound, outbound) = (self.inbound.record(now), self.outbound.record(now));
        LimitsRecord { inbound, outbound, quota, limited: self.limited() }
    }

    /// The limits of which a record was made at `then`.
    pub fn restore(record: &LimitsRecord, then: Instant) -> PeerLimits {
        let limits = PeerLimits::default();
        limits.inbound.restore(&record.inbound, then);
        limits.outbound.restore(&record.outbound, then);
        limits.limited_in.store(record.limited.0, Relaxed);
        limits.limited_out.store(record.limited.1, Relaxed);
        let quota = &record.quota;
        limits.quota.bytes.store(quota.bytes, Relaxed);
        limits.quota.period.store(quota.period_seconds, Relaxed);
        limits.quota.used.store(quota.used, Relaxed);
        limits.quota.ends.store(quota.ends.from(then).as_nanos(), Relaxed);
        limits.quota.ends_wall.store(quota.ends_wall_seconds, Relaxed);
        limits.quota.then.restore(&quota.then, then);
        limits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::limits::{LimitSettings, LimitedWay, PacketBatch, QuotaSetting, RateSetting};
    use std::time::Duration;

    #[test]
    fn limits_are_used_elsewhere_as_far_as_they_were() {
        let rate = Some(RateSetting { bits_per_second: 8_000, burst: 3_000 }); // 1000 bytes a second
        let quota = QuotaSetting { bytes: 5_000, period: Duration::from_secs(60), then: Some(8) };
        let settings = LimitSettings { inbound: rate, outbound: None, quota: Some(quota) };
        let (at, wall) =
            (|seconds| Instant::START + Duration::from_secs(seconds), Duration::from_secs(6_000));
        let limits = PeerLimits::default();
        limits.set(&settings, at(100), wall);
        let batch = PacketBatch { count: 4, each: 1_000, total: 4_000 };
        assert_eq!(limits.admit(LimitedWay::In, at(100), batch).count, 3);
        let elsewhere = PeerLimits::restore(&limits.record(at(101)), at(1_001));
        assert_eq!((elsewhere.settings(), elsewhere.quota_use()), (settings, limits.quota_use()));
        assert_eq!((elsewhere.limited(), elsewhere.record(at(1_001))), ((1, 0), limits.record(at(101))));
        for (limits, clock) in [(limits, 0), (elsewhere, 900)] {
            assert_eq!(limits.admit(LimitedWay::In, at(clock + 101), batch).count, 1, "a second has passed");
            assert_eq!(limits.admit(LimitedWay::Out, at(clock + 102), batch).quota, Some(true));
            assert_eq!(
                limits.admit(LimitedWay::In, at(clock + 160), batch).quota,
                Some(false),
                "its time has come"
            );
        }
    }
}
