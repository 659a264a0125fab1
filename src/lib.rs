//! ringtun: a userspace WireGuard gateway for Linux, to be embedded in another program.
//!
//! A [`Tunnel`] is an interface and what carries its packets: one worker per core, each with a queue of a multi-queue TUN device
//! and UDP sockets of its own, and a slow path on one more thread for handshakes, timers and configuration.
//!
//! ```no_run
//! use ringtun::{Change, PeerChange, PrivateKey, Tunnel};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let peer = PeerChange::new("xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=".parse()?)
//!     .endpoint("192.0.2.1:51820".parse()?)
//!     .allow("10.0.0.0/8".parse()?);
//! let change = Change::new().private_key(PrivateKey::generate()).peer(peer);
//! let tunnel = Tunnel::builder("wg0").configure(change).start()?;
//! println!("{:?}", tunnel.status()?);
//! tunnel.stop();
//! tunnel.wait()?;
//! # Ok(())
//! # }
//! ```
//!
//! The interface is down and without addresses: like the kernel's own WireGuard, a tunnel leaves addresses, routes, names and
//! filters to its host. Of the process it takes threads, files and memory, and nothing that there is but one of: it handles no
//! signal, sets no logger (it writes to the [`log`] facade), no limit, no umask and no working directory.
//!
//! # Features
//!
//! `cli`, on by default, brings the program `ringtun` and all that it needs. A dependent wants `default-features = false`.
//! `internals` makes the rooms of this crate visible for its own tests, benchmarks and fuzzing; nothing in them is promised to stay.

// The rooms, from the ground floor up; docs/architecture.md says what each is for. They speak to each other by `pub`, which means
// "everybody" only where the feature says so.
#![cfg_attr(not(feature = "internals"), allow(unreachable_pub))]

// Tests, benchmarks and fuzzing reach into these rooms. A dependency of this package on itself, among those for development, turns
// the feature on for all of them at once; `cargo build`, `cargo package` and dependents never see it. So what a dependent could
// reach is what is exported below, and the compiler finds what is dead in a build without the feature.
#[cfg(feature = "internals")]
pub mod crypto;
#[cfg(feature = "internals")]
pub mod dataplane;
#[cfg(feature = "internals")]
pub mod device;
#[cfg(all(feature = "internals", feature = "cli"))]
pub mod gateway;
#[cfg(feature = "internals")]
pub mod index;
#[cfg(feature = "internals")]
pub mod io;
#[cfg(feature = "internals")]
pub mod noise;
#[cfg(feature = "internals")]
pub mod offload;
#[cfg(feature = "internals")]
pub mod routing;
#[cfg(feature = "internals")]
pub mod sim;
#[cfg(feature = "internals")]
pub mod slowpath;
#[cfg(feature = "internals")]
pub mod sys;
#[cfg(feature = "internals")]
pub mod time;
#[cfg(feature = "internals")]
pub mod tunnel;
#[cfg(feature = "internals")]
pub mod wire;

#[cfg(not(feature = "internals"))]
mod crypto;
#[cfg(not(feature = "internals"))]
mod dataplane;
#[cfg(not(feature = "internals"))]
mod device;
#[cfg(all(not(feature = "internals"), feature = "cli"))]
mod gateway;
#[cfg(not(feature = "internals"))]
mod index;
#[cfg(not(feature = "internals"))]
mod io;
#[cfg(not(feature = "internals"))]
mod noise;
#[cfg(not(feature = "internals"))]
mod offload;
#[cfg(not(feature = "internals"))]
mod routing;
#[cfg(not(feature = "internals"))]
mod slowpath;
#[cfg(not(feature = "internals"))]
mod sys;
#[cfg(not(feature = "internals"))]
mod time;
#[cfg(not(feature = "internals"))]
mod tunnel;
#[cfg(not(feature = "internals"))]
mod wire;

#[cfg(feature = "cli")]
#[doc(hidden)] // the program's entry, which is another crate to the compiler
pub mod cli;

pub use crypto::x25519::{ParseKeyError, PrivateKey, PublicKey, SharedSecret as PresharedKey};
pub use routing::{ParsePrefixError, Prefix};
pub use tunnel::{
    Backend, Belongings, Builder, Change, Error, PeerChange, PeerStatus, Predecessor, Tunnel, TunnelStatus,
};
