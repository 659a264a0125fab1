//! Whole turns of a worker over queues in memory: everything but the system calls. Time is given per inner packet, without
//! that of feeding the worker and of collecting what it made.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringtun::dataplane::directory::DirectoryWriter;
use ringtun::dataplane::worker::{Worker, WorkerConfig};
use ringtun::dataplane::{Control, Links, PeerId, PeerShared};
use ringtun::io::{Endpoint, UdpTrain};
use ringtun::noise::session::{RecvSession, Role, SendSession, SessionKeys};
use ringtun::offload::coalesce::CoalesceOptions;
use ringtun::routing::{Prefix, RouteTable};
use ringtun::sim::memory::Memory;
use ringtun::time::Instant;
use ringtun::wire::checksum;
use std::hint::black_box;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant as Clock};

const NOW: Instant = Instant::from_nanos(1_000_000_000);
const SEGMENTS: usize = 45;
const MSS: usize = 1368;
/// Small packets of a turn: the worker's budget.
const SMALL: usize = 64;
const HEADROOM: usize = 64;
/// Trains that wait when several workers open those of one peer: four turns' worth.
const TRAINS: usize = 64;

/// A worker with one peer, and the peer.
struct Rig {
    worker: Worker,
    io: Memory,
    remote: Arc<SendSession>,
}

/// The first halves of a session, which several workers share, and the remote's half.
struct Session {
    send: Arc<SendSession>,
    receive: Box<RecvSession>,
    remote: Arc<SendSession>,
}

fn session(owner: u8) -> Session {
    session_of(0, owner)
}

/// A session of the peer in `slot`.
fn session_of(slot: u32, owner: u8) -> Session {
    let index = 0x1200_0000 + (slot << 8) + u32::from(owner);
    let keys = |send, receive, local_index, remote_index, role| {
        SessionKeys { send, receive, local_index, remote_index, role }.into_halves(NOW)
    };
    let (send, receive) = keys([1; 32], [2; 32], index, 77, Role::Initiator);
    let (remote, _) = keys([2; 32], [1; 32], 77, index, Role::Responder);
    Session { send, receive, remote }
}

fn rig(links: &Links, id: u8, shared: Arc<PeerShared>, session: Session) -> Rig {
    let worker = worker(links, id, std::slice::from_ref(&shared));
    let install = Control::Install(shared, session.receive, session.send);
    assert!(links.workers[usize::from(id)].controls.push(install).is_ok());
    Rig { worker, io: Memory::new(256).expect("a slab"), remote: session.remote }
}

/// A worker of a device with these peers, whose address is each [`far`] of its slot.
fn worker(links: &Links, id: u8, peers: &[Arc<PeerShared>]) -> Worker {
    let config = WorkerConfig { id, mtu: 1420, coalesce: CoalesceOptions { tcp: true, udp: true } };
    let worker = Worker::new(config, links);
    let mut directory = DirectoryWriter::default();
    for peer in peers {
        peer.sending.set_endpoint(Some(Endpoint { addr: outer(), from: None }));
        directory.insert(Arc::clone(peer));
    }
    let prefix = |slot| Prefix::new(IpAddr::from(far(slot)), 32).expect("a prefix");
    let routes = peers.iter().map(|peer| (prefix(peer.id.slot), peer.id.slot));
    let control = Control::Routes(Arc::new(RouteTable::build(routes)), directory.publish());
    assert!(links.workers[usize::from(id)].controls.push(control).is_ok());
    worker
}

fn lone_rig() -> Rig {
    let links = Links::new(1).expect("links");
    rig(&links, 0, Arc::new(PeerShared::new(PeerId { slot: 0, epoch: 1 }, 0)), session(0))
}

fn outer() -> SocketAddr {
    SocketAddr::from(([203, 0, 113, 1], 51820))
}

/// Makes an IPv4 header for `len` bytes after it.
fn ipv4(protocol: u8, source: [u8; 4], destination: [u8; 4], len: usize) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend((20 + len as u16).to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    packet.extend(source);
    packet.extend(destination);
    let sum = !checksum::fold(checksum::sum(&packet, 0));
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// Fills in the transport's checksum, whose field is `field` bytes into it. A packet whose checksum does not verify joins no
/// other.
fn with_checksum(mut packet: Vec<u8>, protocol: u8, field: usize) -> Vec<u8> {
    let pseudo = checksum::pseudo_header(&packet, protocol, packet.len() - 20);
    let sum = !checksum::fold(checksum::sum(&packet[20..], pseudo));
    packet[20 + field..][..2].copy_from_slice(&sum.to_be_bytes());
    packet
}

fn tcp(source: [u8; 4], destination: [u8; 4], sequence: u32, payload: usize) -> Vec<u8> {
    let mut packet = ipv4(6, source, destination, 32 + payload);
    packet.extend([0x1f, 0x90, 0x1f, 0x91]);
    packet.extend(sequence.to_be_bytes());
    packet.extend([0, 0, 0, 7, 0x80, 0x10, 0x10, 0, 0, 0, 0, 0]);
    packet.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    packet.resize(packet.len() + payload, 0x5a);
    with_checksum(packet, 6, 16)
}

fn udp(source: [u8; 4], destination: [u8; 4], payload: usize) -> Vec<u8> {
    let mut packet = ipv4(17, source, destination, 8 + payload);
    packet.extend([0x1f, 0x90, 0x1f, 0x91]);
    packet.extend((8 + payload as u16).to_be_bytes());
    packet.extend([0, 0]);
    packet.resize(packet.len() + payload, 0x5a);
    with_checksum(packet, 17, 6)
}

const NEAR: [u8; 4] = [192, 168, 0, 1];
const FAR: [u8; 4] = [10, 0, 0, 1];

/// The address of the peer in `slot`; [`FAR`] is the first's.
fn far(slot: u32) -> [u8; 4] {
    let [_, high, middle, low] = (slot + 1).to_be_bytes();
    [10, high, middle, low]
}

/// Makes a TSO super-packet of [`SEGMENTS`] full segments behind its virtio-net header.
fn super_frame(destination: [u8; 4]) -> Vec<u8> {
    let mut frame = vec![1, 1];
    for field in [52, MSS as u16, 20, 16] {
        frame.extend(u16::to_ne_bytes(field));
    }
    frame.extend(tcp(NEAR, destination, 1, SEGMENTS * MSS));
    frame
}

fn small_frame() -> Vec<u8> {
    let mut frame = vec![0; 10];
    frame.extend(udp(NEAR, FAR, 16));
    frame
}

impl Rig {
    /// Feeds `frames` copies of a frame, takes a turn, and returns the time that the turn took.
    fn transmit(&mut self, frame: &[u8], frames: usize) -> Duration {
        for _ in 0..frames {
            assert!(self.io.push_frame(frame));
        }
        self.turn()
    }

    /// Feeds one train of the given packets, sealed by the remote, and takes a turn.
    fn receive(&mut self, packets: &[Vec<u8>]) -> Duration {
        self.push(packets);
        self.turn()
    }

    /// Feeds one train of the given packets, sealed by the remote.
    fn push(&mut self, packets: &[Vec<u8>]) {
        let stride = packets[0].len() + 32;
        let len = packets.len() * stride;
        let mut buf = self.io.pool().take().expect("a buffer");
        let train = &mut buf[HEADROOM..HEADROOM + len];
        for (segment, packet) in train.chunks_mut(stride).zip(packets) {
            segment[16..stride - 16].copy_from_slice(packet);
        }
        let first = self.remote.reserve(packets.len() as u64).expect("counters");
        self.remote.seal_train(first, train, stride);
        self.io.push_udp(UdpTrain { buf, start: HEADROOM, len, stride, from: outer(), to: None, ecn: 0 });
    }

    fn turn(&mut self) -> Duration {
        let begin = Clock::now();
        black_box(self.worker.turn(&mut self.io, NOW));
        let took = begin.elapsed();
        assert!(self.io.written() > 0 || self.io.take_sent().is_some());
        while self.io.take_sent().is_some() {}
        self.io.discard_written();
        took
    }
}

/// Rounds the packet up to the length to which WireGuard pads.
fn padded(mut packet: Vec<u8>) -> Vec<u8> {
    packet.resize(packet.len().next_multiple_of(16), 0);
    packet
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
        b.iter_custom(|n| per_packet(n, SEGMENTS, &mut || rig.transmit(&frame, 1)));
    });
    let (mut rig, frame) = (lone_rig(), small_frame());
    group.bench_function("tx/udp-16", |b| {
        b.iter_custom(|n| per_packet(n, SMALL, &mut || rig.transmit(&frame, SMALL)));
    });
    let mut rig = lone_rig();
    let packets = segments(FAR);
    group.bench_function("rx/train-45x1420", |b| {
        b.iter_custom(|n| per_packet(n, SEGMENTS, &mut || rig.receive(&packets)));
    });
    let mut rig = lone_rig();
    let packets: Vec<_> = (0..SMALL).map(|_| padded(udp(FAR, NEAR, 16))).collect();
    group.bench_function("rx/udp-16", |b| {
        b.iter_custom(|n| per_packet(n, SMALL, &mut || rig.receive(&packets)));
    });
    group.finish();
}

/// The full segments of a train from `source`.
fn segments(source: [u8; 4]) -> Vec<Vec<u8>> {
    (0..SEGMENTS).map(|i| padded(tcp(source, NEAR, 1 + (i * MSS) as u32, MSS))).collect()
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
                        crowd.rig.transmit(&frame, 1)
                    })
                    .sum()
            });
        });
        group.bench_function(format!("rx/train-45x1420/{count}-active"), |b| {
            b.iter_custom(|turns| {
                (0..turns)
                    .map(|_| {
                        let packets = segments(far(crowd.next()));
                        crowd.rig.receive(&packets)
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
                rig.transmit(&frame, 1);
                start.wait();
                (0..turns).map(|_| rig.transmit(&frame, 1)).sum::<Duration>()
            })
        };
        let threads: Vec<_> = (0..workers as u8).map(run).collect();
        threads.into_iter().map(|thread| thread.join().expect("a worker")).max().unwrap_or_default()
    })
}

/// Measures how long a peer's owner takes for `turns` times 64 trains while the other workers open what they can.
fn helped(workers: usize, turns: u64) -> Duration {
    let links = Links::new(workers).expect("links");
    let shared = Arc::new(PeerShared::new(PeerId { slot: 0, epoch: 1 }, 0));
    shared.assisted.store(workers > 1, Relaxed);
    links.assist.engage(usize::from(workers > 1));
    let (start, over) = (Barrier::new(workers), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for id in 1..workers as u8 {
            let (links, start, over) = (&links, &start, &over);
            scope.spawn(move || {
                let (mut worker, mut io) = (worker(links, id, &[]), Memory::new(16).expect("a slab"));
                start.wait();
                while !over.load(Relaxed) {
                    worker.turn(&mut io, NOW);
                }
            });
        }
        let (mut rig, packets) = (rig(&links, 0, shared, session(0)), segments(FAR));
        rig.receive(&packets);
        start.wait();
        let total = (0..turns).map(|_| {
            (0..TRAINS).for_each(|_| rig.push(&packets));
            let begin = Clock::now();
            while rig.io.written() < TRAINS {
                black_box(rig.worker.turn(&mut rig.io, NOW));
            }
            let took = begin.elapsed();
            rig.io.discard_written();
            took
        });
        let total = total.sum();
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
            b.iter_custom(|turns| helped(workers, turns));
        });
    }
    group.finish();
}

criterion_group!(benches, one_worker, crowds, scaling);
criterion_main!(benches);
