use super::*;

const HERE: &str = "[Interface]\nAddress = 192.168.96.1/24, fd00:96::1/64\nListenPort = 4500\nMTU = 1380\n\
    PrivateKey = yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=\n\
    [Peer]\n# Name = laptop\nPublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\nAllowedIPs = 192.168.96.2/32, fd00:96::2/128\n";

fn config() -> Config {
    crate::gateway::config::Document::new(HERE.as_bytes()).parse().unwrap().0
}

fn invitation(name: &str) -> Invitation {
    Invitation {
        name: name.into(),
        private_key: PrivateKey::from_bytes([9; 32]),
        preshared_key: Some(SharedSecret([5; 32])),
        endpoint: Some(HostPort::parse("vpn.example.org:4500").unwrap()),
        keepalive: Some(25),
        allowed_ips: Vec::new(),
        behind: Vec::new(),
        addresses: Vec::new(),
        dns: Vec::new(),
        dns_search: Vec::new(),
        mtu: None,
    }
}

fn own_key() -> PublicKey {
    config().interface.private_key.unwrap().public()
}

#[test]
fn both_ends_know_each_other_and_share_the_preshared_key() {
    let ends = introduce(&config(), own_key(), invitation("phone")).unwrap();
    assert_eq!(ends.here.name.as_deref(), Some("phone"));
    assert_eq!(ends.here.public_key, PrivateKey::from_bytes([9; 32]).public());
    assert_eq!(
        ends.here.allowed_ips,
        ["192.168.96.3/32".parse().unwrap(), "fd00:96::3/128".parse().unwrap()]
    );
    assert_eq!(ends.here.endpoint, None);
    let there = &ends.there.peers[0];
    assert_eq!(there.public_key, own_key());
    assert_eq!(there.preshared_key, ends.here.preshared_key);
    assert_eq!(there.allowed_ips, ["192.168.96.0/24".parse().unwrap(), "fd00:96::/64".parse().unwrap()]);
    assert_eq!(
        ends.there.interface.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["192.168.96.3/24", "fd00:96::3/64"]
    );
    assert_eq!(ends.there.interface.mtu, Some(Mtu::Bytes(1380)));
}

#[test]
fn the_new_peers_private_key_is_not_in_this_ends_section() {
    let ends = introduce(&config(), own_key(), invitation("phone")).unwrap();
    let private = PrivateKey::from_bytes([9; 32]).to_base64();
    assert!(!ends.here.print().contains(private.as_str()));
    assert!(ends.there.print().contains(private.as_str()));
    assert!(!format!("{ends:?}").contains(private.as_str()));
}

#[test]
fn a_name_stands_for_one_peer() {
    assert!(
        introduce(&config(), own_key(), invitation("laptop")).unwrap_err().to_string().contains("already")
    );
    assert!(introduce(&config(), own_key(), invitation("a\nb")).is_err());
    assert!(introduce(&config(), own_key(), invitation(" ")).is_err());
}

#[test]
fn a_chosen_address_must_be_free() {
    let mut wish = invitation("phone");
    wish.addresses = vec!["192.168.96.77".parse().unwrap()];
    let ends = introduce(&config(), own_key(), wish).unwrap();
    assert_eq!(ends.there.interface.addresses[0].to_string(), "192.168.96.77/24");
    let mut wish = invitation("phone");
    wish.addresses = vec!["192.168.96.2".parse().unwrap()];
    assert!(introduce(&config(), own_key(), wish).unwrap_err().to_string().contains("in use"));
}

#[test]
fn networks_behind_the_peer_are_routed_to_it() {
    let mut wish = invitation("office");
    wish.behind = vec!["10.7.0.0/16".parse().unwrap()];
    let ends = introduce(&config(), own_key(), wish).unwrap();
    assert!(ends.here.allowed_ips.contains(&"10.7.0.0/16".parse().unwrap()));
}

#[test]
fn a_tunnel_without_a_network_says_what_to_do() {
    let mut narrow = config();
    narrow.interface.addresses.retain(|address| address.addr.is_ipv4());
    narrow.interface.addresses[0].len = 32;
    assert!(
        introduce(&narrow, own_key(), invitation("phone")).unwrap_err().to_string().contains("--address")
    );
    let mut full = config();
    full.interface.addresses[0].len = 30;
    assert!(
        introduce(&full, own_key(), invitation("phone"))
            .unwrap_err()
            .to_string()
            .contains("no address is left in 192.168.96.0/30")
    );
}
