//! The state of a tunnel and of its peers, as the library states it.

use crate::crypto::x25519::PublicKey;
use crate::dataplane::directory::PeerDirectory;
use crate::device::status::Summary;
use crate::device::{Device, PeerInfo};
use crate::routing::Prefix;
use crate::slowpath::handle::Running;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{SystemTime, UNIX_EPOCH};

/// The state of a tunnel, at the time of the call.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TunnelStatus {
    /// Whether the interface is up and the UDP sockets are bound.
    pub up: bool,
    /// Why there are no sockets although the interface is up. They are tried again without a call.
    pub bind_error: Option<String>,
    /// The UDP port: the configured one while the interface is down, the bound one while it is up. 0 where any will do, or
    /// none is bound.
    pub listen_port: u16,
    /// The firewall mark of the tunnel's own datagrams. 0 is none.
    pub fwmark: u32,
    /// The public key of the tunnel's private key, if it has one.
    pub public_key: Option<PublicKey>,
    /// Whether workers speak to the kernel through io_uring; otherwise they use plain system calls.
    pub io_uring: bool,
    /// How many peers there are.
    pub peers: usize,
    /// How many peers are connected: there is a session that both ends have, so that packets pass.
    pub alive: usize,
    /// Bytes received from the present peers.
    pub rx_bytes: u64,
    /// Bytes sent to the present peers.
    pub tx_bytes: u64,
}

/// The state of a peer, at the time of the call.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct PeerStatus {
    /// The peer's public key.
    pub public_key: PublicKey,
    /// The address and port from which an authentic packet of the peer came last, or the configured ones.
    pub endpoint: Option<SocketAddr>,
    /// When the last handshake with the peer was completed. `None` where there was none.
    pub last_handshake: Option<SystemTime>,
    /// Seconds between persistent keepalives. 0 is off.
    pub persistent_keepalive: u16,
    /// The prefixes that are sent to the peer and accepted from it.
    pub allowed_ips: Vec<Prefix>,
    /// Bytes received from the peer.
    pub rx_bytes: u64,
    /// Bytes sent to the peer.
    pub tx_bytes: u64,
}

impl TunnelStatus {
    /// The state but for the peers, and where their counters are.
    pub(super) fn begin(device: &Device, running: Running) -> (TunnelStatus, Arc<PeerDirectory>) {
        let status = TunnelStatus {
            up: device.is_up(),
            bind_error: device
                .unbound()
                .map(|unbound| format!("UDP port {}: {}", unbound.port, unbound.error)),
            listen_port: device.listen_port(),
            fwmark: device.fwmark(),
            public_key: device.public_key().copied(),
            io_uring: running.uring,
            peers: 0,
            alive: 0,
            rx_bytes: 0,
            tx_bytes: 0,
        };
        (status, device.directory())
    }

    /// The whole state, with the peers' counters, which are read in the caller's thread.
    pub(super) fn complete(self, directory: &PeerDirectory) -> TunnelStatus {
        let Summary { peers, alive, rx_bytes, tx_bytes } = Summary::of(directory);
        TunnelStatus { peers, alive, rx_bytes, tx_bytes, ..self }
    }
}

impl PeerStatus {
    pub(super) fn of(peer: &PeerInfo<'_>) -> PeerStatus {
        PeerStatus {
            public_key: *peer.public_key,
            endpoint: peer.endpoint.map(|endpoint| endpoint.addr),
            last_handshake: peer.last_handshake.map(|at| UNIX_EPOCH + at),
            persistent_keepalive: peer.persistent_keepalive,
            allowed_ips: peer.allowed_ips.to_vec(),
            rx_bytes: peer.shared.traffic.rx_bytes.load(Relaxed),
            tx_bytes: peer.shared.traffic.tx_bytes.load(Relaxed),
        }
    }
}

/// The state of at most `most` peers from place `from` on, and the place of the next, if there are more.
pub(super) fn page(device: &Device, from: u32, most: usize) -> (Vec<PeerStatus>, Option<u32>) {
    let (mut page, mut next) = (Vec::new(), from);
    while page.len() < most {
        let Some((at, peer)) = device.peer_from(next) else { return (page, None) };
        page.push(PeerStatus::of(&peer));
        next = at.saturating_add(1);
    }
    (page, Some(next))
}
