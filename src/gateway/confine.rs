//! What the process of a running tunnel gives up, so that whoever takes it over gains little: capabilities, new privileges,
//! programs, most files, most system calls, core dumps.
//!
//! The first part comes before any thread is started, since capabilities and Landlock are a thread's own, and those that it
//! starts have what it has. The filter of system calls comes last, for all threads, as starting a tunnel takes more of them.
//! Hooks, routes and firewall rules are the work of `up`, which is another process and keeps all that it has.
//!
//! Where a kernel or container lacks one of these, the tunnel runs without it, and a line of the log says so.

mod calls;

use crate::gateway::recall;
use crate::tunnel::socket::{DIRECTORY, make_directory};
use landlock::{
    ABI, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_no_new_privs};
use std::fs::File;
use std::io;
use std::path::Path;

/// What a running tunnel needs: sockets with a mark or a large buffer and the device's settings (NET_ADMIN), ICMP to inner
/// sources (NET_RAW), a port below 1024 (NET_BIND_SERVICE), steering of the TUN queues (BPF). One that `up` did not start also
/// follows its interface into another network namespace (SYS_ADMIN).
const KEPT: CapabilitySet = CapabilitySet::NET_ADMIN
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::BPF);

/// The version of Landlock whose rights are taken away. An older kernel takes away what it knows.
const LANDLOCK: ABI = ABI::V6;

/// Takes from this thread, and from those that it will start, what no running tunnel needs. `config` is the file that it goes on
/// reading, if there is one.
pub fn before_start(config: Option<&Path>) {
    tell("core dumps", off_the_disk());
    tell("capabilities", drop_capabilities(config));
    tell("new privileges", set_no_new_privs(true).map_err(Into::into));
    match confine_files() {
        Ok(RulesetStatus::NotEnforced) => log::info!("files: the kernel has no Landlock"),
        Ok(_) => {}
        Err(error) => log::warn!("files are not confined: {error}"),
    }
}

/// Filters the system calls of all threads from now on. All rings of io_uring must be there.
pub fn after_start() {
    if let Err(error) = calls::filter() {
        log::warn!("system calls are not filtered: {error}");
    }
}

fn tell(what: &str, outcome: io::Result<()>) {
    if let Err(error) = outcome {
        log::warn!("{what} are not confined: {error}");
    }
}

/// Keeps keys out of core dumps, and the process's memory out of the reach of others of the same user.
fn off_the_disk() -> io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Gives up all capabilities but [`KEPT`], and that to read any file where the configuration cannot be read without, as it is
/// another user's.
fn drop_capabilities(config: Option<&Path>) -> io::Result<()> {
    let had = capabilities(None)?;
    let limit = |set: CapabilitySet| {
        let kept = had.permitted & set;
        CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() }
    };
    // The effective ones can be had back, as long as they are permitted.
    set_capabilities(None, CapabilitySets { permitted: had.permitted, ..limit(KEPT) })?;
    let is_locked =
        |file| File::open(file).is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied);
    let kept = match config {
        None => KEPT | CapabilitySet::SYS_ADMIN,
        Some(file) if is_locked(file) => KEPT | CapabilitySet::DAC_READ_SEARCH,
        Some(_) => KEPT,
    };
    Ok(set_capabilities(None, limit(kept))?)
}

/// Takes the right to run programs, to signal other processes, and to write anywhere but in the directories of the configuration
/// sockets and of what is remembered of peers, and to the devices that a tunnel opens.
fn confine_files() -> Result<RulesetStatus, RulesetError> {
    let writing = AccessFs::from_write(LANDLOCK);
    // Without the directory there is no socket yet, and the one who makes it reports what is wrong.
    let _ = make_directory();
    let _ = recall::make_directory(); // without it nothing is remembered
    let rules = [
        (DIRECTORY, writing),
        (recall::DIRECTORY, writing),
        ("/dev/net/tun", AccessFs::from_file(LANDLOCK) & writing),
        ("/dev/null", AccessFs::from_file(LANDLOCK) & writing),
    ];
    let rules = rules.into_iter().filter_map(|(path, access): (&str, BitFlags<AccessFs>)| {
        Some(Ok::<_, RulesetError>(PathBeneath::new(PathFd::new(path).ok()?, access)))
    });
    let restricted = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(writing | AccessFs::Execute)?
        .scope(Scope::Signal)?
        .create()?
        .add_rules(rules)?
        .restrict_self()?;
    Ok(restricted.ruleset)
}

#[cfg(test)]
mod tests;
