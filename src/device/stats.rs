//! Counters of the slow path: what became of handshake messages, where every drop has a name, and what was done to
//! balance the workers.

use crate::dataplane::counters::counters;
use crate::noise::handshake::HandshakeError;

counters! {
    /// Counters of the slow path, cumulative.
    #[derive(Clone, Copy, PartialEq, Eq)]
    DeviceStats of u64, read |counter| *counter;

    /// Initiations sent, retries included.
    initiations_sent,
    /// Initiations accepted and answered.
    initiations_accepted,
    /// Responses that completed a handshake of ours.
    responses_accepted,
    /// Cookie replies accepted.
    cookies_accepted,
    /// Handshakes given up after 90 s.
    given_up,
    /// Dropped: the interface is down, or there is no private key.
    dropped_not_ready,
    /// Dropped: type and length do not agree.
    dropped_malformed,
    /// Dropped: a tag did not verify, or a low-order key.
    dropped_not_authentic,
    /// Dropped: it names a static key that is no peer's.
    dropped_unknown_peer,
    /// Dropped: a timestamp not greater than the last.
    dropped_replayed,
    /// Dropped: initiations of one peer too close to each other.
    dropped_flood,
    /// Dropped: a response or cookie reply to nothing outstanding.
    dropped_unexpected,
    /// Dropped: under load, with a valid cookie, but its source sends too many.
    dropped_rate_limited,
    /// Times that a peer's outgoing packets were spread over all workers, by flow.
    peers_spread,
    /// Times that such a peer's were given back to its owner.
    peers_drawn_back,
    /// Not cumulative: peers that are spread now.
    peers_spread_now,
    /// Times that a peer was given to another worker, as several were too much for one.
    peers_given,
    /// Times that other workers began to open what a peer sends.
    peers_assisted,
    /// Times that this was left to its owner again.
    peers_unassisted,
    /// Not cumulative: peers whose trains other workers open now.
    peers_assisted_now,
    /// Times that workers began to seal for each other what is sent to a peer.
    peers_seal_assisted,
    /// Times that this was left to whoever sends it again.
    peers_seal_unassisted,
    /// Not cumulative: peers for which workers seal for each other now.
    peers_seal_assisted_now,
}

impl DeviceStats {
    /// Counts a refused handshake message.
    pub(super) fn refuse(&mut self, error: HandshakeError) {
        let counter = match error {
            HandshakeError::Decrypt | HandshakeError::LowOrder => &mut self.dropped_not_authentic,
            HandshakeError::Replay => &mut self.dropped_replayed,
            HandshakeError::Flood => &mut self.dropped_flood,
            HandshakeError::Unexpected => &mut self.dropped_unexpected,
        };
        *counter += 1;
    }
}
