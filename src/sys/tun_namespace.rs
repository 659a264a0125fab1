//! The namespace of a TUN device, which may be moved to another one while its files stay with this process.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `_IO('T', 227)` (Linux `include/uapi/linux/if_tun.h`, since 5.2).
const TUNGETDEVNETNS: libc::c_ulong = 0x54e3;
/// `_IOR('T', 210, unsigned int)`. It writes a whole `struct ifreq`.
const TUNGETIFF: libc::c_ulong = 0x8004_54d2;

/// The network namespace of the device behind `queue`. It needs CAP_NET_ADMIN.
///
/// # Errors
///
/// EBADFD where the device is gone, and the kernel's refusal.
pub fn namespace(queue: BorrowedFd<'_>) -> std::io::Result<OwnedFd> {
    // SAFETY: the ioctl takes no argument and returns a new file or an error.
    let fd = unsafe { libc::ioctl(queue.as_raw_fd(), TUNGETDEVNETNS) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the kernel just opened `fd` for this process; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The device's present name, as it may have been renamed.
///
/// # Errors
///
/// EBADFD where the device is gone.
pub fn interface_name(queue: BorrowedFd<'_>) -> std::io::Result<String> {
    // SAFETY: an all-zero ifreq is a valid one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: TUNGETIFF writes one struct ifreq, which `request` is and outlives the call.
    if unsafe { libc::ioctl(queue.as_raw_fd(), TUNGETIFF, &mut request) } < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the kernel terminates the name within IFNAMSIZ bytes; the array lives on this stack frame.
    let name = unsafe { CStr::from_ptr(request.ifr_name.as_ptr()) };
    Ok(name.to_string_lossy().into_owned())
}
