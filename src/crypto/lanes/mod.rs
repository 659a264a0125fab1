//! ChaCha20-Poly1305 over many equal segments of a train at once: a SIMD lane is a packet.
//!
//! A library that seals one packet at a time pays for setup and tail in each packet, and with short packets most of
//! its lanes idle. No lane idles where each holds another packet: block `i` of every packet, one-time keys included,
//! is computed in one pass over the rounds, and Poly1305 needs no powers of r. `benches/aead.rs` measures both ways
//! against each other, and [`Kernel::pays`] holds what it showed.
//!
//! `unsafe` stands here for two reasons: a function compiled for a CPU feature may be called only where the CPU has
//! it, and ChaCha20's rounds are in assembly for AVX-512. The kernels are safe code otherwise.

#![allow(unsafe_code)]

mod avx2;
mod avx512;

use super::segment::{HEADER_LEN, TAG_LEN};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// An implementation for a set of CPU features.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kernel {
    /// Sixteen packets a pass, with AVX-512F and IFMA.
    Avx512,
    /// Eight packets a pass, with AVX2.
    Avx2,
}

impl Kernel {
    /// All kernels that this CPU can run, the fastest first.
    pub fn available() -> impl Iterator<Item = Kernel> {
        let avx512 = avx512::available().then_some(Kernel::Avx512);
        avx512.into_iter().chain(avx2::available().then_some(Kernel::Avx2))
    }

    /// How many packets a pass takes.
    pub const fn lanes(self) -> usize {
        match self {
            Kernel::Avx512 => avx512::LANES,
            Kernel::Avx2 => avx2::LANES,
        }
    }

    /// Whether `packets` packets of `text_len` bytes are faster here than one by one. A pass costs the same for one
    /// packet as for all its lanes, whereas the fixed costs of a packet by itself weigh less the longer it is.
    pub const fn pays(self, packets: usize, text_len: usize) -> bool {
        match (self, text_len) {
            (_, 0..=128) => packets >= 4,
            (_, 129..=512) => packets >= 6,
            (Kernel::Avx512, _) => packets >= 10,
            (Kernel::Avx2, _) => false,
        }
    }
}

/// A key in the form that the kernels take.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct Key([u32; 8]);

impl Key {
    /// The key's eight little-endian words.
    pub fn new(key: &[u8; 32]) -> Key {
        Key(bytemuck::must_cast(*key)) // the kernels are for a little-endian CPU
    }
}

/// Seals segments from the front of `train`, each exactly `stride` bytes, as long as that pays, with counters from
/// `first_counter` on. Writes the counters into the headers of those that it seals, and returns how many these are.
pub fn seal(kernel: Kernel, key: &Key, first_counter: u64, train: &mut [u8], stride: usize) -> usize {
    let mut done = 0;
    for unit in train.chunks_mut(stride * kernel.lanes()) {
        let packets = unit.len() / stride;
        if !kernel.pays(packets, text_len(stride)) {
            break;
        }
        for (lane, segment) in unit.chunks_exact_mut(stride).enumerate() {
            let counter = first_counter.wrapping_add((done + lane) as u64);
            segment[HEADER_LEN - 8..HEADER_LEN].copy_from_slice(&counter.to_le_bytes());
        }
        let tags = Tags::of::<true>(kernel, key, unit, stride, packets);
        for (segment, tag) in unit.chunks_exact_mut(stride).zip(tags.iter()) {
            segment[stride - TAG_LEN..].copy_from_slice(tag);
        }
        done += packets;
    }
    done
}

/// Opens segments from the front of `train` as long as that pays, and returns how many it opened. For each it calls
/// `verdict` with the segment's number and the tag that its ciphertext should have borne, which the caller compares.
pub fn open(
    kernel: Kernel,
    key: &Key,
    train: &mut [u8],
    stride: usize,
    mut verdict: impl FnMut(usize, &[u8; TAG_LEN], &[u8; TAG_LEN]),
) -> usize {
    let mut done = 0;
    for unit in train.chunks_mut(stride * kernel.lanes()) {
        let packets = unit.len() / stride;
        if !kernel.pays(packets, text_len(stride)) {
            break;
        }
        let tags = Tags::of::<false>(kernel, key, unit, stride, packets);
        for (lane, (segment, tag)) in unit.chunks_exact(stride).zip(tags.iter()).enumerate() {
            if let Some(found) = segment.last_chunk() {
                verdict(done + lane, tag, found);
            }
        }
        done += packets;
    }
    done
}

const fn text_len(stride: usize) -> usize {
    stride - HEADER_LEN - TAG_LEN
}

/// Length in bytes of a ChaCha20 block.
const BLOCK: usize = 64;
/// The words of "expand 32-byte k" (RFC 8439, section 2.3).
const SIGMA: [u32; 4] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];

/// ChaCha20's initial state of `N` packets with block number zero, word `i` of each in vector `i`. Word 13 stays
/// zero, since the nonce is four zero bytes, then the counter.
#[inline(always)]
fn initial_words<const N: usize>(key: &[u32; 8], counters: &[u64; N]) -> [[u32; N]; 16] {
    let mut words = [[0; N]; 16];
    for (word, &constant) in words.iter_mut().zip(SIGMA.iter().chain(key)) {
        *word = [constant; N];
    }
    words[14] = counters.map(|counter| counter as u32);
    words[15] = counters.map(|counter| (counter >> 32) as u32);
    words
}

/// Packets on their way through a kernel, one a lane. The first `packets` of the `N` lanes are in use.
struct Unit<'a, const N: usize> {
    train: &'a mut [u8],
    stride: usize,
    packets: usize,
    text_len: usize,
    counters: [u64; N],
}

impl<'a, const N: usize> Unit<'a, N> {
    /// Takes in segments, and their counters from the headers.
    fn new(train: &'a mut [u8], stride: usize, packets: usize) -> Unit<'a, N> {
        let mut counters = [0; N];
        for (counter, segment) in counters.iter_mut().zip(train.chunks_exact(stride)) {
            *counter = super::segment::counter(segment).unwrap_or_default();
        }
        Unit { train, stride, packets, text_len: text_len(stride), counters }
    }

    /// The 64 bytes of a packet from a block of its text on; where the text ends in the block, they hold bytes that
    /// follow it. `None` where the unit ends within them.
    #[inline(always)]
    fn block(&mut self, lane: usize, offset: usize) -> Option<&mut [u8; BLOCK]> {
        self.train.get_mut(lane * self.stride + HEADER_LEN + offset..)?.first_chunk_mut()
    }

    /// The `size` bytes of one packet's text from a block on.
    #[inline(always)]
    fn text(&mut self, lane: usize, offset: usize, size: usize) -> &mut [u8] {
        let start = lane * self.stride + HEADER_LEN + offset;
        &mut self.train[start..start + size]
    }
}

/// The tags, one a lane.
enum Tags {
    Sixteen([[u8; TAG_LEN]; avx512::LANES]),
    Eight([[u8; TAG_LEN]; avx2::LANES]),
}

impl Tags {
    fn of<const SEAL: bool>(
        kernel: Kernel,
        key: &Key,
        train: &mut [u8],
        stride: usize,
        packets: usize,
    ) -> Tags {
        match kernel {
            Kernel::Avx512 => {
                assert!(avx512::available());
                let mut unit = Unit::new(train, stride, packets);
                // SAFETY: the CPU has the features that the function is compiled for: asserted just above.
                Tags::Sixteen(unsafe { avx512::process::<SEAL>(&key.0, &mut unit) })
            }
            Kernel::Avx2 => {
                assert!(avx2::available());
                let mut unit = Unit::new(train, stride, packets);
                // SAFETY: the CPU has the feature that the function is compiled for: asserted just above.
                Tags::Eight(unsafe { avx2::process::<SEAL>(&key.0, &mut unit) })
            }
        }
    }

    fn iter(&self) -> std::slice::Iter<'_, [u8; TAG_LEN]> {
        match self {
            Tags::Sixteen(tags) => tags.iter(),
            Tags::Eight(tags) => tags.iter(),
        }
    }
}

/// The tag: h modulo 2^130 - 5, fully reduced, plus `pad` modulo 2^128 (RFC 8439, section 2.5). `h` is in limbs of
/// 44, 44 and 42 bits that may exceed their width by some bits. The computation takes constant time.
fn poly_tag(h: [u64; 3], pad: u128) -> [u8; TAG_LEN] {
    const MASK44: u64 = (1 << 44) - 1;
    const MASK42: u64 = (1 << 42) - 1;
    let [mut h0, mut h1, mut h2] = h;
    for _ in 0..2 {
        h1 += h0 >> 44;
        h0 &= MASK44;
        h2 += h1 >> 44;
        h1 &= MASK44;
        h0 += (h2 >> 42) * 5;
        h2 &= MASK42;
    }
    h1 += h0 >> 44;
    h0 &= MASK44;
    // h + 5 carries into bit 130 exactly where h is not below 2^130 - 5.
    let g0 = h0 + 5;
    let g1 = h1 + (g0 >> 44);
    let g2 = h2 + (g1 >> 44);
    let reduce = 0u64.wrapping_sub(g2 >> 42);
    let pick = |h: u64, g: u64, mask: u64| (h & !reduce) | (g & mask & reduce);
    let (h0, h1, h2) = (pick(h0, g0, MASK44), pick(h1, g1, MASK44), pick(h2, g2, MASK42));
    let h = u128::from(h0) | u128::from(h1) << 44 | u128::from(h2) << 88;
    h.wrapping_add(pad).to_le_bytes()
}

#[cfg(test)]
mod tests;
