//! Between the worker and the slow path.

use super::*;
use crate::crypto::testing::Seeded;
use crate::crypto::x25519::PublicKey;
use crate::dataplane::handshakes::{HANDSHAKE_QUEUE, UNDER_LOAD};
use crate::dataplane::{CONTROL_QUEUE, HandshakeDatagram, NOTICE_QUEUE};
use crate::io::{Notice, SourceGone};
use crate::noise::cookie::{CookieJar, GateKeys};
use crate::offload::coalesce::RunKind;
use crate::wire::message::{COOKIE_REPLY_LEN, CookieReply, INITIATION_LEN, RESPONSE_LEN};

const ME: &str = "192.168.0.1";
const IDENTITY: PublicKey = PublicKey([9; 32]);

/// A handshake message of the given type with a valid MAC1 for [`IDENTITY`].
fn handshake(kind: u8, len: usize) -> Vec<u8> {
    let mut message = vec![0x5a; len];
    message[..4].copy_from_slice(&[kind, 0, 0, 0]);
    CookieJar::new(&IDENTITY).seal(&mut message, START);
    message
}

/// The control that makes the worker [`IDENTITY`]'s.
fn identity() -> Control {
    Control::Identity(Some(Box::new(GateKeys::new(&IDENTITY, &mut Seeded(3)))))
}

fn lone(message: &[u8]) -> (Vec<u8>, usize) {
    (message.to_vec(), message.len())
}

#[test]
fn handshake_messages_reach_the_slow_path_only_with_a_valid_mac1() {
    let mut rig = Rig::new();
    let initiation = handshake(1, INITIATION_LEN);
    rig.push_train(lone(&initiation), outer(1));
    rig.turn();
    assert_eq!(rig.count(|stats| &stats.rx_no_identity), 1);
    rig.control(identity());
    rig.push_train(lone(&initiation), outer(1));
    rig.push_train(lone(&handshake(2, RESPONSE_LEN)), outer(2));
    rig.push_train(lone(&handshake(3, COOKIE_REPLY_LEN)), outer(3));
    let mut forged = initiation.clone();
    forged[40] ^= 1;
    rig.push_train(lone(&forged), outer(4));
    rig.turn();
    assert_eq!(rig.count(|stats| &stats.rx_bad_mac1), 1);
    assert_eq!(rig.count(|stats| &stats.rx_handshakes), 3);
    let taken: Vec<_> = std::iter::from_fn(|| rig.links.slow.handshakes.pop()).collect();
    assert_eq!(taken.iter().map(|message| message.from).collect::<Vec<_>>(), [outer(1), outer(2), outer(3)]);
    assert_eq!(taken[0].datagram.bytes(), initiation);
    assert_eq!(taken[0].to, Some(LOCAL));
    rig.control(Control::Identity(None));
    rig.push_train(lone(&initiation), outer(1));
    rig.turn();
    assert_eq!(rig.links.slow.handshakes.waiting(), 0);
}

/// Handshake messages in a train: as many answers find room at once.
const BURST: usize = 16;

/// Where a datagram went, how, and what was in it.
type Answer = (Endpoint, u8, Vec<u8>);

/// Floods a worker with `count` trains of [`BURST`] times `message`, data in between, which must go on; returns the datagrams that
/// answer the flood.
fn flood(rig: &mut Rig, remote: &mut Remote, message: &[u8], count: usize) -> Vec<Answer> {
    let (burst, mut answers) = (message.repeat(BURST), Vec::new());
    for i in 0..count {
        rig.push_train((burst.clone(), message.len()), outer(9));
        if i % 10 == 0 {
            let train = remote.seal(&[&packet("10.0.0.1", ME, i as u32, 16)]);
            rig.push_train(train, outer(0));
            rig.push_frame(&frame(ME, "10.0.0.1", i as u32, 16, 0));
        }
        rig.turn();
        let (flooder, mut sent): (Vec<_>, Vec<_>) =
            rig.sent().into_iter().partition(|train| train.to.addr == outer(9));
        answers.extend(flooder.iter().map(|train| (train.to, train.tos, train.buf[..train.len].to_vec())));
        if i % 10 == 0 {
            assert_eq!(rig.written().len(), 1);
            assert_eq!(tag(&remote.open(&sent.remove(0))[0]), i as u32);
        }
        assert!(sent.is_empty());
    }
    answers
}

#[test]
fn a_flood_of_handshakes_is_answered_with_cookies_and_ends_at_the_queue_and_data_goes_on() {
    let mut rig = Rig::with_peers(1);
    let mut remote = rig.connect(0);
    rig.control(identity());
    let mut message = vec![0x5a; INITIATION_LEN];
    message[..4].copy_from_slice(&[1, 0, 0, 0]);
    let mut jar = CookieJar::new(&IDENTITY);
    jar.seal(&mut message, START);
    // Without cookies: as many are taken as an idle device works off soon, and no more.
    let answers = flood(&mut rig, &mut remote, &message, 80);
    assert_eq!(rig.links.slow.handshakes.waiting(), UNDER_LOAD);
    let withheld = rig.count(|stats| &stats.tx_cookies_withheld);
    assert_eq!(answers.len() as u64 + withheld, (80 * BURST - UNDER_LOAD) as u64);
    assert_eq!(rig.count(|stats| &stats.tx_cookies), answers.len() as u64);
    let (to, tos, reply) = &answers[0];
    assert_eq!((*to, *tos), (Endpoint { addr: outer(9), from: Some(LOCAL) }, 0));
    // With one: up to the queue's end.
    assert!(jar.accept(&CookieReply::parse(reply).unwrap(), START));
    jar.seal(&mut message, START);
    let excess = 10;
    let count = HANDSHAKE_QUEUE / BURST + excess;
    assert!(flood(&mut rig, &mut remote, &message, count).is_empty());
    assert_eq!(rig.links.slow.handshakes.waiting(), HANDSHAKE_QUEUE + UNDER_LOAD);
    assert_eq!(rig.count(|stats| &stats.rx_handshakes_dropped), (BURST * excess) as u64);
    let taken: Vec<_> = std::iter::from_fn(|| rig.links.slow.handshakes.pop()).collect();
    let (proven, others) = taken.split_at(HANDSHAKE_QUEUE);
    assert!(proven.iter().all(|message| message.proven), "they are not kept waiting by the others");
    assert_eq!((others.len(), others.iter().any(|message| message.proven)), (UNDER_LOAD, false));
}

#[test]
fn load_that_one_worker_sees_is_all_workers_and_is_remembered_for_a_second() {
    let mut rig = Rig::new();
    rig.control(identity());
    let message = handshake(1, INITIATION_LEN);
    // Another worker saw it, and the slow path has worked it off since.
    rig.links.slow.loaded_at.store(rig.now.as_nanos(), Relaxed);
    for (after, cookies) in [(999, 1), (1000, 1)] {
        let now = rig.now;
        rig.now = now + Duration::from_millis(after);
        rig.push_train(lone(&message), outer(1));
        rig.turn();
        assert_eq!(rig.count(|stats| &stats.tx_cookies), cookies, "after {after} ms");
        rig.now = now;
    }
    assert_eq!(rig.links.slow.handshakes.waiting(), 1);
}

#[test]
fn a_handshake_message_in_a_data_train_does_not_disturb_it() {
    let mut rig = Rig::with_peers(1);
    let remote = rig.connect(0);
    rig.control(identity());
    // A data message as long as an initiation.
    let text = {
        let mut text = packet("10.0.0.1", ME, 1, 68);
        text.resize(INITIATION_LEN - 32, 0);
        text
    };
    let mut bytes = remote.seal(&[&text]).0;
    bytes.extend(handshake(1, INITIATION_LEN));
    bytes.extend(remote.seal(&[&text]).0);
    rig.push_train((bytes, INITIATION_LEN), outer(0));
    rig.turn();
    assert_eq!(rig.count(|stats| &stats.rx_packets), 2);
    assert_eq!(rig.links.slow.handshakes.waiting(), 1);
}

#[test]
fn handshake_messages_of_the_slow_path_are_sent_as_they_are() {
    let mut rig = Rig::new();
    let message = handshake(1, INITIATION_LEN);
    let to = Endpoint { addr: outer(3), from: Some(LOCAL) };
    rig.control(Control::Send(3, to, HandshakeDatagram::new(&message).unwrap()));
    rig.turn();
    let sent = rig.sent();
    assert_eq!(sent[0].buf[..sent[0].len], message);
    assert_eq!((sent[0].to, sent[0].stride), (to, INITIATION_LEN));
    assert_eq!(sent[0].tos, 0x88, "as the kernel marks them");
    assert_eq!(rig.count(|stats| &stats.tx_handshakes), 1);
}

#[test]
fn a_keepalive_is_an_empty_message_and_staged_packets_go_instead() {
    let mut rig = Rig::with_peers(1);
    rig.keepalive(0);
    rig.turn();
    assert!(rig.sent().is_empty());
    let mut remote = rig.connect(0);
    rig.keepalive(0);
    rig.turn();
    let sent = rig.sent();
    assert_eq!((sent.len(), sent[0].len), (1, 32));
    assert_eq!(remote.open(&sent[0]), [Vec::<u8>::new()]);
    let activity = rig.peers[0].activity();
    assert_eq!(activity.last_authenticated, Some(START));
    assert_eq!(activity.unanswered_since, None, "a keepalive expects no answer");
    assert_eq!(rig.count(|stats| &stats.tx_keepalives), 1);

    rig.control(Control::Drop(id(0), index_of(0, 0)));
    rig.push_frame(&frame(ME, "10.0.0.1", 8, 16, 0));
    rig.turn();
    let mut remote = rig.connect(0);
    rig.keepalive(0);
    rig.turn();
    let sent = rig.sent();
    assert_eq!(tag(&remote.open(&sent[0])[0]), 8);
    assert_eq!(
        rig.count(|stats| &stats.tx_keepalives),
        2,
        "one for each that was asked for with nothing staged"
    );
}

#[test]
fn giving_up_drops_what_is_staged_and_tells_a_few_senders() {
    let mut rig = Rig::with_peers(1);
    for i in 0..20 {
        rig.push_frame(&frame(ME, "10.0.0.1", i, 16, 0));
    }
    rig.turn();
    assert!(rig.written().is_empty());
    rig.control(Control::PurgeStaged(id(0)));
    rig.turn();
    assert_eq!(rig.count(|stats| &stats.tx_staged_dropped), 20);
    let answers = rig.written().len();
    assert!((1..20).contains(&answers), "{answers}");
    rig.connect(0);
    assert!(rig.sent().is_empty());
}

#[test]
fn activity_is_told_once_until_the_slow_path_disarms() {
    let mut rig = Rig::with_peers(1);
    rig.connect(0);
    let told = |rig: &mut Rig| {
        rig.push_frame(&frame(ME, "10.0.0.1", 0, 16, 0));
        rig.turn();
        rig.events().iter().filter(|event| **event == Event::Activity(id(0))).count()
    };
    assert_eq!(told(&mut rig), 1);
    assert_eq!(told(&mut rig), 0);
    rig.pass(Duration::from_secs(1));
    rig.peers[0].armed.store(false, Relaxed);
    assert_eq!(told(&mut rig), 1);
}

#[test]
fn a_source_address_that_went_away_is_released_and_told() {
    let mut rig = Rig::with_peers(2);
    let mut remote = rig.connect(0);
    let sticky = Endpoint { addr: outer(0), from: Some(LOCAL) };
    rig.set_endpoint(0, Some(sticky));
    while rig.links.slow.events.push(Event::Activity(id(7))).is_ok() {}
    rig.io.sources_gone.push_back(SourceGone { peer: 0, endpoint: sticky });
    rig.turn();
    rig.events();
    rig.io.sources_gone.push_back(SourceGone { peer: 0, endpoint: sticky });
    rig.push_frame(&frame(ME, "10.0.0.1", 1, 16, 0));
    rig.turn();
    let sent = rig.sent();
    assert_eq!(sent[0].to, sticky, "nobody could be told before");
    assert_eq!(remote.open(&sent[0]).len(), 1);
    let told = rig.events().into_iter().filter(|event| *event == Event::SourceGone(id(0))).count();
    assert_eq!(told, 1);
    rig.push_frame(&frame(ME, "10.0.0.1", 2, 16, 0));
    rig.turn();
    assert_eq!(rig.sent()[0].to, Endpoint { addr: outer(0), from: None });
    assert_eq!(rig.count(|stats| &stats.tx_source_gone), 1);
}

#[test]
fn what_the_backend_notices_is_passed_on_for_the_log_within_a_bound() {
    let mut rig = Rig::new();
    rig.io.notices.extend((0..NOTICE_QUEUE + 2).map(|_| Notice::TunOffloadOff { kind: RunKind::Tcp }));
    rig.turn();
    assert_eq!(rig.links.slow.notices.pop(), Some((0, Notice::TunOffloadOff { kind: RunKind::Tcp })));
    assert_eq!(rig.count(|stats| &stats.notices_dropped), 2);
}

#[test]
fn super_packets_that_the_device_refuses_are_no_longer_built() {
    let mut rig = Rig::with_peers(1);
    let remote = rig.connect(0);
    let runs = |rig: &mut Rig| {
        let packets: Vec<_> = (0..4).map(|i| packet("10.0.0.1", ME, i, 100)).collect();
        let train = remote.seal(&packets.iter().map(Vec::as_slice).collect::<Vec<_>>());
        rig.push_train(train, outer(0));
        rig.turn();
        rig.written().len()
    };
    assert_eq!(runs(&mut rig), 1);
    rig.io.refuses.udp = true;
    rig.turn();
    assert_eq!(runs(&mut rig), 4);
}

#[test]
fn controls_are_carried_out_in_order_within_a_budget() {
    let mut rig = Rig::with_peers(1);
    let counts = |rig: &Rig| [rig.count(|stats| &stats.controls), rig.count(|stats| &stats.turns)];
    let before = counts(&rig);
    for _ in 0..CONTROL_QUEUE / 2 {
        rig.control(Control::Mtu(1280));
    }
    rig.control(Control::Rebind(None));
    assert_eq!(rig.turn(), Turn::Busy);
    assert_eq!(rig.io.rebinds, 0);
    let mut turns = 2;
    while rig.turn() == Turn::Busy {
        turns += 1;
    }
    assert_eq!(rig.io.rebinds, 1);
    assert_eq!(counts(&rig), [before[0] + CONTROL_QUEUE as u64 / 2 + 1, before[1] + turns]);
}

#[test]
fn forgetting_a_receiving_session_leaves_the_others() {
    let mut rig = Rig::with_peers(2);
    let (first, second) = (rig.connect(0), rig.connect(1));
    rig.control(Control::Drop(id(0), index_of(0, 0)));
    rig.control(Control::Drop(id(0), 0xdead_be00));
    let train = first.seal(&[&packet("10.0.0.1", ME, 1, 16)]);
    rig.push_train(train, outer(0));
    let train = second.seal(&[&packet("10.1.0.1", ME, 2, 16)]);
    rig.push_train(train, outer(1));
    rig.turn();
    let written = rig.written();
    assert_eq!(written.len(), 1);
    assert_eq!(tag(&written[0]), 2);
}

#[test]
fn the_mtu_bounds_the_padding() {
    let mut rig = Rig::with_peers(1);
    let mut remote = rig.connect(0);
    for (mtu, padded) in [(1420, 128), (117, 117), (0, 117)] {
        rig.control(Control::Mtu(mtu));
        rig.push_frame(&frame(ME, "10.0.0.1", 8, 117 - 28, 0));
        rig.turn();
        let sent = rig.sent();
        let expected = if mtu == 0 { 128 } else { padded };
        assert_eq!(remote.open(&sent[0])[0].len(), expected, "MTU {mtu}");
    }
}

#[test]
fn a_routes_own_mtu_bounds_the_padding_of_what_goes_there() {
    let mut rig = Rig::with_peers(1);
    let mut remote = rig.connect(0);
    let mtus = RouteTable::build([(prefix("10.0.1.0", 24), 117), (prefix("10.0.0.0", 16), 9000)]);
    rig.control(Control::RouteMtus(Some(Arc::new(mtus))));
    let mut padded = |rig: &mut Rig, to: &str, len: usize| {
        rig.push_frame(&frame(ME, to, 8, len - 28, 0));
        rig.turn();
        let sent = rig.sent();
        remote.open(&sent[0])[0].len()
    };
    assert_eq!(padded(&mut rig, "10.0.1.1", 117), 117);
    assert_eq!(padded(&mut rig, "10.0.1.1", 90), 96);
    assert_eq!(padded(&mut rig, "10.0.1.1", 118), 128, "by another route");
    assert_eq!(padded(&mut rig, "10.0.2.1", 117), 128);
    assert_eq!(padded(&mut rig, "10.0.2.1", 1420), 1420, "the interface's is less");
    rig.control(Control::RouteMtus(None));
    assert_eq!(padded(&mut rig, "10.0.1.1", 117), 128);
}

#[test]
fn stop_ends_the_run_after_what_came_before_it() {
    let rig = Rig::new();
    let Rig { worker, mut io, links, .. } = rig;
    let message = HandshakeDatagram::new(&[1, 2, 3]).unwrap();
    let inbox = &links.workers[0].controls;
    assert!(inbox.push(Control::Send(0, Endpoint { addr: outer(1), from: None }, message)).is_ok());
    assert!(inbox.push(Control::Stop).is_ok());
    assert!(worker.run(&mut io).is_ok());
    assert!(io.take_sent().is_some());
}

#[test]
fn the_slow_path_hears_when_the_tun_device_is_gone() {
    let rig = Rig::new();
    let Rig { worker, mut io, links, .. } = rig;
    io.gone = true;
    assert!(worker.run(&mut io).is_err());
    assert!(matches!(links.slow.events.pop(), Some(Event::WorkerEnded(0, _))));
}
