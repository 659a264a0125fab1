//! ICMP to those whose packets the tunnel cannot take: from whom, to whom, and about what.

use crate::implementation::{Device, Hindrance, Implementation, Io, RINGTUN, ringtun, ringtun_itself};
use crate::lab::{Host, eventually, join, ready};
use std::sync::Arc;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(10);
/// Capabilities that a service may well lack.
static WITHOUT_RAW_SOCKETS: Hindrance =
    Hindrance { behind: &["setpriv", "--bounding-set", "-net_raw"], options: &[] };

/// A gateway with a tunnel that has no peer, and a host behind it.
struct Site {
    gateway: Arc<Host>,
    behind: Host,
    device: Device,
}

impl Site {
    fn new(implementation: Implementation) -> Option<Site> {
        if !ready() || !ringtun_itself() {
            return None;
        }
        let (gateway, behind) = (Arc::new(Host::namespace()), Host::namespace());
        join(&gateway, &behind);
        gateway.run(
            "ip addr add 192.168.7.1/24 dev wire && ip addr add fd07::1/64 dev wire nodad
             echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding",
        );
        behind.run(
            "ip addr add 192.168.7.2/24 dev wire && ip addr add fd07::2/64 dev wire nodad
             ip route add default via 192.168.7.1; ip -6 route add default via fd07::1",
        );
        let device = Device::start(&gateway, implementation);
        let site = Site { gateway, behind, device };
        site.address(&site.gateway);
        Some(site)
    }

    /// Gives the tunnel its addresses, where it is now.
    fn address(&self, place: &Host) {
        let name = &self.device.name;
        place.run(&format!(
            "ip addr add 10.99.0.1/24 dev {name} && ip addr add fd99::1/64 dev {name} nodad && ip link set {name} up"
        ));
    }
}

/// Whether `from` hears that `to` is unreachable, told by `by`.
fn hears(from: &Host, to: &str, by: &str) {
    let mut said = String::new();
    eventually(&format!("{to}, told by {by}"), SOON, || {
        said = from.run(&format!("ping -n -c 1 -W 1 {to} || true"));
        let told = |words: [&str; 2]| words.iter().all(|word| said.contains(word));
        told([&format!("From {by} "), "nreachable"])
    });
}

#[test]
fn it_comes_from_the_address_of_the_host_that_cannot_send() {
    for implementation in [RINGTUN, Implementation::Ringtun { workers: 2, io: Io::Syscalls }] {
        let Some(site) = Site::new(implementation) else { return };
        for (to, own, lan) in [("10.99.0.9", "10.99.0.1", "192.168.7.1"), ("fd99::9", "fd99::1", "fd07::1")] {
            hears(&site.gateway, to, own);
            hears(&site.behind, to, lan);
        }
        // And where the tunnel is moved to.
        let cell = Host::namespace();
        site.gateway.run(&format!("ip link set {} netns {}", site.device.name, cell.name()));
        site.address(&cell);
        for (to, own) in [("10.99.0.9", "10.99.0.1"), ("fd99::9", "fd99::1")] {
            hears(&cell, to, own);
        }
    }
}

#[test]
fn without_raw_sockets_it_comes_from_the_destination() {
    let Some(site) = Site::new(Implementation::Hindered(&WITHOUT_RAW_SOCKETS)) else { return };
    for address in ["10.99.0.9", "fd99::9"] {
        hears(&site.gateway, address, address);
    }
}

#[test]
fn none_is_about_a_broadcast_or_multicast() {
    let Some(site) = Site::new(RINGTUN) else { return };
    let name = &site.device.name;
    site.gateway.run(&format!(
        "ip addr add 10.98.0.1/30 dev {name}; ip route add 224.0.0.0/4 dev {name}; ip -6 route add ff00::/8 dev {name} table local"
    ));
    hears(&site.gateway, "10.98.0.2", "10.98.0.1");
    let counter = |counter: &str| {
        let status = site.gateway.run(&format!("{} status {name} --all", ringtun().display()));
        let line = status.lines().find(|line| line.split_whitespace().next() == Some(counter));
        line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).unwrap_or(0)
    };
    let before = [counter("icmp_sent"), counter("tx_no_peer")];
    let group = format!("ff02::9%{name}");
    for to in ["-b 10.99.0.255", "-b 10.98.0.3", "224.9.9.9", &group] {
        let said = site.gateway.run(&format!("ping -n -c 2 -i 0.2 -W 1 {to} 2>&1 || true"));
        assert!(said.contains("2 packets transmitted") && !said.contains("nreachable"), "{to}: {said}");
    }
    let after = [counter("icmp_sent"), counter("tx_no_peer")];
    assert!(after[1] >= before[1] + 8, "all eight came to the tunnel: {before:?} {after:?}");
    assert_eq!(after[0], before[0], "about none of them");
    // A host that takes the address of a broadcast that is no more hears of it again.
    site.gateway.run(&format!("ip addr del 10.98.0.1/30 dev {name}; ip addr add 10.98.0.1/24 dev {name}"));
    hears(&site.gateway, "10.98.0.3", "10.98.0.1");
}
