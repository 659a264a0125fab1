//! What happens to peers, in words: what the log says at the level `verbose`.

use super::Device;
use super::balance::policy::Direction;
use crate::crypto::x25519::PublicKey;
use crate::dataplane::PeerId;
use crate::noise::handshake::HandshakeError;
use crate::time::{Instant, TokenBucket};
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

/// The time in which another line about a refused message may be written: five a second.
const REFUSAL_COST: Duration = Duration::from_millis(200);
/// Such lines at once, as time: 20.
const REFUSAL_BURST: Duration = Duration::from_secs(4);

/// What happened to a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum PeerEvent {
    /// An initiation was sent there.
    Initiated(SocketAddr),
    /// An initiation from there was answered. `again` says that the answer before it was not used either.
    Answered { from: SocketAddr, again: bool },
    /// A response from there completed the handshake.
    Completed(SocketAddr),
    /// The peer used the session that this end answered.
    Confirmed,
    /// The peer is under load and asks for an initiation with a cookie.
    CookieAsked,
    /// The peer is elsewhere than before.
    Moved(SocketAddr),
    /// Initiations went unanswered for as long as the protocol tries.
    GivenUp,
    /// The keys of all sessions were wiped, as none was made for long.
    KeysWiped,
    /// The workers began to share what the peer moves, or ceased to.
    Shared(Direction, bool),
    /// The peer was given to this worker.
    Given(u8),
}

impl fmt::Display for PeerEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PeerEvent::Initiated(to) => write!(f, "initiation sent to {to}"),
            PeerEvent::Answered { from, again: false } => write!(f, "initiation from {from} answered"),
            PeerEvent::Answered { from, again: true } => write!(
                f,
                "initiation from {from} answered again, as nothing came on the session of the last answer: either answers do not \
                 arrive there, or the preshared keys differ"
            ),
            PeerEvent::Completed(from) => write!(f, "response from {from} received: the session is ready"),
            PeerEvent::Confirmed => f.write_str("the session is ready: the peer uses it"),
            PeerEvent::CookieAsked => {
                f.write_str("the peer is under load: the next initiation carries its cookie")
            }
            PeerEvent::Moved(to) => write!(f, "the endpoint is {to} now"),
            PeerEvent::GivenUp => {
                f.write_str("no answer to initiations for 90 s: given up until there is something to send")
            }
            PeerEvent::KeysWiped => {
                f.write_str("no new session for long: the keys of the old ones are wiped")
            }
            PeerEvent::Shared(Direction::Sent, true) => {
                f.write_str("what is sent to it is spread over all workers")
            }
            PeerEvent::Shared(Direction::Sent, false) => {
                f.write_str("what is sent to it is one worker's again")
            }
            PeerEvent::Shared(Direction::Received, true) => {
                f.write_str("all workers help to open what it sends")
            }
            PeerEvent::Shared(Direction::Received, false) => {
                f.write_str("its worker alone opens what it sends")
            }
            PeerEvent::Shared(Direction::Sealed, true) => {
                f.write_str("all workers help to seal each of its flows")
            }
            PeerEvent::Shared(Direction::Sealed, false) => {
                f.write_str("each of its flows is sealed by one worker")
            }
            PeerEvent::Given(worker) => write!(f, "given to worker {worker}"),
        }
    }
}

/// Whose message was refused.
#[derive(Clone, Copy)]
pub(super) enum Refused<'a> {
    /// An initiation that does not tell whose it is.
    Initiation(HandshakeError),
    /// An initiation with this key, which is no peer's.
    Stranger(&'a PublicKey),
    /// A peer's initiation.
    InitiationOf(PeerId, HandshakeError),
    /// A response to an initiation to this peer.
    ResponseOf(PeerId, HandshakeError),
}

/// Why an initiation was refused, and what may be behind it.
fn reason(error: HandshakeError) -> &'static str {
    match error {
        HandshakeError::Decrypt => {
            "it does not authenticate (is what the sender has as this end's public key right?)"
        }
        HandshakeError::LowOrder => "a public key in it is of low order",
        HandshakeError::Replay => {
            "its time is not after that of the last one (a copy; or the sender's clock was set back)"
        }
        HandshakeError::Flood => "the last one is too short a time ago",
        HandshakeError::Unexpected => "it answers nothing that is outstanding",
    }
}

/// A peer's key as wireguard-go's log abbreviates it.
struct Abbreviated(PublicKey);

impl fmt::Display for Abbreviated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_base64();
        let part = |range| text.get(range).unwrap_or_default();
        write!(f, "peer({}…{})", part(0..4), part(39..43))
    }
}

/// How many lines about refused messages may be written. Anyone can send what causes one: a copy of a peer's will do.
#[derive(Default)]
pub(super) struct RefusalLines {
    bucket: TokenBucket,
    left_out: u64,
}

impl RefusalLines {
    /// What to say behind a line that may be written now: how many were left out before it.
    fn next(&mut self, now: Instant) -> Option<String> {
        if !self.bucket.draw(now, REFUSAL_COST, REFUSAL_BURST) {
            self.left_out += 1;
            return None;
        }
        Some(match std::mem::take(&mut self.left_out) {
            0 => String::new(),
            more => format!(" (and {more} more that were refused)"),
        })
    }
}

impl Device {
    /// Notes what happened to a peer.
    pub(super) fn note(&mut self, id: PeerId, event: PeerEvent) {
        if log::log_enabled!(log::Level::Debug)
            && let Some(peer) = self.peers.by_id(id)
        {
            log::debug!("{}: {event}", Abbreviated(peer.public_key));
        }
    }

    /// Notes that a handshake message from there was refused.
    pub(super) fn note_refused(&mut self, now: Instant, from: SocketAddr, refused: Refused<'_>) {
        if !log::log_enabled!(log::Level::Debug) {
            return;
        }
        let Some(more) = self.refusal_lines.next(now) else { return };
        let mut key = |id| self.peers.by_id(id).map(|peer| Abbreviated(peer.public_key));
        match refused {
            Refused::Initiation(error) => {
                log::debug!("initiation from {from} refused: {}{more}", reason(error))
            }
            Refused::Stranger(key) => {
                log::debug!("initiation from {from} refused: {key} is no peer's public key{more}");
            }
            Refused::InitiationOf(id, error) => {
                let Some(key) = key(id) else { return };
                log::debug!("{key}: initiation from {from} refused: {}{more}", reason(error));
            }
            Refused::ResponseOf(id, error) => {
                let Some(key) = key(id) else { return };
                let reason = match error {
                    HandshakeError::Decrypt => {
                        "it does not authenticate (do the preshared keys of both ends agree?)"
                    }
                    error => reason(error),
                };
                log::debug!("{key}: response from {from} refused: {reason}{more}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_about_refused_messages_are_bounded_and_the_rest_is_counted() {
        let mut lines = RefusalLines::default();
        let at = |millis| Instant::START + Duration::from_millis(millis);
        let nothing = Some(String::new());
        assert_eq!((0..1000).filter(|_| lines.next(at(0)) == nothing).count(), 20);
        assert_eq!(lines.next(at(199)), None);
        assert_eq!(lines.next(at(200)).as_deref(), Some(" (and 981 more that were refused)"));
        assert_eq!(lines.next(at(10_000)), nothing);
    }

    #[test]
    fn a_key_is_abbreviated_as_wireguard_go_does() {
        assert_eq!(Abbreviated(PublicKey([0; 32])).to_string(), "peer(AAAA…AAAA)");
        let mut key = [0; 32];
        (key[0], key[31]) = (0xff, 0xff);
        let text = PublicKey(key).to_base64();
        assert_eq!(
            Abbreviated(PublicKey(key)).to_string(),
            format!("peer({}…{})", &text[..4], &text[39..43])
        );
    }
}
