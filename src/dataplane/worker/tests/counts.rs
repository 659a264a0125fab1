//! Counters that no other test of the worker comes by, each with what moves it.

use super::*;
use crate::dataplane::stats::WorkerStats;
use crate::io::Io;
use crate::noise::REJECT_AFTER_MESSAGES;
use crate::offload::coalesce::{TunnelKind, TunnelPorts};
use crate::offload::testing::{Around, Spec, pattern};
use crate::wire::vnet::F_NEEDS_CSUM;

const ME: &str = "192.168.0.1";

/// A packet as a peer pads it.
fn padded(mut packet: Vec<u8>) -> Vec<u8> {
    packet.resize(packet.len().next_multiple_of(16), 0);
    packet
}

#[test]
fn frames_that_ask_for_what_makes_no_sense_are_told_apart() {
    let mut rig = Rig::with_peers(1);
    rig.connect(0);
    let changed = |at: usize, bytes: &[u8]| {
        let mut frame = tso_frame(ME, "10.0.0.1", 3000, 1000);
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    };
    // The fields of the virtio-net header: flags, type, length of the headers, segment size, start of the checksum.
    rig.push_frame(&changed(1, &[4])); // TCP over IPv6
    rig.push_frame(&changed(4, &[0, 0]));
    let mut plain = frame(ME, "10.0.0.1", 0, 64, 0);
    plain[0] = F_NEEDS_CSUM;
    plain[6..8].copy_from_slice(&5000_u16.to_le_bytes());
    rig.push_frame(&plain);
    rig.turn();
    assert!(rig.sent().is_empty());
    let stats = rig.worker.stats();
    let counters = [&stats.tx_bad_transport, &stats.tx_bad_gso_size, &stats.tx_bad_checksum];
    assert_eq!(counters.map(|counter| counter.load(Relaxed)), [1; 3]);
}

#[test]
fn packets_of_a_train_for_which_no_counters_are_left_are_dropped_and_a_handshake_is_wanted() {
    let mut rig = Rig::with_peers(1);
    let (send, receive, _remote) = rig.session(0, Role::Initiator);
    assert_eq!(send.reserve(REJECT_AFTER_MESSAGES - 2), Some(0));
    rig.install(0, receive, send);
    rig.turn();
    for tag in 0..3 {
        rig.push_frame(&frame(ME, "10.0.0.1", tag, 16, 0));
    }
    rig.turn();
    assert!(rig.sent().is_empty());
    assert_eq!(rig.count(|stats| &stats.tx_no_session), 3);
    assert!(rig.events().contains(&Event::NeedHandshake(id(0))));
}

#[test]
fn tcp_in_a_tunnel_is_written_as_one_super_packet() {
    let mut rig = Rig::with_peers(1);
    let remote = rig.connect(0);
    let (around, mut inner) =
        (Around::new(TunnelKind::Vxlan, false, true), Spec::new(false, false, pattern(1000)));
    let mut next = |index: u16| {
        let packet = padded(around.packet(index, &inner.packet()));
        (inner.sequence, inner.id) = (inner.sequence + 1000, inner.id + 1);
        packet
    };
    let packets: Vec<_> = (0..3).map(&mut next).collect();
    let texts: Vec<_> = packets.iter().map(Vec::as_slice).collect();
    let counts = |rig: &Rig| {
        let stats = rig.worker.stats();
        let counters = [&stats.rx_runs, &stats.rx_super_packets, &stats.rx_tunnel_super_packets];
        counters.map(|counter| counter.load(Relaxed))
    };
    rig.push_train(remote.seal(&texts), outer(0));
    rig.turn();
    assert_eq!(counts(&rig)[2], 0, "at a port of no tunnel");
    let mut ports = TunnelPorts::default();
    ports.add(TunnelKind::Vxlan, 40_000);
    rig.control(Control::Tunnels(ports));
    let before = counts(&rig);
    rig.push_train(remote.seal(&texts), outer(0));
    rig.turn();
    assert_eq!(counts(&rig), before.map(|count| count + 1));
}

/// A packet, and its successor with something changed.
fn two(change: fn(&mut Spec)) -> Vec<Vec<u8>> {
    let first = Spec::new(false, false, pattern(100));
    let mut second = Spec { id: first.id + 1, sequence: first.sequence + 100, ..first.clone() };
    change(&mut second);
    vec![first.packet(), second.packet()]
}

#[test]
fn why_a_packet_joined_no_super_packet_is_counted() {
    type Counter = fn(&WorkerStats) -> &AtomicU64;
    let mut damaged = two(|_| ());
    *damaged[1].last_mut().unwrap() ^= 1;
    let mut pings = two(|_| ());
    pings.iter_mut().for_each(|packet| packet[9] = 1);
    // One more than a super-packet may hold; the kernel makes no such train of what arrives.
    let many = (0..65).map(|n| {
        let one = Spec::new(false, false, pattern(100));
        Spec { id: one.id + n, sequence: one.sequence + 100 * u32::from(n), ..one }.packet()
    });
    let cases: [(Counter, Vec<Vec<u8>>, u64); 7] = [
        (|stats| &stats.refused_not_coalescable, pings, 2),
        (|stats| &stats.refused_headers, two(|second| second.ttl = 63), 1),
        (|stats| &stats.refused_sequence, two(|second| second.sequence += 1), 1),
        (|stats| &stats.refused_size, two(|second| second.payload.push(0)), 1),
        (|stats| &stats.refused_flags, two(|second| second.urgent = 9), 1),
        (|stats| &stats.refused_full, many.collect(), 1),
        (|stats| &stats.refused_checksum, damaged, 1),
    ];
    for (counter, packets, count) in cases {
        let mut rig = Rig::with_peers(1);
        let remote = rig.connect(0);
        let packets: Vec<_> = packets.into_iter().map(padded).collect();
        let (mut bytes, mut stride) = (Vec::new(), 0);
        for part in packets.chunks(64) {
            let (more, its) = remote.seal(&part.iter().map(Vec::as_slice).collect::<Vec<_>>());
            bytes.extend(more);
            stride = its;
        }
        rig.push_train((bytes, stride), outer(0));
        rig.turn();
        assert_eq!(rig.count(|stats| &stats.rx_packets), packets.len() as u64);
        let counted =
            rig.worker.stats().snapshot().into_iter().filter(|(name, _)| name.starts_with("refused_"));
        let all: Vec<_> = counted.filter(|(_, count)| *count > 0).collect();
        assert_eq!((rig.count(counter), all.len()), (count, 1), "{all:?}");
    }
}

#[test]
fn what_another_worker_passes_on_is_dropped_where_no_buffer_is_free() {
    let links = Links::new(2).unwrap();
    let mut rigs = [0, 1].map(|me| Rig::of(&links, me));
    rigs[1].add_peers(1);
    let remote = rigs[1].connect(0);
    let text = packet("10.0.0.1", ME, 1, 64);
    rigs[0].push_train(remote.seal(&[text.as_slice(); 3]), outer(0));
    rigs[0].turn();
    let hoard: Vec<_> = std::iter::from_fn(|| rigs[1].io.pool().take()).collect();
    rigs[1].turn();
    assert_eq!(rigs[1].count(|stats| &stats.rx_no_buffer), 3);
    drop(hoard);
    rigs[0].push_train(remote.seal(&[&text]), outer(0));
    rigs[0].turn();
    rigs[1].turn();
    assert_eq!(rigs[1].written().len(), 1, "the next one goes");
}

#[test]
fn what_a_worker_does_for_another_is_counted_at_both() {
    let links = Links::new(2).unwrap();
    let (mut rig, mut helper) = (Rig::of(&links, 0), Rig::of(&links, 1));
    rig.add_peers(1);
    let mut remote = rig.connect(0);
    rig.peers[0].assisted.store(true, Relaxed);
    rig.peers[0].seal_assisted.store(true, Relaxed);
    links.assist.engage(1);
    rig.push_train(remote.seal(&[&packet("10.0.0.1", ME, 1, 64)]), outer(0));
    let train = rig.io.recv_udp().unwrap();
    rig.worker.receiver(&mut rig.io, rig.now).train(train);
    helper.turn();
    // A little more than one train.
    let mut sender = rig.worker.sender(&mut rig.io, rig.now);
    sender.frame(&tso_frame(ME, "10.0.0.1", 64_000, 1380));
    helper.turn();
    sender.finish();
    rig.turn();
    assert_eq!(
        (rig.written().len(), rig.sent().iter().flat_map(|train| remote.open(train)).count()),
        (1, 47)
    );
    let done = [helper.count(|stats| &stats.rx_assisted), helper.count(|stats| &stats.tx_assisted)];
    assert_eq!(done, [1, 1]);
    let shared = [rig.count(|stats| &stats.rx_shared_out), rig.count(|stats| &stats.tx_shared_out)];
    assert_eq!(shared[0], 1);
    assert!(shared[1] >= 1);
}

#[test]
fn a_train_of_which_the_peers_limits_let_nothing_pass_is_shared_out_with_nobody() {
    use crate::dataplane::limits::{LimitSettings, RateSetting};
    let links = Links::new(2).unwrap();
    let mut rig = Rig::of(&links, 0);
    rig.add_peers(1);
    let remote = rig.connect(0);
    rig.peers[0].assisted.store(true, Relaxed);
    links.assist.engage(1);
    let inbound = Some(RateSetting { bits_per_second: 8000, burst: 1500 });
    rig.peers[0].set_limits(&LimitSettings { inbound, ..LimitSettings::default() }, rig.now, Duration::ZERO);
    for _ in 0..5 {
        let text = packet("10.0.0.1", ME, 1, 1000);
        rig.push_train(remote.seal(&[&text]), outer(0));
        rig.turn();
    }
    let stats = rig.worker.stats();
    let counters = [&stats.rx_owned, &stats.rx_packets, &stats.rx_shared_out, &stats.rx_limited];
    assert_eq!(counters.map(|counter| counter.load(Relaxed)), [5, 1, 1, 4]);
}
