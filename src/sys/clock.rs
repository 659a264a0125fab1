//! The real clock.

use crate::time::Instant;

/// CLOCK_MONOTONIC, raw: its epoch is the same for every thread of the process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock;

impl Clock {
    /// The time now; never before [`Instant::START`].
    pub fn now(self) -> Instant {
        let mut spec = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `spec` is a valid timespec for the duration of the call; CLOCK_MONOTONIC exists on every Linux.
        unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut spec) };
        let nanos = (spec.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(spec.tv_nsec as u64);
        Instant::from_nanos(nanos).max(Instant::START)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_never_goes_back_and_is_one_for_all_threads() {
        let first = Clock.now();
        let second = std::thread::spawn(|| Clock.now()).join().unwrap();
        let third = Clock.now();
        assert!(Instant::START <= first && first <= second && second <= third);
    }
}
