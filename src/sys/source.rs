//! Whether an answer may leave with the address that was spoken to (kernel `drivers/net/wireguard/socket.c`: `send4`,
//! `send6`).
//!
//! A datagram names its source and leaves the way to the routing tables. That is right as long as the way is the one
//! by which the peer was heard, since another uplink's provider drops a source that is not its own.

use crate::sys::cmsg::LocalAddr;
use crate::sys::rtnl::Asker;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, IpProtocol, RouteNetlinkMessage};
use std::io;
use std::net::{IpAddr, SocketAddr};

/// What the routing rules compare besides the addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Departure {
    /// The address and port to send to.
    pub to: SocketAddr,
    /// The address that was spoken to, and the interface on which.
    pub from: LocalAddr,
    /// The local port.
    pub port: u16,
    /// The sockets' firewall mark; 0 where there is none.
    pub mark: u32,
}

/// The kernel's routing tables, asked over one socket that stays open.
pub struct RoutingTables(Asker);

impl RoutingTables {
    /// Opens the socket, in the calling thread's network namespace.
    pub fn open() -> io::Result<RoutingTables> {
        Asker::open().map(RoutingTables)
    }

    /// Whether a datagram may name this source: the address is there, and the route leaves by the interface on which
    /// it was spoken to. Where there is no route at all, the source is as good as any other.
    pub fn may_depart(&mut self, departure: &Departure) -> bool {
        let LocalAddr { ip, interface } = departure.from;
        // Its scope goes with it on every send, and the kernel refuses it where that is wrong.
        if is_link_local(ip) {
            return true;
        }
        // The look-up itself does not tell: IPv6's takes any source, IPv4's refuses a strange one like a missing route.
        if !self.is_local(ip) {
            return false;
        }
        match self.way(departure) {
            Ok(way) => interface == 0 || way.is_none_or(|way| way == interface),
            Err(_) => true,
        }
    }

    fn is_local(&mut self, ip: IpAddr) -> bool {
        match self.find(to_address(ip)) {
            Ok(route) => route.header.kind == RouteType::Local,
            Err(_) => false,
        }
    }

    /// The index of the interface by which the datagram would leave.
    fn way(&mut self, departure: &Departure) -> io::Result<Option<u32>> {
        let mut message = to_address(departure.to.ip());
        message.attributes.push(RouteAttribute::Source(address(departure.from.ip)));
        message.header.source_prefix_length = prefix_length(departure.from.ip);
        if let SocketAddr::V6(to) = departure.to
            && to.scope_id() != 0
        {
            message.attributes.push(RouteAttribute::Oif(to.scope_id()));
        }
        if departure.mark != 0 {
            message.attributes.push(RouteAttribute::Mark(departure.mark));
        }
        message.attributes.extend([
            RouteAttribute::IpProto(u8::from(IpProtocol::Udp)),
            RouteAttribute::Sport(departure.port),
            RouteAttribute::Dport(departure.to.port()),
        ]);
        let route = self.find(message)?;
        Ok(route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        }))
    }

    fn find(&mut self, message: RouteMessage) -> io::Result<RouteMessage> {
        match self.0.query(RouteNetlinkMessage::GetRoute(message))? {
            RouteNetlinkMessage::NewRoute(route) => Ok(route),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// The question for the route to `ip`.
fn to_address(ip: IpAddr) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.destination_prefix_length = prefix_length(ip);
    message.attributes.push(RouteAttribute::Destination(address(ip)));
    message
}

fn address(ip: IpAddr) -> RouteAddress {
    match ip {
        IpAddr::V4(ip) => RouteAddress::Inet(ip),
        IpAddr::V6(ip) => RouteAddress::Inet6(ip),
    }
}

fn prefix_length(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::link;
    use crate::sys::netns::{eventually, in_netns, ip};

    /// Two uplinks in both families, a default route by the first, and a service address on the loopback interface.
    fn host() -> (RoutingTables, u32, u32) {
        for (name, net) in [("up1", 1), ("up2", 2)] {
            ip(&format!("link add {name} type veth peer name far{net}"));
            ip(&format!("link set far{net} up"));
            ip(&format!("link set {name} up"));
            ip(&format!("addr add 10.0.{net}.1/24 dev {name}"));
            ip(&format!("addr add fd00:{net}::1/64 dev {name} nodad"));
        }
        ip("addr add 10.9.9.9/32 dev lo");
        ip("addr add fd09::9/128 dev lo nodad");
        eventually(|| ip("-6 addr show tentative").is_empty().then_some(()));
        ip("route add default via 10.0.1.254");
        ip("-6 route add default via fd00:1::fe dev up1");
        (RoutingTables::open().unwrap(), link::index("up1").unwrap(), link::index("up2").unwrap())
    }

    /// Whether each family's answer from the address may leave: heard on `interface`.
    fn may(routes: &mut RoutingTables, v4: &str, v6: &str, interface: u32, mark: u32) -> [bool; 2] {
        [(v4, "192.0.2.9:4000"), (v6, "[2001:db8::9]:4000")].map(|(from, to)| {
            let from = LocalAddr { ip: from.parse().unwrap(), interface };
            routes.may_depart(&Departure { to: to.parse().unwrap(), from, port: 51820, mark })
        })
    }

    #[test]
    fn a_source_is_kept_where_the_route_leaves_by_the_interface_it_was_heard_on() {
        in_netns(|| {
            let (mut routes, first, second) = host();
            assert_eq!(may(&mut routes, "10.0.1.1", "fd00:1::1", first, 0), [true; 2]);
            assert_eq!(may(&mut routes, "10.0.2.1", "fd00:2::1", second, 0), [false; 2]);
            assert_eq!(may(&mut routes, "10.9.9.9", "fd09::9", first, 0), [true; 2]);
            assert_eq!(may(&mut routes, "10.9.9.9", "fd09::9", second, 0), [false; 2]);
            assert_eq!(
                may(&mut routes, "10.0.2.1", "fd00:2::1", 0, 0),
                [true; 2],
                "heard nobody knows where"
            );
        });
    }

    #[test]
    fn rules_by_source_by_mark_and_by_port_are_obeyed() {
        in_netns(|| {
            let (mut routes, first, second) = host();
            for (rule, mark) in [("from 10.0.2.1", 0), ("fwmark 7", 7), ("ipproto udp sport 51820", 0)] {
                ip("route add default via 10.0.2.254 table 2");
                ip("-6 route add default via fd00:2::fe dev up2 table 2");
                let rule6 = rule.replace("10.0.2.1", "fd00:2::1");
                ip(&format!("rule add {rule} table 2"));
                ip(&format!("-6 rule add {rule6} table 2"));
                assert_eq!(may(&mut routes, "10.0.2.1", "fd00:2::1", second, mark), [true; 2], "{rule}");
                assert_eq!(may(&mut routes, "10.0.2.1", "fd00:2::1", first, mark), [false; 2], "{rule}");
                ip("route flush table 2");
                ip("-6 route flush table 2");
                assert_eq!(may(&mut routes, "10.0.2.1", "fd00:2::1", second, mark), [false; 2], "{rule}");
                ip(&format!("rule del {rule} table 2"));
                ip(&format!("-6 rule del {rule6} table 2"));
            }
        });
    }

    #[test]
    fn an_address_that_is_gone_is_let_go_and_a_link_local_one_is_left_to_its_scope() {
        in_netns(|| {
            let (mut routes, first, _) = host();
            ip("addr add 10.0.1.2/24 dev up1");
            ip("addr add fd00:1::2/64 dev up1 nodad");
            // An IPv6 address is there once its interface has found its carrier.
            eventually(|| (may(&mut routes, "10.0.1.2", "fd00:1::2", first, 0) == [true; 2]).then_some(()));
            ip("addr del 10.0.1.2/24 dev up1");
            ip("addr del fd00:1::2/64 dev up1");
            assert_eq!(may(&mut routes, "10.0.1.2", "fd00:1::2", first, 0), [false; 2]);
            assert_eq!(may(&mut routes, "10.0.1.1", "fe80::1", first, 0), [true; 2]);
        });
    }

    #[test]
    fn without_any_route_a_source_is_as_good_as_another() {
        in_netns(|| {
            let (mut routes, first, second) = host();
            ip("route del default");
            ip("-6 route del default");
            assert_eq!(may(&mut routes, "10.0.1.1", "fd00:1::1", first, 0), [true; 2]);
            assert_eq!(may(&mut routes, "10.0.2.1", "fd00:2::1", second, 0), [true; 2]);
        });
    }
}
