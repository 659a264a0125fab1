//! The ioctls of `/dev/net/tun` (Linux `drivers/net/tun.c`, `__tun_chr_ioctl`), one safe function each.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

/// `struct ifreq`, as TUNSETIFF and TUNGETIFF use it: a name and flags, with the rest of the union unused.
#[repr(C)]
#[derive(Clone, Copy)]
struct IfReq {
    name: [u8; libc::IFNAMSIZ],
    flags: u16,
    rest: [u8; size_of::<libc::ifreq>() - libc::IFNAMSIZ - size_of::<u16>()],
}

const _: () = assert!(size_of::<IfReq>() == size_of::<libc::ifreq>());

/// The interface to which a TUN file is attached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Attachment {
    /// Name of the interface.
    pub(crate) name: String,
    /// `IFF_TUN`, `IFF_VNET_HDR` and the like.
    pub(crate) flags: u16,
}

impl IfReq {
    fn into_attachment(self) -> Attachment {
        let name = self.name.split(|byte| *byte == 0).next().unwrap_or_default();
        Attachment { name: String::from_utf8_lossy(name).into_owned(), flags: self.flags }
    }
}

/// Creates the interface, or adds the file to it as one more queue (TUNSETIFF). `name` must be shorter than IFNAMSIZ.
pub(crate) fn set_interface(tun: BorrowedFd<'_>, name: &str, flags: u16) -> io::Result<Attachment> {
    let mut request = IfReq { name: [0; libc::IFNAMSIZ], flags, rest: [0; _] };
    let field = request.name[..libc::IFNAMSIZ - 1].get_mut(..name.len());
    field.ok_or_else(|| io::Error::from_raw_os_error(libc::ENAMETOOLONG))?.copy_from_slice(name.as_bytes());
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, whose size and layout `IfReq` has.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    Ok(request.into_attachment())
}

/// The interface to which the file is attached (TUNGETIFF). The error is EBADFD where there is none, and ENOTTY where it is
/// no TUN file.
pub(crate) fn interface(tun: BorrowedFd<'_>) -> io::Result<Attachment> {
    let mut request = IfReq { name: [0; libc::IFNAMSIZ], flags: 0, rest: [0; _] };
    // SAFETY: TUNGETIFF writes one `struct ifreq`, whose size and layout `IfReq` has.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
    Ok(request.into_attachment())
}

/// Takes the queue away from its device without closing it (TUNSETQUEUE).
pub(crate) fn disable_queue(tun: BorrowedFd<'_>) -> io::Result<()> {
    let flags = libc::IFF_DETACH_QUEUE as u16;
    let request = IfReq { name: [0; libc::IFNAMSIZ], flags, rest: [0; _] };
    // SAFETY: TUNSETQUEUE reads one `struct ifreq`, whose size and layout `IfReq` has.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETQUEUE, &raw const request) })
}

/// Sets the `TUN_F_*` offloads that user space can take (TUNSETOFFLOAD). The error is EINVAL where the kernel does not know
/// one of them.
pub(crate) fn set_offload(tun: BorrowedFd<'_>, bits: libc::c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(bits)) })
}

/// Lets `user` add queues to the device, and nobody else who lacks CAP_NET_ADMIN (TUNSETOWNER).
pub(crate) fn set_owner(tun: BorrowedFd<'_>, user: u32) -> io::Result<()> {
    // SAFETY: TUNSETOWNER takes its argument by value.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETOWNER, libc::c_ulong::from(user)) })
}

/// Sets the length in bytes of the virtio-net header before each packet (TUNSETVNETHDRSZ).
pub(crate) fn set_vnet_header_len(tun: BorrowedFd<'_>, len: usize) -> io::Result<()> {
    let len = len as libc::c_int;
    // SAFETY: TUNSETVNETHDRSZ reads one int.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const len) })
}

/// Has this program pick the queue from now on (TUNSETSTEERINGEBPF). With `None` the kernel's flow table does.
pub(crate) fn set_steering(tun: BorrowedFd<'_>, program: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let program: RawFd = program.map_or(-1, |fd| fd.as_raw_fd());
    // SAFETY: TUNSETSTEERINGEBPF reads one int, a file descriptor or -1.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETSTEERINGEBPF, &raw const program) })
}

/// Sets O_NONBLOCK on the file.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: F_GETFL takes no argument.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    check(flags)?;
    // SAFETY: F_SETFL takes an int.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) })
}

fn check(status: libc::c_int) -> io::Result<()> {
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
