//! The queues of trains on their way out, one a family. They keep the order, are sent by sendmmsg, and handle what
//! the kernel refuses.
//!
//! What the kernel refuses is always the front of a queue, since sendmmsg stops at the first message that fails. So
//! mending the front and calling again keeps the order:
//!
//! | errno | on | then |
//! | --- | --- | --- |
//! | EAGAIN | anything | the family stays queued until its socket is writable |
//! | ENOBUFS | anything | the same, a few times; then the front is dropped |
//! | EINVAL, ENETUNREACH, EHOSTUNREACH, EADDRNOTAVAIL, ENODEV | a sticky source | once more without; if that goes, the source is gone |
//! | EIO | a train | no UDP_SEGMENT any more: its segments one by one |
//! | EMSGSIZE, EINVAL | a train | this path is too narrow: its segments one by one, remembered; with EINVAL only if the first then goes |
//! | EMSGSIZE | one datagram | that datagram is dropped |
//! | any other | anything | the rest of the train is dropped |
//!
//! A family whose socket is full holds up the reading of the TUN device. Where the other family is in use, it does so
//! for a moment only, and must then do with a small queue.
//!
//! What is dropped is counted. A notice for the log is made at most once a minute, with the error and one of the
//! destinations.

#![allow(unsafe_code)] // memory that the kernel reads and writes: each block carries its SAFETY line

use crate::io::narrow::NarrowPaths;
use crate::io::udp::UdpSockets;
use crate::io::{Endpoint, IoStats, Notice, SendTrain, SourceGone};
use crate::offload::train::{MAX_BYTES, MAX_SEGMENTS};
use crate::sys::calls::Batch;
use crate::sys::trace;
use crate::time::Instant;
use crate::wire::family::Family;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::ops::ControlFlow::{self, Break, Continue};
use std::time::Duration;

/// Trains of a family that may wait for a full socket: 256 × [`BUF_SIZE`](crate::io::slab::BUF_SIZE) = 17 MiB of the pool at most.
pub(super) const SEND_QUEUE: usize = 256;
/// Time for which a full socket may hold up the other family: 7 MiB leave at 1 Gbit/s in 60 ms.
const PATIENCE: Duration = Duration::from_millis(100);
/// Trains that may wait for a socket that has been full for longer, while the other family goes on. The pool can
/// spare that many buffers.
const STUCK_QUEUE: usize = 32;
/// Time for which a family counts as in use after something was sent by it: as long as a session lives (whitepaper
/// 6.1).
const IN_USE: Duration = Duration::from_secs(180);
/// Most messages of a sendmmsg.
const BATCH: usize = 64;
/// Number of times that a train is tried again after ENOBUFS.
const NOBUFS_RETRIES: u8 = 4;
/// Sources gone that may wait to be taken. A further one is not reported, but its next send will report it.
const GONE_LIST: usize = 64;
/// Notices that may wait to be taken. Further ones are not kept, but the counter has them.
const NOTICE_LIST: usize = 8;
/// Shortest time between two notices of refused sends.
const NOTICE_INTERVAL: Duration = Duration::from_secs(60);
/// Size in bytes of a segment that fits every path, headers included (IPv6's least MTU, RFC 8200 section 5). Where
/// one is refused, the path is not the reason.
const FITS_ANY_PATH: usize = 1280 - 48;
/// Number of destinations that refuse trains while none ever took one, from which on UDP_SEGMENT and not the paths
/// must be the reason.
const UNPROVEN_REFUSALS: usize = 4;

struct QueuedTrain {
    train: SendTrain,
    /// Bytes that were sent already, where the segments are sent one by one.
    sent: usize,
    /// Whether each datagram is a message of its own, without UDP_SEGMENT.
    singly: bool,
    nobufs: u8,
    /// Whether the kernel refused the train with EINVAL and its segments are to show whether that was for being a train. A
    /// blackhole route answers EINVAL to anything.
    doubted: bool,
    /// The sticky source that the kernel has just refused, if it did.
    suspect: Option<Endpoint>,
}

impl QueuedTrain {
    /// Number of datagrams still to be sent.
    fn datagrams(&self) -> usize {
        (self.train.len - self.sent).div_ceil(self.train.stride)
    }

    /// Accounts for one message that was sent or is given up. True where it was the train's last.
    fn advance(&mut self) -> bool {
        self.sent = match self.singly {
            true => (self.sent + self.train.stride).min(self.train.len),
            false => self.train.len,
        };
        self.sent == self.train.len
    }
}

/// One family's queue.
struct FamilyQueue {
    queue: VecDeque<QueuedTrain>,
    /// Whether the socket must become writable before anything goes on.
    blocked: bool,
    /// When the socket was first full, since the queue was last empty.
    full_since: Option<Instant>,
    /// When something was last sent by this family.
    sent_at: Option<Instant>,
}

impl FamilyQueue {
    fn new() -> FamilyQueue {
        FamilyQueue {
            queue: VecDeque::with_capacity(SEND_QUEUE),
            blocked: false,
            full_since: None,
            sent_at: None,
        }
    }

    fn block(&mut self, now: Instant) {
        self.blocked = true;
        self.full_since.get_or_insert(now);
    }

    /// Whether the family is in use, and its socket is not full.
    fn goes_on(&self, now: Instant) -> bool {
        !self.blocked && self.sent_at.is_some_and(|at| now.since(at) < IN_USE)
    }
}

/// The queues of both families.
pub(super) struct SendQueue {
    /// The queues by [`Family`].
    lanes: [FamilyQueue; 2],
    batch: Batch,
    gso: bool,
    /// Whether UDP_SEGMENT is to be used at all.
    gso_wanted: bool,
    /// Whether a train of several segments was ever sent.
    proven: bool,
    narrow: NarrowPaths,
    gone: VecDeque<SourceGone>,
    notices: VecDeque<Notice>,
    /// The time that the owner set last.
    now: Instant,
    /// When a notice of a refusal was last made.
    noticed_at: Option<Instant>,
    /// Number of datagrams refused since then.
    unreported: u64,
}

impl SendQueue {
    pub(super) fn new() -> SendQueue {
        SendQueue {
            lanes: [FamilyQueue::new(), FamilyQueue::new()],
            batch: Batch::new(BATCH),
            gso: true,
            gso_wanted: true,
            proven: false,
            narrow: NarrowPaths::default(),
            gone: VecDeque::with_capacity(GONE_LIST),
            notices: VecDeque::with_capacity(NOTICE_LIST),
            now: Instant::START,
            noticed_at: None,
            unreported: 0,
        }
    }

    /// Sets the time, for the rate of notices.
    pub(super) fn set_now(&mut self, now: Instant) {
        self.now = now;
    }

    /// Whether UDP_SEGMENT works.
    pub(super) fn gso(&self) -> bool {
        self.gso
    }

    /// Sends one datagram at a time from now on, for good.
    pub(super) fn forgo_gso(&mut self) {
        self.gso = false;
        self.gso_wanted = false;
    }

    /// Whether the family's socket must become writable before anything of it goes on.
    pub(super) fn blocked(&self, family: Family) -> bool {
        self.lanes[family as usize].blocked
    }

    /// Whether a full socket holds up the reading of the TUN device.
    pub(super) fn holds_up(&self, now: Instant) -> bool {
        Family::BOTH.into_iter().any(|family| {
            self.blocked(family) && self.patience_ends(family, now).is_none_or(|until| now < until)
        })
    }

    /// When a full socket ceases to hold that up. `None` where it does not, or does so until it is writable.
    pub(super) fn held_until(&self, now: Instant) -> Option<Instant> {
        let ends = Family::BOTH.into_iter().filter_map(|family| self.patience_ends(family, now));
        ends.filter(|&until| now < until).min()
    }

    /// Until when the family's full socket holds up the other family. `None` where the other is not in use, or this
    /// one is not full.
    fn patience_ends(&self, family: Family, now: Instant) -> Option<Instant> {
        let (lane, other) = (&self.lanes[family as usize], &self.lanes[family.other() as usize]);
        let since = lane.full_since.filter(|_| lane.blocked && other.goes_on(now))?;
        Some(since + PATIENCE)
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.lanes.iter().all(|lane| lane.queue.is_empty())
    }

    pub(super) fn take_gone(&mut self) -> Option<SourceGone> {
        self.gone.pop_front()
    }

    pub(super) fn take_notice(&mut self) -> Option<Notice> {
        self.notices.pop_front()
    }

    /// Makes the queue ready for other sockets: drops and counts what is queued, and forgets what the old ones
    /// refused.
    pub(super) fn reset(&mut self, stats: &mut IoStats) {
        for family in Family::BOTH {
            while !self.lanes[family as usize].queue.is_empty() {
                self.drop_front(family, stats);
            }
            self.lanes[family as usize].blocked = false;
            self.lanes[family as usize].full_since = None;
        }
        self.gso = self.gso_wanted;
        self.proven = false;
        self.narrow.clear();
    }

    /// Queues a train. A full queue is flushed first; a train that still finds no room, or has no datagram, is dropped.
    pub(super) fn push(&mut self, train: SendTrain, sockets: &UdpSockets, stats: &mut IoStats) {
        if train.len == 0 || train.stride == 0 || train.len > train.buf.len() {
            debug_assert!(false, "an empty or overlong train");
            stats.udp_send_errors += 1;
            return;
        }
        let family = Family::of(train.to.addr.ip());
        if !self.has_room(family) && !self.blocked(family) {
            self.flush(sockets, stats);
        }
        let mut out = QueuedTrain { train, sent: 0, singly: false, nobufs: 0, doubted: false, suspect: None };
        let datagrams = out.datagrams();
        if !self.has_room(family) {
            stats.udp_send_errors += datagrams as u64;
            return;
        }
        out.singly = datagrams > 1
            && (!self.gso
                || datagrams > MAX_SEGMENTS
                || out.train.len > MAX_BYTES
                || self.narrow.refuses(out.train.to.addr.ip(), out.train.stride));
        self.lanes[family as usize].queue.push_back(out);
    }

    fn has_room(&self, family: Family) -> bool {
        let is_stuck = self.patience_ends(family, self.now).is_some_and(|until| until <= self.now);
        let most = if is_stuck { STUCK_QUEUE } else { SEND_QUEUE };
        self.lanes[family as usize].queue.len() < most
    }

    /// Sends as much as the sockets take.
    pub(super) fn flush(&mut self, sockets: &UdpSockets, stats: &mut IoStats) {
        for family in Family::BOTH {
            self.flush_family(family, sockets, stats);
        }
    }

    fn flush_family(&mut self, family: Family, sockets: &UdpSockets, stats: &mut IoStats) {
        self.lanes[family as usize].blocked = false;
        while !self.lanes[family as usize].queue.is_empty() {
            let Some(socket) = sockets.of(family) else {
                match sockets.v4.is_some() || sockets.v6.is_some() {
                    true => self.refuse_front(libc::EAFNOSUPPORT, family, stats),
                    false => self.drop_front(family, stats), // the interface is down
                }
                continue;
            };
            let count = self.fill(family);
            let sent_before = stats.udp_sent_datagrams;
            trace::send_begin(count);
            // SAFETY: the messages point into buffers of trains that stay in their queue during the call.
            let outcome = match unsafe { self.batch.send(socket, count) } {
                Ok(0) => self.refused(libc::EAGAIN, family, stats),
                Ok(n) => {
                    self.sent(n, family, stats);
                    Continue(())
                }
                Err(errno) => self.refused(errno, family, stats),
            };
            trace::datagrams_sent(count, stats.udp_sent_datagrams.wrapping_sub(sent_before));
            if outcome.is_break() {
                return;
            }
        }
        self.lanes[family as usize].full_since = None;
    }

    /// Turns the front of a queue into messages. Returns how many these are.
    fn fill(&mut self, family: Family) -> usize {
        let mut count = 0;
        for out in &self.lanes[family as usize].queue {
            let SendTrain { buf, len, stride, to, tos, .. } = &out.train;
            let size = if out.singly { *stride } else { *len };
            for message in buf[out.sent..*len].chunks(size) {
                if count == self.batch.capacity() {
                    return count;
                }
                self.batch.set_send(count, message, &to.addr, |control| {
                    if let (true, Ok(segment)) = (message.len() > *stride, u16::try_from(*stride)) {
                        control.push_segment(segment);
                    }
                    if let Some(from) = &to.from {
                        control.push_source(from);
                    }
                    if *tos != 0 {
                        control.push_tos(&to.addr, *tos);
                    }
                });
                count += 1;
            }
        }
        count
    }

    /// Notes that the first `count` messages were sent.
    fn sent(&mut self, count: usize, family: Family, stats: &mut IoStats) {
        self.lanes[family as usize].sent_at = Some(self.now);
        for _ in 0..count {
            let queue = &mut self.lanes[family as usize].queue;
            let Some(front) = queue.front_mut() else { return };
            let datagrams = if front.singly { 1 } else { front.datagrams() };
            stats.udp_sends += 1;
            stats.udp_sent_datagrams += datagrams as u64;
            self.proven |= datagrams > 1;
            // Where the source was taken away, too, that may have been what helped.
            let doubted = std::mem::take(&mut front.doubted) && front.suspect.is_none();
            let (to, size) = (front.train.to.addr, front.train.stride);
            let gone = front.suspect.take().map(|endpoint| (endpoint, front.train.peer));
            if front.advance() {
                queue.pop_front();
            }
            if let Some((endpoint, peer)) = gone {
                self.source_gone(endpoint, peer);
            }
            if doubted {
                self.train_at_fault(libc::EINVAL, to, size, stats);
            }
        }
    }

    /// Notes that the front was sent without its sticky source and not with it, so that nothing more is sent from
    /// there.
    fn source_gone(&mut self, endpoint: Endpoint, peer: Option<u32>) {
        for out in &mut self.lanes[Family::of(endpoint.addr.ip()) as usize].queue {
            if out.train.to == endpoint {
                out.train.to.from = None;
            }
        }
        let gone = peer.map(|peer| SourceGone { peer, endpoint });
        if let Some(gone) = gone.filter(|gone| self.gone.len() < GONE_LIST && !self.gone.contains(gone)) {
            self.gone.push_back(gone);
        }
    }

    /// Handles that the kernel refused the front. The table at the top of this file says how.
    fn refused(&mut self, errno: i32, family: Family, stats: &mut IoStats) -> ControlFlow<()> {
        let now = self.now;
        let lane = &mut self.lanes[family as usize];
        let Some(front) = lane.queue.front_mut() else { return Break(()) };
        match errno {
            libc::EINTR => {}
            libc::EAGAIN => {
                lane.block(now);
                return Break(());
            }
            libc::ENOBUFS if front.nobufs < NOBUFS_RETRIES => {
                front.nobufs += 1;
                lane.block(now);
                return Break(());
            }
            libc::EINVAL | libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EADDRNOTAVAIL | libc::ENODEV
                if front.train.to.from.is_some() =>
            {
                front.suspect = Some(front.train.to);
                front.train.to.from = None;
            }
            libc::EIO | libc::EINVAL | libc::EMSGSIZE if !front.singly && front.datagrams() > 1 => {
                self.fall_back(errno, family, stats);
            }
            libc::EMSGSIZE => {
                stats.udp_send_errors += 1;
                let to = front.train.to.addr;
                if front.advance() {
                    lane.queue.pop_front();
                }
                self.note_refusal(errno, to, 1);
            }
            _ => self.refuse_front(errno, family, stats),
        }
        Continue(())
    }

    /// Sends the front's segments one by one from here on, as the kernel took it in no form of a train.
    fn fall_back(&mut self, errno: i32, family: Family, stats: &mut IoStats) {
        let Some(front) = self.lanes[family as usize].queue.front_mut() else { return };
        front.singly = true;
        // The train was at fault, not its source.
        if let Some(endpoint) = front.suspect.take() {
            front.train.to = endpoint;
        }
        if errno == libc::EINVAL {
            front.doubted = true;
            return;
        }
        let (to, size) = (front.train.to.addr, front.train.stride);
        self.train_at_fault(errno, to, size, stats);
    }

    /// Draws the lesson of a train to `to` with segments of `size` bytes that was refused for being one: sends no more such trains on
    /// its path, or no trains at all.
    fn train_at_fault(&mut self, errno: i32, to: SocketAddr, size: usize, stats: &mut IoStats) {
        stats.offload_fallbacks += 1;
        let unproven = !self.proven && self.narrow.len() + 1 >= UNPROVEN_REFUSALS;
        let off = errno == libc::EIO || (errno == libc::EINVAL && (size <= FITS_ANY_PATH || unproven));
        self.gso &= !off;
        for out in self.lanes.iter_mut().flat_map(|lane| &mut lane.queue) {
            let same_path = out.train.to.addr.ip() == to.ip() && out.train.stride >= size;
            out.singly |= out.datagrams() > 1 && (off || same_path);
        }
        let notice = match off {
            true => Notice::SendOffloadOff { errno },
            false => {
                self.narrow.add(to.ip(), size);
                Notice::NarrowPath { to, size }
            }
        };
        if self.notices.len() < NOTICE_LIST {
            self.notices.push_back(notice);
        }
    }

    /// Drops the front for this error.
    fn refuse_front(&mut self, errno: i32, family: Family, stats: &mut IoStats) {
        if let Some(front) = self.lanes[family as usize].queue.front() {
            let (to, datagrams) = (front.train.to.addr, front.datagrams() as u64);
            self.drop_front(family, stats);
            self.note_refusal(errno, to, datagrams);
        }
    }

    /// Makes a notice of a refusal, unless one was made a short while ago. Then the next notice counts it.
    fn note_refusal(&mut self, errno: i32, to: SocketAddr, datagrams: u64) {
        self.unreported += datagrams;
        let is_soon = self.noticed_at.is_some_and(|at| self.now.since(at) < NOTICE_INTERVAL);
        if !is_soon && self.notices.len() < NOTICE_LIST {
            self.noticed_at = Some(self.now);
            let datagrams = std::mem::take(&mut self.unreported);
            self.notices.push_back(Notice::SendRefused { to, errno, datagrams });
        }
    }

    fn drop_front(&mut self, family: Family, stats: &mut IoStats) {
        if let Some(front) = self.lanes[family as usize].queue.pop_front() {
            stats.udp_send_errors += front.datagrams() as u64;
        }
    }
}

#[cfg(test)]
mod tests;
