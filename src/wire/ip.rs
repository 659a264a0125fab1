//! IPv4, IPv6, TCP and UDP headers: checked views and in-place edits.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;
/// Length of an IPv4 header without options.
pub const V4_HEADER_LEN: usize = 20;
/// Length of the fixed IPv6 header.
pub const V6_HEADER_LEN: usize = 40;
/// Length of a TCP header without options.
pub const TCP_HEADER_LEN: usize = 20;
/// Length of a UDP header.
pub const UDP_HEADER_LEN: usize = 8;

/// The flags byte of a TCP header (RFC 9293 section 3.1, RFC 3168 section 6.1).
pub mod tcp_flags {
    /// The sender has no more data.
    pub const FIN: u8 = 0x01;
    /// Sequence numbers are synchronized.
    #[cfg(feature = "internals")]
    pub const SYN: u8 = 0x02;
    /// The connection is reset.
    #[cfg(feature = "internals")]
    pub const RST: u8 = 0x04;
    /// Data is to be handed over at once.
    pub const PSH: u8 = 0x08;
    /// The acknowledgment number counts.
    pub const ACK: u8 = 0x10;
    /// The urgent pointer counts.
    #[cfg(feature = "internals")]
    pub const URG: u8 = 0x20;
    /// Congestion was experienced (RFC 3168).
    #[cfg(feature = "internals")]
    pub const ECE: u8 = 0x40;
    /// The congestion window was reduced (RFC 3168).
    pub const CWR: u8 = 0x80;
}

/// Congestion Experienced (RFC 3168).
const ECN_CE: u8 = 3;

// IPv6 extension headers (RFC 8200 section 4) that may stand before the transport header.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// What routing and ECN need of an IP packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IpInfo {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Total length that the header states, in bytes, header included; never more than the buffer held.
    pub len: usize,
    /// The two ECN bits (RFC 3168).
    pub ecn: u8,
}

/// Parses the fixed IP header of `packet`.
///
/// `None` where it is neither IPv4 nor IPv6, where the header is truncated or its IHL below 5, and where it states a
/// length that is shorter than itself or longer than `packet`. `packet` may be longer than stated, since it may carry
/// WireGuard's padding.
#[inline]
pub fn parse(packet: &[u8]) -> Option<IpInfo> {
    let info = match packet.first()? >> 4 {
        4 => {
            let header = packet.first_chunk::<V4_HEADER_LEN>()?;
            let header_len = usize::from(header[0] & 0xf) * 4;
            let len = usize::from(be16(header, 2));
            if header_len < V4_HEADER_LEN || len < header_len {
                return None;
            }
            let [.., s0, s1, s2, s3, d0, d1, d2, d3] = *header;
            IpInfo {
                source: IpAddr::V4(Ipv4Addr::new(s0, s1, s2, s3)),
                destination: IpAddr::V4(Ipv4Addr::new(d0, d1, d2, d3)),
                len,
                ecn: header[1] & 3,
            }
        }
        6 => {
            let header = packet.first_chunk::<V6_HEADER_LEN>()?;
            let (source, rest) = header[8..].split_first_chunk::<16>()?;
            let destination = rest.first_chunk::<16>()?;
            IpInfo {
                source: IpAddr::V6(Ipv6Addr::from(*source)),
                destination: IpAddr::V6(Ipv6Addr::from(*destination)),
                len: V6_HEADER_LEN + usize::from(be16(header, 4)),
                ecn: header[1] >> 4 & 3,
            }
        }
        _ => return None,
    };
    (info.len <= packet.len()).then_some(info)
}

/// Sets Congestion Experienced where the inner packet is ECN-capable (RFC 6040, decapsulation), and fixes the IPv4
/// header checksum. A Not-ECT packet stays as it is.
#[inline]
pub fn set_ce(packet: &mut [u8]) {
    let Some(header) = packet.first_chunk_mut::<V4_HEADER_LEN>() else { return };
    match header[0] >> 4 {
        4 if matches!(header[1] & 3, 1 | 2) => {
            let delta = u32::from(ECN_CE - (header[1] & 3));
            header[1] |= ECN_CE;
            // RFC 1624, equation 3, with m' - m = delta: HC' = ~(~HC + delta).
            let sum = u32::from(!be16(header, 10)) + delta;
            put16(header, 10, !((sum & 0xffff) + (sum >> 16)) as u16);
        }
        6 if matches!(header[1] >> 4 & 3, 1 | 2) => header[1] |= ECN_CE << 4,
        _ => {}
    }
}

/// Whether a packet is part of a larger one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fragment {
    /// Not fragmented.
    Whole,
    /// The first fragment: it starts with the transport header.
    First,
    /// Any other: it has no transport header.
    Later,
}

/// Where the transport header of a packet starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transport {
    /// Its protocol number.
    pub protocol: u8,
    /// Offset in bytes from the start of the IP header; at most the packet's length.
    pub offset: usize,
    /// Whether the packet is a fragment, and so whether it has a transport header.
    pub fragment: Fragment,
    /// Whether a routing header is to change the destination yet, so that the pseudo-header of the transport checksum
    /// does not hold the address in the IP header (RFC 8200 section 8.1).
    pub routed: bool,
}

/// Finds the transport header behind IPv4 options or behind IPv6 hop-by-hop, routing, destination-options and
/// fragment headers.
///
/// `None` where the packet is not IP, or truncated. An extension header of another kind is taken for the transport
/// header.
#[inline]
pub fn transport(packet: &[u8]) -> Option<Transport> {
    match packet.first()? >> 4 {
        4 => {
            let header = packet.first_chunk::<V4_HEADER_LEN>()?;
            let offset = usize::from(header[0] & 0xf) * 4;
            let fragment = match be16(header, 6) & 0x3fff {
                0 => Fragment::Whole,
                0x2000 => Fragment::First,
                _ => Fragment::Later,
            };
            let found = Transport { protocol: header[9], offset, fragment, routed: false };
            (offset >= V4_HEADER_LEN && offset <= packet.len()).then_some(found)
        }
        6 => transport_v6(packet),
        _ => None,
    }
}

/// A hash of a TCP or UDP packet's addresses, ports and protocol, equal for all packets of a flow.
///
/// `None` for another protocol, and where only [`transport`] would find the header (options, extension headers,
/// fragments).
#[inline]
pub fn flow(packet: &[u8]) -> Option<u32> {
    let (protocol, hosts, ports) = match *packet.first()? {
        0x45 if be16(packet.get(..V4_HEADER_LEN)?, 6) & 0x3fff == 0 => {
            (packet[9], u64::from(be32(packet, 12)) << 32 | u64::from(be32(packet, 16)), packet.get(20..24)?)
        }
        first if first >> 4 == 6 => {
            let words = packet
                .get(8..V6_HEADER_LEN)?
                .chunks_exact(8)
                .map(|word| u64::from(be32(word, 0)) << 32 | u64::from(be32(word, 4)));
            // Rotated, so that a prefix that both addresses share does not cancel itself out.
            (packet[6], words.fold(0, |sum: u64, word| sum.rotate_left(13) ^ word), packet.get(40..44)?)
        }
        _ => return None,
    };
    let mixed = (hosts ^ u64::from(be32(ports, 0)).rotate_left(16)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    matches!(protocol, TCP | UDP).then_some((mixed >> 32) as u32 ^ u32::from(protocol))
}

/// Walks the extension headers. Each is at least eight bytes long, so the walk ends with the packet.
fn transport_v6(packet: &[u8]) -> Option<Transport> {
    let protocol = packet.first_chunk::<V6_HEADER_LEN>()?[6];
    let mut found = Transport { protocol, offset: V6_HEADER_LEN, fragment: Fragment::Whole, routed: false };
    while found.fragment != Fragment::Later {
        let extension = packet.get(found.offset..)?;
        let len = match found.protocol {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => 8 + 8 * usize::from(*extension.get(1)?),
            FRAGMENT => 8,
            _ => break,
        };
        let extension = extension.get(..len)?;
        match found.protocol {
            ROUTING => found.routed |= extension[3] != 0,
            FRAGMENT => {
                found.fragment = if be16(extension, 2) >> 3 == 0 { Fragment::First } else { Fragment::Later };
            }
            _ => {}
        }
        found.protocol = extension[0];
        found.offset += len;
    }
    Some(found)
}

/// The big-endian number at `at`, which must lie inside `bytes`.
#[inline(always)]
pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The big-endian 32-bit number at `at`, which must lie inside `bytes`.
#[inline(always)]
pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Stores `value` big-endian at `at`, which must lie inside `bytes`.
#[inline(always)]
pub(crate) fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// Stores the 32-bit `value` big-endian at `at`, which must lie inside `bytes`.
#[inline(always)]
pub(crate) fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::checksum;
    use proptest::prelude::*;

    fn v4(tos: u8, len: u16) -> Vec<u8> {
        let mut packet = vec![0; usize::from(len).max(20)];
        packet[..10].copy_from_slice(&[0x45, tos, (len >> 8) as u8, len as u8, 0, 1, 0x40, 0, 64, TCP]);
        packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        let sum = !checksum::fold(checksum::sum(&packet[..20], 0));
        put16(&mut packet, 10, sum);
        packet
    }

    fn v6(traffic_class: u8, next: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 40];
        packet[0] = 0x60 | traffic_class >> 4;
        packet[1] = traffic_class << 4;
        put16(&mut packet, 4, payload.len() as u16);
        packet[6] = next;
        packet[8] = 0xfd;
        packet[23] = 1;
        packet[24] = 0xfd;
        packet[39] = 2;
        packet.extend(payload);
        packet
    }

    #[test]
    fn a_flow_is_known_by_addresses_ports_and_protocol_of_a_plain_header() {
        let ports = |packet: &[u8], at: usize, ports: [u8; 4]| {
            let mut packet = packet.to_vec();
            packet[at..at + 4].copy_from_slice(&ports);
            packet
        };
        for (packet, at) in [(v4(0, 40), 20), (v6(0, TCP, &[0; 20]), 40)] {
            let one = ports(&packet, at, [1, 2, 3, 4]);
            let hash = flow(&one).unwrap();
            assert_eq!(flow(&[&one[..], &[7; 16]].concat()), Some(hash), "whatever comes behind");
            assert_ne!(flow(&ports(&packet, at, [1, 2, 3, 5])), Some(hash));
            assert_eq!(flow(&one[..at + 3]), None, "truncated");
            let protocol = if at == 20 { 9 } else { 6 };
            let mut other = one.clone();
            other[protocol] = UDP;
            assert_ne!(flow(&other), Some(hash));
            other[protocol] = 1;
            assert_eq!(flow(&other), None, "neither TCP nor UDP");
        }
        let mut fragment = v4(0, 40);
        fragment[6] = 0x20;
        assert_eq!(flow(&fragment), None, "the rest of it has no ports");
        let mut options = v4(0, 40);
        options[0] = 0x46;
        assert_eq!(flow(&options), None);
        assert_eq!((flow(&[]), flow(&[0x45; 19])), (None, None));
    }

    #[test]
    fn addresses_length_and_ecn_are_read_and_padding_is_allowed() {
        let mut packet = v4(0xb9, 21);
        packet.extend([0; 11]);
        let info = parse(&packet).unwrap();
        assert_eq!(info.source, "10.0.0.1".parse::<IpAddr>().unwrap());
        assert_eq!(info.destination, "10.0.0.2".parse::<IpAddr>().unwrap());
        assert_eq!((info.len, info.ecn), (21, 1));

        let info = parse(&v6(0xba, UDP, &[0; 9])).unwrap();
        assert_eq!(info.source, "fd00::1".parse::<IpAddr>().unwrap());
        assert_eq!(info.destination, "fd00::2".parse::<IpAddr>().unwrap());
        assert_eq!((info.len, info.ecn), (49, 2));
    }

    #[test]
    fn contradicting_headers_do_not_parse() {
        let good = v4(0, 40);
        let with = |at: usize, value: u8| {
            let mut packet = good.clone();
            packet[at] = value;
            parse(&packet)
        };
        assert!(with(3, 40).is_some());
        assert!(with(0, 0x44).is_none(), "IHL below 5");
        assert!(with(0, 0x4b).is_none(), "header longer than the packet");
        assert!(with(3, 19).is_none(), "stated length within the header");
        assert!(with(3, 41).is_none(), "stated length beyond the buffer");
        assert!(with(0, 0x55).is_none(), "IP version 5");
        assert!(parse(&good[..19]).is_none() && parse(&[]).is_none());
        assert!(parse(&v6(0, UDP, &[0; 8])[..47]).is_none());
        assert!(parse(&v6(0, UDP, &[])[..39]).is_none());
    }

    #[test]
    fn rule_14_ce_is_set_on_capable_packets_only_and_the_checksum_stays_right() {
        for ecn in 0..4 {
            let mut packet = v4(0xb8 | ecn, 20);
            set_ce(&mut packet);
            assert_eq!(packet[1], 0xb8 | if ecn == 0 { 0 } else { 3 });
            assert_eq!(checksum::fold(checksum::sum(&packet, 0)), 0xffff);

            let mut packet = v6(0xb8 | ecn, UDP, &[]);
            let before = packet.clone();
            set_ce(&mut packet);
            assert_eq!(parse(&packet).unwrap().ecn, if ecn == 0 { 0 } else { 3 });
            assert_eq!(
                (packet[0], packet[1] & 0xcf, &packet[2..]),
                (before[0], before[1] & 0xcf, &before[2..])
            );
        }
    }

    #[test]
    fn extension_headers_are_walked_to_the_transport() {
        let mut payload = vec![ROUTING, 1];
        payload.extend([0; 14]);
        payload.extend([DESTINATION_OPTIONS, 0, 4, 0, 0, 0, 0, 0]);
        payload.extend([UDP, 0, 0, 0, 0, 0, 0, 0]);
        payload.extend([0; 8]);
        let expected = Transport { protocol: UDP, offset: 72, fragment: Fragment::Whole, routed: false };
        assert_eq!(transport(&v6(0, HOP_BY_HOP, &payload)), Some(expected));
        payload[19] = 1;
        assert_eq!(
            transport(&v6(0, HOP_BY_HOP, &payload)),
            Some(Transport { routed: true, ..expected }),
            "segments left"
        );
        assert_eq!(transport(&v6(0, HOP_BY_HOP, &payload[..31])), None, "truncated extension header");
        assert_eq!(transport(&v6(0, HOP_BY_HOP, &[])), None);
    }

    #[test]
    fn fragments_are_told_apart() {
        for (field, expected) in [
            (0x4000, Fragment::Whole),
            (0x8000, Fragment::Whole),
            (0x2000, Fragment::First),
            (0x2001, Fragment::Later),
            (0x0001, Fragment::Later),
        ] {
            let mut packet = v4(0, 20);
            put16(&mut packet, 6, field);
            assert_eq!(transport(&packet).unwrap().fragment, expected);
        }
        for (field, expected) in [(0, Fragment::First), (1, Fragment::First), (8, Fragment::Later)] {
            let found = transport(&v6(0, FRAGMENT, &[UDP, 0, 0, field, 0, 0, 0, 0])).unwrap();
            assert_eq!((found.fragment, found.protocol, found.offset), (expected, UDP, 48));
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(version in 3u8..8, mut packet in prop::collection::vec(any::<u8>(), 0..120)) {
            packet.iter_mut().take(1).for_each(|byte| *byte = version << 4 | *byte & 0xf);
            if let Some(info) = parse(&packet) {
                prop_assert!(info.len <= packet.len());
            }
            if let Some(found) = transport(&packet) {
                prop_assert!(found.offset <= packet.len());
            }
            set_ce(&mut packet);
        }
    }
}
