//! Limits of this process, looked at before anything is made.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::{Error, ErrorKind, Result};

/// File descriptors that a tunnel has open at most while it starts, without those of its workers; rounded up.
const DESCRIPTORS: u64 = 32;
/// The same for each worker: queue, ring, epoll, waker, two sockets, and a second handle of some.
const DESCRIPTORS_OF_WORKER: u64 = 8;
/// So many are wanted: tools may hold 64 connections, and names are resolved meanwhile.
const COMFORTABLE: u64 = 1024;

/// Raises the limit on open files as far as is useful and allowed; an error where it stays too low to start.
pub(super) fn check_descriptors(workers: usize) -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let hard = limit.maximum.unwrap_or(u64::MAX);
    let mut soft = limit.current.unwrap_or(u64::MAX);
    let wanted = hard.min(COMFORTABLE);
    if soft < wanted
        && setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum }).is_ok()
    {
        soft = wanted;
    }
    match shortage(soft, workers) {
        None => Ok(()),
        Some(needed) => Err(Error::new(
            ErrorKind::QuotaExceeded,
            format!(
                "{workers} worker(s) need {needed} file descriptors, and no more than {soft} are allowed: \
                 raise the limit (ulimit -Hn, or LimitNOFILE= of the service), or take fewer workers"
            ),
        )),
    }
}

/// How many descriptors are needed, where `limit` is too low.
fn shortage(limit: u64, workers: usize) -> Option<u64> {
    let needed = DESCRIPTORS + DESCRIPTORS_OF_WORKER * workers as u64;
    (limit < needed).then_some(needed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_must_hold_what_all_workers_need() {
        assert_eq!(shortage(1024, 2), None);
        assert_eq!(shortage(u64::MAX, 64), None);
        assert_eq!(shortage(43, 2), Some(DESCRIPTORS + 2 * DESCRIPTORS_OF_WORKER));
        assert_eq!(shortage(DESCRIPTORS + DESCRIPTORS_OF_WORKER, 1), None);
    }
}
