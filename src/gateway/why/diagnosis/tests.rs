use super::super::facts::{BlockedChain, ForwardingFacts, SizeFacts};
use super::*;
use crate::device::events::DisconnectReason;
use crate::device::facts::DeviceFacts;
use crate::device::history::{Disconnection, History, RefusedMessage, Sighting};
use crate::device::status::Unbound;

const NOW: u64 = 1_700_000_000_000;
const OUR_KEY: &str = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";
const PEER_KEY: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";

fn endpoint() -> SocketAddr {
    "192.0.2.7:51820".parse().unwrap()
}

/// A tunnel that runs, with a peer that is not connected.
fn facts(peer: PeerFacts) -> Facts {
    Facts {
        interface: "wg0".into(),
        key: PEER_KEY.into(),
        name: Some("laptop".into()),
        in_file: Some(true),
        mtu: Some(1420),
        device: DeviceFacts {
            now_ms: NOW,
            up: true,
            public_key: Some(OUR_KEY.into()),
            listen_port: 4500,
            peer: Some(peer),
            ..DeviceFacts::default()
        },
        ..Facts::default()
    }
}

/// A peer with a known endpoint, to which three initiations went.
fn tried() -> PeerFacts {
    let sent = Some(Sighting { at_ms: NOW - 2000, address: endpoint() });
    let mut history = History::default();
    (history.sent, history.unanswered) = (sent, 3);
    PeerFacts { endpoint: Some(endpoint()), history, ..PeerFacts::default() }
}

fn connected_peer() -> PeerFacts {
    PeerFacts {
        endpoint: Some(endpoint()),
        connected_ms: Some(NOW - 60_000),
        last_handshake_ms: Some(NOW - 60_000),
        allowed_ips: vec!["10.0.0.2/32".into()],
        ..PeerFacts::default()
    }
}

#[track_caller]
fn only(facts: &Facts, kind: CauseKind, certain: bool, words: &[&str]) {
    let causes = causes(facts);
    assert_eq!(causes.iter().map(|cause| (cause.kind, cause.certain)).collect::<Vec<_>>(), [(kind, certain)]);
    let text = format!("{} -> {}", causes[0].found, causes[0].remedy);
    for word in words {
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[test]
fn a_healthy_peer_has_no_diagnosis() {
    let mut facts = facts(connected_peer());
    assert_eq!(causes(&facts), []);
    facts.sizes =
        Some(SizeFacts { address: "10.0.0.2".parse().unwrap(), small: 96, largest: 1420, mtu: 1420 });
    facts.forwarding = Some(ForwardingFacts { conversations: vec![conversation(9, 9)] });
    facts.input_blocked = Some(BlockedChain { found: "a chain".into(), remedy: "open it".into() });
    facts.device.peer.as_mut().unwrap().unanswered_data_ms = Some(9_000);
    assert_eq!(causes(&facts), [], "what passes shows that nothing is in the way");
}

#[test]
fn what_is_wrong_with_the_tunnel_itself_comes_before_its_peers() {
    let mut broken = facts(tried());
    broken.device.public_key = None;
    only(&broken, CauseKind::NoPrivateKey, true, &["ringtun genkey"]);
    broken.device.up = false;
    only(&broken, CauseKind::InterfaceDown, true, &["ip link set wg0 up"]);
    broken.device.unbound = Some(Unbound { port: 4500, error: "Address in use".into() });
    only(&broken, CauseKind::PortTaken, true, &["4500", "Address in use", "ss -ulpn"]);
    broken.device.peer = None;
    only(&broken, CauseKind::UnknownPeer, true, &["ringtun reload wg0"]);
    broken.in_file = Some(false);
    only(&broken, CauseKind::UnknownPeer, true, &["ringtun peer add"]);
}

#[test]
fn nothing_comes_back() {
    let facts = facts(tried());
    let words = ["3 initiations to 192.0.2.7:51820", "never answered", OUR_KEY, PEER_KEY, "--dport 51820"];
    only(&facts, CauseKind::NothingComesBack, false, &words);
}

#[test]
fn nothing_arrives_and_a_firewall_here_says_why() {
    let mut facts = facts(PeerFacts::default());
    only(&facts, CauseKind::NoEndpoint, false, &["nothing at all arrived", "UDP port 4500", OUR_KEY]);
    facts.anything_arrived = true;
    only(&facts, CauseKind::NoEndpoint, false, &["nothing of it arrived"]);
    facts.input_blocked = Some(BlockedChain {
        found: "chain inet filter input drops UDP to port 4500 (wg0)".into(),
        remedy: "open it: nft insert rule inet filter input udp dport 4500 accept".into(),
    });
    only(&facts, CauseKind::LocalFirewall, true, &["drops UDP to port 4500", "nft insert rule"]);
}

#[test]
fn a_wrong_key_at_either_side() {
    let stranger = |why, key: Option<&str>, from: &str| Stranger {
        from: from.parse().unwrap(),
        why,
        key: key.map(str::to_owned),
        count: 3,
        last_ms: NOW - 1000,
    };
    let mut facts = facts(tried());
    facts.device.strangers = vec![
        stranger(RefusalReason::UnknownKey, Some("other"), "203.0.113.9:1"),
        stranger(RefusalReason::UnknownKey, Some("theirs"), "192.0.2.7:9"),
    ];
    only(&facts, CauseKind::WrongKey, true, &["192.0.2.7:9", "PublicKey = theirs", PEER_KEY]);
    facts.device.strangers = vec![
        stranger(RefusalReason::WrongMac1, None, "192.0.2.7:9"),
        stranger(RefusalReason::UnknownKey, Some(PEER_KEY), "192.0.2.7:9"),
    ];
    only(&facts, CauseKind::WrongKey, true, &[&format!("PublicKey = {OUR_KEY}")]);
    // Whose address is not known may be any of those who are heard.
    facts.device.peer = Some(PeerFacts::default());
    only(&facts, CauseKind::WrongKey, false, &["another public key than this end's"]);
    facts.device.strangers[0].last_ms = NOW - 10 * RECENT_MS;
    only(&facts, CauseKind::NoEndpoint, false, &[]);
    // Strangers elsewhere are nothing to a peer whose address is known.
    facts.device.peer = Some(tried());
    facts.device.strangers = vec![stranger(RefusalReason::UnknownKey, Some("other"), "203.0.113.9:1")];
    only(&facts, CauseKind::NothingComesBack, false, &[]);
}

#[test]
fn preshared_keys_that_differ_are_seen_from_either_end() {
    let mut peer = tried();
    let why = RefusalReason::NotAuthentic;
    peer.history.refused_response = Some(RefusedMessage { at_ms: NOW, from: endpoint(), why });
    only(&facts(peer), CauseKind::PresharedKey, true, &["do not authenticate", "PresharedKey"]);
    let mut peer = tried();
    peer.history.answered = Some(Sighting { at_ms: NOW, address: endpoint() });
    peer.history.unused_answers = UNUSED_ANSWERS;
    only(&facts(peer.clone()), CauseKind::PresharedKey, false, &["2 times in a row", "do not arrive there"]);
    peer.history.unused_answers = 1;
    only(&facts(peer), CauseKind::NothingComesBack, false, &[]);
}

#[test]
fn a_clock_that_is_behind_its_last_handshake() {
    let mut peer = tried();
    let refused = RefusedMessage { at_ms: NOW, from: endpoint(), why: RefusalReason::Replayed };
    peer.history.refused_initiation = Some(refused);
    only(&facts(peer.clone()), CauseKind::Clock, true, &["clock was set back", "NTP"]);
    // One that is connected was started anew, and its packets do not come on the session that there is.
    let mut peer_before = PeerFacts { history: peer.history.clone(), ..connected_peer() };
    assert_eq!(causes(&facts(peer_before.clone())), [], "once may be a copy");
    peer_before.history.refused_initiations = REFUSED_INITIATIONS;
    only(&facts(peer_before.clone()), CauseKind::Clock, true, &[]);
    peer_before.last_data_ms = Some(NOW + 1);
    assert_eq!(causes(&facts(peer_before)), [], "what comes on the session shows that they are copies");
    // A copy of an earlier one is nobody's clock.
    peer.history.answered = Some(Sighting { at_ms: NOW + 1, address: endpoint() });
    only(&facts(peer), CauseKind::NothingComesBack, false, &[]);
}

#[test]
fn an_endpoint_that_leads_nowhere_into_the_tunnel_or_has_no_address() {
    let mut facts = facts(tried());
    facts.route = Some(RouteFacts::By("eth0".into()));
    only(&facts, CauseKind::NothingComesBack, false, &[]);
    facts.route = Some(RouteFacts::By("wg0".into()));
    only(&facts, CauseKind::EndpointInTunnel, true, &["192.0.2.7/32", "AllowedIPs"]);
    facts.route = Some(RouteFacts::None("Network is unreachable".into()));
    only(&facts, CauseKind::NoRoute, true, &["Network is unreachable"]);
    facts.route = None;
    let text = "vpn.example.org:51820".to_owned();
    let resolved = ResolvedName::None("Name or service not known".to_owned());
    facts.endpoint_name = Some(EndpointName { text: text.clone(), resolved });
    only(&facts, CauseKind::NameUnresolved, false, &[&text, "Name or service not known"]);
    facts.device.peer.as_mut().unwrap().endpoint = None;
    only(&facts, CauseKind::NameUnresolved, true, &[&text]);
    facts.endpoint_name =
        Some(EndpointName { text, resolved: ResolvedName::At("192.0.2.8:51820".parse().unwrap()) });
    only(&facts, CauseKind::NameMoved, true, &["192.0.2.8:51820", "ringtun reload wg0"]);
    facts.device.peer.as_mut().unwrap().endpoint = Some(endpoint());
    only(&facts, CauseKind::NameMoved, false, &["sends to 192.0.2.7:51820"]);
}

#[test]
fn what_a_peer_sends_from_an_address_that_is_not_its_own() {
    let mut peer = connected_peer();
    let sends = |source: &str| Some((NOW - 1000, source.parse().unwrap()));
    peer.refused_sources = 17;
    peer.history.refused_source = sends("192.168.1.5");
    let words = ["192.168.1.5", "17 so far", "10.0.0.2/32", "add 192.168.1.5/32"];
    only(&facts(peer.clone()), CauseKind::AllowedIps, true, &words);
    for odd in ["fe80::1", "169.254.3.4", "0.0.0.0", "::"] {
        peer.history.refused_source = sends(odd);
        assert_eq!(causes(&facts(peer.clone())), [], "{odd}");
    }
    peer.history.refused_source = Some((NOW - 2 * RECENT_MS, "192.168.1.5".parse().unwrap()));
    assert_eq!(causes(&facts(peer)), [], "that is over");
}

#[test]
fn large_packets_that_do_not_pass() {
    let mut facts = facts(connected_peer());
    facts.sizes =
        Some(SizeFacts { address: "10.0.0.2".parse().unwrap(), small: 96, largest: 1332, mtu: 1420 });
    only(&facts, CauseKind::Mtu, true, &["up to 1332 bytes", "MTU = 1332"]);
}

/// A conversation of the peer's with a host on the Internet.
fn conversation(sent: u32, returned: u32) -> Conversation {
    Conversation {
        source: "10.0.0.2".parse().unwrap(),
        destination: "203.0.113.9".parse().unwrap(),
        sent,
        returned,
        by: Some("eth0".into()),
        forwards: true,
        translates: false,
    }
}

#[test]
fn forwarding_or_translation_that_is_missing() {
    let seen = |conversation: Conversation| Facts {
        forwarding: Some(ForwardingFacts { conversations: vec![conversation] }),
        has_nft: true,
        ..facts(connected_peer())
    };
    let unforwarded = Conversation { forwards: false, ..conversation(1, 0) };
    only(
        &seen(unforwarded),
        CauseKind::Forwarding,
        true,
        &["203.0.113.9", "sysctl -w net.ipv4.ip_forward=1"],
    );
    let unrouted = Conversation { by: None, ..conversation(1, 0) };
    only(&seen(unrouted), CauseKind::Forwarding, true, &["no route"]);
    let walled = Facts {
        forward_blocked: Some(BlockedChain { found: "chain x drops".into(), remedy: "open x".into() }),
        ..seen(conversation(1, 0))
    };
    only(&walled, CauseKind::Forwarding, true, &["chain x drops", "open x"]);
    let untranslated = seen(conversation(UNRETURNED, 0));
    let words = ["by way of eth0", "10.0.0.2/32", "oifname eth0 masquerade"];
    only(&untranslated, CauseKind::Nat, false, &words);
    only(
        &Facts { has_nft: false, ..untranslated },
        CauseKind::Nat,
        false,
        &["iptables -t nat -A POSTROUTING -s 10.0.0.2/32 -o eth0 -j MASQUERADE"],
    );
    for fine in [
        conversation(UNRETURNED - 1, 0),
        conversation(100, 1),
        Conversation { translates: true, ..conversation(100, 0) },
        Conversation { by: Some("wg0".into()), ..conversation(100, 0) },
        Conversation { forwards: false, ..conversation(5, 5) },
    ] {
        assert_eq!(causes(&seen(fine.clone())), [], "{fine:?}");
    }
}

#[test]
fn data_that_goes_unanswered_is_told_while_the_session_stands() {
    let mut peer = connected_peer();
    peer.unanswered_data_ms = Some(20_000);
    only(&facts(peer), CauseKind::Silent, false, &["20 s ago"]);
}

#[test]
fn a_flood_at_the_other_end_is_told() {
    let mut peer = tried();
    peer.history.cookie_asked_ms = Some(NOW);
    only(&facts(peer), CauseKind::NothingComesBack, false, &["flood"]);
}

#[test]
fn certain_causes_come_first() {
    let mut facts = facts(tried());
    facts.input_blocked = Some(BlockedChain { found: "chain".into(), remedy: "open".into() });
    facts.route = Some(RouteFacts::By("wg0".into()));
    let kinds: Vec<CauseKind> = causes(&facts).into_iter().map(|cause| cause.kind).collect();
    assert_eq!(kinds, [CauseKind::EndpointInTunnel, CauseKind::LocalFirewall]);
}

#[test]
fn a_diagnosis_tells_what_was_tried_and_what_came_back() {
    let mut peer = tried();
    peer.history.disconnected =
        Some(Disconnection { at_ms: NOW - 400_000, why: DisconnectReason::Unanswered });
    peer.last_handshake_ms = Some(NOW - 3_600_000);
    let text = super::super::Diagnosis::of(facts(peer)).text();
    for words in [
        &format!("laptop ({PEER_KEY}) on wg0: not connected\n"),
        "at 192.0.2.7:51820; last handshake 60 min ago\n",
        "disconnected 6 min ago: initiations are not answered\n",
        "3 initiations sent, the last to 192.0.2.7:51820 2 s ago\n",
        "\nlikely   3 initiations to 192.0.2.7:51820 were not answered, though it answered before\n",
        "\n         -> at the other end",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let text = super::super::Diagnosis::of(facts(connected_peer())).text();
    assert!(text.contains("connected, since 60 s\n"), "{text}");
}
