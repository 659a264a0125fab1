//! Limits of this process, checked before anything is made, and left as they are.

use rustix::process::{Resource, getrlimit};

/// File descriptors that a tunnel has open at most while it starts, without those of its workers. It is rounded up.
const DESCRIPTORS: u64 = 32;
/// File descriptors of each worker: queue, ring, epoll, waker, two sockets, and a second handle of some.
const DESCRIPTORS_OF_WORKER: u64 = 8;

/// The error of a limit that is too low.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Shortage {
    pub(super) needed: u64,
    pub(super) allowed: u64,
}

/// Checks that so many workers may have the files that they need.
pub(super) fn check_descriptors(workers: usize) -> Result<(), Shortage> {
    let allowed = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    shortage(allowed, workers).map_or(Ok(()), |needed| Err(Shortage { needed, allowed }))
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
