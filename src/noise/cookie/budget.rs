//! How many cookie replies a gate gives out. A flood of initiations from forged addresses would otherwise be answered one by one, and
//! the answers cost more than all else that is done about it.

use crate::crypto::hash::hash;
use crate::noise::limiter::{self, LimitedSource};
use crate::time::{Instant, TokenBucket};
use std::net::IpAddr;
use std::time::Duration;

/// Number of buckets for sources; 32 KiB a worker. Two sources may share one: then they share its rate.
const BUCKETS: usize = 1 << 12;
/// The time in which a source's bucket gains a reply: as many a second as the limiter allows handshakes.
const SOURCE_COST: Duration = limiter::COST;
/// A full bucket of a source, as time: a burst of 5.
const SOURCE_FULL: Duration = limiter::REFILL;
/// The time in which the bucket of all sources gains a reply: 10,000 a second, some hundredths of a core.
const COMMON_COST: Duration = Duration::from_micros(100);
/// A full bucket of all sources, as time: a burst of 1,000.
const COMMON_FULL: Duration = Duration::from_millis(100);

/// The cookie replies of one gate: each source, an IPv4 address or an IPv6 /64, has a bucket of its own, so that a flood from
/// elsewhere does not take what is its. What exceeds that is drawn from one bucket for all, so that a flood under a
/// source's own address does not shut it out as long as the common rate lasts. Both are bounded, and so is their sum.
pub(super) struct ReplyBudget {
    /// Where a source's bucket lies cannot be foreseen, so nobody can aim at another's.
    key: [u64; 2],
    sources: Box<[TokenBucket]>,
    common: TokenBucket,
}

impl ReplyBudget {
    /// A full budget. Secret `root` and `number` say which sources share a bucket.
    pub(super) fn new(root: &[u8; 32], number: u8) -> ReplyBudget {
        let drawn = hash(&[root, b"replies", &[number]]);
        let word = |at: usize| drawn[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let sources = vec![TokenBucket::default(); BUCKETS].into_boxed_slice();
        ReplyBudget { key: [word(0), word(8) | 1], sources, common: TokenBucket::default() }
    }

    /// Whether one more reply may go to `source` now.
    pub(super) fn take(&mut self, source: IpAddr, now: Instant) -> bool {
        let network = match LimitedSource::of(source) {
            LimitedSource::V4(address) => u32::from_be_bytes(address).into(),
            LimitedSource::V6(network) => u64::from_be_bytes(network),
        };
        let drawn = (network ^ self.key[0]).wrapping_mul(self.key[1]);
        let bucket = (drawn >> (u64::BITS - BUCKETS.ilog2())) as usize;
        let own =
            self.sources.get_mut(bucket).is_some_and(|bucket| bucket.draw(now, SOURCE_COST, SOURCE_FULL));
        own || self.common.draw(now, COMMON_COST, COMMON_FULL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn budget() -> ReplyBudget {
        ReplyBudget::new(&[7; 32], 0)
    }

    fn at(millis: u64) -> Instant {
        Instant::START + Duration::from_millis(millis)
    }

    /// How many of `count` are answered within a moment.
    fn answered(budget: &mut ReplyBudget, source: &str, count: usize, now: Instant) -> usize {
        let source = source.parse().unwrap();
        (0..count).filter(|_| budget.take(source, now)).count()
    }

    #[test]
    fn a_flood_from_elsewhere_takes_no_reply_from_a_source() {
        let mut budget = budget();
        assert_eq!(
            answered(&mut budget, "192.0.2.1", 10_000, at(1)),
            1_005,
            "its own, and all of the common"
        );
        assert_eq!(answered(&mut budget, "192.0.2.2", 10, at(1)), 5);
        assert_eq!(answered(&mut budget, "192.0.2.2", 10, at(251)), 10, "the common bucket is full again");
        assert_eq!(answered(&mut budget, "2001:db8:1::1", 6, at(251)), 6);
    }

    #[test]
    fn hosts_of_one_ipv6_network_share_a_bucket() {
        let mut budget = budget();
        answered(&mut budget, "192.0.2.1", 10_000, at(1));
        let of = |host: u128| IpAddr::V6((0x2001_0db8_0001_0002_u128 << 64 | host).into());
        assert_eq!((0..100).filter(|host| budget.take(of(*host), at(1))).count(), 5);
        assert_eq!(answered(&mut budget, "2001:db8:1:3::1", 9, at(1)), 5);
    }

    proptest! {
        #[test]
        fn replies_are_bounded_whatever_the_sources(
            sources in prop::collection::vec(any::<u32>(), 1..50), gaps in prop::collection::vec(0u64..3, 1..4000),
        ) {
            let (mut budget, mut now, mut given) = (budget(), 1, 0);
            for (i, gap) in gaps.into_iter().enumerate() {
                now += gap;
                given += u64::from(budget.take(IpAddr::V4(sources[i % sources.len()].into()), at(now)));
            }
            let bound = 1_000 + 10 * now + sources.len() as u64 * (5 + now / 50 + 1);
            prop_assert!(given <= bound, "{} in {} ms", given, now);
        }

        /// Nothing is refused to a source that keeps to its own rate.
        #[test]
        fn a_source_that_keeps_its_rate_is_always_answered(others in prop::collection::vec(any::<u64>(), 1..400)) {
            let mut budget = budget();
            let source = "198.51.100.7".parse().unwrap();
            let slot = |budget: &ReplyBudget, network: u64| {
                (network ^ budget.key[0]).wrapping_mul(budget.key[1]) >> (u64::BITS - BUCKETS.ilog2())
            };
            let mine = slot(&budget, 0xc633_6407);
            for (i, other) in others.iter().enumerate() {
                let now = at(50 * i as u64);
                for host in 0..30 {
                    if slot(&budget, *other) != mine {
                        budget.take(IpAddr::V6((u128::from(*other) << 64 | host).into()), now);
                    }
                }
                prop_assert!(budget.take(source, now));
            }
        }
    }
}
