//! Packets for the tests of this room, and a reference that reads them: naive, and sharing nothing with the code under
//! test but the numbers of protocols and flags and the virtio-net header.

use crate::offload::coalesce::TunnelKind;
pub(crate) use crate::wire::ip::tcp_flags::*;
use crate::wire::ip::{TCP, UDP};
use crate::wire::vnet::{F_NEEDS_CSUM, F_TUNNEL_CSUM, GsoType, VNET_HDR_LEN, VnetHeader, VnetTunnel};

/// A TCP or UDP packet, or super-packet.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) v6: bool,
    pub(crate) udp: bool,
    pub(crate) host: u8,
    pub(crate) port: u16,
    pub(crate) tos: u8,
    pub(crate) ttl: u8,
    pub(crate) id: u16,
    /// The IPv4 fragment field.
    pub(crate) fragment: u16,
    /// The IPv6 flow label.
    pub(crate) label: u16,
    /// IPv4 options or IPv6 extension headers (each naming its successor) with the first one's number.
    pub(crate) between: (u8, Vec<u8>),
    pub(crate) sequence: u32,
    pub(crate) acknowledgment: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    pub(crate) urgent: u16,
    pub(crate) options: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

impl Spec {
    pub(crate) fn new(v6: bool, udp: bool, payload: Vec<u8>) -> Spec {
        Spec {
            v6,
            udp,
            host: 1,
            port: 5201,
            tos: 0,
            ttl: 64,
            id: 7,
            fragment: 0x4000,
            label: 0,
            between: (0, vec![]),
            sequence: 1000,
            acknowledgment: 77,
            flags: ACK,
            window: 512,
            urgent: 0,
            options: vec![],
            payload,
        }
    }

    pub(crate) fn protocol(&self) -> u8 {
        if self.udp { UDP } else { TCP }
    }

    /// Offset of the transport header.
    pub(crate) fn transport(&self) -> usize {
        (if self.v6 { 40 } else { 20 }) + self.between.1.len()
    }

    /// Length of all headers.
    pub(crate) fn headers(&self) -> usize {
        self.transport() + if self.udp { 8 } else { 20 + self.options.len() }
    }

    /// The packet with all checksums right.
    pub(crate) fn packet(&self) -> Vec<u8> {
        let mut packet = self.partial();
        let transport = self.transport();
        let field = transport + if self.udp { 6 } else { 16 };
        let checksum = match !naive(&packet[transport..]) {
            0 if self.udp => 0xffff,
            checksum => checksum,
        };
        packet[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
        packet
    }

    /// The packet with its pseudo-header's sum for a checksum.
    pub(crate) fn partial(&self) -> Vec<u8> {
        let mut packet = self.ip_header();
        let transport = packet.len();
        let len = (self.headers() - transport + self.payload.len()) as u16;
        packet.extend(self.port.to_be_bytes());
        packet.extend(40_000u16.to_be_bytes());
        if self.udp {
            packet.extend(len.to_be_bytes());
            packet.extend([0; 2]);
        } else {
            packet.extend(self.sequence.to_be_bytes());
            packet.extend(self.acknowledgment.to_be_bytes());
            packet.extend([(5 + self.options.len() as u8 / 4) << 4, self.flags]);
            packet.extend(self.window.to_be_bytes());
            packet.extend([0; 2]);
            packet.extend(self.urgent.to_be_bytes());
            packet.extend(&self.options);
        }
        packet.extend(&self.payload);
        let pseudo = naive(&pseudo_header(&packet, self.protocol(), len));
        let field = transport + if self.udp { 6 } else { 16 };
        packet[field..field + 2].copy_from_slice(&pseudo.to_be_bytes());
        packet
    }

    fn ip_header(&self) -> Vec<u8> {
        let (first, between) = &self.between;
        let len = (self.headers() + self.payload.len()) as u16;
        let mut packet;
        if self.v6 {
            packet = vec![0x60 | self.tos >> 4, self.tos << 4, 0, 0];
            packet[2..].copy_from_slice(&self.label.to_be_bytes());
            packet.extend((len - 40).to_be_bytes());
            packet.extend([if between.is_empty() { self.protocol() } else { *first }, self.ttl]);
            packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, self.host]);
            packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
            packet.extend(between);
        } else {
            packet = vec![0x45 + between.len() as u8 / 4, self.tos];
            packet.extend(len.to_be_bytes());
            packet.extend(self.id.to_be_bytes());
            packet.extend(self.fragment.to_be_bytes());
            packet.extend([self.ttl, self.protocol(), 0, 0, 10, 0, 0, self.host, 10, 0, 1, 0]);
            packet.extend(between);
            let checksum = !naive(&packet);
            packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        packet
    }

    /// The TUN frame: a super-packet with `gso_size`, or a packet (`None`) whose checksum is to be completed.
    pub(crate) fn frame(&self, gso_size: Option<u16>) -> Vec<u8> {
        let gso = match (gso_size, self.udp, self.v6) {
            (None, ..) => GsoType::None,
            (_, true, _) => GsoType::UdpL4,
            (_, _, true) => GsoType::TcpV6,
            _ => GsoType::TcpV4,
        };
        let vnet = VnetHeader {
            flags: F_NEEDS_CSUM,
            gso,
            gso_ecn: self.flags & CWR != 0,
            hdr_len: 0xdead,
            gso_size: gso_size.unwrap_or(0),
            csum_start: self.transport() as u16,
            csum_offset: if self.udp { 6 } else { 16 },
            tunnel: None,
        };
        let mut frame = vnet.to_bytes().to_vec();
        frame.extend(self.partial());
        frame
    }
}

/// A UDP tunnel, to be put around packets.
#[derive(Clone, Debug)]
pub(crate) struct Around {
    /// The outer packet without payload.
    pub(crate) outer: Spec,
    /// Whether it has a checksum.
    pub(crate) summed: bool,
    /// What the tunnel puts before the inner Ethernet header.
    pub(crate) shim: Vec<u8>,
}

impl Around {
    pub(crate) fn new(kind: TunnelKind, v6: bool, summed: bool) -> Around {
        let shim = match kind {
            TunnelKind::Vxlan => vec![8, 0, 0, 0, 0, 0, 42, 0],
            TunnelKind::Geneve => vec![2, 0, 0x65, 0x58, 0, 0, 42, 0, 1, 2, 3, 1, 9, 9, 9, 9],
        };
        let mut outer = Spec::new(v6, true, vec![]);
        (outer.fragment, outer.id) = (0, 9000);
        Around { outer, summed, shim }
    }

    /// Offset of the inner packet.
    pub(crate) fn inner(&self) -> usize {
        self.outer.headers() + self.shim.len() + 14
    }

    /// The `index`th segment's packet around `inner`.
    pub(crate) fn packet(&self, index: u16, inner: &[u8]) -> Vec<u8> {
        let outer = self.spec(index, inner);
        let mut packet = outer.packet();
        if !self.summed {
            let checksum = outer.transport() + 6;
            packet[checksum..checksum + 2].fill(0);
        }
        packet
    }

    fn spec(&self, index: u16, inner: &[u8]) -> Spec {
        let ethertype = if inner[0] >> 4 == 6 { [0x86, 0xdd] } else { [8, 0] };
        let payload = [&self.shim[..], &[2; 12], &ethertype, inner].concat();
        Spec { id: self.outer.id.wrapping_add(index), payload, ..self.outer.clone() }
    }

    /// The TUN frame of a super-packet around `inner`, as the coalescer writes it.
    pub(crate) fn frame(&self, inner: &Spec, gso_size: u16) -> Vec<u8> {
        let frame = inner.frame(Some(gso_size));
        let plain = VnetHeader::parse(&frame).expect("a frame made above");
        let transport = self.outer.transport() as u16 + 14;
        let vnet = VnetHeader {
            flags: if self.summed { F_NEEDS_CSUM | F_TUNNEL_CSUM } else { F_NEEDS_CSUM },
            hdr_len: (self.inner() + inner.headers()) as u16,
            csum_start: self.inner() as u16 + plain.csum_start,
            tunnel: Some(VnetTunnel { v6: self.outer.v6, transport, inner: self.inner() as u16 }),
            ..plain
        };
        let packet = &frame[VNET_HDR_LEN..];
        let outer = if self.summed { self.spec(0, packet).partial() } else { self.packet(0, packet) };
        [vnet.to_bytes().to_vec(), outer].concat()
    }
}

/// What the reference reads of a packet.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Read {
    pub(crate) id: u16,
    pub(crate) sequence: u32,
    pub(crate) flags: u8,
    pub(crate) payload: Vec<u8>,
}

/// Reads a packet shaped like `spec`, asserting that its lengths, checksums and constant fields are right.
pub(crate) fn read(spec: &Spec, packet: &[u8]) -> Read {
    let (transport, headers) = (spec.transport(), spec.headers());
    let stated = be16(packet, if spec.v6 { 4 } else { 2 }) + if spec.v6 { 40 } else { 0 };
    assert_eq!(stated, packet.len(), "stated length");
    let mut like = Spec { payload: packet[headers..].to_vec(), ..spec.clone() };
    if !spec.v6 {
        assert_eq!(naive(&packet[..transport]), 0xffff, "IPv4 header checksum");
        like.id = be16(packet, 4) as u16;
    }
    let mut summed = pseudo_header(packet, spec.protocol(), (packet.len() - transport) as u16);
    summed.extend(&packet[transport..]);
    assert_eq!(naive(&summed), 0xffff, "transport checksum");
    if spec.udp {
        assert_eq!(be16(packet, transport + 4), packet.len() - transport, "UDP length");
        assert_ne!(be16(packet, transport + 6), 0, "UDP checksum");
    } else {
        like.sequence = (be16(packet, transport + 4) << 16 | be16(packet, transport + 6)) as u32;
        like.flags = packet[transport + 13];
    }
    assert_eq!(packet, like.packet(), "everything else");
    Read { id: like.id, sequence: like.sequence, flags: like.flags, payload: like.payload }
}

/// RFC 1071, word by word.
pub(crate) fn naive(data: &[u8]) -> u16 {
    data.chunks(2).fold(0, |sum: u16, pair| {
        let (sum, carry) = sum.overflowing_add(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        sum + u16::from(carry)
    })
}

fn pseudo_header(packet: &[u8], protocol: u8, len: u16) -> Vec<u8> {
    let mut bytes = if packet[0] >> 4 == 6 { packet[8..40].to_vec() } else { packet[12..20].to_vec() };
    bytes.extend([0, protocol]);
    bytes.extend(len.to_be_bytes());
    bytes
}

fn be16(bytes: &[u8], at: usize) -> usize {
    usize::from(bytes[at]) << 8 | usize::from(bytes[at + 1])
}

/// Bytes that no two places share for long.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect()
}
