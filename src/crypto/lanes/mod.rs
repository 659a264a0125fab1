//! ChaCha20-Poly1305 over many equal segments of a train at once: a SIMD lane is a packet, or in one method a block of
//! one.
//!
//! A library that seals one packet at a time pays for setup and tail in each packet, and with short packets most of
//! its lanes idle. No lane idles where each holds another packet: block `i` of every packet, one-time keys included,
//! is computed in one pass over the rounds, and Poly1305 needs no powers of r. `benches/aead.rs` measures both ways
//! against each other, and [`Method::pays`] holds what it showed.
//!
//! `unsafe` stands here for two reasons: a function compiled for a CPU feature may be called only where the CPU has
//! it, and the rounds of two kernels are in assembly. The kernels are safe code otherwise.

#![allow(unsafe_code)]

mod avx2;
mod avx2_long;
mod avx512;

use super::segment::{HEADER_LEN, TAG_LEN};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// A set of CPU features that there is code for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kernel {
    /// AVX-512F, IFMA and VBMI2: sixteen packets a pass.
    Avx512,
    /// AVX2: eight packets a pass. With BMI2, also long packets one after the other, eight blocks a pass.
    Avx2,
}

impl Kernel {
    /// All kernels that this CPU can run, the fastest first.
    #[cfg(any(feature = "cli", feature = "internals"))]
    pub fn available() -> impl Iterator<Item = Kernel> {
        let avx512 = avx512::available().then_some(Kernel::Avx512);
        avx512.into_iter().chain(avx2::available().then_some(Kernel::Avx2))
    }
}

/// A way to seal and open packets together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Method {
    PacketsAvx512,
    PacketsAvx2,
    BlocksAvx2,
}

impl Method {
    /// All of them, the fastest first where they take the same packets.
    const ALL: [Method; 3] = [Method::PacketsAvx512, Method::PacketsAvx2, Method::BlocksAvx2];

    /// The kernel that it is a part of.
    const fn kernel(self) -> Kernel {
        match self {
            Method::PacketsAvx512 => Kernel::Avx512,
            Method::PacketsAvx2 | Method::BlocksAvx2 => Kernel::Avx2,
        }
    }

    /// Whether this CPU can run it.
    fn available(self) -> bool {
        match self {
            Method::PacketsAvx512 => avx512::available(),
            Method::PacketsAvx2 => avx2::available(),
            Method::BlocksAvx2 => avx2_long::available(),
        }
    }

    /// How many packets it takes at most in one call.
    const fn lanes(self) -> usize {
        match self {
            Method::PacketsAvx512 => avx512::LANES,
            Method::PacketsAvx2 => avx2::LANES,
            Method::BlocksAvx2 => usize::MAX,
        }
    }

    /// Whether `packets` packets of `text_len` bytes are faster here than one by one. A pass over packets costs the
    /// same for one of them as for all its lanes, whereas the fixed costs of a packet by itself weigh less the longer
    /// it is.
    const fn pays(self, packets: usize, text_len: usize) -> bool {
        match (self, text_len) {
            (Method::BlocksAvx2, _) => packets >= 2 && avx2_long::pays(text_len),
            (_, 0..=128) => packets >= 4,
            (_, 129..=512) => packets >= 6,
            (Method::PacketsAvx512, _) => packets >= 10,
            (Method::PacketsAvx2, _) => false,
        }
    }
}

/// What a key makes use of: the methods at the same places in [`Method::ALL`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Methods([bool; Method::ALL.len()]);

impl Methods {
    /// All methods of `kernels` that this CPU can run, or `None` where there are none.
    pub fn of(kernels: &[Kernel]) -> Option<Methods> {
        let methods = Method::ALL.map(|method| kernels.contains(&method.kernel()) && method.available());
        methods.contains(&true).then_some(Methods(methods))
    }

    /// The method that is best for `packets` packets of `text_len` bytes, or `None` where one by one is.
    fn best(self, packets: usize, text_len: usize) -> Option<Method> {
        let methods = Method::ALL.into_iter().zip(self.0).filter(|&(_, usable)| usable);
        methods.map(|(method, _)| method).find(|method| method.pays(packets.min(method.lanes()), text_len))
    }
}

/// A key in the form that the kernels take.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct Key {
    words: [u32; 8],
    /// The first word of every nonce: zero, but in the vectors of tests.
    nonce: u32,
}

impl Key {
    /// The key's eight little-endian words.
    pub fn new(key: &[u8; 32]) -> Key {
        Key { words: bytemuck::must_cast(*key), nonce: 0 } // the kernels are for a little-endian CPU
    }
}

/// Seals segments from the front of `train`, each exactly `stride` bytes, as long as that pays, with counters from
/// `first_counter` on. Writes the counters into the headers of those that it seals, and returns how many these are.
pub fn seal(methods: Methods, key: &Key, first_counter: u64, train: &mut [u8], stride: usize) -> usize {
    each_unit(methods, train, stride, |method, done, unit| {
        for (counter, segment) in (done as u64..).zip(unit.chunks_exact_mut(stride)) {
            let counter = first_counter.wrapping_add(counter);
            segment[HEADER_LEN - 8..HEADER_LEN].copy_from_slice(&counter.to_le_bytes());
        }
        process::<true>(method, key, unit, stride, |_, place, tag| *place = tag);
    })
}

/// Opens segments from the front of `train` as long as that pays, and returns how many it opened. For each it calls
/// `verdict` with the segment's number and the tag that its ciphertext should have borne, which the caller compares.
pub fn open(
    methods: Methods,
    key: &Key,
    train: &mut [u8],
    stride: usize,
    mut verdict: impl FnMut(usize, &[u8; TAG_LEN], &[u8; TAG_LEN]),
) -> usize {
    each_unit(methods, train, stride, |method, done, unit| {
        process::<false>(method, key, unit, stride, |segment, found, tag| {
            verdict(done + segment, &tag, found)
        });
    })
}

/// Cuts segments from the front of `train` as long as a method pays, into what that takes at once. Calls `each` with
/// the method, the number of segments before and those, and returns the number of all of them.
fn each_unit(
    methods: Methods,
    mut train: &mut [u8],
    stride: usize,
    mut each: impl FnMut(Method, usize, &mut [u8]),
) -> usize {
    let mut done = 0;
    while let Some(method) = methods.best(train.len() / stride, text_len(stride)) {
        let packets = (train.len() / stride).min(method.lanes());
        let (unit, rest) = train.split_at_mut(packets * stride);
        each(method, done, unit);
        (train, done) = (rest, done + packets);
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

/// The quarter round of RFC 8439, section 2.1, on words.
fn quarter_round([mut a, mut b, mut c, mut d]: [u32; 4]) -> [u32; 4] {
    for (by_d, by_b) in [(16, 12), (8, 7)] {
        a = a.wrapping_add(b);
        d = (d ^ a).rotate_left(by_d);
        c = c.wrapping_add(d);
        b = (b ^ c).rotate_left(by_b);
    }
    [a, b, c, d]
}

/// ChaCha20's initial state of `N` packets with block number zero, word `i` of each in vector `i`. The nonce is a word
/// that all have in common, then the counter.
#[inline(always)]
fn initial_words<const N: usize>(key: &Key, counters: &[u64; N]) -> [[u32; N]; 16] {
    let mut words = [[0; N]; 16];
    for (word, &constant) in words.iter_mut().zip(SIGMA.iter().chain(&key.words)) {
        *word = [constant; N];
    }
    words[13] = [key.nonce; N];
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

/// Encrypts (`SEAL`) or decrypts the texts of `unit`, no more than the method takes at once, with the counters in
/// their headers. Calls `done` for each segment with its number, the place of its tag and the tag over its ciphertext.
fn process<const SEAL: bool>(
    method: Method,
    key: &Key,
    unit: &mut [u8],
    stride: usize,
    mut done: impl FnMut(usize, &mut [u8; TAG_LEN], [u8; TAG_LEN]),
) {
    assert!(method.available());
    let packets = unit.len() / stride;
    let mut each = |unit: &mut [u8], tags: &[[u8; TAG_LEN]]| {
        for (lane, (segment, tag)) in unit.chunks_exact_mut(stride).zip(tags).enumerate() {
            if let Some(place) = segment.last_chunk_mut() {
                done(lane, place, *tag);
            }
        }
    };
    match method {
        Method::PacketsAvx512 => {
            // SAFETY: the CPU has the features that the function is compiled for: asserted above.
            let tags = unsafe { avx512::process::<SEAL>(key, &mut Unit::new(unit, stride, packets)) };
            each(unit, &tags);
        }
        Method::PacketsAvx2 => {
            // SAFETY: the CPU has the feature that the function is compiled for: asserted above.
            let tags = unsafe { avx2::process::<SEAL>(key, &mut Unit::new(unit, stride, packets)) };
            each(unit, &tags);
        }
        // SAFETY: the CPU has the features that the function is compiled for: asserted above.
        Method::BlocksAvx2 => unsafe { avx2_long::process::<SEAL>(key, unit, stride, done) },
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
