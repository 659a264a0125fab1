//! What is remembered of a tunnel's peers when its process ends: where they are, which initiation was answered last, who was
//! connected. With that, `up` after a crash or a restart finds them at once, instead of being found by them.
//!
//! The running process writes it every few seconds to a file of mode 0600, which is replaced whole and has no secret in it:
//! /run/ringtun/peers/NAME. It is gone with the host's next start.

use crate::crypto::x25519::PublicKey;
use crate::device::memory::PeerMemory;
use crate::device::status::{Owner, Status};
use crate::device::uapi::PeerRequest;
use crate::gateway::config::{Config, write_private};
use std::collections::HashMap;
use std::fmt::Write;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The directory of these files. It is apart from the notes of `up`, which the running process may not write.
pub const DIRECTORY: &str = "/run/ringtun/peers";
/// The first word of the file, with the version of its form.
const HEADING: &str = "ringtun-peers-1";
/// How long it is worth something where a peer was, and that it was connected: as long as a session lives (REJECT_AFTER_TIME).
const WORTH: Duration = Duration::from_secs(180);

/// Makes the directory, if it is not there.
///
/// # Errors
///
/// Where that cannot be done.
pub fn make_directory() -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(DIRECTORY)
}

fn path(interface: &str) -> PathBuf {
    Path::new(DIRECTORY).join(interface)
}

/// Writes the peers of a device, as its status has them. `wall` is the time since the Unix epoch.
///
/// # Errors
///
/// Where the file cannot be written, which leaves the old one.
pub fn remember(interface: &str, status: &Status, wall: Duration) -> std::io::Result<()> {
    write_private(&path(interface), written(&status.peers, wall).as_bytes())
}

fn written(peers: &[Owner], wall: Duration) -> String {
    let mut text = format!("{HEADING} {}\n", wall.as_millis());
    for peer in peers {
        let Some(memory) = &peer.memory else { continue };
        let endpoint = peer.endpoint.map_or_else(|| "-".to_owned(), |endpoint| endpoint.to_string());
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{} {endpoint} {memory}", peer.public_key);
    }
    text
}

/// What was remembered.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Recollection {
    /// How long ago that was.
    pub age: Duration,
    peers: HashMap<PublicKey, (Option<SocketAddr>, PeerMemory)>,
}

/// Reads what is remembered of an interface's peers. Nothing is where there is no file, or another version wrote it, or its time lies
/// ahead. `wall` is the time since the Unix epoch.
pub fn recall(interface: &str, wall: Duration) -> Option<Recollection> {
    read(&std::fs::read_to_string(path(interface)).ok()?, wall)
}

fn read(text: &str, wall: Duration) -> Option<Recollection> {
    let (heading, lines) = text.split_once('\n')?;
    let saved = heading.strip_prefix(HEADING)?.trim().parse().ok().map(Duration::from_millis)?;
    let peer = |line: &str| {
        let (key, rest) = line.split_once(' ')?;
        let (endpoint, memory) = rest.split_once(' ')?;
        Some((key.parse().ok()?, (endpoint.parse().ok(), memory.parse().ok()?)))
    };
    Some(Recollection { age: wall.checked_sub(saved)?, peers: lines.lines().filter_map(peer).collect() })
}

impl Recollection {
    /// The requests that have the peers of `config` go on from here. `edited` says that the file was changed since; then it is right
    /// about the endpoints that it names.
    pub fn requests(&self, config: &Config, edited: bool) -> Vec<PeerRequest> {
        let is_fresh = self.age < WORTH;
        let request = |peer: &crate::gateway::config::PeerConfig| {
            let &(endpoint, memory) = self.peers.get(&peer.public_key)?;
            let memory = PeerMemory { was_connected: memory.was_connected && is_fresh, ..memory };
            let named = edited && peer.endpoint.is_some();
            Some(PeerRequest {
                update_only: true,
                endpoint: endpoint.filter(|_| is_fresh && !named),
                memory: Some(Box::new(memory)),
                ..PeerRequest::new(peer.public_key)
            })
        };
        config.peers.iter().filter_map(request).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::config::Document;
    use crate::noise::tai64n::Tai64N;

    const KEY: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
    const SAVED: Duration = Duration::from_secs(1_000_000);

    fn memory() -> PeerMemory {
        PeerMemory { last_initiation: Some(Tai64N([7; 12])), was_connected: true, quota: None }
    }

    fn text() -> String {
        let owner = |key: &str, memory: Option<PeerMemory>| Owner {
            public_key: key.into(),
            worker: 0,
            connected_ms: None,
            endpoint: Some(([192, 0, 2, 1], 7).into()),
            memory: memory.map(|memory| memory.to_string()),
        };
        written(&[owner(KEY, Some(memory())), owner("another", None)], SAVED)
    }

    fn config(endpoint: &str) -> Config {
        Document::new(format!("[Peer]\nPublicKey = {KEY}\n{endpoint}").as_bytes()).parse().unwrap().0
    }

    #[test]
    fn what_is_fresh_says_where_the_peers_are_and_who_was_connected() {
        let fresh = read(&text(), SAVED + Duration::from_secs(3)).unwrap();
        assert_eq!((fresh.age, fresh.peers.len()), (Duration::from_secs(3), 1));
        let requests = fresh.requests(&config("Endpoint = 192.0.2.9:9"), false);
        assert_eq!(requests[0].endpoint, Some(([192, 0, 2, 1], 7).into()));
        assert_eq!(requests[0].memory.as_deref(), Some(&memory()));
        assert!(requests[0].update_only);
        assert!(fresh.requests(&config("Endpoint = 192.0.2.9:9"), true)[0].endpoint.is_none());
        assert!(fresh.requests(&config(""), true)[0].endpoint.is_some());
        assert!(fresh.requests(&Config::default(), false).is_empty());
    }

    #[test]
    fn of_what_is_old_the_timestamps_count() {
        let old = read(&text(), SAVED + WORTH).unwrap();
        let request = &old.requests(&config(""), false)[0];
        assert_eq!(request.endpoint, None);
        assert_eq!(request.memory.as_deref(), Some(&PeerMemory { was_connected: false, ..memory() }));
    }

    #[test]
    fn what_cannot_be_read_is_not_remembered() {
        assert_eq!(read(&text(), SAVED - Duration::from_secs(1)), None, "of a time that is yet to come");
        assert_eq!(read(&text().replace("peers-1", "peers-2"), SAVED), None);
        for cut in ["", "ringtun-peers-1", "ringtun-peers-1 x\n"] {
            assert_eq!(read(cut, SAVED), None, "{cut}");
        }
        assert!(read(&text().replace("07", "zz"), SAVED).unwrap().peers.is_empty());
    }
}
