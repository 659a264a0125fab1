//! The outer headers of a UDP tunnel's super-packet (VXLAN, GENEVE): IP, UDP, and what the tunnel puts before the inner packet.

use super::{IpPrototype, SplitError, UDP_CSUM, never_zero};
use crate::wire::checksum;
use crate::wire::ip::{self, Fragment, UDP, UDP_HEADER_LEN, put16};
use crate::wire::vnet::{F_TUNNEL_CSUM, VnetHeader, VnetTunnel};

/// What the outer headers of the segments have in common.
pub(super) struct OuterHeaders {
    /// Their length in bytes, which is the offset of the inner IP header.
    pub(super) len: usize,
    /// Offset in bytes of the UDP header.
    udp: usize,
    ip: IpPrototype,
    /// Partial sum of the pseudo-header without the length. Without it the checksum stays as it came, which is zero.
    pseudo: Option<u64>,
}

impl OuterHeaders {
    /// Parses `packet`, and returns the inner packet, too. It must end where its own header says.
    pub(super) fn new<'a>(
        vnet: &VnetHeader,
        tunnel: VnetTunnel,
        packet: &'a [u8],
    ) -> Result<(OuterHeaders, &'a [u8]), SplitError> {
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
        let summed = vnet.flags & F_TUNNEL_CSUM != 0;
        let pseudo = summed.then(|| checksum::pseudo_header(packet, UDP, 0));
        Ok((
            OuterHeaders { len, udp: found.offset, ip: IpPrototype::new(packet, found.offset), pseudo },
            inner,
        ))
    }

    /// Writes the headers of segment `index` of `packet` to `out`, in which the inner segment stands already.
    pub(super) fn write(&self, packet: &[u8], index: usize, out: &mut [u8]) {
        out[..self.len].copy_from_slice(&packet[..self.len]);
        let len = out.len();
        let (ip, udp) = out.split_at_mut(self.udp);
        self.ip.write(ip, index, len);
        let udp_len = udp.len();
        put16(udp, 4, udp_len as u16);
        if let Some(pseudo) = self.pseudo {
            put16(udp, UDP_CSUM, 0);
            let sum = checksum::sum(udp, pseudo + checksum::dword(udp_len as u32));
            put16(udp, UDP_CSUM, never_zero(!checksum::fold(sum)));
        }
    }
}
