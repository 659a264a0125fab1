//! The form for programs.

use super::{View, address, endpoint, public_key};
use crate::device::status::Unbound;
use crate::gateway::control::PeerState;
use serde::Serialize;
use zeroize::Zeroizing;

/// An interface. Secrets are left out unless they are to be revealed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct InterfaceJson {
    /// The interface's name.
    pub interface: String,
    /// Base64.
    pub public_key: Option<String>,
    /// Base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub private_key: Option<Zeroizing<String>>,
    /// 0: none yet.
    pub listen_port: u16,
    /// Why it does not listen, where it should.
    pub unbound: Option<Unbound>,
    /// 0: none.
    pub fwmark: u32,
    /// In the device's order.
    pub peers: Vec<PeerJson>,
}

/// A peer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct PeerJson {
    /// Base64.
    pub public_key: String,
    /// From the interface's file.
    pub name: Option<String>,
    /// The worker that opens its packets.
    pub owner: Option<u8>,
    /// Whether there is one.
    pub has_preshared_key: bool,
    /// Base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preshared_key: Option<Zeroizing<String>>,
    /// `ADDRESS:PORT`.
    pub endpoint: Option<String>,
    /// `ADDRESS/LENGTH`.
    pub allowed_ips: Vec<String>,
    /// Seconds since the Unix epoch; `None`: never.
    pub latest_handshake: Option<u64>,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Seconds; 0: off.
    pub persistent_keepalive: u16,
}

/// What `--json` prints.
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
        owner: view.owners.get(&key).copied(),
        has_preshared_key: peer.preshared_key.is_some(),
        preshared_key: peer.preshared_key.as_ref().filter(|_| view.reveal).map(|key| key.to_base64()),
        endpoint: peer.endpoint.map(endpoint),
        allowed_ips: peer.allowed_ips.iter().map(prefix).collect(),
        latest_handshake: Some(peer.last_handshake.as_secs()).filter(|&seconds| seconds != 0),
        rx_bytes: peer.rx_bytes,
        tx_bytes: peer.tx_bytes,
        persistent_keepalive: peer.persistent_keepalive,
        public_key: key,
    }
}
