//! The ring itself: its set-up in steps, multishot requests, and their completions as events.

use super::buffers::{BufferRing, GROUP};
use crate::io::edge::{Edge, ReceiveInfo, TrainShape, shape};
use crate::io::slab::{Buf, Pool};
use crate::sys::cmsg::{CONTROL_LEN, NAME_LEN};
use io_uring::register::Restriction;
use io_uring::types::{CancelBuilder, Fd, RecvMsgOut, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue};
use std::io::{Error, ErrorKind, Result};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

/// Most requests between two enters: two receives, three polls, and a batch of writes. It is a power of two.
const SUBMISSIONS: u32 = 32;
/// Size of the completion queue: one for each provided buffer and each poll. Beyond it the kernel queues them itself
/// (NODROP).
const COMPLETIONS: u32 = 256;

/// IORING_REGISTER_SYNC_CANCEL of linux/io_uring.h, which the crate does not name.
const REGISTER_SYNC_CANCEL: u8 = 24;

/// Where a received train begins, in bytes: `io_uring_recvmsg_out`, name and control data come before it.
pub(super) const START: usize = 16 + NAME_LEN + CONTROL_LEN;

/// The request of a completion. In `user_data` it is the low byte. Above it is the generation of the sockets or, of a write,
/// its number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum RequestKind {
    Tun = 1,
    Waker = 2,
    RoomV4 = 3,
    ReceiveV4 = 4,
    ReceiveV6 = 5,
    Write = 6,
    RoomV6 = 7,
}

impl RequestKind {
    fn of(user_data: u64) -> Option<RequestKind> {
        use RequestKind::{ReceiveV4, ReceiveV6, RoomV4, RoomV6, Tun, Waker, Write};
        [Tun, Waker, RoomV4, RoomV6, ReceiveV4, ReceiveV6, Write]
            .into_iter()
            .find(|&kind| kind as u64 == user_data & 0xff)
    }

    fn tag(self, generation: u32) -> u64 {
        u64::from(generation) << 8 | self as u64
    }
}

/// The completion of a request.
pub(super) struct Completion {
    pub(super) kind: RequestKind,
    pub(super) generation: u32,
    /// Whether the request goes on; otherwise it must be armed again.
    pub(super) more: bool,
    /// Poll events or a number of bytes, or the errno.
    pub(super) outcome: std::result::Result<u32, i32>,
    /// The buffer that it filled.
    pub(super) buf: Option<Buf>,
}

/// The ring, and the buffers that it fills.
///
/// The fields drop in this order, so that the ring is closed before the memory that it uses is freed.
pub(super) struct Ring {
    uring: IoUring,
    pub(super) buffers: BufferRing,
    /// The header of the multishot receives, of which only the lengths matter. It is boxed, as the kernel may read it at any
    /// submission.
    header: Box<libc::msghdr>,
}

impl Ring {
    /// Sets the ring up and tries it out. Multishot receive into provided buffers must work (Linux 6.0).
    pub(super) fn new(pool: &Pool) -> Result<Ring> {
        let uring = build()?;
        if !uring.params().is_feature_ext_arg() || !uring.params().is_feature_nodrop() {
            return Err(Error::new(ErrorKind::Unsupported, "io_uring of this kernel is too old"));
        }
        let buffers = BufferRing::new(&uring, Edge::receive_buffers(pool), pool)?;
        restrict(&uring)?;
        // SAFETY: msghdr is plain data for which all zeros is a valid value.
        let mut header: Box<libc::msghdr> = Box::new(unsafe { std::mem::zeroed() });
        header.msg_namelen = NAME_LEN as libc::socklen_t;
        header.msg_controllen = CONTROL_LEN as _;
        let mut ring = Ring { uring, buffers, header };
        ring.try_out(pool)?;
        Ok(ring)
    }

    /// Receives one datagram through a socket pair.
    fn try_out(&mut self, pool: &Pool) -> Result<()> {
        let (sender, receiver) = std::os::unix::net::UnixDatagram::pair()?;
        self.buffers.refill(0, pool);
        self.receive(RequestKind::ReceiveV4, 0, receiver.as_fd())?;
        sender.send(b"?")?;
        self.enter(1, Some(Duration::from_secs(1)))?;
        let received = self.next_event().is_some_and(|event| event.more && event.buf.is_some());
        self.cancel(RequestKind::ReceiveV4, 0);
        for _ in 0..16 {
            self.enter(0, None)?;
            while let Some(event) = self.next_event() {
                if !event.more {
                    return match received {
                        true => Ok(()),
                        false => Err(Error::new(ErrorKind::Unsupported, "no multishot receive (Linux 6.0)")),
                    };
                }
            }
        }
        Err(Error::new(ErrorKind::Unsupported, "io_uring does not cancel"))
    }

    /// Watches `fd` for `events` again and again, by one multishot request.
    pub(super) fn poll(
        &mut self,
        kind: RequestKind,
        generation: u32,
        fd: BorrowedFd<'_>,
        events: i16,
    ) -> Result<()> {
        let multi = !matches!(kind, RequestKind::RoomV4 | RequestKind::RoomV6);
        let entry = opcode::PollAdd::new(Fd(fd.as_raw_fd()), events as u32).multi(multi).build();
        self.push(entry.user_data(kind.tag(generation)))
    }

    /// Receives from `socket` into provided buffers again and again, by one multishot request.
    pub(super) fn receive(
        &mut self,
        kind: RequestKind,
        generation: u32,
        socket: BorrowedFd<'_>,
    ) -> Result<()> {
        let entry = opcode::RecvMsgMulti::new(Fd(socket.as_raw_fd()), &*self.header, GROUP).build();
        self.push(entry.user_data(kind.tag(generation)))
    }

    /// Writes to `fd` the bytes at which `vectors` point.
    ///
    /// # Safety
    ///
    /// The vectors and the bytes must stay where they are until the completion is taken or the ring is gone.
    pub(super) unsafe fn write(
        &mut self,
        number: u32,
        fd: BorrowedFd<'_>,
        vectors: &[libc::iovec],
    ) -> Result<()> {
        let entry = opcode::Writev::new(Fd(fd.as_raw_fd()), vectors.as_ptr(), vectors.len() as u32).build();
        self.push(entry.user_data(RequestKind::Write.tag(number)))
    }

    /// Submits the pushed requests. After a failure they stay there for the next enter.
    pub(super) fn submit(&mut self) {
        let _ = self.uring.submit();
    }

    fn push(&mut self, entry: squeue::Entry) -> Result<()> {
        // SAFETY: polls point to nothing; a receive points to `header`, which lives as long as the ring, and to provided
        // buffers, which `buffers` owns until a completion names them; a write to what its caller vouches for.
        if unsafe { self.uring.submission().push(&entry) }.is_ok() {
            return Ok(());
        }
        self.uring.submit()?;
        // SAFETY: as above.
        unsafe { self.uring.submission().push(&entry) }.map_err(|_| ErrorKind::WouldBlock.into())
    }

    /// Cancels a request, whose last completion comes with the next enter.
    pub(super) fn cancel(&mut self, kind: RequestKind, generation: u32) {
        // A request that is not submitted cannot be found. A failure says that there is no such request, which is what is
        // wanted.
        let _ = self.uring.submit();
        let which = CancelBuilder::user_data(kind.tag(generation)).all();
        let _ = self.uring.submitter().register_sync_cancel(None, which);
    }

    /// Submits the pushed requests, lets completions happen, and waits for `want` of them, at most for `timeout`.
    pub(super) fn enter(&mut self, want: u32, timeout: Option<Duration>) -> Result<()> {
        let to_submit = self.uring.submission().len() as u32;
        let timespec = timeout.map(Timespec::from);
        let mut args = SubmitArgs::new();
        if let Some(timespec) = &timespec {
            args = args.timespec(timespec);
        }
        let flags = EnterFlags::EXT_ARG | EnterFlags::GETEVENTS;
        // SAFETY: the argument is the extended one, as the flags say, and lives during the call.
        let outcome = unsafe { self.uring.submitter().enter(to_submit, want, flags.bits(), Some(&args)) };
        match outcome {
            Err(error) => match error.raw_os_error() {
                // The time is up, a signal came, completions must be taken first, or there is no memory for a moment.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
            Ok(_) => Ok(()),
        }
    }

    /// Whether an enter would do anything.
    pub(super) fn has_work(&mut self) -> bool {
        let submission = self.uring.submission();
        !submission.is_empty() || submission.taskrun() || submission.cq_overflow()
    }

    /// Whether completions wait to be taken.
    pub(super) fn has_events(&mut self) -> bool {
        !self.uring.completion().is_empty()
    }

    /// The next completion.
    pub(super) fn next_event(&mut self) -> Option<Completion> {
        loop {
            let entry = self.uring.completion().next()?;
            let flags = entry.flags();
            let buf = cqueue::buffer_select(flags).and_then(|slot| self.buffers.take(slot));
            // A completion of no request of ours would be a fault of the kernel's. Its buffer goes back all the same.
            let Some(kind) = RequestKind::of(entry.user_data()) else { continue };
            return Some(Completion {
                kind,
                generation: (entry.user_data() >> 8) as u32,
                more: cqueue::more(flags),
                outcome: u32::try_from(entry.result()).map_err(|_| -entry.result()),
                buf,
            });
        }
    }

    /// The shape of the train that a receive of `len` bytes in all put into `buf`.
    pub(super) fn parse(&self, buf: &Buf, len: u32) -> Option<TrainShape> {
        let out = RecvMsgOut::parse(buf.get(..len as usize)?, &self.header).ok()?;
        let received =
            ReceiveInfo { flags: out.flags() as i32, name: out.name_data(), control: out.control_data() };
        shape(out.payload_data().len(), received)
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // Nothing may write to a buffer that is about to return to the pool.
        let _ = self.uring.submit();
        let _ = self.uring.submitter().register_sync_cancel(None, CancelBuilder::any());
        let _ = self.enter(0, None);
    }
}

/// Lets the ring do for ever what a worker does, and nothing else. A filter of system calls cannot see what goes through a ring: who
/// takes a worker over could open files and connect sockets through it otherwise.
fn restrict(uring: &IoUring) -> Result<()> {
    let mut allowed = [
        Restriction::sqe_op(opcode::PollAdd::CODE),
        Restriction::sqe_op(opcode::RecvMsgMulti::CODE),
        Restriction::sqe_op(opcode::Writev::CODE),
        Restriction::sqe_flags_allowed(squeue::Flags::BUFFER_SELECT.bits()),
        Restriction::register_op(REGISTER_SYNC_CANCEL),
    ];
    uring.submitter().register_restrictions(&mut allowed)?;
    uring.submitter().register_enable_rings()
}

/// Makes the best ring that the kernel has, which does nothing before it is enabled: completions are made in our own enters only (6.1), or at least without
/// interrupting us (5.19), or else as they come.
fn build() -> Result<IoUring> {
    let common = || {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(COMPLETIONS).dontfork().setup_r_disabled();
        builder
    };
    let mut deferred = common();
    deferred.setup_submit_all().setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
    let mut cooperative = common();
    cooperative.setup_submit_all().setup_coop_taskrun().setup_taskrun_flag();
    let mut last = None;
    for builder in [deferred, cooperative, common()] {
        match builder.build(SUBMISSIONS) {
            Ok(ring) => return Ok(ring),
            // An unknown flag is EINVAL. Any other error would be the same with fewer flags.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => last = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(last.unwrap_or_else(|| ErrorKind::Unsupported.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_does_nothing_but_a_workers_work() {
        let pool = Pool::new(4).unwrap();
        let mut ring = match Ring::new(&pool) {
            Ok(ring) => ring,
            Err(error) => return eprintln!("not run: no io_uring here: {error}"),
        };
        let path = c"/proc/self/status";
        let open = opcode::OpenAt::new(Fd(libc::AT_FDCWD), path.as_ptr()).build();
        let socket = opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).build();
        let drained = opcode::PollAdd::new(Fd(0), 0).build().flags(squeue::Flags::IO_DRAIN);
        for entry in [open, socket, drained] {
            ring.push(entry.user_data(RequestKind::Tun.tag(0))).unwrap();
            ring.enter(1, Some(Duration::from_secs(1))).unwrap();
            assert_eq!(ring.next_event().unwrap().outcome, Err(libc::EACCES));
        }
        let refused = ring.uring.submitter().register_files(&[0]).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EACCES));
        assert!(ring.uring.submitter().register_restrictions(&mut []).is_err(), "for ever");
    }
}
