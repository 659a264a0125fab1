//! A worker with one peer over queues in memory, and the frames and trains that it is fed.

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
use ringtun::wire::vnet::VNET_HDR_LEN;
use std::hint::black_box;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

pub(crate) const NOW: Instant = Instant::from_nanos(1_000_000_000);
/// Full-size packets of a train.
pub(crate) const SEGMENTS: usize = 45;
const MSS: usize = 1368;
/// Small packets of a turn: the worker's budget.
pub(crate) const SMALL: usize = 64;
const HEADROOM: usize = 64;

/// A worker with one peer, and the peer.
pub(crate) struct Rig {
    pub(crate) worker: Worker,
    pub(crate) io: Memory,
    pub(crate) remote: Arc<SendSession>,
}

/// The first halves of a session, which several workers share, and the remote's half.
pub(crate) struct Session {
    pub(crate) send: Arc<SendSession>,
    pub(crate) receive: Box<RecvSession>,
    pub(crate) remote: Arc<SendSession>,
}

pub(crate) fn session(owner: u8) -> Session {
    session_of(0, owner)
}

/// A session of the peer in `slot`.
pub(crate) fn session_of(slot: u32, owner: u8) -> Session {
    let index = 0x1200_0000 + (slot << 8) + u32::from(owner);
    let keys = |send, receive, local_index, remote_index, role| {
        SessionKeys { send, receive, local_index, remote_index, role }.into_halves(NOW)
    };
    let (send, receive) = keys([1; 32], [2; 32], index, 77, Role::Initiator);
    let (remote, _) = keys([2; 32], [1; 32], 77, index, Role::Responder);
    Session { send, receive, remote }
}

pub(crate) fn rig(links: &Links, id: u8, shared: Arc<PeerShared>, session: Session) -> Rig {
    let worker = worker(links, id, std::slice::from_ref(&shared));
    let install = Control::Install(shared, session.receive, session.send);
    assert!(links.workers[usize::from(id)].controls.push(install).is_ok());
    Rig { worker, io: Memory::new(256).expect("a slab"), remote: session.remote }
}

/// A worker of a device with these peers, whose address is each [`far`] of its slot.
pub(crate) fn worker(links: &Links, id: u8, peers: &[Arc<PeerShared>]) -> Worker {
    let config =
        WorkerConfig { id, mtu: 1420, coalesce: CoalesceOptions { tcp: true, udp: true, tunnels: true } };
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

pub(crate) fn lone_rig() -> Rig {
    let links = Links::new(1).expect("links");
    rig(&links, 0, Arc::new(PeerShared::new(PeerId { slot: 0, epoch: 1 }, 0)), session(0))
}

pub(crate) fn outer() -> SocketAddr {
    SocketAddr::from(([203, 0, 113, 1], 51820))
}

/// Makes an IPv4 header for `len` bytes after it.
pub(crate) fn ipv4(protocol: u8, source: [u8; 4], destination: [u8; 4], len: usize) -> Vec<u8> {
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
pub(crate) fn with_checksum(mut packet: Vec<u8>, protocol: u8, field: usize) -> Vec<u8> {
    let pseudo = checksum::pseudo_header(&packet, protocol, packet.len() - 20);
    let sum = !checksum::fold(checksum::sum(&packet[20..], pseudo));
    packet[20 + field..][..2].copy_from_slice(&sum.to_be_bytes());
    packet
}

pub(crate) fn tcp(source: [u8; 4], destination: [u8; 4], sequence: u32, payload: usize) -> Vec<u8> {
    let mut packet = ipv4(6, source, destination, 32 + payload);
    packet.extend([0x1f, 0x90, 0x1f, 0x91]);
    packet.extend(sequence.to_be_bytes());
    packet.extend([0, 0, 0, 7, 0x80, 0x10, 0x10, 0, 0, 0, 0, 0]);
    packet.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    packet.resize(packet.len() + payload, 0x5a);
    with_checksum(packet, 6, 16)
}

pub(crate) fn udp(source: [u8; 4], destination: [u8; 4], payload: usize) -> Vec<u8> {
    let mut packet = ipv4(17, source, destination, 8 + payload);
    packet.extend([0x1f, 0x90, 0x1f, 0x91]);
    packet.extend((8 + payload as u16).to_be_bytes());
    packet.extend([0, 0]);
    packet.resize(packet.len() + payload, 0x5a);
    with_checksum(packet, 17, 6)
}

pub(crate) const NEAR: [u8; 4] = [192, 168, 0, 1];
pub(crate) const FAR: [u8; 4] = [10, 0, 0, 1];

/// The address of the peer in `slot`; [`FAR`] is the first's.
pub(crate) fn far(slot: u32) -> [u8; 4] {
    let [_, high, middle, low] = (slot + 1).to_be_bytes();
    [10, high, middle, low]
}

/// Makes a TSO super-packet of [`SEGMENTS`] full segments behind its virtio-net header.
pub(crate) fn super_frame(destination: [u8; 4]) -> Vec<u8> {
    let mut frame = vec![1, 1];
    for field in [52, MSS as u16, 20, 16] {
        frame.extend(u16::to_ne_bytes(field));
    }
    frame.resize(VNET_HDR_LEN, 0);
    frame.extend(tcp(NEAR, destination, 1, SEGMENTS * MSS));
    frame
}

pub(crate) fn small_frame() -> Vec<u8> {
    let mut frame = vec![0; VNET_HDR_LEN];
    frame.extend(udp(NEAR, FAR, 16));
    frame
}

impl Rig {
    /// Feeds `frames` copies of a frame.
    pub(crate) fn feed(&mut self, frame: &[u8], frames: usize) {
        for _ in 0..frames {
            assert!(self.io.push_frame(frame));
        }
    }

    /// Feeds one train of the given packets, sealed by the remote.
    pub(crate) fn push(&mut self, packets: &[Vec<u8>]) {
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

    /// Takes a turn, which `measure` runs, and throws away what it made.
    pub(crate) fn turn<T>(&mut self, measure: impl FnOnce(&mut dyn FnMut()) -> T) -> T {
        let measured = measure(&mut || {
            black_box(self.worker.turn(&mut self.io, NOW));
        });
        assert!(self.io.written() > 0 || self.io.take_sent().is_some());
        while self.io.take_sent().is_some() {}
        self.io.discard_written();
        measured
    }
}

/// Rounds the packet up to the length to which WireGuard pads.
pub(crate) fn padded(mut packet: Vec<u8>) -> Vec<u8> {
    packet.resize(packet.len().next_multiple_of(16), 0);
    packet
}

/// The full segments of a train from `source`.
pub(crate) fn segments(source: [u8; 4]) -> Vec<Vec<u8>> {
    (0..SEGMENTS).map(|i| padded(tcp(source, NEAR, 1 + (i * MSS) as u32, MSS))).collect()
}

/// As many small datagrams as a turn takes.
pub(crate) fn small_datagrams() -> Vec<Vec<u8>> {
    (0..SMALL).map(|_| padded(udp(FAR, NEAR, 16))).collect()
}
