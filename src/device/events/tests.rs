use super::*;

#[test]
fn a_key_is_abbreviated_as_wireguard_go_does() {
    assert_eq!(Abbreviated(PublicKey([0; 32])).to_string(), "peer(AAAA…AAAA)");
    let mut key = [0; 32];
    (key[0], key[31]) = (0xff, 0xff);
    let text = PublicKey(key).to_base64();
    assert_eq!(Abbreviated(PublicKey(key)).to_string(), format!("peer({}…{})", &text[..4], &text[39..43]));
}

#[test]
fn a_report_is_one_line_of_json_that_reads_back() {
    let from: SocketAddr = "[2001:db8::1]:51820".parse().unwrap();
    let kinds = [
        EventKind::Up { port: 4500 },
        EventKind::Down,
        EventKind::InitiationRefused {
            from,
            why: RefusalReason::UnknownKey,
            key: Some("key\n".into()),
            left_out: 3,
        },
        EventKind::Connected { endpoint: Some(from) },
        EventKind::Disconnected { why: DisconnectReason::Unanswered },
        EventKind::Shared { direction: Direction::Sent, by_all: true },
        EventKind::SourceRefused { source: from.ip() },
        EventKind::HandedOver { process: 7 },
        EventKind::Lost { count: u64::MAX },
    ];
    for (peer, kind) in [None, Some(PublicKey([7; 32]))].into_iter().cycle().zip(kinds) {
        let report = EventReport::new(DeviceEvent { peer, kind }, Duration::from_millis(1_700_000_000_123));
        let text = serde_json::to_string(&report).unwrap();
        assert!(!text.contains('\n'), "{text}");
        assert_eq!(serde_json::from_str::<EventReport>(&text).unwrap(), report);
        assert_eq!(report.time_ms, 1_700_000_000_123);
    }
}

#[test]
fn what_was_left_out_stands_behind_a_refusal() {
    let from: SocketAddr = "192.0.2.1:7".parse().unwrap();
    let refused = |left_out| {
        EventKind::ResponseRefused { from, why: RefusalReason::NotAuthentic, left_out }.to_string()
    };
    assert_eq!(
        refused(0),
        "response from 192.0.2.1:7 refused: it does not authenticate (do the preshared keys of both ends agree?)"
    );
    assert!(refused(9).ends_with("agree?) (and 9 more that were refused)"));
}
