//! Data messages on their way from the worker that received them to the one that owns their session.

use crate::io::LocalAddr;
use crossbeam::queue::ArrayQueue;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Misdirected datagrams that may wait for their owner. Further ones are dropped and counted.
pub const MISDIRECTED_QUEUE: usize = 1024;
/// Bytes of all misdirected datagrams that may wait for one owner: 3 ms of 10 Gb/s. So memory stays bounded where
/// whole trains are handed on.
pub const MISDIRECTED_BYTES: usize = 4 << 20;

/// Data messages that arrived at a worker that does not own them.
#[derive(Clone, Debug)]
pub struct Misdirected {
    /// Type-4 datagrams for one receiver index, back to back.
    pub bytes: Box<[u8]>,
    /// Size in bytes of each message but perhaps the last.
    pub stride: usize,
    /// Their sender.
    pub from: SocketAddr,
    /// The local address they came to.
    pub to: Option<LocalAddr>,
    /// Outer ECN bits.
    pub ecn: u8,
}

impl Misdirected {
    /// Number of messages.
    pub fn count(&self) -> usize {
        self.bytes.len().div_ceil(self.stride.max(1))
    }
}

/// A queue of misdirected datagrams, bounded in number and in bytes; any worker adds, the owner takes.
#[derive(Debug)]
pub struct MisdirectedQueue {
    queue: ArrayQueue<Misdirected>,
    bytes: AtomicUsize,
}

impl MisdirectedQueue {
    /// A queue for `room` of them.
    pub fn new(room: usize) -> MisdirectedQueue {
        MisdirectedQueue { queue: ArrayQueue::new(room), bytes: AtomicUsize::new(0) }
    }

    /// Number of entries that wait.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Whether `len` more bytes may wait. Asking first spares the copy under overload.
    pub fn has_room(&self, len: usize) -> bool {
        !self.queue.is_full() && self.bytes.load(Relaxed) + len <= MISDIRECTED_BYTES
    }

    /// Adds one to the queue. False where there is no room.
    pub fn push(&self, misdirected: Misdirected) -> bool {
        let len = misdirected.bytes.len();
        // The bytes are counted before they are in the queue, so that the owner never subtracts what is not yet
        // added.
        let within = self.bytes.fetch_add(len, Relaxed) + len <= MISDIRECTED_BYTES;
        let added = within && self.queue.push(misdirected).is_ok();
        if !added {
            self.bytes.fetch_sub(len, Relaxed);
        }
        added
    }

    /// Takes the oldest.
    pub fn pop(&self) -> Option<Misdirected> {
        let misdirected = self.queue.pop()?;
        self.bytes.fetch_sub(misdirected.bytes.len(), Relaxed);
        Some(misdirected)
    }

    /// How many wait.
    #[cfg(feature = "internals")]
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether none waits.
    #[cfg(feature = "internals")]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}
