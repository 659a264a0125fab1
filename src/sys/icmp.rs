//! ICMP from an address of the host's own, as the kernel's tunnels send it (Linux `icmp_ndo_send`): a packet written to a TUN
//! device comes from outside, where an address of the host's own is a lie that the kernel drops.

use crate::sys::sockopt;
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;

/// Internetwork Control (RFC 1812 section 4.3.2.5).
const PRECEDENCE: u32 = 0xc0;

/// Raw sockets of one network namespace, which only send. A family that the host lacks has none.
#[derive(Debug)]
pub struct IcmpSockets {
    v4: Option<Socket>,
    v6: Option<Socket>,
}

impl IcmpSockets {
    /// Opens the sockets in the namespace of the calling thread, which needs CAP_NET_RAW.
    pub fn open() -> io::Result<IcmpSockets> {
        let v4 = open(Domain::IPV4, Protocol::ICMPV4);
        let v6 = open(Domain::IPV6, Protocol::ICMPV6);
        match (v4, v6) {
            (Err(error), Err(_)) => Err(error),
            (v4, v6) => Ok(IcmpSockets { v4: v4.ok(), v6: v6.ok() }),
        }
    }

    /// Sends an ICMP message to `to` from the address that the route there has. False where there is no socket for
    /// it, or where the address does not suffice, as a link-local one is of one interface. A message that the kernel
    /// refuses is lost.
    /// enough in the address (a link-local one is of one interface). A message that the kernel refuses is lost.
    pub fn send(&self, to: IpAddr, message: &[u8]) -> bool {
        let socket = match to {
            IpAddr::V4(_) => &self.v4,
            IpAddr::V6(to) if to.is_unicast_link_local() => return false,
            IpAddr::V6(_) => &self.v6,
        };
        let Some(socket) = socket else { return false };
        let _ = socket.send_to(message, &SocketAddr::new(to, 0).into());
        true
    }
}

fn open(domain: Domain, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::RAW.nonblocking(), Some(protocol))?;
    // Else it would receive all ICMP that comes to this host.
    let give_none = libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: 0 };
    sockopt::attach_filter(socket.as_fd(), &mut [give_none])?;
    if domain == Domain::IPV4 {
        socket.set_tos_v4(PRECEDENCE)?;
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netns::{in_netns, ip};
    use std::io::Read;

    /// Destination unreachable with its checksum, about nothing.
    const MESSAGE: [u8; 8] = [3, 1, 0xfc, 0xfe, 0, 0, 0, 0];

    #[test]
    fn it_comes_from_the_address_that_leads_there_and_nothing_is_received() {
        in_netns(|| {
            ip("link set lo up");
            ip("addr add 10.1.0.1/32 dev lo");
            ip("addr add fd01::1/128 dev lo nodad");
            let sockets = IcmpSockets::open().unwrap();
            for (to, protocol, domain) in
                [("10.1.0.1", Protocol::ICMPV4, Domain::IPV4), ("fd01::1", Protocol::ICMPV6, Domain::IPV6)]
            {
                let to: IpAddr = to.parse().unwrap();
                let mut other = Socket::new(domain, Type::RAW.nonblocking(), Some(protocol)).unwrap();
                assert!(sockets.send(to, &MESSAGE));
                let mut came = [0; 100];
                assert!(other.read(&mut came).is_ok_and(|len| len >= MESSAGE.len()));
            }
            for mut socket in [sockets.v4.unwrap(), sockets.v6.unwrap()] {
                let error = socket.read(&mut [0; 100]).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            }
        });
    }

    #[test]
    fn a_link_local_address_is_left_to_the_caller() {
        in_netns(|| assert!(!IcmpSockets::open().unwrap().send("fe80::1".parse().unwrap(), &MESSAGE)));
    }
}
