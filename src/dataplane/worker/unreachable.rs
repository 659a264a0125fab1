//! Sends ICMP unreachable to the sources of packets that cannot be tunnelled, within a rate.

use crate::dataplane::stats::{WorkerStats, add};
use crate::io::Io;
use crate::time::{Instant, TokenBucket};
use crate::wire::icmp::{Unreachable, unreachable};
use crate::wire::ip;
use crate::wire::vnet::{VNET_HDR_LEN, VnetHeader};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

/// One message a millisecond on average, per worker (Linux: `net.ipv4.icmp_msgs_per_sec`, 1000).
const INTERVAL: Duration = Duration::from_millis(1);
/// Messages at once after a pause, as time: 50 (Linux: `net.ipv4.icmp_msgs_burst`).
const BURST: Duration = Duration::from_millis(50);

/// Answers packets that cannot be tunnelled, at a bounded rate.
#[derive(Default)]
pub(super) struct UnreachableSender {
    bucket: TokenBucket,
    /// The broadcast addresses of the interface's networks. A packet to one of them is never answered (RFC 1122
    /// section 3.2.2).
    pub(super) broadcasts: Arc<[Ipv4Addr]>,
}

impl UnreachableSender {
    /// Sends an ICMP unreachable to the source of `frame` (virtio-net header and packet), where one is due.
    pub(super) fn refuse<I: Io>(
        &mut self,
        io: &mut I,
        stats: &WorkerStats,
        frame: &[u8],
        why: Unreachable,
        now: Instant,
    ) {
        let Some(packet) = frame.get(VNET_HDR_LEN..) else { return };
        let Some(info) = ip::parse(packet) else { return };
        if matches!(info.destination, IpAddr::V4(to) if self.broadcasts.contains(&to)) {
            return;
        }
        if !self.bucket.has(now, INTERVAL, BURST) {
            add(&stats.icmp_limited, 1);
            return;
        }
        let Some(mut buf) = io.alloc() else {
            add(&stats.tx_no_buffer, 1);
            return;
        };
        let (vnet, out) = buf.split_at_mut(VNET_HDR_LEN);
        let Some(len) = unreachable(packet, why, out) else { return };
        self.bucket.draw(now, INTERVAL, BURST);
        add(&stats.icmp_sent, 1);
        let message = ip::transport(&out[..len]).and_then(|transport| out.get(transport.offset..len));
        if message.is_some_and(|message| io.send_icmp(info.source, message)) {
            return;
        }
        vnet.copy_from_slice(&VnetHeader::default().to_bytes());
        let piece = 0..VNET_HDR_LEN + len;
        io.write_tun(&buf.share(), std::slice::from_ref(&piece));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_one_an_interval() {
        let mut unreachable = UnreachableSender::default();
        let mut now = Instant::from_nanos(1_000_000_000);
        let mut spend = |now| unreachable.bucket.draw(now, INTERVAL, BURST);
        assert_eq!((0..100).filter(|_| spend(now)).count(), 50);
        now = now + INTERVAL;
        assert_eq!((0..100).filter(|_| spend(now)).count(), 1);
        now = now + Duration::from_secs(3600);
        assert_eq!((0..100).filter(|_| spend(now)).count(), 50);
    }
}
