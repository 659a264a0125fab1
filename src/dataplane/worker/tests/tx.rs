//! From the TUN device to the wire.

use super::*;
use crate::dataplane::{HANDSHAKE_ASK_INTERVAL, MAX_STAGED};
use crate::noise::{REJECT_AFTER_TIME, REKEY_AFTER_TIME};
use crate::offload::train::MAX_SEGMENTS;

const ME: &str = "192.168.0.1";

fn tags(remote: &mut Remote, trains: &[SendTrain]) -> Vec<u32> {
    trains.iter().flat_map(|train| remote.open(train)).map(|packet| tag(&packet)).collect()
}

#[test]
fn a_packet_reaches_the_peer_that_its_destination_belongs_to() {
    let mut rig = Rig::with_peers(3);
    let mut remotes: Vec<_> = (0..3).map(|slot| rig.connect(slot)).collect();
    let sent = frame(ME, "10.2.9.9", 77, 100, 0);
    rig.push_frame(&sent);
    assert_eq!(rig.turn(), Turn::Idle);
    let trains = rig.sent();
    assert_eq!(trains.len(), 1);
    assert_eq!(trains[0].to, Endpoint { addr: outer(2), from: None });
    let inner = remotes[2].open(&trains[0]);
    assert_eq!(inner[0][..sent.len() - VNET_HDR_LEN], sent[VNET_HDR_LEN..]);
    assert_eq!(inner[0].len() % 16, 0);
    assert_eq!(rig.peers[2].traffic.tx_bytes.load(Relaxed), trains[0].len as u64);
    assert_eq!(rig.peers[2].activity().unanswered_since, Some(START));
}

#[test]
fn frames_of_own_peers_and_of_other_workers_are_counted_apart() {
    let mut rig = Rig::of(&Links::new(2).unwrap(), 0);
    rig.add_peers(1);
    let theirs = Arc::new(PeerShared::new(id(1), 1));
    rig.directory.insert(theirs);
    let routes = (0..2).map(|slot| (prefix(&format!("10.{slot}.0.0"), 16), slot));
    rig.route(routes);
    for to in ["10.0.0.1", "10.1.0.1", "10.1.0.2", "10.9.0.1"] {
        rig.push_frame(&frame(ME, to, 1, 16, 0));
    }
    rig.turn();
    let counts = [rig.count(|stats| &stats.tx_frames_own), rig.count(|stats| &stats.tx_frames_other)];
    assert_eq!(counts, [1, 2]);
    assert_eq!(rig.count(|stats| &stats.tx_frames), 4);
}

#[test]
fn a_super_packet_leaves_as_one_train() {
    let mut rig = Rig::with_peers(1);
    let mut remote = rig.connect(0);
    rig.push_frame(&tso_frame(ME, "10.0.0.1", 45 * 1368, 1368));
    rig.turn();
    let trains = rig.sent();
    assert_eq!(trains.len(), 1);
    let inner = remote.open(&trains[0]);
    assert_eq!(inner.len(), 45);
    let payload: Vec<u8> = inner.iter().flat_map(|packet| packet[40..1408].to_vec()).collect();
    assert!(payload.iter().enumerate().all(|(i, &byte)| byte == (i % 251) as u8));
    let stats = rig.worker.stats();
    let of_frames = [&stats.tx_frames, &stats.tx_super_packets, &stats.io_tun_reads];
    assert_eq!(of_frames.map(|counter| counter.load(Relaxed)), [1; 3]);
    let of_trains = [&stats.tx_trains, &stats.io_udp_sends];
    assert_eq!(of_trains.map(|counter| counter.load(Relaxed)), [1; 2]);
    let of_packets = [&stats.tx_packets, &stats.io_udp_sent_datagrams];
    assert_eq!(of_packets.map(|counter| counter.load(Relaxed)), [45; 2]);
}

#[test]
fn equal_packets_of_a_turn_join_one_train() {
    let mut rig = Rig::with_peers(1);
    let mut remote = rig.connect(0);
    for i in 0..40 {
        rig.push_frame(&frame(ME, "10.0.0.1", i, 16, 0));
    }
    rig.turn();
    let trains = rig.sent();
    assert_eq!(trains.len(), 1);
    assert_eq!(tags(&mut remote, &trains), (0..40).collect::<Vec<_>>());
}

#[test]
fn without_segmentation_offload_every_train_is_one_datagram() {
    let mut rig = Rig::with_peers(1);
    let mut remote = rig.connect(0);
    rig.io.gso = false;
    rig.push_frame(&tso_frame(ME, "10.0.0.1", 3000, 1000));
    rig.push_frame(&frame(ME, "10.0.0.1", 5, 16, 0));
    rig.turn();
    let trains = rig.sent();
    assert_eq!(trains.len(), 4);
    assert!(trains.iter().all(|train| train.len == train.stride));
    assert_eq!(trains.iter().map(|train| remote.open(train).len()).sum::<usize>(), 4);
}

#[test]
fn no_packet_overtakes_another_of_its_flow_whatever_sizes_and_ecn_bits_mix() {
    let (peers, flows) = (12, 4); // more peers than may have a train open at a time
    let mut rig = Rig::with_peers(peers);
    let mut remotes: Vec<_> = (0..peers).map(|slot| rig.connect(slot)).collect();
    let mut expected = vec![Vec::new(); (peers * flows) as usize];
    let mut received = expected.clone();
    let mut random = 12345_u32;
    for round in 0..100 {
        let busy = [1, 2, peers][round as usize % 3];
        for i in 0..50 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let (slot, flow) = ((random >> 8) % busy, random >> 24 & (flows - 1));
            let (size, ecn) =
                ([16, 16, 16, 200, 1392][(random >> 16) as usize % 5], (random >> 20) as u8 % 8 / 7);
            let tag = round * 1000 + i;
            rig.push_frame(&frame(&format!("10.99.0.{flow}"), &format!("10.{slot}.0.1"), tag, size, ecn));
            expected[(slot * flows + flow) as usize].push((tag, ecn));
        }
        rig.turn();
        for train in rig.sent() {
            let SocketAddr::V4(to) = train.to.addr else { panic!("IPv4") };
            let slot = usize::from(to.ip().octets()[3]);
            for packet in remotes[slot].open(&train) {
                assert_eq!(packet[1] & 3, train.tos, "outer ECN bits are the inner ones");
                received[slot * flows as usize + usize::from(packet[15])].push((tag(&packet), train.tos));
            }
        }
    }
    assert_eq!(received, expected);
    assert!(rig.count(|stats| &stats.tx_trains) < 4000, "some packets share a train");
}

#[test]
fn small_packets_between_those_of_another_flow_do_not_end_its_train() {
    let mut rig = Rig::with_peers(1);
    let mut remote = rig.connect(0);
    for tag in 0..4 {
        rig.push_frame(&frame("10.99.0.1", "10.0.0.1", 10 + tag, 1392, 0));
        rig.push_frame(&frame("10.99.0.2", "10.0.0.1", 20 + tag, 12, 0));
    }
    rig.turn();
    let trains = rig.sent();
    assert_eq!(tags(&mut remote, &trains[..1]), [10, 11, 12, 13]);
    assert_eq!(tags(&mut remote, &trains[1..]), [20, 21, 22, 23]);
}

#[test]
fn packets_whose_flow_is_not_known_keep_their_place_among_all() {
    let mut rig = Rig::with_peers(1);
    let mut remote = rig.connect(0);
    for tag in 0..3 {
        rig.push_frame(&frame("10.99.0.1", "10.0.0.1", 10 + tag, 1392, 0));
        let mut ping = frame("10.99.0.2", "10.0.0.1", 20 + tag, 12, 0);
        ping[VNET_HDR_LEN + 9] = 1; // ICMP
        rig.push_frame(&ping);
    }
    rig.turn();
    let trains = rig.sent();
    assert_eq!(tags(&mut remote, &trains), [10, 20, 11, 21, 12, 22]);
}

#[test]
fn staged_packets_leave_first_and_in_order_once_there_is_a_session() {
    let mut rig = Rig::with_peers(1);
    for i in 0..10 {
        rig.push_frame(&frame(ME, "10.0.0.1", i, 16 + i as usize, 0));
    }
    rig.turn();
    assert!(rig.sent().is_empty());
    assert_eq!(rig.events(), [Event::NeedHandshake(id(0))], "asked once, not ten times");
    let (send, receive, mut remote) = rig.session(0, Role::Initiator);
    rig.install(0, receive, send);
    for i in 10..20 {
        rig.push_frame(&frame(ME, "10.0.0.1", i, 16, 0));
    }
    rig.turn();
    let trains = rig.sent();
    assert_eq!(tags(&mut remote, &trains), (0..20).collect::<Vec<_>>());
    assert_eq!(rig.count(|stats| &stats.tx_staged), 10);
    assert_eq!(rig.count(|stats| &stats.tx_staged_dropped), 0);
}

#[test]
fn the_oldest_staged_packets_go_when_there_are_too_many() {
    let mut rig = Rig::with_peers(1);
    for i in 0..MAX_STAGED as u32 + 5 {
        rig.push_frame(&frame(ME, "10.0.0.1", i, 16, 0));
        rig.turn();
    }
    assert_eq!(rig.count(|stats| &stats.tx_staged_dropped), 5);
    let mut remote = rig.connect(0);
    let trains = rig.sent();
    assert_eq!(tags(&mut remote, &trains), (5..MAX_STAGED as u32 + 5).collect::<Vec<_>>());
}

#[test]
fn a_handshake_is_asked_for_again_once_the_slow_path_took_the_event() {
    let mut rig = Rig::with_peers(1);
    let asked = |rig: &mut Rig| {
        rig.push_frame(&frame(ME, "10.0.0.1", 0, 16, 0));
        rig.turn();
        rig.events().len()
    };
    assert_eq!(asked(&mut rig), 1);
    rig.pass(HANDSHAKE_ASK_INTERVAL);
    assert_eq!(asked(&mut rig), 0, "the slow path has not taken it yet");
    rig.peers[0].handshake_wanted.store(false, Relaxed);
    assert_eq!(asked(&mut rig), 1);
    rig.peers[0].handshake_wanted.store(false, Relaxed);
    assert_eq!(asked(&mut rig), 0, "too soon");
    rig.pass(HANDSHAKE_ASK_INTERVAL);
    assert_eq!(asked(&mut rig), 1);
}

#[test]
fn an_old_session_rekeys_and_a_dead_one_stages() {
    let mut rig = Rig::with_peers(1);
    rig.connect(0);
    rig.push_frame(&frame(ME, "10.0.0.1", 0, 16, 0));
    rig.turn();
    assert_eq!(rig.sent().len(), 1);
    assert!(!rig.events().contains(&Event::NeedHandshake(id(0))));

    rig.pass(REKEY_AFTER_TIME + Duration::from_secs(1));
    rig.push_frame(&frame(ME, "10.0.0.1", 1, 16, 0));
    rig.turn();
    assert_eq!(rig.sent().len(), 1, "still good for sending");
    assert!(rig.events().contains(&Event::NeedHandshake(id(0))));

    rig.pass(REJECT_AFTER_TIME);
    rig.peers[0].handshake_wanted.store(false, Relaxed);
    rig.push_frame(&frame(ME, "10.0.0.1", 2, 16, 0));
    rig.turn();
    assert!(rig.sent().is_empty());
    assert_eq!(rig.count(|stats| &stats.tx_staged), 1);
    assert_eq!(rig.events(), [Event::NeedHandshake(id(0))]);
    let mut remote = rig.connect(0);
    let trains = rig.sent();
    assert_eq!(tags(&mut remote, &trains), [2]);
}

#[test]
fn the_sender_hears_of_it_when_there_is_no_peer_or_no_endpoint_within_a_rate() {
    let mut rig = Rig::with_peers(1);
    rig.push_frame(&frame(ME, "172.16.0.1", 0, 16, 0));
    rig.turn();
    let answers = rig.written();
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0][9], 1, "ICMP");
    assert_eq!(answers[0][16..20], ip4(ME).octets());
    assert_eq!(rig.count(|stats| &stats.tx_no_peer), 1);

    rig.set_endpoint(0, None);
    rig.push_frame(&frame(ME, "10.0.0.1", 0, 16, 0));
    rig.turn();
    assert_eq!(rig.written().len(), 1);
    assert_eq!(rig.count(|stats| &stats.tx_no_endpoint), 1);

    for _ in 0..500 {
        rig.push_frame(&frame(ME, "172.16.0.1", 0, 16, 0));
        rig.turn();
        rig.io.discard_written();
    }
    assert!(rig.count(|stats| &stats.icmp_limited) > 400);
    assert_eq!(rig.count(|stats| &stats.icmp_limited) + rig.count(|stats| &stats.icmp_sent), 502);
}

#[test]
fn what_no_datagram_can_carry_is_counted_and_its_sender_hears_the_limit() {
    let mut rig = Rig::with_peers(1);
    let mut remote = rig.connect(0);
    for mtu in [65_535, 0] {
        rig.control(Control::Mtu(mtu));
        rig.push_frame(&frame(ME, "10.0.0.1", 1, 65_475 - 28, 0));
        rig.turn();
        let sent = rig.sent();
        assert_eq!((sent.len(), sent[0].len), (1, 65_507), "the longest UDP payload over IPv4");
        assert_eq!(tags(&mut remote, &sent), [1]);
    }

    rig.push_frame(&frame(ME, "10.0.0.1", 2, 65_476 - 28, 0));
    rig.push_frame(&tso_frame(ME, "10.0.0.1", 65_480, 65_440));
    rig.turn();
    assert!(rig.sent().is_empty());
    assert_eq!(rig.count(|stats| &stats.tx_oversized), 3, "one packet, and both of a super-packet");
    let answers = rig.written();
    assert_eq!(answers.len(), 2);
    for answer in answers {
        assert_eq!((answer[9], &answer[20..22]), (1, &[3, 4][..]), "fragmentation needed");
        assert_eq!(answer[26..28], 65_475u16.to_be_bytes());
        assert_eq!(answer[16..20], ip4(ME).octets());
    }
}

#[test]
fn broken_frames_are_dropped_and_counted() {
    let mut rig = Rig::with_peers(1);
    rig.connect(0);
    let good = frame(ME, "10.0.0.1", 0, 64, 0);
    rig.push_frame(&good[..5]);
    rig.push_frame(&[]);
    rig.push_frame(&good[..VNET_HDR_LEN + 10]);
    let mut odd = good.clone();
    odd[VNET_HDR_LEN] = 0x35;
    rig.push_frame(&odd);
    rig.turn();
    assert!(rig.sent().is_empty());
    assert_eq!(rig.count(|stats| &stats.tx_bad_vnet), 2);
    assert_eq!(rig.count(|stats| &stats.tx_bad_ip), 2);
}

#[test]
fn a_frame_without_a_free_buffer_is_dropped_and_the_next_one_goes() {
    let mut rig = Rig::with_peers(1);
    rig.connect(0);
    rig.push_frame(&frame(ME, "10.0.0.1", 0, 16, 0));
    let hoard: Vec<_> = std::iter::from_fn(|| rig.io.pool().take()).collect();
    rig.turn();
    assert_eq!(rig.count(|stats| &stats.tx_no_buffer), 1);
    drop(hoard);
    rig.push_frame(&frame(ME, "10.0.0.1", 1, 16, 0));
    rig.turn();
    assert_eq!(rig.sent().len(), 1);
}

#[test]
fn buffers_are_all_free_again_after_the_traffic() {
    let mut rig = Rig::with_peers(2);
    rig.connect(0);
    let free = rig.io.pool().free();
    rig.push_frame(&tso_frame(ME, "10.0.0.1", 60_000, 1000));
    rig.push_frame(&frame(ME, "10.1.0.1", 1, 16, 0));
    rig.push_frame(&frame(ME, "172.16.0.1", 1, 16, 0));
    rig.turn();
    rig.sent();
    rig.written();
    assert_eq!(rig.io.pool().free(), free);
}

#[test]
fn a_turn_takes_no_more_than_its_budget_and_says_so() {
    let mut rig = Rig::with_peers(1);
    let mut remote = rig.connect(0);
    for i in 0..100 {
        rig.push_frame(&frame(ME, "10.0.0.1", i, 16, 0));
    }
    assert_eq!(rig.turn(), Turn::Busy);
    let first = rig.sent();
    assert_eq!(tags(&mut remote, &first).len(), MAX_SEGMENTS);
    assert_eq!(rig.turn(), Turn::Idle);
    let rest = rig.sent();
    assert_eq!(tags(&mut remote, &rest).len(), 100 - MAX_SEGMENTS);
}

#[test]
fn two_workers_never_use_a_counter_twice() {
    let links = Links::new(2).unwrap();
    let mut rigs = [Rig::of(&links, 0), Rig::of(&links, 1)];
    rigs[0].add_peers(1);
    let peers = rigs[0].peers.clone();
    rigs[1].share_peers(peers);
    let mut remote = rigs[0].connect(0);
    for rig in &mut rigs {
        for i in 0..50 {
            rig.push_frame(&frame(ME, "10.0.0.1", i, 16, 0));
        }
        rig.turn();
    }
    let trains: Vec<_> = rigs.iter_mut().flat_map(|rig| rig.sent()).collect();
    // The remote's replay window refuses a counter that it saw before.
    assert_eq!(tags(&mut remote, &trains).len(), 100);
}

#[test]
fn the_worker_may_move_to_its_thread() {
    fn is_send<T: Send>() {}
    is_send::<Worker>();
}
