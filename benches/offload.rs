//! What the gateway adds to a super-packet besides the AEAD: splitting, coalescing, checksums. Throughput is in bytes of
//! inner packets.

#[path = "common/frames.rs"]
mod frames;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use frames::{ROOM, Received, frame, split};
use ringtun::wire::checksum;
use ringtun::wire::vnet::VNET_HDR_LEN;
use std::hint::black_box;

fn bench_coalesce(criterion: &mut Criterion, name: &str, frames: &[Vec<u8>]) {
    let mut received = Received::new(frames);
    let mut group = criterion.benchmark_group("coalesce");
    group.throughput(Throughput::Bytes(received.size().1 as u64));
    group.bench_function(name, |bencher| bencher.iter(|| received.coalesce()));
    group.finish();
}

fn bench_split(criterion: &mut Criterion) {
    let mut out = vec![0; ROOM];
    let mut group = criterion.benchmark_group("split");
    for (name, frame) in [
        ("61612-byte TSO, MTU 1420", frame(false, 5201, 45, 1368)),
        ("64 USO segments of 16 bytes", frame(true, 5201, 64, 16)),
    ] {
        group.throughput(Throughput::Bytes((frame.len() - VNET_HDR_LEN) as u64));
        group.bench_function(name, |bencher| bencher.iter(|| split(black_box(&frame), &mut out)));
    }
    group.finish();
}

fn bench_checksum(criterion: &mut Criterion) {
    let data: Vec<u8> = (0..1420u32).map(|i| i as u8).collect();
    let mut out = vec![0; 1420];
    let mut group = criterion.benchmark_group("checksum");
    group.throughput(Throughput::Bytes(1420));
    group.bench_function("sum of 1420 bytes", |bencher| bencher.iter(|| checksum::sum(black_box(&data), 0)));
    group.bench_function("copy, then sum of 1420 bytes", |bencher| {
        bencher.iter(|| {
            black_box(&mut out).copy_from_slice(black_box(&data));
            checksum::sum(&out, 0)
        });
    });
    group.finish();
}

fn bench_coalesces(criterion: &mut Criterion) {
    bench_coalesce(criterion, "45 TCP segments", &[frame(false, 5201, 45, 1368)]);
    let flows: Vec<Vec<u8>> = (0..4).map(|flow| frame(false, 5201 + flow, 11, 1368)).collect();
    bench_coalesce(criterion, "4 interleaved TCP flows of 11 segments", &flows);
    bench_coalesce(criterion, "64 UDP segments of 16 bytes", &[frame(true, 5201, 64, 16)]);
}

criterion_group!(benches, bench_split, bench_coalesces, bench_checksum);
criterion_main!(benches);
