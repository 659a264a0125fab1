//! A tunnel as OpenBSD writes it: hostname.if(5) lines, which netstart(8) hands to ifconfig(8).
//!
//! ```text
//! wgkey PRIVATEKEY
//! wgport 4500
//! wgpeer PUBLICKEY wgpsk KEY wgendpoint HOST PORT wgpka 25 wgaip 192.168.96.0/24
//! inet 192.168.96.2 255.255.255.0
//! !route add -inet 10.0.0.0/8 192.168.96.1
//! ```
//!
//! Each line is one run of ifconfig, and a peer's words hold for the `wgpeer` before them in the same line. wg(4) makes
//! no routes of its own; what lies beyond the interface's networks needs a route.

mod lines;
mod print;
mod read;
mod routes;

pub use print::{commands, print};
pub use read::parse;

#[cfg(test)]
mod tests;
