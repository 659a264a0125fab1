//! The slow path's thread. It drives a [`crate::device::Device`], which decides, and does for it what touches the world.
//!
//! ```text
//!   UAPI connections ─┐
//!   the owner (handle)┤                                 ┌─> mailboxes of the workers
//!   workers' queues ──┼─> runtime ─> driver ─> Device ──┼─> sockets: bind, mark
//!   netlink, timers ──┘                                 └─> TUN steering
//! ```

mod addrgen;
mod connections;
mod driver;
mod followers;
pub mod handle;
pub mod handover;
mod helpers;
mod jobs;
mod listening;
pub mod netlink;
pub mod pinning;
mod routes;
pub mod runtime;
mod stream;
mod telling;
mod tunnels;
