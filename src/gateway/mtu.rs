//! How large an inner packet may be: the link's MTU without what the tunnel adds. All sizes are in bytes.
//!
//! ```text
//!   | outer IP 20/40 | UDP 8 | WireGuard header 16 | inner packet, padded | tag 16 |
//!   |<------------------------- the link's MTU --------------------------------->|
//! ```
//!
//! An inner packet of full size is not padded, so the sum is exact.

use crate::gateway::config::Mtu;
use crate::wire::family::Family;
use serde::Serialize;

/// The MTU of the usual link, taken where no route tells another.
pub const ETHERNET: u32 = 1500;
/// Length of a UDP header.
pub const UDP: u32 = 8;
/// Length of the data message's header: type, receiver index and counter.
pub const WIREGUARD_HEADER: u32 = 16;
/// Length of Poly1305's tag.
pub const TAG: u32 = 16;
/// Length of a TCP header without options.
const TCP: u32 = 20;
/// The least MTU of a link with IPv6 (RFC 8200 section 5).
pub const IPV6_MINIMUM: u32 = 1280;

/// The sum for one outer family, term by term. All terms are in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Sum {
    /// The outer packet's family.
    pub outer: Family,
    /// The link's MTU, which is Ethernet's payload.
    pub link_mtu: u32,
    /// The length of the outer IP header.
    pub ip_header: u32,
    /// The length of the UDP header.
    pub udp_header: u32,
    /// The length of the WireGuard header.
    pub wireguard_header: u32,
    /// The length of the authentication tag.
    pub tag: u32,
    /// The MTU that is left for inner packets.
    pub inner_mtu: u32,
    /// The largest TCP segment of an inner IPv4 connection, without TCP options.
    pub inner_mss_ipv4: u32,
    /// The largest TCP segment of an inner IPv6 connection, without TCP options.
    pub inner_mss_ipv6: u32,
}

impl Sum {
    /// The sum over a link whose MTU is `link_mtu` bytes. Terms stop at zero where the link is too small.
    pub fn new(outer: Family, link_mtu: u32) -> Sum {
        let inner_mtu = link_mtu.saturating_sub(outer.header_len() as u32 + UDP + WIREGUARD_HEADER + TAG);
        Sum {
            outer,
            link_mtu,
            ip_header: outer.header_len() as u32,
            udp_header: UDP,
            wireguard_header: WIREGUARD_HEADER,
            tag: TAG,
            inner_mtu,
            inner_mss_ipv4: mss(inner_mtu, Family::Ipv4),
            inner_mss_ipv6: mss(inner_mtu, Family::Ipv6),
        }
    }
}

/// The largest TCP segment in bytes, without TCP options, in packets of `mtu` bytes.
pub fn mss(mtu: u32, family: Family) -> u32 {
    mtu.saturating_sub(family.header_len() as u32 + TCP)
}

/// The path to an endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Path {
    /// The family of the endpoint's address.
    pub outer: Family,
    /// The MTU in bytes of the route, or else of its link.
    pub mtu: u32,
}

/// The interface's MTU in bytes. A number stands as it is; `exact` counts by each path's own family; otherwise there is
/// room for IPv6, since peers roam. The narrowest path decides, because a packet for any peer must fit. `fallback` is
/// the default route's MTU, which counts where there is no path.
pub fn choose(wanted: Option<Mtu>, paths: &[Path], fallback: Option<u32>) -> u32 {
    let inner = |outer, link_mtu| Sum::new(outer, link_mtu).inner_mtu;
    let without_path = || inner(Family::Ipv6, fallback.unwrap_or(ETHERNET));
    match wanted {
        Some(Mtu::Bytes(bytes)) => bytes.into(),
        Some(Mtu::Exact) => {
            paths.iter().map(|path| inner(path.outer, path.mtu)).min().unwrap_or_else(without_path)
        }
        None => paths.iter().map(|path| inner(Family::Ipv6, path.mtu)).min().unwrap_or_else(without_path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over(outer: Family, mtu: u32) -> Path {
        Path { outer, mtu }
    }

    #[test]
    fn ethernet_leaves_1440_over_ipv4_and_1420_over_ipv6() {
        let four = Sum::new(Family::Ipv4, 1500);
        assert_eq!((four.inner_mtu, four.inner_mss_ipv4, four.inner_mss_ipv6), (1440, 1400, 1380));
        let six = Sum::new(Family::Ipv6, 1500);
        assert_eq!((six.inner_mtu, six.inner_mss_ipv4, six.inner_mss_ipv6), (1420, 1380, 1360));
    }

    #[test]
    fn pppoe_of_1454_leaves_1394_over_ipv4_and_1374_over_ipv6() {
        assert_eq!(Sum::new(Family::Ipv4, 1454).inner_mtu, 1394);
        assert_eq!(Sum::new(Family::Ipv6, 1454).inner_mtu, 1374);
    }

    #[test]
    fn the_terms_add_up_to_the_link() {
        for outer in [Family::Ipv4, Family::Ipv6] {
            for link in [100, 576, 1280, 1492, 1500, 9000, 65_535] {
                let sum = Sum::new(outer, link);
                let terms = sum.ip_header + sum.udp_header + sum.wireguard_header + sum.tag + sum.inner_mtu;
                assert_eq!(terms, link);
            }
        }
    }

    #[test]
    fn the_default_leaves_room_for_ipv6_and_exact_does_not() {
        let path = [over(Family::Ipv4, 1500)];
        assert_eq!(choose(None, &path, None), 1420);
        assert_eq!(choose(Some(Mtu::Exact), &path, None), 1440);
        assert_eq!(choose(Some(Mtu::Exact), &[over(Family::Ipv4, 1454)], None), 1394);
        assert_eq!(choose(Some(Mtu::Exact), &[over(Family::Ipv6, 1454)], None), 1374);
        assert_eq!(choose(None, &[over(Family::Ipv4, 1454)], None), 1374);
    }

    #[test]
    fn a_number_is_taken_as_it_stands() {
        assert_eq!(choose(Some(Mtu::Bytes(1380)), &[over(Family::Ipv4, 1454)], Some(9000)), 1380);
    }

    #[test]
    fn the_narrowest_path_decides() {
        let paths = [over(Family::Ipv4, 1500), over(Family::Ipv4, 1454), over(Family::Ipv6, 1500)];
        assert_eq!(choose(None, &paths, None), 1374);
        assert_eq!(choose(Some(Mtu::Exact), &paths, None), 1394);
    }

    #[test]
    fn without_a_path_the_default_route_counts_and_then_ethernet() {
        assert_eq!(choose(None, &[], Some(1492)), 1412);
        assert_eq!(choose(None, &[], None), 1420);
        assert_eq!(choose(Some(Mtu::Exact), &[], None), 1420);
    }

    #[test]
    fn a_link_too_small_for_the_headers_leaves_nothing() {
        let sum = Sum::new(Family::Ipv6, 60);
        assert_eq!((sum.inner_mtu, sum.inner_mss_ipv4, sum.inner_mss_ipv6), (0, 0, 0));
    }
}
