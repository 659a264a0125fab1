//! A running device as text, to the letter of wg(8)'s `show` and `showconf`, and as JSON.

mod columns;
mod json;
mod limits;
mod paint;
mod pretty;
mod units;

pub use columns::{Align, columns, wrapped};
pub use json::{InterfaceJson, json};
pub use limits::LimitsJson;
pub use paint::Paint;
pub use pretty::pretty;
pub use units::amount;

use crate::crypto::x25519::SharedSecret;
use crate::device::status::{Owner, Unbound};
use crate::gateway::control::{DeviceState, PeerState};
use crate::gateway::metrics::Measured;
use crate::sys::link;
use std::collections::HashMap;
use std::fmt::{Display, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use zeroize::Zeroizing;

/// A device to be shown, with what is known about it from elsewhere.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The interface's name.
    pub name: String,
    /// The device's answer.
    pub device: DeviceState,
    /// The names of peers, by public key in base64.
    pub names: HashMap<String, String>,
    /// What the program says of each peer, by public key in base64. It is empty where that is another implementation.
    pub owners: HashMap<String, Owner>,
    /// Why the device does not listen, where it should.
    pub unbound: Option<Unbound>,
    /// The present time in seconds since the Unix epoch.
    pub now: u64,
    /// Whether to show secrets, as WG_HIDE_KEYS=never asks for.
    pub reveal: bool,
}

impl View {
    /// What was measured, to be shown without its secrets. The present time is left open.
    pub fn of(measured: &Measured) -> View {
        let status = measured.status.as_ref();
        let owners = status.into_iter().flat_map(|status| &status.peers);
        View {
            name: measured.name.clone(),
            device: measured.device.clone(),
            names: measured.names.clone(),
            owners: owners.map(|owner| (owner.public_key.clone(), owner.clone())).collect(),
            unbound: status.and_then(|status| status.unbound.clone()),
            ..View::default()
        }
    }
}

/// One column of `wg show`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Field {
    /// The interface's public key.
    PublicKey,
    /// The interface's private key.
    PrivateKey,
    /// The interface's UDP port.
    ListenPort,
    /// The mark of the interface's sockets.
    Fwmark,
    /// The public keys of the peers.
    Peers,
    /// The preshared key of each peer.
    PresharedKeys,
    /// The endpoint of each peer.
    Endpoints,
    /// The AllowedIPs of each peer.
    AllowedIps,
    /// The time of each peer's last handshake in seconds since the Unix epoch.
    LatestHandshakes,
    /// The keepalive interval of each peer in seconds.
    PersistentKeepalive,
    /// The bytes received from and sent to each peer.
    Transfer,
    /// All columns, tab-separated.
    Dump,
}

/// Text that may hold keys. Its room is made beforehand, since a string that grew would leave copies of them behind.
pub(super) type Text = Zeroizing<String>;

/// Room in bytes, more than an interface's lines take.
const INTERFACE_ROOM: usize = 512;
/// Room in bytes, more than a peer's lines take without its name and its AllowedIPs.
const PEER_ROOM: usize = 768;
/// Room in bytes, more than one prefix of AllowedIPs takes, colours included.
const ALLOWED_IP_ROOM: usize = 64;

pub(super) fn text_for(view: &View) -> Text {
    let peers = &view.device.peers;
    let allowed: usize = peers.iter().map(|peer| peer.allowed_ips.len()).sum();
    let names: usize = view.names.values().map(String::len).sum();
    let lines = INTERFACE_ROOM + peers.len() * PEER_ROOM + allowed * ALLOWED_IP_ROOM;
    Zeroizing::new(String::with_capacity(lines + names))
}

/// Appends to the text. Writing to a string cannot fail.
pub(super) fn put(text: &mut Text, what: impl Display) {
    let _ = write!(**text, "{what}");
}

/// One column: the interface's value, or a line for each of its peers. `prefix` puts the interface's name first.
pub fn field(view: &View, field: Field, prefix: bool) -> Text {
    let mut text = text_for(view);
    // In the column of endpoints wg(8) 1.0.20210914, which is Debian 12's, names the interface once for each device. It
    // does so even where the device has no peers, and so no line to end. Later versions name it in each line.
    let once = field == Field::Endpoints;
    match field {
        Field::Dump => dump_interface(&mut text, view, prefix),
        _ => put_prefix(&mut text, view, prefix && once),
    }
    match of_interface(view, field) {
        Some(value) => {
            put_prefix(&mut text, view, prefix);
            put(&mut text, format_args!("{}\n", *value));
        }
        None => view.device.peers.iter().for_each(|peer| {
            put_prefix(&mut text, view, prefix && !once);
            put(&mut text, peer.public_key.to_base64());
            of_peer(&mut text, peer, field);
            put(&mut text, "\n");
        }),
    }
    text
}

fn put_prefix(text: &mut Text, view: &View, prefix: bool) {
    if prefix {
        put(text, format_args!("{}\t", view.name));
    }
}

/// The interface's value of a column. `None` where the column is about peers.
fn of_interface(view: &View, field: Field) -> Option<Text> {
    let device = &view.device;
    let text = |value: String| Some(Zeroizing::new(value));
    match field {
        Field::PublicKey => text(public_key(device).unwrap_or_else(none)),
        Field::PrivateKey => Some(private_key(device)),
        Field::ListenPort => text(device.listen_port.to_string()),
        Field::Fwmark => text(mark(device.fwmark)),
        _ => None,
    }
}

/// Appends what follows a peer's key on its line.
fn of_peer(text: &mut Text, peer: &PeerState, field: Field) {
    match field {
        Field::PresharedKeys => put(text, format_args!("\t{}", *preshared_key(peer.preshared_key.as_ref()))),
        Field::Endpoints => put(text, format_args!("\t{}", peer.endpoint.map_or_else(none, endpoint))),
        Field::AllowedIps => put(text, format_args!("\t{}", allowed_ips(peer, " "))),
        Field::LatestHandshakes => put(text, format_args!("\t{}", peer.last_handshake.as_secs())),
        Field::PersistentKeepalive => put(text, format_args!("\t{}", keepalive(peer.persistent_keepalive))),
        Field::Transfer => put(text, format_args!("\t{}\t{}", peer.rx_bytes, peer.tx_bytes)),
        Field::Dump => {
            of_peer(text, peer, Field::PresharedKeys);
            of_peer(text, peer, Field::Endpoints);
            put(text, format_args!("\t{}", allowed_ips(peer, ",")));
            of_peer(text, peer, Field::LatestHandshakes);
            of_peer(text, peer, Field::Transfer);
            of_peer(text, peer, Field::PersistentKeepalive);
        }
        _ => {}
    }
}

fn dump_interface(text: &mut Text, view: &View, prefix: bool) {
    let device = &view.device;
    put_prefix(text, view, prefix);
    let private = private_key(device);
    let public = public_key(device).unwrap_or_else(none);
    put(text, format_args!("{}\t{public}\t{}\t{}\n", *private, device.listen_port, mark(device.fwmark)));
}

/// The device's configuration in the form that `wg setconf` takes.
pub fn showconf(view: &View) -> Text {
    let (mut text, device) = (text_for(view), &view.device);
    put(&mut text, "[Interface]\n");
    if device.listen_port != 0 {
        put(&mut text, format_args!("ListenPort = {}\n", device.listen_port));
    }
    if device.fwmark != 0 {
        put(&mut text, format_args!("FwMark = {:#x}\n", device.fwmark));
    }
    if let Some(key) = &device.private_key {
        put(&mut text, format_args!("PrivateKey = {}\n", *key.to_base64()));
    }
    for peer in &device.peers {
        put(&mut text, format_args!("\n[Peer]\nPublicKey = {}\n", peer.public_key.to_base64()));
        if let Some(key) = &peer.preshared_key {
            put(&mut text, format_args!("PresharedKey = {}\n", *key.to_base64()));
        }
        if !peer.allowed_ips.is_empty() {
            put(&mut text, format_args!("AllowedIPs = {}\n", allowed_ips(peer, ", ")));
        }
        if let Some(addr) = peer.endpoint {
            put(&mut text, format_args!("Endpoint = {}\n", endpoint(addr)));
        }
        if peer.persistent_keepalive != 0 {
            put(&mut text, format_args!("PersistentKeepalive = {}\n", peer.persistent_keepalive));
        }
    }
    if device.peers.is_empty() {
        put(&mut text, "\n"); // wg ends the interface's section so, whether a peer follows or not
    }
    text
}

fn none() -> String {
    "(none)".to_owned()
}

fn public_key(device: &DeviceState) -> Option<String> {
    device.private_key.as_ref().map(|key| key.public().to_base64())
}

fn private_key(device: &DeviceState) -> Text {
    device.private_key.as_ref().map_or_else(|| Zeroizing::new(none()), |key| key.to_base64())
}

fn preshared_key(key: Option<&SharedSecret>) -> Text {
    key.map_or_else(|| Zeroizing::new(none()), SharedSecret::to_base64)
}

fn mark(mark: u32) -> String {
    if mark == 0 { "off".to_owned() } else { format!("{mark:#x}") }
}

fn keepalive(seconds: u16) -> String {
    if seconds == 0 { "off".to_owned() } else { seconds.to_string() }
}

fn allowed_ips(peer: &PeerState, separator: &str) -> String {
    if peer.allowed_ips.is_empty() {
        return none();
    }
    let one = |prefix: &crate::routing::Prefix| format!("{}/{}", address(prefix.addr()), prefix.len());
    peer.allowed_ips.iter().map(one).collect::<Vec<_>>().join(separator)
}

/// An IP address as inet_ntop(3) writes it.
fn address(ip: IpAddr) -> String {
    match ip {
        IpAddr::V6(v6) => ipv6(v6),
        IpAddr::V4(v4) => v4.to_string(),
    }
}

/// An IPv6 address as glibc writes it. What looks like an IPv4-compatible address (six zero groups, then one that is
/// not) gets a dotted end, which the standard library does not give it.
fn ipv6(ip: Ipv6Addr) -> String {
    let groups = ip.segments();
    if groups[..6] != [0; 6] || groups[6] == 0 {
        return ip.to_string();
    }
    let [.., a, b, c, d] = ip.octets();
    format!("::{a}.{b}.{c}.{d}")
}

/// An endpoint as getnameinfo(3) writes it, where a link-local address names its interface.
fn endpoint(addr: SocketAddr) -> String {
    let SocketAddr::V6(v6) = addr else { return addr.to_string() };
    // As in glibc, these are fe80::/10 and multicast of link scope.
    let [first, ..] = v6.ip().segments();
    let is_link_local = first & 0xffc0 == 0xfe80 || first & 0xff0f == 0xff02;
    let scope = match v6.scope_id() {
        0 => String::new(),
        index if is_link_local => format!("%{}", link::scope(index)),
        index => format!("%{index}"),
    };
    format!("[{}{scope}]:{}", ipv6(*v6.ip()), v6.port())
}

#[cfg(test)]
mod tests;
