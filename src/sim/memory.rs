//! An [`Io`] made of queues in memory, which feeds one worker and keeps what it sends and writes. It is for tests and
//! benchmarks of the worker alone, and allocates nothing once its queues have grown.

use crate::io::slab::{Buf, LentBuf, Pool, SharedBuf};
use crate::io::udp::UdpSockets;
use crate::io::{Io, IoStats, LocalAddr, Notice, SendTrain, SourceGone, TunFrame, UdpTrain};
use crate::offload::coalesce::CoalesceOptions;
use crate::time::Instant;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::ops::Range;

/// Bytes of room before a received train, which the backends leave, too, for control data and the coalescer's header.
const HEADROOM: usize = 64;

/// The queues of one worker.
pub struct Memory {
    /// The time that [`Io::wait`] returns.
    pub now: Instant,
    /// The answer of [`Io::gso`].
    pub gso: bool,
    /// Whether [`Io::wait`] fails, as if the TUN device were gone.
    pub gone: bool,
    /// What [`Io::take_source_gone`] returns, one by one.
    pub sources_gone: VecDeque<SourceGone>,
    /// The answer of [`Io::tun_refuses`].
    pub refuses: CoalesceOptions,
    /// The notices that [`Io::take_notice`] returns, one by one.
    pub notices: VecDeque<Notice>,
    /// How often [`Io::rebind`] was called.
    pub rebinds: usize,
    /// Whether nothing more is taken in.
    pub rests: bool,
    pool: Pool,
    frames: VecDeque<TunFrame>,
    trains: VecDeque<UdpTrain>,
    queued: VecDeque<SendTrain>,
    sent: VecDeque<SendTrain>,
    writes: Vec<MemoryWrite>,
    pieces: Vec<Range<usize>>,
    stats: IoStats,
    /// When the last wait ended.
    woken: Instant,
}

/// One write to the TUN device, whose pieces lie in [`Memory::pieces`].
struct MemoryWrite {
    buf: SharedBuf,
    pieces: Range<usize>,
}

impl Memory {
    /// Makes empty queues over a pool of `buffers`.
    ///
    /// # Errors
    ///
    /// Where the system has no memory left for the pool.
    pub fn new(buffers: usize) -> std::io::Result<Memory> {
        Ok(Memory {
            now: Instant::START,
            gso: true,
            gone: false,
            sources_gone: VecDeque::new(),
            refuses: CoalesceOptions::default(),
            notices: VecDeque::new(),
            rebinds: 0,
            rests: false,
            pool: Pool::new(buffers)?,
            frames: VecDeque::new(),
            trains: VecDeque::new(),
            queued: VecDeque::new(),
            sent: VecDeque::new(),
            writes: Vec::new(),
            pieces: Vec::new(),
            stats: IoStats::default(),
            woken: Instant::START,
        })
    }

    /// The pool of buffers.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Makes `frame` (virtio-net header and packet) ready on the TUN queue. False where there is no buffer, or it is too
    /// long.
    pub fn push_frame(&mut self, frame: &[u8]) -> bool {
        let Some(buf) = self.filled(0, frame) else { return false };
        self.frames.push_back(TunFrame { buf, len: frame.len() });
        true
    }

    /// Makes a train ready on the socket. False where there is no buffer, or it is too long.
    pub fn push_train(
        &mut self,
        bytes: &[u8],
        stride: usize,
        from: SocketAddr,
        to: Option<LocalAddr>,
        ecn: u8,
    ) -> bool {
        let Some(buf) = self.filled(HEADROOM, bytes) else { return false };
        self.push_udp(UdpTrain { buf, start: HEADROOM, len: bytes.len(), stride, from, to, ecn });
        true
    }

    /// Makes a train that is already in a buffer ready on the socket, whatever it says of itself.
    pub fn push_udp(&mut self, train: UdpTrain) {
        self.trains.push_back(train);
    }

    /// The oldest train that was sent and flushed.
    pub fn take_sent(&mut self) -> Option<SendTrain> {
        self.sent.pop_front()
    }

    /// How many trains were sent but not yet flushed.
    pub fn unflushed(&self) -> usize {
        self.queued.len()
    }

    /// How many TUN writes there were since they were last taken.
    pub fn written(&self) -> usize {
        self.writes.len()
    }

    /// Takes the TUN writes, each in one piece.
    pub fn take_written(&mut self) -> Vec<Vec<u8>> {
        let gather = |write: &MemoryWrite| {
            let pieces = self.pieces[write.pieces.clone()].iter();
            pieces.flat_map(|piece| &write.buf[piece.clone()]).copied().collect()
        };
        let written = self.writes.iter().map(gather).collect();
        self.discard_written();
        written
    }

    /// Forgets the TUN writes.
    pub fn discard_written(&mut self) {
        self.writes.clear();
        self.pieces.clear();
    }

    fn filled(&mut self, start: usize, bytes: &[u8]) -> Option<Buf> {
        let mut buf = self.pool.take()?;
        buf.get_mut(start..start + bytes.len())?.copy_from_slice(bytes);
        Some(buf)
    }
}

impl Io for Memory {
    fn wait(&mut self, until: Option<Instant>) -> std::io::Result<Instant> {
        if self.gone {
            return Err(std::io::Error::other("the TUN device is gone"));
        }
        self.stats.waits += u64::from(until.is_none());
        // Time passed in the sleep or, where there was none, in the turn.
        let asleep = until.is_none_or(|until| until > self.woken).then_some(self.woken);
        self.stats.book(self.woken, asleep, self.now);
        self.woken = self.now;
        Ok(self.now)
    }

    fn recv_tun(&mut self) -> Option<TunFrame> {
        let frame = if self.rests { None } else { self.frames.pop_front() }?;
        self.stats.tun_reads += 1;
        Some(frame)
    }

    fn recv_udp(&mut self) -> Option<UdpTrain> {
        let train = if self.rests { None } else { self.trains.pop_front() }?;
        self.stats.udp_receives += 1;
        Some(train)
    }

    fn alloc(&mut self) -> Option<Buf> {
        self.pool.take()
    }

    fn restore(&mut self, lent: LentBuf) -> Buf {
        self.pool.restore(lent)
    }

    fn send_udp(&mut self, train: SendTrain) {
        self.stats.udp_sends += 1;
        self.stats.udp_sent_datagrams += train.len.div_ceil(train.stride.max(1)) as u64;
        self.queued.push_back(train);
    }

    fn write_tun(&mut self, buf: &SharedBuf, pieces: &[Range<usize>]) {
        self.stats.tun_writes += 1;
        let first = self.pieces.len();
        self.pieces.extend_from_slice(pieces);
        self.writes.push(MemoryWrite { buf: buf.clone(), pieces: first..self.pieces.len() });
    }

    fn flush(&mut self) {
        self.sent.append(&mut self.queued);
    }

    fn rebind(&mut self, _sockets: Option<UdpSockets>) {
        self.queued.clear();
        self.rebinds += 1;
    }

    fn rest(&mut self, rest: bool) {
        self.rests = rest;
    }

    fn has_sent(&self) -> bool {
        self.queued.is_empty()
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

    fn tun_refuses(&self) -> CoalesceOptions {
        self.refuses
    }

    fn take_notice(&mut self) -> Option<Notice> {
        self.notices.pop_front()
    }
}
