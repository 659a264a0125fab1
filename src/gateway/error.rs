//! Why something around a tunnel failed, for a person and for a program.

use crate::gateway::config::LoadError;
use crate::tunnel;
use std::error::Error;
use std::fmt;
use std::io;

/// Why a command failed.
///
/// `{}` says what failed, and `{:#}` also what caused it, on one line for a person. A program finds the cause as the
/// error's source.
#[derive(Debug)]
pub enum Failure {
    /// It cannot be done. The text says why, and where there is one, the remedy.
    Refused(String),
    /// Something on which it depends failed.
    Caused {
        /// What was done, or what it was done to.
        what: String,
        /// What became of that.
        source: Box<dyn Error + Send + Sync>,
    },
    /// It failed halfway.
    Halfway {
        /// What failed.
        source: Box<Failure>,
        /// What is done all the same, and how to do the rest.
        rest: String,
    },
    /// What was given is invalid. The error says what was expected.
    Invalid(io::Error),
    /// The configuration cannot be used.
    Load(LoadError),
    /// The tunnel did not start, or ended by itself.
    Tunnel(tunnel::Error),
}

impl Failure {
    /// A failure that nothing else caused.
    pub(crate) fn new(text: impl Into<String>) -> Failure {
        Failure::Refused(text.into())
    }

    /// Makes a failure of its cause. `what` failed.
    pub(crate) fn of<E: Error + Send + Sync + 'static>(what: impl fmt::Display) -> impl FnOnce(E) -> Failure {
        move |source| Failure::Caused { what: what.to_string(), source: Box::new(source) }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Refused(text) => f.write_str(text)?,
            Failure::Caused { what, .. } => f.write_str(what)?,
            Failure::Halfway { source, rest } if f.alternate() => return write!(f, "{source:#}; {rest}"),
            Failure::Halfway { rest, .. } => f.write_str(rest)?,
            Failure::Invalid(error) => error.fmt(f)?,
            Failure::Load(error) => error.fmt(f)?,
            Failure::Tunnel(error @ tunnel::Error::IoUring { .. }) => {
                write!(f, "{error} (try --io syscalls)")?;
            }
            Failure::Tunnel(error) => error.fmt(f)?,
        }
        match self.source() {
            Some(source) if f.alternate() => write!(f, ": {source:#}"),
            _ => Ok(()),
        }
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Failure::Refused(_) => None,
            Failure::Caused { source, .. } => Some(source.as_ref()),
            Failure::Halfway { source, .. } => Some(source.as_ref()),
            Failure::Invalid(error) => error.source(),
            Failure::Load(error) => error.source(),
            Failure::Tunnel(error) => error.source(),
        }
    }
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Failure {
        Failure::Load(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_its_cause_on_demand_and_keeps_it() {
        let denied = || io::Error::from_raw_os_error(libc::EPERM);
        let failure = Failure::of("ip link add")(denied());
        assert_eq!(failure.to_string(), "ip link add");
        assert_eq!(format!("{failure:#}"), format!("ip link add: {}", denied()));
        let source = failure.source().and_then(|source| source.downcast_ref::<io::Error>());
        assert_eq!(source.and_then(io::Error::raw_os_error), Some(libc::EPERM));
        let outer = Failure::Halfway { source: Box::new(failure), rest: "the address stays".into() };
        assert_eq!(format!("{outer:#}"), format!("ip link add: {}; the address stays", denied()));
        let ended = Failure::of("the tunnel ended by itself")(Failure::of("wg0")(denied()));
        assert_eq!(format!("{ended:#}"), format!("the tunnel ended by itself: wg0: {}", denied()));
        assert_eq!(format!("{:#}", Failure::new("no")), "no");
    }
}
