//! What the control groups of this process allow it: memory, and time on its cores.
//!
//! A limit of a group binds all groups within it, so the least one counts on the way from the process's own group to the root.

use std::cmp::Ordering;
use std::path::{Path, PathBuf};

/// Where the hierarchies are mounted, and below it the one of cgroup v2 beside those of v1.
const ROOT: &str = "/sys/fs/cgroup";
const UNIFIED: &str = "unified";

/// Time that a group may run on all cores together within each period: `quota` of `period` microseconds.
#[derive(Clone, Copy, Debug)]
pub struct CpuQuota {
    quota: u64,
    period: u64,
}

impl CpuQuota {
    /// `None` where there is no such quota, as a period has no length.
    pub const fn new(quota: u64, period: u64) -> Option<CpuQuota> {
        if period == 0 { None } else { Some(CpuQuota { quota, period }) }
    }

    /// How many cores the quota keeps busy all the time, rounded up.
    pub fn cores(self) -> usize {
        usize::try_from(self.quota.div_ceil(self.period)).unwrap_or(usize::MAX)
    }

    /// Whether the quota is used up before so many busy cores reach the end of the period.
    pub fn is_below(self, cores: usize) -> bool {
        u128::from(self.quota) < cores as u128 * u128::from(self.period)
    }

    fn cmp(self, other: CpuQuota) -> Ordering {
        let (ours, theirs) = (
            u128::from(self.quota) * u128::from(other.period),
            u128::from(other.quota) * u128::from(self.period),
        );
        ours.cmp(&theirs)
    }

    /// What `cpu.max` of cgroup v2 says: `QUOTA PERIOD`, where the quota may be `max`.
    fn parse(text: &str) -> Option<CpuQuota> {
        let mut words = text.split_whitespace().map(str::parse);
        CpuQuota::new(words.next()?.ok()?, words.next()?.ok()?)
    }
}

impl std::fmt::Display for CpuQuota {
    /// As a number of cores.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let hundredths = u128::from(self.quota) * 100 / u128::from(self.period);
        write!(f, "{}.{:02}", hundredths / 100, hundredths % 100)
    }
}

/// Bytes that this process may use, by its groups (`memory.max` of cgroup v2, `memory.limit_in_bytes` of v1). `None` where
/// that is unlimited or cannot be read.
pub fn memory_limit() -> Option<u64> {
    least_memory(&places(Path::new(ROOT), &groups(), "memory"))
}

/// The time on its cores that this process may use, by its groups (`cpu.max` of cgroup v2, `cpu.cfs_quota_us` and
/// `cpu.cfs_period_us` of v1). `None` where that is unlimited or cannot be read.
pub fn cpu_quota() -> Option<CpuQuota> {
    least_quota(&places(Path::new(ROOT), &groups(), "cpu"))
}

/// The process's group in the hierarchy of cgroup v2. `None` where there is none, or it cannot be read.
#[cfg(feature = "cli")]
pub fn own() -> Option<String> {
    groups().lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
}

/// Moves this process to a group of cgroup v2.
///
/// # Errors
///
/// Where there is no such group, or the process may not move there.
#[cfg(feature = "cli")]
pub fn join(group: &str) -> std::io::Result<()> {
    let own = |root: PathBuf| root.join(group.trim_start_matches('/')).join("cgroup.procs");
    let root = Path::new(ROOT);
    let file = [own(root.join(UNIFIED)), own(root.to_path_buf())].into_iter().find(|file| file.exists());
    let file = file.ok_or(std::io::ErrorKind::NotFound)?;
    std::fs::write(file, std::process::id().to_string())
}

fn groups() -> String {
    std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default()
}

fn least_memory(places: &[PathBuf]) -> Option<u64> {
    let read =
        |place: &PathBuf| number(place, "memory.max").or_else(|| number(place, "memory.limit_in_bytes"));
    places.iter().filter_map(read).min()
}

fn least_quota(places: &[PathBuf]) -> Option<CpuQuota> {
    let read = |place: &PathBuf| match std::fs::read_to_string(place.join("cpu.max")) {
        Ok(text) => CpuQuota::parse(&text),
        // Without a limit the quota is -1.
        Err(_) => CpuQuota::new(number(place, "cpu.cfs_quota_us")?, number(place, "cpu.cfs_period_us")?),
    };
    places.iter().filter_map(read).min_by(|a, b| a.cmp(*b))
}

/// The number in a file. `None` where there is none, such as for `max`.
fn number(place: &Path, file: &str) -> Option<u64> {
    std::fs::read_to_string(place.join(file)).ok()?.trim().parse().ok()
}

/// The directories of the groups that limit this process in what `controller` is for: of each hierarchy that `groups` (the
/// text of `/proc/self/cgroup`) names, the process's own and all above it, as far as they can be seen. A container often
/// sees its own group as the root of a hierarchy, while `groups` says where that is on the host.
fn places(root: &Path, groups: &str, controller: &str) -> Vec<PathBuf> {
    let mut places = Vec::new();
    for line in groups.lines() {
        // ID:CONTROLLERS:/GROUP, without controllers in cgroup v2.
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (fields.next(), fields.next()) else { continue };
        let mounts = match controllers {
            "" => vec![root.to_path_buf(), root.join(UNIFIED)],
            _ if controllers.split(',').any(|one| one == controller) => vec![root.join(controller)],
            _ => continue,
        };
        for mount in mounts {
            let own = mount.join(group.trim_start_matches('/'));
            places
                .extend(own.ancestors().take_while(|place| place.starts_with(&mount)).map(Path::to_path_buf));
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    /// A tree like that of the kernel, which goes away with it.
    struct Tree(PathBuf);

    impl Tree {
        fn new() -> Tree {
            static SERIAL: AtomicU32 = AtomicU32::new(0);
            let name = format!("rt-group-{}-{}", std::process::id(), SERIAL.fetch_add(1, Relaxed));
            Tree(std::env::temp_dir().join(name))
        }

        fn write(&self, file: &str, text: &str) {
            let path = self.0.join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }

        fn memory(&self, groups: &str) -> Option<u64> {
            least_memory(&places(&self.0, groups, "memory"))
        }

        fn quota(&self, groups: &str) -> Option<String> {
            least_quota(&places(&self.0, groups, "cpu")).map(|quota| quota.to_string())
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_narrowest_group_counts_and_no_limit_is_none() {
        let tree = Tree::new();
        let limit = |group: &str| tree.memory(&format!("0::/{group}\n"));
        assert_eq!(limit("a/b"), None, "no such files");
        tree.write("a/b/memory.max", "max\n");
        assert_eq!(limit("a/b"), None);
        tree.write("a/memory.max", "33554432\n");
        assert_eq!(limit("a/b"), Some(32 << 20));
        tree.write("a/b/memory.max", "67108864\n");
        assert_eq!(limit("a/b"), Some(32 << 20));
        tree.write("a/b/memory.max", "16777216\n");
        assert_eq!(limit("a/b"), Some(16 << 20));
        assert_eq!(limit(""), None, "the whole host");
    }

    #[test]
    fn a_quota_of_the_own_group_or_of_one_above_it_counts() {
        let tree = Tree::new();
        let quota = |group: &str| tree.quota(&format!("0::/{group}\n"));
        tree.write("a/cpu.max", "max 100000\n");
        assert_eq!(quota("a/b"), None);
        tree.write("a/b/cpu.max", "150000 100000\n");
        assert_eq!(quota("a/b").as_deref(), Some("1.50"));
        assert_eq!(quota("a"), None);
        tree.write("a/cpu.max", "50000 50000\n");
        assert_eq!(quota("a/b").as_deref(), Some("1.00"));
        tree.write("cpu.max", "25000 50000\n");
        assert_eq!(quota("a/b").as_deref(), Some("0.50"), "a container's own group is its root");
    }

    #[test]
    fn hierarchies_of_the_first_version_are_read_beside_and_instead_of_the_second() {
        let tree = Tree::new();
        let groups = "12:cpu,cpuacct:/docker/1\n5:cpuset:/docker/1\n4:memory:/docker/1\n0::/docker/1\n";
        tree.write("cpu/docker/1/cpu.cfs_quota_us", "-1\n");
        tree.write("cpu/docker/1/cpu.cfs_period_us", "100000\n");
        assert_eq!((tree.quota(groups), tree.memory(groups)), (None, None));
        tree.write("cpu/docker/1/cpu.cfs_quota_us", "250000\n");
        tree.write("memory/memory.limit_in_bytes", "16777216\n");
        tree.write("cpuset/docker/1/cpu.cfs_quota_us", "1\n");
        assert_eq!((tree.quota(groups).as_deref(), tree.memory(groups)), (Some("2.50"), Some(16 << 20)));
        tree.write("unified/docker/cpu.max", "100000 100000\n");
        assert_eq!(tree.quota(groups).as_deref(), Some("1.00"));
    }

    #[test]
    fn what_is_no_limit_is_taken_for_none() {
        for text in ["", "max", "max 100000", "100000", "100000 0", "-1 100000", "x y"] {
            assert!(CpuQuota::parse(text).is_none(), "{text:?}");
        }
        let tree = Tree::new();
        assert_eq!(tree.quota("nonsense\n1:\n::\n0::\n\n"), None);
    }

    proptest! {
        #[test]
        fn a_quota_is_rounded_up_to_cores_and_the_least_is_found(
            all in prop::collection::vec((1_000..10_000_000u64, 1_000..1_000_000u64), 1..6)
        ) {
            let tree = Tree::new();
            let mut group = String::new();
            for (quota, period) in &all {
                group.push_str("/g");
                tree.write(&format!("{}/cpu.max", &group[1..]), &format!("{quota} {period}\n"));
            }
            let least = least_quota(&places(&tree.0, &format!("0::{group}\n"), "cpu")).unwrap();
            let exact = all.iter().map(|(quota, period)| *quota as f64 / *period as f64).fold(f64::MAX, f64::min);
            let cores = least.cores();
            prop_assert!(cores as f64 >= exact && ((cores - 1) as f64) < exact, "{cores} for {exact}");
            prop_assert!(!least.is_below(cores - 1) && least.is_below(cores + 1));
            prop_assert_eq!(least.is_below(cores), exact < cores as f64);
        }
    }
}
