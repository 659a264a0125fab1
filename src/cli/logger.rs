//! The log's backend: standard error in the foreground, syslog for a process in the background.

use log::{Level, LevelFilter, Log, Metadata, Record};
use std::os::unix::net::UnixDatagram;

/// RFC 3164: facility daemon (3).
const FACILITY: u8 = 3 << 3;

struct Logger {
    syslog: Option<UnixDatagram>,
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
    let _ = log::set_boxed_logger(Box::new(Logger { syslog }));
}
