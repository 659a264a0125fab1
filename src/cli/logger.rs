//! The log's backend: standard error in the foreground, the journal with its fields where that reads standard error anyway,
//! syslog for a process in the background.

use log::{Level, LevelFilter, Log, Metadata, Record};
use std::os::unix::net::UnixDatagram;

/// RFC 3164: facility daemon (3).
const FACILITY: u8 = 3 << 3;

/// Where systemd-journald takes entries with fields (systemd.journal-fields(7), "Native Journal Protocol").
const JOURNAL: &str = "/run/systemd/journal/socket";

enum Sink {
    StandardError,
    Journal(UnixDatagram),
    Syslog(UnixDatagram),
}

struct Logger {
    sink: Sink,
    /// The tunnel that this process is about.
    interface: String,
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
        let message = record.args();
        match &self.sink {
            Sink::StandardError => eprintln!("ringtun: {word}: {message}"),
            // A daemon that went away leaves nowhere to say so, here and below.
            Sink::Journal(socket) => drop(socket.send(&self.entry(severity, record))),
            Sink::Syslog(socket) => {
                let line = format!("<{}>ringtun[{}]: {message}", FACILITY | severity, std::process::id());
                drop(socket.send(line.as_bytes()));
            }
        }
    }

    fn flush(&self) {}
}

impl Logger {
    /// `journalctl RINGTUN_INTERFACE=wg0` finds it.
    fn entry(&self, severity: u8, record: &Record<'_>) -> Vec<u8> {
        let mut entry = Vec::new();
        field(&mut entry, "MESSAGE", &record.args().to_string());
        field(&mut entry, "PRIORITY", &severity.to_string());
        field(&mut entry, "SYSLOG_IDENTIFIER", "ringtun");
        field(&mut entry, "RINGTUN_INTERFACE", &self.interface);
        field(&mut entry, "CODE_MODULE", record.target());
        entry
    }
}

/// One field in the form that lets its value hold line feeds: name, line feed, length (64 bits, little-endian), value, line feed.
fn field(entry: &mut Vec<u8>, name: &str, value: &str) {
    entry.extend_from_slice(name.as_bytes());
    entry.push(b'\n');
    entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    entry.extend_from_slice(value.as_bytes());
    entry.push(b'\n');
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

/// Installs the backend of a process that is about `interface`.
pub(super) fn init(background: bool, interface: &str) {
    let sink = if background {
        connect("/dev/log").map(Sink::Syslog)
    } else if journal_reads_stderr() {
        connect(JOURNAL).map(Sink::Journal)
    } else {
        None
    };
    let logger = Logger { sink: sink.unwrap_or(Sink::StandardError), interface: interface.to_owned() };
    log::set_max_level(level());
    // Fails only where a logger stands already, and this is the first.
    let _ = log::set_boxed_logger(Box::new(logger));
}

fn connect(path: &str) -> Option<UnixDatagram> {
    let socket = UnixDatagram::unbound().ok()?;
    socket.connect(path).ok()?;
    Some(socket)
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
    fn an_entry_names_the_tunnel_and_a_message_keeps_its_lines() {
        let logger = Logger { sink: Sink::StandardError, interface: "wg0".to_owned() };
        let record = Record::builder().args(format_args!("two\nlines")).target("ringtun::x").build();
        let entry = logger.entry(4, &record);
        assert!(entry.starts_with(b"MESSAGE\n\x09\0\0\0\0\0\0\0two\nlines\nPRIORITY\n\x01\0\0\0\0\0\0\0"));
        let interface = b"RINGTUN_INTERFACE\n\x03\0\0\0\0\0\0\0wg0\n";
        assert!(entry.windows(interface.len()).any(|part| part == interface));
    }

    #[test]
    fn only_the_file_that_is_named_is_the_journals() {
        assert!(is_stream("8:1234", 8, 1234));
        for wrong in ["8:1235", "9:1234", "8", "", "x:y", "8:1234:1"] {
            assert!(!is_stream(wrong, 8, 1234), "{wrong}");
        }
    }
}
