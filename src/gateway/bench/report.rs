//! What a benchmark found, as it is written to a file and read again.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// The form of the file. A program reads no newer one.
pub(super) const FORMAT: u32 = 1;

/// The results of a run, and what they were measured on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BenchReport {
    /// The number of the file's form.
    pub format: u32,
    /// The host.
    pub host: BenchHost,
    /// The program, and what it got from the host.
    pub program: BenchProgram,
    /// How it was measured.
    pub settings: BenchSettings,
    /// The results, in the order of the tests.
    pub tests: Vec<BenchTest>,
}

/// The host of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BenchHost {
    /// The model of the CPU, as the kernel calls it.
    pub cpu: String,
    /// The architecture: `x86_64`, `aarch64`.
    pub architecture: String,
    /// How many cores the program may use.
    pub cores: usize,
    /// How many cores' time the program may use, where that is limited.
    pub cpu_quota: Option<String>,
    /// The kernel's release.
    pub kernel: String,
}

/// The program of a run, and what it got from the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BenchProgram {
    /// Its version.
    pub version: String,
    /// `optimized`, or `unoptimized`, whose figures say nothing of the program.
    pub build: String,
    /// The fastest code for sealing and opening that this CPU can run: `avx512`, `avx2`, or `ring`, which takes packets one by one.
    pub aead: String,
    /// The workers' backend: `io_uring` or `syscalls`.
    pub io: String,
    /// The workers of each end.
    pub workers: usize,
    /// The offloads of the TUN device.
    pub tun_offloads: Vec<String>,
    /// The offloads of the UDP sockets.
    pub udp_offloads: Vec<String>,
    /// What a BPF program steers to a peer's owner: `tun`, `udp`.
    pub steering: Vec<String>,
    /// The variables of the environment that set options of the tunnels.
    pub environment: BTreeMap<String, String>,
}

/// How a run measured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BenchSettings {
    /// The length of each measurement in seconds.
    pub seconds: u32,
    /// How often each was repeated, with new tunnels. The results are medians.
    pub rounds: u32,
    /// The workers that were asked for. `None` is the program's own choice.
    pub workers: Option<u16>,
}

/// The results of one test.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BenchTest {
    /// Its name, as `--only` takes it.
    pub name: String,
    /// What it measures, in words.
    pub words: String,
    /// What made the load: `own`, or the version of iperf3.
    pub load: String,
    /// The medians through the tunnel.
    pub tunnel: BenchFigures,
    /// The medians through the bare veth pair beside it: the most that this host could give.
    pub veth: BenchFigures,
    /// The tunnel's results divided by those of the bare pair.
    pub ratio: BenchFigures,
    /// Each round by itself.
    pub rounds: Vec<BenchRound>,
}

/// One round of one test.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BenchRound {
    /// Through the tunnel.
    pub tunnel: BenchFigures,
    /// Through the bare veth pair.
    pub veth: BenchFigures,
}

/// What a measurement found. A test has some of these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BenchFigures {
    /// The payload of TCP that arrived, in Gb/s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gbps: Option<f64>,
    /// UDP packets that arrived a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packets_per_second: Option<f64>,
    /// The median round trip in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p50_us: Option<f64>,
    /// The round trip in microseconds that one of a hundred exceeds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99_us: Option<f64>,
    /// How much of what was sent did not arrive, in per cent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost_percent: Option<f64>,
    /// The cores that both ringtun processes kept busy together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cores: Option<f64>,
    /// The same for each Gb/s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cores_per_gbps: Option<f64>,
    /// The same for each million packets a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cores_per_mpps: Option<f64>,
}

/// One kind of figure.
#[derive(Clone, Copy, Debug)]
pub struct FigureKind {
    /// Its name, as in the file.
    pub name: &'static str,
    /// What it is, for people.
    pub words: &'static str,
    /// Whether less is better.
    pub less_is_better: bool,
    /// Whether it is what a test is for, beside which the bare pair's stands.
    pub is_result: bool,
    of: fn(&mut BenchFigures) -> &mut Option<f64>,
    text: fn(f64) -> String,
}

impl FigureKind {
    /// The figure of this kind, if there is one.
    pub fn of(&self, figures: &BenchFigures) -> Option<f64> {
        *(self.of)(&mut figures.clone())
    }

    /// Whether two of it tell which program or host is better. Cores that do less are no gain, nor is a loss of what was sent at
    /// another rate.
    pub(super) fn is_telling(&self) -> bool {
        self.is_result || self.name.starts_with("cores_per_")
    }

    /// Sets the figure of this kind.
    fn set(&self, figures: &mut BenchFigures, value: Option<f64>) {
        *(self.of)(figures) = value;
    }

    /// The figure with its unit.
    pub fn text(&self, value: f64) -> String {
        (self.text)(value)
    }
}

macro_rules! kind {
    ($field:ident, $words:literal, less: $less:literal, result: $result:literal, $text:expr) => {
        FigureKind {
            name: stringify!($field),
            words: $words,
            less_is_better: $less,
            is_result: $result,
            of: |figures| &mut figures.$field,
            text: $text,
        }
    };
}

/// All kinds, the results first.
pub(super) const FIGURES: [FigureKind; 8] = [
    kind!(gbps, "throughput", less: false, result: true, |value| format!("{value:.2} Gb/s")),
    kind!(packets_per_second, "packets", less: false, result: true, |value| format!("{}/s", grouped(value))),
    kind!(p50_us, "p50", less: true, result: true, |value| format!("{value:.0} µs")),
    kind!(p99_us, "p99", less: true, result: true, |value| format!("{value:.0} µs")),
    kind!(lost_percent, "lost", less: true, result: false, |value| format!("{value:.1} %")),
    kind!(cores, "cores", less: true, result: false, |value| format!("{value:.2}")),
    kind!(cores_per_gbps, "cores per Gb/s", less: true, result: false, |value| format!("{value:.3} per Gb/s")),
    kind!(cores_per_mpps, "cores per million packets/s", less: true, result: false, |value| format!("{value:.2} per M/s")),
];

/// A number with commas between groups of three digits.
fn grouped(value: f64) -> String {
    let digits = format!("{:.0}", value.max(0.0));
    let lead = digits.len() % 3;
    let mut text = digits[..lead].to_owned();
    for group in digits.as_bytes()[lead..].chunks(3) {
        if !text.is_empty() {
            text.push(',');
        }
        text.extend(group.iter().map(|&digit| char::from(digit)));
    }
    text
}

/// The median: the middle one, or the mean of the two in the middle. `None` of nothing.
pub(super) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        count if count % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

/// The value of sorted ones that a share of them does not exceed (nearest rank). `None` of nothing.
pub(super) fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied()
}

impl BenchFigures {
    /// The median of each figure.
    pub(super) fn median_of(all: &[BenchFigures]) -> BenchFigures {
        let mut medians = BenchFigures::default();
        for kind in FIGURES {
            kind.set(&mut medians, median(all.iter().filter_map(|figures| kind.of(figures)).collect()));
        }
        medians
    }

    /// The results divided by those of `base`, where both are there and that one is not 0.
    pub(super) fn divided_by(&self, base: &BenchFigures) -> BenchFigures {
        let mut ratios = BenchFigures::default();
        for kind in FIGURES.iter().filter(|kind| kind.is_result) {
            let base = kind.of(base).filter(|base| *base > 0.0);
            kind.set(&mut ratios, kind.of(self).zip(base).map(|(value, base)| value / base));
        }
        ratios
    }
}

impl BenchTest {
    /// Takes the medians and ratios from the rounds.
    pub(super) fn conclude(&mut self) {
        let of = |side: fn(&BenchRound) -> BenchFigures| self.rounds.iter().map(side).collect::<Vec<_>>();
        self.tunnel = BenchFigures::median_of(&of(|round| round.tunnel));
        self.veth = BenchFigures::median_of(&of(|round| round.veth));
        self.ratio = self.tunnel.divided_by(&self.veth);
    }
}

impl BenchReport {
    /// The host and the program on one line each.
    pub fn about(&self) -> [String; 2] {
        let (host, program) = (&self.host, &self.program);
        let list = |words: &[String]| if words.is_empty() { "none".into() } else { words.join(", ") };
        let quota = host.cpu_quota.as_ref().map(|quota| format!(" (quota {quota})")).unwrap_or_default();
        [
            format!(
                "{}, {} cores{quota}, {}, Linux {}; ringtun {}, {}",
                host.cpu, host.cores, host.architecture, host.kernel, program.version, program.build
            ),
            format!(
                "{} workers an end on {}, AEAD {}, TUN {}, UDP {}, steering {}; {} × {} s",
                program.workers,
                program.io,
                program.aead,
                list(&program.tun_offloads),
                list(&program.udp_offloads),
                list(&program.steering),
                self.settings.rounds,
                self.settings.seconds
            ),
        ]
    }

    /// What the results depend on beside the tests, by name.
    pub(super) fn circumstances(&self) -> Vec<(String, String)> {
        let (host, program, settings) = (&self.host, &self.program, &self.settings);
        let variables = program.environment.iter().map(|(name, value)| format!("{name}={value}"));
        let own_choice = || "by default".to_owned();
        let mut all = vec![
            ("CPU", host.cpu.clone()),
            ("architecture", host.architecture.clone()),
            ("cores", host.cores.to_string()),
            ("CPU quota", host.cpu_quota.clone().unwrap_or_else(|| "none".into())),
            ("kernel", host.kernel.clone()),
            ("ringtun", program.version.clone()),
            ("build", program.build.clone()),
            ("AEAD", program.aead.clone()),
            ("I/O backend", program.io.clone()),
            ("workers an end", program.workers.to_string()),
            ("TUN offloads", program.tun_offloads.join(", ")),
            ("UDP offloads", program.udp_offloads.join(", ")),
            ("steering", program.steering.join(", ")),
            ("environment", variables.collect::<Vec<_>>().join(" ")),
            ("seconds", settings.seconds.to_string()),
            ("rounds", settings.rounds.to_string()),
            ("--workers", settings.workers.map_or_else(own_choice, |workers| workers.to_string())),
        ];
        all.iter_mut().filter(|(_, value)| value.is_empty()).for_each(|(_, value)| *value = "none".into());
        let named = |(name, value): (&str, String)| (name.to_owned(), value);
        let loads = self.tests.iter().map(|test| (format!("load of {}", test.name), test.load.clone()));
        all.into_iter().map(named).chain(loads).collect()
    }

    /// Reads a report from a file.
    ///
    /// # Errors
    ///
    /// Where there is none, or it is no report, or one of a newer form.
    pub fn read(file: &Path) -> std::io::Result<BenchReport> {
        let invalid = |what: String| std::io::Error::new(std::io::ErrorKind::InvalidData, what);
        let report: BenchReport = serde_json::from_slice(&std::fs::read(file)?)
            .map_err(|error| invalid(format!("expected the JSON of `ringtun bench`: {error}")))?;
        match report.format {
            FORMAT => Ok(report),
            0 => Err(invalid("expected the JSON of `ringtun bench`, found another".into())),
            newer => Err(invalid(format!(
                "its form is {newer}, this program's is {FORMAT}: use the ringtun that wrote it, or a newer one"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_are_grouped_by_three_digits() {
        let texts = [0.0, 7.4, 999.0, 1000.0, 214_000.0, 1_234_567.8].map(grouped);
        assert_eq!(texts, ["0", "7", "999", "1,000", "214,000", "1,234,568"]);
    }

    #[test]
    fn medians_and_quantiles_are_those_of_the_books() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!((quantile(&hundred, 0.5), quantile(&hundred, 0.99)), (Some(50.0), Some(99.0)));
        assert_eq!(
            (quantile(&[7.0], 0.5), quantile(&[7.0], 0.99), quantile(&[], 0.5)),
            (Some(7.0), Some(7.0), None)
        );
    }

    proptest! {
        #[test]
        fn a_quantile_is_one_of_the_values_and_splits_them(
            mut values in prop::collection::vec(0.0..1e6, 1..200), share in 0.01..1.0
        ) {
            values.sort_by(f64::total_cmp);
            let found = quantile(&values, share).unwrap();
            let up_to = values.iter().filter(|value| **value <= found).count() as f64;
            let below = values.iter().filter(|value| **value < found).count() as f64;
            prop_assert!(up_to >= share * values.len() as f64 && below <= share * values.len() as f64);
        }
    }

    #[test]
    fn a_test_concludes_with_medians_and_ratios_of_results_alone() {
        let round = |tunnel, veth| BenchRound {
            tunnel: BenchFigures { gbps: Some(tunnel), cores: Some(1.0), ..BenchFigures::default() },
            veth: BenchFigures { gbps: Some(veth), ..BenchFigures::default() },
        };
        let rounds = vec![round(2.0, 10.0), round(9.0, 20.0), round(4.0, 16.0)];
        let mut test = BenchTest { rounds, ..BenchTest::default() };
        test.conclude();
        assert_eq!((test.tunnel.gbps, test.veth.gbps, test.ratio.gbps), (Some(4.0), Some(16.0), Some(0.25)));
        assert_eq!((test.tunnel.cores, test.ratio.cores, test.ratio.p50_us), (Some(1.0), None, None));
        let nothing = BenchFigures { gbps: Some(0.0), ..BenchFigures::default() };
        assert_eq!(test.tunnel.divided_by(&nothing).gbps, None);
    }

    #[test]
    fn a_report_is_read_as_it_was_written_and_what_is_none_is_refused() {
        let path = std::env::temp_dir().join(format!("rt-bench-{}.json", std::process::id()));
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            BenchReport::read(&path)
        };
        let figures = BenchFigures { p99_us: Some(1.5), ..BenchFigures::default() };
        let test = BenchTest { name: "rtt".into(), tunnel: figures, ..BenchTest::default() };
        let report = BenchReport { format: FORMAT, tests: vec![test], ..BenchReport::default() };
        let text = serde_json::to_string(&report).unwrap();
        assert!(text.contains("\"p99_us\":1.5") && !text.contains("gbps"), "{text}");
        assert_eq!(read(&text).unwrap(), report);
        let said = |text| read(text).unwrap_err().to_string();
        assert!(said("{\"peers\": 1}").contains("found another"));
        assert!(said("{").contains("expected the JSON"));
        assert!(said("{\"format\": 99}").contains("its form is 99"));
        std::fs::remove_file(&path).unwrap();
        assert!(BenchReport::read(&path).is_err());
    }

    #[test]
    fn every_figure_has_a_name_of_its_own_and_is_found_by_it() {
        for (at, kind) in FIGURES.iter().enumerate() {
            let mut figures = BenchFigures::default();
            kind.set(&mut figures, Some(at as f64 + 1.0));
            let json = serde_json::to_value(figures).unwrap();
            assert_eq!(json, serde_json::json!({ kind.name: at as f64 + 1.0 }));
            assert_eq!(kind.of(&figures), Some(at as f64 + 1.0));
        }
    }
}
