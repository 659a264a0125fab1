//! The limits of this process, raised before a tunnel is started.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// How many open files are enough: tools may hold 64 connections, and names are resolved at the same time.
const COMFORTABLE: u64 = 1024;

/// Raises the limit on open files as far as is useful and allowed.
pub fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.unwrap_or(u64::MAX).min(COMFORTABLE);
    if limit.current.is_some_and(|soft| soft < wanted) {
        // Where this fails, the tunnel reports what it lacks.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum });
    }
}
