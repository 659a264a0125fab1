//! The form for people.

use super::units::{ago, bytes, duration};
use super::{Text, View, address, endpoint, none, public_key, put, text_for};
use crate::gateway::control::PeerState;
use std::cmp::Reverse;

/// Whether to colour, and how.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Paint {
    /// Escape sequences, as on a terminal.
    pub colours: bool,
}

const RESET: &str = "\x1b[0m";
const BOLD: &str = "\x1b[1m";
const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const YELLOW: &str = "\x1b[33m";
const CYAN: &str = "\x1b[36m";

impl Paint {
    /// WG_COLOR_MODE: `always`, `never`, else only on a terminal.
    pub fn chosen(mode: Option<&str>, terminal: bool) -> Paint {
        Paint { colours: mode == Some("always") || (mode != Some("never") && terminal) }
    }

    fn code(self, code: &'static str) -> &'static str {
        if self.colours { code } else { "" }
    }

    fn wrap(self, code: &'static str, text: &str) -> String {
        format!("{}{text}{}", self.code(code), self.code(RESET))
    }

    pub(super) fn cyan(self, text: &str) -> String {
        self.wrap(CYAN, text)
    }

    pub(super) fn red(self, text: &str) -> String {
        self.wrap(RED, text)
    }

    /// `interface: wg0`.
    fn heading(self, colour: &'static str, what: &str, name: &str) -> String {
        let (colour, bold, reset) = (self.code(colour), self.code(BOLD), self.code(RESET));
        format!("{colour}{bold}{what}{reset}: {colour}{name}{reset}\n")
    }

    /// `  endpoint: `.
    fn label(self, what: &str) -> String {
        format!("  {}: ", self.wrap(BOLD, what))
    }
}

/// `wg show NAME`. `verbose` adds each peer's name and owning worker.
pub fn pretty(view: &View, paint: Paint, verbose: bool) -> Text {
    let (mut text, device) = (text_for(view), &view.device);
    put(&mut text, paint.code(RESET));
    put(&mut text, paint.heading(GREEN, "interface", &view.name));
    if let (Some(public), Some(private)) = (public_key(device), &device.private_key) {
        line(&mut text, paint, "public key", &public);
        line(&mut text, paint, "private key", &masked(view, private.to_base64()));
    }
    if device.listen_port != 0 {
        line(&mut text, paint, "listening port", &device.listen_port.to_string());
    }
    if device.fwmark != 0 {
        line(&mut text, paint, "fwmark", &format!("{:#x}", device.fwmark));
    }
    let mut peers: Vec<&PeerState> = device.peers.iter().collect();
    // The latest handshake first; the sort is stable, as glibc's is.
    peers.sort_by_key(|peer| Reverse(peer.last_handshake));
    for peer in peers {
        put(&mut text, "\n");
        put_peer(&mut text, view, peer, paint, verbose);
    }
    text
}

fn put_peer(text: &mut Text, view: &View, peer: &PeerState, paint: Paint, verbose: bool) {
    let key = peer.public_key.to_base64();
    put(text, paint.heading(YELLOW, "peer", &key));
    if verbose {
        if let Some(name) = view.names.get(&key) {
            line(text, paint, "name", name);
        }
        if let Some(worker) = view.owners.get(&key) {
            line(text, paint, "owner", &format!("worker {worker}"));
        }
    }
    if let Some(preshared) = &peer.preshared_key {
        line(text, paint, "preshared key", &masked(view, preshared.to_base64()));
    }
    if let Some(addr) = peer.endpoint {
        line(text, paint, "endpoint", &endpoint(addr));
    }
    line(text, paint, "allowed ips", &allowed_ips(peer, paint));
    if peer.last_handshake.as_secs() != 0 {
        line(text, paint, "latest handshake", &ago(paint, view.now, peer.last_handshake.as_secs()));
    }
    if peer.rx_bytes != 0 || peer.tx_bytes != 0 {
        let (received, sent) = (bytes(paint, peer.rx_bytes), bytes(paint, peer.tx_bytes));
        line(text, paint, "transfer", &format!("{received} received, {sent} sent"));
    }
    if peer.persistent_keepalive != 0 {
        let every = duration(paint, peer.persistent_keepalive.into());
        line(text, paint, "persistent keepalive", &format!("every {every}"));
    }
}

fn line(text: &mut Text, paint: Paint, what: &str, value: &str) {
    put(text, format_args!("{}{value}\n", paint.label(what)));
}

fn masked(view: &View, key: Text) -> Text {
    if view.reveal { key } else { Text::new("(hidden)".to_owned()) }
}

fn allowed_ips(peer: &PeerState, paint: Paint) -> String {
    let one = |prefix: &crate::routing::Prefix| {
        format!("{}{}{}", address(prefix.addr()), paint.cyan("/"), prefix.len())
    };
    match peer.allowed_ips.as_slice() {
        [] => none(),
        prefixes => prefixes.iter().map(one).collect::<Vec<_>>().join(", "),
    }
}
