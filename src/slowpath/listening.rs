//! What netlink tells the driver, and what all who listen to netlink have in common.

use crate::routing::Prefix;
use crate::sys::icmp::IcmpSockets;
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use std::io::{Error, Result};
use std::net::Ipv4Addr;
use std::time::Duration;

/// Pause before listening again after netlink failed (a full socket buffer, say).
pub(super) const RELISTEN: Duration = Duration::from_millis(200);

/// What netlink told.
#[derive(Debug)]
pub(super) enum LinkEvent {
    /// The interface's state; sent once at first, then at each change.
    State(LinkState),
    /// Sockets for ICMP where the interface is now; `None`: there are none, or it left.
    Icmp(Option<IcmpSockets>),
    /// The broadcast addresses of the interface's networks, all of them.
    Broadcasts(Vec<Ipv4Addr>),
    /// The sockets' namespace may lead packets otherwise than before.
    RoutesChanged,
    /// Routes into the interface with an MTU of their own, all of them.
    RouteMtus(Vec<(Prefix, u32)>),
}

/// The interface's state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct LinkState {
    /// IFF_UP.
    pub(super) up: bool,
    /// Bytes.
    pub(super) mtu: u32,
}

/// An error from the socket (ENOBUFS: messages were lost) ends the listening, so that the state is asked for anew.
pub(super) fn overrun(message: &NetlinkMessage<RouteNetlinkMessage>) -> Result<()> {
    match &message.payload {
        NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
        NetlinkPayload::Overrun(_) => Err(Error::other("netlink messages were lost")),
        _ => Ok(()),
    }
}

/// A task that ends with its owner.
pub(super) struct AbortOnDrop(pub(super) tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
