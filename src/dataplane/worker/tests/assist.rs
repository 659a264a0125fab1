//! Trains that workers open for each other.

use super::*;
use crate::dataplane::assist::{Job, JobKind};
use crate::io::Io;
use crate::sys::calls;
use proptest::prelude::*;
use std::os::fd::AsFd;

const ME: &str = "192.168.0.1";

/// An owner whose peer's trains are shared out, and the peer.
fn assisted(links: &Links) -> (Rig, Remote) {
    let mut rig = Rig::of(links, 0);
    rig.add_peers(2);
    let remote = rig.connect(0);
    rig.peers[0].assisted.store(true, Relaxed);
    links.assist.engage(1);
    (rig, remote)
}

/// The tags of what was written, each in a packet of its own.
fn tags(rig: &mut Rig) -> Vec<u32> {
    rig.written().iter().map(|packet| tag(packet)).collect()
}

fn tagged(tag: u32) -> Vec<u8> {
    // Another length each time, so that none joins another.
    packet("10.0.0.1", ME, tag, 16 + 16 * (tag % 40) as usize)
}

#[test]
fn a_thousand_trains_that_two_workers_open_arrive_in_order_each_once() {
    const TRAINS: u32 = 1000;
    let links = Links::new(2).unwrap();
    while_another_helps(&links, || {
        let (mut rig, remote) = assisted(&links);
        let (mut next, mut seen) = (0, Vec::new());
        while seen.len() < TRAINS as usize {
            for _ in 0..20 {
                if next < TRAINS {
                    let train = remote.seal(&[&tagged(next)]);
                    rig.push_train(train.clone(), outer(0));
                    // Somebody on the way copies some of it.
                    if next % 3 == 0 {
                        rig.push_train(train, outer(0));
                    }
                    next += 1;
                }
            }
            rig.turn();
            seen.extend(tags(&mut rig));
        }
        // The copy of the last one may still be under way.
        while rig.turn() == Turn::Busy {}
        assert_eq!(seen, (0..TRAINS).collect::<Vec<_>>());
        assert_eq!(rig.count(|stats| &stats.rx_replayed), u64::from(TRAINS.div_ceil(3)));
        assert!(rig.count(|stats| &stats.rx_shared_out) > 0);
        assert_eq!(rig.io.pool().free(), rig.io.pool().count(), "every buffer came back");
    });
}

#[test]
fn a_train_that_another_worker_has_begun_holds_up_those_behind_it_and_nothing_else() {
    let links = Links::new(2).unwrap();
    let (mut rig, remote) = assisted(&links);
    let other = rig.connect(1);
    // The helper takes the first before the owner gets to it.
    let stolen = steal(&mut rig, &remote, 0);
    for tag in 1..4 {
        let train = remote.seal(&[&tagged(tag)]);
        rig.push_train(train, outer(0));
    }
    rig.push_frame(&frame(ME, "10.1.0.1", 9, 16, 0));
    assert_eq!(rig.turn(), Turn::Busy);
    assert_eq!(tags(&mut rig), [0; 0]);
    assert_eq!(rig.sent().len(), 1, "what is sent does not wait");
    drop(other);
    links.assist.finish(0, JobKind::Open, stolen.work());
    rig.turn();
    assert_eq!(tags(&mut rig), [0, 1, 2, 3]);
    assert_eq!(rig.turn(), Turn::Idle);
}

/// Has the peer send a train, of which another worker takes hold at once.
fn steal(rig: &mut Rig, remote: &Remote, tag: u32) -> Job {
    let train = remote.seal(&[&tagged(tag)]);
    rig.push_train(train, outer(0));
    let train = rig.io.recv_udp().unwrap();
    rig.worker.receiver(&mut rig.io, rig.now).train(train);
    rig.links.assist.take().unwrap()
}

#[test]
fn a_session_ends_only_after_what_came_on_it_was_released() {
    let links = Links::new(2).unwrap();
    let (mut rig, remote) = assisted(&links);
    let stolen = steal(&mut rig, &remote, 7);
    rig.control(Control::Drop(id(0), index_of(0, 0)));
    turn_while_returned(&mut rig, stolen);
    assert_eq!(tags(&mut rig), [7]);
}

#[test]
fn nothing_is_shared_out_for_a_while_after_a_train_that_returned_late() {
    let links = Links::new(2).unwrap();
    let (mut rig, remote) = assisted(&links);
    let stolen = steal(&mut rig, &remote, 0);
    rig.turn();
    rig.pass(Duration::from_millis(1));
    rig.turn();
    assert_eq!(rig.count(|stats| &stats.rx_assist_stalls), 1);
    links.assist.finish(0, JobKind::Open, stolen.work());
    rig.turn();
    let shared_out = |rig: &mut Rig, tag| {
        let before = rig.count(|stats| &stats.rx_shared_out);
        rig.push_train(remote.seal(&[&tagged(tag)]), outer(0));
        rig.turn();
        rig.count(|stats| &stats.rx_shared_out) - before
    };
    assert_eq!(shared_out(&mut rig, 1), 0);
    rig.pass(Duration::from_millis(100));
    assert_eq!(shared_out(&mut rig, 2), 1);
    assert_eq!(tags(&mut rig), [0, 1, 2]);
}

#[test]
fn a_worker_that_is_about_to_sleep_sees_a_train_or_is_rung() {
    let links = Links::new(2).unwrap();
    let (mut rig, remote) = assisted(&links);
    assert!(links.assist.may_sleep(1));
    let first = steal(&mut rig, &remote, 0);
    let [second, third] = [1, 2].map(|tag| steal(&mut rig, &remote, tag));
    for job in [second, third] {
        assert!(links.assist.give(job).is_ok());
    }
    links.assist.ring(0);
    assert!(!links.assist.may_sleep(1), "there is something to do");
    links.assist.finish(0, JobKind::Open, first.work());
    rig.turn();
    assert_eq!(tags(&mut rig), [0, 1, 2]);
    assert!(links.assist.may_sleep(1));
}

#[test]
fn workers_that_fell_asleep_before_any_peer_was_shared_are_rung_once_one_is() {
    let links = Links::new(2).unwrap();
    let rung = || [0, 1].map(|id| calls::read(links.workers[id].waker.as_fd(), &mut [0; 8]).is_ok());
    links.assist.engage(0);
    assert_eq!(rung(), [false; 2]);
    links.assist.engage(1);
    assert_eq!(rung(), [true; 2], "there is no note that they sleep");
    links.assist.engage(2);
    assert_eq!(rung(), [false; 2], "they know");
}

/// What arrives: a train of a peer's packets, a damaged one, one of two peers, or the last one again.
#[derive(Clone, Copy, Debug)]
enum Arrival {
    Good(u8),
    Damaged,
    Mixed,
    Again,
    Keepalive,
}

fn arrivals() -> impl Strategy<Value = Vec<Arrival>> {
    let one = prop_oneof![
        4 => (1..6_u8).prop_map(Arrival::Good),
        1 => Just(Arrival::Damaged),
        1 => Just(Arrival::Mixed),
        1 => Just(Arrival::Again),
        1 => Just(Arrival::Keepalive),
    ];
    prop::collection::vec(one, 1..60)
}

/// What a worker writes and counts of these arrivals, where trains are shared out or not.
fn outcome(arrivals: &[Arrival], shared: bool) -> (Vec<Vec<u8>>, [u64; 6]) {
    let links = Links::new(2).unwrap();
    let (mut rig, remote) = assisted(&links);
    let other = rig.connect(1);
    rig.peers[0].assisted.store(shared, Relaxed);
    let (mut tag, mut last) = (0, None);
    let mut written = Vec::new();
    for (number, arrival) in arrivals.iter().enumerate() {
        let mut next = || {
            tag += 1;
            packet("10.0.0.1", ME, tag, 64)
        };
        let train = match arrival {
            Arrival::Good(count) => {
                let packets: Vec<_> = (0..*count).map(|_| next()).collect();
                remote.seal(&packets.iter().map(Vec::as_slice).collect::<Vec<_>>())
            }
            Arrival::Damaged => {
                let (mut bytes, stride) = remote.seal(&[&next(), &next()]);
                bytes[stride / 2] ^= 1;
                (bytes, stride)
            }
            Arrival::Mixed => {
                let (mut bytes, stride) = remote.seal(&[&next()]);
                bytes.extend(other.seal(&[&packet("10.1.0.1", ME, 1000 + tag, 64)]).0);
                (bytes, stride)
            }
            Arrival::Again => last.clone().unwrap_or_else(|| remote.seal(&[&next()])),
            Arrival::Keepalive => remote.seal(&[&[]]),
        };
        last = Some(train.clone());
        rig.push_train(train, outer(0));
        if number % 7 == 6 {
            rig.turn();
            written.extend(rig.written());
        }
    }
    while rig.turn() == Turn::Busy {}
    written.extend(rig.written());
    let stats = rig.worker.stats();
    let counts = [
        &stats.rx_packets,
        &stats.rx_replayed,
        &stats.rx_decrypt_failed,
        &stats.rx_keepalives,
        &stats.rx_super_packets,
        &stats.rx_owned,
    ];
    (written, counts.map(|counter| counter.load(Relaxed)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn trains_that_are_shared_out_come_to_the_same_as_others(arrivals in arrivals()) {
        prop_assert_eq!(outcome(&arrivals, true), outcome(&arrivals, false));
    }
}
