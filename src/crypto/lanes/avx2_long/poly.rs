//! Poly1305 of one segment at a time, in the general registers: limbs of 64 bits and the 64-bit multiplier (as in
//! Bernstein's "poly1305-donna-64", but for the size of the limbs).

use zeroize::{Zeroize, ZeroizeOnDrop};

/// The Poly1305 state of one segment.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(super) struct Poly {
    /// r0, r1, and 5/4 r1: the factor of what wraps around modulo 2^130 - 5, whole as r1 is a multiple of four.
    pub(super) factors: [u64; 3],
    /// The sum, in limbs of 64, 64 and a few bits.
    pub(super) h: [u64; 3],
    pad: u128,
}

impl Poly {
    /// Begins with a one-time key, in two 128-bit words.
    #[inline(always)]
    pub(super) fn new(r: u128, pad: u128) -> Poly {
        let r = r & 0x0fff_fffc_0fff_fffc_0fff_fffc_0fff_ffff;
        let (r0, r1) = (r as u64, (r >> 64) as u64);
        Poly { factors: [r0, r1, r1 + (r1 >> 2)], h: [0; 3], pad }
    }

    /// Absorbs one full block: h = (h + m) r mod 2^130 - 5, partially reduced.
    #[inline(always)]
    pub(super) fn absorb(&mut self, block: [u8; 16]) {
        let product = |a: u64, b: u64| u128::from(a) * u128::from(b);
        let [r0, r1, s1] = self.factors;
        let sum = u128::from(self.h[0]) | u128::from(self.h[1]) << 64;
        let (sum, carry) = sum.overflowing_add(u128::from_le_bytes(block));
        let (h0, h1, h2) = (sum as u64, (sum >> 64) as u64, self.h[2] + 1 + u64::from(carry));
        let d0 = product(h0, r0) + product(h1, s1);
        let d1 = product(h0, r1) + product(h1, r0) + u128::from(h2 * s1) + (d0 >> 64);
        let d2 = h2 * r0 + (d1 >> 64) as u64;
        let low = u128::from(d0 as u64) | u128::from(d1 as u64) << 64;
        let (low, carry) = low.overflowing_add(u128::from((d2 >> 2) * 5));
        self.h = [low as u64, (low >> 64) as u64, (d2 & 3) + u64::from(carry)];
    }

    /// The tag: h, fully reduced, plus the second half of the one-time key modulo 2^128 (RFC 8439, section 2.5).
    #[inline(always)]
    pub(super) fn tag(&self) -> [u8; 16] {
        let [h0, h1, h2] = self.h;
        let low = u128::from(h0) | u128::from(h1) << 64;
        let (low, carry) = low.overflowing_add(u128::from((h2 >> 2) * 5));
        let high = (h2 & 3) + u64::from(carry);
        // h + 5 carries into bit 130 exactly where h is not below 2^130 - 5.
        let (plus5, carry) = low.overflowing_add(5);
        let reduce = 0_u128.wrapping_sub(u128::from((high + u64::from(carry)) >> 2));
        ((low & !reduce) | (plus5 & reduce)).wrapping_add(self.pad).to_le_bytes()
    }
}
