//! Results as tables for people.

use super::comparison::BenchComparison;
use super::report::{BenchReport, BenchTest, FIGURES};
use std::fmt::Write;

impl BenchReport {
    /// The results as a table, below what they were measured on.
    pub fn text(&self) -> String {
        let head = ["test", "what", "tunnel", "bare veth", "ratio", "lost", "cores", "cost in cores", "load"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        self.tests.iter().for_each(|test| rows.extend(rows_of(test)));
        let [host, program] = self.about();
        let environment = &self.program.environment;
        let set: Vec<String> = environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let set = if set.is_empty() { String::new() } else { format!("{}\n", set.join(" ")) };
        format!(
            "{host}\n{program}\n{set}\n{}\n\
            bare veth: the same load between the same namespaces without a tunnel, which is the most that this host could give; \
            ratio: the tunnel's figure divided by it.\n\
            cores: what both ringtun processes kept busy. Both ends and the load ran on this host, so that the cost tells more than \
            the throughput.\n",
            aligned(&rows, 2)
        )
    }
}

/// A test's results, a line each. What it cost stands on the first.
fn rows_of(test: &BenchTest) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for kind in FIGURES.iter().filter(|kind| kind.is_result) {
        let Some(value) = kind.of(&test.tunnel) else { continue };
        let first = rows.is_empty();
        let cost = |name: &str| {
            let kind = FIGURES.iter().find(|kind| kind.name == name && first);
            kind.and_then(|kind| Some(kind.text(kind.of(&test.tunnel)?))).unwrap_or_default()
        };
        let per = [cost("cores_per_gbps"), cost("cores_per_mpps")].concat();
        let words = match (first, kind.less_is_better) {
            (true, true) => format!("{}, {}", test.words, kind.words),
            (true, false) => test.words.clone(),
            (false, _) => kind.words.to_owned(),
        };
        rows.push(vec![
            if first { test.name.clone() } else { String::new() },
            words,
            kind.text(value),
            kind.of(&test.veth).map(|value| kind.text(value)).unwrap_or_default(),
            kind.of(&test.ratio).map(|ratio| format!("{ratio:.2}")).unwrap_or_default(),
            cost("lost_percent"),
            cost("cores"),
            per,
            if first { test.load.clone() } else { String::new() },
        ]);
    }
    rows
}

impl BenchComparison {
    /// The comparison as a table, and below it what differs in the circumstances.
    pub fn text(&self) -> String {
        let [first, second] = &self.names;
        let head =
            ["test".to_owned(), "figure".to_owned(), first.clone(), second.clone(), "ratio".to_owned()];
        let mut rows = vec![head.to_vec()];
        rows[0].push(String::new());
        for one in &self.figures {
            let [a, b] = one.values.map(|value| one.kind.0.text(value));
            let ratio = one.ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default();
            let judgement = one.judgement.unwrap_or_default().to_owned();
            rows.push(vec![one.test.clone(), one.kind.0.words.to_owned(), a, b, ratio, judgement]);
        }
        let mut text = aligned(&rows, 2);
        for (name, test) in &self.alone {
            let _ = writeln!(text, "\nOnly {name} has the test {test}."); // a String takes everything
        }
        if self.differences.is_empty() {
            text.push_str("\nHost, program and settings are the same in both.\n");
            return text;
        }
        let differing = |one: &super::comparison::Difference| {
            [one.what.clone(), one.values[0].clone(), one.values[1].clone()].to_vec()
        };
        let mut rows = vec![vec!["what differs".to_owned(), first.clone(), second.clone()]];
        rows.extend(self.differences.iter().map(differing));
        text + "\n" + &aligned(&rows, 3)
    }
}

/// Rows as lines, whose first `left` columns are aligned to the left and the others to the right.
fn aligned(rows: &[Vec<String>], left: usize) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |at: usize| rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|at| width(at).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (at, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            let gap = if at > 0 { "  " } else { "" };
            let _ = match at < left {
                true => write!(line, "{gap}{cell:<width$}"),
                false => write!(line, "{gap}{cell:>width$}"),
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::bench::report::BenchFigures;

    fn tests() -> Vec<BenchTest> {
        let figures = BenchFigures::default();
        let tcp = BenchTest {
            name: "tcp1".into(),
            words: "one TCP stream".into(),
            load: "own".into(),
            tunnel: BenchFigures {
                gbps: Some(6.8),
                cores: Some(1.2),
                cores_per_gbps: Some(0.1765),
                ..figures
            },
            veth: BenchFigures { gbps: Some(34.0), ..figures },
            ratio: BenchFigures { gbps: Some(0.2), ..figures },
            ..BenchTest::default()
        };
        let rtt = BenchTest {
            name: "rtt".into(),
            words: "round trip while idle".into(),
            tunnel: BenchFigures { p50_us: Some(323.4), p99_us: Some(1200.0), ..figures },
            ..BenchTest::default()
        };
        vec![tcp, rtt]
    }

    #[test]
    fn a_table_has_a_line_for_each_result_and_the_cost_once() {
        let report = BenchReport { tests: tests(), ..BenchReport::default() };
        let text = report.text();
        let line = |word: &str| text.lines().find(|line| line.contains(word)).unwrap_or_default().to_owned();
        let words: Vec<_> = line("tcp1").split_whitespace().map(str::to_owned).collect();
        assert_eq!(
            words.join(" "),
            "tcp1 one TCP stream 6.80 Gb/s 34.00 Gb/s 0.20 1.20 0.176 per Gb/s own",
            "{text}"
        );
        assert!(
            line("rtt  ").contains("round trip while idle, p50") && line("p50").contains("323 µs"),
            "{text}"
        );
        assert!(line("p99").trim_start().starts_with("p99 ") && line("p99").contains("1200 µs"), "{text}");
        assert_eq!(text.matches("per Gb/s").count(), 1, "{text}");
    }

    #[test]
    fn a_comparison_says_what_differs_or_that_nothing_does() {
        let report = BenchReport { tests: tests(), ..BenchReport::default() };
        let mut other = report.clone();
        let names = ["before.json", "after.json"].map(str::to_owned);
        let text = BenchComparison::of(names.clone(), [&report, &other]).text();
        assert!(text.ends_with("the same in both.\n") && text.contains("before.json"), "{text}");
        other.host.cpu = "Another".into();
        other.tests[0].tunnel.gbps = Some(3.4);
        let text = BenchComparison::of(names, [&report, &other]).text();
        let worse = text.lines().find(|line| line.ends_with("worse")).unwrap();
        assert!(
            worse.contains("6.80 Gb/s") && worse.contains("3.40 Gb/s") && worse.contains("0.50"),
            "{text}"
        );
        assert!(text.lines().last().is_some_and(|line| line.starts_with("CPU") && line.ends_with("Another")));
    }

    #[test]
    fn columns_are_aligned_by_characters_and_lines_end_with_words() {
        let rows = [
            vec!["a".to_owned(), "µs".to_owned()],
            vec!["bcd".to_owned(), "1".to_owned()],
            vec!["e".to_owned()],
        ];
        assert_eq!(aligned(&rows, 1), "a    µs\nbcd   1\ne\n");
    }
}
