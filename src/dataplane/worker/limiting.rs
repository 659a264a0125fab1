//! Drawing from a peer's limits, on behalf of the receiving and the sending side.

use super::outbox::WorkerOutbox;
use crate::dataplane::limits::{Admission, LimitedWay, PacketBatch, PeerLimits};
use crate::dataplane::stats::add;
use crate::dataplane::{Event, PeerShared};
use crate::offload::split::Splitter;
use crate::time::Instant;
use crate::wire::message::DATA_OVERHEAD;
use std::ops::Range;

/// The part of a run of data messages that may be opened. What does not pass costs no decryption.
#[inline(never)]
pub(super) fn admit_run(
    limits: &PeerLimits,
    peer: &PeerShared,
    outbox: &mut WorkerOutbox,
    now: Instant,
    run: Range<usize>,
    stride: usize,
) -> Range<usize> {
    let count = run.len().div_ceil(stride);
    let batch = PacketBatch {
        count,
        each: stride.saturating_sub(DATA_OVERHEAD),
        total: run.len().saturating_sub(count * DATA_OVERHEAD),
    };
    let admission = limits.admit(LimitedWay::In, now, batch);
    tell(&admission, peer, outbox);
    add(&outbox.stats.rx_limited, count - admission.count);
    run.start..run.end.min(run.start + admission.count * stride)
}

/// Leaves of a frame the segments that may be sent. Returns whether there are any.
#[inline(never)]
pub(super) fn admit_frame(
    limits: &PeerLimits,
    peer: &PeerShared,
    outbox: &mut WorkerOutbox,
    now: Instant,
    splitter: &mut Splitter<'_>,
) -> bool {
    let (count, each, total) = (splitter.remaining(), splitter.next_len(), splitter.total_len());
    let admission = limits.admit(LimitedWay::Out, now, PacketBatch { count, each, total });
    tell(&admission, peer, outbox);
    add(&outbox.stats.tx_limited, count - admission.count);
    splitter.keep(admission.count);
    admission.count > 0
}

fn tell(admission: &Admission, peer: &PeerShared, outbox: &mut WorkerOutbox) {
    if let Some(used_up) = admission.quota {
        outbox.emit(Event::Quota(peer.id, used_up));
    }
}
