//! ChaCha20-Poly1305 (RFC 8439) with WireGuard's nonce: four zero bytes, then the 64-bit little-endian counter.
//!
//! The unit is the train: equal segments back to back in one buffer, the last one possibly shorter, each `header (16
//! bytes) | text | tag (16 bytes)`. The header's first eight bytes are the caller's, its last eight are the counter,
//! little-endian. Additional data is empty.
//!
//! Where the CPU and the train's shape make it pay, several packets go through SIMD lanes together ([`lanes`]). The
//! rest goes through `ring` one by one, as does everything on other CPUs.
//!
//! Below the trains stand the two one-off forms of the handshake: [`seal`] with a fresh key, counter zero and
//! additional data, and [`xseal`] (XChaCha20-Poly1305) for the cookie.

use crate::crypto::hchacha::hchacha20;
#[cfg(target_arch = "x86_64")]
use crate::crypto::lanes;
pub(crate) use crate::crypto::segment::counter;
pub use crate::crypto::segment::{HEADER_LEN, TAG_LEN};
use crate::crypto::wiped::Wiped;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, Tag, UnboundKey};
#[cfg(target_arch = "x86_64")]
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Largest number of segments in a train: one bit each in [`Opened`].
pub const MAX_SEGMENTS: usize = 128;
/// Bytes of an XChaCha20-Poly1305 nonce.
pub const XNONCE_LEN: usize = 24;

/// Which segments of a train were authentic: bit `i` for segment `i`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Opened(pub u128);

impl Opened {
    /// Whether segment `i` was authentic.
    pub fn is_ok(self, i: usize) -> bool {
        i < MAX_SEGMENTS && self.0 & (1 << i) != 0
    }

    /// Marks segment `i` as authentic. Segments beyond [`MAX_SEGMENTS`] have no bit and are not marked.
    pub(crate) fn mark(&mut self, i: usize) {
        if i < MAX_SEGMENTS {
            self.0 |= 1 << i;
        }
    }
}

/// A key, expanded once, which any thread may use.
pub struct AeadKey {
    /// The key as it was given, for [`AeadKey::bytes`]: `ring` does not tell it.
    bytes: Zeroizing<[u8; 32]>,
    single: Wiped<LessSafeKey>,
    #[cfg(target_arch = "x86_64")]
    lanes: Option<(lanes::Methods, lanes::Key)>,
}

impl AeadKey {
    /// A key for single packets, without the form that the SIMD kernels take.
    fn lone(key: &[u8; 32]) -> AeadKey {
        AeadKey {
            bytes: Zeroizing::new(*key),
            single: expand(key),
            #[cfg(target_arch = "x86_64")]
            lanes: None,
        }
    }

    /// The key before it was expanded, for another process that goes on with it.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.bytes
    }

    /// Expands `key`.
    #[cfg(target_arch = "x86_64")]
    pub fn new(key: &[u8; 32]) -> AeadKey {
        AeadKey::with_kernels(key, &[lanes::Kernel::Avx512, lanes::Kernel::Avx2])
    }

    /// Expands `key`.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn new(key: &[u8; 32]) -> AeadKey {
        AeadKey::lone(key)
    }

    /// Expands `key` for those of `kernels` that this CPU can run. The rest goes through `ring`.
    #[cfg(target_arch = "x86_64")]
    pub fn with_kernels(key: &[u8; 32], kernels: &[lanes::Kernel]) -> AeadKey {
        let methods = lanes::Methods::of(kernels);
        AeadKey {
            bytes: Zeroizing::new(*key),
            single: expand(key),
            lanes: methods.map(|methods| (methods, lanes::Key::new(key))),
        }
    }

    /// Seals every segment of `train` in place. Segments have `stride` bytes, the last possibly fewer, but at least
    /// 32. It writes the counters `first_counter`, `first_counter + 1`, … into the headers, encrypts the texts, and
    /// writes the tags.
    ///
    /// # Panics
    ///
    /// On a segment shorter than 32 bytes: the caller built the train, and to pass over one would send clear text.
    pub fn seal_train(&self, first_counter: u64, train: &mut [u8], stride: usize) {
        let stride = stride.max(1);
        let done = self.seal_front(first_counter, train, stride);
        for (i, segment) in (done as u64..).zip(train[done * stride..].chunks_mut(stride)) {
            let Some((header, text, tag)) = split(segment) else {
                panic!("a segment has a header and a tag");
            };
            let counter = first_counter.wrapping_add(i);
            header[HEADER_LEN - 8..].copy_from_slice(&counter.to_le_bytes());
            *tag = self.seal(counter, &[], text);
        }
    }

    /// Opens every segment of `train` in place, each with the counter in its own header.
    ///
    /// Segments beyond [`MAX_SEGMENTS`], and those without room for header and tag, are reported as not authentic.
    /// The text of a segment that is not authentic is unspecified.
    pub fn open_train(&self, train: &mut [u8], stride: usize) -> Opened {
        let stride = stride.max(1);
        let end = train.len().min(stride.saturating_mul(MAX_SEGMENTS));
        let train = &mut train[..end];
        let (done, mut opened) = self.open_front(train, stride);
        for (i, segment) in (done..).zip(train[done * stride..].chunks_mut(stride)) {
            let Some(counter) = counter(segment) else { continue };
            let Some((_, text, tag)) = split(segment) else { continue };
            if self.open(counter, &[], text, tag) {
                opened.mark(i);
            }
        }
        opened
    }

    /// Seals segments from the front through SIMD lanes as far as that pays, and returns how many it sealed.
    fn seal_front(&self, first_counter: u64, train: &mut [u8], stride: usize) -> usize {
        #[cfg(target_arch = "x86_64")]
        if let (Some((methods, key)), Some(equal)) = (&self.lanes, equal_segments(train.len(), stride)) {
            return lanes::seal(*methods, key, first_counter, &mut train[..equal], stride);
        }
        0
    }

    /// Opens segments from the front through SIMD lanes as far as that pays, and returns how many it opened and which
    /// were authentic.
    fn open_front(&self, train: &mut [u8], stride: usize) -> (usize, Opened) {
        let mut opened = Opened::default();
        #[cfg(target_arch = "x86_64")]
        if let (Some((methods, key)), Some(equal)) = (&self.lanes, equal_segments(train.len(), stride)) {
            let done = lanes::open(*methods, key, &mut train[..equal], stride, |i, expected, found| {
                if bool::from(u128::from_ne_bytes(*expected).ct_eq(&u128::from_ne_bytes(*found))) {
                    opened.mark(i);
                }
            });
            return (done, opened);
        }
        (0, opened)
    }

    fn seal(&self, counter: u64, aad: &[u8], text: &mut [u8]) -> [u8; TAG_LEN] {
        let Ok(tag) = self.single.seal_in_place_separate_tag(nonce(counter), Aad::from(aad), text) else {
            unreachable!("no buffer is as long as ChaCha20's limit of 256 GiB");
        };
        let mut bytes = [0; TAG_LEN];
        bytes.copy_from_slice(tag.as_ref());
        bytes
    }

    fn open(&self, counter: u64, aad: &[u8], text: &mut [u8], tag: &[u8; TAG_LEN]) -> bool {
        self.single
            .open_in_place_separate_tag(nonce(counter), Aad::from(aad), Tag::from(*tag), text, 0..)
            .is_ok()
    }
}

/// Expands `key` for `ring`. `ring` does not wipe its keys, so [`Wiped`] does.
fn expand(key: &[u8; 32]) -> Wiped<LessSafeKey> {
    let Ok(key) = UnboundKey::new(&CHACHA20_POLY1305, key) else {
        unreachable!("every 32 bytes are a ChaCha20-Poly1305 key");
    };
    Wiped::new(LessSafeKey::new(key))
}

/// Length in bytes of the leading segments that have all `stride` bytes, where each has room for header and tag.
#[cfg(target_arch = "x86_64")]
fn equal_segments(len: usize, stride: usize) -> Option<usize> {
    (stride >= HEADER_LEN + TAG_LEN).then_some(len / stride * stride)
}

type Parts<'a> = (&'a mut [u8; HEADER_LEN], &'a mut [u8], &'a mut [u8; TAG_LEN]);

fn split(segment: &mut [u8]) -> Option<Parts<'_>> {
    let (header, rest) = segment.split_first_chunk_mut()?;
    let (text, tag) = rest.split_last_chunk_mut()?;
    Some((header, text, tag))
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[NONCE_LEN - 8..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// Encrypts `text` in place under a key that is used this once (counter zero) and returns the tag over it and `aad`.
pub fn seal(key: &[u8; 32], aad: &[u8], text: &mut [u8]) -> [u8; TAG_LEN] {
    AeadKey::lone(key).seal(0, aad, text)
}

/// Opens in place what [`seal`] sealed. False where it is not authentic; then `text` is unspecified.
#[must_use]
pub fn open(key: &[u8; 32], aad: &[u8], text: &mut [u8], tag: &[u8; TAG_LEN]) -> bool {
    AeadKey::lone(key).open(0, aad, text, tag)
}

/// XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03): encrypts `text` in place and returns the tag over it and `aad`.
pub fn xseal(key: &[u8; 32], nonce: &[u8; XNONCE_LEN], aad: &[u8], text: &mut [u8]) -> [u8; TAG_LEN] {
    let (cipher, counter) = extended(key, nonce);
    cipher.seal(counter, aad, text)
}

/// Opens in place what [`xseal`] sealed. False where it is not authentic; then `text` is unspecified.
#[must_use]
pub fn xopen(
    key: &[u8; 32],
    nonce: &[u8; XNONCE_LEN],
    aad: &[u8],
    text: &mut [u8],
    tag: &[u8; TAG_LEN],
) -> bool {
    let (cipher, counter) = extended(key, nonce);
    cipher.open(counter, aad, text, tag)
}

/// The key and the counter that stand for `key` under a long nonce (draft-irtf-cfrg-xchacha-03, section 2.3). The
/// draft's inner nonce is four zero bytes and the long nonce's last eight, which has the form of WireGuard's nonce.
fn extended(key: &[u8; 32], nonce: &[u8; XNONCE_LEN]) -> (AeadKey, u64) {
    let [first @ .., a, b, c, d, e, f, g, h] = nonce;
    let subkey = Zeroizing::new(hchacha20(key, first));
    (AeadKey::lone(&subkey), u64::from_le_bytes([*a, *b, *c, *d, *e, *f, *g, *h]))
}

#[cfg(test)]
mod tests;
