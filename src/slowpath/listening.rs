//! What the netlink threads report to the driver, and what all who listen to netlink have in common.

use crate::offload::coalesce::TunnelPorts;
use crate::routing::Prefix;
use crate::sys::icmp::IcmpSockets;
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use std::io::{Error, Result};
use std::net::Ipv4Addr;
use std::time::Duration;

/// Pause before listening again after netlink failed (a full socket buffer, say).
pub(super) const RELISTEN: Duration = Duration::from_millis(200);

/// What a netlink thread reports.
#[derive(Debug)]
pub(super) enum LinkEvent {
    /// The interface's state, sent once at first and then at each change.
    State(LinkState),
    /// Sockets for ICMP in the interface's namespace. `None` where there are none, or as it left the namespace.
    Icmp(Option<IcmpSockets>),
    /// All broadcast addresses of the interface's networks.
    Broadcasts(Vec<Ipv4Addr>),
    /// The UDP ports at which tunnels listen in the interface's namespace, at each change.
    Tunnels(TunnelPorts),
    /// The sockets' namespace may lead packets otherwise than before.
    RoutesChanged,
    /// All routes into the interface that have an MTU of their own, with that MTU in bytes.
    RouteMtus(Vec<(Prefix, u32)>),
}

/// The interface's state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct LinkState {
    /// Whether it is up (IFF_UP).
    pub(super) up: bool,
    /// Its MTU in bytes.
    pub(super) mtu: u32,
}

/// An error where the socket reports one (ENOBUFS: messages were lost). It ends the listening, so that the state is asked for
/// anew.
pub(super) fn overrun(message: &NetlinkMessage<RouteNetlinkMessage>) -> Result<()> {
    match &message.payload {
        NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
        NetlinkPayload::Overrun(_) => Err(Error::other("netlink messages were lost")),
        _ => Ok(()),
    }
}

/// A task that is aborted on drop.
pub(super) struct AbortOnDrop(pub(super) tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
