//! Memory that the allocator holds and nobody uses, and the limit on the memory of this process.

use std::path::Path;

/// Gives whole free pages back to the system, also between used ones. A large configuration leaves many: its text, its parsed
/// form, and the queues through which it went. It takes milliseconds, so it is for rare moments.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) is safe at any time and on any thread; it touches only memory that is free.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Bytes that the memory group of this process may use: the least of its limit and of those of the groups around it
/// (`memory.max` of cgroup v2, or v1's counterpart). `None` where it is unlimited or cannot be read.
pub fn group_limit() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    groups.lines().filter_map(limit_of).min()
}

/// The limit to which one line of `/proc/self/cgroup` leads: `ID:CONTROLLERS:/GROUP`.
fn limit_of(line: &str) -> Option<u64> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (controllers, group) = (fields.next()?, fields.next()?.strip_prefix('/')?);
    match controllers {
        "" => least_limit(Path::new("/sys/fs/cgroup"), group, "memory.max"),
        "memory" => least_limit(Path::new("/sys/fs/cgroup/memory"), group, "memory.limit_in_bytes"),
        _ => None,
    }
}

/// The least limit of `group` and of all groups above it, up to `root`.
fn least_limit(root: &Path, group: &str, file: &str) -> Option<u64> {
    let place = root.join(group);
    let groups = place.ancestors().take_while(|place| place.starts_with(root));
    let limit = |place: &Path| std::fs::read_to_string(place.join(file)).ok()?.trim().parse().ok();
    groups.filter_map(limit).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrowest_group_counts_and_no_limit_is_none() {
        let root = std::env::temp_dir().join(format!("rt-group-{}", std::process::id()));
        let inner = root.join("a/b");
        std::fs::create_dir_all(&inner).unwrap();
        let write = |place: &Path, text: &str| std::fs::write(place.join("memory.max"), text).unwrap();
        let limit = |group| least_limit(&root, group, "memory.max");
        assert_eq!(limit("a/b"), None, "no such files");
        write(&inner, "max\n");
        assert_eq!(limit("a/b"), None);
        write(&root.join("a"), "33554432\n");
        assert_eq!(limit("a/b"), Some(32 << 20));
        write(&inner, "67108864\n");
        assert_eq!(limit("a/b"), Some(32 << 20));
        write(&inner, "16777216\n");
        assert_eq!(limit("a/b"), Some(16 << 20));
        assert_eq!(limit(""), None, "the whole host");
        std::fs::remove_dir_all(&root).unwrap();
    }
}
