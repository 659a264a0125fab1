//! How it stands with each peer: whether it is connected, and which worker owns it.

use crate::device::status::{Owner, Status};
use crate::gateway::control::PeerState;
use serde::Serialize;
use std::collections::HashMap;
use std::time::Duration;

/// REJECT_AFTER_TIME (whitepaper 6.1): a handshake that is older than this has no session any more.
const SESSION_LIFE: Duration = Duration::from_secs(180);

/// Whether a peer's last handshake, at a time since the Unix epoch, made a session that still lives. Zero is no handshake.
///
/// A handshake may lie in the future where the clock was set back since. One that lies far there was made under another time, and
/// says nothing. Peers that live make another within two minutes.
pub fn is_alive(last_handshake: Duration, wall: Duration) -> bool {
    !last_handshake.is_zero() && wall.abs_diff(last_handshake) < SESSION_LIFE
}

/// How it stands with a peer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerStanding {
    /// There was no handshake.
    Never,
    /// There was a handshake, and there is no session that both ends have.
    Silent,
    /// There is a session that both ends have.
    Connected,
}

impl PeerStanding {
    /// The word for people.
    pub fn word(self) -> &'static str {
        match self {
            PeerStanding::Never => "never",
            PeerStanding::Silent => "silent",
            PeerStanding::Connected => "connected",
        }
    }
}

/// What a device's status says of its peers, by public key in base64.
#[derive(Debug)]
pub struct Standings<'a>(Option<HashMap<&'a str, &'a Owner>>);

impl<'a> Standings<'a> {
    /// Reads it from the status. Without one, as of another implementation, the age of the last handshake tells who is connected.
    pub fn of(status: Option<&'a Status>) -> Standings<'a> {
        let owners = |status: &'a Status| status.peers.iter().map(|owner| (owner.public_key.as_str(), owner));
        Standings(status.map(|status| owners(status).collect()))
    }

    /// How it stands with a peer. `wall` is the time since the Unix epoch.
    pub fn standing(&self, key: &str, peer: &PeerState, wall: Duration) -> PeerStanding {
        let connected = match &self.0 {
            Some(_) => self.connected_ms(key).is_some(),
            None => is_alive(peer.last_handshake, wall),
        };
        match connected {
            true => PeerStanding::Connected,
            false if peer.last_handshake.is_zero() => PeerStanding::Never,
            false => PeerStanding::Silent,
        }
    }

    /// Since when a peer is connected, in milliseconds since the Unix epoch.
    pub fn connected_ms(&self, key: &str) -> Option<u64> {
        self.0.as_ref()?.get(key)?.connected_ms
    }

    /// The worker that owns a peer.
    pub fn worker(&self, key: &str) -> Option<u8> {
        Some(self.0.as_ref()?.get(key)?.worker)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::x25519::PublicKey;

    #[test]
    fn a_clock_that_is_set_makes_no_dead_peer_alive() {
        let (now, day) = (Duration::from_secs(1_000_000), Duration::from_secs(86_400));
        assert!(
            is_alive(now, now)
                && is_alive(now, now + SESSION_LIFE / 2)
                && is_alive(now, now - SESSION_LIFE / 2)
        );
        assert!(!is_alive(now, now + day) && !is_alive(now, now - day));
        assert!(!is_alive(Duration::ZERO, Duration::from_secs(1)));
    }

    #[test]
    fn a_session_tells_who_is_connected_and_elsewhere_the_handshakes_age() {
        let now = Duration::from_secs(10_000);
        let peer = |seconds| PeerState {
            last_handshake: Duration::from_secs(seconds),
            ..PeerState::new(PublicKey([1; 32]))
        };
        let (young, old, none) = (peer(9_990), peer(9_000), peer(0));
        let owner = |key: &str, connected_ms| Owner {
            public_key: key.into(),
            worker: 3,
            connected_ms,
            endpoint: None,
            memory: None,
        };
        let status =
            Status { peers: vec![owner("a", Some(9_000_000)), owner("b", None)], ..Status::default() };
        let ours = Standings::of(Some(&status));
        assert_eq!(ours.standing("a", &old, now), PeerStanding::Connected);
        assert_eq!(ours.standing("b", &young, now), PeerStanding::Silent);
        assert_eq!(ours.standing("c", &none, now), PeerStanding::Never);
        assert_eq!(
            (ours.connected_ms("a"), ours.worker("b"), ours.worker("c")),
            (Some(9_000_000), Some(3), None)
        );
        let theirs = Standings::of(None);
        let all = [&young, &old, &none].map(|peer| theirs.standing("a", peer, now));
        assert_eq!(all, [PeerStanding::Connected, PeerStanding::Silent, PeerStanding::Never]);
    }
}
