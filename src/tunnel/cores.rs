//! How many workers a tunnel has by default, and on which core the first of them runs.

use crate::index::WorkerCount;
use crate::slowpath::pinning::allowed_cores;
use crate::sys::group::CpuQuota;
use rustix::thread::{Pid, sched_getaffinity};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::linux::fs::MetadataExt;

/// How the name of a worker's thread begins. Its number follows.
pub(super) const THREAD_PREFIX: &str = "ringtun-";
/// What the kernel calls a process that is ringtun and not another program with the library.
const PROGRAM: &str = "ringtun";
/// Most processes that are looked at. Reading the name of one takes some 5 µs, so all of them take 40 ms at most.
const PROCESSES: usize = 8192;

/// How many cores the calling thread may use.
pub fn core_count() -> usize {
    match allowed_cores().len() {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        count => count,
    }
}

/// One worker for each core that may be used, and no more than the CPU quota keeps busy.
pub fn default_workers(cores: usize, quota: Option<CpuQuota>) -> WorkerCount {
    WorkerCount::nearest(quota.map_or(cores, |quota| quota.cores().min(cores)))
}

/// A worker of some tunnel on this host that is pinned to a core.
#[derive(Clone, Copy, Debug)]
struct Pinned {
    id: usize,
    core: usize,
}

/// The place, among the cores in `allowed`, of the core of worker 0 of the tunnel `name`. The others follow in order.
///
/// All of a tunnel's load falls on few cores where it has few workers or few peers: the first peer's owner is worker 0. So
/// tunnels on one host should begin at different cores, also where all of them are called wg0, each in a namespace of its own.
/// The pinned workers of tunnels that can be seen in /proc are counted, and the least used cores are taken. What cannot be
/// seen (in another container, or about to start in the same moment) is a matter of chance: among cores that are used alike, a
/// hash of the network namespace and the name decides.
pub(super) fn first_place(allowed: &[usize], workers: usize, name: &str) -> usize {
    place(allowed, workers, hash(name), &pinned_workers())
}

fn place(allowed: &[usize], workers: usize, hash: u64, pinned: &[Pinned]) -> usize {
    let count = allowed.len();
    if count == 0 {
        return 0;
    }
    let uses = |core: usize| pinned.iter().filter(|one| one.core == core).count();
    let used: Vec<usize> = allowed.iter().map(|&core| uses(core)).collect();
    let firsts = |place: usize| pinned.iter().filter(|one| one.id == 0 && one.core == allowed[place]).count();
    let start = (hash % count as u64) as usize;
    let around = (0..count).map(|step| (start + step) % count);
    let cost = |&place: &usize| {
        let load: usize = (0..workers).map(|worker| used[(place + worker) % count]).sum();
        (load, firsts(place))
    };
    // Of several that cost least, it is the first.
    around.min_by_key(cost).unwrap_or(start)
}

fn hash(name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    // Where /proc is not there, all namespaces look alike.
    fs::metadata("/proc/thread-self/ns/net").map_or(0, |namespace| namespace.st_ino()).hash(&mut hasher);
    name.hash(&mut hasher);
    hasher.finish()
}

/// The pinned workers of this process, and of those ringtuns that it can see.
fn pinned_workers() -> Vec<Pinned> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let numbers = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let own = std::process::id();
    let is_program = |process: &u32| {
        *process == own
            || fs::read_to_string(format!("/proc/{process}/comm"))
                .is_ok_and(|name| name.trim_end() == PROGRAM)
    };
    numbers.take(PROCESSES).filter(is_program).flat_map(pinned_of).collect()
}

fn pinned_of(process: u32) -> Vec<Pinned> {
    let tasks = format!("/proc/{process}/task");
    let Ok(threads) = fs::read_dir(&tasks) else { return Vec::new() };
    let pinned = |thread: i32| {
        let name = fs::read_to_string(format!("{tasks}/{thread}/comm")).ok()?;
        let id = name.trim_end().strip_prefix(THREAD_PREFIX)?.parse().ok()?;
        let set = sched_getaffinity(Some(Pid::from_raw(thread)?)).ok().filter(|set| set.count() == 1)?;
        let core = (0..rustix::thread::CpuSet::MAX_CPU).find(|&core| set.is_set(core))?;
        Some(Pinned { id, core })
    };
    threads.flatten().filter_map(|entry| pinned(entry.file_name().to_str()?.parse().ok()?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::MAX_WORKERS;
    use proptest::prelude::*;

    #[test]
    fn there_is_a_worker_for_each_core_that_the_quota_keeps_busy() {
        let of = |cores, quota: Option<u64>| {
            default_workers(cores, quota.and_then(|quota| CpuQuota::new(quota, 100_000))).get()
        };
        assert_eq!(of(4, None), 4);
        assert_eq!(of(4, Some(150_000)), 2);
        assert_eq!(of(4, Some(1_000)), 1);
        assert_eq!(of(2, Some(800_000)), 2);
        assert_eq!(of(1000, None), MAX_WORKERS);
        assert_eq!(of(core_count(), None), core_count());
    }

    proptest! {
        #[test]
        fn tunnels_that_see_each_other_use_all_cores_alike(
            cores in 1..64usize, workers in 1..70usize, hashes in prop::collection::vec(any::<u64>(), 1..100)
        ) {
            let allowed: Vec<usize> = (0..cores).map(|n| 2 * n).collect();
            let mut pinned = Vec::new();
            for (n, &hash) in hashes.iter().enumerate() {
                let first = place(&allowed, workers, hash, &pinned);
                if n == 0 {
                    prop_assert_eq!(first as u64, hash % cores as u64);
                }
                pinned.extend((0..workers).map(|id| Pinned { id, core: allowed[(first + id) % cores] }));
            }
            if workers == 1 || workers % cores == 0 {
                let firsts = |core: usize| pinned.iter().filter(|one| one.id == 0 && one.core == core).count();
                let least = allowed.iter().map(|&core| firsts(core)).min().unwrap();
                prop_assert!(allowed.iter().all(|&core| firsts(core) <= least + 1));
            }
        }
    }

    #[test]
    fn names_and_namespaces_make_a_difference() {
        assert_ne!(hash("wg0"), hash("wg1"));
        assert_eq!(place(&[], 1, 7, &[]), 0, "the kernel does not say which cores there are");
        let here = hash("wg0");
        crate::sys::netns::in_netns(move || assert_ne!(hash("wg0"), here));
    }

    #[test]
    fn the_pinned_workers_of_this_process_are_seen() {
        let Some(&core) = allowed_cores().last() else { return };
        let seen = || pinned_workers().into_iter().filter(|one| one.id == 4_711).collect::<Vec<_>>();
        let look = move || {
            assert!(seen().is_empty() || allowed_cores().len() == 1, "it is not pinned");
            assert!(core_affinity::set_for_current(core_affinity::CoreId { id: core }));
            let seen = seen();
            assert!(matches!(&seen[..], [one] if one.core == core), "{seen:?}");
        };
        let thread = std::thread::Builder::new().name(format!("{THREAD_PREFIX}4711")).spawn(look);
        thread.unwrap().join().unwrap();
    }
}
