//! What the gateway adds to a super-packet besides the AEAD: splitting, coalescing, checksums. Throughput is in bytes of
//! inner packets.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringtun::offload::coalesce::{CoalesceOptions, Coalescer};
use ringtun::offload::split::Splitter;
use ringtun::offload::train::{Train, TrainLimits};
use ringtun::wire::vnet::{F_NEEDS_CSUM, GsoType, VnetHeader};
use ringtun::wire::{checksum, ip};
use std::hint::black_box;
use std::ops::Range;

const MTU: usize = 1420;
/// Bytes of room for a train: 64 KiB and more.
const ROOM: usize = 68 * 1024;

/// Makes a TUN frame: a super-packet over IPv4 from the given port, of `segments` of `gso_size` bytes. TCP has a timestamp
/// option.
fn frame(udp: bool, port: u16, segments: usize, gso_size: u16) -> Vec<u8> {
    let headers = if udp { 28 } else { 52 };
    let len = headers + segments * usize::from(gso_size);
    let vnet = VnetHeader {
        flags: F_NEEDS_CSUM,
        gso: if udp { GsoType::UdpL4 } else { GsoType::TcpV4 },
        gso_size,
        csum_start: 20,
        csum_offset: if udp { 6 } else { 16 },
        ..VnetHeader::default()
    };
    let mut packet: Vec<u8> = (0..len).map(|i| i as u8).collect();
    packet[..20].copy_from_slice(&[0x45, 0, 0, 0, 0, 7, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    packet[20..22].copy_from_slice(&port.to_be_bytes());
    if udp {
        packet[9] = ip::UDP;
    } else {
        packet[32..34].copy_from_slice(&[0x80, ip::tcp_flags::ACK]);
        packet[40..52].copy_from_slice(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    }
    [vnet.to_bytes().to_vec(), packet].concat()
}

/// Splits `frame` into `out`.
fn split(frame: &[u8], out: &mut [u8]) -> Train {
    let mut train = Train::default();
    let mut splitter = Splitter::new(frame).expect("a frame made above");
    splitter.write_into(out, &mut train, MTU, &TrainLimits::default());
    train
}

/// Makes a received train: the segments of several super-packets, in turn.
fn received(frames: &[Vec<u8>]) -> (Vec<u8>, Vec<Range<usize>>) {
    let split = |frame: &Vec<u8>| {
        let mut out = vec![0; ROOM];
        let train = split(frame, &mut out);
        out[..train.len()].chunks(train.stride()).map(<[u8]>::to_vec).collect::<Vec<_>>()
    };
    let flows: Vec<Vec<Vec<u8>>> = frames.iter().map(split).collect();
    let (mut bytes, mut ranges) = (vec![], vec![]);
    for turn in 0..flows.iter().map(Vec::len).max().unwrap_or(0) {
        for message in flows.iter().filter_map(|flow| flow.get(turn)) {
            let start = bytes.len() + 16;
            let len = ip::parse(&message[16..]).map_or(0, |info| info.len);
            ranges.push(start..start + len);
            bytes.extend(message);
        }
    }
    (bytes, ranges)
}

/// Coalesces a train again and again. Only the heads of the runs change, and are put right each time.
fn bench_coalesce(criterion: &mut Criterion, name: &str, frames: &[Vec<u8>]) {
    const HEAD: usize = 128;
    let (clean, ranges) = received(frames);
    let mut train = clean.clone();
    let mut coalescer = Coalescer::default();
    let mut group = criterion.benchmark_group("coalesce");
    group.throughput(Throughput::Bytes(ranges.iter().map(|range| range.len() as u64).sum()));
    group.bench_function(name, |bencher| {
        bencher.iter(|| {
            coalescer.start(CoalesceOptions { tcp: true, udp: true });
            for range in &ranges {
                coalescer.push(&mut train, range.clone());
            }
            let runs = coalescer.finish(black_box(&mut train));
            assert_eq!(runs.len(), frames.len());
            for run in runs {
                let start = run.pieces[0].start;
                train[start..start + HEAD].copy_from_slice(&clean[start..start + HEAD]);
            }
        });
    });
    group.finish();
}

fn bench_split(criterion: &mut Criterion) {
    let mut out = vec![0; ROOM];
    let mut group = criterion.benchmark_group("split");
    for (name, frame) in [
        ("61612-byte TSO, MTU 1420", frame(false, 5201, 45, 1368)),
        ("64 USO segments of 16 bytes", frame(true, 5201, 64, 16)),
    ] {
        group.throughput(Throughput::Bytes(frame.len() as u64 - 10));
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
