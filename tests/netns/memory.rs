//! The memory that an idle peer costs.

use crate::implementation::{Device, RINGTUN_TWO, ringtun_itself};
use crate::lab::{Host, Process, eventually, ready};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

const PEERS: u32 = 10_000;
/// Half as much again as `scripts/memory` allows a release.
const BOUND: u64 = 3072;
const SOON: Duration = Duration::from_secs(60);

/// A configuration of many peers, each with a prefix of both families and an endpoint, none of which answers.
fn configuration() -> String {
    let key = |seed: u32| {
        let mut bytes = [9; 32];
        bytes[..4].copy_from_slice(&seed.to_le_bytes());
        STANDARD.encode(bytes)
    };
    let mut text = format!("[Interface]\nPrivateKey = {}\n", key(u32::MAX));
    for peer in 0..PEERS {
        let [high, low] = (peer as u16).to_be_bytes();
        let _ = write!(
            text,
            "[Peer]\nPublicKey = {}\nAllowedIPs = 10.1.{high}.{low}/32, fd00::{peer:x}/128\nEndpoint = 198.18.0.9:{}\n",
            key(peer),
            10_000 + peer
        );
    }
    text
}

/// Resident memory in KiB, once it no longer changes.
fn settled(process: &Process) -> u64 {
    let mut last = 0;
    eventually("memory settles", SOON, || {
        std::thread::sleep(Duration::from_millis(500));
        std::mem::replace(&mut last, process.status_kib("VmRSS:")) == last
    });
    last
}

#[test]
fn ten_thousand_idle_peers_cost_little_each() {
    if !ready() || !ringtun_itself() {
        return;
    }
    let host = Arc::new(Host::namespace());
    let mut device = Device::start(&host, RINGTUN_TWO);
    let name = device.name.clone();
    host.run(&format!("ip link set {name} up"));
    let before = settled(device.process());
    host.try_run_with_file(&configuration(), &format!("wg setconf {name} $FILE")).expect("a configuration");
    let after = settled(device.process());
    let each = (after.saturating_sub(before) << 10) / u64::from(PEERS);
    println!("{before} KiB without peers, {after} KiB with {PEERS}: {each} bytes a peer");
    assert!(each <= BOUND, "{each} bytes a peer");
    assert_eq!(host.run(&format!("wg show {name} peers | wc -l")).trim(), PEERS.to_string());
}
