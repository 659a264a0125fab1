//! What this host offers a tunnel, and the remedy for what it lacks. Looking changes nothing of the host.

mod filtering;
mod firewall;
mod host;
mod network;
mod parse;
mod tunnels;

#[cfg(feature = "internals")]
pub use firewall::blocked;

use crate::gateway::rights::{NetAdmin, net_admin};
use crate::gateway::show::{Paint, wrapped};
use crate::io::slab::BUF_SIZE;
use crate::io::tun::QUEUE_BYTES;
use crate::io::udp::{SOCKET_BUFFER, socket_bytes};
use crate::io::uring::Uring;
use crate::sys::group;
use crate::tunnel::BUFFERS;
use crate::tunnel::cores::{core_count, default_workers};
use crate::tunnel::plural::counted;
use serde::Serialize;
use std::fmt::Write;

pub use filtering::{blocking, translates};
pub use network::forwards;

/// How things stand with one thing that was looked at.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// It is as it should be.
    Ok,
    /// It could not be looked at.
    Unknown,
    /// A tunnel runs, but not as well as it could.
    Warn,
    /// It is absent, and a tunnel runs without it.
    Missing,
    /// No tunnel can run.
    Fatal,
}

/// One thing that was looked at.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// The name of what was looked at.
    pub what: String,
    /// How things stand with it.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What to do about it, where something can be done.
    pub remedy: Option<String>,
}

impl Finding {
    fn new(what: impl Into<String>, level: Level, found: impl Into<String>, remedy: &str) -> Finding {
        let remedy = (level != Level::Ok && !remedy.is_empty()).then(|| remedy.to_owned());
        Finding { what: what.into(), level, found: found.into(), remedy }
    }

    fn ok(what: impl Into<String>, found: impl Into<String>) -> Finding {
        Finding::new(what, Level::Ok, found, "")
    }

    fn lines(&self, paint: Paint) -> String {
        const LINE: usize = 80;
        const MARGIN: usize = 30;
        let level = match self.level {
            Level::Ok => paint.green("ok      "),
            Level::Unknown => paint.cyan("unknown "),
            Level::Warn => paint.yellow("warn    "),
            Level::Missing => paint.cyan("missing "),
            Level::Fatal => paint.red("FATAL   "),
        };
        let mut heading = format!("{level} {:<20} ", self.what);
        let mut text = String::new();
        let mut put = |line: &str| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{}{line}", std::mem::replace(&mut heading, " ".repeat(MARGIN)));
        };
        wrapped(&self.found, LINE - MARGIN).iter().for_each(|line| put(line));
        let arrow = self.remedy.as_ref().map(|remedy| wrapped(remedy, LINE - MARGIN - 3)).unwrap_or_default();
        for (at, line) in arrow.iter().enumerate() {
            put(&format!("{} {line}", if at == 0 { "->" } else { "  " }));
        }
        text
    }
}

/// Everything that was looked at, and what a tunnel would get.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Report {
    /// Whether a tunnel can run at all.
    pub can_run: bool,
    /// Whether a tunnel can run only as root, and not by this process.
    pub as_root: bool,
    /// How workers would speak to the kernel: `io_uring` or `syscalls`.
    pub io: &'static str,
    /// The number of workers, unless the command line sets another. It is 0 where no tunnel can run.
    pub workers: usize,
    /// The most bytes that the packet buffers of one worker take.
    pub buffer_bytes_per_worker: usize,
    /// The most bytes of the kernel's memory that wait in the sockets of one worker.
    pub socket_bytes_per_worker: usize,
    /// The most bytes of the kernel's memory that wait in the TUN queue of one worker.
    pub queue_bytes_per_worker: usize,
    /// The findings, in the order in which they are best read.
    pub findings: Vec<Finding>,
}

/// Looks at everything that concerns a tunnel.
pub fn examine() -> Report {
    let (uring, net_admin) = (Uring::probe(), net_admin());
    let (cores, quota) = (core_count(), group::cpu_quota());
    let workers = default_workers(cores, quota);
    let mut findings = vec![host::kernel(), host::rights(net_admin)];
    findings.push(host::io_uring(&uring));
    findings.extend(host::tun());
    findings.push(host::udp());
    findings.push(host::cpu());
    findings.push(host::cores(cores, quota, workers));
    findings.push(host::memory(workers, group::memory_limit()));
    findings.push(host::locked_memory(workers));
    findings.extend(network::socket_buffers(net_admin));
    findings.extend(network::cards());
    findings.extend(network::forwarding());
    findings.extend(filtering::findings(&tunnels::tunnels()));
    let can_run = findings.iter().all(|finding| finding.level != Level::Fatal);
    Report {
        can_run,
        as_root: net_admin != NetAdmin::Held,
        io: if uring.is_ok() { "io_uring" } else { "syscalls" },
        workers: if can_run { workers.get() } else { 0 },
        buffer_bytes_per_worker: BUFFERS * BUF_SIZE,
        socket_bytes_per_worker: socket_bytes(SOCKET_BUFFER),
        queue_bytes_per_worker: QUEUE_BYTES,
        findings,
    }
}

impl Report {
    /// The report as lines for people, of at most 80 characters where words allow it.
    pub fn text(&self, paint: Paint) -> String {
        let mut text: String = self.findings.iter().map(|finding| finding.lines(paint)).collect();
        let mebibytes = self.buffer_bytes_per_worker as f64 / f64::from(1 << 20);
        let io = if self.io == "io_uring" { "io_uring" } else { "epoll and plain system calls" };
        // Writing to a string cannot fail.
        let _ = match self.can_run {
            true => writeln!(
                text,
                "\n{} would get {} on {io}, with at most {mebibytes:.2} MiB of packet buffers each.",
                if self.as_root { "A tunnel that root starts" } else { "A tunnel" },
                counted(self.workers, "worker")
            ),
            false => writeln!(text, "\nNo tunnel can run here: see FATAL above."),
        };
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_finds_something_about_everything_and_ends() {
        let report = examine();
        for what in [
            "kernel",
            "io_uring",
            "UDP offloads",
            "SIMD",
            "cores",
            "memory",
            "locked memory",
            "IPv4 forwarding",
        ] {
            assert!(report.findings.iter().any(|finding| finding.what == what), "{what}: {report:?}");
        }
        assert!(report.workers >= 1 && report.buffer_bytes_per_worker > 1 << 20);
        let text = report.text(Paint { colours: false });
        assert!(report.findings.iter().all(|finding| text.contains(&finding.what)), "{text}");
    }

    #[test]
    fn lines_are_aligned_and_keep_words_whole() {
        let words =
            "a remedy of many words with sysctl -w net.ipv6.conf.all.forwarding=1 in it, which is long";
        let finding = Finding::new("IPv6 forwarding", Level::Warn, "off ".repeat(30), words);
        let text = finding.lines(Paint { colours: false });
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("warn     IPv6 forwarding      off off"), "{text}");
        assert!(lines.iter().skip(1).all(|line| line.starts_with(&" ".repeat(30))), "{text}");
        assert!(lines.iter().all(|line| line.chars().count() <= 80), "{text}");
        assert!(
            lines.iter().any(|line| line.starts_with(&format!("{}-> a remedy", " ".repeat(30)))),
            "{text}"
        );
        assert!(text.contains("net.ipv6.conf.all.forwarding=1"), "{text}");
    }

    #[test]
    fn what_is_well_needs_no_remedy_and_what_is_fatal_says_so() {
        assert_eq!(Finding::new("x", Level::Ok, "", "do this").remedy, None);
        let fatal = Finding::new("x", Level::Fatal, "gone", "do this");
        let report = Report {
            can_run: false,
            as_root: false,
            io: "syscalls",
            workers: 1,
            buffer_bytes_per_worker: 0,
            socket_bytes_per_worker: 0,
            queue_bytes_per_worker: 0,
            findings: vec![fatal],
        };
        let text = report.text(Paint { colours: false });
        assert!(text.contains("FATAL") && text.contains("-> do this"), "{text}");
        assert!(report.text(Paint { colours: true }).contains("\x1b[31mFATAL"));
        assert!(serde_json::to_string(&report).unwrap().contains("\"level\":\"fatal\""));
    }
}
