//! A tunnel's whole life: its configuration, from creation to removal, and the configuration of its other end.

pub mod config;
pub mod control;
pub mod mtu;
pub mod peering;
pub mod route;
pub mod socket;
pub mod tunnel;
