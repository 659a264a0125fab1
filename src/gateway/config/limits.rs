//! Limits of peers, in comments, so that wg-quick and wg skip them.
//!
//! ```text
//!   # LimitIn = 20 Mbit/s                      what is received from the peer
//!   # LimitOut = 100 Mbit/s burst 2 MB         what is sent to it
//!   # Quota = 100 GB per 30 days, then block   both ways together; or: then 1 Mbit/s
//! ```

use super::document::{LineKind, is_space};
use super::{Document, Warning};
use crate::crypto::x25519::PublicKey;
use crate::dataplane::limits::{LimitSettings, QuotaSetting, RateSetting};
use std::ops::Range;
use std::time::Duration;
use zeroize::Zeroizing;

/// The keys of limits.
pub const LIMIT_KEYS: [&str; 3] = ["LimitIn", "LimitOut", "Quota"];
const RATE_FORM: &str = "expected a rate such as 20 Mbit/s, or 20 Mbit/s burst 1 MB";
const QUOTA_FORM: &str = "expected a quota such as 100 GB per 30 days, then block (or then 1 Mbit/s)";
/// The longest period of a quota: a year and a day.
const LONGEST: u64 = 366 * 86_400;

/// What is wrong with a limit, with what was expected.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BadLimit(&'static str);

impl std::fmt::Display for BadLimit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for BadLimit {}

/// Sets what `key` stands for to what `text` says.
///
/// # Errors
///
/// Where the text is no rate or quota.
pub fn set_limit(limits: &mut LimitSettings, key: &str, text: &str) -> Result<(), BadLimit> {
    match key {
        "LimitIn" => limits.inbound = Some(rate(text).ok_or(BadLimit(RATE_FORM))?),
        "LimitOut" => limits.outbound = Some(rate(text).ok_or(BadLimit(RATE_FORM))?),
        _ => limits.quota = Some(quota(text).ok_or(BadLimit(QUOTA_FORM))?),
    }
    Ok(())
}

/// The limits as the file has them: each with its key.
pub(super) fn limit_lines(limits: &LimitSettings) -> Vec<(&'static str, String)> {
    let [inbound, outbound, quota] = LIMIT_KEYS;
    let rates = [(inbound, limits.inbound), (outbound, limits.outbound)];
    let mut lines: Vec<_> =
        rates.into_iter().filter_map(|(key, setting)| Some((key, rate_text(&setting?)))).collect();
    lines.extend(limits.quota.map(|setting| (quota, quota_text(&setting))));
    lines
}

/// A rate in words.
pub fn rate_text(rate: &RateSetting) -> String {
    let text = format!("{}bit/s", unit(rate.bits_per_second));
    match *rate == RateSetting::of(rate.bits_per_second) {
        true => text,
        false => format!("{text} burst {}B", unit(rate.burst)),
    }
}

/// A quota in words.
pub fn quota_text(quota: &QuotaSetting) -> String {
    let seconds = quota.period.as_secs();
    let period = match seconds {
        _ if seconds.is_multiple_of(86_400) => format!("{} days", seconds / 86_400),
        _ if seconds.is_multiple_of(3600) => format!("{} hours", seconds / 3600),
        _ => format!("{seconds} s"),
    };
    let then = quota.then.map_or_else(|| "block".to_owned(), |rate| format!("{}bit/s", unit(rate)));
    format!("{}B per {period}, then {then}", unit(quota.bytes))
}

/// The number with the largest decimal prefix that leaves it whole.
fn unit(number: u64) -> String {
    let units = [(1_000_000_000_000, "T"), (1_000_000_000, "G"), (1_000_000, "M"), (1000, "k")];
    match units.into_iter().find(|(size, _)| number.is_multiple_of(*size) && number > 0) {
        Some((size, prefix)) => format!("{} {prefix}", number / size),
        None => format!("{number} "),
    }
}

/// A text as words in lower case, numbers apart from their units.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    for part in text.split(|c: char| c.is_whitespace() || c == ',').filter(|part| !part.is_empty()) {
        let digits = part.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
        let (number, rest) = part.split_at(digits);
        words.extend([number, rest].into_iter().filter(|word| !word.is_empty()).map(str::to_lowercase));
    }
    words
}

/// Takes a number and its unit, which has one of these endings, from the front. The prefix may be binary where `binary` says so.
fn amount(words: &mut std::slice::Iter<'_, String>, endings: &[&str], binary: bool) -> Option<u64> {
    let number = words.next()?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let mut scale: u64 = 1;
    let unit = words.as_slice().first().filter(|word| scaling(word, endings, binary).is_some());
    if let Some(unit) = unit {
        scale = scaling(unit, endings, binary)?;
        words.next();
    }
    let digits = |text: &str| -> Option<u64> { if text.is_empty() { Some(0) } else { text.parse().ok() } };
    let part =
        digits(fraction)?.checked_mul(scale)? / 10_u64.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    whole.parse::<u64>().ok()?.checked_mul(scale)?.checked_add(part).filter(|&amount| amount > 0)
}

/// What a unit such as `mbit/s` or `gib` multiplies by.
fn scaling(unit: &str, endings: &[&str], binary: bool) -> Option<u64> {
    let prefix = endings.iter().find_map(|ending| unit.strip_suffix(ending)).unwrap_or(unit);
    let (prefix, base) = match prefix.strip_suffix('i') {
        Some(prefix) if binary && !prefix.is_empty() => (prefix, 1024_u64),
        _ => (prefix, 1000),
    };
    let power = match prefix {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        _ => return None,
    };
    Some(base.pow(power))
}

const RATE_ENDINGS: [&str; 6] = ["bit/s", "bits/s", "bps", "b/s", "bit", "bits"];
const SIZE_ENDINGS: [&str; 3] = ["bytes", "byte", "b"];

fn rate(text: &str) -> Option<RateSetting> {
    let words = words(text);
    let mut words = words.iter();
    let mut rate = RateSetting::of(amount(&mut words, &RATE_ENDINGS, false)?);
    if words.as_slice().first().is_some_and(|word| word == "burst") {
        words.next();
        rate.burst = amount(&mut words, &SIZE_ENDINGS, true)?;
    }
    words.next().is_none().then_some(rate)
}

fn quota(text: &str) -> Option<QuotaSetting> {
    let words = words(&text.replace('/', " / ").replace("bit / s", "bit/s"));
    let mut words = words.iter();
    let bytes = amount(&mut words, &SIZE_ENDINGS, true)?;
    words.next().filter(|word| matches!(word.as_str(), "per" | "/" | "a"))?;
    let mut number = 1;
    if let Some(first) = words.as_slice().first().and_then(|word| word.parse::<u64>().ok()) {
        number = first;
        words.next();
    }
    let unit = match words.next()?.as_str() {
        "s" | "second" | "seconds" => 1,
        "min" | "minute" | "minutes" => 60,
        "h" | "hour" | "hours" => 3600,
        "d" | "day" | "days" => 86_400,
        "w" | "week" | "weeks" => 7 * 86_400,
        _ => return None,
    };
    let seconds = number.checked_mul(unit).filter(|seconds| (1..=LONGEST).contains(seconds))?;
    let then = match words.next().map(String::as_str) {
        None => None,
        Some("then") if words.as_slice() == ["block"] => None,
        Some("then") => {
            let rate = amount(&mut words, &RATE_ENDINGS, false)?;
            words.next().is_none().then_some(())?;
            Some(rate)
        }
        Some(_) => return None,
    };
    Some(QuotaSetting { bytes, period: Duration::from_secs(seconds), then })
}

/// Key and value of a comment that holds a limit. What is a comment in a comment is out of use.
fn pair(line: &[u8]) -> Option<(&'static str, String)> {
    let start = line.iter().position(|&byte| !is_space(byte))?;
    let text = String::from_utf8_lossy(line.get(start..)?.strip_prefix(b"#")?);
    let (key, value) = text.split_once('=')?;
    let key = LIMIT_KEYS.into_iter().find(|known| key.trim().eq_ignore_ascii_case(known))?;
    Some((key, value.trim().to_owned()))
}

impl Document {
    /// The limits in the comments of a section, with warnings of what is none.
    pub(super) fn limits_in(&self, lines: Range<usize>) -> (LimitSettings, Vec<Warning>) {
        let (mut limits, mut warnings) = (LimitSettings::default(), Vec::new());
        for at in lines {
            let Some((key, value)) = self.lines.get(at).and_then(|line| pair(line)) else { continue };
            if let Err(bad) = set_limit(&mut limits, key, &value) {
                warnings.push(Warning::Broken { line: at + 1, message: format!("{key}: {bad}") });
            }
        }
        (limits, warnings)
    }

    /// Writes a peer's limits to its last section, below the header and the name. What stands there is replaced. Returns whether there is
    /// such a peer in use.
    pub fn limit_peer(&mut self, key: &PublicKey, limits: &LimitSettings) -> bool {
        let sections = self.sections_of(key);
        for section in sections.iter().rev() {
            let places: Vec<usize> = section
                .clone()
                .filter(|&at| self.lines.get(at).is_some_and(|line| pair(line).is_some()))
                .collect();
            places.iter().rev().for_each(|&at| drop(self.lines.remove(at)));
        }
        // Lines above have gone, so that the place is to be found anew.
        let Some(section) = self.sections_of(key).pop() else { return false };
        let rows = self.rows();
        let Some(header) = section.clone().find(|&at| rows[at].kind == LineKind::Peer) else { return false };
        let named = (header + 1..section.end).take_while(|&at| rows[at].name.is_some());
        let below = named.last().unwrap_or(header) + 1;
        let newline = self.newline();
        if let Some(line) = self.lines.get_mut(below - 1)
            && !line.ends_with(b"\n")
        {
            line.extend_from_slice(newline);
        }
        let lines = limit_lines(limits)
            .into_iter()
            .map(|(key, text)| Zeroizing::new([format!("# {key} = {text}").as_bytes(), newline].concat()));
        self.lines.splice(below..below, lines);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::config::Config;

    const KEY: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";

    fn parsed(text: &str) -> (Config, Vec<Warning>) {
        Document::new(text.as_bytes()).parse().unwrap()
    }

    #[test]
    fn rates_are_read_as_people_write_them() {
        let cases = [
            ("20 Mbit/s", 20_000_000),
            ("20M", 20_000_000),
            ("1.5mbps", 1_500_000),
            ("64 kb/s", 64_000),
            ("1Gbit", 1_000_000_000),
            ("9600", 9600),
        ];
        for (text, bits) in cases {
            assert_eq!(rate(text), Some(RateSetting::of(bits)), "{text}");
        }
        assert_eq!(rate("8 Mbit/s burst 1 MiB").unwrap().burst, 1 << 20);
        for wrong in ["", "fast", "0", "20 MB", "-1M", "20 Mbit/s 5", "20 Mbit/s burst", "20 Mibit/s", "1e9"]
        {
            assert_eq!(rate(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn quotas_are_read_as_people_write_them() {
        let day = Duration::from_secs(86_400);
        let cases = [
            ("100 GB per 30 days, then block", (100_000_000_000, 30 * day, None)),
            ("100GiB/30d", (100 << 30, 30 * day, None)),
            ("5 GB a day then 1 Mbit/s", (5_000_000_000, day, Some(1_000_000))),
            ("1G per 12 hours, then 64k", (1_000_000_000, day / 2, Some(64_000))),
        ];
        for (text, (bytes, period, then)) in cases {
            assert_eq!(quota(text), Some(QuotaSetting { bytes, period, then }), "{text}");
        }
        for wrong in [
            "100 GB",
            "100 GB per",
            "0 GB per day",
            "1 GB per month",
            "1 GB per 0 days",
            "1 GB per day, then",
            "1 GB per day, block",
            "1 GB per 400 days",
        ] {
            assert_eq!(quota(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn limits_are_a_peers_comments_and_what_is_none_is_told() {
        let file = format!(
            "[Interface]\n# LimitIn = 1M\n[Peer]\nPublicKey = {KEY}\n#limitin=20M\n# LimitOut = 1 Gbit/s burst 1 MB\n## Quota = 1G per day\n# Quota = much\n"
        );
        let (config, warnings) = parsed(&file);
        let limits = config.peers[0].limits;
        assert_eq!(limits.inbound, Some(RateSetting::of(20_000_000)));
        assert_eq!(limits.outbound, Some(RateSetting { bits_per_second: 1_000_000_000, burst: 1_000_000 }));
        assert_eq!(limits.quota, None);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert_eq!(warnings[0].line(), Some(8));
        assert!(warnings[0].to_string().contains("100 GB per 30 days"), "{}", warnings[0]);
    }

    #[test]
    fn limits_are_written_below_the_name_and_replaced() {
        let file = format!("[Interface]\n\n[Peer]\n# Name = a\nPublicKey = {KEY}\n# LimitOut = 1M\n# kept\n");
        let mut document = Document::new(file.as_bytes());
        let key = KEY.parse().unwrap();
        let mut limits = LimitSettings::default();
        set_limit(&mut limits, "LimitIn", "20M").unwrap();
        set_limit(&mut limits, "Quota", "1 GB a week").unwrap();
        assert!(document.limit_peer(&key, &limits));
        let text = String::from_utf8(document.bytes().to_vec()).unwrap();
        assert_eq!(
            text,
            format!(
                "[Interface]\n\n[Peer]\n# Name = a\n# LimitIn = 20 Mbit/s\n# Quota = 1 GB per 7 days, then block\nPublicKey = {KEY}\n# kept\n"
            )
        );
        assert_eq!(document.parse().unwrap().0.peers[0].limits, limits);
        assert!(document.limit_peer(&key, &LimitSettings::default()));
        assert!(!document.limit_peer(&PublicKey([1; 32]), &limits));
        assert!(document.parse().unwrap().0.peers[0].limits.is_none());
    }
}
