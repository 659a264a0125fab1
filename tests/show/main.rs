//! What `ringtun` tells of running devices, compared with what `wg` tells of them byte by byte; doctor; the service manager; the
//! scripts.
//!
//! The comparisons need root, /dev/net/tun and `wg`; where something is missing a test says `SKIPPED: … because …` on standard
//! error and passes: `scripts/test` counts those lines.

#[path = "../common/mod.rs"]
mod common;

mod doctor;
mod help;
mod scripts;
mod service;
mod show;
mod unit;

use common::{implementation, lab};
