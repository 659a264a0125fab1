//! A worker's steady state allocates nothing: counted by the allocator, over queues in memory.

#![allow(unsafe_code)] // a global allocator is an unsafe trait
#![allow(clippy::unwrap_used)] // the helpers of a test are tests

use ringtun::dataplane::directory::DirectoryWriter;
use ringtun::dataplane::worker::{Worker, WorkerConfig};
use ringtun::dataplane::{Control, Links, PeerId, PeerShared};
use ringtun::io::{Endpoint, UdpTrain};
use ringtun::noise::session::{Role, SendSession, SessionKeys};
use ringtun::offload::coalesce::CoalesceOptions;
use ringtun::routing::{Prefix, RouteTable};
use ringtun::sim::memory::Memory;
use ringtun::time::Instant;
use ringtun::wire::vnet::VNET_HDR_LEN;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// Counts the allocations of each thread.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator unchanged; the counter has no destructor and allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `GlobalAlloc::dealloc`.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const NOW: Instant = Instant::from_nanos(1_000_000_000);
const INDEX: u32 = 0x1234_5600;

/// A virtio-net header and an IPv4 UDP packet without a checksum.
fn udp_frame(source: [u8; 4], destination: [u8; 4], payload: usize) -> Vec<u8> {
    let mut frame = vec![0; VNET_HDR_LEN];
    frame.extend([0x45, 0]);
    frame.extend((28 + payload as u16).to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    frame.extend(source);
    frame.extend(destination);
    frame.extend([0x1f, 0x90, 0x1f, 0x91]);
    frame.extend((8 + payload as u16).to_be_bytes());
    frame.extend([0, 0]);
    frame.resize(VNET_HDR_LEN + 28 + payload, 0x5a);
    frame
}

/// A virtio-net header and a TCP super-packet over IPv4.
fn tcp_super_frame(payload: usize, gso_size: u16) -> Vec<u8> {
    let mut frame = vec![1, 1];
    for field in [40, gso_size, 20, 16] {
        frame.extend(u16::to_ne_bytes(field));
    }
    frame.resize(VNET_HDR_LEN, 0);
    frame.extend([0x45, 0]);
    frame.extend((40 + payload as u16).to_be_bytes());
    frame.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 192, 168, 0, 1, 10, 0, 0, 1]);
    frame.extend([0x1f, 0x90, 0x1f, 0x91, 0, 0, 0, 100, 0, 0, 0, 7, 0x50, 0x10, 0x10, 0, 0, 0, 0, 0]);
    frame.resize(VNET_HDR_LEN + 40 + payload, 0x5a);
    frame
}

struct Rig {
    worker: Worker,
    io: Memory,
    remote: Arc<SendSession>,
    packet: Vec<u8>,
}

/// A worker whose peer is assisted or not.
fn rig(assisted: bool) -> Rig {
    let links = Links::new(1).unwrap();
    links.assist.engage(usize::from(assisted));
    let config =
        WorkerConfig { id: 0, mtu: 1420, coalesce: CoalesceOptions { tcp: true, udp: true, tunnels: true } };
    let worker = Worker::new(config, &links);
    let keys = |send, receive, local_index, remote_index, role| {
        SessionKeys { send, receive, local_index, remote_index, role }.into_halves(NOW)
    };
    let (send, receive) = keys([1; 32], [2; 32], INDEX, 77, Role::Initiator);
    let (remote, _) = keys([2; 32], [1; 32], 77, INDEX, Role::Responder);
    let id = PeerId { slot: 0, epoch: 1 };
    let endpoint = Endpoint { addr: SocketAddr::from(([203, 0, 113, 1], 51820)), from: None };
    let prefix = Prefix::new(IpAddr::from([10, 0, 0, 0]), 8).unwrap();
    let peer = Arc::new(PeerShared::new(id, 0));
    peer.sending.set_endpoint(Some(endpoint));
    peer.assisted.store(assisted, Relaxed);
    peer.seal_assisted.store(assisted, Relaxed);
    let mut directory = DirectoryWriter::default();
    directory.insert(Arc::clone(&peer));
    for control in [
        Control::Routes(Arc::new(RouteTable::build([(prefix, 0)])), directory.publish()),
        Control::Install(peer, receive, send),
    ] {
        assert!(links.workers[0].controls.push(control).is_ok());
    }
    let mut packet = udp_frame([10, 0, 0, 1], [192, 168, 0, 1], 1380)[VNET_HDR_LEN..].to_vec();
    packet.resize(packet.len().next_multiple_of(16), 0);
    Rig { worker, io: Memory::new(128).unwrap(), remote, packet }
}

impl Rig {
    /// One turn of mixed traffic in both directions.
    fn turn(&mut self, frames: &[Vec<u8>]) {
        for frame in frames {
            assert!(self.io.push_frame(frame));
        }
        for count in [1, 20, 45] {
            let stride = self.packet.len() + 32;
            let mut buf = self.io.pool().take().unwrap();
            for segment in buf[64..64 + count * stride].chunks_mut(stride) {
                segment[16..stride - 16].copy_from_slice(&self.packet);
            }
            let first = self.remote.reserve(count as u64).unwrap();
            self.remote.seal_train(first, &mut buf[64..64 + count * stride], stride);
            let from = SocketAddr::from(([203, 0, 113, 1], 51820));
            self.io.push_udp(UdpTrain {
                buf,
                start: 64,
                len: count * stride,
                stride,
                from,
                to: None,
                ecn: 0,
            });
        }
        self.worker.turn(&mut self.io, NOW);
        let mut sent = 0;
        while let Some(train) = self.io.take_sent() {
            sent += train.len.div_ceil(train.stride);
        }
        assert!(sent >= 45 + 30, "{sent} datagrams sent");
        assert!(self.io.written() >= 3);
        self.io.discard_written();
    }
}

fn allocates_nothing(assisted: bool) {
    let mut rig = rig(assisted);
    let mut frames = vec![tcp_super_frame(45 * 1368, 1368), tcp_super_frame(3000, 1368)];
    frames.extend((0..30).map(|_| udp_frame([192, 168, 0, 1], [10, 0, 0, 1], 16)));
    for _ in 0..50 {
        rig.turn(&frames);
    }
    let before = ALLOCATIONS.get();
    assert!(before > 0, "the allocator counts");
    for _ in 0..200 {
        rig.turn(&frames);
    }
    assert_eq!(ALLOCATIONS.get() - before, 0);
    let counted = rig.worker.stats();
    for shared_out in [&counted.rx_shared_out, &counted.tx_shared_out] {
        assert_eq!(shared_out.load(Relaxed) > 0, assisted);
    }
}

#[test]
fn the_steady_state_allocates_nothing() {
    allocates_nothing(false);
}

#[test]
fn trains_that_are_shared_out_allocate_nothing() {
    allocates_nothing(true);
}
