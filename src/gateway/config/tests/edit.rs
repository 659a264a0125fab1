//! Changes of a file in place: what is not changed keeps its bytes.

use super::*;
use crate::gateway::control::{DeviceState, LimitState, PeerState};

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
                limits: LimitState { settings: peer.limits, ..LimitState::default() },
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
fn a_peers_changed_limits_are_written_below_its_name() {
    let mut now = device(FILE);
    now.peers[1].limits.settings = "in 20000000 625000".parse().unwrap();
    let limited = saved(FILE, &now);
    assert_eq!(limited, FILE.replace("# Name = desk\n", "# Name = desk\n# LimitIn = 20 Mbit/s\n"));
    assert_eq!(saved(&limited, &now), limited);
    assert_eq!(saved(&limited, &device(FILE)), FILE);
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
fn a_peer_that_is_gone_goes_with_its_values_below_a_mark_that_closes_it() {
    let text = format!(
        "### begin laptop ###\n[Peer]\nPublicKey = {PUBLIC}\n### end laptop ###\n\nAllowedIPs = 10.0.0.1/32\n# Name = x\n[Interface]\n"
    );
    assert_eq!(saved(&text, &DeviceState::default()), "# Name = x\n[Interface]\n");
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
    let mut peer = PeerConfig::new(key(PUBLIC));
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

/// Saves `text` as the file of a device without the peers of these keys.
fn without(text: &str, gone: &[&str]) -> String {
    let mut now = device(text);
    now.peers.retain(|peer| !gone.contains(&peer.public_key.to_base64().as_str()));
    saved(text, &now)
}

/// A peer's key, made from a number.
fn numbered(number: u8) -> String {
    PublicKey([number; 32]).to_base64()
}

/// A function that writes the section of a peer, by its name and a number, as some generator does.
type Style<'a> = &'a dyn Fn(&str, u8) -> String;

const HEAD: &str = "[Interface]\nListenPort = 1\n";

#[test]
fn a_peer_goes_with_the_marks_around_it_and_leaves_all_others_theirs() {
    let pivpn = |name: &str, number: u8| {
        let key = numbered(number);
        format!(
            "### begin {name} ###\n[Peer]\nPublicKey = {key}\nAllowedIPs = 10.6.0.{number}/32\n### end {name} ###\n"
        )
    };
    let nyr = |name: &str, number: u8| {
        let key = numbered(number);
        format!(
            "# BEGIN_PEER {name}\n[Peer]\nPublicKey = {key}\nAllowedIPs = 10.6.0.{number}/32\n# END_PEER {name}\n"
        )
    };
    let last = |name: &str, number: u8| {
        // A client called `end` cannot be told from a mark here.
        let name = name.replace("end", "dave");
        format!("# {name} begin\n[Peer]\nPublicKey={}\n\n# {name} end\n\n", numbered(number))
    };
    let styles: [Style<'_>; 3] = [&pivpn, &nyr, &last];
    for style in styles {
        let blocks = [style("alice", 2), style("bob.phone", 3), style("end", 4), style("carol-1", 5)];
        for kept in 0..16_u8 {
            let keeps = |at: usize| kept >> at & 1 == 1;
            let gone: Vec<String> =
                (0..4_u8).filter(|&at| !keeps(at.into())).map(|at| numbered(at + 2)).collect();
            let gone: Vec<&str> = gone.iter().map(String::as_str).collect();
            let expected: String = blocks
                .iter()
                .enumerate()
                .filter(|(at, _)| keeps(*at))
                .map(|(_, block)| block.as_str())
                .collect();
            assert_eq!(without(&(HEAD.to_owned() + &blocks.concat()), &gone), HEAD.to_owned() + &expected);
        }
    }
}

#[test]
fn a_peer_put_out_of_use_by_comments_is_nobodys_to_remove() {
    let block = |name: &str, number: u8| {
        format!("### begin {name} ###\n[Peer]\nPublicKey = {}\n### end {name} ###\n", numbered(number))
    };
    let off = "### begin off ###\n#[disabled] [Peer]\n#[disabled] PublicKey = x\n### end off ###\n";
    let plain = "#[Peer]\n#PublicKey = y\n#AllowedIPs = 10.6.0.9/32\n";
    let text = [HEAD, &block("alice", 2), off, &block("carol", 3), plain, &block("dave", 4)].concat();
    let gone = [numbered(2), numbered(3), numbered(4)];
    let gone: Vec<&str> = gone.iter().map(String::as_str).collect();
    assert_eq!(
        without(&text, &gone[..1]),
        [HEAD, off, &block("carol", 3), plain, &block("dave", 4)].concat()
    );
    assert_eq!(without(&text, &gone[1..]), [HEAD, &block("alice", 2), off, plain].concat());
    assert_eq!(without(&text, &gone), [HEAD, off, plain].concat());
}

#[test]
fn marks_around_several_peers_outlive_each_of_them() {
    let peer = |number| format!("[Peer]\nPublicKey = {}\n", numbered(number));
    let (begin, end) = ("# BEGIN ANSIBLE MANAGED BLOCK\n", "# END ANSIBLE MANAGED BLOCK\n");
    let text = [HEAD, begin, &peer(2), &peer(3), end].concat();
    assert_eq!(without(&text, &[&numbered(2)]), [HEAD, begin, &peer(3), end].concat());
    assert_eq!(without(&text, &[&numbered(3)]), [HEAD, begin, &peer(2), end].concat());
    assert_eq!(without(&text, &[&numbered(2), &numbered(3)]), [HEAD, begin, end].concat());
}

#[test]
fn a_heading_between_empty_lines_is_no_peers() {
    let peer = |name, number| {
        format!(
            "# {name}\n[Peer]\nPublicKey = {}\n#Endpoint = 192.0.2.1:1\n# seldom here\n\n",
            numbered(number)
        )
    };
    let heading = "# ---- phones ----\n\n";
    let text = [HEAD, "\n", &peer("alice", 2), heading, &peer("bob", 3)].concat();
    assert_eq!(without(&text, &[&numbered(2)]), [HEAD, "\n", heading, &peer("bob", 3)].concat());
    assert_eq!(without(&text, &[&numbered(3)]), [HEAD, "\n", &peer("alice", 2), heading].concat());
}

#[test]
fn a_value_put_out_of_use_stays_with_the_section_above() {
    let first = format!("[Peer]\nPublicKey = {}\n#AllowedIPs = 10.0.0.0/8\n", numbered(2));
    let second = format!("# bob\n[Peer]\nPublicKey = {}\n", numbered(3));
    let text = [HEAD, &first, &second].concat();
    assert_eq!(without(&text, &[&numbered(2)]), [HEAD, &second].concat());
    assert_eq!(without(&text, &[&numbered(3)]), [HEAD, &first].concat());
}

#[test]
fn a_link_local_endpoint_keeps_its_interfaces_name() {
    let text = format!("[Peer]\nPublicKey = {}\nEndpoint = [fe80::1%lo]:51820\n", numbered(2));
    let mut now = device(&text);
    now.peers[0].endpoint = Some(std::net::SocketAddrV6::new("fe80::1".parse().unwrap(), 51820, 0, 1).into());
    assert_eq!(saved(&text, &now), text);
    now.peers[0].endpoint = Some(std::net::SocketAddrV6::new("fe80::2".parse().unwrap(), 51820, 0, 1).into());
    assert_eq!(saved(&text, &now), text.replace("fe80::1", "fe80::2"));
    let bare = text.replace("Endpoint = [fe80::1%lo]:51820\n", "");
    assert_eq!(saved(&bare, &now), text.replace("fe80::1", "fe80::2"));
}

#[test]
fn an_endpoint_that_is_right_keeps_its_spelling() {
    let text = format!("[Peer]\nPublicKey = {}\nEndpoint = [2001:0DB8:0:0::1]:51820\n", numbered(2));
    let mut now = device(&text);
    now.peers[0].endpoint = Some("[2001:db8::1]:51820".parse().unwrap());
    assert_eq!(saved(&text, &now), text);
}
