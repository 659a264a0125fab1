//! What the coalescer compares of a packet: its flow, and the fields that all packets of a run share.

use crate::offload::coalesce::Refusal;
use crate::offload::coalesce::tunnel::{self, Places, TunnelPorts};
use crate::wire::checksum;
use crate::wire::ip::tcp_flags::{ACK, PSH};
use crate::wire::ip::{TCP, TCP_HEADER_LEN, UDP, UDP_HEADER_LEN, V4_HEADER_LEN, V6_HEADER_LEN, be16, be32};

/// The bits of the IPv4 fragment field that a fragment has: the offset and more-fragments.
const V4_FRAGMENT: u16 = 0x3fff;
/// Don't Fragment.
const V4_DF: u16 = 0x4000;

/// The addresses of both ends, and the IP version. IPv4 uses only the first of the words.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Hosts {
    addresses: [u64; 4],
    version: u8,
}

/// What tells a TCP or UDP flow from others.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct FlowKey {
    pub(super) hosts: Hosts,
    /// Both ports.
    ports: u32,
    pub(super) protocol: u8,
}

/// An IPv4 identification. IPv6 has none, which is as good as one that stays zero.
#[derive(Clone, Copy, Debug)]
pub(super) struct Id {
    pub(super) value: u16,
    /// Whether it may also stay the same from packet to packet (RFC 6864: it means nothing with DF set).
    pub(super) may_stand: bool,
}

impl Default for Id {
    fn default() -> Id {
        Id { value: 0, may_stand: true }
    }
}

/// The headers of one TCP or UDP packet, or of a UDP tunnel's datagram with TCP inside. In the latter all but `flow`, `ip` and
/// `id` are those of the inner packet, and offsets count from the outer IP header all the same.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Headers {
    pub(super) flow: FlowKey,
    /// The fields of the IP header that are the same in all packets of a run. IPv4: version, IHL, TOS, fragment field, TTL.
    /// IPv6: version, traffic class, flow label, hop limit.
    pub(super) ip: u64,
    /// The fields of the TCP header that are the same in all packets of a run: acknowledgment, data offset, reserved bits,
    /// flags but PSH, window. Zero for UDP.
    pub(super) tcp: u64,
    pub(super) id: Id,
    /// The identification of a tunnel's inner packet.
    pub(super) inner_id: Id,
    /// Offset of a tunnel's inner IP header; zero without a tunnel.
    pub(super) inner: u16,
    pub(super) sequence: u32,
    pub(super) push: bool,
    /// Offset of the transport header.
    pub(super) transport: usize,
    /// Length of all headers.
    pub(super) len: usize,
    pub(super) payload: usize,
    /// Whether the checksums are known to verify.
    pub(super) verified: bool,
}

impl Headers {
    /// The protocol whose segments join.
    #[inline]
    pub(super) fn protocol(&self) -> u8 {
        if self.inner > 0 { TCP } else { self.flow.protocol }
    }

    /// Where a tunnel's headers stand.
    pub(super) fn places(&self) -> Places {
        let udp = if self.flow.hosts.version == 4 { V4_HEADER_LEN } else { V6_HEADER_LEN };
        Places { udp, inner: usize::from(self.inner), tcp: self.transport }
    }

    /// Whether the checksums of `packet`, whose headers these are, verify: TCP's or UDP's, and the IPv4 header's. Joining
    /// replaces them, so that of a packet whose own do not verify nobody could tell any more that it was damaged.
    #[inline(always)]
    pub(super) fn verify(&self, packet: &[u8]) -> bool {
        if self.verified {
            return true;
        }
        if self.inner > 0 {
            return tunnel::verify(packet, self.places());
        }
        let transport = &packet[self.transport.min(packet.len())..];
        let addresses = self.flow.hosts.addresses.into_iter().map(checksum::eight_bytes).sum::<u64>();
        let verifies = |sum| checksum::fold(sum) == 0xffff;
        let rest = checksum::word(u16::from(self.flow.protocol)) + checksum::dword(transport.len() as u32);
        if self.flow.hosts.version == 4 {
            // All but the addresses, which are twelve bytes in.
            let Some(header) = packet.first_chunk::<V4_HEADER_LEN>() else { return false };
            let first = checksum::eight_bytes(ne64(header, 0)) + checksum::dword(be32(header, 8));
            if !verifies(first + addresses) {
                return false;
            }
        }
        verifies(checksum::sum(transport, addresses + rest))
    }
}

/// How the coalescer may treat a packet.
pub(super) enum PacketClass {
    /// The packet may continue or start a run.
    Joinable(Headers),
    /// The packet is of a known flow, but must be delivered alone.
    Alone(FlowKey, Refusal),
    /// The packet is of an unknown flow between these hosts.
    Opaque(Hosts),
    /// The packet is not IP.
    Unknown,
}

/// Parses `packet`, which is exactly one IP packet.
#[inline]
pub(super) fn parse(packet: &[u8]) -> PacketClass {
    match packet.first().map(|first| first >> 4) {
        Some(4) => parse_v4(packet),
        Some(6) => parse_v6(packet),
        _ => PacketClass::Unknown,
    }
}

/// Parses `packet` as a tunnel's to one of these ports, with TCP inside that may join other. `None` where it is none.
#[inline(never)] // what is no tunnel's is not to pay for it
pub(super) fn parse_tunnel(packet: &[u8], tunnels: &TunnelPorts) -> Option<Headers> {
    let (udp, protocol, len, hosts, common) = match *packet.first()? {
        0x45 => {
            let header = packet.first_chunk::<V4_HEADER_LEN>()?;
            let is_whole = be16(header, 6) & V4_FRAGMENT == 0;
            let len = usize::from(be16(header, 2));
            is_whole.then(|| (V4_HEADER_LEN, header[9], len, hosts_v4(header), common_v4(header)))?
        }
        first if first >> 4 == 6 => {
            let header = packet.first_chunk::<V6_HEADER_LEN>()?;
            let len = V6_HEADER_LEN + usize::from(be16(header, 4));
            (V6_HEADER_LEN, header[6], len, hosts_v6(header), common_v6(header))
        }
        _ => return None,
    };
    let datagram = packet.get(udp..)?;
    let header = datagram.first_chunk::<UDP_HEADER_LEN>()?;
    if protocol != UDP || len != packet.len() || usize::from(be16(header, 4)) != datagram.len() {
        return None;
    }
    let at = tunnel::inner_at(datagram, tunnels.at(be16(header, 2))?)?;
    match parse(&datagram[at..]) {
        PacketClass::Joinable(inner) if inner.flow.protocol == TCP => {
            // The offsets are made to count from the outer IP header.
            let at = udp + at;
            Some(Headers {
                flow: FlowKey { hosts, ports: be32(header, 0), protocol },
                ip: common.ip,
                id: common.id,
                inner_id: inner.id,
                inner: u16::try_from(at).ok()?,
                transport: at + inner.transport,
                len: at + inner.len,
                ..inner
            })
        }
        _ => None,
    }
}

#[inline]
fn parse_v4(packet: &[u8]) -> PacketClass {
    let Some(header) = packet.first_chunk::<V4_HEADER_LEN>() else { return PacketClass::Unknown };
    let hosts = hosts_v4(header);
    let fragment = be16(header, 6);
    if header[0] != 0x45 || fragment & V4_FRAGMENT != 0 || usize::from(be16(header, 2)) != packet.len() {
        return PacketClass::Opaque(hosts);
    }
    parse_transport(packet, V4_HEADER_LEN, header[9], hosts, common_v4(header))
}

#[inline(always)]
fn hosts_v4(header: &[u8; V4_HEADER_LEN]) -> Hosts {
    Hosts { addresses: [ne64(header, 12), 0, 0, 0], version: 4 }
}

#[inline(always)]
fn common_v4(header: &[u8; V4_HEADER_LEN]) -> Headers {
    let fragment = be16(header, 6);
    let ip = u64::from(be16(header, 0)) << 32 | u64::from(fragment) << 16 | u64::from(header[8]);
    let id = Id { value: be16(header, 4), may_stand: fragment & V4_DF != 0 };
    Headers { ip, id, ..Headers::default() }
}

#[inline]
fn parse_v6(packet: &[u8]) -> PacketClass {
    let Some(header) = packet.first_chunk::<V6_HEADER_LEN>() else { return PacketClass::Unknown };
    let hosts = hosts_v6(header);
    if V6_HEADER_LEN + usize::from(be16(header, 4)) != packet.len() {
        return PacketClass::Opaque(hosts);
    }
    parse_transport(packet, V6_HEADER_LEN, header[6], hosts, common_v6(header))
}

#[inline(always)]
fn hosts_v6(header: &[u8; V6_HEADER_LEN]) -> Hosts {
    let addresses = [ne64(header, 8), ne64(header, 16), ne64(header, 24), ne64(header, 32)];
    Hosts { addresses, version: 6 }
}

#[inline(always)]
fn common_v6(header: &[u8; V6_HEADER_LEN]) -> Headers {
    Headers { ip: u64::from(be32(header, 0)) << 8 | u64::from(header[7]), ..Headers::default() }
}

#[inline(always)]
fn parse_transport(packet: &[u8], at: usize, protocol: u8, hosts: Hosts, common: Headers) -> PacketClass {
    let segment = &packet[at..];
    match protocol {
        TCP => parse_tcp(segment, hosts, Headers { transport: at, ..common }),
        UDP => parse_udp(segment, hosts, Headers { transport: at, ..common }),
        _ => PacketClass::Opaque(hosts),
    }
}

#[inline]
fn parse_tcp(segment: &[u8], hosts: Hosts, common: Headers) -> PacketClass {
    let Some(header) = segment.first_chunk::<TCP_HEADER_LEN>() else { return PacketClass::Opaque(hosts) };
    let flow = FlowKey { hosts, ports: be32(header, 0), protocol: TCP };
    let header_len = usize::from(header[12] >> 4) * 4;
    if header_len < TCP_HEADER_LEN || header_len > segment.len() {
        return PacketClass::Alone(flow, Refusal::NotCoalescable);
    }
    // The kernel's tcp_gro_receive closes a run at FIN, SYN, RST, URG and CWR; ECE and AE (RFC 9768) may change from packet
    // to packet. Nothing but ACK and PSH, then, and no reserved bits. An urgent pointer means nothing without URG, but that of all
    // but the first packet of a run would be lost.
    let (flags, urgent) = (header[13], be16(header, 18));
    if flags & !PSH != ACK || header[12] & 0xf != 0 || urgent != 0 {
        return PacketClass::Alone(flow, Refusal::Flags);
    }
    let payload = segment.len() - header_len;
    if payload == 0 {
        return PacketClass::Alone(flow, Refusal::Size);
    }
    let word = be32(header, 12) & !(u32::from(PSH) << 16);
    PacketClass::Joinable(Headers {
        flow,
        tcp: u64::from(be32(header, 8)) << 32 | u64::from(word),
        sequence: be32(header, 4),
        push: flags & PSH != 0,
        len: common.transport + header_len,
        payload,
        ..common
    })
}

#[inline]
fn parse_udp(segment: &[u8], hosts: Hosts, common: Headers) -> PacketClass {
    let Some(header) = segment.first_chunk::<UDP_HEADER_LEN>() else { return PacketClass::Opaque(hosts) };
    let flow = FlowKey { hosts, ports: be32(header, 0), protocol: UDP };
    // Without a checksum there is none to hand to the kernel (udp_gro_receive refuses it, too, "for symmetry with GSO").
    if usize::from(be16(header, 4)) != segment.len() || be16(header, 6) == 0 {
        return PacketClass::Alone(flow, Refusal::NotCoalescable);
    }
    let payload = segment.len() - UDP_HEADER_LEN;
    if payload == 0 {
        return PacketClass::Alone(flow, Refusal::Size);
    }
    PacketClass::Joinable(Headers { flow, len: common.transport + UDP_HEADER_LEN, payload, ..common })
}

/// Eight bytes at `at`, which must lie inside `header`, in an order that is good only for comparing.
#[inline(always)]
fn ne64<const N: usize>(header: &[u8; N], at: usize) -> u64 {
    header[at..].first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes))
}
