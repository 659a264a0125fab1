//! ChaCha20-Poly1305 over sixteen segments of one train at a time, in AVX-512 lanes.
//!
//! A lane is a packet. ChaCha20 keeps word `i` of the sixteen packets' states in vector `i`, so one pass over the
//! rounds yields the same 64-byte block of all sixteen packets, and only the nonce words differ between lanes.
//! Poly1305 takes the ciphertext just made (or about to be decrypted), eight packets a vector, beside the rounds of
//! the block after it. A lane without a packet computes along, and its result is thrown away.
//!
//! Secret bytes are data here and nothing else: no branch and no address depends on them.

mod poly;
mod rounds;

use super::{BLOCK, Key, Unit, initial_words};
use bytemuck::must_cast;
use poly::PolyAvx512;
use rounds::double_round;
use std::arch::x86_64::*;

/// Packets in a unit.
pub(super) const LANES: usize = 16;

/// Whether this CPU has what the kernel needs.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512ifma")
}

/// The state of block `number` of all packets before its rounds, word `i` of each in vector `i`.
#[target_feature(enable = "avx512f,avx512ifma")]
#[inline]
fn state(initial: &[__m512i; 16], number: u32) -> [__m512i; 16] {
    let mut v = *initial;
    v[12] = _mm512_set1_epi32(number as i32);
    v
}

/// Writes to `out` the key stream of block `number`, given the state `v` after the rounds.
#[target_feature(enable = "avx512f,avx512ifma")]
#[inline]
fn key_stream(v: &[__m512i; 16], initial: &[__m512i; 16], number: u32, out: &mut [__m512i; 16]) {
    for i in 0..16 {
        out[i] = _mm512_add_epi32(v[i], initial[i]);
    }
    out[12] = _mm512_add_epi32(v[12], _mm512_set1_epi32(number as i32));
}

/// All twenty rounds of ChaCha20.
#[target_feature(enable = "avx512f,avx512ifma")]
#[inline]
fn rounds(v: &mut [__m512i; 16]) {
    for _ in 0..10 {
        double_round(v);
    }
}

/// Transposes vectors of words, a packet a lane, into one 64-byte row a packet.
#[target_feature(enable = "avx512f,avx512ifma")]
#[inline]
fn transpose16(v: &mut [__m512i; 16]) {
    let mut a = *v;
    for i in 0..8 {
        a[2 * i] = _mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
        a[2 * i + 1] = _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
    }
    let mut b = a;
    for i in 0..4 {
        b[4 * i] = _mm512_unpacklo_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 1] = _mm512_unpackhi_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 2] = _mm512_unpacklo_epi64(a[4 * i + 1], a[4 * i + 3]);
        b[4 * i + 3] = _mm512_unpackhi_epi64(a[4 * i + 1], a[4 * i + 3]);
    }
    // b[4i + j] holds words 4i..4i+4 of lanes j, j+4, j+8, j+12, one 128-bit quarter each.
    for j in 0..4 {
        let even = _mm512_shuffle_i32x4::<0b10_00_10_00>(b[j], b[4 + j]);
        let odd = _mm512_shuffle_i32x4::<0b11_01_11_01>(b[j], b[4 + j]);
        let even2 = _mm512_shuffle_i32x4::<0b10_00_10_00>(b[8 + j], b[12 + j]);
        let odd2 = _mm512_shuffle_i32x4::<0b11_01_11_01>(b[8 + j], b[12 + j]);
        v[j] = _mm512_shuffle_i32x4::<0b10_00_10_00>(even, even2);
        v[j + 8] = _mm512_shuffle_i32x4::<0b11_01_11_01>(even, even2);
        v[j + 4] = _mm512_shuffle_i32x4::<0b10_00_10_00>(odd, odd2);
        v[j + 12] = _mm512_shuffle_i32x4::<0b11_01_11_01>(odd, odd2);
    }
}

/// Transposes eight 64-byte rows into vectors of 64-bit words, a packet a lane.
#[target_feature(enable = "avx512f,avx512ifma")]
#[inline]
fn transpose8(r: &[__m512i], words: &mut [__m512i; 8]) {
    let a = [
        _mm512_unpacklo_epi64(r[0], r[1]),
        _mm512_unpackhi_epi64(r[0], r[1]),
        _mm512_unpacklo_epi64(r[2], r[3]),
        _mm512_unpackhi_epi64(r[2], r[3]),
        _mm512_unpacklo_epi64(r[4], r[5]),
        _mm512_unpackhi_epi64(r[4], r[5]),
        _mm512_unpacklo_epi64(r[6], r[7]),
        _mm512_unpackhi_epi64(r[6], r[7]),
    ];
    for odd in 0..2 {
        let low = _mm512_shuffle_i64x2::<0b10_00_10_00>(a[odd], a[2 + odd]);
        let high = _mm512_shuffle_i64x2::<0b11_01_11_01>(a[odd], a[2 + odd]);
        let low2 = _mm512_shuffle_i64x2::<0b10_00_10_00>(a[4 + odd], a[6 + odd]);
        let high2 = _mm512_shuffle_i64x2::<0b11_01_11_01>(a[4 + odd], a[6 + odd]);
        words[odd] = _mm512_shuffle_i64x2::<0b10_00_10_00>(low, low2);
        words[4 + odd] = _mm512_shuffle_i64x2::<0b11_01_11_01>(low, low2);
        words[2 + odd] = _mm512_shuffle_i64x2::<0b10_00_10_00>(high, high2);
        words[6 + odd] = _mm512_shuffle_i64x2::<0b11_01_11_01>(high, high2);
    }
}

/// The low eight (`HALF` 0) or high eight of sixteen 32-bit lanes, joined from a vector of low and one of high words
/// into 64-bit lanes.
#[target_feature(enable = "avx512f,avx512ifma")]
#[inline]
fn widen<const HALF: i32>(low: __m512i, high: __m512i) -> __m512i {
    let low = _mm512_cvtepu32_epi64(_mm512_extracti64x4_epi64::<HALF>(low));
    let high = _mm512_cvtepu32_epi64(_mm512_extracti64x4_epi64::<HALF>(high));
    _mm512_or_si512(low, _mm512_slli_epi64::<32>(high))
}

/// Encrypts (`SEAL`) or decrypts the text of each packet of `unit` in place and returns the tags over the ciphertexts.
#[target_feature(enable = "avx512f,avx512ifma")]
pub(super) fn process<const SEAL: bool>(key: &Key, unit: &mut Unit<'_, LANES>) -> [[u8; 16]; LANES] {
    let initial: [__m512i; 16] = initial_words(key, &unit.counters).map(must_cast);
    let (mut v, mut keys) = (state(&initial, 0), initial);
    rounds(&mut v);
    key_stream(&v, &initial, 0, &mut keys);
    let mut polys = [
        PolyAvx512::new(widen::<0>(keys[0], keys[1]), widen::<0>(keys[2], keys[3])),
        PolyAvx512::new(widen::<1>(keys[0], keys[1]), widen::<1>(keys[2], keys[3])),
    ];
    let mut words = [[_mm512_setzero_si512(); 8]; 2];
    let mut rows = initial;
    for (block, start) in (0..unit.text_len).step_by(BLOCK).enumerate() {
        let number = block as u32 + 1;
        let mut v = state(&initial, number);
        match start {
            0 => rounds(&mut v),
            _ => {
                // Beside the rounds, Poly1305 absorbs the block before, which `rows` holds whole.
                for (words, rows) in words.iter_mut().zip(rows.chunks_exact(8)) {
                    double_round(&mut v);
                    transpose8(rows, words);
                }
                for pair in 0..2 {
                    // Each half of the packets is absorbed in turn, so that neither waits for its own carries.
                    for (poly, words) in polys.iter_mut().zip(&words) {
                        poly.absorb_two_beside_rounds(&words[4 * pair..4 * pair + 4], &mut v);
                    }
                }
            }
        }
        key_stream(&v, &initial, number, &mut rows);
        transpose16(&mut rows);
        match unit.text_len - start {
            BLOCK.. => cipher_rows::<SEAL>(unit, start, &mut rows),
            size => cipher_last_rows::<SEAL>(unit, start, size, &mut rows),
        }
    }
    absorb_last(&mut polys, &rows, unit.text_len);
    finish(&polys, &keys)
}

/// Absorbs what no rounds follow: the last block of the text, whole or not, and the lengths.
#[target_feature(enable = "avx512f,avx512ifma")]
#[inline]
fn absorb_last(polys: &mut [PolyAvx512; 2], rows: &[__m512i; LANES], text_len: usize) {
    let size = text_len - text_len.saturating_sub(1) / BLOCK * BLOCK;
    for (poly, rows) in polys.iter_mut().zip(rows.chunks_exact(8)) {
        let mut words = [_mm512_setzero_si512(); 8];
        transpose8(rows, &mut words);
        for block in words.chunks_exact(2).take(size.div_ceil(16)) {
            poly.absorb(block[0], block[1]);
        }
        poly.absorb(_mm512_setzero_si512(), _mm512_set1_epi64(text_len as i64));
    }
}

/// XORs the key stream in `rows` to a whole block of each packet's text, and leaves the ciphertext in `rows`.
#[target_feature(enable = "avx512f,avx512ifma")]
#[inline]
fn cipher_rows<const SEAL: bool>(unit: &mut Unit<'_, LANES>, start: usize, rows: &mut [__m512i; LANES]) {
    for (lane, row) in rows.iter_mut().enumerate().take(unit.packets) {
        if let Ok(block) = unit.text(lane, start, BLOCK).try_into() {
            *row = cipher::<SEAL>(block, *row);
        }
    }
}

/// XORs the key stream to the last `size` bytes of each packet's text, and leaves the ciphertext in `rows`, padded
/// with zeros.
#[target_feature(enable = "avx512f,avx512ifma")]
#[inline]
fn cipher_last_rows<const SEAL: bool>(
    unit: &mut Unit<'_, LANES>,
    start: usize,
    size: usize,
    rows: &mut [__m512i; LANES],
) {
    let mut mask = [0_u8; BLOCK];
    mask[..size].fill(0xff);
    let mask: __m512i = must_cast(mask);
    for (lane, row) in rows.iter_mut().enumerate().take(unit.packets) {
        let stream = _mm512_and_si512(*row, mask);
        let ciphertext = match unit.block(lane, start) {
            // What follows the text is written back as it was.
            Some(block) => cipher::<SEAL>(block, stream),
            None => {
                let text = unit.text(lane, start, size);
                let mut block = [0; BLOCK];
                block[..size].copy_from_slice(text);
                let ciphertext = cipher::<SEAL>(&mut block, stream);
                text.copy_from_slice(&block[..size]);
                ciphertext
            }
        };
        *row = _mm512_and_si512(ciphertext, mask);
    }
}

/// XORs a key stream to 64 bytes and returns the ciphertext: the result when sealing, the bytes from before when
/// opening.
#[target_feature(enable = "avx512f,avx512ifma")]
#[inline]
fn cipher<const SEAL: bool>(block: &mut [u8; BLOCK], stream: __m512i) -> __m512i {
    let before: __m512i = must_cast(*block);
    let after = _mm512_xor_si512(before, stream);
    *block = must_cast(after);
    if SEAL { after } else { before }
}

/// The tags of all packets, given the Poly1305 states and the second halves of the one-time keys.
#[target_feature(enable = "avx512f,avx512ifma")]
#[inline]
fn finish(polys: &[PolyAvx512; 2], keys: &[__m512i; 16]) -> [[u8; 16]; LANES] {
    let pads = [
        (widen::<0>(keys[4], keys[5]), widen::<0>(keys[6], keys[7])),
        (widen::<1>(keys[4], keys[5]), widen::<1>(keys[6], keys[7])),
    ];
    let mut tags = [[0; 16]; LANES];
    for ((poly, pad), tags) in polys.iter().zip(pads).zip(tags.chunks_exact_mut(8)) {
        let (low, high) = poly.tags(pad);
        let (low, high): ([[u8; 8]; 8], [[u8; 8]; 8]) = (must_cast(low), must_cast(high));
        for (tag, (low, high)) in tags.iter_mut().zip(low.iter().zip(high)) {
            tag[..8].copy_from_slice(low);
            tag[8..].copy_from_slice(&high);
        }
    }
    tags
}
