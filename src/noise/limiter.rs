//! The limiter of handshakes under load: a token bucket for each source, an IPv4 address or an IPv6 /64 (kernel
//! `ratelimiter.c`). It allows 20 a second and bursts of 5, and its table is bounded.
//!
//! There is no global bucket, by choice: one would let a flood from anywhere lock out everyone. When the table is
//! full, buckets that have filled up again are removed, as they allow no less than a fresh one. If all are in use,
//! only sources that have no bucket yet are refused. A source is limited only after it proved its address by MAC2, so
//! a full table takes [`MAX_SOURCES`] real sources within [`REFILL`].

use crate::time::{Instant, TokenBucket};
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

/// The time in which a bucket gains one handshake: 20 a second.
pub const COST: Duration = Duration::from_millis(50);
/// A full bucket, as time: a burst of 5, which is also the time in which an empty bucket fills.
pub const REFILL: Duration = Duration::from_millis(250);
/// Most sources watched at a time: 65,536 × 40 bytes, with the table's slack at most 6 MiB.
pub const MAX_SOURCES: usize = 1 << 16;

/// The table of buckets.
#[derive(Default, Debug)]
pub struct Limiter {
    buckets: HashMap<LimitedSource, TokenBucket>,
    swept: Instant,
}

/// What counts as one source.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum LimitedSource {
    /// The address.
    V4([u8; 4]),
    /// The first eight bytes of the address: the /64.
    V6([u8; 8]),
}

impl Limiter {
    /// Whether one more handshake from `source` may be worked on now.
    pub fn allow(&mut self, source: IpAddr, now: Instant) -> bool {
        let source = LimitedSource::of(source);
        if let Some(bucket) = self.buckets.get_mut(&source) {
            return bucket.draw(now, COST, REFILL);
        }
        self.sweep(now);
        if self.buckets.len() >= MAX_SOURCES {
            return false;
        }
        let mut bucket = TokenBucket::default();
        let allowed = bucket.draw(now, COST, REFILL);
        self.buckets.insert(source, bucket);
        allowed
    }

    /// Removes full buckets. It does so at most once in the time in which a bucket fills, so that a sweep is paid for
    /// by many sources.
    fn sweep(&mut self, now: Instant) {
        if now.since(self.swept) >= REFILL {
            self.buckets.retain(|_, bucket| !bucket.is_full(now));
            self.swept = now;
        }
    }
}

impl LimitedSource {
    /// The source that an address belongs to.
    pub(super) fn of(address: IpAddr) -> LimitedSource {
        match address.to_canonical() {
            IpAddr::V4(address) => LimitedSource::V4(address.octets()),
            IpAddr::V6(address) => {
                let [a, b, c, d, e, f, g, h, ..] = address.octets();
                LimitedSource::V6([a, b, c, d, e, f, g, h])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn v4(n: u32) -> IpAddr {
        Ipv4Addr::from_bits(n).into()
    }

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(1_000_000_000 + millis * 1_000_000)
    }

    /// How many of `tries` at once are allowed.
    fn burst(limiter: &mut Limiter, source: IpAddr, now: Instant, tries: usize) -> usize {
        (0..tries).filter(|_| limiter.allow(source, now)).count()
    }

    #[test]
    fn five_at_once_then_twenty_a_second() {
        let mut limiter = Limiter::default();
        assert_eq!(burst(&mut limiter, v4(1), at(0), 20), 5);
        assert_eq!(burst(&mut limiter, v4(1), at(49), 20), 0);
        assert_eq!(burst(&mut limiter, v4(1), at(50), 20), 1);
        assert_eq!(burst(&mut limiter, v4(1), at(150), 20), 2);
        assert_eq!(burst(&mut limiter, v4(1), at(10_000), 20), 5);
    }

    #[test]
    fn a_steady_flood_gets_twenty_a_second() {
        let mut limiter = Limiter::default();
        let allowed = (0..10_000).filter(|&millis| limiter.allow(v4(1), at(millis))).count();
        assert_eq!(allowed, 5 + 10 * 20 - 1);
    }

    #[test]
    fn one_source_does_not_spend_anothers_tokens() {
        let mut limiter = Limiter::default();
        assert_eq!(burst(&mut limiter, v4(1), at(0), 100), 5);
        assert_eq!(burst(&mut limiter, v4(2), at(0), 100), 5);
    }

    #[test]
    fn an_ipv6_source_is_its_64_and_a_mapped_one_is_ipv4() {
        let mut limiter = Limiter::default();
        let v6 = |text: &str| IpAddr::V6(text.parse::<Ipv6Addr>().unwrap());
        assert_eq!(burst(&mut limiter, v6("2001:db8:0:1::1"), at(0), 10), 5);
        assert!(!limiter.allow(v6("2001:db8:0:1:ffff::2"), at(0)));
        assert!(limiter.allow(v6("2001:db8:0:2::1"), at(0)));
        assert_eq!(burst(&mut limiter, v6("::ffff:192.0.2.1"), at(0), 10), 5);
        assert!(!limiter.allow("192.0.2.1".parse().unwrap(), at(0)));
    }

    #[test]
    fn a_full_table_refuses_only_new_sources_until_old_ones_fill() {
        let mut limiter = Limiter::default();
        assert!((0..MAX_SOURCES as u32).all(|n| limiter.allow(v4(n), at(0))));
        assert!(!limiter.allow(v4(u32::MAX), at(249)), "no room for a new source");
        assert!(limiter.allow(v4(7), at(249)), "a known one goes on");
        assert_eq!(limiter.buckets.len(), MAX_SOURCES);
        assert!(limiter.allow(v4(u32::MAX), at(250)));
        assert_eq!(limiter.buckets.len(), 2, "the new one, and the one that was busy");
    }

    proptest! {
        #[test]
        fn forgetting_a_bucket_never_changes_an_answer(gaps in prop::collection::vec((0u32..3, 0u64..400), 1..300)) {
            let mut together = Limiter::default();
            let mut alone = [Limiter::default(), Limiter::default(), Limiter::default()];
            let mut millis = 0;
            for (source, gap) in gaps {
                millis += gap;
                // The lone table of each source never sees a new source, so it never sweeps.
                let expected = alone[source as usize].allow(v4(source), at(millis));
                prop_assert_eq!(together.allow(v4(source), at(millis)), expected);
            }
        }
    }
}
