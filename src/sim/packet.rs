//! Inner packets, as the kernel makes and takes them on the far side of the TUN device.
//!
//! They are written apart from `wire` and `offload`, plainly and slowly, so that the two check each other. [`receive`]
//! segments super-packets itself, and refuses every frame that Linux would refuse or that carries a wrong checksum.

use crate::wire::vnet::VNET_HDR_LEN;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Protocol numbers.
const TCP: u8 = 6;
const UDP: u8 = 17;
/// TCP flags.
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
const FIN: u8 = 0x01;
const CWR: u8 = 0x80;

/// One inner flow.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Flow {
    /// Whether it is TCP; otherwise it is UDP.
    pub tcp: bool,
    /// The sender's address and port.
    pub source: SocketAddr,
    /// The receiver's address and port.
    pub destination: SocketAddr,
}

impl Flow {
    /// Makes a UDP flow.
    pub fn udp(source: SocketAddr, destination: SocketAddr) -> Flow {
        Flow { tcp: false, source, destination }
    }

    /// Makes a TCP flow.
    pub fn tcp(source: SocketAddr, destination: SocketAddr) -> Flow {
        Flow { tcp: true, source, destination }
    }

    fn ip_len(&self) -> usize {
        if self.source.is_ipv4() { 20 } else { 40 }
    }

    fn transport_len(&self) -> usize {
        if self.tcp { 20 } else { 8 }
    }

    /// Length in bytes of the headers before the payload.
    pub fn header_len(&self) -> usize {
        self.ip_len() + self.transport_len()
    }
}

/// The content of one inner packet, however many of them shared a super-packet.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Inner {
    /// The flow to which it belongs.
    pub flow: Flow,
    /// TCP sequence number, or 0 for UDP.
    pub sequence: u32,
    /// TCP flags, or 0 for UDP.
    pub flags: u8,
    /// Traffic class, with ECN in the low two bits.
    pub tos: u8,
    /// The bytes that it carries.
    pub payload: Vec<u8>,
}

impl Inner {
    /// Makes a TCP data segment, or a datagram, which has no sequence number.
    pub fn new(flow: Flow, sequence: u32, payload: Vec<u8>) -> Inner {
        let sequence = if flow.tcp { sequence } else { 0 };
        Inner { flow, sequence, flags: if flow.tcp { ACK } else { 0 }, tos: 0, payload }
    }

    /// The bytes of the packet, with complete checksums.
    pub fn to_packet(&self) -> Vec<u8> {
        let mut packet = self.headers(self.payload.len());
        packet.extend_from_slice(&self.payload);
        let (start, at) = (self.flow.ip_len(), checksum_offset(self.flow));
        set_u16(&mut packet, at, 0);
        let sum = fold(ones_sum(&packet[start..], pseudo_sum(self.flow, packet.len() - start)));
        // RFC 768: a checksum that comes out as zero is sent as all ones.
        set_u16(&mut packet, at, if sum == 0xffff && !self.flow.tcp { 0xffff } else { !sum });
        packet
    }

    /// The frame in which a TUN read delivers the packet alone.
    pub fn to_frame(&self) -> Vec<u8> {
        frame(&[0; VNET_HDR_LEN], &self.to_packet())
    }

    /// The frame of a super-packet that carries this payload in segments of `gso_size`: TSO or USO.
    pub fn to_super_frame(&self, gso_size: u16) -> Vec<u8> {
        let mut packet = self.headers(self.payload.len());
        packet.extend_from_slice(&self.payload);
        let (start, at) = (self.flow.ip_len(), checksum_offset(self.flow));
        let pseudo = fold(pseudo_sum(self.flow, packet.len() - start));
        set_u16(&mut packet, at, pseudo);
        let kind = match (self.flow.tcp, self.flow.source.is_ipv4()) {
            (true, true) => 1,
            (true, false) => 4,
            (false, _) => 5,
        };
        let mut vnet = [0; VNET_HDR_LEN];
        vnet[0] = 1; // NEEDS_CSUM
        vnet[1] = if self.flow.tcp && self.flags & CWR != 0 { kind | 0x80 } else { kind };
        // Forwarded packets have such a header length, which covers more than the headers.
        vnet[2..4].copy_from_slice(&(packet.len() as u16).to_ne_bytes());
        vnet[4..6].copy_from_slice(&gso_size.to_ne_bytes());
        vnet[6..8].copy_from_slice(&(start as u16).to_ne_bytes());
        vnet[8..10].copy_from_slice(&((at - start) as u16).to_ne_bytes());
        frame(&vnet, &packet)
    }

    /// The packets that a super-packet of this payload stands for (Linux `tcp_gso_segment`, `__udp_gso_segment`): CWR on
    /// the first only, FIN and PSH on the last only.
    pub fn segments(&self, gso_size: u16) -> Vec<Inner> {
        let count = self.payload.len().div_ceil(usize::from(gso_size)).max(1);
        let segment = |(i, payload): (usize, &[u8])| {
            let mut flags = self.flags;
            if i > 0 {
                flags &= !CWR;
            }
            if i + 1 < count {
                flags &= !(FIN | PSH);
            }
            let offset = if self.flow.tcp { (i * usize::from(gso_size)) as u32 } else { 0 };
            Inner {
                sequence: self.sequence.wrapping_add(offset),
                flags,
                payload: payload.to_vec(),
                ..self.clone()
            }
        };
        if self.payload.is_empty() {
            return vec![self.clone()];
        }
        self.payload.chunks(usize::from(gso_size)).enumerate().map(segment).collect()
    }

    fn headers(&self, payload_len: usize) -> Vec<u8> {
        let flow = &self.flow;
        let transport = flow.transport_len() + payload_len;
        let mut out = vec![0; flow.header_len()];
        let protocol = if flow.tcp { TCP } else { UDP };
        match (flow.source.ip(), flow.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                out[0] = 0x45;
                out[1] = self.tos;
                set_u16(&mut out, 2, (20 + transport) as u16);
                out[6] = 0x40; // DF
                out[8] = 64;
                out[9] = protocol;
                out[12..16].copy_from_slice(&source.octets());
                out[16..20].copy_from_slice(&destination.octets());
                let sum = fold(ones_sum(&out[..20], 0));
                set_u16(&mut out, 10, !sum);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                out[0] = 0x60 | self.tos >> 4;
                out[1] = self.tos << 4;
                set_u16(&mut out, 4, transport as u16);
                out[6] = protocol;
                out[7] = 64;
                out[8..24].copy_from_slice(&source.octets());
                out[24..40].copy_from_slice(&destination.octets());
            }
            _ => {}
        }
        let at = flow.ip_len();
        set_u16(&mut out, at, flow.source.port());
        set_u16(&mut out, at + 2, flow.destination.port());
        if flow.tcp {
            out[at + 4..at + 8].copy_from_slice(&self.sequence.to_be_bytes());
            out[at + 12] = 5 << 4;
            out[at + 13] = self.flags;
            set_u16(&mut out, at + 14, 0xffff);
        } else {
            set_u16(&mut out, at + 4, (8 + payload_len) as u16);
        }
        out
    }
}

/// What the kernel makes of one frame written to the TUN device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Delivered {
    /// A TCP or UDP packet, already segmented.
    Packet(Inner),
    /// Any other packet, whole (ICMP among them).
    Other(Vec<u8>),
}

/// Takes one frame with its virtio-net header as the kernel does: completes or verifies checksums, and segments
/// super-packets.
///
/// # Errors
///
/// Why the kernel would have refused the frame, or what damage it shows.
pub fn receive(frame: &[u8]) -> Result<Vec<Delivered>, String> {
    let (vnet, packet) = frame.split_at_checked(VNET_HDR_LEN).ok_or("frame shorter than its header")?;
    let field = |at: usize| u16::from_ne_bytes([vnet[at], vnet[at + 1]]);
    let gso = vnet[1] & 0x7f;
    let Some(mut inner) = parse(packet)? else {
        return if gso == 0 {
            Ok(vec![Delivered::Other(packet.to_vec())])
        } else {
            Err("super-packet of neither TCP nor UDP".into())
        };
    };
    let (start, at) = (inner.flow.ip_len(), checksum_offset(inner.flow));
    let pseudo = pseudo_sum(inner.flow, packet.len() - start);
    if vnet[0] & 1 != 0 {
        if (usize::from(field(6)), usize::from(field(8))) != (start, at - start) {
            return Err(format!("checksum at {} + {}", field(6), field(8)));
        }
        if get_u16(packet, at) != fold(pseudo) {
            return Err("partial checksum is not the pseudo-header's".into());
        }
    } else if !inner.flow.tcp && get_u16(packet, at) == 0 {
        return Err("UDP checksum of zero".into());
    } else if vnet[0] & 2 == 0 && fold(ones_sum(&packet[start..], pseudo)) != 0xffff {
        return Err("checksum is wrong".into());
    }
    if gso == 0 {
        return Ok(vec![Delivered::Packet(inner)]);
    }
    let promised = matches!(
        (gso, inner.flow.tcp, inner.flow.source.is_ipv4()),
        (1, true, true) | (4, true, false) | (5, false, _)
    );
    let size = field(4);
    if !promised || vnet[0] & 1 == 0 || size == 0 || inner.payload.len() <= usize::from(size) {
        return Err(format!(
            "super-packet of type {gso}, size {size}, {} bytes, flags {}",
            inner.payload.len(),
            vnet[0]
        ));
    }
    if vnet[1] & 0x80 != 0 {
        inner.flags |= CWR;
    }
    Ok(inner.segments(size).into_iter().map(Delivered::Packet).collect())
}

/// Reads TCP or UDP in a well-formed IP packet. `None` where it is another protocol.
fn parse(packet: &[u8]) -> Result<Option<Inner>, String> {
    let damaged = |what: &str| format!("{what} in {:02x?}", &packet[..packet.len().min(60)]);
    let (source, destination, tos, protocol, start, stated): (IpAddr, IpAddr, u8, u8, usize, usize) =
        match packet.first().map(|b| b >> 4) {
            Some(4) if packet.len() >= 20 => {
                if fold(ones_sum(&packet[..20], 0)) != 0xffff {
                    return Err(damaged("wrong IPv4 header checksum"));
                }
                let addr = |at: usize| {
                    Ipv4Addr::from([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]]).into()
                };
                (addr(12), addr(16), packet[1], packet[9], 20, get_u16(packet, 2).into())
            }
            Some(6) if packet.len() >= 40 => {
                let addr =
                    |at: usize| Ipv6Addr::from(std::array::from_fn::<u8, 16, _>(|i| packet[at + i])).into();
                let tos = packet[0] << 4 | packet[1] >> 4;
                (addr(8), addr(24), tos, packet[6], 40, 40 + usize::from(get_u16(packet, 4)))
            }
            _ => return Err(damaged("no IP packet")),
        };
    if stated != packet.len() {
        return Err(damaged("length that contradicts the frame's"));
    }
    let tcp = protocol == TCP;
    let payload_at = start + if tcp { 20 } else { 8 };
    if (!tcp && protocol != UDP) || packet.len() < payload_at {
        return Ok(None);
    }
    let flow = Flow {
        tcp,
        source: (source, get_u16(packet, start)).into(),
        destination: (destination, get_u16(packet, start + 2)).into(),
    };
    // The length field of a UDP super-packet covers it whole, like that of a lone packet.
    if !tcp && usize::from(get_u16(packet, start + 4)) != packet.len() - start {
        return Err(damaged("UDP length that contradicts the packet's"));
    }
    let word = |at: usize| u32::from(get_u16(packet, at)) << 16 | u32::from(get_u16(packet, at + 2));
    let (sequence, flags) = if tcp { (word(start + 4), packet[start + 13]) } else { (0, 0) };
    Ok(Some(Inner { flow, sequence, flags, tos, payload: packet[payload_at..].to_vec() }))
}

fn frame(vnet: &[u8], packet: &[u8]) -> Vec<u8> {
    [vnet, packet].concat()
}

fn checksum_offset(flow: Flow) -> usize {
    flow.ip_len() + if flow.tcp { 16 } else { 6 }
}

fn get_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn set_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// Sum of 16-bit words (RFC 1071). An odd byte is padded.
fn ones_sum(bytes: &[u8], initial: u64) -> u64 {
    bytes.chunks(2).fold(initial, |sum, pair| {
        sum + u64::from(pair[0]) * 256 + pair.get(1).map_or(0, |&low| u64::from(low))
    })
}

fn pseudo_sum(flow: Flow, transport_len: usize) -> u64 {
    let fixed = transport_len as u64 + u64::from(if flow.tcp { TCP } else { UDP });
    [flow.source.ip(), flow.destination.ip()].into_iter().fold(fixed, |sum, addr| match addr {
        IpAddr::V4(v4) => ones_sum(&v4.octets(), sum),
        IpAddr::V6(v6) => ones_sum(&v6.octets(), sum),
    })
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(tcp: bool, v6: bool) -> Flow {
        let host = |last: u8| match v6 {
            true => IpAddr::from(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last.into())),
            false => IpAddr::from([10, 0, 0, last]),
        };
        Flow { tcp, source: (host(1), 1000).into(), destination: (host(2), 2000).into() }
    }

    #[test]
    fn packet_survives_the_round_trip() {
        for (tcp, v6) in [(false, false), (false, true), (true, false), (true, true)] {
            for len in [0, 1, 99, 1380] {
                let inner = Inner { tos: 0xa1, ..Inner::new(flow(tcp, v6), 7, vec![0x5a; len]) };
                assert_eq!(receive(&inner.to_frame()), Ok(vec![Delivered::Packet(inner)]));
            }
        }
    }

    #[test]
    fn super_packet_is_segmented() {
        for (tcp, v6) in [(false, false), (false, true), (true, false), (true, true)] {
            let inner = Inner {
                flags: if tcp { ACK | PSH | CWR } else { 0 },
                ..Inner::new(flow(tcp, v6), 7, vec![1; 2500])
            };
            let segments = inner.segments(1000);
            assert_eq!(segments.iter().map(|s| s.payload.len()).collect::<Vec<_>>(), [1000, 1000, 500]);
            let expected = segments.into_iter().map(Delivered::Packet).collect();
            assert_eq!(receive(&inner.to_super_frame(1000)), Ok(expected));
        }
    }

    #[test]
    fn damage_is_refused() {
        let frame = Inner::new(flow(false, false), 0, vec![1; 100]).to_frame();
        assert!(receive(&frame[..frame.len() - 1]).is_err());
        for at in [VNET_HDR_LEN + 8, VNET_HDR_LEN + 30, frame.len() - 1] {
            let mut damaged = frame.clone();
            damaged[at] ^= 4;
            assert!(receive(&damaged).is_err(), "byte {at}");
        }
    }

    #[test]
    fn super_packet_of_one_segment_is_refused() {
        assert!(receive(&Inner::new(flow(true, false), 0, vec![1; 100]).to_super_frame(100)).is_err());
    }
}
