//! Network namespaces of a thread's own.

use std::fs::File;
use std::io::{Error, Result};
use std::sync::mpsc;
use std::thread::JoinHandle;

/// Where a thread finds the namespace that it is in.
const OWN: &str = "/proc/thread-self/ns/net";

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
        leave_for_new_network()?;
        work()
    };
    let ended = std::thread::Builder::new().name(name.into()).spawn(enter_and_work)?.join();
    ended.unwrap_or_else(|_| Err(Error::other(format!("the thread {name} panicked"))))
}

/// Moves the calling thread, which must be one that ends soon or knows of it, to a network namespace of its own.
fn leave_for_new_network() -> Result<()> {
    // SAFETY: unshare takes no pointers; CLONE_NEWNET changes the calling thread alone.
    match unsafe { libc::unshare(libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(Error::last_os_error()),
    }
}

type Work = Box<dyn FnOnce() + Send>;

/// A network namespace without a name, and a thread in it. Processes and sockets that the thread makes are in it, too. It ends with
/// this value, or with the last of those: nobody has to remove it, also where this process is killed.
#[derive(Debug)]
pub(crate) struct PrivateNetwork {
    work: Option<mpsc::Sender<Work>>,
    thread: Option<JoinHandle<()>>,
    file: File,
}

impl PrivateNetwork {
    /// Makes the namespace, and starts its thread, called `name`. Its loopback interface is down.
    ///
    /// # Errors
    ///
    /// EPERM without CAP_SYS_ADMIN, ENOSPC where namespaces are used up, EINVAL where the kernel has none.
    pub(crate) fn new(name: &str) -> Result<PrivateNetwork> {
        let (work, to_do) = mpsc::channel::<Work>();
        let (opened, is_open) = mpsc::channel();
        let live = move || {
            let file = leave_for_new_network().and_then(|()| File::open(OWN));
            let failed = file.is_err();
            if opened.send(file).is_ok() && !failed {
                to_do.into_iter().for_each(|work| work());
            }
        };
        let thread = std::thread::Builder::new().name(name.into()).spawn(live)?;
        let file = is_open.recv().map_err(Error::other)??;
        Ok(PrivateNetwork { work: Some(work), thread: Some(thread), file })
    }

    /// What `work` yields in the namespace. Its thread lives on: a process that the thread started and that ends with it
    /// ([`crate::sys::child`]) ends with the namespace.
    ///
    /// # Errors
    ///
    /// Where `work` panics, or did so before.
    pub(crate) fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let (answer, answered) = mpsc::channel();
        let work: Work = Box::new(move || drop(answer.send(work()))); // whoever asked waits below
        let sent = self.work.as_ref().is_some_and(|to_do| to_do.send(work).is_ok());
        let gone = || Error::other("the thread of the network namespace panicked");
        if sent { answered.recv().map_err(|_| gone()) } else { Err(gone()) }
    }

    /// The namespace as a file, by which the kernel is told of it.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }
}

impl Drop for PrivateNetwork {
    fn drop(&mut self) {
        self.work = None; // upon which the thread ends
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // its panic was reported by `run`
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::linux::fs::MetadataExt;

    fn here() -> u64 {
        std::fs::metadata(OWN).unwrap().st_ino()
    }

    #[test]
    fn work_is_done_in_one_namespace_that_is_another_than_this_threads() {
        let network = match PrivateNetwork::new("rt-private") {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                return eprintln!("not run: a network namespace needs root");
            }
            network => network.unwrap(),
        };
        let there = network.run(here).unwrap();
        assert_ne!(there, here());
        assert_eq!(network.run(here).unwrap(), there);
        assert_eq!(network.file().metadata().unwrap().st_ino(), there);
        assert!(network.run(|| crate::sys::link::index("lo").unwrap()).unwrap() > 0);
    }
}
