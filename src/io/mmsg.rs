//! The plain-syscall backend: epoll, recvmmsg, sendmmsg, read, writev.
//!
//! Everything is watched edge-triggered. What was ready stays marked so until a read finds it empty, and a full UDP
//! socket, which stops the reading of the TUN device, does not make the loop spin on it.

#![allow(unsafe_code)] // memory that the kernel reads and writes: each block carries its SAFETY line

use crate::io::edge::{Edge, ReceiveInfo, shape};
use crate::io::slab::{Buf, LentBuf, Pool, SharedBuf};
use crate::io::udp::UdpSockets;
use crate::io::{Io, IoStats, Notice, SendTrain, SourceGone, TunFrame, UdpTrain};
use crate::offload::coalesce::CoalesceOptions;
use crate::sys::calls::Batch;
use crate::sys::icmp::IcmpSockets;
use crate::sys::waker::Waker;
use crate::time::Instant;
use crate::wire::family::Family;
use std::io::{Error, Result};
use std::net::IpAddr;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

/// Headroom in bytes before a received train. io_uring leaves as much.
const START: usize = 192;
/// Most messages of a recvmmsg.
const BATCH: usize = 32;
/// Most events of an epoll_wait: TUN, waker, two sockets.
const EVENTS: usize = 4;

/// What an event is about; the sockets' tokens carry their generation in the upper half.
const TOKEN_TUN: u64 = 0;
const TOKEN_WAKER: u64 = 1;
const TOKEN_V4: u64 = 2;
const TOKEN_V6: u64 = 3;

const READ: u32 = (libc::EPOLLIN | libc::EPOLLET) as u32;
/// Of one that is not to be read, its end is watched alone.
const RESTING: u32 = libc::EPOLLET as u32;
const WRITE: u32 = libc::EPOLLOUT as u32;
const BROKEN: u32 = (libc::EPOLLERR | libc::EPOLLHUP) as u32;

/// One worker's plain-syscall backend.
pub struct Mmsg {
    edge: Edge,
    inbox: ReceiveBatch,
    epoll: OwnedFd,
    waker: Waker,
    generation: u32,
    /// Whether a family's socket is watched for becoming writable, by family.
    watched: [bool; 2],
    /// Why epoll did not take a descriptor. The next wait returns it.
    broken: Option<Error>,
}

/// Buffers that wait for datagrams, and datagrams that wait to be taken.
struct ReceiveBatch {
    batch: Batch,
    /// `bufs[next..received]` hold datagrams. All others that are `Some` wait for one.
    bufs: Vec<Option<Buf>>,
    next: usize,
    received: usize,
    /// Number of buffers that `bufs` lacks.
    lacking: usize,
    ready: [bool; 2],
    last: Family,
}

impl Mmsg {
    /// The same backend without UDP_SEGMENT.
    pub fn without_gso(mut self) -> Mmsg {
        self.edge.out.forgo_gso();
        self
    }

    /// Takes the worker's TUN queue. Sockets come with [`crate::io::Io::rebind`].
    pub fn new(tun: OwnedFd, pool: Pool, waker: Waker) -> Result<Mmsg> {
        // SAFETY: takes no pointers.
        let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if epoll < 0 {
            return Err(Error::last_os_error());
        }
        // SAFETY: the descriptor was just created and nobody else owns it.
        let epoll = unsafe { OwnedFd::from_raw_fd(epoll) };
        watch(&epoll, libc::EPOLL_CTL_ADD, tun.as_fd(), READ, TOKEN_TUN)?;
        watch(&epoll, libc::EPOLL_CTL_ADD, waker.as_fd(), READ, TOKEN_WAKER)?;
        let count = Edge::receive_buffers(&pool).min(BATCH);
        let inbox = ReceiveBatch {
            batch: Batch::new(count),
            bufs: (0..count).map(|_| None).collect(),
            lacking: count,
            next: 0,
            received: 0,
            ready: [false; 2],
            last: Family::Ipv6,
        };
        let edge = Edge::new(tun, pool);
        Ok(Mmsg { edge, inbox, epoll, waker, generation: 0, watched: [false; 2], broken: None })
    }

    fn token(&self, family: Family) -> u64 {
        let kind = match family {
            Family::Ipv4 => TOKEN_V4,
            Family::Ipv6 => TOKEN_V6,
        };
        u64::from(self.generation) << 32 | kind
    }

    /// Whether something can be received without waiting.
    fn is_ready(&self) -> bool {
        let inbox = &self.inbox;
        inbox.next < inbox.received
            || (!self.edge.rests
                && inbox.ready.contains(&true)
                && (inbox.lacking < inbox.bufs.len() || self.edge.pool.free() > 0))
            || self.edge.tun_is_worth_a_read(inbox.lacking)
    }

    fn take_event(&mut self, event: &libc::epoll_event) {
        let (token, events) = (event.u64, event.events);
        match token {
            TOKEN_TUN => {
                self.edge.tun.set_ready();
                if events & BROKEN != 0 {
                    self.edge.tun.set_dead();
                }
            }
            TOKEN_WAKER => {
                self.waker.clear();
            }
            token => {
                for family in Family::BOTH {
                    if token == self.token(family) {
                        self.inbox.ready[family as usize] |= events & !WRITE != 0;
                        if events & (WRITE | BROKEN) != 0 && self.edge.out.blocked(family) {
                            self.flush();
                        }
                    }
                }
            }
        }
    }

    /// Watches full sockets for room, and others no more.
    fn watch_room(&mut self) {
        for family in Family::BOTH {
            let blocked = self.edge.out.blocked(family);
            // Again where it was watched already: the edge may be past (after ENOBUFS there is none), and this looks anew.
            if blocked {
                self.modify(family, self.reading() | WRITE);
            } else if self.watched[family as usize] {
                self.modify(family, self.reading());
            }
            self.watched[family as usize] = blocked;
        }
    }

    /// How a descriptor is watched that yields something.
    fn reading(&self) -> u32 {
        if self.edge.rests { RESTING } else { READ }
    }

    fn modify(&mut self, family: Family, events: u32) {
        let token = self.token(family);
        if let Some(socket) = self.edge.sockets.of(family)
            && let Err(error) = watch(&self.epoll, libc::EPOLL_CTL_MOD, socket, events, token)
        {
            self.broken = Some(error);
        }
    }
}

impl ReceiveBatch {
    /// Fills a batch from the sockets that are ready, each family in turn.
    fn receive(&mut self, sockets: &UdpSockets, pool: &Pool) {
        (self.next, self.received) = (0, 0);
        self.refill(pool);
        for _ in Family::BOTH {
            let family = self.last.other();
            self.last = family;
            let Some(socket) = sockets.of(family).filter(|_| self.ready[family as usize]) else {
                continue;
            };
            let mut count = 0;
            for buf in self.bufs.iter_mut().map_while(Option::as_mut) {
                self.batch.set_receive(count, &mut buf[START..]);
                count += 1;
            }
            if count == 0 {
                return;
            }
            // SAFETY: the messages point into buffers that `bufs` owns and nobody borrows during the call.
            let outcome = unsafe { self.batch.receive(socket, count) };
            match outcome {
                Ok(received) => {
                    self.received = received;
                    // Fewer than asked for: it was empty, and what comes after makes a new edge.
                    self.ready[family as usize] = received == count;
                    if received > 0 {
                        return;
                    }
                }
                Err(libc::EINTR | libc::ENOMEM | libc::ENOBUFS) => {}
                // EAGAIN, or an error of the socket that this read took away.
                Err(libc::EAGAIN) => self.ready[family as usize] = false,
                Err(_) => {}
            }
        }
    }

    /// Moves the buffers to the front and adds those that are lacking, as far as the pool has any.
    fn refill(&mut self, pool: &Pool) {
        let mut kept = 0;
        for n in 0..self.bufs.len() {
            if self.bufs[n].is_some() {
                self.bufs.swap(kept, n);
                kept += 1;
            }
        }
        for buf in &mut self.bufs[kept..] {
            *buf = pool.take();
            if buf.is_none() {
                return;
            }
            self.lacking -= 1;
        }
    }
}

impl Io for Mmsg {
    fn wait(&mut self, until: Option<Instant>) -> Result<Instant> {
        if let Some(error) = self.broken.take() {
            return Err(error);
        }
        self.edge.tun.alive()?;
        let until = self.edge.at_most(until);
        let asleep = if self.is_ready() { None } else { self.edge.sleeps_from(until) };
        let timeout_ms = match (asleep, until) {
            (None, _) => 0,
            (Some(_), None) => -1,
            // Rounded up: waking early would only mean to sleep again.
            (Some(now), Some(until)) => {
                i32::try_from(until.since(now).as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
            }
        };
        self.edge.stats.waits += u64::from(asleep.is_some());
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS];
        // SAFETY: the kernel writes at most EVENTS events to the array.
        let count = unsafe {
            libc::epoll_wait(self.epoll.as_raw_fd(), events.as_mut_ptr(), EVENTS as i32, timeout_ms)
        };
        if count < 0 {
            let error = Error::last_os_error();
            if error.raw_os_error() != Some(libc::EINTR) {
                return Err(error);
            }
        }
        for event in events.iter().take(usize::try_from(count).unwrap_or(0)) {
            self.take_event(event);
        }
        self.edge.tun.alive()?;
        Ok(self.edge.wake(asleep))
    }

    fn recv_tun(&mut self) -> Option<TunFrame> {
        self.edge.recv_tun(self.inbox.lacking)
    }

    fn recv_udp(&mut self) -> Option<UdpTrain> {
        loop {
            if self.inbox.next == self.inbox.received {
                if self.edge.rests || !self.inbox.ready.contains(&true) {
                    return None;
                }
                self.inbox.receive(&self.edge.sockets, &self.edge.pool);
                if self.inbox.received == 0 {
                    return None;
                }
            }
            let n = self.inbox.next;
            self.inbox.next += 1;
            let (len, flags, name, control) = self.inbox.batch.received(n);
            match shape(len, ReceiveInfo { flags, name, control }) {
                Some(shape) => {
                    let buf = self.inbox.bufs[n].take()?;
                    self.inbox.lacking += 1;
                    self.edge.stats.udp_receives += 1;
                    return Some(shape.train(buf, START));
                }
                None => self.edge.stats.udp_receive_errors += 1,
            }
        }
    }

    fn alloc(&mut self) -> Option<Buf> {
        self.edge.alloc(self.inbox.lacking)
    }

    fn restore(&mut self, lent: LentBuf) -> Buf {
        self.edge.restore(lent)
    }

    fn send_udp(&mut self, train: SendTrain) {
        self.edge.send_udp(train);
    }

    fn write_tun(&mut self, buf: &SharedBuf, pieces: &[Range<usize>]) {
        self.edge.write_tun(buf, pieces);
    }

    fn flush(&mut self) {
        self.edge.flush();
        self.watch_room();
    }

    fn rebind(&mut self, sockets: Option<UdpSockets>) {
        let old = self.edge.rebind(sockets);
        for family in Family::BOTH {
            if let Some(socket) = old.of(family) {
                // Others may hold the same open file (a duplicate): closing ours would not take it out. It was put in.
                let _ = watch(&self.epoll, libc::EPOLL_CTL_DEL, socket, 0, 0);
            }
        }
        self.generation = self.generation.wrapping_add(1);
        self.watched = [false; 2];
        (self.inbox.next, self.inbox.received) = (0, 0);
        for family in Family::BOTH {
            let token = self.token(family);
            let socket = self.edge.sockets.of(family);
            self.inbox.ready[family as usize] = socket.is_some();
            if let Some(Err(error)) =
                socket.map(|socket| watch(&self.epoll, libc::EPOLL_CTL_ADD, socket, self.reading(), token))
            {
                self.broken = Some(error);
            }
        }
    }

    fn rest(&mut self, rest: bool) {
        self.edge.rests = rest;
        // Watching begins anew where it ends: what came meanwhile makes an edge then.
        let (events, tun) = (self.reading(), self.edge.tun.as_fd());
        if let Err(error) = watch(&self.epoll, libc::EPOLL_CTL_MOD, tun, events, TOKEN_TUN) {
            self.broken = Some(error);
        }
        for family in Family::BOTH {
            self.modify(family, events);
        }
        self.watch_room();
    }

    fn has_sent(&self) -> bool {
        self.edge.out.is_empty()
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

fn watch(epoll: &OwnedFd, operation: i32, fd: BorrowedFd<'_>, events: u32, token: u64) -> Result<()> {
    let mut event = libc::epoll_event { events, u64: token };
    // SAFETY: the event is valid during the call; the kernel keeps a copy.
    match unsafe { libc::epoll_ctl(epoll.as_raw_fd(), operation, fd.as_raw_fd(), &mut event) } {
        0 => Ok(()),
        _ => Err(Error::last_os_error()),
    }
}
