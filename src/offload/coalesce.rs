//! RX: joins the opened packets of one train to super-packets, in place, by pointing at their pieces.
//!
//! Before, each segment is `[16: message header][inner packet][padding][16: tag]`. The first segment of a run gets
//! its virtio-net header written into its message header and the end of the tag before that, so that virtio-net header, packet
//! headers and first payload are one contiguous piece. Of every further segment only the range of its payload is
//! listed.
//!
//! The rules are those of the kernel's tcp_gro_receive, udp_gro_receive and inet_gro_receive: what the kernel would
//! have merged, it can also segment again without loss.
//!
//! One rule matters most: a packet joins others only if its own checksum verifies, since the super-packet gets a new
//! one. The tag vouches for the path between the tunnel's ends. For what was damaged before it, only the packet's own
//! checksum does. In a UDP tunnel that means the checksums of the inner packet, and the outer one where there is one.

mod headers;
mod tunnel;

use crate::wire::checksum;
use crate::wire::ip::tcp_flags::PSH;
use crate::wire::ip::{TCP, TCP_HEADER_LEN, UDP, V4_HEADER_LEN, V6_HEADER_LEN, put16};
use crate::wire::vnet::{F_NEEDS_CSUM, GsoType, VNET_HDR_LEN, VnetHeader};
use headers::{FlowKey, Headers, Hosts, Id, PacketClass};
use std::ops::Range;

pub use tunnel::{TunnelKind, TunnelPorts};

/// Most packets in a run: UDP_MAX_SEGMENTS of Linux before 6.9, which virtio_net_hdr_to_skb enforces.
pub const MAX_RUN_PACKETS: usize = 64;
/// Most bytes of a super-packet: what the IPv4 total length can state.
pub const MAX_RUN_BYTES: usize = 65_535;
/// Most runs of one train that may still grow. Beyond that, the oldest is closed. 16 indices of eight bytes.
pub const MAX_OPEN: usize = 16;

/// Which super-packets the TUN device takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CoalesceOptions {
    /// Whether TCP super-packets are (TSO4 and TSO6 were accepted).
    pub tcp: bool,
    /// Whether UDP super-packets are (USO4 and USO6 were accepted).
    pub udp: bool,
    /// Whether TCP super-packets inside a UDP tunnel are.
    pub tunnels: bool,
}

/// A kind of super-packets, as [`CoalesceOptions`] tells them apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RunKind {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// TCP inside a UDP tunnel.
    Tunnel,
}

/// One write to the TUN device: a packet or a super-packet behind its virtio-net header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TunWrite {
    /// Pieces of the train's buffer, in order; the first starts with the virtio-net header.
    pub pieces: Vec<Range<usize>>,
    /// Number of inner packets in it.
    pub packets: usize,
    /// Whether they are a UDP tunnel's with TCP inside.
    pub tunnel: bool,
}

/// Why a packet did not join the run before it. Each reason is counted, for `perf` and tests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// It is not TCP or UDP, or is a fragment, or has IP options or extension headers; it is UDP without a checksum;
    /// or the device lacks the offload.
    NotCoalescable,
    /// It is of another flow, or its TTL, TOS, DF or options differ; in TCP, also its acknowledgment or window.
    Headers,
    /// It does not bear the next sequence number (TCP).
    Sequence,
    /// Its size differs, or it follows a shorter one, or it has no payload.
    Size,
    /// It has flags other than ACK and PSH, or follows a PSH (TCP).
    Flags,
    /// The run is full: 64 KiB or 64 segments.
    Full,
    /// Its checksum, or that of the run's first packet, does not verify.
    Checksum,
}

/// Number of variants of [`Refusal`].
pub const REFUSALS: usize = 7;

/// Coalesces packets into runs. It keeps its working memory from train to train, so that it allocates only while it
/// grows.
#[derive(Default)]
pub struct Coalescer {
    options: CoalesceOptions,
    tunnels: TunnelPorts,
    /// Whether tunnels are looked for in this train.
    has_tunnels: bool,
    /// The runs of this and earlier trains. The first `states.len()` are this train's; the others keep their memory
    /// for reuse.
    runs: Vec<TunWrite>,
    /// What is known of each run, by the same index.
    states: Vec<OpenRun>,
    /// Indices of the runs that may still grow: at most one a flow, at most [`MAX_OPEN`], the oldest first.
    open: Vec<usize>,
    refusals: [u64; REFUSALS],
}

/// A run under construction.
#[derive(Clone, Copy)]
struct OpenRun {
    /// Where its first packet starts.
    head: usize,
    /// The first packet's headers; meaningless for a run that never grows.
    headers: Headers,
    /// Whether the first packet's checksums verify. `None` while nobody needed to know.
    verified: Option<bool>,
    /// Total length of the super-packet in bytes.
    len: usize,
    /// Sequence number that the next packet must have.
    sequence: u32,
    /// Whether the identifications so far count up, or stay the same.
    ids: Ids,
    /// The same of the inner packets of a tunnel.
    inner_ids: Ids,
    /// Why nothing more may join; `None` while packets may.
    closed: Option<Refusal>,
    /// Whether the last packet carried PSH.
    push: bool,
}

/// How the IPv4 identifications of a run go on. One packet alone does not tell.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ids {
    Either,
    Counting,
    Standing,
}

impl Coalescer {
    /// Starts a train.
    pub fn start(&mut self, options: CoalesceOptions) {
        self.options = options;
        self.has_tunnels = options.tunnels && self.tunnels != TunnelPorts::default();
        self.states.clear();
        self.open.clear();
    }

    /// Sets the ports at which UDP tunnels of the host listen. What goes to another port is plain UDP: its receiver would not
    /// know what to do with a tunnel's super-packet. The kernel's udp_gro_receive, too, asks who has the port.
    pub fn set_tunnels(&mut self, tunnels: TunnelPorts) {
        self.tunnels = tunnels;
    }

    /// Adds the inner packet at `packet` of `train`. Its IP length was checked, and at least [`VNET_HDR_LEN`] bytes of
    /// headroom lie before it.
    ///
    /// Packets of several interleaved flows each continue their own run; a packet that continues none starts a run or
    /// is one by itself. Order within a flow is kept. A range that is not inside `train`, or without the headroom, is
    /// no packet and is ignored.
    #[inline]
    pub fn push(&mut self, train: &mut [u8], packet: Range<usize>) {
        self.add(train, packet, false);
    }

    /// The same for a packet that may join others as far as its checksums go, since they [verify](verifies).
    #[inline]
    pub fn push_verified(&mut self, train: &mut [u8], packet: Range<usize>) {
        self.add(train, packet, true);
    }

    #[inline]
    fn add(&mut self, train: &mut [u8], packet: Range<usize>, verified: bool) {
        if packet.start < VNET_HDR_LEN {
            return;
        }
        let Some(bytes) = train.get(packet.clone()) else { return };
        if !self.options.tcp && !self.options.udp {
            return self.push_alone(packet, Refusal::NotCoalescable);
        }
        // Of a tunnel's packet only the outer checksum was looked at, so it counts as not verified.
        if self.has_tunnels
            && let Some(headers) = headers::parse_tunnel(bytes, &self.tunnels)
        {
            return self.push_joinable(train, packet, headers);
        }
        match headers::parse(bytes) {
            PacketClass::Joinable(headers) if self.takes(headers.flow.protocol) => {
                self.push_joinable(train, packet, Headers { verified, ..headers });
            }
            // Its flow never has an open run: the device does not take this protocol.
            PacketClass::Joinable(_) => self.push_alone(packet, Refusal::NotCoalescable),
            PacketClass::Alone(flow, refusal) => {
                if let Some(place) = self.find(&flow) {
                    self.open.remove(place);
                }
                self.push_alone(packet, refusal);
            }
            PacketClass::Opaque(hosts) => {
                self.close_between(&hosts);
                self.push_alone(packet, Refusal::NotCoalescable);
            }
            PacketClass::Unknown => self.push_alone(packet, Refusal::NotCoalescable),
        }
    }

    /// Closes all runs and returns them, in the order of their first packets. It writes their virtio-net headers,
    /// total lengths and pseudo-header checksums (the partial checksum for the kernel).
    ///
    /// A run of one packet keeps the sender's own checksum, right or wrong, behind a header of zeros.
    pub fn finish(&mut self, train: &mut [u8]) -> &[TunWrite] {
        self.open.clear();
        for (state, run) in self.states.iter().zip(&self.runs) {
            let Some(first) = run.pieces.first() else { continue };
            // Both ranges were checked when the packet was added. A train that is shorter than it was then is left
            // alone.
            let Some((vnet, packet)) =
                train.get_mut(first.clone()).and_then(|head| head.split_first_chunk_mut::<VNET_HDR_LEN>())
            else {
                continue;
            };
            *vnet = if run.packets > 1 {
                state.seal(packet);
                state.vnet_header(packet).to_bytes()
            } else {
                VnetHeader::default().to_bytes()
            };
        }
        &self.runs[..self.states.len()]
    }

    /// How often each refusal happened since the last call, by the order of [`Refusal`]'s variants.
    pub fn take_refusals(&mut self) -> [u64; REFUSALS] {
        std::mem::take(&mut self.refusals)
    }

    /// Whether the device takes super-packets of `protocol`.
    fn takes(&self, protocol: u8) -> bool {
        match protocol {
            TCP => self.options.tcp,
            UDP => self.options.udp,
            _ => false,
        }
    }

    /// The place in `open` of the run of `flow`. The newest is compared first, since neighbours are mostly of one
    /// flow.
    #[inline]
    fn find(&self, flow: &FlowKey) -> Option<usize> {
        self.open.iter().rposition(|run| self.states[*run].headers.flow == *flow)
    }

    /// Has the packet continue its flow's run, or start another run in its place.
    #[inline]
    fn push_joinable(&mut self, train: &[u8], packet: Range<usize>, headers: Headers) {
        if let Some(place) = self.find(&headers.flow) {
            let index = self.open[place];
            let run = &mut self.runs[index];
            match self.states[index].join(&headers, run.packets, train, &packet) {
                Ok(()) => {
                    run.pieces.push(packet.start + headers.len..packet.end);
                    run.packets += 1;
                    return;
                }
                Err(refusal) => {
                    self.refusals[refusal as usize] += 1;
                    self.open.remove(place);
                }
            }
        }
        if self.open.len() == MAX_OPEN {
            self.open.remove(0);
        }
        self.open.push(self.states.len());
        self.push_run(packet, headers);
    }

    /// Adds a packet that nothing may join.
    fn push_alone(&mut self, packet: Range<usize>, refusal: Refusal) {
        self.refusals[refusal as usize] += 1;
        self.push_run(packet, Headers::default());
    }

    /// Closes the runs between `hosts`. The packet may belong to any of them, and nothing may overtake it.
    fn close_between(&mut self, hosts: &Hosts) {
        let states = &self.states;
        self.open.retain(|run| states[*run].headers.flow.hosts != *hosts);
    }

    /// Begins a run, in a slot that keeps its memory.
    fn push_run(&mut self, packet: Range<usize>, headers: Headers) {
        let index = self.states.len();
        if index == self.runs.len() {
            self.runs.push(TunWrite::default());
        }
        let run = &mut self.runs[index];
        run.pieces.clear();
        run.pieces.push(packet.start - VNET_HDR_LEN..packet.end);
        run.packets = 1;
        run.tunnel = headers.inner > 0;
        self.states.push(OpenRun::new(packet, headers));
    }
}

/// Whether the checksums of an inner packet verify, and it is of a kind that may join others.
pub fn verifies(packet: &[u8]) -> bool {
    matches!(headers::parse(packet), PacketClass::Joinable(headers) if headers.verify(packet))
}

impl OpenRun {
    fn new(packet: Range<usize>, headers: Headers) -> OpenRun {
        OpenRun {
            head: packet.start,
            headers,
            verified: None,
            len: packet.len(),
            sequence: headers.sequence.wrapping_add(headers.payload as u32),
            ids: Ids::of_first(headers.id),
            inner_ids: Ids::of_first(headers.inner_id),
            closed: headers.push.then_some(Refusal::Flags),
            push: headers.push,
        }
    }

    /// Adds the packet with `headers`, if it is the next of this run of `packets`; otherwise says why not.
    #[inline]
    fn join(
        &mut self,
        headers: &Headers,
        packets: usize,
        train: &[u8],
        packet: &Range<usize>,
    ) -> Result<(), Refusal> {
        if let Some(refusal) = self.closed {
            return Err(refusal);
        }
        let own = &self.headers;
        // TCP options; the range is empty for plain UDP, whose header is shorter than TCP's.
        let options = (own.transport + TCP_HEADER_LEN).min(own.len)..own.len;
        let at = |start: usize| train.get(start + options.start..start + options.end);
        if headers.ip != own.ip
            || headers.tcp != own.tcp
            || headers.len != own.len
            || headers.inner != own.inner
            || at(self.head) != at(packet.start)
        {
            return Err(Refusal::Headers);
        }
        let inner_ids = match own.inner {
            0 => self.inner_ids,
            _ => self.join_inside(headers, packets, train, packet).ok_or(Refusal::Headers)?,
        };
        let ids = self.ids.next(own.id, headers.id, packets).ok_or(Refusal::Headers)?;
        if own.protocol() == TCP && headers.sequence != self.sequence {
            return Err(Refusal::Sequence);
        }
        if headers.payload > own.payload {
            return Err(Refusal::Size);
        }
        if packets == MAX_RUN_PACKETS || self.len + headers.payload > MAX_RUN_BYTES {
            return Err(Refusal::Full);
        }
        if !self.verify(headers, train, packet) {
            return Err(Refusal::Checksum);
        }
        if headers.payload < self.headers.payload {
            self.closed = Some(Refusal::Size);
        } else if headers.push {
            self.closed = Some(Refusal::Flags);
        }
        (self.ids, self.inner_ids) = (ids, inner_ids);
        self.push = headers.push;
        self.len += headers.payload;
        self.sequence = self.sequence.wrapping_add(headers.payload as u32);
        Ok(())
    }

    /// Whether the checksums of the run's first packet and of `packet` verify.
    #[inline]
    fn verify(&mut self, headers: &Headers, train: &[u8], packet: &Range<usize>) -> bool {
        let verify =
            |headers: &Headers, at: Range<usize>| train.get(at).is_some_and(|bytes| headers.verify(bytes));
        let own = self.headers;
        let first =
            *self.verified.get_or_insert_with(|| verify(&own, self.head..self.head + own.len + own.payload));
        first && verify(headers, packet.clone())
    }

    /// How the inner identifications go on with `packet`, if it has the same tunnel headers and the same inner flow as the run's
    /// first packet.
    #[inline(never)]
    fn join_inside(
        &self,
        headers: &Headers,
        packets: usize,
        train: &[u8],
        packet: &Range<usize>,
    ) -> Option<Ids> {
        let [first, next] = [self.head, packet.start].map(|at| train.get(at..at + self.headers.len));
        let same = tunnel::same(first?, next?, self.headers.places());
        let ids = self.inner_ids.next(self.headers.inner_id, headers.inner_id, packets);
        ids.filter(|_| same)
    }

    /// Makes the headers of the first packet those of the super-packet: lengths, flags, checksums.
    fn seal(&self, head: &mut [u8]) {
        if self.headers.inner > 0 {
            tunnel::seal_outer(head, self.headers.places().udp, self.len);
        }
        let head = &mut head[usize::from(self.headers.inner)..];
        let transport_at = self.headers.transport - usize::from(self.headers.inner);
        let len = self.len - usize::from(self.headers.inner);
        let transport_len = len - transport_at;
        seal_ip(head, len);
        let protocol = self.headers.protocol();
        let pseudo = checksum::fold(checksum::pseudo_header(head, protocol, transport_len));
        let transport = &mut head[transport_at..];
        if protocol == TCP && self.push {
            transport[13] |= PSH;
        } else if protocol == UDP {
            put16(transport, 4, transport_len as u16);
        }
        put16(transport, usize::from(checksum_offset(protocol)), pseudo);
    }

    /// The header that makes the kernel segment the run, whose sealed first packet is `head`, as it came.
    fn vnet_header(&self, head: &[u8]) -> VnetHeader {
        let protocol = self.headers.protocol();
        let (outer_flags, tunnel) = match self.headers.inner {
            0 => (0, None),
            _ => tunnel::vnet_fields(head, self.headers.places()),
        };
        VnetHeader {
            flags: F_NEEDS_CSUM | outer_flags,
            gso: match (protocol, self.headers.transport - usize::from(self.headers.inner)) {
                (UDP, _) => GsoType::UdpL4,
                (_, V4_HEADER_LEN) => GsoType::TcpV4,
                _ => GsoType::TcpV6,
            },
            gso_ecn: false,
            hdr_len: self.headers.len as u16,
            gso_size: self.headers.payload as u16,
            csum_start: self.headers.transport as u16,
            csum_offset: checksum_offset(protocol),
            tunnel,
        }
    }
}

impl Ids {
    /// That of a run of one packet.
    fn of_first(id: Id) -> Ids {
        if id.may_stand { Ids::Either } else { Ids::Counting }
    }

    /// How the identifications go on after `packets` packets, of which the first had `first`: up by one each, or, with DF
    /// set, not at all. Segmenting again makes them count up, which DF makes harmless (RFC 6864 section 4.1). `None` where
    /// they go on in neither way.
    #[inline]
    fn next(self, first: Id, id: Id, packets: usize) -> Option<Ids> {
        let counting = first.value.wrapping_add(packets as u16) == id.value;
        let standing = first.value == id.value;
        match self {
            Ids::Either if standing => Some(Ids::Standing),
            Ids::Either | Ids::Counting if counting => Some(Ids::Counting),
            Ids::Standing if standing => Some(Ids::Standing),
            _ => None,
        }
    }
}

/// Makes the IP header without options or extension headers, with which `packet` begins, that of `len` bytes.
fn seal_ip(packet: &mut [u8], len: usize) {
    if packet[0] >> 4 == 4 {
        put16(packet, 2, len as u16);
        put16(packet, 10, 0);
        let sum = checksum::sum(&packet[..V4_HEADER_LEN], 0);
        put16(packet, 10, !checksum::fold(sum));
    } else {
        put16(packet, 4, (len - V6_HEADER_LEN) as u16);
    }
}

/// Offset of the checksum field in the transport header.
fn checksum_offset(protocol: u8) -> u16 {
    if protocol == UDP { 6 } else { 16 }
}

#[cfg(test)]
mod tests;
