//! BLAKE2s: hash, keyed MAC, and HMAC as the handshake uses them (WireGuard paper, section 5.4).

use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput, KeyInit, Update};
use blake2::{Blake2s256, Blake2sMac, Digest};
use zeroize::{Zeroize, Zeroizing};

/// BLAKE2s works on blocks of this many bytes; HMAC pads its key to one (RFC 2104).
const BLOCK_LEN: usize = 64;

/// BLAKE2s-256 of the concatenation of `parts`.
pub fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut state = Blake2s256::new();
    for part in parts {
        Update::update(&mut state, part);
    }
    state.finalize_fixed().into()
}

/// Keyed BLAKE2s with a 16-byte output over the concatenation of `parts`.
///
/// # Panics
///
/// On a `key` of no bytes or of more than 32: keys here are of fixed length, so that is a mistake in the caller.
pub fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 16] {
    // Without a key, BLAKE2s must not absorb the key block that this constructor prepares.
    assert!(!key.is_empty(), "a MAC needs a key");
    let Ok(mut state) = Blake2sMac::<U16>::new_from_slice(key) else {
        panic!("a BLAKE2s key has at most 32 bytes, not {}", key.len());
    };
    for part in parts {
        state.update(part);
    }
    state.finalize_fixed().into()
}

/// HMAC-BLAKE2s-256 of the concatenated `parts` under `key` (RFC 2104).
pub fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut padded = Zeroizing::new([0; BLOCK_LEN]);
    match padded.get_mut(..key.len()) {
        Some(start) => start.copy_from_slice(key),
        None => padded[..32].copy_from_slice(&hash(&[key])),
    }
    padded.iter_mut().for_each(|byte| *byte ^= 0x36);
    let mut inner = Blake2s256::new();
    Update::update(&mut inner, &*padded);
    for part in parts {
        Update::update(&mut inner, part);
    }
    let mut inner: [u8; 32] = inner.finalize_fixed().into();
    padded.iter_mut().for_each(|byte| *byte ^= 0x36 ^ 0x5c);
    let outer = hash(&[&*padded, &inner]);
    inner.zeroize();
    outer
}

/// The paper's KDFn (HKDF of RFC 5869 over HMAC-BLAKE2s, without info): `N` outputs of 32 bytes.
pub fn kdf<const N: usize>(key: &[u8; 32], input: &[u8]) -> Zeroizing<[[u8; 32]; N]> {
    let secret = Zeroizing::new(hmac(key, &[input]));
    let mut outputs = Zeroizing::new([[0; 32]; N]);
    let mut previous = Zeroizing::new([0; 32]);
    for (i, output) in (1u8..).zip(outputs.iter_mut()) {
        let before: &[u8] = if i == 1 { &[] } else { &*previous };
        *output = hmac(&*secret, &[before, &[i]]);
        *previous = *output;
    }
    outputs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::testing::hex_array;
    use proptest::prelude::*;

    #[test]
    fn hash_matches_rfc_7693() {
        let abc = "508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982";
        assert_eq!(hash(&[b"abc"]), hex_array(abc));
        assert_eq!(hash(&[b"a", b"", b"bc"]), hex_array(abc));
        let empty = "69217a3079908094e11121d042354a7c1f55b6482ca1a51e1b250dfd1ed0eef9";
        assert_eq!(hash(&[]), hex_array(empty));
    }

    /// Expected values: Python's hashlib.blake2s and hmac.
    #[test]
    fn mac_matches_the_reference_implementation() {
        let key: Vec<u8> = (0..32).collect();
        let data: Vec<u8> = (0..100).collect();
        assert_eq!(mac(&key, &[&data]), hex_array("0b67d33f8b859c3157fbabd9e6e47ed0"));
        assert_eq!(
            mac(&key[..16], &[&data[..60], &data[60..]]),
            hex_array("56301549e674c3b72a0e1dafb7a2c620")
        );
    }

    #[test]
    fn hmac_matches_the_reference_implementation() {
        let key: Vec<u8> = (0..100).collect();
        assert_eq!(
            hmac(&key[..32], &[b"what do ya want ", b"for nothing?"]),
            hex_array("14229dde9cdbd4dd31b1a703ac36832ecc9177e0ba0d4632568515aaec7e401f")
        );
        assert_eq!(
            hmac(&key[..64], &[b"block"]),
            hex_array("8facb465dbf9b429de09477eb1bc78cb6b30d99a4ffb7c0e646128c48478c9e9")
        );
        assert_eq!(
            hmac(&key, &[b"longer than a block"]),
            hex_array("473c106223e89e3138345050c86adeb1fb96b49009c12339c9be118a4fb58375")
        );
        assert_eq!(
            hmac(&[], &[]),
            hex_array("eaf4bb25938f4d20e72656bbbc7a9bf63c0c18537333c35bdb67db1402661acd")
        );
    }

    #[test]
    fn kdf_matches_the_reference_implementation() {
        let key = std::array::from_fn(|i| i as u8);
        let three = kdf::<3>(&key, b"input");
        assert_eq!(
            three[0],
            hex_array::<32>("87b7f70b24183c6db5dc4f6d9f4c47cdb203321aa2a0bef714896adb3107a040")
        );
        assert_eq!(
            three[1],
            hex_array::<32>("538a02e1eb2e31b7e4d4b82476d1fe2acf50085d3fb584537279195f5d1f5824")
        );
        assert_eq!(
            three[2],
            hex_array::<32>("9ad858025593be88de0f9442a589cfe84a88dc19e4753d93684d1c5efc4837f9")
        );
        assert_eq!(kdf::<1>(&key, b"input")[0], three[0], "fewer outputs are a prefix of more");
    }

    #[test]
    #[should_panic(expected = "at most 32 bytes")]
    fn mac_refuses_a_long_key() {
        mac(&[0; 33], &[]);
    }

    proptest! {
        #[test]
        fn how_the_input_is_cut_does_not_matter(data: Vec<u8>, at: prop::sample::Index) {
            let (left, right) = data.split_at(at.index(data.len() + 1));
            prop_assert_eq!(hash(&[&data]), hash(&[left, right]));
            prop_assert_eq!(mac(b"key", &[&data]), mac(b"key", &[left, right]));
            prop_assert_eq!(hmac(b"key", &[&data]), hmac(b"key", &[left, right]));
        }
    }
}
