//! How a peer is sent to: its endpoint, and the session to send with, in one word that all workers read.
//!
//! So that no packet leaves that cannot be answered, a session is published only where its receiving half is in
//! place, and withdrawn before that is removed. Only the owner of the receiving half does either. A session that this
//! device began is published as it is installed. One that it answered is published as the first authentic packet on
//! it arrives, before that packet is delivered (kernel `wg_noise_received_with_keypair`). So whatever worker takes
//! the answer to that packet from the TUN device finds the session there.
//!
//! The slow path decides on the endpoint. The owner sets it, too, as soon as the peer speaks from another address
//! (rule 7), so that the very next packet of any worker goes there.
//!
//! Reading takes no lock and counts no reference. A session that nobody reads any more is freed, and its key
//! zeroized, when it is replaced.

use super::atomic::{ArcSwapOption, Guard};
use crate::io::Endpoint;
use crate::noise::session::SendSession;
use crate::time::Instant;
use std::fmt;
use std::ptr;
use std::sync::Arc;

/// How a peer is sent to at one moment.
#[derive(Clone, Default)]
struct SendPath {
    endpoint: Option<Endpoint>,
    /// How often the slow path has set the endpoint.
    revision: u32,
    session: Option<Arc<SendSession>>,
}

/// Where the endpoint and the session are published. `None` inside stands for a path without either.
#[derive(Default)]
pub struct Sending(ArcSwapOption<SendPath>);

impl Sending {
    /// The path published at this moment. To be held no longer than a train takes.
    pub fn load(&self) -> Published {
        Published(self.0.load())
    }

    /// Publishes a session whose receiving half this worker has, unless the published one is as young or younger. So
    /// the later handshake wins, whatever order packets arrive in. True where it is published now.
    pub fn publish(&self, session: &Arc<SendSession>) -> bool {
        self.change(|path| {
            let is_younger = path.session.as_ref().is_none_or(|before| before.born() < session.born());
            is_younger.then(|| SendPath { session: Some(Arc::clone(session)), ..path.clone() })
        })
    }

    /// Withdraws the session with this local index, if it is the published one, as its receiving half is about to be
    /// removed.
    pub fn withdraw(&self, local_index: u32) {
        self.change(|path| {
            let is_it = path.session.as_ref().is_some_and(|session| session.local_index() == local_index);
            is_it.then(|| SendPath { session: None, ..path.clone() })
        });
    }

    /// Sets the endpoint, as the slow path decided.
    pub fn set_endpoint(&self, endpoint: Option<Endpoint>) {
        self.change(|path| {
            Some(SendPath {
                endpoint,
                revision: path.revision.wrapping_add(1),
                session: path.session.clone(),
            })
        });
    }

    /// Sets the endpoint to what the owner has just heard from, unless the slow path set another one meanwhile, after
    /// `revision`.
    pub fn follow(&self, heard: Endpoint, revision: u32) {
        self.change(|path| {
            (path.revision == revision).then(|| SendPath { endpoint: Some(heard), ..path.clone() })
        });
    }

    /// Has `gone` no longer name a source, if it is still the endpoint: the kernel has refused to send from there.
    pub fn loosen(&self, gone: Endpoint) {
        self.change(|path| {
            let endpoint = Some(Endpoint { from: None, ..gone });
            let revision = path.revision.wrapping_add(1);
            (path.endpoint == Some(gone)).then(|| SendPath { endpoint, revision, ..path.clone() })
        });
    }

    /// Publishes what `next` makes of the present path. Where that changes meanwhile, `next` is asked again; where it
    /// answers `None`, the path stays, and so does the answer false.
    fn change(&self, next: impl Fn(&SendPath) -> Option<SendPath>) -> bool {
        let mut before = self.0.load();
        loop {
            let new = match before.as_deref() {
                Some(path) => next(path),
                None => next(&SendPath::default()),
            };
            let Some(new) = new else { return false };
            let found = self.0.compare_and_swap(&*before, Some(Arc::new(new)));
            if as_pointer(&found) == as_pointer(&before) {
                return true;
            }
            before = found;
        }
    }
}

fn as_pointer(path: &Option<Arc<SendPath>>) -> *const SendPath {
    path.as_ref().map_or(ptr::null(), Arc::as_ptr)
}

impl fmt::Debug for Sending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let published = self.load();
        let session = published.0.as_ref().and_then(|path| path.session.as_ref());
        f.debug_struct("Sending")
            .field("endpoint", &published.endpoint())
            .field("session", &session.map(|session| session.local_index()))
            .finish()
    }
}

/// The published path, kept from being freed.
pub struct Published(Guard<Option<Arc<SendPath>>>);

impl Published {
    /// The peer's outer address and port, and the source to speak from.
    pub fn endpoint(&self) -> Option<Endpoint> {
        self.0.as_ref()?.endpoint
    }

    /// How often the slow path has set the endpoint so far.
    pub fn revision(&self) -> u32 {
        self.0.as_ref().map_or(0, |path| path.revision)
    }

    /// The session, if it may still be sent with.
    pub fn session(&self, now: Instant) -> Option<&SendSession> {
        self.0.as_ref()?.session.as_deref().filter(|session| session.usable(now))
    }

    /// The session and the endpoint, where there are both to send with.
    pub fn ready(&self, now: Instant) -> Option<(&Arc<SendSession>, Endpoint)> {
        let path = self.0.as_ref()?;
        path.session.as_ref().filter(|session| session.usable(now)).zip(path.endpoint)
    }
}
