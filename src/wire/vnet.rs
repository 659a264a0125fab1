//! `struct virtio_net_hdr_v1_hash_tunnel` (Linux `include/uapi/linux/virtio_net.h`), as TUN uses it: the ten bytes of
//! `struct virtio_net_hdr`, in native endianness, ten more that TUN leaves unused, and two little-endian offsets of a UDP
//! tunnel's super-packet. A kernel before 6.17 knows the first ten bytes and passes over the others.

/// Length of the header.
pub const VNET_HDR_LEN: usize = 24;

/// `flags`: the checksum field holds the pseudo-header sum and must be completed.
pub const F_NEEDS_CSUM: u8 = 1;
/// `flags`: the checksum is known to be right.
pub const F_DATA_VALID: u8 = 2;

/// `flags`: the datagrams of a UDP tunnel's super-packet bear a checksum.
pub const F_TUNNEL_CSUM: u8 = 8;

/// `VIRTIO_NET_HDR_GSO_ECN`, or-ed into `gso_type`.
const GSO_ECN: u8 = 0x80;
/// `VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV4`, or-ed into `gso_type`.
const GSO_TUNNEL_V4: u8 = 0x20;
/// `VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV6`, or-ed into `gso_type`.
const GSO_TUNNEL_V6: u8 = 0x40;

/// The kind of a super-packet, in a tunnel the inner one's: `gso_type` without the bits of ECN and tunnels.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum GsoType {
    /// One packet.
    #[default]
    None,
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
    /// UDP segmentation (USO) over IPv4 or IPv6; 5 on the wire.
    UdpL4,
}

/// Says of a super-packet that it is a UDP tunnel's (VXLAN, GENEVE): each segment repeats the outer headers, too.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VnetTunnel {
    /// Whether the outer packet is IPv6.
    pub v6: bool,
    /// What to write as `outer_th_offset`, in bytes: the offset of the outer UDP header. Parsing ignores the field, as the
    /// outer IP header tells.
    pub transport: u16,
    /// Offset in bytes from the start of the outer IP header to the inner one's.
    pub inner: u16,
}

/// A parsed virtio-net header. `hdr_len` is not kept: the kernel's value is wrong on forwarded packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VnetHeader {
    /// The bits [`F_NEEDS_CSUM`], [`F_DATA_VALID`] and [`F_TUNNEL_CSUM`].
    pub flags: u8,
    /// Kind of super-packet.
    pub gso: GsoType,
    /// Whether the ECN bit (0x80) stood in `gso_type`. If so, the first segment carries CWR.
    pub gso_ecn: bool,
    /// What to write as `hdr_len`, in bytes. Parsing ignores the field.
    pub hdr_len: u16,
    /// Payload bytes per segment; the last may have fewer.
    pub gso_size: u16,
    /// Offset in bytes from the start of the IP header at which checksumming starts.
    pub csum_start: u16,
    /// Offset in bytes of the checksum field from `csum_start`.
    pub csum_offset: u16,
    /// The tunnel whose super-packet it is.
    pub tunnel: Option<VnetTunnel>,
}

impl VnetHeader {
    /// Parses the header of a TUN frame. `None` where it is truncated, or of a `gso_type` that was never offered, such as
    /// the old UFO (3), which fragments instead of segmenting.
    #[inline]
    pub fn parse(frame: &[u8]) -> Option<VnetHeader> {
        let header = frame.first_chunk::<VNET_HDR_LEN>()?;
        let gso = match header[1] & !(GSO_ECN | GSO_TUNNEL_V4 | GSO_TUNNEL_V6) {
            0 => GsoType::None,
            1 => GsoType::TcpV4,
            4 => GsoType::TcpV6,
            5 => GsoType::UdpL4,
            _ => return None,
        };
        let tunnel = match header[1] & (GSO_TUNNEL_V4 | GSO_TUNNEL_V6) {
            0 => None,
            bit if bit != GSO_TUNNEL_V4 | GSO_TUNNEL_V6 && gso != GsoType::None => Some(VnetTunnel {
                v6: bit == GSO_TUNNEL_V6,
                transport: 0,
                inner: u16::from_le_bytes([header[22], header[23]]),
            }),
            _ => return None,
        };
        Some(VnetHeader {
            flags: header[0] & (F_NEEDS_CSUM | F_DATA_VALID | F_TUNNEL_CSUM),
            gso,
            gso_ecn: header[1] & GSO_ECN != 0,
            hdr_len: 0,
            gso_size: u16::from_ne_bytes([header[4], header[5]]),
            csum_start: u16::from_ne_bytes([header[6], header[7]]),
            csum_offset: u16::from_ne_bytes([header[8], header[9]]),
            tunnel,
        })
    }

    /// The header as TUN expects it.
    #[inline]
    pub fn to_bytes(self) -> [u8; VNET_HDR_LEN] {
        let gso = match self.gso {
            GsoType::None => 0,
            GsoType::TcpV4 => 1,
            GsoType::TcpV6 => 4,
            GsoType::UdpL4 => 5,
        };
        let ecn = if self.gso_ecn { GSO_ECN } else { 0 };
        let mut header = [0; VNET_HDR_LEN];
        (header[0], header[1]) = (self.flags, gso | ecn);
        let fields = [self.hdr_len, self.gso_size, self.csum_start, self.csum_offset];
        for (place, field) in header[2..10].chunks_exact_mut(2).zip(fields) {
            place.copy_from_slice(&field.to_ne_bytes());
        }
        if let Some(tunnel) = self.tunnel {
            header[1] |= if tunnel.v6 { GSO_TUNNEL_V6 } else { GSO_TUNNEL_V4 };
            header[20..22].copy_from_slice(&tunnel.transport.to_le_bytes());
            header[22..].copy_from_slice(&tunnel.inner.to_le_bytes());
        }
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn with_type(gso_type: u8) -> Option<(GsoType, bool)> {
        let mut frame = [0; VNET_HDR_LEN];
        frame[1] = gso_type;
        VnetHeader::parse(&frame).map(|header| (header.gso, header.gso_ecn))
    }

    #[test]
    fn rule_13_the_ecn_bit_is_masked_out_of_gso_type() {
        assert_eq!(with_type(0x01), Some((GsoType::TcpV4, false)));
        assert_eq!(with_type(0x81), Some((GsoType::TcpV4, true)));
        assert_eq!(with_type(0x84), Some((GsoType::TcpV6, true)));
        assert_eq!(with_type(0x80), Some((GsoType::None, true)));
    }

    #[test]
    fn only_the_offered_types_parse() {
        let accepted: Vec<u8> = (0..=255).filter(|gso_type| with_type(*gso_type).is_some()).collect();
        let tunnels = [0x21, 0x24, 0x25, 0x41, 0x44, 0x45, 0xa1, 0xa4, 0xa5, 0xc1, 0xc4, 0xc5];
        let mut offered = [&[0, 1, 4, 5, 0x80, 0x81, 0x84, 0x85], &tunnels[..]].concat();
        offered.sort_unstable();
        assert_eq!(accepted, offered);
    }

    #[test]
    fn rule_13_hdr_len_is_never_read() {
        let mut frame = [0; VNET_HDR_LEN];
        frame[..4].copy_from_slice(&[1, 1, 0xff, 0xff]);
        assert_eq!(VnetHeader::parse(&frame).unwrap().hdr_len, 0);
    }

    #[test]
    fn the_layout_is_that_of_the_kernel() {
        let header = VnetHeader {
            flags: F_NEEDS_CSUM,
            gso: GsoType::UdpL4,
            gso_ecn: false,
            hdr_len: 28,
            gso_size: 1200,
            csum_start: 20,
            csum_offset: 6,
            tunnel: None,
        };
        let mut expected = vec![1, 5];
        [28u16, 1200, 20, 6].iter().for_each(|field| expected.extend(field.to_ne_bytes()));
        expected.extend([0; 14]);
        assert_eq!(header.to_bytes().to_vec(), expected);
        let tunnel = Some(VnetTunnel { v6: true, transport: 54, inner: 0x102 });
        let of_a_tunnel = VnetHeader { flags: F_NEEDS_CSUM | F_TUNNEL_CSUM, tunnel, ..header };
        (expected[0], expected[1]) = (9, 0x45);
        expected[20..].copy_from_slice(&[54, 0, 2, 1]);
        assert_eq!(of_a_tunnel.to_bytes().to_vec(), expected);
    }

    proptest! {
        #[test]
        fn what_is_written_parses_back(
            flags in 0u8..4, tunnel in prop::option::of((any::<bool>(), any::<u16>())), kind in 0usize..4, gso_ecn: bool, hdr_len: u16, gso_size: u16, csum_start: u16,
            csum_offset: u16,
        ) {
            let gso = [GsoType::None, GsoType::TcpV4, GsoType::TcpV6, GsoType::UdpL4][kind];
            let tunnel = tunnel.filter(|_| kind > 0);
            let tunnel = tunnel.map(|(v6, inner)| VnetTunnel { v6, transport: 0, inner });
            let header = VnetHeader { flags, gso, gso_ecn, hdr_len, gso_size, csum_start, csum_offset, tunnel };
            prop_assert_eq!(VnetHeader::parse(&header.to_bytes()), Some(VnetHeader { hdr_len: 0, ..header }));
        }

        #[test]
        fn garbage_never_panics_and_truncation_never_parses(frame in prop::collection::vec(any::<u8>(), 0..40)) {
            prop_assert!(frame.len() >= VNET_HDR_LEN || VnetHeader::parse(&frame).is_none());
            let _ = VnetHeader::parse(&frame);
        }
    }
}
