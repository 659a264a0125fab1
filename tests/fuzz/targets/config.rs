//! wg-quick's language: what is read means the same once it was printed, stripped, edited or saved, and the same to a device that is
//! configured at once as to one that is brought into line.

use super::settings;
use ringtun::crypto::x25519::{PublicKey, SharedSecret};
use ringtun::dataplane::limits::LimitSettings;
use ringtun::device::uapi::SetRequest;
use ringtun::device::{Device, Now};
use ringtun::gateway::config::{Config, Document, HostPort, PeerConfig, Runtime, difference, set_text};
use ringtun::gateway::control::{DeviceState, PeerState};
use ringtun::gateway::peering::openbsd;
use ringtun::index::WorkerCount;
use ringtun::sim::SimRng;
use ringtun::time::Instant;
use std::net::SocketAddr;
use std::time::Duration;

/// A wg-quick file.
pub(crate) fn run(data: &[u8]) {
    let document = Document::new(data);
    assert_eq!(document.bytes().as_slice(), data);
    let salvage = document.salvage();
    let Ok((config, _)) = document.parse() else { return };
    assert_eq!(
        (&salvage.interface, salvage.lost.len()),
        (&config.interface, 0),
        "nothing was to be left out"
    );
    let printed = config.print();
    assert_eq!(read(printed.as_bytes()), config, "printed:\n{}", *printed);
    // Many zeros near the beginning look like another encoding, and what an edit leaves there may be so many.
    if data.contains(&0) {
        return;
    }
    let bare = read(&document.strip());
    assert_eq!(bare.interface.private_key, config.interface.private_key);
    assert_eq!(without_names(&bare.peers), without_names(&config.peers), "stripped");
    let public = read(&document.clone().without_keys().bytes());
    assert!(public.interface.private_key.is_none());
    assert!(public.peers.iter().all(|peer| peer.preshared_key.is_none()));
    check_edits(&document, &config);
    let added = add_to(document.clone(), &config);
    check_device(&config, document, added);
    export(&config);
}

fn read(bytes: &[u8]) -> Config {
    match Document::new(bytes).parse() {
        Ok((config, _)) => config,
        Err(errors) => panic!("{errors:?} in\n{}", String::from_utf8_lossy(bytes)),
    }
}

/// The peers without what stands in comments.
fn without_names(peers: &[PeerConfig]) -> Vec<PeerConfig> {
    let bare =
        |peer: &PeerConfig| PeerConfig { name: None, limits: LimitSettings::default(), ..peer.clone() };
    peers.iter().map(bare).collect()
}

/// A peer that goes out of use comes back, one that is renamed or limited is, one that is removed is gone; and none of it is anything
/// to the others.
fn check_edits(document: &Document, config: &Config) {
    let Some(key) = config.peers.first().map(|peer| peer.public_key) else { return };
    let others: Vec<PeerConfig> =
        config.peers.iter().filter(|peer| peer.public_key != key).cloned().collect();
    let peers_of = |document: &Document| without_names(&read(&document.bytes()).peers);
    let mut disabled = document.clone();
    assert!(disabled.disable_peer(&key));
    assert_eq!(peers_of(&disabled), without_names(&others), "disabled");
    assert!(
        disabled.disabled_peers().iter().any(|peer| peer.public_key == key),
        "out of use, and known:\n{}",
        String::from_utf8_lossy(&disabled.bytes())
    );
    let mut removed = disabled.clone();
    assert!(removed.remove_peer(&key) && !removed.remove_peer(&key));
    assert_eq!(peers_of(&removed), without_names(&others), "removed out of use");
    assert!(disabled.enable_peer(&key));
    assert_eq!(peers_of(&disabled).len(), config.peers.len(), "enabled");
    let mut removed = document.clone();
    assert!(removed.remove_peer(&key));
    assert_eq!(peers_of(&removed), without_names(&others), "removed");
    let limits: LimitSettings = "in 20000000 625000 quota 1000 86400 0".parse().expect("limits");
    let mut edited = document.clone();
    assert!(edited.rename_peer(&key, "another name") && edited.limit_peer(&key, &limits));
    edited.add_hook("PostUp", "true");
    let after = read(&edited.bytes());
    assert_eq!(without_names(&after.peers), without_names(&config.peers), "renamed and limited");
    let peer = after.peers.iter().rfind(|peer| peer.public_key == key).expect("the peer");
    assert_eq!((peer.name.as_deref(), peer.limits), (Some("another name"), limits));
}

/// A peer that no file names.
fn newcomer() -> PeerConfig {
    PeerConfig {
        name: Some("a newcomer".into()),
        preshared_key: Some(SharedSecret([0x5a; 32])),
        allowed_ips: vec!["10.77.0.1/32".parse().expect("a prefix")],
        endpoint: Some(HostPort { host: "2001:db8::77".into(), port: 77 }),
        persistent_keepalive: Some(77),
        ..PeerConfig::new(PublicKey([0x77; 32]))
    }
}

/// A peer that is added is there, and nothing else has changed.
fn add_to(mut document: Document, config: &Config) -> Document {
    document.add_peer(&newcomer());
    let after = read(&document.bytes());
    let peers = [config.peers.clone(), vec![newcomer()]].concat();
    assert_eq!(without_names(&after.peers), without_names(&peers), "added");
    assert_eq!(after.interface, config.interface);
    document
}

/// A device, and what it says of itself.
struct Running(Device);

impl Running {
    fn new() -> Running {
        Running(Device::new(WorkerCount::ONE, Box::new(SimRng::new(1))))
    }

    fn set(&mut self, request: &SetRequest) {
        let now = Now { mono: Instant::START, wall: Duration::from_secs(1) };
        // What is sent is a text.
        let text = set_text(request);
        let request = SetRequest::parse(text.strip_suffix("\n").expect("an empty line").as_bytes());
        let request = request.unwrap_or_else(|error| panic!("{error:?} in\n{}", *text));
        assert!(self.0.apply(now, &request, &mut |wanted| Ok(wanted.port)).is_ok(), "{}", *text);
        while self.0.poll_output().is_some() {}
    }

    fn state(&self) -> DeviceState {
        DeviceState::parse(self.0.uapi_get().trim_end_matches("errno=0\n\n"))
            .expect("a device says what it is")
    }

    fn said(&self) -> String {
        settings(&self.0.uapi_get())
    }
}

fn resolve(_: &PeerConfig, at: &HostPort) -> Option<SocketAddr> {
    let addr = at.address().filter(|_| !at.host.contains('%'))?;
    Some(SocketAddr::new(addr, at.port))
}

/// What a device makes of the configuration, and what becomes of the file as the device's state is saved to it.
fn check_device(config: &Config, mut document: Document, mut grown: Document) {
    let own = config.interface.private_key.as_ref().map(|key| key.public());
    if config
        .peers
        .iter()
        .any(|peer| Some(peer.public_key) == own || peer.public_key == newcomer().public_key)
    {
        return; // a device does not speak to itself
    }
    let mut running = Running::new();
    running.set(&config.request(&mut resolve));
    let state = running.state();
    let nothing = difference(&state, config, &mut resolve);
    assert!(nothing.peers.is_empty(), "there is nothing left to do: {nothing:?}");
    let mut other = Running::new();
    other.set(&difference(&DeviceState::default(), config, &mut resolve));
    assert_eq!(sorted(other.state()), sorted(state.clone()));
    for document in [&mut document, &mut grown] {
        let runtime = Runtime { device: &state, addresses: None, mtu: None };
        assert!(document.save(&runtime).is_ok(), "a file that can be read can be saved to");
        check_saved(document, &running.said());
    }
    let changed = changed(state);
    let runtime = Runtime { device: &changed, addresses: Some(&[]), mtu: Some(1300) };
    assert!(document.save(&runtime).is_ok());
    let after = read(&document.bytes());
    assert!(after.interface.addresses.is_empty());
    let mut again = Running::new();
    again.set(&after.request(&mut resolve));
    let (mut is, mut wanted) = (sorted(again.state()), sorted(changed));
    // A name in the file stays, and resolves to nothing here.
    for peer in is.peers.iter_mut().chain(&mut wanted.peers) {
        peer.endpoint = None;
    }
    assert_eq!(is, wanted, "saved:\n{}", String::from_utf8_lossy(&document.bytes()));
}

/// The file says now what the device has.
fn check_saved(document: &Document, said: &str) {
    let mut again = Running::new();
    again.set(&read(&document.bytes()).request(&mut resolve));
    let (lines, mut is) = (said.lines().collect::<Vec<_>>(), again.said());
    if lines != is.lines().collect::<Vec<_>>() {
        // Where a prefix stands twice, the order of a peer's prefixes and of peers may change.
        is = again.said();
        let sort = |text: &str| {
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        assert_eq!(sort(&is), sort(said), "saved:\n{}", String::from_utf8_lossy(&document.bytes()));
    }
}

/// Another state: the first peer is gone, the last is changed, and there is a new one.
fn changed(mut state: DeviceState) -> DeviceState {
    if !state.peers.is_empty() {
        state.peers.remove(0);
    }
    if let Some(peer) = state.peers.last_mut() {
        peer.persistent_keepalive ^= 25;
        peer.preshared_key = match peer.preshared_key {
            Some(_) => None,
            None => Some(SharedSecret([1; 32])),
        };
        peer.allowed_ips.truncate(1);
    }
    state.peers.push(PeerState {
        allowed_ips: vec!["fd77::/64".parse().expect("a prefix")],
        persistent_keepalive: 7,
        ..PeerState::new(PublicKey([0x78; 32]))
    });
    state.fwmark ^= 1;
    state
}

/// A state in an order that says nothing.
fn sorted(mut state: DeviceState) -> DeviceState {
    state.peers.sort_by_key(|peer| peer.public_key.0);
    state.peers.iter_mut().for_each(|peer| peer.allowed_ips.sort());
    state
}

/// What OpenBSD is given can be read again, and says the same of the peers.
fn export(config: &Config) {
    let (text, _) = openbsd::print(config);
    let _ = openbsd::commands(config, "wg0");
    if config.interface.private_key.is_none() && config.peers.is_empty() {
        return;
    }
    let mut seen = Vec::new();
    let twice = config.peers.iter().any(|peer| {
        seen.contains(&peer.public_key) || {
            seen.push(peer.public_key);
            false
        }
    });
    let back = openbsd::parse(&text);
    let (back, _) = back.unwrap_or_else(|errors| panic!("{errors:?} in\n{}", *text));
    if !twice {
        assert_eq!(without_names(&back.peers), without_names(&config.peers), "OpenBSD's:\n{}", *text);
    }
    assert_eq!(back.interface.addresses, config.interface.addresses);
}

/// A hostname.if(5) file: what is read can be printed in both languages, and means the same there.
pub(crate) fn openbsd(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let Ok((config, _)) = openbsd::parse(text) else { return };
    let printed = config.print();
    let again = read(printed.as_bytes());
    assert_eq!(without_names(&again.peers), without_names(&config.peers), "printed:\n{}", *printed);
    assert_eq!(again.interface, config.interface);
    export(&config);
}
