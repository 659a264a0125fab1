//! The devices that run on this host, found by their configuration sockets, and what they answer.

use crate::device::status::{Status, Summary};
use crate::gateway::Failure;
use crate::gateway::config::{Permissions, Place};
use crate::gateway::control::{ControlSocket, DeviceState};
use crate::gateway::standing::is_alive;
use crate::io::tun;
use crate::tunnel::socket;
use std::collections::HashMap;
use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How many interfaces are looked at. The directory is root's, but a listing should end all the same.
const MAX_INTERFACES: usize = 4096;

/// The interfaces whose socket answers, or may not be asked, in the directory's order as for wg(8).
///
/// # Errors
///
/// Where the directory of the sockets cannot be read.
pub fn interfaces() -> Result<Vec<String>, Failure> {
    let directory = Path::new(socket::DIRECTORY);
    interfaces_in(directory).map_err(Failure::of(directory.display()))
}

/// The interfaces that [`interfaces`] lists, without those that are `known`, whose sockets are left alone.
///
/// # Errors
///
/// As for [`interfaces`].
pub fn interfaces_besides(known: impl Fn(&str) -> bool) -> Result<Vec<String>, Failure> {
    let directory = Path::new(socket::DIRECTORY);
    found_in(directory, known).map_err(Failure::of(directory.display()))
}

fn interfaces_in(directory: &Path) -> std::io::Result<Vec<String>> {
    found_in(directory, |_| false)
}

fn found_in(directory: &Path, known: impl Fn(&str) -> bool) -> std::io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let name = |path: &Path| Some(path.file_name()?.to_str()?.strip_suffix(".sock")?.to_owned());
    // Behind a socket that may not be asked there may be a device or not. To leave it out would say that there is none.
    let is_one = |path: &Path| match UnixStream::connect(path) {
        Ok(_) => true,
        Err(error) => error.kind() == ErrorKind::PermissionDenied,
    };
    let paths = entries.take(MAX_INTERFACES).flatten().map(|entry| entry.path());
    let named = paths
        .filter_map(|path| Some((name(&path)?, path)))
        .filter(|(name, _)| !name.is_empty() && !known(name));
    Ok(named.filter(|(_, path)| is_one(path)).map(|(name, _)| name).collect())
}

/// The socket of the running device `name`.
///
/// # Errors
///
/// Where no device of this name may be asked, with the names of those that run.
pub fn open(name: &str) -> Result<ControlSocket, Failure> {
    tun::check_name(name).map_err(Failure::Invalid)?;
    match UnixStream::connect(socket::path(name)) {
        Ok(_) => ControlSocket::find(name).ok_or_else(|| not_running(name)),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Err(Failure::new(format!(
            "unable to access interface {name}: Operation not permitted ({}: {error}): only root may ask a tunnel, try it with sudo",
            socket::path(name).display()
        ))),
        Err(_) => Err(not_running(name)),
    }
}

fn not_running(name: &str) -> Failure {
    if is_kernels(name) {
        return Failure::new(format!(
            "{name} is the kernel's own WireGuard, not ringtun's: use wg(8) for it"
        ));
    }
    Failure::new(match interfaces().unwrap_or_default().as_slice() {
        [] => format!("no tunnel {name} runs here, nor any other; `ringtun up {name}` starts it"),
        running => format!("no tunnel {name} runs here; running: {}", running.join(", ")),
    })
}

fn is_kernels(name: &str) -> bool {
    let uevent = std::fs::read_to_string(format!("/sys/class/net/{name}/uevent"));
    uevent.is_ok_and(|text| text.lines().any(|line| line == "DEVTYPE=wireguard"))
}

/// What a device says of itself: its configuration and its peers.
///
/// # Errors
///
/// Where the device does not run or does not answer.
pub fn get(name: &str) -> Result<DeviceState, Failure> {
    open(name)?.get().map_err(Failure::of(name))
}

/// What a device says of its interface. Its peers are left out, unless it is another implementation.
///
/// # Errors
///
/// Where the device does not run or does not answer.
pub fn interface(name: &str) -> Result<DeviceState, Failure> {
    open(name)?.get_interface().map_err(Failure::of(name))
}

/// What a device says beyond the protocol. `Ok(None)` where the device is another implementation, which does not know
/// the question.
///
/// # Errors
///
/// Where the device does not run or does not answer.
pub fn status(name: &str) -> Result<Option<Status>, Failure> {
    open(name)?.status().map_err(Failure::of(name))
}

/// How a device does: its summary, which one that does not know that question lets us count.
///
/// # Errors
///
/// Where the device does not run or does not answer.
pub fn summary(name: &str) -> Result<Summary, Failure> {
    let control = open(name)?;
    let told = control.short_status().map_err(Failure::of(name))?.and_then(|status| status.summary);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    match told {
        Some(summary) => Ok(summary),
        None => control.get().map(|device| count(&device, now)).map_err(Failure::of(name)),
    }
}

fn count(device: &DeviceState, wall: Duration) -> Summary {
    Summary {
        peers: device.peers.len(),
        alive: device.peers.iter().filter(|peer| is_alive(peer.last_handshake, wall)).count(),
        rx_bytes: device.peers.iter().fold(0, |sum, peer| sum.wrapping_add(peer.rx_bytes)),
        tx_bytes: device.peers.iter().fold(0, |sum, peer| sum.wrapping_add(peer.tx_bytes)),
    }
}

/// The names of peers by public key in base64, from the comments in the interface's file. There are none where the
/// file cannot be read.
pub fn peer_names(interface: &str) -> HashMap<String, String> {
    let loaded = Place::of_running(interface).and_then(|place| place.load(Permissions::Warn).ok());
    let peers = loaded.map(|loaded| loaded.config.peers).unwrap_or_default();
    peers.into_iter().filter_map(|peer| Some((peer.public_key.to_base64(), peer.name?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::x25519::PublicKey;
    use crate::gateway::control::PeerState;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_peer_without_a_young_handshake_has_no_session() {
        let peer = |seconds, bytes| PeerState {
            last_handshake: Duration::from_secs(seconds),
            rx_bytes: bytes,
            ..PeerState::new(PublicKey([1; 32]))
        };
        let device =
            DeviceState { peers: vec![peer(0, 1), peer(900, 2), peer(700, 4)], ..DeviceState::default() };
        let summary = count(&device, Duration::from_secs(1000));
        assert_eq!(summary, Summary { peers: 3, alive: 1, rx_bytes: 7, tx_bytes: 0 });
    }

    #[test]
    fn only_sockets_that_answer_are_interfaces() {
        let directory = std::env::temp_dir().join(format!("rt-client-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let _alive = UnixListener::bind(directory.join("wg7.sock")).unwrap();
        drop(UnixListener::bind(directory.join("dead.sock")).unwrap());
        let _other = UnixListener::bind(directory.join("wg7.other")).unwrap();
        std::fs::write(directory.join("file.sock"), "").unwrap();
        assert_eq!(interfaces_in(&directory).unwrap(), ["wg7"]);
        std::fs::remove_dir_all(&directory).unwrap();
        assert!(interfaces_in(&directory).unwrap().is_empty());
        assert!(interfaces_in(Path::new("/proc/version")).is_err());
    }

    #[test]
    fn an_interface_that_does_not_run_is_named_in_the_error() {
        let error = open("rt-none").unwrap_err().to_string();
        assert!(error.contains("no tunnel rt-none"), "{error}");
        assert!(open("../etc").unwrap_err().to_string().contains("slash"));
    }
}
