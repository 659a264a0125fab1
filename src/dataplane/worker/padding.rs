//! The limits of padding: how far packets may be padded.

use crate::routing::RouteTable;
use crate::wire::message::MAX_INNER_LEN;
use std::net::IpAddr;
use std::sync::Arc;

/// The interface's MTU and those of its routes, which bound the padding.
pub(super) struct Padding {
    interface: usize,
    /// MTUs of the routes into the interface that have one of their own, by prefix.
    pub(super) routes: Option<Arc<RouteTable>>,
}

impl Padding {
    pub(super) fn new(mtu: u32) -> Padding {
        let mut padding = Padding { interface: MAX_INNER_LEN, routes: None };
        padding.set_interface(mtu);
        padding
    }

    /// Sets the interface's MTU in bytes. 0 is an unknown one.
    pub(super) fn set_interface(&mut self, mtu: u32) {
        self.interface = match mtu as usize {
            0 => MAX_INNER_LEN,
            mtu => mtu.min(MAX_INNER_LEN),
        };
    }

    /// The MTU in bytes to which packets of at most `longest` bytes to `destination` may be padded. A packet longer than its
    /// route's MTU came by another route (a rule, another table), so the interface's counts.
    #[inline]
    pub(super) fn limit(&self, destination: IpAddr, longest: usize) -> usize {
        let route = self.routes.as_ref().and_then(|routes| routes.lookup(destination));
        match route.map(|mtu| mtu as usize) {
            Some(mtu) if longest <= mtu => mtu.min(self.interface),
            _ => self.interface,
        }
    }
}
