//! Files that another process left open for this one.

use super::error::invalid;
use std::io::Result;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Takes over the file whose number stands in the environment variable `name` (WG_TUN_FD, WG_UAPI_FD). `None` where it is not
/// set. Call it once for each name, before threads start.
///
/// # Errors
///
/// Where the variable is no number of an open file above the standard ones.
pub fn from_env(name: &str) -> Result<Option<OwnedFd>> {
    let Some(text) = std::env::var_os(name) else { return Ok(None) };
    let number = text.to_str().and_then(|text| text.parse::<RawFd>().ok()).filter(|&number| number > 2);
    let Some(number) = number else {
        return Err(invalid(format!(
            "{name} is not the number of an open file: expected 3 or more, found {text:?}"
        )));
    };
    // SAFETY: fcntl(F_SETFD) takes any integer; it fails on one that is not an open file.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(invalid(format!("{name}={number} is not an open file")));
    }
    // SAFETY: the file is open (checked above), above the standard ones, and by the contract of these variables nobody
    // else in this process owns it.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(number) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_open_file_is_refused_by_name() {
        // Values that no other test uses; the names are this test's own.
        for wrong in ["x", "-1", "0", "2", "1048575"] {
            let name = "RINGTUN_TEST_INHERIT";
            // SAFETY: no other thread of this test binary reads or writes this variable.
            unsafe { std::env::set_var(name, wrong) };
            let error = from_env(name).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
        assert!(from_env("RINGTUN_TEST_INHERIT_UNSET").unwrap().is_none());
    }
}
