//! Whole devices in one thread from one seed: virtual clock, network, TUN.
//!
//! ```text
//!   World ── clock, wall clock, seed
//!     ├─ Network: delay, loss, order, duplicates, replay, damage, ECN marks, NAT; a wiretap
//!     └─ Host: Device (slow path) + Workers, each with a SimIo: virtual sockets and TUN queue
//! ```
//!
//! Nothing here is a thread or waits: hosts are stepped, one actor at a time in a random order, until all are at rest; then
//! the clock jumps to the next arrival or timeout. A failed run prints its seed; `RINGTUN_SEED` repeats it.

pub mod host;
pub mod io;
pub mod ledger;
pub mod memory;
pub mod net;
pub mod packet;
pub mod rng;
mod succession;
pub mod world;

pub use host::{HostConfig, HostFaults, SimHost, Uplinks};
pub use io::IoFaults;
pub use ledger::Ledger;
pub use net::{Datagram, Faults, Network, Tapped};
pub use packet::{Flow, Inner};
pub use rng::SimRng;
pub use world::{HostId, World, seeds};
