//! The answer to `status=1`: what the cross-platform protocol has no words for, as one line of JSON.
//!
//! `wg` never asks for it, so it is free to grow: readers leave out what they do not know.

use super::history::millis;
use super::uapi::CHUNK;
use super::{Device, More};
use crate::dataplane::directory::PeerDirectory;
use crate::dataplane::histograms::HistogramCounts;
use crate::dataplane::{Inbox, Links, PeerShared};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;

/// Counters, by their names.
pub type Counters = BTreeMap<String, u64>;

/// The status of a device: how it runs, and what it counted.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// The program's version.
    pub version: String,
    /// The number of the process that serves the interface.
    pub pid: u32,
    /// The workers' backend: `io_uring` or `syscalls`.
    pub io: String,
    /// Whether the interface is up and the sockets are bound.
    pub up: bool,
    /// Why no socket is bound although the interface is up. `None` where one is, or the interface is down.
    pub unbound: Option<Unbound>,
    /// Whether an eBPF program brings a peer's packets to its owner's TUN queue.
    pub tun_steering: bool,
    /// Whether a BPF program brings a peer's datagrams to its owner's socket. `None` while there are no sockets.
    pub udp_steering: Option<bool>,
    /// Whether sockets ask for UDP_GRO.
    pub gro: bool,
    /// How many system calls of the program its filter refused.
    pub refused_calls: u64,
    /// The owner of each peer, in the device's order.
    pub peers: Vec<Owner>,
    /// Counters of handshakes, by what became of them.
    pub handshakes: Counters,
    /// The counters of each worker.
    pub workers: Vec<Counters>,
    /// How large each worker's turns are (`turn_packets`), and how long they take (`turn_nanos`), without turns that moved nothing.
    pub histograms: Vec<BTreeMap<String, HistogramCounts>>,
    /// What waits for the slow path, by queue.
    pub slow_waiting: Counters,
    /// What waits for each worker, by queue.
    pub waiting: Vec<Counters>,
    /// What the peers have in common. `None` where an earlier version of the program answered.
    pub summary: Option<Summary>,
}

/// A UDP port that is tried again until it is free.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Unbound {
    /// The port. 0 is any.
    pub port: u16,
    /// What the kernel said at the last attempt.
    pub error: String,
}

impl Display for Unbound {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "none: UDP port {}: {}; trying again", self.port, self.error)
    }
}

/// The worker that opens a peer's packets, and whether the peer is connected.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Owner {
    /// The peer's public key in Base64.
    pub public_key: String,
    /// The number of the worker.
    pub worker: u8,
    /// Since when the peer is connected, in milliseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connected_ms: Option<u64>,
    /// Where the peer is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<SocketAddr>,
    /// What is to be remembered of the peer, a [`PeerMemory`](super::memory::PeerMemory) as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<String>,
}

/// A few numbers, for those who want to know how the device does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Summary {
    /// How many peers there are.
    pub peers: usize,
    /// How many peers are connected.
    pub alive: usize,
    /// Bytes received from all present peers. Those of peers that were removed do not count.
    pub rx_bytes: u64,
    /// Bytes sent to all present peers. Those of peers that were removed do not count.
    pub tx_bytes: u64,
}

impl Device {
    /// The [`Status`] without its peers. `links` are those of the device's own workers.
    pub fn status(&self, links: &Links) -> Status {
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            up: self.is_up(),
            unbound: self.unbound(),
            handshakes: by_name(self.stats().snapshot()),
            workers: links.workers.iter().map(|inbox| by_name(inbox.stats.snapshot())).collect(),
            histograms: links.workers.iter().map(histograms).collect(),
            slow_waiting: queues([
                ("events", links.slow.events.len()),
                ("handshakes", links.slow.handshakes.waiting()),
                ("notices", links.slow.notices.len()),
            ]),
            waiting: links.workers.iter().map(waiting).collect(),
            ..Status::default()
        }
    }

    /// Writes an answer on until `chunk` is full or `more` says that there is no time. True where that was all of the answer,
    /// with `errno=0` and the empty line.
    pub fn list(&self, listing: &mut Listing, chunk: &mut String, more: More<'_>) -> bool {
        chunk.push_str(&std::mem::take(&mut listing.head));
        while chunk.len() + OWNER_ROOM <= CHUNK {
            let Some((at, peer)) = self.peers.added_from(listing.order) else {
                listing.end(chunk);
                return true;
            };
            listing.summary.add(&peer.shared);
            if listing.with_owners {
                let owner = Owner {
                    public_key: peer.public_key.to_base64(),
                    worker: peer.shared.owner(),
                    connected_ms: peer.shared.connected_since().map(millis),
                    endpoint: peer.endpoint.map(|endpoint| endpoint.addr),
                    memory: peer.memory().map(|memory| memory.to_string()),
                };
                if !std::mem::replace(&mut listing.first, false) {
                    chunk.push(',');
                }
                chunk.push_str(&json(&owner));
            }
            listing.order = at.saturating_add(1);
            if !more() {
                break;
            }
        }
        false
    }
}

impl Summary {
    /// The summary of these peers.
    pub fn of(peers: &PeerDirectory) -> Summary {
        let mut summary = Summary::default();
        peers.iter().for_each(|peer| summary.add(peer));
        summary
    }

    fn add(&mut self, peer: &PeerShared) {
        self.peers += 1;
        self.alive += usize::from(peer.connected_since().is_some());
        self.rx_bytes = self.rx_bytes.wrapping_add(peer.traffic.rx_bytes.load(Relaxed));
        self.tx_bytes = self.tx_bytes.wrapping_add(peer.traffic.tx_bytes.load(Relaxed));
    }
}

/// More bytes than an [`Owner`] has as text: 44 characters, 23 digits, an endpoint of 58, a memory of 68, names and punctuation.
const OWNER_ROOM: usize = 384;
/// The place of the peers in the text of a status without any.
const NO_PEERS: &str = "\"peers\":[]";
/// The end of the text of a status without a summary, which is its last field.
const NO_SUMMARY: &str = "null}";

/// An answer to `status=1` under way. A peer added meanwhile is the last.
pub struct Listing {
    head: String,
    tail: String,
    /// The place from which on peers are still to come.
    order: u32,
    first: bool,
    /// Whether it lists the owners of the peers.
    with_owners: bool,
    /// The summary of those that came.
    summary: Summary,
}

impl Listing {
    /// Begins an answer. All but the peers is stated as it is now.
    pub fn new(status: &Status, with_owners: bool) -> Listing {
        let text = json(&Status { peers: Vec::new(), summary: None, ..status.clone() });
        let text = text.strip_suffix(NO_SUMMARY).unwrap_or(&text);
        let (head, tail) = text.split_once(NO_PEERS).unwrap_or((text, ""));
        Listing {
            head: format!("status={head}\"peers\":["),
            tail: format!("]{tail}"),
            order: 0,
            first: true,
            with_owners,
            summary: Summary::default(),
        }
    }

    fn end(&mut self, chunk: &mut String) {
        chunk.push_str(&std::mem::take(&mut self.tail));
        chunk.push_str(&json(&self.summary));
        chunk.push_str("}\nerrno=0\n\n");
    }
}

/// Writes a value as JSON. There are only maps with text for keys, text and numbers in it, none of which can fail.
pub(super) fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| "{}".to_owned())
}

fn histograms(inbox: &Inbox) -> BTreeMap<String, HistogramCounts> {
    let of = &inbox.histograms;
    let all = [("turn_packets", of.turn_packets()), ("turn_nanos", of.turn_nanos())];
    all.into_iter().map(|(name, counts)| (name.to_owned(), counts)).collect()
}

fn waiting(inbox: &Inbox) -> Counters {
    queues([("controls", inbox.controls.len()), ("misdirected", inbox.misdirected.waiting())])
}

fn queues<const N: usize>(waiting: [(&str, usize); N]) -> Counters {
    waiting.into_iter().map(|(queue, waiting)| (queue.to_owned(), waiting as u64)).collect()
}

fn by_name(snapshot: Vec<(&'static str, u64)>) -> Counters {
    snapshot.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::random::SystemEntropy;
    use crate::crypto::x25519::PublicKey;
    use crate::device::Now;
    use crate::device::uapi::{PeerRequest, SetRequest};
    use crate::index::WorkerCount;
    use crate::time::Instant;
    use std::time::Duration;

    #[test]
    fn the_answer_is_one_line_that_can_be_read_back() {
        let workers = Links::new(2).unwrap();
        workers.workers[1].stats.rx_owned.store(7, Relaxed);
        let mut device = Device::new(WorkerCount::nearest(2), Box::new(SystemEntropy));
        let peers = (1..=40u8).map(|seed| PeerRequest::new(PublicKey([seed; 32]))).collect();
        let now = Now { mono: Instant::START, wall: Duration::ZERO };
        device.apply(now, &SetRequest { peers, ..SetRequest::default() }, &mut |_| Ok(0)).unwrap();
        let mut status = device.status(&workers);
        assert_eq!((status.workers.len(), status.workers[1]["rx_owned"]), (2, 7));
        assert!(status.handshakes.contains_key("initiations_sent"));
        status.summary = Some(Summary { peers: 40, ..Summary::default() });
        let owner = |seed: u8| Owner {
            public_key: PublicKey([seed; 32]).to_base64(),
            worker: (seed - 1) % 2,
            connected_ms: None,
            endpoint: None,
            memory: None,
        };
        for with_owners in [false, true] {
            // In slices of one peer each.
            let (mut listing, mut answer) = (Listing::new(&status, with_owners), String::new());
            while !device.list(&mut listing, &mut answer, &mut || false) {}
            status.peers = (1..=40).filter(|_| with_owners).map(owner).collect();
            let line =
                answer.strip_suffix("\nerrno=0\n\n").and_then(|line| line.strip_prefix("status=")).unwrap();
            assert!(!line.contains('\n'));
            assert_eq!(serde_json::from_str::<Status>(line).unwrap(), status);
        }
    }

    #[test]
    fn a_summary_is_of_the_peers_that_there_are() {
        let mut device = Device::new(WorkerCount::nearest(2), Box::new(SystemEntropy));
        let peers: Vec<_> = (1..=3u8).map(|seed| PeerRequest::new(PublicKey([seed; 32]))).collect();
        let now = Now { mono: Instant::START, wall: Duration::from_secs(1000) };
        let apply = |device: &mut Device, peers| {
            device.apply(now, &SetRequest { peers, ..SetRequest::default() }, &mut |_| Ok(0)).unwrap();
        };
        apply(&mut device, peers.clone());
        for ((peer, connected), bytes) in device.peers().iter().zip([false, true, false]).zip([1, 2, 4]) {
            peer.traffic.rx_bytes.store(bytes, Relaxed);
            if connected {
                peer.note_connected(now.wall);
            }
        }
        let summary = |device: &Device| Summary::of(&device.directory());
        assert_eq!(summary(&device), Summary { peers: 3, alive: 1, rx_bytes: 7, tx_bytes: 0 });
        apply(&mut device, vec![PeerRequest { remove: true, ..peers[1].clone() }]);
        assert_eq!(summary(&device), Summary { peers: 2, alive: 0, rx_bytes: 5, tx_bytes: 0 });
    }

    #[test]
    fn a_status_of_another_version_is_read_as_far_as_it_is_known() {
        let status: Status = serde_json::from_str(r#"{"version":"9","news":[1],"up":true}"#).unwrap();
        assert_eq!((status.version.as_str(), status.up, status.workers.len()), ("9", true, 0));
    }
}
