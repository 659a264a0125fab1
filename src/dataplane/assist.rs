//! Workers with time to spare open trains for one that has too many: the queues between them.
//!
//! The owner of a peer gives trains away in the order of arrival, together with the key that opens them. Whoever has time
//! opens the oldest that nobody has begun, the owner, too, and returns it. What comes after the opening is the owner's alone,
//! in the order of arrival: replay window, checks, delivery (`worker/reorder.rs`).

use crate::crypto::aead::{AeadKey, MAX_SEGMENTS, Opened};
use crate::dataplane::sleepers::Sleepers;
use crate::io::slab::LentBuf;
use crate::offload::coalesce::verifies;
use crate::sys::waker::Waker;
use crate::wire::ip;
use crate::wire::message::{DATA_HEADER_LEN, DataHeader, MessageKind, TAG_LEN, classify};
use crossbeam::queue::ArrayQueue;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Trains of one owner that may be under way: a quarter of its buffers.
pub const AHEAD: usize = 64;
/// Trains of all owners that may wait to be begun, 256 × ~80 bytes beside their buffers. An owner opens further ones itself.
const JOBS: usize = 256;

/// A train to be opened.
pub struct OpenJob {
    /// The worker to which it returns.
    pub owner: u8,
    /// Its place in the owner's order.
    pub number: u64,
    /// The buffer.
    pub buf: LentBuf,
    /// Where the train lies in the buffer.
    pub run: Range<usize>,
    /// Length in bytes of each message but perhaps the last.
    pub stride: usize,
    /// The receiver index of its first message, whose session has this key.
    pub receiver: u32,
    /// The key of its session.
    pub key: Arc<AeadKey>,
}

/// A train that was opened, before the replay window has seen it.
pub struct OpenedTrain {
    /// Its place in the owner's order.
    pub number: u64,
    /// The buffer.
    pub buf: LentBuf,
    /// Whether all messages are for the session of the first. Otherwise nothing was opened.
    pub is_one_run: bool,
    /// Which messages are authentic.
    pub opened: Opened,
    /// Which of these hold a packet whose checksums verify. The data is in the cache of whoever opened it.
    pub verified: Opened,
}

impl OpenJob {
    /// Opens the train in place, and verifies the checksums of its packets.
    pub fn work(self) -> OpenedTrain {
        let OpenJob { number, mut buf, run, stride, receiver, key, .. } = self;
        let (mut opened, mut verified) = (Opened::default(), Opened::default());
        // The headers are looked at here, where they are needed in the cache next.
        let train = buf.get_mut(run).filter(|train| is_run(train, stride, receiver));
        let is_one_run = train.is_some();
        if let Some(train) = train {
            opened = key.open_train(train, stride);
            let authentic = train.chunks(stride.max(1)).enumerate().filter(|(i, _)| opened.is_ok(*i));
            for (i, message) in authentic {
                let text = message.get(DATA_HEADER_LEN..message.len().saturating_sub(TAG_LEN));
                let packet = text.and_then(|text| text.get(..ip::parse(text)?.len));
                if packet.is_some_and(verifies) {
                    verified.mark(i);
                }
            }
        }
        OpenedTrain { number, buf, is_one_run, opened, verified }
    }
}

/// Whether a train is all data messages for one session, and no longer than is opened at once.
fn is_run(train: &[u8], stride: usize, receiver: u32) -> bool {
    let is_its = |message: &[u8]| {
        classify(message) == Some(MessageKind::Data)
            && DataHeader::parse(message).is_some_and(|header| header.receiver == receiver)
    };
    train.len() <= stride.saturating_mul(MAX_SEGMENTS) && train.chunks(stride.max(1)).all(is_its)
}

/// What the workers of a device share to open trains for each other.
pub struct Assist {
    jobs: ArrayQueue<OpenJob>,
    /// The trains that others opened, by owner.
    opened: Vec<ArrayQueue<OpenedTrain>>,
    wakers: Vec<Waker>,
    sleepers: Sleepers,
    /// Number of peers whose trains are shared out.
    peers: AtomicUsize,
}

impl Assist {
    /// The queues of the workers that `wakers` ring.
    pub fn new(wakers: Vec<Waker>) -> Assist {
        Assist {
            jobs: ArrayQueue::new(JOBS),
            opened: wakers.iter().map(|_| ArrayQueue::new(AHEAD)).collect(),
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
    pub fn give(&self, job: OpenJob) -> Result<(), OpenJob> {
        self.jobs.push(job)
    }

    /// Takes the oldest train that nobody has begun.
    pub fn take(&self) -> Option<OpenJob> {
        self.jobs.pop()
    }

    /// Returns a train to its owner.
    pub fn finish(&self, owner: u8, train: OpenedTrain) {
        if let Some(opened) = self.opened.get(usize::from(owner)) {
            // An owner has no more trains under way than fit.
            let _ = opened.push(train);
        }
    }

    /// A train of `owner` that another worker opened.
    pub fn finished(&self, owner: u8) -> Option<OpenedTrain> {
        self.opened.get(usize::from(owner))?.pop()
    }

    /// Rings sleeping workers, as many as there are trains besides the one that the caller begins.
    pub fn ring(&self, caller: u8) {
        self.sleepers.ring(caller, self.jobs.len().saturating_sub(1), |number| self.wakers[number].wake());
    }

    /// Notes that a worker is about to sleep. False where there are trains to open first.
    pub fn may_sleep(&self, worker: u8) -> bool {
        self.sleepers.may_sleep(worker, || !self.jobs.is_empty())
    }

    /// Notes that a worker is awake.
    pub fn awake(&self, worker: u8) {
        self.sleepers.awake(worker);
    }
}
