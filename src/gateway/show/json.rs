//! A running device in the form for programs, which is JSON.

use super::limits::LimitsJson;
use super::{View, address, endpoint, public_key};
use crate::device::status::Unbound;
use crate::gateway::control::PeerState;
use serde::Serialize;
use zeroize::Zeroizing;

/// An interface as JSON. Secrets are left out unless they are to be revealed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct InterfaceJson {
    /// The interface's name.
    pub interface: String,
    /// The interface's public key in base64.
    pub public_key: Option<String>,
    /// The interface's private key in base64, where it is to be revealed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub private_key: Option<Zeroizing<String>>,
    /// The UDP port; 0 where there is none yet.
    pub listen_port: u16,
    /// Why the device does not listen, where it should.
    pub unbound: Option<Unbound>,
    /// The firewall mark; 0 is none.
    pub fwmark: u32,
    /// The peers, in the device's order.
    pub peers: Vec<PeerJson>,
}

/// A peer as JSON.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct PeerJson {
    /// The peer's public key in base64.
    pub public_key: String,
    /// The peer's name, from the interface's file.
    pub name: Option<String>,
    /// The number of the worker that opens the peer's packets.
    pub owner: Option<u8>,
    /// Whether the peer has a preshared key.
    pub has_preshared_key: bool,
    /// The preshared key in base64, where it is to be revealed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preshared_key: Option<Zeroizing<String>>,
    /// The peer's endpoint, as `ADDRESS:PORT`.
    pub endpoint: Option<String>,
    /// The peer's prefixes, each as `ADDRESS/LENGTH`.
    pub allowed_ips: Vec<String>,
    /// The time of the last handshake in seconds since the Unix epoch. `None` where there was none.
    pub latest_handshake: Option<u64>,
    /// Since when the peer is connected, in seconds since the Unix epoch. `None` where it is not, or that is not known.
    pub connected_since: Option<u64>,
    /// The bytes received from the peer.
    pub rx_bytes: u64,
    /// The bytes sent to the peer.
    pub tx_bytes: u64,
    /// The keepalive interval in seconds; 0 is off.
    pub persistent_keepalive: u16,
    /// What the peer is limited to. `None` where it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<LimitsJson>,
}

/// The device as `--json` prints it.
pub fn json(view: &View) -> InterfaceJson {
    let device = &view.device;
    InterfaceJson {
        interface: view.name.clone(),
        public_key: public_key(device),
        private_key: device.private_key.as_ref().filter(|_| view.reveal).map(|key| key.to_base64()),
        listen_port: device.listen_port,
        unbound: view.unbound.clone(),
        fwmark: device.fwmark,
        peers: device.peers.iter().map(|peer| of_peer(view, peer)).collect(),
    }
}

fn of_peer(view: &View, peer: &PeerState) -> PeerJson {
    let key = peer.public_key.to_base64();
    let prefix = |prefix: &crate::routing::Prefix| format!("{}/{}", address(prefix.addr()), prefix.len());
    PeerJson {
        name: view.names.get(&key).cloned(),
        owner: view.owners.get(&key).map(|owner| owner.worker),
        connected_since: view.owners.get(&key).and_then(|owner| owner.connected_ms).map(|ms| ms / 1000),
        has_preshared_key: peer.preshared_key.is_some(),
        preshared_key: peer.preshared_key.as_ref().filter(|_| view.reveal).map(|key| key.to_base64()),
        endpoint: peer.endpoint.map(endpoint),
        allowed_ips: peer.allowed_ips.iter().map(prefix).collect(),
        latest_handshake: Some(peer.last_handshake.as_secs()).filter(|&seconds| seconds != 0),
        rx_bytes: peer.rx_bytes,
        tx_bytes: peer.tx_bytes,
        persistent_keepalive: peer.persistent_keepalive,
        limits: LimitsJson::of(&peer.limits),
        public_key: key,
    }
}
