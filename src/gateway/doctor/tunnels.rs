//! The tunnels of this host: those with a configuration, and those that run.

use crate::gateway::config::{DIRECTORY, Interface, Permissions, Place};
use crate::gateway::{client, up};
use crate::sys::link;
use std::path::Path;

/// How many configurations are looked at.
const MAX_TUNNELS: usize = 256;

/// A tunnel for which the firewall is asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct KnownTunnel {
    /// The name of the tunnel's interface.
    pub(super) name: String,
    /// The UDP port at which peers reach the tunnel. `None` where any port will do.
    pub(super) port: Option<u16>,
    /// The words of the hooks that have yet to run.
    hooks: Vec<String>,
}

impl KnownTunnel {
    /// A tunnel that runs.
    pub(super) fn running(name: &str, port: Option<u16>) -> KnownTunnel {
        KnownTunnel { name: name.to_owned(), port, hooks: Vec::new() }
    }

    /// Whether the tunnel's hooks will change the firewall's chain of this name.
    pub(super) fn will_change(&self, chain: &str) -> bool {
        self.hooks.iter().any(|word| word.eq_ignore_ascii_case(chain))
    }
}

/// All tunnels of this host, by name.
pub(super) fn tunnels() -> Vec<KnownTunnel> {
    let runs = |name: &str| link::index(name).is_ok();
    let running = client::interfaces().unwrap_or_default();
    let mut tunnels: Vec<KnownTunnel> = running
        .into_iter()
        .filter(|name| runs(name))
        .map(|name| {
            let file = up::noted_file(&name).map(|file| Place { file, interface: name.clone() });
            let read = file.or_else(|| Place::find(&name).ok()).map(|place| interface(&place));
            let port = match read {
                // Any port will do for a file that names none.
                Some(Interface { listen_port: None | Some(0), .. }) => None,
                _ => client::interface(&name).ok().map(|device| device.listen_port).filter(|port| *port != 0),
            };
            KnownTunnel { name, port, hooks: Vec::new() }
        })
        .collect();
    for name in configured(Path::new(DIRECTORY)) {
        if tunnels.iter().any(|tunnel| tunnel.name == name) {
            continue;
        }
        let Ok(place) = Place::find(&name) else { continue };
        let interface = interface(&place);
        let hooks = interface.pre_up.iter().chain(&interface.post_up);
        let words = hooks.flat_map(|hook| hook.split(|c: char| !c.is_alphanumeric() && c != '_'));
        let hooks = words.filter(|word| !word.is_empty()).map(str::to_owned).collect();
        tunnels.push(KnownTunnel { name, port: interface.listen_port.filter(|port| *port != 0), hooks });
    }
    tunnels.sort_by(|a, b| a.name.cmp(&b.name));
    tunnels
}

/// The interface's part of a file, as far as it can be read.
fn interface(place: &Place) -> Interface {
    match place.clone().load(Permissions::Warn) {
        Ok(loaded) => loaded.config.interface,
        Err(_) => place.salvage().interface,
    }
}

fn configured(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let names =
        entries.filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".conf").map(str::to_owned));
    names.take(MAX_TUNNELS).collect()
}
