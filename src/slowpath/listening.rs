//! What netlink tells the driver, and what all who listen to netlink have in common.

use crate::routing::Prefix;
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use std::io::{Error, Result};
use std::time::Duration;

/// Pause before listening again after netlink failed (a full socket buffer, say).
pub(super) const RELISTEN: Duration = Duration::from_millis(200);

/// What netlink told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum LinkEvent {
    /// The interface's state; sent once at first, then at each change.
    State {
        /// IFF_UP.
        up: bool,
        /// Bytes.
        mtu: u32,
    },
    /// The sockets' namespace may lead packets otherwise than before.
    RoutesChanged,
    /// Routes into the interface with an MTU of their own, all of them.
    RouteMtus(Vec<(Prefix, u32)>),
}

impl LinkEvent {
    /// The MTU it tells; 0: none.
    pub(super) fn mtu(&self) -> u32 {
        match self {
            LinkEvent::State { mtu, .. } => *mtu,
            LinkEvent::RoutesChanged | LinkEvent::RouteMtus(_) => 0,
        }
    }
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
