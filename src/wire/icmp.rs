//! ICMP and ICMPv6 destination-unreachable and packet-too-big, built around the packet that caused them (RFC 792, 4443).

use crate::wire::checksum;
use crate::wire::ip::{self, Fragment, V4_HEADER_LEN, V6_HEADER_LEN, put16, put32};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// Length in bytes of an ICMP header: type, code, checksum and four bytes more.
const ICMP_HEADER_LEN: usize = 8;
/// Longest ICMPv4 error, IP header included (RFC 1812 section 4.3.2.3).
const V4_MAX_LEN: usize = 576;
/// Longest ICMPv6 error, IP header included: the minimum MTU (RFC 4443 section 2.4 (c)).
const V6_MAX_LEN: usize = 1280;
const HOP_LIMIT: u8 = 64;
/// Internetwork Control (RFC 1812 section 4.3.2.5).
const PRECEDENCE: u8 = 0xc0;

/// Why a packet could not be tunnelled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unreachable {
    /// No peer's AllowedIPs hold the destination, or the peer has no endpoint or no key.
    Host,
    /// The packet is larger than the given path MTU in bytes.
    TooBig(u32),
}

/// Writes into `out` the ICMP packet that answers `offending`, and returns its length in bytes.
///
/// It is addressed from the destination of `offending` to its source: what is written to a TUN device may not come
/// from the host itself, and this address passes reverse-path filters. It quotes as much of `offending` as `out` and
/// 576 (IPv4) or 1280 (IPv6) bytes in all allow.
///
/// `None` where RFC 1122 or RFC 4443 forbids an answer: to ICMP errors, to fragments other than the first, and to
/// multicast, broadcast or unspecified sources. Also `None` where `offending` is no IP packet, or where `out` cannot
/// hold its header.
pub fn unreachable(offending: &[u8], why: Unreachable, out: &mut [u8]) -> Option<usize> {
    let info = ip::parse(offending)?;
    let offending = offending.get(..info.len)?;
    let transport = ip::transport(offending)?;
    if transport.fragment == Fragment::Later || is_error(offending, &transport) {
        return None;
    }
    match (info.source, info.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let allowed = is_single_host_v4(source) && is_single_host_v4(destination);
            allowed.then(|| write_v4(offending, transport.offset, source, destination, why, out))?
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let allowed = is_single_host_v6(source) && is_single_host_v6(destination);
            allowed.then(|| write_v6(offending, source, destination, why, out))?
        }
        _ => None,
    }
}

/// Whether the packet is an ICMP error or redirect, or an ICMP message too short to tell.
fn is_error(packet: &[u8], transport: &ip::Transport) -> bool {
    let kind = packet.get(transport.offset).copied();
    match (transport.protocol, packet.first().map(|first| first >> 4)) {
        // Queries: echo, router discovery, timestamp, information, address mask (RFC 792, 950, 1256).
        (ICMP, Some(4)) => !matches!(kind, Some(0 | 8 | 9 | 10 | 13..=18)),
        // Informational messages have the high bit set (RFC 4443 section 2.1); redirects: section 2.4 (e.2).
        (ICMPV6, Some(6)) => !matches!(kind, Some(128..=136 | 138..)),
        _ => false,
    }
}

/// Whether an answer may go to and come from `address`. RFC 1122 section 3.2.2 allows no answer to "a zero address, a
/// loopback address, a broadcast address, a multicast address, or a Class E address".
fn is_single_host_v4(address: Ipv4Addr) -> bool {
    let [first, ..] = address.octets();
    first != 0 && first != 127 && first < 224
}

/// Whether an answer may go to and come from `address` (RFC 4443 section 2.4 (e)).
fn is_single_host_v6(address: Ipv6Addr) -> bool {
    !(address.is_unspecified() || address.is_loopback() || address.is_multicast())
}

fn write_v4(
    offending: &[u8],
    header_len: usize,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    why: Unreachable,
    out: &mut [u8],
) -> Option<usize> {
    let room = out.len().min(V4_MAX_LEN).checked_sub(V4_HEADER_LEN + ICMP_HEADER_LEN)?;
    let quote = offending.get(..room.min(offending.len()))?;
    // RFC 1122 section 3.2.2: the header and at least eight bytes of the data.
    if quote.len() < offending.len().min(header_len + 8) {
        return None;
    }
    let len = V4_HEADER_LEN + ICMP_HEADER_LEN + quote.len();
    let (header, message) = out.get_mut(..len)?.split_at_mut(V4_HEADER_LEN);

    header.fill(0);
    header[0] = 0x45;
    header[1] = PRECEDENCE;
    put16(header, 2, len as u16);
    put16(header, 6, 0x4000); // DF: atomic, so that the id 0 is as good as any (RFC 6864)
    header[8] = HOP_LIMIT;
    header[9] = ICMP;
    header[12..16].copy_from_slice(&destination.octets());
    header[16..20].copy_from_slice(&source.octets());
    put16(header, 10, !checksum::fold(checksum::sum(header, 0)));

    message[..ICMP_HEADER_LEN].fill(0);
    message[0] = 3;
    match why {
        Unreachable::Host => message[1] = 1,
        Unreachable::TooBig(mtu) => {
            message[1] = 4;
            put16(message, 6, u16::try_from(mtu).unwrap_or(u16::MAX)); // RFC 1191 section 4
        }
    }
    message[ICMP_HEADER_LEN..].copy_from_slice(quote);
    put16(message, 2, !checksum::fold(checksum::sum(message, 0)));
    Some(len)
}

fn write_v6(
    offending: &[u8],
    source: Ipv6Addr,
    destination: Ipv6Addr,
    why: Unreachable,
    out: &mut [u8],
) -> Option<usize> {
    let room = out.len().min(V6_MAX_LEN).checked_sub(V6_HEADER_LEN + ICMP_HEADER_LEN)?;
    let quote = offending.get(..room.min(offending.len()))?;
    if quote.len() < V6_HEADER_LEN {
        return None;
    }
    let len = V6_HEADER_LEN + ICMP_HEADER_LEN + quote.len();
    let out = out.get_mut(..len)?;
    let (header, message) = out.split_at_mut(V6_HEADER_LEN);

    header.fill(0);
    header[0] = 0x60;
    put16(header, 4, message.len() as u16);
    header[6] = ICMPV6;
    header[7] = HOP_LIMIT;
    header[8..24].copy_from_slice(&destination.octets());
    header[24..40].copy_from_slice(&source.octets());

    message[..ICMP_HEADER_LEN].fill(0);
    match why {
        Unreachable::Host => message[..2].copy_from_slice(&[1, 3]), // address unreachable
        Unreachable::TooBig(mtu) => {
            message[0] = 2;
            put32(message, 4, mtu);
        }
    }
    message[ICMP_HEADER_LEN..].copy_from_slice(quote);
    let pseudo = checksum::pseudo_header(header, ICMPV6, message.len());
    put16(message, 2, !checksum::fold(checksum::sum(message, pseudo)));
    Some(len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A packet of `len` bytes from `source` to `destination`.
    fn packet(source: &str, destination: &str, protocol: u8, len: usize) -> Vec<u8> {
        let mut packet: Vec<u8> = (0..len).map(|i| i as u8).collect();
        match (source.parse().unwrap(), destination.parse().unwrap()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                packet[..10].copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0, 0, 9, protocol]);
                put16(&mut packet, 2, len as u16);
                packet[12..16].copy_from_slice(&source.octets());
                packet[16..20].copy_from_slice(&destination.octets());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                packet[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 0, protocol, 9]);
                put16(&mut packet, 4, len as u16 - 40);
                packet[8..24].copy_from_slice(&source.octets());
                packet[24..40].copy_from_slice(&destination.octets());
            }
            _ => unreachable!(),
        }
        packet
    }

    fn answer(offending: &[u8], why: Unreachable) -> Option<Vec<u8>> {
        let mut out = [0xa5; 2000];
        unreachable(offending, why, &mut out).map(|len| out[..len].to_vec())
    }

    fn host_unreachable(source: &str, destination: &str) -> Option<Vec<u8>> {
        answer(&packet(source, destination, ip::UDP, 100), Unreachable::Host)
    }

    #[test]
    fn rule_15_an_unroutable_ipv4_packet_is_answered_with_host_unreachable() {
        let offending = packet("10.0.0.1", "10.0.0.2", ip::UDP, 100);
        let reply = answer(&offending, Unreachable::Host).unwrap();
        let info = ip::parse(&reply).unwrap();
        assert_eq!((info.len, reply.len()), (128, 128));
        assert_eq!(info.source, "10.0.0.2".parse::<IpAddr>().unwrap());
        assert_eq!(info.destination, "10.0.0.1".parse::<IpAddr>().unwrap());
        assert_eq!((reply[9], &reply[20..22], &reply[24..28]), (ICMP, &[3, 1][..], &[0; 4][..]));
        assert_eq!(&reply[28..], &offending[..]);
        assert_eq!(checksum::fold(checksum::sum(&reply[..20], 0)), 0xffff);
        assert_eq!(checksum::fold(checksum::sum(&reply[20..], 0)), 0xffff);
    }

    #[test]
    fn rule_15_an_unroutable_ipv6_packet_is_answered_with_address_unreachable() {
        let offending = packet("fd00::1", "fd00::2", ip::TCP, 99);
        let reply = answer(&offending, Unreachable::Host).unwrap();
        let info = ip::parse(&reply).unwrap();
        assert_eq!(info.len, 40 + 8 + 99);
        assert_eq!(info.source, "fd00::2".parse::<IpAddr>().unwrap());
        assert_eq!(info.destination, "fd00::1".parse::<IpAddr>().unwrap());
        assert_eq!((reply[6], &reply[40..42], &reply[44..48]), (ICMPV6, &[1, 3][..], &[0; 4][..]));
        assert_eq!(&reply[48..], &offending[..]);
        let pseudo = checksum::pseudo_header(&reply, ICMPV6, 107);
        assert_eq!(checksum::fold(checksum::sum(&reply[40..], pseudo)), 0xffff);
    }

    #[test]
    fn too_big_carries_the_mtu() {
        let reply = answer(&packet("10.0.0.1", "10.0.0.2", 6, 1500), Unreachable::TooBig(1420)).unwrap();
        assert_eq!(reply[20..28][..2], [3, 4]);
        assert_eq!(reply[24..28], [0, 0, 5, 140]);
        let reply = answer(&packet("10.0.0.1", "10.0.0.2", 6, 1500), Unreachable::TooBig(70_000)).unwrap();
        assert_eq!(reply[26..28], [255, 255]);
        let reply = answer(&packet("fd00::1", "fd00::2", 6, 1500), Unreachable::TooBig(70_000)).unwrap();
        assert_eq!(reply[40..42], [2, 0]);
        assert_eq!(reply[44..48], 70_000u32.to_be_bytes());
    }

    #[test]
    fn quotes_are_cut_at_576_and_1280_bytes_in_all() {
        assert_eq!(answer(&packet("10.0.0.1", "10.0.0.2", 6, 1500), Unreachable::Host).unwrap().len(), 576);
        assert_eq!(answer(&packet("fd00::1", "fd00::2", 6, 1500), Unreachable::Host).unwrap().len(), 1280);
    }

    #[test]
    fn padding_behind_the_packet_is_not_quoted() {
        let mut padded = packet("10.0.0.1", "10.0.0.2", 6, 41);
        padded.extend([0; 7]);
        assert_eq!(answer(&padded, Unreachable::Host).unwrap().len(), 28 + 41);
    }

    #[test]
    fn icmp_errors_are_never_answered() {
        for (kind, answered) in
            [(0, true), (8, true), (13, true), (3, false), (5, false), (11, false), (12, false)]
        {
            let mut offending = packet("10.0.0.1", "10.0.0.2", ICMP, 60);
            offending[20] = kind;
            assert_eq!(answer(&offending, Unreachable::Host).is_some(), answered, "type {kind}");
        }
        for (kind, answered) in
            [(128, true), (129, true), (135, true), (1, false), (2, false), (127, false), (137, false)]
        {
            let mut offending = packet("fd00::1", "fd00::2", ICMPV6, 60);
            offending[40] = kind;
            assert_eq!(answer(&offending, Unreachable::Host).is_some(), answered, "type {kind}");
        }
        assert!(
            answer(&packet("10.0.0.1", "10.0.0.2", ICMP, 20), Unreachable::Host).is_none(),
            "no type to tell"
        );
    }

    #[test]
    fn icmpv6_errors_behind_extension_headers_are_never_answered() {
        let mut offending = packet("fd00::1", "fd00::2", 60, 72);
        offending[40..48].copy_from_slice(&[ICMPV6, 0, 1, 4, 0, 0, 0, 0]);
        offending[48] = 1;
        assert!(answer(&offending, Unreachable::Host).is_none());
        offending[48] = 128;
        assert!(answer(&offending, Unreachable::Host).is_some());
    }

    #[test]
    fn only_the_first_fragment_is_answered() {
        let mut offending = packet("10.0.0.1", "10.0.0.2", ip::UDP, 60);
        offending[6] = 0x20;
        assert!(answer(&offending, Unreachable::Host).is_some());
        offending[7] = 1;
        assert!(answer(&offending, Unreachable::Host).is_none());
        let mut offending = packet("fd00::1", "fd00::2", 44, 60);
        offending[40..44].copy_from_slice(&[ip::UDP, 0, 0, 1]);
        assert!(answer(&offending, Unreachable::Host).is_some());
        offending[43] = 8;
        assert!(answer(&offending, Unreachable::Host).is_none());
    }

    #[test]
    fn nothing_is_sent_to_or_from_an_address_of_no_single_host() {
        assert!(host_unreachable("10.0.0.1", "10.0.0.2").is_some());
        for address in ["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"] {
            assert!(host_unreachable(address, "10.0.0.2").is_none(), "from {address}");
            assert!(host_unreachable("10.0.0.1", address).is_none(), "to {address}");
        }
        assert!(host_unreachable("fd00::1", "fd00::2").is_some());
        for address in ["::", "::1", "ff02::1"] {
            assert!(host_unreachable(address, "fd00::2").is_none(), "from {address}");
            assert!(host_unreachable("fd00::1", address).is_none(), "to {address}");
        }
    }

    proptest! {
        #[test]
        fn garbage_and_short_buffers_never_panic(
            version in 3u8..8, mut offending in prop::collection::vec(any::<u8>(), 0..200), room in 0usize..300,
            mtu: Option<u32>,
        ) {
            offending.iter_mut().take(1).for_each(|byte| *byte = version << 4 | *byte & 0xf);
            if offending.len() > 5 && offending[5] & 1 == 0 {
                let len = offending.len() as u16;
                put16(&mut offending, if version == 4 { 2 } else { 4 }, if version == 4 { len } else { len.saturating_sub(40) });
            }
            let mut out = vec![0xa5; room];
            let why = mtu.map_or(Unreachable::Host, Unreachable::TooBig);
            if let Some(len) = unreachable(&offending, why, &mut out) {
                prop_assert_eq!(ip::parse(&out[..len]).map(|info| info.len), Some(len));
                prop_assert!(out[len..].iter().all(|byte| *byte == 0xa5));
            } else {
                prop_assert!(out.iter().all(|byte| *byte == 0xa5));
            }
        }
    }
}
