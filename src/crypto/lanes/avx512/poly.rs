//! Poly1305 of eight packets at a time: radix-2^44 limbs and the 52-bit multiply-add of AVX-512 IFMA (the split of
//! Bernstein's "poly1305-donna-64").

use super::rounds::double_round_beside_product;
use std::arch::x86_64::*;

const MASK44: i64 = (1 << 44) - 1;
const MASK42: i64 = (1 << 42) - 1;
/// Bit 128 of each full Poly1305 block, in the third limb.
const HIBIT: i64 = 1 << 40;

/// The Poly1305 state of eight packets.
pub(super) struct PolyAvx512 {
    /// r, and once they are needed its second to fourth power.
    powers: [Factor; 4],
    /// What the bits 2^128 that mark four full blocks contribute to their product.
    pub(super) marks: Product,
    /// The sum so far, partially reduced.
    pub(super) h: [__m512i; 3],
}

/// A factor of a multiplication: its three limbs, then its second and third limb times 20. That is 5 for the
/// reduction modulo 2^130 - 5 times 4, as three limbs of 44 bits hold 132.
#[derive(Clone, Copy)]
struct Factor([__m512i; 5]);

impl Factor {
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    #[inline]
    fn new([r0, r1, r2]: [__m512i; 3]) -> Factor {
        let times20 = |v| _mm512_add_epi64(_mm512_slli_epi64::<4>(v), _mm512_slli_epi64::<2>(v));
        Factor([r0, r1, r2, times20(r1), times20(r2)])
    }

    /// The product, carried.
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    #[inline]
    fn times(&self, other: &Factor) -> Factor {
        let [a0, a1, a2, ..] = self.0;
        let mut product = Product::zero();
        product.add(&[a0, a1, a2], other);
        Factor::new(product.carried())
    }
}

/// A product before its carries. For each limb it has the sum of the low 52 bits of the partial products, and the sum
/// of their upper bits.
#[derive(Clone, Copy)]
pub(super) struct Product {
    low: [__m512i; 3],
    high: [__m512i; 3],
}

impl Product {
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    #[inline]
    fn zero() -> Product {
        Product { low: [_mm512_setzero_si512(); 3], high: [_mm512_setzero_si512(); 3] }
    }

    /// Adds `a` times `b`.
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    #[inline]
    fn add(&mut self, a: &[__m512i; 3], b: &Factor) {
        let [r0, r1, r2, s1, s2] = b.0;
        for (i, factors) in [[r0, s2, s1], [r1, r0, s2], [r2, r1, r0]].into_iter().enumerate() {
            for (&a, b) in a.iter().zip(factors) {
                self.low[i] = _mm512_madd52lo_epu64(self.low[i], a, b);
                self.high[i] = _mm512_madd52hi_epu64(self.high[i], a, b);
            }
        }
    }

    /// Adds `a` times `b`, as [`Self::add`] does, beside two of ChaCha20's rounds on `v`.
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    #[inline]
    fn add_beside_rounds(&mut self, a: &[__m512i; 3], b: &Factor, v: &mut [__m512i; 16]) {
        double_round_beside_product(v, &mut self.low, &mut self.high, a, &b.0);
    }

    /// The value in limbs of 44, 44 and 42 bits. The second limb may exceed its width a little.
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    #[inline]
    pub(super) fn carried(self) -> [__m512i; 3] {
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

impl PolyAvx512 {
    /// Begins with the first sixteen bytes of the one-time keys, as two 64-bit words, a packet a lane.
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    #[inline]
    pub(super) fn new(low: __m512i, high: __m512i) -> PolyAvx512 {
        let low = _mm512_and_si512(low, _mm512_set1_epi64(0x0fff_fffc_0fff_ffff));
        let high = _mm512_and_si512(high, _mm512_set1_epi64(0x0fff_fffc_0fff_fffc));
        let r = Factor::new(limbs(low, high));
        PolyAvx512 { powers: [r; 4], marks: Product::zero(), h: [_mm512_setzero_si512(); 3] }
    }

    /// Computes what [`Self::absorb_row`] needs besides r.
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    #[inline]
    pub(super) fn raise(&mut self) {
        let r = self.powers[0];
        let squared = r.times(&r);
        self.powers[1] = squared;
        self.powers[2] = squared.times(&r);
        self.powers[3] = squared.times(&squared);
        let mut sum = [_mm512_setzero_si512(); 5];
        for power in &self.powers {
            for (sum, &limb) in sum.iter_mut().zip(&power.0) {
                *sum = _mm512_add_epi64(*sum, limb);
            }
        }
        let [r0, _, _, s1, s2] = sum;
        let mark = _mm512_set1_epi64(HIBIT);
        for (i, factor) in [s1, s2, r0].into_iter().enumerate() {
            self.marks.low[i] = _mm512_madd52lo_epu64(self.marks.low[i], mark, factor);
            self.marks.high[i] = _mm512_madd52hi_epu64(self.marks.high[i], mark, factor);
        }
    }

    /// Absorbs one full 16-byte block of each packet, given as low and high words: h = (h + m) r mod 2^130 - 5,
    /// partially reduced.
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    #[inline]
    pub(super) fn absorb(&mut self, low: __m512i, high: __m512i) {
        let mut product = Product::zero();
        let mut limbs = self.sum(low, high);
        limbs[2] = _mm512_add_epi64(limbs[2], _mm512_set1_epi64(HIBIT));
        product.add(&limbs, &self.powers[0]);
        self.h = product.carried();
    }

    /// Absorbs four blocks, k to n, beside eight of ChaCha20's rounds on `v` if there is one. One carry serves all: h =
    /// (h + k) r^4 + l r^3 + m r^2 + n r. `blocks` holds low and high words in turn.
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    #[inline]
    pub(super) fn absorb_row(&mut self, blocks: &[__m512i; 8], mut v: Option<&mut [__m512i; 16]>) {
        let mut product = self.marks;
        self.add::<0>(&mut product, blocks, v.as_deref_mut());
        self.add::<1>(&mut product, blocks, v.as_deref_mut());
        self.add::<2>(&mut product, blocks, v.as_deref_mut());
        self.add::<3>(&mut product, blocks, v);
        self.h = product.carried();
    }

    /// Adds to `product`, which begins as [`Self::marks`], what block number `I` of four contributes, beside two of
    /// ChaCha20's rounds on `v` if there is one. In the end [`Self::h`] is the carried product.
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    #[inline]
    pub(super) fn add<const I: usize>(
        &self,
        product: &mut Product,
        blocks: &[__m512i; 8],
        v: Option<&mut [__m512i; 16]>,
    ) {
        let (low, high) = (blocks[2 * I], blocks[2 * I + 1]);
        let limbs = if I == 0 { self.sum(low, high) } else { limbs(low, high) };
        match v {
            Some(v) => product.add_beside_rounds(&limbs, &self.powers[3 - I], v),
            None => product.add(&limbs, &self.powers[3 - I]),
        }
    }

    /// The limbs of h + m, uncarried.
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    #[inline]
    fn sum(&self, low: __m512i, high: __m512i) -> [__m512i; 3] {
        let mut limbs = limbs(low, high);
        for (limb, h) in limbs.iter_mut().zip(self.h) {
            *limb = _mm512_add_epi64(*limb, h);
        }
        limbs
    }

    /// The tags as low and high words: h, fully reduced, plus the second half of the one-time key (`pad`) modulo
    /// 2^128 (RFC 8439, section 2.5). [`crate::crypto::lanes::poly_tag`] does the same for one packet.
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    #[inline]
    pub(super) fn tags(&self, pad: (__m512i, __m512i)) -> (__m512i, __m512i) {
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

/// Splits sixteen bytes into limbs of 44, 44 and 40 bits.
#[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
#[inline]
fn limbs(low: __m512i, high: __m512i) -> [__m512i; 3] {
    let mask44 = _mm512_set1_epi64(MASK44);
    let middle = _mm512_shrdi_epi64::<44>(low, high);
    [_mm512_and_si512(low, mask44), _mm512_and_si512(middle, mask44), _mm512_srli_epi64::<24>(high)]
}
