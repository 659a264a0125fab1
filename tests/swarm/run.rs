//! One run of a plan, or of a part of its events; and the smallest part that still fails.

use crate::plan::{Plan, Timed};
use crate::stage::Stage;
use ringtun::sim::{Datagram, Tapped};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// How long shrinking may take.
const SHRINKING: Duration = Duration::from_secs(120);

thread_local! {
    /// Whether this thread's panics are outcomes, and not for the terminal.
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// What a run that went well came to.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Report {
    pub(crate) time: Duration,
    pub(crate) arrived: u64,
    pub(crate) handshakes: u64,
}

/// What no run may show.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Fault {
    pub(crate) round: usize,
    pub(crate) what: String,
}

impl Fault {
    /// What kind of fault it is: the word before the colon.
    fn kind(&self) -> &str {
        self.what.split(':').next().unwrap_or_default()
    }
}

/// Runs the events of `plan` whose numbers are in `keep`. Where that fails, it prints as many of the last datagrams as `trace` says.
pub(crate) fn run(plan: &Plan, keep: &BTreeSet<usize>, trace: Option<usize>) -> Result<Report, Fault> {
    quietly(|| play(plan, keep, trace))
}

fn play(plan: &Plan, keep: &BTreeSet<usize>, trace: Option<usize>) -> (usize, Result<Report, String>) {
    let mut round = 0;
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut stage = Stage::new(plan);
        let outcome = stage.play(plan, keep, &mut round);
        if let (Err(_), Some(lines)) = (&outcome, trace) {
            stage.print_wire(lines);
        }
        outcome
    }));
    let failed = |panic: Box<dyn std::any::Any + Send>| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(format!("panic: {}", text.unwrap_or_default()))
    };
    (round, outcome.unwrap_or_else(failed))
}

fn quietly(play: impl FnOnce() -> (usize, Result<Report, String>)) -> Result<Report, Fault> {
    QUIET.set(true);
    let (round, outcome) = play();
    QUIET.set(false);
    outcome.map_err(|what| Fault { round, what })
}

/// Keeps panics that are outcomes off the terminal. To be called once, before the first run.
pub(crate) fn hush() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                hook(info);
            }
        }));
    });
}

impl Stage {
    fn play(&mut self, plan: &Plan, keep: &BTreeSet<usize>, round: &mut usize) -> Result<Report, String> {
        for (number, part) in plan.rounds.iter().enumerate() {
            *round = number;
            let events = plan.events.iter().enumerate();
            let events = events.filter(|(i, timed)| timed.round == number && keep.contains(i));
            self.schedule(events.map(|(_, timed)| timed));
            self.run(part.storm)?;
            self.check_calm(part)?;
        }
        self.check_end()?;
        Ok(self.report())
    }

    /// Prints the last datagrams of the wire.
    fn print_wire(&self, lines: usize) {
        let mut tapped: Vec<_> = self.world.network.tap().rev().take(lines).collect();
        tapped.reverse();
        for Tapped { at, datagram } in tapped {
            let (seconds, Datagram { from, to, bytes, .. }) = (at.as_nanos() as f64 / 1e9, datagram);
            let kind = datagram.kind().map_or("none".into(), |kind| format!("{kind:?}"));
            let index =
                |at: usize| bytes.get(at..at + 4).map_or(0, |b| u32::from_le_bytes(b.try_into().unwrap()));
            let counter = datagram.data().map_or(0, |header| header.counter);
            println!(
                "{seconds:14.6} {from} > {to} {kind} {} bytes, indices {:#x} {:#x}, counter {counter}",
                bytes.len(),
                index(4),
                index(8)
            );
        }
    }

    fn report(&self) -> Report {
        let handshakes = |host: usize| {
            let counters = self.look(host).state().stats().snapshot();
            counters
                .into_iter()
                .filter(|(name, _)| *name == "responses_accepted")
                .map(|(_, count)| count)
                .sum::<u64>()
        };
        Report {
            time: self.world.now().since(ringtun::time::Instant::START),
            arrived: self.account.arrived,
            handshakes: (0..self.sites.len()).map(handshakes).sum(),
        }
    }
}

/// Leaves out events as long as `fails` says that the rest still fails in the same way (delta debugging: Zeller and Hildebrandt,
/// 2002).
pub(crate) fn shrink(
    all: &BTreeSet<usize>,
    mut fails: impl FnMut(&BTreeSet<usize>) -> bool,
) -> BTreeSet<usize> {
    let mut kept: Vec<usize> = all.iter().copied().collect();
    let (mut parts, begun) = (2, Instant::now());
    while !kept.is_empty() && begun.elapsed() < SHRINKING {
        let size = kept.len().div_ceil(parts);
        let without = (0..kept.len().div_ceil(size)).find_map(|part| {
            let rest: Vec<usize> =
                kept.iter().enumerate().filter(|(i, _)| i / size != part).map(|(_, &event)| event).collect();
            fails(&rest.iter().copied().collect()).then_some(rest)
        });
        match without {
            Some(rest) => (kept, parts) = (rest, parts.saturating_sub(1).max(2)),
            None if size == 1 => break,
            None => parts = (parts * 2).min(kept.len()),
        }
    }
    kept.into_iter().collect()
}

/// Shrinks a run that failed, and says all that is needed to repeat it.
pub(crate) fn explain(plan: &Plan, keep: &BTreeSet<usize>, fault: &Fault) -> String {
    let before: BTreeSet<usize> =
        keep.iter().copied().filter(|&event| plan.events[event].round <= fault.round).collect();
    let mut last = fault.clone();
    let kept = shrink(&before, |keep| match run(plan, keep, None) {
        Err(other) if other.kind() == fault.kind() => {
            last = other;
            true
        }
        _ => false,
    });
    let mut text = format!("seed {} fails in round {}: {}\n", plan.seed, fault.round, fault.what);
    let _ = writeln!(text, "{} of {} events are enough for: {}", kept.len(), before.len(), last.what);
    for &number in &kept {
        let Timed { round, at, event } = &plan.events[number];
        let _ = writeln!(text, "  {number}: round {round}, {:.3} s: {event}", at.as_secs_f64());
    }
    let numbers: Vec<String> = kept.iter().map(usize::to_string).collect();
    let list = if numbers.is_empty() { "none".into() } else { numbers.join(",") };
    let _ = writeln!(text, "repeat it with: scripts/simulate --seed {} --keep {list}", plan.seed);
    text
}
