//! The worker over queues in memory, against a remote that is two session halves.

mod assist;
mod counts;
mod limits;
mod loops;
mod mail;
mod rest;
mod rx;
mod sealing;
mod tx;

use super::{Turn, Worker, WorkerConfig};
use crate::dataplane::assist::Job;
use crate::dataplane::directory::DirectoryWriter;
use crate::dataplane::{Control, Event, Links, PeerId, PeerShared};
use crate::io::{Endpoint, LocalAddr, SendTrain};
use crate::noise::session::{RecvSession, Role, SendSession, SessionKeys};
use crate::offload::coalesce::CoalesceOptions;
use crate::routing::{Prefix, RouteTable};
use crate::sim::memory::Memory;
use crate::time::Instant;
use crate::wire::checksum;
use crate::wire::vnet::{VNET_HDR_LEN, VnetHeader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

const MTU: u32 = 1420;
const START: Instant = Instant::from_nanos(1_000_000_000_000);
/// Outer address of the worker under test.
const LOCAL: LocalAddr = LocalAddr { ip: IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)), interface: 2 };

fn ip4(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn outer(last: u8) -> SocketAddr {
    SocketAddr::from(([203, 0, 113, last], 51820))
}

fn prefix(text: &str, len: u8) -> Prefix {
    Prefix::new(text.parse().unwrap(), len).unwrap()
}

fn id(slot: u32) -> PeerId {
    PeerId { slot, epoch: 1 }
}

/// Index of the worker's receiving session with the peer in `slot`.
fn index_of(worker: u8, slot: u32) -> u32 {
    0x5eed_0000 | slot << 8 | u32::from(worker)
}

/// A virtio-net header and an IPv4 UDP packet whose payload starts with `tag`.
fn frame(source: &str, destination: &str, tag: u32, payload: usize, ecn: u8) -> Vec<u8> {
    let (udp, total) = (8 + payload, 28 + payload);
    let mut packet = vec![0x45, ecn];
    packet.extend((total as u16).to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    packet.extend(ip4(source).octets());
    packet.extend(ip4(destination).octets());
    let sum = !checksum::fold(checksum::sum(&packet, 0));
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend([0x1f, 0x90, 0x1f, 0x91]);
    packet.extend((udp as u16).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend((0..payload).map(|i| i as u8));
    packet[28..32].copy_from_slice(&tag.to_be_bytes());
    let sum = checksum::sum(&packet[20..], checksum::pseudo_header(&packet, 17, udp));
    let sum = match !checksum::fold(sum) {
        0 => 0xffff,
        sum => sum,
    };
    packet[26..28].copy_from_slice(&sum.to_be_bytes());
    let mut frame = VnetHeader::default().to_bytes().to_vec();
    frame.extend(packet);
    frame
}

/// The tag of a packet of [`frame`] (without its virtio-net header).
fn tag(packet: &[u8]) -> u32 {
    u32::from_be_bytes(packet[28..32].try_into().unwrap())
}

/// A virtio-net header and a TCP super-packet over IPv4, as the kernel hands it over: partial checksum, no lengths fixed.
fn tso_frame(source: &str, destination: &str, payload: usize, gso_size: u16) -> Vec<u8> {
    let vnet = VnetHeader {
        flags: crate::wire::vnet::F_NEEDS_CSUM,
        gso: crate::wire::vnet::GsoType::TcpV4,
        gso_ecn: false,
        hdr_len: 40,
        gso_size,
        csum_start: 20,
        csum_offset: 16,
        tunnel: None,
    };
    let mut packet = vec![0x45, 0];
    packet.extend(((40 + payload) as u16).to_be_bytes());
    packet.extend([0, 1, 0x40, 0, 64, 6, 0, 0]);
    packet.extend(ip4(source).octets());
    packet.extend(ip4(destination).octets());
    let sum = !checksum::fold(checksum::sum(&packet, 0));
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend([0x1f, 0x90, 0x1f, 0x91, 0, 0, 0, 100, 0, 0, 0, 7, 0x50, 0x10, 0x10, 0, 0, 0, 0, 0]);
    let pseudo = checksum::fold(checksum::pseudo_header(&packet, 6, 20 + payload));
    packet[36..38].copy_from_slice(&pseudo.to_be_bytes());
    packet.extend((0..payload).map(|i| (i % 251) as u8));
    let mut frame = vnet.to_bytes().to_vec();
    frame.extend(packet);
    frame
}

/// The other end of one session.
struct Remote {
    send: Arc<SendSession>,
    receive: Box<RecvSession>,
}

impl Remote {
    /// Seals `texts` (each padded by the caller) into a train.
    fn seal(&self, texts: &[&[u8]]) -> (Vec<u8>, usize) {
        let stride = texts.first().map_or(32, |text| text.len() + 32);
        let mut train = Vec::new();
        for text in texts {
            train.extend([0; 16]);
            train.extend(*text);
            train.extend([0; 16]);
        }
        let first = self.send.reserve(texts.len() as u64).unwrap();
        self.send.seal_train(first, &mut train, stride);
        (train, stride)
    }

    /// Opens a train and returns the inner packets, padding included.
    fn open(&mut self, train: &SendTrain) -> Vec<Vec<u8>> {
        let mut bytes = train.buf[..train.len].to_vec();
        let received = self.receive.open_train(&mut bytes, train.stride);
        let segments = bytes.chunks(train.stride).enumerate();
        segments
            .map(|(i, segment)| {
                assert!(received.fresh.is_ok(i), "segment {i} of {} does not open", train.len / train.stride);
                segment[16..segment.len() - 16].to_vec()
            })
            .collect()
    }
}

/// One worker of a device with its mailboxes.
struct Rig {
    worker: Worker,
    io: Memory,
    links: Links,
    now: Instant,
    me: u8,
    peers: Vec<Arc<PeerShared>>,
    directory: DirectoryWriter,
}

impl Rig {
    fn new() -> Rig {
        Rig::of(&Links::new(1).unwrap(), 0)
    }

    /// Worker `me` of `links`.
    fn of(links: &Links, me: u8) -> Rig {
        let config = WorkerConfig {
            id: me,
            mtu: MTU,
            coalesce: CoalesceOptions { tcp: true, udp: true, tunnels: true },
        };
        Rig {
            worker: Worker::new(config, links),
            io: Memory::new(256).unwrap(),
            links: links.clone(),
            now: START,
            me,
            peers: Vec::new(),
            directory: DirectoryWriter::default(),
        }
    }

    /// With peers in slots 0.., AllowedIPs 10.SLOT.0.0/16 each, endpoints 203.0.113.SLOT.
    fn with_peers(count: u32) -> Rig {
        let mut rig = Rig::new();
        rig.add_peers(count);
        rig
    }

    fn add_peers(&mut self, count: u32) {
        self.share_peers((0..count).map(|slot| Arc::new(PeerShared::new(id(slot), self.me))).collect());
    }

    /// The same with peers that another worker has, too.
    fn share_peers(&mut self, peers: Vec<Arc<PeerShared>>) {
        let count = peers.len() as u32;
        for (slot, shared) in (0..count).zip(peers) {
            self.directory.insert(shared.clone());
            self.peers.push(shared);
            self.set_endpoint(slot, Some(Endpoint { addr: outer(slot as u8), from: None }));
        }
        self.route((0..count).map(|slot| (prefix(&format!("10.{slot}.0.0"), 16), slot)));
        self.turn();
    }

    /// Publishes routes, and the peers as they are now.
    fn route(&mut self, routes: impl IntoIterator<Item = (Prefix, u32)>) {
        let directory = self.directory.publish();
        self.control(Control::Routes(Arc::new(RouteTable::build(routes)), directory));
    }

    /// Sets a peer's endpoint, as the slow path does.
    fn set_endpoint(&self, slot: u32, endpoint: Option<Endpoint>) {
        self.peers[slot as usize].sending.set_endpoint(endpoint);
        self.control(Control::SendStaged(id(slot)));
    }

    /// Installs a session with the peer in `slot`.
    fn install(&self, slot: u32, receive: Box<RecvSession>, send: Arc<SendSession>) {
        self.control(Control::Install(Arc::clone(&self.peers[slot as usize]), receive, send));
    }

    fn keepalive(&self, slot: u32) {
        self.control(Control::Keepalive(Arc::clone(&self.peers[slot as usize])));
    }

    fn control(&self, control: Control) {
        assert!(self.links.workers[usize::from(self.me)].controls.push(control).is_ok());
    }

    /// A session with the peer in `slot`, both halves installed.
    fn connect(&mut self, slot: u32) -> Remote {
        let (send, receive, remote) = self.session(slot, Role::Initiator);
        self.install(slot, receive, send);
        self.turn();
        remote
    }

    /// A session with the peer in `slot`, in which the worker's device has `role`.
    fn session(&self, slot: u32, role: Role) -> (Arc<SendSession>, Box<RecvSession>, Remote) {
        let (ours, theirs) = ([slot as u8 + 1; 32], [slot as u8 + 101; 32]);
        let (local_index, remote_index) = (index_of(self.me, slot), 0xabcd_0000 + slot);
        let keys = SessionKeys { send: ours, receive: theirs, local_index, remote_index, role };
        let other = match role {
            Role::Initiator => Role::Responder,
            Role::Responder => Role::Initiator,
        };
        let mirrored = SessionKeys {
            send: theirs,
            receive: ours,
            local_index: remote_index,
            remote_index: local_index,
            role: other,
        };
        let (send, receive) = keys.into_halves(self.now);
        let (remote_send, remote_receive) = mirrored.into_halves(self.now);
        (send, receive, Remote { send: remote_send, receive: remote_receive })
    }

    fn turn(&mut self) -> Turn {
        let turn = self.worker.turn(&mut self.io, self.now);
        assert_eq!(self.io.unflushed(), 0, "a turn flushes what it queued");
        self.balance();
        turn
    }

    /// Each data message of a session of this worker's comes to one thing, and is counted as that.
    fn balance(&self) {
        let stats = self.worker.stats();
        let ends = [
            &stats.rx_packets,
            &stats.rx_keepalives,
            &stats.rx_expired,
            &stats.rx_decrypt_failed,
            &stats.rx_replayed,
            &stats.rx_limited,
            &stats.rx_bad_inner,
            &stats.rx_bad_source,
        ];
        let ended: u64 = ends.iter().map(|counter| counter.load(Relaxed)).sum();
        // Of unknown indices some name no worker at all.
        let unknown = stats.rx_unknown_index.load(Relaxed);
        let owned = stats.rx_owned.load(Relaxed);
        assert!((ended..=ended + unknown).contains(&owned), "{owned} came, {ended} ended: {stats:?}");
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
    }

    fn push_frame(&mut self, frame: &[u8]) {
        assert!(self.io.push_frame(frame));
    }

    fn push_train(&mut self, (bytes, stride): (Vec<u8>, usize), from: SocketAddr) {
        assert!(self.io.push_train(&bytes, stride, from, Some(LOCAL), 0));
    }

    fn sent(&mut self) -> Vec<SendTrain> {
        std::iter::from_fn(|| self.io.take_sent()).collect()
    }

    /// Inner packets written to the TUN device, headers of super-packets not undone.
    fn written(&mut self) -> Vec<Vec<u8>> {
        self.io.take_written().into_iter().map(|frame| frame[VNET_HDR_LEN..].to_vec()).collect()
    }

    fn events(&self) -> Vec<Event> {
        std::iter::from_fn(|| self.links.slow.events.pop()).collect()
    }

    fn count(&self, of: impl Fn(&crate::dataplane::stats::WorkerStats) -> &AtomicU64) -> u64 {
        of(&self.worker.stats()).load(Relaxed)
    }
}

/// The inner packet of [`frame`], padded as the remote pads it.
fn packet(source: &str, destination: &str, tag: u32, payload: usize) -> Vec<u8> {
    let mut packet = frame(source, destination, tag, payload, 0)[VNET_HDR_LEN..].to_vec();
    packet.resize(packet.len().next_multiple_of(16), 0);
    packet
}

/// Does `work` while worker 1, on a thread of its own, helps. What it did for others is printed, as the kernel decides how much that is.
fn while_another_helps(links: &Links, work: impl FnOnce()) {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let helper = scope.spawn(|| {
            let mut rig = Rig::of(links, 1);
            while !over.load(Relaxed) {
                rig.turn();
            }
            (rig.count(|stats| &stats.rx_assisted), rig.count(|stats| &stats.tx_assisted))
        });
        work();
        over.store(true, Relaxed);
        let (opened, sealed) = helper.join().unwrap();
        println!("the helper opened {opened} trains and sealed {sealed}");
    });
}

/// Has the worker make a turn in which another one returns `stolen`, a train of its own, late.
fn turn_while_returned(rig: &mut Rig, stolen: Job) {
    let (assist, giver, kind) = (Arc::clone(&rig.links.assist), stolen.giver, stolen.kind());
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            assist.finish(giver, kind, stolen.work());
        });
        rig.turn();
    });
}
