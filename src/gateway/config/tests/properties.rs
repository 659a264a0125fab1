//! Properties that hold for every file.

use super::*;
use crate::dataplane::limits::{LimitSettings, QuotaSetting, RateSetting};
use crate::gateway::control::{DeviceState, LimitState, PeerState};
use proptest::prelude::*;
use std::net::{Ipv4Addr, Ipv6Addr};

pub(super) fn addr() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|bits| Ipv4Addr::from_bits(bits).into()),
        any::<u128>().prop_map(|bits| Ipv6Addr::from_bits(bits).into())
    ]
}

fn address() -> impl Strategy<Value = Address> {
    (addr(), any::<u8>())
        .prop_map(|(addr, len)| Address { addr, len: len % if addr.is_ipv4() { 33 } else { 129 } })
}

fn secret() -> impl Strategy<Value = Option<SharedSecret>> {
    prop::option::of(any::<[u8; 32]>().prop_map(|key| SharedSecret(key.map(|byte| byte | 1))))
}

fn hooks() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec("[!-\"$-~ä]([ -\"$-~ä]{0,20}[!-\"$-~])?", 0..3)
}

fn endpoint() -> impl Strategy<Value = HostPort> {
    let host = prop_oneof!["[a-z][a-z0-9.-]{0,20}", addr().prop_map(|addr| addr.to_string())];
    (host, any::<u16>()).prop_map(|(host, port)| HostPort { host, port })
}

fn limits() -> impl Strategy<Value = LimitSettings> {
    let number = prop_oneof![1_u64..1_000_000_000_000, (1_u64..1000).prop_map(|mega| mega * 1_000_000)];
    let rate = (number.clone(), prop::option::of(number.clone())).prop_map(|(bits, burst)| {
        burst.map_or(RateSetting::of(bits), |burst| RateSetting { bits_per_second: bits, burst })
    });
    let period = (1_u64..366 * 86_400).prop_map(std::time::Duration::from_secs);
    let quota = (number.clone(), period, prop::option::of(number))
        .prop_map(|(bytes, period, then)| QuotaSetting { bytes, period, then });
    (
        prop::option::weighted(0.2, rate.clone()),
        prop::option::weighted(0.2, rate),
        prop::option::weighted(0.2, quota),
    )
        .prop_map(|(inbound, outbound, quota)| LimitSettings { inbound, outbound, quota })
}

prop_compose! {
    pub(super) fn peer()(
        name in prop::option::of("[!-~ä]([ -~ä]{0,20}[!-~])?"),
        key in any::<[u8; 32]>(),
        preshared_key in secret(),
        allowed in prop::collection::vec(address(), 0..5),
        endpoint in prop::option::of(endpoint()),
        persistent_keepalive in prop::option::of(any::<u16>()),
        limits in limits(),
    ) -> PeerConfig {
        let allowed_ips = allowed.iter().map(Address::network).collect();
        PeerConfig { name, preshared_key, allowed_ips, endpoint, persistent_keepalive, limits, ..PeerConfig::new(PublicKey(key)) }
    }
}

prop_compose! {
    fn interface()(
        private_key in prop::option::of(any::<[u8; 32]>().prop_map(PrivateKey::from_bytes)),
        listen_port in prop::option::of(any::<u16>()),
        fwmark in prop::option::of(any::<u32>()),
        addresses in prop::collection::vec(address(), 0..4),
        dns in prop::collection::vec(addr().prop_map(|addr| DnsServer { addr, scope: None }), 0..3),
        dns_search in prop::collection::vec("[a-z][a-z0-9.-]{0,12}", 0..3),
        mtu in prop::option::of(prop_oneof![Just(Mtu::Exact), (68_u16..).prop_map(Mtu::Bytes)]),
        table in prop_oneof![Just(Table::Auto), Just(Table::Off), (1_u32..).prop_map(Table::Number)],
        save_config in any::<bool>(),
        hooks in (hooks(), hooks(), hooks(), hooks()),
    ) -> Interface {
        let (pre_up, post_up, pre_down, post_down) = hooks;
        Interface { private_key, listen_port, fwmark, addresses, dns, dns_search, mtu, table, save_config, pre_up, post_up, pre_down, post_down }
    }
}

pub(super) fn configs() -> impl Strategy<Value = Config> {
    (interface(), prop::collection::vec(peer(), 0..5))
        .prop_map(|(interface, peers)| Config { interface, peers })
}

/// Lines that mean something, almost something or nothing.
fn line() -> impl Strategy<Value = String> {
    let fragment = "(\\[Interface\\]|\\[Peer\\]|\\[|Address|MTU|DNS|Table|PostUp|SaveConfig|ListenPort|PublicKey|AllowedIPs|Endpoint|Name| = |=|#| |\t|,|:|/|\\]|%|10\\.0\\.0\\.1|::1|off|[ -~ä]{0,4}){0,6}";
    prop_oneof![3 => fragment.prop_map(String::from), 1 => Just(format!("PublicKey = {PUBLIC}")), 1 => Just(format!("PrivateKey = {PRIVATE}"))]
}

proptest! {
    #[test]
    fn what_is_printed_is_read_again(config in configs()) {
        let text = config.print();
        let (again, _) = parse(&text).map_err(|errors| TestCaseError::fail(format!("{errors:?} in {}", *text)))?;
        prop_assert_eq!(again, config);
    }

    #[test]
    fn a_document_is_its_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let document = Document::new(&bytes);
        prop_assert_eq!(document.bytes().to_vec(), bytes);
        let _ = document.parse();
        document.strip();
    }

    #[test]
    fn garbage_never_panics_nor_shows_a_secret(lines in prop::collection::vec(line(), 0..12)) {
        let shown = format!("{:?}", parse(&lines.join("\n")));
        prop_assert!(!shown.contains(&PRIVATE[..20]));
    }

    #[test]
    fn an_added_peer_leaves_every_other_byte(config in configs(), new in peer()) {
        let text = config.print();
        let mut document = Document::new(text.as_bytes());
        document.add_peer(&new);
        let after = document.bytes();
        prop_assert!(after.starts_with(text.as_bytes()));
        let mut peers = config.peers;
        peers.push(new);
        prop_assert_eq!(document.parse().unwrap().0.peers, peers);
    }

    #[test]
    fn saving_writes_what_is_and_leaves_every_other_line(config in configs(), kept in any::<u8>(), psk in secret(), port in 1_u16.., endpoint in (addr(), any::<u16>())) {
        let text = format!("# first\n{}# last\n", *config.print());
        let mut document = Document::new(text.as_bytes());
        let known = |(at, peer): (usize, &PeerConfig)| (kept >> at & 1 == 1).then(|| PeerState {
            preshared_key: psk.clone(),
            endpoint: Some(endpoint.into()),
            allowed_ips: peer.allowed_ips.iter().take(2).copied().collect(),
            limits: LimitState { settings: peer.limits, ..LimitState::default() },
            ..PeerState::new(peer.public_key)
        });
        let peers: Vec<PeerState> = config.peers.iter().enumerate().filter_map(known).collect();
        let device = DeviceState { private_key: config.interface.private_key.clone(), listen_port: port, fwmark: 0, peers };
        document.save(&Runtime { device: &device, addresses: None, mtu: None }).unwrap();
        let (after, _) = document.parse().unwrap();
        prop_assert_eq!(after.interface.listen_port, Some(port));
        prop_assert_eq!(after.peers.len(), device.peers.len());
        for (peer, state) in after.peers.iter().zip(&device.peers) {
            prop_assert_eq!(peer.public_key, state.public_key);
            prop_assert_eq!(&peer.preshared_key, &psk);
            prop_assert!(peer.endpoint.is_some());
        }
        let bytes = document.bytes();
        let before: Vec<&str> = text.lines().collect();
        let changed = |line: &str| ["ListenPort", "FwMark", "PresharedKey", "Endpoint", "AllowedIPs", "PersistentKeepalive"].iter().any(|key| line.starts_with(key));
        for line in str::from_utf8(&bytes).unwrap().lines().filter(|line| !changed(line)) {
            prop_assert!(before.contains(&line), "{line}");
        }
    }
}
