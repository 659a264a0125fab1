//! A tunnel that is up: `reload` and `save`, and how it follows names and paths.

use crate::implementation::{Device, RINGTUN};
use crate::lab::eventually;
use crate::pair::key_pair;
use crate::updown::{DEFAULT, Site, peer};
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
    site.write("", &peer("Endpoint = 10.99.7.1:51820"));
    site.done("up");
    assert_eq!(site.mtu(), "1320", "a route's own MTU");
    site.host.run("ip route change 10.99.7.0/24 via 10.99.0.2 mtu 1380");
    eventually("the MTU follows the route's", Duration::from_secs(30), || site.mtu() == "1300");
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
