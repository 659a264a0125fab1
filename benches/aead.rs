//! Sealing and opening trains with each kernel that this CPU can run, beside `ring` called packet by packet with
//! everything that it needs at hand.
//!
//! `cargo bench --bench aead -- [--quick] [--kernel avx512|avx2]... [TEXT]...` measures the named kernels instead of
//! all, and texts of the named numbers of bytes. `chosen` is what a session gets: all kernels, each where it pays.
//! What a kernel does not take goes through `ring`, with it alone as with all of them.
//!
//! All are measured in turn, in many rounds. Printed are medians: cycles a byte of text, and how many times as fast as
//! `ring` in the same round. Copies of a train are made before the clock starts, as many as 64 KiB hold, for what was
//! opened cannot be opened again; then all of them are sealed or opened.
//!
//! Cycles are the core's own, as it would be wrong to count the time stamp counter's where the core's clock varies.
//! Just before and after each measurement, a chain of multiplications is timed, each of which waits for the one before:
//! three cycles on all of Intel's cores since 2008 and on AMD's since Zen.

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ringtun::crypto::aead::{AeadKey, HEADER_LEN, TAG_LEN};
#[cfg(target_arch = "x86_64")]
use ringtun::crypto::lanes::Kernel;
use std::hint::black_box;
use std::time::Instant;

const KEY: [u8; 32] = [0x42; 32];
const TEXTS: [usize; 6] = [16, 64, 256, 512, 1420, 8920];
const BATCHES: [usize; 3] = [1, 8, 45];
/// Bytes of trains that are handled between two looks at the clock.
const AT_ONCE: usize = 64 * 1024;
/// Bytes that each measurement handles at least.
const MEASURED: usize = 1024 * 1024;
/// Multiplications in the chain, and cycles that each takes.
const CHAIN: u32 = 20_000;
const MULTIPLICATION: f64 = 3.0;

/// One of those that are compared.
struct Contender {
    name: String,
    cipher: Cipher,
}

enum Cipher {
    Train(Box<AeadKey>),
    Ring(Box<LessSafeKey>),
}

/// A shape of train.
#[derive(Clone, Copy)]
struct Shape {
    text: usize,
    batch: usize,
}

impl Shape {
    fn stride(self) -> usize {
        HEADER_LEN + self.text + TAG_LEN
    }

    fn len(self) -> usize {
        self.stride() * self.batch
    }
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

impl Cipher {
    fn seal(&self, train: &mut [u8], shape: Shape) {
        match self {
            Cipher::Train(key) => key.seal_train(black_box(7), train, shape.stride()),
            Cipher::Ring(key) => {
                for (i, segment) in (7..).zip(train.chunks_exact_mut(shape.stride())) {
                    let (text, tag) = segment[HEADER_LEN..].split_at_mut(shape.text);
                    let sealed = key.seal_in_place_separate_tag(nonce(i), Aad::empty(), text).expect("short");
                    tag.copy_from_slice(sealed.as_ref());
                }
            }
        }
    }

    fn open(&self, train: &mut [u8], shape: Shape) {
        match self {
            Cipher::Train(key) => {
                let opened = key.open_train(train, shape.stride());
                assert_eq!(opened.0.count_ones() as usize, shape.batch);
            }
            Cipher::Ring(key) => {
                for (i, segment) in (7..).zip(train.chunks_exact_mut(shape.stride())) {
                    key.open_in_place(nonce(i), Aad::empty(), &mut segment[HEADER_LEN..]).expect("authentic");
                }
            }
        }
    }

    /// Cycles a byte of text in sealing or opening copies of `train`.
    fn measure(&self, seal: bool, train: &[u8], copies: &mut [u8], shape: Shape) -> f64 {
        let at_once = (AT_ONCE / shape.len()).max(1);
        let copies = &mut copies[..at_once * shape.len()];
        let times = MEASURED.div_ceil(copies.len());
        let mut spent_ns = 0;
        let before = clock_ghz();
        // The first time warms up caches and predictors.
        for time in 0..=times {
            copies.chunks_exact_mut(train.len()).for_each(|copy| copy.copy_from_slice(train));
            let start = Instant::now();
            for train in black_box(&mut *copies).chunks_exact_mut(train.len()) {
                if seal { self.seal(train, shape) } else { self.open(train, shape) }
            }
            spent_ns += if time == 0 { 0 } else { start.elapsed().as_nanos() };
        }
        let ghz = (before + clock_ghz()) / 2.0;
        spent_ns as f64 * ghz / (times * at_once * shape.text * shape.batch) as f64
    }
}

/// The core's clock, by the chain of multiplications.
fn clock_ghz() -> f64 {
    let mut x = black_box(3_u64);
    let start = Instant::now();
    for _ in 0..CHAIN {
        x = x.wrapping_mul(x);
    }
    black_box(x);
    f64::from(CHAIN) * MULTIPLICATION / start.elapsed().as_nanos() as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[cfg(target_arch = "x86_64")]
fn kernels(wanted: &[String]) -> Vec<Contender> {
    let mut contenders = vec![(String::from("chosen"), AeadKey::new(&KEY))];
    for kernel in Kernel::available() {
        contenders.push((format!("{kernel:?}").to_lowercase(), AeadKey::with_kernels(&KEY, &[kernel])));
    }
    contenders
        .into_iter()
        .filter(|(name, _)| wanted.is_empty() || wanted.contains(name))
        .map(|(name, key)| Contender { name, cipher: Cipher::Train(Box::new(key)) })
        .collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn kernels(_: &[String]) -> Vec<Contender> {
    vec![Contender { name: String::from("chosen"), cipher: Cipher::Train(Box::new(AeadKey::new(&KEY))) }]
}

fn compare(contenders: &[Contender], seal: bool, shape: Shape, rounds: usize) {
    let mut train = vec![0x5a; shape.len()];
    if !seal {
        AeadKey::new(&KEY).seal_train(7, &mut train, shape.stride());
    }
    let mut copies = vec![0; shape.len().max(AT_ONCE)];
    let mut measured = vec![Vec::new(); contenders.len()];
    for _ in 0..rounds {
        for (contender, measured) in contenders.iter().zip(&mut measured) {
            measured.push(contender.cipher.measure(seal, &train, &mut copies, shape));
        }
    }
    print!("{} {:>4} B x {:<2}", if seal { "seal" } else { "open" }, shape.text, shape.batch);
    for (contender, cycles) in contenders.iter().zip(&measured) {
        let ratios =
            measured[contenders.len() - 1].iter().zip(cycles).map(|(ring, ours)| ring / ours).collect();
        print!("   {} {:6.2} c/B {:4.2} x", contender.name, median(cycles.clone()), median(ratios));
    }
    println!();
}

fn main() {
    let (mut wanted, mut texts, mut rounds) = (Vec::new(), Vec::new(), 61);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--bench" => {} // what cargo adds
            "--quick" => rounds = 15,
            "--kernel" => wanted.extend(arguments.next()),
            text => texts.push(text.parse().expect("a number of bytes")),
        }
    }
    let ring = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &KEY).expect("32 bytes"));
    let mut contenders = kernels(&wanted);
    assert!(!contenders.is_empty(), "this CPU has no kernel of that name");
    contenders.push(Contender { name: String::from("ring"), cipher: Cipher::Ring(Box::new(ring)) });
    for seal in [true, false] {
        for text in TEXTS.into_iter().filter(|text| texts.is_empty() || texts.contains(text)) {
            for batch in BATCHES {
                compare(&contenders, seal, Shape { text, batch }, rounds);
            }
        }
    }
}
