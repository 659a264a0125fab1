//! Tests on real devices: network namespaces, TUN, sockets, `wg`, iperf3, and the other implementations.
//!
//! They need root and /dev/net/tun, and what `scripts/test` installs. Where something is missing a test says `SKIPPED: …
//! because …` on standard error and passes: `scripts/test` counts those lines.
//!
//! `RINGTUN_TEST_BIN` puts another program in ringtun's place (one that takes `-f NAME`). A test about ringtun's own options,
//! words or threads is then skipped. That is how the harness itself is checked.

#![allow(clippy::unwrap_used, clippy::expect_used)] // the helpers of a test are tests

#[path = "../common/mod.rs"]
mod common;

mod assist;
mod bench;
mod bulk;
mod confine;
mod container;
mod cores;
mod crash;
mod damage;
mod differential;
mod dns;
mod failures;
mod fallbacks;
mod firewall;
mod healing;
mod hostile;
mod http;
mod interop;
mod ipv6;
mod keeping;
mod keys;
mod library;
mod lifecycle;
mod limits;
mod load;
mod loops;
mod memory;
mod monitor;
mod outages;
mod pair;
mod peer_hooks;
mod peers;
mod ports;
mod rekey;
mod reload;
mod rootless;
mod secrets;
mod shortages;
mod sources;
mod spy;
mod story;
mod sums;
mod tool;
mod top;
mod trace;
mod tunnels;
mod turns;
mod unreachable;
mod updown;
mod upgrade;
mod verbose;
mod why;

use common::{implementation, lab};
