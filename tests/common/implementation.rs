//! The WireGuard implementations, and a running device of one.

use crate::common::guest;
use crate::common::lab::{Host, Process, eventually, serial, skip, wait_for};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const READY: Duration = Duration::from_secs(15);

/// Where `scripts/peers` put the others.
pub(crate) fn peers_directory() -> PathBuf {
    std::env::var_os("RINGTUN_PEERS").map_or_else(|| "/opt/peers".into(), PathBuf::from)
}

/// The program under test: ringtun, or what stands in for it.
pub(crate) fn ringtun() -> PathBuf {
    std::env::var_os("RINGTUN_TEST_BIN").map_or_else(|| env!("CARGO_BIN_EXE_ringtun").into(), PathBuf::from)
}

/// Whether another program stands in ringtun's place.
pub(crate) fn stand_in() -> bool {
    ringtun().file_name().is_some_and(|name| name != "ringtun")
}

/// Whether a test of what is ringtun's alone can run; says so where it cannot.
pub(crate) fn ringtun_itself() -> bool {
    if stand_in() {
        skip("another program stands in ringtun's place");
    }
    !stand_in()
}

/// How the workers reach the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Io {
    /// io_uring.
    Uring,
    /// Plain system calls.
    Syscalls,
}

/// What stands in ringtun's way.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Hindrance {
    /// A command line that ends by becoming the command behind it; refuses things to it.
    pub(crate) behind: &'static [&'static str],
    /// ringtun's options.
    pub(crate) options: &'static [&'static str],
}

/// Who speaks WireGuard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Implementation {
    /// ringtun with so many workers.
    Ringtun { workers: u8, io: Io },
    /// ringtun where something is refused to it.
    Hindered(&'static Hindrance),
    /// wireguard-go.
    WireguardGo,
    /// Cloudflare's boringtun.
    Boringtun,
    /// Mullvad's gotatun.
    Gotatun,
    /// Linux itself, in a guest.
    Kernel,
}

/// ringtun as it comes, on one worker.
pub(crate) const RINGTUN: Implementation = Implementation::Ringtun { workers: 1, io: Io::Uring };
/// ringtun as it comes, on two workers.
pub(crate) const RINGTUN_TWO: Implementation = Implementation::Ringtun { workers: 2, io: Io::Uring };

impl Implementation {
    /// Why it cannot be had here.
    pub(crate) fn missing(self) -> Option<String> {
        if self == Implementation::Kernel {
            return guest::missing();
        }
        let program = self.program();
        (!program.exists())
            .then(|| format!("{} is missing (scripts/peers installs the others)", program.display()))
    }

    fn program(self) -> PathBuf {
        let peers = peers_directory().join("bin");
        match self {
            Implementation::Ringtun { .. } | Implementation::Hindered(_) => ringtun(),
            Implementation::WireguardGo => peers.join("wireguard-go"),
            Implementation::Boringtun => peers.join("boringtun-cli"),
            Implementation::Gotatun => peers.join("gotatun"),
            Implementation::Kernel => panic!("the kernel is no program"),
        }
    }

    /// What the program is started through.
    fn behind(self) -> &'static [&'static str] {
        match self {
            Implementation::Hindered(hindrance) => hindrance.behind,
            _ => &[],
        }
    }

    fn options(self) -> Vec<String> {
        match self {
            Implementation::Ringtun { workers, io } if !stand_in() => {
                let io = if io == Io::Uring { "uring" } else { "syscalls" };
                ["-f", "--workers", &workers.to_string(), "--io", io].map(str::to_owned).to_vec()
            }
            Implementation::Hindered(hindrance) => {
                ["-f"].iter().chain(hindrance.options).map(|&option| option.to_owned()).collect()
            }
            Implementation::Boringtun | Implementation::Gotatun => {
                ["-f", "--disable-drop-privileges"].map(str::to_owned).to_vec()
            }
            _ => vec!["-f".to_owned()],
        }
    }
}

/// A running device.
pub(crate) struct Device {
    host: Arc<Host>,
    /// The interface's name.
    pub(crate) name: String,
    /// The userspace process; the kernel has none.
    pub(crate) process: Option<Process>,
}

impl Device {
    /// Makes a device of a name of its own.
    pub(crate) fn start(host: &Arc<Host>, implementation: Implementation) -> Device {
        // One for all namespaces (the UAPI sockets share a directory), at most 15 characters.
        Device::start_as(host, implementation, format!("rt{}n{}", std::process::id() % 10_000_000, serial()))
    }

    /// Makes a device of a given name.
    pub(crate) fn start_as(host: &Arc<Host>, implementation: Implementation, name: String) -> Device {
        if implementation == Implementation::Kernel {
            host.run(&format!("ip link add {name} type wireguard"));
            return Device { host: host.clone(), name, process: None };
        }
        let program = implementation.program().display().to_string();
        let options = implementation.options();
        let mut words = implementation.behind().to_vec();
        words.push(&program);
        words.extend(options.iter().map(String::as_str));
        words.push(&name);
        let mut process = host.start(words[0], &words[1..]);
        let ready = wait_for(READY, || {
            (Path::new(&uapi_socket(&name)).exists() || process.ended().is_some()).then_some(())
        });
        assert!(
            ready.is_some() && process.ended().is_none(),
            "{implementation:?} made no device: {}",
            process.said()
        );
        // Some make the socket first and the interface after.
        eventually("the interface is there", READY, || host.try_run(&format!("ip link show {name}")).is_ok());
        Device { host: host.clone(), name, process: Some(process) }
    }

    /// The userspace process.
    pub(crate) fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("a userspace implementation")
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        match self.process.take() {
            Some(process) => drop(process),
            None => drop(self.host.try_run(&format!("ip link del {}", self.name))),
        }
        let _ = std::fs::remove_file(uapi_socket(&self.name));
    }
}

/// A device's UAPI socket.
pub(crate) fn uapi_socket(name: &str) -> String {
    format!("/var/run/wireguard/{name}.sock")
}
