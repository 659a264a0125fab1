//! MAC1, MAC2 and cookies (paper, sections 5.3, 5.4.4 and 5.4.7; kernel `cookie.c`).

mod budget;
mod record;

pub use record::JarRecord;

use crate::crypto::aead::{xopen, xseal};
use crate::crypto::hash::{hash, mac};
use crate::crypto::random::Entropy;
use crate::crypto::x25519::PublicKey;
use crate::time::Instant;
use crate::wire::message::{COOKIE_REPLY_LEN, CookieReply};
use budget::ReplyBudget;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Age at which the responder's secret is replaced, and with it all cookies made from it (paper, section 5.4.7).
pub const COOKIE_SECRET_MAX_AGE: Duration = Duration::from_secs(120);
/// How much earlier than [`COOKIE_SECRET_MAX_AGE`] the initiator stops using a cookie, for the time that the message travels
/// (kernel `cookie.h`).
pub const COOKIE_SECRET_LATENCY: Duration = Duration::from_secs(5);

const LABEL_MAC1: &[u8] = b"mac1----";
const LABEL_COOKIE: &[u8] = b"cookie--";
const MAC_LEN: usize = 16;
const COOKIE_LEN: usize = 16;

/// Splits `message` into what MAC1 covers, MAC1, and MAC2. `None` where it is too short to have them.
fn split_macs(message: &[u8]) -> Option<(&[u8], &[u8; MAC_LEN], &[u8; MAC_LEN])> {
    let (rest, mac2) = message.split_last_chunk()?;
    let (body, mac1) = rest.split_last_chunk()?;
    Some((body, mac1, mac2))
}

/// The key that checks and makes MAC1.
#[derive(Clone, Copy)]
pub struct Mac1Key([u8; 32]);

impl Mac1Key {
    /// HASH(LABEL_MAC1 ‖ public).
    pub fn new(public: &PublicKey) -> Mac1Key {
        Mac1Key(hash(&[LABEL_MAC1, &public.0]))
    }

    /// Whether MAC1 (bytes len-32..len-16) of a message of type 1 or 2 is right. The comparison takes constant time.
    pub fn verify(&self, message: &[u8]) -> bool {
        split_macs(message).is_some_and(|(body, mac1, _)| self.compute(body).ct_eq(mac1).into())
    }

    fn compute(&self, body: &[u8]) -> [u8; MAC_LEN] {
        mac(&self.0, &[body])
    }
}

/// HASH(LABEL_COOKIE ‖ public), the key that seals the cookie replies of the owner of `public`.
fn cookie_key(public: &PublicKey) -> [u8; 32] {
    hash(&[LABEL_COOKIE, &public.0])
}

/// A cookie, and when it was received.
#[derive(Zeroize, ZeroizeOnDrop)]
struct Aged<const N: usize> {
    bytes: [u8; N],
    #[zeroize(skip)]
    born: Instant,
}

impl<const N: usize> Aged<N> {
    fn younger_than(&self, age: Duration, now: Instant) -> bool {
        now.since(self.born) < age
    }
}

/// What all gates of one identity have in common, so that a cookie of one opens the others.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct GateKeys {
    #[zeroize(skip)] // anyone who knows the public key knows these two
    mac1: Mac1Key,
    #[zeroize(skip)]
    cookie_key: [u8; 32],
    /// The generator behind all cookie secrets.
    root: [u8; 32],
    /// The generator behind all nonces.
    nonces: [u8; 32],
}

impl GateKeys {
    /// The keys of the local public key.
    pub fn new(public: &PublicKey, entropy: &mut dyn Entropy) -> GateKeys {
        let (mac1, cookie_key) = (Mac1Key::new(public), cookie_key(public));
        let mut keys = GateKeys { mac1, cookie_key, root: [0; 32], nonces: [0; 32] };
        entropy.fill(&mut keys.root);
        keys.nonces = keys.root;
        keys
    }
}

/// What is to be done with a message of type 1 or 2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// To be dropped: MAC1 is wrong, so the message is not for this device.
    Forged,
    /// To be worked on.
    Pass {
        /// Whether the sender has a cookie of ours, and so receives at the address that it names. Known only under
        /// load.
        proven: bool,
    },
    /// To be answered by this cookie reply alone: there is load, and MAC2 is not valid.
    Cookie([u8; COOKIE_REPLY_LEN]),
    /// To be dropped: as before, but its source and all others had more replies of late than may be.
    Unanswered,
}

/// The responder's side of the cookies, one a worker. It checks both MACs, the cheap test first, and gives cookies
/// out under load. The secret behind the cookies changes every two minutes, in all gates at once.
pub struct Gate {
    keys: GateKeys,
    /// The number of this gate among those that share `keys`.
    number: u8,
    secret: Option<(u64, Zeroizing<[u8; 32]>)>,
    /// Number of cookies given out.
    given: u64,
    budget: ReplyBudget,
}

impl Gate {
    /// Gate `number` of those that have `keys`.
    pub fn new(keys: GateKeys, number: u8) -> Gate {
        let budget = ReplyBudget::new(&keys.root, number);
        Gate { keys, number, secret: None, given: 0, budget }
    }

    /// What is to be done with `message` (type 1 or 2) from the address and port `from`. `loaded` says that the
    /// sender must prove its address before a handshake is worked on.
    pub fn judge(&mut self, message: &[u8], from: SocketAddr, now: Instant, loaded: bool) -> Verdict {
        if !self.keys.mac1.verify(message) {
            return Verdict::Forged;
        }
        if !loaded {
            return Verdict::Pass { proven: false };
        }
        // Most messages of a flood bring no cookie and get none: they are not to cost the making of one.
        let claims = split_macs(message).is_some_and(|(.., mac2)| *mac2 != [0; MAC_LEN]);
        let cookie = claims.then(|| self.cookie(from, now));
        if cookie.is_some_and(|cookie| has_mac2(message, &cookie)) {
            return Verdict::Pass { proven: true };
        }
        if !self.budget.take(from.ip(), now) {
            return Verdict::Unanswered;
        }
        let cookie = cookie.unwrap_or_else(|| self.cookie(from, now));
        Verdict::Cookie(self.reply(message, &cookie))
    }

    /// The cookie reply to `message`.
    fn reply(&mut self, message: &[u8], cookie: &[u8; COOKIE_LEN]) -> [u8; COOKIE_REPLY_LEN] {
        // Both types have the sender's index after the type word.
        let receiver =
            message.get(4..).and_then(|rest| rest.first_chunk()).map_or(0, |i| u32::from_le_bytes(*i));
        let mac1 = split_macs(message).map_or(&[0; MAC_LEN], |(_, mac1, _)| mac1);
        let nonce = self.nonce();
        let mut cookie_sealed = [0; COOKIE_LEN + MAC_LEN];
        let (sealed, tag) = cookie_sealed.split_at_mut(COOKIE_LEN);
        sealed.copy_from_slice(cookie);
        tag.copy_from_slice(&xseal(&self.keys.cookie_key, &nonce, mac1, sealed));
        CookieReply { receiver, nonce, cookie_sealed }.to_bytes()
    }

    /// A nonce that no gate has used and nobody foresees. It does not ask the system for random numbers each time.
    fn nonce(&mut self) -> [u8; 24] {
        self.given += 1;
        let drawn =
            Zeroizing::new(hash(&[&self.keys.nonces, b"nonce", &[self.number], &self.given.to_le_bytes()]));
        std::array::from_fn(|at| drawn[at])
    }

    /// The cookie of `from`: a MAC of its address and port under the secret of the current two minutes.
    fn cookie(&mut self, from: SocketAddr, now: Instant) -> [u8; COOKIE_LEN] {
        let age = now.as_nanos() / COOKIE_SECRET_MAX_AGE.as_nanos() as u64;
        let secret = match self.secret.take().filter(|(of, _)| *of == age) {
            Some(secret) => secret,
            None => (age, Zeroizing::new(hash(&[&self.keys.root, b"secret", &age.to_le_bytes()]))),
        };
        let (_, secret) = self.secret.insert(secret);
        let port = from.port().to_be_bytes();
        match from.ip().to_canonical() {
            IpAddr::V4(address) => mac(&**secret, &[&address.octets(), &port]),
            IpAddr::V6(address) => mac(&**secret, &[&address.octets(), &port]),
        }
    }
}

/// Whether MAC2 was made with `cookie`.
fn has_mac2(message: &[u8], cookie: &[u8; COOKIE_LEN]) -> bool {
    message.split_last_chunk::<MAC_LEN>().is_some_and(|(body, mac2)| mac(cookie, &[body]).ct_eq(mac2).into())
}

/// The initiator's side of the cookies, one a peer. It writes MAC1 and, with a cookie younger than 120 s, MAC2.
pub struct CookieJar {
    mac1_key: Mac1Key,
    cookie_key: [u8; 32],
    /// MAC1 of the message sent last, until a reply to it was received.
    awaited: Option<[u8; MAC_LEN]>,
    cookie: Option<Aged<COOKIE_LEN>>,
}

impl CookieJar {
    /// The jar of the peer with this public key.
    pub fn new(remote: &PublicKey) -> CookieJar {
        CookieJar {
            mac1_key: Mac1Key::new(remote),
            cookie_key: cookie_key(remote),
            awaited: None,
            cookie: None,
        }
    }

    /// Writes both MACs of an outgoing message of type 1 or 2.
    pub fn seal(&mut self, message: &mut [u8], now: Instant) {
        let Some((rest, mac2)) = message.split_last_chunk_mut::<MAC_LEN>() else { return };
        let Some((body, mac1)) = rest.split_last_chunk_mut::<MAC_LEN>() else { return };
        *mac1 = self.mac1_key.compute(body);
        self.awaited = Some(*mac1);
        let usable = COOKIE_SECRET_MAX_AGE - COOKIE_SECRET_LATENCY;
        self.cookie.take_if(|cookie| !cookie.younger_than(usable, now));
        *mac2 = self.cookie.as_ref().map_or([0; MAC_LEN], |cookie| mac(&cookie.bytes, &[rest]));
    }

    /// Opens a cookie reply against the MAC1 sent last, and keeps the cookie for the next message. False where the
    /// reply is not authentic or was not expected.
    pub fn accept(&mut self, reply: &CookieReply, now: Instant) -> bool {
        let Some(mac1) = &self.awaited else { return false };
        let Some((sealed, tag)) = reply.cookie_sealed.split_first_chunk::<COOKIE_LEN>() else { return false };
        let Some(tag) = tag.first_chunk::<MAC_LEN>() else { return false };
        let mut cookie = Aged { bytes: *sealed, born: now };
        if !xopen(&self.cookie_key, &reply.nonce, mac1, &mut cookie.bytes, tag) {
            return false;
        }
        self.cookie = Some(cookie);
        self.awaited = None;
        true
    }
}

#[cfg(test)]
mod tests;
