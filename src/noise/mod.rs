//! The WireGuard protocol without packets or sockets: handshake, cookies, sessions, replay window, timers. Bytes,
//! time and randomness are arguments.

mod atomic;
pub mod cookie;
mod counter;
pub mod handshake;
pub mod limiter;
pub mod replay;
pub mod session;
pub mod tai64n;
pub mod timers;

use std::time::Duration;

/// Messages after which the initiator rekeys (paper, section 6.1).
pub const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
/// Counter from which on a session neither sends nor accepts: 2^64 - 2^13 - 1.
pub const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
/// Age at which the initiator of a session rekeys.
pub const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
/// Age from which on a session is dead.
pub const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);
/// Time for which a handshake is retried before it is given up.
pub const REKEY_ATTEMPT_TIME: Duration = Duration::from_secs(90);
/// Pause before a handshake is retried, to which up to 333 ms of jitter is added.
pub const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long after received data a keepalive is sent, where nothing else was sent meanwhile.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Shortest time between two initiations of one peer that are accepted: 20 ms (kernel: INITIATIONS_PER_SECOND 50).
pub const INITIATION_INTERVAL: Duration = Duration::from_millis(20);
