//! TX: splits one TUN frame (a packet or a TSO/USO super-packet behind a virtio-net header) into the segments of
//! trains.
//!
//! What all segments of a super-packet share is summed once ([`Prototype`]). A segment then costs a copy of the
//! headers, the few fields that differ, and the copying and summing of its payload. In front of a UDP tunnel's inner
//! segments stand the outer headers ([`OuterHeaders`]), whose lengths and checksum differ in turn.

mod outer;

use crate::offload::train::{Train, TrainLimits, message_len};
use crate::wire::checksum;
use crate::wire::ip::tcp_flags::{CWR, FIN, PSH};
use crate::wire::ip::{
    self, Fragment, IpInfo, TCP, TCP_HEADER_LEN, UDP, UDP_HEADER_LEN, V6_HEADER_LEN, be16, be32, put16, put32,
};
use crate::wire::message::{DATA_HEADER_LEN, TAG_LEN};
use crate::wire::vnet::{F_DATA_VALID, F_NEEDS_CSUM, GsoType, VNET_HDR_LEN, VnetHeader};
use outer::OuterHeaders;

const TCP_CSUM: usize = 16;
const UDP_CSUM: usize = 6;

/// Why a frame cannot be sent. Each reason is counted; none panics.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SplitError {
    /// The virtio-net header is truncated or of an unknown type.
    Vnet,
    /// The packet is neither IPv4 nor IPv6, or its lengths contradict each other.
    Ip,
    /// The super-packet's transport header is missing, truncated or not the one that its type promises, or the
    /// super-packet is a fragment. In a tunnel, the same of its UDP header.
    Transport,
    /// The gso_size is zero where it must not be. More than 65,535 segments cannot be, since IP's lengths end there.
    GsoSize,
    /// The checksum offset lies beyond the packet, or within the IP header.
    Checksum,
}

/// Whether all of a frame went into the train.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// All of the frame was written.
    Done,
    /// The train is full, or closed by a shorter segment. It is to be sent, and the call repeated with an empty one.
    Full,
}

/// A frame being split.
pub struct Splitter<'a> {
    /// The packet or super-packet, from its IP header to the end that it states.
    packet: &'a [u8],
    info: IpInfo,
    /// What stands before the inner packet of a UDP tunnel's super-packet. The shape is then the inner packet's.
    outer: OuterHeaders,
    shape: Shape,
    /// Number of all segments, of the next to be written, and of those that are to be written.
    segments: usize,
    next: usize,
    end: usize,
}

enum Shape {
    /// One packet; where its checksum is to be completed, if it is.
    Plain(Option<PartialChecksum>),
    /// A super-packet.
    Super(Prototype),
}

#[derive(Clone, Copy)]
struct PartialChecksum {
    /// Offset in bytes at which summing starts.
    start: usize,
    /// Offset in bytes of the checksum field from there.
    field: usize,
}

/// What the segments of a super-packet have in common.
struct Prototype {
    /// Offset in bytes of the TCP or UDP header.
    transport: usize,
    /// Length in bytes of all headers.
    headers: usize,
    /// Payload bytes of a segment.
    gso_size: usize,
    ip: IpPrototype,
    /// Partial sum of the pseudo-header and the transport header without lengths, checksum, sequence number and TCP
    /// flags.
    transport_sum: u64,
    /// Sequence number and flags of TCP; `None` for UDP.
    tcp: Option<(u32, u8)>,
    /// Whether the super-packet came with a whole checksum that does not verify. Then that of no segment may verify
    /// either: segments of what was damaged before the tunnel have to fail behind it, too.
    damaged: bool,
}

/// What the IP headers of a super-packet's segments have in common.
struct IpPrototype {
    /// Partial sum of the IPv4 header without length, identification and checksum; `None` for IPv6.
    sum: Option<u64>,
    /// IPv4 identification of the first segment.
    id: u16,
}

impl<'a> Splitter<'a> {
    /// Parses `frame`: virtio-net header, IP, transport. Nothing in it is trusted, and `hdr_len` is not even read.
    pub fn new(frame: &'a [u8]) -> Result<Splitter<'a>, SplitError> {
        let vnet = VnetHeader::parse(frame).ok_or(SplitError::Vnet)?;
        let packet = frame.get(VNET_HDR_LEN..).ok_or(SplitError::Vnet)?;
        let info = ip::parse(packet).ok_or(SplitError::Ip)?;
        let packet = packet.get(..info.len).ok_or(SplitError::Ip)?;
        let checksum = partial_checksum(&vnet, packet)?;
        let outer = match vnet.tunnel {
            Some(tunnel) => OuterHeaders::new(&vnet, tunnel, packet)?,
            None => OuterHeaders::default(),
        };
        let (shape, segments) = if vnet.gso == GsoType::None {
            (Shape::Plain(checksum), 1)
        } else {
            let packet = &packet[outer.len()..];
            let prototype = Prototype::new(&vnet, packet)?;
            // Without payload there is still one packet to send.
            let segments = (packet.len() - prototype.headers).div_ceil(prototype.gso_size).max(1);
            (Shape::Super(prototype), segments)
        };
        Ok(Splitter { packet, info, outer, shape, segments, next: 0, end: segments })
    }

    /// Addresses, ECN and length of the packet or super-packet.
    pub fn info(&self) -> &IpInfo {
        &self.info
    }

    /// The packet or super-packet, from its IP header to the end that it states.
    pub fn packet(&self) -> &[u8] {
        self.packet
    }

    /// Number of segments still to be written.
    pub fn remaining(&self) -> usize {
        self.end - self.next
    }

    /// Gives up all but the next `count` of the segments still to be written. What a super-packet's last segment bears alone, such as
    /// FIN, goes with that.
    pub fn keep(&mut self, count: usize) {
        self.end = self.end.min(self.next + count);
    }

    /// Length of all segments' IP packets together, in bytes.
    pub fn total_len(&self) -> usize {
        match &self.shape {
            Shape::Plain(_) => self.packet.len(),
            Shape::Super(prototype) => {
                let headers = self.outer.len() + prototype.headers;
                self.packet.len() + (self.segments - 1) * headers
            }
        }
    }

    /// Writes as many segments as fit to `out`, the train's buffer.
    ///
    /// Each has 16 bytes left for the message header, then IP and TCP or UDP headers, payload, zero padding, and 16
    /// bytes for the tag. Lengths, identifications, sequence numbers, flags (CWR on the first only, FIN and PSH on
    /// the last only) and checksums are fixed. A plain packet is one segment, whose checksum is completed where
    /// NEEDS_CSUM asks for it.
    ///
    /// A segment that not even an empty train in `out` can hold ends the frame: the result is `Done`, and
    /// [`Self::remaining`] says how many segments were given up. A buffer of 64 KiB and 128 bytes holds any segment.
    pub fn write_into(
        &mut self,
        out: &mut [u8],
        train: &mut Train,
        mtu: usize,
        limits: &TrainLimits,
    ) -> Progress {
        let full = |train: &Train| if train.is_empty() { Progress::Done } else { Progress::Full };
        match &self.shape {
            Shape::Plain(_) if self.next >= self.end => {}
            Shape::Plain(checksum) => {
                let Some(inner) = place(out, train, self.packet.len(), mtu, limits) else {
                    return full(train);
                };
                write_plain(self.packet, *checksum, inner);
                self.next = 1;
            }
            Shape::Super(prototype) => {
                let before = self.outer.len();
                let packet = &self.packet[before..];
                while self.next < self.end {
                    let len = before + prototype.len_of(packet, self.next);
                    let Some(inner) = place(out, train, len, mtu, limits) else { return full(train) };
                    let last = self.next + 1 == self.segments;
                    prototype.write(packet, self.next, last, &mut inner[before..]);
                    if before > 0 {
                        self.outer.write(self.packet, self.next, inner);
                    }
                    self.next += 1;
                }
            }
        }
        Progress::Done
    }

    /// Length of the next segment's IP packet, in bytes.
    pub fn next_len(&self) -> usize {
        match &self.shape {
            Shape::Plain(_) => self.packet.len(),
            Shape::Super(prototype) => {
                let before = self.outer.len();
                before + prototype.len_of(&self.packet[before..], self.next)
            }
        }
    }
}

/// Appends room for a segment of `inner_len` bytes to the train in `out`, with its padding, and returns it. `None` where it does
/// not fit.
#[inline(always)]
fn place<'a>(
    out: &'a mut [u8],
    train: &mut Train,
    inner_len: usize,
    mtu: usize,
    limits: &TrainLimits,
) -> Option<&'a mut [u8]> {
    let size = message_len(inner_len, mtu);
    if !train.fits(size, limits) || size > out.len().saturating_sub(train.len()) {
        return None;
    }
    let at = train.push(size);
    let (inner, padding) = out[at + DATA_HEADER_LEN..at + size - TAG_LEN].split_at_mut(inner_len);
    padding.fill(0);
    Some(inner)
}

/// Where the virtio-net header asks for a checksum, checked against the packet.
fn partial_checksum(vnet: &VnetHeader, packet: &[u8]) -> Result<Option<PartialChecksum>, SplitError> {
    if vnet.flags & F_NEEDS_CSUM == 0 {
        return Ok(None);
    }
    let (start, field) = (usize::from(vnet.csum_start), usize::from(vnet.csum_offset));
    let header = match packet.first() {
        Some(first) if first >> 4 == 4 => usize::from(first & 0xf) * 4,
        _ => V6_HEADER_LEN,
    };
    let inside = start >= header && start + field + 2 <= packet.len();
    inside.then_some(Some(PartialChecksum { start, field })).ok_or(SplitError::Checksum)
}

/// Copies a packet and completes its checksum as `skb_checksum_help` does: the field holds the pseudo-header's sum.
fn write_plain(packet: &[u8], checksum: Option<PartialChecksum>, out: &mut [u8]) {
    out.copy_from_slice(packet);
    if let Some(PartialChecksum { start, field }) = checksum {
        let sum = !checksum::fold(checksum::sum(&out[start..], 0));
        // The kernel, too, tells UDP by the offset of its field.
        let sum = if field == UDP_CSUM { never_zero(sum) } else { sum };
        put16(out, start + field, sum);
    }
}

/// In UDP, zero means "no checksum"; the other zero of one's complement takes its place (RFC 768).
fn never_zero(checksum: u16) -> u16 {
    if checksum == 0 { 0xffff } else { checksum }
}

impl Prototype {
    fn new(vnet: &VnetHeader, packet: &[u8]) -> Result<Prototype, SplitError> {
        let is_v4 = packet.first().is_some_and(|first| first >> 4 == 4);
        let protocol = match (vnet.gso, is_v4) {
            (GsoType::TcpV4, true) | (GsoType::TcpV6, false) => TCP,
            (GsoType::UdpL4, _) => UDP,
            _ => return Err(SplitError::Transport),
        };
        let found = ip::transport(packet).ok_or(SplitError::Transport)?;
        if found.protocol != protocol || found.fragment != Fragment::Whole {
            return Err(SplitError::Transport);
        }
        if vnet.gso_size == 0 {
            return Err(SplitError::GsoSize);
        }
        let segment = &packet[found.offset..];
        let header = segment.get(..transport_len(protocol, segment)?).ok_or(SplitError::Transport)?;
        let pseudo = match (found.routed, vnet.flags & F_NEEDS_CSUM != 0) {
            (false, _) => checksum::pseudo_header(packet, protocol, 0),
            // The final destination hides in the routing header, but the kernel's partial checksum knows it (and the
            // length of the whole, to be subtracted).
            (true, true) => {
                let field = if protocol == TCP { TCP_CSUM } else { UDP_CSUM };
                checksum::word(be16(header, field)) + checksum::dword(!(segment.len() as u32))
            }
            (true, false) => return Err(SplitError::Transport),
        };
        let (own, tcp) = if protocol == TCP {
            let offset_byte = checksum::word(u16::from(header[12]) << 8);
            // Ports; acknowledgment; data offset; window; urgent pointer and options.
            let pieces = [&header[..4], &header[8..12], &header[14..TCP_CSUM], &header[TCP_CSUM + 2..]];
            let sum = pieces.into_iter().fold(offset_byte, |sum, piece| checksum::sum(piece, sum));
            (sum, Some((be32(header, 4), header[13])))
        } else {
            (checksum::sum(&header[..4], 0), None)
        };
        Ok(Prototype {
            transport: found.offset,
            headers: found.offset + header.len(),
            gso_size: usize::from(vnet.gso_size),
            ip: IpPrototype::new(packet, found.offset),
            transport_sum: pseudo + own,
            tcp,
            damaged: vnet.flags & (F_NEEDS_CSUM | F_DATA_VALID) == 0 && !verifies(packet, protocol, segment),
        })
    }

    /// The length in bytes of segment `index` of `packet`.
    #[inline(always)]
    fn len_of(&self, packet: &[u8], index: usize) -> usize {
        let left = packet.len() - self.headers - index * self.gso_size;
        self.headers + left.min(self.gso_size)
    }

    /// The checksum field of a segment whose bytes and pseudo-header have the partial sum `sum`.
    fn checksum(&self, sum: u64) -> u16 {
        // One bit off, it never verifies: no two values that differ in one bit are equal modulo 65,535.
        !checksum::fold(sum) ^ u16::from(self.damaged)
    }

    /// Writes segment `index` of `packet` to `out`, which is as long as the segment.
    fn write(&self, packet: &[u8], index: usize, last: bool, out: &mut [u8]) {
        let len = out.len();
        let done = index * self.gso_size;
        let (headers, payload) = out.split_at_mut(self.headers);
        headers.copy_from_slice(&packet[..self.headers]);
        let from = self.headers + done;
        payload.copy_from_slice(&packet[from..from + payload.len()]);

        let (ip, transport) = headers.split_at_mut(self.transport);
        let transport_len = len - self.transport;
        let shared = self.transport_sum + checksum::dword(transport_len as u32);
        let mut sum = checksum::sum(payload, shared);
        if let Some((sequence, flags)) = self.tcp {
            let sequence = sequence.wrapping_add(done as u32);
            let flags = segment_flags(flags, index == 0, last);
            sum += checksum::dword(sequence) + checksum::word(u16::from(flags));
            put32(transport, 4, sequence);
            transport[13] = flags;
            put16(transport, TCP_CSUM, self.checksum(sum));
        } else {
            sum += checksum::word(transport_len as u16);
            put16(transport, 4, transport_len as u16);
            put16(transport, UDP_CSUM, never_zero(self.checksum(sum)));
        }
        self.ip.write(ip, index, len);
    }
}

impl IpPrototype {
    /// That of `packet`, whose header with options or extension headers is `len` bytes long.
    fn new(packet: &[u8], len: usize) -> IpPrototype {
        let sum = (packet[0] >> 4 == 4).then(|| {
            let sum = checksum::sum(&packet[..2], 0);
            checksum::sum(&packet[12..len], checksum::sum(&packet[6..10], sum))
        });
        IpPrototype { sum, id: be16(packet, 4) }
    }

    /// Fixes the header `ip` of segment `index`, which is `len` bytes long.
    #[inline(always)]
    fn write(&self, ip: &mut [u8], index: usize, len: usize) {
        if let Some(sum) = self.sum {
            // As the kernel's inet_gso_segment numbers them.
            let id = self.id.wrapping_add(index as u16);
            put16(ip, 2, len as u16);
            put16(ip, 4, id);
            put16(ip, 10, !checksum::fold(sum + checksum::word(len as u16) + checksum::word(id)));
        } else {
            put16(ip, 4, (len - V6_HEADER_LEN) as u16);
        }
    }
}

/// Whether the whole checksum of `packet`, whose transport part is `segment`, verifies. UDP's may be absent.
fn verifies(packet: &[u8], protocol: u8, segment: &[u8]) -> bool {
    let absent = protocol == UDP && be16(segment, UDP_CSUM) == 0;
    let pseudo = checksum::pseudo_header(packet, protocol, segment.len());
    absent || checksum::fold(checksum::sum(segment, pseudo)) == 0xffff
}

/// Length in bytes of the transport header with which `segment` starts.
fn transport_len(protocol: u8, segment: &[u8]) -> Result<usize, SplitError> {
    if protocol == UDP {
        return Ok(UDP_HEADER_LEN);
    }
    let offset = segment.get(12).ok_or(SplitError::Transport)?;
    let len = usize::from(offset >> 4) * 4;
    if len < TCP_HEADER_LEN { Err(SplitError::Transport) } else { Ok(len) }
}

/// The TCP flags of a segment: FIN and PSH belong to the last, CWR to the first (RFC 3168 section 6.1.2; the kernel's
/// tcp_gso_segment).
fn segment_flags(flags: u8, first: bool, last: bool) -> u8 {
    let mut cleared = 0;
    if !first {
        cleared |= CWR;
    }
    if !last {
        cleared |= FIN | PSH;
    }
    flags & !cleared
}

#[cfg(test)]
mod tests;
