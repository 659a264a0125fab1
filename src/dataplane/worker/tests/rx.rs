//! From the wire to the TUN device.

use super::*;
use crate::dataplane::misdirected::{MISDIRECTED_BYTES, MISDIRECTED_QUEUE};
use crate::io::UdpTrain;
use crate::noise::REJECT_AFTER_TIME;
use proptest::prelude::*;

const ME: &str = "192.168.0.1";

fn tagged(tag: u32) -> Vec<u8> {
    packet("10.0.0.1", ME, tag, 100)
}

/// Whether the slow path heard that the peer in slot 0 is at `addr` now.
fn roamed_to(events: &[Event], addr: SocketAddr) -> bool {
    events.contains(&Event::Roamed(id(0), Endpoint { addr, from: Some(LOCAL) }))
}

#[test]
fn a_train_reaches_the_tun_device_as_one_super_packet() {
    let mut rig = Rig::with_peers(1);
    let remote = rig.connect(0);
    let packets: Vec<_> = (0..10).map(tagged).collect();
    let train = remote.seal(&packets.iter().map(Vec::as_slice).collect::<Vec<_>>());
    let bytes = train.0.len() as u64;
    rig.push_train(train, outer(0));
    rig.turn();
    let written = rig.written();
    assert_eq!(written.len(), 1);
    assert_eq!(written[0].len(), 28 + 10 * 100);
    for i in 0..10 {
        assert_eq!(written[0][28 + 100 * i..][..4], (i as u32).to_be_bytes());
    }
    let stats = rig.worker.stats();
    let ones = [
        &stats.rx_trains,
        &stats.rx_runs,
        &stats.rx_super_packets,
        &stats.io_udp_receives,
        &stats.io_tun_writes,
    ];
    assert_eq!(ones.map(|counter| counter.load(Relaxed)), [1; 5]);
    assert_eq!([&stats.rx_packets, &stats.rx_owned].map(|counter| counter.load(Relaxed)), [10; 2]);
    assert_eq!(rig.peers[0].traffic.rx_bytes.load(Relaxed), bytes);
    assert_eq!(rig.peers[0].activity().last_data_received, Some(START));
}

#[test]
fn padding_is_cut_off() {
    let mut rig = Rig::with_peers(1);
    let remote = rig.connect(0);
    let mut padded = tagged(3);
    let len = 128;
    padded.resize(len + 64, 0);
    let train = remote.seal(&[&padded]);
    rig.push_train(train, outer(0));
    rig.turn();
    assert_eq!(rig.written()[0].len(), len);
}

#[test]
fn a_keepalive_reaches_nobody_but_counts_as_a_sign_of_life() {
    let mut rig = Rig::with_peers(1);
    let remote = rig.connect(0);
    let train = remote.seal(&[&[]]);
    rig.push_train(train, outer(0));
    rig.turn();
    assert!(rig.written().is_empty());
    assert_eq!(rig.count(|stats| &stats.rx_keepalives), 1);
    let activity = rig.peers[0].activity();
    assert_eq!(activity.last_authenticated, Some(START));
    assert_eq!(activity.last_data_received, None, "else it would be answered with a keepalive");
}

#[test]
fn roaming_follows_authenticated_packets_only() {
    let mut rig = Rig::with_peers(1);
    let remote = rig.connect(0);
    let good = remote.seal(&[&tagged(1)]);
    rig.push_train(good.clone(), outer(0));
    rig.turn();
    assert!(roamed_to(&rig.events(), outer(0)), "its local address was not known before");
    let (mut forged, stride) = remote.seal(&[&tagged(2)]);
    forged[20] ^= 1;
    rig.push_train((forged, stride), outer(66));
    rig.turn();
    assert!(!rig.events().iter().any(|event| matches!(event, Event::Roamed(..))), "forged");
    rig.push_train(good, outer(67));
    rig.turn();
    assert!(!rig.events().iter().any(|event| matches!(event, Event::Roamed(..))), "replayed");
    assert_eq!(rig.count(|stats| &stats.rx_decrypt_failed), 1);
    assert_eq!(rig.count(|stats| &stats.rx_replayed), 1);

    let train = remote.seal(&[&[]]);
    rig.push_train(train, outer(9));
    rig.push_frame(&frame(ME, "10.0.0.1", 1, 16, 0));
    rig.turn();
    assert!(roamed_to(&rig.events(), outer(9)), "a keepalive is authentic too");
    rig.push_frame(&frame(ME, "10.0.0.1", 1, 16, 0));
    rig.turn();
    let last = rig.sent().pop().unwrap();
    assert_eq!(last.to, Endpoint { addr: outer(9), from: Some(LOCAL) }, "used at once");
    assert_eq!(rig.count(|stats| &stats.rx_roamed), 2);
}

#[test]
fn our_address_is_pinned_only_where_it_was_or_the_peer_moved() {
    let mut rig = Rig::with_peers(1);
    let remote = rig.connect(0);
    let answered_to = |rig: &mut Rig, from: SocketAddr| {
        let train = remote.seal(&[&[]]);
        rig.push_train(train, from);
        rig.turn();
        rig.push_frame(&frame(ME, "10.0.0.1", 1, 16, 0));
        rig.turn();
        rig.sent().remove(0).to
    };
    let loose = Endpoint { addr: outer(0), from: None };
    assert_eq!(answered_to(&mut rig, outer(0)), loose, "left to the route, as the slow path had it");
    assert!(roamed_to(&rig.events(), outer(0)), "which may decide otherwise now");
    answered_to(&mut rig, outer(0));
    assert!(rig.events().is_empty(), "told once");
    let old = LocalAddr { interface: 9, ..LOCAL };
    rig.set_endpoint(0, Some(Endpoint { from: Some(old), ..loose }));
    assert_eq!(answered_to(&mut rig, outer(0)).from, Some(LOCAL), "a pin follows at once");
    assert_eq!(answered_to(&mut rig, outer(5)), Endpoint { addr: outer(5), from: Some(LOCAL) });
    rig.set_endpoint(0, Some(Endpoint { addr: outer(6), from: None }));
    assert_eq!(answered_to(&mut rig, outer(5)).addr, outer(5), "where it speaks from, whatever was set");
}

#[test]
fn roaming_is_told_even_if_the_event_queue_was_full() {
    let mut rig = Rig::with_peers(1);
    let remote = rig.connect(0);
    while rig.links.slow.events.push(Event::SourceGone(id(7))).is_ok() {}
    let train = remote.seal(&[&tagged(1)]);
    rig.push_train(train, outer(5));
    rig.turn();
    assert!(!roamed_to(&rig.events(), outer(5)));
    assert_eq!(rig.count(|stats| &stats.events_deferred), 2);
    let train = remote.seal(&[&tagged(2)]);
    rig.push_train(train, outer(5));
    rig.turn();
    let events = rig.events();
    assert!(roamed_to(&events, outer(5)));
    assert!(events.contains(&Event::Activity(id(0))), "that one was tried again, too");
}

#[test]
fn a_peer_cannot_speak_from_a_subnet_of_anothers() {
    let mut rig = Rig::with_peers(2);
    let remote = rig.connect(0);
    let routes = [(prefix("10.0.0.0", 16), 0), (prefix("10.0.7.0", 24), 1), (prefix("10.0.7.8", 32), 0)];
    rig.route(routes);
    for (source, allowed) in [("10.0.7.1", 0), ("10.0.7.8", 1), ("10.0.8.1", 1), ("172.16.0.1", 0)] {
        let train = remote.seal(&[&packet(source, ME, 1, 64)]);
        rig.push_train(train, outer(0));
        rig.turn();
        assert_eq!(rig.written().len(), allowed, "{source}");
    }
    assert_eq!(rig.count(|stats| &stats.rx_bad_source), 2);
}

#[test]
fn outer_congestion_marks_reach_the_inner_packet() {
    let mut rig = Rig::with_peers(1);
    let remote = rig.connect(0);
    for (inner, outer_ecn, expected) in [(1, 3, 3), (2, 3, 3), (0, 3, 0), (2, 0, 2), (3, 2, 3)] {
        let text = frame("10.0.0.1", ME, 1, 68, inner)[VNET_HDR_LEN..].to_vec();
        let (bytes, stride) = remote.seal(&[&text]);
        assert!(rig.io.push_train(&bytes, stride, outer(0), None, outer_ecn));
        rig.turn();
        let written = rig.written();
        assert_eq!(written[0][1] & 3, expected, "inner {inner}, outer {outer_ecn}");
        assert_eq!(checksum::fold(checksum::sum(&written[0][..20], 0)), 0xffff, "IPv4 header checksum");
    }
}

#[test]
fn what_a_session_too_old_brings_is_dropped() {
    let mut rig = Rig::with_peers(1);
    let remote = rig.connect(0);
    rig.pass(REJECT_AFTER_TIME);
    let train = remote.seal(&[&tagged(1)]);
    rig.push_train(train, outer(0));
    rig.turn();
    assert!(rig.written().is_empty());
    assert_eq!(rig.count(|stats| &stats.rx_expired), 1);
}

#[test]
fn an_old_session_of_ours_asks_for_a_rekey_when_it_receives() {
    let mut rig = Rig::with_peers(1);
    let remote = rig.connect(0);
    rig.pass(REJECT_AFTER_TIME - Duration::from_secs(10));
    let train = remote.seal(&[&tagged(1)]);
    rig.push_train(train, outer(0));
    rig.turn();
    assert_eq!(rig.written().len(), 1);
    assert!(rig.events().contains(&Event::NeedHandshake(id(0))));
}

#[test]
fn the_initiators_first_packet_confirms_the_session_once() {
    let mut rig = Rig::with_peers(1);
    let (send, receive, remote) = rig.session(0, Role::Responder);
    rig.install(0, receive, send);
    rig.turn();
    let confirmed = |rig: &mut Rig, text: &[u8]| {
        let train = remote.seal(&[text]);
        rig.push_train(train, outer(0));
        rig.turn();
        let events = rig.events();
        events.iter().filter(|event| **event == Event::Confirmed(id(0), index_of(0, 0))).count()
    };
    while rig.links.slow.events.push(Event::SourceGone(id(7))).is_ok() {}
    assert_eq!(confirmed(&mut rig, &[]), 0, "the queue was full");
    assert_eq!(confirmed(&mut rig, &[]), 1);
    assert_eq!(confirmed(&mut rig, &tagged(1)), 0);
}

/// Two workers that share a peer of the first, with a session that the remote began in place.
fn two_workers_with_an_answered_session() -> ([Rig; 2], Remote) {
    let links = Links::new(2).unwrap();
    let mut rigs = [Rig::of(&links, 0), Rig::of(&links, 1)];
    rigs[0].add_peers(1);
    let peers = rigs[0].peers.clone();
    rigs[1].share_peers(peers);
    let (send, receive, remote) = rigs[0].session(0, Role::Responder);
    rigs[0].install(0, receive, send);
    rigs[0].turn();
    (rigs, remote)
}

#[test]
fn an_answered_session_sends_on_every_worker_once_its_first_packet_is_delivered() {
    let (mut rigs, mut remote) = two_workers_with_an_answered_session();
    for rig in &mut rigs {
        rig.push_frame(&frame(ME, "10.0.0.1", 1, 16, 0));
        rig.turn();
        assert!(rig.sent().is_empty(), "not before the initiator has it");
    }
    let train = remote.seal(&[&tagged(1)]);
    rigs[0].push_train(train, outer(0));
    // In the very turn, as if the answer were there when the packet is written; and the slow path has not heard of it.
    for (rig, tags) in rigs.iter_mut().zip([[1, 2], [1, 2]]) {
        rig.push_frame(&frame(ME, "10.0.0.1", 2, 16, 0));
        rig.turn();
        let sent: Vec<_> = rig.sent().iter().flat_map(|train| remote.open(train)).collect();
        assert_eq!(sent.iter().map(|packet| tag(packet)).collect::<Vec<_>>(), tags, "worker {}", rig.me);
    }
    assert_eq!(rigs[0].written().len(), 1);
}

#[test]
fn a_session_that_is_received_on_no_more_is_sent_with_no_more_on_any_worker() {
    let (mut rigs, remote) = two_workers_with_an_answered_session();
    let confirmation = remote.seal(&[&[]]);
    rigs[0].push_train(confirmation, outer(0));
    rigs[0].turn();
    rigs[0].control(Control::Drop(id(0), index_of(0, 0)));
    rigs[0].turn();
    for rig in &mut rigs {
        rig.push_frame(&frame(ME, "10.0.0.1", 2, 16, 0));
        rig.turn();
        assert!(rig.sent().is_empty(), "worker {}", rig.me);
    }
}

#[test]
fn a_late_packet_of_an_older_session_is_delivered_but_the_younger_one_goes_on_sending() {
    let mut rig = Rig::with_peers(1);
    let (send, receive, older) = rig.session(0, Role::Responder);
    rig.install(0, receive, send);
    rig.pass(Duration::from_secs(1));
    let (local_index, remote_index, role) = (0x1234_5600, 4, Role::Initiator);
    let younger = SessionKeys { send: [5; 32], receive: [6; 32], local_index, remote_index, role };
    let (send, receive) = younger.into_halves(rig.now);
    rig.install(0, receive, send);
    let train = older.seal(&[&tagged(1)]);
    rig.push_train(train, outer(0));
    rig.push_frame(&frame(ME, "10.0.0.1", 2, 16, 0));
    rig.turn();
    assert_eq!(rig.written().len(), 1);
    assert_eq!(rig.sent()[0].buf[4..8], remote_index.to_le_bytes());
}

#[test]
fn a_train_of_mixed_indices_reaches_every_owner() {
    let links = Links::new(2).unwrap();
    let mut rigs = [Rig::of(&links, 0), Rig::of(&links, 1)];
    rigs.iter_mut().for_each(|rig| rig.add_peers(2));
    let own = rigs[0].connect(0);
    let others = rigs[1].connect(1);
    let mut bytes = own.seal(&[&tagged(1)]).0;
    bytes.extend(others.seal(&[&packet("10.1.0.1", ME, 2, 100)]).0);
    bytes.extend(own.seal(&[&tagged(3)]).0);
    let mut nobodys = others.seal(&[&packet("10.1.0.1", ME, 4, 100)]).0;
    nobodys[4] = 9; // one of ten workers of another process, and the second of two
    bytes.extend(&nobodys);
    nobodys[4] = 0; // ours, but no session of ours
    bytes.extend(&nobodys);
    let stride = nobodys.len();
    assert_eq!(bytes.len(), 5 * stride);
    rigs[0].push_train((bytes, stride), outer(0));
    rigs[0].turn();
    rigs[1].turn();
    let payloads = |written: Vec<Vec<u8>>| written.iter().map(|packet| packet.len()).sum::<usize>();
    assert_eq!(payloads(rigs[0].written()), 28 + 200, "tags 1 and 3");
    let written = rigs[1].written();
    assert_eq!(written.len(), 1);
    assert_eq!(tag(&written[0]), 2);
    assert_eq!(rigs[0].count(|stats| &stats.misdirected_out), 2);
    assert_eq!(rigs[1].count(|stats| &stats.misdirected_in), 2);
    assert_eq!([0, 1].map(|worker: usize| rigs[worker].count(|stats| &stats.rx_unknown_index)), [1, 1]);
}

#[test]
fn a_train_at_the_wrong_worker_is_handed_on_and_opened_as_one() {
    let links = Links::new(2).unwrap();
    let mut rigs = [0, 1].map(|me| Rig::of(&links, me));
    rigs[1].add_peers(1);
    let remote = rigs[1].connect(0);
    let packets: Vec<_> = (0..40).map(|i| packet("10.0.0.1", ME, i, 1376)).collect();
    let train = remote.seal(&packets.iter().map(Vec::as_slice).collect::<Vec<_>>());
    rigs[0].push_train(train, outer(0));
    rigs[0].turn();
    assert_eq!(links.workers[1].misdirected.len(), 1);
    rigs[1].turn();
    assert_eq!(rigs[0].count(|stats| &stats.misdirected_out), 40);
    assert_eq!(rigs[1].count(|stats| &stats.misdirected_in), 40);
    assert_eq!(rigs[1].count(|stats| &stats.rx_packets), 40);
    assert_eq!(rigs[1].written().len(), 1, "one write for all of them");
    assert_eq!(rigs[1].peers[0].traffic.rx_bytes.load(Relaxed), 40 * (1404_u64.next_multiple_of(16) + 32));
}

#[test]
fn misdirected_datagrams_that_wait_are_bounded_in_bytes_and_there_is_room_again_once_they_are_taken() {
    let links = Links::new(2).unwrap();
    let mut rigs = [0, 1].map(|me| Rig::of(&links, me));
    rigs[1].add_peers(1);
    let remote = rigs[1].connect(0);
    let text = packet("10.0.0.1", ME, 1, 1376);
    let train = || remote.seal(&[text.as_slice(); 40]);
    let fit = MISDIRECTED_BYTES / train().0.len();
    for round in 1..3 {
        for _ in 0..fit + 2 {
            rigs[0].push_train(train(), outer(0));
            rigs[0].turn();
        }
        assert_eq!(links.workers[1].misdirected.len(), fit, "round {round}");
        assert_eq!(rigs[0].count(|stats| &stats.misdirected_dropped), 2 * 40 * round);
        while rigs[1].turn() == Turn::Busy {
            rigs[1].io.discard_written();
        }
        assert_eq!(links.workers[1].misdirected.len(), 0);
        assert_eq!(rigs[1].count(|stats| &stats.rx_packets), fit as u64 * 40 * round);
    }
}

#[test]
fn misdirected_datagrams_beyond_the_owners_queue_are_dropped_and_counted() {
    let links = Links::new(2).unwrap();
    let mut rig = Rig::of(&links, 0);
    let (_, _, remote) = Rig::of(&links, 1).session(1, Role::Initiator);
    for _ in 0..MISDIRECTED_QUEUE + 3 {
        let train = remote.seal(&[&[]]);
        rig.push_train(train, outer(0));
        rig.turn();
    }
    assert_eq!(rig.count(|stats| &stats.misdirected_dropped), 3);
}

#[test]
fn a_full_size_train_of_one_bad_segment_delivers_the_rest() {
    let mut rig = Rig::with_peers(1);
    let remote = rig.connect(0);
    let packets: Vec<_> = (0..45).map(|i| packet("10.0.0.1", ME, i, 1376)).collect();
    let (mut bytes, stride) = remote.seal(&packets.iter().map(Vec::as_slice).collect::<Vec<_>>());
    bytes[7 * stride + 100] ^= 1;
    rig.push_train((bytes, stride), outer(0));
    rig.turn();
    assert_eq!(rig.count(|stats| &stats.rx_decrypt_failed), 1);
    assert_eq!(rig.count(|stats| &stats.rx_packets), 44);
}

#[test]
fn empty_truncated_and_oversized_trains_are_dropped_and_counted() {
    let mut rig = Rig::with_peers(1);
    let remote = rig.connect(0);
    let (bytes, stride) = remote.seal(&[&tagged(1)]);
    rig.push_train((Vec::new(), 0), outer(0));
    rig.push_train((bytes.clone(), 0), outer(0));
    rig.push_train((bytes[..31].to_vec(), 31), outer(0));
    rig.push_train((vec![0; 3000], 1500), outer(0));
    for (start, len) in [(64, usize::MAX), (64, crate::io::slab::BUF_SIZE), (0, stride)] {
        let buf = rig.io.pool().take().unwrap();
        rig.io.push_udp(UdpTrain { buf, start, len, stride, from: outer(0), to: None, ecn: 0 });
    }
    rig.turn();
    assert!(rig.written().is_empty());
    assert_eq!(rig.count(|stats| &stats.rx_malformed), 8);
    rig.push_train((bytes, stride), outer(0));
    rig.turn();
    assert_eq!(rig.written().len(), 1, "and nothing else suffered");
}

#[test]
fn inner_packets_that_contradict_themselves_are_dropped() {
    let mut rig = Rig::with_peers(1);
    let remote = rig.connect(0);
    let mut longer = tagged(1);
    longer[2..4].copy_from_slice(&2000_u16.to_be_bytes());
    for text in [&longer[..], &[0; 16], &tagged(1)[..16]] {
        let train = remote.seal(&[text]);
        rig.push_train(train, outer(0));
        rig.turn();
    }
    assert!(rig.written().is_empty());
    assert_eq!(rig.count(|stats| &stats.rx_bad_inner), 3);
}

#[test]
fn a_removed_peer_neither_receives_nor_leaves_anything_behind() {
    let mut rig = Rig::with_peers(2);
    let remote = rig.connect(0);
    let stays = rig.connect(1);
    let before = remote.seal(&[&tagged(1)]);
    rig.push_train(before, outer(0));
    let during = remote.seal(&[&tagged(2)]);
    rig.turn();
    rig.io.discard_written();
    rig.directory.remove(0);
    rig.control(Control::Drop(id(0), index_of(0, 0)));
    rig.route([(prefix("10.1.0.0", 16), 1)]);
    rig.push_train(during, outer(0));
    rig.push_frame(&frame(ME, "10.0.0.1", 1, 16, 0));
    let train = stays.seal(&[&packet("10.1.0.1", ME, 5, 16)]);
    rig.push_train(train, outer(1));
    rig.turn();
    assert_eq!(rig.count(|stats| &stats.rx_unknown_index), 1);
    assert_eq!(rig.count(|stats| &stats.tx_no_peer), 1);
    assert!(rig.sent().is_empty());
    assert_eq!(rig.written().iter().filter(|packet| packet[9] == 17).count(), 1, "the other peer's");

    // The slot's next owner gets nothing that was meant for the first.
    rig.directory.insert(Arc::new(PeerShared::new(PeerId { slot: 0, epoch: 2 }, 0)));
    rig.route([(prefix("10.0.0.0", 16), 0), (prefix("10.1.0.0", 16), 1)]);
    rig.control(Control::SendStaged(id(0)));
    rig.push_frame(&frame(ME, "10.0.0.1", 1, 16, 0));
    let train = remote.seal(&[&tagged(3)]);
    rig.push_train(train, outer(0));
    rig.turn();
    assert!(rig.sent().is_empty());
    assert_eq!(rig.count(|stats| &stats.tx_no_endpoint), 1);
    assert_eq!(rig.count(|stats| &stats.rx_unknown_index), 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_bytes_from_the_wire_make_it_panic(
        mut bytes in prop::collection::vec(any::<u8>(), 0..5000),
        stride in 0..2000_usize,
        shape in any::<u8>(),
    ) {
        let mut rig = Rig::with_peers(1);
        rig.connect(0);
        // Most look like our data messages, so that they get past the first check.
        if shape % 4 != 0 && stride > 8 {
            for segment in bytes.chunks_mut(stride).filter(|segment| segment.len() >= 8) {
                segment[..4].copy_from_slice(&u32::from(shape % 5).to_le_bytes());
                segment[4..8].copy_from_slice(&index_of(0, 0).to_le_bytes());
            }
        }
        rig.push_train((bytes, stride), outer(0));
        rig.turn();
        prop_assert!(rig.written().is_empty());
    }
}
