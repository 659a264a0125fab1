//! What the language allows and no tunnel works with. wg-quick goes ahead all the same, and so does `up`; `check`
//! reports it as an error.

use super::{Config, Document, Interface, PeerConfig, Table, Warning};
use crate::routing::Prefix;

/// What a hook holds that may set the private key: wg(8)'s verbs, or a program of the administrator's own.
const MAY_SET_KEY: [&str; 10] = [
    "private-key",
    "setconf",
    "addconf",
    "syncconf",
    ".sh",
    "/etc/",
    "/opt/",
    "/usr/local/",
    "/root/",
    "/home/",
];

/// Everything of this kind in a file, in the file's order.
pub(super) fn broken(document: &Document, config: &Config) -> Vec<Warning> {
    let mut found = Vec::new();
    let mut note = |line: usize, message: String| found.push(Warning::Broken { line, message });
    let sections = document.sections();
    let interface = &config.interface;
    match sections.iter().find(|section| section.interface) {
        _ if sections.is_empty() => {
            note(1, "there is nothing in it: expected [Interface] with a PrivateKey, and [Peer] sections".into());
        }
        None => note(1, "there is no [Interface] section: expected one with a PrivateKey".into()),
        Some(section) if interface.private_key.is_none() && !hook_may_set_key(interface) => note(
            section.header + 1,
            "there is no PrivateKey, and no hook that sets one: expected one from `ringtun genkey`, or PreUp = wg set %i private-key FILE"
                .into(),
        ),
        Some(_) => {}
    }
    for (at, address) in interface.addresses.iter().enumerate() {
        if interface.addresses.iter().take(at).any(|other| other == address) {
            let header =
                sections.iter().find(|section| section.interface).map_or(0, |section| section.header);
            note(header + 1, format!("Address {address} stands twice: expected it once"));
        }
    }
    for domain in &interface.dns_search {
        if domain.chars().any(|c| !(c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | '~'))) {
            let line =
                sections.iter().find(|section| section.interface).map_or(1, |section| section.header + 1);
            note(
                line,
                "DNS: what is neither an address nor a domain stands there; a comment begins with `#`".into(),
            );
        }
    }
    let own = interface.private_key.as_ref().map(|key| key.public());
    for peer in &config.peers {
        if own == Some(peer.public_key) {
            note(
                peer.line.0,
                "the peer's PublicKey is this interface's own: expected the other end's".into(),
            );
        }
        if let Some(address) = own_address(interface, peer) {
            note(
                peer.line.0,
                format!("AllowedIPs {address} is this interface's own address: expected the other end's"),
            );
        }
        if let Some(prefix) = holds_own_endpoint(interface, peer) {
            note(
                peer.line.0,
                format!(
                    "AllowedIPs {prefix} holds the peer's own Endpoint: what is sent there would enter the tunnel again"
                ),
            );
        }
    }
    found
}

fn hook_may_set_key(interface: &Interface) -> bool {
    let hooks = interface.pre_up.iter().chain(&interface.post_up);
    hooks.into_iter().any(|hook| MAY_SET_KEY.iter().any(|part| hook.contains(part)))
}

fn own_address(interface: &Interface, peer: &PeerConfig) -> Option<Prefix> {
    let own =
        |prefix: &&Prefix| interface.addresses.iter().any(|address| Prefix::from(address.addr) == **prefix);
    peer.allowed_ips.iter().find(own).copied()
}

/// The AllowedIPs of a peer that lead its own endpoint into the tunnel. A default route does no harm, since the policy
/// rules spare the tunnel's own packets; nor is it held against a file whose hooks may route them elsewhere.
fn holds_own_endpoint(interface: &Interface, peer: &PeerConfig) -> Option<Prefix> {
    let mut hooks = interface.pre_up.iter().chain(&interface.post_up);
    if interface.table != Table::Auto || hooks.any(|hook| hook.contains("route") || hook.contains("rule")) {
        return None;
    }
    let addr = peer.endpoint.as_ref()?.address()?;
    peer.allowed_ips.iter().find(|prefix| prefix.len() > 0 && prefix.contains(addr)).copied()
}
