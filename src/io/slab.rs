//! The buffer slab: one bounded, page-aligned mapping a worker, cut into equal buffers that are owned by their holders.
//!
//! ```text
//!   base                                            free: [7, 2, 5]      (a stack: the buffer last used is still in cache)
//!   | 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 |            holders: [1, 3, 0, …]   (1: a Buf or a lone SharedBuf, 0: free)
//! ```

#![allow(unsafe_code)] // memory that the kernel reads and writes: each block carries its SAFETY line

use std::cell::{Cell, RefCell};
use std::io::{Error, ErrorKind};
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;

/// Bytes of a buffer: a 64 KiB super-packet or train, with room for headers, control data and headroom before it.
pub const BUF_SIZE: usize = 68 * 1024;
/// Most buffers of a pool: io_uring names a provided buffer, and sizes their ring, within 15 bits. 2.2 GiB of address space.
pub const MAX_BUFFERS: usize = 32_768;

/// The number of holders of a buffer that is lent.
const LENT: u32 = u32::MAX;

/// Hands out buffers. It is not `Send`, as it belongs to one worker's thread.
#[derive(Clone)]
pub struct Pool(Rc<Slab>);

struct Slab {
    mapping: Arc<Mapping>,
    free: RefCell<Vec<u32>>,
    /// How many handles each buffer has.
    holders: Box<[Cell<u32>]>,
}

/// The memory of a slab. It lives as long as the slab and each buffer that is lent.
struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: it is an address range, of which a thread reaches only the buffers whose handles it has.
unsafe impl Send for Mapping {}
// SAFETY: as above; a shared reference gives access to nothing.
unsafe impl Sync for Mapping {}

/// A buffer that another thread has for a while: its only handle, but not its place in the pool. It dereferences to the bytes.
///
/// Invariant: its slot has no handle, and is not free.
pub struct LentBuf {
    mapping: Arc<Mapping>,
    slot: u32,
}

/// A buffer of [`BUF_SIZE`] bytes with a single handle. It dereferences to its bytes, and returns to its pool on drop.
///
/// Invariant: the [`SharedBuf`] inside is its slot's only handle.
pub struct Buf(SharedBuf);

/// A buffer to which no one writes any more, with counted handles. It returns to its pool with the last of them.
pub struct SharedBuf {
    slab: Rc<Slab>,
    slot: u32,
}

impl Pool {
    /// Maps `count` buffers (`count` × [`BUF_SIZE`] bytes), 1 to [`MAX_BUFFERS`]. Memory is touched only when first used.
    ///
    /// # Errors
    ///
    /// Where `count` is out of this range, or the kernel has no memory for the mapping.
    pub fn new(count: usize) -> std::io::Result<Pool> {
        if count == 0 || count > MAX_BUFFERS {
            let what = format!("a pool of {count} buffers: 1 to {MAX_BUFFERS} are possible");
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice overlaps nothing.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                count * BUF_SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(ErrorKind::OutOfMemory)?;
        Ok(Pool(Rc::new(Slab {
            mapping: Arc::new(Mapping { base, len: count * BUF_SIZE }),
            free: RefCell::new((0..count as u32).rev().collect()),
            holders: vec![Cell::new(0); count].into_boxed_slice(),
        })))
    }

    /// A free buffer, whose content is whatever was there before. `None` where all are in use.
    pub fn take(&self) -> Option<Buf> {
        let slot = self.0.free.borrow_mut().pop()?;
        self.0.holders[slot as usize].set(1);
        Some(Buf(SharedBuf { slab: Rc::clone(&self.0), slot }))
    }

    /// Takes back a buffer that was lent.
    ///
    /// # Panics
    ///
    /// Where it is another pool's.
    pub fn restore(&self, lent: LentBuf) -> Buf {
        assert!(Arc::ptr_eq(&self.0.mapping, &lent.mapping), "a lent buffer returns to its own pool");
        self.0.holders[lent.slot as usize].set(1);
        Buf(SharedBuf { slab: Rc::clone(&self.0), slot: lent.slot })
    }

    /// How many buffers are free.
    pub fn free(&self) -> usize {
        self.0.free.borrow().len()
    }

    /// How many buffers the pool has, free or not.
    pub fn count(&self) -> usize {
        self.0.holders.len()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `base` is the mapping of `Pool::new`, of this length; every handle holds it, so none is left.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

impl Mapping {
    /// The first byte of a slot, which must be one of the slab's.
    fn start(&self, slot: u32) -> *mut u8 {
        // SAFETY: a handle's slot came from the free list, so it is below the count, and the offset lies within the mapping.
        unsafe { self.base.as_ptr().add(slot as usize * BUF_SIZE) }
    }
}

impl Buf {
    /// Gives up writing, so that several writes to the kernel may refer to the buffer.
    pub fn share(self) -> SharedBuf {
        self.0
    }

    /// Lets another thread have the buffer. [`Pool::restore`] takes it back; without that it is lost to the pool.
    pub fn lend(self) -> LentBuf {
        self.0.holders().set(LENT);
        LentBuf { mapping: Arc::clone(&self.0.slab.mapping), slot: self.0.slot }
    }

    /// The buffer's number in the pool, below [`MAX_BUFFERS`].
    pub(super) fn slot(&self) -> u16 {
        self.0.slot as u16
    }
}

impl SharedBuf {
    fn start(&self) -> *mut u8 {
        self.slab.mapping.start(self.slot)
    }

    fn holders(&self) -> &Cell<u32> {
        &self.slab.holders[self.slot as usize]
    }
}

impl Clone for SharedBuf {
    fn clone(&self) -> SharedBuf {
        // 2^32 clones of a 16-byte handle do not fit in memory; `mem::forget` in a loop could still count there.
        let more = self.holders().get().checked_add(1).filter(|&more| more != LENT);
        self.holders().set(more.expect("fewer handles than memory has room for"));
        SharedBuf { slab: Rc::clone(&self.slab), slot: self.slot }
    }
}

impl Drop for SharedBuf {
    fn drop(&mut self) {
        if self.holders().get() == LENT {
            return;
        }
        let left = self.holders().get() - 1;
        self.holders().set(left);
        if left == 0 {
            // The vector never grows, as it was made with room for every slot.
            self.slab.free.borrow_mut().push(self.slot);
        }
    }
}

impl std::ops::Deref for Buf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}
impl std::ops::DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: the slot's BUF_SIZE bytes are mapped, initialized (anonymous memory is zero) and, by the invariant of
        // `Buf`, reachable through no other handle while this exclusive borrow lasts.
        unsafe { std::slice::from_raw_parts_mut(self.0.start(), BUF_SIZE) }
    }
}
impl std::ops::Deref for SharedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the slot's BUF_SIZE bytes are mapped and initialized; nobody writes them while a shared handle exists,
        // and a `Buf` is written through an exclusive borrow of itself only.
        unsafe { std::slice::from_raw_parts(self.start(), BUF_SIZE) }
    }
}
impl std::ops::Deref for LentBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: as in `DerefMut`; shared borrows of it exclude exclusive ones.
        unsafe { std::slice::from_raw_parts(self.mapping.start(self.slot), BUF_SIZE) }
    }
}
impl std::ops::DerefMut for LentBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: the slot's BUF_SIZE bytes are mapped and initialized, and by the invariant of `LentBuf` nobody else reaches
        // them while this exclusive borrow lasts.
        unsafe { std::slice::from_raw_parts_mut(self.mapping.start(self.slot), BUF_SIZE) }
    }
}
impl std::fmt::Debug for Buf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Buf")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_hands_out_each_buffer_once_and_then_none() {
        let pool = Pool::new(3).unwrap();
        let mut all: Vec<Buf> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(all.len(), 3);
        for (n, buf) in all.iter_mut().enumerate() {
            buf.fill(n as u8 + 1);
        }
        for (n, buf) in all.iter().enumerate() {
            assert_eq!(buf.len(), BUF_SIZE);
            assert!(buf.iter().all(|&b| b == n as u8 + 1));
        }
        assert!(pool.take().is_none());
        drop(all.pop());
        assert_eq!(pool.free(), 1);
        assert!(pool.take().is_some());
    }

    #[test]
    fn a_shared_buffer_returns_with_its_last_clone() {
        let pool = Pool::new(1).unwrap();
        let mut buf = pool.take().unwrap();
        buf[7] = 42;
        let shared = buf.share();
        let clone = shared.clone();
        drop(shared);
        assert_eq!((pool.free(), clone[7]), (0, 42));
        drop(clone);
        assert_eq!(pool.free(), 1);
    }

    #[test]
    fn buffers_outlive_the_pool_handle() {
        let mut buf = Pool::new(2).unwrap().take().unwrap();
        buf[BUF_SIZE - 1] = 9;
        assert_eq!(buf.share()[BUF_SIZE - 1], 9);
    }

    #[test]
    fn a_lent_buffer_is_written_elsewhere_and_comes_back() {
        let pool = Pool::new(1).unwrap();
        let mut lent = pool.take().unwrap().lend();
        assert_eq!(pool.free(), 0);
        let writer = std::thread::spawn(move || {
            lent[5] = 77;
            lent
        });
        let buf = pool.restore(writer.join().unwrap());
        assert_eq!(buf[5], 77);
        drop(buf);
        assert_eq!(pool.free(), 1);
    }

    #[test]
    fn memory_that_is_lent_outlives_its_pool_and_is_lost_where_it_never_returns() {
        let pool = Pool::new(2).unwrap();
        drop(pool.take().unwrap().lend());
        assert_eq!(pool.free(), 1);
        let lent = pool.take().unwrap().lend();
        drop(pool);
        assert_eq!(lent[BUF_SIZE - 1], 0);
    }

    #[test]
    #[should_panic(expected = "its own pool")]
    fn a_lent_buffer_returns_to_no_other_pool() {
        let lent = Pool::new(1).unwrap().take().unwrap().lend();
        Pool::new(1).unwrap().restore(lent);
    }

    #[test]
    fn a_pool_has_bounds() {
        assert!(Pool::new(0).is_err());
        assert!(Pool::new(MAX_BUFFERS + 1).is_err());
        assert_eq!(Pool::new(MAX_BUFFERS).unwrap().free(), MAX_BUFFERS);
    }
}
