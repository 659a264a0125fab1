//! Cookies as plain data, for another process that goes on with them.

use super::{Aged, COOKIE_LEN, CookieJar, GateKeys, MAC_LEN};
use crate::crypto::random::Entropy;
use crate::crypto::secret::SecretBytes;
use crate::crypto::x25519::PublicKey;
use crate::time::{Instant, Offset};
use serde::{Deserialize, Serialize};

/// The initiator's side of one peer's cookies.
#[derive(Debug, Serialize, Deserialize)]
pub struct JarRecord {
    awaited: Option<[u8; MAC_LEN]>,
    /// The cookie, and when it was received.
    cookie: Option<(SecretBytes<COOKIE_LEN>, Offset)>,
}

impl CookieJar {
    /// The jar as plain data, at `now`.
    pub fn record(&self, now: Instant) -> JarRecord {
        let cookie = self.cookie.as_ref();
        JarRecord {
            awaited: self.awaited,
            cookie: cookie.map(|cookie| (SecretBytes::copy_of(&cookie.bytes), Offset::of(cookie.born, now))),
        }
    }

    /// The jar of the peer with this public key, of which a record was made at `then`.
    pub fn restore(remote: &PublicKey, record: &JarRecord, then: Instant) -> CookieJar {
        let cookie = record.cookie.as_ref();
        CookieJar {
            awaited: record.awaited,
            cookie: cookie.map(|(cookie, born)| Aged { bytes: *cookie.bytes(), born: born.from(then) }),
            ..CookieJar::new(remote)
        }
    }
}

impl GateKeys {
    /// What the cookies given out so far come of. Their secret is that of the present two minutes by the host's clock, so that
    /// it is as old in the other process as in this one.
    pub fn record(&self) -> SecretBytes<32> {
        SecretBytes::copy_of(&self.root)
    }

    /// The keys of the local public key, with which cookies are good that were given out by whoever made the record. The nonces
    /// of further ones are drawn anew, as nobody knows which were used.
    pub fn restore(public: &PublicKey, record: &SecretBytes<32>, entropy: &mut dyn Entropy) -> GateKeys {
        // What is drawn here is for the nonces.
        let mut keys = GateKeys::new(public, entropy);
        keys.root = *record.bytes();
        keys
    }
}
