//! What others say to us: a device's answer on its control socket, which may be another implementation's; what firewalls' tools
//! print; and what the kernel writes beside a datagram.

use ringtun::device::events::EventReport;
use ringtun::device::status::Status;
use ringtun::gateway::config::Document;
use ringtun::gateway::control::DeviceState;
use ringtun::gateway::doctor::blocked;
use ringtun::gateway::live::Look;
use ringtun::gateway::metrics::{Measured, TextFormat, overview, prometheus, table};
use ringtun::gateway::monitor;
use ringtun::gateway::peering::roster;
use ringtun::gateway::show::{Field, Paint, View, field, json, pretty, showconf};
use ringtun::sys::cmsg::{ControlData, decode_control, decode_name};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// The time at which it is shown, since the Unix epoch.
const WALL: Duration = Duration::from_secs(1_800_000_000);

/// The answer to `get=1` and to `status=1`, and all that is made of them to be shown.
pub(crate) fn answer(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    check_events(&text);
    let mut statuses =
        text.lines().filter_map(|line| serde_json::from_str::<Status>(line.strip_prefix("status=")?).ok());
    let status = statuses.next_back();
    if let Some(status) = &status {
        let again = serde_json::to_string(status).expect("a status can be written");
        assert_eq!(serde_json::from_str::<Status>(&again).ok().as_ref(), Some(status));
    }
    let configuration: String = text
        .lines()
        .filter(|line| !line.starts_with("status=") && !line.starts_with("event="))
        .flat_map(|line| [line, "\n"])
        .collect();
    let Some(device) = DeviceState::parse(&configuration) else { return };
    let view = View {
        name: "wg0".into(),
        device: device.clone(),
        now: WALL.as_secs(),
        reveal: true,
        ..View::default()
    };
    for colours in [false, true] {
        let _ = pretty(&view, Paint { colours }, true);
    }
    serde_json::to_string(&json(&view)).expect("JSON can be written");
    for column in [Field::Dump, Field::Endpoints, Field::AllowedIps, Field::Transfer, Field::LatestHandshakes]
    {
        let _ = field(&view, column, true);
    }
    check_showconf(&view);
    let measured = Measured { name: "wg0".into(), status, device, names: HashMap::new() };
    let _ = table(&measured);
    check_summaries(&measured);
    for format in [TextFormat::Classic, TextFormat::Open] {
        let samples = prometheus(std::slice::from_ref(&measured), WALL, format);
        for line in samples.lines().filter(|line| !line.starts_with('#')) {
            let value = line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
            assert!(value.is_some(), "a line that is no sample: {line:?}");
        }
    }
}

/// What people are told about the device and its peers.
fn check_summaries(measured: &Measured) {
    serde_json::to_string(&json(&View::of(measured))).expect("JSON can be written");
    for peer in roster(None, Some(measured), WALL) {
        let _ = peer.limits.map(|limits| limits.words());
    }
    let begun = Instant::now();
    let Some(look) = Look::of(measured.clone(), begun, WALL) else { return };
    let later = Look::of(measured.clone(), begun + Duration::from_secs(1), WALL + Duration::from_secs(1));
    let activity = later.expect("a look").since(&look);
    for colours in [false, true] {
        let text = overview(&activity, look.status(), Paint { colours });
        assert!(text.ends_with('\n') && text.starts_with("wg0: "), "{text:?}");
    }
    serde_json::to_string(&activity).expect("JSON can be written");
}

/// The events that a device tells, of which each is a line for people and one for programs.
fn check_events(text: &str) {
    for line in text.lines().filter_map(|line| line.strip_prefix("event=")) {
        let Ok(report) = serde_json::from_str::<EventReport>(line) else { continue };
        let _ = monitor::text("wg0", None, &report);
        let line = monitor::json("wg0", Some("a peer"), &report);
        assert!(line.ends_with('\n') && line.lines().count() == 1, "{line:?}");
    }
}

/// `showconf` prints a file that says what the device said.
fn check_showconf(view: &View) {
    let printed = showconf(view);
    let Ok((config, _)) = Document::new(printed.as_bytes()).parse() else {
        panic!("showconf prints what is no configuration:\n{}", *printed);
    };
    let device = &view.device;
    assert_eq!(config.interface.private_key, device.private_key);
    assert_eq!(config.interface.listen_port.unwrap_or(0), device.listen_port);
    assert_eq!(config.interface.fwmark.unwrap_or(0), device.fwmark);
    assert_eq!(config.peers.len(), device.peers.len());
    for (file, peer) in config.peers.iter().zip(&device.peers) {
        assert_eq!((&file.public_key, &file.preshared_key), (&peer.public_key, &peer.preshared_key));
        assert_eq!(file.allowed_ips, peer.allowed_ips);
        assert_eq!(file.persistent_keepalive.unwrap_or(0), peer.persistent_keepalive);
        let addr = file.endpoint.as_ref().and_then(|at| Some((at.address()?, at.port)));
        assert_eq!(addr, peer.endpoint.map(|addr| (addr.ip(), addr.port())));
    }
}

/// What nft and iptables-save print of their rules.
pub(crate) fn firewall(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let found = blocked(&text, "wg0", 51820);
    assert!(found.iter().all(|chain| !chain.is_empty()), "{found:?}");
}

/// Control data and a name, as the kernel fills them in. The first byte is the name's length.
pub(crate) fn control_data(data: &[u8]) {
    let Some((&len, data)) = data.split_first() else { return };
    let (name, control) = data.split_at(usize::from(len).min(data.len()));
    let from = decode_name(name);
    let Some(received) = decode_control(control) else { return };
    assert!(received.ecn < 4);
    // What is understood is answered from that address, in control data that is understood as well.
    let mut answer = ControlData::EMPTY;
    if let Some(to) = received.to {
        answer.push_segment(1);
        answer.push_source(&to);
    }
    if let Some(from) = from {
        answer.push_tos(&from, received.ecn);
    }
    let sent = decode_control(answer.messages()).expect("what is written is understood");
    assert_eq!(sent.to.map(|to| to.ip), received.to.map(|to| to.ip));
    assert_eq!(sent.ecn, from.map_or(0, |_| received.ecn));
}
