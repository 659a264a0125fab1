//! Who sent handshake messages that were refused and named no peer: a short list, for whoever asks why a peer does not connect.

use super::events::RefusalReason;
use crate::crypto::x25519::PublicKey;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// Most senders that are remembered, 64 × ~100 bytes; a further one takes the place of the one that was silent for longest.
const MAX_STRANGERS: usize = 64;

/// A sender of handshake messages that were refused, and that named no peer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Stranger {
    /// Where the last of them came from.
    pub from: SocketAddr,
    /// Why they were refused.
    pub why: RefusalReason,
    /// The public key in them, in Base64, where there was one and it is no peer's.
    pub key: Option<String>,
    /// How many there were. Of those with a wrong MAC1 some are not counted.
    pub count: u64,
    /// When the last of them came, in milliseconds since the Unix epoch.
    pub last_ms: u64,
}

/// Those who were refused of late.
#[derive(Default)]
pub(super) struct Strangers {
    noted: Vec<NotedStranger>,
}

struct NotedStranger {
    from: SocketAddr,
    why: RefusalReason,
    key: Option<PublicKey>,
    count: u64,
    last_ms: u64,
}

impl Strangers {
    /// Notes that a message was refused. One sender is an address, whatever its port, with one key.
    pub(super) fn note(&mut self, at_ms: u64, from: SocketAddr, why: RefusalReason, key: Option<PublicKey>) {
        let same =
            |noted: &&mut NotedStranger| noted.from.ip() == from.ip() && noted.why == why && noted.key == key;
        if let Some(noted) = self.noted.iter_mut().find(same) {
            noted.from = from;
            noted.count += 1;
            noted.last_ms = at_ms;
            return;
        }
        if self.noted.len() >= MAX_STRANGERS {
            let oldest = (0..self.noted.len()).min_by_key(|&at| self.noted[at].last_ms);
            if let Some(oldest) = oldest {
                self.noted.swap_remove(oldest);
            }
        }
        self.noted.push(NotedStranger { from, why, key, count: 1, last_ms: at_ms });
    }

    /// All of them, in no order.
    pub(super) fn list(&self) -> Vec<Stranger> {
        let told = |noted: &NotedStranger| Stranger {
            from: noted.from,
            why: noted.why,
            key: noted.key.map(|key| key.to_base64()),
            count: noted.count,
            last_ms: noted.last_ms,
        };
        self.noted.iter().map(told).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(host: u8, port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, host], port))
    }

    #[test]
    fn one_sender_is_counted_whatever_its_port() {
        let mut strangers = Strangers::default();
        for port in [1, 2, 3] {
            strangers.note(port.into(), from(1, port), RefusalReason::UnknownKey, Some(PublicKey([1; 32])));
        }
        strangers.note(9, from(1, 3), RefusalReason::UnknownKey, Some(PublicKey([2; 32])));
        strangers.note(9, from(1, 3), RefusalReason::WrongMac1, None);
        let listed = strangers.list();
        assert_eq!(listed.len(), 3);
        assert_eq!((listed[0].from, listed[0].count, listed[0].last_ms), (from(1, 3), 3, 3));
    }

    #[test]
    fn the_list_is_bounded_and_forgets_who_was_silent_for_longest() {
        let mut strangers = Strangers::default();
        for host in 0..=255 {
            strangers.note(u64::from(host), from(host, 7), RefusalReason::WrongMac1, None);
            strangers.note(u64::from(host), from(0, 7), RefusalReason::WrongMac1, None);
        }
        let listed = strangers.list();
        assert_eq!(listed.len(), MAX_STRANGERS);
        assert!(listed.iter().any(|one| one.from == from(0, 7) && one.count == 257), "{listed:?}");
        assert!(listed.iter().all(|one| one.from == from(0, 7) || one.last_ms > 190));
    }
}
