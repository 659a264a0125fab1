//! The AllowedIPs table: building 130,560 prefixes, changing one prefix among a million, and look-ups.
//!
//! Look-ups hit and miss in tables of 3 to 100,000 prefixes.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use ringtun::routing::{Prefix, RouteTable, RouteWriter};
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// As many /24s as a gateway of 510 sites with 256 subnets each announces.
const BUILT: u32 = 130_560;
/// How many addresses look-ups cycle over: more than the first-level cache holds.
const ADDRESSES: u32 = 4096;

/// Spreads neighbours over all 32 bits (Knuth's multiplicative hash), in the same way each time.
fn scatter(i: u32) -> u32 {
    i.wrapping_mul(2_654_435_761)
}

/// The `i`-th /24, whose top bit is clear: half of the address space has no owner, for misses.
fn v4(i: u32) -> IpAddr {
    Ipv4Addr::from_bits(scatter(i) & 0x7fff_ff00).into()
}

/// The `i`-th /64 of 2001:db8::/32.
fn v6(i: u32) -> IpAddr {
    Ipv6Addr::from_bits((0x2001_0db8 << 96) | (u128::from(scatter(i)) << 64)).into()
}

/// An address outside every prefix, which differs from `addr` in the first bit.
fn beside(addr: IpAddr) -> IpAddr {
    match addr {
        IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits() ^ 1 << 31).into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() ^ 1 << 127).into(),
    }
}

fn table(count: u32) -> RouteTable {
    let routes = (0..count).flat_map(|i| [(Prefix::new(v4(i), 24), i), (Prefix::new(v6(i), 64), i)]);
    RouteTable::build(routes.filter_map(|(prefix, owner)| Some((prefix?, owner))))
}

fn build(c: &mut Criterion) {
    let routes: Vec<_> = (0..BUILT).filter_map(|i| Some((Prefix::new(v4(i), 24)?, i))).collect();
    c.bench_function("routes/build/130560", |b| b.iter(|| RouteTable::build(routes.iter().copied())));
}

/// Gives one prefix and takes one away, each with a table to look up in, as when a peer is added and removed. Then the same
/// for a default route.
fn change(c: &mut Criterion) {
    for count in [100_000, 1_000_000] {
        let mut writer = RouteWriter::default();
        writer.change((0..count).filter_map(|i| Some((Prefix::new(v4(i), 24)?, Some(i)))));
        let mut next = count;
        c.bench_function(&format!("routes/change/{count}"), |b| {
            b.iter(|| {
                next = next.wrapping_add(1);
                for owner in [Some(next), None] {
                    writer.change(Prefix::new(v4(next), 26).map(|prefix| (prefix, owner)));
                    black_box(writer.table());
                }
            })
        });
        let every = [IpAddr::from([0; 4])].map(|addr| Prefix::new(addr, 0));
        c.bench_function(&format!("routes/default/{count}"), |b| {
            b.iter(|| {
                for owner in [Some(7), None] {
                    writer.change(every.into_iter().flatten().map(|prefix| (prefix, owner)));
                    black_box(writer.table());
                }
            })
        });
    }
}

fn lookup(c: &mut Criterion) {
    let mut group = c.benchmark_group("routes/lookup");
    for count in [3, 1_000, 100_000] {
        let table = table(count);
        let hits_v4: Vec<_> = (0..ADDRESSES).map(|i| v4(scatter(i) % count)).collect();
        let hits_v6: Vec<_> = (0..ADDRESSES).map(|i| v6(scatter(i) % count)).collect();
        let misses_v4: Vec<_> = hits_v4.iter().map(|&addr| beside(addr)).collect();
        let misses_v6: Vec<_> = hits_v6.iter().map(|&addr| beside(addr)).collect();
        let kinds =
            [("hit-v4", hits_v4), ("hit-v6", hits_v6), ("miss-v4", misses_v4), ("miss-v6", misses_v6)];
        for (name, addresses) in kinds {
            let mut next = addresses.iter().cycle();
            group.bench_function(BenchmarkId::new(name, count), |b| {
                b.iter(|| next.next().and_then(|addr| table.lookup(*black_box(addr))))
            });
        }
    }
    group.finish();
}

criterion_group!(benches, build, change, lookup);
criterion_main!(benches);
