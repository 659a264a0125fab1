//! The interface's own properties, through synchronous rtnetlink (Linux `net/core/rtnetlink.c`, `do_setlink`).
//!
//! All of this acts in the calling thread's network namespace. An interface that was moved to another one is not found
//! there (ENODEV); its queues work on, so callers report such an error and go on.

use crate::io::error::invalid;
use crate::offload::train::{MAX_BYTES, MAX_SEGMENTS};
use crate::wire::message::DATA_OVERHEAD;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::ffi::CString;
use std::io;

/// The kernel's default gso_max_size, and the most a TUN device may have (GSO_LEGACY_MAX_SIZE).
pub const GSO_MAX_SIZE_DEFAULT: u32 = 65_536;

/// What local TCP keeps free of a super-packet: MAX_TCP_HEADER + 1 (`sk_dst_gso_max_size`), 320 + 1 bytes in common
/// configurations, less in small ones.
const TCP_RESERVE: u32 = 321;

/// IPv4 and TCP header with the timestamp option, which Linux sends by default.
const TCP4_HEADERS: u32 = 52;

/// Longest netlink answer read: an error echoes the request, which is far shorter.
const ANSWER_LEN: usize = 4096;

/// The gso_max_size with which *local* TCP's largest super-packet fills one UDP train of `mtu`-sized packets exactly.
///
/// A train takes n = min([`MAX_SEGMENTS`], [`MAX_BYTES`] / (`mtu` + 32)) packets. TCP sends as many whole segments as fit
/// into gso_max_size less MAX_TCP_HEADER + 1, hence n × (`mtu` − 52) + 321: at MTU 1420, n = 45 and 61,881 bytes. IPv6's
/// segments are 20 bytes shorter, which at MTU 1280 and above does not make room for one more.
///
/// Good only for a host that forwards nothing through the interface: see [`set_gso_max_size`].
pub fn gso_max_size(mtu: u32) -> u32 {
    let message = (mtu as usize).saturating_add(DATA_OVERHEAD);
    let segments = (MAX_BYTES / message).clamp(1, MAX_SEGMENTS) as u32;
    let payload = segments.saturating_mul(mtu.saturating_sub(TCP4_HEADERS));
    payload.saturating_add(TCP_RESERVE).min(GSO_MAX_SIZE_DEFAULT)
}

/// Sets the interface's gso_max_size, for IPv4 and IPv6, to [`gso_max_size`] of `mtu`; without an MTU back to the default.
///
/// Below the default, the kernel cuts every *forwarded* super-packet that is longer into single packets before the device
/// sees it (`gso_features_check`): GRO builds 64 KiB ones whatever this says, so a gateway loses nine tenths of its
/// throughput. Local TCP alone honours the limit when it builds. So this is off unless the host is an end point.
pub fn set_gso_max_size(index: u32, mtu: Option<u32>) -> io::Result<()> {
    let size = mtu.map_or(GSO_MAX_SIZE_DEFAULT, gso_max_size);
    // Kernels before 6.3 do not know the second attribute and ignore it: their first one is for both families.
    set(
        index,
        LinkFlags::empty(),
        LinkFlags::empty(),
        vec![LinkAttribute::GsoMaxSize(size), LinkAttribute::GsoIpv4MaxSize(size)],
    )
}

/// Index of the interface called `name`.
pub(crate) fn index(name: &str) -> io::Result<u32> {
    let name = CString::new(name).map_err(|_| invalid("interface name holds a NUL byte"))?;
    // SAFETY: the argument is a NUL-terminated string that outlives the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

/// Sets MTU and transmit queue length, NOARP, and no MULTICAST; leaves UP as it is.
pub(crate) fn configure(index: u32, mtu: u32, queue_len: u32) -> io::Result<()> {
    let attributes = vec![LinkAttribute::Mtu(mtu), LinkAttribute::TxQueueLen(queue_len)];
    set(index, LinkFlags::Noarp, LinkFlags::Noarp | LinkFlags::Multicast, attributes)
}

/// Keeps the kernel from making up an fe80:: address, which a tunnel without link layer has no use for (as the kernel's
/// wireguard: IN6_ADDR_GEN_MODE_NONE in `wg_setup`). EAFNOSUPPORT where IPv6 is off.
pub(crate) fn disable_link_local(index: u32) -> io::Result<()> {
    let inet6 = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
    set(index, LinkFlags::empty(), LinkFlags::empty(), vec![LinkAttribute::AfSpecUnspec(vec![inet6])])
}

/// RTM_SETLINK, and its acknowledgement.
fn set(index: u32, flags: LinkFlags, mask: LinkFlags, attributes: Vec<LinkAttribute>) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.interface_family = AddressFamily::Unspec;
    message.header.index = index;
    message.header.flags = flags;
    message.header.change_mask = mask;
    message.attributes = attributes;
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::SetLink(message));
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK;
    request.header.sequence_number = 1;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);

    let socket = Socket::new(NETLINK_ROUTE)?;
    let kernel = SocketAddr::new(0, 0);
    socket.send_to(&bytes, &kernel, 0)?;
    loop {
        let mut answer = Vec::with_capacity(ANSWER_LEN);
        let (_, from) = socket.recv_from(&mut answer, 0)?;
        if from.port_number() != 0 {
            continue; // another process may write to our socket; only port 0 is the kernel
        }
        let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
        if let NetlinkPayload::Error(error) = answer.payload {
            return match error.code {
                None => Ok(()),
                Some(code) => Err(io::Error::from_raw_os_error(code.get().saturating_neg())),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::netns::{in_netns, ip};

    /// Bytes in the largest super-packet that local TCP builds, by `tcp_tso_autosize`, and its segments.
    fn super_packet(gso_max_size: u32, mtu: u32, headers: u32) -> (u32, u32) {
        let segments = (gso_max_size - TCP_RESERVE) / (mtu - headers);
        (segments * (mtu - headers) + headers, segments)
    }

    #[test]
    fn at_mtu_1420_local_tcp_fills_a_train_of_45() {
        assert_eq!(gso_max_size(1420), 61_881);
        assert_eq!(super_packet(61_881, 1420, 52), (61_612, 45));
        assert_eq!(super_packet(61_881, 1420, 72), (60_732, 45));
    }

    #[test]
    fn one_super_packet_is_one_train_at_every_usual_mtu() {
        for mtu in 1280..=9000 {
            let fitting = (MAX_BYTES / (mtu as usize + DATA_OVERHEAD)).min(MAX_SEGMENTS) as u32;
            for headers in [52, 72] {
                let (len, segments) = super_packet(gso_max_size(mtu), mtu, headers);
                assert_eq!(segments, fitting, "MTU {mtu}");
                // `gso_features_check` strips GSO from what is not shorter than the limit.
                assert!(len < gso_max_size(mtu), "MTU {mtu}");
            }
        }
    }

    #[test]
    fn extreme_mtus_neither_overflow_nor_exceed_the_kernels_limit() {
        for mtu in [0, 1, 52, 68, 576, 32_767, 65_535, u32::MAX] {
            let size = gso_max_size(mtu);
            assert!((TCP_RESERVE..=GSO_MAX_SIZE_DEFAULT).contains(&size), "MTU {mtu}: {size}");
        }
        assert_eq!(gso_max_size(576), 64 * 524 + TCP_RESERVE);
        assert_eq!(gso_max_size(u32::MAX), GSO_MAX_SIZE_DEFAULT);
    }

    #[test]
    fn gso_max_size_follows_the_mtu_and_returns_to_the_default() {
        in_netns(|| {
            ip("link add rt-gso0 type veth peer name rt-gso1");
            let index = index("rt-gso0").unwrap();
            set_gso_max_size(index, Some(1420)).unwrap();
            assert!(ip("-d link show rt-gso0").contains("gso_max_size 61881 "));
            set_gso_max_size(index, Some(1280)).unwrap();
            assert!(ip("-d link show rt-gso0").contains(&format!("gso_max_size {} ", gso_max_size(1280))));
            set_gso_max_size(index, None).unwrap();
            assert!(ip("-d link show rt-gso0").contains("gso_max_size 65536 "));
        });
    }

    #[test]
    fn an_interface_that_is_gone_is_reported() {
        in_netns(|| {
            let error = set_gso_max_size(4711, Some(1420)).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
            assert_eq!(index("rt-none0").unwrap_err().raw_os_error(), Some(libc::ENODEV));
        });
    }
}
