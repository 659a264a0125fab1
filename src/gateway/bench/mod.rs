//! What this program does on this host: a benchmark in network namespaces of its own, through a tunnel and beside it.
//!
//! The host's interfaces, routes, forwarding and settings stay as they are.

mod child;
mod comparison;
mod facts;
mod generators;
mod lab;
mod plot;
mod report;
mod text;

pub use comparison::BenchComparison;
#[cfg(test)]
pub(crate) use lab::{OPTIONS, WITHHELD};
pub use report::BenchReport;

use crate::gateway::Failure;
use crate::gateway::interrupt::Interrupt;
use crate::gateway::rights::{NetAdmin, net_admin};
use generators::tcp::Streams;
use generators::{echo, iperf3, tcp, udp};
use lab::{BenchLab, Way};
use report::{BenchFigures, BenchRound, BenchSettings, BenchTest, FORMAT};
use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

/// What the kernel makes tunnels' interfaces by.
const TUN_DEVICE: &str = "/dev/net/tun";
/// How long the first packet through a tunnel may take.
const FIRST_ANSWER: Duration = Duration::from_secs(10);

/// One test.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TestKind {
    /// One TCP stream.
    Tcp1,
    /// Eight TCP streams.
    Tcp8,
    /// One TCP stream from the far end.
    Reverse,
    /// Small UDP packets, as many as go.
    Udp16,
    /// Round trips while nothing else goes.
    Rtt,
}

impl TestKind {
    /// All tests, in the order in which they run.
    pub const ALL: [TestKind; 5] =
        [TestKind::Tcp1, TestKind::Tcp8, TestKind::Reverse, TestKind::Udp16, TestKind::Rtt];

    /// Its name in results.
    const fn name(self) -> &'static str {
        match self {
            TestKind::Tcp1 => "tcp1",
            TestKind::Tcp8 => "tcp8",
            TestKind::Reverse => "reverse",
            TestKind::Udp16 => "udp16",
            TestKind::Rtt => "rtt",
        }
    }

    const fn words(self) -> &'static str {
        match self {
            TestKind::Tcp1 => "one TCP stream",
            TestKind::Tcp8 => "eight TCP streams",
            TestKind::Reverse => "one TCP stream, from the far end",
            TestKind::Udp16 => "UDP packets of 16 bytes",
            TestKind::Rtt => "round trip while idle",
        }
    }

    /// Its streams of TCP, if it has some.
    const fn streams(self) -> Option<Streams> {
        match self {
            TestKind::Tcp1 => Some(Streams { count: 1, from_far: false }),
            TestKind::Tcp8 => Some(Streams { count: 8, from_far: false }),
            TestKind::Reverse => Some(Streams { count: 1, from_far: true }),
            TestKind::Udp16 | TestKind::Rtt => None,
        }
    }
}

/// What to measure, and how.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BenchRequest {
    /// The length of each measurement in seconds.
    pub seconds: u32,
    /// How often each is repeated, with new tunnels.
    pub rounds: u32,
    /// The workers of each tunnel. `None` is the program's own choice.
    pub workers: Option<u16>,
    /// The tests.
    pub tests: Vec<TestKind>,
    /// Whether iperf3 makes the TCP streams where it is installed.
    pub iperf3: bool,
}

/// Measures this host. `progress` hears of each step before it begins.
///
/// # Errors
///
/// Where namespaces and tunnels cannot be made here, with the remedy; where nothing arrives; and where a signal arrives. Nothing
/// stays behind in any case.
pub fn measure(request: &BenchRequest, progress: &mut dyn FnMut(&str)) -> Result<BenchReport, Failure> {
    check_host()?;
    let interrupt = Interrupt::catch()?;
    let program = if request.iperf3 { iperf3::find() } else { None };
    let bench = Benchmark { request, interrupt, host: facts::host(), iperf3: program };
    let mut report = BenchReport {
        format: FORMAT,
        host: bench.host.clone(),
        settings: BenchSettings {
            seconds: request.seconds,
            rounds: request.rounds,
            workers: request.workers,
        },
        tests: request.tests.iter().map(|&test| named(test)).collect(),
        ..BenchReport::default()
    };
    for round in 1..=request.rounds {
        let say = &mut |what: &str| progress(&format!("round {round} of {}: {what}", request.rounds));
        bench.round(&mut report, say)?;
    }
    report.tests.iter_mut().for_each(BenchTest::conclude);
    Ok(report)
}

fn named(test: TestKind) -> BenchTest {
    BenchTest { name: test.name().to_owned(), words: test.words().to_owned(), ..BenchTest::default() }
}

/// Fails where it is plain from the start that no tunnel can be made, with what helps.
fn check_host() -> Result<(), Failure> {
    if net_admin() != NetAdmin::Held {
        return Err(Failure::new(
            "`ringtun bench' makes network namespaces and tunnels in them, which needs root: sudo ringtun bench \
             (for a container --cap-add SYS_ADMIN --cap-add NET_ADMIN)",
        ));
    }
    match OpenOptions::new().read(true).write(true).open(TUN_DEVICE) {
        Ok(_) => Ok(()),
        Err(error) => {
            let remedy = match error.kind() {
                ErrorKind::PermissionDenied => "run it as root, and allow the device to the container",
                _ => "modprobe tun; give a container the device (--device /dev/net/tun)",
            };
            Err(Failure::of(format!("no tunnel can be made here: {remedy}: {TUN_DEVICE}"))(error))
        }
    }
}

/// A run under way.
struct Benchmark<'a> {
    request: &'a BenchRequest,
    interrupt: Interrupt,
    host: report::BenchHost,
    iperf3: Option<PathBuf>,
}

impl Benchmark<'_> {
    /// Lays a tunnel, measures each test through it and beside it, and takes everything down.
    fn round(&self, report: &mut BenchReport, say: &mut dyn FnMut(&str)) -> Result<(), Failure> {
        let lab = BenchLab::new(self.request.workers, &self.interrupt)?;
        let (tunnel, veth) = (lab.tunnel(), lab.veth());
        for way in [&veth, &tunnel] {
            if !echo::reaches(way, FIRST_ANSWER, &self.interrupt)? {
                let where_to = if way.is_tunnel() { "through the tunnel" } else { "over the veth pair" };
                return Err(Failure::new(format!("nothing comes back {where_to}: {}", lab.complaints())));
            }
        }
        report.program = facts::program(&lab.status()?);
        for (&kind, test) in self.request.tests.iter().zip(&mut report.tests) {
            let mut round = BenchRound::default();
            for (way, words, figures) in
                [(&tunnel, "the tunnel", &mut round.tunnel), (&veth, "bare veth", &mut round.veth)]
            {
                say(&format!("{}: {}, {words}", kind.name(), kind.words()));
                (*figures, test.load) = self.one(way, kind).map_err(|failure| Failure::Caused {
                    what: format!("{} over {words}", kind.name()),
                    source: Box::new(failure),
                })?;
            }
            test.rounds.push(round);
        }
        Ok(())
    }

    /// One measurement, and what made its load.
    fn one(&self, way: &Way<'_>, kind: TestKind) -> Result<(BenchFigures, String), Failure> {
        let length = Duration::from_secs(self.request.seconds.into());
        let own = |figures| (figures, "own".to_owned());
        match (kind.streams(), &self.iperf3, kind) {
            (Some(streams), Some(program), _) => iperf3::run(program, way, streams, length, &self.interrupt),
            (Some(streams), None, _) => tcp::run(way, streams, length, &self.interrupt).map(own),
            (None, _, TestKind::Rtt) => echo::run(way, length, &self.interrupt).map(own),
            (None, _, _) => udp::run(way, self.host.cores, length, &self.interrupt).map(own),
        }
    }
}
