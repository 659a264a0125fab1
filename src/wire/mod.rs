//! Layouts and checked parsing of everything that crosses a wire or the TUN device. The room is pure and imports
//! nothing above it.

pub mod checksum;
pub mod family;
pub mod icmp;
pub mod ip;
pub mod message;
pub mod vnet;
