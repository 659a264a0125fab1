//! What this process has to say. It goes to the journal, with fields, where systemd's journal is what reads it. Else it
//! goes to standard error in the foreground, and to syslog in the background.

use log::{Level, LevelFilter, Log, Metadata, Record};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::OnceLock;

/// The facility daemon of RFC 3164.
const FACILITY: u8 = 3;
/// The severities of RFC 3164.
const ERROR: u8 = 3;
const WARNING: u8 = 4;
const INFO: u8 = 6;
const DEBUG: u8 = 7;

/// The socket at which systemd-journald takes entries with fields (systemd.journal-fields(7), "Native Journal
/// Protocol").
const JOURNAL: &str = "/run/systemd/journal/socket";
const SYSLOG: &str = "/dev/log";
/// The target of the link [`SYSLOG`] where systemd-journald serves that.
const JOURNALS_SYSLOG: &str = "/run/systemd/journal/dev-log";

/// The logger of this process. Commands that only print have none.
static LOGGER: OnceLock<Logger> = OnceLock::new();

enum Sink {
    StandardError,
    Journal(UnixDatagram),
    Syslog(UnixDatagram),
}

struct Logger {
    sink: Sink,
    /// The name of the tunnel that this process is about.
    interface: String,
    /// Whether standard error leads into the journal. What is written there for a person may then have fields as well.
    is_stderr_journals: bool,
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
            Level::Error => (ERROR, "error"),
            Level::Warn => (WARNING, "warning"),
            Level::Info => (INFO, "info"),
            Level::Debug | Level::Trace => (DEBUG, "debug"),
        };
        let message = record.args();
        match &self.sink {
            Sink::StandardError => eprintln!("ringtun: {word}: {message}"),
            // A daemon that went away leaves nowhere to say so, here and below.
            Sink::Journal(socket) => {
                drop(socket.send(&self.entry(severity, &message.to_string(), record.target())));
            }
            Sink::Syslog(socket) => {
                let priority = FACILITY << 3 | severity;
                let line = format!("<{priority}>ringtun[{}]: {message}", std::process::id());
                drop(socket.send(line.as_bytes()));
            }
        }
    }

    fn flush(&self) {}
}

impl Logger {
    fn new(background: bool, interface: String) -> Logger {
        let is_stderr_journals = is_stderr_journals();
        let sink = match (background, is_stderr_journals) {
            (_, true) => connect(JOURNAL).map(Sink::Journal),
            (true, false) if is_journals_syslog(Path::new(SYSLOG)) => connect(JOURNAL).map(Sink::Journal),
            (true, false) => connect(SYSLOG).map(Sink::Syslog),
            (false, false) => None,
        };
        Logger { sink: sink.unwrap_or(Sink::StandardError), interface, is_stderr_journals }
    }

    /// An entry for the journal. Its fields let `journalctl RINGTUN_INTERFACE=wg0` find it.
    fn entry(&self, severity: u8, message: &str, module: &str) -> Vec<u8> {
        let mut entry = Vec::new();
        field(&mut entry, "MESSAGE", message);
        field(&mut entry, "PRIORITY", &severity.to_string());
        field(&mut entry, "SYSLOG_FACILITY", &FACILITY.to_string());
        field(&mut entry, "SYSLOG_IDENTIFIER", "ringtun");
        field(&mut entry, "RINGTUN_INTERFACE", &self.interface);
        field(&mut entry, "CODE_MODULE", module);
        entry
    }

    /// Sends a line that was meant for standard error to the journal, if that is where it would go. Returns whether it
    /// was sent.
    fn tell_journal(&self, severity: u8, line: &str) -> bool {
        match &self.sink {
            Sink::Journal(socket) if self.is_stderr_journals => {
                socket.send(&self.entry(severity, line, module_path!())).is_ok()
            }
            _ => false,
        }
    }
}

/// Prints a line for a person to standard error: a step of `up` and its like, or a remark, which begins with `[!]`.
pub(super) fn say(line: &str) {
    let severity = if line.starts_with("[!]") { WARNING } else { INFO };
    if !LOGGER.get().is_some_and(|logger| logger.tell_journal(severity, line)) {
        eprintln!("{line}");
    }
}

/// Prints the error with which this process fails.
pub(super) fn fail(message: &str) {
    let message = &in_words(message);
    if !LOGGER.get().is_some_and(|logger| logger.tell_journal(ERROR, message)) {
        eprintln!("ringtun: {message}");
    }
}

/// The text without the numbers of the kernel's errors, which their words say already.
fn in_words(text: &str) -> String {
    let mut parts = text.split(" (os error ");
    let mut words = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let digits = part.bytes().take_while(u8::is_ascii_digit).count();
        match part.get(digits..).and_then(|rest| rest.strip_prefix(')')) {
            Some(rest) if digits > 0 => words.push_str(rest),
            _ => words.extend([" (os error ", part]),
        }
    }
    words
}

/// Appends a field in the form that lets its value hold line feeds: name, line feed, length (64 bits, little-endian),
/// value, line feed.
fn field(entry: &mut Vec<u8>, name: &str, value: &str) {
    entry.extend_from_slice(name.as_bytes());
    entry.push(b'\n');
    entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    entry.extend_from_slice(value.as_bytes());
    entry.push(b'\n');
}

/// The level that LOG_LEVEL names: wireguard-go's silent, error, verbose or debug, and `info` between.
fn level() -> LevelFilter {
    match std::env::var("LOG_LEVEL").as_deref() {
        Ok("silent") => LevelFilter::Off,
        Ok("info") => LevelFilter::Info,
        Ok("verbose" | "debug") => LevelFilter::Debug,
        _ => LevelFilter::Warn,
    }
}

/// Begins the log of a process that is about one tunnel, given by its name or its file.
pub(super) fn init(background: bool, given: &str) {
    let logger = LOGGER.get_or_init(|| Logger::new(background, interface_of(given)));
    log::set_max_level(level());
    // This fails only where a logger is set already, and this is the first.
    let _ = log::set_logger(logger);
}

fn interface_of(given: &str) -> String {
    let file = Path::new(given).file_name().and_then(|name| name.to_str()).unwrap_or(given);
    file.strip_suffix(".conf").unwrap_or(file).to_owned()
}

fn connect(path: &str) -> Option<UnixDatagram> {
    let socket = UnixDatagram::unbound().ok()?;
    socket.connect(path).ok()?;
    Some(socket)
}

/// Whether JOURNAL_STREAM names the very file that standard error is. The variable is inherited also by processes
/// whose standard error leads elsewhere.
fn is_stderr_journals() -> bool {
    let Ok(stat) = rustix::fs::fstat(rustix::stdio::stderr()) else { return false };
    std::env::var("JOURNAL_STREAM").is_ok_and(|stream| is_stream(&stream, stat.st_dev, stat.st_ino))
}

/// Whether what is written to the syslog socket `path` reaches the journal, so that it may have fields as well.
fn is_journals_syslog(path: &Path) -> bool {
    std::fs::canonicalize(path).is_ok_and(|target| target == Path::new(JOURNALS_SYSLOG))
}

/// Whether `stream`, in the form `DEVICE:INODE` in decimal (systemd.exec(5)), names this file.
fn is_stream(stream: &str, device: u64, inode: u64) -> bool {
    let parsed = stream.split_once(':').and_then(|(dev, ino)| Some((dev.parse().ok()?, ino.parse().ok()?)));
    parsed == Some((device, inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logger(sink: Sink, is_stderr_journals: bool) -> Logger {
        Logger { sink, interface: "wg0".to_owned(), is_stderr_journals }
    }

    #[test]
    fn an_entry_names_the_tunnel_and_a_message_keeps_its_lines() {
        let entry = logger(Sink::StandardError, false).entry(4, "two\nlines", "ringtun::x");
        assert!(entry.starts_with(b"MESSAGE\n\x09\0\0\0\0\0\0\0two\nlines\nPRIORITY\n\x01\0\0\0\0\0\0\0"));
        let interface = b"RINGTUN_INTERFACE\n\x03\0\0\0\0\0\0\0wg0\n";
        assert!(entry.windows(interface.len()).any(|part| part == interface));
    }

    #[test]
    fn what_a_person_is_to_read_goes_to_the_journal_only_where_that_reads_standard_error() {
        let (ours, journal) = UnixDatagram::pair().unwrap();
        let mut logger = logger(Sink::Journal(ours), true);
        assert!(logger.tell_journal(ERROR, "a step"));
        let mut entry = [0; 512];
        let len = journal.recv(&mut entry).unwrap();
        assert_eq!(entry[..len], logger.entry(ERROR, "a step", module_path!().trim_end_matches("::tests")));
        logger.is_stderr_journals = false;
        assert!(!logger.tell_journal(ERROR, "a step"));
    }

    #[test]
    fn a_tunnel_is_named_by_its_interface_or_its_file() {
        for given in ["wg0", "wg0.conf", "/etc/wireguard/wg0.conf", "./wg0.conf"] {
            assert_eq!(interface_of(given), "wg0", "{given}");
        }
    }

    #[test]
    fn only_the_file_that_is_named_is_the_journals() {
        assert!(is_stream("8:1234", 8, 1234));
        for wrong in ["8:1235", "9:1234", "8", "", "x:y", "8:1234:1"] {
            assert!(!is_stream(wrong, 8, 1234), "{wrong}");
        }
    }
}
