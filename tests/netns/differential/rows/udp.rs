//! UDP, and what travels in it.

use super::{BOTH, ONLY_V4, Row, row};
use crate::differential::packet::{Checksum, Ends, Ip, Packet, Tcp, UDP, Udp, data, fold, sum};
use crate::pair::V4;

const BURST: [usize; 12] = [400; 12];

/// An inner IP packet of a TCP flow.
fn inner(i: usize) -> Vec<u8> {
    let tcp = Tcp { sequence: 300 * i as u32, ..Tcp::default() };
    Ends::new(V4, 77, 9).tcp(&Ip { id: i as u16 + 1, ..Ip::default() }, &tcp, &data(i, 300))
}

/// The same in an Ethernet frame.
fn frame(i: usize) -> Vec<u8> {
    [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0][..], &inner(i)].concat()
}

/// Datagrams to a port, each with one of these.
fn carrying(ends: &Ends, port: u16, checksum: Checksum, payload: fn(usize) -> Vec<u8>) -> Vec<Packet> {
    let build = |i| {
        let ip = Ip { id: 0x1000 + i as u16, ..Ip::default() };
        let udp = Udp { destination: port, checksum, ..Udp::default() };
        ends.udp(&ip, &udp, &payload(i)).into()
    };
    (0..12).map(build).collect()
}

fn vxlan(i: usize) -> Vec<u8> {
    [&[8, 0, 0, 0, 0, 0, 42, 0][..], &frame(i)].concat()
}

/// With an option.
fn geneve(i: usize) -> Vec<u8> {
    [&[2, 0, 0x65, 0x58, 0, 0, 42, 0, 1, 2, 3, 1, 9, 9, 9, 9][..], &frame(i)].concat()
}

fn gtp(i: usize) -> Vec<u8> {
    [&[0x30, 0xff, 1, 84, 0, 0, 0, 7][..], &inner(i)].concat()
}

/// WireGuard's transport message, and its initiation.
fn wireguard(i: usize) -> Vec<u8> {
    if i % 4 == 3 {
        [&[1, 0, 0, 0][..], &data(i, 144)].concat()
    } else {
        [&[4, 0, 0, 0][..], &data(i, 444)].concat()
    }
}

/// Data that makes the checksum come to zero, which is then sent as 0xffff.
fn summing_to_zero(ends: &Ends) -> Vec<u8> {
    let empty = ends.datagram(&Udp { checksum: Checksum::Is(0), ..Udp::default() }, &[0; 2]);
    (!fold(sum(&empty) + ends.pseudo(UDP, empty.len()))).to_be_bytes().to_vec()
}

pub(super) fn rows() -> Vec<Row> {
    [sizes(), checksums(), lengths(), carried()].into_iter().flatten().collect()
}

fn sizes() -> Vec<Row> {
    vec![
        row("a burst of equal datagrams", BOTH, |e| e.burst(&[1200; 50], |_, _, _| {})),
        row("more datagrams than a run may have", BOTH, |e| e.burst(&[50; 150], |_, _, _| {})),
        row("datagrams of the tunnel's full size", BOTH, |e| e.burst(&[1372; 20], |_, _, _| {})),
        row("datagrams, the last shorter", BOTH, |e| e.burst(&[600, 600, 600, 5, 600, 600], |_, _, _| {})),
        row("datagrams that grow", BOTH, |e| e.burst(&[1, 2, 4, 8, 500, 1372], |_, _, _| {})),
        row("empty datagrams", BOTH, |e| e.burst(&[0; 8], |_, _, _| {})),
        row("empty datagrams among others", BOTH, |e| e.burst(&[9, 0, 9, 9, 0, 0, 9], |_, _, _| {})),
        row("datagrams of one byte", BOTH, |e| e.burst(&[1; 30], |_, _, _| {})),
        row("datagrams of many flows that take turns", BOTH, |e| {
            e.burst(&[300; 60], |i, _, udp| udp.source += (i % 20) as u16)
        })
        .several_flows(),
    ]
}

fn checksums() -> Vec<Row> {
    vec![
        row("UDP without checksum", BOTH, |e| e.burst(&BURST, |_, _, udp| udp.checksum = Checksum::Is(0))),
        row("some without checksum", BOTH, |e| {
            e.burst(&BURST, |i, _, udp| {
                udp.checksum = if i % 3 == 1 { Checksum::Is(0) } else { Checksum::Right }
            })
        }),
        row("some with a wrong checksum", BOTH, |e| {
            e.burst(&BURST, |i, _, udp| {
                udp.checksum = if i % 3 == 1 { Checksum::Wrong } else { Checksum::Right }
            })
        }),
        row("wrong checksums only, of UDP", BOTH, |e| {
            e.burst(&BURST, |_, _, udp| udp.checksum = Checksum::Wrong)
        }),
        row("a UDP checksum that comes to zero", BOTH, |e| {
            let build =
                |i| e.udp(&Ip { id: i, ..Ip::default() }, &Udp::default(), &summing_to_zero(e)).into();
            (1..8).map(build).collect()
        }),
        row("datagrams that were damaged after they were summed", BOTH, |e| {
            let mut packets = e.burst(&BURST, |_, _, _| {});
            for packet in packets.iter_mut().step_by(5) {
                *packet.bytes.last_mut().expect("data") ^= 1;
            }
            packets
        }),
    ]
}

fn lengths() -> Vec<Row> {
    vec![
        row("a length short of the packet's", BOTH, |e| {
            e.burst(&BURST, |i, _, udp| udp.length = (i % 2 == 0).then_some(100))
        }),
        row("a length beyond the packet's", BOTH, |e| {
            e.burst(&BURST, |i, _, udp| udp.length = (i % 2 == 0).then_some(4000))
        }),
        row("a length of less than a header", BOTH, |e| {
            e.burst(&BURST, |i, _, udp| udp.length = (i % 2 == 0).then_some((i % 8) as u16))
        }),
        row("a UDP header cut short", BOTH, |e| {
            let whole = e.datagram(&Udp::default(), &[]);
            [0, 1, 4, 7].map(|len| e.ip(&Ip::default(), UDP, &whole[..len]).into()).to_vec()
        }),
        row("ports of zero", BOTH, |e| e.burst(&BURST, |_, _, udp| (udp.source, udp.destination) = (0, 0))),
    ]
}

fn carried() -> Vec<Row> {
    vec![
        row("VXLAN", BOTH, |e| carrying(e, 4789, Checksum::Right, vxlan)),
        row("VXLAN without outer checksum", BOTH, |e| carrying(e, 4789, Checksum::Is(0), vxlan)),
        row("VXLAN with a wrong outer checksum", BOTH, |e| carrying(e, 4789, Checksum::Wrong, vxlan)),
        row("GENEVE with an option", BOTH, |e| carrying(e, 6081, Checksum::Right, geneve)),
        row("GENEVE without outer checksum", BOTH, |e| carrying(e, 6081, Checksum::Is(0), geneve)),
        row("GTP", BOTH, |e| carrying(e, 2152, Checksum::Right, gtp)),
        row("WireGuard in WireGuard", BOTH, |e| carrying(e, 51820, Checksum::Right, wireguard)),
        row("ESP in UDP, whose checksum is zero", ONLY_V4, |e| {
            carrying(e, 4500, Checksum::Is(0), |i| data(i, 120))
        }),
    ]
}
