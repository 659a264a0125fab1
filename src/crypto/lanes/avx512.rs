//! ChaCha20-Poly1305 over sixteen segments of one train at a time, in AVX-512 lanes.
//!
//! A lane is a packet. ChaCha20 keeps word `i` of the sixteen packets' states in vector `i`, so one pass over the
//! rounds yields the same 64-byte block of all sixteen packets, and only the nonce words differ between lanes.
//! Poly1305 takes the ciphertext just made (or about to be decrypted), eight packets a vector, beside the rounds of
//! a block after it. A lane without a packet computes along, and its result is thrown away.
//!
//! Secret bytes are data here and nothing else: no branch and no address depends on them.

mod poly;
mod rounds;

use super::{BLOCK, Key, SIGMA, Unit, initial_words, quarter_round};
use bytemuck::must_cast;
use poly::PolyAvx512;
use rounds::{diagonal_round, double_round};
use std::arch::x86_64::*;

/// Packets in a unit.
pub(super) const LANES: usize = 16;
/// Bytes of text from which on it pays to have three blocks on their way.
const LONG: usize = 16 * BLOCK;

/// Whether this CPU has what the kernel needs.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512ifma")
        && is_x86_feature_detected!("avx512vbmi2")
}

/// What all blocks of a unit begin with.
struct Source<'a> {
    key: &'a Key,
    /// The words before the rounds, word `i` of each packet in vector `i`, with block number zero.
    initial: &'a [__m512i; 16],
    /// The words after the first column round, but for the first column, which depends on the block's number.
    begun: &'a [__m512i; 16],
}

/// Computes the first column round, but for the first column.
#[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
#[inline]
fn begin(initial: &[__m512i; 16]) -> [__m512i; 16] {
    let mut begun = *initial;
    for column in 1..4 {
        let [mut a, mut b, mut c, mut d] =
            [initial[column], initial[4 + column], initial[8 + column], initial[12 + column]];
        a = _mm512_add_epi32(a, b);
        d = _mm512_rol_epi32::<16>(_mm512_xor_si512(d, a));
        c = _mm512_add_epi32(c, d);
        b = _mm512_rol_epi32::<12>(_mm512_xor_si512(b, c));
        a = _mm512_add_epi32(a, b);
        d = _mm512_rol_epi32::<8>(_mm512_xor_si512(d, a));
        c = _mm512_add_epi32(c, d);
        b = _mm512_rol_epi32::<7>(_mm512_xor_si512(b, c));
        [begun[column], begun[4 + column], begun[8 + column], begun[12 + column]] = [a, b, c, d];
    }
    begun
}

impl Source<'_> {
    /// The words of block `number` after the first column round.
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    #[inline]
    fn begin(&self, number: usize) -> [__m512i; 16] {
        let mut v = *self.begun;
        let words = quarter_round([SIGMA[0], self.key.words[0], self.key.words[4], number as u32]);
        for (row, word) in words.into_iter().enumerate() {
            v[4 * row] = _mm512_set1_epi32(word as i32);
        }
        v
    }

    /// Writes to `out` the key stream of block `number`, given the words `v` after the rounds.
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    #[inline]
    fn key_stream(&self, v: &[__m512i; 16], number: usize, out: &mut [__m512i; 16]) {
        for i in 0..16 {
            out[i] = _mm512_add_epi32(v[i], self.initial[i]);
        }
        out[12] = _mm512_add_epi32(v[12], _mm512_set1_epi32(number as i32));
    }
}

/// The nineteen rounds of ChaCha20 after the first.
#[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
#[inline]
fn rounds(v: &mut [__m512i; 16]) {
    diagonal_round(v);
    for _ in 0..9 {
        double_round(v);
    }
}

/// Transposes groups of four words: of vectors of words, a packet a lane, it makes quarters of rows, of which vector j
/// holds those of packets j, j + 4, j + 8 and j + 12.
#[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
#[inline]
fn transpose_words(v: &mut [__m512i; 4]) {
    let (even, odd) = (_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[0], v[1]));
    let (even2, odd2) = (_mm512_unpacklo_epi32(v[2], v[3]), _mm512_unpackhi_epi32(v[2], v[3]));
    v[0] = _mm512_unpacklo_epi64(even, even2);
    v[1] = _mm512_unpackhi_epi64(even, even2);
    v[2] = _mm512_unpacklo_epi64(odd, odd2);
    v[3] = _mm512_unpackhi_epi64(odd, odd2);
}

/// The rows of packets j, j + 4, j + 8 and j + 12, given the quarters of all.
#[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
#[inline]
fn join_quarters(quarters: &[__m512i; 16], j: usize) -> [__m512i; 4] {
    join_words([quarters[j], quarters[4 + j], quarters[8 + j], quarters[12 + j]])
}

/// Transposes vectors of words, a packet a lane, into one 64-byte row a packet.
#[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
#[inline]
fn transpose16(v: &mut [__m512i; 16]) {
    for i in 0..4 {
        transpose_words(&mut v.as_chunks_mut().0[i]);
    }
    for j in 0..4 {
        [v[j], v[j + 4], v[j + 8], v[j + 12]] = join_quarters(v, j);
    }
}

/// Transposes eight 64-byte rows into vectors of 64-bit words, a packet a lane.
#[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
#[inline]
fn transpose8(r: &[__m512i; 8], words: &mut [__m512i; 8]) {
    [words[0], words[2], words[4], words[6]] = join_words([
        _mm512_unpacklo_epi64(r[0], r[1]),
        _mm512_unpacklo_epi64(r[2], r[3]),
        _mm512_unpacklo_epi64(r[4], r[5]),
        _mm512_unpacklo_epi64(r[6], r[7]),
    ]);
    [words[1], words[3], words[5], words[7]] = join_words([
        _mm512_unpackhi_epi64(r[0], r[1]),
        _mm512_unpackhi_epi64(r[2], r[3]),
        _mm512_unpackhi_epi64(r[4], r[5]),
        _mm512_unpackhi_epi64(r[6], r[7]),
    ]);
}

/// Half of [`transpose8`]: the low or the high words, given those of two packets in each vector.
#[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
#[inline]
fn join_words([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    let low = _mm512_shuffle_i64x2::<0b10_00_10_00>(a, b);
    let high = _mm512_shuffle_i64x2::<0b11_01_11_01>(a, b);
    let low2 = _mm512_shuffle_i64x2::<0b10_00_10_00>(c, d);
    let high2 = _mm512_shuffle_i64x2::<0b11_01_11_01>(c, d);
    [
        _mm512_shuffle_i64x2::<0b10_00_10_00>(low, low2),
        _mm512_shuffle_i64x2::<0b10_00_10_00>(high, high2),
        _mm512_shuffle_i64x2::<0b11_01_11_01>(low, low2),
        _mm512_shuffle_i64x2::<0b11_01_11_01>(high, high2),
    ]
}

/// The low eight (`HALF` 0) or high eight of sixteen 32-bit lanes, joined from a vector of low and one of high words
/// into 64-bit lanes.
#[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
#[inline]
fn widen<const HALF: i32>(low: __m512i, high: __m512i) -> __m512i {
    let low = _mm512_cvtepu32_epi64(_mm512_extracti64x4_epi64::<HALF>(low));
    let high = _mm512_cvtepu32_epi64(_mm512_extracti64x4_epi64::<HALF>(high));
    _mm512_or_si512(low, _mm512_slli_epi64::<32>(high))
}

/// Encrypts (`SEAL`) or decrypts the text of each packet of `unit` in place and returns the tags over the ciphertexts.
#[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
pub(super) fn process<const SEAL: bool>(key: &Key, unit: &mut Unit<'_, LANES>) -> [[u8; 16]; LANES] {
    let initial: [__m512i; 16] = initial_words(key, &unit.counters).map(must_cast);
    let begun = begin(&initial);
    let source = Source { key, initial: &initial, begun: &begun };
    let (mut v, mut keys) = (source.begin(0), initial);
    rounds(&mut v);
    source.key_stream(&v, 0, &mut keys);
    let mut polys = [
        PolyAvx512::new(widen::<0>(keys[0], keys[1]), widen::<0>(keys[2], keys[3])),
        PolyAvx512::new(widen::<1>(keys[0], keys[1]), widen::<1>(keys[2], keys[3])),
    ];
    let mut rows = [_mm512_setzero_si512(); LANES];
    if unit.text_len < LONG {
        short::<SEAL>(&source, unit, &mut polys, &mut rows);
    } else {
        long::<SEAL>(&source, unit, &mut polys, &mut rows);
    }
    absorb_last(&mut polys, &rows, unit.text_len);
    finish(&polys, &keys)
}

/// Works through short texts. Poly1305 absorbs a block beside the rounds of the next. The last block is left in `rows`,
/// not absorbed.
#[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
#[inline]
fn short<const SEAL: bool>(
    source: &Source<'_>,
    unit: &mut Unit<'_, LANES>,
    polys: &mut [PolyAvx512; 2],
    rows: &mut [__m512i; LANES],
) {
    for (block, start) in (0..unit.text_len).step_by(BLOCK).enumerate() {
        let mut v = source.begin(block + 1);
        if block == 0 {
            rounds(&mut v);
        } else {
            if block == 1 {
                polys.iter_mut().for_each(|poly| poly.raise());
            }
            let mut words = [[_mm512_setzero_si512(); 8]; 2];
            diagonal_round(&mut v);
            for (words, rows) in words.iter_mut().zip(rows.as_chunks().0) {
                transpose8(rows, words);
            }
            double_round(&mut v);
            for (poly, words) in polys.iter_mut().zip(&words) {
                poly.absorb_row(words, Some(&mut v));
            }
        }
        source.key_stream(&v, block + 1, rows);
        transpose16(rows);
        match unit.text_len - start {
            BLOCK.. => cipher_rows::<SEAL>(unit, start, rows),
            size => cipher_last_rows::<SEAL>(unit, start, size, rows),
        }
    }
}

/// Works through long texts, with three blocks on their way: beside the rounds of one, the key stream of the block
/// before is transposed and applied, and Poly1305 absorbs the block before that. The last block is left in `stream`,
/// not absorbed.
#[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
#[inline]
fn long<const SEAL: bool>(
    source: &Source<'_>,
    unit: &mut Unit<'_, LANES>,
    polys: &mut [PolyAvx512; 2],
    stream: &mut [__m512i; LANES],
) {
    polys.iter_mut().for_each(|poly| poly.raise());
    let mut rows = [_mm512_setzero_si512(); LANES];
    let last = (unit.text_len - 1) / BLOCK;
    for block in 0..=last {
        let mut v = source.begin(block + 1);
        match block {
            0 => rounds(&mut v),
            1 => {
                rounds(&mut v);
                transpose16(stream);
                rows = *stream;
                cipher_rows::<SEAL>(unit, 0, &mut rows);
            }
            _ => long_rounds::<SEAL>(&mut v, unit, (block - 1) * BLOCK, polys, stream, &mut rows),
        }
        source.key_stream(&v, block + 1, stream);
    }
    let mut words = [_mm512_setzero_si512(); 8];
    for (poly, rows) in polys.iter_mut().zip(rows.as_chunks().0) {
        transpose8(rows, &mut words);
        poly.absorb_row(&words, None);
    }
    transpose16(stream);
    cipher_last_rows::<SEAL>(unit, last * BLOCK, unit.text_len - last * BLOCK, stream);
}

/// Does the rounds of a block on `v`, and between them absorbs `rows`, transposes `stream`, and makes of it and the
/// text at `start` new rows. The shuffles stand apart: they all go to one port of an Intel CPU, and many in a row would
/// fill its scheduler, so that rotations, which go to another port, would wait outside.
#[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
#[inline]
fn long_rounds<const SEAL: bool>(
    v: &mut [__m512i; 16],
    unit: &mut Unit<'_, LANES>,
    start: usize,
    [first, second]: &mut [PolyAvx512; 2],
    stream: &mut [__m512i; LANES],
    rows: &mut [__m512i; LANES],
) {
    let mut words = [_mm512_setzero_si512(); 8];
    let [low, high] = rows.as_chunks().0 else { unreachable!() };
    let [q0, q1, q2, q3] = stream.as_chunks_mut().0 else { unreachable!() };
    diagonal_round(v);
    double_round(v);
    transpose8(low, &mut words);
    transpose_words(q0);
    let mut product = first.marks;
    first.add::<0>(&mut product, &words, Some(v));
    transpose_words(q1);
    first.add::<1>(&mut product, &words, Some(v));
    transpose_words(q2);
    first.add::<2>(&mut product, &words, Some(v));
    transpose_words(q3);
    first.add::<3>(&mut product, &words, Some(v));
    first.h = product.carried();
    transpose8(high, &mut words);
    let mut product = second.marks;
    second.add::<0>(&mut product, &words, Some(v));
    cipher_quarter::<SEAL>(unit, start, 0, stream, rows);
    second.add::<1>(&mut product, &words, Some(v));
    cipher_quarter::<SEAL>(unit, start, 1, stream, rows);
    second.add::<2>(&mut product, &words, Some(v));
    cipher_quarter::<SEAL>(unit, start, 2, stream, rows);
    second.add::<3>(&mut product, &words, Some(v));
    cipher_quarter::<SEAL>(unit, start, 3, stream, rows);
    second.h = product.carried();
}

/// Absorbs what no rounds follow: the last block of the text, whole or not, and the lengths.
#[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
#[inline]
fn absorb_last(polys: &mut [PolyAvx512; 2], rows: &[__m512i; LANES], text_len: usize) {
    let size = text_len - text_len.saturating_sub(1) / BLOCK * BLOCK;
    for (poly, rows) in polys.iter_mut().zip(rows.as_chunks().0) {
        let mut words = [_mm512_setzero_si512(); 8];
        transpose8(rows, &mut words);
        for block in words.chunks_exact(2).take(size.div_ceil(16)) {
            poly.absorb(block[0], block[1]);
        }
        poly.absorb(_mm512_setzero_si512(), _mm512_set1_epi64(text_len as i64));
    }
}

/// XORs the key stream in `rows` to a whole block of each packet's text, and leaves the ciphertext in `rows`.
#[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
#[inline]
fn cipher_rows<const SEAL: bool>(unit: &mut Unit<'_, LANES>, start: usize, rows: &mut [__m512i; LANES]) {
    for (lane, row) in rows.iter_mut().enumerate().take(unit.packets) {
        if let Ok(block) = unit.text(lane, start, BLOCK).try_into() {
            *row = cipher::<SEAL>(block, *row);
        }
    }
}

/// Does the same for packets j, j + 4, j + 8 and j + 12, given the quarters of the key stream's rows.
#[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
#[inline]
fn cipher_quarter<const SEAL: bool>(
    unit: &mut Unit<'_, LANES>,
    start: usize,
    j: usize,
    quarters: &[__m512i; LANES],
    rows: &mut [__m512i; LANES],
) {
    for (k, stream) in join_quarters(quarters, j).into_iter().enumerate() {
        let lane = j + 4 * k;
        if lane < unit.packets
            && let Ok(block) = unit.text(lane, start, BLOCK).try_into()
        {
            rows[lane] = cipher::<SEAL>(block, stream);
        }
    }
}

/// XORs the key stream to the last `size` bytes of each packet's text, and leaves the ciphertext in `rows`, padded
/// with zeros.
#[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
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
#[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
#[inline]
fn cipher<const SEAL: bool>(block: &mut [u8; BLOCK], stream: __m512i) -> __m512i {
    let before: __m512i = must_cast(*block);
    let after = _mm512_xor_si512(before, stream);
    *block = must_cast(after);
    if SEAL { after } else { before }
}

/// The tags of all packets, given the Poly1305 states and the second halves of the one-time keys.
#[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
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
