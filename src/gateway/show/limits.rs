//! The limits of a peer in the form for programs.

use crate::dataplane::limits::{QuotaSetting, QuotaUse, RateSetting};
use crate::gateway::config::{quota_text, rate_text};
use crate::gateway::control::LimitState;
use serde::Serialize;
use std::time::Duration;

/// What a peer is limited to, and what became of that.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct LimitsJson {
    /// The rate of what is received from the peer.
    #[serde(rename = "in", skip_serializing_if = "Option::is_none")]
    inbound: Option<RateJson>,
    /// The rate of what is sent to the peer.
    #[serde(rename = "out", skip_serializing_if = "Option::is_none")]
    outbound: Option<RateJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    quota: Option<QuotaJson>,
    /// Packets from the peer that were dropped.
    limited_in: u64,
    /// Packets to the peer that were dropped.
    limited_out: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct RateJson {
    bits_per_second: u64,
    burst_bytes: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct QuotaJson {
    bytes: u64,
    period_seconds: u64,
    /// The rate that is left once it is used up; 0 is nothing.
    then_bits_per_second: u64,
    used_bytes: u64,
    /// When it begins anew, in seconds since the Unix epoch; 0 where the tunnel is down.
    ends: u64,
}

impl LimitsJson {
    /// What the limits are and what became of them, in words.
    pub fn words(&self) -> Vec<(&'static str, String)> {
        let rate = |rate: &RateJson| {
            rate_text(&RateSetting { bits_per_second: rate.bits_per_second, burst: rate.burst_bytes })
        };
        let dropped =
            |count: u64| if count == 0 { String::new() } else { format!(", {count} packets dropped") };
        let mut words = Vec::new();
        words.extend(self.inbound.as_ref().map(|one| ("limit in", rate(one) + &dropped(self.limited_in))));
        words.extend(self.outbound.as_ref().map(|one| ("limit out", rate(one) + &dropped(self.limited_out))));
        words.extend(self.quota.as_ref().map(|quota| {
            let setting = QuotaSetting {
                bytes: quota.bytes,
                period: Duration::from_secs(quota.period_seconds),
                then: Some(quota.then_bits_per_second).filter(|&rate| rate != 0),
            };
            let used = quota.used_bytes as f64 * 100.0 / quota.bytes as f64;
            ("quota", format!("{}; {used:.0} % used", quota_text(&setting)))
        }));
        words
    }

    /// Describes the limits, where there are some.
    pub fn of(state: &LimitState) -> Option<LimitsJson> {
        let settings = state.settings;
        let rate =
            |rate: RateSetting| RateJson { bits_per_second: rate.bits_per_second, burst_bytes: rate.burst };
        let so_far = state.quota.unwrap_or(QuotaUse { used: 0, ends: 0 });
        let quota = settings.quota.map(|quota| QuotaJson {
            bytes: quota.bytes,
            period_seconds: quota.period.as_secs(),
            then_bits_per_second: quota.then.unwrap_or(0),
            used_bytes: so_far.used,
            ends: so_far.ends,
        });
        let (limited_in, limited_out) = state.limited;
        (!settings.is_none()).then(|| LimitsJson {
            inbound: settings.inbound.map(rate),
            outbound: settings.outbound.map(rate),
            quota,
            limited_in,
            limited_out,
        })
    }
}
