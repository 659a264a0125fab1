//! A running device as text, to the letter of wg(8)'s `show` and `showconf`, and as JSON.

mod json;
mod paint;
mod pretty;
mod units;

pub use json::json;
pub use paint::Paint;
pub use pretty::pretty;

use crate::crypto::x25519::SharedSecret;
use crate::device::status::Unbound;
use crate::gateway::control::{DeviceState, PeerState};
use crate::sys::link;
use std::collections::HashMap;
use std::fmt::{Display, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use zeroize::Zeroizing;

/// A device and what is known about it from elsewhere.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The interface's name.
    pub name: String,
    /// What it answered.
    pub device: DeviceState,
    /// Names of peers, by public key in base64.
    pub names: HashMap<String, String>,
    /// Owning workers, by public key in base64; empty where the device has none.
    pub owners: HashMap<String, u8>,
    /// Why it does not listen, where it should.
    pub unbound: Option<Unbound>,
    /// Seconds since the Unix epoch.
    pub now: u64,
    /// WG_HIDE_KEYS=never.
    pub reveal: bool,
}

/// One column of `wg show`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Field {
    /// The interface's public key.
    PublicKey,
    /// The interface's private key.
    PrivateKey,
    /// The UDP port.
    ListenPort,
    /// The sockets' mark.
    Fwmark,
    /// Public keys of the peers.
    Peers,
    /// Each peer's preshared key.
    PresharedKeys,
    /// Where each peer is.
    Endpoints,
    /// What each peer may send.
    AllowedIps,
    /// When each peer's last handshake was, since the Unix epoch.
    LatestHandshakes,
    /// Each peer's interval.
    PersistentKeepalive,
    /// Bytes from and to each peer.
    Transfer,
    /// Everything, tab-separated.
    Dump,
}

/// Text that may hold keys. Room for it is made beforehand: a string that grew would leave copies of them behind.
pub(super) type Text = Zeroizing<String>;

/// More than an interface's lines take.
const INTERFACE_ROOM: usize = 512;
/// More than a peer's lines take, names and allowed IPs aside.
const PEER_ROOM: usize = 768;
/// More than an allowed IP takes, colours included.
const ALLOWED_IP_ROOM: usize = 64;

pub(super) fn text_for(view: &View) -> Text {
    let peers = &view.device.peers;
    let allowed: usize = peers.iter().map(|peer| peer.allowed_ips.len()).sum();
    let names: usize = view.names.values().map(String::len).sum();
    let lines = INTERFACE_ROOM + peers.len() * PEER_ROOM + allowed * ALLOWED_IP_ROOM;
    Zeroizing::new(String::with_capacity(lines + names))
}

/// Writing to a string cannot fail.
pub(super) fn put(text: &mut Text, what: impl Display) {
    let _ = write!(**text, "{what}");
}

/// One field of an interface, or of each of its peers a line; `prefix` puts the interface's name first.
pub fn field(view: &View, field: Field, prefix: bool) -> Text {
    let mut text = text_for(view);
    // For the peers' endpoints wg(8) 1.0.20210914, which is Debian 12's, names the interface once a device, also where that
    // has no peers, and so no line to end; later ones name it in each line.
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

/// The value of a field of the interface; `None`: the field is the peers'.
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

/// What follows a peer's key on its line.
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

/// The device's configuration as `wg setconf` takes it.
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

/// An address as inet_ntop(3) writes it.
fn address(ip: IpAddr) -> String {
    match ip {
        IpAddr::V6(v6) => ipv6(v6),
        IpAddr::V4(v4) => v4.to_string(),
    }
}

/// glibc writes what looks like an IPv4-compatible address (six zero groups, then one that is not) with a dotted end;
/// the standard library does not.
fn ipv6(ip: Ipv6Addr) -> String {
    let groups = ip.segments();
    if groups[..6] != [0; 6] || groups[6] == 0 {
        return ip.to_string();
    }
    let [.., a, b, c, d] = ip.octets();
    format!("::{a}.{b}.{c}.{d}")
}

/// An endpoint as getnameinfo(3) writes it: a link-local address names its interface.
fn endpoint(addr: SocketAddr) -> String {
    let SocketAddr::V6(v6) = addr else { return addr.to_string() };
    // fe80::/10 and multicast of link scope, as glibc has it.
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
