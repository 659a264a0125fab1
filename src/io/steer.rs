//! Steering, which decides the worker that a datagram or an inner packet reaches.
//!
//! Towards UDP sockets, a classic-BPF program on the SO_REUSEPORT group reads the receiver index out of the message. Towards
//! TUN queues, an extended-BPF program ([`program`]) looks the destination up in longest-prefix maps. Both are policy, not
//! correctness: any worker may seal for any peer, and a datagram for another worker is handed on.

mod program;

use crate::index::WorkerCount;
use crate::routing::Prefix;
use crate::sys::error::{explain, invalid};
use crate::sys::{bpf, ioctl, sockopt};
use crate::wire::message::DATA_OVERHEAD;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Attaches the classic-BPF program that picks the socket by receiver index (SO_ATTACH_REUSEPORT_CBPF) to the group of
/// `socket`. Sockets are numbered in the order in which they were bound, so call it after the last bind.
///
/// # Errors
///
/// Where the kernel refuses the program. Then its hash of addresses and ports stays.
pub fn attach_udp(socket: BorrowedFd<'_>, workers: WorkerCount) -> io::Result<()> {
    sockopt::attach_reuseport_filter(socket, &mut udp_program(workers.get() as u32))
}

/// Attaches a program that picks none but the first sockets of the group, as many as there are workers. What names no receiver goes
/// to any of these.
///
/// # Errors
///
/// Where the kernel refuses the program.
pub fn attach_udp_to_some(socket: BorrowedFd<'_>, workers: WorkerCount) -> io::Result<()> {
    let workers = workers.get() as u32;
    let mut program = udp_program(workers).to_vec();
    // In place of the last instruction, which leaves the choice to the hash.
    program.pop();
    let random = insn(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, RANDOM);
    program.extend([random, modulo(workers), RETURN_A]);
    sockopt::attach_reuseport_filter(socket, &mut program)
}

/// The instructions of the classic-BPF program for so many workers, and of the extended-BPF program over two maps, each as the kernel
/// reads them: for tests that run them elsewhere.
#[cfg(feature = "internals")]
pub fn programs(workers: WorkerCount, v4: BorrowedFd<'_>, v6: BorrowedFd<'_>) -> [Vec<[u8; 8]>; 2] {
    let classic = udp_program(workers.get() as u32).into_iter().map(|insn| {
        let ([c0, c1], [k0, k1, k2, k3]) = (insn.code.to_ne_bytes(), insn.k.to_ne_bytes());
        [c0, c1, insn.jt, insn.jf, k0, k1, k2, k3]
    });
    [classic.collect(), program::assemble(v4, v6).into_iter().map(bpf::Insn::to_bytes).collect()]
}

/// The answer of the program that names no member of the group, upon which the kernel uses its hash of addresses and ports
/// (`reuseport_select_sock`).
pub const BY_HASH: u32 = u32::MAX;

/// Message types 2 to 4, and where the low byte of their receiver index stands (little-endian, so it comes first).
const RESPONSE: u32 = 2;
const COOKIE_REPLY: u32 = 3;
const DATA: u32 = 4;
const INDEX_OFFSET: u32 = 4;
const RESPONSE_INDEX_OFFSET: u32 = 8;

/// The program. Offset 0 is the UDP payload, and in a GRO train that of the first datagram. A load beyond the end would
/// return 0, the first worker, so the length is checked first. No message with an index is shorter than an empty data
/// message.
fn udp_program(workers: u32) -> [libc::sock_filter; 12] {
    let length = insn(libc::BPF_LD | libc::BPF_W | libc::BPF_LEN, 0, 0, 0);
    let byte = |offset| insn(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, offset);
    let if_equal = |k, then, or| insn(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, then, or, k);
    let if_at_least = |k, then, or| insn(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, then, or, k);
    let jump = |k| insn(libc::BPF_JMP | libc::BPF_JA, 0, 0, k);
    [
        length,
        if_at_least(DATA_OVERHEAD as u32, 0, 9),
        byte(0),
        if_equal(DATA, 2, 0),
        if_equal(COOKIE_REPLY, 1, 0),
        if_equal(RESPONSE, 2, 5),
        byte(INDEX_OFFSET),
        jump(1),
        byte(RESPONSE_INDEX_OFFSET),
        modulo(workers),
        RETURN_A,
        insn(libc::BPF_RET | libc::BPF_K, 0, 0, BY_HASH),
    ]
}

/// The operand of a return instruction that returns the accumulator (`linux/bpf_common.h`).
const BPF_A: u32 = 0x10;
/// Returns the accumulator.
const RETURN_A: libc::sock_filter = insn(libc::BPF_RET | BPF_A, 0, 0, 0);
/// The offset at which a load yields a random number (SKF_AD_OFF + SKF_AD_RANDOM of `linux/filter.h`).
const RANDOM: u32 = 0xffff_f000 + 56;

const fn insn(code: u32, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k }
}

/// The accumulator modulo the number of workers, as [`ReceiverIndex::owner`](crate::index::ReceiverIndex::owner) has it.
const fn modulo(workers: u32) -> libc::sock_filter {
    insn(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, 0, 0, workers)
}

/// Most prefixes of one family's map. Each takes up to two trie nodes of about 64 bytes: at worst 32 MiB a family, allocated
/// as they come (kernels before 5.11 charge it to RLIMIT_MEMLOCK at once).
pub const MAX_PREFIXES: u32 = 1 << 18;

/// The destination of packets for a prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// They go to one worker's queue.
    Worker(u8),
    /// They go by the flow's hash over all queues.
    Spread,
}

/// The key of an IPv4 map: `struct bpf_lpm_trie_key` with an IPv4 address.
#[repr(C)]
#[derive(Clone, Copy)]
struct Key4 {
    len: u32,
    address: [u8; 4],
}

/// The key of an IPv6 map: `struct bpf_lpm_trie_key` with an IPv6 address.
#[repr(C)]
#[derive(Clone, Copy)]
struct Key6 {
    len: u32,
    address: [u8; 16],
}

/// The eBPF program on the TUN device (TUNSETSTEERINGEBPF), with its longest-prefix maps from destination to target.
///
/// A packet whose destination no prefix contains goes by the flow's hash. The kernel takes a target modulo the number of queues. Dropping
/// this gives the choice back to the kernel. It holds a duplicate of the queue, so the device lives until this is dropped, too.
#[derive(Debug)]
pub struct TunSteering {
    v4: OwnedFd,
    v6: OwnedFd,
    queue: OwnedFd,
    workers: WorkerCount,
    /// Whether another process goes on with the program.
    is_left: bool,
}

impl TunSteering {
    /// Creates the maps and the program, and attaches it to `queue`'s device for all its queues, of which there must be one
    /// for each worker.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses any of it. Then there is no steering, and the kernel's flow hash stays.
    pub fn attach(queue: BorrowedFd<'_>, workers: WorkerCount) -> io::Result<TunSteering> {
        let map_error = |error| explain(error, "cannot create a BPF map (CAP_BPF, RLIMIT_MEMLOCK)");
        let v4 = bpf::create_lpm_map::<Key4, u32>(MAX_PREFIXES).map_err(map_error)?;
        let v6 = bpf::create_lpm_map::<Key6, u32>(MAX_PREFIXES).map_err(map_error)?;
        let program = bpf::load_socket_filter(&program::assemble(v4.as_fd(), v6.as_fd()), c"MIT")
            .map_err(|error| explain(error, "cannot load the TUN steering program (CAP_BPF)"))?;
        let queue = queue.try_clone_to_owned()?;
        // The device keeps a reference to the program, and the program to its maps.
        ioctl::set_steering(queue.as_fd(), Some(program.as_fd()))
            .map_err(|error| explain(error, "cannot attach the TUN steering program (Linux 4.16)"))?;
        Ok(TunSteering { v4, v6, queue, workers, is_left: false })
    }

    /// Goes on with the program that another process attached to `queue`'s device, by its maps.
    pub fn inherit(maps: [OwnedFd; 2], queue: OwnedFd, workers: WorkerCount) -> TunSteering {
        let [v4, v6] = maps;
        TunSteering { v4, v6, queue, workers, is_left: false }
    }

    /// The maps, for another process to go on with.
    pub fn maps(&self) -> [BorrowedFd<'_>; 2] {
        [self.v4.as_fd(), self.v6.as_fd()]
    }

    /// Leaves the program to another process.
    pub fn leave(mut self) {
        self.is_left = true;
    }

    /// Adds or changes one prefix. The next packet follows it.
    ///
    /// # Errors
    ///
    /// ENOSPC where the family has [`MAX_PREFIXES`] already, another error where there is no such worker.
    pub fn set(&mut self, prefix: Prefix, target: Target) -> io::Result<()> {
        let value = match target {
            Target::Worker(worker) if usize::from(worker) >= self.workers.get() => {
                return Err(invalid(format!("no worker {worker} among {}", self.workers.get())));
            }
            Target::Worker(worker) => u32::from(worker),
            Target::Spread => program::SPREAD,
        };
        let len = u32::from(prefix.len());
        match prefix.addr() {
            IpAddr::V4(ip) => bpf::update(self.v4.as_fd(), &Key4 { len, address: ip.octets() }, &value),
            IpAddr::V6(ip) => bpf::update(self.v6.as_fd(), &Key6 { len, address: ip.octets() }, &value),
        }
    }

    /// Removes one prefix, which need not be there.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses it for another reason than that it is not there.
    pub fn remove(&mut self, prefix: Prefix) -> io::Result<()> {
        let len = u32::from(prefix.len());
        let removed = match prefix.addr() {
            IpAddr::V4(ip) => bpf::delete(self.v4.as_fd(), &Key4 { len, address: ip.octets() }),
            IpAddr::V6(ip) => bpf::delete(self.v6.as_fd(), &Key6 { len, address: ip.octets() }),
        };
        match removed {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

impl Drop for TunSteering {
    fn drop(&mut self) {
        if self.is_left {
            return;
        }
        // This fails only where the device is gone, and the program with it.
        let _ = ioctl::set_steering(self.queue.as_fd(), None);
    }
}

#[cfg(test)]
mod tests;
