//! Two reports side by side: how their results differ, and in what they were measured under other circumstances.

use super::report::{BenchReport, FIGURES, FigureKind};
use serde::Serialize;

/// By how much a result must differ to be called better or worse: runs on one host differ by as much.
const NOTABLE: f64 = 0.05;

/// The comparison of two reports.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BenchComparison {
    /// The names of both.
    pub names: [String; 2],
    /// The figures that both have.
    pub figures: Vec<ComparedFigure>,
    /// In what their circumstances differ.
    pub differences: Vec<Difference>,
    /// The tests that only one of them has, with the name of that one.
    pub alone: Vec<(String, String)>,
}

/// A figure that two reports have.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ComparedFigure {
    /// The name of its test.
    pub test: String,
    /// The name of the figure.
    pub figure: &'static str,
    /// Its values through the tunnel.
    pub values: [f64; 2],
    /// The second divided by the first. `None` where the first is 0.
    pub ratio: Option<f64>,
    /// `better` or `worse`, where the second differs by five per cent or more.
    pub judgement: Option<&'static str>,
    /// Its kind.
    #[serde(skip)]
    pub kind: Kinded,
}

/// A figure's kind, of which there is one for each name.
#[derive(Clone, Copy, Debug)]
pub struct Kinded(pub &'static FigureKind);

impl PartialEq for Kinded {
    fn eq(&self, other: &Kinded) -> bool {
        self.0.name == other.0.name
    }
}

/// A circumstance that is not the same in both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// What it is.
    pub what: String,
    /// How it was in each.
    pub values: [String; 2],
}

impl BenchComparison {
    /// Compares two reports, which are called so.
    pub fn of(names: [String; 2], reports: [&BenchReport; 2]) -> BenchComparison {
        let [first, second] = reports;
        let find = |name: &str| second.tests.iter().find(|test| test.name == name);
        let mut figures = Vec::new();
        for test in &first.tests {
            let Some(other) = find(&test.name) else { continue };
            for kind in &FIGURES {
                let values = kind.of(&test.tunnel).zip(kind.of(&other.tunnel));
                figures.extend(values.map(|(a, b)| compared(&test.name, kind, [a, b])));
            }
        }
        let mut alone = Vec::new();
        for (name, one, other) in [(&names[0], first, second), (&names[1], second, first)] {
            let missing =
                one.tests.iter().filter(|test| other.tests.iter().all(|with| with.name != test.name));
            alone.extend(missing.map(|test| (name.clone(), test.name.clone())));
        }
        BenchComparison { figures, differences: differences(first, second), alone, names }
    }
}

fn compared(test: &str, kind: &'static FigureKind, values: [f64; 2]) -> ComparedFigure {
    let ratio = (values[0] > 0.0).then(|| values[1] / values[0]);
    let notable = ratio.filter(|ratio| kind.is_telling() && (ratio - 1.0).abs() >= NOTABLE);
    let judgement = notable.map(|ratio| {
        let is_better = (ratio < 1.0) == kind.less_is_better;
        if is_better { "better" } else { "worse" }
    });
    ComparedFigure { test: test.to_owned(), figure: kind.name, values, ratio, judgement, kind: Kinded(kind) }
}

fn differences(first: &BenchReport, second: &BenchReport) -> Vec<Difference> {
    let others = second.circumstances();
    let differs = |(what, value): (String, String)| {
        // What only one has is a test, which is named elsewhere.
        let (_, other) = others.iter().find(|(name, _)| *name == what)?;
        (*other != value).then(|| Difference { what, values: [value, other.clone()] })
    };
    first.circumstances().into_iter().filter_map(differs).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::bench::report::{BenchFigures, BenchTest};

    fn report(tests: &[(&str, BenchFigures)]) -> BenchReport {
        let test = |(name, tunnel): &(&str, BenchFigures)| BenchTest {
            name: (*name).to_owned(),
            load: "own".into(),
            tunnel: *tunnel,
            ..BenchTest::default()
        };
        BenchReport { tests: tests.iter().map(test).collect(), ..BenchReport::default() }
    }

    fn of(first: &BenchReport, second: &BenchReport) -> BenchComparison {
        BenchComparison::of(["a".into(), "b".into()], [first, second])
    }

    #[test]
    fn more_throughput_and_less_time_are_better() {
        let figures =
            |gbps, p50| BenchFigures { gbps: Some(gbps), p50_us: Some(p50), ..BenchFigures::default() };
        let first = report(&[("x", figures(4.0, 100.0))]);
        let second = report(&[("x", figures(5.0, 50.0))]);
        let judged = |comparison: BenchComparison| {
            comparison.figures.iter().map(|one| (one.figure, one.ratio, one.judgement)).collect::<Vec<_>>()
        };
        let better = Some("better");
        assert_eq!(
            judged(of(&first, &second)),
            [("gbps", Some(1.25), better), ("p50_us", Some(0.5), better)]
        );
        let worse = Some("worse");
        assert_eq!(judged(of(&second, &first)), [("gbps", Some(0.8), worse), ("p50_us", Some(2.0), worse)]);
        assert_eq!(judged(of(&first, &first)), [("gbps", Some(1.0), None), ("p50_us", Some(1.0), None)]);
    }

    #[test]
    fn fewer_cores_for_less_traffic_are_not_better_and_fewer_for_each_bit_are() {
        let figures = |gbps, cores| BenchFigures {
            gbps: Some(gbps),
            cores: Some(cores),
            cores_per_gbps: Some(cores / gbps),
            ..BenchFigures::default()
        };
        let (first, second) = (report(&[("x", figures(8.0, 1.0))]), report(&[("x", figures(4.0, 0.4))]));
        let judgements: Vec<_> = of(&first, &second).figures.iter().map(|one| one.judgement).collect();
        assert_eq!(judgements, [Some("worse"), None, Some("better")]);
    }

    #[test]
    fn a_first_figure_of_zero_has_no_ratio() {
        let lost = |percent| {
            report(&[("x", BenchFigures { lost_percent: Some(percent), ..BenchFigures::default() })])
        };
        let comparison = of(&lost(0.0), &lost(3.0));
        assert_eq!((comparison.figures[0].ratio, comparison.figures[0].judgement), (None, None));
    }

    #[test]
    fn circumstances_that_differ_are_told_and_others_are_not() {
        let mut first = report(&[("x", BenchFigures::default()), ("y", BenchFigures::default())]);
        let mut second = report(&[("y", BenchFigures::default()), ("z", BenchFigures::default())]);
        first.host.kernel = "6.12.0".into();
        second.host.kernel = "6.18.0".into();
        second.tests[0].load = "iperf 3.18".into();
        second.program.environment.insert("RINGTUN_IO".into(), "syscalls".into());
        let comparison = of(&first, &second);
        let told: Vec<_> =
            comparison.differences.iter().map(|one| (one.what.as_str(), &one.values)).collect();
        let pair = |a: &str, b: &str| [a.to_owned(), b.to_owned()];
        let (kernels, loads) = (pair("6.12.0", "6.18.0"), pair("own", "iperf 3.18"));
        let variables = pair("none", "RINGTUN_IO=syscalls");
        assert_eq!(told, [("kernel", &kernels), ("environment", &variables), ("load of y", &loads)]);
        let alone = [("a".to_owned(), "x".to_owned()), ("b".to_owned(), "z".to_owned())];
        assert_eq!(comparison.alone, alone);
    }
}
