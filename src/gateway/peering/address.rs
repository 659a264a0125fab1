//! The next free address of a network.

use crate::routing::Prefix;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The lowest address of `network` that lies in none of `used`. The network's own address and IPv4's broadcast address
/// are not for hosts, except in networks of one or two addresses (RFC 3021, RFC 6164). A prefix wider than the network,
/// such as a default route, says nothing of single hosts and is ignored.
pub fn next_free(network: Prefix, used: &[Prefix]) -> Option<IpAddr> {
    let v4 = network.addr().is_ipv4();
    let (first, last) = bounds(&network);
    let tiny = last - first <= 1;
    let mut candidate = if tiny { first } else { first + 1 };
    let end = if v4 && !tiny { last - 1 } else { last };
    let mut taken: Vec<(u128, u128)> = used
        .iter()
        .filter(|prefix| prefix.len() >= network.len() && network.contains(prefix.addr()))
        .map(bounds)
        .collect();
    taken.sort_unstable();
    for (from, to) in taken {
        if from > candidate {
            break;
        }
        if to >= candidate {
            candidate = to.checked_add(1)?;
        }
    }
    (candidate <= end).then(|| address(candidate, v4)).flatten()
}

/// The first and the last address of a prefix, as numbers.
fn bounds(prefix: &Prefix) -> (u128, u128) {
    let (first, width) = match prefix.addr() {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()), 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    };
    let hosts = u32::from(width - prefix.len());
    (first, first | 1_u128.checked_shl(hosts).map_or(u128::MAX, |size| size - 1))
}

fn address(bits: u128, v4: bool) -> Option<IpAddr> {
    match v4 {
        true => u32::try_from(bits).ok().map(|bits| Ipv4Addr::from_bits(bits).into()),
        false => Some(Ipv6Addr::from_bits(bits).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn free(network: &str, used: &[&str]) -> Option<String> {
        let used: Vec<Prefix> = used.iter().map(|text| text.parse().unwrap()).collect();
        next_free(network.parse().unwrap(), &used).map(|addr| addr.to_string())
    }

    #[test]
    fn the_lowest_gap_is_filled_first() {
        assert_eq!(free("192.168.96.0/24", &[]).unwrap(), "192.168.96.1");
        let used = ["192.168.96.1", "192.168.96.2/32", "192.168.96.4/32"];
        assert_eq!(free("192.168.96.0/24", &used).unwrap(), "192.168.96.3");
        assert_eq!(free("fd00::/64", &["fd00::1", "fd00::2"]).unwrap(), "fd00::3");
    }

    #[test]
    fn a_prefix_in_use_is_skipped_whole() {
        assert_eq!(free("10.0.0.0/16", &["10.0.0.1", "10.0.0.0/25", "10.0.0.128/26"]).unwrap(), "10.0.0.192");
    }

    #[test]
    fn a_default_route_takes_nobodys_address() {
        assert_eq!(
            free("10.0.0.0/24", &["10.0.0.1", "0.0.0.0/0", "::/0", "10.0.0.0/8"]).unwrap(),
            "10.0.0.2"
        );
    }

    #[test]
    fn network_and_broadcast_are_not_given_out() {
        assert_eq!(free("10.0.0.0/30", &["10.0.0.1", "10.0.0.2"]), None);
        assert_eq!(free("10.0.0.0/31", &["10.0.0.0"]).unwrap(), "10.0.0.1");
        assert_eq!(free("10.0.0.1/32", &["10.0.0.1"]), None);
        assert_eq!(free("fd00::/127", &["fd00::"]).unwrap(), "fd00::1");
    }

    #[test]
    fn the_ends_of_the_address_spaces_do_not_overflow() {
        assert_eq!(free("255.255.255.252/30", &["255.255.255.252/30"]), None);
        assert_eq!(free("ffff::/16", &["ffff::/16"]), None);
        assert_eq!(free("::/0", &["::/1", "8000::/1"]), None);
        assert_eq!(free("0.0.0.0/0", &[]).unwrap(), "0.0.0.1");
    }

    proptest! {
        #[test]
        fn what_is_given_out_is_in_the_network_and_free_and_the_lowest(len in 24_u8..=32, used in prop::collection::vec((0_u8..=255, 24_u8..=32), 0..40)) {
            let network = Prefix::new(IpAddr::from([10, 0, 0, 0]), len).unwrap();
            let used: Vec<Prefix> = used.into_iter().map(|(host, len)| Prefix::new(IpAddr::from([10, 0, 0, host]), len).unwrap()).collect();
            let relevant = |addr: IpAddr| used.iter().any(|prefix| prefix.len() >= len && prefix.contains(addr));
            let hosts = (0..=255_u8).map(|host| IpAddr::from([10, 0, 0, host])).filter(|addr| network.contains(*addr));
            let hosts: Vec<IpAddr> = hosts.collect();
            let usable = if hosts.len() > 2 { &hosts[1..hosts.len() - 1] } else { &hosts[..] };
            prop_assert_eq!(next_free(network, &used), usable.iter().copied().find(|&addr| !relevant(addr)));
        }
    }
}
