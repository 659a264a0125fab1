//! The sum over many bytes in wide registers, where the CPU has them.

#![allow(unsafe_code)] // calls of functions that are compiled for a CPU feature, after asking for it

use std::arch::x86_64::{
    _mm256_add_epi64, _mm256_setzero_si256, _mm256_slli_epi64, _mm256_srli_epi64, _mm256_sub_epi64,
    _mm512_add_epi64, _mm512_reduce_add_epi64, _mm512_setzero_si512, _mm512_slli_epi64, _mm512_srli_epi64,
    _mm512_sub_epi64,
};

/// Length in bytes from which on a wide kernel is worth calling.
pub(super) const WORTHWHILE: usize = 128;

/// Partial sum of as many bytes from the front of `data` as whole registers hold, and how many bytes those are.
/// `None` where this CPU has no such registers.
#[inline]
pub(super) fn sum(data: &[u8]) -> Option<(u64, usize)> {
    if is_x86_feature_detected!("avx512f") {
        let (blocks, rest) = data.as_chunks();
        // SAFETY: the CPU has AVX-512F, as asked above.
        return Some((unsafe { sum_avx512(blocks) }, data.len() - rest.len()));
    }
    if is_x86_feature_detected!("avx2") {
        let (blocks, rest) = data.as_chunks();
        // SAFETY: the CPU has AVX2, as asked above.
        return Some((unsafe { sum_avx2(blocks) }, data.len() - rest.len()));
    }
    None
}

/// Sums as [`super::sum`] does: each 64-bit lane adds the whole words, modulo 2^64, and apart from them their upper
/// halves.
#[target_feature(enable = "avx512f")]
fn sum_avx512(blocks: &[[u8; 64]]) -> u64 {
    let (mut all, mut high) = (_mm512_setzero_si512(), _mm512_setzero_si512());
    for block in blocks {
        let words = bytemuck::must_cast(*block);
        all = _mm512_add_epi64(all, words);
        high = _mm512_add_epi64(high, _mm512_srli_epi64::<32>(words));
    }
    let low = _mm512_sub_epi64(all, _mm512_slli_epi64::<32>(high));
    _mm512_reduce_add_epi64(_mm512_add_epi64(low, high)) as u64
}

#[target_feature(enable = "avx2")]
fn sum_avx2(blocks: &[[u8; 32]]) -> u64 {
    let (mut all, mut high) = (_mm256_setzero_si256(), _mm256_setzero_si256());
    for block in blocks {
        let words = bytemuck::must_cast(*block);
        all = _mm256_add_epi64(all, words);
        high = _mm256_add_epi64(high, _mm256_srli_epi64::<32>(words));
    }
    let low = _mm256_sub_epi64(all, _mm256_slli_epi64::<32>(high));
    let lanes: [u64; 4] = bytemuck::must_cast(_mm256_add_epi64(low, high));
    lanes.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::checksum::{fold, narrow};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn wide_registers_sum_as_narrow_ones(data in prop::collection::vec(any::<u8>(), 0..3000)) {
            if is_x86_feature_detected!("avx512f") {
                let (blocks, rest) = data.as_chunks();
                // SAFETY: the CPU has AVX-512F.
                let sum = unsafe { sum_avx512(blocks) };
                prop_assert_eq!(fold(sum), fold(narrow(&data[..data.len() - rest.len()], 0)));
            }
            if is_x86_feature_detected!("avx2") {
                let (blocks, rest) = data.as_chunks();
                // SAFETY: the CPU has AVX2.
                let sum = unsafe { sum_avx2(blocks) };
                prop_assert_eq!(fold(sum), fold(narrow(&data[..data.len() - rest.len()], 0)));
            }
        }
    }

    #[test]
    fn the_largest_packet_of_ones_does_not_overflow() {
        let data = [0xff; 65_536];
        let (sum, len) = sum(&data).unwrap_or((0, 0));
        assert_eq!(fold(super::super::sum(&data[len..], sum)), 0xffff);
    }
}
