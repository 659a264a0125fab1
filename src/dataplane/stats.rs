//! Counters, one set a worker: relaxed atomics that this worker alone writes (load, add, store) and anyone reads.

use crate::dataplane::counters::counters;
use crate::io::IoStats;
use crate::offload::coalesce::{REFUSALS, Refusal};
use crate::offload::split::SplitError;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

counters! {
    /// The counters of one worker. Every reason for a drop has a name here.
    WorkerStats of AtomicU64, read |counter| counter.load(Relaxed);

    /// Inner packets sealed.
    tx_packets,
    /// Trains queued for sending. Keepalives and handshake messages are not counted.
    tx_trains,
    /// Frames read from the TUN device.
    tx_frames,
    /// Frames read from the TUN device that held more than one packet.
    tx_super_packets,
    /// Frames read from the TUN device for a peer that this worker owns: hits of the TUN queue.
    tx_frames_own,
    /// Frames read from the TUN device for another worker's peer. Such a peer is spread by flow, or nothing steers
    /// the TUN queues.
    tx_frames_other,
    /// Keepalives sent.
    tx_keepalives,
    /// Handshake messages sent for the slow path.
    tx_handshakes,
    /// Frames staged for a peer without a usable session.
    tx_staged,
    /// Staged frames dropped: they were too many or too old, or their peer was given up or removed.
    tx_staged_dropped,
    /// Frames dropped: no peer's AllowedIPs hold the destination.
    tx_no_peer,
    /// Packets dropped: their peer's rate or quota is used up.
    tx_limited,
    /// Packets dropped as they are outer packets of this device, which a route leads back into the tunnel.
    tx_looped,
    /// Frames dropped: the peer has no endpoint.
    tx_no_endpoint,
    /// Packets dropped: the session ran out of counters while their train was built.
    tx_no_session,
    /// Packets, keepalives and handshake messages dropped: no buffer was free even after a flush.
    tx_no_buffer,
    /// Packets dropped: no UDP datagram can carry them. Their senders hear the limit by ICMP.
    tx_oversized,
    /// Frames dropped: their virtio-net header is truncated or of an unknown type.
    tx_bad_vnet,
    /// Frames dropped: they are neither IPv4 nor IPv6, or state contradictory lengths.
    tx_bad_ip,
    /// Frames dropped: the super-packet's transport header is not what its type promises.
    tx_bad_transport,
    /// Frames dropped: their segment size is impossible.
    tx_bad_gso_size,
    /// Frames dropped: their checksum offset lies beyond the packet.
    tx_bad_checksum,
    /// ICMP unreachable messages sent to the sources of packets that could not be tunnelled.
    icmp_sent,
    /// ICMP unreachable messages withheld by the rate limit.
    icmp_limited,

    /// Inner packets delivered to the TUN device.
    rx_packets,
    /// Trains received. Misdirected datagrams are not counted.
    rx_trains,
    /// Trains that this worker let others open, and then released in their order.
    rx_shared_out,
    /// Trains that this worker opened for others.
    rx_assisted,
    /// Times that a received train which another worker had begun did not return in time, so that none was shared out for a while.
    rx_assist_stalls,
    /// Trains that this worker let others seal, and then sent in their order.
    tx_shared_out,
    /// Trains that this worker sealed for others.
    tx_assisted,
    /// Times that a train to be sent which another worker had begun did not return in time, so that none was shared out for a while.
    tx_assist_stalls,
    /// Packets and super-packets written to the TUN device.
    rx_runs,
    /// Super-packets written to the TUN device.
    rx_super_packets,
    /// Those of them that hold TCP inside a UDP tunnel (VXLAN, GENEVE).
    rx_tunnel_super_packets,
    /// Keepalives received.
    rx_keepalives,
    /// Data messages that arrived at the worker that owns them.
    rx_owned,
    /// Data messages passed on to their owner.
    misdirected_out,
    /// Data messages taken over from other workers.
    misdirected_in,
    /// Data messages dropped: their owner's inbox was full.
    misdirected_dropped,
    /// Misdirected datagrams dropped: no buffer was free.
    rx_no_buffer,
    /// Datagrams dropped: they are empty, or their type and length do not agree.
    rx_malformed,
    /// Handshake messages passed to the slow path.
    rx_handshakes,
    /// Handshake messages dropped: MAC1 is wrong.
    rx_bad_mac1,
    /// Cookie replies sent under load.
    tx_cookies,
    /// Handshake messages dropped under load: the cookie replies to their source, and to all, are used up.
    tx_cookies_withheld,
    /// Handshake messages dropped: there is no private key.
    rx_no_identity,
    /// Handshake messages dropped: the slow path's queue was full.
    rx_handshakes_dropped,
    /// Data messages dropped: nobody has their receiver index.
    rx_unknown_index,
    /// Data messages dropped: their session is too old.
    rx_expired,
    /// Data messages dropped: the tag did not verify.
    rx_decrypt_failed,
    /// Data messages dropped: they are authentic, but were seen before or are older than the replay window.
    rx_replayed,
    /// Data messages dropped before they were opened: their peer's rate or quota is used up.
    rx_limited,
    /// Inner packets dropped: they are neither IPv4 nor IPv6, or state contradictory lengths.
    rx_bad_inner,
    /// Inner packets dropped: the longest prefix that holds their source is not their peer's.
    rx_bad_source,
    /// Times that a peer was heard from another address or port, or at another local address.
    rx_roamed,

    /// Packets that joined no super-packet as they cannot be coalesced: they are not TCP or UDP, are fragments, or
    /// have options.
    refused_not_coalescable,
    /// Packets that joined no super-packet as their flow or other header fields differ.
    refused_headers,
    /// Packets that joined no super-packet as they do not bear the next TCP sequence number.
    refused_sequence,
    /// Packets that joined no super-packet as their size differs.
    refused_size,
    /// Packets that joined no super-packet for their TCP flags.
    refused_flags,
    /// Packets that joined no super-packet as it was full.
    refused_full,
    /// Packets that joined no super-packet as their own checksum, or that of its first packet, does not verify.
    refused_checksum,

    /// Times that an event found the slow path's queue full. It is tried again.
    events_deferred,
    /// Notices for the log dropped: too many waited.
    notices_dropped,
    /// Endpoints whose sticky source address went away.
    tx_source_gone,
    /// Controls carried out.
    controls,
    /// Turns made.
    turns,
    /// Times that the loop busy-polled for an answer before it slept.
    busy_polls,
    /// Busy-polls in which something was received.
    busy_polls_answered,

    /// Trains handed to the kernel.
    io_udp_sends,
    /// Datagrams in the trains that were handed to the kernel.
    io_udp_sent_datagrams,
    /// Datagrams that the kernel refused for good: unreachable, no buffer, no route.
    io_udp_send_errors,
    /// Trains received.
    io_udp_receives,
    /// Received datagrams dropped, as they were truncated or had control data that made no sense.
    io_udp_receive_errors,
    /// Reads of the TUN device.
    io_tun_reads,
    /// Writes that the TUN device took.
    io_tun_writes,
    /// Writes that the TUN device refused.
    io_tun_write_errors,
    /// Times that an offload was switched off at run time.
    io_offload_fallbacks,
    /// Times that the loop slept.
    io_waits,
    /// Time for which the loop slept.
    io_slept_nanos,
    /// Time between its sleeps.
    io_awake_nanos,
}

/// Adds to a counter that only the calling thread writes: no locked instruction is needed.
pub(super) fn add(counter: &AtomicU64, n: usize) {
    counter.store(counter.load(Relaxed).wrapping_add(n as u64), Relaxed);
}

impl WorkerStats {
    /// Mirrors the backend's counters so that others can read them.
    pub fn publish_io(&self, io: &IoStats) {
        let IoStats {
            udp_sends,
            udp_sent_datagrams,
            udp_send_errors,
            udp_receives,
            udp_receive_errors,
            tun_reads,
            tun_writes,
            tun_write_errors,
            offload_fallbacks,
            waits,
            slept_nanos,
            awake_nanos,
        } = *io;
        self.io_udp_sends.store(udp_sends, Relaxed);
        self.io_udp_sent_datagrams.store(udp_sent_datagrams, Relaxed);
        self.io_udp_send_errors.store(udp_send_errors, Relaxed);
        self.io_udp_receives.store(udp_receives, Relaxed);
        self.io_udp_receive_errors.store(udp_receive_errors, Relaxed);
        self.io_tun_reads.store(tun_reads, Relaxed);
        self.io_tun_writes.store(tun_writes, Relaxed);
        self.io_tun_write_errors.store(tun_write_errors, Relaxed);
        self.io_offload_fallbacks.store(offload_fallbacks, Relaxed);
        self.io_waits.store(waits, Relaxed);
        self.io_slept_nanos.store(slept_nanos, Relaxed);
        self.io_awake_nanos.store(awake_nanos, Relaxed);
    }

    /// Adds what the coalescer refused, in the order of [`Refusal`]'s variants.
    pub(super) fn add_refusals(&self, counts: &[u64; REFUSALS]) {
        let counters = [
            (&self.refused_not_coalescable, Refusal::NotCoalescable),
            (&self.refused_headers, Refusal::Headers),
            (&self.refused_sequence, Refusal::Sequence),
            (&self.refused_size, Refusal::Size),
            (&self.refused_flags, Refusal::Flags),
            (&self.refused_full, Refusal::Full),
            (&self.refused_checksum, Refusal::Checksum),
        ];
        for (counter, why) in counters {
            add(counter, counts[why as usize] as usize);
        }
    }

    /// The counter of frames that could not be split for the reason `why`.
    pub(super) fn split_error(&self, why: SplitError) -> &AtomicU64 {
        match why {
            SplitError::Vnet => &self.tx_bad_vnet,
            SplitError::Ip => &self.tx_bad_ip,
            SplitError::Transport => &self.tx_bad_transport,
            SplitError::GsoSize => &self.tx_bad_gso_size,
            SplitError::Checksum => &self.tx_bad_checksum,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_has_its_own_name() {
        let stats = WorkerStats::default();
        add(&stats.rx_replayed, 3);
        let snapshot = stats.snapshot();
        let mut names: Vec<_> = snapshot.iter().map(|(name, _)| *name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), snapshot.len());
        assert_eq!(snapshot.iter().map(|(_, n)| n).sum::<u64>(), 3);
        assert!(snapshot.contains(&("rx_replayed", 3)));
    }

    #[test]
    fn publishing_replaces_what_was_published_before() {
        let stats = WorkerStats::default();
        stats.publish_io(&IoStats { waits: 7, tun_writes: 2, ..IoStats::default() });
        let io = IoStats {
            udp_sends: 1,
            udp_sent_datagrams: 2,
            udp_send_errors: 3,
            udp_receives: 4,
            udp_receive_errors: 5,
            tun_reads: 6,
            tun_writes: 7,
            tun_write_errors: 8,
            offload_fallbacks: 9,
            waits: 10,
            slept_nanos: 11,
            awake_nanos: 12,
        };
        stats.publish_io(&io);
        let published = stats.snapshot().into_iter().filter(|(name, _)| name.starts_with("io_"));
        assert_eq!(published.map(|(_, count)| count).collect::<Vec<_>>(), (1..=12).collect::<Vec<_>>());
    }

    #[test]
    fn refusals_land_under_their_own_names() {
        let stats = WorkerStats::default();
        stats.add_refusals(&[1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(stats.refused_not_coalescable.load(Relaxed), 1);
        assert_eq!(stats.refused_headers.load(Relaxed), 2);
        assert_eq!(stats.refused_sequence.load(Relaxed), 3);
        assert_eq!(stats.refused_size.load(Relaxed), 4);
        assert_eq!(stats.refused_flags.load(Relaxed), 5);
        assert_eq!(stats.refused_full.load(Relaxed), 6);
        assert_eq!(stats.refused_checksum.load(Relaxed), 7);
    }
}
