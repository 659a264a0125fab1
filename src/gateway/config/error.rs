//! What is wrong, or odd, with a file, and where. No message quotes a key's value.

use std::fmt;
use std::path::{Path, PathBuf};

/// One thing that is wrong with a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigError {
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong, and what was expected.
    pub message: String,
}

/// All that is wrong with one file. It prints as lines of `FILE:LINE: message`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigErrors {
    /// The file's path, as it was given.
    pub file: PathBuf,
    /// The errors in the file's order; there is at least one.
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

/// Something in a file that works, but hardly as meant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Warning {
    /// Everyone may read the file of this path, and the keys in it.
    WorldReadable(PathBuf),
    /// Everyone may read the keys, and the file lies on a mount that is read-only.
    WorldReadableMount,
    /// The MTU leaves no room for the IPv6 that is asked for.
    NoIpv6 {
        /// The line that sets the MTU.
        line: usize,
        /// The MTU in bytes.
        mtu: u16,
    },
    /// The host lacks something that the file needs.
    Host(String),
    /// A key's last value replaces an earlier one.
    Replaced {
        /// The line of the value that counts.
        line: usize,
        /// The key, as wg-quick(8) spells it.
        key: &'static str,
    },
    /// A prefix has bits beyond its length, which are ignored.
    HostBits {
        /// The line of the prefix.
        line: usize,
        /// The prefix as it stands in the file.
        value: String,
    },
    /// A later peer takes the prefix away from an earlier one.
    Taken {
        /// The line of the later peer's section.
        line: usize,
        /// The prefix that changes hands.
        prefix: String,
    },
    /// A public key stands in more than one section.
    SamePeer {
        /// The line of the later section.
        line: usize,
    },
    /// No tunnel works like this, though the language allows it.
    Broken {
        /// The line at fault.
        line: usize,
        /// What is wrong, and what was expected.
        message: String,
    },
}

impl Warning {
    /// The line that the warning is about, if it is about one.
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

    /// The warning as `FILE:LINE: …`, or as `FILE: …` where it is about no line.
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
