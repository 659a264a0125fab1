//! What `reload` and `peer add` see to on a tunnel that is up: the routes that its peers need are there, and what hooks or
//! people added stays.

use crate::implementation::ringtun;
use crate::lab::{find_program, skip};
use crate::updown::{DEFAULT, Site, peer};

const ADDRESS: &str = "Address = 192.168.96.1/24, fd96::1/64";

/// The interface that a packet to `to` leaves by.
fn way(site: &Site, to: &str) -> String {
    let told = site.host.try_run(&format!("ip -o route get {to}")).unwrap_or_else(|error| error);
    told.split_once("dev ")
        .map_or(told.clone(), |(_, rest)| rest.split(' ').next().unwrap_or_default().into())
}

/// `ringtun peer add NAME … --interface FILE`; all it said.
fn add(site: &Site, words: &str) -> Result<String, String> {
    let (program, file) = (ringtun(), site.file());
    site.host.try_run(&format!(
        "{} peer add {words} --interface {} --endpoint 10.99.0.1:4500 2>&1",
        program.display(),
        file.display()
    ))
}

#[test]
fn what_is_behind_a_peer_that_is_added_to_a_running_tunnel_is_routed_into_it() {
    let words = [
        ("office --behind 10.7.0.0/16,fd07::/32", "10.7.0.1 fd07::1"),
        ("roamer --address 10.200.0.5,fd20::5", "10.200.0.5 fd20::5"),
        ("exit --behind 0.0.0.0/0,::/0", "198.51.100.1 2001:db8::1"),
    ];
    for (word, there) in words {
        let Some(site) = Site::new() else { return };
        site.write(ADDRESS, &peer("AllowedIPs = 10.1.0.0/16"));
        site.done("up");
        for to in there.split(' ') {
            assert_eq!(way(&site, to), "wire", "before {word}");
        }
        add(&site, word).unwrap_or_else(|error| panic!("{error}"));
        for to in there.split(' ') {
            assert_eq!(way(&site, to), site.name, "{word}");
        }
        let (added, text) = (site.look(), site.read());
        site.done("reload");
        assert_eq!(site.look(), added, "{word}: a reload of nothing changed something");
        site.done("down");
        site.write_whole(&text);
        site.done("up");
        assert_eq!(site.look(), added, "{word}: it is not as if the tunnel had come up so");
    }
}

#[test]
fn a_peer_that_is_added_is_routed_where_the_table_says() {
    let Some(site) = Site::new() else { return };
    for (table, expected) in [("off", ""), ("1234", "table 1234")] {
        site.write(&format!("{ADDRESS}\nTable = {table}"), "");
        site.done("up");
        add(&site, "office --behind 10.7.0.0/16").unwrap_or_else(|error| panic!("{error}"));
        let routes = site.host.run("ip route show table all");
        let found = routes.lines().find(|line| line.starts_with("10.7.0.0/16"));
        assert_eq!(found.is_some(), !expected.is_empty(), "{routes}");
        assert!(found.unwrap_or_default().contains(expected), "{routes}");
        site.done("down");
    }
}

#[test]
fn a_peer_whose_route_is_anothers_is_told_of() {
    let Some(site) = Site::new() else { return };
    site.write(ADDRESS, "");
    site.done("up");
    site.host.run("ip route add 10.7.0.0/16 dev wire");
    let said = add(&site, "office --behind 10.7.0.0/16").expect_err("the route is another's");
    assert!(said.contains("10.7.0.0/16") && said.contains("ringtun reload"), "{said}");
}

#[test]
fn reload_brings_back_routes_rules_and_filters_that_somebody_deleted() {
    let deletions = [
        ("auto", "ip route del 10.7.0.0/16 dev NAME"),
        ("auto", "ip route del default dev NAME table 51820"),
        ("auto", "ip -6 rule del table main suppress_prefixlength 0"),
        ("auto", "ip rule del table main suppress_prefixlength 0; ip rule del not fwmark 51820 table 51820"),
        ("auto", "nft delete table ip wg-quick-NAME"),
        ("1234", "ip route del 10.7.0.0/16 dev NAME table 1234"),
    ];
    let Some(site) = Site::new() else { return };
    for (table, deletion) in deletions {
        site.write(&format!("{ADDRESS}\nTable = {table}"), &peer(DEFAULT));
        site.done("up");
        let (before, deletion) = (site.look(), deletion.replace("NAME", &site.name));
        site.host.run(&deletion);
        assert_ne!(site.look(), before, "{deletion}");
        let said = site.done("reload");
        let sorted = |text: String| {
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            lines.sort_unstable();
            lines
        };
        assert_eq!(sorted(site.look()), sorted(before), "{deletion}: {said}");
        site.done("down");
    }
}

/// What hooks may have made of the tunnel: the host, and the device.
fn whole(site: &Site) -> String {
    site.look() + &site.host.run(&format!("wg show {} dump | cut -f 1-4,8", site.name))
}

#[test]
fn reload_leaves_what_hooks_added_and_removes_what_up_added() {
    let Some(site) = Site::new() else { return };
    let known = peer("AllowedIPs = 10.7.0.0/16");
    let key = known.lines().find_map(|line| line.strip_prefix("PublicKey = ")).expect("a key");
    let hooks = [
        "ip address add fe80::1234/64 dev %i",
        "ip address add 172.20.5.1/32 peer 172.20.5.2/32 dev %i",
        "ip address add 192.168.95.1/24 dev %i",
        "ip address add 192.168.96.9/24 dev %i",
        "ip route add 10.60.0.0/16 dev %i",
        "ip link set mtu 1380 dev %i",
        &format!("wg genpsk | wg set %i peer {key} preshared-key /dev/stdin persistent-keepalive 33"),
    ];
    let hooks: String = hooks.iter().map(|hook| format!("\nPostUp = {hook}")).collect();
    site.write(&format!("{ADDRESS}{hooks}"), &known);
    site.done("up");
    let before = whole(&site);
    assert!(before.contains("172.20.5.1 peer 172.20.5.2"), "{before}");
    site.done("reload");
    assert_eq!(whole(&site), before, "a reload of nothing changed something");
    // Of the file's own, all that it has no more goes.
    site.write(
        &format!("Address = 192.168.97.1/24{hooks}"),
        &known.replace("10.7.0.0/16", "10.8.0.0/16\nPersistentKeepalive = 7"),
    );
    site.done("reload");
    let now = whole(&site);
    for stays in
        ["fe80::1234/64", "172.20.5.1 peer 172.20.5.2", "192.168.95.1/24", "192.168.96.9/24", "10.60.0.0/16"]
    {
        assert!(now.contains(stays), "{stays}: {now}");
    }
    for goes in ["192.168.96.1/24", "fd96::1", "10.7.0.0/16"] {
        assert!(!now.contains(goes), "{goes}: {now}");
    }
    for comes in ["192.168.97.1/24", "10.8.0.0/16", "\t7\n", "mtu 1380"] {
        assert!(now.contains(comes), "{comes}: {now}");
    }
    assert!(!now.contains("(none)\t(none)"), "the preshared key went: {now}");
    site.write(&format!("{ADDRESS}\nMTU = 1300{hooks}"), &known);
    site.done("reload");
    assert_eq!(site.mtu(), "1300", "a size that the file now asks for");
    let keepalive = site.host.run(&format!("wg show {} persistent-keepalive", site.name));
    assert!(keepalive.trim_end().ends_with("\toff"), "{keepalive}");
}

#[test]
fn a_tunnel_that_wg_quick_brought_up_is_reloaded_and_taken_down() {
    let Some(site) = Site::new() else { return };
    if find_program("wg-quick").is_none() || site.host.try_run("ip link add probe type wireguard").is_ok() {
        skip("wg-quick is not installed, or would take the kernel's own WireGuard");
        return;
    }
    let before = site.look();
    let known = peer(DEFAULT);
    site.write(ADDRESS, &known);
    let (binary, file) = (ringtun(), site.file());
    let quick = format!("timeout 60 wg-quick up {}", file.display());
    site.host.run(&format!("WG_QUICK_USERSPACE_IMPLEMENTATION={} {quick} 2>&1", binary.display()));
    let up = site.look();
    site.done("reload");
    assert_eq!(site.look(), up, "a reload of nothing changed something");
    site.write("Address = 192.168.97.1/24", &known.replace("10.7.0.0/16", "10.8.0.0/16"));
    site.done("reload");
    let now = site.look();
    for goes in ["192.168.96.1/24", "fd96::1", "10.7.0.0/16"] {
        assert!(!now.contains(goes), "{goes}: {now}");
    }
    site.done("down");
    assert_eq!(site.look(), before);
    assert!(site.is_gone());
}

#[test]
fn what_the_file_took_over_goes_when_the_file_has_it_no_more() {
    let Some(site) = Site::new() else { return };
    site.write(ADDRESS, &peer("AllowedIPs = 10.7.0.0/16"));
    site.done("up");
    let before = site.look();
    let text = site.read();
    site.host.run(&format!("ip address add 192.168.98.1/24 dev {}", site.name));
    site.done("save");
    assert!(site.read().contains("192.168.98.1/24"));
    site.write_whole(&text);
    site.done("reload");
    assert_eq!(site.look(), before);
    // Written by hand: there already when the file came to have it.
    site.host.run(&format!("ip address add 192.168.98.1/24 dev {}", site.name));
    site.write_whole(&text.replace("Address = ", "Address = 192.168.98.1/24, "));
    site.done("reload");
    site.write_whole(&text);
    site.done("reload");
    assert_eq!(site.look(), before);
}

#[test]
fn routes_follow_a_table_that_the_file_changes() {
    let Some(site) = Site::new() else { return };
    for (from, to) in [("auto", "1234"), ("1234", "auto"), ("auto", "off"), ("off", "auto"), ("1234", "1235")]
    {
        let peers = peer(DEFAULT);
        site.write(&format!("{ADDRESS}\nTable = {from}"), &peers);
        site.done("up");
        site.write(&format!("{ADDRESS}\nTable = {to}\nFwMark = 51820"), &peers);
        let said = site.done("reload");
        let reloaded = site.look();
        site.done("down");
        site.done("up");
        assert_eq!(reloaded, site.look(), "{from} to {to}: {said}");
        site.done("down");
    }
}
