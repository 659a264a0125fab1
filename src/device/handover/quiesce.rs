//! When all workers have come to rest.
//!
//! In the first round each finishes what it had taken in, and may pass datagrams on to another for that. So from the second round on
//! nothing but controls brings a worker anything. A round before which no control was sent and in which all have finished is the
//! last.

use crate::index::WorkerCount;

/// The rounds in which workers are asked whether they are done.
#[derive(Debug)]
pub struct Quiesce {
    round: u32,
    /// Whether each worker has yet to answer in this round.
    awaited: Vec<bool>,
    /// Whether a worker was given something to do since this round began.
    disturbed: bool,
}

impl Quiesce {
    /// Begins the first round. Give each worker [`crate::dataplane::Control::Rest`] with [`Self::round`].
    pub fn begin(workers: WorkerCount) -> Quiesce {
        Quiesce { round: 1, awaited: vec![true; workers.get()], disturbed: false }
    }

    /// The number of this round.
    pub fn round(&self) -> u32 {
        self.round
    }

    /// Notes that a worker was given a control.
    pub fn disturb(&mut self) {
        self.disturbed = true;
    }

    /// Notes that a worker has answered. An answer of an earlier round is none.
    pub fn rested(&mut self, worker: u8, round: u32) {
        if round == self.round
            && let Some(awaited) = self.awaited.get_mut(usize::from(worker))
        {
            *awaited = false;
        }
    }

    /// Whether all have answered in this round.
    pub fn is_answered(&self) -> bool {
        !self.awaited.contains(&true)
    }

    /// To be called once all have answered and all that they had reported before was handled. True where this round is the last. Else
    /// another one begins.
    pub fn ends(&mut self) -> bool {
        if self.round > 1 && !self.disturbed {
            return true;
        }
        *self = Quiesce { round: self.round + 1, awaited: vec![true; self.awaited.len()], disturbed: false };
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_round_is_the_last_unless_somebody_was_given_something_to_do() {
        let mut quiesce = Quiesce::begin(WorkerCount::nearest(2));
        let answer = |quiesce: &mut Quiesce| {
            let round = quiesce.round();
            quiesce.rested(0, round);
            assert!(!quiesce.is_answered());
            quiesce.rested(1, round - 1);
            quiesce.rested(7, round);
            assert!(!quiesce.is_answered(), "an answer of an earlier round, and one of nobody");
            quiesce.rested(1, round);
            assert!(quiesce.is_answered());
        };
        for (disturbed, last) in [(false, false), (true, false), (false, true)] {
            if disturbed {
                quiesce.disturb();
            }
            answer(&mut quiesce);
            assert_eq!(quiesce.ends(), last);
        }
        assert_eq!(quiesce.round(), 3);
    }
}
