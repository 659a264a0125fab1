//! The whole story: a server on UDP port 4500 behind PPPoE, a client that it takes in by `peer add`, full-size packets that no
//! one fragments, a client whose address changes, and nothing secret where others may read.

use crate::implementation::ringtun;
use crate::updown::{SOON, Site};
use std::path::PathBuf;

/// PPPoE's MTU, and two that a tunnel on it may have: the sum's, and one chosen smaller.
const LINK_MTU: u32 = 1454;
const TUNNEL_MTUS: [u32; 2] = [1394, 1380];
/// Headers of a ping: IPv4 and ICMP.
const PING_HEADERS: u32 = 28;

/// A client's file, as `peer add --for linux` printed it, beside the server's.
fn client_file(site: &Site, text: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let file = site.directory.join(format!("{}c.conf", site.name));
    std::fs::write(&file, text).expect("a file");
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).expect("its mode");
    file
}

/// What the client printed or was refused.
fn on_client(site: &Site, words: &str) -> Result<String, String> {
    site.neighbour.try_run(&format!("timeout 60 {} {words} 2>&1", ringtun().display()))
}

/// Fragments that both hosts made so far (RFC 4293, ipSystemStatsOutFragCreates).
fn fragments(site: &Site) -> u64 {
    let count = "awk '/^Ip:/ {if (!column) {for (i = 1; i <= NF; i++) if ($i == \"FragCreates\") column = i} else print $column}' /proc/net/snmp";
    [&site.host, &*site.neighbour]
        .iter()
        .map(|host| host.run(count).trim().parse::<u64>().expect("a count"))
        .sum()
}

fn pings(site: &Site, size: u32) -> bool {
    let whole = format!("ping -M do -c 3 -i 0.2 -W 5 -s {} 192.168.96.1", size - PING_HEADERS);
    site.neighbour.try_run(&whole).is_ok()
}

#[test]
fn a_client_behind_pppoe_is_taken_in_fills_its_packets_and_roams() {
    for mtu in TUNNEL_MTUS {
        let Some(site) = Site::new() else { return };
        for host in [&site.host, &*site.neighbour] {
            host.run(&format!("ip link set wire mtu {LINK_MTU}"));
        }
        let before = site.look();
        site.write(&format!("Address = 192.168.96.1/24\nListenPort = 4500\nMTU = {mtu}"), "");
        site.done("up");
        let add = format!(
            "peer add laptop --interface {} --endpoint 10.99.0.1:4500 --keepalive 25",
            site.file().display()
        );
        let config = site.host.run(&format!("{} {add} 2>/dev/null", ringtun().display()));
        assert!(site.read().contains("# Name = laptop"), "{}", site.read());
        assert!(config.contains(&format!("MTU = {mtu}")), "{config}");
        let file = client_file(&site, &config);
        on_client(&site, &format!("up {}", file.display())).unwrap_or_else(|error| panic!("{error}"));

        let fragmented = fragments(&site);
        assert!(pings(&site, mtu), "a packet of {mtu} bytes crosses whole");
        assert!(!pings(&site, mtu + 1), "a larger one is refused at its source");
        assert_eq!(fragments(&site), fragmented, "an outer packet was fragmented");

        // Another address, as a provider gives one: the server follows the first authentic packet.
        site.neighbour.run("ip addr del 10.99.0.2/24 dev wire && ip addr add 10.99.0.77/24 dev wire");
        site.host.run("ip route replace default via 10.99.0.77");
        assert!(pings(&site, mtu), "after the client moved");
        let endpoints = site.host.run(&format!("{} show {} endpoints", ringtun().display(), site.name));
        assert!(endpoints.contains("\t10.99.0.77:"), "{endpoints}");
        site.host.run("ping -c 2 -i 0.2 -W 5 192.168.96.2");

        let secrets = [site.private_key.as_str(), config.split("PrivateKey = ").nth(1).unwrap()[..44].trim()];
        assert_no_secret_in_arguments(&site, &secrets);
        assert_eq!(site.host.run(&format!("stat -c %a {}", site.file().display())).trim(), "600");

        on_client(&site, &format!("down {}", file.display())).unwrap_or_else(|error| panic!("{error}"));
        site.done("down");
        crate::lab::eventually("the tunnel is gone", SOON, || site.is_gone());
        site.host.run("ip route replace default via 10.99.0.2");
        assert_eq!(site.look(), before, "down leaves the host as it was");
    }
}

/// No process of either host names a key on its command line or in its environment.
fn assert_no_secret_in_arguments(site: &Site, secrets: &[&str]) {
    for host in [&site.host, &*site.neighbour] {
        let all = host.run(&format!(
            "for p in $(ip netns pids {}); do cat /proc/$p/cmdline /proc/$p/environ 2>/dev/null; done | tr '\\0' '\\n'",
            host.name()
        ));
        assert!(all.contains("ringtun"), "{all}");
        assert!(
            secrets.iter().all(|secret| !all.contains(secret)),
            "a key stands in a process's arguments or environment"
        );
    }
}

#[test]
fn what_peer_add_prints_for_openbsd_is_what_ifconfig_takes() {
    let Some(site) = Site::new() else { return };
    site.write("Address = 192.168.96.1/24\nListenPort = 4500", "");
    let add = format!(
        "{} peer add puffy --for openbsd --interface {} --endpoint vpn.example.net:4500 --keepalive 25 --psk 2>/dev/null",
        ringtun().display(),
        site.file().display()
    );
    let text = site.host.run(&add);
    for part in [
        "ifconfig wg0 create wgkey ",
        "wgendpoint vpn.example.net 4500",
        "wgpka 25",
        "wgpsk ",
        "wgaip 192.168.96.0/24",
        "/etc/hostname.wg0",
        "inet 192.168.96.2 255.255.255.0",
        "set skip on wg0",
    ] {
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }
}
