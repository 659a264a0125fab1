//! What `up` and `reload` did to the host, noted in a file that outlives a killed process: /run/ringtun/NAME.
//!
//! Each note is one line, written before the step. It holds nothing secret. What goes with the interface needs no
//! undoing; it is noted so that it can be told from what hooks and people add.

use super::dns::Manager;
use super::{Failure, Result};
use crate::crypto::x25519::PublicKey;
use crate::gateway::config::{Address, value, write_private};
use crate::routing::Prefix;
use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};

/// The directory of notes and locks.
pub(super) const DIRECTORY: &str = "/run/ringtun";

/// A note of something that was done.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Trace {
    /// The interface was made, and a process serves it.
    Interface,
    /// net.ipv4.conf.all.src_valid_mark was off, and was set.
    ValidMark,
    /// The policy rules of a default route were added.
    Rules { v6: bool, table: u32 },
    /// The rules against spoofing were added.
    Spoof,
    /// The clamping rules were added.
    Clamp,
    /// The resolvers were set.
    Dns(Manager),
    /// This address was given to the interface.
    Address(Address),
    /// This route into the interface was added.
    Route { prefix: Prefix, table: u32 },
    /// File and paths ask for this MTU, in bytes.
    Mtu(u32),
    /// The file has a preshared key for this peer.
    Preshared(PublicKey),
    /// The file has a keepalive for this peer.
    Keepalive(PublicKey),
    /// The file that `up` read.
    File(PathBuf),
    /// `up` came to its end. There is nothing to undo for it.
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
            Trace::Address(address) => write!(f, "address {address}"),
            Trace::Route { prefix, table } => write!(f, "route {prefix} {table}"),
            Trace::Mtu(mtu) => write!(f, "mtu {mtu}"),
            Trace::Preshared(key) => write!(f, "preshared {}", key.to_base64()),
            Trace::Keepalive(key) => write!(f, "keepalive {}", key.to_base64()),
            Trace::File(file) => write!(f, "file {}", file.display()),
            Trace::Finished => f.write_str("finished"),
        }
    }
}

impl Trace {
    /// Whether what was done ends together with the interface.
    pub(super) fn goes_with_interface(&self) -> bool {
        match self {
            Trace::Address(_) | Trace::Route { .. } | Trace::Mtu(_) => true,
            Trace::File(_) | Trace::Preshared(_) | Trace::Keepalive(_) | Trace::Finished => true,
            Trace::Interface | Trace::ValidMark | Trace::Rules { .. } => false,
            Trace::Spoof | Trace::Clamp | Trace::Dns(_) => false,
        }
    }

    fn parse(line: &str) -> Option<Trace> {
        let family = |word: &str| match word {
            "4" => Some(false),
            "6" => Some(true),
            _ => None,
        };
        if let Some(file) = line.strip_prefix("file ") {
            return Some(Trace::File(file.into()));
        }
        let words: Vec<&str> = line.split(' ').collect();
        Some(match words[..] {
            ["interface"] => Trace::Interface,
            ["valid-mark"] => Trace::ValidMark,
            ["rules", v6, table] => Trace::Rules { v6: family(v6)?, table: table.parse().ok()? },
            ["spoof"] => Trace::Spoof,
            ["clamp"] => Trace::Clamp,
            ["resolvconf", record] => Trace::Dns(Manager::Resolvconf(record.to_owned())),
            ["resolved"] => Trace::Dns(Manager::Resolved),
            ["address", address] => Trace::Address(value::address(address).ok()?),
            ["route", prefix, table] => {
                Trace::Route { prefix: prefix.parse().ok()?, table: table.parse().ok()? }
            }
            ["mtu", mtu] => Trace::Mtu(mtu.parse().ok()?),
            ["preshared", key] => Trace::Preshared(value::public_key(key).ok()?),
            ["keepalive", key] => Trace::Keepalive(value::public_key(key).ok()?),
            ["finished"] => Trace::Finished,
            _ => return None,
        })
    }
}

/// The notes of one interface.
pub(super) struct Journal {
    path: PathBuf,
    /// The notes as they stand in the file, in order.
    traces: Vec<Trace>,
    /// The same notes as a set.
    known: HashSet<Trace>,
}

impl Journal {
    /// Reads the notes of the interface `name`; there may be none. A line that a crash cut short is a step that was not
    /// taken.
    pub(super) fn open(name: &str) -> Journal {
        let path = Path::new(DIRECTORY).join(name);
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let traces: Vec<Trace> = text.lines().filter_map(Trace::parse).collect();
        Journal { path, known: traces.iter().cloned().collect(), traces }
    }

    /// The notes, in order.
    pub(super) fn traces(&self) -> Vec<Trace> {
        self.traces.clone()
    }

    /// Whether this was noted.
    pub(super) fn has(&self, trace: &Trace) -> bool {
        self.known.contains(trace)
    }

    /// Whether `up` began and did not end.
    pub(super) fn is_unfinished(&self) -> bool {
        self.is_of_up() && !self.has(&Trace::Finished)
    }

    /// Whether it was `up` that made the interface.
    pub(super) fn is_of_up(&self) -> bool {
        self.has(&Trace::Interface)
    }

    /// Whether something is to be undone even though the interface is gone.
    pub(super) fn has_remains(&self) -> bool {
        self.traces.iter().any(|trace| !trace.goes_with_interface())
    }

    /// Notes a step that is about to be taken.
    pub(super) fn note(&mut self, trace: Trace) -> Result<()> {
        self.note_all(vec![trace])
    }

    /// Notes several steps that are about to be taken. What was noted already stays as it is.
    pub(super) fn note_all(&mut self, traces: Vec<Trace>) -> Result<()> {
        use std::io::Write;
        let new: Vec<Trace> = traces.into_iter().filter(|trace| self.known.insert(trace.clone())).collect();
        if new.is_empty() {
            return Ok(());
        }
        let append = || {
            std::fs::create_dir_all(DIRECTORY)?;
            let mut file = std::fs::OpenOptions::new().append(true).create(true).open(&self.path)?;
            let before = file.metadata()?.len();
            file.write_all(text(&new).as_bytes()).inspect_err(|_| {
                // Half a line, as a full file system takes it, would spoil the next note.
                let _ = file.set_len(before);
            })
        };
        if let Err(error) = append() {
            self.known.retain(|trace| !new.contains(trace));
            return Err(unwritable(&self.path, error));
        }
        self.traces.extend(new);
        Ok(())
    }

    /// Removes notes, as far as they are there.
    pub(super) fn retract(&mut self, gone: &[Trace]) -> Result<()> {
        let gone: HashSet<&Trace> = gone.iter().collect();
        let left: Vec<Trace> = self.traces().into_iter().filter(|trace| !gone.contains(trace)).collect();
        if left.len() == self.traces.len() { Ok(()) } else { self.rewrite(left) }
    }

    /// Notes the MTU in bytes for which file and paths ask, in the place of any other.
    pub(super) fn note_mtu(&mut self, mtu: u32) -> Result<()> {
        let old: Vec<Trace> =
            self.traces().into_iter().filter(|trace| matches!(trace, Trace::Mtu(_))).collect();
        if old == [Trace::Mtu(mtu)] {
            return Ok(());
        }
        self.retract(&old)?;
        self.note(Trace::Mtu(mtu))
    }

    /// Replaces all notes by these.
    pub(super) fn rewrite(&mut self, traces: Vec<Trace>) -> Result<()> {
        if traces.is_empty() {
            self.forget();
            return Ok(());
        }
        if traces == self.traces {
            return Ok(());
        }
        // Whole or not at all: what is to be undone is not to be forgotten for want of room.
        write_private(&self.path, text(&traces).as_bytes()).map_err(|error| unwritable(&self.path, error))?;
        self.known = traces.iter().cloned().collect();
        self.traces = traces;
        Ok(())
    }

    /// Removes all notes, once everything is undone.
    pub(super) fn forget(&mut self) {
        let _ = std::fs::remove_file(&self.path); // there may be none
        self.traces.clear();
        self.known.clear();
    }
}

/// The failure of notes or locks that cannot be written.
pub(super) fn unwritable(path: &Path, error: std::io::Error) -> Failure {
    match error.kind() {
        std::io::ErrorKind::ReadOnlyFilesystem => Failure::new(format!(
            "{}: what is to be undone cannot be noted, since /run is read-only: mount a tmpfs there",
            path.display()
        )),
        _ => Failure::of(path.display())(error),
    }
}

fn text(traces: &[Trace]) -> String {
    traces.iter().map(|trace| format!("{trace}\n")).collect()
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
            Trace::Address(value::address("fd00::1/64").unwrap()),
            Trace::Address(value::address("192.168.96.1/24").unwrap()),
            Trace::Route { prefix: "10.7.0.0/16".parse().unwrap(), table: 254 },
            Trace::Route { prefix: "::/0".parse().unwrap(), table: 51820 },
            Trace::Mtu(1420),
            Trace::Preshared(PublicKey([7; 32])),
            Trace::Keepalive(PublicKey([9; 32])),
            Trace::File("/etc/wireguard/my tunnel/wg0.conf".into()),
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
