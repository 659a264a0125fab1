//! Trains that workers seal for each other.

use super::*;
use crate::dataplane::assist::{Job, JobKind, JobTask};
use crate::io::Io;
use crate::wire::message::DataHeader;
use proptest::prelude::*;

const ME: &str = "192.168.0.1";
const THEM: &str = "10.0.0.1";
/// Bytes of a super-packet's payload that make a little more than one train.
const LARGE: usize = 64_000;

/// A worker that lets others seal for its peer, and the peer.
fn assisted(links: &Links) -> (Rig, Remote) {
    let mut rig = Rig::of(links, 0);
    rig.add_peers(2);
    let remote = rig.connect(0);
    rig.sent();
    rig.peers[0].seal_assisted.store(true, Relaxed);
    links.assist.engage(1);
    (rig, remote)
}

/// A super-packet whose first sequence number is `number` mebibytes.
fn super_frame(number: u32, payload: usize) -> Vec<u8> {
    let mut frame = tso_frame(ME, THEM, payload, 1380);
    frame[VNET_HDR_LEN + 24..][..4].copy_from_slice(&(number << 20).to_be_bytes());
    frame
}

/// The first counter of each train, the number of its messages, and the sequence number of its first packet.
fn looked_at(remote: &mut Remote, sent: &[SendTrain]) -> Vec<(u64, u64, u32)> {
    let look = |train: &SendTrain| {
        let counter = DataHeader::parse(&train.buf[..train.len]).unwrap().counter;
        let packets = remote.open(train);
        let sequence = u32::from_be_bytes(packets[0][24..28].try_into().unwrap());
        (counter, packets.len() as u64, sequence)
    };
    sent.iter().map(look).collect()
}

#[test]
fn a_thousand_trains_that_two_workers_seal_leave_in_order_each_once() {
    const FRAMES: u32 = 1000;
    let links = Links::new(2).unwrap();
    while_another_helps(&links, || {
        let (mut rig, mut remote) = assisted(&links);
        let (mut next, mut counter, mut sequence, mut packets) = (0, 0, 0, 0);
        loop {
            let end = FRAMES.min(next + 20);
            for number in next..end {
                // Some are so small that they are not shared out.
                let payload = if number % 5 == 0 { 1000 } else { 11_000 + number as usize };
                rig.push_frame(&super_frame(number, payload));
            }
            next = end;
            let turn = rig.turn();
            for (first, count, at) in looked_at(&mut remote, &rig.sent()) {
                assert!(counter == 0 || first == counter, "counters leave in order: {first} after {counter}");
                assert!(at >= sequence, "{at} after {sequence}");
                (counter, sequence) = (first + count, at);
                packets += count;
            }
            if turn == Turn::Idle && next == FRAMES {
                break;
            }
        }
        let expected: u64 = (0..u64::from(FRAMES))
            .map(|number| if number % 5 == 0 { 1 } else { (11_000 + number).div_ceil(1380) })
            .sum();
        assert_eq!(packets, expected, "each segment left once");
        assert!(rig.count(|stats| &stats.tx_shared_out) > 0);
        assert_eq!(rig.io.pool().free(), rig.io.pool().count(), "every buffer came back");
    });
}

/// Has the worker read a super-packet, of whose first train another worker takes hold at once.
fn steal(rig: &mut Rig, number: u32) -> Job {
    let mut sender = rig.worker.sender(&mut rig.io, rig.now);
    sender.frame(&super_frame(number, LARGE));
    let stolen = rig.links.assist.take().unwrap();
    sender.finish();
    stolen
}

#[test]
fn a_train_that_another_worker_has_begun_holds_up_those_behind_it_and_nothing_that_is_received() {
    let links = Links::new(2).unwrap();
    let (mut rig, mut remote) = assisted(&links);
    let stolen = steal(&mut rig, 0);
    rig.push_frame(&super_frame(1, LARGE));
    rig.push_frame(&frame(ME, "10.0.0.9", 9, 16, 0));
    rig.push_train(remote.seal(&[&packet(THEM, ME, 5, 64)]), outer(0));
    assert_eq!(rig.turn(), Turn::Busy);
    assert_eq!((rig.sent().len(), rig.written().len()), (0, 1));
    links.assist.finish(0, JobKind::Seal, stolen.work());
    assert_eq!(rig.turn(), Turn::Idle);
    let seen = looked_at(&mut remote, &rig.sent());
    assert!(seen.len() >= 4 && seen.is_sorted(), "{seen:?}");
    assert!(
        seen.windows(2).all(|pair| pair[0].0 + pair[0].1 == pair[1].0),
        "no counter is left out: {seen:?}"
    );
}

#[test]
fn a_session_ends_only_after_what_it_sealed_has_left() {
    let links = Links::new(2).unwrap();
    let (mut rig, mut remote) = assisted(&links);
    let stolen = steal(&mut rig, 3);
    rig.control(Control::Drop(id(0), index_of(0, 0)));
    turn_while_returned(&mut rig, stolen);
    assert_eq!(looked_at(&mut remote, &rig.sent())[0].2, 3 << 20);
}

#[test]
fn nothing_is_shared_out_for_a_while_after_a_train_that_was_sealed_late() {
    let links = Links::new(2).unwrap();
    let (mut rig, _remote) = assisted(&links);
    let stolen = steal(&mut rig, 0);
    rig.pass(Duration::from_millis(1));
    rig.turn();
    assert_eq!(rig.count(|stats| &stats.tx_assist_stalls), 1);
    links.assist.finish(0, JobKind::Seal, stolen.work());
    rig.turn();
    let shared_out = |rig: &mut Rig| {
        let before = rig.count(|stats| &stats.tx_shared_out);
        rig.push_frame(&super_frame(1, LARGE));
        rig.turn();
        rig.count(|stats| &stats.tx_shared_out) - before
    };
    assert_eq!(shared_out(&mut rig), 0);
    rig.pass(Duration::from_millis(100));
    assert_eq!(shared_out(&mut rig), 1);
}

#[test]
fn nothing_is_lost_where_nobody_takes_trains_over() {
    let links = Links::new(2).unwrap();
    let (mut rig, mut remote) = assisted(&links);
    // The queue is full of what another worker gave.
    let mut other = Rig::of(&links, 1);
    let session = rig.session(1, Role::Initiator).0;
    while let Some(buf) = other.io.alloc() {
        let task = JobTask::Seal(Arc::clone(&session), 0);
        let job = Job { giver: 1, number: 0, buf: buf.lend(), run: 0..0, stride: 1, task };
        if links.assist.give(job).is_err() {
            break;
        }
    }
    for number in 0..40 {
        rig.push_frame(&super_frame(number, LARGE));
    }
    while rig.turn() == Turn::Busy {}
    let seen = looked_at(&mut remote, &rig.sent());
    assert_eq!(seen.iter().map(|(_, count, _)| count).sum::<u64>(), 40 * LARGE.div_ceil(1380) as u64);
    assert!(seen.is_sorted());
}

#[test]
fn a_worker_without_buffers_waits_for_those_that_others_have() {
    let links = Links::new(2).unwrap();
    let (mut rig, mut remote) = assisted(&links);
    let stolen = steal(&mut rig, 3);
    rig.push_frame(&super_frame(4, LARGE));
    let taken: Vec<_> = std::iter::from_fn(|| rig.io.alloc()).collect();
    turn_while_returned(&mut rig, stolen);
    assert_eq!(looked_at(&mut remote, &rig.sent())[0].2, 3 << 20, "the turn did not end before");
    // The kernel would have given back what was sent; here it is kept.
    assert_eq!(rig.count(|stats| &stats.tx_no_buffer), LARGE.div_ceil(1380) as u64);
    drop(taken);
}

/// What a worker sends of these super-packets and small packets, byte by byte.
fn outcome(sizes: &[usize], shared: bool) -> Vec<(Vec<u8>, usize)> {
    let links = Links::new(2).unwrap();
    let (mut rig, _remote) = assisted(&links);
    rig.peers[0].seal_assisted.store(shared, Relaxed);
    for (number, &size) in (0..).zip(sizes) {
        match size {
            0..1000 => rig.push_frame(&frame(ME, THEM, number, 16 + size, 0)),
            _ => rig.push_frame(&super_frame(number, size)),
        }
        if number % 3 == 2 {
            while rig.turn() == Turn::Busy {}
        }
    }
    while rig.turn() == Turn::Busy {}
    rig.sent().iter().map(|train| (train.buf[..train.len].to_vec(), train.stride)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn trains_that_are_shared_out_leave_as_others_do(
        sizes in prop::collection::vec(prop_oneof![16usize..1000, 1000usize..65_000], 1..40),
    ) {
        prop_assert_eq!(outcome(&sizes, true), outcome(&sizes, false));
    }
}
