//! What happens to peers, in words: what the log says at the level `verbose`.

use super::Device;
use crate::crypto::x25519::PublicKey;
use crate::dataplane::PeerId;
use crate::noise::handshake::HandshakeError;
use crate::time::{Instant, TokenBucket};
use crate::wire::message::MessageKind;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

/// The time in which another line about a stranger may be written: five a second.
const STRANGER_COST: Duration = Duration::from_millis(200);
/// Lines about strangers at once, as time: 20.
const STRANGER_BURST: Duration = Duration::from_secs(4);

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
    /// A handshake message from there, with the peer's key or for an initiation to it, was refused.
    Refused(MessageKind, SocketAddr, HandshakeError),
    /// The peer is under load and asks for an initiation with a cookie.
    CookieAsked,
    /// The peer is elsewhere than before.
    Moved(SocketAddr),
    /// Initiations went unanswered for as long as the protocol tries.
    GivenUp,
    /// The keys of all sessions were wiped, as none was made for long.
    KeysWiped,
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
            PeerEvent::Refused(kind, from, why) => {
                write!(f, "{} from {from} refused: {}", named(*kind), reason(*kind, *why))
            }
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
        }
    }
}

fn named(kind: MessageKind) -> &'static str {
    match kind {
        MessageKind::Initiation => "initiation",
        MessageKind::Response => "response",
        MessageKind::CookieReply => "cookie reply",
        MessageKind::Data => "data message",
    }
}

/// Why a message was refused, and what may be behind it.
fn reason(kind: MessageKind, error: HandshakeError) -> &'static str {
    match (error, kind) {
        (HandshakeError::Decrypt, MessageKind::Response) => {
            "it does not authenticate (do the preshared keys of both ends agree?)"
        }
        (HandshakeError::Decrypt, _) => {
            "it does not authenticate (is what the sender has as this end's public key right?)"
        }
        (HandshakeError::LowOrder, _) => "a public key in it is of low order",
        (HandshakeError::Replay, _) => {
            "its time is not after that of the last one (a copy; or the sender's clock was set back)"
        }
        (HandshakeError::Flood, _) => "the last one is too short a time ago",
        (HandshakeError::Unexpected, _) => "it answers nothing that is outstanding",
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

/// How many lines about strangers may be written. Anyone can send what causes one.
#[derive(Default)]
pub(super) struct StrangerLines {
    bucket: TokenBucket,
    left_out: u64,
}

impl StrangerLines {
    /// Whether a line may be written now, and how many were left out before it.
    fn next(&mut self, now: Instant) -> Option<u64> {
        if self.bucket.draw(now, STRANGER_COST, STRANGER_BURST) {
            return Some(std::mem::take(&mut self.left_out));
        }
        self.left_out += 1;
        None
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

    /// Notes that an initiation from there is of no peer, or does not authenticate.
    pub(super) fn note_stranger(
        &mut self,
        now: Instant,
        from: SocketAddr,
        why: Result<&PublicKey, HandshakeError>,
    ) {
        if !log::log_enabled!(log::Level::Debug) {
            return;
        }
        let Some(left_out) = self.stranger_lines.next(now) else { return };
        let more = if left_out > 0 { format!(" (and {left_out} more like it)") } else { String::new() };
        match why {
            Ok(key) => log::debug!("initiation from {from} refused: {key} is no peer's public key{more}"),
            Err(error) => {
                log::debug!(
                    "initiation from {from} refused: {}{more}",
                    reason(MessageKind::Initiation, error)
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_about_strangers_are_bounded_and_the_rest_is_counted() {
        let mut lines = StrangerLines::default();
        let at = |millis| Instant::START + Duration::from_millis(millis);
        assert_eq!((0..1000).filter(|_| lines.next(at(0)) == Some(0)).count(), 20);
        assert_eq!(lines.next(at(199)), None);
        assert_eq!(lines.next(at(200)), Some(981));
        assert_eq!(lines.next(at(10_000)), Some(0));
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
