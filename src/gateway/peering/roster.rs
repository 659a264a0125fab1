//! The peers of an interface, as its file and its running device know them together.

use crate::crypto::x25519::PublicKey;
use crate::gateway::config::{Loaded, PeerConfig};
use crate::gateway::control::{LimitState, PeerState};
use crate::gateway::metrics::Measured;
use crate::gateway::peering::Candidate;
use crate::gateway::show::LimitsJson;
use crate::gateway::standing::{PeerStanding, Standings};
use serde::Serialize;
use std::collections::{HashMap, HashSet};
use std::time::Duration;

/// A peer in the list.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct RosterEntry {
    /// The peer's public key in base64.
    pub public_key: String,
    /// The peer's name, from the file.
    pub name: Option<String>,
    /// How it stands with the peer.
    pub state: RosterState,
    /// The line of the file at which the peer stands, counted from 1. `None` where only the device has it.
    pub line: Option<usize>,
    /// Whether the peer has a preshared key.
    pub has_preshared_key: bool,
    /// The prefixes of the peer, each as `ADDRESS/LENGTH`: the device's, else the file's.
    pub allowed_ips: Vec<String>,
    /// The peer's endpoint: the device's, else the file's.
    pub endpoint: Option<String>,
    /// The keepalive interval in seconds; 0 is off.
    pub persistent_keepalive: u16,
    /// The time of the last handshake in seconds since the Unix epoch. `None` where there was none.
    pub latest_handshake: Option<u64>,
    /// Since when the peer is connected, in seconds since the Unix epoch.
    pub connected_since: Option<u64>,
    /// Bytes received from the peer.
    pub rx_bytes: u64,
    /// Bytes sent to the peer.
    pub tx_bytes: u64,
    /// The worker that owns the peer.
    pub worker: Option<u8>,
    /// What the peer is limited to: as the device has it, else the file. `None` where it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<LimitsJson>,
}

/// How it stands with a peer in the list.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RosterState {
    /// The peer is out of use in the file.
    Disabled,
    /// The peer is in the file, and the running device lacks it.
    Unapplied,
    /// The tunnel is down.
    Down,
    /// The running device has the peer.
    #[serde(untagged)]
    Running(PeerStanding),
}

impl RosterState {
    /// The word for people.
    pub fn word(self) -> &'static str {
        match self {
            RosterState::Running(standing) => standing.word(),
            RosterState::Disabled => "disabled",
            RosterState::Unapplied => "not applied",
            RosterState::Down => "tunnel down",
        }
    }
}

impl RosterEntry {
    fn of_file(peer: &PeerConfig, state: RosterState) -> RosterEntry {
        RosterEntry {
            public_key: peer.public_key.to_base64(),
            name: peer.name.clone(),
            state,
            line: Some(peer.line.0),
            has_preshared_key: peer.preshared_key.is_some(),
            allowed_ips: peer.allowed_ips.iter().map(ToString::to_string).collect(),
            endpoint: peer.endpoint.as_ref().map(ToString::to_string),
            persistent_keepalive: peer.persistent_keepalive.unwrap_or(0),
            latest_handshake: None,
            connected_since: None,
            rx_bytes: 0,
            tx_bytes: 0,
            worker: None,
            limits: LimitsJson::of(&LimitState { settings: peer.limits, ..LimitState::default() }),
        }
    }

    fn note(&mut self, peer: &PeerState, standings: &Standings<'_>, wall: Duration) {
        let key = self.public_key.as_str();
        self.state = RosterState::Running(standings.standing(key, peer, wall));
        self.connected_since = standings.connected_ms(key).map(|ms| ms / 1000);
        self.worker = standings.worker(key);
        self.has_preshared_key = peer.preshared_key.is_some();
        self.allowed_ips = peer.allowed_ips.iter().map(ToString::to_string).collect();
        self.endpoint = peer.endpoint.map(|endpoint| endpoint.to_string()).or(self.endpoint.take());
        self.persistent_keepalive = peer.persistent_keepalive;
        self.latest_handshake = Some(peer.last_handshake.as_secs()).filter(|&seconds| seconds != 0);
        self.limits = LimitsJson::of(&peer.limits);
        (self.rx_bytes, self.tx_bytes) = (peer.rx_bytes, peer.tx_bytes);
    }
}

/// The list: the file's peers in its order, then those that only the device has. Either may be missing. `wall` is the time since the
/// Unix epoch.
pub fn roster(loaded: Option<&Loaded>, measured: Option<&Measured>, wall: Duration) -> Vec<RosterEntry> {
    let device = measured.map(|measured| &measured.device);
    let mut running: HashMap<PublicKey, &PeerState> =
        device.iter().flat_map(|device| &device.peers).map(|peer| (peer.public_key, peer)).collect();
    let standings = Standings::of(measured.and_then(|measured| measured.status.as_ref()));
    let mut entries = Vec::new();
    for peer in of_file(loaded) {
        let (peer, disabled) = peer;
        let state = match (disabled, device) {
            (true, _) => RosterState::Disabled,
            (false, Some(_)) => RosterState::Unapplied,
            (false, None) => RosterState::Down,
        };
        let mut entry = RosterEntry::of_file(&peer, state);
        if let Some(state) = running.remove(&peer.public_key) {
            entry.note(state, &standings, wall);
        }
        entries.push(entry);
    }
    let others = device.iter().flat_map(|device| &device.peers);
    for peer in others.filter(|peer| running.contains_key(&peer.public_key)) {
        let mut entry = RosterEntry::of_file(&PeerConfig::new(peer.public_key), RosterState::Unapplied);
        entry.line = None;
        entry.note(peer, &standings, wall);
        entries.push(entry);
    }
    entries
}

/// The peers of the file, in its order, with whether each is out of use. Of several sections with one key the last one counts.
fn of_file(loaded: Option<&Loaded>) -> Vec<(PeerConfig, bool)> {
    let Some(loaded) = loaded else { return Vec::new() };
    let mut peers: Vec<(PeerConfig, bool)> =
        loaded.config.peers.iter().map(|peer| (peer.clone(), false)).collect();
    let used: HashSet<PublicKey> = peers.iter().map(|(peer, _)| peer.public_key).collect();
    let disabled = loaded.document.disabled_peers().into_iter();
    peers.extend(disabled.filter(|peer| !used.contains(&peer.public_key)).map(|peer| (peer, true)));
    peers.sort_by_key(|(peer, _)| peer.line.0);
    let mut seen = HashSet::new();
    peers.reverse();
    peers.retain(|(peer, _)| seen.insert(peer.public_key));
    peers.reverse();
    peers
}

/// The peers that a person may mean.
pub fn candidates(roster: &[RosterEntry]) -> Vec<Candidate> {
    let one = |entry: &RosterEntry| {
        Some(Candidate { key: entry.public_key.parse().ok()?, name: entry.name.clone() })
    };
    roster.iter().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::status::{Owner, Status};
    use crate::gateway::config::{Document, Place};
    use crate::gateway::control::DeviceState;

    fn key(seed: u8) -> PublicKey {
        PublicKey([seed; 32])
    }

    fn loaded() -> Loaded {
        let section = |seed: u8, name: &str| {
            format!(
                "[Peer]\n# Name = {name}\nPublicKey = {}\nAllowedIPs = 10.0.0.{seed}/32\n\n",
                key(seed).to_base64()
            )
        };
        let text = ["[Interface]\n\n".to_owned(), section(1, "a"), section(2, "b"), section(3, "c")].concat();
        let mut document = Document::new(text.as_bytes());
        assert!(document.disable_peer(&key(2)));
        let config = document.parse().unwrap().0;
        let place = Place { file: "wg0.conf".into(), interface: "wg0".into() };
        Loaded { place, document, config, warnings: Vec::new() }
    }

    fn measured(peers: &[u8]) -> Measured {
        let owner = |&seed: &u8| Owner {
            public_key: key(seed).to_base64(),
            worker: 1,
            connected_ms: Some(5000),
            endpoint: None,
            memory: None,
        };
        let status = Status { peers: peers.iter().map(owner).collect(), ..Status::default() };
        let peers = peers.iter().map(|&seed| PeerState { rx_bytes: 7, ..PeerState::new(key(seed)) });
        let device = DeviceState { peers: peers.collect(), ..DeviceState::default() };
        Measured { name: "wg0".into(), status: Some(status), device, names: HashMap::new() }
    }

    #[test]
    fn file_and_device_are_told_together() {
        let (loaded, measured) = (loaded(), measured(&[9, 3]));
        let told = |loaded, measured| {
            let entries = roster(loaded, measured, Duration::ZERO);
            let one = |entry: &RosterEntry| {
                (entry.name.clone().unwrap_or_default(), entry.state.word(), entry.line)
            };
            entries.iter().map(one).collect::<Vec<_>>()
        };
        let (a, b, c) = ("a".to_owned(), "b".to_owned(), "c".to_owned());
        assert_eq!(
            told(Some(&loaded), Some(&measured)),
            [
                (a.clone(), "not applied", Some(3)),
                (b.clone(), "disabled", Some(8)),
                (c.clone(), "connected", Some(13)),
                (String::new(), "connected", None)
            ]
        );
        assert_eq!(
            told(Some(&loaded), None),
            [(a, "tunnel down", Some(3)), (b, "disabled", Some(8)), (c, "tunnel down", Some(13))]
        );
        assert_eq!(told(None, Some(&measured)).len(), 2);
        let entries = roster(Some(&loaded), Some(&measured), Duration::ZERO);
        assert_eq!(
            (entries[2].connected_since, entries[2].worker, entries[2].rx_bytes),
            (Some(5), Some(1), 7)
        );
        assert_eq!(serde_json::to_value(&entries[2]).unwrap()["state"], "connected");
        assert_eq!(serde_json::to_value(&entries[1]).unwrap()["state"], "disabled");
    }
}
