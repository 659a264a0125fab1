//! Processes that are no children of this one, and their end.

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::io::{Error, ErrorKind, Result};
use std::mem::offset_of;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use tokio::io::unix::AsyncFd;

/// A file of the process `pid` that is readable once that has ended (Linux 5.3), on the tokio runtime of the calling thread.
///
/// # Errors
///
/// Where there is no such process, or the kernel has no such files.
pub(crate) fn end_of(pid: u32) -> Result<AsyncFd<OwnedFd>> {
    let pid = pid.try_into().ok().and_then(Pid::from_raw).ok_or(ErrorKind::NotFound)?;
    let file = pidfd_open(pid, PidfdFlags::empty())?;
    // SAFETY: the AsyncFd owns the file, which stays open and the same until the AsyncFd is dropped.
    unsafe { AsyncFd::register(file) }.map_err(Error::from)
}

/// `struct pidfd_info` of Linux 6.13, as far as its first version goes (`include/uapi/linux/pidfd.h`).
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    /// What is asked for, and afterwards what there is.
    mask: u64,
    control_group: u64,
    /// PID, TGID, PPID, then real, effective, saved and file-system IDs of user and group.
    numbers: [u32; 11],
    exit_code: i32,
}

const _: () = assert!(size_of::<PidfdInfo>() == 64 && offset_of!(PidfdInfo, exit_code) == 60);

/// `_IOWR(PIDFS_IOCTL_MAGIC, 11, struct pidfd_info)`.
const PIDFD_GET_INFO: libc::Ioctl = 0xc040_ff0b_u32 as libc::Ioctl;
const PIDFD_INFO_EXIT: u64 = 1 << 3;

/// How the process `pid` has ended, whosever child it was. `process` is a file of [`end_of`], which stands for it when its number is
/// free again.
///
/// # Errors
///
/// Where the kernel does not tell: before Linux 6.15 that of a process whose parent has heard of its end.
pub(crate) fn exit_status(pid: u32, process: BorrowedFd<'_>) -> Result<ExitStatus> {
    if let Some(Stat { is_ended: true, exit_code }) = stat(pid) {
        return Ok(ExitStatus::from_raw(exit_code));
    }
    let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: PIDFD_GET_INFO reads and writes as many bytes as its number says, which `PidfdInfo` has.
    let outcome = unsafe { libc::ioctl(process.as_raw_fd(), PIDFD_GET_INFO, &raw mut info) };
    if outcome < 0 {
        return Err(Error::last_os_error());
    }
    match info.mask & PIDFD_INFO_EXIT {
        0 => Err(ErrorKind::Unsupported.into()),
        _ => Ok(ExitStatus::from_raw(info.exit_code)),
    }
}

/// Whether the process `pid` runs. One that has ended, and that its parent has yet to hear of, does not.
pub(crate) fn runs(pid: u32) -> bool {
    stat(pid).is_some_and(|stat| !stat.is_ended)
}

/// What `/proc/PID/stat` says of a process.
struct Stat {
    is_ended: bool,
    /// In the form of wait(2).
    exit_code: i32,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // PID (NAME) STATE … EXIT_CODE, where the name may be anything.
    let mut words = text.rsplit_once(") ")?.1.split_ascii_whitespace();
    let is_ended = matches!(words.next()?, "Z" | "X");
    Some(Stat { is_ended, exit_code: words.next_back()?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netns::eventually;
    use std::os::fd::AsFd;
    use std::process::Command;

    #[test]
    fn the_end_of_a_process_is_noticed_before_its_parent_asks() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        let pid = child.id();
        let end = runtime.block_on(async {
            let end = end_of(pid).unwrap();
            assert!(runs(pid));
            child.kill().unwrap();
            end.readable().await.unwrap().retain_ready();
            end
        });
        eventually(|| (!runs(pid)).then_some(()));
        let told = exit_status(pid, end.as_fd()).unwrap();
        let status = child.wait().unwrap();
        assert_eq!((told, told.signal()), (status, Some(9)));
        // Not every kernel knows it any longer.
        assert!(exit_status(pid, end.as_fd()).is_ok_and(|told| told == status) || !tells_of_the_reaped());
        assert!(!runs(pid) && end_of(u32::MAX).is_err());
        assert!(runs(std::process::id()));
    }

    fn tells_of_the_reaped() -> bool {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let mut numbers = release.split(['.', '-']).map(|number| number.parse::<u32>().unwrap_or(0));
        (numbers.next(), numbers.next()) >= (Some(6), Some(15))
    }
}
