//! A network namespace of a thread's own.

use std::io::{Error, Result};

/// Runs `work` on a new thread called `name`, in a network namespace that ends with it. Interfaces, addresses and routes of
/// this process's namespace stay as they are.
///
/// # Errors
///
/// EPERM without CAP_SYS_ADMIN, ENOSPC where namespaces are used up, what `work` returns, and a panic of `work`.
pub fn in_new_network<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let enter_and_work = || {
        // SAFETY: unshare takes no pointers; CLONE_NEWNET changes the calling thread alone, which ends below.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return Err(Error::last_os_error());
        }
        work()
    };
    let ended = std::thread::Builder::new().name(name.into()).spawn(enter_and_work)?.join();
    ended.unwrap_or_else(|_| Err(Error::other(format!("the thread {name} panicked"))))
}
