//! The fields of IP's own headers, options, extension headers, fragments.

use super::{BOTH, ONLY_V4, ONLY_V6, Row, row};
use crate::differential::packet::{
    DESTINATION_OPTIONS, DF, Ends, FRAGMENT, HOP_BY_HOP, Ip, MF, NOTHING_NEXT, Packet, ROUTING, TCP, Tcp,
    UDP, Udp, data, fragment_header, mend_v4,
};

const RUN: [usize; 12] = [500; 12];

/// PadN, as hop-by-hop or destination options of eight bytes.
fn padding() -> Vec<u8> {
    vec![0, 0, 1, 4, 0, 0, 0, 0]
}

/// A routing header of a type, with so many segments left of one address.
fn routing(kind: u8, left: u8) -> Vec<u8> {
    [&[0, 2, kind, left, 0, 0, 0, 0][..], &[0xfd, 0x77, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]].concat()
}

/// A run of TCP behind extension headers.
fn behind(ends: &Ends, extensions: &[(u8, Vec<u8>)]) -> Vec<Packet> {
    ends.run(&RUN, |_, ip, _| ip.extensions = extensions.to_vec())
}

/// The same of UDP.
fn burst_behind(ends: &Ends, extensions: &[(u8, Vec<u8>)]) -> Vec<Packet> {
    ends.burst(&RUN, |_, ip, _| ip.extensions = extensions.to_vec())
}

/// A run of TCP with IPv4 options.
fn optional(ends: &Ends, options: &[u8]) -> Vec<Packet> {
    ends.run(&RUN, |_, ip, _| ip.options = options.to_vec())
}

/// A packet of the IPv4 header's bytes altered, with a good header checksum all the same.
fn altered(ends: &Ends, alter: fn(&mut Vec<u8>)) -> Vec<Packet> {
    let mut packet = ends.udp(&Ip::default(), &Udp::default(), &data(0, 100));
    alter(&mut packet);
    vec![packet.into()]
}

pub(super) fn rows() -> Vec<Row> {
    [marks(), identifications(), options(), broken(), extensions(), fragments(), mixed_fragments()]
        .into_iter()
        .flatten()
        .collect()
}

fn marks() -> Vec<Row> {
    vec![
        row("ECT(0)", BOTH, |e| e.run(&RUN, |_, ip, _| ip.tos = 2)),
        row("ECT(1)", BOTH, |e| e.burst(&RUN, |_, ip, _| ip.tos = 1)),
        row("congestion experienced, in a run", BOTH, |e| {
            e.run(&RUN, |i, ip, _| ip.tos = if i % 4 == 2 { 3 } else { 2 })
        }),
        row("congestion experienced, in a burst", BOTH, |e| {
            e.burst(&RUN, |i, ip, _| ip.tos = if i % 4 == 2 { 3 } else { 1 })
        }),
        row("marks of every kind", BOTH, |e| e.run(&RUN, |i, ip, _| ip.tos = (i % 4) as u8)),
        row("DSCP that changes", BOTH, |e| e.run(&RUN, |i, ip, _| ip.tos = (i / 3) as u8 * 0x20 + 0x10)),
        row("all bits of TOS", BOTH, |e| e.burst(&RUN, |_, ip, _| ip.tos = 0xfc)),
        row("a TTL that changes", BOTH, |e| e.run(&RUN, |i, ip, _| ip.ttl = 60 + (i / 4) as u8)),
        row("the greatest TTL", BOTH, |e| e.run(&RUN, |_, ip, _| ip.ttl = 255)),
        row("a TTL that ends at the second gateway", BOTH, |e| e.run(&RUN, |_, ip, _| ip.ttl = 2))
            .forwarded()
            .count(0),
        row("a TTL that ends at the first", BOTH, |e| e.burst(&RUN, |_, ip, _| ip.ttl = 1))
            .forwarded()
            .count(0),
        row("a TTL of one", BOTH, |e| e.burst(&RUN, |_, ip, _| ip.ttl = 1)).local(),
        row("a flow label", ONLY_V6, |e| e.run(&RUN, |_, ip, _| ip.label = 0xabcde)),
        row("a flow label that changes", ONLY_V6, |e| {
            e.run(&RUN, |i, ip, _| ip.label = 0xabcd0 + (i / 3) as u32)
        }),
    ]
}

fn identifications() -> Vec<Row> {
    vec![
        row("DF", ONLY_V4, |e| e.run(&RUN, |_, ip, _| ip.fragment = DF)),
        row("DF that comes and goes", ONLY_V4, |e| {
            e.burst(&RUN, |i, ip, _| ip.fragment = if i % 4 == 1 { DF } else { 0 })
        }),
        row("the reserved flag", ONLY_V4, |e| e.run(&RUN, |_, ip, _| ip.fragment = 0x8000)),
        row("the reserved flag in a run", ONLY_V4, |e| {
            e.run(&RUN, |i, ip, _| ip.fragment = if i == 5 { 0x8000 } else { 0 })
        }),
        row("identifications that stand", ONLY_V4, |e| e.run(&RUN, |_, ip, _| ip.id = 7)),
        row("identifications that stand, in a burst", ONLY_V4, |e| e.burst(&RUN, |_, ip, _| ip.id = 7)),
        row("identifications that stand, with DF", ONLY_V4, |e| {
            e.run(&RUN, |_, ip, _| (ip.id, ip.fragment) = (7, DF))
        })
        .loses_ids(),
        row("identifications of zero, with DF", ONLY_V4, |e| {
            e.burst(&RUN, |_, ip, _| (ip.id, ip.fragment) = (0, DF))
        })
        .loses_ids(),
        row("identifications that count down", ONLY_V4, |e| {
            e.run(&RUN, |i, ip, _| ip.id = 0x7000 - i as u16)
        }),
        row("identifications that jump", ONLY_V4, |e| {
            e.burst(&RUN, |i, ip, _| ip.id = (i as u16 + 1).wrapping_mul(0x6789))
        }),
        row("identifications that jump, with DF", ONLY_V4, |e| {
            e.run(&RUN, |i, ip, _| (ip.id, ip.fragment) = ((i as u16 + 1).wrapping_mul(0x6789), DF))
        }),
        row("an identification that wraps", ONLY_V4, |e| {
            // A program's raw socket has the kernel fill in an identification of zero.
            e.run(&RUN, |i, ip, _| ip.id = (i as u16).wrapping_sub(6))
        })
        .forwarded(),
        row("identifications that count, then stand", ONLY_V4, |e| {
            e.run(&RUN, |i, ip, _| ip.id = i.min(5) as u16 + 1)
        }),
    ]
}

fn options() -> Vec<Row> {
    vec![
        row("no-operations as options", ONLY_V4, |e| optional(e, &[1; 4])),
        row("forty bytes of IP options", ONLY_V4, |e| optional(e, &[1; 40])),
        row("record route", ONLY_V4, |e| optional(e, &[7, 15, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])),
        row("a record of the route that is full", ONLY_V4, |e| optional(e, &[7, 7, 8, 1, 2, 3, 4, 0])),
        row("router alert", ONLY_V4, |e| optional(e, &[148, 4, 0, 0])),
        row("security labels", ONLY_V4, |e| optional(e, &[130, 11, 0x6b, 0xc5, 0, 0, 0, 0, 0, 0, 0, 0])),
        row("an unknown option", ONLY_V4, |e| optional(e, &[0xde, 4, 1, 2])),
        row("options on UDP", ONLY_V4, |e| e.burst(&RUN, |_, ip, _| ip.options = vec![1, 1, 1, 0])),
        row("options on some", ONLY_V4, |e| {
            e.run(&RUN, |i, ip, _| ip.options = if i % 4 == 2 { vec![1; 4] } else { Vec::new() })
        }),
        row("a loose source route", ONLY_V4, |e| optional(e, &[131, 7, 4, 10, 77, 9, 1, 0]))
            .forwarded()
            .count(0),
    ]
}

fn broken() -> Vec<Row> {
    vec![
        row("a wrong header checksum", ONLY_V4, |e| {
            let mut packets = e.burst(&RUN, |_, _, _| {});
            packets.iter_mut().skip(1).step_by(2).for_each(|packet| packet.bytes[10] ^= 0x20);
            packets
        })
        .forwarded()
        .count(6),
        row("bytes behind the end", ONLY_V4, |e| altered(e, |packet| packet.extend([0xee; 30]))).forwarded(),
        row("bytes behind the end, IPv6", ONLY_V6, |e| altered(e, |packet| packet.extend([0xee; 30])))
            .forwarded(),
        row("a length beyond the end", ONLY_V4, |e| {
            altered(e, |packet| {
                packet[2] = 9;
                mend_v4(packet);
            })
        })
        .forwarded()
        .count(0),
        row("a payload length beyond the end", ONLY_V6, |e| altered(e, |packet| packet[4] = 9))
            .forwarded()
            .count(0),
        row("a header length below five", ONLY_V4, |e| altered(e, |packet| packet[0] = 0x44))
            .forwarded()
            .count(0),
        row("another version", BOTH, |e| altered(e, |packet| packet[0] = 0x50 | packet[0] & 0xf))
            .forwarded()
            .count(0),
        row("a packet larger than the MTU", ONLY_V4, |e| e.burst(&[3000, 2000], |_, _, _| {}))
            .forwarded()
            .count(5),
        row("a packet larger than the MTU, with DF", ONLY_V4, |e| {
            e.burst(&[1400], |_, ip, _| ip.fragment = DF)
        })
        .forwarded()
        .count(0),
        row("a packet larger than the MTU, over IPv6", ONLY_V6, |e| e.burst(&[1400], |_, _, _| {}))
            .forwarded()
            .count(0),
        row("a packet of the MTU's size", BOTH, |e| {
            let room = if e.family == crate::pair::V4 { 1392 } else { 1372 };
            e.burst(&[room; 4], |_, _, _| {})
        }),
    ]
}

fn extensions() -> Vec<Row> {
    vec![
        row("hop-by-hop options before TCP", ONLY_V6, |e| behind(e, &[(HOP_BY_HOP, padding())])),
        row("hop-by-hop options before UDP", ONLY_V6, |e| burst_behind(e, &[(HOP_BY_HOP, padding())])),
        row("a router alert before UDP", ONLY_V6, |e| {
            burst_behind(e, &[(HOP_BY_HOP, vec![0, 0, 5, 2, 0, 0, 1, 0])])
        }),
        row("destination options before TCP", ONLY_V6, |e| behind(e, &[(DESTINATION_OPTIONS, padding())])),
        row("destination options before UDP", ONLY_V6, |e| {
            burst_behind(e, &[(DESTINATION_OPTIONS, padding())])
        }),
        row("an unknown destination option", ONLY_V6, |e| {
            behind(e, &[(DESTINATION_OPTIONS, vec![0, 0, 0xfe, 4, 1, 2, 3, 4])])
        }),
        row("a routing header at its end", ONLY_V6, |e| behind(e, &[(ROUTING, routing(4, 0))])),
        row("a routing header on its way", ONLY_V6, |e| behind(e, &[(ROUTING, routing(4, 1))])),
        row("a routing header of type 0", ONLY_V6, |e| behind(e, &[(ROUTING, routing(0, 1))])),
        row("a routing header before UDP", ONLY_V6, |e| burst_behind(e, &[(ROUTING, routing(2, 1))])),
        row("all extension headers in a row", ONLY_V6, |e| {
            let chain = [
                (HOP_BY_HOP, padding()),
                (DESTINATION_OPTIONS, padding()),
                (ROUTING, routing(4, 0)),
                (FRAGMENT, fragment_header(0, false)),
                (DESTINATION_OPTIONS, padding()),
            ];
            behind(e, &chain)
        }),
        row("extension headers twice", ONLY_V6, |e| {
            behind(e, &[(DESTINATION_OPTIONS, padding()), (DESTINATION_OPTIONS, padding())])
        }),
        row("hop-by-hop options in the wrong place", ONLY_V6, |e| {
            behind(e, &[(DESTINATION_OPTIONS, padding()), (HOP_BY_HOP, padding())])
        }),
        row("an extension header cut short", ONLY_V6, |e| {
            [0, 1, 2, 7]
                .map(|len| e.ip(&Ip::default(), DESTINATION_OPTIONS, &padding()[..len]).into())
                .to_vec()
        }),
        row("an extension header longer than the packet", ONLY_V6, |e| {
            vec![e.ip(&Ip::default(), DESTINATION_OPTIONS, &[6, 200, 1, 4, 0, 0, 0, 0]).into()]
        }),
        row("no next header", ONLY_V6, |e| {
            [0, 1, 40, 1000].map(|len| e.ip(&Ip::default(), NOTHING_NEXT, &data(1, len)).into()).to_vec()
        }),
        row("an authentication header before TCP", ONLY_V6, |e| {
            let header = [&[0, 4, 0, 0, 0, 0, 1, 0, 0, 0, 0, 9][..], &[7; 12]].concat();
            behind(e, &[(51, header)])
        }),
        row("mobility", ONLY_V6, |e| vec![e.ip(&Ip::default(), 135, &[59, 0, 0, 0, 0, 0, 0, 0]).into()]),
    ]
}

/// A UDP datagram of so many bytes with its header.
fn datagram(ends: &Ends, len: usize) -> Vec<u8> {
    ends.datagram(&Udp::default(), &data(3, len - 8))
}

fn fragments() -> Vec<Row> {
    vec![
        row("fragments of a datagram", BOTH, |e| {
            e.fragments(UDP, &datagram(e, 3000), &[(0, 1200), (1200, 1200), (2400, 600)])
        }),
        row("fragments from the last to the first", BOTH, |e| {
            e.fragments(UDP, &datagram(e, 3000), &[(2400, 600), (1200, 1200), (0, 1200)])
        }),
        row("fragments that overlap", BOTH, |e| {
            e.fragments(UDP, &datagram(e, 2000), &[(0, 800), (400, 800), (0, 1200), (1200, 800)])
        }),
        row("tiny fragments", BOTH, |e| {
            let parts: [(usize, usize); 30] = std::array::from_fn(|i| (8 * i, 8));
            e.fragments(UDP, &datagram(e, 240), &parts)
        }),
        row("a TCP header in pieces", BOTH, |e| {
            let segment = e.segment(&Tcp::default(), &data(2, 200));
            e.fragments(TCP, &segment, &[(0, 8), (8, 8), (16, 8), (24, 196)])
        }),
        row("a last fragment alone", BOTH, |e| e.fragments(UDP, &datagram(e, 1000), &[(800, 200)])),
        row("a first fragment alone", BOTH, |e| e.fragments(UDP, &datagram(e, 1000), &[(0, 800)])),
        row("a fragment at the greatest offset", ONLY_V4, |e| {
            vec![e.ip(&Ip { fragment: 0x1fff, ..Ip::default() }, UDP, &data(0, 100)).into()]
        }),
        row("a fragment with DF", ONLY_V4, |e| {
            vec![e.ip(&Ip { fragment: DF | MF, ..Ip::default() }, UDP, &datagram(e, 800)).into()]
        }),
        row("fragments without anything in them", BOTH, |e| {
            e.fragments(UDP, &datagram(e, 1000), &[(0, 0), (504, 0), (800, 0)])
        }),
        row("a whole packet in a fragment header", ONLY_V6, |e| {
            behind(e, &[(FRAGMENT, fragment_header(0, false))])
        }),
        row("a fragment behind hop-by-hop options", ONLY_V6, |e| {
            let chain = [(HOP_BY_HOP, padding()), (FRAGMENT, fragment_header(0, true))];
            vec![e.ip(&Ip { extensions: chain.to_vec(), ..Ip::default() }, UDP, &datagram(e, 800)).into()]
        }),
    ]
}

fn mixed_fragments() -> Vec<Row> {
    vec![
        row("fragments among whole datagrams of their flow", BOTH, |e| {
            let mut packets = e.burst(&[600; 3], |_, _, _| {});
            packets.extend(e.fragments(UDP, &datagram(e, 1208), &[(0, 600), (600, 608)]));
            packets.extend(e.burst(&[600; 3], |i, ip, _| ip.id = 50 + i as u16));
            packets
        }),
        row("fragments among segments of their flow", BOTH, |e| {
            let mut packets = e.run(&[600; 3], |_, _, _| {});
            packets.extend(e.fragments(
                TCP,
                &e.segment(&Tcp::default(), &data(2, 1180)),
                &[(0, 600), (600, 600)],
            ));
            packets.extend(e.run(&[600; 3], |i, ip, _| ip.id = 50 + i as u16));
            packets
        }),
        row("segments with options on IP among others of their flow", ONLY_V4, |e| {
            e.run(&RUN, |i, ip, _| ip.options = if i % 2 == 1 { vec![1; 4] } else { Vec::new() })
        }),
        row("segments behind extension headers among others of their flow", ONLY_V6, |e| {
            e.run(&RUN, |i, ip, _| {
                if i % 2 == 1 {
                    ip.extensions = vec![(DESTINATION_OPTIONS, padding())];
                }
            })
        }),
    ]
}
