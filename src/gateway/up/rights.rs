//! Whether this process may change the host's interfaces.

use super::{Failure, Result};
use crate::gateway::rights::{NetAdmin, net_admin};

/// Fails where this process may not, and says what would help.
pub(super) fn check(verb: &str, given: &str) -> Result<()> {
    match net_admin() {
        NetAdmin::Held => Ok(()),
        _ => Err(Failure::new(format!(
            "`ringtun {verb}' needs root, or CAP_NET_ADMIN: sudo ringtun {verb} {given}"
        ))),
    }
}
