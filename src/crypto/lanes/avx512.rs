//! ChaCha20-Poly1305 over sixteen segments of one train at a time, in AVX-512 lanes.
//!
//! A lane is a packet. ChaCha20 keeps word `i` of the sixteen packets' states in vector `i`, so one pass over the rounds
//! yields the same 64-byte block of all sixteen packets and only the nonce words differ between lanes. Poly1305 runs beside
//! it on the ciphertext just made (or about to be decrypted), eight packets a vector, with radix-2^44 limbs and the 52-bit
//! multiply-add of AVX-512 IFMA (the split of Bernstein's "poly1305-donna-64"). Lanes of a packet that is not there
//! compute along and are thrown away.
//!
//! Nothing here depends on secret bytes but data: no branch, no address.

use super::{BLOCK, Unit, initial_words};
use bytemuck::must_cast;
use std::arch::x86_64::*;

/// Packets in a unit.
pub(super) const LANES: usize = 16;
const MASK44: i64 = (1 << 44) - 1;
const MASK42: i64 = (1 << 42) - 1;
/// Bit 128 of each full Poly1305 block, in the third limb.
const HIBIT: i64 = 1 << 40;

/// Whether this CPU has what the kernel needs.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512ifma")
}

macro_rules! quarter_round {
    ($v:ident, $a:literal, $b:literal, $c:literal, $d:literal) => {
        $v[$a] = _mm512_add_epi32($v[$a], $v[$b]);
        $v[$d] = _mm512_rol_epi32::<16>(_mm512_xor_si512($v[$d], $v[$a]));
        $v[$c] = _mm512_add_epi32($v[$c], $v[$d]);
        $v[$b] = _mm512_rol_epi32::<12>(_mm512_xor_si512($v[$b], $v[$c]));
        $v[$a] = _mm512_add_epi32($v[$a], $v[$b]);
        $v[$d] = _mm512_rol_epi32::<8>(_mm512_xor_si512($v[$d], $v[$a]));
        $v[$c] = _mm512_add_epi32($v[$c], $v[$d]);
        $v[$b] = _mm512_rol_epi32::<7>(_mm512_xor_si512($v[$b], $v[$c]));
    };
}

/// Block `number` of all packets, words across lanes.
#[target_feature(enable = "avx512f,avx512ifma")]
#[inline]
fn chacha20(initial: &[__m512i; 16], number: u32, out: &mut [__m512i; 16]) {
    let mut v = *initial;
    v[12] = _mm512_set1_epi32(number as i32);
    for _ in 0..10 {
        quarter_round!(v, 0, 4, 8, 12);
        quarter_round!(v, 1, 5, 9, 13);
        quarter_round!(v, 2, 6, 10, 14);
        quarter_round!(v, 3, 7, 11, 15);
        quarter_round!(v, 0, 5, 10, 15);
        quarter_round!(v, 1, 6, 11, 12);
        quarter_round!(v, 2, 7, 8, 13);
        quarter_round!(v, 3, 4, 9, 14);
    }
    for i in 0..16 {
        out[i] = _mm512_add_epi32(v[i], initial[i]);
    }
    out[12] = _mm512_add_epi32(v[12], _mm512_set1_epi32(number as i32));
}

/// Words across lanes to one 64-byte row a lane.
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

/// Eight 64-byte rows to 64-bit words across lanes.
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

/// Poly1305 of eight packets.
struct Poly {
    /// r and its square.
    powers: [Factor; 2],
    h: [__m512i; 3],
}

/// What sums are multiplied by.
#[derive(Clone, Copy)]
struct Factor {
    limbs: [__m512i; 3],
    /// 20 times the second and the third limb: 5 for the reduction modulo 2^130 - 5, 4 for the limbs' 132 bits.
    times20: [__m512i; 2],
}

impl Factor {
    #[target_feature(enable = "avx512f,avx512ifma")]
    #[inline]
    fn new(limbs: [__m512i; 3]) -> Factor {
        let times20 = |v| _mm512_add_epi64(_mm512_slli_epi64::<4>(v), _mm512_slli_epi64::<2>(v));
        Factor { limbs, times20: [times20(limbs[1]), times20(limbs[2])] }
    }
}

/// A product before its carries: sums of the low 52 bits of the partial products, and sums of the rest, for each limb.
struct Product {
    low: [__m512i; 3],
    high: [__m512i; 3],
}

impl Product {
    #[target_feature(enable = "avx512f,avx512ifma")]
    #[inline]
    fn zero() -> Product {
        Product { low: [_mm512_setzero_si512(); 3], high: [_mm512_setzero_si512(); 3] }
    }

    /// Adds `a` times `b`.
    #[target_feature(enable = "avx512f,avx512ifma")]
    #[inline]
    fn add(&mut self, a: &[__m512i; 3], b: &Factor) {
        let ([r0, r1, r2], [s1, s2]) = (b.limbs, b.times20);
        for (i, factors) in [[r0, s2, s1], [r1, r0, s2], [r2, r1, r0]].into_iter().enumerate() {
            for (&a, b) in a.iter().zip(factors) {
                self.low[i] = _mm512_madd52lo_epu64(self.low[i], a, b);
                self.high[i] = _mm512_madd52hi_epu64(self.high[i], a, b);
            }
        }
    }

    /// The value in limbs of 44, 44 and 42 bits, of which the second may be a little more.
    #[target_feature(enable = "avx512f,avx512ifma")]
    #[inline]
    fn carried(self) -> [__m512i; 3] {
        let Product { low: [l0, l1, l2], high: [u0, u1, u2] } = self;
        let mask44 = _mm512_set1_epi64(MASK44);
        let carry = _mm512_add_epi64(_mm512_srli_epi64::<44>(l0), _mm512_slli_epi64::<8>(u0));
        let l1 = _mm512_add_epi64(l1, carry);
        let carry = _mm512_add_epi64(_mm512_srli_epi64::<44>(l1), _mm512_slli_epi64::<8>(u1));
        let l2 = _mm512_add_epi64(l2, carry);
        let carry = _mm512_add_epi64(_mm512_srli_epi64::<42>(l2), _mm512_slli_epi64::<10>(u2));
        let times5 = _mm512_add_epi64(_mm512_slli_epi64::<2>(carry), carry);
        let l0 = _mm512_add_epi64(_mm512_and_si512(l0, mask44), times5);
        [
            _mm512_and_si512(l0, mask44),
            _mm512_add_epi64(_mm512_and_si512(l1, mask44), _mm512_srli_epi64::<44>(l0)),
            _mm512_and_si512(l2, _mm512_set1_epi64(MASK42)),
        ]
    }
}

impl Poly {
    /// From the one-time keys' first sixteen bytes as two 64-bit words across lanes.
    #[target_feature(enable = "avx512f,avx512ifma")]
    #[inline]
    fn new(low: __m512i, high: __m512i) -> Poly {
        let low = _mm512_and_si512(low, _mm512_set1_epi64(0x0fff_fffc_0fff_ffff));
        let high = _mm512_and_si512(high, _mm512_set1_epi64(0x0fff_fffc_0fff_fffc));
        let r = Factor::new(limbs(low, high));
        let mut square = Product::zero();
        square.add(&r.limbs, &r);
        Poly { powers: [r, Factor::new(square.carried())], h: [_mm512_setzero_si512(); 3] }
    }

    /// One or two full 16-byte blocks of each packet (low and high words in turn), with one carry for both: h = (h + m) r, or
    /// (h + m) r^2 + n r, mod 2^130 - 5, partially reduced.
    #[target_feature(enable = "avx512f,avx512ifma")]
    #[inline]
    fn absorb<const N: usize>(&mut self, blocks: &[__m512i]) {
        let mut product = Product::zero();
        for i in 0..N {
            let mut block = full_block(blocks[2 * i], blocks[2 * i + 1]);
            if i == 0 {
                for (limb, h) in block.iter_mut().zip(self.h) {
                    *limb = _mm512_add_epi64(*limb, h);
                }
            }
            product.add(&block, &self.powers[N - 1 - i]);
        }
        self.h = product.carried();
    }
}

impl Poly {
    /// The tags as low and high words: h, fully reduced, plus the second half of the one-time key modulo 2^128 (RFC 8439,
    /// section 2.5), as [`super::poly_tag`] does it for one packet.
    #[target_feature(enable = "avx512f,avx512ifma")]
    #[inline]
    fn tags(&self, pad: (__m512i, __m512i)) -> (__m512i, __m512i) {
        let (mask44, mask42) = (_mm512_set1_epi64(MASK44), _mm512_set1_epi64(MASK42));
        let [mut h0, mut h1, mut h2] = self.h;
        for _ in 0..2 {
            h1 = _mm512_add_epi64(h1, _mm512_srli_epi64::<44>(h0));
            h0 = _mm512_and_si512(h0, mask44);
            h2 = _mm512_add_epi64(h2, _mm512_srli_epi64::<44>(h1));
            h1 = _mm512_and_si512(h1, mask44);
            let carry = _mm512_srli_epi64::<42>(h2);
            h0 = _mm512_add_epi64(h0, _mm512_add_epi64(_mm512_slli_epi64::<2>(carry), carry));
            h2 = _mm512_and_si512(h2, mask42);
        }
        h1 = _mm512_add_epi64(h1, _mm512_srli_epi64::<44>(h0));
        h0 = _mm512_and_si512(h0, mask44);
        // h + 5 carries into bit 130 exactly where h is not below 2^130 - 5.
        let g0 = _mm512_add_epi64(h0, _mm512_set1_epi64(5));
        let g1 = _mm512_add_epi64(h1, _mm512_srli_epi64::<44>(g0));
        let g2 = _mm512_add_epi64(h2, _mm512_srli_epi64::<44>(g1));
        let reduce = _mm512_cmpgt_epu64_mask(g2, mask42);
        h0 = _mm512_mask_and_epi64(h0, reduce, g0, mask44);
        h1 = _mm512_mask_and_epi64(h1, reduce, g1, mask44);
        h2 = _mm512_mask_and_epi64(h2, reduce, g2, mask42);
        let low = _mm512_or_si512(h0, _mm512_slli_epi64::<44>(h1));
        let high = _mm512_or_si512(_mm512_srli_epi64::<20>(h1), _mm512_slli_epi64::<24>(h2));
        let (low, high) = (_mm512_add_epi64(low, pad.0), _mm512_add_epi64(high, pad.1));
        let carry = _mm512_cmplt_epu64_mask(low, pad.0);
        (low, _mm512_mask_add_epi64(high, carry, high, _mm512_set1_epi64(1)))
    }
}

/// The limbs of a block of sixteen bytes: its number plus 2^128.
#[target_feature(enable = "avx512f,avx512ifma")]
#[inline]
fn full_block(low: __m512i, high: __m512i) -> [__m512i; 3] {
    let [m0, m1, m2] = limbs(low, high);
    [m0, m1, _mm512_or_si512(m2, _mm512_set1_epi64(HIBIT))]
}

/// Sixteen bytes as limbs of 44, 44 and 40 bits.
#[target_feature(enable = "avx512f,avx512ifma")]
#[inline]
fn limbs(low: __m512i, high: __m512i) -> [__m512i; 3] {
    let mask44 = _mm512_set1_epi64(MASK44);
    let middle = _mm512_or_si512(_mm512_srli_epi64::<44>(low), _mm512_slli_epi64::<20>(high));
    [_mm512_and_si512(low, mask44), _mm512_and_si512(middle, mask44), _mm512_srli_epi64::<24>(high)]
}

/// The low (`HALF` 0) or high eight of sixteen 32-bit lanes, of a low and a high word, as 64-bit lanes.
#[target_feature(enable = "avx512f,avx512ifma")]
#[inline]
fn widen<const HALF: i32>(low: __m512i, high: __m512i) -> __m512i {
    let low = _mm512_cvtepu32_epi64(_mm512_extracti64x4_epi64::<HALF>(low));
    let high = _mm512_cvtepu32_epi64(_mm512_extracti64x4_epi64::<HALF>(high));
    _mm512_or_si512(low, _mm512_slli_epi64::<32>(high))
}

/// Encrypts (`SEAL`) or decrypts the text of each packet of `unit` in place and returns the tags over the ciphertexts.
#[target_feature(enable = "avx512f,avx512ifma")]
pub(super) fn process<const SEAL: bool>(key: &[u32; 8], unit: &mut Unit<'_, LANES>) -> [[u8; 16]; LANES] {
    let initial: [__m512i; 16] = initial_words(key, &unit.counters).map(must_cast);
    let mut keys = initial;
    chacha20(&initial, 0, &mut keys);
    let mut polys = [
        Poly::new(widen::<0>(keys[0], keys[1]), widen::<0>(keys[2], keys[3])),
        Poly::new(widen::<1>(keys[0], keys[1]), widen::<1>(keys[2], keys[3])),
    ];
    let mut words = [[_mm512_setzero_si512(); 8]; 2];
    let mut rows = initial;
    for (number, start) in (0..unit.text_len).step_by(BLOCK).enumerate() {
        let size = BLOCK.min(unit.text_len - start);
        chacha20(&initial, number as u32 + 1, &mut rows);
        transpose16(&mut rows);
        match size {
            BLOCK => cipher_rows::<SEAL>(unit, start, &mut rows),
            _ => cipher_last_rows::<SEAL>(unit, start, size, &mut rows),
        }
        transpose8(&rows[..8], &mut words[0]);
        transpose8(&rows[8..], &mut words[1]);
        if size == BLOCK {
            // Half by half: neither waits for its own carries meanwhile.
            for pair in 0..2 {
                for (poly, words) in polys.iter_mut().zip(&words) {
                    poly.absorb::<2>(&words[4 * pair..4 * pair + 4]);
                }
            }
            continue;
        }
        for (poly, words) in polys.iter_mut().zip(&words) {
            for block in words.chunks_exact(2).take(size.div_ceil(16)) {
                poly.absorb::<1>(block);
            }
        }
    }
    let length = [_mm512_setzero_si512(), _mm512_set1_epi64(unit.text_len as i64)];
    for poly in &mut polys {
        poly.absorb::<1>(&length);
    }
    finish(&polys, &keys)
}

/// XORs the key stream in `rows` to a whole block of each packet's text, and leaves the ciphertext there.
#[target_feature(enable = "avx512f,avx512ifma")]
#[inline]
fn cipher_rows<const SEAL: bool>(unit: &mut Unit<'_, LANES>, start: usize, rows: &mut [__m512i; LANES]) {
    for (lane, row) in rows.iter_mut().enumerate().take(unit.packets) {
        if let Ok(block) = unit.text(lane, start, BLOCK).try_into() {
            *row = cipher::<SEAL>(block, *row);
        }
    }
}

/// As [`cipher_rows`] for the last `size` bytes of each packet's text; the ciphertext is padded with zeros.
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

/// XORs a key stream to 64 bytes and returns what of before and after is the ciphertext.
#[target_feature(enable = "avx512f,avx512ifma")]
#[inline]
fn cipher<const SEAL: bool>(block: &mut [u8; BLOCK], stream: __m512i) -> __m512i {
    let before: __m512i = must_cast(*block);
    let after = _mm512_xor_si512(before, stream);
    *block = must_cast(after);
    if SEAL { after } else { before }
}

/// The tags of all packets.
#[target_feature(enable = "avx512f,avx512ifma")]
#[inline]
fn finish(polys: &[Poly; 2], keys: &[__m512i; 16]) -> [[u8; 16]; LANES] {
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
