//! Times and amounts in words, as wg(8) writes them.

use super::paint::Paint;

/// A duration in the form `1 minute, 3 seconds`. It is empty for zero.
pub(super) fn duration(paint: Paint, seconds: u64) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    const YEAR: u64 = 365 * DAY;
    let parts = [
        (seconds / YEAR, "year"),
        (seconds % YEAR / DAY, "day"),
        (seconds % DAY / HOUR, "hour"),
        (seconds % HOUR / MINUTE, "minute"),
        (seconds % MINUTE, "second"),
    ];
    let word = |(count, unit): (u64, &str)| {
        let plural = if count == 1 { "" } else { "s" };
        format!("{count} {}", paint.cyan(&format!("{unit}{plural}")))
    };
    let words: Vec<String> = parts.into_iter().filter(|(count, _)| *count > 0).map(word).collect();
    words.join(", ")
}

/// How long ago `then` was. Both times are in seconds since the Unix epoch.
pub(super) fn ago(paint: Paint, now: u64, then: u64) -> String {
    match now.checked_sub(then) {
        None => format!("({})", paint.red("System clock wound backward; connection problems may ensue.")),
        Some(0) => "Now".to_owned(),
        Some(seconds) => format!("{} ago", duration(paint, seconds)),
    }
}

/// An amount of bytes in the form `1.51 MiB`, without colours.
pub fn amount(count: u64) -> String {
    bytes(Paint { colours: false }, count)
}

/// An amount in the form `1.51 MiB`.
pub(super) fn bytes(paint: Paint, bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} {}", paint.cyan("B"));
    }
    // The divisors are powers of two, so that the quotient is exact in whatever order they come.
    let (mut amount, mut unit) = (bytes as f64 / 1024.0, 0);
    let mut limit = 1024 * 1024;
    while unit + 1 < UNITS.len() && bytes >= limit {
        amount /= 1024.0;
        unit += 1;
        limit *= 1024;
    }
    format!("{amount:.2} {}", paint.cyan(UNITS[unit]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Paint = Paint { colours: false };

    #[test]
    fn durations_leave_out_what_is_zero() {
        assert_eq!(duration(PLAIN, 63), "1 minute, 3 seconds");
        assert_eq!(duration(PLAIN, 86_400 * 366 + 3600), "1 year, 1 day, 1 hour");
        assert_eq!(duration(PLAIN, 120), "2 minutes");
        assert_eq!(ago(PLAIN, 100, 100), "Now");
        assert_eq!(ago(PLAIN, 101, 100), "1 second ago");
        assert!(ago(PLAIN, 99, 100).starts_with("(System clock wound backward"));
    }

    #[test]
    fn amounts_change_units_at_powers_of_1024() {
        let cases: [(u64, &str); 8] = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (1 << 20, "1.00 MiB"),
            ((1 << 20) - 1, "1024.00 KiB"),
            (1_583_350, "1.51 MiB"),
            (1 << 30, "1.00 GiB"),
            (u64::MAX, "16777216.00 TiB"),
        ];
        for (amount, words) in cases {
            assert_eq!(bytes(PLAIN, amount), words);
        }
    }
}
