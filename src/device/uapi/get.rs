//! The answer to `get=1`, in wireguard-go's order.

use crate::device::{Device, peer::Peer};
use std::fmt::Write;
use std::sync::atomic::Ordering::Relaxed;
use zeroize::Zeroizing;

/// More than the lines of the interface have: 77 + 18 + 18 + 9.
const DEVICE_ROOM: usize = 256;
/// More than the lines of a peer without its allowed IPs have: 2 × 79 + 19 + 74 + 5 × 50.
const PEER_ROOM: usize = 640;
/// More than an allowed IP's line has: `allowed_ip=`, 39 + 4, newline.
const ALLOWED_IP_ROOM: usize = 56;

impl Device {
    /// The whole answer to `get=1`, `errno=0` and the empty line included.
    pub fn uapi_get(&self) -> Zeroizing<String> {
        let peers = self.peers.in_order();
        let allowed: usize = peers.iter().map(|peer| peer.allowed.len()).sum();
        // Room for all of it at once: a string that grew would leave copies of the keys behind.
        let room = DEVICE_ROOM + peers.len() * PEER_ROOM + allowed * ALLOWED_IP_ROOM;
        let mut text = Zeroizing::new(String::with_capacity(room));
        if let Some(identity) = &self.identity {
            key_line(&mut text, "private_key", &Zeroizing::new(identity.private().to_bytes()));
        }
        if self.port != 0 {
            line(&mut text, "listen_port", self.port);
        }
        if self.mark != 0 {
            line(&mut text, "fwmark", self.mark);
        }
        for peer in peers {
            peer_lines(&mut text, peer);
        }
        text.push_str("errno=0\n\n");
        debug_assert!(text.len() <= room);
        text
    }
}

fn peer_lines(text: &mut String, peer: &Peer) {
    key_line(text, "public_key", &peer.public_key.0);
    key_line(text, "preshared_key", &peer.handshake.psk().0);
    line(text, "protocol_version", 1);
    if let Some(endpoint) = peer.endpoint {
        line(text, "endpoint", endpoint.addr);
    }
    let handshake = peer.last_handshake.unwrap_or_default();
    line(text, "last_handshake_time_sec", handshake.as_secs());
    line(text, "last_handshake_time_nsec", handshake.subsec_nanos());
    line(text, "tx_bytes", peer.shared.tx_bytes.load(Relaxed));
    line(text, "rx_bytes", peer.shared.rx_bytes.load(Relaxed));
    line(text, "persistent_keepalive_interval", peer.timers.persistent_keepalive());
    for prefix in &peer.allowed {
        line(text, "allowed_ip", format_args!("{}/{}", prefix.addr(), prefix.len()));
    }
}

fn line(text: &mut String, key: &str, value: impl std::fmt::Display) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{key}={value}");
}

fn key_line(text: &mut String, key: &str, bytes: &[u8; 32]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    text.push_str(key);
    text.push('=');
    for byte in bytes {
        text.push(DIGITS[usize::from(byte >> 4)] as char);
        text.push(DIGITS[usize::from(byte & 15)] as char);
    }
    text.push('\n');
}
