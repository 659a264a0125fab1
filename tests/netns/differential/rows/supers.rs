//! Super-packets and unfinished checksums, as a client's or a program's kernel hands them down.

use super::{BOTH, ONLY_V4, ONLY_V6, Row, row};
use crate::differential::packet::{
    ACK, CWR, Checksum, DF, ECE, Ends, FIN, HOP_BY_HOP, Ip, PSH, Packet, Tcp, Udp, data, fold, sum,
};
use crate::differential::packet::{TCP, UDP};
use crate::pair::V4;

fn tcp(ends: &Ends, ip: Ip, tcp: Tcp, len: usize, gso_size: u16) -> Vec<Packet> {
    vec![ends.super_tcp(&ip, &tcp, len, gso_size)]
}

/// Super-packets that follow each other.
fn stream(ends: &Ends, lens: &[usize], gso_size: u16) -> Vec<Packet> {
    let (mut sequence, mut id) = (0_u32, 1_u16);
    let build = |&len: &usize| {
        let packet = ends.super_tcp(
            &Ip { id, ..Ip::default() },
            &Tcp { sequence, flags: ACK | PSH, ..Tcp::default() },
            len,
            gso_size,
        );
        sequence = sequence.wrapping_add(len as u32);
        id = id.wrapping_add(len.div_ceil(usize::from(gso_size)) as u16);
        packet
    };
    lens.iter().map(build).collect()
}

pub(super) fn rows() -> Vec<Row> {
    let rows = [segments(), datagrams(), unfinished()].into_iter().flatten();
    rows.map(Row::forwarded).collect()
}

fn segments() -> Vec<Row> {
    vec![
        row("a super-packet", BOTH, |e| tcp(e, Ip::default(), Tcp::default(), 13_600, 1360)),
        row("a super-packet with a short end", BOTH, |e| tcp(e, Ip::default(), Tcp::default(), 13_601, 1360)),
        row("the longest super-packet", BOTH, |e| tcp(e, Ip::default(), Tcp::default(), 65_000, 1360)),
        row("super-packets of a stream", BOTH, |e| stream(e, &[65_000, 20_000, 1, 40_001, 1360, 2720], 1360)),
        row("segments of 536 bytes", BOTH, |e| stream(e, &[30_000; 4], 536)),
        row("segments of 17 bytes", BOTH, |e| stream(e, &[1000, 1000], 17)),
        row("a super-packet with FIN and PSH", BOTH, |e| {
            tcp(e, Ip::default(), Tcp { flags: ACK | FIN | PSH, ..Tcp::default() }, 5000, 1000)
        }),
        row("a super-packet with CWR and ECE", BOTH, |e| {
            tcp(
                e,
                Ip { tos: 2, ..Ip::default() },
                Tcp { flags: ACK | CWR | ECE, ..Tcp::default() },
                5000,
                1000,
            )
        }),
        row("a super-packet with CWR that its header does not tell of", BOTH, |e| {
            let mut packets = tcp(e, Ip::default(), Tcp { flags: ACK | CWR, ..Tcp::default() }, 5000, 1000);
            packets[0].unfinished.gso &= 0x7f;
            packets
        }),
        row("a super-packet with congestion experienced", BOTH, |e| {
            tcp(e, Ip { tos: 3, ..Ip::default() }, Tcp::default(), 5000, 1000)
        }),
        row("a super-packet with timestamps", BOTH, |e| {
            let options = vec![1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8];
            tcp(e, Ip::default(), Tcp { options, ..Tcp::default() }, 13_480, 1348)
        }),
        row("a super-packet whose sequence number wraps", BOTH, |e| {
            tcp(e, Ip::default(), Tcp { sequence: u32::MAX - 2000, ..Tcp::default() }, 5000, 1000)
        }),
        row("a super-packet whose identification wraps", ONLY_V4, |e| {
            tcp(e, Ip { id: 0xfffd, fragment: DF, ..Ip::default() }, Tcp::default(), 8000, 1000)
        }),
        row("a super-packet with IP options", ONLY_V4, |e| {
            tcp(e, Ip { options: vec![1; 4], ..Ip::default() }, Tcp::default(), 5000, 1000)
        }),
        row("a super-packet behind hop-by-hop options", ONLY_V6, |e| {
            let extensions = vec![(HOP_BY_HOP, vec![0, 0, 1, 4, 0, 0, 0, 0])];
            tcp(e, Ip { extensions, ..Ip::default() }, Tcp::default(), 5000, 1000)
        }),
    ]
}

fn datagrams() -> Vec<Row> {
    vec![
        row("a UDP super-packet", BOTH, |e| vec![e.super_udp(&Ip::default(), 12_000, 1200)]),
        row("a UDP super-packet with a short end", BOTH, |e| vec![e.super_udp(&Ip::default(), 12_001, 1200)]),
        row("a UDP super-packet of 64 datagrams", BOTH, |e| vec![e.super_udp(&Ip::default(), 64 * 900, 900)]),
        row("a UDP super-packet of tiny datagrams", BOTH, |e| vec![e.super_udp(&Ip::default(), 50, 1)]),
        row("UDP super-packets one after the other", BOTH, |e| {
            let build = |i: u16| e.super_udp(&Ip { id: 1 + 10 * i, ..Ip::default() }, 10_000, 1000);
            (0..6).map(build).collect()
        }),
        row("a UDP super-packet with marks", BOTH, |e| {
            vec![e.super_udp(&Ip { tos: 0xb9, ..Ip::default() }, 5000, 1000)]
        }),
    ]
}

fn unfinished() -> Vec<Row> {
    vec![
        row("an unfinished TCP checksum", BOTH, |e| {
            let tcp = Tcp { checksum: Checksum::Partial, ..Tcp::default() };
            let bytes = e.tcp(&Ip::default(), &tcp, &data(0, 700));
            vec![e.unfinished(bytes, 20, 700, (0, 0), 16)]
        }),
        row("an unfinished UDP checksum", BOTH, |e| {
            let udp = Udp { checksum: Checksum::Partial, ..Udp::default() };
            let bytes = e.udp(&Ip::default(), &udp, &data(0, 701));
            vec![e.unfinished(bytes, 8, 701, (0, 0), 6)]
        }),
        row("an unfinished UDP checksum that comes to zero", BOTH, |e| {
            let zero = e.datagram(&Udp { checksum: Checksum::Is(0), ..Udp::default() }, &[0; 2]);
            let rest = !fold(sum(&zero) + e.pseudo(UDP, zero.len()));
            let udp = Udp { checksum: Checksum::Partial, ..Udp::default() };
            let bytes = e.udp(&Ip::default(), &udp, &rest.to_be_bytes());
            vec![e.unfinished(bytes, 8, 2, (0, 0), 6)]
        }),
        row("an unfinished checksum and marks, among finished ones", BOTH, |e| {
            let mut packets = e.run(&[700; 4], |_, ip, _| ip.tos = 2);
            let tcp = Tcp {
                checksum: Checksum::Partial,
                sequence: Tcp::default().sequence + 700,
                ..Tcp::default()
            };
            let bytes = e.tcp(&Ip { tos: 2, id: 0x1001, ..Ip::default() }, &tcp, &data(1, 700));
            let header = if e.family == V4 { 20 } else { 40 };
            assert_eq!(bytes[if e.family == V4 { 9 } else { 6 }], TCP);
            assert_eq!(bytes.len(), header + 720);
            packets[1] = e.unfinished(bytes, 20, 700, (0, 0), 16);
            packets
        }),
    ]
}
