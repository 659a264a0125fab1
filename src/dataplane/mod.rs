//! The workers, each of which runs to completion over one [`crate::io::Io`]. What they share with the slow path is in
//! this file.
//!
//! From the slow path to each worker leads a bounded queue of [`Control`]s, delivered in order. From the workers to
//! the slow path lead a bounded queue of [`Event`]s and one of handshake datagrams. Events are never lost, as a
//! worker tries again with the next packet; handshake datagrams are dropped when the queue is full.

pub mod assist;
mod atomic;
pub(crate) mod counters;
pub mod directory;
pub mod handshakes;
pub mod histograms;
pub mod limits;
pub mod misdirected;
mod notes;
pub mod record;
pub mod sending;
#[cfg(test)]
mod sending_tests;
mod sleepers;
pub mod staging;
pub mod stats;
pub mod worker;

use crate::dataplane::assist::Assist;
use crate::dataplane::directory::PeerDirectory;
use crate::dataplane::handshakes::{HANDSHAKE_QUEUE, HandshakeQueue};
use crate::dataplane::histograms::Histograms;
use crate::dataplane::limits::{LimitSettings, PeerLimits};
use crate::dataplane::misdirected::{MISDIRECTED_QUEUE, Misdirected, MisdirectedQueue};
use crate::dataplane::notes::StagedNotes;
use crate::dataplane::record::{RestoredSession, WorkerRecord};
use crate::dataplane::sending::Sending;
use crate::dataplane::staging::Staging;
use crate::dataplane::stats::WorkerStats;
use crate::index::WorkerCount;
use crate::io::udp::UdpSockets;
use crate::io::{Endpoint, LocalAddr, Notice};
use crate::noise::cookie::GateKeys;
use crate::noise::session::{RecvSession, SendSession};
use crate::noise::timers::Activity;
use crate::offload::coalesce::TunnelPorts;
use crate::routing::RouteTable;
use crate::sys::icmp::IcmpSockets;
use crate::sys::waker::Waker;
use crate::time::Instant;
use crate::wire::message::MAX_HANDSHAKE_LEN;
use crossbeam::queue::ArrayQueue;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst, fence,
};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Controls that may wait for one worker. The slow path keeps what does not fit, and tries again.
pub const CONTROL_QUEUE: usize = 4096;
/// Time for which a cookie is asked for after fewer messages wait (kernel: one second).
pub const LOAD_MEMORY: Duration = Duration::from_secs(1);
/// Events that may wait for the slow path.
pub const EVENT_QUEUE: usize = 16384;
/// Notices that may wait to be logged. Further ones are dropped and counted.
pub const NOTICE_QUEUE: usize = 64;
/// Packets or super-packets that one worker stages for one peer without a session (kernel: MAX_STAGED_PACKETS). A
/// further one takes the place of the oldest.
pub const MAX_STAGED: usize = 128;
/// Shortest time between two requests of the workers for a handshake with one peer, so that packets without a session do
/// not flood the slow path.
pub const HANDSHAKE_ASK_INTERVAL: Duration = Duration::from_millis(100);

/// A peer as workers know it. Slots are small and reused; the epoch tells a reused one from its predecessor.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PeerId {
    /// Index into the [`PeerDirectory`], and the value in [`RouteTable`].
    pub slot: u32,
    /// Distinguishes successive owners of the slot.
    pub epoch: u32,
}

/// What all workers and the slow path share of one peer: how it is sent to, and counters and time stamps, all of them
/// relaxed atomics.
#[derive(Debug)]
pub struct PeerShared {
    /// The peer's slot and epoch.
    pub id: PeerId,
    /// The peer's owner: see [`Self::owner`].
    owner: AtomicU8,
    /// What the workers write with each train.
    pub traffic: Traffic,
    /// The endpoint, and the session to send with.
    pub sending: Sending,
    /// Whether the owners of its sessions let other workers open what it sends.
    pub assisted: AtomicBool,
    /// Whether a worker lets others seal what is sent to it.
    pub seal_assisted: AtomicBool,
    /// The sender index of the last handshake message sent to the peer.
    pub handshake_index: AtomicU32,
    /// The workers that may have staged frames for the peer.
    staged_by: StagedNotes,
    /// When a worker last asked for a handshake; 0 is never, or that the next may ask at once.
    asked_at: AtomicU64,
    /// When the last handshake completed, in nanoseconds since the Unix epoch; 0 is never.
    handshake_at: AtomicU64,
    /// Since when the peer is connected, in nanoseconds since the Unix epoch; 0 where it is not.
    connected_at: AtomicU64,
    /// Packets received from the peer and dropped, as their source is not among its AllowedIPs.
    pub refused_sources: AtomicU64,
    /// What limits the peer. It is made with the first limit that is set.
    limits: OnceLock<Box<PeerLimits>>,
    /// Whether the slow path watches the peer's time stamps: an [`Event::Activity`] is under way, or its timer is
    /// armed. No further event is needed then.
    ///
    /// A worker sets it with [`PeerShared::arm`], and clears it only where the event queue was full. Otherwise the
    /// slow path clears it when it stops watching: it clears the flag, calls `fence(SeqCst)`, and reads the stamps
    /// once more.
    pub armed: AtomicBool,
    /// Whether an [`Event::NeedHandshake`] is under way.
    ///
    /// The worker that queues the event sets it. The slow path clears it once it has dealt with the event, not once
    /// there is a session. So a packet that is staged later asks again and restarts the attempts (kernel
    /// `wg_packet_send_queued_handshake_initiation`), though not within [`HANDSHAKE_ASK_INTERVAL`].
    pub handshake_wanted: AtomicBool,
}

/// What workers write of a peer with each train. It has a cache line of its own: what they only read of the peer, all of them
/// can keep in their caches.
#[derive(Default, Debug)]
#[repr(align(64))]
pub struct Traffic {
    /// Bytes received in authenticated messages, counted as the payload of outer UDP.
    pub rx_bytes: AtomicU64,
    /// Bytes sent, counted as the payload of outer UDP.
    pub tx_bytes: AtomicU64,
    unanswered_since: AtomicU64,
    unacknowledged_since: AtomicU64,
    last_data_received: AtomicU64,
    last_authenticated: AtomicU64,
}

impl PeerShared {
    /// The shared state of a peer from which nothing was heard yet.
    pub fn new(id: PeerId, owner: u8) -> PeerShared {
        PeerShared {
            id,
            owner: AtomicU8::new(owner),
            traffic: Traffic::default(),
            sending: Sending::default(),
            assisted: AtomicBool::new(false),
            seal_assisted: AtomicBool::new(false),
            handshake_index: AtomicU32::new(0),
            staged_by: StagedNotes::default(),
            asked_at: AtomicU64::new(0),
            handshake_at: AtomicU64::new(0),
            connected_at: AtomicU64::new(0),
            refused_sources: AtomicU64::new(0),
            limits: OnceLock::new(),
            armed: AtomicBool::new(false),
            handshake_wanted: AtomicBool::new(false),
        }
    }

    /// The worker to which the peer's packets are steered, and that will own its next session. Who owns a session, its
    /// receiver index says.
    pub fn owner(&self) -> u8 {
        self.owner.load(Relaxed)
    }

    /// Gives the peer to another worker. Its present sessions stay with their owners.
    pub fn give_to(&self, worker: u8) {
        self.owner.store(worker, Relaxed);
    }

    /// What limits the peer, if anything does or did.
    pub fn limits(&self) -> Option<&PeerLimits> {
        self.limits.get().map(|limits| &**limits)
    }

    /// Limits the peer from now on. `wall` is the time since the Unix epoch.
    pub fn set_limits(&self, settings: &LimitSettings, now: Instant, wall: Duration) {
        if !settings.is_none() || self.limits.get().is_some() {
            self.limits.get_or_init(Box::default).set(settings, now, wall);
        }
    }

    /// Notes that data (not a keepalive) was sent.
    pub fn data_sent(&self, now: Instant) {
        if self.traffic.unanswered_since.load(Relaxed) == 0 {
            self.traffic.unanswered_since.store(now.as_nanos(), Relaxed);
        }
        self.authenticated_sent(now);
    }

    /// Notes that the timer for unanswered data that began at `stamp` has run out. The next data sent begins another
    /// (kernel `wg_timers_data_sent` arms `timer_new_handshake` wherever it is not pending). Where a message was
    /// received meanwhile, or data was sent after it, the newer stamp stays.
    pub fn unanswered_handled(&self, stamp: Instant) {
        let _ = self.traffic.unanswered_since.compare_exchange(stamp.as_nanos(), 0, Relaxed, Relaxed);
    }

    /// Notes that an authenticated message was sent: data, keepalive or handshake.
    pub fn authenticated_sent(&self, now: Instant) {
        self.traffic.unacknowledged_since.store(0, Relaxed);
        self.traffic.last_authenticated.store(now.as_nanos(), Relaxed);
    }

    /// Notes that data (not a keepalive) was received.
    pub fn data_received(&self, now: Instant) {
        if self.traffic.unacknowledged_since.load(Relaxed) == 0 {
            self.traffic.unacknowledged_since.store(now.as_nanos(), Relaxed);
        }
        self.traffic.last_data_received.store(now.as_nanos(), Relaxed);
        self.authenticated_received(now);
    }

    /// Notes that an authenticated message was received.
    pub fn authenticated_received(&self, now: Instant) {
        self.traffic.unanswered_since.store(0, Relaxed);
        self.traffic.last_authenticated.store(now.as_nanos(), Relaxed);
    }

    /// Whether the calling worker, which has just moved a stamp, has to queue an [`Event::Activity`]. Where the queue
    /// is full, the worker clears [`Self::armed`] again.
    pub fn arm(&self) -> bool {
        // Pairs with the slow path's fence: either this load sees the flag cleared, or the slow path's last check
        // sees the new stamp.
        fence(SeqCst);
        !self.armed.load(Relaxed) && !self.armed.swap(true, Relaxed)
    }

    /// Notes that `worker` has staged frames for the peer. The worker then looks once more whether it can send them: either
    /// it sees what the slow path or the owner has just published, or [`Self::take_staged`] sees the note.
    pub fn note_staged(&self, worker: u8) {
        self.staged_by.leave(worker);
    }

    /// The workers, of `workers`, that may have staged frames for the peer. Called after something was published that lets
    /// them send, or as the frames are to be dropped. It forgets them: a worker that keeps frames notes that anew.
    pub fn take_staged(&self, workers: WorkerCount) -> impl Iterator<Item = u8> + use<> {
        let noted = self.staged_by.take();
        workers.iter().filter(move |&worker| noted.names(worker))
    }

    /// Whether a worker may ask for a handshake, as [`HANDSHAKE_ASK_INTERVAL`] has passed since the last time.
    pub fn may_ask(&self, now: Instant) -> bool {
        let last = self.asked_at.load(Relaxed);
        last == 0 || now.since(Instant::from_nanos(last)) >= HANDSHAKE_ASK_INTERVAL
    }

    /// Notes that a worker has asked for a handshake.
    pub fn note_asked(&self, now: Instant) {
        self.asked_at.store(now.as_nanos(), Relaxed);
    }

    /// Lets workers ask for a handshake at once: what they asked for last is over.
    pub fn forget_asked(&self) {
        self.asked_at.store(0, Relaxed);
    }

    /// Notes that a handshake completed, at a time since the Unix epoch.
    pub fn note_handshake(&self, wall: Duration) {
        self.handshake_at.store(stamp(wall), Relaxed);
    }

    /// When the last handshake completed, as time since the Unix epoch. `None` where there was none.
    pub fn last_handshake(&self) -> Option<Duration> {
        read_stamp(&self.handshake_at)
    }

    /// Notes that the peer is connected, from a time since the Unix epoch on.
    pub fn note_connected(&self, wall: Duration) {
        self.connected_at.store(stamp(wall), Relaxed);
    }

    /// Notes that the peer is not connected. Returns whether it was until now.
    pub fn note_disconnected(&self) -> bool {
        self.connected_at.swap(0, Relaxed) != 0
    }

    /// Since when the peer is connected, as time since the Unix epoch. `None` where it is not.
    pub fn connected_since(&self) -> Option<Duration> {
        read_stamp(&self.connected_at)
    }

    /// The stamps, for the timers.
    pub fn activity(&self) -> Activity {
        let read = |stamp: &AtomicU64| match stamp.load(Relaxed) {
            0 => None,
            nanos => Some(Instant::from_nanos(nanos)),
        };
        Activity {
            unanswered_since: read(&self.traffic.unanswered_since),
            unacknowledged_since: read(&self.traffic.unacknowledged_since),
            last_data_received: read(&self.traffic.last_data_received),
            last_authenticated: read(&self.traffic.last_authenticated),
        }
    }
}

/// A time since the Unix epoch in nanoseconds, of which 0 stands for never.
fn stamp(wall: Duration) -> u64 {
    u64::try_from(wall.as_nanos()).unwrap_or(u64::MAX).max(1)
}

fn read_stamp(stamp: &AtomicU64) -> Option<Duration> {
    let nanos = stamp.load(Relaxed);
    (nanos != 0).then(|| Duration::from_nanos(nanos))
}

/// A handshake message (types 1 to 3) on its way from or to the slow path.
#[derive(Clone, Debug)]
pub struct HandshakeDatagram {
    bytes: [u8; MAX_HANDSHAKE_LEN],
    len: u8,
}

impl HandshakeDatagram {
    /// Copies a message of at most [`MAX_HANDSHAKE_LEN`] bytes. `None` where it is longer.
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

/// A handshake message that a worker received. One of type 1 or 2 has passed the MAC1 check.
#[derive(Clone, Debug)]
pub struct IncomingHandshake {
    /// The message.
    pub datagram: HandshakeDatagram,
    /// Its sender.
    pub from: SocketAddr,
    /// The local address it came to.
    pub to: Option<LocalAddr>,
    /// Whether it was received under load with a valid cookie. If so, its sender receives at `from`, and has a
    /// budget.
    pub proven: bool,
}

/// A message from the slow path to one worker.
pub enum Control {
    /// Sets what checks handshake messages for the local identity. `None` without a private key: then every one is
    /// dropped.
    Identity(Option<Box<GateKeys>>),
    /// Sets the routes, which are all AllowedIPs, and the peers that their values name. Frames that are staged for peers which
    /// are not among these are dropped. For all workers.
    Routes(Arc<RouteTable>, Arc<PeerDirectory>),
    /// Installs a session: opens what is received for its index, and sends with it as soon as its role allows. For
    /// the session's owner only.
    Install(Arc<PeerShared>, Box<RecvSession>, Arc<SendSession>),
    /// Removes both halves of the peer's session with this index. For the session's owner only.
    Drop(PeerId, u32),
    /// Sends what was staged, as there is a new session or endpoint to send with. For those who staged something.
    SendStaged(PeerId),
    /// Drops what is staged, as the handshake was given up. The inner sources get ICMP unreachable. For those who staged
    /// something.
    PurgeStaged(PeerId),
    /// Sends a keepalive, if there is a session. Staged packets go instead, if there are any. For the session's
    /// owner only.
    Keepalive(Arc<PeerShared>),
    /// Confirms the session that is sent with: by a keepalive, unless packets were sent with it already. For the
    /// session's owner only.
    Confirm(Arc<PeerShared>),
    /// Sends a handshake message to the peer in this slot. For the owner of the session that it is about: a response leaves
    /// after the owner has taken what it will receive with.
    Send(u32, Endpoint, HandshakeDatagram),
    /// Sets the interface's MTU in bytes, which limits padding; 0 is no limit.
    Mtu(u32),
    /// Sets the MTUs, by prefix, of the routes into the interface that have one of their own.
    RouteMtus(Option<Arc<RouteTable>>),
    /// Sets the broadcast addresses of the interface. A packet to one of them is never answered with ICMP.
    Broadcasts(Arc<[Ipv4Addr]>),
    /// Sets the UDP ports at which tunnels listen in the interface's namespace.
    Tunnels(TunnelPorts),
    /// Sets the sockets for ICMP in the interface's present namespace, or none.
    Icmp(Option<Arc<IcmpSockets>>),
    /// Replaces the UDP sockets, or takes them away.
    Rebind(Option<UdpSockets>),
    /// Takes nothing in any more from the TUN device and the sockets, and reports with [`Event::Rested`] and this number once all is
    /// done that was taken in. Given again, it is reported again.
    Rest(u32),
    /// Leaves a record of what the worker alone has. For one at rest.
    Record(Arc<ArrayQueue<WorkerRecord>>),
    /// Receives on these sessions, with which another process was sent to. For their owner only, while it rests.
    Restore(Vec<RestoredSession>),
    /// Handles these frames, which another process read from the TUN device, before any other.
    Frames(Vec<Box<[u8]>>),
    /// Handles these datagrams before any others: they wait in sockets for which there is no worker any more.
    Datagrams(Vec<Misdirected>),
    /// Ends the rest.
    Resume,
    /// Ends the worker.
    Stop,
}

/// A message from a worker to the slow path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The peer's time stamps moved while nobody watched them.
    Activity(PeerId),
    /// A packet or keepalive waits without a usable session, or the session wants a rekey. See
    /// [`PeerShared::handshake_wanted`].
    NeedHandshake(PeerId),
    /// The session with this index has taken effect. Where this device began it, it was installed; where this device
    /// answered, the first authentic data message on it was received.
    Confirmed(PeerId, u32),
    /// An authentic message came from another address or port, or to another local address.
    Roamed(PeerId, Endpoint),
    /// A packet for the peer could not be sent from its sticky source (the address went away).
    SourceGone(PeerId),
    /// A handshake message from there had a wrong MAC1. Of many such messages only a few are reported.
    WrongMac1(SocketAddr),
    /// Packets of the peer's were dropped, the last with this source, which is not among its AllowedIPs. Of many such packets only
    /// a few are reported.
    SourceRefused(PeerId, IpAddr),
    /// The peer's quota is used up (`true`), or begins anew.
    Quota(PeerId, bool),
    /// The worker rests, and has done all that it had taken in when it was given this number with [`Control::Rest`].
    Rested(u8, u32),
    /// The worker ended, since the TUN device is gone. Holds the message for the log.
    WorkerEnded(u8, String),
}

/// One worker's inbox, as other threads see it.
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
    /// How large its turns are, and how long they take.
    pub histograms: Arc<Histograms>,
}

/// The slow path's inbox, as workers see it.
#[derive(Clone)]
pub struct SlowPathInbox {
    /// Events.
    pub events: Arc<ArrayQueue<Event>>,
    /// Handshake messages.
    pub handshakes: Arc<HandshakeQueue>,
    /// When a worker last saw too many of them wait, in nanoseconds; 0 is never. It is shared by all workers,
    /// since a flood that only some of them turn away would still have the slow path to itself.
    pub loaded_at: Arc<AtomicU64>,
    /// When a routing loop was last logged, in nanoseconds; 0 is never. It is shared by all workers, as it is one
    /// loop.
    pub looped_at: Arc<AtomicU64>,
    /// Notices that are each worth a line of log, with the number of the worker.
    pub notices: Arc<ArrayQueue<(u8, Notice)>>,
    /// Rings the slow path.
    pub waker: Waker,
}

/// All queues of one device.
#[derive(Clone)]
pub struct Links {
    /// The inboxes of the workers, by number.
    pub workers: Vec<Inbox>,
    /// The inbox of the slow path.
    pub slow: SlowPathInbox,
    /// Room for packets without a session, of all workers together.
    pub staging: Arc<Staging>,
    /// Trains that workers open and seal for each other.
    pub assist: Arc<Assist>,
}

impl Links {
    /// Queues for `workers` workers.
    pub fn new(workers: usize) -> std::io::Result<Links> {
        Links::with_part_of_the_room(workers, 1)
    }

    /// Queues that are full sooner and take a small part of the memory, for tests that make a device thousands of times.
    #[cfg(feature = "internals")]
    pub fn narrow(workers: usize) -> std::io::Result<Links> {
        Links::with_part_of_the_room(workers, 32)
    }

    fn with_part_of_the_room(workers: usize, part: usize) -> std::io::Result<Links> {
        let inbox = || {
            Ok(Inbox {
                controls: Arc::new(ArrayQueue::new(CONTROL_QUEUE / part)),
                misdirected: Arc::new(MisdirectedQueue::new(MISDIRECTED_QUEUE / part)),
                waker: Waker::new()?,
                stats: Arc::default(),
                histograms: Arc::default(),
            })
        };
        let workers = (0..workers).map(|_| inbox()).collect::<std::io::Result<Vec<Inbox>>>()?;
        let wakers = workers.iter().map(|inbox| inbox.waker.clone()).collect();
        Ok(Links {
            workers,
            slow: SlowPathInbox {
                events: Arc::new(ArrayQueue::new(EVENT_QUEUE / part)),
                handshakes: Arc::new(HandshakeQueue::new(HANDSHAKE_QUEUE / part)),
                loaded_at: Arc::default(),
                looped_at: Arc::default(),
                notices: Arc::new(ArrayQueue::new(NOTICE_QUEUE)),
                waker: Waker::new()?,
            },
            staging: Arc::default(),
            assist: Arc::new(Assist::new(wakers)),
        })
    }

    /// The same queues for a process whose memory group may use no more than `group` bytes.
    pub fn within(self, group: Option<u64>) -> Links {
        Links { staging: Arc::new(Staging::within(group)), ..self }
    }
}
