//! The system calls that a running tunnel makes, and those that only an intruder would.

use crate::sys::{refusals, sealed};
use rustix::fs::MemfdFlags;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter_all_threads,
};
use std::collections::BTreeMap;
use std::io::{Error, ErrorKind, Result};

/// What workers, slow path, helpers, the resolver and the C library call. Others are refused with EPERM. Rings are made before, as
/// one that was made later could do what the filter forbids.
#[rustfmt::skip]
const CALLED: &[libc::c_long] = &[
    // memory
    libc::SYS_mmap, libc::SYS_munmap, libc::SYS_mremap, libc::SYS_mprotect, libc::SYS_madvise, libc::SYS_brk,
    // threads, time, signals
    libc::SYS_clone, libc::SYS_clone3, libc::SYS_set_robust_list, libc::SYS_rseq, libc::SYS_set_tid_address,
    libc::SYS_futex, libc::SYS_sched_yield, libc::SYS_sched_getaffinity, libc::SYS_sched_setaffinity,
    libc::SYS_gettid, libc::SYS_getpid, libc::SYS_getppid, libc::SYS_tgkill, libc::SYS_exit, libc::SYS_exit_group,
    libc::SYS_prctl, libc::SYS_getcpu, libc::SYS_membarrier, libc::SYS_restart_syscall,
    libc::SYS_clock_gettime, libc::SYS_clock_getres, libc::SYS_clock_nanosleep, libc::SYS_nanosleep, libc::SYS_gettimeofday,
    libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn, libc::SYS_sigaltstack,
    // who and where this is
    libc::SYS_getuid, libc::SYS_geteuid, libc::SYS_getgid, libc::SYS_getegid, libc::SYS_uname, libc::SYS_sysinfo,
    libc::SYS_getrandom, libc::SYS_prlimit64, libc::SYS_getrusage, libc::SYS_capget, libc::SYS_getcwd,
    // files
    libc::SYS_openat, libc::SYS_close, libc::SYS_read, libc::SYS_readv, libc::SYS_pread64, libc::SYS_preadv, libc::SYS_write,
    libc::SYS_writev, libc::SYS_lseek, libc::SYS_fstat, libc::SYS_newfstatat, libc::SYS_statx, libc::SYS_statfs,
    libc::SYS_fstatfs, libc::SYS_faccessat, libc::SYS_faccessat2, libc::SYS_readlinkat, libc::SYS_getdents64,
    libc::SYS_unlinkat, libc::SYS_fcntl, libc::SYS_dup, libc::SYS_dup3, libc::SYS_pipe2, libc::SYS_ioctl, libc::SYS_flock,
    libc::SYS_chdir, libc::SYS_setsid, libc::SYS_renameat, libc::SYS_renameat2, libc::SYS_fsync,
    libc::SYS_inotify_init1, libc::SYS_inotify_add_watch, libc::SYS_inotify_rm_watch,
    // sockets, and waiting for them
    libc::SYS_socket, libc::SYS_socketpair, libc::SYS_bind, libc::SYS_listen, libc::SYS_accept4, libc::SYS_connect,
    libc::SYS_shutdown, libc::SYS_getsockname, libc::SYS_getpeername, libc::SYS_getsockopt, libc::SYS_setsockopt,
    libc::SYS_sendto, libc::SYS_sendmsg, libc::SYS_sendmmsg, libc::SYS_recvfrom, libc::SYS_recvmsg, libc::SYS_recvmmsg,
    libc::SYS_eventfd2, libc::SYS_epoll_create1, libc::SYS_epoll_ctl, libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2,
    libc::SYS_ppoll, libc::SYS_pselect6, libc::SYS_timerfd_create, libc::SYS_timerfd_settime,
    libc::SYS_io_uring_enter, libc::SYS_io_uring_register,
    libc::SYS_bpf, libc::SYS_setns,
];

/// The older forms of some of them, which newer architectures lack.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const CALLED_IN_OLD_FORM: &[libc::c_long] = &[
    libc::SYS_open, libc::SYS_stat, libc::SYS_lstat, libc::SYS_access, libc::SYS_readlink, libc::SYS_unlink, libc::SYS_rename, libc::SYS_dup2,
    libc::SYS_poll, libc::SYS_select, libc::SYS_epoll_wait, libc::SYS_accept, libc::SYS_pipe, libc::SYS_time,
    libc::SYS_arch_prctl,
];
#[cfg(not(target_arch = "x86_64"))]
const CALLED_IN_OLD_FORM: &[libc::c_long] = &[];

/// What nothing in this process ever calls, and an intruder would sooner or later. They end the process, and the kernel notes in
/// its audit log which it was.
#[rustfmt::skip]
const FATAL: &[libc::c_long] = &[
    libc::SYS_execve, libc::SYS_execveat, libc::SYS_ptrace, libc::SYS_process_vm_readv, libc::SYS_process_vm_writev,
    libc::SYS_init_module, libc::SYS_finit_module, libc::SYS_delete_module, libc::SYS_kexec_load, libc::SYS_reboot,
    libc::SYS_mount, libc::SYS_umount2, libc::SYS_pivot_root, libc::SYS_chroot, libc::SYS_unshare,
    libc::SYS_keyctl, libc::SYS_add_key, libc::SYS_request_key, libc::SYS_userfaultfd, libc::SYS_perf_event_open,
    libc::SYS_open_by_handle_at, libc::SYS_swapon, libc::SYS_swapoff, libc::SYS_acct, libc::SYS_pidfd_getfd,
];

/// Filters the calls of all threads of this process.
///
/// # Errors
///
/// Where the kernel has no seccomp filters, or does not allow them.
pub(super) fn filter() -> Result<()> {
    let refuse = match refusals::follow()? {
        true => SeccompAction::Trap,
        false => SeccompAction::Errno(libc::EPERM as u32),
    };
    let mut allowed = whatever(CALLED.iter().chain(CALLED_IN_OLD_FORM));
    allowed.insert(libc::SYS_memfd_create, sealed_files()?);
    let allow = program(allowed, SeccompAction::Allow, refuse)?;
    let kill = program(whatever(FATAL.iter()), SeccompAction::KillProcess, SeccompAction::Allow)?;
    // Of two filters the stricter answer counts. The first one installed may not forbid to install the second.
    for program in [kill, allow] {
        apply_filter_all_threads(&program).map_err(Error::other)?;
    }
    Ok(())
}

/// Calls by their number, with what their arguments have to be. Without a rule they may be anything.
type Rules = BTreeMap<libc::c_long, Vec<SeccompRule>>;

fn whatever<'a>(calls: impl Iterator<Item = &'a libc::c_long>) -> Rules {
    calls.map(|&call| (call, Vec::new())).collect()
}

/// The files in memory that may be made: those in which a tunnel's state is handed over, which no program can be run from.
fn sealed_files() -> Result<Vec<SeccompRule>> {
    let rule = |flags: MemfdFlags| {
        let (at, is) = (SeccompCmpArgLen::Dword, SeccompCmpOp::Eq);
        let condition = SeccompCondition::new(1, at, is, flags.bits().into()).map_err(Error::other)?;
        SeccompRule::new(vec![condition]).map_err(Error::other)
    };
    sealed::FLAGS.into_iter().map(rule).collect()
}

fn program(rules: Rules, named: SeccompAction, others: SeccompAction) -> Result<BpfProgram> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)
        .map_err(|_| Error::new(ErrorKind::Unsupported, "not on this architecture"))?;
    let filter = SeccompFilter::new(rules, others, named, arch).map_err(Error::other)?;
    BpfProgram::try_from(filter).map_err(Error::other)
}
