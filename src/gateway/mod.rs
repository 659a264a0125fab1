//! A tunnel's whole life: its configuration, from creation to removal, and the configuration of its other end.

pub mod client;
pub mod config;
pub mod control;
pub mod doctor;
pub mod ipv6;
pub mod itself;
mod leaving;
mod limits;
pub mod metrics;
pub mod mtu;
pub mod notify;
pub mod peering;
pub mod rights;
pub mod route;
pub mod service;
pub mod show;
pub mod socket;
pub mod tunnel;
pub mod up;
mod upkeep;
