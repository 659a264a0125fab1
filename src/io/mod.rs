//! The edge: what a worker needs of the world, as one trait with three implementations. [`uring`] is the default.
//! [`mmsg`] uses plain system calls, for kernels and containers that forbid io_uring, and tests compare the first
//! with it. The third is the simulator's.
//!
//! All buffers come from one bounded [`slab::Pool`] a worker; a [`slab::Buf`] is owned by whoever holds it and returns to the
//! pool on drop, so nothing here borrows from the backend.

#![cfg_attr(test, allow(unsafe_code))] // tests speak to the kernel by themselves

mod edge;
mod narrow;
mod send;
mod tunqueue;

pub mod mmsg;
#[cfg(feature = "cli")]
pub mod probe;
pub mod slab;
pub mod steer;
pub mod tun;
pub mod udp;
pub mod uring;

use crate::io::slab::{Buf, LentBuf, SharedBuf};
use crate::io::udp::UdpSockets;
use crate::offload::coalesce::{CoalesceOptions, RunKind};
pub use crate::sys::cmsg::LocalAddr;
use crate::sys::icmp::IcmpSockets;
use crate::time::Instant;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;

/// Where a peer is, and from which local address to speak to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// The peer's outer address and port.
    pub addr: SocketAddr,
    /// The sticky source. `None` lets the kernel's route choose, and keep its route cache.
    pub from: Option<LocalAddr>,
}

/// One received train: `len` bytes from `start` in `buf`, segments of `stride` bytes, the last possibly shorter.
///
/// `len` and `stride` are never 0: a datagram without bytes is dropped and counted as a receive error.
#[derive(Debug)]
pub struct UdpTrain {
    /// The bytes; at least 16 bytes of headroom lie before `start`.
    pub buf: Buf,
    /// Offset in bytes of the first datagram.
    pub start: usize,
    /// Length in bytes of all datagrams.
    pub len: usize,
    /// Length in bytes of each datagram but perhaps the last; equals `len` for a lone one.
    pub stride: usize,
    /// Sender.
    pub from: SocketAddr,
    /// The local address to which it was sent, where the kernel states it.
    pub to: Option<LocalAddr>,
    /// Outer ECN bits.
    pub ecn: u8,
}

/// One train to send: the first `len` bytes of `buf`.
#[derive(Debug)]
pub struct SendTrain {
    /// The bytes.
    pub buf: Buf,
    /// Bytes to send.
    pub len: usize,
    /// Length in bytes of each datagram but perhaps the last.
    pub stride: usize,
    /// Destination and source.
    pub to: Endpoint,
    /// The slot of the peer to which it goes. `None` is an answer to a sender that may be no peer.
    pub peer: Option<u32>,
    /// Outer TOS or traffic class: DSCP, and ECN in the low two bits.
    pub tos: u8,
}

/// A peer that the kernel reaches, but no longer from its sticky source.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SourceGone {
    /// The peer's slot.
    pub peer: u32,
    /// The endpoint with the source that is gone.
    pub endpoint: Endpoint,
}

/// One frame read from the TUN device: virtio-net header and (super-)packet in the first `len` bytes.
#[derive(Debug)]
pub struct TunFrame {
    /// The bytes.
    pub buf: Buf,
    /// Bytes read.
    pub len: usize,
}

/// Counters of a backend, cumulative.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct IoStats {
    /// Trains (UDP sends) handed to the kernel.
    pub udp_sends: u64,
    /// Datagrams in the trains that were handed to the kernel.
    pub udp_sent_datagrams: u64,
    /// Datagrams that the kernel refused for good (unreachable, no buffer, no route).
    pub udp_send_errors: u64,
    /// Trains received.
    pub udp_receives: u64,
    /// Received datagrams dropped, as they were truncated or had control data that made no sense.
    pub udp_receive_errors: u64,
    /// TUN reads.
    pub tun_reads: u64,
    /// TUN writes that the device took.
    pub tun_writes: u64,
    /// TUN writes refused (the interface is down, or the super-packet was refused after the fall-back).
    pub tun_write_errors: u64,
    /// Times an offload was switched off at run time (GSO send, GRO write).
    pub offload_fallbacks: u64,
    /// Times the loop slept.
    pub waits: u64,
    /// Nanoseconds for which the loop slept.
    pub slept_nanos: u64,
    /// Nanoseconds between its sleeps, up to the last return of [`Io::wait`]. Time in which the thread had no core
    /// counts, too.
    pub awake_nanos: u64,
}

impl IoStats {
    /// Accounts for the time from the end of one wait, `last`, to the end of the next, `now`, whose sleep began at
    /// `asleep`, if it slept.
    pub(crate) fn book(&mut self, last: Instant, asleep: Option<Instant>, now: Instant) {
        let slept = asleep.map_or(0, |asleep| now.as_nanos().saturating_sub(asleep.as_nanos()));
        let passed = now.as_nanos().saturating_sub(last.as_nanos());
        self.slept_nanos += slept;
        self.awake_nanos += passed.saturating_sub(slept);
    }
}

/// A notice, worth a line of log at run time: what the kernel refuses, and what it sends in circles.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Notice {
    /// UDP_SEGMENT does not work (`errno`): datagrams go one by one from now on.
    SendOffloadOff {
        /// What the kernel said.
        errno: i32,
    },
    /// Trains of segments of this size do not pass to `to`. Such datagrams are sent one by one, in fragments where
    /// need be.
    NarrowPath {
        /// The destination of the trains.
        to: SocketAddr,
        /// Size in bytes of a segment.
        size: usize,
    },
    /// Datagrams were refused and dropped.
    SendRefused {
        /// The destination of the last of them.
        to: SocketAddr,
        /// What the kernel said.
        errno: i32,
        /// How many datagrams were dropped since the last such notice.
        datagrams: u64,
    },
    /// Packets to the peer at `to` were read from the TUN device, and dropped.
    RoutingLoop {
        /// The peer's endpoint.
        to: SocketAddr,
    },
    /// The TUN device refuses super-packets of one kind. Plain packets are written from now on.
    TunOffloadOff {
        /// The kind.
        kind: RunKind,
    },
}

impl std::fmt::Display for Notice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Notice::SendOffloadOff { errno } => {
                let cause = std::io::Error::from_raw_os_error(*errno);
                write!(f, "UDP segmentation offload switched off: {cause}")
            }
            Notice::NarrowPath { to, size } => {
                write!(
                    f,
                    "the path to {to} takes no trains of {size}-byte datagrams: sending them one by one"
                )
            }
            Notice::SendRefused { to, errno, datagrams } => {
                let cause = std::io::Error::from_raw_os_error(*errno);
                let hint = match *errno {
                    libc::EPERM | libc::EACCES => ": does a firewall's rule drop them?",
                    libc::ENETUNREACH | libc::EHOSTUNREACH => ": is there a route?",
                    _ => "",
                };
                write!(f, "cannot send to {to}: {cause}{hint} ({datagrams} datagrams dropped)")
            }
            Notice::RoutingLoop { to } => {
                write!(
                    f,
                    "routing loop: the route to the peer at {to} leads into the tunnel itself, so what is sent to it is \
                     dropped; give {} a route by another interface, or FwMark a rule of its own",
                    to.ip()
                )
            }
            Notice::TunOffloadOff { kind } => {
                let kind = match kind {
                    RunKind::Tcp => "TCP",
                    RunKind::Udp => "UDP",
                    RunKind::Tunnel => "TCP inside VXLAN or GENEVE",
                };
                write!(f, "the TUN device refuses coalesced {kind}: writing plain packets")
            }
        }
    }
}

/// A worker's view of the world.
///
/// Order: what `send_udp` queues for one family leaves in that order, and so does what `write_tun` queues. Nothing is
/// promised between these.
///
/// Backpressure: when a UDP socket is full, queued trains stay queued (bounded), and `recv_tun` yields nothing until
/// they are gone. Where the other family is in use, `recv_tun` is held up for a moment only, and what finds no room
/// is dropped. No packet overtakes another.
pub trait Io {
    /// Sleeps until something can be received, the waker was rung, or `until` has come, and returns the time now.
    /// With `Some(now or earlier)` it does not sleep.
    ///
    /// # Errors
    ///
    /// Where the TUN device is gone, which is fatal for the worker.
    fn wait(&mut self, until: Option<Instant>) -> std::io::Result<Instant>;

    /// The next frame of the TUN queue that is ready, without blocking.
    fn recv_tun(&mut self) -> Option<TunFrame>;

    /// The next train of either UDP socket that is ready, without blocking.
    fn recv_udp(&mut self) -> Option<UdpTrain>;

    /// An empty buffer to build a train or packet in. `None` where the pool is exhausted.
    fn alloc(&mut self) -> Option<Buf>;

    /// Takes back one of this backend's buffers that was lent to another thread.
    fn restore(&mut self, lent: LentBuf) -> Buf;

    /// Passes a moment in which another worker may finish something.
    fn linger(&mut self) {
        std::hint::spin_loop();
    }

    /// Queues a train.
    fn send_udp(&mut self, train: SendTrain);

    /// Queues one packet or super-packet: `pieces` of `buf`, of which the first begins with a virtio-net header. The
    /// backend keeps its clone of `buf` until the write is done. A super-packet that the kernel refuses is split and
    /// written again, after what was flushed with it.
    fn write_tun(&mut self, buf: &SharedBuf, pieces: &[Range<usize>]);

    /// Hands everything queued to the kernel.
    fn flush(&mut self);

    /// Takes other sockets (for another port, or as the interface went up) or none (as it went down). What was queued
    /// on the old ones is dropped.
    fn rebind(&mut self, sockets: Option<UdpSockets>);

    /// Takes other sockets for [`Self::send_icmp`], or none, as the interface moved to another namespace.
    fn set_icmp(&mut self, _sockets: Option<Arc<IcmpSockets>>) {}

    /// Sends an ICMP message to `to` from an address of the host's own. False where there is no way to do so.
    fn send_icmp(&mut self, _to: IpAddr, _message: &[u8]) -> bool {
        false
    }

    /// Takes nothing in any more, from the TUN queue and the sockets, or goes on with it. What was received already is still yielded,
    /// and what is queued still leaves.
    fn rest(&mut self, rest: bool);

    /// Whether everything that was queued was handed to the kernel.
    fn has_sent(&self) -> bool;

    /// Whether UDP_SEGMENT still works, so that trains of more than one segment are worth building.
    fn gso(&self) -> bool;

    /// The counters so far.
    fn stats(&self) -> IoStats;

    /// The next peer whose sticky source the kernel refused and that was reached without it, as the address went away.
    fn take_source_gone(&mut self) -> Option<SourceGone> {
        None
    }

    /// The kinds of super-packets that the device keeps refusing, and of which no more are to be built.
    fn tun_refuses(&self) -> CoalesceOptions {
        CoalesceOptions::default()
    }

    /// The next notice for the log. Their number is bounded; a narrow path may be noticed again much later.
    fn take_notice(&mut self) -> Option<Notice> {
        None
    }
}

#[cfg(test)]
mod tests;
