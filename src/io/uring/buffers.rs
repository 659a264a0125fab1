//! The ring of provided buffers, which are free buffers of the pool that the kernel may fill.
//!
//! ```text
//!   pool --refill--> ring (kernel) --CQE names a slot--> take --> Buf of the train's holder --drop--> pool
//! ```

use crate::io::slab::{BUF_SIZE, Buf, Pool};
use io_uring::IoUring;
use io_uring::types::BufRingEntry;
use std::io::{Error, ErrorKind, Result};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

/// The number of a ring's only buffer group.
pub(super) const GROUP: u16 = 0;

/// A ring of provided buffers. It must outlive the kernel's use of it: see [`super::ring::Ring`]'s order of fields.
pub(super) struct BufferRing {
    entries: NonNull<BufRingEntry>,
    count: u16,
    tail: u16,
    /// The buffers that the kernel has, by their slot in the pool.
    lent: Vec<Option<Buf>>,
    lent_count: usize,
}

impl BufferRing {
    /// Maps a ring of `count` entries, a power of two, and registers it. It is empty at first.
    pub(super) fn new(ring: &IoUring, count: usize, pool: &Pool) -> Result<BufferRing> {
        let entries = u16::try_from(count).map_err(|_| ErrorKind::InvalidInput)?;
        // SAFETY: a fresh anonymous mapping overlaps nothing.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                count * size_of::<BufRingEntry>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(ErrorKind::OutOfMemory)?;
        let lent = (0..pool.count()).map(|_| None).collect();
        let buffers = BufferRing { entries: base, count: entries, tail: 0, lent, lent_count: 0 };
        // SAFETY: the mapping is page-aligned, of `count` entries, and unmapped only when the ring is gone (see `Ring`).
        unsafe { ring.submitter().register_buf_ring_with_flags(base.as_ptr() as u64, entries, GROUP, 0)? };
        Ok(buffers)
    }

    /// How many buffers the kernel lacks while `waiting` of those that it filled have not been taken. So the trains that
    /// are lent or waiting are all that receiving ever holds.
    pub(super) fn lacking(&self, waiting: usize) -> usize {
        usize::from(self.count).saturating_sub(self.lent_count + waiting)
    }

    /// Whether the kernel has no buffer.
    pub(super) fn is_empty(&self) -> bool {
        self.lent_count == 0
    }

    /// Hands the kernel the buffers that it lacks, as far as the pool has any.
    pub(super) fn refill(&mut self, waiting: usize, pool: &Pool) {
        let before = self.tail;
        for _ in 0..self.lacking(waiting) {
            let Some(mut buf) = pool.take() else { break };
            let slot = buf.slot();
            let at = usize::from(self.tail & (self.count - 1));
            // SAFETY: `at` is below the count, so the entry lies in the mapping; entries beyond the published tail are ours.
            let entry = unsafe { &mut *self.entries.as_ptr().add(at) };
            entry.set_addr(buf.as_mut_ptr() as u64);
            entry.set_len(BUF_SIZE as u32);
            entry.set_bid(slot);
            self.lent[usize::from(slot)] = Some(buf);
            self.lent_count += 1;
            self.tail = self.tail.wrapping_add(1);
        }
        if self.tail != before {
            // SAFETY: the tail lies over the first entry's reserved field, inside the mapping, aligned to two bytes; the
            // kernel reads it concurrently, hence the atomic.
            let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(self.entries.as_ptr()).cast_mut()) };
            tail.store(self.tail, Ordering::Release);
        }
    }

    /// The buffer that a completion named.
    pub(super) fn take(&mut self, slot: u16) -> Option<Buf> {
        let buf = self.lent.get_mut(usize::from(slot))?.take()?;
        self.lent_count -= 1;
        Some(buf)
    }
}

impl Drop for BufferRing {
    fn drop(&mut self) {
        let len = usize::from(self.count) * size_of::<BufRingEntry>();
        // SAFETY: the mapping of `new`, of this length; the ring that used it is closed (see `Ring`).
        unsafe { libc::munmap(self.entries.as_ptr().cast(), len) };
    }
}
