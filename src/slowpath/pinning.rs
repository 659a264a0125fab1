//! Keeps each worker on a core of its own, as far as there are that many, while the cores that the process may use change.
//!
//! Which cores those are is what the slow path's own thread may use: nobody pins it, so it follows the cpuset of its control
//! group, and `taskset -a -p`. A worker's thread does so, too, but for good: where its core is taken away, the kernel lets it run
//! on all that are left, and as its core comes back, it returns there or stays, by version (`user_cpus_ptr`, Linux 6.2).

use crate::sys::group::{self, CpuQuota};
use crate::time::Instant;
use core_affinity::CoreId;
use rustix::thread::{CpuSet, Pid, gettid, sched_getaffinity, sched_setaffinity};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};
use std::time::Duration;

/// Least time between two looks. One costs a system call for each worker, 0.2 µs or so, and comes only where the slow path is
/// awake for something else: where nothing happens, it does not matter where the workers sleep.
const INTERVAL: Duration = Duration::from_secs(2);

/// The cores that the calling thread may use, in ascending order. It is empty where the kernel does not say.
pub fn allowed_cores() -> Vec<usize> {
    core_affinity::get_core_ids().unwrap_or_default().into_iter().map(|core| core.id).collect()
}

/// The core of each worker, for all of a tunnel's life. Clones are of the same workers.
#[derive(Clone)]
pub struct Pinning {
    /// The thread of each worker. 0 where it does not run.
    threads: Arc<[AtomicI32]>,
    /// The place of the core of worker 0 among those allowed. Others follow in order, and around.
    first: usize,
    cores: Cores,
    look_at: Instant,
}

/// What the process may use.
#[derive(Clone)]
struct Cores {
    allowed: Vec<usize>,
    /// Whether the CPU quota keeps fewer cores busy than are allowed. Then a worker that is bound to one of them could be out of
    /// time while another core has some left, so the choice is the scheduler's.
    scarce: bool,
}

impl Cores {
    fn new(allowed: Vec<usize>, quota: Option<CpuQuota>) -> Cores {
        let scarce = quota.is_some_and(|quota| quota.is_below(allowed.len()));
        Cores { allowed, scarce }
    }

    /// The cores that a worker is to run on: its own, or all.
    fn of(&self, worker: usize, first: usize) -> &[usize] {
        match self.allowed.len() {
            0 => &[],
            _ if self.scarce => &self.allowed,
            count => std::slice::from_ref(&self.allowed[(worker + first) % count]),
        }
    }
}

impl Pinning {
    /// Plans for so many workers on the cores that the calling thread may use. `first` chooses the place of the core of
    /// worker 0 among them.
    pub fn new(workers: usize, first: impl FnOnce(&[usize]) -> usize) -> Pinning {
        let cores = Cores::new(allowed_cores(), group::cpu_quota());
        Pinning {
            threads: (0..workers).map(|_| AtomicI32::new(0)).collect(),
            first: first(&cores.allowed),
            cores,
            look_at: Instant::START,
        }
    }

    /// Does `work` as worker `id`, on its core.
    pub fn run<R>(&self, id: usize, work: impl FnOnce() -> R) -> R {
        if let &[core] = self.cores.of(id, self.first)
            && !core_affinity::set_for_current(CoreId { id: core })
        {
            log::warn!("worker {id} cannot be pinned to core {core}, and runs on any");
        }
        let _running = NotedThread::note(&self.threads[id]);
        work()
    }

    /// Brings workers to their cores where those changed that may be used. It must be called on a thread that nobody pinned.
    pub fn look(&mut self, now: Instant) {
        if now < self.look_at {
            return;
        }
        self.look_at = now + INTERVAL;
        let allowed = allowed_cores();
        if allowed.is_empty() {
            return;
        }
        let changed = allowed != self.cores.allowed;
        if changed {
            self.cores = Cores::new(allowed, group::cpu_quota());
            log::info!("other cores may be used than before: now {:?}", self.cores.allowed);
        }
        for (id, thread) in self.threads.iter().enumerate() {
            if let Some(thread) = Pid::from_raw(thread.load(Relaxed)) {
                bring(thread, self.cores.of(id, self.first), changed);
            }
        }
    }
}

/// Brings a thread to `cores`. One that is bound to as few or fewer, although to others, was put there by somebody, and stays
/// until `changed` says that the cores are others now.
fn bring(thread: Pid, cores: &[usize], changed: bool) {
    let mut wanted = CpuSet::new();
    cores.iter().for_each(|&core| wanted.set(core));
    let is_right = |set: CpuSet| set == wanted || (!changed && set.count() <= wanted.count());
    if sched_getaffinity(Some(thread)).is_ok_and(is_right) {
        return;
    }
    // The cores may have changed once more. Then the next look sees it.
    if let Err(error) = sched_setaffinity(Some(thread), &wanted) {
        log::debug!("a worker cannot be moved to cores {cores:?}: {error}");
    }
}

/// A worker's thread while it runs: its number may be another's afterwards.
struct NotedThread<'a>(&'a AtomicI32);

impl NotedThread<'_> {
    fn note(thread: &AtomicI32) -> NotedThread<'_> {
        thread.store(gettid().as_raw_pid(), Relaxed);
        NotedThread(thread)
    }
}

impl Drop for NotedThread<'_> {
    fn drop(&mut self) {
        self.0.store(0, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rustix::thread::sched_getcpu;
    use std::io::Write;
    use std::sync::{Barrier, mpsc};

    fn set(cores: &[usize]) -> CpuSet {
        let mut set = CpuSet::new();
        cores.iter().for_each(|&core| set.set(core));
        set
    }

    /// Runs `test` on a thread of its own with the cores that this one may use, if those are several.
    fn with_cores(test: impl FnOnce(Vec<usize>) + Send + 'static) {
        let cores = allowed_cores();
        if cores.len() < 2 {
            let name = std::thread::current().name().unwrap_or_default().to_owned();
            let _ = writeln!(std::io::stderr(), "SKIPPED: {name} because it needs two cores");
            return;
        }
        std::thread::spawn(move || test(cores)).join().unwrap();
    }

    /// Runs `test` beside so many workers. It gets a function that returns on which cores each may run.
    fn beside(pinning: &Pinning, test: impl FnOnce(&dyn Fn() -> Vec<CpuSet>)) {
        let count = pinning.threads.len();
        let running = Barrier::new(count + 1);
        std::thread::scope(|scope| {
            let work = |id| {
                let (end, ended) = mpsc::channel::<()>();
                let running = &running;
                scope.spawn(move || {
                    pinning.run(id, || {
                        running.wait();
                        ended.recv().unwrap_err()
                    })
                });
                end
            };
            let _ends: Vec<_> = (0..count).map(work).collect();
            running.wait();
            test(&|| {
                let of = |thread: &AtomicI32| sched_getaffinity(Pid::from_raw(thread.load(Relaxed))).unwrap();
                pinning.threads.iter().map(of).collect()
            });
        });
    }

    #[test]
    fn workers_follow_the_cores_that_may_be_used_to_fewer_and_back() {
        with_cores(|cores| {
            let mut pinning = Pinning::new(cores.len(), |_| 1);
            pinning.cores.scarce = false;
            let mut looked = pinning.clone();
            let own: Vec<CpuSet> = (0..cores.len()).map(|id| set(&[cores[(id + 1) % cores.len()]])).collect();
            beside(&pinning, |placed| {
                assert_eq!(placed(), own);
                // As if the cpuset had shrunk, and the kernel had moved the workers.
                let last = *cores.last().unwrap();
                sched_setaffinity(None, &set(&[last])).unwrap();
                looked.look(Instant::START);
                assert!(placed().iter().all(|&placed| placed == set(&[last])));
                sched_setaffinity(None, &set(&cores)).unwrap();
                looked.look(Instant::START + INTERVAL / 2);
                assert!(placed().iter().all(|&placed| placed == set(&[last])), "it is not time yet");
                looked.look(Instant::START + INTERVAL);
                assert_eq!(placed(), own);
            });
        });
    }

    #[test]
    fn a_worker_that_was_let_loose_returns_and_one_that_was_put_elsewhere_stays() {
        with_cores(|cores| {
            let mut pinning = Pinning::new(2, |_| 0);
            pinning.cores.scarce = false;
            let mut looked = pinning.clone();
            beside(&pinning, |placed| {
                let thread = |id: usize| Pid::from_raw(pinning.threads[id].load(Relaxed));
                sched_setaffinity(thread(0), &set(&cores)).unwrap();
                sched_setaffinity(thread(1), &set(&cores[..1])).unwrap();
                looked.look(Instant::START);
                assert_eq!(placed(), [set(&cores[..1]), set(&cores[..1])]);
            });
            assert!(pinning.threads.iter().all(|thread| thread.load(Relaxed) == 0), "they have ended");
            looked.look(Instant::START + INTERVAL);
        });
    }

    #[test]
    fn a_worker_runs_on_its_core() {
        with_cores(|cores| {
            let mut pinning = Pinning::new(2, |_| 0);
            pinning.cores.scarce = false;
            std::thread::spawn(move || assert_eq!(pinning.run(1, sched_getcpu), cores[1])).join().unwrap();
        });
    }

    #[test]
    fn where_the_quota_is_smaller_than_the_cores_the_scheduler_chooses() {
        let quota = |quota| CpuQuota::new(quota, 100_000);
        let of = |quota| Cores::new(vec![0, 1], quota).of(1, 0).to_vec();
        assert_eq!(of(None), [1]);
        assert_eq!(of(quota(200_000)), [1]);
        assert_eq!(of(quota(199_999)), [0, 1]);
        assert!(Cores::new(Vec::new(), None).of(1, 0).is_empty(), "the kernel does not say which there are");
    }

    proptest! {
        #[test]
        fn each_worker_has_a_core_of_its_own_as_far_as_there_are_that_many(
            allowed in prop::collection::btree_set(0..1024usize, 1..300), workers in 1..257usize, first: u16
        ) {
            let cores = Cores::new(allowed.iter().copied().collect(), None);
            let mut used = std::collections::BTreeMap::new();
            for worker in 0..workers {
                let [core] = cores.of(worker, first.into()) else { panic!("one core") };
                prop_assert!(allowed.contains(core));
                *used.entry(core).or_insert(0) += 1;
            }
            prop_assert_eq!(used.len(), workers.min(allowed.len()));
            prop_assert!(used.values().all(|&count| count <= workers.div_ceil(allowed.len())));
        }
    }
}
