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

/// Gates of one identity.
fn gate(number: u8) -> Gate {
    Gate::new(GateKeys::new(&PUBLIC, &mut Seeded(1)), number)
}

/// Both ends and a message between them.
struct Pair {
    gate: Gate,
    jar: CookieJar,
    message: Vec<u8>,
}

impl Pair {
    fn new(len: usize) -> Pair {
        let mut message: Vec<u8> = (0..len).map(|at| at as u8).collect();
        message[..4].copy_from_slice(&[if len == INITIATION_LEN { 1 } else { 2 }, 0, 0, 0]);
        Pair { gate: gate(0), jar: CookieJar::new(&PUBLIC), message }
    }

    fn seal(&mut self, now: Instant) {
        self.jar.seal(&mut self.message, now);
    }

    fn judge(&mut self, from: &str, now: Instant) -> Verdict {
        self.gate.judge(&self.message, address(from), now, true)
    }

    fn reply(&mut self, from: &str, now: Instant) -> CookieReply {
        let Verdict::Cookie(bytes) = self.judge(from, now) else { panic!("no cookie") };
        CookieReply::parse(&bytes).unwrap()
    }

    /// Whether MAC2 is right, whatever MAC1 is.
    fn verify(&mut self, from: &str, now: Instant) -> bool {
        let cookie = self.gate.cookie(address(from), now);
        has_mac2(&self.message, &cookie)
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
    assert_eq!(pair.judge("192.0.2.1:51820", at(119)), Verdict::Pass { proven: true });
    assert!(matches!(pair.judge("192.0.2.1:51820", at(121)), Verdict::Cookie(_)));
}

#[test]
fn a_cookie_of_one_gate_opens_the_others_and_no_stranger_s() {
    let pair = Pair::with_cookie("192.0.2.1:51820", at(0));
    let judge = |mut gate: Gate| gate.judge(&pair.message, address("192.0.2.1:51820"), at(5), true);
    assert_eq!(judge(gate(7)), Verdict::Pass { proven: true });
    assert!(matches!(judge(Gate::new(GateKeys::new(&PUBLIC, &mut Seeded(2)), 0)), Verdict::Cookie(_)));
}

#[test]
fn a_cookie_is_asked_for_under_load_and_a_forged_message_is_not_answered() {
    let mut pair = Pair::new(INITIATION_LEN);
    pair.seal(at(0));
    let from = address("192.0.2.1:1");
    assert_eq!(pair.gate.judge(&pair.message, from, at(0), false), Verdict::Pass { proven: false });
    assert!(matches!(pair.gate.judge(&pair.message, from, at(0), true), Verdict::Cookie(_)));
    pair.message[20] ^= 1;
    assert_eq!(pair.gate.judge(&pair.message, from, at(0), true), Verdict::Forged);
}

#[test]
fn no_two_replies_share_a_nonce_whichever_gate_made_them() {
    let mut pair = Pair::new(INITIATION_LEN);
    pair.seal(at(0));
    let mut seen = std::collections::HashSet::new();
    for number in 0..4 {
        pair.gate = gate(number);
        assert!((0..50).all(|second| seen.insert(pair.reply("192.0.2.1:1", at(second)).nonce)));
    }
}

#[test]
fn another_process_takes_the_cookies_of_this_one_and_uses_no_nonce_of_its() {
    let pair = Pair::with_cookie("192.0.2.1:51820", at(0));
    let keys = GateKeys::new(&PUBLIC, &mut Seeded(1));
    let restored = |seed| GateKeys::restore(&PUBLIC, &keys.record(), &mut Seeded(seed));
    let mut gate = Gate::new(restored(2), 0);
    let from = address("192.0.2.1:51820");
    assert_eq!(gate.judge(&pair.message, from, at(119), true), Verdict::Pass { proven: true });
    assert!(
        matches!(gate.judge(&pair.message, from, at(120), true), Verdict::Cookie(_)),
        "it is as old as before"
    );
    let mut seen = std::collections::HashSet::new();
    for keys in [keys.clone(), restored(2), restored(3)] {
        let mut gate = Gate::new(keys, 0);
        assert!((0..50).all(|_| seen.insert(gate.nonce())));
    }
}

#[test]
fn a_jar_goes_on_elsewhere_with_its_cookie_and_its_age() {
    let pair = Pair::with_cookie("192.0.2.1:51820", at(0));
    let record = pair.jar.record(at(50));
    for (clock, is_used) in [(1_114, true), (1_115, false)] {
        // By the other process's clock, the record was made at 1050 s.
        let mut jar = CookieJar::restore(&PUBLIC, &record, at(1_050));
        let mut message = [7; INITIATION_LEN];
        jar.seal(&mut message, at(clock));
        assert_eq!(message[INITIATION_LEN - 16..] != [0; 16], is_used, "{clock}");
    }
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
        prop_assert_eq!(pair.gate.judge(&message, from, at(0), true), Verdict::Forged);
        prop_assert!(!has_mac2(&message, &[0; 16]));
        pair.gate.reply(&message, &[0; 16]);
        pair.seal(at(0));
        let reply = CookieReply { receiver: 0, nonce, cookie_sealed: sealed };
        prop_assert!(!pair.jar.accept(&reply, at(0)));
        pair.jar.seal(&mut message, at(0));
        prop_assert_eq!(message.len() >= 32, Mac1Key::new(&PUBLIC).verify(&message));
    }
}
