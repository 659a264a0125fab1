//! Workers: run to completion over one [`crate::io::Io`] each; what they share with the slow path is in this file.
//!
//! Slow path to worker: a bounded queue of [`Control`] each, delivered in order. Worker to slow path: one bounded queue of
//! [`Event`]s (never lost: the worker tries again with the next packet) and one of handshake datagrams (dropped when full).

pub(crate) mod counters;
pub mod misdirected;
pub mod sending;
pub mod staging;
pub mod stats;
pub mod worker;

use crate::dataplane::misdirected::MisdirectedQueue;
use crate::dataplane::sending::Sending;
use crate::dataplane::staging::Staging;
use crate::dataplane::stats::WorkerStats;
use crate::io::udp::UdpSockets;
use crate::io::{Endpoint, LocalAddr, Notice};
use crate::noise::cookie::GateKeys;
use crate::noise::session::{RecvSession, SendSession};
use crate::noise::timers::Activity;
use crate::routing::RouteTable;
use crate::sys::icmp::IcmpSockets;
use crate::sys::waker::Waker;
use crate::time::Instant;
use crate::wire::message::MAX_HANDSHAKE_LEN;
use crossbeam::queue::ArrayQueue;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst, fence};
use std::time::Duration;

/// Controls that may wait for one worker; the slow path keeps what does not fit and tries again.
pub const CONTROL_QUEUE: usize = 4096;
/// Handshake datagrams that may wait for the slow path: 4096 × ~220 bytes. Full: dropped and counted.
pub const HANDSHAKE_QUEUE: usize = 4096;
/// Handshake messages waiting from which on a cookie is asked for (kernel: MAX_QUEUED_INCOMING_HANDSHAKES / 8).
pub const UNDER_LOAD: usize = HANDSHAKE_QUEUE / 8;
/// Time for which it is asked for after fewer wait (kernel: one second).
pub const LOAD_MEMORY: Duration = Duration::from_secs(1);
/// Events that may wait for the slow path.
pub const EVENT_QUEUE: usize = 16384;
/// Notices that may wait to be logged; full: dropped and counted.
pub const NOTICE_QUEUE: usize = 64;
/// Packets (or super-packets) one worker stages for one peer without a session (kernel: MAX_STAGED_PACKETS); the oldest goes.
pub const MAX_STAGED: usize = 128;
/// A worker asks at most this often for a handshake with one peer: packets without a session must not flood the slow path.
pub const HANDSHAKE_ASK_INTERVAL: Duration = Duration::from_millis(100);

/// A peer as workers know it. Slots are small and reused; the epoch tells a reused one from its predecessor.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PeerId {
    /// Index into the workers' tables; the value in [`RouteTable`].
    pub slot: u32,
    /// Distinguishes successive owners of the slot.
    pub epoch: u32,
}

/// What all workers and the slow path share of one peer: counters and time stamps, all relaxed atomics, and the session to send
/// with.
#[derive(Debug)]
pub struct PeerShared {
    /// Who.
    pub id: PeerId,
    /// Worker that opens its packets.
    pub owner: u8,
    /// Bytes received in authenticated messages, outer UDP payload.
    pub rx_bytes: AtomicU64,
    /// Bytes sent, outer UDP payload.
    pub tx_bytes: AtomicU64,
    /// The session to send with.
    pub sending: Sending,
    /// Sender index of the last handshake message sent to it.
    pub handshake_index: AtomicU32,
    unanswered_since: AtomicU64,
    unacknowledged_since: AtomicU64,
    last_data_received: AtomicU64,
    last_authenticated: AtomicU64,
    /// An [`Event::Activity`] is under way or the slow path has its timer armed: no other is needed. A worker sets it with
    /// [`PeerShared::arm`] and clears it only where the event queue was full; else the slow path clears it, when it stops
    /// watching: clear, `fence(SeqCst)`, look at the stamps once more.
    pub armed: AtomicBool,
    /// An [`Event::NeedHandshake`] is under way. The worker that queues the event sets it; the slow path clears it once it has
    /// dealt with the event, not once there is a session: a packet that is staged later asks again, and so restarts the
    /// attempts (kernel `wg_packet_send_queued_handshake_initiation`), though not within [`HANDSHAKE_ASK_INTERVAL`].
    pub handshake_wanted: AtomicBool,
}

impl PeerShared {
    /// A peer that never spoke.
    pub fn new(id: PeerId, owner: u8) -> PeerShared {
        PeerShared {
            id,
            owner,
            rx_bytes: AtomicU64::new(0),
            tx_bytes: AtomicU64::new(0),
            sending: Sending::default(),
            handshake_index: AtomicU32::new(0),
            unanswered_since: AtomicU64::new(0),
            unacknowledged_since: AtomicU64::new(0),
            last_data_received: AtomicU64::new(0),
            last_authenticated: AtomicU64::new(0),
            armed: AtomicBool::new(false),
            handshake_wanted: AtomicBool::new(false),
        }
    }

    /// Data (not a keepalive) was sent.
    pub fn data_sent(&self, now: Instant) {
        if self.unanswered_since.load(Relaxed) == 0 {
            self.unanswered_since.store(now.as_nanos(), Relaxed);
        }
        self.authenticated_sent(now);
    }

    /// The timer for unanswered data that began at `stamp` has run out: the next data sent begins another (kernel
    /// `wg_timers_data_sent` arms `timer_new_handshake` wherever it is not pending). Where a message came meanwhile, or data
    /// after it, that stands.
    pub fn unanswered_handled(&self, stamp: Instant) {
        let _ = self.unanswered_since.compare_exchange(stamp.as_nanos(), 0, Relaxed, Relaxed);
    }

    /// Any authenticated message was sent: data, keepalive, handshake.
    pub fn authenticated_sent(&self, now: Instant) {
        self.unacknowledged_since.store(0, Relaxed);
        self.last_authenticated.store(now.as_nanos(), Relaxed);
    }

    /// Data (not a keepalive) was received.
    pub fn data_received(&self, now: Instant) {
        if self.unacknowledged_since.load(Relaxed) == 0 {
            self.unacknowledged_since.store(now.as_nanos(), Relaxed);
        }
        self.last_data_received.store(now.as_nanos(), Relaxed);
        self.authenticated_received(now);
    }

    /// Any authenticated message was received.
    pub fn authenticated_received(&self, now: Instant) {
        self.unanswered_since.store(0, Relaxed);
        self.last_authenticated.store(now.as_nanos(), Relaxed);
    }

    /// Called by a worker after it moved a stamp: whether it has to queue an [`Event::Activity`]. Should that fail, it
    /// clears [`Self::armed`] again.
    pub fn arm(&self) -> bool {
        // Pairs with the slow path's fence: either this load sees the flag cleared, or its last look sees the new stamp.
        fence(SeqCst);
        !self.armed.load(Relaxed) && !self.armed.swap(true, Relaxed)
    }

    /// The stamps, for the timers.
    pub fn activity(&self) -> Activity {
        let read = |stamp: &AtomicU64| match stamp.load(Relaxed) {
            0 => None,
            nanos => Some(Instant::from_nanos(nanos)),
        };
        Activity {
            unanswered_since: read(&self.unanswered_since),
            unacknowledged_since: read(&self.unacknowledged_since),
            last_data_received: read(&self.last_data_received),
            last_authenticated: read(&self.last_authenticated),
        }
    }
}

/// A handshake message (types 1 to 3) on its way from or to the slow path.
#[derive(Clone, Debug)]
pub struct HandshakeDatagram {
    bytes: [u8; MAX_HANDSHAKE_LEN],
    len: u8,
}

impl HandshakeDatagram {
    /// Copies a message of at most [`MAX_HANDSHAKE_LEN`] bytes; `None`: longer.
    pub fn new(message: &[u8]) -> Option<HandshakeDatagram> {
        let mut bytes = [0; MAX_HANDSHAKE_LEN];
        bytes.get_mut(..message.len())?.copy_from_slice(message);
        Some(HandshakeDatagram { bytes, len: message.len() as u8 })
    }

    /// The message.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// A handshake message that a worker received; types 1 and 2 passed the MAC1 check.
#[derive(Clone, Debug)]
pub struct IncomingHandshake {
    /// The message.
    pub datagram: HandshakeDatagram,
    /// Its sender.
    pub from: SocketAddr,
    /// The local address it came to.
    pub to: Option<LocalAddr>,
    /// It came under load with a valid cookie: its sender receives at `from`, and has a budget.
    pub proven: bool,
}

/// From the slow path to one worker.
pub enum Control {
    /// What checks handshake messages for the local identity, `None` without a private key: then every one is dropped.
    Identity(Option<Box<GateKeys>>),
    /// The AllowedIPs, whole; values are peer slots.
    Routes(Arc<RouteTable>),
    /// A new peer (all workers).
    AddPeer(Arc<PeerShared>),
    /// A peer is gone, with its staged packets and its sessions (all workers).
    RemovePeer(PeerId),
    /// Where a peer is (all workers).
    Endpoint(PeerId, Option<Endpoint>),
    /// Open what comes for the session's index, and send with it as soon as its role allows (owner only).
    Install(PeerId, Box<RecvSession>, Arc<SendSession>),
    /// Forget the peer's session with this index, both halves (all workers).
    Drop(PeerId, u32),
    /// There is a new session to send with: send what was staged (all workers).
    SendStaged(PeerId),
    /// Send a keepalive, if there is a session (owner only). Staged packets go instead, if there are any.
    Keepalive(PeerId),
    /// Confirm the session that is sent with: a keepalive, unless packets went with it already (owner only).
    Confirm(PeerId),
    /// Drop what is staged: the handshake was given up (all workers). The inner sources get ICMP unreachable.
    PurgeStaged(PeerId),
    /// Send a handshake message.
    Send(Endpoint, HandshakeDatagram),
    /// The interface's MTU changed: padding's limit; 0: none.
    Mtu(u32),
    /// The MTUs of the routes into the interface that have one, by prefix.
    RouteMtus(Option<Arc<RouteTable>>),
    /// The broadcast addresses of the interface, about which nobody hears.
    Broadcasts(Arc<[Ipv4Addr]>),
    /// Sockets for ICMP where the interface is now, or none.
    Icmp(Option<Arc<IcmpSockets>>),
    /// Other sockets, or none.
    Rebind(Option<UdpSockets>),
    /// End the worker.
    Stop,
}

/// From a worker to the slow path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The peer's time stamps moved while nobody watched them.
    Activity(PeerId),
    /// A packet (or keepalive) waits without a usable session, or the session wants a rekey. See
    /// [`PeerShared::handshake_wanted`].
    NeedHandshake(PeerId),
    /// The session with this index has taken effect: it was installed, where we began it; where we answered, the first
    /// authentic data message on it came.
    Confirmed(PeerId, u32),
    /// An authentic message came from another address or port, or to another local address.
    Roamed(PeerId, Endpoint),
    /// A packet for the peer could not be sent from its sticky source (the address went away).
    SourceGone(PeerId),
    /// The worker ended: the TUN device is gone (message for the log).
    WorkerEnded(u8, String),
}

/// One worker's inbox, as others see it.
#[derive(Clone)]
pub struct Inbox {
    /// Controls, in order.
    pub controls: Arc<ArrayQueue<Control>>,
    /// Misdirected datagrams.
    pub misdirected: Arc<MisdirectedQueue>,
    /// Rings the worker.
    pub waker: Waker,
    /// What the worker counts.
    pub stats: Arc<WorkerStats>,
}

/// The slow path's inbox, as workers see it.
#[derive(Clone)]
pub struct SlowPathInbox {
    /// Events.
    pub events: Arc<ArrayQueue<Event>>,
    /// Handshake messages.
    pub handshakes: Arc<ArrayQueue<IncomingHandshake>>,
    /// When a worker last saw [`UNDER_LOAD`] of them wait, in nanoseconds; 0: never. One for all workers: a flood that only
    /// some of them turn away would still have the slow path to itself.
    pub loaded_at: Arc<AtomicU64>,
    /// When a routing loop was last logged, in nanoseconds; 0: never. One for all workers, as it is one loop.
    pub looped_at: Arc<AtomicU64>,
    /// What is worth a line of log: the worker's number and what happened.
    pub notices: Arc<ArrayQueue<(u8, Notice)>>,
    /// Rings the slow path.
    pub waker: Waker,
}

/// All queues of one device.
#[derive(Clone)]
pub struct Links {
    /// One a worker.
    pub workers: Vec<Inbox>,
    /// The slow path's.
    pub slow: SlowPathInbox,
    /// Room for packets without a session, of all workers together.
    pub staging: Arc<Staging>,
}

impl Links {
    /// Queues for `workers` workers.
    pub fn new(workers: usize) -> std::io::Result<Links> {
        let inbox = || {
            Ok(Inbox {
                controls: Arc::new(ArrayQueue::new(CONTROL_QUEUE)),
                misdirected: Arc::default(),
                waker: Waker::new()?,
                stats: Arc::default(),
            })
        };
        Ok(Links {
            workers: (0..workers).map(|_| inbox()).collect::<std::io::Result<_>>()?,
            slow: SlowPathInbox {
                events: Arc::new(ArrayQueue::new(EVENT_QUEUE)),
                handshakes: Arc::new(ArrayQueue::new(HANDSHAKE_QUEUE)),
                loaded_at: Arc::default(),
                looped_at: Arc::default(),
                notices: Arc::new(ArrayQueue::new(NOTICE_QUEUE)),
                waker: Waker::new()?,
            },
            staging: Arc::default(),
        })
    }

    /// The same for a process whose memory group may use no more than so many bytes.
    pub fn within(self, group: Option<u64>) -> Links {
        Links { staging: Arc::new(Staging::within(group)), ..self }
    }
}
