//! One configuration transaction (kernel `netlink.c`: `wg_set_device`, `set_peer`), in slices. Whoever carries it out
//! may do other work between two slices, so that a transaction of any size keeps no handshake waiting.

use super::lifecycle::InterfaceState;
use super::outputs::Broadcast;
use super::table::{MAX_PEERS, next_batch};
use super::uapi::{AllowedIp, EIO, ENOMEM, PeerRequest, SetRequest};
use super::{BindRequest, Device, Now};
use crate::crypto::stack;
use crate::crypto::x25519::{PrivateKey, SharedSecret};
use crate::io::Endpoint;
use crate::io::steer::Target;
use crate::routing::Prefix;
use crate::sys::error::errno;
use std::collections::{BTreeMap, btree_map};
use std::fmt;
use std::io;
use std::ops::Range;
use std::vec::IntoIter;

/// Number of prefixes given or taken in one step, which takes some 10 µs.
const PIECE: usize = 64;
/// Number of peers looked at in one step where something concerns all of them, which takes as long.
const BATCH: u32 = 16;
/// Number of prefixes steered in one slice. Each costs the driver a system call afterwards.
const STEERED_A_SLICE: usize = 256;

/// Binds sockets to a port and mark while the old ones stay open. Where the port is theirs already, it marks the
/// bound ones. Returns the port that is bound.
type Bind<'a> = &'a mut dyn FnMut(BindRequest) -> io::Result<u16>;
/// Whether there is time for more work in this slice. It is asked after each step, of which none takes long.
pub type More<'a> = &'a mut dyn FnMut() -> bool;

/// Why a transaction changes nothing.
#[derive(Debug)]
pub enum ConfigureError {
    /// More peers than a device may have.
    TooManyPeers,
    /// Sockets cannot be bound or marked as it asks.
    Socket(io::Error),
}

impl ConfigureError {
    /// The error number that the configuration socket answers with.
    pub fn errno(&self) -> i32 {
        match self {
            ConfigureError::TooManyPeers => ENOMEM, // the kernel's answer, too
            ConfigureError::Socket(error) => errno(error).unwrap_or(EIO),
        }
    }
}

impl fmt::Display for ConfigureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigureError::TooManyPeers => write!(f, "a device has at most {MAX_PEERS} peers"),
            ConfigureError::Socket(_) => f.write_str("the sockets cannot be bound"),
        }
    }
}

impl std::error::Error for ConfigureError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ConfigureError::TooManyPeers => None,
            ConfigureError::Socket(error) => Some(error),
        }
    }
}

/// A transaction under way. Nothing that is left of it can fail.
pub struct Transaction {
    /// Number of peers that it names or removes.
    size: usize,
    /// The slots whose peers' sources are to be chosen anew, since the port or the mark changed.
    unpinned: Range<u32>,
    /// The slots whose peers `replace_peers` removes.
    replaced: Range<u32>,
    private_key: Option<Option<PrivateKey>>,
    /// The slots whose peers have sessions of another private key.
    outdated: Range<u32>,
    peers: IntoIter<PeerRequest>,
    /// What is left to do for the peer at hand.
    step: Option<Step>,
    /// The prefixes that may have to be steered anew, each with the owner to whom it was steered. Set once the routes
    /// are published.
    steering: Option<btree_map::IntoIter<Prefix, Option<Target>>>,
}

impl Transaction {
    /// Number of peers that it names or removes.
    pub fn peers(&self) -> usize {
        self.size
    }
}

enum Step {
    /// Takes the peer's prefixes, then removes the peer.
    Remove(u32),
    Configure {
        slot: u32,
        replace_allowed_ips: bool,
        allowed_ips: IntoIter<AllowedIp>,
        persistent_keepalive: Option<u16>,
    },
}

impl Device {
    /// Applies a validated request whole or, on an error, not at all. It does what [`Self::begin`] and
    /// [`Self::go_on`] do, at once.
    #[cfg(feature = "internals")]
    pub fn apply(&mut self, now: Now, request: &SetRequest, bind: Bind<'_>) -> Result<(), ConfigureError> {
        let mut transaction = self.begin(now, request.clone(), bind)?;
        while !self.go_on(now, &mut transaction, &mut || true) {}
        Ok(())
    }

    /// Does what may fail of a validated request, and that is all of it or, with an error, nothing. Then call
    /// [`Self::go_on`] until it is done, with no other transaction in between.
    ///
    /// `bind` is called at most once and before anything else changes: when the interface is up and `listen_port` asks for
    /// another port, or `fwmark` for another mark. What it bound replaces the workers' sockets (the driver hands them out with
    /// [`crate::dataplane::Control::Rebind`] once this returned); if it fails the old port and mark stay.
    pub fn begin(
        &mut self,
        now: Now,
        request: SetRequest,
        bind: Bind<'_>,
    ) -> Result<Transaction, ConfigureError> {
        if self.peers_after(&request) > MAX_PEERS {
            return Err(ConfigureError::TooManyPeers);
        }
        let moved = self.apply_socket(now, &request, bind).map_err(ConfigureError::Socket)?;
        self.peers.reserve(request.peers.len());
        let (unpinned, replaced) = (moved.then(|| self.peers.slots()), request.replace_peers);
        Ok(Transaction {
            size: if replaced { self.peers.len() } else { 0 } + request.peers.len(),
            unpinned: unpinned.unwrap_or_default(),
            replaced: if replaced { self.peers.slots() } else { 0..0 },
            private_key: request.private_key,
            outdated: 0..0,
            peers: request.peers.into_iter(),
            step: None,
            steering: None,
        })
    }

    /// Goes on with a transaction until it is done, or until `more` says that there is no time. True where it is
    /// done.
    pub fn go_on(&mut self, now: Now, transaction: &mut Transaction, more: More<'_>) -> bool {
        while self.step(now, transaction) {
            if transaction.steering.is_some() || !more() {
                return false;
            }
        }
        true
    }

    /// Does one small piece of a transaction. False where none is left.
    fn step(&mut self, now: Now, transaction: &mut Transaction) -> bool {
        if let Some(step) = transaction.step.take() {
            transaction.step = self.continue_step(now, step);
        } else if !transaction.unpinned.is_empty() {
            for slot in next_batch(&mut transaction.unpinned, BATCH) {
                if let Some(id) = self.peers.get(slot).map(|peer| peer.shared.id) {
                    self.clear_source(id);
                }
            }
        } else if let Some(slot) = transaction.replaced.next() {
            transaction.step = Some(Step::Remove(slot));
        } else if let Some(key) = transaction.private_key.take() {
            if self.set_private_key(key) {
                transaction.outdated = self.peers.slots();
            }
        } else if !transaction.outdated.is_empty() {
            next_batch(&mut transaction.outdated, BATCH).for_each(|slot| self.renew(now, slot));
        } else if let Some(request) = transaction.peers.next() {
            transaction.step = self.apply_peer(now, request);
        } else if let Some(steering) = &mut transaction.steering {
            self.allowed.steer(&self.peers, steering.by_ref().take(STEERED_A_SLICE), &mut self.out);
            return steering.len() > 0;
        } else {
            transaction.steering = Some(self.publish().into_iter());
        }
        true
    }

    /// Publishes routes and peers to the workers, if they changed. From then on no route names a removed peer, and slots of
    /// removed peers may be used again. Returns the prefixes that may have to be steered anew.
    pub(super) fn publish(&mut self) -> BTreeMap<Prefix, Option<Target>> {
        let changed = self.allowed.take_changed();
        if !changed.is_empty() || self.directory.is_changed() {
            self.out.all(Broadcast::Routes(self.allowed.table(), self.directory.publish()));
        }
        self.peers.recycle();
        changed
    }

    fn continue_step(&mut self, now: Now, step: Step) -> Option<Step> {
        match step {
            Step::Remove(slot) if self.allowed.remove_some(&mut self.peers, slot, PIECE) => Some(step),
            Step::Remove(slot) => {
                self.remove_peer(slot);
                None
            }
            Step::Configure { slot, replace_allowed_ips: true, .. }
                if self.allowed.remove_some(&mut self.peers, slot, PIECE) =>
            {
                Some(step)
            }
            Step::Configure { slot, mut allowed_ips, persistent_keepalive, .. } => {
                for allowed in allowed_ips.by_ref().take(PIECE) {
                    if allowed.remove {
                        self.allowed.remove(&mut self.peers, slot, allowed.prefix);
                    } else {
                        self.allowed.insert(&mut self.peers, slot, allowed.prefix);
                    }
                }
                if allowed_ips.len() > 0 {
                    let replace_allowed_ips = false;
                    return Some(Step::Configure {
                        slot,
                        replace_allowed_ips,
                        allowed_ips,
                        persistent_keepalive,
                    });
                }
                if let Some(seconds) = persistent_keepalive {
                    self.apply_keepalive(now, slot, seconds);
                }
                None
            }
        }
    }

    /// An upper bound of the number of peers that there will be. It is exact where that matters.
    fn peers_after(&self, request: &SetRequest) -> usize {
        let kept = if request.replace_peers { 0 } else { self.peers.len() };
        if kept + request.peers.len() <= MAX_PEERS {
            return kept + request.peers.len();
        }
        let may_add = |peer: &&PeerRequest| {
            let known = !request.replace_peers && self.peers.find(&peer.public_key).is_some();
            !(peer.remove || peer.update_only || known)
        };
        kept + request.peers.iter().filter(may_add).count()
    }

    /// Sets port and mark. True where either is another: that may alter the route to every peer, so sources are to be chosen
    /// anew.
    fn apply_socket(&mut self, now: Now, request: &SetRequest, bind: Bind<'_>) -> io::Result<bool> {
        let mark = request.fwmark.unwrap_or(self.mark);
        let port = request.listen_port.unwrap_or(self.port);
        let moves = match self.link {
            InterfaceState::Up => (port, mark) != (self.port, self.mark),
            InterfaceState::Unbound(_) => request.listen_port.is_some(),
            InterfaceState::Down | InterfaceState::Binding(..) => false,
        };
        let bound = if moves { bind(BindRequest { port, mark })? } else { port };
        let moved = (bound, mark) != (self.port, self.mark);
        self.mark = mark;
        self.port = bound;
        if moves && matches!(self.link, InterfaceState::Unbound(_)) {
            self.start(now, bound);
        }
        Ok(moved)
    }

    /// Adds or finds a peer, and sets what is one value. Returns what is left to do for it.
    fn apply_peer(&mut self, now: Now, request: PeerRequest) -> Option<Step> {
        let slot = match self.peers.find(&request.public_key) {
            Some(slot) if request.remove => return Some(Step::Remove(slot)),
            Some(slot) => {
                self.apply_psk(slot, request.preshared_key.as_deref());
                slot
            }
            // Our own key is skipped silently, so that one list of peers may serve all of them (kernel: `set_peer`).
            None if request.remove
                || request.update_only
                || self.public_key() == Some(&request.public_key) =>
            {
                return None;
            }
            None => self.add_peer(request.public_key, request.preshared_key.as_deref()),
        };
        if let Some(addr) = request.endpoint {
            self.apply_endpoint(slot, Endpoint { addr, from: None });
        }
        if let (Some(limits), Some(peer)) = (&request.limits, self.peers.get(slot)) {
            peer.shared.set_limits(limits, now.mono, now.wall);
        }
        if let Some(memory) = &request.memory {
            self.recall_peer(now, slot, memory);
        }
        Some(Step::Configure {
            slot,
            replace_allowed_ips: request.replace_allowed_ips,
            allowed_ips: request.allowed_ips.into_iter(),
            persistent_keepalive: request.persistent_keepalive,
        })
    }

    /// Sets the preshared key. It counts from the next handshake on, and sessions stay.
    fn apply_psk(&mut self, slot: u32, psk: Option<&SharedSecret>) {
        if let (Some(peer), Some(psk)) = (self.peers.get_mut(slot), psk) {
            stack::leaving_nothing(|| peer.handshake.set_psk(psk.clone()));
        }
    }

    fn apply_endpoint(&mut self, slot: u32, endpoint: Endpoint) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        peer.heard = None;
        let id = peer.shared.id;
        self.set_endpoint(id, endpoint);
    }

    fn apply_keepalive(&mut self, now: Now, slot: u32, seconds: u16) {
        let up = self.is_up();
        let Some(peer) = self.peers.get_mut(slot) else { return };
        peer.timers.set_persistent_keepalive(seconds);
        if up {
            self.check_timers_soon(now, slot);
        }
    }
}
