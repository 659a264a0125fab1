//! Keeps the kernel from giving the interface an IPv6 link-local address of its own making.
//!
//! [`crate::io::tun`] forbids it as it makes the interface, but the kernel forgets that with everything that IPv6 knows of
//! an interface: when that moves to another namespace, and when its MTU falls below IPv6's least (Linux `addrconf_notify`).
//! With the address come router solicitations, which an inner network has no use for.

use crate::sys::link;
use futures_util::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use rtnetlink::Handle;
use std::io::{Error, Result};

/// The least MTU in bytes with which an interface has IPv6 (RFC 8200 section 5).
pub(super) const LEAST_MTU: u32 = 1280;

/// Forbids such addresses on the interface, and removes what the kernel made up meanwhile. What a person gave stays.
pub(super) async fn disable_link_local(handle: &Handle, index: u32) {
    if let Err(error) = disable(handle, index).await {
        log::debug!("cannot keep the kernel from adding a link-local address: {error}");
    }
}

async fn disable(handle: &Handle, index: u32) -> Result<()> {
    link::disable_link_local(index)?;
    let mut addresses = handle.address().get().set_link_index_filter(index).execute();
    let mut autoconfigured = Vec::new();
    while let Some(address) = addresses.try_next().await.map_err(Error::other)? {
        if is_autoconfigured(&address) {
            autoconfigured.push(address);
        }
    }
    for address in autoconfigured {
        handle.address().del(address).execute().await.map_err(Error::other)?;
    }
    Ok(())
}

/// Whether the kernel made the address up. An interface without hardware address gets a stable private one
/// (`addrconf_dev_config`), which nobody else can give.
fn is_autoconfigured(address: &AddressMessage) -> bool {
    let is_stable = |attribute: &AddressAttribute| matches!(attribute, AddressAttribute::Flags(flags) if flags.contains(AddressFlags::StablePrivacy));
    address.header.family == AddressFamily::Inet6
        && address.header.scope == AddressScope::Link
        && address.attributes.iter().any(is_stable)
}
