//! Whether to busy-poll a moment longer before sleeping.
//!
//! A packet that leaves a quiet worker is often a question whose answer is back within a few hundred microseconds. To
//! sleep meanwhile costs more than the work on that answer: the core goes idle, is woken by an interrupt from another
//! core, and its caches have gone cold. So a worker that sent after a long sleep busy-polls for a while.
//!
//! Where no answer arrives in that time, as with one-way or distant traffic, the worker busy-polls ever more rarely.
//! Under load, when sleeps are short, it never does.

use crate::dataplane::stats::{WorkerStats, add};
use crate::time::Instant;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// How long to busy-poll, counted from the wake-up before the send.
const PATIENCE: Duration = Duration::from_micros(500);
/// Length of a sleep from which on a worker counts as quiet. With [`PATIENCE`], busy-polling takes at most a third of
/// a core.
const QUIET: Duration = Duration::from_millis(1);
/// Upper end of `n`: after `n` busy-polls in vain, the next 2^n chances are passed over.
const MAX_VAIN: u32 = 8;

/// What a worker did so far: how many trains of data it sent, how many trains it received, and how long it slept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Done {
    sent: u64,
    received: u64,
    slept: Duration,
}

impl Done {
    /// What the counters say.
    pub(super) fn by(stats: &WorkerStats) -> Done {
        Done {
            sent: stats.tx_trains.load(Relaxed),
            received: stats.rx_trains.load(Relaxed),
            slept: Duration::from_nanos(stats.io_slept_nanos.load(Relaxed)),
        }
    }

    /// What was done since `before`.
    pub(super) fn since(self, before: Done) -> Done {
        Done {
            sent: self.sent - before.sent,
            received: self.received - before.received,
            slept: self.slept - before.slept,
        }
    }
}

/// What one worker remembers of its busy-polls.
#[derive(Default)]
pub(super) struct Patience {
    /// When to give up the busy-poll under way.
    deadline: Option<Instant>,
    vain: u32,
    skip: u32,
}

impl Patience {
    /// The time to pass to [`crate::io::Io::wait`] after a turn that began at `now` and left nothing to do. `done` is
    /// what was done since the last such turn.
    pub(super) fn wait_until(&mut self, now: Instant, done: Done, stats: &WorkerStats) -> Option<Instant> {
        let is_answered = done.received > 0;
        if let Some(deadline) = self.deadline {
            if !is_answered && now < deadline {
                return Some(now);
            }
            *self = match is_answered {
                true => Patience::default(),
                false => {
                    let vain = (self.vain + 1).min(MAX_VAIN);
                    Patience { deadline: None, vain, skip: 1 << vain }
                }
            };
            add(&stats.busy_polls_answered, usize::from(is_answered));
            return None;
        }
        if done.slept < QUIET || done.sent == 0 || is_answered {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        add(&stats.busy_polls, 1);
        self.deadline = Some(now + PATIENCE);
        Some(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_millis(2);
    const SENT: Done = Done { sent: 1, received: 0, slept: LONG };
    const RECEIVED: Done = Done { sent: 0, received: 1, slept: Duration::ZERO };
    const NOTHING: Done = Done { sent: 0, received: 0, slept: Duration::ZERO };

    fn at(micros: u64) -> Instant {
        Instant::START + Duration::from_micros(micros)
    }

    #[test]
    fn a_quiet_worker_polls_for_the_answer_and_then_sleeps() {
        let (mut patience, stats) = (Patience::default(), WorkerStats::default());
        for round in 0..10 {
            let start = 10_000 * round;
            assert_eq!(patience.wait_until(at(start), SENT, &stats), Some(at(start)));
            assert_eq!(patience.wait_until(at(start + 100), NOTHING, &stats), Some(at(start + 100)));
            assert_eq!(patience.wait_until(at(start + 200), RECEIVED, &stats), None);
            assert_eq!(
                patience.wait_until(at(start + 5000), Done { slept: LONG, ..RECEIVED }, &stats),
                None,
                "no question"
            );
        }
        assert_eq!((stats.busy_polls.into_inner(), stats.busy_polls_answered.into_inner()), (10, 10));
    }

    #[test]
    fn it_tries_ever_more_rarely_where_no_answer_comes_and_again_where_one_does() {
        let (mut patience, stats) = (Patience::default(), WorkerStats::default());
        let mut tries = |rounds: u64, answered: bool| {
            (0..rounds)
                .filter(|round| {
                    let start = 10_000 * round;
                    let polls = patience.wait_until(at(start), SENT, &stats).is_some();
                    let then = if answered { RECEIVED } else { NOTHING };
                    assert_eq!(patience.wait_until(at(start + 600), then, &stats), None);
                    polls
                })
                .count()
        };
        assert_eq!(tries(10_000, false), 45, "1 + 2 + 4 … + 256 let go, then every 257th");
        assert!(tries(1000, true) > 700);
        assert_eq!(tries(100, true), 100);
    }

    #[test]
    fn it_never_polls_under_load() {
        let (mut patience, stats) = (Patience::default(), WorkerStats::default());
        for slept in [0, 10, 500, 999].map(Duration::from_micros) {
            assert_eq!(patience.wait_until(at(1000), Done { slept, ..SENT }, &stats), None);
        }
        assert_eq!(
            patience.wait_until(at(1000), Done { received: 1, ..SENT }, &stats),
            None,
            "its own answer"
        );
    }
}
