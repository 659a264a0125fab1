//! One suite for both backends: what one does, the other does. Each test runs in a network namespace of its own, in a thread
//! that ends with it; without the right to make one (CAP_SYS_ADMIN, CAP_NET_ADMIN) it is skipped, aloud.

mod random;
mod rest;
mod tun;
mod udp;

use super::mmsg::Mmsg;
use super::slab::Pool;
use super::udp::UdpSockets;
use super::uring::Uring;
use super::*;
use crate::sys::clock::Clock;
use crate::sys::netns::eventually;
use crate::sys::waker::Waker;
use crate::wire::vnet::VNET_HDR_LEN;
use std::io::{Error, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::time::Duration;

const BACKENDS: [Backend; 2] = [Backend::Mmsg, Backend::Uring];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Backend {
    Mmsg,
    Uring,
}

/// A backend with what it was made of.
struct Bench {
    io: Box<dyn Io>,
    pool: Pool,
    waker: Waker,
    sockets: Vec<SocketAddr>,
}

/// Runs `test` for each backend in a fresh namespace whose `lo` is up.
fn in_namespace(test: impl Fn(Backend) + Send + Sync + Copy + 'static) {
    for backend in BACKENDS {
        if let (Backend::Uring, Err(error)) = (backend, Uring::probe()) {
            let _ = writeln!(std::io::stderr(), "skipped: no io_uring here: {error}");
            continue;
        }
        let thread = std::thread::spawn(move || {
            // SAFETY: takes no pointers; affects this thread only.
            if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
                // Not through the test harness's capture: a skipped test must be seen.
                let _ = std::io::stderr().write_all(b"skipped: no right to make a network namespace\n");
                return;
            }
            ip("link set lo up");
            test(backend);
        });
        if let Err(panic) = thread.join() {
            eprintln!("with {backend:?}");
            std::panic::resume_unwind(panic);
        }
    }
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

/// A TUN device of one queue, up, with 10.9.0.1/24 and fd09::1/64.
fn open_tun(name: &str) -> OwnedFd {
    let fd = open_device(name, libc::IFF_TUN);
    ip(&format!("addr add 10.9.0.1/24 dev {name}"));
    ip(&format!("addr add fd09::1/64 dev {name} nodad"));
    ip(&format!("link set {name} up"));
    fd
}

/// TUNSETOFFLOAD: CSUM, TSO4, TSO6, USO4, USO6.
const ALL_OFFLOADS: libc::c_uint = 0x67;
/// CSUM, TSO4, TSO6: what there was before Linux 6.2.
const TCP_OFFLOADS: libc::c_uint = 0x07;

fn set_offloads(device: &OwnedFd, offloads: libc::c_uint) -> bool {
    // SAFETY: the argument is a number.
    unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETOFFLOAD as _, offloads) == 0 }
}

/// Whether UDP super-packets pass through a TUN device of this kernel.
fn has_udp_offload() -> bool {
    set_offloads(&open_device("uso0", libc::IFF_TUN), ALL_OFFLOADS)
}

/// A device of one queue with all offloads that the kernel has, down, without addresses.
fn open_device(name: &str, kind: i32) -> OwnedFd {
    // SAFETY: a constant C string.
    let fd =
        unsafe { libc::open(c"/dev/net/tun".as_ptr(), libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC) };
    assert!(fd >= 0, "{}", Error::last_os_error());
    // SAFETY: just opened.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut request = [0u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    let flags = kind | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request[16..18].copy_from_slice(&(flags as u16).to_ne_bytes());
    // A command that another test is just starting may still hold a device of this name that was closed.
    eventually(|| {
        // SAFETY: an ifreq is 40 bytes.
        let attached =
            unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF as _, request.as_mut_ptr()) == 0 };
        let is_busy = || Error::last_os_error().raw_os_error() == Some(libc::EBUSY);
        assert!(attached || is_busy(), "{}", Error::last_os_error());
        attached.then_some(())
    });
    crate::sys::ioctl::set_vnet_header_len(std::os::fd::AsFd::as_fd(&fd), VNET_HDR_LEN).unwrap();
    assert!(set_offloads(&fd, ALL_OFFLOADS) || set_offloads(&fd, TCP_OFFLOADS), "{}", Error::last_os_error());
    std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/router_solicitations"), "0").ok();
    ip(&format!("link set {name} addrgenmode none"));
    fd
}

fn set_option(fd: &impl AsRawFd, level: i32, option: i32, value: i32) {
    // SAFETY: the value is an int, as its length says.
    let done = unsafe {
        libc::setsockopt(fd.as_raw_fd(), level, option, (&raw const value).cast(), size_of::<i32>() as u32)
    };
    assert_eq!(done, 0, "option {option}: {}", Error::last_os_error());
}

/// A non-blocking UDP socket with all that a worker's has.
fn udp_socket(addr: &str) -> std::net::UdpSocket {
    let addr: SocketAddr = addr.parse().unwrap();
    let socket = std::net::UdpSocket::bind(addr).unwrap();
    socket.set_nonblocking(true).unwrap();
    set_option(&socket, libc::SOL_UDP, libc::UDP_GRO, 1);
    set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 8 << 20);
    if addr.is_ipv4() {
        set_option(&socket, libc::IPPROTO_IP, libc::IP_PKTINFO, 1);
        set_option(&socket, libc::IPPROTO_IP, libc::IP_RECVTOS, 1);
        set_option(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT);
    } else {
        set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1);
        set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1);
        set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT);
    }
    socket
}

fn sockets() -> (UdpSockets, Vec<SocketAddr>) {
    let (v4, v6) = (udp_socket("127.0.0.1:0"), udp_socket("[::1]:0"));
    let addrs = vec![v4.local_addr().unwrap(), v6.local_addr().unwrap()];
    (UdpSockets { v4: Some(v4.into()), v6: Some(v6.into()), port: addrs[0].port() }, addrs)
}

impl Backend {
    fn open(self, tun: OwnedFd, buffers: usize) -> Bench {
        let pool = Pool::new(buffers).unwrap();
        let waker = Waker::new().unwrap();
        let io: Box<dyn Io> = match self {
            Backend::Mmsg => Box::new(Mmsg::new(tun, pool.clone(), waker.clone()).unwrap()),
            Backend::Uring => Box::new(Uring::new(tun, pool.clone(), waker.clone()).unwrap()),
        };
        Bench { io, pool, waker, sockets: Vec::new() }
    }

    /// With a TUN device `t0` and sockets on loopback.
    fn bench(self) -> Bench {
        let mut bench = self.open(open_tun("t0"), 256);
        let (sockets, addrs) = sockets();
        bench.io.rebind(Some(sockets));
        bench.sockets = addrs;
        bench
    }
}

impl Bench {
    /// Waits at most a second.
    fn wait(&mut self) {
        self.io.wait(Some(Clock.now() + Duration::from_secs(1))).unwrap();
    }

    fn send(&mut self, bytes: &[u8], stride: usize, to: Endpoint, ecn: u8) {
        let mut buf = self.io.alloc().unwrap();
        buf[..bytes.len()].copy_from_slice(bytes);
        self.io.send_udp(SendTrain { buf, len: bytes.len(), stride, to, peer: Some(3), tos: ecn });
    }

    /// Receives datagrams, however they come in trains, until there are `count` or none comes within a second.
    fn datagrams(&mut self, count: usize) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        let deadline = Clock.now() + Duration::from_secs(5);
        while all.len() < count && Clock.now() < deadline {
            self.wait();
            while let Some(train) = self.io.recv_udp() {
                let bytes = &train.buf[train.start..train.start + train.len];
                all.extend(bytes.chunks(train.stride).map(<[u8]>::to_vec));
            }
            self.io.flush();
        }
        all
    }

    /// The next train, within some seconds.
    fn train(&mut self) -> UdpTrain {
        for _ in 0..5 {
            if let Some(train) = self.io.recv_udp() {
                return train;
            }
            self.wait();
        }
        panic!("no train came");
    }
}

fn to(addr: SocketAddr) -> Endpoint {
    Endpoint { addr, from: None }
}

/// `len` bytes that say where they are.
fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 7 + n / 251 + seed * 31) as u8).collect()
}

#[test]
fn a_ring_of_the_waker_ends_the_sleep_and_is_not_remembered() {
    in_namespace(|backend| {
        let mut bench = backend.bench();
        bench.wait_until_quiet();
        let waker = bench.waker.clone();
        let (started, until) = (Clock.now(), Clock.now() + Duration::from_secs(60));
        let ringer = std::thread::spawn(move || waker.wake());
        bench.io.wait(Some(until)).unwrap();
        ringer.join().unwrap();
        assert!(Clock.now() < started + Duration::from_secs(60));
        // Rung before the sleep: it ends at once. Several rings are one.
        bench.waker.wake();
        bench.waker.wake();
        bench.io.wait(Some(until)).unwrap();
        assert!(Clock.now() < until);
        let soon = Clock.now() + Duration::from_millis(5);
        while bench.io.wait(Some(soon)).unwrap() < soon {}
    });
}

#[test]
fn a_sleep_ends_at_its_time_and_an_earlier_time_polls() {
    in_namespace(|backend| {
        let mut bench = backend.bench();
        bench.wait_until_quiet();
        let before = bench.io.stats().waits;
        assert!(bench.io.wait(Some(Instant::START)).unwrap() > Instant::START);
        assert_eq!(bench.io.stats().waits, before);
        let rested = bench.io.stats().slept_nanos;
        bench.io.wait(Some(Instant::START)).unwrap();
        assert_eq!(bench.io.stats().slept_nanos, rested, "a poll is no sleep");
        assert!(bench.io.stats().awake_nanos > 0);
        let until = Clock.now() + Duration::from_millis(20);
        // The kernel may have something to say on a young device (IPv6 reports) that wakes it before.
        while bench.io.wait(Some(until)).unwrap() < until {
            while bench.io.recv_tun().is_some() {}
            assert!(bench.io.recv_udp().is_none());
        }
        let waits = bench.io.stats().waits - before;
        assert!((1..10).contains(&waits), "{waits} sleeps");
        assert!(bench.io.stats().slept_nanos > rested);
    });
}

#[test]
fn no_kernel_worker_thread_appears() {
    in_namespace(|backend| {
        let mut bench = backend.bench();
        let peer = std::net::UdpSocket::bind("10.9.0.1:0").unwrap();
        for round in 0..50 {
            peer.send_to(b"into the tunnel", "10.9.0.2:9").unwrap();
            bench.send(&pattern(14_520, round), 1452, to(bench.sockets[0]), 0);
            bench.io.flush();
            bench.wait();
            while bench.io.recv_tun().is_some() {}
            while bench.io.recv_udp().is_some() {}
        }
        let tasks = std::fs::read_dir("/proc/thread-self/../../task").unwrap();
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
        let names: Vec<String> = names.collect();
        assert!(!names.is_empty() && !names.iter().any(|name| name.starts_with("iou-")), "{names:?}");
    });
}

impl Bench {
    /// Takes what a fresh device may have queued, until a sleep finds nothing.
    pub(super) fn wait_until_quiet(&mut self) {
        loop {
            let until = Clock.now() + Duration::from_millis(30);
            let now = self.io.wait(Some(until)).unwrap();
            let came = std::iter::from_fn(|| self.io.recv_tun()).count();
            assert!(self.io.recv_udp().is_none());
            if came == 0 && now >= until {
                return;
            }
        }
    }
}

#[test]
fn io_uring_is_probed_without_side_effects() {
    let pool_before = std::fs::read_dir("/proc/self/fd").unwrap().count();
    match Uring::probe() {
        Ok(()) => {}
        Err(error) => {
            assert!(matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSYS | libc::ENOMEM)))
        }
    }
    // Other tests of the process open files meanwhile: the bound is generous, a leak of a hundred probes is not.
    (0..100).for_each(|_| drop(Uring::probe()));
    assert!(std::fs::read_dir("/proc/self/fd").unwrap().count() < pool_before + 100);
}

#[test]
fn all_buffers_return_when_the_backend_ends() {
    in_namespace(|backend| {
        let mut bench = backend.bench();
        for n in 0..8 {
            bench.send(&pattern(3000, n), 1000, to(bench.sockets[0]), 0);
        }
        bench.io.flush();
        bench.wait();
        let train = bench.train();
        let Bench { io, pool, .. } = bench;
        drop(io);
        assert_eq!(pool.free(), pool.count() - 1);
        drop(train);
        assert_eq!(pool.free(), pool.count());
    });
}
