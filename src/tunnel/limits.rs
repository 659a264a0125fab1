//! Limits of this process, which are left as they are, and of what a tunnel can be. They are checked before anything is made.

use crate::io::slab::MAX_BUFFERS;
use crate::io::udp::{MAX_SOCKET_BUFFER, MIN_SOCKET_BUFFER};
use crate::sys::error::invalid;
use crate::tunnel::workers::MIN_BUFFERS;
use rustix::process::{Resource, getrlimit};
use std::io;

/// File descriptors that a tunnel has open at most while it starts, without those of its workers. It is rounded up.
const DESCRIPTORS: u64 = 32;
/// File descriptors of each worker: queue, ring, epoll, waker, two sockets, and a second handle of some, for changes and for a
/// successor.
const DESCRIPTORS_OF_WORKER: u64 = 10;

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

/// Checks that a worker can do with so many packet buffers and socket buffers of so many bytes.
pub(super) fn check_memory(buffers: usize, socket_buffer: usize) -> io::Result<()> {
    if !(MIN_BUFFERS..=MAX_BUFFERS).contains(&buffers) {
        return Err(invalid(format!(
            "{buffers} packet buffers: a worker can have {MIN_BUFFERS} to {MAX_BUFFERS}"
        )));
    }
    if !(MIN_SOCKET_BUFFER..=MAX_SOCKET_BUFFER).contains(&socket_buffer) {
        return Err(invalid(format!(
            "socket buffers of {socket_buffer} bytes: they can have {MIN_SOCKET_BUFFER} to {MAX_SOCKET_BUFFER}"
        )));
    }
    Ok(())
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
    fn buffers_have_bounds_and_the_error_names_them() {
        check_memory(MIN_BUFFERS, MIN_SOCKET_BUFFER).unwrap();
        check_memory(MAX_BUFFERS, MAX_SOCKET_BUFFER).unwrap();
        let said = |buffers, socket| check_memory(buffers, socket).unwrap_err().to_string();
        assert!(
            said(MIN_BUFFERS - 1, MIN_SOCKET_BUFFER)
                .contains("15 packet buffers: a worker can have 16 to 32768")
        );
        assert!(said(MAX_BUFFERS + 1, MIN_SOCKET_BUFFER).contains("32769"));
        assert!(said(MIN_BUFFERS, MIN_SOCKET_BUFFER - 1).contains("262143 bytes: they can have 262144 to"));
        assert!(said(MIN_BUFFERS, MAX_SOCKET_BUFFER + 1).contains("socket buffers of"));
    }

    #[test]
    fn the_limit_must_hold_what_all_workers_need() {
        assert_eq!(shortage(1024, 2), None);
        assert_eq!(shortage(u64::MAX, 64), None);
        assert_eq!(shortage(43, 2), Some(DESCRIPTORS + 2 * DESCRIPTORS_OF_WORKER));
        assert_eq!(shortage(DESCRIPTORS + DESCRIPTORS_OF_WORKER, 1), None);
    }
}
