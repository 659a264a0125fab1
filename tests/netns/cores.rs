//! Workers and the cores that a control group or a mask leaves them.

use crate::implementation::{ringtun, stand_in};
use crate::lab::{Host, Process, eventually, ready, serial, sh, skip, wait_for};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(20);
/// Where `ip netns add` puts namespaces.
const NAMESPACES: &str = "/run/netns";

/// A control group of a test, which goes away with it.
pub(crate) struct Group {
    path: PathBuf,
    /// Whether it is of cgroup v2.
    unified: bool,
}

impl Group {
    /// A group in the hierarchy of `controller`, in whichever version that is; says so where none can be made.
    pub(crate) fn new(controller: &str) -> Option<Group> {
        let unified = PathBuf::from("/sys/fs/cgroup");
        let name = format!("rt-{}-{}", std::process::id(), serial());
        let has_v2 = fs::read_to_string(unified.join("cgroup.controllers"))
            .is_ok_and(|all| all.split_whitespace().any(|one| one == controller));
        let group = match has_v2 {
            true => {
                let _ = fs::write(unified.join("cgroup.subtree_control"), format!("+{controller}"));
                Group { path: unified.join(name), unified: true }
            }
            false => Group { path: unified.join(controller).join(name), unified: false },
        };
        // Of a run that was interrupted: process ids come again.
        let _ = fs::remove_dir(&group.path);
        if let Err(error) = fs::create_dir(&group.path) {
            skip(&format!("no control group {} can be made: {error}", group.path.display()));
            return None;
        }
        if !group.path.join("cgroup.procs").exists() {
            skip(&format!("{} is no control group", group.path.display()));
            return None;
        }
        Some(group)
    }

    /// Takes a process in, with all its threads.
    pub(crate) fn enter(&self, pid: u32) {
        self.write("cgroup.procs", &pid.to_string());
    }

    /// Lets its processes have so many bytes of memory.
    pub(crate) fn set_memory(&self, bytes: u64) {
        let file = if self.unified { "memory.max" } else { "memory.limit_in_bytes" };
        self.write(file, &bytes.to_string());
    }

    fn write(&self, file: &str, text: &str) {
        let path = self.path.join(file);
        fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {text}: {error}", path.display()));
    }

    /// Lets its processes use these cores.
    pub(crate) fn set_cores(&self, cores: &str) {
        if !self.unified {
            let all = fs::read_to_string(self.path.join("../cpuset.mems")).expect("nodes of memory");
            self.write("cpuset.mems", all.trim());
        }
        self.write("cpuset.cpus", cores);
    }

    /// Lets its processes run for so many thousandths of a core's time.
    fn set_quota(&self, thousandths: u32) {
        if self.unified {
            self.write("cpu.max", &format!("{} 100000", thousandths * 100));
        } else {
            self.write("cpu.cfs_period_us", "100000");
            self.write("cpu.cfs_quota_us", &(thousandths * 100).to_string());
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A process that has ended may still be on its way out; one that lives goes back to where it was.
        let parent = self.path.join("../cgroup.procs");
        let removed = wait_for(Duration::from_secs(5), || {
            for pid in fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default().lines() {
                let _ = fs::write(&parent, pid);
            }
            fs::remove_dir(&self.path).ok()
        });
        assert!(removed.is_some() || std::thread::panicking(), "{} stays behind", self.path.display());
    }
}

/// A running ringtun in a namespace of its own, which sees this host's control groups.
struct Tunnel {
    process: Process,
    host: Host,
    name: String,
}

impl Tunnel {
    fn start(group: Option<&Group>, options: &str) -> Tunnel {
        let host = Host::namespace();
        let name = format!("rtc{}x{}", std::process::id() % 100_000, serial());
        let enter =
            group.map_or(String::new(), |group| format!("echo $$ >{}/cgroup.procs; ", group.path.display()));
        // Not by `ip netns exec`, which mounts another /sys.
        let script = format!(
            "{enter}exec nsenter --net={NAMESPACES}/{} {} -f {options} {name}",
            host.name(),
            ringtun().display()
        );
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM", "sh", "-ec", &script]).env_remove("RINGTUN_WORKERS");
        let process = Process::start(command);
        let tunnel = Tunnel { process, host, name };
        eventually("it answers", SOON, || tunnel.poke());
        tunnel
    }

    /// Asks the slow path something, so that it is awake.
    fn poke(&self) -> bool {
        self.host.try_run(&format!("wg show {}", self.name)).is_ok()
    }

    /// On which cores each worker may run.
    fn placed(&self) -> Vec<String> {
        let mut placed = BTreeMap::new();
        let tasks = fs::read_dir(format!("/proc/{}/task", self.process.pid())).expect("a running process");
        for task in tasks.flatten() {
            let read = |file: &str| fs::read_to_string(task.path().join(file)).unwrap_or_default();
            let Some(id) = read("comm").trim().strip_prefix("ringtun-").and_then(|id| id.parse::<u8>().ok())
            else {
                continue;
            };
            let status = read("status");
            let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
            placed.insert(id, line.expect("a list").trim().to_owned());
        }
        placed.into_values().collect()
    }

    #[track_caller]
    fn comes_to(&self, what: &str, is_right: impl Fn(&[String]) -> bool) {
        let looks = wait_for(SOON, || (self.poke() && is_right(&self.placed())).then_some(()));
        assert!(looks.is_some(), "{what}: {:?} {}", self.placed(), self.process.said());
    }
}

/// The first two cores that this process may use; says so where there are not so many.
pub(crate) fn two_cores() -> Option<[String; 2]> {
    let all = sh("taskset -cp $$").unwrap_or_default();
    let ranges = all.rsplit(' ').next().unwrap_or_default().trim().split(',');
    let mut cores = ranges.flat_map(|range| {
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        from.parse::<usize>().unwrap_or(1)..=to.parse().unwrap_or(0)
    });
    match (cores.next(), cores.next()) {
        (Some(one), Some(other)) => Some([one.to_string(), other.to_string()]),
        _ => {
            skip("it needs two cores");
            None
        }
    }
}

fn is_on_own(placed: &[String], cores: &[String; 2]) -> bool {
    let mut placed = placed.to_vec();
    placed.sort_by_key(|core| core.parse::<usize>().unwrap_or(usize::MAX));
    placed == *cores
}

#[test]
fn workers_follow_the_cpuset_of_their_group() {
    if !ready() || stand_in() {
        return;
    }
    let (Some(cores), Some(group)) = (two_cores(), Group::new("cpuset")) else { return };
    let (all, last) = (cores.join(","), &cores[1]);
    group.set_cores(&all);
    let tunnel = Tunnel::start(Some(&group), "");
    tunnel.comes_to("one worker for each core", |placed| is_on_own(placed, &cores));
    for _ in 0..2 {
        group.set_cores(last);
        tunnel.comes_to("all on the core that is left", |placed| placed == [last.clone(), last.clone()]);
        group.set_cores(&all);
        tunnel.comes_to("each on its own again", |placed| is_on_own(placed, &cores));
    }
}

#[test]
fn a_tunnel_that_began_on_few_cores_uses_those_that_it_is_given_later() {
    if !ready() || stand_in() {
        return;
    }
    let (Some(cores), Some(group)) = (two_cores(), Group::new("cpuset")) else { return };
    group.set_cores(&cores[0]);
    let tunnel = Tunnel::start(Some(&group), "--workers 2");
    tunnel.comes_to("both on the only core", |placed| placed == [cores[0].clone(), cores[0].clone()]);
    group.set_cores(&cores.join(","));
    tunnel.comes_to("each on its own", |placed| is_on_own(placed, &cores));
}

#[test]
fn workers_follow_the_mask_that_all_threads_are_given() {
    if !ready() || stand_in() {
        return;
    }
    let Some(cores) = two_cores() else { return };
    let tunnel = Tunnel::start(None, "--workers 2");
    let allow = |cores: &str| {
        sh(&format!("taskset -a -cp {cores} {}", tunnel.process.pid())).expect("taskset");
    };
    allow(&cores[1]);
    tunnel.comes_to("both on one core", |placed| placed == [cores[1].clone(), cores[1].clone()]);
    allow(&cores.join(","));
    tunnel.comes_to("each on its own", |placed| is_on_own(placed, &cores));
}

#[test]
fn a_quota_bounds_the_workers_and_unpins_them_where_it_is_smaller_than_the_cores() {
    if !ready() || stand_in() {
        return;
    }
    let (Some(_), Some(group)) = (two_cores(), Group::new("cpu")) else { return };
    let placed = |thousandths, options: &str| {
        group.set_quota(thousandths);
        Tunnel::start(Some(&group), options).placed()
    };
    let many = sh("nproc").expect("nproc").trim().parse::<u32>().expect("a number");
    let one = placed(700, "");
    assert!(one.len() == 1 && one[0].contains(['-', ',']), "{one:?}");
    let two = placed(1500, "");
    assert!(two.len() == 2 && two.iter().all(|cores| cores.contains(['-', ','])), "{two:?}");
    let all = placed(1000 * many, "--workers 2");
    assert!(all.len() == 2 && all.iter().all(|core| core.parse::<usize>().is_ok()), "{all:?}");
}

/// In a PID namespace of their own, so that no other tunnel of this host is counted.
#[test]
fn tunnels_of_one_name_in_several_namespaces_begin_at_different_cores() {
    if !ready() || stand_in() {
        return;
    }
    let Some(cores) = two_cores() else { return };
    let hosts = [Host::namespace(), Host::namespace()];
    let each = |host: &Host| {
        let (namespace, ringtun) = (format!("{NAMESPACES}/{}", host.name()), ringtun());
        format!(
            "unshare -m sh -c 'mkdir -p /var/run/wireguard; mount -t tmpfs none /var/run/wireguard; \
             exec nsenter --net={namespace} {} -f --workers 1 rt-same' & \
             until nsenter --net={namespace} ip link show rt-same >/dev/null 2>&1; do sleep 0.1; done; sleep 0.5;",
            ringtun.display()
        )
    };
    let script = format!(
        "{}{}for task in /proc/[0-9]*/task/*; do \
         [ \"$(cat $task/comm)\" != ringtun-0 ] || grep Cpus_allowed_list: $task/status; done",
        each(&hosts[0]),
        each(&hosts[1])
    );
    let confined = ["taskset", "-c", &cores.join(","), "timeout", "-s", "KILL", "60", "unshare"];
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).args(confined);
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", &script]);
    let said = Process::start(command).wait_said();
    let mut used: Vec<&str> = said
        .lines()
        .filter(|line| line.contains("Cpus_allowed_list:"))
        .filter_map(|line| line.split('\t').nth(1))
        .collect();
    used.sort_by_key(|core| core.parse::<usize>().unwrap_or(usize::MAX));
    assert_eq!(used, cores, "{said}");
}
