//! Whether this process may change the host's interfaces.

use super::{Failure, Result};

/// CAP_NET_ADMIN's bit (linux/capability.h).
const NET_ADMIN: u64 = 1 << 12;

/// An error with the remedy for who may not.
pub(super) fn check(verb: &str, given: &str) -> Result<()> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    match effective(&status) {
        Some(capabilities) if capabilities & NET_ADMIN == 0 => Err(Failure::new(format!(
            "`ringtun {verb}' needs root, or CAP_NET_ADMIN: sudo ringtun {verb} {given}"
        ))),
        _ => Ok(()),
    }
}

fn effective(status: &str) -> Option<u64> {
    let held = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(held.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_the_kernels_words() {
        assert_eq!(effective("Name:\tx\nCapEff:\t0000000000001000\n"), Some(NET_ADMIN));
        assert_eq!(effective("CapEff:\t0000000000000000\n"), Some(0));
        assert_eq!(effective("Name:\tx\n"), None);
    }
}
