//! One worker's virtual sockets and TUN queue: the third implementation of [`Io`].
//!
//! It is stricter than a kernel where that finds faults. What is queued leaves only on [`Io::flush`]. A full socket holds
//! back trains and TUN frames alike for as long as the test wants. Received datagrams come as GRO trains.

use crate::dataplane::assist::{Assist, Job};
use crate::io::slab::{Buf, LentBuf, Pool, SharedBuf};
use crate::io::udp::UdpSockets;
use crate::io::{Endpoint, Io, IoStats, LocalAddr, SendTrain, SourceGone, TunFrame, UdpTrain};
use crate::sim::net::Datagram;
use crate::sim::rng::SimRng;
use crate::sys::cmsg::{ControlData, decode_control};
use crate::time::Instant;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// Buffers of a worker: 512 × 68 KiB of address space, touched only as used.
pub const POOL_BUFFERS: usize = 512;
/// Most datagrams that a socket's buffer holds; more are lost.
pub const SOCKET_QUEUE: usize = 4096;
/// Most frames that a TUN queue holds; more are lost.
pub const TUN_QUEUE: usize = 1000;
/// Most reports of sources gone that wait for the worker.
const MAX_SOURCES_GONE: usize = 64;
/// Where a received train starts in its buffer, in bytes.
const HEADROOM: usize = 64;
/// Most datagrams and bytes in a received train (Linux UDP_GRO: `UDP_GRO_CNT_MAX`, 64 KiB with headers).
const GRO_SEGMENTS: usize = 64;
const GRO_BYTES: usize = 65_507;
/// Most trains that virtual threads have at a time.
const MAX_HELD: usize = 4;

/// A datagram that a worker sent, before the host put its source on it.
#[derive(Clone, Debug)]
pub struct SentDatagram {
    /// Destination, and the source where it is sticky.
    pub to: Endpoint,
    /// The slot of the peer to which it goes, as in [`SendTrain`].
    pub peer: Option<u32>,
    /// The source that the control data names, as the kernel reads it.
    pub told: Option<LocalAddr>,
    /// When it was sealed.
    pub sealed: Instant,
    /// Outer ECN bits.
    pub ecn: u8,
    /// UDP payload.
    pub bytes: Arc<[u8]>,
}

/// The faults of a worker's sockets and TUN queue. Chances are per mille.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct IoFaults {
    /// Chance, for each train, that the socket is full (a partial sendmmsg, then EAGAIN) for up to [`Self::pause`].
    pub full: u32,
    /// Chance that a train is refused for good (ENOBUFS).
    pub refused: u32,
    /// Chance that a train is refused since UDP_SEGMENT does not work (EIO). Its datagrams then go one by one, and so do all
    /// later ones.
    pub unsegmented: u32,
    /// Chance that a frame is refused by the TUN device (EIO).
    pub unwritten: u32,
    /// Chance, for each frame and datagram, that its arrival wakes nobody for up to [`Self::pause`], whatever else arrives: a
    /// completion or a wake-up that comes late.
    pub unheard: u32,
    /// Most time for which a socket is full, and an arrival unheard.
    pub pause: Duration,
}

/// The virtual sockets and TUN queue of one worker.
pub struct SimIo {
    /// The time that [`Io::wait`] returns.
    pub now: Instant,
    /// Whether received datagrams of one sender are merged, as with UDP_GRO.
    pub gro: bool,
    /// Whether the TUN device is gone, so that [`Io::wait`] fails.
    pub gone: bool,
    /// Whether the socket takes nothing, so that what is sent stays queued.
    pub blocked: bool,
    /// The first hop's MTU in bytes. A train of longer segments is refused (EMSGSIZE), and longer lone datagrams are
    /// fragmented.
    pub link_mtu: usize,
    /// Datagrams that were sent in fragments.
    pub fragmented: u64,
    /// Until when arrivals wake nobody.
    pub(super) deaf_until: Instant,
    /// Until when the socket takes nothing.
    full_until: Instant,
    faults: IoFaults,
    rng: SimRng,
    pool: Pool,
    gso: bool,
    port: Option<u16>,
    /// The datagrams in the sockets' buffers, and the interfaces at which they arrived.
    udp_in: VecDeque<(Datagram, u32)>,
    tun_in: VecDeque<Vec<u8>>,
    /// Trains that the socket has not taken, and when they were sealed.
    queued_udp: VecDeque<(Instant, SendTrain)>,
    queued_tun: Vec<Vec<u8>>,
    udp_out: Vec<SentDatagram>,
    tun_out: Vec<Vec<u8>>,
    sources_gone: VecDeque<SourceGone>,
    /// Whether nothing more is taken in.
    rests: bool,
    stats: IoStats,
    /// When the last wait ended.
    woken: Instant,
    /// The threads that do trains for this worker amid its turns.
    helpers: Option<SimHelpers>,
}

/// Other workers, as one sees them: between any two steps of its turn they may take a train that it gave away, and
/// return one, in any order.
struct SimHelpers {
    assist: Arc<Assist>,
    rng: SimRng,
    held: Vec<Job>,
}

impl SimHelpers {
    /// Takes a train or returns one, or neither.
    fn step(&mut self) {
        if self.held.len() < MAX_HELD && self.rng.chance(300) {
            self.held.extend(self.assist.take());
        }
        if self.rng.chance(300) {
            self.give_back();
        }
    }

    /// Returns any of the trains.
    fn give_back(&mut self) {
        if !self.held.is_empty() {
            let job = self.held.swap_remove(self.rng.below(self.held.len() as u64) as usize);
            self.assist.finish(job.giver, job.kind(), job.work());
        }
    }
}

impl SimIo {
    /// Makes the edge of a worker without sockets, with a pool of its own.
    ///
    /// # Errors
    ///
    /// Where the system has no memory left for the pool.
    pub fn new(gro: bool, gso: bool) -> std::io::Result<SimIo> {
        Ok(SimIo {
            now: Instant::START,
            gro,
            gone: false,
            blocked: false,
            link_mtu: 1500,
            fragmented: 0,
            deaf_until: Instant::START,
            full_until: Instant::START,
            faults: IoFaults::default(),
            rng: SimRng::new(0),
            pool: Pool::new(POOL_BUFFERS)?,
            gso,
            port: None,
            udp_in: VecDeque::new(),
            tun_in: VecDeque::new(),
            queued_udp: VecDeque::new(),
            queued_tun: Vec::new(),
            udp_out: Vec::new(),
            tun_out: Vec::new(),
            sources_gone: VecDeque::new(),
            rests: false,
            stats: IoStats::default(),
            woken: Instant::START,
            helpers: None,
        })
    }

    /// Lets virtual threads take trains out of `assist` amid the turns from now on.
    pub fn help(&mut self, assist: Arc<Assist>, rng: SimRng) {
        self.helpers = Some(SimHelpers { assist, rng, held: Vec::new() });
    }

    /// The same sockets and TUN queue in the hands of another process: what the kernel has of them stays, what was queued on this side is
    /// lost. Nothing is taken in yet.
    pub(super) fn handed_over(mut self, assist: Option<(Arc<Assist>, SimRng)>) -> SimIo {
        self.queued_udp.clear();
        self.sources_gone.clear();
        self.helpers = None;
        self.rests = true;
        if let Some((assist, rng)) = assist {
            self.help(assist, rng);
        }
        self
    }

    /// Takes out what the kernel has of them: datagrams with their interfaces, and frames.
    pub(super) fn drain(&mut self) -> (Vec<(Datagram, u32)>, Vec<Vec<u8>>) {
        (self.udp_in.drain(..).collect(), self.tun_in.drain(..).collect())
    }

    /// Joins the sockets of this port.
    pub(super) fn join(&mut self, port: Option<u16>) {
        self.port = port;
    }

    /// Sets what goes wrong from now on, as `rng` has it.
    pub(super) fn fail(&mut self, faults: IoFaults, rng: SimRng) {
        (self.faults, self.rng) = (faults, rng);
        (self.deaf_until, self.full_until) = (Instant::START, Instant::START);
    }

    /// The port to which its sockets are bound, if there are any.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// How many buffers nobody holds.
    pub fn free_buffers(&self) -> usize {
        self.pool.free()
    }

    /// How many buffers somebody holds, besides the trains that wait for the socket.
    pub fn held_buffers(&self) -> usize {
        self.pool.count() - self.pool.free() - self.queued_udp.len()
    }

    /// When the socket takes the trains that wait for it.
    pub(super) fn room_at(&self) -> Option<Instant> {
        (!self.queued_udp.is_empty() && !self.blocked).then_some(self.full_until)
    }

    /// A time within the pause, where chance has it.
    fn mishap(&mut self, chance: u32) -> Option<Instant> {
        let pause = u64::try_from(self.faults.pause.as_nanos()).unwrap_or(u64::MAX);
        self.rng.chance(chance).then(|| self.now + Duration::from_nanos(self.rng.below(pause)))
    }

    fn come_unheard(&mut self) {
        if let Some(until) = self.mishap(self.faults.unheard) {
            self.deaf_until = self.deaf_until.max(until);
        }
    }

    /// Whether something waits to be received.
    pub fn readable(&self) -> bool {
        !self.rests && (!self.udp_in.is_empty() || (!self.tun_in.is_empty() && self.queued_udp.is_empty()))
    }

    /// Puts a datagram that arrived at `interface` into the socket's buffer. A full buffer loses it.
    pub fn arrive(&mut self, datagram: Datagram, interface: u32) {
        self.come_unheard();
        if self.udp_in.len() < SOCKET_QUEUE {
            self.udp_in.push_back((datagram, interface));
        }
    }

    /// Puts a frame on the TUN queue. False where the queue is full, and the frame lost.
    pub fn push_tun(&mut self, frame: Vec<u8>) -> bool {
        self.come_unheard();
        let room = self.tun_in.len() < TUN_QUEUE;
        if room {
            self.tun_in.push_back(frame);
        }
        room
    }

    /// The datagrams that were flushed to the sockets since the last call.
    pub fn take_sent(&mut self) -> Vec<SentDatagram> {
        self.push_out();
        std::mem::take(&mut self.udp_out)
    }

    /// The frames that were flushed to the TUN device since the last call.
    pub fn take_written(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.tun_out)
    }

    /// Whether trains wait for a socket that takes nothing.
    pub fn backlogged(&self) -> bool {
        !self.queued_udp.is_empty()
    }

    /// Reports that a datagram's sticky source is no address of the host any more.
    pub fn report_source_gone(&mut self, gone: SourceGone) {
        if self.sources_gone.len() < MAX_SOURCES_GONE {
            self.sources_gone.push_back(gone);
        }
    }

    /// Counts datagrams that could not be sent, as the host has no address of their family or no port.
    pub fn count_send_errors(&mut self, datagrams: u64) {
        self.stats.udp_send_errors += datagrams;
    }

    fn step_helpers(&mut self) {
        self.helpers.iter_mut().for_each(SimHelpers::step);
    }

    fn push_out(&mut self) {
        while !self.blocked && self.full_until <= self.now {
            if self.queued_udp.is_empty() {
                return;
            }
            match self.mishap(self.faults.full) {
                Some(until) => self.full_until = until,
                None => {
                    if let Some((sealed, train)) = self.queued_udp.pop_front() {
                        self.push_train(sealed, &train);
                    }
                }
            }
        }
    }

    fn push_train(&mut self, sealed: Instant, train: &SendTrain) {
        let Some(bytes) = train.buf.get(..train.len) else { return };
        if self.rng.chance(self.faults.refused) {
            self.stats.udp_send_errors += train.len.div_ceil(train.stride.max(1)) as u64;
            return;
        }
        let headers = if train.to.addr.is_ipv4() { 28 } else { 48 };
        let too_long = train.stride.min(train.len) + headers > self.link_mtu;
        // udp_send_skb: EINVAL or EMSGSIZE for a train whose segments do not fit the device, so plain sends follow.
        let refused = too_long || self.rng.chance(self.faults.unsegmented);
        if refused && train.len > train.stride && self.gso {
            self.gso = false;
            self.stats.offload_fallbacks += 1;
        }
        self.stats.udp_sends += 1;
        let told = train.to.from.and_then(|from| told(&from));
        for segment in bytes.chunks(train.stride.max(1)) {
            self.stats.udp_sent_datagrams += 1;
            self.fragmented += u64::from(segment.len() + headers > self.link_mtu);
            let SendTrain { to, peer, tos, .. } = *train;
            self.udp_out.push(SentDatagram { to, peer, told, sealed, ecn: tos & 3, bytes: segment.into() });
        }
    }

    /// How many datagrams from the front merge into one train: of one sender and one ECN, and of one size but for the last.
    fn mergeable(&self) -> usize {
        let Some((first, _)) = self.udp_in.front() else { return 0 };
        let (mut count, mut bytes) = (1, first.bytes.len());
        while self.gro && count < GRO_SEGMENTS && !first.bytes.is_empty() {
            let Some((next, _)) = self.udp_in.get(count) else { break };
            let same = (next.from, next.to, next.ecn) == (first.from, first.to, first.ecn);
            let len = next.bytes.len();
            if !same || len == 0 || len > first.bytes.len() || bytes + len > GRO_BYTES {
                break;
            }
            (count, bytes) = (count + 1, bytes + len);
            if len < first.bytes.len() {
                break;
            }
        }
        count
    }
}

impl Io for SimIo {
    fn wait(&mut self, until: Option<Instant>) -> std::io::Result<Instant> {
        if self.gone {
            return Err(std::io::Error::other("the TUN device is gone"));
        }
        // Virtual time passes in sleeps. In a turn it passes only where the test says so.
        let asleep = until.is_none_or(|until| until > self.woken).then_some(self.woken);
        self.stats.book(self.woken, asleep, self.now);
        self.woken = self.now;
        Ok(self.now)
    }

    fn recv_tun(&mut self) -> Option<TunFrame> {
        self.step_helpers();
        if self.rests || !self.queued_udp.is_empty() {
            return None;
        }
        let mut buf = self.pool.take()?;
        let frame = self.tun_in.pop_front()?;
        // A buffer that is too short truncates silently, as tun_do_read does.
        let len = frame.len().min(buf.len());
        buf.get_mut(..len)?.copy_from_slice(frame.get(..len)?);
        self.stats.tun_reads += 1;
        Some(TunFrame { buf, len })
    }

    fn recv_udp(&mut self) -> Option<UdpTrain> {
        self.step_helpers();
        let count = self.mergeable();
        if self.rests || count == 0 {
            return None;
        }
        let mut buf = self.pool.take()?;
        let (first, interface) = self.udp_in.front()?.clone();
        let mut end = HEADROOM;
        for (datagram, _) in self.udp_in.drain(..count) {
            let part = buf.get_mut(end..end + datagram.bytes.len())?;
            part.copy_from_slice(&datagram.bytes);
            end += datagram.bytes.len();
        }
        self.stats.udp_receives += 1;
        Some(UdpTrain {
            buf,
            start: HEADROOM,
            len: end - HEADROOM,
            stride: first.bytes.len(),
            from: first.from,
            to: Some(LocalAddr { ip: first.to.ip(), interface }),
            ecn: first.ecn,
        })
    }

    fn alloc(&mut self) -> Option<Buf> {
        self.pool.take()
    }

    fn linger(&mut self) {
        self.helpers.iter_mut().for_each(SimHelpers::give_back);
    }

    fn restore(&mut self, lent: LentBuf) -> Buf {
        self.step_helpers();
        self.pool.restore(lent)
    }

    fn send_udp(&mut self, train: SendTrain) {
        if self.port.is_some() {
            self.queued_udp.push_back((self.now, train));
        } else {
            self.stats.udp_send_errors += train.len.div_ceil(train.stride.max(1)) as u64;
        }
    }

    fn write_tun(&mut self, buf: &SharedBuf, pieces: &[Range<usize>]) {
        let frame = pieces.iter().filter_map(|piece| buf.get(piece.clone())).collect::<Vec<_>>().concat();
        if self.rng.chance(self.faults.unwritten) {
            self.stats.tun_write_errors += 1;
        } else {
            self.stats.tun_writes += 1;
            self.queued_tun.push(frame);
        }
    }

    fn flush(&mut self) {
        self.push_out();
        self.tun_out.append(&mut self.queued_tun);
    }

    fn rebind(&mut self, sockets: Option<UdpSockets>) {
        self.port = sockets.map(|sockets| sockets.port);
        self.queued_udp.clear();
        self.udp_in.clear();
    }

    fn rest(&mut self, rest: bool) {
        self.rests = rest;
    }

    fn has_sent(&self) -> bool {
        self.queued_udp.is_empty()
    }

    fn gso(&self) -> bool {
        self.gso
    }

    fn stats(&self) -> IoStats {
        self.stats
    }

    fn take_source_gone(&mut self) -> Option<SourceGone> {
        self.sources_gone.pop_front()
    }
}

/// What the kernel reads of a source in the control data that the backends write.
fn told(from: &LocalAddr) -> Option<LocalAddr> {
    let mut control = ControlData::EMPTY;
    control.push_source(from);
    decode_control(control.bytes(control.len()))?.to
}
