//! What happens to the device and its peers, as values: for the log at the level `verbose`, and for whoever follows it.

mod watching;

pub(super) use watching::{EventQueue, Refused};

use super::balance::policy::Direction;
use crate::crypto::x25519::PublicKey;
use crate::noise::handshake::HandshakeError;
use serde::{Deserialize, Serialize};
use std::fmt::{self, Display, Formatter};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Something that happened. It is followed on the control socket; the workers' own events are [`crate::dataplane::Event`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceEvent {
    /// The peer that it is about. `None` where it is about the device, or a sender that is no peer.
    pub peer: Option<PublicKey>,
    /// What happened.
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventKind {
    /// The interface is up, and the sockets are bound to this UDP port.
    Up {
        /// The UDP port.
        port: u16,
    },
    /// The interface is down, and the sockets are closed.
    Down,
    /// The interface is up, but no sockets can be bound; that is tried again.
    Unbound {
        /// The UDP port; 0 is any.
        port: u16,
        /// What the kernel said.
        error: String,
    },
    /// The peer was added.
    PeerAdded,
    /// The peer was removed.
    PeerRemoved,
    /// An initiation was sent.
    InitiationSent {
        /// The peer's endpoint.
        to: SocketAddr,
    },
    /// An initiation was answered. The peer has a session of it once it uses that.
    InitiationAnswered {
        /// Its sender.
        from: SocketAddr,
        /// Whether the session of the answer before was not used either.
        again: bool,
    },
    /// An initiation was refused.
    InitiationRefused {
        /// Its sender.
        from: SocketAddr,
        /// Why it was.
        why: RefusalReason,
        /// The public key in it, where that is no peer's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<String>,
        /// How many other refusals nobody was told of, as there were too many.
        left_out: u64,
    },
    /// A response completed the handshake: the session is ready.
    ResponseReceived {
        /// Its sender.
        from: SocketAddr,
    },
    /// A response was refused.
    ResponseRefused {
        /// Its sender.
        from: SocketAddr,
        /// Why it was.
        why: RefusalReason,
        /// How many other refusals nobody was told of, as there were too many.
        left_out: u64,
    },
    /// The peer is under load, and asks for an initiation with a cookie.
    CookieAsked,
    /// The peer used the session that this end had answered.
    SessionConfirmed,
    /// The session became too old, and there is no other.
    SessionExpired,
    /// There is a session, and both ends are known to have it.
    Connected {
        /// Where the peer is.
        endpoint: Option<SocketAddr>,
    },
    /// There is no session any more on which the peer answers.
    Disconnected {
        /// Why that is so.
        why: DisconnectReason,
    },
    /// Initiations went unanswered for as long as the protocol tries.
    GivenUp,
    /// The keys of all sessions were wiped, as none was made for long.
    KeysWiped,
    /// The peer is elsewhere than before.
    Moved {
        /// The peer's new endpoint.
        to: SocketAddr,
    },
    /// Packets out of the tunnel were dropped, as their source is not among the peer's AllowedIPs. There may be many for one
    /// such event.
    SourceRefused {
        /// The source address of the last of them.
        source: IpAddr,
    },
    /// The peer's quota is used up, or its time has come and it begins anew.
    Quota {
        /// Whether it is used up.
        used_up: bool,
    },
    /// The workers began to share what the peer moves, or ceased to.
    Shared {
        /// Which part of it.
        direction: Direction,
        /// Whether they share it from now on.
        by_all: bool,
    },
    /// The peer was given to another worker.
    Given {
        /// The number of the worker.
        worker: u8,
    },
    /// More handshake messages arrive than are answered: cookies are asked for.
    FloodBegan,
    /// Handshake messages are answered without cookies again.
    FloodEnded,
    /// A worker does without something that the kernel refuses, or dropped packets for it.
    WorkerNotice {
        /// The number of the worker.
        worker: u8,
        /// What it is.
        notice: String,
    },
    /// Another process goes on with the tunnel. What happens from now on is told there.
    HandedOver {
        /// The number of the process.
        process: u32,
    },
    /// Events are missing here, as they were not read as fast as they came.
    Lost {
        /// The number of these.
        count: u64,
    },
}

/// Why a handshake message was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalReason {
    /// MAC1 is wrong: its sender has another public key for this end.
    WrongMac1,
    /// The message does not authenticate.
    NotAuthentic,
    /// A public key in it is of low order.
    LowOrder,
    /// The public key in it is no peer's.
    UnknownKey,
    /// Its timestamp is not after that of the last one.
    Replayed,
    /// It came too soon after the last one.
    TooSoon,
    /// It answers nothing that is outstanding.
    Unexpected,
    /// Under load, its source sends more than its share.
    RateLimited,
}

/// Why a peer is no longer connected.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DisconnectReason {
    /// Initiations went unanswered, and nothing else came.
    Unanswered,
    /// The session became too old.
    Expired,
    /// The interface went down.
    InterfaceDown,
    /// This end has another private key.
    KeyChanged,
    /// The peer was removed.
    Removed,
}

impl From<HandshakeError> for RefusalReason {
    fn from(error: HandshakeError) -> RefusalReason {
        match error {
            HandshakeError::Decrypt => RefusalReason::NotAuthentic,
            HandshakeError::LowOrder => RefusalReason::LowOrder,
            HandshakeError::Replay => RefusalReason::Replayed,
            HandshakeError::Flood => RefusalReason::TooSoon,
            HandshakeError::Unexpected => RefusalReason::Unexpected,
        }
    }
}

impl RefusalReason {
    /// The reason in words, and what may be behind it. `response` says that the message is one, and no initiation.
    fn words(self, response: bool) -> &'static str {
        match self {
            RefusalReason::WrongMac1 => {
                "its MAC is wrong (is what the sender has as this end's public key right?)"
            }
            RefusalReason::NotAuthentic if response => {
                "it does not authenticate (do the preshared keys of both ends agree?)"
            }
            RefusalReason::NotAuthentic => {
                "it does not authenticate (is what the sender has as this end's public key right?)"
            }
            RefusalReason::LowOrder => "a public key in it is of low order",
            RefusalReason::UnknownKey => "its public key is no peer's",
            RefusalReason::Replayed => {
                "its time is not after that of the last one (a copy; or the sender's clock was set back)"
            }
            RefusalReason::TooSoon => "the last one is too short a time ago",
            RefusalReason::Unexpected => "it answers nothing that is outstanding",
            RefusalReason::RateLimited => "there is a flood, and this source sends too many",
        }
    }
}

impl Display for DisconnectReason {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DisconnectReason::Unanswered => "initiations are not answered",
            DisconnectReason::Expired => "the session is too old",
            DisconnectReason::InterfaceDown => "the interface is down",
            DisconnectReason::KeyChanged => "this end has another private key",
            DisconnectReason::Removed => "the peer was removed",
        })
    }
}

/// What follows a line about a refused message.
struct LeftOut(u64);

impl Display for LeftOut {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            more => write!(f, " (and {more} more that were refused)"),
        }
    }
}

/// What is behind it that an initiation is answered once more.
const UNUSED: &str = " again, as nothing came on the session of the last answer: either answers do not arrive there, or the \
    preshared keys differ";

impl Display for EventKind {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            EventKind::Up { port } => write!(f, "the interface is up, at UDP port {port}"),
            EventKind::Down => f.write_str("the interface is down"),
            EventKind::Unbound { port, error } => {
                write!(f, "UDP port {port} cannot be bound: {error}; trying again")
            }
            EventKind::PeerAdded => f.write_str("added"),
            EventKind::PeerRemoved => f.write_str("removed"),
            EventKind::InitiationSent { to } => write!(f, "initiation sent to {to}"),
            EventKind::InitiationAnswered { from, again } => {
                write!(f, "initiation from {from} answered{}", if *again { UNUSED } else { "" })
            }
            EventKind::InitiationRefused { from, key: Some(key), left_out, .. } => {
                let more = LeftOut(*left_out);
                write!(f, "initiation from {from} refused: {key} is no peer's public key{more}")
            }
            EventKind::InitiationRefused { from, why, left_out, .. } => {
                write!(f, "initiation from {from} refused: {}{}", why.words(false), LeftOut(*left_out))
            }
            EventKind::ResponseReceived { from } => {
                write!(f, "response from {from} received: the session is ready")
            }
            EventKind::ResponseRefused { from, why, left_out } => {
                write!(f, "response from {from} refused: {}{}", why.words(true), LeftOut(*left_out))
            }
            EventKind::CookieAsked => {
                f.write_str("the peer is under load: the next initiation carries its cookie")
            }
            EventKind::SessionConfirmed => f.write_str("the session is ready: the peer uses it"),
            EventKind::SessionExpired => f.write_str("the session is too old, and there is no other"),
            EventKind::Connected { endpoint: Some(endpoint) } => write!(f, "connected, at {endpoint}"),
            EventKind::Connected { endpoint: None } => f.write_str("connected"),
            EventKind::Disconnected { why } => write!(f, "disconnected: {why}"),
            EventKind::GivenUp => {
                f.write_str("no answer to initiations for 90 s: given up until there is something to send")
            }
            EventKind::KeysWiped => {
                f.write_str("no new session for long: the keys of the old ones are wiped")
            }
            EventKind::Moved { to } => write!(f, "the endpoint is {to} now"),
            EventKind::SourceRefused { source } => {
                write!(f, "packets from {source} dropped: no AllowedIPs of the peer hold this address")
            }
            EventKind::Quota { used_up: true } => f.write_str("the quota is used up"),
            EventKind::Quota { used_up: false } => f.write_str("the quota begins anew"),
            EventKind::Shared { direction, by_all } => f.write_str(sharing(*direction, *by_all)),
            EventKind::Given { worker } => write!(f, "given to worker {worker}"),
            EventKind::FloodBegan => {
                f.write_str("a flood of handshake messages: cookies are asked for from now on")
            }
            EventKind::FloodEnded => f.write_str("the flood of handshake messages is over"),
            EventKind::WorkerNotice { worker, notice } => write!(f, "worker {worker}: {notice}"),
            EventKind::HandedOver { process } => write!(f, "process {process} goes on with the tunnel"),
            EventKind::Lost { count } => {
                write!(f, "{count} events are missing here, as they came faster than they were read")
            }
        }
    }
}

fn sharing(direction: Direction, by_all: bool) -> &'static str {
    match (direction, by_all) {
        (Direction::Sent, true) => "what is sent to it is spread over all workers",
        (Direction::Sent, false) => "what is sent to it is one worker's again",
        (Direction::Received, true) => "all workers help to open what it sends",
        (Direction::Received, false) => "its worker alone opens what it sends",
        (Direction::Sealed, true) => "all workers help to seal each of its flows",
        (Direction::Sealed, false) => "each of its flows is sealed by one worker",
    }
}

/// A peer's key as wireguard-go's log abbreviates it.
struct Abbreviated(PublicKey);

impl Display for Abbreviated {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let text = self.0.to_base64();
        let part = |range| text.get(range).unwrap_or_default();
        write!(f, "peer({}…{})", part(0..4), part(39..43))
    }
}

/// The event as a line of the log.
impl Display for DeviceEvent {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.peer {
            Some(key) => write!(f, "{}: {}", Abbreviated(key), self.kind),
            None => self.kind.fmt(f),
        }
    }
}

/// An event as those who follow a device are told of it, one line of JSON each.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EventReport {
    /// When it happened, in milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// The public key of the peer that it is about, in Base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

impl EventReport {
    /// The report of an event that happened at `wall`, the time since the Unix epoch.
    pub fn new(event: DeviceEvent, wall: Duration) -> EventReport {
        let time_ms = u64::try_from(wall.as_millis()).unwrap_or(u64::MAX);
        EventReport { time_ms, peer: event.peer.map(|key| key.to_base64()), kind: event.kind }
    }
}

#[cfg(test)]
mod tests;
