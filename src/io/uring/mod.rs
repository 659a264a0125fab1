//! The io_uring backend.
//!
//! Datagrams come by multishot receives into provided buffers, so that one enter a turn brings many trains. The TUN queue
//! is watched by a multishot poll and read until it is empty (several plain reads in flight would be handed to kernel
//! threads). Sends are one sendmmsg a turn and TUN writes one enter, both in order and with their errors at once.

#![allow(unsafe_code)] // memory that the kernel reads and writes: each block carries its SAFETY line

mod buffers;
mod ring;
mod writes;

use crate::io::edge::Edge;
use crate::io::slab::{Buf, LentBuf, Pool, SharedBuf};
use crate::io::udp::UdpSockets;
use crate::io::{Io, IoStats, Notice, SendTrain, SourceGone, TunFrame, UdpTrain};
use crate::offload::coalesce::CoalesceOptions;
use crate::sys::icmp::IcmpSockets;
use crate::sys::trace;
use crate::sys::waker::Waker;
use crate::time::Instant;
use crate::wire::family::Family;
use ring::{Completion, RequestKind, Ring, START};
use std::collections::VecDeque;
use std::io::{Error, Result};
use std::net::IpAddr;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use writes::Writes;

/// How many failures of a socket's receive in a row end the worker, as the socket will not mend.
const RECEIVE_FAILURES: u32 = 1024;
/// Most enters that a cancelled receive may take to end.
const CANCEL_ENTERS: usize = 64;
/// How many buffers the pool has that [`Uring::probe`] makes.
const PROBE_BUFFERS: usize = 4;

/// One worker's ring.
///
/// The fields drop in this order, so that the ring is closed before the memory at which its writes point is freed.
pub struct Uring {
    ring: Ring,
    edge: Edge,
    writes: Writes,
    waker: Waker,
    /// Buffers that were received and not yet taken, with the received length in bytes: at most one for each provided buffer.
    received: VecDeque<(Buf, u32)>,
    generation: u32,
    armed: Armed,
    /// Whether the waker rang since the last wait. Any enter may take its completion, also one in a turn that had checked the
    /// mailboxes before. The next wait must not sleep then.
    rung: bool,
    /// How many receives of earlier generations have not ended.
    ending: usize,
    failures: u32,
    /// The error that ends the worker. The next wait returns it.
    broken: Option<Error>,
}

/// The requests that the kernel has.
#[derive(Default)]
struct Armed {
    tun: bool,
    waker: bool,
    room: [bool; 2],
    receive: [bool; 2],
}

impl Uring {
    /// Returns the same backend without UDP_SEGMENT.
    pub fn without_gso(mut self) -> Uring {
        self.edge.out.forgo_gso();
        self
    }

    /// Sets the ring up on the calling thread (SINGLE_ISSUER), and takes the worker's TUN queue. Sockets come with
    /// [`crate::io::Io::rebind`].
    ///
    /// # Errors
    ///
    /// Where the kernel refuses the ring: EPERM under a seccomp filter, ENOSYS, ENOMEM from RLIMIT_MEMLOCK. Then use `mmsg`.
    pub fn new(tun: OwnedFd, pool: Pool, waker: Waker) -> Result<Uring> {
        let ring = Ring::new(&pool)?;
        Ok(Uring {
            ring,
            received: VecDeque::with_capacity(Edge::receive_buffers(&pool)),
            edge: Edge::new(tun, pool),
            writes: Writes::new(),
            waker,
            generation: 0,
            armed: Armed::default(),
            rung: false,
            ending: 0,
            failures: 0,
            broken: None,
        })
    }

    /// Checks whether this kernel and container allow what [`Self::new`] needs.
    ///
    /// # Errors
    ///
    /// The reason, where they do not.
    pub fn probe() -> Result<()> {
        Ring::new(&Pool::new(PROBE_BUFFERS)?).map(drop)
    }

    /// Arms requests that ended or never began. A receive waits for a buffer, as without one it would end at once.
    fn arm(&mut self) -> Result<()> {
        self.ring.buffers.refill(self.received.len(), &self.edge.pool);
        if !self.armed.tun && !self.edge.rests {
            self.ring.poll(RequestKind::Tun, 0, self.edge.tun.as_fd(), libc::POLLIN)?;
            self.armed.tun = true;
        }
        if !self.armed.waker {
            self.ring.poll(RequestKind::Waker, 0, self.waker.as_fd(), libc::POLLIN)?;
            self.armed.waker = true;
        }
        for family in Family::BOTH {
            let Some(socket) = self.edge.sockets.of(family) else { continue };
            let receives = !self.edge.rests && !self.ring.buffers.is_empty();
            if !self.armed.receive[family as usize] && receives {
                self.ring.receive(receive_kind(family), self.generation, socket)?;
                self.armed.receive[family as usize] = true;
            }
            if self.edge.out.blocked(family) && !self.armed.room[family as usize] {
                self.ring.poll(room_kind(family), self.generation, socket, libc::POLLOUT)?;
                self.armed.room[family as usize] = true;
            }
        }
        Ok(())
    }

    fn take_events(&mut self) {
        while let Some(event) = self.ring.next_event() {
            match event.kind {
                RequestKind::Tun => {
                    self.armed.tun &= event.more;
                    self.edge.tun.set_ready();
                    let broken = (libc::POLLERR | libc::POLLHUP | libc::POLLNVAL) as u32;
                    if event.outcome.is_ok_and(|events| events & broken != 0) {
                        self.edge.tun.set_dead();
                    }
                }
                RequestKind::Waker => {
                    self.armed.waker &= event.more;
                    self.waker.clear();
                    self.rung = true;
                }
                RequestKind::RoomV4 => self.take_room(Family::Ipv4, event.generation),
                RequestKind::RoomV6 => self.take_room(Family::Ipv6, event.generation),
                RequestKind::Write => self.wrote(event.generation, event.outcome.map(drop)),
                RequestKind::ReceiveV4 => self.take_receive(Family::Ipv4, event),
                RequestKind::ReceiveV6 => self.take_receive(Family::Ipv6, event),
            }
        }
    }

    fn take_room(&mut self, family: Family, generation: u32) {
        if generation == self.generation {
            self.armed.room[family as usize] = false;
            self.edge.flush();
        }
    }

    fn take_receive(&mut self, family: Family, event: Completion) {
        if event.generation != self.generation {
            // This is of a socket that is gone. The buffer, if any, returns to the pool.
            self.ending -= usize::from(!event.more && self.ending > 0);
            return;
        }
        self.armed.receive[family as usize] = event.more;
        match (event.outcome, event.buf) {
            (Ok(len), Some(buf)) => {
                self.failures = 0;
                self.received.push_back((buf, len));
            }
            // ENOBUFS says that all buffers are in use. The receive is armed again when one is back.
            (Err(libc::ENOBUFS | libc::ECANCELED | libc::EINTR), _) => {}
            (outcome, _) => {
                self.edge.stats.udp_receive_errors += 1;
                self.failures += 1;
                if self.failures >= RECEIVE_FAILURES {
                    self.broken = Some(Error::from_raw_os_error(outcome.err().unwrap_or(libc::EIO)));
                }
            }
        }
    }

    /// How many buffers sending must leave to receiving.
    fn lacking(&self) -> usize {
        self.ring.buffers.lacking(self.received.len())
    }

    /// Whether something can be received without waiting.
    fn is_ready(&self) -> bool {
        self.rung || !self.received.is_empty() || self.edge.tun_is_worth_a_read(self.lacking())
    }

    /// Ends the receives of the old sockets before those are closed, so that their port is free at once.
    fn end_receives(&mut self) {
        for family in Family::BOTH {
            if std::mem::take(&mut self.armed.receive[family as usize]) {
                self.ring.cancel(receive_kind(family), self.generation);
                self.ending += 1;
            }
            if std::mem::take(&mut self.armed.room[family as usize]) {
                self.ring.cancel(room_kind(family), self.generation);
            }
        }
        self.generation = self.generation.wrapping_add(1);
        for _ in 0..CANCEL_ENTERS {
            if let Err(error) = self.ring.enter(0, None) {
                self.broken = Some(error);
            }
            self.take_events();
            if self.ending == 0 {
                return;
            }
        }
    }

    /// Ends what brings datagrams and news of frames. Datagrams that come meanwhile are kept.
    fn halt(&mut self) {
        for family in Family::BOTH {
            if self.armed.receive[family as usize] {
                self.ring.cancel(receive_kind(family), self.generation);
            }
        }
        if self.armed.tun {
            self.ring.cancel(RequestKind::Tun, 0);
        }
        // Each ends with a completion of its own, in an enter.
        for _ in 0..CANCEL_ENTERS {
            if !self.armed.tun && !self.armed.receive.contains(&true) {
                return;
            }
            if let Err(error) = self.ring.enter(0, None) {
                self.broken = Some(error);
            }
            self.take_events();
        }
    }

    /// Hands the queued TUN writes to the kernel, and accounts for their outcomes. None of them waits (see
    /// [`crate::io::tunqueue`]).
    fn flush_writes(&mut self) {
        match self.writes.queued() {
            0 => (),
            // A single write costs less by a system call of its own than through the ring.
            1 => {
                let Uring { edge, writes, .. } = self;
                if let Some(number) = writes.next() {
                    writes.end(number, |buf, pieces| edge.write_tun(buf, pieces));
                }
            }
            _ => self.submit_writes(),
        }
    }

    fn submit_writes(&mut self) {
        let count = self.writes.queued();
        trace::write_begin(count);
        while let Some(number) = self.writes.next() {
            let vectors = self.writes.vectors(number);
            // SAFETY: `writes` keeps both until the outcome is known, and is dropped after the ring.
            let pushed = unsafe { self.ring.write(number, self.edge.tun.as_fd(), vectors) };
            if pushed.is_err() {
                self.wrote(number, Err(libc::EAGAIN));
            }
        }
        self.ring.submit();
        self.take_events();
        trace::tun_written(count);
        self.edge.tun.set_ready();
    }

    /// Accounts for the outcome of TUN write `number`.
    fn wrote(&mut self, number: u32, outcome: std::result::Result<(), i32>) {
        let Uring { edge, writes, .. } = self;
        writes.end(number, |buf, pieces| edge.tun.wrote(outcome, buf, pieces, &mut edge.stats));
    }

    /// Checks for completions, or sleeps until there is one. Returns since when it slept, if it did.
    fn wake_or_sleep(&mut self, until: Option<Instant>) -> Result<Option<Instant>> {
        let is_poll = self.is_ready() || self.ring.has_events();
        let asleep = if is_poll { None } else { self.edge.sleeps_from(until) };
        let Some(now) = asleep else {
            if self.ring.has_work() {
                self.ring.enter(0, None)?;
            }
            return Ok(None);
        };
        self.edge.stats.waits += 1;
        self.ring.enter(1, until.map(|until| until.since(now)))?;
        Ok(asleep)
    }
}

impl Io for Uring {
    fn wait(&mut self, until: Option<Instant>) -> Result<Instant> {
        if let Some(error) = self.broken.take() {
            return Err(error);
        }
        self.edge.tun.alive()?;
        self.arm()?;
        let until = self.edge.at_most(until);
        let asleep = self.wake_or_sleep(until)?;
        self.take_events();
        self.rung = false;
        self.edge.tun.alive()?;
        Ok(self.edge.wake(asleep))
    }

    fn recv_tun(&mut self) -> Option<TunFrame> {
        self.edge.recv_tun(self.lacking())
    }

    fn recv_udp(&mut self) -> Option<UdpTrain> {
        while let Some((buf, len)) = self.received.pop_front() {
            match self.ring.parse(&buf, len) {
                Some(shape) => {
                    self.edge.stats.udp_receives += 1;
                    return Some(shape.train(buf, START));
                }
                None => self.edge.stats.udp_receive_errors += 1,
            }
        }
        None
    }

    fn alloc(&mut self) -> Option<Buf> {
        self.edge.alloc(self.lacking())
    }

    fn restore(&mut self, lent: LentBuf) -> Buf {
        self.edge.restore(lent)
    }

    fn send_udp(&mut self, train: SendTrain) {
        self.edge.send_udp(train);
    }

    fn write_tun(&mut self, buf: &SharedBuf, pieces: &[Range<usize>]) {
        if self.writes.is_full() {
            self.flush_writes();
        }
        if !self.writes.push(buf, pieces) {
            self.edge.stats.tun_write_errors += 1;
        }
    }

    fn flush(&mut self) {
        self.flush_writes();
        self.edge.flush();
    }

    fn rebind(&mut self, sockets: Option<UdpSockets>) {
        let old = self.edge.rebind(None);
        self.end_receives();
        self.received.clear();
        self.failures = 0;
        drop(old);
        self.edge.sockets = sockets.unwrap_or_default();
    }

    fn rest(&mut self, rest: bool) {
        self.edge.rests = rest;
        if rest {
            self.halt();
        } else {
            self.edge.tun.set_ready();
        }
    }

    fn has_sent(&self) -> bool {
        self.writes.queued() == 0 && self.edge.out.is_empty()
    }

    fn set_icmp(&mut self, sockets: Option<Arc<IcmpSockets>>) {
        self.edge.icmp = sockets;
    }

    fn send_icmp(&mut self, to: IpAddr, message: &[u8]) -> bool {
        self.edge.send_icmp(to, message)
    }

    fn gso(&self) -> bool {
        self.edge.out.gso()
    }

    fn stats(&self) -> IoStats {
        self.edge.stats
    }

    fn take_source_gone(&mut self) -> Option<SourceGone> {
        self.edge.out.take_gone()
    }

    fn tun_refuses(&self) -> CoalesceOptions {
        self.edge.tun.refuses()
    }

    fn take_notice(&mut self) -> Option<Notice> {
        self.edge.take_notice()
    }
}

fn room_kind(family: Family) -> RequestKind {
    match family {
        Family::Ipv4 => RequestKind::RoomV4,
        Family::Ipv6 => RequestKind::RoomV6,
    }
}

fn receive_kind(family: Family) -> RequestKind {
    match family {
        Family::Ipv4 => RequestKind::ReceiveV4,
        Family::Ipv6 => RequestKind::ReceiveV6,
    }
}
