//! Every kernel this CPU can run against `ring`, and the final reduction at the edges of 2^130 - 5.

use super::*;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

const KEY: [u8; 32] = [
    0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x8b, 0x8c, 0x8d, 0x8e, 0x8f, 0x90,
    0x91, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9a, 0x9b, 0x9c, 0x9d, 0x9e, 0x9f,
];

fn clear_train(packets: usize, stride: usize) -> Vec<u8> {
    (0..packets * stride).map(|i| (i * 7 + i / 251) as u8).collect()
}

fn seal_one_by_one(first: u64, train: &mut [u8], stride: usize) {
    let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &KEY).unwrap());
    for (i, segment) in (0..).zip(train.chunks_exact_mut(stride)) {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&(first + i).to_le_bytes());
        segment[8..16].copy_from_slice(&(first + i).to_le_bytes());
        let end = stride - TAG_LEN;
        let (text, tag) = segment[HEADER_LEN..].split_at_mut(end - HEADER_LEN);
        let nonce = Nonce::assume_unique_for_key(nonce);
        tag.copy_from_slice(key.seal_in_place_separate_tag(nonce, Aad::empty(), text).unwrap().as_ref());
    }
}

/// Every length up to four blocks, and around a full-size packet; every number of lanes in use.
fn shapes(kernel: Kernel) -> impl Iterator<Item = (usize, usize)> {
    (0..=260).chain([1008, 1420, 1424, 1440, 8920]).flat_map(move |len| {
        let lanes = kernel.lanes();
        [1, 2, lanes / 2 + 1, lanes - 1, lanes].into_iter().map(move |packets| (len, packets))
    })
}

#[test]
fn sealing_across_lanes_equals_sealing_one_by_one() {
    let first = u64::MAX - 100;
    for kernel in Kernel::available() {
        for (len, packets) in shapes(kernel) {
            let stride = len + HEADER_LEN + TAG_LEN;
            let mut expected = clear_train(packets, stride);
            let mut train = expected.clone();
            seal_one_by_one(first, &mut expected, stride);
            for (i, segment) in (0..).zip(train.chunks_exact_mut(stride)) {
                segment[8..16].copy_from_slice(&(first + i).to_le_bytes());
            }
            let tags = Tags::of::<true>(kernel, &Key::new(&KEY), &mut train, stride, packets);
            for (segment, tag) in train.chunks_exact_mut(stride).zip(tags.iter()) {
                segment[stride - TAG_LEN..].copy_from_slice(tag);
            }
            assert!(train == expected, "{kernel:?}, {packets} packets of {len} bytes");
        }
    }
}

#[test]
fn opening_across_lanes_restores_the_text_and_tells_the_tags() {
    for kernel in Kernel::available() {
        for (len, packets) in shapes(kernel) {
            let stride = len + HEADER_LEN + TAG_LEN;
            let clear = clear_train(packets, stride);
            let mut train = clear.clone();
            seal_one_by_one(1 << 40, &mut train, stride);
            let sealed = train.clone();
            let tags = Tags::of::<false>(kernel, &Key::new(&KEY), &mut train, stride, packets);
            for (i, tag) in (0..packets).zip(tags.iter()) {
                let text = i * stride + HEADER_LEN..(i + 1) * stride - TAG_LEN;
                assert_eq!(
                    train[text.clone()],
                    clear[text.clone()],
                    "{kernel:?}, {packets} packets of {len} bytes"
                );
                assert_eq!(tag, &sealed[text.end..text.end + TAG_LEN]);
            }
        }
    }
}

#[test]
fn whole_trains_are_sealed_and_opened_as_far_as_that_pays() {
    for kernel in Kernel::available() {
        for (packets, len) in [(3, 64), (45, 64), (64, 16), (45, 1424), (13, 1424)] {
            let stride = len + HEADER_LEN + TAG_LEN;
            let mut expected = clear_train(packets, stride);
            let mut train = expected.clone();
            seal_one_by_one(7, &mut expected, stride);
            let sealed = seal(kernel, &Key::new(&KEY), 7, &mut train, stride);
            assert!(sealed <= packets);
            assert!(train[..sealed * stride] == expected[..sealed * stride]);
            assert_eq!(sealed > 0, kernel.pays(packets.min(kernel.lanes()), len));
            let mut good = 0;
            let opened = open(kernel, &Key::new(&KEY), &mut expected, stride, |i, tag, found| {
                assert_eq!((i, tag), (good, found));
                good += 1;
            });
            assert_eq!(opened, good);
        }
    }
}

/// 2^130 - 5 and its neighbours, in limbs.
#[test]
fn the_sum_is_reduced_fully_at_the_edges_of_the_prime() {
    const M44: u64 = (1 << 44) - 1;
    const M42: u64 = (1 << 42) - 1;
    let tag = |h| u128::from_le_bytes(poly_tag(h, 0));
    assert_eq!(tag([M44 - 5, M44, M42]), u128::MAX - 5); // p - 1
    assert_eq!(tag([M44 - 4, M44, M42]), 0); // p
    assert_eq!(tag([M44, M44, M42]), 4); // 2^130 - 1
    assert_eq!(tag([M44 + 1, M44, M42]), 5); // 2^130, with a carry through all limbs
    assert_eq!(tag([3, 0, M42 + 1]), 8); // 2^130 + 3
    assert_eq!(u128::from_le_bytes(poly_tag([1, 0, 0], u128::MAX)), 0); // modulo 2^128
}
