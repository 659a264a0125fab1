use super::*;
use crate::crypto::testing::Seeded;
use crate::noise::session::Role;
use crate::noise::tai64n::Tai64NClock;
use proptest::prelude::*;
use std::time::Duration;

fn at(millis: u64) -> Instant {
    Instant::START + Duration::from_millis(millis)
}

fn stamp(seconds: u64) -> Tai64N {
    Tai64NClock::default().stamp(Duration::from_secs(seconds))
}

fn identity(seed: u8) -> Arc<Identity> {
    Arc::new(Identity::new(PrivateKey::from_bytes([seed; 32])))
}

/// Two peers that know each other; `a` starts.
struct Pair {
    a: Arc<Identity>,
    b: Arc<Identity>,
    at_a: Handshake,
    at_b: Handshake,
    entropy: Seeded,
}

impl Pair {
    fn new(psk: [u8; 32]) -> Pair {
        let (a, b) = (identity(1), identity(2));
        let at_a = Handshake::new(b.public, SharedSecret(psk));
        let at_b = Handshake::new(a.public, SharedSecret(psk));
        Pair { a, b, at_a, at_b, entropy: Seeded(7) }
    }

    fn initiate(&mut self, index: u32, seconds: u64) -> Initiation {
        let bytes = self.at_a.initiate(&self.a, index, stamp(seconds), at(0), &mut self.entropy).unwrap();
        Initiation::parse(&bytes).unwrap()
    }

    fn open(&self, message: &Initiation) -> Result<IncomingInitiation, HandshakeError> {
        IncomingInitiation::open(&self.b, message)
    }

    fn respond(
        &mut self,
        message: &Initiation,
        index: u32,
        millis: u64,
    ) -> Result<(Response, SessionKeys), HandshakeError> {
        let incoming = self.open(message)?;
        let (bytes, keys) = self.at_b.respond(&self.b, incoming, index, at(millis), &mut self.entropy)?;
        Ok((Response::parse(&bytes).unwrap(), keys))
    }

    fn complete(&mut self, message: &Response) -> Result<SessionKeys, HandshakeError> {
        self.at_a.complete(&self.a, message)
    }

    /// A whole handshake at `seconds`, and whether both ends got the same keys.
    fn run(&mut self, seconds: u64) -> Result<(), HandshakeError> {
        let initiation = self.initiate(0xa0, seconds);
        let (response, at_b) = self.respond(&initiation, 0xb0, seconds * 1000)?;
        let at_a = self.complete(&response)?;
        assert_eq!((at_a.send, at_a.receive), (at_b.receive, at_b.send));
        assert_ne!(at_a.send, at_a.receive);
        Ok(())
    }
}

#[test]
fn both_ends_derive_the_same_keys_with_and_without_psk() {
    for psk in [[0; 32], [0x77; 32]] {
        let mut pair = Pair::new(psk);
        let initiation = pair.initiate(0xa1, 1);
        assert_eq!((initiation.mac1, initiation.mac2), ([0; 16], [0; 16]));
        let incoming = pair.open(&initiation).unwrap();
        assert_eq!(incoming.remote, pair.a.public);
        let (response, at_b) = pair.respond(&initiation, 0xb1, 0).unwrap();
        assert_eq!(pair.at_a.pending_index(), Some(0xa1));
        let at_a = pair.complete(&response).unwrap();
        assert_eq!(pair.at_a.pending_index(), None);
        assert_eq!((at_a.send, at_a.receive), (at_b.receive, at_b.send));
        assert_ne!(at_a.send, at_a.receive);
        assert_eq!((at_a.local_index, at_a.remote_index, at_a.role), (0xa1, 0xb1, Role::Initiator));
        assert_eq!((at_b.local_index, at_b.remote_index, at_b.role), (0xb1, 0xa1, Role::Responder));
        assert_eq!(pair.complete(&response).unwrap_err(), HandshakeError::Unexpected);
    }
}

/// Independent of this crate's code: the paper's equations written out in Python (hashlib, an own X25519 and ChaCha20-Poly1305),
/// for fixed keys. Holds labels, order, key directions and nonces in place.
#[test]
fn messages_and_keys_match_an_independent_implementation() {
    let mut pair = Pair::new([0x77; 32]);
    let initiation = pair.initiate(0x0102_0304, 5);
    let (response, keys) = pair.respond(&initiation, 0x0506_0708, 0).unwrap();
    let digest = |parts: &[&[u8]]| crate::crypto::hash::hash(parts);
    let hex = |digits| crate::crypto::testing::hex_array::<32>(digits);
    assert_eq!(
        digest(&[&initiation.to_bytes()]),
        hex("61394ee25b6fa7868d2f4febec29106ae71004e1d36e8083b4777e6a4b406d96")
    );
    assert_eq!(
        digest(&[&response.to_bytes()]),
        hex("524bf400158308791f1d5ed93ad273ef37b4751098b134f8ae855bbcfe05bad4")
    );
    assert_eq!(keys.receive, hex("19d423534bb22e51bd8a837cdb2ab1baeb5c4cc43a433b2643efc3b1034f7efa"));
    assert_eq!(keys.send, hex("513ce836f7ad909bc6fc2f8fc1ffb2e804f1d98af0f320d562945d1ecbbf9f83"));
}

#[test]
fn every_changed_byte_of_an_initiation_is_noticed() {
    let mut pair = Pair::new([0; 32]);
    let good = pair.initiate(1, 1).to_bytes();
    for byte in 8..116 {
        let mut bad = good;
        bad[byte] ^= 1;
        let refused = pair.respond(&Initiation::parse(&bad).unwrap(), 2, 0).err();
        assert_eq!(refused, Some(HandshakeError::Decrypt), "byte {byte}");
    }
    assert!(pair.respond(&Initiation::parse(&good).unwrap(), 2, 0).is_ok());
}

#[test]
fn every_changed_byte_of_a_response_is_noticed_and_the_initiation_stays_outstanding() {
    let mut pair = Pair::new([0; 32]);
    let initiation = pair.initiate(1, 1);
    let (good, _) = pair.respond(&initiation, 2, 0).unwrap();
    for byte in 8..60 {
        let mut bad = good.to_bytes();
        bad[byte] ^= 1;
        let error = if byte < 12 { HandshakeError::Unexpected } else { HandshakeError::Decrypt };
        let refused = pair.complete(&Response::parse(&bad).unwrap()).err();
        assert_eq!(refused, Some(error), "byte {byte}");
        assert_eq!(pair.at_a.pending_index(), Some(1));
    }
    assert!(pair.complete(&good).is_ok());
}

#[test]
fn an_initiation_to_someone_else_does_not_open() {
    let mut pair = Pair::new([0; 32]);
    let initiation = pair.initiate(1, 1);
    let refused = IncomingInitiation::open(&identity(3), &initiation).err();
    assert_eq!(refused, Some(HandshakeError::Decrypt));
}

#[test]
fn an_initiation_goes_only_to_its_own_peer_and_identity() {
    let mut pair = Pair::new([0; 32]);
    let initiation = pair.initiate(1, 1);
    let mut other = Handshake::new(identity(3).public, SharedSecret([0; 32]));
    let incoming = pair.open(&initiation).unwrap();
    let refused = other.respond(&pair.b, incoming, 2, at(0), &mut pair.entropy).err();
    assert_eq!(refused, Some(HandshakeError::Unexpected));
    let incoming = pair.open(&initiation).unwrap();
    let refused = pair.at_b.respond(&identity(3), incoming, 2, at(0), &mut pair.entropy).err();
    assert_eq!(refused, Some(HandshakeError::Unexpected));
}

#[test]
fn a_timestamp_must_exceed_the_last_accepted() {
    let mut pair = Pair::new([0; 32]);
    let first = pair.initiate(1, 100);
    let older = pair.initiate(1, 99);
    let same = pair.initiate(1, 100);
    let newer = pair.initiate(1, 101);
    assert!(pair.respond(&first, 2, 0).is_ok());
    for message in [&first, &older, &same] {
        assert_eq!(pair.respond(message, 2, 10_000).unwrap_err(), HandshakeError::Replay);
    }
    assert!(pair.respond(&newer, 2, 10_000).is_ok());
}

#[test]
fn a_peers_clock_may_jump_forth_and_then_has_to_catch_up() {
    let mut pair = Pair::new([0; 32]);
    let mut clock = Tai64NClock::default();
    for (n, wall) in [1_000_000, 5, 0, 999_999, 2_000_000].into_iter().enumerate() {
        let stamp = clock.stamp(Duration::from_secs(wall));
        let bytes = pair.at_a.initiate(&pair.a, 1, stamp, at(0), &mut pair.entropy).unwrap();
        assert!(pair.respond(&Initiation::parse(&bytes).unwrap(), 2, n as u64 * 1000).is_ok());
    }
}

#[test]
fn initiations_are_accepted_every_20_milliseconds_at_most() {
    let mut pair = Pair::new([0; 32]);
    let first = pair.initiate(1, 1);
    let second = pair.initiate(1, 2);
    assert!(pair.respond(&first, 2, 1000).is_ok());
    assert_eq!(pair.respond(&second, 2, 1019).unwrap_err(), HandshakeError::Flood);
    assert!(pair.respond(&second, 2, 1020).is_ok(), "a refused one does not count");
}

#[test]
fn a_response_answers_only_the_outstanding_initiation() {
    let mut pair = Pair::new([0; 32]);
    let first = pair.initiate(1, 1);
    let (to_first, _) = pair.respond(&first, 2, 0).unwrap();
    let second = pair.initiate(1, 2);
    assert_eq!(
        pair.complete(&to_first).unwrap_err(),
        HandshakeError::Decrypt,
        "same index, older initiation"
    );
    let (to_second, _) = pair.respond(&second, 2, 1000).unwrap();
    assert!(pair.complete(&to_second).is_ok());
    pair.initiate(3, 3);
    pair.at_a.clear();
    assert_eq!(pair.at_a.pending_index(), None);
}

/// Both ends begin, and each answers the other `late` milliseconds after: which of them can complete its own.
fn cross(late: u64) -> [bool; 2] {
    let mut pair = Pair::new([0; 32]);
    let from_a = pair.initiate(1, 1);
    let from_b = pair.at_b.initiate(&pair.b, 2, stamp(1), at(0), &mut pair.entropy).unwrap();
    let (to_a, _) = pair.respond(&from_a, 3, late).unwrap();
    let incoming = IncomingInitiation::open(&pair.a, &Initiation::parse(&from_b).unwrap()).unwrap();
    let (to_b, _) = pair.at_a.respond(&pair.a, incoming, 4, at(late), &mut pair.entropy).unwrap();
    let at_b = pair.at_b.complete(&pair.b, &Response::parse(&to_b).unwrap());
    let completed = [pair.complete(&to_a).is_ok(), at_b.is_ok()];
    assert_eq!((pair.at_a.pending_index(), pair.at_b.pending_index()), (None, None));
    completed
}

#[test]
fn of_initiations_that_cross_one_completes_that_of_the_smaller_key() {
    let (a, b) = (identity(1).public.0, identity(2).public.0);
    for late in [0, 30, 4999] {
        assert_eq!(cross(late), [a < b, a > b], "{late} ms");
    }
}

#[test]
fn an_initiation_is_given_up_once_its_answer_may_be_older_than_the_peers_own() {
    assert_eq!(cross(5000), [false, false]);
}

#[test]
fn a_psk_change_takes_effect_with_the_next_handshake_message() {
    let mut pair = Pair::new([1; 32]);
    assert_eq!(pair.run(1), Ok(()));
    pair.at_a.set_psk(SharedSecret([2; 32]));
    assert_eq!(*pair.at_a.psk(), SharedSecret([2; 32]));
    assert_eq!(pair.run(2), Err(HandshakeError::Decrypt));
    // The same initiation serves once the other end has it as well.
    let initiation = pair.initiate(1, 3);
    pair.at_b.set_psk(SharedSecret([2; 32]));
    let (response, _) = pair.respond(&initiation, 2, 3000).unwrap();
    assert!(pair.complete(&response).is_ok());
    assert_eq!(pair.run(4), Ok(()));
}

#[test]
fn a_new_private_key_forgets_the_outstanding_initiation_and_works_at_once() {
    let mut pair = Pair::new([0; 32]);
    let initiation = pair.initiate(1, 1);
    let (response, _) = pair.respond(&initiation, 2, 0).unwrap();
    pair.a = identity(9);
    pair.at_a.identity_changed();
    assert_eq!(pair.complete(&response).unwrap_err(), HandshakeError::Unexpected);
    pair.at_b = Handshake::new(pair.a.public, SharedSecret([0; 32]));
    assert_eq!(pair.run(2), Ok(()));
}

#[test]
fn low_order_keys_are_refused_at_every_step_and_change_nothing() {
    for low in [[0; 32], std::array::from_fn(|i| u8::from(i == 0))] {
        let mut pair = Pair::new([0; 32]);
        // As the peer's static key.
        let mut peer = Handshake::new(PublicKey(low), SharedSecret([0; 32]));
        let refused = peer.initiate(&pair.a, 1, stamp(1), at(0), &mut pair.entropy);
        assert_eq!(refused, Err(HandshakeError::LowOrder));
        assert_eq!(peer.pending_index(), None);
        // As an ephemeral key of an initiation, and of a response.
        let mut initiation = pair.initiate(1, 1);
        let good = initiation.clone();
        initiation.ephemeral = low;
        assert_eq!(pair.open(&initiation).err(), Some(HandshakeError::LowOrder));
        let (mut response, _) = pair.respond(&good, 2, 0).unwrap();
        let genuine = response.clone();
        response.ephemeral = low;
        assert_eq!(pair.complete(&response).unwrap_err(), HandshakeError::LowOrder);
        assert!(pair.complete(&genuine).is_ok());
    }
}

/// Agreements that `work` makes.
fn agreements<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = crate::crypto::x25519::agreements();
    let result = work();
    (result, crate::crypto::x25519::agreements() - before)
}

#[test]
fn whose_initiation_it_is_costs_one_agreement() {
    let mut pair = Pair::new([0; 32]);
    let initiation = pair.initiate(1, 1);
    let (opened, cost) = agreements(|| pair.open(&initiation));
    assert_eq!((opened.unwrap().remote, cost), (pair.a.public, 1));
}

#[test]
fn a_replayed_or_a_forged_initiation_costs_one_agreement() {
    let mut pair = Pair::new([0; 32]);
    let initiation = pair.initiate(1, 1);
    assert!(pair.respond(&initiation, 2, 0).is_ok());
    let (refused, cost) = agreements(|| pair.respond(&initiation, 2, 10_000).unwrap_err());
    assert_eq!((refused, cost), (HandshakeError::Replay, 1));
    // Somebody who knows both public keys, but no private one.
    let mut forger = Handshake::new(pair.b.public, SharedSecret([0; 32]));
    let nobody = Identity { private: PrivateKey::from_bytes([9; 32]), public: pair.a.public };
    let bytes = forger.initiate(&nobody, 1, stamp(2), at(0), &mut pair.entropy).unwrap();
    let forged = Initiation::parse(&bytes).unwrap();
    let (refused, cost) = agreements(|| pair.respond(&forged, 2, 20_000).unwrap_err());
    assert_eq!((refused, cost), (HandshakeError::Decrypt, 1));
}

#[test]
fn peers_are_made_without_an_agreement_and_what_the_static_keys_agree_on_is_kept() {
    let (mut pair, cost) = agreements(|| Pair::new([0; 32]));
    assert_eq!(cost, 0);
    let costs = [1, 2].map(|seconds| agreements(|| pair.initiate(1, seconds)).1);
    assert_eq!(costs, [2, 1]);
}

#[test]
fn an_initiation_that_cannot_be_answered_leaves_no_trace() {
    let mut pair = Pair::new([0; 32]);
    let initiation = pair.initiate(1, 5);
    let mut incoming = pair.open(&initiation).unwrap();
    incoming.ephemeral = PublicKey([0; 32]);
    let refused = pair.at_b.respond(&pair.b, incoming, 2, at(0), &mut pair.entropy).err();
    assert_eq!(refused, Some(HandshakeError::LowOrder));
    assert!(pair.respond(&initiation, 2, 0).is_ok(), "the timestamp was not used up");
}

#[test]
fn what_changed_while_an_answer_was_worked_out_counts() {
    let mut pair = Pair::new([0; 32]);
    let [first, second] = [1, 2].map(|seconds| pair.initiate(1, seconds));
    let begin = |pair: &mut Pair, initiation: &Initiation| {
        let incoming = pair.open(initiation).unwrap();
        pair.at_b.begin_answer(&pair.b, &incoming, 2, at(0), &mut pair.entropy).unwrap().work().unwrap()
    };
    let (older, younger) = (begin(&mut pair, &first), begin(&mut pair, &second));
    assert_eq!(pair.at_b.answered(&identity(9), &younger, at(0)), Err(HandshakeError::Unexpected));
    assert_eq!(pair.at_b.answered(&pair.b, &younger, at(0)), Ok(()));
    assert_eq!(pair.at_b.answered(&pair.b, &older, at(1000)), Err(HandshakeError::Replay));
    assert_eq!(pair.at_b.answered(&pair.b, &younger, at(1000)), Err(HandshakeError::Replay), "twice");
}

#[test]
fn an_initiation_that_was_given_up_while_its_response_was_worked_out_stays_given_up() {
    let mut pair = Pair::new([0; 32]);
    let initiation = pair.initiate(1, 1);
    let (response, _) = pair.respond(&initiation, 2, 0).unwrap();
    let begun = [(); 2].map(|()| pair.at_a.begin_completion(&pair.a, &response).unwrap());
    let [first, second] = begun.map(|completing| completing.work().is_ok());
    assert_eq!((first, pair.at_a.completed(1)), (true, Ok(())));
    assert_eq!((second, pair.at_a.completed(1)), (true, Err(HandshakeError::Unexpected)));
}

#[test]
fn no_two_handshakes_share_keys() {
    let mut pair = Pair::new([0; 32]);
    let mut seen = std::collections::HashSet::new();
    for seconds in 1..10 {
        let initiation = pair.initiate(1, seconds);
        let (_, keys) = pair.respond(&initiation, 2, seconds * 1000).unwrap();
        assert!(seen.insert(keys.send) && seen.insert(keys.receive) && seen.insert(initiation.ephemeral));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 148), receiver: Option<bool>) {
        let mut pair = Pair::new([0; 32]);
        pair.initiate(1, 1);
        let array = |from: usize, len: usize| bytes[from..from + len].to_vec();
        let initiation = Initiation {
            sender: 0,
            ephemeral: array(0, 32).try_into().unwrap(),
            static_sealed: array(32, 48).try_into().unwrap(),
            timestamp_sealed: array(80, 28).try_into().unwrap(),
            mac1: [0; 16],
            mac2: [0; 16],
        };
        prop_assert!(pair.open(&initiation).is_err());
        let response = Response {
            sender: 0,
            receiver: receiver.map_or(1, u32::from),
            ephemeral: array(0, 32).try_into().unwrap(),
            empty_sealed: array(32, 16).try_into().unwrap(),
            mac1: [0; 16],
            mac2: [0; 16],
        };
        prop_assert!(pair.complete(&response).is_err());
        prop_assert_eq!(pair.at_a.pending_index(), Some(1));
    }
}

#[test]
fn a_handshake_is_completed_by_another_process_than_the_one_that_began_it() {
    let mut pair = Pair::new([9; 32]);
    let initiation = pair.initiate(5, 100);
    let (response, theirs) = pair.respond(&initiation, 6, 1).unwrap();
    pair.at_a = Handshake::restore(pair.b.public, &pair.at_a.record(at(20)), at(1_020));
    assert_eq!((pair.at_a.pending_index(), pair.at_a.pending_since()), (Some(5), Some(at(1_000))));
    let ours = pair.complete(&response).unwrap();
    assert_eq!((ours.send, ours.receive, ours.remote_index), (theirs.receive, theirs.send, 6));
}

#[test]
fn another_process_accepts_no_older_initiation_and_the_same_preshared_key() {
    let mut pair = Pair::new([9; 32]);
    let first = pair.initiate(5, 100);
    pair.respond(&first, 6, 1).unwrap();
    pair.at_b = Handshake::restore(pair.a.public, &pair.at_b.record(at(2)), at(2));
    assert_eq!(pair.respond(&first, 7, 1_000).unwrap_err(), HandshakeError::Replay);
    let next = pair.initiate(8, 101);
    assert_eq!(
        pair.respond(&next, 9, 5).unwrap_err(),
        HandshakeError::Flood,
        "it knows when the last one came"
    );
    let (response, theirs) = pair.respond(&next, 9, 1_000).unwrap();
    assert_eq!(pair.complete(&response).unwrap().send, theirs.receive);
}
