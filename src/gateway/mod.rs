//! What stands around a tunnel: its configuration file, its routes and rules, its service, and the configuration of the
//! tunnel's other end.

pub mod bench;
pub mod client;
pub mod config;
pub mod confine;
pub mod control;
pub mod doctor;
mod error;
pub mod executable;
pub mod http;
mod interrupt;
pub mod ipv6;
pub mod limits;
pub mod live;
pub mod metrics;
pub mod monitor;
pub mod mtu;
pub mod notify;
pub mod peer_hooks;
pub mod peering;
pub mod recall;
pub mod rights;
pub mod route;
pub mod service;
pub mod show;
pub mod standing;
pub mod successor;
pub mod up;
pub mod upgrade;
pub mod upkeep;
pub mod why;

pub use error::Failure;
