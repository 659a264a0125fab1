//! TCP inside UDP tunnels.

use super::*;
use TunnelKind::{Geneve, Vxlan};

/// The destination port of all packets of [`Spec`].
const PORT: u16 = 40_000;

/// Each family outside and inside, with and without an outer checksum.
fn shapes(kind: TunnelKind) -> Vec<(Around, bool)> {
    let mut all = vec![];
    for (v6, summed) in [(false, false), (false, true), (true, false), (true, true)] {
        all.extend([false, true].map(|inner_v6| (Around::new(kind, v6, summed), inner_v6)));
    }
    all
}

fn coalesce_at(kind: TunnelKind, packets: &[Vec<u8>]) -> (Vec<(Vec<u8>, usize)>, [u64; REFUSALS]) {
    let mut ports = TunnelPorts::default();
    ports.add(kind, PORT);
    coalesce_for(BOTH, ports, packets)
}

/// `count` packets of `len` bytes of payload each that follow each other in a tunnel.
fn flow(around: &Around, v6: bool, len: usize, count: u16) -> Vec<Vec<u8>> {
    let mut inner = Spec::new(v6, false, pattern(len));
    let mut next = |index: u16| {
        let packet = around.packet(index, &inner.packet());
        inner.sequence += len as u32;
        inner.id = inner.id.wrapping_add(1);
        packet
    };
    (0..count).map(&mut next).collect()
}

/// The numbers of packets in the frames.
fn counts(frames: &[(Vec<u8>, usize)]) -> Vec<usize> {
    frames.iter().map(|(_, packets)| *packets).collect()
}

#[test]
fn a_split_super_packet_of_a_tunnel_coalesces_to_itself() {
    for kind in [Vxlan, Geneve] {
        for (around, v6) in shapes(kind) {
            for len in [45 * 1300, 45 * 1300 - 999, 1301, 20_000] {
                let mut inner = Spec::new(v6, false, pattern(len));
                (inner.flags, inner.tos, inner.options) = (ACK | PSH, 0xb8, pattern(12));
                let frame = around.frame(&inner, 1300);
                assert_eq!(coalesce_at(kind, &segment(&frame)).0, [(frame, len.div_ceil(1300))]);
            }
        }
    }
}

#[test]
fn rule_16_whatever_bit_in_a_tunnel_is_damaged_it_arrives_as_it_is() {
    for kind in [Vxlan, Geneve] {
        for (around, v6) in shapes(kind) {
            let packets = flow(&around, v6, 33, 3);
            assert_eq!(counts(&coalesce_at(kind, &packets).0), [3], "undamaged, they join");
            for damaged in 0..packets.len() {
                for bit in 0..packets[damaged].len() * 8 {
                    let mut packets = packets.clone();
                    packets[damaged][bit / 8] ^= 1 << (bit % 8);
                    let mut delivered = delivered(&coalesce_at(kind, &packets).0);
                    delivered.sort();
                    packets.sort();
                    assert_eq!(
                        delivered, packets,
                        "{around:?}, inner v6 {v6}: bit {bit} of packet {damaged}"
                    );
                }
            }
        }
    }
}

#[test]
fn rule_16_what_another_worker_found_right_outside_is_verified_inside_all_the_same() {
    let around = Around::new(Vxlan, false, true);
    let mut inner = Spec::new(false, false, pattern(100)).packet();
    *inner.last_mut().unwrap() ^= 1;
    // The outer checksum covers the damage, as that of a tunnel which began behind it.
    let packets = [around.packet(0, &inner), flow(&around, false, 100, 2).remove(1)];
    assert!(packets.iter().all(|packet| verifies(packet)));
    let (mut train, ranges) = lay(&packets);
    let mut coalescer = Coalescer::default();
    let mut ports = TunnelPorts::default();
    ports.add(Vxlan, PORT);
    coalescer.set_tunnels(ports);
    coalescer.start(BOTH);
    ranges.into_iter().for_each(|range| coalescer.push_verified(&mut train, range));
    assert_eq!(coalescer.finish(&mut train).len(), 2);
    assert_eq!(coalescer.take_refusals()[Refusal::Checksum as usize], 1);
}

#[test]
fn other_tunnel_headers_and_other_inner_flows_are_refused() {
    type Change = fn(&mut Around, &mut Spec);
    let changes: [(Change, Refusal); 12] = [
        (|around, _| around.shim[6] = 43, Refusal::Headers),
        (|around, _| around.outer.ttl = 63, Refusal::Headers),
        (|around, _| around.outer.tos = 1, Refusal::Headers),
        (|around, _| around.summed = !around.summed, Refusal::Headers),
        (|_, inner| inner.port = 1, Refusal::Headers),
        (|_, inner| inner.host = 9, Refusal::Headers),
        (|_, inner| inner.ttl = 63, Refusal::Headers),
        (|_, inner| inner.tos = 1, Refusal::Headers),
        (|_, inner| inner.window = 1, Refusal::Headers),
        (|_, inner| inner.sequence += 1, Refusal::Sequence),
        (|_, inner| inner.payload.push(0), Refusal::Size),
        (|_, inner| inner.v6 = !inner.v6, Refusal::Headers),
    ];
    for kind in [Vxlan, Geneve] {
        for (around, v6) in shapes(kind) {
            let first = around.packet(0, &Spec::new(v6, false, pattern(100)).packet());
            for (change, refusal) in &changes {
                let (mut around, mut inner) = (around.clone(), Spec::new(v6, false, pattern(100)));
                (inner.id, inner.sequence) = (inner.id + 1, inner.sequence + 100);
                change(&mut around, &mut inner);
                let packets = [first.clone(), around.packet(1, &inner.packet())];
                let (frames, refusals) = coalesce_at(kind, &packets);
                assert_eq!(delivered(&frames), packets);
                assert_eq!(counts(&frames), [1, 1]);
                assert_eq!(refusals[*refusal as usize], 1, "{refusal:?} {refusals:?}");
            }
        }
    }
}

#[test]
fn identifications_go_on_outside_and_inside() {
    let ids = |outer: [u16; 2], inner: [u16; 2], fragment: u16| {
        let mut around = Around::new(Vxlan, false, false);
        let packets: Vec<Vec<u8>> = (0..2)
            .map(|n| {
                around.outer.id = outer[n];
                let mut packet = Spec::new(false, false, pattern(100));
                (packet.id, packet.fragment, packet.sequence) = (inner[n], fragment, 100 * n as u32);
                around.packet(0, &packet.packet())
            })
            .collect();
        counts(&coalesce_at(Vxlan, &packets).0)
    };
    assert_eq!(ids([65_535, 0], [1, 2], 0), [2]);
    assert_eq!(ids([1, 2], [0, 0], 0x4000), [2]);
    assert_eq!(ids([1, 2], [0, 0], 0), [1, 1]);
    assert_eq!(ids([1, 3], [1, 2], 0), [1, 1]);
    assert_eq!(ids([1, 1], [1, 2], 0), [1, 1]);
    assert_eq!(ids([1, 2], [1, 3], 0), [1, 1]);
}

#[test]
fn nothing_overtakes_another_in_an_outer_flow() {
    let around = Around::new(Vxlan, false, false);
    let mut packets = flow(&around, false, 100, 3);
    let mut pure = Spec::new(false, false, vec![]);
    pure.port = 7;
    packets.insert(1, around.packet(0, &pure.packet()));
    let (frames, _) = coalesce_at(Vxlan, &packets);
    assert_eq!(delivered(&frames), packets);
    assert_eq!(counts(&frames), [1, 1, 2]);
}

#[test]
fn what_is_no_tunnel_with_tcp_inside_goes_as_plain_udp() {
    let around = Around::new(Vxlan, false, true);
    let summed = flow(&around, false, 100, 2);
    let other_port = coalesce_with(BOTH, &summed);
    assert_eq!(counts(&other_port.0), [2]);
    assert_eq!(other_port.0[0].0[1], 5, "UDP segmentation, which a plain receiver knows");
    assert_eq!(counts(&coalesce_at(Geneve, &summed).0), [2]);
    assert_eq!(coalesce_at(Geneve, &summed).0[0].0[1], 5);

    let unsummed = Around { summed: false, ..around.clone() };
    assert_eq!(counts(&coalesce_with(BOTH, &flow(&unsummed, false, 100, 2)).0), [1, 1]);
    let mut ports = TunnelPorts::default();
    ports.add(Vxlan, PORT);
    let without = CoalesceOptions { tunnels: false, ..BOTH };
    assert_eq!(counts(&coalesce_for(without, ports, &flow(&unsummed, false, 100, 2)).0), [1, 1]);

    for (byte, value) in [(0, 12), (0, 0), (1, 0x20), (3, 1)] {
        let mut other = unsummed.clone();
        other.shim[byte] = value;
        assert_eq!(counts(&coalesce_at(Vxlan, &flow(&other, false, 100, 2)).0), [1, 1], "VXLAN {byte}");
    }
    for (byte, value) in [(0, 0x42), (0, 3), (1, 0x80), (3, 0)] {
        let mut other = Around::new(Geneve, false, false);
        other.shim[byte] = value;
        assert_eq!(counts(&coalesce_at(Geneve, &flow(&other, false, 100, 2)).0), [1, 1], "GENEVE {byte}");
    }
    let udp = |id| Spec { id, ..Spec::new(false, true, pattern(100)) }.packet();
    let packets = [unsummed.packet(0, &udp(1)), unsummed.packet(1, &udp(2))];
    assert_eq!(counts(&coalesce_at(Vxlan, &packets).0), [1, 1], "UDP inside");
}

#[test]
fn a_run_in_a_tunnel_holds_64_packets_and_64_kib() {
    for (around, v6) in shapes(Geneve) {
        for (len, count) in [(16, 65), (1300, 60)] {
            let packets = flow(&around, v6, len, count);
            let headers = packets[0].len() - len;
            let (frames, refusals) = coalesce_at(Geneve, &packets);
            assert_eq!(refusals[Refusal::Full as usize], 1);
            let first = MAX_RUN_PACKETS.min((MAX_RUN_BYTES - headers) / len);
            assert_eq!(counts(&frames), [first, usize::from(count) - first]);
            assert_eq!(delivered(&frames), packets);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn rule_16_mutated_trains_of_tunnels_lose_nothing_and_join_nothing_damaged(
        which in 0usize..8, len in 1usize..300, count in 1u16..20,
        mutations in prop::collection::vec((any::<prop::sample::Index>(), 0usize..180, 1u8..=255), 0..8),
    ) {
        let (around, v6) = shapes(Vxlan).swap_remove(which);
        let mut packets = flow(&around, v6, len, count);
        for (which, at, change) in mutations {
            let packet = which.get_mut(&mut packets);
            // A damaged length is no packet any more, which is noticed before.
            let lengths = if around.outer.v6 { 4..6 } else { 2..4 };
            let at = at % packet.len();
            if !lengths.contains(&at) && at > 0 {
                packet[at] ^= change;
            }
        }
        let mut delivered = delivered(&coalesce_at(Vxlan, &packets).0);
        delivered.sort();
        packets.sort();
        prop_assert_eq!(delivered, packets);
    }
}
