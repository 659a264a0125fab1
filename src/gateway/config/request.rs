//! What is sent to a device: all of a configuration, as `wg addconf` would, or the difference, as `wg syncconf` would.

use super::{Config, HostPort, PeerConfig};
use crate::crypto::x25519::{PublicKey, SharedSecret};
use crate::dataplane::limits::LimitSettings;
use crate::device::uapi::{AllowedIp, PeerRequest, SetRequest};
use crate::gateway::control::{DeviceState, PeerState};
use crate::routing::Prefix;
use std::collections::{BTreeSet, HashMap};
use std::fmt::{Display, Write};
use std::net::SocketAddr;
use zeroize::Zeroizing;

/// A function that gives the address of a peer's endpoint; the peer says at which line it stands. `None` leaves the
/// endpoint unset.
type Resolver<'a> = &'a mut dyn FnMut(&PeerConfig, &HostPort) -> Option<SocketAddr>;

impl Config {
    /// The request that sets what the file says, as `wg addconf` does. What the file lacks stays, since a hook may have
    /// set it.
    pub fn request(&self, resolve: Resolver<'_>) -> SetRequest {
        SetRequest {
            private_key: self.interface.private_key.clone().map(Some),
            listen_port: self.interface.listen_port,
            fwmark: self.interface.fwmark,
            replace_peers: false,
            peers: self.peers.iter().map(|peer| peer.request(resolve)).collect(),
        }
    }
}

impl PeerConfig {
    /// The request that adds the peer, or brings one that is there into line.
    pub fn request(&self, resolve: Resolver<'_>) -> PeerRequest {
        PeerRequest {
            preshared_key: self.preshared_key.clone().map(Box::new),
            endpoint: self.endpoint.as_ref().and_then(|endpoint| resolve(self, endpoint)),
            persistent_keepalive: self.persistent_keepalive,
            limits: Some(self.limits).filter(|limits| !limits.is_none()).map(Box::new),
            replace_allowed_ips: true,
            allowed_ips: self.allowed_ips.iter().map(|&prefix| AllowedIp { prefix, remove: false }).collect(),
            ..PeerRequest::new(self.public_key)
        }
    }
}

/// What a peer is to have in the end, whatever the sections said on the way there.
#[derive(Default)]
struct Wanted {
    preshared_key: Option<SharedSecret>,
    endpoint: Option<SocketAddr>,
    persistent_keepalive: u16,
    limits: LimitSettings,
    allowed: BTreeSet<Prefix>,
}

/// Every allowed IP that a device has once it is as `config` says.
pub fn allowed_ips(config: &Config) -> BTreeSet<Prefix> {
    let (_, wanted) = wanted_peers(config, &mut |_, _| None);
    wanted.into_values().flat_map(|peer| peer.allowed).collect()
}

/// The request that turns `device` into what `config` says, with the fewest changes. A peer that is as it should be is
/// not mentioned and keeps its session; one that the file lacks is removed. A key, port or mark that the file leaves
/// open stays as it is, since a hook or `up` may have set it.
pub fn difference(device: &DeviceState, config: &Config, resolve: Resolver<'_>) -> SetRequest {
    let interface = &config.interface;
    let mut request = SetRequest {
        private_key: interface
            .private_key
            .clone()
            .filter(|key| device.private_key.as_ref() != Some(key))
            .map(Some),
        listen_port: interface.listen_port.filter(|&port| port != 0 && port != device.listen_port),
        fwmark: interface.fwmark.filter(|&mark| mark != device.fwmark),
        ..SetRequest::default()
    };
    let (order, wanted) = wanted_peers(config, resolve);
    for peer in device.peers.iter().filter(|peer| !wanted.contains_key(&peer.public_key)) {
        request.peers.push(PeerRequest { remove: true, ..PeerRequest::new(peer.public_key) });
    }
    let current: HashMap<PublicKey, &PeerState> =
        device.peers.iter().map(|peer| (peer.public_key, peer)).collect();
    for key in order {
        let Some(peer) = wanted.get(&key) else { continue };
        request.peers.extend(peer_difference(key, peer, current.get(&key).copied()));
    }
    request
}

fn wanted_peers(config: &Config, resolve: Resolver<'_>) -> (Vec<PublicKey>, HashMap<PublicKey, Wanted>) {
    let mut order = Vec::new();
    let mut wanted: HashMap<PublicKey, Wanted> = HashMap::new();
    let mut owners: HashMap<Prefix, PublicKey> = HashMap::new();
    for peer in &config.peers {
        if wanted.contains_key(&peer.public_key) {
            // A later section with the same key replaces the allowed IPs, and the rest where it says something.
            owners.retain(|_, owner| *owner != peer.public_key);
        } else {
            order.push(peer.public_key);
        }
        let entry = wanted.entry(peer.public_key).or_default();
        owners.extend(peer.allowed_ips.iter().map(|&prefix| (prefix, peer.public_key)));
        entry.preshared_key = peer.preshared_key.clone().or(entry.preshared_key.take());
        entry.endpoint = peer.endpoint.as_ref().and_then(|at| resolve(peer, at)).or(entry.endpoint);
        // The last section's count, whatever they are.
        entry.limits = peer.limits;
        entry.persistent_keepalive = peer.persistent_keepalive.unwrap_or(entry.persistent_keepalive);
    }
    for (prefix, owner) in owners {
        if let Some(peer) = wanted.get_mut(&owner) {
            peer.allowed.insert(prefix);
        }
    }
    (order, wanted)
}

/// The request that changes one peer. `None` where the peer is as it should be.
fn peer_difference(key: PublicKey, wanted: &Wanted, current: Option<&PeerState>) -> Option<PeerRequest> {
    let mut request = PeerRequest::new(key);
    let nobody = PeerState::new(key);
    let peer = current.unwrap_or(&nobody);
    if peer.preshared_key != wanted.preshared_key {
        let wanted = wanted.preshared_key.clone().unwrap_or(SharedSecret([0; 32]));
        request.preshared_key = Some(Box::new(wanted));
    }
    request.endpoint = wanted.endpoint.filter(|&endpoint| peer.endpoint != Some(endpoint));
    request.persistent_keepalive =
        Some(wanted.persistent_keepalive).filter(|&seconds| seconds != peer.persistent_keepalive);
    let has: BTreeSet<Prefix> = peer.allowed_ips.iter().copied().collect();
    if has != wanted.allowed {
        request.replace_allowed_ips = true;
        request.allowed_ips =
            wanted.allowed.iter().map(|&prefix| AllowedIp { prefix, remove: false }).collect();
    }
    if peer.limits.settings != wanted.limits {
        request.limits = Some(Box::new(wanted.limits));
    }
    let silent = request.preshared_key.is_none()
        && request.limits.is_none()
        && request.endpoint.is_none()
        && request.persistent_keepalive.is_none()
        && !request.replace_allowed_ips;
    (current.is_none() || !silent).then_some(request)
}

/// The request as the configuration protocol's text, from `set=1` to the empty line. It is secret, and so is zeroized
/// on drop.
pub fn set_text(request: &SetRequest) -> Zeroizing<String> {
    const DEVICE_ROOM: usize = 256;
    const PEER_ROOM: usize = 512;
    const ALLOWED_IP_ROOM: usize = 64;
    let room =
        request.peers.iter().map(|peer| PEER_ROOM + peer.allowed_ips.len() * ALLOWED_IP_ROOM).sum::<usize>();
    let mut text = Zeroizing::new(String::with_capacity(DEVICE_ROOM + room));
    text.push_str("set=1\n");
    if let Some(key) = &request.private_key {
        let bytes = Zeroizing::new(key.as_ref().map_or([0; 32], |key| key.to_bytes()));
        key_line(&mut text, "private_key", &bytes);
    }
    value_line(&mut text, "listen_port", request.listen_port);
    value_line(&mut text, "fwmark", request.fwmark);
    if request.replace_peers {
        text.push_str("replace_peers=true\n");
    }
    for peer in &request.peers {
        peer_lines(&mut text, peer);
    }
    text.push('\n');
    text
}

/// The question for the configuration of the interface and of these peers as text, to the empty line. It is this program's
/// own; see [`crate::device::uapi`].
pub fn get_text(keys: &[PublicKey]) -> String {
    let mut text = "get=1\n".to_owned();
    keys.iter().for_each(|key| key_line(&mut text, "public_key", &key.0));
    text.push_str(if keys.is_empty() { "peers=none\n\n" } else { "\n" });
    text
}

/// The question what is known of a peer that does not connect as text, to the empty line. It is this program's own; see
/// [`crate::device::uapi`].
pub fn diagnose_text(key: &PublicKey, tries: bool) -> String {
    let mut text = "diagnose=1\n".to_owned();
    key_line(&mut text, "public_key", &key.0);
    text.push_str(if tries { "handshake=true\n\n" } else { "\n" });
    text
}

fn peer_lines(text: &mut String, peer: &PeerRequest) {
    key_line(text, "public_key", &peer.public_key.0);
    if peer.update_only {
        text.push_str("update_only=true\n");
    }
    if peer.remove {
        text.push_str("remove=true\n");
        return;
    }
    if let Some(key) = &peer.preshared_key {
        key_line(text, "preshared_key", &key.0);
    }
    value_line(text, "endpoint", peer.endpoint);
    value_line(text, "persistent_keepalive_interval", peer.persistent_keepalive);
    value_line(text, "ringtun_limits", peer.limits.as_deref());
    value_line(text, "ringtun_memory", peer.memory.as_deref());
    if peer.replace_allowed_ips {
        text.push_str("replace_allowed_ips=true\n");
    }
    for allowed in &peer.allowed_ips {
        let minus = if allowed.remove { "-" } else { "" };
        value_line(text, "allowed_ip", Some(format_args!("{minus}{}", allowed.prefix)));
    }
}

fn value_line(text: &mut String, key: &str, value: Option<impl Display>) {
    if let Some(value) = value {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{key}={value}");
    }
}

fn key_line(text: &mut String, key: &str, bytes: &[u8; 32]) {
    text.push_str(key);
    text.push('=');
    for byte in bytes {
        text.extend([byte >> 4, byte & 15].iter().filter_map(|&digit| char::from_digit(digit.into(), 16)));
    }
    text.push('\n');
}
