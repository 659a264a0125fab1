//! `bench`: what this host does with this program.

use super::output::print_bytes;
use crate::gateway::Failure;
use crate::gateway::bench::{BenchComparison, BenchReport, BenchRequest, TestKind, measure};
use clap::{Args, ValueEnum};
use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};

#[derive(Args)]
#[command(after_help = "Examples:
  sudo ringtun bench                 all tests, 3 s each, through the tunnel and beside it: about a minute
  sudo ringtun bench --seconds 1 --only tcp1,rtt --json before.json
  sudo ringtun bench --seconds 1 --rounds 3 --only udp16 --svg udp16.svg
  RINGTUN_IO=syscalls ringtun bench --seconds 1 --only rtt --json - | jq '.tests[].tunnel'
  ringtun bench --compare before.json after.json

It makes two network namespaces with a veth pair between them and runs this program as a tunnel at both ends; nothing stays behind, and \
the host's own interfaces and settings are not touched. Both ends and the load share this host's cores: less arrives than between two \
hosts, and cores per Gb/s is the figure to compare. The bare veth pair beside it is the most that this host could give.

Variables RINGTUN_… set options of both tunnels, as `ringtun --help` lists them, and stand in the result.")]
pub(super) struct BenchArgs {
    /// Length of each measurement, in seconds
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// How often to repeat each, with new tunnels; the results are medians
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Workers of each tunnel [default: one for each core that affinity and CPU quota allow]
    #[arg(long, value_name = "N", env = "RINGTUN_WORKERS", value_parser = clap::value_parser!(u16).range(1..=256))]
    workers: Option<u16>,
    /// These tests alone
    #[arg(long, value_name = "TEST,…", value_delimiter = ',')]
    only: Vec<TestArg>,
    /// Make the TCP streams by own threads, also where iperf3 is installed
    #[arg(long)]
    no_iperf3: bool,
    /// Write the results as JSON; - is standard output, without the table
    #[arg(long, value_name = "FILE|-")]
    json: Option<PathBuf>,
    /// Draw the results
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Measure nothing, and compare two results
    #[arg(long, num_args = 2, value_names = ["FILE", "FILE"], conflicts_with_all = ["seconds", "rounds", "only", "no_iperf3"])]
    compare: Option<Vec<PathBuf>>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TestArg {
    /// One TCP stream
    Tcp1,
    /// Eight TCP streams
    Tcp8,
    /// One TCP stream, from the far end
    Reverse,
    /// UDP packets of 16 bytes, as many as go
    Udp16,
    /// Round trips while nothing else goes
    Rtt,
}

impl TestArg {
    fn kind(self) -> TestKind {
        match self {
            TestArg::Tcp1 => TestKind::Tcp1,
            TestArg::Tcp8 => TestKind::Tcp8,
            TestArg::Reverse => TestKind::Reverse,
            TestArg::Udp16 => TestKind::Udp16,
            TestArg::Rtt => TestKind::Rtt,
        }
    }
}

pub(super) fn run(args: &BenchArgs) -> Result<(), Failure> {
    // That a file cannot be written is to be known before a minute of measuring.
    let mut json = OutputFile::open(args.json.as_deref())?;
    let mut svg = OutputFile::open(args.svg.as_deref())?;
    match args.compare.as_deref() {
        Some([first, second]) => {
            let reports = [read(first)?, read(second)?];
            let comparison = BenchComparison::of(names(first, second), reports.each_ref());
            write_json(&mut json, &comparison)?;
            svg.write(&comparison.drawing(reports.each_ref()))?;
            if json.is_standard { Ok(()) } else { print_bytes(comparison.text().as_bytes()) }
        }
        _ => {
            let report = measure(&request(args), &mut |step| eprintln!("ringtun: {step}"))?;
            write_json(&mut json, &report)?;
            svg.write(&report.drawing())?;
            if json.is_standard { Ok(()) } else { print_bytes(report.text().as_bytes()) }
        }
    }
}

fn request(args: &BenchArgs) -> BenchRequest {
    let wanted = |kind: &TestKind| args.only.is_empty() || args.only.iter().any(|only| only.kind() == *kind);
    BenchRequest {
        seconds: args.seconds,
        rounds: args.rounds,
        workers: args.workers,
        tests: TestKind::ALL.into_iter().filter(wanted).collect(),
        iperf3: !args.no_iperf3,
    }
}

fn read(file: &Path) -> Result<BenchReport, Failure> {
    BenchReport::read(file).map_err(Failure::of(file.display()))
}

/// What to call two files: by their names, unless these are the same.
fn names(first: &Path, second: &Path) -> [String; 2] {
    let short = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    match short(first) == short(second) {
        true => [first, second].map(|path| path.display().to_string()),
        false => [short(first), short(second)],
    }
}

fn write_json(file: &mut OutputFile, value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(Failure::of("cannot write JSON"))?;
    file.write(&(text + "\n"))
}

/// A file that is written at the end, standard output, or nothing.
#[derive(Default)]
struct OutputFile {
    is_standard: bool,
    file: Option<(PathBuf, File)>,
    /// Whether there is a file only since it was opened here, and nothing is in it.
    is_new: bool,
}

impl OutputFile {
    /// Opens it, and leaves what is in it.
    fn open(path: Option<&Path>) -> Result<OutputFile, Failure> {
        let Some(path) = path else { return Ok(OutputFile::default()) };
        if path == Path::new("-") {
            return Ok(OutputFile { is_standard: true, file: None, is_new: false });
        }
        let is_new = !path.exists();
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path);
        let file = file.map_err(Failure::of(format!("cannot write {}", path.display())))?;
        Ok(OutputFile { is_standard: false, file: Some((path.to_owned(), file)), is_new })
    }

    fn write(&mut self, text: &str) -> Result<(), Failure> {
        if self.is_standard {
            return print_bytes(text.as_bytes());
        }
        let Some((path, file)) = &mut self.file else { return Ok(()) };
        self.is_new = false;
        // A pipe has no length to set, and no place to go back to.
        let _ = file.set_len(0).and_then(|()| file.rewind());
        file.write_all(text.as_bytes()).map_err(Failure::of(format!("cannot write {}", path.display())))
    }
}

impl Drop for OutputFile {
    fn drop(&mut self) {
        if let Some((path, _)) = self.file.as_ref().filter(|_| self.is_new) {
            let _ = std::fs::remove_file(path); // as it was before
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_keeps_what_is_in_it_until_there_is_something_to_write() {
        let path = std::env::temp_dir().join(format!("rt-bench-output-{}", std::process::id()));
        drop(OutputFile::open(Some(&path)).unwrap());
        assert!(!path.exists(), "it was new, and nothing was written");
        std::fs::write(&path, "a long text of before").unwrap();
        drop(OutputFile::open(Some(&path)).unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "a long text of before");
        OutputFile::open(Some(&path)).unwrap().write("new").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
        std::fs::remove_file(&path).unwrap();
        assert!(OutputFile::open(Some(Path::new("/nonexistent/file"))).is_err());
        assert!(OutputFile::open(Some(Path::new("-"))).unwrap().is_standard);
        assert!(OutputFile::open(None).unwrap().write("nowhere").is_ok());
    }

    #[test]
    fn every_variable_of_a_tunnels_options_is_passed_on_or_withheld() {
        use crate::gateway::bench::{OPTIONS, WITHHELD};
        use clap::CommandFactory;
        let cli = super::super::args::Cli::command();
        let variables: Vec<_> =
            cli.get_arguments().filter_map(|argument| argument.get_env()?.to_str()).collect();
        assert!(variables.len() > 10, "{variables:?}");
        let is_known = |name: &&str| OPTIONS.contains(name) != WITHHELD.contains(name);
        assert!(variables.iter().all(is_known), "{variables:?}");
        assert!(OPTIONS.iter().all(|name| variables.contains(name)), "{variables:?}");
    }

    #[test]
    fn files_of_one_name_are_called_by_their_paths() {
        let of = |first: &str, second: &str| names(Path::new(first), Path::new(second));
        assert_eq!(of("x/a.json", "b.json"), ["a.json", "b.json"]);
        assert_eq!(of("x/a.json", "a.json"), ["x/a.json", "a.json"]);
    }
}
