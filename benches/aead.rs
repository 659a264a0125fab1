//! Sealing and opening trains, beside `ring` called packet by packet with everything that it needs at hand.
//!
//! Throughput counts text only. Both sides seal the same buffer again and again. Opening includes one copy of the sealed
//! train into place, on both sides alike, as what was opened cannot be opened again.

use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ringtun::crypto::aead::{AeadKey, HEADER_LEN, TAG_LEN};
use std::hint::black_box;

const KEY: [u8; 32] = [0x42; 32];
const TEXTS: [usize; 5] = [16, 64, 256, 1420, 8920];
const BATCHES: [usize; 3] = [1, 8, 45];

type Group<'a> = BenchmarkGroup<'a, criterion::measurement::WallTime>;

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

    fn train(self) -> Vec<u8> {
        vec![0x5a; self.stride() * self.batch]
    }

    fn id(self, who: &str) -> BenchmarkId {
        BenchmarkId::new(who, format!("{}B x {}", self.text, self.batch))
    }
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

fn ring_key() -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &KEY).expect("32 bytes"))
}

fn for_each_shape(group: &mut Group<'_>, mut bench: impl FnMut(&mut Group<'_>, Shape)) {
    for text in TEXTS {
        for batch in BATCHES {
            group.throughput(Throughput::Bytes((text * batch) as u64));
            bench(group, Shape { text, batch });
        }
    }
}

fn seal(c: &mut Criterion) {
    let (key, ring) = (AeadKey::new(&KEY), ring_key());
    for_each_shape(&mut c.benchmark_group("seal"), |group, shape| {
        let mut train = shape.train();
        group.bench_function(shape.id("train"), |b| {
            b.iter(|| key.seal_train(black_box(7), black_box(&mut train), shape.stride()));
        });
        group.bench_function(shape.id("ring"), |b| {
            b.iter(|| {
                for (i, segment) in (7..).zip(black_box(&mut train).chunks_exact_mut(shape.stride())) {
                    let (text, tag) = segment[HEADER_LEN..].split_at_mut(shape.text);
                    let sealed =
                        ring.seal_in_place_separate_tag(nonce(i), Aad::empty(), text).expect("short");
                    tag.copy_from_slice(sealed.as_ref());
                }
            });
        });
    });
}

fn open(c: &mut Criterion) {
    let (key, ring) = (AeadKey::new(&KEY), ring_key());
    for_each_shape(&mut c.benchmark_group("open"), |group, shape| {
        let mut sealed = shape.train();
        key.seal_train(7, &mut sealed, shape.stride());
        let mut train = sealed.clone();
        group.bench_function(shape.id("train"), |b| {
            b.iter(|| {
                train.copy_from_slice(&sealed);
                let opened = key.open_train(black_box(&mut train), shape.stride());
                assert_eq!(opened.0.count_ones() as usize, shape.batch);
            });
        });
        group.bench_function(shape.id("ring"), |b| {
            b.iter(|| {
                train.copy_from_slice(&sealed);
                for (i, segment) in (7..).zip(black_box(&mut train).chunks_exact_mut(shape.stride())) {
                    ring.open_in_place(nonce(i), Aad::empty(), &mut segment[HEADER_LEN..])
                        .expect("authentic");
                }
            });
        });
    });
}

criterion_group!(benches, seal, open);
criterion_main!(benches);
