use super::*;
use proptest::prelude::*;

const STRIDE: usize = 64;
const SECOND: Duration = Duration::from_secs(1);

fn keys(send: u8, receive: u8, role: Role) -> SessionKeys {
    SessionKeys {
        send: [send; 32],
        receive: [receive; 32],
        local_index: 0x0102_0304,
        remote_index: 0x0506_0708,
        role,
    }
}

fn send_at(counter: u64, role: Role) -> Arc<SendSession> {
    let (send, _) = keys(1, 2, role).into_halves(Instant::START);
    assert_eq!(send.counter.reserve(counter, u64::MAX), Some(0));
    send
}

/// What one end sends the other can open.
fn pair() -> (Arc<SendSession>, Box<RecvSession>) {
    let (send, _) = keys(1, 2, Role::Initiator).into_halves(Instant::START);
    let (_, receive) = keys(2, 1, Role::Responder).into_halves(Instant::START);
    (send, receive)
}

#[test]
fn a_train_round_trips_with_its_headers() {
    let (send, mut receive) = pair();
    let clear: Vec<u8> = (0..STRIDE * 3 - 10).map(|at| at as u8).collect();
    let mut train = clear.clone();
    let first = send.reserve(3).unwrap();
    send.seal_train(first, &mut train, STRIDE);
    for (i, segment) in train.chunks(STRIDE).enumerate() {
        assert_eq!(segment[..8], [4, 0, 0, 0, 8, 7, 6, 5]);
        assert_eq!(segment[8..16], (first + i as u64).to_le_bytes());
    }
    let mut again = train.clone();
    assert_eq!(
        receive.open_train(&mut train, STRIDE),
        Received { fresh: Opened(0b111), replayed: Opened(0) }
    );
    for (before, after) in clear.chunks(STRIDE).zip(train.chunks(STRIDE)) {
        assert_eq!(before[16..before.len() - 16], after[16..before.len() - 16]);
    }
    assert_eq!(
        receive.open_train(&mut again, STRIDE),
        Received { fresh: Opened(0), replayed: Opened(0b111) }
    );
}

#[test]
fn the_window_moves_only_after_the_tag_verified() {
    let (send, mut receive) = pair();
    let mut near = vec![0; STRIDE];
    send.seal_train(0, &mut near, STRIDE);
    let mut far = vec![0; STRIDE];
    send.seal_train(1 << 40, &mut far, STRIDE);
    let mut forged = far.clone();
    forged[STRIDE - 1] ^= 1;
    assert_eq!(receive.open_train(&mut forged, STRIDE), Received::default());
    assert!(receive.open_train(&mut near, STRIDE).fresh.is_ok(0), "still inside the window");
    assert!(receive.open_train(&mut far, STRIDE).fresh.is_ok(0), "the forgery used no counter up");
}

#[test]
fn a_train_that_repeats_a_counter_delivers_it_once() {
    let (send, mut receive) = pair();
    let mut one = vec![0; STRIDE];
    send.seal_train(5, &mut one, STRIDE);
    let mut train = [one.clone(), one.clone(), one].concat();
    let received = receive.open_train(&mut train, STRIDE);
    assert_eq!(received, Received { fresh: Opened(0b001), replayed: Opened(0b110) });
}

#[test]
fn a_counter_at_the_limit_is_not_received() {
    let (send, mut receive) = pair();
    let mut train = vec![0; STRIDE * 2];
    send.seal_train(REJECT_AFTER_MESSAGES - 1, &mut train, STRIDE);
    let received = receive.open_train(&mut train, STRIDE);
    assert_eq!(received, Received { fresh: Opened(0b01), replayed: Opened(0b10) });
}

#[test]
fn counters_end_below_the_limit() {
    let send = send_at(REJECT_AFTER_MESSAGES - 10, Role::Initiator);
    assert_eq!(send.reserve(11), None, "that would reach it");
    assert_eq!(send.reserve(8), Some(REJECT_AFTER_MESSAGES - 10));
    assert_eq!(send.reserve(u64::MAX), None);
    assert!(send.usable(Instant::START));
    assert_eq!(send.reserve(2), Some(REJECT_AFTER_MESSAGES - 2));
    assert_eq!(send.reserve(1), None);
    assert!(!send.usable(Instant::START));
}

#[test]
fn no_counter_is_handed_out_twice_whatever_thread_asks() {
    let send = send_at(0, Role::Initiator);
    let mut blocks: Vec<(u64, u64)> = std::thread::scope(|scope| {
        let ask = |thread: u64| {
            let send = &send;
            move || {
                (0..5000)
                    .map(|i| (i * thread) % 45 + 1)
                    .map(|n| (send.reserve(n).unwrap(), n))
                    .collect::<Vec<_>>()
            }
        };
        let threads: Vec<_> = (1..=4).map(|thread| scope.spawn(ask(thread))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    blocks.sort_unstable();
    assert_eq!(blocks[0].0, 0);
    assert!(blocks.windows(2).all(|pair| pair[0].0 + pair[0].1 == pair[1].0), "no overlap and no gap");
}

#[test]
fn any_number_of_refused_threads_never_carries_the_counter_around() {
    let send = send_at(REJECT_AFTER_MESSAGES - 1000, Role::Initiator);
    let granted: u64 = std::thread::scope(|scope| {
        let ask = || {
            (0..20_000)
                .filter_map(|_| send.reserve(128))
                .map(|first| {
                    assert!((REJECT_AFTER_MESSAGES - 1000..REJECT_AFTER_MESSAGES).contains(&first));
                    128
                })
                .sum::<u64>()
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(granted, 896, "seven blocks of 128 fit into 1000");
    assert_eq!(send.counter.next(), REJECT_AFTER_MESSAGES - 104);
}

#[test]
fn a_session_dies_of_age() {
    let (send, receive) = pair();
    let last = Instant::START + REJECT_AFTER_TIME - Duration::from_nanos(1);
    assert!(send.usable(last) && !receive.expired(last));
    let dead = Instant::START + REJECT_AFTER_TIME;
    assert!(!send.usable(dead) && receive.expired(dead));
}

#[test]
fn only_the_initiator_rekeys_by_time() {
    for (role, rekeys) in [(Role::Initiator, true), (Role::Responder, false)] {
        let (send, receive) = keys(1, 2, role).into_halves(Instant::START);
        assert!(!send.wants_rekey(Instant::START + 119 * SECOND));
        assert_eq!(send.wants_rekey(Instant::START + 120 * SECOND), rekeys);
        assert!(!receive.wants_rekey(Instant::START + 164 * SECOND));
        assert_eq!(receive.wants_rekey(Instant::START + 165 * SECOND), rekeys);
    }
}

#[test]
fn both_roles_rekey_by_messages() {
    for role in [Role::Initiator, Role::Responder] {
        assert!(!send_at(REKEY_AFTER_MESSAGES, role).wants_rekey(Instant::START));
        assert!(send_at(REKEY_AFTER_MESSAGES + 1, role).wants_rekey(Instant::START));
    }
}

#[test]
fn keys_are_not_printed() {
    let shown = format!("{:?}", keys(0xab, 0xcd, Role::Initiator));
    assert!(!shown.contains("171") && !shown.contains("205"), "{shown}");
}

proptest! {
    #[test]
    fn any_bytes_are_refused(mut train: Vec<u8>, stride in 0usize..300) {
        let (_, mut receive) = pair();
        prop_assert_eq!(receive.open_train(&mut train, stride), Received::default());
    }
}

#[test]
fn a_session_goes_on_elsewhere_with_the_next_counter_and_what_it_has_seen() {
    let (send, mut receive) = pair();
    let mut trains: Vec<Vec<u8>> = Vec::new();
    for session in [&send, &SendSession::restore(&send.record(), 1, Instant::START, Role::Initiator).unwrap()]
    {
        let first = session.reserve(3).unwrap();
        let mut train = vec![0; STRIDE * 3];
        session.seal_train(first, &mut train, STRIDE);
        trains.push(train);
    }
    assert_eq!(trains[0], trains[1], "the record is of the moment at which it was made");
    let late = SendSession::restore(&send.record(), 0x0102_0304, Instant::START, Role::Initiator).unwrap();
    assert_eq!(
        (late.reserve(1), late.remote_index(), late.local_index()),
        (Some(3), 0x0506_0708, 0x0102_0304)
    );
    assert_eq!(receive.open_train(&mut trains[0].clone(), STRIDE).fresh.0, 0b111);
    let mut elsewhere = RecvSession::restore(&receive.record(), 7, Instant::START, Role::Responder).unwrap();
    let seen = elsewhere.open_train(&mut trains[0], STRIDE);
    assert_eq!((seen.fresh.0, seen.replayed.0), (0, 0b111));
}

#[test]
fn a_session_that_may_send_no_more_may_not_elsewhere() {
    let send = send_at(crate::noise::REJECT_AFTER_MESSAGES, Role::Initiator);
    let again = SendSession::restore(&send.record(), 1, Instant::START, Role::Initiator).unwrap();
    assert_eq!(again.reserve(1), None);
    let record = send_at(crate::noise::REJECT_AFTER_MESSAGES + 1, Role::Initiator).record();
    assert!(SendSession::restore(&record, 1, Instant::START, Role::Initiator).is_none());
}
