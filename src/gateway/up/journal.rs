//! What `up` did to the host beyond the interface, in a file that outlives a killed process: /run/ringtun/NAME.
//!
//! A line a trace, written before the step. It holds nothing secret.

use super::dns::Manager;
use super::{Failure, Result};
use std::fmt;
use std::path::{Path, PathBuf};

const DIRECTORY: &str = "/run/ringtun";

/// Something to be undone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Trace {
    /// The interface, and the process behind it.
    Interface,
    /// net.ipv4.conf.all.src_valid_mark was off.
    ValidMark,
    /// The policy rules of a default route.
    Rules { v6: bool, table: u32 },
    /// The rules against spoofing.
    Spoof,
    /// The clamping rules.
    Clamp,
    /// Resolvers.
    Dns(Manager),
    /// What the paths to the endpoints gave for the interface's MTU, bytes: nothing to undo.
    Mtu(u32),
    /// Nothing: `up` came to its end.
    Finished,
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trace::Interface => f.write_str("interface"),
            Trace::ValidMark => f.write_str("valid-mark"),
            Trace::Rules { v6, table } => write!(f, "rules {} {table}", if *v6 { "6" } else { "4" }),
            Trace::Spoof => f.write_str("spoof"),
            Trace::Clamp => f.write_str("clamp"),
            Trace::Dns(Manager::Resolvconf(record)) => write!(f, "resolvconf {record}"),
            Trace::Dns(Manager::Resolved) => f.write_str("resolved"),
            Trace::Mtu(bytes) => write!(f, "mtu {bytes}"),
            Trace::Finished => f.write_str("finished"),
        }
    }
}

impl Trace {
    fn parse(line: &str) -> Option<Trace> {
        let family = |word: &str| match word {
            "4" => Some(false),
            "6" => Some(true),
            _ => None,
        };
        let words: Vec<&str> = line.split(' ').collect();
        Some(match words[..] {
            ["interface"] => Trace::Interface,
            ["valid-mark"] => Trace::ValidMark,
            ["rules", v6, table] => Trace::Rules { v6: family(v6)?, table: table.parse().ok()? },
            ["spoof"] => Trace::Spoof,
            ["clamp"] => Trace::Clamp,
            ["resolvconf", record] => Trace::Dns(Manager::Resolvconf(record.to_owned())),
            ["resolved"] => Trace::Dns(Manager::Resolved),
            ["mtu", bytes] => Trace::Mtu(bytes.parse().ok()?),
            ["finished"] => Trace::Finished,
            _ => return None,
        })
    }
}

/// The notes about one interface.
pub(super) struct Journal {
    path: PathBuf,
}

impl Journal {
    /// Of the interface `name`, whether there are notes or not.
    pub(super) fn open(name: &str) -> Journal {
        Journal { path: Path::new(DIRECTORY).join(name) }
    }

    /// What was noted, in order. A line cut short by a crash is a step that was not taken.
    pub(super) fn traces(&self) -> Vec<Trace> {
        std::fs::read_to_string(&self.path).unwrap_or_default().lines().filter_map(Trace::parse).collect()
    }

    /// Whether `up` began and did not end.
    pub(super) fn is_unfinished(&self) -> bool {
        let traces = self.traces();
        !traces.is_empty() && !traces.contains(&Trace::Finished)
    }

    /// Notes a step that is about to be taken.
    pub(super) fn note(&self, trace: &Trace) -> Result<()> {
        use std::io::Write;
        let append = || {
            std::fs::create_dir_all(DIRECTORY)?;
            let mut file = std::fs::OpenOptions::new().append(true).create(true).open(&self.path)?;
            file.write_all(format!("{trace}\n").as_bytes())
        };
        append().map_err(|error| match error.kind() {
            std::io::ErrorKind::ReadOnlyFilesystem => Failure::new(format!(
                "{}: what is to be undone cannot be noted, since /run is read-only: mount a tmpfs there",
                self.path.display()
            )),
            _ => Failure::of(self.path.display())(error),
        })
    }

    /// Takes back one note, where there is such.
    pub(super) fn retract(&self, gone: &Trace) -> Result<()> {
        let left: Vec<Trace> = self.traces().into_iter().filter(|trace| trace != gone).collect();
        self.rewrite(&left)
    }

    /// These, and no others.
    pub(super) fn rewrite(&self, traces: &[Trace]) -> Result<()> {
        if traces.is_empty() {
            self.forget();
            return Ok(());
        }
        let text: String = traces.iter().map(|trace| format!("{trace}\n")).collect();
        std::fs::write(&self.path, text).map_err(Failure::of(self.path.display()))
    }

    /// All is undone.
    pub(super) fn forget(&self) {
        let _ = std::fs::remove_file(&self.path); // there may be none
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_trace_reads_back() {
        let traces = [
            Trace::Interface,
            Trace::ValidMark,
            Trace::Rules { v6: true, table: 51820 },
            Trace::Rules { v6: false, table: 7 },
            Trace::Spoof,
            Trace::Clamp,
            Trace::Dns(Manager::Resolvconf("tun.wg0".into())),
            Trace::Dns(Manager::Resolved),
            Trace::Finished,
        ];
        for trace in traces {
            assert_eq!(Trace::parse(&trace.to_string()), Some(trace));
        }
        for line in ["", "rules", "rules 5 1", "rules 4 x", "interf"] {
            assert_eq!(Trace::parse(line), None, "{line}");
        }
    }
}
