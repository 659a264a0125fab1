//! Changes in place.

use super::*;
use crate::gateway::control::{DeviceState, PeerState};

const FILE: &str = "\
# the office
[Interface]
Address   = 192.168.96.1/24   # ours
listenport= 4500
PrivateKey = yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=
PostUp = echo up

# Name = laptop
[Peer]
PublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=
AllowedIPs = 192.168.96.2/32   # its address
AllowedIPs = 10.0.0.0/8
Endpoint = vpn.example.org:51820

# the one upstairs
[Peer]
# Name = desk
PublicKey = TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=
AllowedIPs = 192.168.96.3/32
Endpoint = 192.0.2.7:51820 # static
# end";

fn key(text: &str) -> PublicKey {
    PublicKey::from_base64(text).unwrap()
}

fn device(text: &str) -> DeviceState {
    let config = config(text);
    DeviceState {
        private_key: config.interface.private_key.clone(),
        listen_port: config.interface.listen_port.unwrap_or(0),
        fwmark: config.interface.fwmark.unwrap_or(0),
        peers: config
            .peers
            .iter()
            .map(|peer| PeerState {
                preshared_key: peer.preshared_key.clone(),
                endpoint: peer.endpoint.as_ref().and_then(|at| Some((at.address()?, at.port).into())),
                persistent_keepalive: peer.persistent_keepalive.unwrap_or(0),
                allowed_ips: peer.allowed_ips.clone(),
                ..PeerState::new(peer.public_key)
            })
            .collect(),
    }
}

fn saved(text: &str, device: &DeviceState) -> String {
    let mut document = Document::new(text.as_bytes());
    document.save(&Runtime { device, addresses: None, mtu: None }).unwrap();
    String::from_utf8(document.bytes().to_vec()).unwrap()
}

#[test]
fn saving_what_stands_there_already_changes_nothing() {
    assert_eq!(saved(FILE, &device(FILE)), FILE);
}

#[test]
fn a_peers_changed_values_are_written_in_place() {
    let mut now = device(FILE);
    now.peers[1].endpoint = Some("198.51.100.9:1234".parse().unwrap());
    now.peers[1].persistent_keepalive = 25;
    let expected =
        FILE.replace("192.0.2.7:51820 # static\n", "198.51.100.9:1234 # static\nPersistentKeepalive = 25\n");
    assert_eq!(saved(FILE, &now), expected);
}

#[test]
fn a_changed_list_becomes_one_line() {
    let mut now = device(FILE);
    now.peers[0].allowed_ips = vec!["192.168.96.2/32".parse().unwrap(), "fd00::2/128".parse().unwrap()];
    let expected = FILE
        .replace("AllowedIPs = 192.168.96.2/32   # its address\n", "")
        .replace("AllowedIPs = 10.0.0.0/8", "AllowedIPs = 192.168.96.2/32, fd00::2/128");
    assert_eq!(saved(FILE, &now), expected);
}

#[test]
fn an_endpoint_by_name_stays_by_name() {
    let mut now = device(FILE);
    now.peers[0].endpoint = Some("203.0.113.1:51820".parse().unwrap());
    assert_eq!(saved(FILE, &now), FILE);
}

#[test]
fn a_peer_that_is_gone_goes_with_its_comments_and_no_others() {
    let mut now = device(FILE);
    now.peers.remove(0);
    let start = FILE.find("# Name = laptop").unwrap();
    let end = FILE.find("# the one upstairs").unwrap();
    assert_eq!(saved(FILE, &now), [&FILE[..start], &FILE[end..]].concat());
}

#[test]
fn a_new_peer_comes_last() {
    let mut now = device(FILE);
    let mut new = PeerState::new(PublicKey([7; 32]));
    new.allowed_ips.push("192.168.96.9/32".parse().unwrap());
    now.peers.push(new);
    let section =
        format!("\n\n[Peer]\nPublicKey = {}\nAllowedIPs = 192.168.96.9/32\n", PublicKey([7; 32]).to_base64());
    assert_eq!(saved(FILE, &now), [FILE, &section].concat());
}

#[test]
fn the_interfaces_values_are_written_in_place_added_and_removed() {
    let mut now = device(FILE);
    now.listen_port = 4501;
    now.fwmark = 51820;
    now.private_key = None;
    let expected = FILE
        .replace("listenport= 4500", "listenport= 4501")
        .replace("PrivateKey = yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=\n", "")
        .replace("PostUp = echo up\n", "PostUp = echo up\nFwMark = 0xca6c\n");
    assert_eq!(saved(FILE, &now), expected);
}

#[test]
fn addresses_and_mtu_follow_the_interface() {
    let now = device(FILE);
    let mut document = Document::new(format!("[Interface]\nMTU = 1400\n{FILE}").as_bytes());
    let addresses = [Address { addr: "192.168.97.1".parse().unwrap(), len: 24 }];
    document.save(&Runtime { device: &now, addresses: Some(&addresses), mtu: Some(1380) }).unwrap();
    let text = String::from_utf8(document.bytes().to_vec()).unwrap();
    assert!(
        text.contains("MTU = 1380\n") && text.contains("Address   = 192.168.97.1/24   # ours\n"),
        "{text}"
    );
    assert_eq!(saved(FILE, &now), FILE, "MTU is not written where there was none");
}

#[test]
fn an_added_peer_leaves_the_rest_and_keeps_the_files_line_ends() {
    let mut peer = Peer::new(key(PUBLIC));
    peer.name = Some("phone".into());
    for (text, ends) in [
        ("[Interface]\nMTU = 1400", "\n"),
        ("[Interface]\r\nMTU = 1400\r\n", "\r\n"),
        ("", "\n"),
        ("[Interface]\n\n", "\n"),
    ] {
        let mut document = Document::new(text.as_bytes());
        document.add_peer(&peer);
        let after = String::from_utf8(document.bytes().to_vec()).unwrap();
        assert!(after.starts_with(text), "{after:?}");
        assert!(
            after.ends_with(&format!("[Peer]{ends}# Name = phone{ends}PublicKey = {PUBLIC}{ends}")),
            "{after:?}"
        );
        assert_eq!(config(&after).peers, [peer.clone()]);
    }
}

#[test]
fn a_file_without_an_interface_section_gets_one() {
    let now = DeviceState { listen_port: 7, ..DeviceState::default() };
    assert_eq!(saved("# nothing\n", &now), "[Interface]\nListenPort = 7\n# nothing\n");
}

#[test]
fn of_a_peers_two_sections_one_remains() {
    let twice = format!(
        "[Peer]\nPublicKey = {PUBLIC}\nAllowedIPs = 10.0.0.0/8\n[Peer]\nPublicKey = {PUBLIC}\nAllowedIPs = 10.0.0.0/16\n"
    );
    let mut now = DeviceState::default();
    now.peers
        .push(PeerState { allowed_ips: vec!["10.0.0.0/16".parse().unwrap()], ..PeerState::new(key(PUBLIC)) });
    assert_eq!(saved(&twice, &now), format!("[Peer]\nPublicKey = {PUBLIC}\nAllowedIPs = 10.0.0.0/16\n"));
}
