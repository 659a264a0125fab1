//! What is neither TCP nor UDP.

use super::{BOTH, ONLY_V4, ONLY_V6, Row, row};
use crate::differential::packet::{Ends, ICMP, ICMPV6, Ip, Packet, Tcp, data, fold, sum};
use crate::pair::{V4, V6};

/// Twelve packets of a protocol.
fn carrying(ends: &Ends, protocol: u8, payload: impl Fn(usize) -> Vec<u8>) -> Vec<Packet> {
    let build = |i| ends.ip(&Ip { id: 0x1000 + i as u16, ..Ip::default() }, protocol, &payload(i)).into();
    (0..12).map(build).collect()
}

/// An inner packet of a TCP flow.
fn inner(family: crate::pair::Family, i: usize) -> Vec<u8> {
    let tcp = Tcp { sequence: 300 * i as u32, ..Tcp::default() };
    Ends::new(family, 77, 9).tcp(&Ip { id: i as u16 + 1, ..Ip::default() }, &tcp, &data(i, 300))
}

/// A GRE packet of a first half-word, with the fields that it announces, around an IPv4 packet.
fn gre(head: u16, fields: &[u8], i: usize) -> Vec<u8> {
    let mut packet = [&head.to_be_bytes()[..], &[8, 0], fields, &inner(V4, i)].concat();
    if head & 0x8000 != 0 {
        let sum = !fold(sum(&packet));
        packet[4..6].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

/// CRC32c, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
    })
}

/// An SCTP packet of two DATA chunks.
fn sctp(i: usize, damage: u32) -> Vec<u8> {
    let chunk = |n: u8| [&[0, 3, 0, 116, 0, 0, 0, n, 0, 1, 0, n, 0, 0, 0, 0][..], &data(i, 100)].concat();
    let mut packet =
        [&[0x9c, 0x40, 0x0b, 0x59, 0xde, 0xad, 0xbe, 0xef, 0, 0, 0, 0][..], &chunk(1), &chunk(2)].concat();
    let crc = crc32c(&packet) ^ damage;
    packet[8..12].copy_from_slice(&crc.to_le_bytes());
    packet
}

/// An ICMP or ICMPv6 message of a type and code.
fn icmp(ends: &Ends, kind: u8, code: u8, rest: &[u8], damage: u16) -> Vec<u8> {
    let mut message = [&[kind, code, 0, 0][..], rest].concat();
    let pseudo = if ends.family == V6 { ends.pseudo(ICMPV6, message.len()) } else { 0 };
    let sum = !fold(pseudo + sum(&message)) ^ damage;
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

pub(super) fn rows() -> Vec<Row> {
    [tunnels(), messages(), others()].into_iter().flatten().collect()
}

fn tunnels() -> Vec<Row> {
    vec![
        row("GRE", BOTH, |e| carrying(e, 47, |i| gre(0, &[], i))),
        row("GRE with checksum, key and sequence", BOTH, |e| {
            carrying(e, 47, |i| gre(0xb000, &[0, 0, 0, 0, 0, 0, 0, 42, 0, 0, 0, i as u8], i))
        }),
        row("GRE of version 1 (PPTP)", BOTH, |e| {
            carrying(e, 47, |i| {
                [&[0x30, 1, 0x88, 0x0b, 0, 40, 0, 7, 0, 0, 0, i as u8][..], &data(i, 40)].concat()
            })
        }),
        row("GRE with Ethernet", BOTH, |e| {
            carrying(e, 47, |i| [&[0, 0, 0x65, 0x58][..], &[2; 12], &[8, 0], &inner(V4, i)].concat())
        }),
        row("IPv4 in IP", BOTH, |e| carrying(e, 4, |i| inner(V4, i))),
        row("IPv6 in IP", BOTH, |e| carrying(e, 41, |i| inner(V6, i))),
        row("MPLS in IP", BOTH, |e| carrying(e, 137, |i| [&[0, 1, 1, 64][..], &inner(V4, i)].concat())),
        row("Ethernet in IP", BOTH, |e| carrying(e, 97, |i| [&[0x30, 0][..], &data(i, 60)].concat())),
        row("ESP", BOTH, |e| {
            carrying(e, 50, |i| [&[0, 0, 1, 0, 0, 0, 0, i as u8][..], &data(i, 200)].concat())
        }),
        row("L2TP", BOTH, |e| carrying(e, 115, |i| data(i, 90))),
    ]
}

fn messages() -> Vec<Row> {
    vec![
        row("echo requests of odd sizes", BOTH, |e| {
            let (protocol, kind) = if e.family == V4 { (ICMP, 8) } else { (ICMPV6, 128) };
            carrying(e, protocol, |i| icmp(e, kind, 0, &data(i, 4 + 111 * i), 0))
        }),
        row("echo requests with a wrong checksum", BOTH, |e| {
            let (protocol, kind) = if e.family == V4 { (ICMP, 8) } else { (ICMPV6, 128) };
            carrying(e, protocol, |i| icmp(e, kind, 0, &data(i, 60), 0x10))
        }),
        row("an error about a packet of its destination's", BOTH, |e| {
            let (protocol, kind) = if e.family == V4 { (ICMP, 3) } else { (ICMPV6, 1) };
            carrying(e, protocol, |i| icmp(e, kind, 3, &[&[0; 4][..], &inner(e.family, i)].concat(), 0))
        }),
        row("a packet that is too big, told", BOTH, |e| {
            let (protocol, kind, code) = if e.family == V4 { (ICMP, 3, 4) } else { (ICMPV6, 2, 0) };
            carrying(e, protocol, |i| {
                icmp(e, kind, code, &[&[0, 0, 5, 0][..], &inner(e.family, i)].concat(), 0)
            })
        }),
        row("messages of no known type", BOTH, |e| {
            let protocol = if e.family == V4 { ICMP } else { ICMPV6 };
            carrying(e, protocol, |i| icmp(e, 200 + i as u8, 9, &data(i, 30), 0))
        }),
        row("an ICMP header cut short", BOTH, |e| {
            let protocol = if e.family == V4 { ICMP } else { ICMPV6 };
            carrying(e, protocol, |i| data(i, i % 4))
        })
        .forwarded(),
        row("time stamps asked for", ONLY_V4, |e| carrying(e, ICMP, |i| icmp(e, 13, 0, &data(i, 16), 0))),
        row("ICMPv6 over IPv4, ICMP over IPv6", BOTH, |e| {
            carrying(e, if e.family == V4 { ICMPV6 } else { ICMP }, |i| data(i, 20))
        })
        .forwarded(),
        row("a neighbour solicitation with a hop limit of 255", ONLY_V6, |e| {
            let message = icmp(e, 135, 0, &[&[0; 4][..], &e.destination].concat(), 0);
            vec![e.ip(&Ip { ttl: 255, ..Ip::default() }, ICMPV6, &message).into()]
        })
        .forwarded(),
    ]
}

fn others() -> Vec<Row> {
    vec![
        row("SCTP", BOTH, |e| carrying(e, 132, |i| sctp(i, 0))),
        row("SCTP with a wrong CRC", BOTH, |e| carrying(e, 132, |i| sctp(i, 1))),
        row("DCCP", BOTH, |e| carrying(e, 33, |i| data(i, 64))),
        row("UDP-Lite that covers its header", BOTH, |e| {
            carrying(e, 136, |i| {
                let mut datagram = [&[0x9c, 0x40, 0x13, 0x89, 0, 8, 0, 0][..], &data(i, 300)].concat();
                let sum = !fold(e.pseudo(136, datagram.len()) + sum(&datagram[..8]));
                datagram[6..8].copy_from_slice(&sum.to_be_bytes());
                datagram
            })
        }),
        row("IGMP to one host", ONLY_V4, |e| carrying(e, 2, |i| data(i, 8))),
        row("OSPF", BOTH, |e| carrying(e, 89, |i| data(i, 44))),
        row("PIM", BOTH, |e| carrying(e, 103, |i| data(i, 30))),
        row("VRRP", BOTH, |e| carrying(e, 112, |i| data(i, 20))),
        row("an authentication header", ONLY_V4, |e| {
            carrying(e, 51, |i| {
                [&[6, 4, 0, 0, 0, 0, 1, 0, 0, 0, 0, i as u8][..], &[7; 12], &data(i, 40)].concat()
            })
        }),
        row("protocols of experiments", BOTH, |e| carrying(e, 253, |i| data(i, 1 + 100 * i))),
        row("the last protocol", BOTH, |e| carrying(e, 255, |i| data(i, 80))),
        row("protocol zero", ONLY_V4, |e| carrying(e, 0, |i| data(i, 80))),
        row("a header with nothing behind it", BOTH, |e| carrying(e, 253, |_| Vec::new())),
    ]
}
