//! TCP inside a UDP tunnel: VXLAN (RFC 7348) or GENEVE (RFC 8926) around Ethernet around IP.
//!
//! An outer checksum of zero says nothing about the headers between the outer and the inner IP header. Packets join only where
//! these are equal bit for bit, and the super-packet keeps them, so that damage in them stays what it was.

use super::seal_ip;
use crate::wire::checksum;
use crate::wire::ip::{TCP, UDP, UDP_HEADER_LEN, V4_HEADER_LEN, V6_HEADER_LEN, be16, put16};
use crate::wire::vnet::{F_TUNNEL_CSUM, VnetTunnel};

const ETHERNET_LEN: usize = 14;
const ETHERTYPE_V4: u16 = 0x0800;
const ETHERTYPE_V6: u16 = 0x86dd;
/// GENEVE's protocol type of an Ethernet frame (RFC 8926 section 3.4).
const ETHERNET: u16 = 0x6558;
/// Offset of the checksum in a UDP header.
const UDP_CSUM: usize = 6;

/// What a UDP tunnel puts between its UDP header and the inner Ethernet frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TunnelKind {
    /// RFC 7348.
    Vxlan,
    /// RFC 8926.
    Geneve,
}

/// Most ports of tunnels of one kind that are known. Tunnels at others work, without super-packets.
const MAX_PORTS: usize = 4;

/// The UDP ports at which tunnels of the host listen.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct TunnelPorts {
    vxlan: [u16; MAX_PORTS],
    geneve: [u16; MAX_PORTS],
}

impl TunnelPorts {
    /// Adds a port, unless it is known, or four of the kind are.
    pub fn add(&mut self, kind: TunnelKind, port: u16) {
        let ports = match kind {
            TunnelKind::Vxlan => &mut self.vxlan,
            TunnelKind::Geneve => &mut self.geneve,
        };
        if !ports.contains(&port)
            && let Some(free) = ports.iter_mut().find(|port| **port == 0)
        {
            *free = port;
        }
    }

    /// What listens at `port`.
    pub(super) fn at(&self, port: u16) -> Option<TunnelKind> {
        match port {
            0 => None,
            _ if self.vxlan.contains(&port) => Some(TunnelKind::Vxlan),
            _ if self.geneve.contains(&port) => Some(TunnelKind::Geneve),
            _ => None,
        }
    }
}

/// The offset of the inner IP packet in `datagram`, which begins with its UDP header. `None` where there is none.
pub(super) fn inner_at(datagram: &[u8], kind: TunnelKind) -> Option<usize> {
    let shim = datagram.get(UDP_HEADER_LEN..)?.first_chunk::<8>()?;
    let shim_len = match kind {
        // Only the flag that there is a network identifier: no extension, of which some change what follows.
        TunnelKind::Vxlan if shim[..4] == [8, 0, 0, 0] => 8,
        // Version 0, and no control packet (O).
        TunnelKind::Geneve if shim[0] >> 6 == 0 && shim[1] & 0x80 == 0 && be16(shim, 2) == ETHERNET => {
            8 + usize::from(shim[0]) * 4
        }
        _ => return None,
    };
    let at = UDP_HEADER_LEN + shim_len + ETHERNET_LEN;
    match (datagram.get(at)? >> 4, be16(datagram, at - 2)) {
        (4, ETHERTYPE_V4) | (6, ETHERTYPE_V6) => Some(at),
        _ => None,
    }
}

/// Where the headers of a tunnel's packet stand, in bytes from the outer IP header.
#[derive(Clone, Copy)]
pub(super) struct Places {
    /// The outer UDP header.
    pub(super) udp: usize,
    /// The inner IP header.
    pub(super) inner: usize,
    /// The inner TCP header.
    pub(super) tcp: usize,
}

/// Whether two packets of one outer flow may be segments of one super-packet as far as goes what stands between the outer UDP and
/// the inner TCP header.
pub(super) fn same(first: &[u8], next: &[u8], Places { udp, inner, tcp }: Places) -> bool {
    // All but the inner length, and IPv4's identification and checksum. The ports follow the addresses.
    let fixed: [(usize, usize); 3] = if tcp - inner == V4_HEADER_LEN {
        [(udp + UDP_HEADER_LEN, inner + 2), (inner + 6, inner + 10), (inner + 12, tcp + 4)]
    } else {
        [(udp + UDP_HEADER_LEN, inner + 4), (inner + 6, inner + 8), (inner + 8, tcp + 4)]
    };
    let unsummed = |packet: &[u8]| be16(packet, udp + UDP_CSUM) == 0;
    fixed.into_iter().all(|(from, to)| first[from..to] == next[from..to]) && unsummed(first) == unsummed(next)
}

/// Whether the checksums of `packet` verify: the inner ones, the outer IPv4 header's, and the outer UDP header's where there is one.
#[inline(never)] // what is no tunnel's is not to pay for it
pub(super) fn verify(packet: &[u8], Places { udp, inner, tcp }: Places) -> bool {
    let (Some(packet_inside), Some(datagram)) = (packet.get(inner..), packet.get(udp..)) else {
        return false;
    };
    let outer = be16(datagram, UDP_CSUM) == 0 || verifies(packet, udp, UDP);
    outer && ip_verifies(packet) && ip_verifies(packet_inside) && verifies(packet_inside, tcp - inner, TCP)
}

/// Whether the checksum of the IPv4 header verifies; IPv6 has none.
fn ip_verifies(packet: &[u8]) -> bool {
    packet[0] >> 4 != 4 || checksum::fold(checksum::sum(&packet[..V4_HEADER_LEN], 0)) == 0xffff
}

/// Whether the checksum of the transport part, which starts at `at`, verifies.
fn verifies(packet: &[u8], at: usize, protocol: u8) -> bool {
    let pseudo = checksum::pseudo_header(packet, protocol, packet.len() - at);
    checksum::fold(checksum::sum(&packet[at..], pseudo)) == 0xffff
}

/// Makes the outer headers of `head` those of a super-packet of `len` bytes. A checksum of zero stays; otherwise it becomes the
/// pseudo-header's sum, as udp_set_csum leaves it for segmentation.
pub(super) fn seal_outer(head: &mut [u8], udp: usize, len: usize) {
    seal_ip(head, len);
    put16(head, udp + 4, (len - udp) as u16);
    if be16(head, udp + UDP_CSUM) != 0 {
        let pseudo = checksum::pseudo_header(head, UDP, len - udp);
        put16(head, udp + UDP_CSUM, checksum::fold(pseudo));
    }
}

/// The flags and fields by which the virtio-net header of a sealed `head` tells of the tunnel.
pub(super) fn vnet_fields(head: &[u8], Places { udp, inner, .. }: Places) -> (u8, Option<VnetTunnel>) {
    let v6 = udp == V6_HEADER_LEN;
    let flags = if be16(head, udp + UDP_CSUM) == 0 { 0 } else { F_TUNNEL_CSUM };
    // The kernel takes every device for one with Ethernet headers, and refuses a smaller offset (virtio_net_hdr_tnl_to_skb,
    // Linux 6.17). On a device without them none is right, then; but ip_rcv and ipv6_rcv find the UDP header by themselves.
    let transport = (udp + ETHERNET_LEN) as u16;
    (flags, Some(VnetTunnel { v6, transport, inner: inner as u16 }))
}
