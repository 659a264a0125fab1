//! Whole turns of a worker over queues in memory: everything but the system calls. Time is given per inner packet, without
//! that of feeding the worker and of collecting what it made.

#[path = "common/rig.rs"]
mod rig;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rig::{FAR, NOW, Rig, SEGMENTS, SMALL, Session, far, lone_rig, segments, session, session_of};
use rig::{rig, small_datagrams, small_frame, super_frame, worker};
use ringtun::dataplane::worker::Turn;
use ringtun::dataplane::{Control, Links, PeerId, PeerShared};
use ringtun::noise::session::SendSession;
use ringtun::sim::memory::Memory;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant as Clock};

/// Trains that wait when several workers open those of one peer: four turns' worth.
const TRAINS: usize = 64;

/// Feeds `frames` copies of a frame, takes a turn, and returns the time that the turn took.
fn transmit(rig: &mut Rig, frame: &[u8], frames: usize) -> Duration {
    rig.feed(frame, frames);
    rig.turn(timed)
}

/// Feeds one train of the given packets, sealed by the remote, and takes a turn.
fn receive(rig: &mut Rig, packets: &[Vec<u8>]) -> Duration {
    rig.push(packets);
    rig.turn(timed)
}

fn timed(run: &mut dyn FnMut()) -> Duration {
    let begin = Clock::now();
    run();
    begin.elapsed()
}

fn one_worker(c: &mut Criterion) {
    let mut group = c.benchmark_group("turn");
    group.throughput(Throughput::Elements(1));
    // One iteration is one inner packet. Turns are rounded, and the time is scaled.
    let per_packet = |iterations: u64, packets: usize, turn: &mut dyn FnMut() -> Duration| {
        let turns = iterations.div_ceil(packets as u64);
        let total: Duration = (0..turns).map(|_| turn()).sum();
        total.mul_f64(iterations as f64 / (turns * packets as u64) as f64)
    };
    let (mut rig, frame) = (lone_rig(), super_frame(FAR));
    group.bench_function("tx/tso-45x1420", |b| {
        b.iter_custom(|n| per_packet(n, SEGMENTS, &mut || transmit(&mut rig, &frame, 1)));
    });
    let (mut rig, frame) = (lone_rig(), small_frame());
    group.bench_function("tx/udp-16", |b| {
        b.iter_custom(|n| per_packet(n, SMALL, &mut || transmit(&mut rig, &frame, SMALL)));
    });
    let mut rig = lone_rig();
    let packets = segments(FAR);
    group.bench_function("rx/train-45x1420", |b| {
        b.iter_custom(|n| per_packet(n, SEGMENTS, &mut || receive(&mut rig, &packets)));
    });
    let mut rig = lone_rig();
    let packets = small_datagrams();
    group.bench_function("rx/udp-16", |b| {
        b.iter_custom(|n| per_packet(n, SMALL, &mut || receive(&mut rig, &packets)));
    });
    group.finish();
}

/// A worker with so many peers, all of them active in turn.
struct Crowd {
    rig: Rig,
    remotes: Vec<Arc<SendSession>>,
    next: usize,
}

impl Crowd {
    fn new(count: u32) -> Crowd {
        let links = Links::new(1).expect("links");
        let shared = |slot| Arc::new(PeerShared::new(PeerId { slot, epoch: 1 }, 0));
        let peers: Vec<_> = (0..count).map(shared).collect();
        let (worker, mut remotes) = (worker(&links, 0, &peers), Vec::new());
        let mut rig = Rig { worker, io: Memory::new(256).expect("a slab"), remote: session(0).remote };
        for (slot, peer) in (0..).zip(peers) {
            let Session { send, receive, remote } = session_of(slot, 0);
            remotes.push(remote);
            assert!(links.workers[0].controls.push(Control::Install(peer, receive, send)).is_ok());
            rig.worker.turn(&mut rig.io, NOW);
            while rig.io.take_sent().is_some() {}
        }
        Crowd { rig, remotes, next: 0 }
    }

    /// The next peer's slot; it is the rig's remote from now on.
    fn next(&mut self) -> u32 {
        self.next = (self.next + 1) % self.remotes.len();
        self.rig.remote = Arc::clone(&self.remotes[self.next]);
        self.next as u32
    }
}

/// Turns of one train each, of one peer again and again, and of a thousand peers one after the other.
fn crowds(c: &mut Criterion) {
    let mut group = c.benchmark_group("peers");
    group.throughput(Throughput::Elements(SEGMENTS as u64));
    for count in [1, 1000] {
        let mut crowd = Crowd::new(count);
        group.bench_function(format!("tx/tso-45x1420/{count}-active"), |b| {
            b.iter_custom(|turns| {
                (0..turns)
                    .map(|_| {
                        let frame = super_frame(far(crowd.next()));
                        transmit(&mut crowd.rig, &frame, 1)
                    })
                    .sum()
            });
        });
        group.bench_function(format!("rx/train-45x1420/{count}-active"), |b| {
            b.iter_custom(|turns| {
                (0..turns)
                    .map(|_| {
                        let packets = segments(far(crowd.next()));
                        receive(&mut crowd.rig, &packets)
                    })
                    .sum()
            });
        });
    }
    group.finish();
}

/// Measures `turns` super-packets of each worker, on as many threads as workers, that seal for one peer. It is the time of
/// the longest thread.
fn side_by_side(workers: usize, turns: u64) -> Duration {
    let links = Links::new(workers).expect("links");
    let shared = Arc::new(PeerShared::new(PeerId { slot: 0, epoch: 1 }, 0));
    let Session { send, .. } = session(0);
    let start = Barrier::new(workers);
    std::thread::scope(|scope| {
        let run = |id: u8| {
            let (links, shared, send, start) = (&links, shared.clone(), send.clone(), &start);
            scope.spawn(move || {
                let halves = Session { send, ..session(id) };
                let (mut rig, frame) = (rig(links, id, shared, halves), super_frame(FAR));
                transmit(&mut rig, &frame, 1);
                start.wait();
                (0..turns).map(|_| transmit(&mut rig, &frame, 1)).sum::<Duration>()
            })
        };
        let threads: Vec<_> = (0..workers as u8).map(run).collect();
        threads.into_iter().map(|thread| thread.join().expect("a worker")).max().unwrap_or_default()
    })
}

/// Measures how long a worker takes for `turns` times 64 super-packets of one flow while the other workers seal what they can.
fn helped_to_send(workers: usize, turns: u64) -> Duration {
    let links = Links::new(workers).expect("links");
    let shared = Arc::new(PeerShared::new(PeerId { slot: 0, epoch: 1 }, 0));
    shared.seal_assisted.store(workers > 1, Relaxed);
    let (mut rig, frame) = (rig(&links, 0, shared, session(0)), super_frame(FAR));
    let round = || {
        rig.feed(&frame, TRAINS);
        let begin = Clock::now();
        while rig.worker.turn(&mut rig.io, NOW) == Turn::Busy {}
        let took = begin.elapsed();
        while let Some(train) = rig.io.take_sent() {
            black_box(&train);
        }
        took
    };
    helped(&links, workers, turns, round)
}

/// Measures how long a peer's owner takes for `turns` times 64 trains while the other workers open what they can.
fn helped_to_receive(workers: usize, turns: u64) -> Duration {
    let links = Links::new(workers).expect("links");
    let shared = Arc::new(PeerShared::new(PeerId { slot: 0, epoch: 1 }, 0));
    shared.assisted.store(workers > 1, Relaxed);
    let (mut rig, packets) = (rig(&links, 0, shared, session(0)), segments(FAR));
    let round = || {
        (0..TRAINS).for_each(|_| rig.push(&packets));
        let begin = Clock::now();
        while rig.io.written() < TRAINS {
            black_box(rig.worker.turn(&mut rig.io, NOW));
        }
        let took = begin.elapsed();
        rig.io.discard_written();
        took
    };
    helped(&links, workers, turns, round)
}

/// Measures so many rounds of worker 0 while the others, each on a thread, do for it what they can.
fn helped(links: &Links, workers: usize, rounds: u64, mut round: impl FnMut() -> Duration) -> Duration {
    links.assist.engage(usize::from(workers > 1));
    let (start, over) = (Barrier::new(workers), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for id in 1..workers as u8 {
            let (start, over) = (&start, &over);
            scope.spawn(move || {
                let (mut worker, mut io) = (worker(links, id, &[]), Memory::new(16).expect("a slab"));
                start.wait();
                while !over.load(Relaxed) {
                    worker.turn(&mut io, NOW);
                }
            });
        }
        start.wait();
        round();
        let total = (0..rounds).map(|_| round()).sum();
        over.store(true, Relaxed);
        total
    })
}

fn scaling(c: &mut Criterion) {
    let mut group = c.benchmark_group("scaling");
    // The shared state of one peer (counter, time stamps, bytes) is all that the workers contend for. With enough cores,
    // twice the packets take the same time.
    for workers in [1, 2] {
        group.throughput(Throughput::Elements((workers * SEGMENTS) as u64));
        group.bench_function(format!("tx/tso-45x1420/{workers}-workers"), |b| {
            b.iter_custom(|turns| side_by_side(workers, turns));
        });
        group.throughput(Throughput::Elements((TRAINS * SEGMENTS) as u64));
        group.bench_function(format!("rx/one-peer-64x45x1420/{workers}-workers"), |b| {
            b.iter_custom(|turns| helped_to_receive(workers, turns));
        });
        group.bench_function(format!("tx/one-flow-64x45x1420/{workers}-workers"), |b| {
            b.iter_custom(|turns| helped_to_send(workers, turns));
        });
    }
    group.finish();
}

criterion_group!(benches, one_worker, crowds, scaling);
criterion_main!(benches);
