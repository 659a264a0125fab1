//! What goes in comes out: the same packets through the tunnel and through a plain veth arrive the same, byte for byte and in
//! their order. Both ways have the same hops, so that TTLs and header checksums are the same, too.

mod lab;
mod packet;
mod rows;
mod segments;

use crate::bulk;
use crate::implementation::{Hindrance, Implementation, RINGTUN_TWO, ringtun_itself};
use crate::lab::{find_program, skip};
use crate::pair::{Family, V4, V6};
use lab::{FORWARDED, LOCAL, Lab, Offloads, Way, frame_line, program_line, raw_line};
use packet::{DF, Ends, TCP, UDP, data, mend_v4};
use rows::{Fate, Ids, Row, rows};
use segments::finished;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

/// Packets that are sent at once, unless one row has more. The queue of a TUN device holds about a thousand.
const AT_ONCE: usize = 400;
/// What one of a batch may take to arrive, on a busy machine.
const SOON: Duration = Duration::from_secs(10);
/// How long is waited for what should not come.
const QUIET: Duration = Duration::from_millis(200);

/// What a program sends by a UDP socket and UDP_SEGMENT: bytes in all, and of each datagram.
const PROGRAMS: &[(&str, usize, u16)] = &[
    ("a program's datagrams", 12_000, 1200),
    ("a program's datagrams with a short end", 12_345, 1000),
    ("sixty-four of a program's datagrams", 64 * 500, 500),
    ("a program's datagrams of one byte", 40, 1),
    ("a program's only datagram", 700, 700),
    ("a program's datagrams of full size", 1372 * 40 + 3, 1372),
];

/// One row in one family, by one of the two places that send.
struct Traffic {
    name: &'static str,
    ends: Ends,
    lines: Vec<String>,
    /// Packets that arrive, once super-packets are taken apart.
    expected: usize,
    flows: bool,
    ids: Ids,
}

/// By network, family and row.
type Key = (u8, bool, u8);

impl Traffic {
    fn of(row: &Row, number: u8, family: Family, network: u8) -> Traffic {
        let ends = Ends::new(family, network, number);
        let packets = (row.build)(&ends);
        let sent: usize =
            packets.iter().map(|packet| finished(&packet.bytes, &packet.unfinished).len()).sum();
        let line = |packet: &packet::Packet| match network {
            LOCAL => raw_line(&ends, &packet.bytes),
            _ => frame_line(family, &packet.bytes, &packet.unfinished),
        };
        Traffic {
            name: row.name,
            lines: packets.iter().map(line).collect(),
            expected: match row.fate {
                Fate::All => sent,
                Fate::Count(count) => count,
            },
            flows: row.flows,
            ids: row.ids,
            ends,
        }
    }

    fn of_program(&(name, len, size): &(&'static str, usize, u16), number: u8, family: Family) -> Traffic {
        let ends = Ends::new(family, LOCAL, number);
        let lines = vec![program_line(&ends, &data(0, len), size)];
        let expected = len.div_ceil(usize::from(size));
        Traffic { name, lines, expected, flows: false, ids: Ids::FromFirst, ends }
    }

    fn key(&self) -> Key {
        key_of(&self.ends.destination)
    }

    /// What of arrived packets has to be the same.
    fn comparable(&self, packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut packets = packets.to_vec();
        let id = |packet: &[u8], at| u16::from_be_bytes([packet[at], packet[at + 1]]);
        let first = packets.first().map_or(0, |packet| id(packet, 4));
        for packet in packets.iter_mut().filter(|packet| packet[0] >> 4 == 4) {
            let shown = match self.ids {
                Ids::Compared => continue,
                Ids::FromFirst => id(packet, 4).wrapping_sub(first),
                Ids::WithoutDf if id(packet, 6) & DF == 0 => continue,
                Ids::WithoutDf => 0,
            };
            packet[4..6].copy_from_slice(&shown.to_be_bytes());
            mend_v4(packet);
        }
        if self.flows {
            // Stable, so that the order within a flow stays.
            packets.sort_by_key(|packet| source_port(packet));
        }
        packets
    }
}

fn key_of(destination: &[u8]) -> Key {
    (destination[1], destination.len() == 4, destination[destination.len() - 1])
}

/// Of a packet without options and extension headers.
fn source_port(packet: &[u8]) -> Option<[u8; 2]> {
    let (protocol, at) = if packet[0] >> 4 == 4 { (packet[9], 20) } else { (packet[6], 40) };
    [TCP, UDP].contains(&protocol).then(|| packet[at..at + 2].try_into().expect("two bytes"))
}

/// All that is to be sent: the client's, then A's own.
fn traffic() -> [Vec<Traffic>; 2] {
    let rows: Vec<Row> = rows();
    let numbered = || rows.iter().zip(1_u8..);
    let all = |network, sends: fn(&Row) -> bool| {
        let families = numbered().filter(|(row, _)| sends(row)).flat_map(|(row, number)| {
            row.families.iter().map(move |&family| Traffic::of(row, number, family, network))
        });
        families.collect::<Vec<_>>()
    };
    let (client, mut own) = (all(FORWARDED, |row| row.forwarded), all(LOCAL, |row| row.local));
    let first = u8::try_from(rows.len() + 1).expect("rows that an address can number");
    for (program, number) in PROGRAMS.iter().zip(first..) {
        own.extend([V4, V6].map(|family| Traffic::of_program(program, number, family)));
    }
    assert!(usize::from(first) + PROGRAMS.len() < 250, "the last addresses are the hosts' own");
    [client, own]
}

/// What arrived, finished, by row.
type Arrived = BTreeMap<Key, Vec<Vec<u8>>>;

/// Sends all of it by one way. What arrived, and how many super-packets were among that.
fn play(lab: &mut Lab, way: Way, traffic: &[Vec<Traffic>; 2]) -> (Arrived, usize) {
    lab.lead(way);
    let (mut arrived, mut supers) = (Arrived::new(), 0);
    for (is_local, rows) in [(false, &traffic[0]), (true, &traffic[1])] {
        let mut rows = &rows[..];
        while !rows.is_empty() {
            let mut sum = 0;
            let fits = |row: &&Traffic| {
                sum += row.expected.max(row.lines.len());
                sum <= AT_ONCE
            };
            let count = rows.iter().take_while(fits).count().max(1);
            let (batch, rest) = rows.split_at(count);
            let lines: Vec<String> = batch.iter().flat_map(|row| row.lines.clone()).collect();
            let mut missing: usize = batch.iter().map(|row| row.expected).sum();
            lab.send(way, is_local, &lines);
            let mut note = |captured: lab::Captured| {
                let at = if captured.packet[0] >> 4 == 4 { 16..20 } else { 24..40 };
                let packets = finished(&captured.packet, &captured.unfinished);
                supers += usize::from(packets.len() > 1);
                missing = missing.saturating_sub(packets.len());
                arrived.entry(key_of(&captured.packet[at])).or_default().extend(packets);
                missing == 0
            };
            lab.capture(SOON, &mut note);
            if rest.is_empty() {
                lab.capture(QUIET, |captured| {
                    note(captured);
                    false
                });
            }
            rows = rest;
        }
    }
    (arrived, supers)
}

/// Where two lists of packets first differ, in words.
fn difference(plain: &[Vec<u8>], tunnel: &[Vec<u8>]) -> Option<String> {
    let shown =
        |packet: Option<&Vec<u8>>| packet.map(|packet| format!("{:02x?}", &packet[..packet.len().min(80)]));
    let at = (0..plain.len().max(tunnel.len())).find(|&at| plain.get(at) != tunnel.get(at))?;
    let (before, after) = (plain.get(at), tunnel.get(at));
    let byte = before.zip(after).and_then(|(a, b)| a.iter().zip(b).position(|(a, b)| a != b));
    Some(format!(
        "{} packets and {}, packet {at} at byte {byte:?}\n  {:?}\n  {:?}",
        plain.len(),
        tunnel.len(),
        shown(before),
        shown(after)
    ))
}

/// Plays the table by both ways, and a stream of a real TCP.
fn is_the_same(lab: &mut Lab, offloads: Offloads) {
    lab.set(offloads);
    let traffic = traffic();
    let (plain, _) = play(lab, Way::Plain, &traffic);
    let (tunnel, supers) = play(lab, Way::Tunnel, &traffic);
    let mut wrong = String::new();
    for row in traffic.iter().flatten() {
        let [plain, tunnel] = [&plain, &tunnel]
            .map(|arrived| row.comparable(arrived.get(&row.key()).map_or(&[][..], Vec::as_slice)));
        let what = format!("{offloads:?}, {}, {:?}, network {}", row.name, row.ends.family, row.key().0);
        if plain.len() != row.expected {
            let _ = writeln!(wrong, "{what}: {} of {} by the plain way", plain.len(), row.expected);
        }
        if let Some(difference) = difference(&plain, &tunnel) {
            let _ = writeln!(wrong, "{what}: {difference}");
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}{}", lab.pair.tell());
    let (rows, packets) = (traffic.iter().flatten().count(), tunnel.values().map(Vec::len).sum::<usize>());
    println!("{offloads:?}: {rows} rows, {packets} packets, {supers} super-packets");
    if offloads == Offloads::Off {
        assert_eq!(supers, 0, "something was joined");
    } else {
        assert!(supers > 50, "next to nothing was joined");
    }
    if offloads == Offloads::Joined {
        lab.join_from_client();
    }
    for address in [format!("10.{FORWARDED}.2.254"), format!("fd{FORWARDED:x}:2::fe")] {
        bulk::moves_unaltered_between(&lab.client, &lab.server, &address, 4, || lab.pair.tell());
    }
}

fn ready() -> bool {
    if find_program("nft").is_none() {
        skip("nft is not installed");
        return false;
    }
    bulk::ready() && ringtun_itself()
}

#[test]
fn what_passes_a_veth_passes_the_tunnel_byte_for_byte_with_offloads() {
    if !ready() {
        return;
    }
    let Some(mut lab) = Lab::new(RINGTUN_TWO, V4) else { return };
    for offloads in [Offloads::Whole, Offloads::Joined] {
        is_the_same(&mut lab, offloads);
    }
}

#[test]
fn what_passes_a_veth_passes_the_tunnel_byte_for_byte_without_offloads() {
    static PLAIN: Hindrance = Hindrance {
        behind: &[],
        options: &["--workers", "2", "--io", "syscalls", "--no-tun-offload", "--no-gso", "--no-gro"],
    };
    if !ready() {
        return;
    }
    let Some(mut lab) = Lab::new(Implementation::Hindered(&PLAIN), V6) else { return };
    is_the_same(&mut lab, Offloads::Off);
}
