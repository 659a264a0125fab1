//! Follows the interface through netlink: up, down, MTU, gone, and the UDP tunnels of its namespace. In the namespace of the
//! sockets it follows whatever leads packets: routes, rules, addresses, interfaces.
//!
//! The TUN device may be moved to another network namespace while the sockets stay. So a thread of its own enters the
//! namespace in which the device is now (TUNGETDEVNETNS), listens there, and follows when the device is moved again.

use crate::slowpath::listening::{AbortOnDrop, LinkEvent, LinkState, RELISTEN, overrun};
use crate::slowpath::tunnels::Tunnels;
use crate::slowpath::{addrgen, routes};
use crate::sys::icmp::IcmpSockets;
use crate::sys::tun_namespace;
use futures_util::{FutureExt, StreamExt};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::{Handle, MulticastGroup, new_multicast_connection};
use rustix::fs::{fstat, stat};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::io::{Error, Result};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::mpsc::Sender;

/// Pause between two reports of changed routes. A routing daemon makes them by the thousand, and the last one counts.
const SETTLE: Duration = Duration::from_millis(100);
/// All groups about what leads packets. When an interface goes down, its IPv4 routes go without a message of their own.
const ROUTING: [MulticastGroup; 7] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv6Rule,
];

/// Starts the thread that follows the interface of `queue` until the device is gone or the receiver is dropped.
pub(super) fn follow_link(queue: OwnedFd, events: Sender<LinkEvent>) -> Result<JoinHandle<()>> {
    std::thread::Builder::new().name("ringtun-link".into()).spawn(move || {
        let mut moved = false;
        while tun_namespace::interface_name(queue.as_fd()).is_ok() && !events.is_closed() {
            if let Err(error) = listen_in_its_namespace(&queue, &mut moved, &events) {
                log::warn!("cannot follow the interface through netlink: {error}; trying again");
                std::thread::sleep(RELISTEN);
            }
        }
    })
}

/// Starts the thread that reports changes of the routes in the namespace of this process.
pub(super) fn follow_routes(events: Sender<LinkEvent>) -> Result<JoinHandle<()>> {
    std::thread::Builder::new().name("ringtun-route".into()).spawn(move || {
        while !events.is_closed() {
            if let Err(error) = until_closed(&events, listen_for_routes(&events)) {
                log::warn!("cannot follow routes through netlink: {error}; trying again");
                std::thread::sleep(RELISTEN);
            }
        }
    })
}

/// Runs `listening` to its end, or until the receiver of `events` is gone.
fn until_closed(events: &Sender<LinkEvent>, listening: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        tokio::select! {
            ended = listening => ended,
            () = events.closed() => Ok(()),
        }
    })
}

/// Listens in the namespace where the interface is. `moved` says that it left a namespace since its state was last reported.
fn listen_in_its_namespace(queue: &OwnedFd, moved: &mut bool, events: &Sender<LinkEvent>) -> Result<()> {
    if *moved && events.blocking_send(LinkEvent::Icmp(None)).is_err() {
        return Ok(());
    }
    if enter_namespace_of(queue.as_fd())? {
        send_icmp_sockets(events);
    }
    let name = tun_namespace::interface_name(queue.as_fd())?;
    until_closed(events, listen_for_link(&name, moved, events))
}

/// Moves the calling thread to the namespace where the device of `queue` is. False where the kernel does not say which that is.
pub(super) fn enter_namespace_of(queue: BorrowedFd<'_>) -> Result<bool> {
    match tun_namespace::namespace(queue) {
        Ok(namespace) => enter(&namespace).map(|()| true),
        Err(error) => {
            // Linux before 5.2: the device is followed only while it stays in the namespace where it was made.
            log::debug!("cannot ask for the interface's namespace: {error}");
            Ok(false)
        }
    }
}

/// Moves the calling thread to this network namespace, if it is in another one.
///
/// # Errors
///
/// EPERM without CAP_SYS_ADMIN.
pub fn enter(namespace: &OwnedFd) -> Result<()> {
    // To enter the namespace that one is in needs CAP_SYS_ADMIN all the same, which a hardened service does not have.
    if is_own(namespace)? {
        return Ok(());
    }
    Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?)
}

/// Reports ICMP sockets of the namespace that the calling thread is in.
fn send_icmp_sockets(events: &Sender<LinkEvent>) {
    let sockets = IcmpSockets::open();
    if let Err(error) = &sockets {
        log::debug!("no raw sockets ({error}): ICMP errors carry the packet's destination as their source");
    }
    // A receiver that is gone ends the thread soon.
    let _ = events.blocking_send(LinkEvent::Icmp(sockets.ok()));
}

/// Whether the calling thread is in this network namespace.
fn is_own(namespace: &OwnedFd) -> Result<bool> {
    let (its, own) = (fstat(namespace)?, stat("/proc/thread-self/ns/net")?);
    Ok((its.st_dev, its.st_ino) == (own.st_dev, own.st_ino))
}

/// Reports the interface's changes, and returns `Ok` when it left this namespace or was deleted.
async fn listen_for_link(name: &str, moved: &mut bool, events: &Sender<LinkEvent>) -> Result<()> {
    let (connection, handle, mut messages) = new_multicast_connection(&[MulticastGroup::Link])?;
    let _driver = AbortOnDrop(tokio::spawn(connection));
    // Subscribing comes first and asking second, so that no change falls between.
    let (index, mut known) = query(&handle, name).await?;
    if std::mem::take(moved) {
        addrgen::disable_link_local(&handle, index).await;
    }
    if events.send(LinkEvent::State(known)).await.is_err() {
        return Ok(());
    }
    let mut tunnels = Tunnels::query(&handle).await?;
    let mut changed = true;
    let _routes = AbortOnDrop(tokio::spawn(routes::follow(index, events.clone())));
    loop {
        if std::mem::take(&mut changed) && events.send(LinkEvent::Tunnels(tunnels.ports())).await.is_err() {
            return Ok(());
        }
        let Some((message, _)) = messages.next().await else { break };
        match message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link))
                if link.header.index == index =>
            {
                let state = state_of(&link, known);
                if known.mtu < addrgen::LEAST_MTU && state.mtu >= addrgen::LEAST_MTU {
                    addrgen::disable_link_local(&handle, index).await;
                }
                if state != known && events.send(LinkEvent::State(state)).await.is_err() {
                    return Ok(());
                }
                known = state;
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link))
                if link.header.index == index =>
            {
                *moved = true;
                return Ok(());
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
                changed = tunnels.update(&link)
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) => {
                changed = tunnels.remove(&link)
            }
            _ => overrun(&message)?,
        }
    }
    Err(Error::other("the netlink connection ended"))
}

async fn listen_for_routes(events: &Sender<LinkEvent>) -> Result<()> {
    let (connection, _handle, mut messages) = new_multicast_connection(&ROUTING)?;
    let _driver = AbortOnDrop(tokio::spawn(connection));
    // Something may have changed while nobody listened.
    let mut heard = true;
    while heard {
        if events.send(LinkEvent::RoutesChanged).await.is_err() {
            return Ok(());
        }
        tokio::time::sleep(SETTLE).await;
        heard = match messages.next().now_or_never() {
            Some(message) => message.is_some(),
            None => messages.next().await.is_some(),
        };
        // One report stands for all messages that came meanwhile, also for a notice that some were lost.
        while messages.next().now_or_never().flatten().is_some() {}
    }
    Err(Error::other("the netlink connection ended"))
}

async fn query(handle: &Handle, name: &str) -> Result<(u32, LinkState)> {
    let link = handle.link().get().match_name(name.to_owned()).execute().next().await;
    match link {
        Some(Ok(link)) => Ok((link.header.index, state_of(&link, LinkState::default()))),
        Some(Err(error)) => Err(Error::other(error)),
        None => Err(Error::other("the interface is not there")),
    }
}

/// The state that a link message states. A message without an MTU leaves the known one.
fn state_of(link: &LinkMessage, known: LinkState) -> LinkState {
    let mtu = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    });
    LinkState { up: link.header.flags.contains(LinkFlags::Up), mtu: mtu.unwrap_or(known.mtu) }
}
