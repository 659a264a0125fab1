//! The multi-queue TUN device (Linux `drivers/net/tun.c`).
//!
//! A queue is one open `/dev/net/tun`. One read yields one packet or super-packet behind a virtio-net header,
//! and one write takes one. Closing a queue moves the last one into its slot, so the number of queues never changes.

use crate::index::WorkerCount;
use crate::offload::coalesce::CoalesceOptions;
use crate::sys::error::{errno, explain, invalid};
use crate::sys::link::TunState;
use crate::sys::{ioctl, link};
use crate::wire::vnet::VNET_HDR_LEN;
use serde::{Deserialize, Serialize};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

const DEVICE: &str = "/dev/net/tun";

/// Most packets or super-packets that wait in one queue; more are dropped silently (TUN's own default is 500). It is as
/// many as wireguard in the kernel lets wait for a peer (MAX_QUEUED_PACKETS). At worst 1024 × 64 KiB = 64 MiB a queue, of
/// the kernel's memory.
pub const TX_QUEUE_LEN: u32 = 1024;
/// Bytes of the kernel's memory that wait in one queue at worst.
#[cfg(feature = "cli")]
pub const QUEUE_BYTES: usize = TX_QUEUE_LEN as usize * (64 << 10);

/// Flags of every queue. IFF_MULTI_QUEUE is set also where there is one queue. Then there is one form of device to test, and
/// the kernel compares the flag when a queue is added.
const QUEUE_FLAGS: libc::c_int = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;

/// Checksum offload, on which the segmentation offloads build.
const CSUM: libc::c_uint = libc::TUN_F_CSUM;
/// Offload of TCP super-packets.
const TSO: libc::c_uint = CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
/// Offload of UDP super-packets. The kernel wants both families or none.
const USO: libc::c_uint = TSO | libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// Offload of super-packets in UDP tunnels, VXLAN and GENEVE, with and without an outer checksum: TUN_F_UDP_TUNNEL_GSO and
/// TUN_F_UDP_TUNNEL_GSO_CSUM (Linux 6.17).
const TUNNELS: libc::c_uint = USO | 0x80 | 0x100;

/// The offloads of TUN that the kernel accepted, probed in steps at creation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TunOffloads {
    /// Whether it accepted checksum offload.
    pub csum: bool,
    /// Whether it accepted TSO4 and TSO6.
    pub tso: bool,
    /// Whether it accepted USO4 and USO6 (Linux 6.2).
    pub uso: bool,
    /// Whether it accepted super-packets in UDP tunnels (Linux 6.17).
    pub tunnels: bool,
}

impl TunOffloads {
    /// The kinds of super-packets that may be coalesced towards the device.
    pub fn coalesce(self) -> CoalesceOptions {
        CoalesceOptions { tcp: self.tso, udp: self.uso, tunnels: self.tunnels }
    }
}

/// A device that was created or taken over.
#[derive(Debug)]
pub struct Tun {
    /// The name that the kernel gave it.
    pub name: String,
    /// Its interface index at creation, or 0 where a device that was handed in is in another network namespace.
    #[cfg_attr(not(feature = "internals"), expect(dead_code))] // tests look at it
    pub index: u32,
    /// One non-blocking file for each queue. Their number is fixed for the device's life.
    pub queues: Vec<OwnedFd>,
    /// The offloads that the kernel accepted.
    pub offloads: TunOffloads,
}

/// The properties of a device to create.
#[derive(Clone, Debug)]
pub struct TunConfig {
    /// Interface name, 1 to 15 bytes.
    pub name: String,
    /// Number of queues: one for each worker.
    pub queues: WorkerCount,
    /// The MTU at first, in bytes.
    pub mtu: u32,
    /// Whether offloads are asked for.
    pub offloads: bool,
}

impl Tun {
    /// Creates the device, down and without addresses. It sets MTU, transmit queue length, NOARP without MULTICAST, and no
    /// link-local address.
    ///
    /// A device that was prepared for this process is taken over instead, and stays when its queues are closed: one of this name
    /// that is persistent, belongs to the process's user, and has no queue. MTU, flags and addresses are left to whoever made it.
    ///
    /// gso_max_size stays at its default. Below it, the kernel cuts every *forwarded* super-packet that is longer into
    /// single packets before the device sees it (`gso_features_check`), and a gateway loses nine tenths of its throughput.
    /// GRO builds 64 KiB ones whatever the device says, and only local TCP honours the limit.
    ///
    /// # Errors
    ///
    /// Where the device cannot be created. The error names the remedy (no /dev/net/tun, no CAP_NET_ADMIN, name in use). EPERM where
    /// another process attached itself to it meanwhile.
    pub fn create(config: &TunConfig) -> io::Result<Tun> {
        check_name(&config.name)?;
        let mut queues = Vec::with_capacity(config.queues.get());
        let (first, name, is_prepared) = first_queue(&config.name)?;
        ioctl::set_vnet_header_len(first.as_fd(), VNET_HDR_LEN)?;
        queues.push(first);
        while queues.len() < config.queues.get() {
            let queue = open_queue()?;
            attach(queue.as_fd(), &name, QUEUE_FLAGS)?;
            queues.push(queue);
        }
        check_alone(&name, queues.len())?;
        let offloads = set_offloads(queues[0].as_fd(), config.offloads)?;
        let index = link::index(&name)?;
        if is_prepared {
            return Ok(Tun { name, index, queues, offloads });
        }
        link::configure(index, config.mtu, TX_QUEUE_LEN)
            .map_err(|error| explain(error, format!("{name}: MTU {}", config.mtu)))?;
        // This is refused where IPv6 is off or the MTU is below IPv6's least. Then no such address comes either.
        let _ = link::disable_link_local(index);
        Ok(Tun { name, index, queues, offloads })
    }

    /// Adopts an open TUN file (WG_TUN_FD), which is the only queue. MTU, flags and addresses are left to whoever made it.
    ///
    /// # Errors
    ///
    /// Where the file is attached to no TUN device, or was opened without one of IFF_TUN, IFF_NO_PI and IFF_VNET_HDR.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Tun> {
        let what = "the inherited file descriptor";
        let attachment = ioctl::interface(fd.as_fd())
            .map_err(|error| explain(error, format!("{what} is not an attached TUN device")))?;
        let has = |flag: libc::c_int| i32::from(attachment.flags) & flag != 0;
        if !has(libc::IFF_TUN) || !has(libc::IFF_NO_PI) || !has(libc::IFF_VNET_HDR) {
            return Err(invalid(format!(
                "{what} ({}) must be opened with IFF_TUN, IFF_NO_PI and IFF_VNET_HDR",
                attachment.name
            )));
        }
        ioctl::set_nonblocking(fd.as_fd())?;
        ioctl::set_vnet_header_len(fd.as_fd(), VNET_HDR_LEN)?;
        let offloads = set_offloads(fd.as_fd(), true)?;
        let index = link::index(&attachment.name).unwrap_or(0);
        Ok(Tun { name: attachment.name, index, queues: vec![fd], offloads })
    }
}

/// One more queue of the device called `name`, which has queues of another process, too. It is the last one.
///
/// # Errors
///
/// Where the device is not in this thread's network namespace, or the kernel refuses it.
pub fn add_queue(name: &str) -> io::Result<OwnedFd> {
    let queue = open_queue()?;
    attach(queue.as_fd(), name, QUEUE_FLAGS)?;
    // Where there was none of this name, there is one now, until the queue is closed.
    match link::tun_state(name)?.queues {
        0 | 1 => Err(explain(io::Error::from_raw_os_error(libc::ENODEV), name)),
        _ => Ok(queue),
    }
}

/// Has the device use this queue no more, whoever has it open. The last one takes its place. What waits in it is dropped.
///
/// # Errors
///
/// What the kernel says.
pub fn disable(queue: BorrowedFd<'_>) -> io::Result<()> {
    ioctl::disable_queue(queue)
}

/// Checks that the kernel allows `name` as an interface's name (`dev_valid_name`), and that it has no `%`, which would make
/// it a template.
pub fn check_name(name: &str) -> io::Result<()> {
    let forbidden = |c: char| matches!(c, '/' | ':' | '%' | '\0') || c.is_ascii_whitespace() || c == '\x0b';
    let problem = match name {
        "" => "is empty",
        "." | ".." => "is reserved",
        _ if name.len() >= libc::IFNAMSIZ => "is longer than 15 bytes",
        _ if name.contains(forbidden) => "holds a slash, colon, percent sign or space",
        _ => return Ok(()),
    };
    Err(invalid(format!("interface name {name:?} {problem}: choose another name")))
}

fn open_queue() -> io::Result<OwnedFd> {
    let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(DEVICE);
    file.map(OwnedFd::from).map_err(|error| {
        let remedy = match errno(&error) {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
                "is missing: load the tun module: modprobe tun (in a container, pass the device in)"
            }
            Some(libc::EACCES | libc::EPERM) => "cannot be opened: needs root or CAP_NET_ADMIN",
            _ => "cannot be opened",
        };
        explain(error, format!("{DEVICE} {remedy}"))
    })
}

/// Opens the first queue, of a new device or of one that was prepared. Returns the device's name, and whether it was prepared.
///
/// A new device belongs to this process's user from the beginning. The kernel lets anybody who may open /dev/net/tun add a queue to
/// a multi-queue device that belongs to nobody (`tun_not_capable`), and so read what others send and speak in the host's name.
fn first_queue(name: &str) -> io::Result<(OwnedFd, String, bool)> {
    let queue = open_queue()?;
    let user = rustix::process::geteuid().as_raw();
    // Without IFF_TUN_EXCL the queue would join a device of this name that another process holds.
    let error = match attach(queue.as_fd(), name, QUEUE_FLAGS | libc::IFF_TUN_EXCL) {
        Ok(name) => {
            ioctl::set_owner(queue.as_fd(), user)?;
            return Ok((queue, name, false));
        }
        Err(error) => error,
    };
    let is_ours = |state: &TunState| state.is_persistent && state.owner == Some(user) && state.queues == 0;
    let Some(state) = link::tun_state(name).ok().filter(is_ours) else { return Err(error) };
    if !state.is_multi_queue {
        let remedy = "make it anew: ip tuntap add NAME mode tun multi_queue user USER";
        return Err(invalid(format!("{name} was prepared for this user, but without multi_queue: {remedy}")));
    }
    let name = attach(queue.as_fd(), name, QUEUE_FLAGS)?;
    Ok((queue, name, true))
}

/// Checks that nobody else has a queue: somebody may have opened one before the device belonged to us.
fn check_alone(name: &str, queues: usize) -> io::Result<()> {
    // Where netlink is refused, there is nothing to be found out.
    let strangers = link::tun_state(name).map_or(0, |state| state.queues.saturating_sub(queues));
    if strangers == 0 {
        return Ok(());
    }
    let message =
        format!("another process attached itself to {name} while it was made: see who has /dev/net/tun open");
    Err(io::Error::new(io::ErrorKind::PermissionDenied, message))
}

/// Makes the file a queue of the device and returns the device's name.
fn attach(queue: BorrowedFd<'_>, name: &str, flags: libc::c_int) -> io::Result<String> {
    // The flags are TUN's 16 bits; IFF_TUN_EXCL is the topmost.
    let attachment = ioctl::set_interface(queue, name, flags as u16).map_err(|error| {
        let remedy = match errno(&error) {
            Some(libc::EPERM) => format!("cannot create {name}: needs root or CAP_NET_ADMIN"),
            Some(libc::EBUSY) if link::is_tunnel(name) => format!(
                "an interface named {name} exists already: choose another name, or remove that tunnel: ip link delete dev {name}"
            ),
            Some(libc::EBUSY) => {
                format!("an interface named {name} exists already, and is no tunnel: choose another name")
            }
            Some(libc::EINVAL) => format!(
                "cannot create {name}: the kernel's tun driver lacks multi-queue (Linux 3.8) or the name is refused"
            ),
            _ => format!("cannot create {name}"),
        };
        explain(error, remedy)
    })?;
    Ok(attachment.name)
}

/// Asks for all offloads, and for fewer until the kernel agrees: it answers EINVAL to a bit that it does not know. Offloads
/// are the device's, not the queue's (`set_offload` works on `tun_struct`), so one queue speaks for all.
fn set_offloads(queue: BorrowedFd<'_>, wanted: bool) -> io::Result<TunOffloads> {
    let steps: &[libc::c_uint] = if wanted { &[TUNNELS, USO, TSO, CSUM] } else { &[] };
    for &bits in steps {
        if ioctl::set_offload(queue, bits).is_ok() {
            let has = |wanted| bits & wanted == wanted;
            return Ok(TunOffloads { csum: true, tso: has(TSO), uso: has(USO), tunnels: has(TUNNELS) });
        }
    }
    ioctl::set_offload(queue, 0)?;
    Ok(TunOffloads::default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netns::{eventually, in_netns, ip};
    use std::fs::File;
    use std::os::fd::AsRawFd;

    fn config(name: &str, queues: usize) -> TunConfig {
        TunConfig { name: name.into(), queues: WorkerCount::nearest(queues), mtu: 1420, offloads: true }
    }

    /// The words after `key` in `text`.
    fn word_after<'a>(text: &'a str, key: &str) -> &'a str {
        let mut words = text.split_whitespace().skip_while(|word| *word != key);
        words.nth(1).unwrap_or_else(|| panic!("no {key} in {text}"))
    }

    #[test]
    fn a_created_device_looks_like_a_wireguard_interface() {
        in_netns(|| {
            let tun = Tun::create(&config("rt-tun0", 3)).unwrap();
            assert_eq!((tun.name.as_str(), tun.queues.len()), ("rt-tun0", 3));
            assert_eq!(tun.index, link::index("rt-tun0").unwrap());
            let shown = ip("-d link show rt-tun0");
            assert!(shown.contains("<POINTOPOINT,NOARP>"), "down, no MULTICAST: {shown}");
            assert_eq!(word_after(&shown, "mtu"), "1420");
            assert_eq!(word_after(&shown, "qlen"), "1024");
            assert_eq!(word_after(&shown, "addrgenmode"), "none");
            assert_eq!(word_after(&shown, "numqueues"), "3");
            assert_eq!(
                word_after(&shown, "gso_max_size"),
                "65536",
                "a gateway forwards 64 KiB super-packets"
            );
            ip("link set rt-tun0 up");
            assert!(!ip("addr show rt-tun0").contains("fe80"));
        });
    }

    #[test]
    fn queues_are_non_blocking_and_closed_on_exec() {
        in_netns(|| {
            let tun = Tun::create(&config("rt-tun0", 2)).unwrap();
            for queue in &tun.queues {
                // SAFETY: F_GETFL and F_GETFD take no argument.
                let (status, flags) = unsafe {
                    (
                        libc::fcntl(queue.as_raw_fd(), libc::F_GETFL),
                        libc::fcntl(queue.as_raw_fd(), libc::F_GETFD),
                    )
                };
                assert_ne!(status & libc::O_NONBLOCK, 0);
                assert_ne!(flags & libc::FD_CLOEXEC, 0);
            }
        });
    }

    #[test]
    fn queues_come_and_go_at_the_end_while_the_device_is_used() {
        in_netns(|| {
            let tun = Tun::create(&config("rt-tun0", 2)).unwrap();
            ip("link set rt-tun0 up");
            let more = add_queue("rt-tun0").unwrap();
            let count = || word_after(&ip("-d link show rt-tun0"), "numqueues").parse::<usize>().unwrap();
            assert_eq!(count(), 3);
            let held = more.try_clone().unwrap();
            for (queue, left) in [(&more, 2), (&tun.queues[1], 1)] {
                disable(queue.as_fd()).unwrap();
                assert_eq!(count(), left, "although others have it open");
            }
            drop(held);
            assert!(disable(File::open("/dev/null").unwrap().as_fd()).is_err());
            assert_eq!(errno(&add_queue("rt-none0").unwrap_err()), Some(libc::ENODEV));
            assert!(link::index("rt-none0").is_err());
        });
    }

    #[test]
    fn offloads_are_asked_for_only_when_wanted() {
        in_netns(|| {
            let all = Tun::create(&config("rt-tun0", 1)).unwrap().offloads;
            assert!(all.csum && all.tso, "{all:?}");
            assert_eq!(all.coalesce(), CoalesceOptions { tcp: true, udp: all.uso, tunnels: all.tunnels });
            let none = Tun::create(&TunConfig { offloads: false, ..config("rt-tun1", 1) }).unwrap();
            assert_eq!(none.offloads, TunOffloads::default());
        });
    }

    #[test]
    fn a_name_in_use_is_refused_even_if_it_is_a_tun_device() {
        in_netns(|| {
            ip("link add rt-veth0 type veth peer name rt-veth1");
            let _held = Tun::create(&config("rt-tun0", 2)).unwrap();
            for (name, advises) in [("rt-veth0", false), ("rt-tun0", true), ("lo", false)] {
                let error = Tun::create(&config(name, 1)).unwrap_err();
                assert_eq!(errno(&error), Some(libc::EBUSY));
                assert_eq!(error.to_string().contains("ip link del"), advises, "{error}");
            }
        });
    }

    #[test]
    fn the_device_is_gone_with_its_last_queue() {
        in_netns(|| {
            let mut tun = Tun::create(&config("rt-tun0", 2)).unwrap();
            tun.queues.pop();
            assert!(link::index("rt-tun0").is_ok());
            drop(tun);
            eventually(|| link::index("rt-tun0").err());
        });
    }

    #[test]
    fn an_mtu_beyond_the_kernels_bounds_is_named() {
        in_netns(|| {
            let create = |mtu| Tun::create(&TunConfig { mtu, ..config(&format!("rt-m{mtu}"), 1) });
            for mtu in [67, 65_536] {
                let error = create(mtu).unwrap_err();
                assert!(error.to_string().contains(&format!("rt-m{mtu}: MTU {mtu}")), "{error}");
            }
            for mtu in [68, 1279, 65_535] {
                create(mtu).unwrap();
            }
        });
    }

    /// Makes this thread, and no other, one of user 65534, who has no rights. Root may.
    fn become_nobody() {
        // SAFETY: the raw system call changes this thread alone (libc's function would change all).
        assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, 65_534, 65_534, 65_534) }, 0);
    }

    #[test]
    fn nobody_else_may_add_a_queue() {
        in_netns(|| {
            let made = Tun::create(&config("rt-tun0", 2)).unwrap();
            let strangers = open_queue().unwrap();
            become_nobody();
            let refused = ioctl::set_interface(strangers.as_fd(), "rt-tun0", QUEUE_FLAGS as u16).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
            assert_eq!(link::tun_state("rt-tun0").unwrap().queues, made.queues.len());
        });
    }

    #[test]
    fn a_queue_of_a_stranger_is_noticed() {
        in_netns(|| {
            let _made = Tun::create(&config("rt-tun0", 2)).unwrap();
            let strangers = open_queue().unwrap();
            attach(strangers.as_fd(), "rt-tun0", QUEUE_FLAGS).unwrap();
            let error = check_alone("rt-tun0", 2).unwrap_err();
            assert!(error.to_string().contains("another process attached itself to rt-tun0"), "{error}");
        });
    }

    #[test]
    fn a_device_that_was_prepared_for_this_user_is_taken_over_and_stays() {
        in_netns(|| {
            ip("tuntap add rt-tun0 mode tun multi_queue user 0");
            ip("link set rt-tun0 mtu 1300 up");
            ip("tuntap add rt-tun1 mode tun multi_queue user 65534");
            ip("tuntap add rt-tun2 mode tun user 0");
            for _ in 0..2 {
                let tun = Tun::create(&config("rt-tun0", 3)).unwrap();
                assert_eq!((tun.name.as_str(), tun.queues.len(), tun.offloads.tso), ("rt-tun0", 3, true));
                assert_eq!(word_after(&ip("link show rt-tun0"), "mtu"), "1300");
                let second = Tun::create(&config("rt-tun0", 1)).unwrap_err();
                assert_eq!(errno(&second), Some(libc::EBUSY), "it has queues");
                drop(tun);
                eventually(|| (link::tun_state("rt-tun0").unwrap().queues == 0).then_some(()));
            }
            let others = Tun::create(&config("rt-tun1", 1)).unwrap_err();
            assert_eq!(errno(&others), Some(libc::EBUSY));
            let single = Tun::create(&config("rt-tun2", 1)).unwrap_err();
            assert!(single.to_string().contains("without multi_queue"), "{single}");
        });
    }

    #[test]
    fn without_the_right_to_create_the_error_says_who_may() {
        in_netns(|| {
            become_nobody();
            let error = Tun::create(&config("rt-tun0", 1)).unwrap_err();
            assert!(error.to_string().contains("needs root or CAP_NET_ADMIN"), "{error}");
        });
    }

    #[test]
    fn names_are_checked_as_the_kernel_checks_them() {
        for good in ["wg0", "a", "fifteen-bytes-x", "wg-ü"] {
            check_name(good).unwrap();
        }
        for bad in ["", ".", "..", "sixteen-bytes-xy", "a/b", "a:b", "a b", "a\tb", "wg%d", "a\0"] {
            assert_eq!(check_name(bad).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{bad:?}");
        }
        assert_eq!(Tun::create(&config("wg%d", 1)).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn an_inherited_device_is_adopted_with_its_name_and_settings() {
        in_netns(|| {
            let mut made = Tun::create(&TunConfig { offloads: false, ..config("rt-tun0", 1) }).unwrap();
            let adopted = Tun::from_fd(made.queues.remove(0)).unwrap();
            assert_eq!((adopted.name.as_str(), adopted.index), ("rt-tun0", made.index));
            assert_eq!(adopted.queues.len(), 1);
            assert!(adopted.offloads.tso);
        });
    }

    #[test]
    fn an_inherited_file_without_vnet_header_or_that_is_no_tun_is_refused() {
        in_netns(|| {
            let bare = open_queue().unwrap();
            let error = Tun::from_fd(bare).unwrap_err();
            assert!(error.to_string().contains("not an attached TUN device"), "{error}");
            let plain = open_queue().unwrap();
            attach(plain.as_fd(), "rt-tun0", libc::IFF_TUN | libc::IFF_NO_PI).unwrap();
            let error = Tun::from_fd(plain).unwrap_err();
            assert!(error.to_string().contains("(rt-tun0) must be opened with"), "{error}");
            let error = Tun::from_fd(std::fs::File::open("/dev/null").unwrap().into()).unwrap_err();
            assert!(error.to_string().contains("not an attached TUN device"), "{error}");
        });
    }
}
