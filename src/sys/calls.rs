//! The few system calls of the data path, as functions over slices. Their errors are the bare errno, which is cheap to match.

use crate::sys::cmsg::{CONTROL_LEN, ControlData, NAME_LEN, Name};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The outcome of a system call.
pub(crate) type Result<T> = std::result::Result<T, i32>;

fn outcome(value: isize) -> Result<usize> {
    usize::try_from(value).map_err(|_| std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
}

/// Calls read(2).
pub(crate) fn read(fd: BorrowedFd<'_>, into: &mut [u8]) -> Result<usize> {
    // SAFETY: the kernel writes at most `len` bytes into this exclusively borrowed slice.
    outcome(unsafe { libc::read(fd.as_raw_fd(), into.as_mut_ptr().cast(), into.len()) })
}

/// Calls write(2).
pub(crate) fn write(fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize> {
    // SAFETY: the kernel reads `len` bytes of this borrowed slice.
    outcome(unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) })
}

/// Calls writev(2).
///
/// # Safety
///
/// Every vector must point to readable bytes.
pub(crate) unsafe fn writev(fd: BorrowedFd<'_>, vectors: &[libc::iovec]) -> Result<usize> {
    // SAFETY: the vectors are valid by this function's contract; their count is that of the slice.
    outcome(unsafe { libc::writev(fd.as_raw_fd(), vectors.as_ptr(), vectors.len() as libc::c_int) })
}

/// Names, control data and vectors for one sendmmsg or recvmmsg, which are kept from call to call.
///
/// The headers point into the other boxes, which never move or change size.
pub(crate) struct Batch {
    headers: Box<[libc::mmsghdr]>,
    vectors: Box<[libc::iovec]>,
    names: Box<[Name]>,
    controls: Box<[ControlData]>,
}

impl Batch {
    /// Makes room for `count` messages.
    pub(crate) fn new(count: usize) -> Batch {
        // SAFETY: mmsghdr is plain data for which all zeros (null pointers, zero lengths) is a valid value.
        let empty: libc::mmsghdr = unsafe { std::mem::zeroed() };
        let vector = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Batch {
            headers: vec![empty; count].into_boxed_slice(),
            vectors: vec![vector; count].into_boxed_slice(),
            names: vec![Name::EMPTY; count].into_boxed_slice(),
            controls: vec![ControlData::EMPTY; count].into_boxed_slice(),
        }
    }

    /// How many messages fit.
    pub(crate) fn capacity(&self) -> usize {
        self.headers.len()
    }

    /// Makes message `n` one that sends `bytes`. `control` builds the control data.
    pub(crate) fn set_send(
        &mut self,
        n: usize,
        bytes: &[u8],
        to: &SocketAddr,
        control: impl FnOnce(&mut ControlData),
    ) {
        let name_len = self.names[n].set(to);
        self.controls[n].clear();
        control(&mut self.controls[n]);
        self.vectors[n] = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        let control_len = self.controls[n].len();
        self.set_header(n, name_len, control_len);
    }

    /// Makes message `n` one that receives into `bytes`.
    pub(crate) fn set_receive(&mut self, n: usize, bytes: &mut [u8]) {
        self.vectors[n] = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        self.set_header(n, NAME_LEN, CONTROL_LEN);
    }

    fn set_header(&mut self, n: usize, name_len: usize, control_len: usize) {
        let header = &mut self.headers[n].msg_hdr;
        header.msg_name = self.names[n].as_mut_ptr().cast();
        header.msg_namelen = name_len as libc::socklen_t;
        header.msg_iov = &mut self.vectors[n];
        header.msg_iovlen = 1;
        // The pointer is null where there is nothing. Then the kernel does not even check, and keeps its route cache.
        header.msg_control = match control_len {
            0 => std::ptr::null_mut(),
            _ => self.controls[n].as_mut_ptr().cast(),
        };
        header.msg_controllen = control_len as _;
        header.msg_flags = 0;
    }

    /// Sends the first `count` messages by sendmmsg(2). Returns how many were sent, or the error of the first.
    ///
    /// # Safety
    ///
    /// The bytes given to [`Self::set_send`] for these messages must still be there.
    pub(crate) unsafe fn send(&mut self, fd: BorrowedFd<'_>, count: usize) -> Result<usize> {
        let headers = &mut self.headers[..count];
        // SAFETY: the headers point into this batch's boxes and to bytes that live by this function's contract.
        let sent = unsafe {
            libc::sendmmsg(fd.as_raw_fd(), headers.as_mut_ptr(), count as u32, libc::MSG_DONTWAIT as _)
        };
        outcome(sent as isize)
    }

    /// Receives into the first `count` messages by recvmmsg(2). Returns how many were received.
    ///
    /// # Safety
    ///
    /// The bytes given to [`Self::set_receive`] for these messages must still be there, and be borrowed by nobody.
    pub(crate) unsafe fn receive(&mut self, fd: BorrowedFd<'_>, count: usize) -> Result<usize> {
        let headers = &mut self.headers[..count];
        // SAFETY: as for `send`; the kernel writes within the lengths that the headers state.
        let received = unsafe {
            libc::recvmmsg(
                fd.as_raw_fd(),
                headers.as_mut_ptr(),
                count as u32,
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        outcome(received as isize)
    }

    /// What message `n` received: the number of bytes, the flags, the name and the control data.
    pub(crate) fn received(&self, n: usize) -> (usize, i32, &[u8], &[u8]) {
        let header = &self.headers[n];
        let name = self.names[n].bytes(header.msg_hdr.msg_namelen as usize);
        let control = self.controls[n].bytes(header.msg_hdr.msg_controllen as _);
        (header.msg_len as usize, header.msg_hdr.msg_flags, name, control)
    }
}
