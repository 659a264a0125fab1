//! The interface's own properties, through synchronous rtnetlink (Linux `net/core/rtnetlink.c`, `do_setlink`).
//!
//! All of it acts in the calling thread's network namespace. An interface that was moved to another one is not found there
//! (ENODEV), while its queues work on. So callers report such an error and go on.

use crate::sys::error::invalid;
use crate::sys::rtnl::Asker;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::Nla;
use std::ffi::CString;
use std::io;
#[cfg(feature = "cli")]
use std::os::fd::{AsRawFd, BorrowedFd};

/// The index of the interface called `name`.
pub(crate) fn index(name: &str) -> io::Result<u32> {
    let name = CString::new(name).map_err(|_| invalid("interface name holds a NUL byte"))?;
    // SAFETY: the argument is a NUL-terminated string that outlives the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

/// The scope of a link-local address as people write it: the interface's name, or its number where it is gone.
#[cfg(feature = "cli")]
pub(crate) fn scope(index: u32) -> String {
    use rustix::net::{AddressFamily, SocketType, netdevice, socket};
    let name = || {
        let socket = socket(AddressFamily::INET, SocketType::DGRAM, None).ok()?;
        netdevice::index_to_name(socket, index).ok()
    };
    name().unwrap_or_else(|| index.to_string())
}

/// Whether the interface called `name` is a tunnel's, of this or another program. To delete any other one, such as `lo`, is
/// no advice to give. False where the kernel does not say.
pub(crate) fn is_tunnel(name: &str) -> bool {
    let info = link_info(name).unwrap_or_default();
    info.iter().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Tun | InfoKind::Wireguard)))
}

/// What the kernel tells of a TUN device (`tun_fill_info`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct TunState {
    /// The user who may open queues without CAP_NET_ADMIN.
    pub(crate) owner: Option<u32>,
    /// Whether it stays when the last queue is closed.
    pub(crate) is_persistent: bool,
    /// Whether it may have more than one queue.
    pub(crate) is_multi_queue: bool,
    /// How many files are attached to it, enabled or not.
    pub(crate) queues: usize,
}

/// The state of the TUN device called `name`.
///
/// # Errors
///
/// Where there is none of this name, or netlink does not answer.
pub(crate) fn tun_state(name: &str) -> io::Result<TunState> {
    let values = link_info(name)?.into_iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Tun(values)) => Some(values),
        _ => None,
    });
    let mut state = TunState::default();
    for value in values.ok_or_else(|| invalid(format!("{name} is no TUN device")))? {
        let mut bytes = [0; 4];
        let len = value.value_len().min(bytes.len());
        value.emit_value(&mut bytes[..len]);
        let number = u32::from_ne_bytes(bytes);
        // IFLA_TUN_* of linux/if_link.h; those that say yes or no are one byte.
        match value.kind() {
            1 => state.owner = Some(number),
            6 => state.is_persistent = number.to_ne_bytes()[0] != 0,
            7 => state.is_multi_queue = number.to_ne_bytes()[0] != 0,
            8 | 9 => state.queues += number as usize,
            _ => {}
        }
    }
    Ok(state)
}

fn link_info(name: &str) -> io::Result<Vec<LinkInfo>> {
    let mut message = LinkMessage::default();
    message.header.index = index(name)?;
    let RouteNetlinkMessage::NewLink(link) = Asker::open()?.query(RouteNetlinkMessage::GetLink(message))?
    else {
        return Err(io::ErrorKind::NotFound.into());
    };
    let info = link.attributes.into_iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(info) => Some(info),
        _ => None,
    });
    Ok(info.unwrap_or_default())
}

/// Sets MTU (in bytes), transmit queue length (in packets), NOARP, and no MULTICAST. UP stays as it is.
pub(crate) fn configure(index: u32, mtu: u32, queue_len: u32) -> io::Result<()> {
    let attributes = vec![LinkAttribute::Mtu(mtu), LinkAttribute::TxQueueLen(queue_len)];
    set(index, LinkFlags::Noarp, LinkFlags::Noarp | LinkFlags::Multicast, attributes)
}

/// Keeps the kernel from making up an fe80:: address, for which a tunnel without link layer has no use (as the kernel's
/// wireguard: IN6_ADDR_GEN_MODE_NONE in `wg_setup`). The error is EAFNOSUPPORT where IPv6 is off.
pub(crate) fn disable_link_local(index: u32) -> io::Result<()> {
    let inet6 = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
    set(index, LinkFlags::empty(), LinkFlags::empty(), vec![LinkAttribute::AfSpecUnspec(vec![inet6])])
}

/// Brings the interface up.
#[cfg(feature = "cli")]
pub(crate) fn set_up(index: u32) -> io::Result<()> {
    set(index, LinkFlags::Up, LinkFlags::Up, Vec::new())
}

/// Makes two interfaces that are joined by a cable (veth(4)): `name` here, and `peer` in the network namespace `there`.
///
/// # Errors
///
/// EOPNOTSUPP where the kernel has no such interfaces, EEXIST where there is one of that name.
#[cfg(feature = "cli")]
pub(crate) fn add_veth_pair(name: &str, peer: &str, there: BorrowedFd<'_>) -> io::Result<()> {
    use netlink_packet_route::link::InfoVeth;
    let mut far = LinkMessage::default();
    far.attributes = vec![LinkAttribute::IfName(peer.to_owned()), LinkAttribute::NetNsFd(there.as_raw_fd())];
    let pair = LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(far)));
    let mut near = LinkMessage::default();
    near.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth), pair]),
    ];
    Asker::open()?.create(RouteNetlinkMessage::NewLink(near))
}

/// Sends RTM_SETLINK, and reads its acknowledgement.
fn set(index: u32, flags: LinkFlags, mask: LinkFlags, attributes: Vec<LinkAttribute>) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.interface_family = AddressFamily::Unspec;
    message.header.index = index;
    message.header.flags = flags;
    message.header.change_mask = mask;
    message.attributes = attributes;
    Asker::open()?.command(RouteNetlinkMessage::SetLink(message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netns::{in_netns, ip};

    #[test]
    fn an_interface_that_is_gone_is_reported() {
        in_netns(|| {
            let error = configure(4711, 1420, 1000).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
            assert_eq!(index("rt-none0").unwrap_err().raw_os_error(), Some(libc::ENODEV));
        });
    }

    #[test]
    fn the_state_of_a_tun_device_is_what_it_was_made_with() {
        in_netns(|| {
            ip("tuntap add rt-tun0 mode tun");
            ip("tuntap add rt-tun1 mode tun multi_queue user 65534");
            let single = TunState { is_persistent: true, ..TunState::default() };
            assert_eq!(tun_state("rt-tun0").unwrap(), single);
            let prepared = TunState { owner: Some(65_534), is_multi_queue: true, ..single };
            assert_eq!(tun_state("rt-tun1").unwrap(), prepared);
            assert!(tun_state("lo").unwrap_err().to_string().contains("no TUN device"));
            assert!(tun_state("rt-none0").is_err());
        });
    }

    #[test]
    #[cfg(feature = "cli")]
    fn a_cable_leads_from_one_namespace_to_another() {
        use crate::sys::namespace::PrivateNetwork;
        use std::os::fd::AsFd;
        in_netns(|| {
            let far = PrivateNetwork::new("rt-far").unwrap();
            add_veth_pair("rt-near", "rt-far", far.file().as_fd()).unwrap();
            assert!(index("rt-near").is_ok() && index("rt-far").is_err());
            let up = |name: &'static str| set_up(index(name).unwrap()).unwrap();
            up("rt-near");
            far.run(move || up("rt-far")).unwrap();
            assert!(ip("-o link show rt-near").contains("LOWER_UP"));
            let again = add_veth_pair("rt-near", "rt-other", far.file().as_fd()).unwrap_err();
            assert_eq!(again.raw_os_error(), Some(libc::EEXIST));
        });
    }

    #[test]
    fn only_a_tunnels_interface_is_one_to_delete() {
        in_netns(|| {
            ip("link add rt-veth0 type veth peer name rt-veth1");
            ip("tuntap add rt-tun0 mode tun");
            let tunnels = ["lo", "rt-veth0", "rt-tun0", "rt-none0"].map(is_tunnel);
            assert_eq!(tunnels, [false, false, true, false]);
        });
    }
}
