//! Wakes a sleeping worker or the slow path: an eventfd.

use crate::sys::calls;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use tokio::io::unix::AsyncFd;

/// A handle that any thread may ring; clones ring the same sleeper.
#[derive(Clone, Debug)]
pub struct Waker(Arc<OwnedFd>);

impl Waker {
    /// A non-blocking eventfd.
    pub fn new() -> std::io::Result<Waker> {
        // SAFETY: takes no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just created and nobody else owns it.
        Ok(Waker(Arc::new(unsafe { OwnedFd::from_raw_fd(fd) })))
    }

    /// Wakes the sleeper, now or when it next sleeps.
    pub fn wake(&self) {
        // The one possible failure is EAGAIN of a counter at its maximum, and then the sleeper is awake already.
        let _ = calls::write(self.0.as_fd(), &1u64.to_ne_bytes());
    }

    /// Takes the ring back, after waking. The queues are to be read after it, not before. Returns whether there was one.
    pub fn clear(&self) -> bool {
        // EAGAIN: nobody rang.
        calls::read(self.0.as_fd(), &mut [0; 8]).is_ok()
    }

    /// The sleeper's end on the tokio runtime of the calling thread. It is readable once the waker was rung.
    pub fn register(&self) -> std::io::Result<AsyncFd<OwnedFd>> {
        let fd = self.0.try_clone()?;
        // SAFETY: the AsyncFd owns a descriptor of its own, which stays open and the same until the AsyncFd is dropped.
        Ok(unsafe { AsyncFd::register(fd) }?)
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
