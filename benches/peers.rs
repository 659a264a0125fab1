//! Configuring a device of 100,000 peers: the time to add one peer and to remove it.

use criterion::{Criterion, criterion_group, criterion_main};
use ringtun::crypto::random::SystemEntropy;
use ringtun::crypto::x25519::PublicKey;
use ringtun::device::uapi::{AllowedIp, PeerRequest, SetRequest};
use ringtun::device::{Device, Now};
use ringtun::index::WorkerCount;
use ringtun::routing::Prefix;
use ringtun::time::Instant;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// How many peers there are before.
const PEERS: u32 = 100_000;
const WORKERS: u8 = 2;
const NOW: Now = Now { mono: Instant::START, wall: Duration::from_secs(1_700_000_000) };

/// The `i`-th peer, which has one host of each family.
fn peer(i: u32) -> PeerRequest {
    let mut key = [1; 32];
    key[..4].copy_from_slice(&i.to_le_bytes());
    let v4 = IpAddr::from(Ipv4Addr::from_bits(0x0a00_0000 + i));
    let v6 = IpAddr::from(Ipv6Addr::from_bits((0xfd << 120) + u128::from(i)));
    let allowed_ips = [v4, v6].map(|addr| AllowedIp { prefix: Prefix::from(addr), remove: false }).to_vec();
    PeerRequest { allowed_ips, ..PeerRequest::new(PublicKey(key)) }
}

/// Applies a request, and takes the device's outputs as its driver does.
fn apply(device: &mut Device, peers: Vec<PeerRequest>) {
    let request = SetRequest { peers, ..SetRequest::default() };
    let applied = device.apply(NOW, &request, &mut |_| panic!("bound without need"));
    assert!(applied.is_ok());
    while device.poll_output().is_some() {}
}

fn one_more(c: &mut Criterion) {
    let mut device = Device::new(WorkerCount::nearest(WORKERS.into()), Box::new(SystemEntropy));
    apply(&mut device, (0..PEERS).map(peer).collect());
    let mut next = PEERS;
    c.bench_function("peers/add-and-remove/100000", |b| {
        b.iter(|| {
            next = next.wrapping_add(1) % (1 << 24);
            let added = peer(PEERS + next);
            let key = added.public_key;
            apply(&mut device, vec![added]);
            apply(&mut device, vec![PeerRequest { remove: true, ..PeerRequest::new(key) }]);
        })
    });
}

criterion_group!(benches, one_more);
criterion_main!(benches);
