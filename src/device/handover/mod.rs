//! A device's state as plain data, from which another process goes on: sessions with their keys and counters, handshakes under way,
//! timers, configuration. `docs/upgrading.md` describes the bytes.
//!
//! ```text
//!   Control::Rest, rounds (quiesce) ──> WorkerRecord of each worker ─┐
//!   Device, handshake messages that wait ────────────────────────────┴─> export ──> bytes ──> import ──> Device, controls
//! ```
//!
//! Exporting changes nothing, so that whoever exported may go on where the other process fails. Only one of the two may go on,
//! since the counters of both sessions would be the same.

mod export;
mod format;
mod import;
mod quiesce;
mod record;

#[cfg(test)]
mod tests;

#[cfg(feature = "internals")]
pub use format::StateError;
pub use format::{FORMAT, MAX_STATE};
pub use import::Imported;
pub use quiesce::Quiesce;
pub use record::SocketCount;

use crate::dataplane::IncomingHandshake;
use crate::dataplane::record::WorkerRecord;

/// What is handed over beside the device: what its driver and its workers have.
#[derive(Debug, Default)]
pub struct StateParts {
    /// The record of each worker.
    pub workers: Vec<WorkerRecord>,
    /// Handshake messages that wait for the slow path, the oldest first.
    pub handshakes: Vec<IncomingHandshake>,
    /// How many UDP sockets are handed over, where they are bound.
    pub sockets: SocketCount,
}
