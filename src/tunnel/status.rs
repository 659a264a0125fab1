//! How a tunnel is, and how its peers are.

use crate::crypto::x25519::PublicKey;
use crate::device::status::Summary;
use crate::device::{Device, PeerInfo};
use crate::routing::Prefix;
use crate::slowpath::handle::Running;
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How a tunnel is.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TunnelStatus {
    /// Whether the interface is up and the UDP sockets are bound.
    pub up: bool,
    /// Why there are no sockets although the interface is up; they are tried again by themselves.
    pub bind_error: Option<String>,
    /// The UDP port: the configured one while the interface is down, the bound one while it is up; 0: any, or not bound.
    pub listen_port: u16,
    /// The firewall mark of the tunnel's own datagrams; 0: none.
    pub fwmark: u32,
    /// The public key of the tunnel's private key, if it has one.
    pub public_key: Option<PublicKey>,
    /// Whether workers speak to the kernel through io_uring, else by plain system calls.
    pub io_uring: bool,
    /// How many peers there are.
    pub peers: usize,
    /// How many of them have shaken hands within the last three minutes, so that packets pass.
    pub alive: usize,
    /// Bytes received from the peers that there are.
    pub rx_bytes: u64,
    /// Bytes sent to them.
    pub tx_bytes: u64,
}

/// How a peer is.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct PeerStatus {
    /// Who it is.
    pub public_key: PublicKey,
    /// Where it was last.
    pub endpoint: Option<SocketAddr>,
    /// When hands were shaken last; `None`: never.
    pub last_handshake: Option<SystemTime>,
    /// Seconds between keepalives; 0: off.
    pub persistent_keepalive: u16,
    /// What is sent to it and taken from it.
    pub allowed_ips: Vec<Prefix>,
    /// Bytes received from it.
    pub rx_bytes: u64,
    /// Bytes sent to it.
    pub tx_bytes: u64,
}

impl TunnelStatus {
    pub(super) fn of(device: &Device, running: Running) -> TunnelStatus {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let Summary { peers, alive, rx_bytes, tx_bytes } = device.summary(now);
        TunnelStatus {
            up: device.is_up(),
            bind_error: device
                .unbound()
                .map(|unbound| format!("UDP port {}: {}", unbound.port, unbound.error)),
            listen_port: device.listen_port(),
            fwmark: device.fwmark(),
            public_key: device.public_key().copied(),
            io_uring: running.uring,
            peers,
            alive,
            rx_bytes,
            tx_bytes,
        }
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
            rx_bytes: peer.shared.rx_bytes.load(Relaxed),
            tx_bytes: peer.shared.tx_bytes.load(Relaxed),
        }
    }
}

/// At most so many peers from place `from` on, and the place of the next, if there are more.
pub(super) fn page(device: &Device, from: u32, most: usize) -> (Vec<PeerStatus>, Option<u32>) {
    let (mut page, mut next) = (Vec::new(), from);
    while page.len() < most {
        let Some((at, peer)) = device.peer_from(next) else { return (page, None) };
        page.push(PeerStatus::of(&peer));
        next = at.saturating_add(1);
    }
    (page, Some(next))
}
