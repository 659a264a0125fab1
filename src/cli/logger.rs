//! The log's backend: standard error in the foreground, with the journal's priorities where the journal reads it; syslog for
//! a process in the background.

use log::{Level, LevelFilter, Log, Metadata, Record};
use std::os::unix::net::UnixDatagram;

/// RFC 3164: facility daemon (3).
const FACILITY: u8 = 3 << 3;

struct Logger {
    syslog: Option<UnixDatagram>,
    /// Standard error is the journal's: lines begin with their priority (sd-daemon(3)).
    journal: bool,
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("ringtun")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let (severity, word) = match record.level() {
            Level::Error => (3, "error"),
            Level::Warn => (4, "warning"),
            Level::Info => (6, "info"),
            Level::Debug | Level::Trace => (7, "debug"),
        };
        match &self.syslog {
            Some(socket) => {
                let line =
                    format!("<{}>ringtun[{}]: {}", FACILITY | severity, std::process::id(), record.args());
                let _ = socket.send(line.as_bytes()); // no syslog daemon any more: nowhere left to say so
            }
            // The journal knows program and process already, and takes a line for an entry.
            None if self.journal => eprintln!("<{severity}>{}", record.args().to_string().replace('\n', " ")),
            None => eprintln!("ringtun: {word}: {}", record.args()),
        }
    }

    fn flush(&self) {}
}

/// LOG_LEVEL as wireguard-go has it (silent, error, verbose or debug), and `info` between.
fn level() -> LevelFilter {
    match std::env::var("LOG_LEVEL").as_deref() {
        Ok("silent") => LevelFilter::Off,
        Ok("info") => LevelFilter::Info,
        Ok("verbose" | "debug") => LevelFilter::Debug,
        _ => LevelFilter::Warn,
    }
}

/// Installs the backend.
pub(super) fn init(background: bool) {
    let syslog = background
        .then(|| {
            let socket = UnixDatagram::unbound().ok()?;
            socket.connect("/dev/log").ok()?;
            Some(socket)
        })
        .flatten();
    log::set_max_level(level());
    // Fails only where a logger stands already, and this is the first.
    let _ = log::set_boxed_logger(Box::new(Logger { syslog, journal: journal_reads_stderr() }));
}

/// Whether JOURNAL_STREAM names the very file that standard error is: it is inherited by those whose standard error is not.
fn journal_reads_stderr() -> bool {
    let Ok(stat) = rustix::fs::fstat(rustix::stdio::stderr()) else { return false };
    std::env::var("JOURNAL_STREAM").is_ok_and(|stream| is_stream(&stream, stat.st_dev, stat.st_ino))
}

/// `DEVICE:INODE` in decimal (systemd.exec(5)).
fn is_stream(stream: &str, device: u64, inode: u64) -> bool {
    let parsed = stream.split_once(':').and_then(|(dev, ino)| Some((dev.parse().ok()?, ino.parse().ok()?)));
    parsed == Some((device, inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_file_that_is_named_is_the_journals() {
        assert!(is_stream("8:1234", 8, 1234));
        for wrong in ["8:1235", "9:1234", "8", "", "x:y", "8:1234:1"] {
            assert!(!is_stream(wrong, 8, 1234), "{wrong}");
        }
    }
}
