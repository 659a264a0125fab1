//! Findings about the kernel, its CPUs and its memory.

use super::Finding;
use super::Level::{Fatal, Missing, Ok as Good, Unknown, Warn};
use super::parse::version;
use crate::crypto::lanes::Kernel;
use crate::gateway::rights::NetAdmin;
use crate::index::WorkerCount;
use crate::io::probe::{TunFeatures, tun_features};
use crate::io::slab::BUF_SIZE;
use crate::io::tun::QUEUE_BYTES;
use crate::io::udp::{SOCKET_BUFFER, UdpFeatures, socket_bytes};
use crate::sys::group::CpuQuota;
use crate::sys::gso;
use crate::tunnel::plural::counted;
use crate::tunnel::{BUFFERS, MIN_BUFFERS};
use rustix::process::{Resource, getrlimit};
use std::fs::OpenOptions;
use std::io::{ErrorKind, Result};

const TUN_DEVICE: &str = "/dev/net/tun";
/// The oldest kernel with UDP_GRO, without which a tunnel is slow.
const OLDEST: (u32, u32) = (5, 0);
/// The first kernel with TUN_F_USO and everything else that a tunnel asks for.
const BEST: (u32, u32) = (6, 2);
/// A limit on locked memory, in bytes, below which io_uring's rings of a few workers may not fit. This concerns kernels
/// before 5.12, which charge all of the rings' memory.
const LOCKED_MEMORY: u64 = 64 << 20;
/// Bytes of locked memory that one ring with its ring of buffers needs, on kernels that charge these again (from 6.14
/// on).
const LOCKED_MEMORY_OF_RING: u64 = 64 << 10;

pub(super) fn kernel() -> Finding {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let found = format!("Linux {}", release.trim());
    match version(&release) {
        None => Finding::new("kernel", Unknown, "its release cannot be read", "mount /proc"),
        Some(version) if version < OLDEST => {
            Finding::new("kernel", Warn, found, "Linux 5.0 or newer has UDP_GRO, 6.17 or newer every offload")
        }
        Some(version) if version < BEST => Finding::new(
            "kernel",
            Good,
            format!(
                "{found} (6.2 or newer also has UDP super-packets on TUN, 6.17 those of VXLAN and GENEVE)"
            ),
            "",
        ),
        Some(_) => Finding::ok("kernel", found),
    }
}

pub(super) fn rights(net_admin: NetAdmin) -> Finding {
    let is_root = rustix::process::geteuid().is_root();
    match net_admin {
        NetAdmin::Held => Finding::ok("rights", "CAP_NET_ADMIN"),
        NetAdmin::ForRoot if !is_root => Finding::new(
            "rights",
            Unknown,
            "no CAP_NET_ADMIN, which making interfaces needs",
            "run tunnels as root",
        ),
        NetAdmin::ForRoot | NetAdmin::Withheld => Finding::new(
            "rights",
            Fatal,
            if is_root {
                "root without CAP_NET_ADMIN, which making interfaces needs"
            } else {
                "CAP_NET_ADMIN is withheld, from root as well"
            },
            "give the container --cap-add NET_ADMIN, the service AmbientCapabilities= and CapabilityBoundingSet=CAP_NET_ADMIN",
        ),
    }
}

pub(super) fn io_uring(probed: &Result<()>) -> Finding {
    match probed {
        Ok(()) => Finding::ok("io_uring", "usable"),
        Err(error) => {
            let remedy = match error.kind() {
                ErrorKind::PermissionDenied => {
                    "sysctl kernel.io_uring_disabled=0; in a container, allow io_uring_setup, _enter and _register in its seccomp profile"
                }
                ErrorKind::OutOfMemory => "raise RLIMIT_MEMLOCK (ulimit -l, LimitMEMLOCK= in a unit)",
                _ => "Linux 6.0 or newer; plain system calls are used until then",
            };
            Finding::new("io_uring", Missing, format!("not usable: {error}"), remedy)
        }
    }
}

pub(super) fn tun() -> Vec<Finding> {
    if let Err(error) = OpenOptions::new().read(true).write(true).open(TUN_DEVICE) {
        let (level, remedy) = match error.kind() {
            ErrorKind::PermissionDenied => (Unknown, "look again as root"),
            _ => (Fatal, "modprobe tun; in a container, give it the device (--device /dev/net/tun)"),
        };
        return vec![Finding::new("TUN", level, format!("{TUN_DEVICE}: {error}"), remedy)];
    }
    match tun_features() {
        Ok(features) => described(&features),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            let found = format!("{TUN_DEVICE} can be opened; the rest was not looked at: {error}");
            vec![Finding::new("TUN", Unknown, found, "look again as root (CAP_NET_ADMIN, CAP_SYS_ADMIN)")]
        }
        Err(error) => {
            vec![Finding::new(
                "TUN",
                Fatal,
                error.to_string(),
                "make TUN devices possible here (CAP_NET_ADMIN)",
            )]
        }
    }
}

fn described(features: &TunFeatures) -> Vec<Finding> {
    let offloads = features.offloads;
    let has = |name: &str, there: bool| format!("{name} {}", if there { "yes" } else { "no" });
    let found = [
        has("checksums", offloads.csum),
        has("TSO", offloads.tso),
        has("USO", offloads.uso),
        has("UDP tunnels", offloads.tunnels),
    ]
    .join(", ");
    let (level, remedy) = match offloads {
        offloads if !offloads.tso => {
            (Missing, "without TSO each packet costs a system call: use another kernel")
        }
        offloads if !offloads.uso => (Warn, "Linux 6.2 or newer takes UDP super-packets (USO), too"),
        offloads if !offloads.tunnels => {
            (Good, "Linux 6.17 or newer takes super-packets of VXLAN and GENEVE, too")
        }
        _ => (Good, ""),
    };
    let steering = match &features.steering {
        Ok(()) => Finding::ok("BPF steering", "TUN queues can be steered"),
        Err(error) => Finding::new(
            "BPF steering",
            Missing,
            error.to_string(),
            "grant CAP_BPF and CAP_NET_ADMIN; the kernel's flow hash is used until then",
        ),
    };
    vec![Finding::new("TUN offloads", level, found, remedy), steering]
}

pub(super) fn udp() -> Finding {
    let UdpFeatures { gso, gro } = UdpFeatures::probe();
    let missing: Vec<&str> = [(gso, "UDP_SEGMENT (Linux 4.18)"), (gro, "UDP_GRO (Linux 5.0)")]
        .iter()
        .filter(|(has, _)| !has)
        .map(|(_, name)| *name)
        .collect();
    if gso && matches!(gso::delivers_whole(), Ok(false)) {
        return Finding::new(
            "UDP offloads",
            Missing,
            "this kernel damages trains of datagrams (UDP_SEGMENT) over loopback",
            "use another kernel (7.0 to 7.1.4 are known for it): each datagram costs a system call until then",
        );
    }
    match missing.is_empty() {
        true => Finding::ok("UDP offloads", "GSO yes, GRO yes"),
        false => Finding::new(
            "UDP offloads",
            Missing,
            format!("without {}", missing.join(" and ")),
            "use a newer kernel: each datagram costs a system call until then",
        ),
    }
}

pub(super) fn cpu() -> Finding {
    let names = |kernel| match kernel {
        Kernel::Avx512 => "AVX-512 (sixteen small packets a pass)",
        Kernel::Avx2 => "AVX2 (eight small packets a pass)",
    };
    let kernels: Vec<_> = Kernel::available().map(names).collect();
    match kernels.is_empty() {
        true => Finding::new(
            "SIMD",
            Warn,
            "neither AVX2 nor AVX-512",
            "small packets are sealed one by one; in a virtual machine, pass the host's CPU through",
        ),
        false => Finding::ok("SIMD", kernels.join(", ")),
    }
}

pub(super) fn cores(cores: usize, quota: Option<CpuQuota>, workers: WorkerCount) -> Finding {
    let found = match quota.filter(|quota| quota.is_below(cores)) {
        Some(quota) => format!("{cores}, with a CPU quota of {quota}: workers are not pinned"),
        None => cores.to_string(),
    };
    match (cores, workers) {
        (1, _) => Finding::new("cores", Warn, found, "with more cores there are more workers"),
        (_, WorkerCount::ONE) => {
            Finding::new("cores", Warn, found, "with a larger quota there are more workers")
        }
        _ => Finding::ok("cores", found),
    }
}

/// A finding about the memory that the workers of a tunnel take at most. Without options they take the usual.
pub(super) fn memory(workers: WorkerCount, limit: Option<u64>) -> Finding {
    let mebibytes = |bytes: usize| format!("{:.2} MiB", bytes as f64 / f64::from(1 << 20));
    let packets = BUFFERS * BUF_SIZE;
    let found = format!(
        "{} × at most ({} of packet buffers + {} of ring + {} of socket buffers + {} of TUN queue)",
        counted(workers.get(), "worker"),
        mebibytes(packets),
        mebibytes(LOCKED_MEMORY_OF_RING as usize),
        mebibytes(socket_bytes(SOCKET_BUFFER)),
        mebibytes(QUEUE_BYTES)
    );
    match limit {
        Some(limit) if (workers.get() * packets) as u64 > limit => Finding::new(
            "memory",
            Warn,
            format!("{found}; the memory group allows {}", mebibytes(limit as usize)),
            &format!(
                "fewer packet buffers or workers: --buffers N ({MIN_BUFFERS} or more), --workers N, or \
                 RINGTUN_BUFFERS and RINGTUN_WORKERS"
            ),
        ),
        _ => Finding::ok("memory", found),
    }
}

pub(super) fn locked_memory(workers: WorkerCount) -> Finding {
    let Some(limit) = getrlimit(Resource::Memlock).current else {
        return Finding::ok("locked memory", "unlimited");
    };
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let found = format!("{} KiB", limit >> 10);
    match locked_memory_needed(version(&release), workers) {
        0 => Finding::ok("locked memory", format!("{found} (this kernel charges rings to the memory group)")),
        needed if limit >= needed => Finding::ok("locked memory", found),
        _ => {
            let remedy = "ulimit -l unlimited (LimitMEMLOCK=infinity in a unit), or grant CAP_IPC_LOCK";
            Finding::new("locked memory", Warn, found, remedy)
        }
    }
}

/// Bytes of locked memory that the rings of all workers and of the slow path need.
fn locked_memory_needed(kernel: Option<(u32, u32)>, workers: WorkerCount) -> u64 {
    match kernel {
        Some(version) if version < (5, 12) => LOCKED_MEMORY,
        Some(version) if version >= (6, 14) => (workers.get() as u64 + 1) * LOCKED_MEMORY_OF_RING,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_of_all_workers_is_stated_and_a_group_that_has_less_is_told() {
        let two = WorkerCount::nearest(2);
        let finding = memory(two, None);
        assert_eq!(
            (finding.level, finding.found.as_str()),
            (
                Good,
                "2 workers × at most (12.75 MiB of packet buffers + 0.06 MiB of ring + 56.00 MiB of socket buffers + 64.00 MiB of TUN queue)"
            )
        );
        assert_eq!(memory(two, Some(26 << 20)).level, Good);
        let finding = memory(two, Some(25 << 20));
        assert!(finding.level == Warn && finding.found.contains("allows 25.00 MiB"), "{finding:?}");
        assert!(finding.remedy.is_some_and(|remedy| remedy.contains("--buffers N (16 or more)")));
    }

    #[test]
    fn a_quota_that_is_smaller_than_the_cores_is_told() {
        let quota = CpuQuota::new(150_000, 100_000);
        let told = |cores, quota, workers| {
            let finding = super::cores(cores, quota, WorkerCount::nearest(workers));
            (finding.level, finding.found)
        };
        assert_eq!(told(4, None, 4), (Good, "4".into()));
        assert_eq!(told(4, quota, 2), (Good, "4, with a CPU quota of 1.50: workers are not pinned".into()));
        assert_eq!(told(1, quota, 1), (Warn, "1".into()));
        assert_eq!(told(4, CpuQuota::new(1, 2), 1).0, Warn);
    }
}
