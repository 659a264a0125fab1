//! Hosts and interfaces without IPv6. What works without it is set up, and what does not is reported with the remedy.

use crate::implementation::ringtun;
use crate::lab::find_program;
use crate::updown::{Site, peer};

const ADDRESS: &str = "Address = 192.168.96.1/24, fd96::1/64";
const V4: &str = "AllowedIPs = 10.7.0.0/16";

#[test]
fn an_mtu_below_ipv6s_least_leaves_the_interface_without_ipv6_as_wg_quick_does() {
    let Some(site) = Site::new() else { return };
    let peers = peer(V4);
    let with = |mtu: u32| site.write(&format!("{ADDRESS}\nMTU = {mtu}"), &peers);
    with(1200);
    let said = site.done("up");
    assert!(said.contains("1280"), "{said}");
    let small = site.look();
    assert!(small.contains("192.168.96.1/24") && !small.contains("fd96::1"), "{small}");
    assert!(site.done("check").contains("1280"));
    site.done("reload");
    assert_eq!(site.look(), small, "a reload of nothing changed something");
    with(1400);
    assert!(!site.done("check").contains("1280"));
    site.done("reload");
    let large = site.look();
    assert!(large.contains("fd96::1/64") && large.contains("mtu 1400"), "{large}");
    with(1200);
    let said = site.done("reload");
    assert!(said.contains("1280"), "{said}");
    assert_eq!(site.look(), small);
    site.done("down");
    if find_program("wg-quick").is_some() && site.host.try_run("ip link add probe type wireguard").is_err() {
        let quick = format!("timeout 60 wg-quick up {}", site.file().display());
        site.host.run(&format!("WG_QUICK_USERSPACE_IMPLEMENTATION={} {quick} 2>&1", ringtun().display()));
        assert_eq!(site.look(), small);
    }
}

#[test]
fn routes_of_ipv6_and_an_mtu_below_its_least_are_refused_together() {
    let Some(site) = Site::new() else { return };
    let before = site.look();
    for routes in ["10.7.0.0/16, fd07::/32", "0.0.0.0/0, ::/0"] {
        site.write(&format!("{ADDRESS}\nMTU = 1200"), &peer(&format!("AllowedIPs = {routes}")));
        let said = site.refused("up");
        assert!(said.contains("MTU 1200") && said.contains("1280") && said.contains("::/"), "{said}");
        assert_eq!(site.look(), before);
        assert!(site.is_gone());
    }
    site.write(&format!("{ADDRESS}\nMTU = 1200\nTable = off"), &peer("AllowedIPs = ::/0"));
    site.done("up");
    site.done("down");
    // And by reload, which then leaves all as it was.
    let peers = peer("AllowedIPs = fd07::/32");
    site.write(ADDRESS, &peers);
    site.done("up");
    let up = site.look();
    site.write(&format!("{ADDRESS}\nMTU = 1200"), &peers);
    assert!(site.refused("reload").contains("1280"));
    assert_eq!(site.look(), up);
}

#[test]
fn where_ipv6_is_disabled_the_error_says_so_and_ipv4_works() {
    let Some(site) = Site::new() else { return };
    site.host.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1");
    let before = site.look();
    let says = |said: &str| {
        let last = said.trim_end().lines().last().unwrap_or_default();
        assert!(last.contains("IPv6 is disabled") && last.contains(".disable_ipv6=0"), "{said}");
    };
    for (address, allowed) in [(ADDRESS, V4), ("Address = 192.168.96.1/24", "AllowedIPs = fd07::/32")] {
        site.write(address, &peer(allowed));
        says(&site.refused("up"));
        assert_eq!(site.look(), before);
        assert!(site.is_gone());
        assert!(site.done("check").contains("IPv6 is disabled"));
    }
    site.write("Address = 192.168.96.1/24", &peer(V4));
    assert!(!site.done("check").contains("IPv6"));
    site.done("up");
    site.write(ADDRESS, &peer(V4));
    says(&site.refused("reload"));
    // A hook may enable it for this tunnel alone.
    site.done("down");
    site.write(&format!("{ADDRESS}\nPreUp = sysctl -qw net.ipv6.conf.%i.disable_ipv6=0"), &peer(V4));
    site.done("up");
    assert!(site.look().contains("fd96::1/64"));
}
