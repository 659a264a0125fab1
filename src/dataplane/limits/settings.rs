//! What a peer is limited to, as values, and as one line of the configuration socket.

use std::fmt::{self, Display, Formatter};
use std::str::FromStr;
use std::time::Duration;

/// The least burst that is given where none is asked for, in bytes: a dozen packets.
const LEAST_BURST: u64 = 16 * 1024;
/// The burst that is enough for a TCP connection at any rate up to 2 Gbit/s, in bytes.
const GOOD_BURST: u64 = 2_500_000;

/// What a peer is limited to. The default is nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LimitSettings {
    /// The rate of what is received from the peer.
    pub inbound: Option<RateSetting>,
    /// The rate of what is sent to the peer.
    pub outbound: Option<RateSetting>,
    /// The bytes that may pass in a while, both ways together.
    pub quota: Option<QuotaSetting>,
}

/// A rate. It is of packets in the tunnel, their IP headers included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RateSetting {
    /// Bits a second, at least 1.
    pub bits_per_second: u64,
    /// Bytes that may pass at once after a pause, at least 1.
    pub burst: u64,
}

/// A quota.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QuotaSetting {
    /// Bytes, at least 1.
    pub bytes: u64,
    /// The time after which it begins anew, in whole seconds, at least one. It begins at multiples of that since the Unix epoch.
    pub period: Duration,
    /// The rate in bits a second that is left once the quota is used up, both ways together. `None` is nothing.
    pub then: Option<u64>,
}

impl LimitSettings {
    /// Whether nothing is limited.
    pub fn is_none(&self) -> bool {
        *self == LimitSettings::default()
    }
}

impl RateSetting {
    /// A rate with the burst that suits it. A TCP connection whose packets were dropped may wait for 200 ms until it goes on, and
    /// reaches the rate only if it may make up for that: so it is what passes in 250 ms, unless that is more than enough.
    pub fn of(bits_per_second: u64) -> RateSetting {
        let passes_in = |part: u64| bits_per_second / 8 / part;
        let burst = passes_in(4).min(GOOD_BURST).max(passes_in(100)).max(LEAST_BURST);
        RateSetting { bits_per_second, burst }
    }
}

/// The form of the configuration socket: `none`, or words such as `in 1000000 16384 out 8000000 50000 quota 1000 3600 0`.
impl Display for LimitSettings {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut words: Vec<String> = Vec::new();
        for (way, rate) in [("in", self.inbound), ("out", self.outbound)] {
            words.extend(rate.map(|rate| format!("{way} {} {}", rate.bits_per_second, rate.burst)));
        }
        words.extend(self.quota.map(|quota| {
            format!("quota {} {} {}", quota.bytes, quota.period.as_secs(), quota.then.unwrap_or(0))
        }));
        f.write_str(if words.is_empty() { "none".to_owned() } else { words.join(" ") }.as_str())
    }
}

/// The text is no [`LimitSettings`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoLimits;

impl FromStr for LimitSettings {
    type Err = NoLimits;

    fn from_str(text: &str) -> Result<LimitSettings, NoLimits> {
        let mut limits = LimitSettings::default();
        if text == "none" {
            return Ok(limits);
        }
        let mut words = text.split(' ');
        while let Some(word) = words.next() {
            let mut number = || {
                let word = words.next().filter(|word| word.bytes().all(|byte| byte.is_ascii_digit()));
                word.and_then(|word| word.parse::<u64>().ok()).ok_or(NoLimits)
            };
            let positive = |number: u64| if number == 0 { Err(NoLimits) } else { Ok(number) };
            match word {
                "in" | "out" => {
                    let (rate, burst) = (positive(number()?)?, positive(number()?)?);
                    let place = if word == "in" { &mut limits.inbound } else { &mut limits.outbound };
                    *place = Some(RateSetting { bits_per_second: rate, burst });
                }
                "quota" => {
                    let (bytes, period) = (positive(number()?)?, Duration::from_secs(positive(number()?)?));
                    let then = Some(number()?).filter(|&rate| rate != 0);
                    limits.quota = Some(QuotaSetting { bytes, period, then });
                }
                _ => return Err(NoLimits),
            }
        }
        Ok(limits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rate() -> impl Strategy<Value = Option<RateSetting>> {
        prop::option::of(
            (1_u64.., 1_u64..).prop_map(|(bits_per_second, burst)| RateSetting { bits_per_second, burst }),
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(inbound in rate(), outbound in rate(), quota in prop::option::of((1_u64.., 1_u64.., prop::option::of(1_u64..)))) {
            let quota = quota.map(|(bytes, period, then)| QuotaSetting { bytes, period: Duration::from_secs(period), then });
            let limits = LimitSettings { inbound, outbound, quota };
            prop_assert_eq!(limits.to_string().parse(), Ok(limits));
        }

        #[test]
        fn garbage_is_refused_or_limits(text in "(in|out|quota|none| |[0-9]{1,21}|-|x){0,9}") {
            if let Ok(limits) = text.parse::<LimitSettings>() {
                prop_assert_eq!(limits.to_string().parse(), Ok(limits));
            }
        }
    }

    #[test]
    fn what_is_not_whole_is_refused() {
        for text in ["", "in", "in 1", "in 0 1", "in 1 0", "quota 1 0 0", "out 1 1 ", "in +1 1", "up 1 1"] {
            assert_eq!(text.parse::<LimitSettings>(), Err(NoLimits), "{text}");
        }
    }
}
