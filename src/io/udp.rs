//! UDP sockets: one pair (IPv4, IPv6) for each worker, with all of one family in one SO_REUSEPORT group.
//!
//! A group's members are numbered in the order in which they were bound, and that number is what the steering program
//! returns. Closing one member would renumber the last, so all are closed together: [`UdpGroup`] holds duplicates, and
//! the group stays whole until it and every worker have let go. Only then is the port free again.

mod inherited;

pub use inherited::InheritedSockets;

use crate::index::WorkerCount;
use crate::io::steer;
use crate::sys::error::{MORE_FILES, errno, explain};
use crate::sys::sockopt;
use crate::wire::family::Family;
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Bytes asked for as each socket's send and receive buffer, unless somebody chose another number. The kernel doubles it for
/// its own bookkeeping: at worst 14 MiB wait in each direction of each socket.
pub const SOCKET_BUFFER: usize = 7 << 20;
/// Fewest bytes that a socket's buffers may have: a few trains of 64 KiB.
pub const MIN_SOCKET_BUFFER: usize = 256 << 10;
/// Most bytes that a socket's buffers may have: the kernel's own limit, as it doubles them (`__sock_set_rcvbuf`).
pub const MAX_SOCKET_BUFFER: usize = (i32::MAX / 2) as usize;

/// Bytes of the kernel's memory that wait in a worker's sockets at worst: two directions of two families, doubled.
#[cfg(feature = "cli")]
pub const fn socket_bytes(buffer: usize) -> usize {
    2 * 2 * 2 * buffer
}

/// How many ports are tried where any will do, until one is free in both families.
const PORT_ATTEMPTS: usize = 32;

/// One worker's sockets.
#[derive(Debug, Default)]
pub struct UdpSockets {
    /// The IPv4 socket, where the host has IPv4.
    pub v4: Option<OwnedFd>,
    /// The socket for IPv6 alone, where the host has IPv6.
    pub v6: Option<OwnedFd>,
    /// The port to which they are bound.
    #[cfg_attr(not(feature = "internals"), expect(dead_code))] // tests look at it
    pub port: u16,
}

impl UdpSockets {
    /// The socket of `family`, where the host has that family.
    pub(super) fn of(&self, family: Family) -> Option<BorrowedFd<'_>> {
        let fd = match family {
            Family::Ipv4 => &self.v4,
            Family::Ipv6 => &self.v6,
        };
        fd.as_ref().map(AsFd::as_fd)
    }
}

/// The properties of the sockets to bind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpConfig {
    /// The port. 0 is any that is free in both families.
    pub port: u16,
    /// The firewall mark. 0 is none.
    pub mark: u32,
    /// Number of sockets of each family: one for each worker.
    pub workers: WorkerCount,
    /// What each of them asks for.
    pub options: SocketOptions,
}

/// What every socket of a tunnel asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketOptions {
    /// Whether it asks for UDP_GRO.
    pub gro: bool,
    /// Bytes of its send buffer, and of its receive buffer.
    pub buffer: usize,
}

impl Default for SocketOptions {
    fn default() -> SocketOptions {
        SocketOptions { gro: true, buffer: SOCKET_BUFFER }
    }
}

/// The slow path's handle on the whole group, for changes of the firewall mark.
#[derive(Debug, Clone)]
pub struct UdpGroup {
    /// The port to which the group is bound.
    pub port: u16,
    /// Whether datagrams go straight to the worker that owns their receiver index. It is false with one worker, and where the
    /// kernel refuses the program. Then they land on any worker, which hands them on.
    pub steered: bool,
    /// How many of the sockets are of IPv4. They are the first.
    v4: usize,
    sockets: Arc<Vec<OwnedFd>>,
}

/// Binds one pair of sockets for each worker, in order, and attaches the steering program last (see [`crate::io::steer`]). It
/// sets buffers, GRO, PKTINFO, TOS reception and mark. A host without IPv6 gets IPv4 alone, and the other way round.
///
/// # Errors
///
/// `AddrInUse`, which names the port, and other refusals of the kernel. [`errno`] returns the number.
pub fn bind(config: &UdpConfig) -> io::Result<(UdpGroup, Vec<UdpSockets>)> {
    let mut attempts = if config.port == 0 { PORT_ATTEMPTS } else { 1 };
    loop {
        attempts -= 1;
        match bind_families(config) {
            // The port that IPv4 was given is taken in IPv6, so another one is tried.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && attempts > 0 => {}
            result => return result,
        }
    }
}

impl UdpGroup {
    /// Changes SO_MARK of every socket.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses the mark: EPERM without CAP_NET_ADMIN.
    pub fn set_mark(&self, mark: u32) -> io::Result<()> {
        self.sockets.iter().try_for_each(|socket| set_mark(&SockRef::from(socket), mark))
    }
}

/// The features of this kernel's UDP, for diagnostics.
#[cfg(feature = "cli")]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct UdpFeatures {
    /// Whether it has UDP_SEGMENT (Linux 4.18).
    pub gso: bool,
    /// Whether it has UDP_GRO (Linux 5.0).
    pub gro: bool,
}

#[cfg(feature = "cli")]
impl UdpFeatures {
    /// Asks a socket of either family. All are false where there is none.
    pub fn probe() -> UdpFeatures {
        let open = |domain| Socket::new(domain, Type::DGRAM, Some(Protocol::UDP));
        let Ok(socket) = open(Domain::IPV4).or_else(|_| open(Domain::IPV6)) else {
            return UdpFeatures::default();
        };
        let takes =
            |name, value: libc::c_int| sockopt::set(socket.as_fd(), libc::SOL_UDP, name, value).is_ok();
        UdpFeatures { gso: takes(libc::UDP_SEGMENT, 1452), gro: takes(libc::UDP_GRO, 1) }
    }
}

/// One family's sockets, in worker order.
struct Bound {
    port: u16,
    steered: bool,
    sockets: Vec<OwnedFd>,
}

/// Makes one attempt at [`bind`].
fn bind_families(config: &UdpConfig) -> io::Result<(UdpGroup, Vec<UdpSockets>)> {
    let v4 = host_has(bind_group(Family::Ipv4, config))?;
    let port = v4.as_ref().map_or(config.port, |bound| bound.port);
    let v6 = host_has(bind_group(Family::Ipv6, &UdpConfig { port, ..*config }))?;
    let families: Vec<&Bound> = v4.iter().chain(&v6).collect();
    let Some(port) = families.last().map(|bound| bound.port) else {
        let error = io::Error::from_raw_os_error(libc::EAFNOSUPPORT);
        return Err(explain(error, "this host has neither IPv4 nor IPv6"));
    };
    let steered = families.iter().all(|bound| bound.steered);
    let all = families.iter().flat_map(|bound| &bound.sockets);
    let sockets = Arc::new(all.map(OwnedFd::try_clone).collect::<io::Result<_>>().map_err(explain_open)?);
    let of_v4 = v4.as_ref().map_or(0, |bound| bound.sockets.len());
    let mut v4 = v4.into_iter().flat_map(|bound| bound.sockets);
    let mut v6 = v6.into_iter().flat_map(|bound| bound.sockets);
    let pairs = config.workers.iter().map(|_| UdpSockets { v4: v4.next(), v6: v6.next(), port }).collect();
    Ok((UdpGroup { port, steered, v4: of_v4, sockets }, pairs))
}

/// The result, or `None` where the error says that the host lacks the address family.
fn host_has<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(errno(&error), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Binds one family's sockets to one port, in worker order, and steers them.
///
/// The first is bound *without* SO_REUSEPORT, which fails if anybody has the port, be it a group of the same user that
/// would let us in. It takes the option afterwards: the kernel looks at it when the next socket is bound, and numbers the first
/// one 0 then (`reuseport_add_sock`). From that moment a foreign process of the same user may join, which nothing prevents;
/// with one worker there is no group and no such opening.
fn bind_group(family: Family, config: &UdpConfig) -> io::Result<Bound> {
    let mut port = config.port;
    let mut sockets = Vec::with_capacity(config.workers.get());
    for worker in config.workers.iter() {
        let socket = open(family, config)?;
        if worker > 0 {
            socket.set_reuse_port(true)?;
        }
        socket.bind(&wildcard(family, port)).map_err(|error| explain_bind(error, port))?;
        if worker == 0 {
            port = socket.local_addr()?.as_socket().map_or(port, |address| address.port());
            socket.set_reuse_port(config.workers != WorkerCount::ONE)?;
        }
        sockets.push(OwnedFd::from(socket));
    }
    let steered = match sockets.as_slice() {
        [first, _, ..] => steer::attach_udp(first.as_fd(), config.workers).is_ok(),
        _ => false,
    };
    Ok(Bound { port, steered, sockets })
}

fn wildcard(family: Family, port: u16) -> SockAddr {
    match family {
        Family::Ipv4 => SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into(),
        Family::Ipv6 => SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into(),
    }
}

fn explain_bind(error: io::Error, port: u16) -> io::Error {
    let what = match errno(&error) {
        Some(libc::EADDRINUSE) => {
            format!("UDP port {port} is in use: choose another, or stop its holder (ss -ulpn)")
        }
        Some(libc::EACCES) => format!("UDP port {port} needs root or CAP_NET_BIND_SERVICE"),
        _ => format!("cannot bind UDP port {port}"),
    };
    explain(error, what)
}

fn explain_open(error: io::Error) -> io::Error {
    match errno(&error) {
        Some(libc::EMFILE) => explain(error, format!("no UDP socket can be opened ({MORE_FILES})")),
        _ => error,
    }
}

/// Opens a socket with all its options, not yet bound.
fn open(family: Family, config: &UdpConfig) -> io::Result<Socket> {
    let domain = match family {
        Family::Ipv4 => Domain::IPV4,
        Family::Ipv6 => Domain::IPV6,
    };
    let socket = Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP)).map_err(explain_open)?;
    set_buffers(&socket, config.options.buffer);
    if config.mark != 0 {
        set_mark(&SockRef::from(&socket), config.mark)?;
    }
    if config.options.gro {
        // Kernels before 5.0 lack this, and deliver datagrams one by one.
        let _ = sockopt::set(socket.as_fd(), libc::SOL_UDP, libc::UDP_GRO, 1);
    }
    // The outer packet may be fragmented, as wireguard in the kernel does (df = 0, `ignore_df`): a path narrower than
    // the tunnel's MTU then costs speed, and is no black hole. UDP_SEGMENT goes well with it, up to the path's MTU.
    let set = |level, name, value: libc::c_int| sockopt::set(socket.as_fd(), level, name, value);
    match family {
        Family::Ipv4 => {
            set(libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
            set(libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT)?;
            socket.set_recv_tos_v4(true)?;
        }
        Family::Ipv6 => {
            socket.set_only_v6(true)?;
            set(libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
            set(libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT)?;
            socket.set_recv_tclass_v6(true)?;
        }
    }
    Ok(socket)
}

/// Sets the socket's buffers past the limits of `net.core.{r,w}mem_max` where the process may (CAP_NET_ADMIN), and up to them
/// where it may not. Small buffers are no error.
fn set_buffers(socket: &Socket, bytes: usize) {
    let force = |name| sockopt::set(socket.as_fd(), libc::SOL_SOCKET, name, bytes as libc::c_int);
    let _ = force(libc::SO_RCVBUFFORCE).or_else(|_| socket.set_recv_buffer_size(bytes));
    let _ = force(libc::SO_SNDBUFFORCE).or_else(|_| socket.set_send_buffer_size(bytes));
}

fn set_mark(socket: &SockRef<'_>, mark: u32) -> io::Result<()> {
    socket.set_mark(mark).map_err(|error| explain(error, format!("fwmark {mark:#x} needs CAP_NET_ADMIN")))
}

#[cfg(test)]
mod tests;
