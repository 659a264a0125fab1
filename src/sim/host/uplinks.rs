//! From which of a host's addresses a datagram leaves, and by which way: what the kernel's routing tables say.

use crate::io::LocalAddr;
use std::net::IpAddr;

/// The interface of an address of which nothing else is said.
pub const FIRST_UPLINK: u32 = 2;

/// The interfaces of a host, and the one by which everything leaves.
#[derive(Clone, Debug)]
pub struct Uplinks {
    /// Interfaces at which datagrams for an address arrive; [`FIRST_UPLINK`] for addresses that are not named.
    pub arrivals: Vec<(IpAddr, u32)>,
    /// The interface by which the route leaves.
    pub way: u32,
    /// The address that the route prefers as a source. `None` is the first of those on its interface.
    pub preferred: Option<IpAddr>,
}

impl Default for Uplinks {
    fn default() -> Uplinks {
        Uplinks { arrivals: Vec::new(), way: FIRST_UPLINK, preferred: None }
    }
}

/// What becomes of a datagram that a host sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Departing {
    /// It leaves with this source.
    From(IpAddr),
    /// The source that it named is no address of the host, so it was sent again with this one.
    FromAnother(IpAddr),
    /// It leaves by an interface on whose wire nobody takes it.
    Lost,
    /// The host has no address of its family.
    Unreachable,
}

impl Uplinks {
    /// The interface at which datagrams for `ip` arrive.
    pub(crate) fn interface(&self, ip: IpAddr) -> u32 {
        self.arrivals.iter().find(|(addr, _)| *addr == ip).map_or(FIRST_UPLINK, |&(_, interface)| interface)
    }

    /// Whether the route leaves by the interface on which `from` was spoken to, as [`crate::sys::source`] asks the kernel.
    pub(super) fn may_depart(&self, addresses: &[IpAddr], from: LocalAddr) -> bool {
        addresses.contains(&from.ip) && (from.interface == 0 || from.interface == self.way)
    }

    /// What the kernel and the uplinks' providers make of a datagram whose control data said `told`.
    pub(super) fn depart(&self, addresses: &[IpAddr], told: Option<LocalAddr>, is_ipv4: bool) -> Departing {
        // An interface that is named is the way out, whatever the routing tables say (`ip_route_output_key_hash_rcu`).
        if told.is_some_and(|told| told.interface != 0 && told.interface != self.way) {
            return Departing::Lost;
        }
        match told {
            // Another uplink's provider drops a source that is not its own.
            Some(told) if addresses.contains(&told.ip) && self.interface(told.ip) != self.way => {
                Departing::Lost
            }
            Some(told) if addresses.contains(&told.ip) => Departing::From(told.ip),
            Some(_) => self.chosen(addresses, is_ipv4).map_or(Departing::Unreachable, Departing::FromAnother),
            None => self.chosen(addresses, is_ipv4).map_or(Departing::Unreachable, Departing::From),
        }
    }

    /// The source that the route chooses.
    fn chosen(&self, addresses: &[IpAddr], is_ipv4: bool) -> Option<IpAddr> {
        let mut able =
            addresses.iter().filter(|ip| ip.is_ipv4() == is_ipv4 && self.interface(**ip) == self.way);
        let preferred = able.clone().find(|ip| Some(**ip) == self.preferred);
        preferred.or_else(|| able.next()).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    #[test]
    fn the_way_chooses_the_source_unless_one_is_named_that_may_leave_by_it() {
        let addresses = [ip(1), ip(2), ip(3)];
        let mut uplinks =
            Uplinks { arrivals: vec![(ip(3), 3)], preferred: Some(ip(2)), ..Uplinks::default() };
        let told = |last, interface| Some(LocalAddr { ip: ip(last), interface });
        let depart = |uplinks: &Uplinks, told| uplinks.depart(&addresses, told, true);
        assert_eq!(depart(&uplinks, None), Departing::From(ip(2)));
        assert_eq!(depart(&uplinks, told(1, 0)), Departing::From(ip(1)));
        assert_eq!(depart(&uplinks, told(9, 0)), Departing::FromAnother(ip(2)));
        assert_eq!(depart(&uplinks, told(3, 0)), Departing::Lost);
        assert_eq!(depart(&uplinks, told(1, 3)), Departing::Lost);
        assert_eq!(uplinks.depart(&addresses, None, false), Departing::Unreachable);
        uplinks.way = 3;
        assert_eq!(depart(&uplinks, None), Departing::From(ip(3)));
        assert!(!uplinks.may_depart(&addresses, LocalAddr { ip: ip(1), interface: 2 }));
        assert!(uplinks.may_depart(&addresses, LocalAddr { ip: ip(3), interface: 3 }));
        assert!(!uplinks.may_depart(&addresses, LocalAddr { ip: ip(9), interface: 3 }));
    }
}
