//! The trains of one kind that a worker shares out, in their order.

use crate::dataplane::assist::{AHEAD, Assist, DoneTrain, Job, JobKind, JobTask};
use crate::io::slab::Buf;
use crate::time::Instant;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// How long a train may take: ten times as long as it does where the kernel leaves the worker its core.
const LATE: Duration = Duration::from_micros(300);
/// How long nothing is shared out after that: so the waiting takes a few hundredths of the time at most.
const PAUSE: Duration = Duration::from_millis(100);

/// The trains under way, the oldest first, each with what its worker needs to know of it when it is released. That worker alone
/// has it.
pub(super) struct Reorder<T> {
    giver: u8,
    kind: JobKind,
    pub(super) assist: Arc<Assist>,
    /// The number of the oldest train.
    first: u64,
    /// Never more than [`AHEAD`].
    trains: VecDeque<(T, Option<DoneTrain>)>,
    /// Since when another worker has been at the oldest train, and this one has had nothing else to do.
    waiting_since: Option<Instant>,
    /// Until when nothing is shared out, since a train did not return in time.
    paused_until: Instant,
}

impl<T> Reorder<T> {
    pub(super) fn new(giver: u8, kind: JobKind, assist: Arc<Assist>) -> Reorder<T> {
        Reorder {
            giver,
            kind,
            assist,
            first: 0,
            trains: VecDeque::with_capacity(AHEAD),
            waiting_since: None,
            paused_until: Instant::START,
        }
    }

    /// Whether trains are shared out, or were a moment ago.
    pub(super) fn is_in_use(&self) -> bool {
        self.assist.is_engaged() || !self.trains.is_empty()
    }

    /// Whether trains may be shared out at `now`.
    pub(super) fn may_share(&self, now: Instant) -> bool {
        now >= self.paused_until
    }

    /// Notes, after a turn's work, whether this worker waits for another. Where that takes long, the other one's core is not its
    /// own, and nothing is shared out for a while. True where that begins.
    pub(super) fn note_waiting(&mut self, now: Instant) -> bool {
        if self.trains.is_empty() {
            self.waiting_since = None;
            return false;
        }
        let since = *self.waiting_since.get_or_insert(now);
        let stalls = now.since(since) >= LATE && self.may_share(now);
        if stalls {
            self.paused_until = now + PAUSE;
        }
        stalls
    }

    pub(super) fn is_empty(&self) -> bool {
        self.trains.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.room() == 0
    }

    /// Number of trains for which there is room.
    pub(super) fn room(&self) -> usize {
        AHEAD.saturating_sub(self.trains.len())
    }

    /// Takes a train in, behind all others. There must be room. Where nobody can take it over, it is done at once.
    pub(super) fn push(&mut self, train: T, buf: Buf, run: Range<usize>, stride: usize, task: JobTask) {
        let job = Job { giver: self.giver, number: self.next_number(), buf: buf.lend(), run, stride, task };
        let done = self.assist.give(job).err().map(Job::work);
        self.trains.push_back((train, done));
    }

    /// Takes a train in that is done already, behind all others. There must be room.
    pub(super) fn push_done(&mut self, train: T, buf: Buf) {
        let done = DoneTrain { number: self.next_number(), buf: buf.lend(), opened: None };
        self.trains.push_back((train, Some(done)));
    }

    fn next_number(&self) -> u64 {
        self.first + self.trains.len() as u64
    }

    /// The oldest train, once it is done. Until then this does trains itself. `None` where there is none, or where another worker
    /// is at the oldest and none is left to begin.
    pub(super) fn next(&mut self) -> Option<(T, DoneTrain)> {
        loop {
            while let Some(done) = self.assist.finished(self.giver, self.kind) {
                let at = done.number.wrapping_sub(self.first) as usize;
                if let Some((_, place)) = self.trains.get_mut(at) {
                    *place = Some(done);
                }
            }
            if self.trains.front()?.1.is_some() {
                break;
            }
            self.assist.work_once()?;
        }
        let (train, done) = self.trains.pop_front()?;
        self.first += 1;
        Some((train, done?))
    }
}
