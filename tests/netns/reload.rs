//! A tunnel that is up: `reload` and `save`, and how it follows names and paths.

use crate::implementation::{Device, RINGTUN, ringtun};
use crate::lab::eventually;
use crate::pair::key_pair;
use crate::updown::{DEFAULT, SOON, Site, peer};
use std::path::PathBuf;
use std::time::Duration;

#[test]
fn the_mtu_comes_from_the_route_to_the_endpoint_and_its_family() {
    let Some(site) = Site::new() else { return };
    let table = [
        (1500, "", "10.99.0.2", "1420"),
        (1500, "MTU = exact", "10.99.0.2", "1440"),
        (1454, "", "10.99.0.2", "1374"),
        (1454, "MTU = exact", "10.99.0.2", "1394"),
        (1454, "MTU = exact", "[fd99::2]", "1374"),
        (1454, "MTU = 1380", "10.99.0.2", "1380"),
    ];
    for (link, mtu, host, expected) in table {
        site.host.run(&format!("ip link set wire mtu {link}"));
        site.write(mtu, &peer(&format!("Endpoint = {host}:51820")));
        site.done("up");
        assert_eq!(site.mtu(), expected, "{link} {mtu} {host}");
        site.done("down");
    }
    site.host.run("ip link set wire mtu 1500 && ip route add 10.99.7.0/24 via 10.99.0.2 mtu 1400");
    site.write("# ClampMSS = true", &peer("Endpoint = 10.99.7.1:51820"));
    site.done("up");
    assert_eq!(site.mtu(), "1320", "a route's own MTU");
    let clamps_to = |mss: &str| site.host.run("nft list ruleset").contains(&format!("maxseg size set {mss}"));
    assert!(clamps_to("1280"));
    site.host.run("ip route change 10.99.7.0/24 via 10.99.0.2 mtu 1380");
    eventually("the MTU follows the route's", Duration::from_secs(30), || site.mtu() == "1300");
    eventually("and the MSS the MTU", Duration::from_secs(5), || clamps_to("1260"));
}

#[test]
fn the_tunnels_own_default_route_is_no_path_to_an_endpoint() {
    let Some(site) = Site::new() else { return };
    // Reached by the default route alone, the wire's until the tunnel has one.
    site.write("Address = 192.168.96.1/24", &peer(&DEFAULT.replace("10.99.0.2", "198.51.100.1")));
    site.done("up");
    site.done("reload");
    assert_eq!(site.mtu(), "1420");
    // What follows the path has looked meanwhile; and it does see the wire's.
    site.host.run("sleep 11");
    assert_eq!(site.mtu(), "1420");
    site.host.run("ip link set wire mtu 1454");
    eventually("the MTU follows the wire's", Duration::from_secs(30), || site.mtu() == "1374");
}

#[test]
fn reload_changes_what_changed_and_leaves_the_rest() {
    let Some(site) = Site::new() else { return };
    let before = site.look();
    let (stays, goes, comes) = (
        peer("AllowedIPs = 10.1.0.0/16"),
        peer("AllowedIPs = 10.2.0.0/16"),
        peer("AllowedIPs = 10.3.0.0/16, ::/0"),
    );
    site.write("Address = 192.168.96.1/24, fd96::1/64", &format!("{stays}{goes}"));
    site.done("up");
    let routes = |family: &str| site.host.run(&format!("ip {family} route show dev {} table all", site.name));
    let foreign = format!("ip route add 10.200.0.0/16 dev {}", site.name);
    site.host.run(&foreign);
    let alone = site.look();
    site.done("reload");
    assert_eq!(site.look(), alone, "a reload of nothing changed something");
    site.write("Address = 192.168.97.1/24, fd96::1/64\nMTU = 1300", &format!("{stays}{comes}"));
    site.done("reload");
    let now = routes("-4");
    for there in ["10.1.0.0/16", "10.3.0.0/16", "10.200.0.0/16", "192.168.97.0/24"] {
        assert!(now.contains(there), "{there}: {now}");
    }
    assert!(!now.contains("10.2.0.0/16") && !now.contains("192.168.96"), "{now}");
    assert!(routes("-6").contains("default table 51820"), "{}", routes("-6"));
    assert!(site.host.run("ip -6 rule").contains("lookup 51820"));
    assert_eq!(site.mtu(), "1300");
    let peers = site.host.run(&format!("wg show {} peers", site.name));
    assert_eq!(peers.lines().count(), 2);
    // And back: nothing of the default route stays.
    site.write("Address = 192.168.96.1/24, fd96::1/64", &format!("{stays}{goes}"));
    site.done("reload");
    assert_eq!(site.look(), alone);
    site.done("down");
    assert_eq!(site.look(), before);
}

/// What a reload may change: the host, the device and the notes of what is to be undone.
fn whole(site: &Site) -> String {
    let name = &site.name;
    site.look()
        + &site.host.run(&format!("wg show {name} dump; cat /run/ringtun/{name}"))
        + &site.valid_mark()
}

#[test]
fn a_reload_that_fails_half_way_leaves_everything_as_it_was() {
    let Some(site) = Site::new() else { return };
    site.host.run("ip route add 10.7.0.0/16 dev wire && ip route add default dev wire table 4660");
    let holder = "import socket,time; s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.bind((\"\",4500)); time.sleep(90)";
    let _port = site.host.start("python3", &["-c", holder]);
    eventually("the port is taken", SOON, || site.host.run("ss -Hlun").contains(":4500"));
    let (stays, goes) = (key_pair().1, peer("AllowedIPs = 10.2.0.0/16, fd02::/32"));
    let stays = |more: &str| format!("[Peer]\nPublicKey = {stays}\nAllowedIPs = 10.1.0.0/16{more}\n");
    let old = "Address = 192.168.96.1/24, 192.168.95.1/24, fd96::1/64";
    let other = "Address = 192.168.97.1/24, 192.168.95.1/24, fd97::1/64\nMTU = 1300";
    let comes = |prefix: &str| {
        let comes = peer(&format!("AllowedIPs = 10.3.0.0/16, {prefix}, fd03::/32"));
        stays(", 10.4.0.0/16\nPersistentKeepalive = 7\nEndpoint = 10.99.0.2:7") + &comes
    };
    let cases = [
        ("a route that is another's", other.to_owned(), comes("10.7.0.0/16"), "route add 10.7.0.0/16"),
        (
            "a route, and a mark",
            format!("{other}\nFwMark = 0x12"),
            comes("10.7.0.0/16"),
            "route add 10.7.0.0",
        ),
        ("a default route in a table", format!("{other}\nFwMark = 0x1234"), comes("0.0.0.0/0"), "table 4660"),
        ("an address that cannot be", format!("{other}, ff02::9/64"), comes("10.8.0.0/16"), "ff02::9/64"),
        (
            "a port that is taken",
            format!("{other}\nListenPort = 4500"),
            comes("10.8.0.0/16"),
            "ListenPort 4500",
        ),
        ("an MTU that cannot be", other.replace("1300", "60"), comes("10.8.0.0/16"), "60"),
    ];
    for first in ["AllowedIPs = 10.9.0.0/16", "AllowedIPs = ::/0, 10.9.0.0/16", DEFAULT_V4] {
        site.write(old, &format!("{}{goes}{}", stays(""), peer(first)));
        site.done("up");
        site.host.run(&format!("ip route add 10.200.0.0/16 via 192.168.96.7 dev {}", site.name));
        let before = whole(&site);
        for (case, interface, peers, why) in &cases {
            site.write(interface, peers);
            let said = site.refused("reload");
            assert!(said.contains(why), "{case}: {said}");
            assert_eq!(whole(&site), before, "{case} ({first}): {said}");
        }
        site.write(old, &format!("{}{goes}{}", stays(""), peer(first)));
        site.done("down");
    }
}

const DEFAULT_V4: &str = "AllowedIPs = 0.0.0.0/0, 10.9.0.0/16";

/// An nft(8) of the site's own: it does `first` when it is first given rules after [`first_again`], and then as it should.
fn own_nft(site: &Site, first: &str) {
    use std::os::unix::fs::PermissionsExt;
    let (program, marker) = (site.directory.join("nft"), site.directory.join("first").display().to_string());
    let script = format!(
        "#!/bin/sh\nif [ \"$1\" = -f ] && [ ! -e {marker} ]; then touch {marker}; {first}; fi\n\
         PATH=/usr/sbin:/sbin:/usr/bin:/bin exec nft \"$@\"\n"
    );
    std::fs::write(&program, script).expect("a program");
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).expect("its mode");
}

fn first_again(site: &Site) {
    let _ = std::fs::remove_file(site.directory.join("first"));
}

/// The commands of a reload that finds [`own_nft`].
fn reload_with_own_nft(site: &Site) -> String {
    let (directory, program, file) = (site.directory.display(), ringtun(), site.file());
    format!("PATH={directory}:$PATH exec {} reload {} 2>&1", program.display(), file.display())
}

#[test]
fn a_signal_in_the_middle_of_a_reload_leaves_everything_as_it_was() {
    let Some(site) = Site::new() else { return };
    own_nft(&site, "sleep 2");
    let stays = peer("AllowedIPs = 10.1.0.0/16");
    site.write("Address = 192.168.96.1/24", &stays);
    site.done("up");
    let before = whole(&site);
    site.write("Address = 192.168.97.1/24", &format!("{stays}{}", peer("AllowedIPs = 0.0.0.0/0")));
    let mut reload = site.host.start("sh", &["-c", &reload_with_own_nft(&site)]);
    eventually("nft runs", SOON, || site.directory.join("first").exists());
    reload.signal("TERM");
    let status = reload.wait(SOON).expect("it ends");
    assert!(status.code() == Some(1) && reload.said().contains("interrupted"), "{}", reload.said());
    assert_eq!(whole(&site), before, "{}", reload.said());
}

#[test]
fn a_reload_whose_packet_filter_fails_leaves_everything_as_it_was() {
    let Some(site) = Site::new() else { return };
    own_nft(&site, "exit 9");
    let stays = peer("AllowedIPs = 10.1.0.0/16");
    let address = "Address = 192.168.96.1/24, fd96::1/64";
    let transitions = [
        (address, "", "Address = 192.168.97.1/24", "AllowedIPs = 0.0.0.0/0"),
        (address, "AllowedIPs = 0.0.0.0/0", "Address = 192.168.97.1/24", "AllowedIPs = 0.0.0.0/0"),
        (
            address,
            "AllowedIPs = 0.0.0.0/0",
            "Address = fd97::1/64\nFwMark = 7",
            "AllowedIPs = ::/0, 0.0.0.0/0",
        ),
        ("# ClampMSS = true", "", "# ClampMSS = true\nMTU = 1300", ""),
    ];
    for (old, old_peer, new, new_peer) in transitions {
        site.write(old, &format!("{stays}{}", peer(old_peer)));
        site.done("up");
        let before = whole(&site);
        site.write(new, &format!("{stays}{}", peer(new_peer)));
        first_again(&site);
        let said = site.host.try_run(&reload_with_own_nft(&site)).expect_err("nft fails");
        assert!(said.contains("nft -f -"), "{said}");
        assert_eq!(whole(&site), before, "{new} {new_peer}: {said}");
        // And now that nft works, it can be had after all.
        site.done("reload");
        site.done("down");
    }
}

#[test]
fn after_a_reload_the_host_is_as_if_the_tunnel_had_come_up_so() {
    let Some(site) = Site::new() else { return };
    let stays = peer("AllowedIPs = 10.1.0.0/16");
    let address = "Address = 192.168.96.1/24, fd96::1/64";
    let all = "AllowedIPs = 0.0.0.0/0, ::/0";
    let transitions = [
        ("a longer network of IPv6", address, "", "Address = 192.168.96.1/16, fd96::1/48", ""),
        ("no address", address, "AllowedIPs = 10.3.0.0/16", "", "AllowedIPs = 10.3.0.0/16"),
        ("other addresses", address, all, "Address = 192.168.97.1/24, fd97::1/64", all),
        ("another mark", address, all, &format!("{address}\nFwMark = 0x77"), all),
        ("IPv4's default route alone", address, all, address, "AllowedIPs = 0.0.0.0/0"),
        ("no default route", address, all, address, "AllowedIPs = 10.3.0.0/16"),
        ("no IPv4 and all routes", address, all, "Address = fd96::1/64", all),
        (
            "hosts of the network that goes",
            address,
            "AllowedIPs = 192.168.96.7/32",
            "Address = 192.168.97.1/24",
            "AllowedIPs = 192.168.96.7/32",
        ),
        (
            "a first address of its network",
            "Address = 192.168.96.1/24, 192.168.96.2/24",
            "",
            "Address = 192.168.96.2/24",
            "",
        ),
    ];
    // Rules of another mark stand before those that they replace, and so have other numbers.
    let sorted = |text: String| {
        let number = |line: &str| {
            line.split_once(":\tfrom ").or(line.split_once(":\tnot ")).map(|(_, rest)| rest.to_owned())
        };
        let mut lines: Vec<String> =
            text.lines().map(|line| number(line).unwrap_or(line.to_owned())).collect();
        lines.sort_unstable();
        lines.join("\n")
    };
    for (case, old, old_peer, new, new_peer) in transitions {
        site.write(old, &format!("{stays}{}", peer(old_peer)));
        site.done("up");
        let last = peer(new_peer);
        site.write(new, &format!("{stays}{last}"));
        let said = site.done("reload");
        let reloaded = sorted(site.look());
        site.done("down");
        site.done("up");
        assert_eq!(reloaded, sorted(site.look()), "{case}: {said}");
        site.done("down");
    }
}

#[test]
fn reload_leaves_the_sessions_of_other_peers_alone() {
    let Some(site) = Site::new() else { return };
    let (key, public_key) = key_pair();
    let far = Device::start(&site.neighbour, RINGTUN);
    let own = &site.public_key;
    let text = format!(
        "[Interface]\nPrivateKey = {key}\nListenPort = 51820\n[Peer]\nPublicKey = {own}\nAllowedIPs = 192.168.96.1/32\n"
    );
    let set = format!(
        "wg setconf {0} $FILE && ip addr add 192.168.96.2/24 dev {0} && ip link set {0} up",
        far.name
    );
    site.neighbour.try_run_with_file(&text, &set).expect("the other end");
    let stays = format!(
        "[Peer]\nPublicKey = {public_key}\nAllowedIPs = 192.168.96.2/32\nEndpoint = 10.99.0.2:51820\n"
    );
    site.write("Address = 192.168.96.1/24", &stays);
    site.done("up");
    site.host.run("ping -q -c 1 -w 20 192.168.96.2");
    let sessions =
        || site.host.run(&format!("wg show {} latest-handshakes; wg show {0} transfer", site.name));
    let before = sessions();
    site.write("Address = 192.168.96.1/24", &format!("{stays}{}", peer("AllowedIPs = 10.3.0.0/16")));
    site.done("reload");
    for line in before.lines() {
        assert!(sessions().contains(line), "{line} was in {before}, and is not in {}", sessions());
    }
    site.host.run("ping -q -c 1 -w 2 192.168.96.2");
}

#[test]
fn a_name_whose_address_changed_is_resolved_again() {
    let Some(site) = Site::new() else { return };
    let directory = PathBuf::from(format!("/etc/netns/{}", site.host.name()));
    std::fs::create_dir_all(&directory).expect("a directory for the namespace");
    let hosts = |address: &str| {
        std::fs::write(directory.join("hosts"), format!("{address} gateway.test\n")).expect("its hosts");
    };
    hosts("10.99.0.9");
    site.write("", &peer("AllowedIPs = 10.1.0.0/16\nEndpoint = gateway.test:51820\nPersistentKeepalive = 1"));
    site.done("up");
    let endpoint = || site.host.run(&format!("wg show {} endpoints", site.name));
    assert!(endpoint().contains("10.99.0.9:51820"), "{}", endpoint());
    hosts("10.99.0.2");
    eventually("the peer is looked for where it is now", Duration::from_secs(60), || {
        endpoint().contains("10.99.0.2:51820")
    });
    let _ = std::fs::remove_dir_all(&directory);
}

#[test]
fn save_keeps_comments_and_takes_up_what_changed() {
    let Some(site) = Site::new() else { return };
    let known = peer("# Name = laptop\nAllowedIPs = 10.1.0.0/16 # its network");
    site.write("Address = 192.168.96.1/24\nListenPort = 4500\n# kept", &known);
    site.done("up");
    let as_written = site.read();
    site.done("save");
    assert_eq!(site.read(), as_written, "nothing changed, and yet it was written otherwise");
    let other = key_pair().1;
    site.host.run(&format!("wg set {} listen-port 4501 peer {other} allowed-ips 10.2.0.0/16", site.name));
    site.host.run(&format!("ip addr add 192.168.98.1/24 dev {}", site.name));
    site.done("save");
    let saved = site.read();
    for line in
        ["ListenPort = 4501", "# kept", "# Name = laptop", "# its network", "192.168.98.1/24", other.as_str()]
    {
        assert!(saved.contains(line), "{line}: {saved}");
    }
    let mode = site.host.run(&format!("stat -c %a {}", site.file().display()));
    assert_eq!(mode.trim(), "600");
    // SaveConfig does the same when the tunnel goes.
    site.write("SaveConfig = true\nListenPort = 4500", "");
    site.done("down");
    assert!(site.read().contains(&other));
}
