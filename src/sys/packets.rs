//! The packets of one interface, as packet(7) shows them. Only headers are read.

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, OwnedFd};

/// Bytes that are read of a packet: an IPv6 header and a little more.
pub(crate) const SEEN_LEN: usize = 64;
/// ETH_P_ALL in network byte order.
const ALL: u16 = (libc::ETH_P_ALL as u16).to_be();

/// A socket that sees the packets of one interface, from the network layer on. It takes CAP_NET_RAW.
pub(crate) struct PacketSocket {
    socket: OwnedFd,
}

impl PacketSocket {
    /// Opens a socket for the interface with this index.
    pub(crate) fn open(index: u32) -> io::Result<PacketSocket> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // Without a protocol it sees nothing until it is bound to the interface.
        let socket = socket_with(AddressFamily::PACKET, SocketType::DGRAM, flags, None)?;
        // SAFETY: all zeros are a valid value of this plain struct.
        let mut address: libc::sockaddr_ll = unsafe { zeroed() };
        address.sll_family = libc::AF_PACKET as libc::sa_family_t;
        address.sll_protocol = ALL;
        address.sll_ifindex = i32::try_from(index).map_err(io::Error::other)?;
        let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: `address` is a sockaddr_ll of `len` bytes, which the kernel reads during the call.
        let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) };
        if bound != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(PacketSocket { socket })
    }

    /// The next packet that waits, cut short, and whether it leaves this host by the interface. `None` where none waits.
    pub(crate) fn next(&self, packet: &mut [u8; SEEN_LEN]) -> io::Result<Option<(usize, bool)>> {
        // SAFETY: all zeros are a valid value of this plain struct.
        let mut from: libc::sockaddr_ll = unsafe { zeroed() };
        let mut len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: `packet` is valid for its length and `from` for `len` bytes of writing, and all outlive the call.
        let read = unsafe {
            libc::recvfrom(
                self.socket.as_raw_fd(),
                packet.as_mut_ptr().cast(),
                packet.len(),
                0,
                (&raw mut from).cast(),
                &raw mut len,
            )
        };
        match usize::try_from(read) {
            Ok(read) => Ok(Some((read, from.sll_pkttype == libc::PACKET_OUTGOING))),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                error => Err(error),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netns::{eventually, in_netns, ip};
    use std::net::UdpSocket;

    #[test]
    fn packets_of_one_interface_are_seen_both_ways() {
        in_netns(|| {
            ip("link add rt-one type veth peer name rt-two");
            ip("addr add 192.0.2.1/24 dev rt-one");
            ip("link set rt-one up");
            ip("link set rt-two up");
            ip("neigh add 192.0.2.2 lladdr 02:00:00:00:00:01 dev rt-one");
            let open = |name: &str| PacketSocket::open(crate::sys::link::index(name).unwrap()).unwrap();
            let (one, two) = (open("rt-one"), open("rt-two"));
            UdpSocket::bind("192.0.2.1:0").unwrap().send_to(b"x", "192.0.2.2:7").unwrap();
            for (socket, outgoing) in [(one, true), (two, false)] {
                let mut packet = [0; SEEN_LEN];
                let (len, leaves) = eventually(|| {
                    let seen = socket.next(&mut packet).unwrap();
                    seen.filter(|_| packet[0] == 0x45 && packet[16..20] == [192, 0, 2, 2])
                });
                assert_eq!((len, leaves), (29, outgoing));
            }
        });
    }
}
