//! Rules 12, 13 and 14: padding, MTU, super-packets, ECN, source addresses.

use crate::lab::{Lab, inner4, millis, secs};
use crate::puppet::with_puppet;
use ringtun::offload::coalesce::CoalesceOptions;
use ringtun::sim::packet::{Flow, Inner};
use ringtun::sim::{Faults, HostConfig, Tapped, seeds};
use ringtun::wire::message::{DATA_OVERHEAD, MessageKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

/// Sizes of the data messages that inner packets of `lens` bytes make.
fn message_sizes(lab: &mut Lab, lens: std::ops::RangeInclusive<usize>) -> Vec<(usize, usize)> {
    let flow = lab.udp(0, 1, 5);
    let sizes = lens.map(|len| {
        lab.world.network.clear_tap();
        lab.send(0, flow, 1, len - flow.header_len());
        lab.run(millis(50));
        let tapped = lab.tapped(0, MessageKind::Data);
        assert_eq!(tapped.len(), 1, "one message for {len} bytes");
        (len, tapped[0].datagram.bytes.len() - DATA_OVERHEAD)
    });
    sizes.collect()
}

#[test]
fn rule_12_padding_to_16_never_exceeds_the_mtu() {
    for mtu in [1420, 1281, 1279, 1408] {
        let mut lab = Lab::mesh(1, vec![HostConfig { mtu, ..HostConfig::default() }; 2]);
        lab.connect();
        let mtu = mtu as usize;
        for (len, padded) in message_sizes(&mut lab, mtu - 40..=mtu) {
            assert_eq!(padded, len.next_multiple_of(16).min(mtu), "{len} bytes at MTU {mtu}");
        }
        assert_eq!(lab.missing(), 0);
    }
}

#[test]
fn rule_12_padding_is_zero_and_only_padding_is_added() {
    let (mut lab, puppet, mut session) = with_puppet(1);
    let to: SocketAddr = (crate::puppet::puppet_inner(), 5).into();
    for len in [8, 9, 100, 1391, 1392] {
        let inner = lab.packet(Flow::udp((inner4(0), 5).into(), to), len);
        lab.host(0).send(&inner.flow, inner.to_frame());
        lab.world.run_for(millis(50));
        let datagram = puppet.hear(&mut lab, MessageKind::Data).unwrap();
        let content = session.open(&datagram).unwrap();
        let (packet, padding) = content.split_at(inner.to_packet().len());
        assert!(packet == inner.to_packet() && padding.len() < 16 && padding.iter().all(|&byte| byte == 0));
    }
}

#[test]
fn rule_12_mtu_zero_is_no_limit() {
    let mut lab = Lab::pair(1);
    lab.connect();
    lab.host(0).device().set_mtu(0);
    lab.world.settle();
    for (len, padded) in message_sizes(&mut lab, 1410..=1440) {
        assert_eq!(padded, len.next_multiple_of(16));
    }
}

#[test]
fn rule_12_changed_mtu_changes_the_padding() {
    let mut lab = Lab::pair(1);
    lab.connect();
    lab.host(0).device().set_mtu(1301);
    lab.world.settle();
    assert_eq!(message_sizes(&mut lab, 1300..=1301), [(1300, 1301), (1301, 1301)]);
}

#[test]
fn rule_12_outer_path_smaller_than_a_segment_is_no_black_hole() {
    for seed in seeds(10) {
        let mut lab = Lab::pair(seed);
        lab.connect();
        lab.host(0).ios().for_each(|io| io.link_mtu = 1280);
        for port in 0..5 {
            let (flow, payload) = (lab.tcp6(0, 1, 100 + port), lab.super_payload(20, 1300, 900));
            lab.send_super(0, Inner::new(flow, 1, payload), 1300);
            lab.run(millis(100));
        }
        lab.assert_all_arrived_in_order();
        assert!(lab.host(0).ios().any(|io| io.fragmented > 0));
    }
}

/// Every kind of super-packet that may come from the TUN device, in every shape.
fn super_packets(lab: &mut Lab) {
    let flows =
        [lab.udp(0, 1, 50), lab.tcp6(0, 1, 50), ringtun::sim::Flow { tcp: true, ..lab.udp(0, 1, 51) }];
    let mut sequence = 1;
    for flow in flows {
        for (count, size, last) in
            [(1, 1000, 1000), (1, 1000, 10), (2, 1000, 1), (45, 1300, 600), (60, 20, 8), (64, 8, 8)]
        {
            let mut payload = lab.super_payload(count, size, last.max(8));
            payload.truncate((count - 1) * size + last);
            let whole = Inner { tos: 0xb8, ..Inner::new(flow, if flow.tcp { sequence } else { 0 }, payload) };
            sequence += whole.payload.len() as u32;
            assert!(lab.send_super(0, whole, size as u16));
        }
    }
}

#[test]
fn rule_13_super_packets_of_any_shape_arrive() {
    for coalesce in [CoalesceOptions { tcp: true, udp: true, tunnels: true }, CoalesceOptions::default()] {
        for gso in [true, false] {
            let config = HostConfig { coalesce, gso, gro: gso, ..HostConfig::default() };
            let mut lab = Lab::mesh(1, vec![config; 2]);
            lab.connect();
            super_packets(&mut lab);
            lab.run(secs(1));
            lab.assert_all_arrived_in_order();
        }
    }
}

#[test]
fn rule_13_ecn_bit_in_gso_type_is_masked() {
    let mut lab = Lab::pair(1);
    lab.connect();
    let (flow, payload) = (lab.tcp6(0, 1, 50), lab.super_payload(5, 1000, 1000));
    // CWR: the frame carries VIRTIO_NET_HDR_GSO_ECN, and only the first segment shows the flag.
    let whole = Inner { flags: 0x98, tos: 2, ..Inner::new(flow, 1, payload) };
    lab.send_super(0, whole, 1000);
    lab.run(secs(1));
    lab.assert_all_arrived_in_order();
}

#[test]
fn rule_13_udp_checksum_of_zero_is_sent_as_all_ones() {
    let config = HostConfig { coalesce: CoalesceOptions::default(), ..HostConfig::default() };
    let mut lab = Lab::mesh(1, vec![config; 2]);
    lab.connect();
    for flow in [lab.udp(0, 1, 5), ringtun::sim::Flow { tcp: false, ..lab.tcp6(0, 1, 5) }] {
        let mut inner = lab.packet(flow, 32);
        inner.payload[30..].fill(0);
        // With the checksum that the packet has now as its last word, the sum becomes all ones and the checksum zero.
        let packet = inner.to_packet();
        let at = flow.header_len() - 2;
        inner.payload[30..].copy_from_slice(&packet[at..at + 2]);
        assert_eq!(inner.to_packet()[at..at + 2], [0xff; 2]);
        // As a super-packet of one segment the checksum is ours to complete. The receiving side refuses a zero.
        lab.send_super(0, inner, 1000);
    }
    lab.run(secs(1));
    lab.assert_all_arrived_in_order();
}

#[test]
fn rule_13_empty_inner_packets_arrive() {
    let mut lab = Lab::pair(1);
    lab.connect();
    for port in 0..3 {
        for flow in [lab.udp(0, 1, 60 + port), lab.tcp6(0, 1, 60 + port)] {
            lab.send_inner(0, Inner::new(flow, 1, Vec::new()));
            let flow = ringtun::sim::Flow { tcp: !flow.tcp, ..flow };
            lab.send_super(0, Inner::new(flow, 1, Vec::new()), 1);
        }
    }
    lab.run(secs(1));
    lab.assert_all_arrived_in_order();
}

#[test]
fn rule_13_nonsense_frames_are_counted_and_harm_nothing() {
    for seed in seeds(100) {
        let mut lab = Lab::pair(seed);
        lab.connect();
        let (flow, payload) = (lab.tcp6(0, 1, 50), lab.super_payload(5, 1000, 1000));
        let good = Inner::new(flow, 1, payload).to_super_frame(1000);
        for _ in 0..50 {
            let mut bad = good.clone();
            // Mostly in the headers.
            for _ in 0..=lab.world.rng().below(4) {
                let at = lab.world.rng().below(80) as usize;
                bad[at] = lab.world.rng().next_u64() as u8;
            }
            if lab.world.rng().chance(300) {
                bad.truncate(lab.world.rng().below(90) as usize);
            }
            lab.host(0).send(&flow, bad);
        }
        lab.world.run_for(secs(1));
        // What survives as some packet or other is not ours to judge; the tunnel is as it was.
        lab.host(1).take_delivered();
        let flow = lab.udp(0, 1, 5);
        lab.ledger = Default::default();
        lab.send(0, flow, 10, 100);
        lab.world.run_for(secs(1));
        let arrived = lab.host(1).take_delivered();
        assert_eq!(arrived.len(), 10);
    }
}

#[test]
fn rule_14_outer_ecn_is_the_inner_packets() {
    let mut lab = Lab::pair(1);
    lab.connect();
    let flow = lab.udp(0, 1, 5);
    for tos in [0, 1, 2, 3, 0xb8, 0xba] {
        lab.world.network.clear_tap();
        let inner = Inner { tos, ..lab.packet(flow, 64) };
        lab.send_inner(0, inner);
        lab.run(millis(50));
        assert_eq!(lab.tapped(0, MessageKind::Data)[0].datagram.ecn, tos & 3, "ECN and nothing of DSCP");
    }
    assert_eq!(lab.missing(), 0);
}

#[test]
fn rule_14_congestion_marks_reach_capable_inner_packets_only() {
    let mut lab = Lab::pair(1);
    lab.connect();
    lab.world.network.faults = Faults { congestion: 1000, ..Faults::default() };
    for (port, tos, expected) in [(5, 2, 3), (6, 1, 3), (7, 3, 3), (8, 0, 0), (9, 0xba, 0xbb)] {
        for flow in [lab.udp(0, 1, port), lab.tcp6(0, 1, port)] {
            let inner = Inner { tos, ..lab.packet(flow, 64) };
            lab.send_inner(0, inner);
            lab.world.run_for(millis(50));
            assert_eq!(lab.host(1).take_delivered()[0].tos, expected, "{tos:#x}");
        }
    }
    assert_eq!(lab.world.violations(), Vec::<String>::new());
}

#[test]
fn rule_14_mark_on_a_packet_that_is_not_capable_changes_nothing() {
    let (mut lab, puppet, session) = with_puppet(1);
    let inner = crate::replay::from_puppet(&mut lab);
    let bytes = session.seal(1, &inner);
    let to = lab.sites[0].addr;
    let marked = ringtun::sim::Datagram { from: puppet.addr, to, ecn: 3, bytes: bytes.into() };
    let now = lab.world.now();
    lab.world.network.inject(now, marked);
    lab.run(secs(1));
    assert_eq!(lab.missing(), 0, "delivered with its ECN bits untouched, as the ledger would tell");
}

/// Site 0 with two addresses per family.
fn two_addresses() -> Lab {
    let addresses = vec![
        Ipv4Addr::new(192, 0, 2, 1).into(),
        Ipv4Addr::new(192, 0, 2, 101).into(),
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
    ];
    let mut lab =
        Lab::mesh(1, vec![HostConfig { addresses, ..HostConfig::default() }, HostConfig::default()]);
    // Site 1 knows site 0 by its second address.
    let public = crate::lab::hex(&lab.public(0).0);
    lab.set(1, &format!("public_key={public}\nendpoint=192.0.2.101:51820\n"));
    let flow = lab.udp(1, 0, 5);
    lab.send(1, flow, 3, 64);
    lab.run(secs(1));
    lab
}

fn sources(lab: &Lab) -> Vec<SocketAddr> {
    lab.world
        .network
        .tap()
        .map(|tapped| tapped.datagram.from)
        .filter(|from| *from != lab.sites[1].addr)
        .collect()
}

#[test]
fn rule_14_source_address_is_sticky() {
    let mut lab = two_addresses();
    let flow = lab.udp(0, 1, 5);
    lab.send(0, flow, 10, 64);
    lab.run(secs(1));
    assert_eq!(lab.missing(), 0);
    let second: SocketAddr = "192.0.2.101:51820".parse().unwrap();
    assert!(
        sources(&lab).len() > 5 && sources(&lab).iter().all(|from| *from == second),
        "{:?}",
        sources(&lab)
    );
}

#[test]
fn rule_14_source_address_is_released_when_it_goes_away() {
    let mut lab = two_addresses();
    let sticky =
        |lab: &mut Lab| lab.host(0).device().peer_infos().next().and_then(|peer| peer.endpoint?.from);
    assert!(sticky(&mut lab).is_some());
    lab.host(0).addresses.remove(1);
    let flow = lab.udp(0, 1, 5);
    lab.send(0, flow, 1, 64);
    lab.run(millis(5));
    assert_eq!(sticky(&mut lab), None, "before anything came back");
    for _ in 0..5 {
        let flow = lab.udp(0, 1, 5);
        lab.send(0, flow, 2, 64);
        lab.run(secs(1));
        let flow = lab.udp(1, 0, 5);
        lab.send(1, flow, 2, 64);
        lab.run(secs(1));
    }
    assert_eq!(lab.missing(), 0, "from the first packet on");
    let first = lab.sites[0].addr;
    assert_eq!(sources(&lab).last(), Some(&first));
    assert_eq!(lab.endpoint(1, 0), Some(first));
}

/// Whoever is behind a translator hears only from the address that it speaks to.
#[test]
fn rule_14_source_stays_while_the_peer_is_heard_though_no_handshake_completes() {
    let mut lab = two_addresses();
    let (inside, public) = (lab.sites[1].addr, SocketAddr::from(([203, 0, 113, 1], 4000)));
    lab.world.network.translate(inside, public);
    lab.world.network.guard(inside);
    // Silence makes the site begin a handshake. None completes, also once the peer is there again.
    lab.world.network.filter = Some(Box::new(|datagram| datagram.kind() == Some(MessageKind::Data)));
    lab.world.network.cut(inside.ip(), true);
    for _ in 0..17 {
        let flow = lab.udp(0, 1, 5);
        lab.send(0, flow, 1, 64);
        lab.run(secs(1));
    }
    lab.world.network.cut(inside.ip(), false);
    let flow = lab.udp(1, 0, 6);
    lab.send(1, flow, 1, 64);
    lab.run(millis(100));
    let missing = lab.missing();
    for _ in 0..60 {
        let (flow, answer) = (lab.udp(1, 0, 6), lab.udp(0, 1, 7));
        lab.send(0, answer, 1, 64);
        lab.run(millis(200));
        lab.send(1, flow, 1, 64);
        lab.run(millis(200));
    }
    let attempt = |tapped: &&Tapped| {
        tapped.datagram.kind() == Some(MessageKind::Initiation) && tapped.datagram.to == public
    };
    assert!(lab.world.network.tap().filter(attempt).count() >= 4, "attempts went on");
    assert_eq!(lab.missing(), missing, "what was sent while the peer was heard arrived");
}
