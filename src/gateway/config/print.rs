//! A [`Config`] printed as a wg-quick file, each key once and in wg-quick(8)'s order.

use super::limits::limit_lines;
use super::{Config, Interface, PeerConfig, Table};
use std::fmt::{Display, Write};
use zeroize::Zeroizing;

/// Room in bytes for the values of fixed length. Lists and hooks are counted beside it.
const ROOM: usize = 512;

impl Config {
    /// The configuration as a file. It is secret, and so is zeroized on drop.
    pub fn print(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(room(self)));
        interface(&mut text, &self.interface);
        for peer in &self.peers {
            text.push('\n');
            text.push_str(&peer.print());
        }
        text
    }
}

impl PeerConfig {
    /// The peer as a `[Peer]` section, header and name first. It may hold a preshared key, and so is zeroized on drop.
    pub fn print(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(peer_room(self)));
        text.push_str("[Peer]\n");
        if let Some(name) = &self.name {
            line(&mut text, "# Name", name);
        }
        for (key, value) in limit_lines(&self.limits) {
            line(&mut text, &format!("# {key}"), value);
        }
        line(&mut text, "PublicKey", self.public_key.to_base64());
        if let Some(key) = &self.preshared_key {
            line(&mut text, "PresharedKey", key.to_base64().as_str());
        }
        if !self.allowed_ips.is_empty() {
            line(&mut text, "AllowedIPs", join(&self.allowed_ips));
        }
        if let Some(endpoint) = &self.endpoint {
            line(&mut text, "Endpoint", endpoint);
        }
        if let Some(seconds) = self.persistent_keepalive {
            line(&mut text, "PersistentKeepalive", seconds);
        }
        text
    }
}

fn interface(text: &mut String, interface: &Interface) {
    text.push_str("[Interface]\n");
    for address in &interface.addresses {
        line(text, "Address", address);
    }
    if let Some(port) = interface.listen_port {
        line(text, "ListenPort", port);
    }
    if let Some(key) = &interface.private_key {
        line(text, "PrivateKey", key.to_base64().as_str());
    }
    if let Some(mark) = interface.fwmark {
        line(text, "FwMark", format_args!("0x{mark:x}"));
    }
    let servers = interface.dns.iter().map(ToString::to_string);
    let dns: Vec<String> = servers.chain(interface.dns_search.iter().cloned()).collect();
    if !dns.is_empty() {
        line(text, "DNS", dns.join(", "));
    }
    if let Some(mtu) = interface.mtu {
        line(text, "MTU", mtu);
    }
    if interface.table != Table::Auto {
        line(text, "Table", interface.table);
    }
    if interface.save_config {
        line(text, "SaveConfig", true);
    }
    let hooks = [
        ("PreUp", &interface.pre_up),
        ("PostUp", &interface.post_up),
        ("PreDown", &interface.pre_down),
        ("PostDown", &interface.post_down),
    ];
    for (key, hook) in hooks.iter().flat_map(|(key, hooks)| hooks.iter().map(move |hook| (key, hook))) {
        line(text, key, hook);
    }
}

fn line(text: &mut String, key: &str, value: impl Display) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{key} = {value}");
}

pub(super) fn join<T: Display>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Room in bytes for the whole file, so that the string never grows: that would leave copies of the keys behind.
fn room(config: &Config) -> usize {
    let interface = &config.interface;
    let hooks = [&interface.pre_up, &interface.post_up, &interface.pre_down, &interface.post_down];
    let texts =
        hooks.into_iter().flatten().chain(&interface.dns_search).map(|text| text.len() + 16).sum::<usize>();
    let lists = (interface.addresses.len() + interface.dns.len()) * 80;
    ROOM + texts + lists + config.peers.iter().map(peer_room).sum::<usize>()
}

fn peer_room(peer: &PeerConfig) -> usize {
    let texts =
        peer.name.as_ref().map_or(0, String::len) + peer.endpoint.as_ref().map_or(0, |at| at.host.len());
    ROOM + texts + peer.allowed_ips.len() * 48
}
