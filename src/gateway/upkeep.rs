//! Looks after a running tunnel's endpoints. A name is resolved again when its peer does not answer, so that a peer
//! whose address changed is found. The interface's MTU follows that of the paths.
//!
//! One thread does this, since the system's resolver blocks. It speaks to its own process as anybody would, through the
//! configuration socket. Like `reload` it reads the file; it does so whenever the file changes.

use crate::crypto::stack;
use crate::crypto::x25519::PublicKey;
use crate::device::Now;
use crate::device::uapi::{PeerRequest, SetRequest};
use crate::gateway::config::{Config, Document, HostPort, Mtu};
use crate::gateway::control::{ControlSocket, DeviceState, PeerState};
use crate::gateway::mtu::IPV6_MINIMUM;
use crate::gateway::recall;
use crate::gateway::up::apply::Resolved;
use crate::gateway::up::host::Host;
use crate::gateway::up::{self, apply};
use crate::sys::clock::Clock;
use crate::time::Instant;
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Pause between two checks of the tunnel.
const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// How long ago the last handshake of a peer must be for the peer to count as silent. A session is renewed after 120 s
/// (REKEY_AFTER_TIME) and initiations go out every 5 s. A peer to which something was sent, and which completed no
/// handshake for so long, does not answer at its address.
const SILENCE: Duration = Duration::from_secs(150);
/// The pause after the first resolution in vain. It doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(15);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Starts the thread, which ends with the process.
///
/// # Errors
///
/// Where no thread can be started.
pub fn start(interface: String, file: PathBuf) -> std::io::Result<()> {
    let look_after = move || {
        let mut upkeep = Upkeep {
            interface,
            file,
            read: None,
            config: Config::default(),
            backoffs: Backoffs::default(),
            path: None,
            remembered: None,
        };
        loop {
            std::thread::sleep(POLL_INTERVAL);
            // What the file and the device say has keys in it, and this thread needs none of them.
            stack::leaving_nothing(|| upkeep.check());
        }
    };
    std::thread::Builder::new().name("ringtun-names".into()).spawn(look_after).map(drop)
}

struct Upkeep {
    interface: String,
    file: PathBuf,
    /// The file's time of change, as it was when the file was last read.
    read: Option<SystemTime>,
    config: Config,
    backoffs: Backoffs,
    /// The MTU in bytes that the paths gave when last asked. The first was asked for by `up`.
    path: Option<u32>,
    /// When the peers are to be remembered again.
    remembered: Option<std::time::Instant>,
}

impl Upkeep {
    fn check(&mut self) {
        self.remember();
        self.reread();
        let known_mtu = self.known_mtu();
        let watched = watched(&self.config, known_mtu.is_some());
        if watched.is_empty() && known_mtu.is_none() {
            self.backoffs = Backoffs::default();
            return;
        }
        let Some(control) = ControlSocket::find(&self.interface) else { return };
        let Ok(device) = control.get_peers(&watched) else { return };
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = Now { mono: Clock.now(), wall };
        for (key, endpoint) in self.backoffs.due(&self.config, &device, now) {
            let held = device.peers.iter().find(|peer| peer.public_key == key).and_then(|peer| peer.endpoint);
            match endpoint.resolve() {
                Ok(address) if held != Some(address) => self.move_to(&control, key, &endpoint, address),
                Ok(_) => {}
                Err(error) => log::info!("cannot resolve the endpoint {endpoint}: {error}"),
            }
        }
        if let Some(known) = known_mtu
            && let Err(error) = self.follow_path(&device, known)
        {
            log::debug!("cannot follow the MTU of the paths to the endpoints: {error}");
        }
    }

    /// Writes what is to be remembered of the peers. With very many of them that is done less often, so that it takes little of the
    /// device's time.
    fn remember(&mut self) {
        const LEAST_PAUSES: u32 = 100;
        let begun = std::time::Instant::now();
        if self.remembered.is_some_and(|next| begun < next) {
            return;
        }
        let Some(control) = ControlSocket::find(&self.interface) else { return };
        let Ok(Some(status)) = control.status() else { return };
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        if let Err(error) = recall::remember(&self.interface, &status, wall) {
            log::debug!("what peers do cannot be written to {}: {error}", recall::DIRECTORY);
        }
        self.remembered = Some(begun + begun.elapsed() * LEAST_PAUSES);
    }

    /// Reads the file if it changed. Where it is away or cannot be understood, what was read before stays.
    fn reread(&mut self) {
        let changed = modified(&self.file);
        if changed.is_none() || changed == self.read {
            return;
        }
        let Ok(bytes) = std::fs::read(&self.file).map(zeroize::Zeroizing::new) else { return };
        if let Ok((config, _)) = Document::new(&bytes).without_keys().parse() {
            self.read = changed;
            self.config = config;
        }
    }

    fn move_to(&self, control: &ControlSocket, key: PublicKey, endpoint: &HostPort, address: SocketAddr) {
        let peer = PeerRequest { update_only: true, endpoint: Some(address), ..PeerRequest::new(key) };
        match control.set(&SetRequest { peers: vec![peer], ..SetRequest::default() }) {
            Ok(()) => log::info!("the endpoint {endpoint} is at {address} now"),
            Err(error) => {
                log::warn!("the endpoint {endpoint} is at {address} now, which cannot be set: {error}")
            }
        }
    }

    /// The MTU in bytes that the paths gave when last asked. `None` where it is not to be followed: where the file says what it
    /// is, or another than `up` brought the tunnel up.
    fn known_mtu(&self) -> Option<u32> {
        let is_fixed = self.read.is_none() || matches!(self.config.interface.mtu, Some(Mtu::Bytes(_)));
        if is_fixed { None } else { self.path.or_else(|| up::noted_mtu(&self.interface)) }
    }

    /// Sets the interface's MTU when that of the paths to the file's endpoints changed. What somebody set by hand stays
    /// until then. The MTU does not fall from above to below what IPv6 needs, since the kernel would take the
    /// interface's IPv6 addresses away.
    fn follow_path(&mut self, device: &DeviceState, known: u32) -> std::io::Result<()> {
        let host = Host::new()?;
        let Some(link) = host.link(&self.interface)? else { return Ok(()) };
        let given = self.config.peers.iter().filter(|peer| peer.endpoint.is_some());
        let given: HashSet<PublicKey> = given.map(|peer| peer.public_key).collect();
        let endpoints = device.peers.iter().filter(|peer| given.contains(&peer.public_key));
        let current: Resolved =
            endpoints.filter_map(|peer| peer.endpoint.map(|at| (HostPort::from(at), at))).collect();
        let mark = device.fwmark;
        let Ok(mtu) = apply::mtu_for(&self.interface, &self.config, &current, mark, &host) else {
            return Ok(());
        };
        self.path = Some(mtu);
        if known == mtu {
            return Ok(());
        }
        let mtu = if link.mtu < IPV6_MINIMUM { mtu } else { mtu.max(IPV6_MINIMUM) };
        host.set_mtu(link.index, mtu, false)?;
        log::info!(
            "{}: the MTU changes from {} to {mtu} bytes, as the path to an endpoint changed",
            self.interface,
            link.mtu
        );
        up::update_clamp(&self.interface, mtu)
            .map_err(|failure| std::io::Error::other(format!("{failure:#}")))
    }
}

/// The peers to ask for: those given by name, and where the MTU of the paths is followed, all with an endpoint.
fn watched(config: &Config, follows_paths: bool) -> Vec<PublicKey> {
    let is_watched = |endpoint: &HostPort| follows_paths || endpoint.address().is_none();
    let peers = config.peers.iter().filter(|peer| peer.endpoint.as_ref().is_some_and(is_watched));
    peers.map(|peer| peer.public_key).collect()
}

fn modified(file: &Path) -> Option<SystemTime> {
    std::fs::metadata(file).and_then(|metadata| metadata.modified()).ok()
}

/// When to resolve which peer's name again. Of the two clocks, somebody may set that of the wall, forth and back.
#[derive(Default)]
struct Backoffs(HashMap<PublicKey, Backoff>);

struct Backoff {
    /// The last handshake that was seen, as the device notes it.
    handshake: Duration,
    /// When it was first seen, and how old it was then.
    seen: Instant,
    age: Duration,
    /// The bytes sent to the peer when it last answered, or when its name was last resolved.
    sent: u64,
    /// The time before which its name is not resolved again.
    next: Instant,
    pause: Duration,
}

impl Backoffs {
    /// The peers, given by name, that are silent though something was sent to them, and whose pause is over.
    fn due(&mut self, config: &Config, device: &DeviceState, now: Now) -> Vec<(PublicKey, HostPort)> {
        let held: HashMap<PublicKey, &PeerState> =
            device.peers.iter().map(|peer| (peer.public_key, peer)).collect();
        self.0.retain(|key, _| held.contains_key(key));
        let named = config.peers.iter().filter_map(|peer| Some((peer.public_key, peer.endpoint.as_ref()?)));
        let mut due = Vec::new();
        for (key, endpoint) in named.filter(|(_, endpoint)| endpoint.address().is_none()) {
            let Some(peer) = held.get(&key) else { continue };
            if self.is_due(peer, now) {
                due.push((key, endpoint.clone()));
            }
        }
        due
    }

    fn is_due(&mut self, peer: &PeerState, Now { mono: at, wall }: Now) -> bool {
        let Some(backoff) = self.0.get_mut(&peer.public_key) else {
            // Handshakes that are seen later are new when they are seen, whatever the clock says.
            let age = wall.saturating_sub(peer.last_handshake);
            self.0.insert(peer.public_key, Backoff::new(peer, at, age));
            return false;
        };
        if peer.last_handshake != backoff.handshake {
            *backoff = Backoff::new(peer, at, Duration::ZERO);
        }
        if backoff.age.saturating_add(at.since(backoff.seen)) <= SILENCE {
            backoff.rest(peer, at);
            return false;
        }
        // A peer to which nothing was sent is silent, too. What was sent during the pause counts once it is over.
        if at < backoff.next || peer.tx_bytes == backoff.sent {
            return false;
        }
        backoff.sent = peer.tx_bytes;
        backoff.next = at + backoff.pause;
        backoff.pause = (backoff.pause * 2).min(LONGEST_PAUSE);
        true
    }
}

impl Backoff {
    /// That of a peer whose last handshake is so old.
    fn new(peer: &PeerState, at: Instant, age: Duration) -> Backoff {
        Backoff {
            handshake: peer.last_handshake,
            seen: at,
            age,
            sent: peer.tx_bytes,
            next: at + FIRST_PAUSE,
            pause: FIRST_PAUSE,
        }
    }

    /// Begins anew with the shortest pause.
    fn rest(&mut self, peer: &PeerState, at: Instant) {
        (self.sent, self.next, self.pause) = (peer.tx_bytes, at + FIRST_PAUSE, FIRST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::config::PeerConfig;

    const NOW: Duration = Duration::from_secs(1_000_000);
    const DAY: Duration = Duration::from_secs(86_400);

    /// So many seconds after the beginning, by a clock that nobody set.
    fn after(seconds: u64) -> Now {
        let passed = Duration::from_secs(seconds);
        Now { mono: Instant::START + passed, wall: NOW + passed }
    }

    fn world(host: &str) -> (Config, DeviceState) {
        let key = PublicKey([7; 32]);
        let endpoint = Some(HostPort { host: host.into(), port: 51820 });
        let config =
            Config { peers: vec![PeerConfig { endpoint, ..PeerConfig::new(key) }], ..Config::default() };
        (config, DeviceState { peers: vec![PeerState::new(key)], ..DeviceState::default() })
    }

    /// How often a name was due in `seconds` while each look finds more bytes sent.
    fn resolutions(config: &Config, device: &mut DeviceState, seconds: u64) -> Vec<u64> {
        let mut backoffs = Backoffs::default();
        let checks = (0..seconds).step_by(5);
        checks
            .filter(|&at| {
                device.peers[0].tx_bytes += 148;
                !backoffs.due(config, device, after(at)).is_empty()
            })
            .collect()
    }

    #[test]
    fn a_silent_peers_name_is_resolved_with_growing_pauses() {
        let (config, mut device) = world("gateway.example.org");
        assert_eq!(resolutions(&config, &mut device, 1200), [15, 30, 60, 120, 240, 480, 780, 1080]);
    }

    #[test]
    fn a_peer_given_by_address_is_left_alone() {
        let (config, mut device) = world("192.0.2.1");
        assert!(resolutions(&config, &mut device, 600).is_empty());
    }

    #[test]
    fn only_peers_by_name_are_asked_for_unless_the_paths_are_followed() {
        let (mut config, _) = world("gateway.example.org");
        let endpoint = Some(HostPort { host: "192.0.2.1".into(), port: 51820 });
        config.peers.push(PeerConfig { endpoint, ..PeerConfig::new(PublicKey([8; 32])) });
        config.peers.push(PeerConfig::new(PublicKey([9; 32])));
        assert_eq!(watched(&config, false), [PublicKey([7; 32])]);
        assert_eq!(watched(&config, true), [PublicKey([7; 32]), PublicKey([8; 32])]);
        config.peers.remove(0);
        assert!(watched(&config, false).is_empty());
    }

    #[test]
    fn a_peer_that_answers_is_left_alone_until_it_falls_silent() {
        let (config, mut device) = world("gateway.example.org");
        device.peers[0].last_handshake = NOW;
        assert_eq!(resolutions(&config, &mut device, 180).first(), Some(&165));
    }

    #[test]
    fn a_peer_that_is_sent_nothing_is_left_alone() {
        let (config, device) = world("gateway.example.org");
        let mut backoffs = Backoffs::default();
        for at in (0..600).step_by(5) {
            assert!(backoffs.due(&config, &device, after(at)).is_empty());
        }
    }

    /// When a name is first due while the clock is set after 60 s, for a peer that made its last handshake at the beginning or, where
    /// it answers, makes one every 120 s.
    fn first_due(set: impl Fn(Duration) -> Duration, answers: bool) -> Option<u64> {
        let (config, mut device) = world("gateway.example.org");
        let mut backoffs = Backoffs::default();
        device.peers[0].last_handshake = NOW;
        (0..2000).step_by(5).find(|&at| {
            let mut now = after(at);
            if at >= 60 {
                now.wall = set(now.wall);
            }
            let peer = &mut device.peers[0];
            peer.tx_bytes += 148;
            if answers && at % 120 == 0 {
                peer.last_handshake = now.wall;
            }
            !backoffs.due(&config, &device, now).is_empty()
        })
    }

    #[test]
    fn a_clock_that_is_set_by_a_day_changes_nothing() {
        let forth = |wall: Duration| wall + DAY;
        let back = |wall: Duration| wall - DAY;
        for (what, set) in [("forth", &forth as &dyn Fn(Duration) -> Duration), ("back", &back)] {
            assert_eq!(first_due(set, false), Some(165), "{what}: a silent peer");
            assert_eq!(first_due(set, true), None, "{what}: a peer that answers");
        }
    }

    #[test]
    fn a_handshake_in_the_future_is_taken_for_a_new_one() {
        let (config, mut device) = world("gateway.example.org");
        device.peers[0].last_handshake = NOW + DAY;
        assert_eq!(resolutions(&config, &mut device, 180), [165]);
    }
}
