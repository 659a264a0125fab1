//! The two BPF programs that steer, run on any bytes by interpreters of our own, and compared with the same rule in plain Rust.

mod classic;
mod extended;

use extended::Map;
use ringtun::index::{ReceiverIndex, WorkerCount};
use ringtun::io::steer::{BY_HASH, programs};
use ringtun::wire::message::{DATA_OVERHEAD, MessageKind, classify};
use std::os::fd::{AsFd, AsRawFd};

/// What a map's value says of a prefix whose packets go by their flow.
const SPREAD: u32 = 256;
/// Most prefixes of an input.
const MOST_PREFIXES: usize = 24;

/// The first byte is the number of workers, the second that of prefixes, each with family, length, value and address. The rest is a
/// datagram for the one program, and a packet for the other.
pub(crate) fn run(data: &[u8]) {
    let [workers, count, rest @ ..] = data else { return };
    let workers = WorkerCount::nearest(usize::from(*workers) + 1);
    // Any two numbers of files will do: nothing is done with them.
    let (v4, v6) = (std::io::stdin(), std::io::stdout());
    let [classic, extended] = programs(workers, v4.as_fd(), v6.as_fd());
    let map = |fd, width| Map { fd, width, entries: Vec::new() };
    let mut maps = [map(v4.as_fd().as_raw_fd(), 4), map(v6.as_fd().as_raw_fd(), 16)];
    let mut rest = rest;
    for _ in 0..usize::from(*count).min(MOST_PREFIXES) {
        let Some(([family, len, value], more)) = rest.split_first_chunk() else { break };
        let map = &mut maps[usize::from(family & 1)];
        let Some((address, more)) = more.split_at_checked(map.width) else { break };
        let len = u32::from(*len) % (8 * map.width as u32 + 1);
        let value = if family & 2 != 0 { SPREAD } else { u32::from(*value) % workers.get() as u32 };
        // A prefix that is set again has another value.
        map.entries.retain(|entry| entry.0 != len || !same_prefix(&entry.1, address, len));
        map.entries.push((len, address.to_vec(), value));
        rest = more;
    }
    check_datagram(&classic, workers, rest);
    let chosen = extended::run(&extended, rest, &maps);
    assert_eq!(chosen, queue_of(rest, &maps), "the queue of {rest:02x?}");
}

fn same_prefix(one: &[u8], other: &[u8], len: u32) -> bool {
    prefix_of(one, len) == prefix_of(other, len)
}

/// An address as a number, without the bits beyond the prefix.
fn prefix_of(address: &[u8], len: u32) -> u128 {
    let bits = address.iter().fold(0_u128, |bits, byte| bits << 8 | u128::from(*byte));
    bits.checked_shr(8 * address.len() as u32 - len).unwrap_or(0)
}

fn check_datagram(program: &[[u8; 8]], workers: WorkerCount, datagram: &[u8]) {
    let chosen = classic::run(program, datagram);
    let at = match datagram.first() {
        Some(2) => Some(8),
        Some(3 | 4) => Some(4),
        _ => None,
    };
    let named = at.filter(|_| datagram.len() >= DATA_OVERHEAD).map(|at| u32::from(datagram[at]));
    let member = named.map(|worker| worker % workers.get() as u32);
    assert_eq!(chosen, member.unwrap_or(BY_HASH), "the socket of {datagram:02x?}");
    // What a worker takes for a message is steered to the owner of its receiver index.
    let receiver = |at: usize| datagram[at..].first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
    let index = match classify(datagram) {
        Some(MessageKind::Data | MessageKind::CookieReply) => receiver(4),
        Some(MessageKind::Response) => receiver(8),
        Some(MessageKind::Initiation) | None => None,
    };
    if let Some(index) = index {
        assert_eq!(chosen, u32::from(ReceiverIndex(index).owner(workers)), "the owner of {datagram:02x?}");
    }
}

/// The rule that the extended program is to follow.
fn queue_of(packet: &[u8], maps: &[Map; 2]) -> u32 {
    if packet.len() < 20 {
        return 0;
    }
    let (map, source, destination, protocol, ports_at) = match packet[0] >> 4 {
        4 => {
            let is_fragment = u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff != 0;
            let ports = (!is_fragment).then(|| usize::from(packet[0] & 15) * 4);
            (&maps[0], &packet[12..16], &packet[16..20], packet[9], ports)
        }
        6 if packet.len() >= 40 => (&maps[1], &packet[8..24], &packet[24..40], packet[6], Some(40)),
        _ => return 0,
    };
    let contains = |entry: &&(u32, Vec<u8>, u32)| same_prefix(&entry.1, destination, entry.0);
    let longest = map.entries.iter().filter(contains).max_by_key(|entry| entry.0);
    if let Some((.., worker)) = longest.filter(|entry| entry.2 != SPREAD) {
        return *worker;
    }
    let step = if map.width == 4 { 4 } else { 8 };
    let mut hash = Hash(0);
    source.chunks(step).chain(destination.chunks(step)).for_each(|part| hash.mix(part));
    if let Some(at) = ports_at.filter(|_| matches!(protocol, 6 | 17)) {
        hash.mix(packet.get(at..at + 4).unwrap_or(&[0; 4]));
    }
    (hash.0.wrapping_add(protocol.into()).wrapping_mul(Hash::FACTOR) >> 32) as u32
}

/// The hash of a flow.
struct Hash(u64);

impl Hash {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

    fn mix(&mut self, part: &[u8]) {
        let number = part.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
        self.0 = self.0.wrapping_add(number).wrapping_mul(Hash::FACTOR);
        self.0 ^= self.0 >> 32;
    }
}
