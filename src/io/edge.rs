//! What both system-call backends have in common: everything except how they wait and how they receive UDP.

use crate::io::send::SendQueue;
use crate::io::slab::{Buf, LentBuf, Pool, SharedBuf};
use crate::io::tunqueue::TunQueue;
use crate::io::udp::UdpSockets;
use crate::io::{IoStats, Notice, SendTrain, TunFrame, UdpTrain};
use crate::sys::clock::Clock;
use crate::sys::cmsg::{decode_control, decode_name};
use crate::sys::icmp::IcmpSockets;
use crate::sys::trace;
use crate::time::Instant;
use std::net::IpAddr;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Most buffers that wait for datagrams; a smaller pool gives half of its own. So receiving leaves half of the pool
/// to sending, and sending leaves what receiving still lacks: neither can starve the other.
const RECEIVE_BUFFERS: usize = 64;

/// The part of a backend that both have.
pub(super) struct Edge {
    pub(super) pool: Pool,
    pub(super) tun: TunQueue,
    pub(super) out: SendQueue,
    pub(super) sockets: UdpSockets,
    pub(super) icmp: Option<Arc<IcmpSockets>>,
    pub(super) stats: IoStats,
    pub(super) clock: Clock,
    /// When the last wait ended.
    pub(super) woken: Instant,
    /// Whether nothing more is taken in.
    pub(super) rests: bool,
}

impl Edge {
    pub(super) fn new(tun: OwnedFd, pool: Pool) -> Edge {
        Edge {
            pool,
            tun: TunQueue::new(tun),
            out: SendQueue::new(),
            sockets: UdpSockets::default(),
            icmp: None,
            stats: IoStats::default(),
            clock: Clock,
            woken: Clock.now(),
            rests: false,
        }
    }

    /// When to wake at the latest, where the caller wants to wake at `until`. It may be earlier, as a full socket may
    /// cease to hold up the TUN device before.
    pub(super) fn at_most(&self, until: Option<Instant>) -> Option<Instant> {
        [until, self.out.held_until(self.woken)].into_iter().flatten().min()
    }

    /// When a sleep until `until` begins. `None` where that time has passed. Where it had passed at the last wait
    /// already, the clock is not read.
    pub(super) fn sleeps_from(&self, until: Option<Instant>) -> Option<Instant> {
        if until.is_some_and(|until| until <= self.woken) {
            return None;
        }
        let now = self.clock.now();
        if until.is_some_and(|until| until <= now) {
            return None;
        }
        trace::worker_sleep(until.map_or(-1, |until| until.as_nanos().saturating_sub(now.as_nanos()) as i64));
        Some(now)
    }

    /// Notes the end of a wait, which slept from `asleep` on, if it slept.
    pub(super) fn wake(&mut self, asleep: Option<Instant>) -> Instant {
        let now = self.clock.now();
        self.stats.book(self.woken, asleep, now);
        if let Some(asleep) = asleep {
            trace::worker_wake(now.as_nanos().saturating_sub(asleep.as_nanos()));
        }
        self.woken = now;
        now
    }

    /// How many buffers the backend should keep waiting for datagrams: a power of two.
    pub(super) fn receive_buffers(pool: &Pool) -> usize {
        let half = (pool.count() / 2).clamp(1, RECEIVE_BUFFERS);
        1 << half.ilog2()
    }

    /// A buffer for sending, unless that would take one of the `lacking` that receiving is owed.
    pub(super) fn alloc(&self, lacking: usize) -> Option<Buf> {
        if self.pool.free() <= lacking {
            return None;
        }
        self.pool.take()
    }

    /// Takes back a buffer that was lent.
    pub(super) fn restore(&self, lent: LentBuf) -> Buf {
        self.pool.restore(lent)
    }

    /// Whether [`Self::recv_tun`] might yield something.
    pub(super) fn tun_is_worth_a_read(&self, lacking: usize) -> bool {
        !self.rests && self.tun.is_ready() && self.pool.free() > lacking && !self.out.holds_up(self.woken)
    }

    pub(super) fn recv_tun(&mut self, lacking: usize) -> Option<TunFrame> {
        if !self.tun_is_worth_a_read(lacking) {
            return None;
        }
        let mut buf = self.pool.take()?;
        let len = self.tun.read(&mut buf)?;
        self.stats.tun_reads += 1;
        Some(TunFrame { buf, len })
    }

    pub(super) fn write_tun(&mut self, buf: &SharedBuf, pieces: &[Range<usize>]) {
        trace::write_begin(1);
        self.tun.write(buf, pieces, &mut self.stats);
        trace::tun_written(1);
        // The write ran the receive path of this host's own stack, which may have answered: an echo reply, an acknowledgment.
        self.tun.set_ready();
    }

    pub(super) fn send_udp(&mut self, train: SendTrain) {
        self.out.set_now(self.woken);
        self.out.push(train, &self.sockets, &mut self.stats);
    }

    pub(super) fn flush(&mut self) {
        self.out.set_now(self.woken);
        self.out.flush(&self.sockets, &mut self.stats);
    }

    pub(super) fn send_icmp(&self, to: IpAddr, message: &[u8]) -> bool {
        self.icmp.as_ref().is_some_and(|icmp| icmp.send(to, message))
    }

    pub(super) fn take_notice(&mut self) -> Option<Notice> {
        self.out.take_notice().or_else(|| self.tun.take_notice())
    }

    /// Drops what is queued and takes other sockets. Returns the old ones.
    pub(super) fn rebind(&mut self, sockets: Option<UdpSockets>) -> UdpSockets {
        self.out.reset(&mut self.stats);
        std::mem::replace(&mut self.sockets, sockets.unwrap_or_default())
    }
}

/// What a receive yields beside the bytes of the datagrams.
#[derive(Clone, Copy)]
pub(super) struct ReceiveInfo<'a> {
    pub(super) flags: i32,
    pub(super) name: &'a [u8],
    pub(super) control: &'a [u8],
}

/// The shape of a train of `len` bytes. `None` where it is truncated, empty (a datagram without bytes is no message
/// of any kind), or has a name or control data that make no sense.
pub(super) fn shape(len: usize, received: ReceiveInfo<'_>) -> Option<TrainShape> {
    if len == 0 || received.flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
        return None;
    }
    let from = decode_name(received.name)?;
    let decoded = decode_control(received.control)?;
    let stride = decoded.stride.unwrap_or(len).min(len);
    if stride == 0 {
        return None;
    }
    Some(TrainShape { len, stride, from, to: decoded.to, ecn: decoded.ecn })
}

/// A [`UdpTrain`] without its bytes.
#[derive(Clone, Copy)]
pub(super) struct TrainShape {
    len: usize,
    stride: usize,
    from: std::net::SocketAddr,
    to: Option<crate::io::LocalAddr>,
    ecn: u8,
}

impl TrainShape {
    /// The train with its bytes, which begin at `start` of `buf`.
    pub(super) fn train(self, buf: Buf, start: usize) -> UdpTrain {
        let TrainShape { len, stride, from, to, ecn } = self;
        UdpTrain { buf, start, len, stride, from, to, ecn }
    }
}
