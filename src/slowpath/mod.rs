//! The slow path's thread: it drives a [`crate::device::Device`], which decides, and touches the world for it.
//!
//! ```text
//!   UAPI connections ─┐
//!   the owner (handle)┤                                 ┌─> mailboxes of the workers
//!   workers' queues ──┼─> runtime ─> driver ─> Device ──┼─> sockets: bind, mark
//!   netlink, timers ──┘                                 └─> TUN steering
//! ```

mod connections;
mod driver;
pub mod handle;
mod jobs;
mod listening;
mod netlink;
mod quiet;
mod routes;
pub mod runtime;
mod stream;
