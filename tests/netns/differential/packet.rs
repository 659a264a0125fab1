//! Builds packets of which every field can be set, also to what no sender would write.

use crate::pair::{Family, V4};

pub(super) const HOP_BY_HOP: u8 = 0;
pub(super) const ICMP: u8 = 1;
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const ROUTING: u8 = 43;
pub(super) const FRAGMENT: u8 = 44;
pub(super) const ICMPV6: u8 = 58;
pub(super) const NOTHING_NEXT: u8 = 59;
pub(super) const DESTINATION_OPTIONS: u8 = 60;

pub(super) const FIN: u8 = 1;
pub(super) const SYN: u8 = 2;
pub(super) const RST: u8 = 4;
pub(super) const PSH: u8 = 8;
pub(super) const ACK: u8 = 16;
pub(super) const URG: u8 = 32;
pub(super) const ECE: u8 = 64;
pub(super) const CWR: u8 = 128;

/// Don't Fragment, and more fragments, in IPv4's field.
pub(super) const DF: u16 = 0x4000;
pub(super) const MF: u16 = 0x2000;

/// The partial sum of the Internet checksum (RFC 1071). An odd byte at the end counts as if a zero followed it.
pub(super) fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum()
}

/// A partial sum in 16 bits.
pub(super) fn fold(mut sum: u32) -> u16 {
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The partial sum of the pseudo-header of `ip`, which has no routing header, with `len` bytes of `protocol` behind it.
pub(super) fn pseudo(ip: &[u8], protocol: u8, len: usize) -> u32 {
    let addresses = if ip[0] >> 4 == 4 { &ip[12..20] } else { &ip[8..40] };
    sum(addresses) + u32::from(protocol) + fold(len as u32) as u32
}

/// What the checksum field of a TCP or UDP header holds.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Checksum {
    /// The checksum.
    Right,
    /// Another value.
    Wrong,
    /// This.
    Is(u16),
    /// The pseudo-header's sum, for the kernel to go on from.
    Partial,
}

/// An IP header.
#[derive(Clone)]
pub(super) struct Ip {
    /// TOS or traffic class.
    pub(super) tos: u8,
    /// IPv4: the identification.
    pub(super) id: u16,
    /// IPv4: flags and fragment offset.
    pub(super) fragment: u16,
    /// TTL or hop limit.
    pub(super) ttl: u8,
    /// IPv6: the flow label.
    pub(super) label: u32,
    /// IPv4: options, whose length is a multiple of four.
    pub(super) options: Vec<u8>,
    /// IPv6: extension headers by their numbers. The first byte of each becomes the number of the next.
    pub(super) extensions: Vec<(u8, Vec<u8>)>,
}

impl Default for Ip {
    fn default() -> Ip {
        Ip { tos: 0, id: 0x1234, fragment: 0, ttl: 64, label: 0, options: Vec::new(), extensions: Vec::new() }
    }
}

/// A TCP header.
#[derive(Clone)]
pub(super) struct Tcp {
    pub(super) source: u16,
    pub(super) destination: u16,
    pub(super) sequence: u32,
    pub(super) acknowledgment: u32,
    /// The data offset in words, where it is not what the header has.
    pub(super) offset: Option<u8>,
    /// The four bits beside it.
    pub(super) reserved: u8,
    pub(super) flags: u8,
    pub(super) window: u16,
    pub(super) urgent: u16,
    /// Options, whose length is a multiple of four.
    pub(super) options: Vec<u8>,
    pub(super) checksum: Checksum,
}

impl Default for Tcp {
    fn default() -> Tcp {
        Tcp {
            source: 40_000,
            destination: 5001,
            sequence: 0x1000_0000,
            acknowledgment: 0x2000_0000,
            offset: None,
            reserved: 0,
            flags: ACK,
            window: 512,
            urgent: 0,
            options: Vec::new(),
            checksum: Checksum::Right,
        }
    }
}

/// A UDP header.
#[derive(Clone)]
pub(super) struct Udp {
    pub(super) source: u16,
    pub(super) destination: u16,
    /// The length, where it is not the datagram's.
    pub(super) length: Option<u16>,
    pub(super) checksum: Checksum,
}

impl Default for Udp {
    fn default() -> Udp {
        Udp { source: 40_000, destination: 5001, length: None, checksum: Checksum::Right }
    }
}

/// What goes before a packet that is handed to the kernel unfinished: the fields of a virtio-net header. Offsets count from the
/// IP header.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Unfinished {
    pub(super) flags: u8,
    pub(super) gso: u8,
    pub(super) header_len: u16,
    pub(super) gso_size: u16,
    pub(super) start: u16,
    pub(super) field: u16,
}

/// A packet or super-packet to be sent.
#[derive(Clone)]
pub(super) struct Packet {
    pub(super) bytes: Vec<u8>,
    pub(super) unfinished: Unfinished,
}

impl From<Vec<u8>> for Packet {
    fn from(bytes: Vec<u8>) -> Packet {
        Packet { bytes, unfinished: Unfinished::default() }
    }
}

/// Between whom a row's packets go. The destination's last byte is the row's number.
pub(super) struct Ends {
    pub(super) family: Family,
    pub(super) source: Vec<u8>,
    pub(super) destination: Vec<u8>,
}

impl Ends {
    /// From subnet 1 of a network to subnet 2: 10.N.1.0/24, fdNN:1::/64.
    pub(super) fn new(family: Family, network: u8, row: u8) -> Ends {
        let address = |subnet| match family {
            V4 => vec![10, network, subnet, row],
            Family::V6 => vec![0xfd, network, 0, subnet, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, row],
        };
        Ends { family, source: address(1), destination: address(2) }
    }

    /// An IP packet.
    pub(super) fn ip(&self, ip: &Ip, protocol: u8, payload: &[u8]) -> Vec<u8> {
        match self.family {
            V4 => self.v4(ip, protocol, payload),
            Family::V6 => self.v6(ip, protocol, payload),
        }
    }

    fn v4(&self, ip: &Ip, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let header_len = 20 + ip.options.len();
        let mut packet = vec![0x40 | (header_len / 4) as u8, ip.tos];
        packet.extend(((header_len + payload.len()) as u16).to_be_bytes());
        packet.extend(ip.id.to_be_bytes());
        packet.extend(ip.fragment.to_be_bytes());
        packet.extend([ip.ttl, protocol, 0, 0]);
        packet.extend([&self.source[..], &self.destination, &ip.options, payload].concat());
        mend_v4(&mut packet);
        packet
    }

    fn v6(&self, ip: &Ip, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let numbers: Vec<u8> = ip.extensions.iter().map(|(number, _)| *number).chain([protocol]).collect();
        let extensions: Vec<u8> = (ip.extensions.iter().zip(&numbers[1..]))
            .flat_map(|((_, bytes), next)| [&[*next][..], &bytes[1..]].concat())
            .collect();
        let first = 6 << 28 | u32::from(ip.tos) << 20 | ip.label;
        let mut packet = first.to_be_bytes().to_vec();
        packet.extend(((extensions.len() + payload.len()) as u16).to_be_bytes());
        packet.extend([numbers[0], ip.ttl]);
        packet.extend([&self.source[..], &self.destination, &extensions, payload].concat());
        packet
    }

    /// The sum of the pseudo-header with `len` bytes of `protocol` behind it.
    pub(super) fn pseudo(&self, protocol: u8, len: usize) -> u32 {
        sum(&self.source) + sum(&self.destination) + u32::from(protocol) + u32::from(fold(len as u32))
    }

    /// The checksum field at `at` of `segment`, set.
    fn finish(&self, protocol: u8, segment: &mut [u8], at: usize, checksum: Checksum) {
        let pseudo = self.pseudo(protocol, segment.len());
        let right = match !fold(pseudo + sum(segment)) {
            0 if protocol == UDP => 0xffff,
            right => right,
        };
        let value = match checksum {
            Checksum::Right => right,
            Checksum::Wrong => right ^ 0x0101,
            Checksum::Is(value) => value,
            Checksum::Partial => fold(pseudo),
        };
        segment[at..at + 2].copy_from_slice(&value.to_be_bytes());
    }

    /// A TCP segment.
    pub(super) fn segment(&self, tcp: &Tcp, data: &[u8]) -> Vec<u8> {
        let offset = tcp.offset.unwrap_or(5 + (tcp.options.len() / 4) as u8);
        let mut segment = [tcp.source.to_be_bytes(), tcp.destination.to_be_bytes()].concat();
        segment.extend(tcp.sequence.to_be_bytes());
        segment.extend(tcp.acknowledgment.to_be_bytes());
        segment.extend([offset << 4 | tcp.reserved, tcp.flags]);
        segment.extend(tcp.window.to_be_bytes());
        segment.extend([0, 0]);
        segment.extend(tcp.urgent.to_be_bytes());
        segment.extend([&tcp.options, data].concat());
        self.finish(TCP, &mut segment, 16, tcp.checksum);
        segment
    }

    /// A UDP datagram.
    pub(super) fn datagram(&self, udp: &Udp, data: &[u8]) -> Vec<u8> {
        let length = udp.length.unwrap_or(8 + data.len() as u16);
        let fields = [udp.source, udp.destination, length, 0];
        let mut datagram: Vec<u8> = fields.into_iter().flat_map(u16::to_be_bytes).collect();
        datagram.extend(data);
        self.finish(UDP, &mut datagram, 6, udp.checksum);
        datagram
    }

    /// A packet whose last header is TCP's.
    pub(super) fn tcp(&self, ip: &Ip, tcp: &Tcp, data: &[u8]) -> Vec<u8> {
        self.ip(ip, TCP, &self.segment(tcp, data))
    }

    /// A packet whose last header is UDP's.
    pub(super) fn udp(&self, ip: &Ip, udp: &Udp, data: &[u8]) -> Vec<u8> {
        self.ip(ip, UDP, &self.datagram(udp, data))
    }

    /// TCP segments of these sizes that follow each other, each altered before it is built.
    pub(super) fn run(&self, sizes: &[usize], alter: impl Fn(usize, &mut Ip, &mut Tcp)) -> Vec<Packet> {
        let mut sequence = Tcp::default().sequence;
        let build = |(i, &size): (usize, &usize)| {
            let mut ip = Ip { id: 0x1000 + i as u16, ..Ip::default() };
            let mut tcp = Tcp { sequence, ..Tcp::default() };
            sequence = sequence.wrapping_add(size as u32);
            alter(i, &mut ip, &mut tcp);
            self.tcp(&ip, &tcp, &data(i, size)).into()
        };
        sizes.iter().enumerate().map(build).collect()
    }

    /// The same of UDP.
    pub(super) fn burst(&self, sizes: &[usize], alter: impl Fn(usize, &mut Ip, &mut Udp)) -> Vec<Packet> {
        let build = |(i, &size): (usize, &usize)| {
            let mut ip = Ip { id: 0x1000 + i as u16, ..Ip::default() };
            let mut udp = Udp::default();
            alter(i, &mut ip, &mut udp);
            self.udp(&ip, &udp, &data(i, size)).into()
        };
        sizes.iter().enumerate().map(build).collect()
    }

    /// A payload in fragments: each of this offset and length in bytes. The last part of the payload ends the packet.
    pub(super) fn fragments(&self, protocol: u8, payload: &[u8], parts: &[(usize, usize)]) -> Vec<Packet> {
        let build = |&(at, len): &(usize, usize)| {
            let part = &payload[at..at + len];
            let more = at + len < payload.len();
            let packet = match self.family {
                V4 => {
                    let fragment = if more { MF } else { 0 } | (at / 8) as u16;
                    self.ip(&Ip { fragment, ..Ip::default() }, protocol, part)
                }
                Family::V6 => {
                    let extension = (FRAGMENT, fragment_header(at, more));
                    self.ip(&Ip { extensions: vec![extension], ..Ip::default() }, protocol, part)
                }
            };
            packet.into()
        };
        parts.iter().map(build).collect()
    }

    /// A TCP super-packet as a host's own TCP hands it down.
    pub(super) fn super_tcp(&self, ip: &Ip, tcp: &Tcp, len: usize, gso_size: u16) -> Packet {
        let tcp = Tcp { checksum: Checksum::Partial, ..tcp.clone() };
        let bytes = self.tcp(ip, &tcp, &data(0, len));
        let kind = if self.family == V4 { 1 } else { 4 };
        let ecn = if tcp.flags & CWR != 0 { 0x80 } else { 0 };
        self.unfinished(bytes, 20 + tcp.options.len() as u16, len, (kind | ecn, gso_size), 16)
    }

    /// The same of UDP.
    pub(super) fn super_udp(&self, ip: &Ip, len: usize, gso_size: u16) -> Packet {
        let udp = Udp { checksum: Checksum::Partial, ..Udp::default() };
        let bytes = self.udp(ip, &udp, &data(0, len));
        self.unfinished(bytes, 8, len, (5, gso_size), 6)
    }

    /// A packet whose transport header, of `header` bytes before `len` of data, has its checksum at `field` to be completed.
    pub(super) fn unfinished(
        &self,
        bytes: Vec<u8>,
        header: u16,
        len: usize,
        (gso, gso_size): (u8, u16),
        field: u16,
    ) -> Packet {
        let header_len = (bytes.len() - len) as u16;
        let start = header_len - header;
        Packet { bytes, unfinished: Unfinished { flags: 1, gso, header_len, gso_size, start, field } }
    }
}

/// The checksum of an IPv4 header, set.
pub(super) fn mend_v4(packet: &mut [u8]) {
    let header_len = usize::from(packet[0] & 0xf) * 4;
    packet[10..12].fill(0);
    let sum = !fold(sum(&packet[..header_len]));
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// IPv6's fragment header.
pub(super) fn fragment_header(at: usize, more: bool) -> Vec<u8> {
    let [high, low] = ((at as u16) & !7 | u16::from(more)).to_be_bytes();
    vec![0, 0, high, low, 0xde, 0xad, 0xbe, 0xef]
}

/// `size` bytes that tell packet and place.
pub(super) fn data(packet: usize, size: usize) -> Vec<u8> {
    (0..size).map(|i| (packet * 37 + i * 7 + i / 251) as u8).collect()
}
