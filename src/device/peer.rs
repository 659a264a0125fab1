//! One peer, and the rules by which its sessions follow each other (kernel `noise.c`).

use crate::crypto::x25519::PublicKey;
use crate::dataplane::PeerShared;
use crate::io::Endpoint;
use crate::io::steer::Target;
use crate::noise::REJECT_AFTER_TIME;
use crate::noise::cookie::CookieJar;
use crate::noise::handshake::Handshake;
use crate::noise::session::{Role, SendSession};
use crate::noise::timers::Timers;
use crate::routing::Prefix;
use crate::time::Instant;
use std::sync::Arc;
use std::time::Duration;

/// What the slow path keeps of a peer: below 1 KiB while it is idle.
pub(super) struct Peer {
    pub(super) public_key: PublicKey,
    pub(super) shared: Arc<PeerShared>,
    pub(super) handshake: Handshake,
    pub(super) jar: CookieJar,
    pub(super) timers: Timers,
    pub(super) sessions: Sessions,
    pub(super) endpoint: Option<Endpoint>,
    /// The last address pair heard from; [`Self::endpoint`] is it without a source that need not be pinned.
    pub(super) heard: Option<Endpoint>,
    /// Its prefixes; [`super::allowed::AllowedIps`] keeps them.
    pub(super) allowed: Vec<Prefix>,
    /// Wall clock at the last completed handshake.
    pub(super) last_handshake: Option<Duration>,
    /// When [`super::Device::look`] is due; entries of the schedule with another time are stale.
    pub(super) scheduled: Option<Instant>,
    pub(super) watch: Watch,
    /// [`crate::noise::timers::Activity::last_authenticated`] at the last look.
    pub(super) seen: Option<Instant>,
    /// Its packets are steered by flow, and no longer to its owner.
    pub(super) spread: bool,
    /// Bytes sent and received when [`super::balance`] last looked.
    pub(super) sampled: (u64, u64),
}

/// Whether the slow path looks at the peer's time stamps by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Watch {
    /// No: the worker announces the next activity.
    #[default]
    Off,
    /// Yes, at least every [`crate::noise::KEEPALIVE_TIMEOUT`]; the worker keeps silent.
    On,
    /// It was quiet; one last look for a stamp that crossed the switching off.
    Closing,
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
            last_handshake: None,
            scheduled: None,
            watch: Watch::Off,
            seen: None,
            spread: false,
            sampled: (0, 0),
        }
    }

    /// Where the TUN device's packets for it go.
    pub(super) fn target(&self) -> Target {
        if self.spread { Target::Spread } else { Target::Worker(self.shared.owner) }
    }
}

/// A session that only receives.
#[derive(Clone, Copy)]
struct Retired {
    index: u32,
    born: Instant,
}

impl Retired {
    fn from(session: &SendSession) -> Retired {
        Retired { index: session.local_index(), born: session.born() }
    }
}

/// Receiver indices that a change of sessions sets free: one a place at most.
pub(super) type Freed = [Option<u32>; 3];

/// A peer's sessions: all receive, the current one sends.
#[derive(Default)]
pub(super) struct Sessions {
    previous: Option<Retired>,
    current: Option<Arc<SendSession>>,
    /// Answered, but the initiator has not used it yet.
    next: Option<Arc<SendSession>>,
}

impl Sessions {
    /// The session that sends.
    pub(super) fn current(&self) -> Option<&Arc<SendSession>> {
        self.current.as_ref()
    }

    /// When the session that waits for the initiator's first packet was made: a response went out then.
    pub(super) fn answered(&self) -> Option<Instant> {
        self.next.as_ref().map(|next| next.born())
    }

    /// Takes in a new session (kernel: `add_new_keypair`).
    ///
    /// As initiator we got the response, so both sides have it: it sends at once, and what waited for confirmation (or
    /// else the current one) goes on receiving. As responder it waits for confirmation.
    pub(super) fn install(&mut self, new: Arc<SendSession>) -> Freed {
        let previous = self.previous.take().map(|session| session.index);
        match new.role() {
            Role::Initiator => {
                let old = self.current.replace(new);
                let (retired, freed) = match self.next.take() {
                    Some(next) => (Some(next), old),
                    None => (old, None),
                };
                self.previous = retired.as_deref().map(Retired::from);
                [previous, freed.map(|session| session.local_index()), None]
            }
            Role::Responder => {
                let next = self.next.replace(new);
                [previous, next.map(|session| session.local_index()), None]
            }
        }
    }

    /// The initiator used the session that waits (kernel: `wg_noise_received_with_keypair`): it sends from now on.
    pub(super) fn confirm(&mut self, index: u32) -> Option<(Arc<SendSession>, Freed)> {
        let next = self.next.take_if(|next| next.local_index() == index)?;
        let freed = self.previous.take().map(|session| session.index);
        self.previous = self.current.replace(Arc::clone(&next)).as_deref().map(Retired::from);
        Some((next, [freed, None, None]))
    }

    /// Forgets what no longer receives because of its age. The current session stays: its age is the workers' concern
    /// until it is replaced or all keys are zeroed.
    pub(super) fn expire(&mut self, now: Instant) -> Freed {
        let dead = |born: Instant| now.since(born) >= REJECT_AFTER_TIME;
        let previous = self.previous.take_if(|session| dead(session.born)).map(|session| session.index);
        let next = self.next.take_if(|session| dead(session.born())).map(|session| session.local_index());
        [previous, next, None]
    }

    /// When [`Self::expire`] has something to do.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        let previous = self.previous.map(|session| session.born);
        let next = self.next.as_ref().map(|session| session.born());
        previous.into_iter().chain(next).min().map(|born| born + REJECT_AFTER_TIME)
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) -> Freed {
        let sessions = std::mem::take(self);
        let index = |session: Option<Arc<SendSession>>| session.map(|session| session.local_index());
        [sessions.previous.map(|session| session.index), index(sessions.current), index(sessions.next)]
    }
}
