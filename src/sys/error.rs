//! System-call errors that say what to do, without losing their error number.

use std::error::Error;
use std::fmt::{self, Display};
use std::io;

/// An error number and the sentence that explains it.
#[derive(Debug)]
struct Explained {
    errno: Option<i32>,
    message: String,
}

impl Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Explained {}

/// What to do where a running process has as many files open as it may (EMFILE).
pub const MORE_FILES: &str =
    "`prlimit --nofile=8192 --pid PID` lets a running process open more files, LimitNOFILE= a service";

/// Puts `what` in front of the text of `error`. Its kind and error number stay.
pub fn explain(error: io::Error, what: impl Display) -> io::Error {
    let message = format!("{what}: {error}");
    io::Error::new(error.kind(), Explained { errno: errno(&error), message })
}

/// The error number of an error, explained or bare. [`io::Error::raw_os_error`] knows only the bare ones.
pub fn errno(error: &io::Error) -> Option<i32> {
    error.raw_os_error().or_else(|| error.get_ref()?.downcast_ref::<Explained>()?.errno)
}

/// Makes an `InvalidInput` error with this text.
pub(crate) fn invalid(message: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn explaining_keeps_kind_and_number_and_both_texts() {
        let bare = io::Error::from_raw_os_error(libc::EADDRINUSE);
        let twice = explain(explain(bare, "port 7"), "wg0");
        assert_eq!(twice.kind(), io::ErrorKind::AddrInUse);
        assert_eq!(errno(&twice), Some(libc::EADDRINUSE));
        assert!(twice.to_string().starts_with("wg0: port 7: Address already in use"), "{twice}");
    }

    #[test]
    fn an_error_without_number_has_none() {
        assert_eq!(errno(&explain(invalid("bad"), "wg0")), None);
    }
}
