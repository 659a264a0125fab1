//! What was tried since a peer was last connected, and what came of it: what a diagnosis needs of the device. It is made with the
//! first attempt and goes as the peer connects, so that an idle peer has none.

use super::events::{DisconnectReason, RefusalReason};
use crate::noise::REKEY_TIMEOUT;
use crate::time::{Instant, Offset};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// The time after which a peer that answers nothing is not connected any more: that of four initiations. Data is answered within
/// [`crate::noise::KEEPALIVE_TIMEOUT`], and an initiation at once.
const SILENCE: Duration = Duration::from_secs(4 * REKEY_TIMEOUT.as_secs());

/// The attempts to connect with one peer, in either direction. Times are milliseconds since the Unix epoch.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    /// The last initiation that was sent, and where it was sent to.
    pub sent: Option<Sighting>,
    /// Number of initiations sent since an authentic message came.
    pub unanswered: u32,
    /// The last response to one of them that was refused.
    pub refused_response: Option<RefusedMessage>,
    /// When the peer asked for a cookie.
    pub cookie_asked_ms: Option<u64>,
    /// When initiations were given up, as they had gone unanswered for 90 s.
    pub given_up_ms: Option<u64>,
    /// The last initiation of the peer's that was answered, and its sender.
    pub answered: Option<Sighting>,
    /// Number of answers in a row whose session the peer did not use.
    pub unused_answers: u32,
    /// The last initiation of the peer's that was refused.
    pub refused_initiation: Option<RefusedMessage>,
    /// Number of initiations of the peer's that were refused.
    pub refused_initiations: u32,
    /// When and why the peer was no longer connected.
    pub disconnected: Option<Disconnection>,
    /// When a packet of the peer's was dropped whose source is not among its AllowedIPs, and that source.
    pub refused_source: Option<(u64, IpAddr)>,
    #[serde(skip)]
    silence: Option<SilentTime>,
}

/// A message, when it was sent or came, and the other end's address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Sighting {
    /// When that was, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// The other end's address and port.
    pub address: SocketAddr,
}

/// A handshake message that was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RefusedMessage {
    /// When that was, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Its sender.
    pub from: SocketAddr,
    /// Why it was refused.
    pub why: RefusalReason,
}

/// The end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Disconnection {
    /// When that was, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Why it was.
    pub why: DisconnectReason,
}

/// A time in which nothing authentic came, as the count of received bytes shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct SilentTime {
    since: Instant,
    rx_bytes: u64,
}

/// A time since the Unix epoch, in milliseconds.
pub(super) fn millis(wall: Duration) -> u64 {
    u64::try_from(wall.as_millis()).unwrap_or(u64::MAX)
}

impl History {
    /// Notes that nothing authentic has come since `since`, at which `rx_bytes` bytes had been received.
    pub(super) fn silent_since(&mut self, since: Instant, rx_bytes: u64) {
        if self.silence.is_none_or(|silence| silence.rx_bytes != rx_bytes) {
            self.silence = Some(SilentTime { since, rx_bytes });
            self.unanswered = 0;
        }
    }

    /// Since when nothing authentic has come, as far as that was noted, and how many bytes had been received then.
    pub(super) fn silence(&self, now: Instant) -> Option<(Offset, u64)> {
        self.silence.map(|silence| (Offset::of(silence.since, now), silence.rx_bytes))
    }

    /// Takes over since when nothing authentic has come, from a record of it that was made at `then`.
    pub(super) fn restore_silence(&mut self, (since, rx_bytes): (Offset, u64), then: Instant) {
        self.silence = Some(SilentTime { since: since.from(then), rx_bytes });
    }

    /// Whether nothing authentic has come for so long that the peer is not there, though it was asked.
    pub(super) fn is_silent(&self, now: Instant) -> bool {
        self.silence.is_some_and(|silence| now.since(silence.since) >= SILENCE)
    }

    /// Whether something has come since it was noted that nothing did.
    pub(super) fn has_heard(&self, rx_bytes: u64) -> bool {
        self.silence.is_some_and(|silence| silence.rx_bytes != rx_bytes)
    }

    /// Leaves `bytes` bytes that were just received out of account: a handshake message shows that its sender is there, not that it
    /// has the session.
    pub(super) fn leave_out(&mut self, bytes: u64) {
        if let Some(silence) = &mut self.silence {
            silence.rx_bytes = silence.rx_bytes.wrapping_add(bytes);
        }
    }

    /// What stays of it as the peer connects. `None` where that is nothing.
    pub(super) fn settled(self) -> Option<History> {
        let refused_source = self.refused_source;
        refused_source.is_some().then_some(History { refused_source, ..History::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::START + Duration::from_secs(seconds)
    }

    #[test]
    fn whatever_is_received_ends_a_silence() {
        let mut history = History::default();
        assert!(!history.is_silent(at(1000)), "nobody has asked yet");
        history.silent_since(at(0), 700);
        history.silent_since(at(5), 700);
        assert!(!history.is_silent(at(19)) && history.is_silent(at(20)));
        assert!(!history.has_heard(700) && history.has_heard(732));
        history.silent_since(at(21), 732);
        history.leave_out(148);
        assert!(!history.has_heard(880));
        assert!(!history.is_silent(at(40)) && history.is_silent(at(41)));
    }

    #[test]
    fn of_what_was_tried_nothing_stays_after_the_peer_connected() {
        let mut history = History { unanswered: 3, ..History::default() };
        assert_eq!(history.clone().settled(), None);
        history.refused_source = Some((7, IpAddr::from([10, 0, 0, 7])));
        let stays = History { refused_source: history.refused_source, ..History::default() };
        assert_eq!(history.settled(), Some(stays));
    }
}
