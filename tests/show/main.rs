//! What `ringtun` prints about running devices, compared byte by byte with what `wg` prints about them; doctor; the service
//! manager; the scripts; the tracepoints.
//!
//! The comparisons need root, /dev/net/tun and `wg`. Where something is missing a test says `SKIPPED: … because …` on
//! standard error and passes: `scripts/test` counts those lines.

#[path = "../common/mod.rs"]
mod common;

mod doctor;
mod help;
mod package;
mod scripts;
mod service;
mod show;
mod trace;
mod unit;

use common::{implementation, lab};
