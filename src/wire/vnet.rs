//! `struct virtio_net_hdr` (Linux `include/uapi/linux/virtio_net.h`), ten bytes, native endianness, as TUN uses it
//! without mergeable buffers.

/// Length of the header.
pub const VNET_HDR_LEN: usize = 10;

/// `flags`: the checksum field holds the pseudo-header sum and must be completed.
pub const F_NEEDS_CSUM: u8 = 1;
/// `flags`: the checksum is known to be right.
pub const F_DATA_VALID: u8 = 2;

/// `VIRTIO_NET_HDR_GSO_ECN`, or-ed into `gso_type`.
const GSO_ECN: u8 = 0x80;

/// The kind of a super-packet: `gso_type` with the ECN bit masked.
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

/// A parsed virtio-net header. `hdr_len` is not kept: the kernel's value is wrong on forwarded packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VnetHeader {
    /// The bits [`F_NEEDS_CSUM`] and [`F_DATA_VALID`].
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
}

impl VnetHeader {
    /// Parses the first ten bytes of a TUN frame. `None` where they are truncated, or of a `gso_type` that was never
    /// offered, such as the old UFO (3), which fragments instead of segmenting.
    #[inline]
    pub fn parse(frame: &[u8]) -> Option<VnetHeader> {
        let header = frame.first_chunk::<VNET_HDR_LEN>()?;
        let gso = match header[1] & !GSO_ECN {
            0 => GsoType::None,
            1 => GsoType::TcpV4,
            4 => GsoType::TcpV6,
            5 => GsoType::UdpL4,
            _ => return None,
        };
        Some(VnetHeader {
            flags: header[0] & (F_NEEDS_CSUM | F_DATA_VALID),
            gso,
            gso_ecn: header[1] & GSO_ECN != 0,
            hdr_len: 0,
            gso_size: u16::from_ne_bytes([header[4], header[5]]),
            csum_start: u16::from_ne_bytes([header[6], header[7]]),
            csum_offset: u16::from_ne_bytes([header[8], header[9]]),
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
        let [h0, h1] = self.hdr_len.to_ne_bytes();
        let [g0, g1] = self.gso_size.to_ne_bytes();
        let [s0, s1] = self.csum_start.to_ne_bytes();
        let [o0, o1] = self.csum_offset.to_ne_bytes();
        [self.flags, gso | if self.gso_ecn { GSO_ECN } else { 0 }, h0, h1, g0, g1, s0, s1, o0, o1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn with_type(gso_type: u8) -> Option<(GsoType, bool)> {
        VnetHeader::parse(&[0, gso_type, 0, 0, 0, 0, 0, 0, 0, 0]).map(|header| (header.gso, header.gso_ecn))
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
        assert_eq!(accepted, [0, 1, 4, 5, 0x80, 0x81, 0x84, 0x85]);
    }

    #[test]
    fn rule_13_hdr_len_is_never_read() {
        let frame = [1, 1, 0xff, 0xff, 0, 0, 0, 0, 0, 0];
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
        };
        let mut expected = vec![1, 5];
        [28u16, 1200, 20, 6].iter().for_each(|field| expected.extend(field.to_ne_bytes()));
        assert_eq!(header.to_bytes().to_vec(), expected);
    }

    proptest! {
        #[test]
        fn what_is_written_parses_back(
            flags in 0u8..4, kind in 0usize..4, gso_ecn: bool, hdr_len: u16, gso_size: u16, csum_start: u16,
            csum_offset: u16,
        ) {
            let gso = [GsoType::None, GsoType::TcpV4, GsoType::TcpV6, GsoType::UdpL4][kind];
            let header = VnetHeader { flags, gso, gso_ecn, hdr_len, gso_size, csum_start, csum_offset };
            prop_assert_eq!(VnetHeader::parse(&header.to_bytes()), Some(VnetHeader { hdr_len: 0, ..header }));
        }

        #[test]
        fn garbage_never_panics_and_truncation_never_parses(frame in prop::collection::vec(any::<u8>(), 0..20)) {
            prop_assert!(frame.len() >= VNET_HDR_LEN || VnetHeader::parse(&frame).is_none());
            let _ = VnetHeader::parse(&frame);
        }
    }
}
