//! Socket options that socket2 does not name.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Sets an option of type `int`.
pub(crate) fn set(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the kernel reads `value` during the call, and nothing else.
    unsafe { set_raw(socket, level, name, &value) }
}

/// Attaches the program that picks the socket of the group (SO_ATTACH_REUSEPORT_CBPF).
pub(crate) fn attach_reuseport_filter(
    socket: BorrowedFd<'_>,
    filter: &mut [libc::sock_filter],
) -> io::Result<()> {
    attach(socket, libc::SO_ATTACH_REUSEPORT_CBPF, filter)
}

/// Attaches the program that says which messages the socket receives (SO_ATTACH_FILTER).
pub(crate) fn attach_filter(socket: BorrowedFd<'_>, filter: &mut [libc::sock_filter]) -> io::Result<()> {
    attach(socket, libc::SO_ATTACH_FILTER, filter)
}

fn attach(socket: BorrowedFd<'_>, name: libc::c_int, filter: &mut [libc::sock_filter]) -> io::Result<()> {
    let len = u16::try_from(filter.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let program = libc::sock_fprog { len, filter: filter.as_mut_ptr() };
    // SAFETY: the kernel reads `program` and the `len` instructions that it points to, all borrowed for the call, and copies
    // them.
    unsafe { set_raw(socket, libc::SOL_SOCKET, name, &program) }
}

/// Calls setsockopt(2).
///
/// # Safety
///
/// `T` must be the type that the kernel defines for the option, with pointers valid for what the option does.
unsafe fn set_raw<T>(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: &T,
) -> io::Result<()> {
    let (value, len) = (std::ptr::from_ref(value).cast(), size_of::<T>() as libc::socklen_t);
    // SAFETY: `value` is valid for `len` bytes; the rest is the caller's promise.
    let status = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value, len) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Reads an option of type `int`.
#[cfg(test)]
pub(crate) fn get(socket: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    let out = (&raw mut value).cast();
    // SAFETY: `out` is valid for `len` bytes of writing, and both outlive the call.
    let status = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, out, &raw mut len) };
    if status == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}
