//! What makes a load and counts what arrives. Sockets are made in the namespaces, and belong to them whoever uses them: the
//! threads that do are this process's own.

pub(super) mod echo;
pub(super) mod iperf3;
pub(super) mod tcp;
pub(super) mod udp;

use super::lab::Way;
use super::report::BenchFigures;
use crate::gateway::Failure;
use crate::gateway::interrupt::Interrupt;
use std::time::{Duration, Instant};

/// How long a load runs before it is measured: TCP has found its rate by then.
const WARM_UP: Duration = Duration::from_millis(300);
/// How often a generator looks whether it is to end, and a pause whether a signal arrived.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// What was counted between two moments.
struct Window<const N: usize> {
    seconds: f64,
    cpu_seconds: f64,
    counts: [u64; N],
}

/// Counts what happens in `length`, once the load has warmed up.
fn window<const N: usize>(
    way: &Way<'_>,
    length: Duration,
    interrupt: &Interrupt,
    count: impl Fn() -> std::io::Result<[u64; N]>,
) -> Result<Window<N>, Failure> {
    let look = || Ok((Instant::now(), way.cpu_seconds()?, count()?));
    let look = || look().map_err(|error: std::io::Error| Failure::of("cannot count")(error));
    pause(WARM_UP, interrupt)?;
    let (begun, cpu, before) = look()?;
    pause(length, interrupt)?;
    let (ended, cpu_after, after) = look()?;
    Ok(Window {
        seconds: (ended - begun).as_secs_f64(),
        cpu_seconds: cpu_after - cpu,
        counts: std::array::from_fn(|at| after[at].wrapping_sub(before[at])),
    })
}

/// Waits. Fails once a signal arrives.
pub(super) fn pause(length: Duration, interrupt: &Interrupt) -> Result<(), Failure> {
    let until = Instant::now() + length;
    loop {
        interrupt.check()?;
        match until.checked_duration_since(Instant::now()) {
            None => return Ok(()),
            Some(left) => std::thread::sleep(left.min(LOOK_INTERVAL)),
        }
    }
}

/// Figures without any result, with what both tunnels cost. Beside the tunnel nothing does.
fn costs(way: &Way<'_>, cpu_seconds: f64, seconds: f64) -> BenchFigures {
    let cores = way.is_tunnel().then(|| cpu_seconds / seconds);
    BenchFigures { cores, ..BenchFigures::default() }
}
