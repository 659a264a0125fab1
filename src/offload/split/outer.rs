//! The outer headers of a UDP tunnel's super-packet (VXLAN, GENEVE): IP, UDP, and what the tunnel puts before the inner packet.

use super::{IpPrototype, SplitError, UDP_CSUM, never_zero};
use crate::wire::checksum;
use crate::wire::ip::{self, Fragment, UDP, UDP_HEADER_LEN, put16};
use crate::wire::vnet::{F_TUNNEL_CSUM, VnetHeader, VnetTunnel};

/// Their length and kind. That is little, since every frame carries it, with a tunnel or without.
#[derive(Clone, Copy, Default)]
pub(super) struct OuterHeaders {
    len: u16,
    /// Whether the datagrams bear a checksum. Otherwise the field stays as it came, which is zero.
    summed: bool,
}

impl OuterHeaders {
    /// Parses `packet`. The inner packet must end where its own header says.
    #[inline(never)] // what has no tunnel is not to pay for it
    pub(super) fn new(
        vnet: &VnetHeader,
        tunnel: VnetTunnel,
        packet: &[u8],
    ) -> Result<OuterHeaders, SplitError> {
        let found = ip::transport(packet).ok_or(SplitError::Transport)?;
        let len = usize::from(tunnel.inner);
        let is_udp = found.protocol == UDP && found.fragment == Fragment::Whole && !found.routed;
        if !is_udp || len < found.offset + UDP_HEADER_LEN {
            return Err(SplitError::Transport);
        }
        let inner = packet.get(len..).ok_or(SplitError::Transport)?;
        if ip::parse(inner).is_none_or(|info| info.len != inner.len()) {
            return Err(SplitError::Ip);
        }
        Ok(OuterHeaders { len: tunnel.inner, summed: vnet.flags & F_TUNNEL_CSUM != 0 })
    }

    /// Their length in bytes, which is the offset of the inner IP header; 0 where there is no tunnel.
    #[inline(always)]
    pub(super) fn len(self) -> usize {
        usize::from(self.len)
    }

    /// Writes the headers of segment `index` of `packet`, which was parsed, to `out`, in which the inner segment stands already.
    #[inline(never)]
    pub(super) fn write(self, packet: &[u8], index: usize, out: &mut [u8]) {
        let Some(found) = ip::transport(packet) else { return };
        out[..self.len()].copy_from_slice(&packet[..self.len()]);
        let len = out.len();
        let (ip, udp) = out.split_at_mut(found.offset);
        IpPrototype::new(packet, found.offset).write(ip, index, len);
        let udp_len = udp.len();
        put16(udp, 4, udp_len as u16);
        if self.summed {
            put16(udp, UDP_CSUM, 0);
            let sum = checksum::sum(udp, checksum::pseudo_header(packet, UDP, udp_len));
            put16(udp, UDP_CSUM, never_zero(!checksum::fold(sum)));
        }
    }
}
