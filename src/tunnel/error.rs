//! The errors of a tunnel.

use crate::device::ConfigureError;
use crate::tunnel::limits::Shortage;
use crate::tunnel::plural::counted;
use std::fmt;
use std::io;
use std::sync::Arc;

/// Why a tunnel did not start, refused a change, or ended by itself.
///
/// Every variant names the interface. What the kernel said is the source, and the text of the error does not repeat it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Error {
    /// The name is none that an interface can have.
    Name {
        /// The name that was asked for.
        name: String,
        /// What is wrong with the name.
        source: Arc<io::Error>,
    },
    /// The limit on open files (RLIMIT_NOFILE) is too low for so many workers.
    Descriptors {
        /// The name of the interface.
        name: String,
        /// How many workers were asked for.
        workers: usize,
        /// How many files the tunnel needs to open.
        needed: u64,
        /// How many files the process may have open.
        allowed: u64,
    },
    /// A worker cannot have as few or as many packet buffers, or its sockets as small or as large ones.
    Memory {
        /// The name of the interface.
        name: String,
        /// What is possible.
        source: Arc<io::Error>,
    },
    /// io_uring was demanded, and the kernel or a filter of system calls refuses it.
    IoUring {
        /// The name of the interface.
        name: String,
        /// What the kernel said.
        source: Arc<io::Error>,
    },
    /// The TUN device cannot be created, or the one that was handed in cannot be used.
    Interface {
        /// The name of the interface.
        name: String,
        /// What the kernel said, and the remedy where there is one.
        source: Arc<io::Error>,
    },
    /// The configuration socket cannot be made.
    ControlSocket {
        /// The name of the interface.
        name: String,
        /// What the kernel said.
        source: Arc<io::Error>,
    },
    /// A worker's thread, ring or buffers cannot be had.
    Worker {
        /// The name of the interface.
        name: String,
        /// What the kernel said.
        source: Arc<io::Error>,
    },
    /// The tunnel that runs in another process cannot be taken over. It goes on there.
    TakeOver {
        /// The name of the interface.
        name: String,
        /// Why not, and the remedy where there is one.
        source: Arc<io::Error>,
    },
    /// The change names more peers than a tunnel can have. Nothing was changed.
    TooManyPeers {
        /// The name of the interface.
        name: String,
    },
    /// The UDP port or the firewall mark of a change cannot be had. Nothing was changed.
    Bind {
        /// The name of the interface.
        name: String,
        /// What the kernel said.
        source: Arc<io::Error>,
    },
    /// The tunnel ran, and ended as somebody deleted its interface.
    Deleted {
        /// The name of the interface.
        name: String,
        /// The error that its worker got from the TUN device.
        source: Arc<io::Error>,
    },
    /// The tunnel ran, and ended by itself.
    Ended {
        /// The name of the interface.
        name: String,
        /// Why it ended.
        source: Arc<io::Error>,
    },
    /// The tunnel has ended, so that it answers no more. [`Tunnel::wait`](crate::Tunnel::wait) says why it ended.
    Stopped {
        /// The name of the interface.
        name: String,
    },
}

impl Error {
    pub(super) fn name(name: &str) -> impl FnOnce(io::Error) -> Error {
        caused(name, |name, source| Error::Name { name, source })
    }

    pub(super) fn memory(name: &str) -> impl FnOnce(io::Error) -> Error {
        caused(name, |name, source| Error::Memory { name, source })
    }

    pub(super) fn io_uring(name: &str) -> impl FnOnce(io::Error) -> Error {
        caused(name, |name, source| Error::IoUring { name, source })
    }

    pub(super) fn interface(name: &str) -> impl FnOnce(io::Error) -> Error {
        caused(name, |name, source| Error::Interface { name, source })
    }

    pub(super) fn control_socket(name: &str) -> impl FnOnce(io::Error) -> Error {
        caused(name, |name, source| Error::ControlSocket { name, source })
    }

    pub(super) fn worker(name: &str) -> impl FnOnce(io::Error) -> Error {
        caused(name, |name, source| Error::Worker { name, source })
    }

    pub(super) fn take_over(name: &str) -> impl FnOnce(io::Error) -> Error {
        caused(name, |name, source| Error::TakeOver { name, source })
    }

    pub(super) fn short_of(shortage: Shortage, name: &str, workers: usize) -> Error {
        let Shortage { needed, allowed } = shortage;
        Error::Descriptors { name: name.to_owned(), workers, needed, allowed }
    }

    pub(super) fn refused(error: ConfigureError, name: &str) -> Error {
        let name = name.to_owned();
        match error {
            ConfigureError::TooManyPeers => Error::TooManyPeers { name },
            ConfigureError::Socket(source) => Error::Bind { name, source: Arc::new(source) },
        }
    }

    /// The kernel's error, where there is one.
    fn system(&self) -> Option<&io::Error> {
        match self {
            Error::Name { source, .. }
            | Error::Memory { source, .. }
            | Error::IoUring { source, .. }
            | Error::Interface { source, .. }
            | Error::ControlSocket { source, .. }
            | Error::Worker { source, .. }
            | Error::Bind { source, .. }
            | Error::TakeOver { source, .. }
            | Error::Deleted { source, .. }
            | Error::Ended { source, .. } => Some(source),
            Error::Descriptors { .. } | Error::TooManyPeers { .. } | Error::Stopped { .. } => None,
        }
    }
}

/// What makes an error of the interface `name` from what the kernel said.
fn caused(name: &str, make: fn(String, Arc<io::Error>) -> Error) -> impl FnOnce(io::Error) -> Error {
    let name = name.to_owned();
    move |source| make(name, Arc::new(source))
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Name { name, .. } => write!(f, "{name:?} cannot be an interface's name"),
            Error::Descriptors { name, workers, needed, allowed } => write!(
                f,
                "{name}: {} would need {needed} file descriptors, and no more than {allowed} are allowed: \
                 raise the limit (ulimit -Hn, or LimitNOFILE= of the service), or take fewer workers",
                counted(*workers, "worker")
            ),
            Error::Memory { name, .. } => write!(f, "{name}: the workers cannot have these buffers"),
            Error::IoUring { name, .. } => write!(f, "{name}: io_uring cannot be used here"),
            Error::Interface { name, .. } => write!(f, "{name}: cannot create the interface"),
            Error::ControlSocket { name, .. } => write!(f, "{name}: cannot listen for configuration"),
            Error::Worker { name, .. } => write!(f, "{name}: cannot start a worker"),
            Error::TakeOver { name, .. } => write!(f, "{name}: the tunnel cannot be taken over"),
            Error::TooManyPeers { name } => {
                write!(f, "{name}: {}", ConfigureError::TooManyPeers)
            }
            Error::Bind { name, .. } => write!(f, "{name}: the UDP sockets cannot be bound"),
            Error::Deleted { name, .. } | Error::Ended { name, .. } => write!(f, "{name}: the tunnel ended"),
            Error::Stopped { name } => write!(f, "{name}: the tunnel has ended"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.system().map(|error| error as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error as _;

    #[test]
    fn an_error_names_the_interface_and_keeps_what_the_kernel_said_as_its_source() {
        let refused = ConfigureError::Socket(io::Error::from_raw_os_error(98));
        let error = Error::refused(refused, "wg0");
        assert!(error.to_string().starts_with("wg0: ") && !error.to_string().contains("in use"), "{error}");
        let source = error.source().and_then(|source| source.downcast_ref::<io::Error>()).unwrap();
        assert_eq!(source.raw_os_error(), Some(98));
        let error = Error::short_of(Shortage { needed: 48, allowed: 40 }, "wg0", 2);
        assert!(error.to_string().contains("need 48") && error.source().is_none(), "{error}");
    }
}
