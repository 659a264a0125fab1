//! The trains of an owner that are shared out, in the order of arrival.

use crate::crypto::aead::AeadKey;
use crate::dataplane::assist::{AHEAD, Assist, OpenJob, OpenedTrain};
use crate::io::LocalAddr;
use crate::io::slab::Buf;
use crate::time::Instant;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// How long opening a train may take: ten times as long as it does where the kernel leaves the worker its core.
const LATE: Duration = Duration::from_micros(300);
/// How long nothing is shared out after that: so the waiting takes a few hundredths of the time at most.
const PAUSE: Duration = Duration::from_millis(100);

/// Where a train came from, and how.
#[derive(Clone, Copy)]
pub(super) struct Origin {
    pub(super) from: SocketAddr,
    pub(super) to: Option<LocalAddr>,
    /// Outer ECN bits.
    pub(super) ecn: u8,
}

/// A train between its arrival and its release.
struct WaitingTrain {
    train: TrainInfo,
    opened: Option<OpenedTrain>,
}

/// What the owner needs to know of a train when it is released.
pub(super) struct TrainInfo {
    /// The receiver index of its first message.
    pub(super) receiver: u32,
    /// Where it lies in its buffer.
    pub(super) run: Range<usize>,
    pub(super) stride: usize,
    pub(super) origin: Origin,
}

/// The trains under way, the oldest first. The owner alone has it.
pub(super) struct Reorder {
    owner: u8,
    pub(super) assist: Arc<Assist>,
    /// The number of the oldest train.
    first: u64,
    trains: VecDeque<WaitingTrain>,
    /// Since when another worker has been at the oldest train, and this one has had nothing else to open.
    waiting_since: Option<Instant>,
    /// Until when nothing is shared out, since a train did not return in time.
    paused_until: Instant,
}

impl Reorder {
    pub(super) fn new(owner: u8, assist: Arc<Assist>) -> Reorder {
        Reorder {
            owner,
            assist,
            first: 0,
            trains: VecDeque::new(),
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
        self.trains.len() >= AHEAD
    }

    /// Takes a train in, behind all others. There must be room. Where nobody can take it over, it is opened at once.
    pub(super) fn push(&mut self, train: TrainInfo, buf: Buf, key: Arc<AeadKey>) {
        let buf = buf.lend();
        let number = self.first + self.trains.len() as u64;
        let TrainInfo { receiver, stride, .. } = train;
        let run = train.run.clone();
        let job = OpenJob { owner: self.owner, number, buf, run, stride, receiver, key };
        let opened = self.assist.give(job).err().map(OpenJob::work);
        self.trains.push_back(WaitingTrain { train, opened });
    }

    /// The oldest train, once it is opened. Until then this opens trains itself. `None` where there is none, or where another
    /// worker is at the oldest and none is left to begin.
    pub(super) fn next(&mut self) -> Option<(TrainInfo, OpenedTrain)> {
        loop {
            while let Some(opened) = self.assist.finished(self.owner) {
                self.put(opened);
            }
            if self.trains.front()?.opened.is_some() {
                break;
            }
            self.work_once().then_some(())?;
        }
        let WaitingTrain { train, opened } = self.trains.pop_front()?;
        self.first += 1;
        Some((train, opened?))
    }

    /// Opens one train, of whatever worker. False where none is left to begin.
    pub(super) fn work_once(&mut self) -> bool {
        let Some(job) = self.assist.take() else { return false };
        let owner = job.owner;
        let opened = job.work();
        if owner == self.owner {
            self.put(opened)
        } else {
            self.assist.finish(owner, opened)
        }
        true
    }

    fn put(&mut self, opened: OpenedTrain) {
        let at = opened.number.wrapping_sub(self.first) as usize;
        if let Some(train) = self.trains.get_mut(at) {
            train.opened = Some(opened);
        }
    }
}
