//! The answer to `diagnose=1`: what the device knows of one peer and of senders that it refused, as one line of JSON. What follows
//! from it is for the asker to say.

use super::history::{History, millis};
use super::status::{Unbound, json};
use super::strangers::Stranger;
use super::{Device, Now};
use crate::crypto::x25519::PublicKey;
use crate::time::Instant;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;

/// Most prefixes of a peer that are listed, some 50 bytes each.
const MAX_PREFIXES: usize = 256;

/// What the device knows of one peer, and of itself as far as that matters to the peer. Times are milliseconds since the Unix
/// epoch.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceFacts {
    /// The time of the answer.
    pub now_ms: u64,
    /// Whether the interface is up and the sockets are bound.
    pub up: bool,
    /// Why no socket is bound although the interface is up.
    pub unbound: Option<Unbound>,
    /// The device's public key in Base64. `None` where it has no private key.
    pub public_key: Option<String>,
    /// The UDP port; 0 where there is none.
    pub listen_port: u16,
    /// The firewall mark of the device's own datagrams; 0 is none.
    pub fwmark: u32,
    /// The peer. `None` where the device has no such peer.
    pub peer: Option<PeerFacts>,
    /// Senders of handshake messages that were refused, and that named no peer.
    pub strangers: Vec<Stranger>,
}

/// What the device knows of one peer.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PeerFacts {
    /// The peer's endpoint, if one is known.
    pub endpoint: Option<SocketAddr>,
    /// Since when the peer is connected.
    pub connected_ms: Option<u64>,
    /// When the last handshake completed.
    pub last_handshake_ms: Option<u64>,
    /// When data of the peer's last came.
    pub last_data_ms: Option<u64>,
    /// For how long data that was sent has not been answered.
    pub unanswered_data_ms: Option<u64>,
    /// Bytes received from the peer.
    pub rx_bytes: u64,
    /// Bytes sent to the peer.
    pub tx_bytes: u64,
    /// The interval of keepalives in seconds; 0 is off.
    pub persistent_keepalive: u16,
    /// The peer's prefixes.
    pub allowed_ips: Vec<String>,
    /// Packets of the peer's that were dropped, as their source is not among its prefixes.
    pub refused_sources: u64,
    /// What was tried since the peer was last connected.
    pub history: History,
}

impl Device {
    /// What the device knows of the peer with this key, as the whole answer to the question. With `tries` it begins a handshake,
    /// unless there is a session, or one is under way.
    pub fn facts(&mut self, now: Now, key: &PublicKey, tries: bool) -> String {
        let slot = self.peers.find(key);
        if let Some(slot) = slot.filter(|_| tries) {
            self.try_handshake(now, slot);
        }
        let facts = DeviceFacts {
            now_ms: millis(now.wall),
            up: self.is_up(),
            unbound: self.unbound(),
            public_key: self.public_key().map(PublicKey::to_base64),
            listen_port: self.listen_port(),
            fwmark: self.fwmark(),
            peer: slot.and_then(|slot| self.peer_facts(now, slot)),
            strangers: self.strangers.list(),
        };
        format!("facts={}\nerrno=0\n\n", json(&facts))
    }

    fn try_handshake(&mut self, now: Now, slot: u32) {
        let Some(peer) = self.peers.get(slot) else { return };
        let (idle, has_endpoint) = (peer.shared.connected_since().is_none(), peer.endpoint.is_some());
        // Without an endpoint the attempt would only drop what waits for one.
        if idle && has_endpoint {
            self.want_handshake(now, slot);
            self.check_timers(now, slot);
        }
    }

    fn peer_facts(&self, now: Now, slot: u32) -> Option<PeerFacts> {
        let peer = self.peers.get(slot)?;
        let activity = peer.shared.activity();
        let ago = |since: Instant| millis(now.mono.since(since));
        let now_ms = millis(now.wall);
        Some(PeerFacts {
            endpoint: peer.endpoint.map(|endpoint| endpoint.addr),
            connected_ms: peer.shared.connected_since().map(millis),
            last_handshake_ms: peer.shared.last_handshake().map(millis),
            last_data_ms: activity.last_data_received.map(|at| now_ms.saturating_sub(ago(at))),
            unanswered_data_ms: activity.unanswered_since.map(ago),
            rx_bytes: peer.shared.traffic.rx_bytes.load(Relaxed),
            tx_bytes: peer.shared.traffic.tx_bytes.load(Relaxed),
            persistent_keepalive: peer.timers.persistent_keepalive(),
            allowed_ips: peer.allowed.iter().take(MAX_PREFIXES).map(ToString::to_string).collect(),
            refused_sources: peer.shared.refused_sources.load(Relaxed),
            history: peer.history.as_deref().cloned().unwrap_or_default(),
        })
    }
}
