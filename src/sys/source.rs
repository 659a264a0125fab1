//! Which local address the kernel's routing would choose.

use socket2::{Domain, Protocol, Socket, Type};
use std::net::{IpAddr, SocketAddr};

/// The source address that a datagram to `to` with this firewall mark gets when it names none: a UDP socket is connected, which
/// asks the routing table and sends nothing. `None`: there is no route.
pub fn chosen_for(to: SocketAddr, mark: u32) -> Option<IpAddr> {
    let socket = Socket::new(Domain::for_address(to), Type::DGRAM, Some(Protocol::UDP)).ok()?;
    if mark != 0 {
        socket.set_mark(mark).ok()?;
    }
    socket.connect(&to.into()).ok()?;
    Some(socket.local_addr().ok()?.as_socket()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_reached_from_loopback() {
        let to: SocketAddr = "127.0.0.1:9".parse().unwrap();
        assert_eq!(chosen_for(to, 0), Some("127.0.0.1".parse().unwrap()));
    }
}
