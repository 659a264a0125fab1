//! ChaCha20-Poly1305 over eight segments of one train at a time, in AVX2 lanes. It works as `avx512` does, with eight
//! packets a vector for ChaCha20, four for Poly1305, and limbs of 26 bits for the 32-bit multiplier.

use super::{BLOCK, Key, Unit, initial_words};
use bytemuck::must_cast;
use std::arch::x86_64::*;

/// Packets in a unit.
pub(super) const LANES: usize = 8;
const MASK26: i64 = (1 << 26) - 1;
/// Bit 128 of each full Poly1305 block, in the fifth limb.
const HIBIT: i64 = 1 << 24;

/// Whether this CPU has what the kernel needs.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx2")
}

macro_rules! rotate {
    ($v:expr, $n:literal) => {{
        let v = $v;
        _mm256_or_si256(_mm256_slli_epi32::<$n>(v), _mm256_srli_epi32::<{ 32 - $n }>(v))
    }};
}

macro_rules! quarter_round {
    ($v:ident, $by16:ident, $by8:ident, $a:literal, $b:literal, $c:literal, $d:literal) => {
        $v[$a] = _mm256_add_epi32($v[$a], $v[$b]);
        $v[$d] = _mm256_shuffle_epi8(_mm256_xor_si256($v[$d], $v[$a]), $by16);
        $v[$c] = _mm256_add_epi32($v[$c], $v[$d]);
        $v[$b] = rotate!(_mm256_xor_si256($v[$b], $v[$c]), 12);
        $v[$a] = _mm256_add_epi32($v[$a], $v[$b]);
        $v[$d] = _mm256_shuffle_epi8(_mm256_xor_si256($v[$d], $v[$a]), $by8);
        $v[$c] = _mm256_add_epi32($v[$c], $v[$d]);
        $v[$b] = rotate!(_mm256_xor_si256($v[$b], $v[$c]), 7);
    };
}

/// The key stream of block `number` of all packets, word `i` of each in vector `i`.
#[target_feature(enable = "avx2")]
#[inline]
fn chacha20(initial: &[__m256i; 16], number: u32) -> [__m256i; 16] {
    let by16 = must_cast(ROTATE16);
    let by8 = must_cast(ROTATE8);
    let mut v = *initial;
    v[12] = _mm256_set1_epi32(number as i32);
    for _ in 0..10 {
        quarter_round!(v, by16, by8, 0, 4, 8, 12);
        quarter_round!(v, by16, by8, 1, 5, 9, 13);
        quarter_round!(v, by16, by8, 2, 6, 10, 14);
        quarter_round!(v, by16, by8, 3, 7, 11, 15);
        quarter_round!(v, by16, by8, 0, 5, 10, 15);
        quarter_round!(v, by16, by8, 1, 6, 11, 12);
        quarter_round!(v, by16, by8, 2, 7, 8, 13);
        quarter_round!(v, by16, by8, 3, 4, 9, 14);
    }
    for i in 0..16 {
        v[i] = if i == 12 {
            _mm256_add_epi32(v[i], _mm256_set1_epi32(number as i32))
        } else {
            _mm256_add_epi32(v[i], initial[i])
        };
    }
    v
}

/// Byte shuffles that rotate each 32-bit word left by 16 and by 8.
pub(super) const ROTATE16: [u8; 32] = rotation(2);
pub(super) const ROTATE8: [u8; 32] = rotation(3);

const fn rotation(by: usize) -> [u8; 32] {
    let mut order = [0; 32];
    let mut i = 0;
    while i < 32 {
        order[i] = ((i & 12) | ((i + by) & 3)) as u8;
        i += 1;
    }
    order
}

/// Transposes eight vectors of words, a packet a lane, into one 32-byte half row a packet.
#[target_feature(enable = "avx2")]
#[inline]
fn transpose8(v: &[__m256i]) -> [__m256i; 8] {
    let mut a = [_mm256_setzero_si256(); 8];
    for i in 0..4 {
        a[2 * i] = _mm256_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
        a[2 * i + 1] = _mm256_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
    }
    let mut b = a;
    for i in 0..2 {
        b[4 * i] = _mm256_unpacklo_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 1] = _mm256_unpackhi_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 2] = _mm256_unpacklo_epi64(a[4 * i + 1], a[4 * i + 3]);
        b[4 * i + 3] = _mm256_unpackhi_epi64(a[4 * i + 1], a[4 * i + 3]);
    }
    // b[4i + j] holds words 4i..4i+4 of lanes j and j + 4.
    let mut rows = b;
    for j in 0..4 {
        rows[j] = _mm256_permute2x128_si256::<0x20>(b[j], b[4 + j]);
        rows[j + 4] = _mm256_permute2x128_si256::<0x31>(b[j], b[4 + j]);
    }
    rows
}

/// Transposes four 32-byte half rows into four vectors of 64-bit words, a packet a lane.
#[target_feature(enable = "avx2")]
#[inline]
fn transpose4(r: &[__m256i]) -> [__m256i; 4] {
    let a = _mm256_unpacklo_epi64(r[0], r[1]);
    let b = _mm256_unpackhi_epi64(r[0], r[1]);
    let c = _mm256_unpacklo_epi64(r[2], r[3]);
    let d = _mm256_unpackhi_epi64(r[2], r[3]);
    [
        _mm256_permute2x128_si256::<0x20>(a, c),
        _mm256_permute2x128_si256::<0x20>(b, d),
        _mm256_permute2x128_si256::<0x31>(a, c),
        _mm256_permute2x128_si256::<0x31>(b, d),
    ]
}

/// The Poly1305 state of four packets.
struct PolyAvx2 {
    r: [__m256i; 5],
    /// Five times r1 to r4: the factors of what wraps around modulo 2^130 - 5.
    s: [__m256i; 4],
    h: [__m256i; 5],
}

impl PolyAvx2 {
    /// Begins with the first sixteen bytes of the one-time keys, as two 64-bit words, a packet a lane.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn new(low: __m256i, high: __m256i) -> PolyAvx2 {
        let low = _mm256_and_si256(low, _mm256_set1_epi64x(0x0fff_fffc_0fff_ffff));
        let high = _mm256_and_si256(high, _mm256_set1_epi64x(0x0fff_fffc_0fff_fffc));
        let r = limbs(low, high);
        let s = [r[1], r[2], r[3], r[4]].map(|r| _mm256_add_epi64(_mm256_slli_epi64::<2>(r), r));
        PolyAvx2 { r, s, h: [_mm256_setzero_si256(); 5] }
    }

    /// Absorbs one full 16-byte block of each packet: h = (h + m) r mod 2^130 - 5, partially reduced.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn absorb(&mut self, low: __m256i, high: __m256i) {
        let m = limbs(low, high);
        let [r0, r1, r2, r3, r4] = self.r;
        let [s1, s2, s3, s4] = self.s;
        let mut h = self.h;
        for i in 0..5 {
            h[i] = _mm256_add_epi64(h[i], m[i]);
        }
        h[4] = _mm256_add_epi64(h[4], _mm256_set1_epi64x(HIBIT));
        let d0 = dot(&h, [r0, s4, s3, s2, s1]);
        let d1 = dot(&h, [r1, r0, s4, s3, s2]);
        let d2 = dot(&h, [r2, r1, r0, s4, s3]);
        let d3 = dot(&h, [r3, r2, r1, r0, s4]);
        let d4 = dot(&h, [r4, r3, r2, r1, r0]);
        let mask = _mm256_set1_epi64x(MASK26);
        // Two carry chains side by side (0 -> 1 -> 2 -> 3 and 3 -> 4 -> 0 -> 1): shorter than one of six.
        let d1 = _mm256_add_epi64(d1, _mm256_srli_epi64::<26>(d0));
        let d4 = _mm256_add_epi64(d4, _mm256_srli_epi64::<26>(d3));
        let (d0, d3) = (_mm256_and_si256(d0, mask), _mm256_and_si256(d3, mask));
        let d2 = _mm256_add_epi64(d2, _mm256_srli_epi64::<26>(d1));
        let top = _mm256_srli_epi64::<26>(d4);
        let d0 = _mm256_add_epi64(d0, _mm256_add_epi64(_mm256_slli_epi64::<2>(top), top));
        let (d1, d4) = (_mm256_and_si256(d1, mask), _mm256_and_si256(d4, mask));
        let d3 = _mm256_add_epi64(d3, _mm256_srli_epi64::<26>(d2));
        let d1 = _mm256_add_epi64(d1, _mm256_srli_epi64::<26>(d0));
        let (d2, d0) = (_mm256_and_si256(d2, mask), _mm256_and_si256(d0, mask));
        let d4 = _mm256_add_epi64(d4, _mm256_srli_epi64::<26>(d3));
        self.h = [d0, d1, d2, _mm256_and_si256(d3, mask), d4];
    }
}

/// Splits sixteen bytes into limbs of 26, 26, 26, 26 and 24 bits.
#[target_feature(enable = "avx2")]
#[inline]
fn limbs(low: __m256i, high: __m256i) -> [__m256i; 5] {
    let mask = _mm256_set1_epi64x(MASK26);
    let middle = _mm256_or_si256(_mm256_srli_epi64::<52>(low), _mm256_slli_epi64::<12>(high));
    [
        _mm256_and_si256(low, mask),
        _mm256_and_si256(_mm256_srli_epi64::<26>(low), mask),
        _mm256_and_si256(middle, mask),
        _mm256_and_si256(_mm256_srli_epi64::<14>(high), mask),
        _mm256_srli_epi64::<40>(high),
    ]
}

#[target_feature(enable = "avx2")]
#[inline]
fn dot(h: &[__m256i; 5], r: [__m256i; 5]) -> __m256i {
    let a = _mm256_add_epi64(_mm256_mul_epu32(h[0], r[0]), _mm256_mul_epu32(h[1], r[1]));
    let b = _mm256_add_epi64(_mm256_mul_epu32(h[2], r[2]), _mm256_mul_epu32(h[3], r[3]));
    _mm256_add_epi64(_mm256_add_epi64(a, b), _mm256_mul_epu32(h[4], r[4]))
}

/// The low four (`HALF` 0) or high four of eight 32-bit lanes, joined from a vector of low and one of high words into
/// 64-bit lanes.
#[target_feature(enable = "avx2")]
#[inline]
fn widen<const HALF: i32>(low: __m256i, high: __m256i) -> __m256i {
    let low = _mm256_cvtepu32_epi64(_mm256_extracti128_si256::<HALF>(low));
    let high = _mm256_cvtepu32_epi64(_mm256_extracti128_si256::<HALF>(high));
    _mm256_or_si256(low, _mm256_slli_epi64::<32>(high))
}

/// Encrypts (`SEAL`) or decrypts the text of each packet of `unit` in place and returns the tags over the ciphertexts.
#[target_feature(enable = "avx2")]
pub(super) fn process<const SEAL: bool>(key: &Key, unit: &mut Unit<'_, LANES>) -> [[u8; 16]; LANES] {
    let initial: [__m256i; 16] = initial_words(key, &unit.counters).map(must_cast);
    let keys = chacha20(&initial, 0);
    let mut polys = [
        PolyAvx2::new(widen::<0>(keys[0], keys[1]), widen::<0>(keys[2], keys[3])),
        PolyAvx2::new(widen::<1>(keys[0], keys[1]), widen::<1>(keys[2], keys[3])),
    ];
    let mut done = 0;
    while done < unit.text_len {
        let size = BLOCK.min(unit.text_len - done);
        let stream = chacha20(&initial, (done / BLOCK) as u32 + 1);
        let mut halves = [transpose8(&stream[..8]), transpose8(&stream[8..])];
        let [lows, highs] = &mut halves;
        for (lane, (low, high)) in lows.iter_mut().zip(highs).enumerate().take(unit.packets) {
            [*low, *high] = cipher::<SEAL>(unit.text(lane, done, size), [*low, *high]);
        }
        for (half, rows) in halves.iter().enumerate() {
            let words = [transpose4(&rows[..4]), transpose4(&rows[4..])];
            for block in 0..size.div_ceil(16).saturating_sub(2 * half).min(2) {
                for (poly, words) in polys.iter_mut().zip(&words) {
                    poly.absorb(words[2 * block], words[2 * block + 1]);
                }
            }
        }
        done += size;
    }
    let length = _mm256_set1_epi64x(unit.text_len as i64);
    for poly in &mut polys {
        poly.absorb(_mm256_setzero_si256(), length);
    }
    finish(&polys, &keys)
}

/// XORs up to 64 bytes of one packet with its key stream and returns the ciphertext, padded with zeros.
#[target_feature(enable = "avx2")]
#[inline]
fn cipher<const SEAL: bool>(text: &mut [u8], stream: [__m256i; 2]) -> [__m256i; 2] {
    let xor = |a: [__m256i; 2]| [_mm256_xor_si256(a[0], stream[0]), _mm256_xor_si256(a[1], stream[1])];
    if let Ok(text) = <&mut [u8; BLOCK]>::try_from(&mut *text) {
        let before: [__m256i; 2] = must_cast(*text);
        let after = xor(before);
        *text = must_cast(after);
        return if SEAL { after } else { before };
    }
    let mut block = [0; BLOCK];
    block[..text.len()].copy_from_slice(text);
    let before: [__m256i; 2] = must_cast(block);
    let after: [u8; BLOCK] = must_cast(xor(before));
    text.copy_from_slice(&after[..text.len()]);
    if !SEAL {
        return before;
    }
    block[..text.len()].copy_from_slice(text);
    must_cast(block)
}

/// Fully reduces each packet's sum and adds the second half of its one-time key.
#[target_feature(enable = "avx2")]
#[inline]
fn finish(polys: &[PolyAvx2; 2], keys: &[__m256i; 16]) -> [[u8; 16]; LANES] {
    let mut tags = [[0; 16]; LANES];
    for (half, poly) in polys.iter().enumerate() {
        let (low, high) = if half == 0 {
            (widen::<0>(keys[4], keys[5]), widen::<0>(keys[6], keys[7]))
        } else {
            (widen::<1>(keys[4], keys[5]), widen::<1>(keys[6], keys[7]))
        };
        let h: [[u64; 4]; 5] = poly.h.map(must_cast);
        let (low, high): ([u64; 4], [u64; 4]) = (must_cast(low), must_cast(high));
        for lane in 0..4 {
            let pad = u128::from(low[lane]) | u128::from(high[lane]) << 64;
            // Pairs of 26-bit limbs are 52 bits: 2^52 is 2^8 of the second 44-bit limb, 2^104 is 2^16 of the third.
            let first = h[0][lane] + (h[1][lane] << 26);
            let second = h[2][lane] + (h[3][lane] << 26);
            let limbs = [
                first & ((1 << 44) - 1),
                (first >> 44) + ((second & ((1 << 36) - 1)) << 8),
                (second >> 36) + (h[4][lane] << 16),
            ];
            tags[4 * half + lane] = super::poly_tag(limbs, pad);
        }
    }
    tags
}
