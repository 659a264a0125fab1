//! Workers with time to spare do trains for one that has too many: the queues between them.
//!
//! A worker gives trains away in their order, together with the key. Whoever has time does the oldest that nobody has begun,
//! the giver, too, and returns it. All else is the giver's alone, in the order of the trains (`worker/reorder.rs`):
//! - of what is received, the owner of the session gives trains to be opened; replay window, checks and delivery stay its own;
//! - of what is sent, the worker that read the frames gives trains to be sealed; it has reserved the counters, and sends.

use crate::crypto::aead::{AeadKey, MAX_SEGMENTS, Opened};
use crate::dataplane::sleepers::Sleepers;
use crate::io::slab::LentBuf;
use crate::noise::session::SendSession;
use crate::offload::coalesce::verifies;
use crate::sys::trace;
use crate::sys::waker::Waker;
use crate::wire::ip;
use crate::wire::message::{DATA_HEADER_LEN, DataHeader, MessageKind, TAG_LEN, classify};
use crossbeam::queue::ArrayQueue;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Trains of one worker and kind that may be under way: a third of its buffers.
pub const AHEAD: usize = 64;
/// Trains of all workers that may wait to be begun, 256 × ~96 bytes beside their buffers. A worker does further ones itself.
const JOBS: usize = 256;

/// What is done to a train by whoever has time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum JobKind {
    /// It was received, and is opened.
    Open,
    /// It is to be sent, and is sealed.
    Seal,
}

/// A train to be opened or sealed.
pub struct Job {
    /// The worker to which it returns.
    pub giver: u8,
    /// Its place in the order of the giver's trains of this kind.
    pub number: u64,
    /// The buffer.
    pub buf: LentBuf,
    /// Where the train lies in the buffer.
    pub run: Range<usize>,
    /// Length in bytes of each message but perhaps the last.
    pub stride: usize,
    /// What to do, and with which key.
    pub task: JobTask,
}

/// What to do with a train, and the key.
pub enum JobTask {
    /// Open it, if all its messages have this receiver index, whose session has this key.
    Open(u32, Arc<AeadKey>),
    /// Seal it for this session, with counters from this one on.
    Seal(Arc<SendSession>, u64),
}

/// A train that was opened, before the replay window has seen it, or sealed.
pub struct DoneTrain {
    /// Its place in the order of the giver's trains of its kind.
    pub number: u64,
    /// The buffer.
    pub buf: LentBuf,
    /// What came out of its opening. `None` where nothing was opened, as not all messages are for the session of the first, or
    /// it was to be sealed.
    pub opened: Option<OpenedTrain>,
}

/// What came out of a train's opening.
#[derive(Clone, Copy)]
pub struct OpenedTrain {
    /// Which messages are authentic.
    pub authentic: Opened,
    /// Which of these hold a packet whose checksums verify. The data is in the cache of whoever opened it.
    pub verified: Opened,
}

impl Job {
    /// The kind of train.
    pub fn kind(&self) -> JobKind {
        match self.task {
            JobTask::Open(..) => JobKind::Open,
            JobTask::Seal(..) => JobKind::Seal,
        }
    }

    /// Does what there is to do, in place.
    pub fn work(self) -> DoneTrain {
        let (giver, kind, bytes) = (self.giver, self.kind(), self.run.len());
        trace::help_begin(giver, kind as u8, bytes);
        let Job { number, mut buf, run, stride, task, .. } = self;
        let train = buf.get_mut(run).unwrap_or_default();
        let opened = match task {
            JobTask::Open(receiver, key) => open(train, stride, receiver, &key),
            JobTask::Seal(session, first) => {
                session.seal_train(first, train, stride);
                None
            }
        };
        trace::train_helped(giver, kind as u8, bytes);
        DoneTrain { number, buf, opened }
    }
}

/// Opens a train in place, and verifies the checksums of its packets. `None` where it is not all for one session.
fn open(train: &mut [u8], stride: usize, receiver: u32, key: &AeadKey) -> Option<OpenedTrain> {
    // The headers are looked at here, where they are needed in the cache next.
    if !is_run(train, stride, receiver) {
        return None;
    }
    let authentic = key.open_train(train, stride);
    let mut verified = Opened::default();
    for (i, message) in train.chunks(stride.max(1)).enumerate().filter(|(i, _)| authentic.is_ok(*i)) {
        let text = message.get(DATA_HEADER_LEN..message.len().saturating_sub(TAG_LEN));
        let packet = text.and_then(|text| text.get(..ip::parse(text)?.len));
        if packet.is_some_and(verifies) {
            verified.mark(i);
        }
    }
    Some(OpenedTrain { authentic, verified })
}

/// Whether a train is all data messages for one session, and no longer than is opened at once.
fn is_run(train: &[u8], stride: usize, receiver: u32) -> bool {
    let is_its = |message: &[u8]| {
        classify(message) == Some(MessageKind::Data)
            && DataHeader::parse(message).is_some_and(|header| header.receiver == receiver)
    };
    train.len() <= stride.saturating_mul(MAX_SEGMENTS) && train.chunks(stride.max(1)).all(is_its)
}

/// What the workers of a device share to do trains for each other.
pub struct Assist {
    jobs: ArrayQueue<Job>,
    /// The trains that others did, by giver, and by [`JobKind`].
    done: Vec<[ArrayQueue<DoneTrain>; 2]>,
    wakers: Vec<Waker>,
    sleepers: Sleepers,
    /// Number of peers whose trains are shared out, one way and the other.
    peers: AtomicUsize,
}

impl Assist {
    /// The queues of the workers that `wakers` ring.
    pub fn new(wakers: Vec<Waker>) -> Assist {
        Assist {
            jobs: ArrayQueue::new(JOBS),
            done: wakers.iter().map(|_| [(); 2].map(|()| ArrayQueue::new(AHEAD))).collect(),
            sleepers: Sleepers::new(wakers.len()),
            wakers,
            peers: AtomicUsize::new(0),
        }
    }

    /// Whether any peer's trains are shared out.
    pub fn is_engaged(&self) -> bool {
        self.peers.load(Relaxed) > 0
    }

    /// Sets the number of peers whose trains are shared out. Where there were none so far, workers may have fallen asleep without
    /// a note of it: all are rung.
    pub fn engage(&self, peers: usize) {
        if self.peers.swap(peers, Relaxed) == 0 && peers > 0 {
            self.wakers.iter().for_each(Waker::wake);
        }
    }

    /// Offers a train to whoever has time.
    ///
    /// # Errors
    ///
    /// The job, where there is no room for it.
    pub fn give(&self, job: Job) -> Result<(), Job> {
        self.jobs.push(job)
    }

    /// Takes the oldest train that nobody has begun.
    pub fn take(&self) -> Option<Job> {
        self.jobs.pop()
    }

    /// Returns a train to its giver.
    pub fn finish(&self, giver: u8, kind: JobKind, train: DoneTrain) {
        if let Some(done) = self.done.get(usize::from(giver)) {
            // A worker has no more trains of a kind under way than fit.
            let _ = done[kind as usize].push(train);
        }
    }

    /// A train of `giver` that was done.
    pub fn finished(&self, giver: u8, kind: JobKind) -> Option<DoneTrain> {
        self.done.get(usize::from(giver))?[kind as usize].pop()
    }

    /// Does one train, of whatever worker and kind, and returns it. `None` where none is left to begin.
    pub fn work_once(&self) -> Option<JobKind> {
        let job = self.take()?;
        let (giver, kind) = (job.giver, job.kind());
        self.finish(giver, kind, job.work());
        Some(kind)
    }

    /// Rings sleeping workers, as many as there are trains besides the one that the caller begins.
    pub fn ring(&self, caller: u8) {
        self.sleepers.ring(caller, self.jobs.len().saturating_sub(1), |number| self.wakers[number].wake());
    }

    /// Notes that a worker is about to sleep. False where there are trains to do first.
    pub fn may_sleep(&self, worker: u8) -> bool {
        self.sleepers.may_sleep(worker, || !self.jobs.is_empty())
    }

    /// Notes that a worker is awake.
    pub fn awake(&self, worker: u8) {
        self.sleepers.awake(worker);
    }
}
