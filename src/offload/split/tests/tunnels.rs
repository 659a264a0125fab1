//! Super-packets of UDP tunnels: each segment is the tunnel around a segment of the inner super-packet.

use super::*;
use crate::offload::coalesce::TunnelKind::{Geneve, Vxlan};
use crate::wire::vnet::F_TUNNEL_CSUM;

/// The segments of the inner super-packet, each with the tunnel around it.
fn expected(around: &Around, inner: &Spec, gso_size: u16) -> Vec<Vec<u8>> {
    let inner = packets(&inner.frame(Some(gso_size)), 0).unwrap();
    inner.iter().zip(0..).map(|(packet, index)| around.packet(index, packet)).collect()
}

/// Each kind of tunnel, over each family, with and without a checksum.
fn tunnels() -> Vec<Around> {
    let mut all = vec![];
    for kind in [Vxlan, Geneve] {
        for (v6, summed) in [(false, false), (false, true), (true, false), (true, true)] {
            all.push(Around::new(kind, v6, summed));
        }
    }
    all
}

#[test]
fn a_tunnels_super_packet_becomes_the_tunnel_around_each_inner_segment() {
    for around in tunnels() {
        for (v6, udp) in [(false, false), (false, true), (true, false), (true, true)] {
            for len in [1, 1000, 1001, 20_000, 45 * 1000] {
                let mut inner = Spec::new(v6, udp, pattern(len));
                inner.flags = ACK | PSH | CWR;
                assert_eq!(
                    packets(&around.frame(&inner, 1000), 1420).unwrap(),
                    expected(&around, &inner, 1000),
                    "{around:?} v6 {v6}, udp {udp}, {len}"
                );
            }
        }
    }
}

#[test]
fn a_checksum_of_zero_stays_and_a_computed_one_is_never_zero() {
    let inner = Spec::new(false, false, pattern(1000));
    for v6 in [false, true] {
        let mut around = Around::new(Vxlan, v6, true);
        let field = around.outer.transport() + 6;
        let first = |around: &Around| packets(&around.frame(&inner, 1000), 1420).unwrap().swap_remove(0);
        around.outer.port = 0;
        // The port that makes the sum all ones, its complement zero.
        around.outer.port = be16(&first(&around), field);
        assert_eq!(be16(&first(&around), field), 0xffff);
        around.summed = false;
        assert_eq!(be16(&first(&around), field), 0);
    }
}

#[test]
fn the_offset_of_the_outer_udp_header_is_not_trusted() {
    let around = Around::new(Geneve, true, true);
    let inner = Spec::new(false, false, pattern(3000));
    let mut frame = around.frame(&inner, 1000);
    for offset in [0u16, 40, 41, 0xffff] {
        frame[20..22].copy_from_slice(&offset.to_le_bytes());
        assert_eq!(packets(&frame, 1420).unwrap(), expected(&around, &inner, 1000));
    }
}

#[test]
fn rule_16_no_inner_segment_of_a_damaged_tunnel_packet_verifies() {
    let around = Around::new(Vxlan, false, true);
    let inner = Spec::new(false, false, pattern(100));
    let at = VNET_HDR_LEN + around.inner();
    let mut whole = around.frame(&inner, 33);
    whole.truncate(at);
    whole[0] = F_TUNNEL_CSUM;
    whole.extend(inner.packet());
    for bit in (at + 20) * 8..whole.len() * 8 {
        let mut frame = whole.clone();
        frame[bit / 8] ^= 1 << (bit % 8);
        // Of TCP's data offset the split goes on; what it says must agree with the rest.
        if bit / 8 == at + 32 {
            continue;
        }
        for packet in packets(&frame, 0).unwrap() {
            assert!(!verifies(&inner, &packet[around.inner()..]), "bit {bit}");
        }
    }
}

#[test]
fn each_contradiction_of_a_tunnel_has_its_error() {
    let around = Around::new(Vxlan, false, false);
    let whole = around.frame(&Spec::new(false, false, pattern(3000)), 1000);
    let with = |at: usize, bytes: &[u8]| {
        let mut frame = whole.clone();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        error(&frame)
    };
    assert_eq!(error(&whole), None);
    assert_eq!(with(1, &[0x20]), Some(SplitError::Vnet), "a tunnel without segments");
    assert_eq!(with(1, &[0x61]), Some(SplitError::Vnet), "both families");
    assert_eq!(with(22, &27u16.to_le_bytes()), Some(SplitError::Transport), "inside the UDP header");
    assert_eq!(with(22, &28u16.to_le_bytes()), Some(SplitError::Ip), "the tunnel's header is no IP");
    assert_eq!(with(22, &0xffffu16.to_le_bytes()), Some(SplitError::Transport));
    assert_eq!(with(VNET_HDR_LEN + 9, &[TCP]), Some(SplitError::Transport), "outer TCP");
    assert_eq!(with(VNET_HDR_LEN + 6, &[0x20]), Some(SplitError::Transport), "outer fragment");
    let inner = VNET_HDR_LEN + around.inner();
    assert_eq!(with(inner + 2, &3039u16.to_be_bytes()), Some(SplitError::Ip), "inner length");
    assert_eq!(with(inner + 9, &[UDP]), Some(SplitError::Transport), "TSO of UDP");
    assert_eq!(with(1, &[0x24]), Some(SplitError::Transport), "inner TCPv6 over IPv4");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_segment_of_a_tunnel_is_the_tunnel_around_one_of_the_inner(
        inner in any_spec(20_000), gso_size in 200u16..2000, which in 0usize..8, id: u16, tos: u8,
    ) {
        let mut around = tunnels().swap_remove(which);
        (around.outer.id, around.outer.tos) = (id, tos);
        prop_assert_eq!(
            packets(&around.frame(&inner, gso_size), 0).unwrap(), expected(&around, &inner, gso_size)
        );
    }

    #[test]
    fn rule_5_mutated_frames_of_tunnels_never_panic(
        inner in any_spec(2000), gso_size in 0u16..600, which in 0usize..8,
        mutations in prop::collection::vec((0usize..180, any::<u8>()), 1..6), cut in 0usize..3000,
    ) {
        let mut frame = tunnels()[which].frame(&inner, gso_size);
        for (at, value) in mutations {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        frame.truncate(cut.max(frame.len() / 2));
        let _ = split(&frame, 1420, &TrainLimits::default());
    }
}
