use super::*;
use crate::crypto::x25519::{PrivateKey, PublicKey};
use std::time::Duration;

fn peer(byte: u8, handshake: u64) -> PeerState {
    PeerState { last_handshake: Duration::from_secs(handshake), ..PeerState::new(PublicKey([byte; 32])) }
}

fn view() -> View {
    let full = PeerState {
        preshared_key: Some(SharedSecret([9; 32])),
        endpoint: Some("192.0.2.1:4500".parse().unwrap()),
        allowed_ips: vec!["10.0.0.0/8".parse().unwrap(), "::1:0/112".parse().unwrap()],
        rx_bytes: 1_583_350,
        tx_bytes: 12,
        persistent_keepalive: 25,
        ..peer(2, 937)
    };
    let device = DeviceState {
        private_key: Some(PrivateKey::from_bytes([7; 32])),
        listen_port: 4500,
        fwmark: 0xca6c,
        peers: vec![peer(1, 0), full],
    };
    View { name: "wg0".into(), device, now: 1000, ..View::default() }
}

const PLAIN: Paint = Paint { colours: false };

#[test]
fn the_peer_with_the_latest_handshake_comes_first_and_secrets_are_hidden() {
    let text = pretty(&view(), PLAIN, false);
    let expected = "  private key: (hidden)\n  listening port: 4500\n  fwmark: 0xca6c\n\n\
        peer: AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=\n  preshared key: (hidden)\n  endpoint: 192.0.2.1:4500\n  \
        allowed ips: 10.0.0.0/8, ::0.1.0.0/112\n  latest handshake: 1 minute, 3 seconds ago\n  \
        transfer: 1.51 MiB received, 12 B sent\n  persistent keepalive: every 25 seconds\n\n\
        peer: AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\n  allowed ips: (none)\n";
    assert!(text.starts_with("interface: wg0\n  public key: "), "{}", *text);
    assert!(text.ends_with(expected), "{}", *text);
}

#[test]
fn names_and_owners_stand_in_the_verbose_form_alone() {
    let mut view = view();
    let key = PublicKey([2; 32]).to_base64();
    let plain = pretty(&view, PLAIN, true);
    view.names.insert(key.clone(), "laptop".into());
    let owner =
        Owner { public_key: key.clone(), worker: 3, connected_ms: None, endpoint: None, memory: None };
    view.owners.insert(key, owner);
    assert_eq!(*pretty(&view, PLAIN, false), *plain);
    assert!(pretty(&view, PLAIN, true).contains("\n  name: laptop\n  owner: worker 3\n"));
    let json = json(&view);
    assert_eq!((json.peers[1].name.as_deref(), json.peers[1].owner), (Some("laptop"), Some(3)));
    assert_eq!((&json.private_key, json.peers[1].has_preshared_key), (&None, true));
}

#[test]
fn keys_are_revealed_on_demand_only() {
    let mut view = view();
    let secret = view.device.private_key.as_ref().unwrap().to_base64();
    for text in [pretty(&view, PLAIN, true), Zeroizing::new(serde_json::to_string(&json(&view)).unwrap())] {
        assert!(!text.contains(secret.as_str()));
    }
    view.reveal = true;
    for text in [pretty(&view, PLAIN, true), Zeroizing::new(serde_json::to_string(&json(&view)).unwrap())] {
        assert!(text.contains(secret.as_str()));
    }
}

#[test]
fn addresses_are_written_as_the_c_library_does() {
    let cases = [
        ("::", "::"),
        ("::1", "::1"),
        ("::ffff", "::ffff"),
        ("::1:0", "::0.1.0.0"),
        ("::ffff:1.2.3.4", "::ffff:1.2.3.4"),
        ("fd00::1:0:0:2", "fd00::1:0:0:2"),
        ("1:0:2:3:4:5:6:7", "1:0:2:3:4:5:6:7"),
    ];
    for (given, written) in cases {
        assert_eq!(address(given.parse().unwrap()), written);
    }
    assert_eq!(endpoint("[fe80::1%1]:7".parse().unwrap()), "[fe80::1%lo]:7");
    assert_eq!(endpoint("[2001:db8::1%1]:7".parse().unwrap()), "[2001:db8::1%1]:7");
}

#[test]
fn colours_follow_the_mode_and_the_terminal() {
    for (mode, terminal, colours) in [
        (Some("always"), false, true),
        (Some("never"), true, false),
        (None, true, true),
        (Some("x"), false, false),
    ] {
        assert_eq!(Paint::chosen(mode, false, terminal).colours, colours);
        assert_eq!(Paint::chosen(mode, true, terminal).colours, mode == Some("always"));
    }
    assert!(!pretty(&view(), PLAIN, true).contains('\x1b'));
    assert!(
        pretty(&view(), Paint { colours: true }, false)
            .starts_with("\x1b[0m\x1b[32m\x1b[1minterface\x1b[0m: ")
    );
}

#[test]
fn a_configuration_without_peers_ends_with_an_empty_line() {
    let mut view = view();
    assert!(showconf(&view).contains("FwMark = 0xca6c\nPrivateKey = "));
    assert!(showconf(&view).ends_with("Endpoint = 192.0.2.1:4500\nPersistentKeepalive = 25\n"));
    view.device.peers.clear();
    assert!(showconf(&view).ends_with("=\n\n"));
}
