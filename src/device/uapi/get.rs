//! The answer to `get=1`, in wireguard-go's order. It is made in slices, as for 100,000 peers it takes a quarter of a
//! second and 40 MB.

use crate::crypto::x25519::PublicKey;
use crate::dataplane::PeerShared;
use crate::dataplane::limits::QuotaUse;
use crate::device::More;
use crate::device::{Device, peer::Peer};
use std::fmt::Write;
use std::sync::atomic::Ordering::Relaxed;
use zeroize::Zeroizing;

/// Most bytes of an answer that are made before they are sent: what a pipe or socket takes at once.
pub const CHUNK: usize = 64 * 1024;
/// More bytes than the lines of the interface have: 77 + 18 + 18 + 9.
const DEVICE_ROOM: usize = 256;
/// More bytes than the lines of a peer without its allowed IPs have: 2 × 79 + 19 + 74 + 5 × 50.
const PEER_ROOM: usize = 640 + LIMITS_ROOM;
/// More bytes than the lines of a peer's limits have: at most 16 numbers of 20 digits, and the words.
const LIMITS_ROOM: usize = 512;
/// More bytes than an allowed IP's line has: `allowed_ip=`, 39 + 4, newline.
const ALLOWED_IP_ROOM: usize = 56;
/// Most allowed IPs that are written in one step.
const PIECE: usize = 64;
/// More bytes than one step and the end of the answer have.
const STEP_ROOM: usize = DEVICE_ROOM + PEER_ROOM + PIECE * ALLOWED_IP_ROOM;
const _: () = assert!(STEP_ROOM <= CHUNK);

/// Makes an empty chunk. It has all its room from the start, as a string that grew would leave copies of the keys behind.
pub fn chunk() -> Zeroizing<String> {
    Zeroizing::new(String::with_capacity(CHUNK))
}

/// An answer under way. It states of each peer what holds when its turn comes, and a peer added meanwhile is the last.
#[derive(Default)]
pub struct Dump {
    /// The peers that it is about, in this order. `None` is all of them.
    named: Option<Vec<PublicKey>>,
    position: Position,
}

#[derive(Default)]
enum Position {
    #[default]
    Interface,
    /// Next is the first peer at or after place `order`, in the order of addition or among those named, with its allowed
    /// IPs from number `allowed` on.
    Peer { order: u32, allowed: usize },
}

impl Dump {
    /// Makes an answer about these peers and the interface.
    pub fn of(named: Vec<PublicKey>) -> Dump {
        Dump { named: Some(named), position: Position::default() }
    }
}

impl Device {
    /// Writes on until `chunk` is full or `more` says that there is no time. True where that was all of the answer, with
    /// `errno=0` and the empty line.
    pub fn dump(&self, dump: &mut Dump, chunk: &mut Zeroizing<String>, more: More<'_>) -> bool {
        while CHUNK - chunk.len() >= STEP_ROOM {
            dump.position = match dump.position {
                Position::Interface => {
                    self.interface_lines(chunk);
                    Position::Peer { order: 0, allowed: 0 }
                }
                Position::Peer { order, allowed } => {
                    let Some((at, peer)) = self.peer_of_dump(dump.named.as_deref(), order) else {
                        chunk.push_str("errno=0\n\n");
                        return true;
                    };
                    // The peer that was begun may be gone. Then this is the next, of which nothing is written yet.
                    peer_lines(chunk, peer, at, if at == order { allowed } else { 0 })
                }
            };
            if !more() {
                return false;
            }
        }
        false
    }

    /// The peer whose turn it is, and its place.
    fn peer_of_dump(&self, named: Option<&[PublicKey]>, order: u32) -> Option<(u32, &Peer)> {
        let Some(named) = named else { return self.peers.added_from(order) };
        let rest = named.get(order as usize..)?;
        (order..).zip(rest).find_map(|(at, key)| Some((at, self.peers.get(self.peers.find(key)?)?)))
    }

    /// Makes the whole answer at once.
    #[cfg(feature = "internals")]
    pub fn uapi_get(&self) -> Zeroizing<String> {
        self.whole(Dump::default())
    }

    /// Makes the whole answer about these peers at once.
    #[cfg(feature = "internals")]
    pub fn uapi_get_peers(&self, named: Vec<PublicKey>) -> Zeroizing<String> {
        self.whole(Dump::of(named))
    }

    #[cfg(feature = "internals")]
    fn whole(&self, mut dump: Dump) -> Zeroizing<String> {
        let mut whole = Zeroizing::new(String::new());
        loop {
            let mut next = chunk();
            let done = self.dump(&mut dump, &mut next, &mut || true);
            whole.push_str(&next);
            if done {
                return whole;
            }
        }
    }

    fn interface_lines(&self, text: &mut String) {
        if let Some(identity) = &self.identity {
            key_line(text, "private_key", &Zeroizing::new(identity.private().to_bytes()));
        }
        if self.listen_port() != 0 {
            line(text, "listen_port", self.listen_port());
        }
        if self.mark != 0 {
            line(text, "fwmark", self.mark);
        }
    }
}

/// Writes a peer's lines, or only those of its allowed IPs from `from` on. Returns where to go on.
fn peer_lines(text: &mut String, peer: &Peer, order: u32, from: usize) -> Position {
    if from == 0 {
        key_line(text, "public_key", &peer.public_key.0);
        key_line(text, "preshared_key", &peer.handshake.psk().0);
        line(text, "protocol_version", 1);
        if let Some(endpoint) = peer.endpoint {
            line(text, "endpoint", endpoint.addr);
        }
        let handshake = peer.shared.last_handshake().unwrap_or_default();
        line(text, "last_handshake_time_sec", handshake.as_secs());
        line(text, "last_handshake_time_nsec", handshake.subsec_nanos());
        line(text, "tx_bytes", peer.shared.traffic.tx_bytes.load(Relaxed));
        line(text, "rx_bytes", peer.shared.traffic.rx_bytes.load(Relaxed));
        line(text, "persistent_keepalive_interval", peer.timers.persistent_keepalive());
        limit_lines(text, &peer.shared);
    }
    for prefix in peer.allowed.iter().skip(from).take(PIECE) {
        line(text, "allowed_ip", format_args!("{}/{}", prefix.addr(), prefix.len()));
    }
    match from + PIECE < peer.allowed.len() {
        true => Position::Peer { order, allowed: from + PIECE },
        false => Position::Peer { order: order.saturating_add(1), allowed: 0 },
    }
}

/// Writes the lines of a peer's limits, where it has some.
fn limit_lines(text: &mut String, peer: &PeerShared) {
    let Some(limits) = peer.limits() else { return };
    let settings = limits.settings();
    if settings.is_none() {
        return;
    }
    line(text, "ringtun_limits", settings);
    let (inbound, outbound) = limits.limited();
    line(text, "ringtun_limited", format_args!("{inbound} {outbound}"));
    if let Some(QuotaUse { used, ends }) = limits.quota_use() {
        line(text, "ringtun_quota", format_args!("{used} {ends}"));
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
