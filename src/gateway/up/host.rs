//! The host's links, addresses, routes and rules, through netlink, in this thread's network namespace.

use crate::gateway::config::Address;
use crate::gateway::route;
use crate::routing::Prefix;
use crate::sys::link;
use futures_util::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use rtnetlink::{Handle, IpVersion};
use std::collections::BTreeSet;
use std::io::{Error, Result};
use std::net::IpAddr;
use tokio::runtime::Runtime;

/// The number of the main routing table.
pub(super) const MAIN: u32 = RouteHeader::RT_TABLE_MAIN as u32;

/// An interface of the host, with its MTU in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::gateway) struct Link {
    pub(in crate::gateway) index: u32,
    pub(in crate::gateway) mtu: u32,
}

/// A policy rule of a default route.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Rule {
    /// A packet that does not carry this mark is looked up in the table of the same number.
    NotMarked(u32),
    /// The main table is asked first, without its default routes.
    MainWithoutDefault,
}

/// A netlink connection to the kernel.
pub(in crate::gateway) struct Host {
    runtime: Runtime,
    handle: Handle,
}

impl Host {
    /// Opens the connection, in the network namespace of the calling thread.
    pub(in crate::gateway) fn new() -> Result<Host> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (connection, handle, _) = {
            let _inside = runtime.enter();
            rtnetlink::new_connection()?
        };
        runtime.spawn(connection);
        Ok(Host { runtime, handle })
    }

    /// The interface of this name, if there is one.
    pub(in crate::gateway) fn link(&self, name: &str) -> Result<Option<Link>> {
        let request = self.handle.link().get().match_name(name.to_owned()).execute();
        match self.runtime.block_on(async { std::pin::pin!(request).try_next().await }).map_err(into_io) {
            Ok(Some(message)) => Ok(Some(Link { index: message.header.index, mtu: mtu_of(&message) })),
            Ok(None) => Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Does as `ip link set mtu MTU dev …`, and with `up` brings the interface up as well.
    pub(in crate::gateway) fn set_mtu(&self, index: u32, mtu: u32, up: bool) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        if up {
            message.header.flags = LinkFlags::Up;
            message.header.change_mask = LinkFlags::Up;
        }
        message.attributes.push(LinkAttribute::Mtu(mtu));
        self.runtime.block_on(self.handle.link().set(message).execute()).map_err(into_io)
    }

    /// Does as `ip link delete dev …`.
    pub(super) fn delete_link(&self, index: u32) -> Result<()> {
        self.runtime.block_on(self.handle.link().del(index).execute()).map_err(into_io)
    }

    /// The interface's addresses, in the kernel's order.
    pub(super) fn addresses(&self, index: u32) -> Result<Vec<Address>> {
        Ok(self.held_addresses(index)?.into_iter().map(|(address, _)| address).collect())
    }

    /// The interface's addresses that have no other end. A file's addresses have none.
    pub(super) fn plain_addresses(&self, index: u32) -> Result<Vec<Address>> {
        let held = self.held_addresses(index)?.into_iter();
        Ok(held.filter(|(_, other_end)| !other_end).map(|(address, _)| address).collect())
    }

    /// The interface's addresses, each with whether it has another end (`peer` of ip-address(8)).
    fn held_addresses(&self, index: u32) -> Result<Vec<(Address, bool)>> {
        let request = self.handle.address().get().set_link_index_filter(index).execute();
        let messages: Vec<AddressMessage> = self.runtime.block_on(request.try_collect()).map_err(into_io)?;
        let ours = messages.iter().filter(|message| message.header.index == index);
        Ok(ours.filter_map(held_address).collect())
    }

    /// The addresses of all interfaces.
    pub(in crate::gateway) fn own_addresses(&self) -> Result<BTreeSet<IpAddr>> {
        let request = self.handle.address().get().execute();
        let messages: Vec<AddressMessage> = self.runtime.block_on(request.try_collect()).map_err(into_io)?;
        Ok(messages.iter().filter_map(held_address).map(|(address, _)| address.addr).collect())
    }

    /// The route to an address for packets that carry `mark`.
    pub(in crate::gateway) fn route(&self, to: IpAddr, mark: u32) -> Result<route::KernelRoute> {
        self.runtime.block_on(route::find_marked(&self.handle, to, mark))
    }

    /// Does as `ip address add ADDRESS dev …`.
    pub(in crate::gateway) fn add_address(&self, index: u32, address: Address) -> Result<()> {
        let mut request = self.handle.address().add(index, address.addr, address.len);
        // ip(8) adds no broadcast address by itself either.
        *request.message_mut() = address_message(index, address);
        self.runtime.block_on(request.execute()).map_err(into_io)
    }

    /// Does as `ip address del ADDRESS dev …`.
    pub(super) fn remove_address(&self, index: u32, address: Address) -> Result<()> {
        let request = self.handle.address().del(address_message(index, address));
        self.runtime.block_on(request.execute()).map_err(into_io)
    }

    /// Does as `ip route add PREFIX dev … table TABLE`.
    pub(super) fn add_route(&self, index: u32, prefix: Prefix, table: u32) -> Result<()> {
        let request = self.handle.route().add(route_message(index, prefix, table));
        self.runtime.block_on(request.execute()).map_err(into_io)
    }

    /// Does as `ip route del PREFIX dev … table TABLE`. A route that is gone already is no error.
    pub(super) fn remove_route(&self, index: u32, prefix: Prefix, table: u32) -> Result<()> {
        let request = self.handle.route().del(route_message(index, prefix, table));
        match self.runtime.block_on(request.execute()).map_err(into_io) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            done => done,
        }
    }

    /// All routes by this interface: table, destination, and whether an administrator added it, as [`Self::add_route`]
    /// does.
    pub(super) fn routes(&self, index: u32) -> Result<Vec<(u32, Prefix, bool)>> {
        let mut routes = Vec::new();
        self.each_route(|route| {
            if outgoing(route) == Some(index) {
                let added = route.header.protocol == RouteProtocol::Boot;
                routes.extend(destination(route).map(|to| (table_of(route), to, added)));
            }
        })?;
        Ok(routes)
    }

    /// The routing tables that hold something, in either family.
    pub(super) fn tables(&self) -> Result<BTreeSet<u32>> {
        let mut tables = BTreeSet::new();
        self.each_route(|route| tables.extend([table_of(route)]))?;
        Ok(tables)
    }

    /// The interface that has exactly this route, if one has.
    pub(super) fn holder(&self, prefix: Prefix, table: u32) -> Option<String> {
        let mut found = None;
        self.each_route(|route| {
            if table_of(route) == table && destination(route) == Some(prefix) {
                found = found.take().or(outgoing(route));
            }
        })
        .ok()?;
        found.map(link::scope)
    }

    /// The destinations in `to` to which another tunnel has a route in the main table, each with that tunnel's name.
    pub(super) fn conflicting_routes(
        &self,
        ours: &str,
        to: &BTreeSet<Prefix>,
    ) -> Result<Vec<(Prefix, String)>> {
        let mut found = Vec::new();
        self.each_route(|route| {
            let taken = destination(route).filter(|prefix| table_of(route) == MAIN && to.contains(prefix));
            found.extend(taken.zip(outgoing(route)).map(|(prefix, index)| (prefix, link::scope(index))));
        })?;
        found.retain(|(_, name)| name != ours && link::is_tunnel(name));
        Ok(found)
    }

    /// The MTU in bytes of the path that a tunnel's own packets, which carry `mark`, take to an address. `None` where
    /// there is no such path, or where it would lead into the tunnel itself.
    pub(in crate::gateway) fn path_mtu(&self, tunnel: &str, mark: u32, to: IpAddr) -> Option<u32> {
        let route = self.runtime.block_on(route::find_marked(&self.handle, to, mark)).ok()?;
        (route.interface != tunnel).then_some(route.mtu)
    }

    /// Calls `show` for every route there is, in both families.
    fn each_route(&self, mut show: impl FnMut(&RouteMessage)) -> Result<()> {
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            self.runtime.block_on(async {
                let mut routes = std::pin::pin!(self.handle.route().get(message).execute());
                while let Some(route) = routes.try_next().await.map_err(into_io)? {
                    show(&route);
                }
                Ok::<(), Error>(())
            })?;
        }
        Ok(())
    }

    /// Does as `ip rule add …`. The rule comes before those that are there.
    pub(super) fn add_rule(&self, v6: bool, rule: Rule) -> Result<()> {
        let mut request = self.handle.rule().add();
        *request.message_mut() = rule_message(v6, rule);
        self.runtime.block_on(request.execute()).map_err(into_io)
    }

    /// Whether the rule of this mark is there, and whether the main table's rule stands directly before it.
    pub(super) fn has_rules(&self, v6: bool, table: u32) -> Result<(bool, bool)> {
        let rules = self.rules(v6)?;
        let at = rules.iter().position(|message| is(message, Rule::NotMarked(table)));
        let before = at.and_then(|at| rules.get(at.checked_sub(1)?));
        Ok((at.is_some(), before.is_some_and(|message| is(message, Rule::MainWithoutDefault))))
    }

    /// Removes the rule of this mark, and the main table's rule that stands directly before it. Further rules for the
    /// main table are other tunnels'. Returns the rules that were removed.
    pub(super) fn remove_rules(&self, v6: bool, table: u32) -> Result<Vec<Rule>> {
        let rules = self.rules(v6)?;
        let mut removed = Vec::new();
        let Some(at) = rules.iter().position(|message| is(message, Rule::NotMarked(table))) else {
            return Ok(removed);
        };
        let before = at.checked_sub(1).and_then(|before| rules.get(before));
        for (message, rule) in [(rules.get(at), Rule::NotMarked(table)), (before, Rule::MainWithoutDefault)] {
            let Some(message) = message.filter(|message| is(message, rule)) else { continue };
            self.runtime.block_on(self.handle.rule().del(message.clone()).execute()).map_err(into_io)?;
            removed.push(rule);
        }
        Ok(removed)
    }

    /// The rules of a family, by priority.
    fn rules(&self, v6: bool) -> Result<Vec<RuleMessage>> {
        let version = if v6 { IpVersion::V6 } else { IpVersion::V4 };
        let request = self.handle.rule().get(version).execute();
        match self.runtime.block_on(request.try_collect()).map_err(into_io) {
            // Without policy routing in this family there are no rules.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) => {
                Ok(Vec::new())
            }
            done => done,
        }
    }
}

/// ip(8)'s option for a family.
pub(super) fn proto(v6: bool) -> &'static str {
    if v6 { "-6" } else { "-4" }
}

fn into_io(error: rtnetlink::Error) -> Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => Error::other(other.to_string()),
    }
}

fn family(of: IpAddr) -> AddressFamily {
    if of.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn mtu_of(message: &LinkMessage) -> u32 {
    let mtu = |attribute: &LinkAttribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    };
    message.attributes.iter().find_map(mtu).unwrap_or(0)
}

/// The address that a message holds, and whether it has another end.
fn held_address(message: &AddressMessage) -> Option<(Address, bool)> {
    let (mut local, mut plain) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(addr) => local = Some(*addr),
            AddressAttribute::Address(addr) => plain = Some(*addr),
            _ => {}
        }
    }
    let address = Address { addr: local.or(plain)?, len: message.header.prefix_len };
    Some((address, local.is_some() && plain.is_some() && local != plain))
}

/// The message that adds an address, as ip(8) writes it: with the same address as its other end.
fn address_message(index: u32, address: Address) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address.addr);
    message.header.prefix_len = address.len;
    message.header.index = index;
    message.attributes = vec![AddressAttribute::Local(address.addr), AddressAttribute::Address(address.addr)];
    message
}

/// The message that adds a route, as ip(8) writes it: an administrator's, and for IPv4 with the scope of a route that
/// needs no gateway.
fn route_message(index: u32, prefix: Prefix, table: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(prefix.addr());
    message.header.destination_prefix_length = prefix.len();
    message.header.protocol = RouteProtocol::Boot;
    message.header.scope = if prefix.addr().is_ipv4() { RouteScope::Link } else { RouteScope::Universe };
    message.header.kind = RouteType::Unicast;
    message.header.table = u8::try_from(table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    if prefix.len() > 0 {
        message.attributes.push(RouteAttribute::Destination(prefix.addr().into()));
    }
    message.attributes.push(RouteAttribute::Oif(index));
    message.attributes.push(RouteAttribute::Table(table));
    message
}

fn table_of(route: &RouteMessage) -> u32 {
    let table = |attribute: &RouteAttribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    };
    route.attributes.iter().find_map(table).unwrap_or(route.header.table.into())
}

fn outgoing(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

fn destination(route: &RouteMessage) -> Option<Prefix> {
    use netlink_packet_route::route::RouteAddress;
    let held = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
        RouteAttribute::Destination(RouteAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    });
    let any = if route.header.address_family == AddressFamily::Inet6 {
        IpAddr::from([0; 16])
    } else {
        [0; 4].into()
    };
    Prefix::new(held.unwrap_or(any), route.header.destination_prefix_length)
}

fn rule_message(v6: bool, rule: Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    message.header.action = RuleAction::ToTable;
    let table = match rule {
        Rule::NotMarked(number) => {
            message.header.flags = RuleFlags::Invert;
            message.attributes.push(RuleAttribute::FwMark(number));
            number
        }
        Rule::MainWithoutDefault => {
            message.attributes.push(RuleAttribute::SuppressPrefixLen(0));
            MAIN
        }
    };
    message.header.table = u8::try_from(table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    message.attributes.push(RuleAttribute::Table(table));
    message
}

fn mark(message: &RuleMessage) -> Option<u32> {
    message.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::FwMark(mark) if *mark != 0 => Some(*mark),
        _ => None,
    })
}

/// Whether a rule that the kernel reported is of this kind.
fn is(message: &RuleMessage, rule: Rule) -> bool {
    let table = message.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Table(table) => Some(*table),
        _ => None,
    });
    let table = table.unwrap_or(message.header.table.into());
    let inverted = message.header.flags.contains(RuleFlags::Invert);
    match rule {
        Rule::NotMarked(number) => inverted && mark(message) == Some(number) && table == number,
        Rule::MainWithoutDefault => {
            table == MAIN
                && !inverted
                && mark(message).is_none()
                && message.attributes.contains(&RuleAttribute::SuppressPrefixLen(0))
        }
    }
}
