//! What the slow path keeps of one peer.

use super::history::History;
use super::sessions::Sessions;
use crate::crypto::x25519::PublicKey;
use crate::dataplane::PeerShared;
use crate::io::Endpoint;
use crate::io::steer::Target;
use crate::noise::cookie::CookieJar;
use crate::noise::handshake::Handshake;
use crate::noise::timers::Timers;
use crate::routing::Prefix;
use crate::time::Instant;
use std::sync::Arc;

/// A peer, as the slow path keeps it: below 1 KiB while it is idle.
pub(super) struct Peer {
    pub(super) public_key: PublicKey,
    pub(super) shared: Arc<PeerShared>,
    pub(super) handshake: Handshake,
    pub(super) jar: CookieJar,
    pub(super) timers: Timers,
    pub(super) sessions: Sessions,
    pub(super) endpoint: Option<Endpoint>,
    /// The address pair last heard from. [`Self::endpoint`] is the same, but without a source that may not be pinned.
    pub(super) heard: Option<Endpoint>,
    /// The peer's prefixes, which [`super::allowed::AllowedIps`] maintains.
    pub(super) allowed: Vec<Prefix>,
    /// When [`super::Device::check_timers`] is due, as the schedule has it.
    pub(super) scheduled: Option<Instant>,
    pub(super) watch: Watch,
    /// [`crate::noise::timers::Activity::last_authenticated`] at the last timer check.
    pub(super) seen: Option<Instant>,
    /// The number of the device's identity that its handshake and sessions are of.
    pub(super) identity: u32,
    /// Whether it had a session as the interface went down. If so, coming up begins another.
    pub(super) interrupted: bool,
    /// Whether its packets are steered by flow, and no longer to its owner.
    pub(super) spread: bool,
    /// Bytes sent and received when [`super::balance`] last compared them.
    pub(super) sampled: (u64, u64),
    /// What was tried since the peer was last connected; `None` is nothing.
    pub(super) history: Option<Box<History>>,
}

/// Whether the slow path checks the peer's time stamps by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Watch {
    /// It does not: the worker announces the next activity.
    #[default]
    Off,
    /// It does, at least every [`crate::noise::KEEPALIVE_TIMEOUT`], and the worker announces nothing.
    On,
}

impl Peer {
    pub(super) fn new(
        public_key: PublicKey,
        shared: Arc<PeerShared>,
        handshake: Handshake,
        jar: CookieJar,
    ) -> Peer {
        Peer {
            public_key,
            shared,
            handshake,
            jar,
            timers: Timers::default(),
            sessions: Sessions::default(),
            endpoint: None,
            heard: None,
            allowed: Vec::new(),
            scheduled: None,
            watch: Watch::Off,
            seen: None,
            identity: 0,
            interrupted: false,
            spread: false,
            sampled: (0, 0),
            history: None,
        }
    }

    /// Where the TUN device's packets for this peer are steered to.
    pub(super) fn target(&self) -> Target {
        if self.spread { Target::Spread } else { Target::Worker(self.shared.owner()) }
    }
}
