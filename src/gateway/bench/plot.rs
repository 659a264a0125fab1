//! Results as a drawing: an SVG document, legible on light and on dark pages.

use super::comparison::BenchComparison;
use super::report::{BenchReport, FIGURES, FigureKind};
use std::fmt::Write;

/// Lengths of the drawing, in its own units, which are pixels where it is shown in its natural size.
const WIDTH: usize = 860;
/// Where bars begin.
const BARS_AT: usize = 170;
/// Length of the longest bar.
const LONGEST: f64 = 340.0;
const BAR: usize = 18;
const BAR_STEP: usize = 22;
const HEADING: usize = 26;
const BETWEEN_PANELS: usize = 12;
/// Where the first panel begins, below the title and its two lines.
const TOP: usize = 76;
/// Characters of a line that fit beside its margins.
const LINE_CHARACTERS: usize = 128;

/// Colours and letters. The second set is for readers of dark pages.
const STYLE: &str = "\
text{fill:#1c2024;font-family:sans-serif;font-size:12px}\
.page{fill:#ffffff}.title{font-size:15px;font-weight:bold}.head{font-weight:bold}.more{fill:#59636e}\
.bar0{fill:#1f6f8b}.bar1{fill:#b9c2ca}\
@media (prefers-color-scheme:dark){\
text{fill:#e6eaee}.page{fill:#14181c}.more{fill:#9aa5b1}.bar0{fill:#4cb3d4}.bar1{fill:#56616c}}";

/// One figure of one test.
struct Panel {
    heading: String,
    bars: Vec<Bar>,
}

/// A bar with what stands on both sides of it.
struct Bar {
    label: String,
    value: f64,
    note: String,
}

impl BenchReport {
    /// The results as an SVG document: each with that of the bare pair below it.
    pub fn drawing(&self) -> String {
        let mut panels = Vec::new();
        for test in &self.tests {
            for kind in FIGURES.iter().filter(|kind| kind.is_result) {
                let (Some(tunnel), Some(veth)) = (kind.of(&test.tunnel), kind.of(&test.veth)) else {
                    continue;
                };
                let ratio = kind.of(&test.ratio).map(|ratio| format!("{ratio:.2} of bare veth"));
                let costs = ["cores_per_gbps", "cores_per_mpps"].into_iter().filter_map(|name| {
                    let kind = FIGURES.iter().find(|kind| kind.name == name)?;
                    Some(kind.text(kind.of(&test.tunnel)?).replacen(" per", " cores per", 1))
                });
                let notes: Vec<String> = [kind.text(tunnel)].into_iter().chain(ratio).chain(costs).collect();
                panels.push(Panel {
                    heading: heading(&test.name, &test.words, kind),
                    bars: vec![
                        Bar { label: "tunnel".into(), value: tunnel, note: notes.join(", ") },
                        Bar { label: "bare veth".into(), value: veth, note: kind.text(veth) },
                    ],
                });
            }
        }
        svg("ringtun bench", &self.about(), &panels)
    }
}

impl BenchComparison {
    /// The comparison as an SVG document, of what was measured through the tunnel.
    pub fn drawing(&self, abouts: [&BenchReport; 2]) -> String {
        let panel = |one: &super::comparison::ComparedFigure| Panel {
            heading: heading(&one.test, one.kind.0.words, one.kind.0),
            bars: (0..2)
                .map(|at| {
                    let ratio = one.ratio.filter(|_| at == 1).map(|ratio| format!(", {ratio:.2}"));
                    let note = one.kind.0.text(one.values[at]) + &ratio.unwrap_or_default();
                    Bar { label: self.names[at].clone(), value: one.values[at], note }
                })
                .collect(),
        };
        let panels: Vec<Panel> =
            self.figures.iter().filter(|one| one.kind.0.is_telling()).map(panel).collect();
        let about = |at: usize| {
            let [host, _] = abouts[at].about();
            format!("{}: {host}", self.names[at])
        };
        svg("ringtun bench: comparison", &[about(0), about(1)], &panels)
    }
}

fn heading(test: &str, words: &str, kind: &FigureKind) -> String {
    let direction = if kind.less_is_better { "shorter is better" } else { "longer is better" };
    let which = if kind.is_result && kind.less_is_better && words != kind.words {
        format!(", {}", kind.words)
    } else {
        String::new()
    };
    format!("{test}: {words}{which} ({direction})")
}

fn svg(title: &str, lines: &[String; 2], panels: &[Panel]) -> String {
    let mut body = String::new();
    let mut y = TOP;
    for panel in panels {
        text(&mut body, 12, y + 14, "class=\"head\"", &panel.heading);
        y += HEADING;
        let longest = panel.bars.iter().map(|bar| bar.value).fold(f64::MIN_POSITIVE, f64::max);
        for (at, bar) in panel.bars.iter().enumerate() {
            let length = (LONGEST * bar.value / longest).max(1.0);
            text(&mut body, BARS_AT - 8, y + 13, "text-anchor=\"end\"", &shortened(&bar.label, 22));
            let _ = writeln!(
                body,
                "<rect class=\"bar{}\" x=\"{BARS_AT}\" y=\"{y}\" width=\"{length:.1}\" height=\"{BAR}\" rx=\"2\"/>",
                at % 2
            );
            let beside = BARS_AT + length as usize + 6;
            text(&mut body, beside, y + 13, "", &bar.note);
            y += BAR_STEP;
        }
        y += BETWEEN_PANELS;
    }
    let mut head = String::new();
    text(&mut head, 12, 24, "class=\"title\"", title);
    for (at, line) in lines.iter().enumerate() {
        text(&mut head, 12, 44 + 17 * at, "class=\"more\"", &shortened(line, LINE_CHARACTERS));
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {y}\" width=\"{WIDTH}\" height=\"{y}\">\n\
        <style>{STYLE}</style>\n<rect class=\"page\" width=\"100%\" height=\"100%\"/>\n{head}{body}</svg>\n"
    )
}

/// Writes a line of text at a place. Writing to a string cannot fail.
fn text(out: &mut String, x: usize, y: usize, attributes: &str, words: &str) {
    let space = if attributes.is_empty() { "" } else { " " };
    let _ = writeln!(out, "<text x=\"{x}\" y=\"{y}\"{space}{attributes}>{}</text>", escaped(words));
}

/// At most so many characters, the last of which says that there were more.
fn shortened(words: &str, most: usize) -> String {
    match words.chars().count() <= most {
        true => words.to_owned(),
        false => words.chars().take(most - 1).chain(['…']).collect(),
    }
}

/// The text as it stands in XML. Characters that XML cannot have are left out.
fn escaped(words: &str) -> String {
    let mut text = String::new();
    for c in words.chars() {
        match c {
            '&' => text.push_str("&amp;"),
            '<' => text.push_str("&lt;"),
            '>' => text.push_str("&gt;"),
            c if c.is_control() => {}
            c => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::bench::report::{BenchFigures, BenchTest};
    use proptest::prelude::*;

    /// Whether a document is one element, in which each that begins ends, and no other `&` or `<` stands.
    fn is_well_formed(document: &str) -> bool {
        let (mut open, mut rest, mut roots) = (Vec::new(), document, 0);
        while let Some(at) = rest.find(['<', '&']) {
            rest = &rest[at..];
            if let Some(entity) = rest.strip_prefix('&') {
                if !["amp;", "lt;", "gt;"].iter().any(|name| entity.starts_with(name)) {
                    return false;
                }
                rest = entity;
                continue;
            }
            let Some((tag, after)) = rest[1..].split_once('>') else { return false };
            rest = after;
            if let Some(name) = tag.strip_prefix('/') {
                if open.pop() != Some(name) {
                    return false;
                }
            } else if !tag.ends_with('/') {
                roots += usize::from(open.is_empty());
                open.push(tag.split_whitespace().next().unwrap_or_default());
            }
            if tag.matches('"').count() % 2 != 0 {
                return false;
            }
        }
        open.is_empty() && roots == 1
    }

    fn report(words: &str, tunnel: f64, veth: f64) -> BenchReport {
        let of = |gbps| BenchFigures { gbps: Some(gbps), ..BenchFigures::default() };
        let mut tunnel = of(tunnel);
        tunnel.cores_per_gbps = Some(0.18);
        let test = BenchTest {
            name: "tcp1".into(),
            words: words.into(),
            tunnel,
            veth: of(veth),
            ratio: tunnel.divided_by(&of(veth)),
            ..BenchTest::default()
        };
        let mut report = BenchReport { tests: vec![test], ..BenchReport::default() };
        report.host.cpu = format!("{words} & <Sons>\u{7}");
        report
    }

    #[test]
    fn the_judge_of_documents_judges() {
        assert!(is_well_formed("<a><b x=\"1\"/>&amp;<c>d</c></a>\n"));
        for wrong in ["<a>", "<a></b>", "<a>&</a>", "<a></a><b></b>", "<a x=\"></a>", "x", "<a><b></a></b>"] {
            assert!(!is_well_formed(wrong), "{wrong}");
        }
    }

    #[test]
    fn a_drawing_is_one_well_formed_document_with_each_result_and_the_bare_pairs() {
        let drawing = report("one TCP stream", 6.8, 34.0).drawing();
        assert!(is_well_formed(&drawing), "{drawing}");
        for part in [
            "prefers-color-scheme:dark",
            "6.80 Gb/s, 0.20 of bare veth, 0.180 cores per Gb/s",
            ">34.00 Gb/s<",
            "&amp; &lt;Sons&gt;,",
        ] {
            assert!(drawing.contains(part), "{part}: {drawing}");
        }
        assert_eq!(drawing.matches("<rect class=\"bar").count(), 2);
        assert!(drawing.contains("width=\"340.0\"") && drawing.contains("width=\"68.0\""), "{drawing}");
    }

    #[test]
    fn a_comparison_draws_both() {
        let (first, second) = (report("x", 4.0, 8.0), report("x", 2.0, 8.0));
        let names = ["a.json", "b.json"].map(str::to_owned);
        let drawing = BenchComparison::of(names, [&first, &second]).drawing([&first, &second]);
        assert!(is_well_formed(&drawing), "{drawing}");
        assert!(drawing.contains(">2.00 Gb/s, 0.50<") && drawing.contains(">a.json<"), "{drawing}");
    }

    proptest! {
        #[test]
        fn whatever_stands_in_it_a_drawing_is_well_formed(
            words in any::<String>(), tunnel in 0.0..1e9, veth in 0.0..1e9
        ) {
            prop_assert!(is_well_formed(&report(&words, tunnel, veth).drawing()));
        }
    }
}
