//! Names and control messages of UDP sockets, as bytes (Linux `include/linux/socket.h`, `net/ipv4/udp.c`,
//! `net/ipv4/ip_sockglue.c`, `net/ipv6/datagram.c`). Both backends encode and decode through this file.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// A local address to send from, and the interface on which it was spoken to: what IP_PKTINFO or IPV6_PKTINFO states
/// on receive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LocalAddr {
    /// The local IP address.
    pub ip: IpAddr,
    /// The interface's index; 0 is any.
    pub interface: u32,
}

/// Room in bytes for a name. A sockaddr_in6 takes 28; 48 puts the payload of an io_uring receive at a multiple of 64.
pub(crate) const NAME_LEN: usize = 48;
/// Room in bytes for control data. The largest on receive is UDP_GRO 24 + IPV6_PKTINFO 40 + IPV6_TCLASS 24, and the
/// largest on send is the same.
pub(crate) const CONTROL_LEN: usize = 128;

/// `struct cmsghdr`: length (a size_t), level and type (ints).
const HEADER: usize = size_of::<usize>() + 8;
/// CMSG_ALIGN: messages start at multiples of a long.
const ALIGN: usize = size_of::<usize>();

/// A socket address as the kernel reads and writes it.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(crate) struct Name([u8; NAME_LEN]);

impl Name {
    pub(crate) const EMPTY: Name = Name([0; NAME_LEN]);

    /// Writes `to` and returns its length in bytes.
    pub(crate) fn set(&mut self, to: &SocketAddr) -> usize {
        let bytes = &mut self.0;
        bytes[2..4].copy_from_slice(&to.port().to_be_bytes());
        match to {
            SocketAddr::V4(v4) => {
                bytes[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
                bytes[4..8].copy_from_slice(&v4.ip().octets());
                bytes[8..16].fill(0);
                16
            }
            SocketAddr::V6(v6) => {
                bytes[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
                bytes[4..8].copy_from_slice(&v6.flowinfo().to_be_bytes());
                bytes[8..24].copy_from_slice(&v6.ip().octets());
                bytes[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
                28
            }
        }
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.0.as_mut_ptr()
    }

    /// The first `len` bytes, or all where there are fewer.
    pub(crate) fn bytes(&self, len: usize) -> &[u8] {
        self.0.get(..len).unwrap_or(&self.0)
    }
}

/// Reads a sockaddr_in or sockaddr_in6.
pub fn decode_name(name: &[u8]) -> Option<SocketAddr> {
    let family = i32::from(u16::from_ne_bytes(*name.first_chunk()?));
    let port = u16::from_be_bytes(*name.get(2..)?.first_chunk()?);
    match family {
        libc::AF_INET => {
            let ip: [u8; 4] = *name.get(4..)?.first_chunk()?;
            Some(SocketAddrV4::new(ip.into(), port).into())
        }
        libc::AF_INET6 => {
            let ip: [u8; 16] = *name.get(8..)?.first_chunk()?;
            let scope = u32::from_ne_bytes(*name.get(24..)?.first_chunk()?);
            Some(SocketAddrV6::new(ip.into(), port, 0, scope).into())
        }
        _ => None,
    }
}

/// Control data under construction, or received.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub struct ControlData {
    bytes: [u8; CONTROL_LEN],
    len: usize,
}

impl ControlData {
    /// No messages.
    pub const EMPTY: ControlData = ControlData { bytes: [0; CONTROL_LEN], len: 0 };

    /// Forgets all messages.
    pub(crate) fn clear(&mut self) {
        self.len = 0;
    }

    /// Bytes of all messages appended.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// All messages appended.
    #[cfg(feature = "internals")]
    pub fn messages(&self) -> &[u8] {
        self.bytes(self.len)
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.bytes.as_mut_ptr()
    }

    /// The first `len` bytes, or all where there are fewer.
    pub(crate) fn bytes(&self, len: usize) -> &[u8] {
        self.bytes.get(..len).unwrap_or(&self.bytes)
    }

    fn push(&mut self, level: i32, kind: i32, data: &[u8]) {
        let end = (HEADER + data.len()).next_multiple_of(ALIGN);
        let Some(room) = self.bytes.get_mut(self.len..self.len + end) else {
            debug_assert!(false, "CONTROL_LEN holds every combination");
            return;
        };
        let (length, rest) = room.split_at_mut(size_of::<usize>());
        length.copy_from_slice(&(HEADER + data.len()).to_ne_bytes());
        rest[..4].copy_from_slice(&level.to_ne_bytes());
        rest[4..8].copy_from_slice(&kind.to_ne_bytes());
        rest[8..8 + data.len()].copy_from_slice(data);
        rest[8 + data.len()..].fill(0);
        self.len += end;
    }

    /// UDP_SEGMENT: exactly a u16 (`udp_cmsg_send` refuses any other length).
    pub fn push_segment(&mut self, size: u16) {
        self.push(libc::SOL_UDP, libc::UDP_SEGMENT, &size.to_ne_bytes());
    }

    /// The source address: struct in_pktinfo (index, source, unused) or in6_pktinfo (source, index).
    ///
    /// The index stays 0, since any other forces the way out past the routing tables: over IPv4 even an interface without a
    /// route, whose wire is then searched for the peer by ARP. A link-local address means nothing without its interface.
    pub fn push_source(&mut self, from: &LocalAddr) {
        match from.ip {
            IpAddr::V4(ip) => {
                let mut data = [0; 12];
                data[4..8].copy_from_slice(&ip.octets());
                self.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &data);
            }
            IpAddr::V6(ip) => {
                let mut data = [0; 20];
                data[..16].copy_from_slice(&ip.octets());
                let scope = if ip.is_unicast_link_local() { from.interface } else { 0 };
                data[16..].copy_from_slice(&scope.to_ne_bytes());
                self.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &data);
            }
        }
    }

    /// DSCP and ECN bits as IP_TOS or IPV6_TCLASS: an int for both.
    pub fn push_tos(&mut self, to: &SocketAddr, tos: u8) {
        let value = i32::from(tos).to_ne_bytes();
        match to {
            SocketAddr::V4(_) => self.push(libc::IPPROTO_IP, libc::IP_TOS, &value),
            SocketAddr::V6(_) => self.push(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &value),
        }
    }
}

/// What control data says about a received train.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReceivedControl {
    /// UDP_GRO's segment size in bytes; `None` for a lone datagram.
    pub stride: Option<usize>,
    /// The local address to which it was sent.
    pub to: Option<LocalAddr>,
    /// The outer ECN bits.
    pub ecn: u8,
}

/// Reads control data. `None` where it makes no sense.
pub fn decode_control(mut control: &[u8]) -> Option<ReceivedControl> {
    let mut decoded = ReceivedControl::default();
    while control.len() >= HEADER {
        let len = usize::from_ne_bytes(*control.first_chunk()?);
        let level = i32::from_ne_bytes(*control.get(size_of::<usize>()..)?.first_chunk()?);
        let kind = i32::from_ne_bytes(*control.get(size_of::<usize>() + 4..)?.first_chunk()?);
        let data = control.get(HEADER..len)?;
        match (level, kind) {
            (libc::SOL_UDP, libc::UDP_GRO) => {
                decoded.stride = Some(usize::try_from(int(data)?).ok()?);
            }
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                let interface = u32::from_ne_bytes(*data.first_chunk()?);
                // ipi_spec_dst: the local address, also of a datagram that came by broadcast.
                let ip: [u8; 4] = *data.get(4..)?.first_chunk()?;
                decoded.to = Some(LocalAddr { ip: Ipv4Addr::from(ip).into(), interface });
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                let ip: [u8; 16] = *data.first_chunk()?;
                let interface = u32::from_ne_bytes(*data.get(16..)?.first_chunk()?);
                decoded.to = Some(LocalAddr { ip: Ipv6Addr::from(ip).into(), interface });
            }
            // IP_TOS comes as one byte, whatever its sender used.
            (libc::IPPROTO_IP, libc::IP_TOS) => decoded.ecn = data.first()? & 3,
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => decoded.ecn = (int(data)? & 3) as u8,
            _ => {}
        }
        control = control.get(len.next_multiple_of(ALIGN)..).unwrap_or(&[]);
    }
    Some(decoded)
}

fn int(data: &[u8]) -> Option<i32> {
    data.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn local(ip: IpAddr, interface: u32) -> LocalAddr {
        LocalAddr { ip, interface }
    }

    proptest! {
        #[test]
        fn every_name_that_is_encoded_is_decoded(ip: IpAddr, port: u16) {
            let mut name = Name([0xAA; NAME_LEN]);
            let addr = SocketAddr::new(ip, port);
            let len = name.set(&addr);
            prop_assert_eq!(decode_name(name.bytes(len)), Some(addr));
        }

        #[test]
        fn source_and_ecn_that_are_encoded_are_decoded(ip: IpAddr, interface: u32, ecn in 0u8..4, dscp in 0u8..64) {
            let mut control = ControlData::EMPTY;
            control.push_segment(1452);
            control.push_source(&local(ip, interface));
            control.push_tos(&SocketAddr::new(ip, 1), dscp << 2 | ecn);
            let decoded = decode_control(control.bytes(control.len()));
            let scope = match ip {
                IpAddr::V6(ip) if ip.is_unicast_link_local() => interface,
                _ => 0,
            };
            prop_assert_eq!(decoded, Some(ReceivedControl { stride: None, to: Some(local(ip, scope)), ecn }));
        }

        #[test]
        fn control_data_of_any_bytes_never_panics(bytes: Vec<u8>) {
            decode_control(&bytes);
            decode_name(&bytes);
        }
    }

    #[test]
    fn only_a_link_local_source_names_its_interface() {
        for (ip, scope) in [("192.0.2.1", 0), ("2001:db8::1", 0), ("fe80::1", 7)] {
            let mut control = ControlData::EMPTY;
            control.push_source(&local(ip.parse().unwrap(), 7));
            let decoded = decode_control(control.bytes(control.len())).and_then(|decoded| decoded.to);
            assert_eq!(decoded, Some(local(ip.parse().unwrap(), scope)));
        }
    }

    #[test]
    fn the_bytes_are_those_of_the_c_library() {
        let mut control = ControlData::EMPTY;
        control.push_segment(0x1234);
        // SAFETY: CMSG_LEN and CMSG_SPACE only compute.
        let (len, space) = unsafe { (libc::CMSG_LEN(2) as usize, libc::CMSG_SPACE(2) as usize) };
        assert_eq!(control.len(), space);
        assert_eq!(control.bytes(8), len.to_ne_bytes());
        assert_eq!(control.bytes[HEADER..HEADER + 2], 0x1234u16.to_ne_bytes());
    }

    #[test]
    fn a_negative_or_truncated_gro_size_makes_no_sense() {
        let mut control = ControlData::EMPTY;
        control.push(libc::SOL_UDP, libc::UDP_GRO, &(-1i32).to_ne_bytes());
        assert_eq!(decode_control(control.bytes(control.len())), None);
        control.clear();
        control.push(libc::SOL_UDP, libc::UDP_GRO, &[1, 2]);
        assert_eq!(decode_control(control.bytes(control.len())), None);
    }

    #[test]
    fn a_message_that_claims_more_than_there_is_makes_no_sense() {
        let mut control = ControlData::EMPTY;
        control.push_tos(&"[::1]:1".parse().unwrap(), 1);
        control.bytes[..8].copy_from_slice(&usize::MAX.to_ne_bytes());
        assert_eq!(decode_control(control.bytes(control.len())), None);
    }
}
