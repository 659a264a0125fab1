use super::*;
use crate::crypto::testing::Seeded;
use crate::wire::message::{INITIATION_LEN, RESPONSE_LEN};
use proptest::prelude::*;

const PUBLIC: PublicKey = PublicKey([0x42; 32]);

fn at(seconds: u64) -> Instant {
    Instant::START + Duration::from_secs(seconds)
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Both ends and a message between them.
struct Pair {
    checker: CookieChecker,
    jar: CookieJar,
    message: Vec<u8>,
    entropy: Seeded,
}

impl Pair {
    fn new(len: usize) -> Pair {
        let mut message: Vec<u8> = (0..len).map(|at| at as u8).collect();
        message[..4].copy_from_slice(&[if len == INITIATION_LEN { 1 } else { 2 }, 0, 0, 0]);
        Pair {
            checker: CookieChecker::new(&PUBLIC),
            jar: CookieJar::new(&PUBLIC),
            message,
            entropy: Seeded(1),
        }
    }

    fn seal(&mut self, now: Instant) {
        self.jar.seal(&mut self.message, now);
    }

    fn reply(&mut self, from: &str, now: Instant) -> CookieReply {
        let bytes = self.checker.reply(&self.message, address(from), now, &mut self.entropy);
        CookieReply::parse(&bytes).unwrap()
    }

    fn verify(&mut self, from: &str, now: Instant) -> bool {
        self.checker.verify_mac2(&self.message, address(from), now, &mut self.entropy)
    }

    fn mac2(&self) -> [u8; 16] {
        *self.message.last_chunk().unwrap()
    }

    /// A pair whose jar got a cookie for `from` at `now`, and whose message carries it.
    fn with_cookie(from: &str, now: Instant) -> Pair {
        let mut pair = Pair::new(INITIATION_LEN);
        pair.seal(now);
        let reply = pair.reply(from, now);
        assert!(pair.jar.accept(&reply, now));
        pair.seal(now);
        pair
    }
}

#[test]
fn mac1_covers_every_byte_before_it_and_no_other() {
    for len in [INITIATION_LEN, RESPONSE_LEN] {
        let mut pair = Pair::new(len);
        pair.seal(at(0));
        let key = Mac1Key::new(&PUBLIC);
        assert!(key.verify(&pair.message));
        assert!(!Mac1Key::new(&PublicKey([0x43; 32])).verify(&pair.message));
        for byte in 0..len {
            pair.message[byte] ^= 1;
            assert_eq!(key.verify(&pair.message), byte >= len - 16, "byte {byte} of {len}");
            pair.message[byte] ^= 1;
        }
    }
}

#[test]
fn without_a_cookie_mac2_is_zero() {
    let mut pair = Pair::new(INITIATION_LEN);
    pair.seal(at(0));
    assert_eq!(pair.mac2(), [0; 16]);
    assert!(!pair.verify("192.0.2.1:51820", at(0)));
}

#[test]
fn mac2_holds_for_the_same_address_and_port_only() {
    for (own, others) in [
        ("192.0.2.1:51820", ["192.0.2.2:51820", "192.0.2.1:51821", "[2001:db8::1]:51820"]),
        ("[2001:db8::1]:51820", ["[2001:db8::2]:51820", "[2001:db8::1]:51821", "192.0.2.1:51820"]),
    ] {
        let mut pair = Pair::with_cookie(own, at(0));
        assert!(pair.verify(own, at(1)));
        for other in others {
            assert!(!pair.verify(other, at(1)), "{own} against {other}");
        }
        pair.message[20] ^= 1;
        assert!(!pair.verify(own, at(1)), "MAC2 covers the message");
        pair.message[20] ^= 1;
        pair.message[INITIATION_LEN - 20] ^= 1;
        assert!(!pair.verify(own, at(1)), "MAC2 covers MAC1");
    }
}

#[test]
fn a_mapped_address_is_its_ipv4_address() {
    let mut pair = Pair::with_cookie("192.0.2.1:51820", at(0));
    assert!(pair.verify("[::ffff:192.0.2.1]:51820", at(0)));
}

#[test]
fn a_reply_names_the_sender_of_what_it_answers() {
    let mut pair = Pair::new(RESPONSE_LEN);
    pair.seal(at(0));
    assert_eq!(pair.reply("192.0.2.1:1", at(0)).receiver, 0x0706_0504);
}

#[test]
fn the_secret_lasts_two_minutes() {
    let mut pair = Pair::with_cookie("192.0.2.1:51820", at(0));
    assert!(pair.verify("192.0.2.1:51820", at(119)));
    assert!(!pair.verify("192.0.2.1:51820", at(120)));
    assert!(!pair.verify("192.0.2.1:51820", at(119)), "the old secret is gone");
}

#[test]
fn a_cookie_is_used_for_115_seconds() {
    let mut pair = Pair::with_cookie("192.0.2.1:51820", at(0));
    pair.seal(at(114));
    assert!(pair.verify("192.0.2.1:51820", at(114)));
    pair.seal(at(115));
    assert_eq!(pair.mac2(), [0; 16]);
    pair.seal(at(1));
    assert_eq!(pair.mac2(), [0; 16], "it is thrown away");
}

#[test]
fn a_reply_is_accepted_once_and_only_for_the_last_message() {
    let mut pair = Pair::new(INITIATION_LEN);
    pair.seal(at(0));
    let first = pair.reply("192.0.2.1:1", at(0));
    assert!(!CookieJar::new(&PUBLIC).accept(&first, at(0)), "nothing was sent");
    pair.message[9] ^= 1;
    pair.seal(at(1));
    assert!(!pair.jar.accept(&first, at(1)), "bound to an older message");
    let second = pair.reply("192.0.2.1:1", at(1));
    assert!(pair.jar.accept(&second, at(1)));
    assert!(!pair.jar.accept(&second, at(1)), "answered already");
}

#[test]
fn a_forged_reply_is_refused_and_leaves_the_jar_waiting() {
    let mut pair = Pair::new(INITIATION_LEN);
    pair.seal(at(0));
    let good = pair.reply("192.0.2.1:1", at(0));
    for byte in 0..24 + 32 {
        let mut bad = good.clone();
        match bad.nonce.get_mut(byte) {
            Some(nonce) => *nonce ^= 0x80,
            None => bad.cookie_sealed[byte - 24] ^= 0x80,
        }
        assert!(!pair.jar.accept(&bad, at(0)), "byte {byte}");
    }
    assert!(!CookieJar::new(&PublicKey([1; 32])).accept(&good, at(0)));
    assert!(pair.jar.accept(&good, at(0)));
}

proptest! {
    #[test]
    fn any_bytes_are_survived_and_refused(mut message: Vec<u8>, nonce: [u8; 24], sealed: [u8; 32]) {
        let mut pair = Pair::new(INITIATION_LEN);
        let from = address("192.0.2.1:1");
        prop_assert!(!Mac1Key::new(&PUBLIC).verify(&message));
        prop_assert!(!pair.checker.verify_mac2(&message, from, at(0), &mut pair.entropy));
        pair.checker.reply(&message, from, at(0), &mut pair.entropy);
        pair.seal(at(0));
        let reply = CookieReply { receiver: 0, nonce, cookie_sealed: sealed };
        prop_assert!(!pair.jar.accept(&reply, at(0)));
        pair.jar.seal(&mut message, at(0));
        prop_assert_eq!(message.len() >= 32, Mac1Key::new(&PUBLIC).verify(&message));
    }
}
