//! Data messages on their way from the worker that received them to the one that owns their session.

use crate::io::LocalAddr;
use crossbeam::queue::ArrayQueue;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Strays that may wait for their owner; full: dropped and counted.
pub const STRAY_QUEUE: usize = 1024;
/// Bytes of all strays that wait for one owner: 3 ms of 10 Gb/s, so that memory stays bounded where whole trains are handed on.
pub const STRAY_BYTES: usize = 4 << 20;

/// Data messages that arrived at a worker that does not own them.
#[derive(Clone, Debug)]
pub struct Stray {
    /// Type-4 datagrams for one receiver index, back to back.
    pub bytes: Box<[u8]>,
    /// Size of all of them but perhaps the last, in bytes.
    pub stride: usize,
    /// Their sender.
    pub from: SocketAddr,
    /// The local address they came to.
    pub to: Option<LocalAddr>,
    /// Outer ECN bits.
    pub ecn: u8,
}

impl Stray {
    /// Number of messages.
    pub fn count(&self) -> usize {
        self.bytes.len().div_ceil(self.stride.max(1))
    }
}

/// A queue of strays, bounded in number and in bytes; any worker adds, the owner takes.
#[derive(Debug)]
pub struct Strays {
    queue: ArrayQueue<Stray>,
    bytes: AtomicUsize,
}

impl Default for Strays {
    fn default() -> Strays {
        Strays { queue: ArrayQueue::new(STRAY_QUEUE), bytes: AtomicUsize::new(0) }
    }
}

impl Strays {
    /// Whether `len` bytes more may wait: asking first spares their copy under overload.
    pub fn has_room(&self, len: usize) -> bool {
        !self.queue.is_full() && self.bytes.load(Relaxed) + len <= STRAY_BYTES
    }

    /// Adds one; false: no room.
    pub fn push(&self, stray: Stray) -> bool {
        let len = stray.bytes.len();
        // Counted before it is in the queue, so that the owner never takes off what is not yet counted.
        let within = self.bytes.fetch_add(len, Relaxed) + len <= STRAY_BYTES;
        let added = within && self.queue.push(stray).is_ok();
        if !added {
            self.bytes.fetch_sub(len, Relaxed);
        }
        added
    }

    /// Takes the oldest.
    pub fn pop(&self) -> Option<Stray> {
        let stray = self.queue.pop()?;
        self.bytes.fetch_sub(stray.bytes.len(), Relaxed);
        Some(stray)
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}
