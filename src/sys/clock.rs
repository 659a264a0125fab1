//! The real clock, and an alarm by it.

use crate::sys::calls;
use crate::time::Instant;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use rustix::time::{timerfd_create, timerfd_settime};
use std::io::Error;
use std::os::fd::{AsFd, OwnedFd};
use tokio::io::unix::AsyncFd;

const NANOS: u64 = 1_000_000_000;

/// CLOCK_BOOTTIME, raw. Its epoch is the same for every thread of the process. Unlike CLOCK_MONOTONIC it goes on
/// while the host is suspended, so that keys grow old in that time, too (kernel: `ktime_get_coarse_boottime_ns`).
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock;

impl Clock {
    /// The time now; never before [`Instant::START`].
    pub fn now(self) -> Instant {
        read(libc::CLOCK_BOOTTIME)
    }
}

/// Microseconds on CLOCK_MONOTONIC, as systemd counts time.
#[cfg(any(feature = "cli", test))]
pub fn monotonic_micros() -> u64 {
    read(libc::CLOCK_MONOTONIC).as_nanos() / 1000
}

fn read(clock: libc::clockid_t) -> Instant {
    let mut spec = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `spec` is a valid timespec for the duration of the call; both clocks asked for exist on every Linux.
    unsafe { libc::clock_gettime(clock, &mut spec) };
    let nanos = (spec.tv_sec as u64).saturating_mul(NANOS).saturating_add(spec.tv_nsec as u64);
    Instant::from_nanos(nanos).max(Instant::START)
}

/// An alarm at a time of [`Clock`], so that what fell due during a suspend is done on waking. A runtime's own timers
/// stand still with CLOCK_MONOTONIC meanwhile, and would fire late by the time slept.
pub struct Alarm {
    timer: AsyncFd<OwnedFd>,
    at: Option<Instant>,
}

impl Alarm {
    /// An alarm that is not set, on the tokio runtime of the calling thread.
    ///
    /// # Errors
    ///
    /// Where no descriptor is left.
    pub fn new() -> Result<Alarm, Error> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Boottime, flags)?;
        // SAFETY: the AsyncFd owns the descriptor, which stays open and the same until the AsyncFd is dropped.
        Ok(Alarm { timer: unsafe { AsyncFd::register(timer) }?, at: None })
    }

    /// Waits until `at`; not at all where that has passed. The wait may be dropped, and begun again with another
    /// time.
    ///
    /// # Errors
    ///
    /// Where the kernel does not take the time.
    pub async fn ring_at(&mut self, at: Instant) -> Result<(), Error> {
        if self.at != Some(at) {
            let it_value =
                Timespec { tv_sec: (at.as_nanos() / NANOS) as i64, tv_nsec: (at.as_nanos() % NANOS) as _ };
            let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
            // Setting takes back the ring of an earlier time.
            timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &once)?;
            self.at = Some(at);
        }
        loop {
            let mut ready = self.timer.readable().await?;
            ready.clear_ready();
            // Nothing to read: it was the readiness of an earlier time.
            if calls::read(self.timer.get_ref().as_fd(), &mut [0; 8]).is_ok() {
                self.at = None;
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use std::time::Duration;

    #[test]
    fn the_clock_never_goes_back_and_is_one_for_all_threads() {
        let first = Clock.now();
        let second = std::thread::spawn(|| Clock.now()).join().unwrap();
        let third = Clock.now();
        assert!(Instant::START <= first && first <= second && second <= third);
    }

    /// How far the two clocks are apart in the time namespace of the test: as if the host had slept so long.
    const SLEPT: u64 = 1_000_000;

    /// Set for the process in the time namespace, which is this test again.
    const INSIDE: &str = "RINGTUN_TEST_SLEPT";

    #[test]
    fn the_time_that_the_host_slept_counts() {
        if std::env::var_os(INSIDE).is_some() {
            return what_the_clocks_say_after_a_sleep();
        }
        let this = std::env::current_exe().unwrap();
        let test = "sys::clock::tests::the_time_that_the_host_slept_counts";
        let slept = format!("--boottime={SLEPT}");
        let mut run = Command::new("unshare");
        run.args(["--time", "--fork", &slept]).arg(this).args([test, "--exact"]).env(INSIDE, "1");
        let output = run.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
    }

    fn what_the_clocks_say_after_a_sleep() {
        let ahead = Clock.now().as_nanos() / 1000 - monotonic_micros();
        assert!(ahead >= SLEPT * 1_000_000 - 1_000_000, "{ahead}");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(alarm_rings());
    }

    #[tokio::test]
    async fn an_alarm_rings_at_its_time_and_can_be_set_anew() {
        alarm_rings().await;
    }

    async fn alarm_rings() {
        let mut alarm = Alarm::new().unwrap();
        let start = Clock.now();
        let soon = start + Duration::from_millis(20);
        alarm.ring_at(soon).await.unwrap();
        assert!(Clock.now() >= soon);
        alarm.ring_at(start).await.unwrap();
        // Given up for a later time, and for an earlier one again.
        for after in [3600, 7200] {
            let far = alarm.ring_at(Clock.now() + Duration::from_secs(after));
            assert!(tokio::time::timeout(Duration::from_millis(5), far).await.is_err());
        }
        alarm.ring_at(Clock.now() + Duration::from_millis(5)).await.unwrap();
    }
}
