//! The route to an address as the kernel has it now: by which interface, and with which MTU.

use futures_util::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric};
use rtnetlink::Handle;
use std::io::{Error, ErrorKind, Result};
use std::net::IpAddr;

/// The kernel's route to an address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KernelRoute {
    /// The name of the interface by which packets leave.
    pub interface: String,
    /// The MTU in bytes: the route's own, or else the interface's.
    pub mtu: u32,
    /// The source address that the kernel would choose.
    pub source: Option<IpAddr>,
}

/// Asks the kernel for a route, and blocks for a moment.
///
/// # Errors
///
/// Where there is no route, or the kernel cannot be asked.
pub fn route_to(destination: IpAddr) -> Result<KernelRoute> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let driver = tokio::spawn(connection);
        let route = find(&handle, destination).await;
        driver.abort();
        route
    })
}

/// Does as [`route_to`], over a connection that is there already.
///
/// # Errors
///
/// As for [`route_to`].
pub async fn find(handle: &Handle, destination: IpAddr) -> Result<KernelRoute> {
    find_marked(handle, destination, 0).await
}

/// Does as [`find`] for a packet with a firewall mark, which policy rules may lead elsewhere.
///
/// # Errors
///
/// As for [`route_to`].
pub async fn find_marked(handle: &Handle, destination: IpAddr, mark: u32) -> Result<KernelRoute> {
    let mut message = RouteMessage::default();
    let (family, address, len) = match destination {
        IpAddr::V4(v4) => (AddressFamily::Inet, RouteAddress::Inet(v4), 32),
        IpAddr::V6(v6) => (AddressFamily::Inet6, RouteAddress::Inet6(v6), 128),
    };
    message.header.address_family = family;
    message.header.destination_prefix_length = len;
    message.attributes.push(RouteAttribute::Destination(address));
    if mark != 0 {
        message.attributes.push(RouteAttribute::Mark(mark));
    }
    let answer = handle.route().get(message).execute().try_next().await.map_err(into_io)?;
    let answer = answer.ok_or_else(|| Error::new(ErrorKind::NotFound, "no route"))?;
    let (mut index, mut own, mut source) = (None, None, None);
    for attribute in answer.attributes {
        match attribute {
            RouteAttribute::Oif(oif) => index = Some(oif),
            RouteAttribute::PrefSource(RouteAddress::Inet(v4)) => source = Some(v4.into()),
            RouteAttribute::PrefSource(RouteAddress::Inet6(v6)) => source = Some(v6.into()),
            RouteAttribute::Metrics(metrics) => {
                own = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) if *mtu != 0 => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let index = index.ok_or_else(|| Error::new(ErrorKind::NotFound, "a route without an interface"))?;
    let (interface, link_mtu) = link(handle, index).await?;
    Ok(KernelRoute { interface, mtu: own.unwrap_or(link_mtu), source })
}

async fn link(handle: &Handle, index: u32) -> Result<(String, u32)> {
    let answer = handle.link().get().match_index(index).execute().try_next().await.map_err(into_io)?;
    let answer = answer.ok_or_else(|| Error::new(ErrorKind::NotFound, "the route's interface is gone"))?;
    let (mut name, mut mtu) = (String::new(), None);
    for attribute in answer.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = text,
            LinkAttribute::Mtu(bytes) => mtu = Some(bytes),
            _ => {}
        }
    }
    Ok((name, mtu.ok_or_else(|| Error::new(ErrorKind::InvalidData, "an interface without MTU"))?))
}

fn into_io(error: rtnetlink::Error) -> Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => Error::other(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_address_leaves_by_the_loopback_interface() {
        let Ok(route) = route_to(IpAddr::from([127, 0, 0, 1])) else {
            eprintln!("skipped: no netlink, or the loopback interface is down");
            return;
        };
        assert_eq!(route.interface, "lo");
        assert!(route.mtu >= 1280);
    }
}
