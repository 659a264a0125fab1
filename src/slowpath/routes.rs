//! Follows the routes into the tunnel that have an MTU of their own (RTAX_MTU), as padding must not go beyond it (kernel
//! `wg_xmit` asks `dst_mtu`). The TUN device states the interface's MTU alone. This file also follows the broadcast
//! addresses that lead there, about which no ICMP is sent.
//!
//! A host may have a million routes that change all the time. So the kernel filters for us, and only routes into the
//! interface come.

use crate::routing::Prefix;
use crate::slowpath::listening::{AbortOnDrop, LinkEvent, RELISTEN, overrun};
use crate::sys::sockopt;
use futures_util::{StreamExt, TryStreamExt};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::{NLM_F_MULTIPART, NetlinkPayload};
use rtnetlink::sys::AsyncSocket;
use rtnetlink::{Handle, MulticastGroup, new_multicast_connection};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Error, Result};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use tokio::sync::mpsc::Sender;

/// Most routes with an MTU of their own that are remembered: 4096 × ~64 bytes. Packets on others are padded to the interface's
/// MTU.
const MAX_ROUTES: usize = 4096;

/// Sends [`LinkEvent::RouteMtus`] and [`LinkEvent::Broadcasts`] whenever the routes into the interface of this index change
/// them, until the receiver is dropped.
pub(super) async fn follow(index: u32, events: Sender<LinkEvent>) {
    while !events.is_closed() {
        if let Err(error) = listen(index, &events).await {
            log::warn!("cannot follow the interface's routes through netlink: {error}; trying again");
        }
        tokio::time::sleep(RELISTEN).await;
    }
}

async fn listen(index: u32, events: &Sender<LinkEvent>) -> Result<()> {
    let groups = [MulticastGroup::Ipv4Route, MulticastGroup::Ipv6Route];
    let (mut connection, handle, mut messages) = new_multicast_connection(&groups)?;
    let socket = connection.socket_mut().socket_ref();
    sockopt::attach_filter(socket.as_fd(), &mut program(index))?;
    // Linux before 4.20 answers with all routes instead of the interface's. They are filtered below all the same.
    let _ = socket.set_netlink_get_strict_chk(true);
    let _driver = AbortOnDrop(tokio::spawn(connection));
    let mut routes = IntoTunnel::new(index);
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        ask(&handle, family, &mut routes).await?;
    }
    let (mut sent, mut sent_broadcasts) = (Vec::new(), BTreeSet::new());
    loop {
        if routes.broadcasts != sent_broadcasts {
            sent_broadcasts.clone_from(&routes.broadcasts);
            let addresses = routes.broadcasts.iter().copied().collect();
            if events.send(LinkEvent::Broadcasts(addresses)).await.is_err() {
                return Ok(());
            }
        }
        let known = routes.by_prefix();
        if known != sent {
            sent.clone_from(&known);
            if events.send(LinkEvent::RouteMtus(known)).await.is_err() {
                return Ok(());
            }
        }
        let Some((message, _)) = messages.next().await else {
            return Err(Error::other("the netlink connection ended"));
        };
        match &message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => routes.add(route),
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelRoute(route)) => routes.remove(route),
            _ => overrun(&message)?,
        }
    }
}

/// Asks for the routes of a family that exist.
async fn ask(handle: &Handle, family: AddressFamily, routes: &mut IntoTunnel) -> Result<()> {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.attributes.push(RouteAttribute::Oif(routes.index));
    let mut answers = std::pin::pin!(handle.route().get(message).execute());
    while let Some(route) = answers.try_next().await.map_err(Error::other)? {
        routes.add(&route);
    }
    Ok(())
}

/// Table, priority and prefix, which no two routes share.
type RouteKey = (u32, u32, Prefix);

/// What is known of the routes into one interface.
struct IntoTunnel {
    index: u32,
    known: BTreeMap<RouteKey, u32>,
    /// Broadcast addresses of the interface's networks.
    broadcasts: BTreeSet<Ipv4Addr>,
}

impl IntoTunnel {
    fn new(index: u32) -> IntoTunnel {
        IntoTunnel { index, known: BTreeMap::new(), broadcasts: BTreeSet::new() }
    }

    /// Notes a route that is new or replaces another.
    fn add(&mut self, route: &RouteMessage) {
        let Some((key, mtu)) = self.read(route) else { return };
        if let Some(address) = broadcast(route, &key)
            && self.broadcasts.len() < MAX_ROUTES
        {
            self.broadcasts.insert(address);
        }
        match mtu {
            Some(mtu) if self.known.len() < MAX_ROUTES || self.known.contains_key(&key) => {
                self.known.insert(key, mtu);
            }
            _ => {
                self.known.remove(&key);
            }
        }
    }

    fn remove(&mut self, route: &RouteMessage) {
        if let Some((key, _)) = self.read(route) {
            self.known.remove(&key);
            if let Some(address) = broadcast(route, &key) {
                self.broadcasts.remove(&address);
            }
        }
    }

    /// Reads a route into the interface, and its MTU. `None` for any other route, and for one of the routing cache.
    fn read(&self, route: &RouteMessage) -> Option<(RouteKey, Option<u32>)> {
        let header = &route.header;
        let (mut oif, mut table, mut priority, mut mtu) = (None, u32::from(header.table), 0, None);
        let mut destination = match header.address_family {
            AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            _ => return None,
        };
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Oif(index) => oif = Some(*index),
                RouteAttribute::Table(id) => table = *id,
                RouteAttribute::Priority(value) => priority = *value,
                RouteAttribute::Destination(RouteAddress::Inet(v4)) => destination = IpAddr::V4(*v4),
                RouteAttribute::Destination(RouteAddress::Inet6(v6)) => destination = IpAddr::V6(*v6),
                RouteAttribute::Metrics(metrics) => {
                    mtu = metrics.iter().find_map(|metric| match metric {
                        RouteMetric::Mtu(mtu) => Some(*mtu).filter(|&mtu| mtu > 0),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        if oif != Some(self.index) || header.flags.contains(RouteFlags::Cloned) {
            return None;
        }
        Some(((table, priority, Prefix::new(destination, header.destination_prefix_length)?), mtu))
    }

    /// One MTU for each prefix, the least of all tables, as it is not known here which of them a packet was routed by.
    fn by_prefix(&self) -> Vec<(Prefix, u32)> {
        let mut least = BTreeMap::new();
        for (&(_, _, prefix), &mtu) in &self.known {
            least.entry(prefix).and_modify(|known: &mut u32| *known = mtu.min(*known)).or_insert(mtu);
        }
        least.into_iter().collect()
    }
}

/// The address of a broadcast route.
fn broadcast(route: &RouteMessage, (_, _, prefix): &RouteKey) -> Option<Ipv4Addr> {
    match prefix.addr() {
        IpAddr::V4(address) if route.header.kind == RouteType::Broadcast => Some(address),
        _ => None,
    }
}

/// Lengths in bytes of `struct nlmsghdr` and of `struct rtmsg` after it, and where the former's type and flags stand.
const HEADERS: u32 = 16 + 12;
const TYPE: u32 = 4;
const FLAGS: u32 = 6;
/// Length in bytes of `struct nlattr` before an attribute's value.
const ATTRIBUTE_HEADER: u32 = 4;
/// Extension of classic BPF: A = offset of the netlink attribute of type X from offset A on, or 0 (`bpf_skb_get_nlattr`).
const NLATTR: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_NLATTR) as u32;

/// A socket filter. Of the routes that changed it passes those with the interface as their only way; answers and all other
/// messages pass as they come. Loads read big-endian and netlink writes in the host's order, so constants are swapped.
fn program(index: u32) -> [libc::sock_filter; 14] {
    let insn = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let half = |offset| insn(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, 0, 0, offset);
    let if_equal = |k, then, or| insn(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, then, or, k);
    let if_any = |k, then, or| insn(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, then, or, k);
    let give = |k| insn(libc::BPF_RET | libc::BPF_K, 0, 0, k);
    let swapped = |value: u16| u32::from(value.to_be());
    [
        half(FLAGS),
        if_any(swapped(NLM_F_MULTIPART), 10, 0),
        half(TYPE),
        if_equal(swapped(libc::RTM_NEWROUTE), 1, 0),
        if_equal(swapped(libc::RTM_DELROUTE), 0, 7),
        insn(libc::BPF_LD | libc::BPF_IMM, 0, 0, HEADERS),
        insn(libc::BPF_LDX | libc::BPF_IMM, 0, 0, u32::from(libc::RTA_OIF)),
        insn(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, NLATTR),
        if_equal(0, 4, 0),
        insn(libc::BPF_MISC | libc::BPF_TAX, 0, 0, 0),
        insn(libc::BPF_LD | libc::BPF_W | libc::BPF_IND, 0, 0, ATTRIBUTE_HEADER),
        if_equal(index.to_be(), 0, 1),
        give(u32::MAX),
        give(0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::link;
    use crate::sys::netns::{in_netns, ip};
    use rtnetlink::sys::protocols::NETLINK_ROUTE;
    use rtnetlink::sys::{Socket, SocketAddr};
    use std::time::Duration;
    use tokio::sync::mpsc;

    /// RTNLGRP_IPV4_ROUTE of `rtnetlink.h`.
    const IPV4_ROUTES: u32 = 7;

    fn two_links() -> u32 {
        ip("link add rt0 type veth peer name rt1");
        ip("link set rt0 up");
        ip("link set rt1 up");
        link::index("rt0").unwrap()
    }

    #[test]
    fn the_kernel_lets_through_only_routes_into_the_interface() {
        in_netns(|| {
            let index = two_links();
            let mut socket = Socket::new(NETLINK_ROUTE).unwrap();
            socket.bind(&SocketAddr::new(0, 0)).unwrap();
            socket.add_membership(IPV4_ROUTES).unwrap();
            socket.set_non_blocking(true).unwrap();
            sockopt::attach_filter(socket.as_fd(), &mut program(index)).unwrap();
            for change in ["add", "del"] {
                for n in 0..5 {
                    ip(&format!("route {change} 10.9.{n}.0/24 dev rt1 mtu 1300"));
                }
                ip(&format!("route {change} 10.8.0.0/24 dev rt0"));
            }
            let mut types = Vec::new();
            while let Ok((message, _)) = socket.recv_from_full() {
                types.push(u16::from_ne_bytes([message[4], message[5]]));
            }
            assert_eq!(types, [libc::RTM_NEWROUTE, libc::RTM_DELROUTE]);
        });
    }

    #[test]
    fn the_broadcast_addresses_of_the_interface_are_told_at_first_and_whenever_they_change() {
        in_netns(|| {
            let index = two_links();
            ip("addr add 10.8.0.1/24 dev rt0");
            ip("addr add 10.9.0.1/24 dev rt1");
            let (events, mut heard) = mpsc::channel(8);
            let mut next = async |change: &str| {
                ip(change);
                let event = tokio::time::timeout(Duration::from_secs(10), heard.recv()).await;
                match event.expect("nothing was told") {
                    Some(LinkEvent::Broadcasts(addresses)) => addresses,
                    other => panic!("{other:?}"),
                }
            };
            let of_8 = Ipv4Addr::new(10, 8, 0, 255);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let _task = AbortOnDrop(tokio::spawn(follow(index, events)));
                assert_eq!(next("link show").await, [of_8]);
                let both = next("addr add 10.7.0.1/30 dev rt0").await;
                assert_eq!(both, [Ipv4Addr::new(10, 7, 0, 3), of_8]);
                assert_eq!(next("addr del 10.7.0.1/30 dev rt0").await, [of_8]);
            });
        });
    }

    #[test]
    fn the_mtus_of_routes_are_told_at_first_and_whenever_they_change() {
        in_netns(|| {
            let index = two_links();
            ip("route add 10.8.0.0/24 dev rt0 mtu 1400");
            ip("route add 10.9.0.0/24 dev rt1 mtu 1300");
            let (events, mut heard) = mpsc::channel(8);
            let mut next = async |change: &str| {
                ip(change);
                let event = tokio::time::timeout(Duration::from_secs(10), heard.recv()).await;
                match event.expect("nothing was told") {
                    Some(LinkEvent::RouteMtus(routes)) => {
                        let shown = routes.iter().map(|(prefix, mtu)| format!("{prefix} {mtu}"));
                        shown.collect::<Vec<_>>().join(", ")
                    }
                    other => panic!("{other:?}"),
                }
            };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let _task = AbortOnDrop(tokio::spawn(follow(index, events)));
                assert_eq!(next("link show").await, "10.8.0.0/24 1400");
                let both = next("route add 10.8.0.0/24 dev rt0 table 7 mtu 1390").await;
                assert_eq!(both, "10.8.0.0/24 1390", "the least of all tables");
                assert_eq!(next("route del 10.8.0.0/24 dev rt0 table 7").await, "10.8.0.0/24 1400");
                let v6 = next("route add 2001:db8::/64 dev rt0 mtu 1390").await;
                assert_eq!(v6, "10.8.0.0/24 1400, 2001:db8::/64 1390");
                assert_eq!(next("route change 10.8.0.0/24 dev rt0").await, "2001:db8::/64 1390");
                assert_eq!(
                    next("route add default dev rt0 mtu 1380").await,
                    "0.0.0.0/0 1380, 2001:db8::/64 1390"
                );
            });
        });
    }
}
