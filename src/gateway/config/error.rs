//! What is wrong, or odd, with a file, and where. No message quotes a key's value.

use std::fmt;
use std::path::{Path, PathBuf};

/// One thing that is wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigError {
    /// 1 is the first.
    pub line: usize,
    /// What, and what was expected.
    pub message: String,
}

/// All that is wrong with one file; prints as `FILE:LINE: message` lines.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigErrors {
    /// As it was given.
    pub file: PathBuf,
    /// In the file's order; at least one.
    pub errors: Vec<ConfigError>,
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, error) in self.errors.iter().enumerate() {
            let newline = if at == 0 { "" } else { "\n" };
            write!(f, "{newline}{}:{}: {}", self.file.display(), error.line, error.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// What works, but hardly as meant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Warning {
    /// Everyone may read the keys.
    WorldReadable(PathBuf),
    /// Everyone may read the keys, and the file's mount is read-only.
    WorldReadableMount,
    /// The MTU leaves no room for the IPv6 that is asked for.
    NoIpv6 {
        /// Of the MTU.
        line: usize,
        /// Bytes.
        mtu: u16,
    },
    /// The host lacks something that the file needs.
    Host(String),
    /// A key's last value replaces an earlier one.
    Replaced {
        /// Of the value that counts.
        line: usize,
        /// As wg-quick(8) spells it.
        key: &'static str,
    },
    /// Bits beyond the prefix length are ignored.
    HostBits {
        /// Where.
        line: usize,
        /// As it stands there.
        value: String,
    },
    /// A later peer takes the prefix away from an earlier one.
    Taken {
        /// Of the later peer's section.
        line: usize,
        /// Which prefix.
        prefix: String,
    },
    /// The same public key once more.
    SamePeer {
        /// Of the later section.
        line: usize,
    },
    /// No tunnel works so, though the language has nothing against it.
    Broken {
        /// Where.
        line: usize,
        /// What, and what was expected.
        message: String,
    },
}

impl Warning {
    /// The line, where the warning is about one.
    pub fn line(&self) -> Option<usize> {
        match self {
            Warning::WorldReadable(_) | Warning::WorldReadableMount | Warning::Host(_) => None,
            Warning::NoIpv6 { line, .. }
            | Warning::Replaced { line, .. }
            | Warning::HostBits { line, .. }
            | Warning::Taken { line, .. }
            | Warning::SamePeer { line }
            | Warning::Broken { line, .. } => Some(*line),
        }
    }

    /// `FILE:LINE: …`, or `FILE: …`.
    pub fn describe(&self, file: &Path) -> String {
        match self.line() {
            Some(line) => format!("{}:{line}: {self}", file.display()),
            None => format!("{}: {self}", file.display()),
        }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::WorldReadable(file) => {
                write!(
                    f,
                    "the keys in it are readable by everyone; mend that with: chmod 600 {}",
                    file.display()
                )
            }
            Warning::WorldReadableMount => f.write_str(
                "the keys in it are readable by everyone, and its mount is read-only: give it mode 0400 where it comes from \
                 (for a Kubernetes secret, defaultMode: 0400)",
            ),
            Warning::NoIpv6 { mtu, .. } => write!(
                f,
                "MTU {mtu} is below IPv6's least, 1280: the kernel leaves the interface without IPv6"
            ),
            Warning::Host(what) => f.write_str(what),
            Warning::Replaced { key, .. } => write!(f, "{key} replaces the value that stands above"),
            Warning::HostBits { value, .. } => {
                write!(f, "{value} has bits beyond its prefix length, which are ignored")
            }
            Warning::Taken { prefix, .. } => {
                write!(f, "AllowedIPs {prefix} belongs to a peer above, which loses it to this one")
            }
            Warning::Broken { message, .. } => f.write_str(message),
            Warning::SamePeer { .. } => {
                f.write_str("a peer above has the same PublicKey; this section replaces its AllowedIPs")
            }
        }
    }
}
