//! A peer's handshake as plain data, for another process that goes on with it.

use super::{Accepted, Handshake, Outstanding, StaticStatic, Transcript};
use crate::crypto::secret::SecretBytes;
use crate::crypto::x25519::{PrivateKey, PublicKey, SharedSecret};
use crate::noise::tai64n::Tai64N;
use crate::time::{Instant, Offset};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// One peer's handshake. What the two static keys agree on is left out: it is worked out again when it is needed.
#[derive(Debug, Serialize, Deserialize)]
pub struct HandshakeRecord {
    psk: SecretBytes<32>,
    /// The timestamp of the last initiation that was answered, and when that was.
    accepted: Option<([u8; 12], Offset)>,
    outstanding: Option<OutstandingRecord>,
}

/// An initiation that waits for its response.
#[derive(Debug, Serialize, Deserialize)]
struct OutstandingRecord {
    chaining_key: SecretBytes<32>,
    hash: SecretBytes<32>,
    ephemeral: SecretBytes<32>,
    index: u32,
    sent: Offset,
}

impl Handshake {
    /// The handshake as plain data, at `now`.
    pub fn record(&self, now: Instant) -> HandshakeRecord {
        let outstanding = self.outstanding.as_deref().map(|outstanding| {
            let (chaining_key, hash) = outstanding.transcript.parts();
            OutstandingRecord {
                chaining_key: SecretBytes::copy_of(chaining_key),
                hash: SecretBytes::copy_of(hash),
                ephemeral: SecretBytes::copy_of(&outstanding.ephemeral.to_bytes()),
                index: outstanding.index,
                sent: Offset::of(outstanding.sent, now),
            }
        });
        HandshakeRecord {
            psk: SecretBytes::copy_of(&self.psk.0),
            accepted: self.last_accepted.map(|last| (last.timestamp.0, Offset::of(last.at, now))),
            outstanding,
        }
    }

    /// The handshake of the peer with this public key, of which a record was made at `then`.
    pub fn restore(remote: PublicKey, record: &HandshakeRecord, then: Instant) -> Handshake {
        let accepted =
            record.accepted.map(|(stamp, at)| Accepted { timestamp: Tai64N(stamp), at: at.from(then) });
        let outstanding = record.outstanding.as_ref().map(|record| {
            Arc::new(Outstanding {
                transcript: Transcript::of(record.chaining_key.bytes(), record.hash.bytes()),
                ephemeral: PrivateKey::from_bytes(*record.ephemeral.bytes()),
                index: record.index,
                sent: record.sent.from(then),
            })
        });
        Handshake {
            remote,
            static_static: StaticStatic::Unknown,
            psk: SharedSecret(*record.psk.bytes()),
            last_accepted: accepted,
            outstanding,
        }
    }
}
