//! A tunnel as a value: built, started, configured, asked and stopped from any thread of the process that it runs in.
//!
//! ```text
//!   Builder ─> start ─> workers, slow path, End         Tunnel ─> Handle ─> slow path
//! ```
//!
//! It takes threads, files and memory of the process, and nothing of which a process has but one: no signal, no logger, no
//! umask, no working directory, no limit, no panic hook.

mod builder;
mod change;
pub mod cores;
mod end;
mod error;
pub mod leaving;
mod limits;
pub mod plural;
mod predecessor;
pub mod socket;
mod start;
mod status;
mod workers;

#[cfg(test)]
mod tests;

pub use crate::slowpath::handover::Belongings;
pub use builder::Builder;
pub use change::{Change, PeerChange};
pub use error::Error;
pub use predecessor::Predecessor;
pub use status::{PeerStatus, TunnelStatus};
pub use workers::Backend;
#[cfg(feature = "cli")]
pub use workers::{BUFFERS, MIN_BUFFERS};

use crate::slowpath::handle::{Gone, Handle};
use end::{End, Outcome};
use start::Started;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// How many peers are read in one go. Between two such pages the tunnel does its other work.
const PAGE: usize = 64;

/// A running tunnel. Clones are handles on the same one, and it stops when the last of them is dropped.
///
/// All methods may be called from any thread. A call that asks the tunnel waits for its answer. That takes microseconds, or as
/// long as a configuration of many thousand peers takes that is under way. In asynchronous code such calls belong where
/// blocking is allowed.
#[derive(Clone)]
pub struct Tunnel {
    inner: Arc<SharedHandle>,
}

struct SharedHandle {
    name: String,
    workers: usize,
    handle: Handle,
    end: Arc<End>,
}

impl Tunnel {
    /// Begins a tunnel whose interface is called `name`, of 1 to 15 bytes.
    pub fn builder(name: impl Into<String>) -> Builder {
        Builder::new(name.into())
    }

    fn running(started: Started) -> Tunnel {
        let Started { name, workers, handle, end } = started;
        Tunnel { inner: Arc::new(SharedHandle { name, workers, handle, end }) }
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// How many workers carry the tunnel's packets.
    pub fn workers(&self) -> usize {
        self.inner.workers
    }

    /// Changes the configuration, whole or not at all. Sessions of peers that the change does not touch go on.
    ///
    /// # Errors
    ///
    /// [`Error::Bind`] and [`Error::TooManyPeers`] where the change cannot be carried out, [`Error::Stopped`] where the
    /// tunnel has ended.
    pub fn configure(&self, change: Change) -> Result<(), Error> {
        let done = self.inner.handle.configure(change.into_request()).map_err(|Gone| self.stopped())?;
        done.map_err(|error| Error::refused(error, self.name()))
    }

    /// The tunnel's present state.
    ///
    /// # Errors
    ///
    /// [`Error::Stopped`] where the tunnel has ended.
    pub fn status(&self) -> Result<TunnelStatus, Error> {
        let begun = self.inner.handle.query(TunnelStatus::begin).map_err(|Gone| self.stopped());
        begun.map(|(status, directory)| status.complete(&directory))
    }

    /// The present state of each peer, in the order in which they were added. They are read page by page, so that among many
    /// peers the states are of slightly different times.
    ///
    /// # Errors
    ///
    /// [`Error::Stopped`] where the tunnel has ended.
    pub fn peers(&self) -> Result<Vec<PeerStatus>, Error> {
        let mut peers = Vec::new();
        let mut next = Some(0);
        while let Some(from) = next {
            let read = move |device: &_, _| status::page(device, from, PAGE);
            let (mut page, rest) = self.inner.handle.query(read).map_err(|Gone| self.stopped())?;
            peers.append(&mut page);
            next = rest;
        }
        Ok(peers)
    }

    /// Asks the tunnel to end, and does not wait for it.
    pub fn stop(&self) {
        self.inner.handle.stop();
    }

    /// Waits until the tunnel has ended, and its threads, its sockets and its interface are gone. `Ok` where it was stopped, or
    /// its configuration socket was removed, or another process took it over: then only the threads are gone.
    ///
    /// # Errors
    ///
    /// [`Error::Deleted`] where somebody deleted the interface, [`Error::Ended`] where the tunnel ended otherwise by itself.
    pub fn wait(&self) -> Result<(), Error> {
        self.inner.end.wait(None).map_or(Ok(()), |outcome| self.outcome(outcome))
    }

    /// Waits as [`Self::wait`] does, for no longer than `limit`. `None` where the tunnel still runs.
    pub fn wait_timeout(&self, limit: Duration) -> Option<Result<(), Error>> {
        self.inner.end.wait(Some(limit)).map(|outcome| self.outcome(outcome))
    }

    /// The number of the process that took the tunnel over, if that is how it ended here. 0 is a process that cannot be seen from here.
    pub fn successor(&self) -> Option<u32> {
        match self.inner.end.wait(Some(Duration::ZERO)) {
            Some(Outcome::HandedOver(process)) => Some(process),
            _ => None,
        }
    }

    fn outcome(&self, outcome: Outcome) -> Result<(), Error> {
        let name = self.inner.name.clone();
        match outcome {
            Outcome::Stopped | Outcome::HandedOver(_) => Ok(()),
            Outcome::Deleted(source) => Err(Error::Deleted { name, source }),
            Outcome::Failed(source) => Err(Error::Ended { name, source }),
        }
    }

    fn stopped(&self) -> Error {
        Error::Stopped { name: self.inner.name.clone() }
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel").field("name", &self.inner.name).finish_non_exhaustive()
    }
}

impl Drop for SharedHandle {
    fn drop(&mut self) {
        self.handle.stop();
    }
}
