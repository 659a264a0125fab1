//! The replay window: its cost for one packet, in order, shuffled within a train's reach, and with losses.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringtun::noise::replay::ReplayWindow;
use std::hint::black_box;

const PACKETS: u64 = 64 * 1024;

/// The counter of the packet that arrives as number `i`.
type Order = fn(u64) -> u64;

fn replay(c: &mut Criterion) {
    let mut group = c.benchmark_group("replay");
    group.throughput(Throughput::Elements(PACKETS));
    let orders: [(&str, Order); 4] = [
        ("in order", |i| i),
        // Each block of 64 comes backwards.
        ("reordered", |i| i ^ 63),
        // Every other packet is lost.
        ("lossy", |i| i * 2),
        // Each packet jumps over more than the window, so that every word is cleared.
        ("jumps", |i| i * 10_000),
    ];
    for (name, order) in orders {
        group.bench_function(name, |b| {
            b.iter(|| {
                let mut window = ReplayWindow::default();
                (0..PACKETS).filter(|i| window.accept(black_box(order(*i)))).count()
            });
        });
    }
}

criterion_group!(benches, replay);
criterion_main!(benches);
