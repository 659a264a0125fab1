use super::*;
use crate::crypto::x25519::{PrivateKey, PublicKey, SharedSecret};
use crate::gateway::config::{Address, Config, HostPort, Interface, Mtu, PeerConfig};
use proptest::prelude::*;
use std::net::{Ipv4Addr, Ipv6Addr};

/// A line that makes a text a file of wg(4)'s.
const WG: &str = "wgport 1\n";
const KEY: &str = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";
const PEER: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";

fn read(text: &str) -> Config {
    parse(&format!("{text}\n{WG}")).unwrap().0
}

/// The numbers of the lines that are left out.
fn lost(text: &str) -> Vec<usize> {
    let (_, left_out) = parse(&format!("{text}\n{WG}")).unwrap();
    left_out.iter().map(|note| note.line).collect()
}

fn fails(text: &str) -> String {
    let errors = parse(text).unwrap_err();
    format!("{}: {}", errors[0].line, errors[0].message)
}

#[test]
fn several_words_may_stand_in_one_line() {
    let config = read(
        "# a comment\nwgkey yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk= wgport 4500 mtu 1380"
            .replace("4500", "1")
            .as_str(),
    );
    assert_eq!(config.interface.listen_port, Some(1));
    assert_eq!(config.interface.mtu, Some(Mtu::Bytes(1380)));
    assert!(config.interface.private_key.is_some());
}

#[test]
fn all_forms_of_an_address_are_read() {
    let forms = [
        ("inet 10.0.0.1 255.255.255.0", "10.0.0.1/24"),
        ("inet 10.0.0.1 255.255.255.0 10.0.0.255", "10.0.0.1/24"),
        ("inet 10.0.0.1 255.255.255.0 NONE mtu 1400", "10.0.0.1/24"),
        ("inet alias 10.0.0.1 0xffffff00", "10.0.0.1/24"),
        ("inet 10.0.0.1/24", "10.0.0.1/24"),
        ("inet 10.0.0.1 netmask 255.255.0.0 broadcast 10.0.255.255", "10.0.0.1/16"),
        ("10.0.0.1/24", "10.0.0.1/24"),
        ("inet6 fd00::1 64", "fd00::1/64"),
        ("inet6 alias fd00::1/48 up", "fd00::1/48"),
        ("inet6 fd00::1 prefixlen 56", "fd00::1/56"),
    ];
    for (line, expected) in forms {
        let (config, left_out) = parse(&format!("{WG}{line}")).unwrap();
        assert_eq!(
            config.interface.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
            [expected],
            "{line}"
        );
        assert!(left_out.is_empty(), "{line}: {left_out:?}");
    }
}

#[test]
fn a_peer_spoken_of_twice_is_one_peer() {
    let key = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
    let config = read(&format!(
        "wgpeer {key} wgaip 10.0.0.2/32 wgaip fd00::2/128\nwgpeer {key} wgendpoint fd01::1 51820 wgpka 25 wgdescr \"a b\""
    ));
    assert_eq!(config.peers.len(), 1);
    assert_eq!(config.peers[0].allowed_ips.len(), 2);
    assert_eq!(config.peers[0].endpoint.as_ref().unwrap().to_string(), "[fd01::1]:51820");
    assert_eq!(config.peers[0].name.as_deref(), Some("a b"));
}

#[test]
fn what_is_wrong_is_told_by_line() {
    assert!(fails("up\nwgkey nonsense").starts_with("2: wgkey: expected a key"));
    assert!(fails("wgaip 10.0.0.0/8").contains("after a wgpeer in the same line"));
    assert!(fails("wgport").contains("expected a value"));
    assert!(fails("wgfoo 1").contains("not known"));
    assert!(fails("description \"x").contains("quote"));
    assert!(!fails("wgkey yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmkX").contains("yAnz"));
}

#[test]
fn what_has_no_counterpart_is_reported_and_not_lost_silently() {
    let text = "rdomain 1\n!echo hello\nwgrtable 2\ninet autoconf\n!route add -inet 10.0.0.0/8 10.1.0.1\n\
        tunnel 10.9.0.1 10.9.0.2 mtu 1400\n-wgpeer x up; route add default 10.1.0.1\ninet 10.0.0.1 10.0.0.2";
    assert_eq!(lost(text), [1, 2, 3, 4, 5, 6, 7, 7, 8]);
    assert_eq!(read(text).interface.mtu, Some(Mtu::Bytes(1400)));
    assert_eq!(read(text).interface.addresses.len(), 1);
    let interface = Interface { post_up: vec!["x".into()], fwmark: Some(1), ..Interface::default() };
    assert_eq!(print(&Config { interface, peers: Vec::new() }).1.len(), 2);
}

#[test]
fn a_network_beyond_the_tunnel_gets_a_route_by_a_gateway_within_it() {
    let config = read(
        "inet 192.168.96.2/24\nwgpeer xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg= wgaip 192.168.96.0/24 wgaip 10.0.0.0/8 wgaip 0.0.0.0/0",
    );
    let (file, _) = print(&config);
    assert!(file.contains("!route add -inet 10.0.0.0/8 192.168.96.1\n"), "{}", *file);
    assert!(!file.contains("route add -inet 192.168.96.0/24"));
    assert!(!file.contains("route add -inet 0.0.0.0/0"));
    assert!(commands(&config, "wg1").contains("\nroute add -inet 10.0.0.0/8 192.168.96.1\n"));
}

#[test]
fn a_line_goes_on_behind_a_backslash_and_a_number_sign_begins_a_comment() {
    let config = read(&format!(
        "wgkey {KEY} # key of wg0\nwgpeer {PEER} \\\n\twgendpoint 192.0.2.1 51820 \\\n\twgaip 0.0.0.0/0 \\\n\twgaip ::/0 # mtu 1280\n\
         # wgpeer {KEY} \\\n wgaip 10.0.0.0/8\ninet 10.64.0.9/32 # laptop 192.168.1.5\nwgpeer {PEER} wgdescr 'a #1'"
    ));
    assert_eq!(config.peers.len(), 1);
    assert_eq!(config.peers[0].endpoint.as_ref().unwrap().to_string(), "192.0.2.1:51820");
    assert_eq!(config.peers[0].allowed_ips, ["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()]);
    assert_eq!(config.peers[0].name.as_deref(), Some("a #1"));
    assert_eq!(
        config.interface.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.64.0.9/32"]
    );
    assert_eq!(config.interface.mtu, None);
    assert!(fails("up \\\n wgfoo 1\nwgbar").starts_with("1: wgfoo"));
}

#[test]
fn a_route_that_no_allowed_ip_covers_is_reported() {
    let peer = format!("wgpeer {PEER} wgaip 10.0.0.0/24 wgaip fd00::/16");
    let with = |line: &str| lost(&format!("{line}\n{peer}"));
    for covered in [
        "!route add 10.0.0.128/25 10.0.0.9",
        "!route -qn add -inet6 fd00:1::/32 fd00::1",
        "inet 10.0.0.1/32\ndest 10.0.0.2",
    ] {
        assert!(with(covered).is_empty(), "{covered}");
    }
    for lost in [
        "!route add 198.51.100.0/24 10.0.0.9",
        "!route add default 10.0.0.1",
        "!route -n add 10.0.0.0/8 10.0.0.1",
    ] {
        assert_eq!(with(lost), [1], "{lost}");
    }
    assert_eq!(with("inet 10.9.0.1/32\ndest 10.9.0.2"), [2]);
}

#[test]
fn what_is_no_hostname_if_of_wg_is_recognised() {
    assert!(fails("# mine\n\n[Interface]\nPrivateKey = x\n").starts_with("3: this is a wg-quick file"));
    assert!(fails("[Peer]\n").contains("wg-quick"));
    assert!(fails("inet autoconf\n").contains("nothing of wg(4)"));
    assert!(fails("").contains("nothing of wg(4)"));
    assert!(fails("wgkey $(cat /etc/key)").contains("expected the value itself"));
}

#[test]
fn a_single_address_gets_its_routes_by_its_interface() {
    let config = read(&format!(
        "inet 10.64.0.9/32\ninet6 fd00::9/128\nwgpeer {PEER} wgendpoint 203.0.113.1 51820 wgaip 10.0.0.0/8 wgaip fd01::/16 wgaip 0.0.0.0/0"
    ));
    let (file, _) = print(&config);
    for line in [
        "!route add -inet 10.0.0.0/8 -iface 10.64.0.9",
        "!route add -inet6 fd01::/16 -iface fd00::9",
        "#!route add -inet -host 203.0.113.1 GATEWAY",
        "#!route add -inet 0.0.0.0/1 -iface 10.64.0.9",
        "#!route add -inet 128.0.0.0/1 -iface 10.64.0.9",
    ] {
        assert!(file.lines().any(|has| has == line), "no {line} in {}", *file);
    }
}

fn addresses() -> impl Strategy<Value = Address> {
    prop_oneof![
        (any::<u32>(), 0_u8..=32)
            .prop_map(|(bits, len)| Address { addr: Ipv4Addr::from_bits(bits).into(), len }),
        (any::<u128>(), 0_u8..=128)
            .prop_map(|(bits, len)| Address { addr: Ipv6Addr::from_bits(bits).into(), len }),
    ]
}

fn peers() -> impl Strategy<Value = PeerConfig> {
    let endpoint = prop::option::of((
        prop_oneof!["[a-z][a-z0-9-]{0,20}", Just("2001:db8::7".to_owned()), Just("192.0.2.9".to_owned())],
        any::<u16>(),
    ));
    let name = prop::option::of("[A-Za-z0-9#!'ä._][A-Za-z0-9#!'ä._ -]{0,20}[A-Za-z0-9]");
    let nonzero = |key: [u8; 32]| SharedSecret(key.map(|byte| byte | 1));
    (
        any::<[u8; 32]>(),
        prop::option::of(any::<[u8; 32]>()),
        prop::collection::vec(addresses(), 0..5),
        endpoint,
        prop::option::of(any::<u16>()),
        name,
    )
        .prop_map(move |(key, psk, allowed, endpoint, keepalive, name)| PeerConfig {
            name,
            preshared_key: psk.map(nonzero),
            allowed_ips: allowed.iter().map(Address::network).collect(),
            endpoint: endpoint.map(|(host, port)| HostPort { host, port }),
            persistent_keepalive: keepalive,
            ..PeerConfig::new(PublicKey(key))
        })
}

fn configs() -> impl Strategy<Value = Config> {
    let key = prop::option::of(any::<[u8; 32]>().prop_map(PrivateKey::from_bytes));
    let port = prop::option::of(1_u16..);
    let mtu = prop::option::of((68_u16..).prop_map(Mtu::Bytes));
    (key, port, mtu, prop::collection::vec(addresses(), 0..4), prop::collection::vec(peers(), 0..4)).prop_map(
        |(private_key, listen_port, mtu, addresses, peers)| Config {
            interface: Interface { private_key, listen_port, mtu, addresses, ..Interface::default() },
            peers,
        },
    )
}

proptest! {
    #[test]
    fn what_is_exported_is_imported_again(config in configs()) {
        let (file, left_out) = print(&config);
        prop_assert!(left_out.is_empty());
        // A configuration without anything of WireGuard's is none that can be imported.
        prop_assume!(config.interface.private_key.is_some() || config.interface.listen_port.is_some() || !config.peers.is_empty());
        let (again, left_out) = parse(&file).unwrap();
        prop_assert_eq!(again, config);
        prop_assert!(left_out.is_empty());
    }

    #[test]
    fn garbage_never_panics(text in "(wgkey|wgpeer|wgaip|wgendpoint|inet|inet6|alias|\"| |\n|!|#|[a-z0-9:./=]{0,6}){0,40}") {
        let _ = parse(&text);
    }
}
