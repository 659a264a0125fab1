//! A process in a namespace of the laboratory. It ends with its owner, whatever becomes of that.

use crate::gateway::Failure;
use crate::sys::child::end_with_thread;
use crate::sys::namespace::PrivateNetwork;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::io::Result;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long a process may take to end itself before it is ended.
const END_LIMIT: Duration = Duration::from_secs(3);
/// Pause between two looks at it meanwhile.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);
/// Most bytes of its output that are read.
const OUTPUT_LEN: usize = 4 << 20;
/// Ticks of `/proc/PID/stat` in a second: USER_HZ, which is 100 on every architecture of today (kernel:
/// `include/uapi/asm-generic/param.h`).
const TICKS_PER_SECOND: f64 = 100.0;

/// A running process, with what it writes in memory.
pub(super) struct LabChild {
    child: Child,
    output: File,
    errors: File,
}

impl LabChild {
    /// Starts a command in a namespace.
    pub(super) fn start(
        network: &PrivateNetwork,
        mut command: Command,
    ) -> std::result::Result<LabChild, Failure> {
        let what = command.get_program().to_string_lossy().into_owned();
        let start = move || -> Result<LabChild> {
            let memory =
                || Ok::<File, std::io::Error>(memfd_create("ringtun-bench", MemfdFlags::CLOEXEC)?.into());
            let (output, errors) = (memory()?, memory()?);
            command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(errors.try_clone()?);
            // Ctrl-C on the terminal is for this program alone, which then ends the others in order.
            command.process_group(0);
            end_with_thread(&mut command);
            Ok(LabChild { child: command.spawn()?, output, errors })
        };
        let started = network.run(start).and_then(|started| started);
        started.map_err(Failure::of(format!("cannot start {what}")))
    }

    /// Its number.
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it did.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// What it wrote to its standard output.
    pub(super) fn output(&self) -> String {
        read(&self.output)
    }

    /// What it wrote to its standard error, on one line.
    pub(super) fn complaint(&self) -> String {
        read(&self.errors)
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect::<Vec<_>>()
            .join("; ")
    }

    /// Ends it and waits for that.
    pub(super) fn end(&mut self) {
        if self.ended().is_some() {
            return;
        }
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM); // it may have ended just now
        let until = Instant::now() + END_LIMIT;
        while self.ended().is_none() {
            if Instant::now() > until {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
    }
}

impl Drop for LabChild {
    fn drop(&mut self) {
        self.end();
    }
}

/// What was written to a file in memory. The offset that the process writes at stays.
fn read(file: &File) -> String {
    let mut bytes = vec![0; OUTPUT_LEN];
    let mut len = 0;
    while let Ok(count @ 1..) = file.read_at(&mut bytes[len..], len as u64) {
        len += count;
    }
    String::from_utf8_lossy(&bytes[..len]).into_owned()
}

/// The processor time in seconds that all threads of a process used.
pub(super) fn cpu_seconds(pid: u32) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    cpu_ticks(&text).map(|ticks| ticks as f64 / TICKS_PER_SECOND).ok_or_else(|| {
        std::io::Error::new(std::io::ErrorKind::InvalidData, format!("/proc/{pid}/stat is {text:?}"))
    })
}

/// User and system time by the text of `/proc/PID/stat` (proc(5)): its 14th and 15th field. The second, the program's name, may
/// hold anything.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_read_whatever_the_program_is_called() {
        let stat = "7 (a) b 1 2 (c)) S 1 7 7 0 -1 4194560 100 0 0 0 123 45 6 7 20 0 5 0 99 1000 100";
        assert_eq!(cpu_ticks(stat), Some(168));
        assert_eq!(cpu_ticks(""), None);
        assert_eq!(cpu_ticks("7 (a) S 1"), None);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(40) {
            std::hint::spin_loop();
        }
        assert!(cpu_seconds(std::process::id()).unwrap() > 0.0);
    }
}
