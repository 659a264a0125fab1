//! TCP: what stands between packets that could be joined, and what is no good TCP at all.

use super::{BOTH, Row, row};
use crate::differential::packet::{
    ACK, CWR, Checksum, ECE, Ends, FIN, Ip, PSH, Packet, RST, SYN, TCP, Tcp, URG, data, fold, sum,
};

const RUN: [usize; 12] = [500; 12];

/// NOP, NOP, timestamp.
fn timestamp(value: u32) -> Vec<u8> {
    [&[1, 1, 8, 10][..], &value.to_be_bytes(), &[0, 0, 0, 7]].concat()
}

/// Data that makes the checksum of a segment come to zero.
fn summing_to_zero(ends: &Ends, tcp: &Tcp) -> Vec<u8> {
    let empty = ends.segment(&Tcp { checksum: Checksum::Is(0), ..tcp.clone() }, &[0; 2]);
    (!fold(sum(&empty) + ends.pseudo(TCP, empty.len()))).to_be_bytes().to_vec()
}

pub(super) fn rows() -> Vec<Row> {
    [sizes(), flags(), fields(), options(), checksums()].into_iter().flatten().collect()
}

fn sizes() -> Vec<Row> {
    vec![
        row("a lone segment", BOTH, |e| e.run(&[1360], |_, _, _| {})),
        row("a run of equal segments", BOTH, |e| e.run(&[1360; 60], |_, _, _| {})),
        row("more segments than a run may have", BOTH, |e| e.run(&[100; 150], |_, _, _| {})),
        row("a run whose last is shorter", BOTH, |e| e.run(&[700, 700, 700, 12], |_, _, _| {})),
        row("segments that grow", BOTH, |e| e.run(&[1, 10, 100, 1000, 1001], |_, _, _| {})),
        row("segments that shrink", BOTH, |e| e.run(&[1360, 900, 899, 3, 1], |_, _, _| {})),
        row("segments of one byte", BOTH, |e| e.run(&[1; 20], |_, _, _| {})),
        row("segments of odd sizes", BOTH, |e| e.run(&[7, 7, 7, 333, 333, 1359, 1359], |_, _, _| {})),
        row("acknowledgments between data", BOTH, |e| e.run(&[500, 0, 500, 0, 0, 500], |_, _, _| {})),
        row("equal acknowledgments", BOTH, |e| e.run(&[0; 10], |_, _, _| {})),
        row("two flows that take turns", BOTH, |e| {
            e.run(&RUN, |i, _, tcp| {
                tcp.source += (i % 2) as u16;
                tcp.sequence = 1000 + (i / 2 * 500) as u32;
            })
        })
        .several_flows(),
        row("more flows than a train joins at a time", BOTH, |e| {
            e.run(&[500; 57], |i, _, tcp| {
                tcp.source += (i % 19) as u16;
                tcp.sequence = 1000 + (i / 19 * 500) as u32;
            })
        })
        .several_flows(),
        row("full segments and acknowledgments of other flows", BOTH, |e| {
            let sizes: [usize; 40] = std::array::from_fn(|i| if i % 2 == 0 { 1360 } else { 0 });
            e.run(&sizes, |i, _, tcp| tcp.source += (i % 2) as u16)
        })
        .several_flows(),
    ]
}

fn flags() -> Vec<Row> {
    vec![
        row("no flag at all", BOTH, |e| e.run(&RUN, |_, _, tcp| tcp.flags = 0)),
        row("SYN and FIN", BOTH, |e| e.run(&[0, 500], |_, _, tcp| tcp.flags = SYN | FIN)),
        row("all flags", BOTH, |e| e.run(&RUN, |_, _, tcp| tcp.flags = 0xff)),
        row("FIN, PSH, URG", BOTH, |e| e.run(&[0, 9], |_, _, tcp| tcp.flags = FIN | PSH | URG)),
        row("RST with data", BOTH, |e| {
            e.run(&RUN, |i, _, tcp| tcp.flags = if i == 6 { RST | ACK } else { ACK })
        }),
        row("SYN with data", BOTH, |e| {
            e.run(&[500; 3], |i, _, tcp| tcp.flags = if i == 0 { SYN } else { ACK })
        }),
        row("PSH in a run", BOTH, |e| e.run(&RUN, |i, _, tcp| tcp.flags |= if i % 5 == 2 { PSH } else { 0 })),
        row("PSH on each", BOTH, |e| e.run(&RUN, |_, _, tcp| tcp.flags |= PSH)),
        row("FIN in a run", BOTH, |e| e.run(&RUN, |i, _, tcp| tcp.flags |= if i == 5 { FIN } else { 0 })),
        row("FIN at the end", BOTH, |e| {
            e.run(&RUN, |i, _, tcp| tcp.flags |= if i == 11 { FIN | PSH } else { 0 })
        }),
        row("URG in a run", BOTH, |e| {
            e.run(&RUN, |i, _, tcp| {
                if i == 4 {
                    (tcp.flags, tcp.urgent) = (ACK | URG, 9);
                }
            })
        }),
        row("ECE from the middle on", BOTH, |e| {
            e.run(&RUN, |i, _, tcp| tcp.flags |= if i > 5 { ECE } else { 0 })
        }),
        row("CWR in a run", BOTH, |e| e.run(&RUN, |i, _, tcp| tcp.flags |= if i == 3 { CWR } else { 0 })),
        row("CWR in every packet of a run", BOTH, |e| e.run(&RUN, |_, _, tcp| tcp.flags |= CWR)),
        row("CWR and ECE first", BOTH, |e| {
            e.run(&RUN, |i, _, tcp| tcp.flags |= if i == 0 { CWR | ECE } else { 0 })
        }),
        row("accurate ECN in a run", BOTH, |e| e.run(&RUN, |i, _, tcp| tcp.reserved = u8::from(i > 4))),
        row("reserved bits", BOTH, |e| e.run(&RUN, |i, _, tcp| tcp.reserved = (i % 16) as u8)),
    ]
}

fn fields() -> Vec<Row> {
    vec![
        row("segments out of order", BOTH, |e| {
            let order = [0, 1, 4, 2, 3, 5, 11, 10, 9, 6, 7, 8];
            e.run(&RUN, |i, _, tcp| tcp.sequence = 500 * order[i])
        }),
        row("segments twice", BOTH, |e| e.run(&RUN, |i, _, tcp| tcp.sequence = 500 * (i / 2) as u32)),
        row("a gap in a run", BOTH, |e| e.run(&RUN, |i, _, tcp| tcp.sequence += if i > 5 { 500 } else { 0 })),
        row("segments that overlap", BOTH, |e| e.run(&RUN, |i, _, tcp| tcp.sequence = 499 * i as u32)),
        row("a sequence number that wraps", BOTH, |e| {
            e.run(&RUN, |i, _, tcp| tcp.sequence = (500 * i as u32).wrapping_sub(2750))
        }),
        row("acknowledgments that go on", BOTH, |e| {
            e.run(&RUN, |i, _, tcp| tcp.acknowledgment += (i / 4) as u32)
        }),
        row("a window that closes", BOTH, |e| e.run(&RUN, |i, _, tcp| tcp.window = 11 - i as u16)),
        row("an urgent pointer without URG", BOTH, |e| e.run(&RUN, |i, _, tcp| tcp.urgent = 100 * i as u16)),
        row("port zero", BOTH, |e| e.run(&RUN, |_, _, tcp| (tcp.source, tcp.destination) = (0, 0))),
        row("a data offset below five", BOTH, |e| {
            e.run(&RUN, |i, _, tcp| tcp.offset = (i % 2 == 1).then_some((i % 5) as u8))
        }),
        row("a data offset past the end", BOTH, |e| {
            e.run(&[12; 6], |i, _, tcp| tcp.offset = (i % 2 == 1).then_some(15))
        }),
        row("a header cut short", BOTH, |e| {
            let whole = e.segment(&Tcp::default(), &[]);
            [0, 1, 4, 12, 13, 19].map(|len| e.ip(&Ip::default(), TCP, &whole[..len]).into()).to_vec()
        }),
    ]
}

fn options() -> Vec<Row> {
    let with = |name, build: fn(&Ends) -> Vec<Packet>| row(name, BOTH, build);
    vec![
        with("equal timestamps", |e| e.run(&RUN, |_, _, tcp| tcp.options = timestamp(77))),
        with("timestamps that count", |e| {
            e.run(&RUN, |i, _, tcp| tcp.options = timestamp(77 + i as u32 / 3))
        }),
        with("blocks of SACK", |e| {
            e.run(&[0; 8], |i, _, tcp| tcp.options = [&[1, 1, 5, 10][..], &[i as u8; 8]].concat())
        }),
        with("the options of a SYN", |e| {
            let options = [2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7];
            e.run(&[0], |_, _, tcp| (tcp.flags, tcp.options) = (SYN, options.to_vec()))
        }),
        with("a signature (MD5)", |e| {
            e.run(&RUN, |i, _, tcp| tcp.options = [&[19, 18][..], &[i as u8; 16], &[1, 1]].concat())
        }),
        with("an authentication (TCP-AO)", |e| {
            e.run(&RUN, |i, _, tcp| tcp.options = [&[29, 16, 1, 1][..], &[i as u8; 12]].concat())
        }),
        with("an experiment's option", |e| e.run(&RUN, |_, _, tcp| tcp.options = vec![254, 4, 0xf9, 0x89])),
        with("forty bytes of options", |e| e.run(&RUN, |_, _, tcp| tcp.options = vec![1; 40])),
        with("options that come and go", |e| {
            e.run(&RUN, |i, _, tcp| tcp.options = if i % 3 == 0 { timestamp(1) } else { Vec::new() })
        }),
        with("an option of no length", |e| e.run(&RUN, |_, _, tcp| tcp.options = vec![8, 0, 8, 0])),
        with("an option past the end", |e| e.run(&RUN, |_, _, tcp| tcp.options = vec![1, 1, 8, 99])),
    ]
}

fn checksums() -> Vec<Row> {
    vec![
        row("a wrong checksum in a run", BOTH, |e| {
            e.run(&RUN, |i, _, tcp| tcp.checksum = if i == 4 { Checksum::Wrong } else { Checksum::Right })
        }),
        row("a wrong checksum first", BOTH, |e| {
            e.run(&RUN, |i, _, tcp| tcp.checksum = if i == 0 { Checksum::Wrong } else { Checksum::Right })
        }),
        row("wrong checksums only", BOTH, |e| e.run(&RUN, |_, _, tcp| tcp.checksum = Checksum::Wrong)),
        row("no checksum", BOTH, |e| e.run(&RUN, |_, _, tcp| tcp.checksum = Checksum::Is(0))),
        row("a checksum that comes to zero", BOTH, |e| {
            (0..6)
                .map(|i| {
                    let tcp = Tcp { sequence: 2 * i, ..Tcp::default() };
                    let ip = Ip { id: i as u16 + 1, ..Ip::default() };
                    e.tcp(&ip, &tcp, &summing_to_zero(e, &tcp)).into()
                })
                .collect()
        }),
        row("data that was damaged after it was summed", BOTH, |e| {
            let mut packets = e.run(&RUN, |_, _, _| {});
            for packet in packets.iter_mut().skip(3).step_by(4) {
                *packet.bytes.last_mut().expect("data") ^= 0x40;
            }
            packets
        }),
        row("an acknowledgment with a wrong checksum", BOTH, |e| {
            e.run(&[0; 4], |i, _, tcp| {
                tcp.checksum = if i % 2 == 0 { Checksum::Wrong } else { Checksum::Right }
            })
        }),
        row("a run without a byte of data", BOTH, |e| {
            vec![e.tcp(&Ip::default(), &Tcp::default(), &data(0, 0)).into()]
        }),
    ]
}
