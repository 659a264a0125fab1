//! HChaCha20 (draft-irtf-cfrg-xchacha-03, section 2.2): ChaCha20's rounds as a way from a key and a nonce to another key.

use zeroize::Zeroize;

/// The words of "expand 32-byte k".
const CONSTANTS: [u32; 4] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];
/// Rounds in pairs, ten for twenty: one of columns, one of diagonals.
const DOUBLE_ROUNDS: usize = 10;
/// Indices of the words that each quarter round mixes.
const QUARTERS: [[usize; 4]; 8] = [
    [0, 4, 8, 12],
    [1, 5, 9, 13],
    [2, 6, 10, 14],
    [3, 7, 11, 15],
    [0, 5, 10, 15],
    [1, 6, 11, 12],
    [2, 7, 8, 13],
    [3, 4, 9, 14],
];

/// The key that HChaCha20 derives from `key` and `nonce`.
pub(super) fn hchacha20(key: &[u8; 32], nonce: &[u8; 16]) -> [u8; 32] {
    let mut state = [0; 16];
    state[..4].copy_from_slice(&CONSTANTS);
    for (word, bytes) in state[4..].iter_mut().zip(key.as_chunks().0.iter().chain(nonce.as_chunks().0)) {
        *word = u32::from_le_bytes(*bytes);
    }
    for _ in 0..DOUBLE_ROUNDS {
        for quarter in QUARTERS {
            mix(&mut state, quarter);
        }
    }
    let mut subkey = [0; 32];
    for (bytes, word) in subkey.as_chunks_mut().0.iter_mut().zip(state[..4].iter().chain(&state[12..])) {
        *bytes = word.to_le_bytes();
    }
    state.zeroize();
    subkey
}

/// ChaCha's quarter round (RFC 8439, section 2.1).
fn mix(state: &mut [u32; 16], [a, b, c, d]: [usize; 4]) {
    let mut add = |to: usize, from: usize, turned: usize, by: u32| {
        state[to] = state[to].wrapping_add(state[from]);
        state[turned] = (state[turned] ^ state[to]).rotate_left(by);
    };
    add(a, b, d, 16);
    add(c, d, b, 12);
    add(a, b, d, 8);
    add(c, d, b, 7);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::testing::hex_array;

    #[test]
    fn a_key_as_in_the_draft_section_2_2_1() {
        let key = std::array::from_fn(|at| at as u8);
        let subkey = hchacha20(&key, &hex_array("000000090000004a0000000031415927"));
        let expected = "82413b4227b27bfed30e42508a877d73a0f9e4d58a74a853c12ec41326d3ecdc";
        assert_eq!(subkey, hex_array::<32>(expected));
    }
}
