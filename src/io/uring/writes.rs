//! TUN writes of a turn, which go to the kernel in one enter.
//!
//! A TUN write runs the host's receive path up to the socket. Whoever sleeps on that socket is woken and, where it has had
//! less than its share of the core, takes the core at the end of the system call. With one write a call, the receiver reads
//! packet by packet and acknowledges each. With one enter it wakes once and finds all of them. (Linux 6.18, eight
//! super-packets a turn: a quarter of the preemptions, half of the acknowledgments.)

use crate::io::slab::SharedBuf;
use crate::io::tunqueue::point_at;
use std::collections::VecDeque;
use std::ops::Range;

/// Most writes of an enter: as many super-packets as a turn takes, and enough small packets to spread the cost of an enter.
pub(super) const BATCH: usize = 16;
/// For how many pieces a write has room from the start: those of a full run.
const PIECES: usize = 64;

/// The writes that wait for the next enter, and those whose outcome is not known yet: at most [`BATCH`] in all.
pub(super) struct Writes {
    slots: Vec<PendingWrite>,
    free: Vec<u32>,
    queued: VecDeque<u32>,
}

/// One write. It must not move or change until its outcome is known, so each slot has its own vector of pieces.
struct PendingWrite {
    /// The buffer that is written. `None` where the slot is free.
    buf: Option<SharedBuf>,
    pieces: Vec<Range<usize>>,
    vectors: Vec<libc::iovec>,
}

impl Writes {
    pub(super) fn new() -> Writes {
        let slot = || PendingWrite {
            buf: None,
            pieces: Vec::with_capacity(PIECES),
            vectors: Vec::with_capacity(PIECES),
        };
        Writes {
            slots: std::iter::repeat_with(slot).take(BATCH).collect(),
            free: (0..BATCH as u32).rev().collect(),
            queued: VecDeque::with_capacity(BATCH),
        }
    }

    /// Whether there is no room for another write.
    pub(super) fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// Queues `pieces` of `buf`. False where there is no room, or the pieces make no write.
    pub(super) fn push(&mut self, buf: &SharedBuf, pieces: &[Range<usize>]) -> bool {
        let Some(&number) = self.free.last() else { return false };
        let slot = &mut self.slots[number as usize];
        if !point_at(&mut slot.vectors, buf, pieces) {
            return false;
        }
        slot.pieces.clear();
        slot.pieces.extend_from_slice(pieces);
        slot.buf = Some(buf.clone());
        self.free.pop();
        self.queued.push_back(number);
        true
    }

    /// How many writes are queued.
    pub(super) fn queued(&self) -> usize {
        self.queued.len()
    }

    /// The next queued write, for the kernel.
    pub(super) fn next(&mut self) -> Option<u32> {
        self.queued.pop_front()
    }

    /// The pieces of write `number`.
    pub(super) fn vectors(&self, number: u32) -> &[libc::iovec] {
        &self.slots[number as usize].vectors
    }

    /// Ends write `number`, and hands over what it wrote.
    pub(super) fn end(&mut self, number: u32, hear: impl FnOnce(&SharedBuf, &[Range<usize>])) {
        let Some(slot) = self.slots.get_mut(number as usize) else { return };
        if let Some(buf) = slot.buf.take() {
            hear(&buf, &slot.pieces);
            self.free.push(number);
        }
    }
}
