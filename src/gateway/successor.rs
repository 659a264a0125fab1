//! What one process of a tunnel leaves to the next, beside the tunnel itself: what it was started with, and where and how it ran.

use crate::gateway::executable::ProgramFile;
use crate::gateway::http::{HttpAddress, Listener};
use crate::gateway::notify::Notify;
use crate::sys::group;
use crate::tunnel::Belongings;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// The limits that a tunnel may come up against, by name.
const LIMITS: [(&str, Resource); 2] = [("files", Resource::Nofile), ("locked memory", Resource::Memlock)];

/// What the next process reads. Words that it does not know are left out, and of those that it misses it takes the default.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessNote {
    /// The program of the process that leaves the note.
    pub program: Option<ProgramFile>,
    /// The configuration whose endpoints are looked after.
    pub config: Option<PathBuf>,
    /// Whether the process gives up what a tunnel does not need.
    pub confined: bool,
    /// What is logged.
    pub log_level: String,
    /// The socket of the service manager whose main process this is.
    pub notify: Option<String>,
    /// The address of the listener of `--http`, which is the first file.
    pub http: Option<String>,
    /// The control group, in the form of cgroup v2.
    group: Option<String>,
    /// Soft and hard limits, in the order of [`LIMITS`].
    limits: Vec<(Option<u64>, Option<u64>)>,
    /// The cores that it may use.
    cores: Vec<usize>,
}

impl ProcessNote {
    /// The note of this process. `notify` says that it is a service manager's main process, if there is one.
    pub fn of_this(config: Option<&Path>, confined: bool, notify: Option<&OsStr>) -> ProcessNote {
        let allowed = sched_getaffinity(None).ok();
        let cores = allowed.map(|set| (0..CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect());
        let limits = LIMITS.map(|(_, resource)| {
            let limit = getrlimit(resource);
            (limit.current, limit.maximum)
        });
        ProcessNote {
            program: ProgramFile::own(),
            config: config.map(|file| std::path::absolute(file).unwrap_or_else(|_| file.to_owned())),
            confined,
            log_level: log::max_level().to_string(),
            notify: notify.and_then(|address| Some(address.to_str()?.to_owned())),
            http: None,
            group: group::own(),
            limits: limits.to_vec(),
            cores: cores.unwrap_or_default(),
        }
    }

    /// The note that another process left. `None` where this is none.
    pub fn parse(text: &str) -> Option<ProcessNote> {
        serde_json::from_str(text).ok()
    }

    /// What goes along with the tunnel, the listener of `--http` among it.
    ///
    /// # Errors
    ///
    /// Where the process may have no more files.
    pub fn belongings(&self, http: Option<&Listener>) -> std::io::Result<Belongings> {
        let files = http.map(Listener::share).transpose()?.into_iter().collect();
        let http = http.map(|http| http.address().to_string());
        let note = ProcessNote { program: ProgramFile::own(), http, ..self.clone() };
        // There are only numbers and text in it, none of which can fail.
        Ok(Belongings { note: serde_json::to_string(&note).unwrap_or_default(), files })
    }

    /// The listener of `--http`, where one came with the tunnel.
    ///
    /// # Errors
    ///
    /// Where the file is no such listener.
    pub fn listener(&self, belongings: Belongings) -> std::io::Result<Option<Listener>> {
        let address = self.http.as_deref().and_then(HttpAddress::displayed);
        match (address, belongings.files.into_iter().next()) {
            (Some(address), Some(file)) => Listener::inherit(file, address).map(Some),
            _ => Ok(None),
        }
    }

    /// The service manager that looks after this process from now on.
    pub fn manager(&self) -> Option<Notify> {
        Notify::at(OsStr::new(self.notify.as_ref()?)).ok()
    }

    /// Makes this process run where and as the other one does: it logs as much, is in the same control group, and has the same
    /// limits and cores. To be called before threads are started. What cannot be done is logged.
    pub fn apply(&self) {
        log::set_max_level(self.log_level.parse().unwrap_or(log::LevelFilter::Warn));
        if let Some(group) = &self.group
            && group::own().as_ref() != Some(group)
            && let Err(error) = group::join(group)
        {
            log::warn!(
                "cannot move to the control group {group} of the running process: {error}; the tunnel ends with the group of this \
                 command, if that is ended"
            );
        }
        for ((what, resource), &(current, maximum)) in LIMITS.into_iter().zip(&self.limits) {
            let wanted = Rlimit { current, maximum };
            if getrlimit(resource) != wanted
                && let Err(error) = setrlimit(resource, wanted)
            {
                log::info!("the limit on {what} stays what it is: {error}");
            }
        }
        if self.cores.is_empty() {
            return;
        }
        let mut cores = CpuSet::new();
        self.cores.iter().filter(|&&core| core < CpuSet::MAX_CPU).for_each(|&core| cores.set(core));
        if let Err(error) = sched_setaffinity(None, &cores) {
            log::info!("the cores of the running process cannot be had: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpStream;

    #[test]
    fn the_next_process_reads_what_the_last_one_wrote_and_what_a_later_one_writes() {
        let note =
            ProcessNote::of_this(Some(Path::new("/etc/wireguard/wg0.conf")), true, Some(OsStr::new("@x")));
        assert!(!note.cores.is_empty() && note.limits.len() == LIMITS.len());
        let belongings = note.belongings(None).unwrap();
        assert_eq!(ProcessNote::parse(&belongings.note), Some(note.clone()));
        note.apply();
        assert!(note.listener(belongings).unwrap().is_none());
        let later = ProcessNote::parse("{\"confined\":true,\"colour\":7}").unwrap();
        assert_eq!(later, ProcessNote { confined: true, ..ProcessNote::default() });
        assert_eq!(ProcessNote::parse("what"), None);
    }

    #[test]
    fn a_listener_goes_along_and_answers_where_it_was() {
        let first = Listener::bind(&"127.0.0.1:0".parse().unwrap()).unwrap();
        let note = ProcessNote::default();
        let belongings = note.belongings(Some(&first)).unwrap();
        let note = ProcessNote::parse(&belongings.note).unwrap();
        let second = note.listener(belongings).unwrap().unwrap();
        drop(first);
        let HttpAddress::Tcp(address) = *second.address() else { panic!("{second:?}") };
        second.serve("rt-none".into()).unwrap();
        let mut client = TcpStream::connect(address).unwrap();
        client.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.0 "), "{answer}");
    }
}
