//! What went into the tunnel, and whether what comes out can be of that.

use ringtun::sim::packet::{self, Delivered, Flow, Inner};
use ringtun::wire::vnet::VNET_HDR_LEN;
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Source, destination and protocol of a packet.
type Ends = (IpAddr, IpAddr, u8);

/// The packets that one host has sent, or could be taken for having sent.
#[derive(Default)]
pub(crate) struct Account {
    /// Packets that came into the tunnel well-formed, and how often they have not come out.
    sent: HashMap<Inner, usize>,
    others: HashMap<Vec<u8>, usize>,
    /// The ends of frames of which nobody knows what they are, so that what comes of them may be anything between these ends.
    wild: HashSet<Ends>,
    /// Of all that was sent.
    spoken: HashSet<(IpAddr, IpAddr)>,
}

impl Account {
    /// Notes a frame that goes into the tunnel.
    pub(crate) fn sent(&mut self, frame: &[u8]) {
        let packet = frame.get(VNET_HDR_LEN..).unwrap_or_default();
        let Some(ends) = ends(packet) else { return };
        self.spoken.insert((ends.0, ends.1));
        let Some(expected) = expected(frame) else {
            self.wild.insert(ends);
            return;
        };
        for packet in expected {
            let count = match packet {
                Delivered::Packet(inner) => self.sent.entry(inner).or_default(),
                Delivered::Other(other) => self.others.entry(unmarked(&other)).or_default(),
            };
            *count += 1;
        }
    }

    /// Takes a packet that came out at the other end. False where it was not sent, or came out as often as it was sent before.
    pub(crate) fn take(&mut self, inner: &Inner) -> bool {
        let mut candidates = vec![inner.clone()];
        if inner.tos & 3 == 3 {
            candidates.extend([2, 1].map(|ecn| Inner { tos: inner.tos & !3 | ecn, ..inner.clone() }));
        }
        let found = candidates.iter().find(|inner| self.sent.get(inner).is_some_and(|&left| left > 0));
        match found.and_then(|inner| self.sent.get_mut(inner)) {
            Some(left) => *left -= 1,
            None => return self.is_wild(&inner.to_packet()),
        }
        true
    }

    /// The same for a packet of another protocol.
    pub(crate) fn take_other(&mut self, packet: &[u8]) -> bool {
        match self.others.get_mut(&unmarked(packet)) {
            Some(left) if *left > 0 => *left -= 1,
            _ => return self.is_wild(packet),
        }
        true
    }

    /// Whether it may have come of a frame of which nobody knows what it is.
    pub(crate) fn is_wild(&self, packet: &[u8]) -> bool {
        ends(packet).is_some_and(|ends| self.wild.contains(&ends))
    }

    /// Whether a packet that came out is an ICMP error about one that went in at the same host.
    pub(crate) fn is_error_about_ours(&self, packet: &[u8]) -> bool {
        let Some((_, to, protocol)) = ends(packet) else { return false };
        let (at, kinds) = match protocol {
            1 => (20, [3, 3]),
            58 => (40, [1, 2]),
            _ => return false,
        };
        let quoted = packet.get(at + 8..).and_then(ends);
        packet.get(at).is_some_and(|kind| kinds.contains(kind))
            && quoted.is_some_and(|(from, about, _)| from == to && self.spoken.contains(&(from, about)))
    }
}

/// Source, destination and protocol. `None` where it is no IP packet.
pub(crate) fn ends(packet: &[u8]) -> Option<Ends> {
    let v4 = |at: usize| packet.get(at..)?.first_chunk::<4>().map(|ip| IpAddr::from(Ipv4Addr::from(*ip)));
    let v6 = |at: usize| packet.get(at..)?.first_chunk::<16>().map(|ip| IpAddr::from(Ipv6Addr::from(*ip)));
    match packet.first()? >> 4 {
        4 => Some((v4(12)?, v4(16)?, *packet.get(9)?)),
        6 => Some((v6(8)?, v6(24)?, *packet.get(6)?)),
        _ => None,
    }
}

/// A flow between the ends of a packet, by which it finds its queue.
pub(crate) fn flow(packet: &[u8]) -> Flow {
    let ends = ends(packet).map_or([Ipv4Addr::UNSPECIFIED.into(); 2], |(from, to, _)| [from, to]);
    Flow::udp((ends[0], 0).into(), (ends[1], 0).into())
}

/// The packets that a frame stands for. `None` where a kernel would refuse it, or it holds what the plain reading of
/// [`packet::receive`] does not know: IPv4 options, fragments, and TCP options in a super-packet.
fn expected(frame: &[u8]) -> Option<Vec<Delivered>> {
    let mut frame = frame.to_vec();
    // A checksum that is said to be verified is passed on without that word.
    *frame.first_mut()? &= !2;
    let (vnet, packet) = frame.split_at_checked(VNET_HDR_LEN)?;
    let is_super = vnet[1] & 0x7f != 0;
    let plain = match packet.first()? >> 4 {
        4 => packet[0] == 0x45 && packet.len() >= 20 && [packet[6] & 0xbf, packet[7]] == [0, 0],
        _ => true,
    };
    let start = if packet[0] >> 4 == 4 { 20 } else { 40 };
    let options = is_super && packet.get(start + 12).is_some_and(|byte| byte >> 4 != 5);
    (plain && !options).then(|| packet::receive(&frame).ok()).flatten()
}

/// A packet without what a congestion mark changes.
fn unmarked(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    match packet.first().map(|first| first >> 4) {
        Some(4) if packet.len() >= 20 => {
            packet[1] &= !3;
            packet[10..12].fill(0);
        }
        Some(6) => packet.get_mut(1).into_iter().for_each(|byte| *byte &= !0x30),
        _ => {}
    }
    packet
}
