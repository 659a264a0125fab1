//! One queue of the TUN device, which is read until it is empty and written to at once.
//!
//! A write runs the kernel's receive path on the caller's core and never waits (`tun_get_user`, Linux `drivers/net/tun.c`).

#![allow(unsafe_code)] // memory that the kernel reads and writes: each block carries its SAFETY line

use crate::io::IoStats;
use crate::io::slab::{BUF_SIZE, SharedBuf};
use crate::io::{CoalesceOptions, Notice};
use crate::offload::coalesce::RunKind;
use crate::offload::split::{Progress, Splitter};
use crate::offload::train::{Train, TrainLimits};
use crate::sys::calls;
use crate::wire::ip;
use crate::wire::vnet::VNET_HDR_LEN;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Most pieces of a write: UIO_MAXIOV. A coalesced run has at most 64.
const MAX_PIECES: usize = 1024;
/// How many super-packets of one type the kernel must refuse in a row for no more to be built.
const REFUSED_IN_A_ROW: u8 = 8;
/// Length in bytes of the WireGuard message header that [`Splitter`] leaves before each packet.
const MESSAGE_HEADER: usize = 16;

/// The bits of a virtio-net header's `gso_type` without the ECN bit: 0 none, 1 TCP/IPv4, 4 TCP/IPv6, 5 UDP, with another bit
/// in a tunnel over IPv4 or over IPv6.
const GSO_TYPE_MASK: u8 = 0x7f;
const GSO_UDP_L4: u8 = 5;
const GSO_TUNNEL: u8 = 0x60;
/// Number of variants of [`RunKind`].
const KINDS: usize = 3;

/// A worker's queue of the TUN device.
pub(super) struct TunQueue {
    fd: OwnedFd,
    ready: bool,
    dead: Option<i32>,
    vectors: Vec<libc::iovec>,
    /// How many super-packets of each kind were refused in a row.
    refused: [u8; KINDS],
    notices: [Option<Notice>; KINDS],
}

impl TunQueue {
    pub(super) fn new(fd: OwnedFd) -> TunQueue {
        TunQueue {
            fd,
            ready: true,
            dead: None,
            vectors: Vec::with_capacity(128),
            refused: [0; KINDS],
            notices: [None; KINDS],
        }
    }

    /// Whether the last read did not find the queue empty, or something came since.
    pub(super) fn is_ready(&self) -> bool {
        self.ready && self.dead.is_none()
    }

    /// Notes that something came.
    pub(super) fn set_ready(&mut self) {
        self.ready = true;
    }

    /// Notes that the device is gone.
    pub(super) fn set_dead(&mut self) {
        self.dead.get_or_insert(libc::EBADFD);
    }

    /// Checks that the device is there. An error says that it is gone.
    pub(super) fn alive(&self) -> std::io::Result<()> {
        match self.dead {
            None => Ok(()),
            Some(errno) => {
                let cause = std::io::Error::from_raw_os_error(errno);
                Err(std::io::Error::new(cause.kind(), format!("the TUN device is gone: {cause}")))
            }
        }
    }

    /// The kinds of super-packets that the device keeps refusing.
    pub(super) fn refuses(&self) -> CoalesceOptions {
        let [tcp, udp, tunnels] = self.refused.map(|refused| refused >= REFUSED_IN_A_ROW);
        CoalesceOptions { tcp, udp, tunnels }
    }

    pub(super) fn take_notice(&mut self) -> Option<Notice> {
        self.notices.iter_mut().find_map(Option::take)
    }

    /// Reads one frame, and returns its length in bytes. `None` where the queue is empty, or gone.
    pub(super) fn read(&mut self, into: &mut [u8]) -> Option<usize> {
        loop {
            match calls::read(self.fd.as_fd(), into) {
                Ok(len) => return Some(len),
                Err(libc::EINTR) => continue,
                Err(libc::EAGAIN) => self.ready = false,
                // There is no memory for a moment. What is queued stays queued, and the next packet's event comes.
                Err(libc::ENOMEM | libc::ENOBUFS) => {}
                Err(errno) => self.dead = Some(errno),
            }
            return None;
        }
    }

    /// Writes one packet or super-packet.
    pub(super) fn write(&mut self, buf: &SharedBuf, pieces: &[Range<usize>], stats: &mut IoStats) {
        if !point_at(&mut self.vectors, buf, pieces) {
            stats.tun_write_errors += 1;
            return;
        }
        // SAFETY: each vector is a part of `buf`, which is borrowed during the call.
        let outcome = retry(|| unsafe { calls::writev(self.fd.as_fd(), &self.vectors) });
        self.wrote(outcome.map(drop), buf, pieces, stats);
    }

    /// Accounts for the outcome of a write. A super-packet that the kernel refused is split and written again.
    pub(super) fn wrote(
        &mut self,
        outcome: calls::Result<()>,
        buf: &SharedBuf,
        pieces: &[Range<usize>],
        stats: &mut IoStats,
    ) {
        match (outcome, gso_kind(buf, pieces)) {
            (Ok(()), kind) => {
                stats.tun_writes += 1;
                if let Some(kind) = kind {
                    self.refused[kind as usize] = 0;
                }
            }
            (Err(libc::EINVAL), Some(kind)) => self.write_split(kind, buf, pieces, stats),
            (Err(errno), _) => self.write_failed(errno, stats),
        }
    }

    fn write_failed(&mut self, errno: i32, stats: &mut IoStats) {
        stats.tun_write_errors += 1;
        // EIO would be an interface that is down. These are a device that is gone.
        if matches!(errno, libc::EBADFD | libc::EBADF) {
            self.dead = Some(errno);
        }
    }

    /// Writes a super-packet that the kernel refused as plain packets. Kernels with e269d79c7d35 and without 89add40066f9
    /// refuse good ones. This allocates, as it is rare: after a few refusals in a row no super-packets are built any more.
    fn write_split(&mut self, kind: RunKind, buf: &SharedBuf, pieces: &[Range<usize>], stats: &mut IoStats) {
        stats.offload_fallbacks += 1;
        let refused = &mut self.refused[kind as usize];
        *refused = refused.saturating_add(1);
        if *refused == REFUSED_IN_A_ROW {
            self.notices[kind as usize] = Some(Notice::TunOffloadOff { kind });
        }
        let frame: Vec<u8> = pieces.iter().flat_map(|piece| &buf[piece.clone()]).copied().collect();
        let Ok(mut splitter) = Splitter::new(&frame) else {
            stats.tun_write_errors += 1;
            return;
        };
        // The virtio-net header before a packet takes the place of its message header and of what is before that: the end of a
        // tag that was never written, or, before the first, this much more room.
        const BEFORE: usize = VNET_HDR_LEN - MESSAGE_HEADER;
        let mut out = vec![0; BEFORE + BUF_SIZE];
        loop {
            let mut train = Train::default();
            let progress = splitter.write_into(&mut out[BEFORE..], &mut train, 0, &TrainLimits::default());
            for start in (0..train.len()).step_by(train.stride().max(1)) {
                match plain_packet(&mut out[start..])
                    .map(|packet| retry(|| calls::write(self.fd.as_fd(), packet)))
                {
                    Some(Ok(_)) => stats.tun_writes += 1,
                    Some(Err(errno)) => self.write_failed(errno, stats),
                    None => stats.tun_write_errors += 1,
                }
            }
            if progress == Progress::Done || train.is_empty() {
                return;
            }
        }
    }
}

/// Points `vectors` at `pieces` of `buf`. False where there are none or too many, or one lies beyond the buffer.
pub(super) fn point_at(vectors: &mut Vec<libc::iovec>, buf: &SharedBuf, pieces: &[Range<usize>]) -> bool {
    vectors.clear();
    for piece in pieces {
        let Some(bytes) = buf.get(piece.clone()) else {
            debug_assert!(false, "a piece beyond its buffer");
            return false;
        };
        vectors.push(libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() });
    }
    (1..=MAX_PIECES).contains(&vectors.len())
}

impl AsFd for TunQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The packet with room for a virtio-net header before it at the start of `out`, behind an empty one, with neither padding nor
/// room for a tag.
fn plain_packet(out: &mut [u8]) -> Option<&[u8]> {
    let len = ip::parse(out.get(VNET_HDR_LEN..)?)?.len;
    let packet = out.get_mut(..VNET_HDR_LEN + len)?;
    packet[..VNET_HDR_LEN].fill(0);
    Some(packet)
}

/// The kind of a super-packet. `None` where it is none.
fn gso_kind(buf: &SharedBuf, pieces: &[Range<usize>]) -> Option<RunKind> {
    match buf.get(pieces.first()?.start + 1)? & GSO_TYPE_MASK {
        0 => None,
        GSO_UDP_L4 => Some(RunKind::Udp),
        bits if bits & GSO_TUNNEL != 0 => Some(RunKind::Tunnel),
        _ => Some(RunKind::Tcp),
    }
}

fn retry(mut call: impl FnMut() -> calls::Result<usize>) -> calls::Result<usize> {
    loop {
        match call() {
            Err(libc::EINTR) => {}
            other => return other,
        }
    }
}
