//! ChaCha20-Poly1305 over one long segment after the other, with AVX2: a lane is a block.
//!
//! Eight blocks of a segment, a *group* here, go through ChaCha20's rounds together; the first block of the first
//! group is the one-time key of Poly1305. While the vectors are busy with that, the general registers absorb the
//! ciphertext of the group before, also across the end of a segment.
//!
//! When sealing, the ciphertext of a group is there as soon as its key stream is. When opening, the key stream waits
//! until the ciphertext was absorbed, and is applied to it then.
//!
//! Secret bytes are data here and nothing else: no branch and no address depends on them.

mod poly;
mod rounds;

use super::avx2::{ROTATE8, ROTATE16};
use super::{BLOCK, Key, SIGMA, quarter_round, text_len};
use crate::crypto::segment::{self, HEADER_LEN, TAG_LEN};
use bytemuck::must_cast;
use poly::Poly;
use rounds::{RoundsMemory, rounds};
use std::arch::x86_64::*;
use zeroize::Zeroize;

/// Blocks in a group.
const LANES: usize = 8;

/// Whether this CPU has what the kernel needs.
pub(super) fn available() -> bool {
    super::avx2::available() && is_x86_feature_detected!("bmi2")
}

/// Whether texts of `text_len` bytes fill the groups well enough to be faster here than elsewhere.
pub(super) const fn pays(text_len: usize) -> bool {
    let blocks = 1 + text_len.div_ceil(BLOCK);
    let groups = blocks.div_ceil(LANES);
    groups >= 2 && groups * LANES - blocks <= groups + 1
}

/// A group's place in the train.
#[derive(Clone, Copy)]
struct Group {
    /// Number of the segment.
    segment: usize,
    /// The text that the group is for, within the segment's text.
    start: usize,
    end: usize,
    /// Whether it is the segment's last.
    last: bool,
}

/// Key stream of a group: words 4i to 4i + 3 of blocks j and j + 4 in vector 4i + j.
type GroupStream = [__m256i; 16];

/// What a train is worked through with.
struct LongCipher {
    /// The words of each block before the rounds, but for the block's number.
    initial: [__m256i; 16],
    /// The same after the first column round, but for the first column. The other columns do not depend on the
    /// block's number.
    begun: [__m256i; 16],
    memory: RoundsMemory,
    poly: Poly,
    /// The key stream of the group behind, when opening.
    stream: GroupStream,
}

impl Drop for LongCipher {
    fn drop(&mut self) {
        self.initial.zeroize();
        self.begun.zeroize();
        self.memory.words8to11.zeroize();
        self.memory.factors.zeroize();
        self.stream.zeroize();
    }
}

impl LongCipher {
    #[target_feature(enable = "avx2,bmi2")]
    #[inline]
    fn new(key: &Key) -> LongCipher {
        let mut initial = [_mm256_setzero_si256(); 16];
        for (vector, &word) in initial.iter_mut().zip(SIGMA.iter().chain(&key.words)) {
            *vector = _mm256_set1_epi32(word as i32);
        }
        LongCipher {
            initial,
            begun: initial,
            memory: RoundsMemory {
                words8to11: [_mm256_setzero_si256(); 4],
                shuffles: [ROTATE16, ROTATE8],
                factors: [0; 3],
            },
            poly: Poly::new(0, 0),
            stream: [_mm256_setzero_si256(); 16],
        }
    }

    /// Begins a segment.
    #[target_feature(enable = "avx2,bmi2")]
    #[inline]
    fn begin(&mut self, key: &Key, counter: u64) {
        let nonce = [key.nonce, counter as u32, (counter >> 32) as u32];
        for (column, word) in (1..4).zip(nonce) {
            self.initial[12 + column] = _mm256_set1_epi32(word as i32);
            let words = quarter_round([SIGMA[column], key.words[column], key.words[4 + column], word]);
            for (row, word) in words.into_iter().enumerate() {
                self.begun[4 * row + column] = _mm256_set1_epi32(word as i32);
            }
        }
    }

    /// Does the rounds of a segment's group `number`, and beside them absorbs `text` as far as they allow. Returns
    /// the state after the rounds, and how many bytes were absorbed.
    #[target_feature(enable = "avx2,bmi2")]
    #[inline]
    fn rounds(&mut self, number: usize, text: &[u8]) -> ([__m256i; 16], usize) {
        let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        self.initial[12] = _mm256_add_epi32(_mm256_set1_epi32((number * LANES) as i32), lanes);
        let mut v = self.begun;
        let (by16, by8) = (must_cast(ROTATE16), must_cast(ROTATE8));
        let (mut a, mut b) = (self.initial[0], self.initial[4]);
        let (mut c, mut d) = (self.initial[8], self.initial[12]);
        a = _mm256_add_epi32(a, b);
        d = _mm256_shuffle_epi8(_mm256_xor_si256(d, a), by16);
        c = _mm256_add_epi32(c, d);
        b = _mm256_xor_si256(b, c);
        b = _mm256_or_si256(_mm256_slli_epi32::<12>(b), _mm256_srli_epi32::<20>(b));
        a = _mm256_add_epi32(a, b);
        d = _mm256_shuffle_epi8(_mm256_xor_si256(d, a), by8);
        c = _mm256_add_epi32(c, d);
        b = _mm256_xor_si256(b, c);
        b = _mm256_or_si256(_mm256_slli_epi32::<7>(b), _mm256_srli_epi32::<25>(b));
        [v[0], v[4], v[12]] = [a, b, d];
        self.memory.words8to11 = [c, v[9], v[10], v[11]];
        let absorbed = rounds(&mut v, &mut self.memory, &mut self.poly.h, text);
        (v, absorbed)
    }

    /// The key stream, given the state after the rounds.
    #[target_feature(enable = "avx2,bmi2")]
    #[inline]
    fn key_stream(&self, v: &[__m256i; 16]) -> GroupStream {
        let mut stream = *v;
        let mut w = *v;
        for (word, &initial) in w.iter_mut().zip(&self.initial) {
            *word = _mm256_add_epi32(*word, initial);
        }
        for (out, w) in stream.chunks_exact_mut(4).zip(w.chunks_exact(4)) {
            let (even, odd) = (_mm256_unpacklo_epi32(w[0], w[1]), _mm256_unpackhi_epi32(w[0], w[1]));
            let (even2, odd2) = (_mm256_unpacklo_epi32(w[2], w[3]), _mm256_unpackhi_epi32(w[2], w[3]));
            out[0] = _mm256_unpacklo_epi64(even, even2);
            out[1] = _mm256_unpackhi_epi64(even, even2);
            out[2] = _mm256_unpacklo_epi64(odd, odd2);
            out[3] = _mm256_unpackhi_epi64(odd, odd2);
        }
        stream
    }
    /// Absorbs what is left of a group's ciphertext after `absorbed` bytes, decrypts it where it is to be opened, and
    /// completes the tag where it is its segment's last.
    #[target_feature(enable = "avx2,bmi2")]
    #[inline]
    fn finish<const SEAL: bool>(
        &mut self,
        train: &mut [u8],
        stride: usize,
        group: &Group,
        absorbed: usize,
        done: &mut impl FnMut(usize, &mut [u8; TAG_LEN], [u8; TAG_LEN]),
    ) {
        let text = text(train, stride, group);
        let (blocks, rest) = text[absorbed..].as_chunks();
        for block in blocks {
            self.poly.absorb(*block);
        }
        if !rest.is_empty() {
            let mut block = [0; 16];
            block[..rest.len()].copy_from_slice(rest);
            self.poly.absorb(block);
        }
        if !SEAL {
            xor_group(text, &self.stream, group.start == 0);
        }
        if group.last {
            self.poly.absorb(((group.end as u128) << 64).to_le_bytes());
            if let Some(place) = train[..(group.segment + 1) * stride].last_chunk_mut() {
                done(group.segment, place, self.poly.tag());
            }
        }
    }
}

/// The part of `group` of the train's texts.
fn text<'a>(train: &'a mut [u8], stride: usize, group: &Group) -> &'a mut [u8] {
    let text = group.segment * stride + HEADER_LEN;
    &mut train[text + group.start..text + group.end]
}

/// Encrypts (`SEAL`) or decrypts the text of each segment in place. Calls `done` for each in turn, with its number,
/// the place of its tag and the tag over its ciphertext.
#[target_feature(enable = "avx2,bmi2")]
pub(super) fn process<const SEAL: bool>(
    key: &Key,
    train: &mut [u8],
    stride: usize,
    mut done: impl FnMut(usize, &mut [u8; TAG_LEN], [u8; TAG_LEN]),
) {
    let text_len = text_len(stride);
    let groups = (BLOCK + text_len).div_ceil(LANES * BLOCK);
    let mut state = LongCipher::new(key);
    let mut behind: Option<Group> = None;
    for segment in 0..train.len() / stride {
        state.begin(key, segment::counter(&train[segment * stride..]).unwrap_or_default());
        for number in 0..groups {
            let end = ((number + 1) * LANES - 1) * BLOCK;
            let group = Group {
                segment,
                start: (number * LANES * BLOCK).saturating_sub(BLOCK),
                end: end.min(text_len),
                last: number + 1 == groups,
            };
            let before: &[u8] = match &behind {
                Some(behind) => text(train, stride, behind),
                None => &[],
            };
            let (v, absorbed) = state.rounds(number, before);
            let stream = state.key_stream(&v);
            let [r, pad] = [_mm256_castsi256_si128(stream[0]), _mm256_castsi256_si128(stream[4])];
            if SEAL {
                xor_group(text(train, stride, &group), &stream, number == 0);
            }
            if let Some(behind) = &behind {
                state.finish::<SEAL>(train, stride, behind, absorbed, &mut done);
            }
            if number == 0 {
                state.poly = Poly::new(must_cast(r), must_cast(pad));
                state.memory.factors = state.poly.factors;
            }
            if !SEAL {
                state.stream = stream;
            }
            behind = Some(group);
        }
    }
    if let Some(behind) = &behind {
        state.finish::<SEAL>(train, stride, behind, 0, &mut done);
    }
}

/// XORs a group's text with its key stream, of which the first block is the one-time key in a segment's first group.
#[target_feature(enable = "avx2,bmi2")]
#[inline]
fn xor_group(text: &mut [u8], stream: &GroupStream, first: bool) {
    if let Ok(text) = <&mut [u8; LANES * BLOCK]>::try_from(&mut *text) {
        return xor::<0>(text, stream);
    }
    match <&mut [u8; (LANES - 1) * BLOCK]>::try_from(&mut *text) {
        Ok(text) if first => xor::<1>(text, stream),
        _ if first => xor_short::<1>(text, stream),
        _ => xor_short::<0>(text, stream),
    }
}

/// XORs a group's text with its key stream, of which the first `SKIP` blocks are not for the text.
#[target_feature(enable = "avx2,bmi2")]
#[inline]
fn xor<const SKIP: usize>(text: &mut [u8], stream: &GroupStream) {
    for block in 0..LANES / 2 {
        let quarters = [stream[block], stream[4 + block], stream[8 + block], stream[12 + block]];
        let high = (block + LANES / 2 - SKIP) * BLOCK;
        if block >= SKIP && text.len() >= high + BLOCK {
            xor_two_blocks(text, high, &quarters);
            continue;
        }
        let (mut lows, mut highs) = ([_mm_setzero_si128(); 4], [_mm_setzero_si128(); 4]);
        for i in 0..4 {
            lows[i] = _mm256_castsi256_si128(quarters[i]);
            highs[i] = _mm256_extracti128_si256::<1>(quarters[i]);
        }
        if block >= SKIP && text.len() > high - LANES / 2 * BLOCK {
            xor_block(&mut text[high - LANES / 2 * BLOCK..], lows);
        }
        if text.len() > high {
            xor_block(&mut text[high..], highs);
        }
    }
}

/// As [`xor`] on a text of any length.
#[target_feature(enable = "avx2,bmi2")]
#[inline(never)]
fn xor_short<const SKIP: usize>(text: &mut [u8], stream: &GroupStream) {
    xor::<SKIP>(text, stream);
}

/// XORs the block of text at `high`, and the one half a group before it, with key stream as it lies.
#[target_feature(enable = "avx2,bmi2")]
#[inline]
fn xor_two_blocks(text: &mut [u8], high: usize, stream: &[__m256i; 4]) {
    let (before, text) = text.split_at_mut(high);
    let low = before[high - LANES / 2 * BLOCK..].first_chunk_mut::<BLOCK>();
    if let (Some(low), Some(high)) = (low, text.first_chunk_mut::<BLOCK>()) {
        let (mut lows, mut highs): ([__m128i; 4], [__m128i; 4]) = (must_cast(*low), must_cast(*high));
        for i in 0..4 {
            let both = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(lows[i]), highs[i]);
            let both = _mm256_xor_si256(both, stream[i]);
            lows[i] = _mm256_castsi256_si128(both);
            highs[i] = _mm256_extracti128_si256::<1>(both);
        }
        *low = must_cast(lows);
        *high = must_cast(highs);
    }
}

/// XORs the first block of text, or all of it where it is shorter.
#[target_feature(enable = "avx2,bmi2")]
#[inline]
fn xor_block(text: &mut [u8], stream: [__m128i; 4]) {
    if let Some(text) = text.first_chunk_mut::<BLOCK>() {
        let mut words: [__m128i; 4] = must_cast(*text);
        for i in 0..4 {
            words[i] = _mm_xor_si128(words[i], stream[i]);
        }
        *text = must_cast(words);
        return;
    }
    let mut bytes = [0; BLOCK];
    let size = BLOCK.min(text.len());
    bytes[..size].copy_from_slice(&text[..size]);
    let mut words: [__m128i; 4] = must_cast(bytes);
    for i in 0..4 {
        words[i] = _mm_xor_si128(words[i], stream[i]);
    }
    bytes = must_cast(words);
    text[..size].copy_from_slice(&bytes[..size]);
}
