//! Child processes that do not outlive what they were started for.

use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use std::io::{Error, ErrorKind};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Has the kernel send SIGTERM to the child of `command` as soon as the thread that starts it ends, also where this process is
/// killed.
pub(crate) fn end_with_thread(command: &mut Command) {
    let parent = std::process::id();
    let arrange = move || {
        set_parent_process_death_signal(Some(Signal::TERM))?;
        // Nothing is sent for a parent that died before.
        match getppid().is_some_and(|now| now.as_raw_nonzero().get().unsigned_abs() == parent) {
            true => Ok(()),
            false => Err(Error::from(ErrorKind::BrokenPipe)),
        }
    };
    // SAFETY: the closure runs in the child between fork and exec, where nothing may be done that waits for a lock of the parent:
    // it makes two system calls, and neither allocates nor locks.
    unsafe { command.pre_exec(arrange) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netns::eventually;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn a_child_ends_with_the_thread_that_started_it() {
        let start = || {
            let mut command = Command::new("sleep");
            end_with_thread(command.arg("100"));
            command.spawn().unwrap()
        };
        let mut child = std::thread::spawn(start).join().unwrap();
        let status = eventually(|| child.try_wait().unwrap());
        assert_eq!(status.signal(), Some(libc::SIGTERM));
    }
}
