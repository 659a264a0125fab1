//! What a worker and its peers leave to another process, as values. The slow path collects them (`device/handover/`).

use super::{PeerId, PeerShared};
use crate::dataplane::limits::{LimitsRecord, PeerLimits};
use crate::noise::session::{RecvRecord, RecvSession, Role, SendSession};
use crate::time::{Instant, Offset};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// What a worker at rest has that nobody else has.
#[derive(Debug, Default)]
pub struct WorkerRecord {
    /// The worker's number.
    pub worker: u8,
    /// The sessions on which it receives.
    pub sessions: Vec<ReceivingRecord>,
    /// The frames that wait for a session, in the order of each peer's.
    pub frames: Vec<Box<[u8]>>,
}

/// A session on which a worker receives.
#[derive(Debug)]
pub struct ReceivingRecord {
    /// Whose session it is.
    pub peer: PeerId,
    /// The local index.
    pub index: u32,
    /// This end's role in the handshake.
    pub role: Role,
    /// The opening half.
    pub receive: RecvRecord,
    /// Whether the session has taken effect, of which the slow path may not have heard yet.
    pub effective: bool,
}

/// A session that a worker goes on with.
pub struct RestoredSession {
    /// Whose session it is.
    pub peer: Arc<PeerShared>,
    /// The opening half.
    pub receive: Box<RecvSession>,
    /// The sending half of one that is sent with as soon as it takes effect.
    pub send: Option<Arc<SendSession>>,
    /// Whether it has taken effect.
    pub effective: bool,
}

impl fmt::Debug for RestoredSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RestoredSession({:#x} of {:?})", self.receive.local_index(), self.peer.id)
    }
}

/// What workers count and stamp of a peer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TrafficRecord {
    rx_bytes: u64,
    tx_bytes: u64,
    refused_sources: u64,
    handshake_index: u32,
    /// Nanoseconds since the Unix epoch at which the last handshake completed, and since which the peer is connected; 0 is never.
    handshake_at: u64,
    connected_at: u64,
    /// The stamps of [`crate::noise::timers::Activity`], in its order.
    stamps: [Option<Offset>; 4],
    /// What limits the peer, if anything does or did.
    limits: Option<LimitsRecord>,
}

impl PeerShared {
    fn stamps(&self) -> [&AtomicU64; 4] {
        let traffic = &self.traffic;
        [
            &traffic.unanswered_since,
            &traffic.unacknowledged_since,
            &traffic.last_data_received,
            &traffic.last_authenticated,
        ]
    }

    /// What is counted and stamped of the peer, at `now`.
    pub fn record(&self, now: Instant) -> TrafficRecord {
        let offset = |stamp: &AtomicU64| match stamp.load(Relaxed) {
            0 => None,
            nanos => Some(Offset::of(Instant::from_nanos(nanos), now)),
        };
        TrafficRecord {
            rx_bytes: self.traffic.rx_bytes.load(Relaxed),
            tx_bytes: self.traffic.tx_bytes.load(Relaxed),
            refused_sources: self.refused_sources.load(Relaxed),
            handshake_index: self.handshake_index.load(Relaxed),
            handshake_at: self.handshake_at.load(Relaxed),
            connected_at: self.connected_at.load(Relaxed),
            stamps: self.stamps().map(offset),
            limits: self.limits().map(|limits| limits.record(now)),
        }
    }

    /// Takes over what was counted and stamped, of which a record was made at `then`. For a peer that is new here.
    pub fn restore(&self, record: &TrafficRecord, then: Instant) {
        self.traffic.rx_bytes.store(record.rx_bytes, Relaxed);
        self.traffic.tx_bytes.store(record.tx_bytes, Relaxed);
        self.refused_sources.store(record.refused_sources, Relaxed);
        self.handshake_index.store(record.handshake_index, Relaxed);
        self.handshake_at.store(record.handshake_at, Relaxed);
        self.connected_at.store(record.connected_at, Relaxed);
        if let Some(limits) = &record.limits {
            self.limits.get_or_init(|| Box::new(PeerLimits::restore(limits, then)));
        }
        for (stamp, offset) in self.stamps().into_iter().zip(record.stamps) {
            // 0 is never.
            let at = offset.map(|offset| offset.from(then).max(Instant::START));
            stamp.store(at.map_or(0, Instant::as_nanos), Relaxed);
        }
    }
}
