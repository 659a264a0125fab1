//! A running device in the form for people.

use super::paint::{GREEN, Paint, RESET, YELLOW};
use super::units::{ago, bytes, duration};
use super::{Text, View, address, endpoint, none, public_key, put, text_for};
use crate::gateway::control::PeerState;
use std::cmp::Reverse;

/// The text of `wg show NAME`. `verbose` adds each peer's name and owning worker.
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
    } else if let Some(unbound) = &view.unbound {
        line(&mut text, paint, "listening port", &unbound.to_string());
    }
    if device.fwmark != 0 {
        line(&mut text, paint, "fwmark", &format!("{:#x}", device.fwmark));
    }
    let mut peers: Vec<&PeerState> = device.peers.iter().collect();
    // The latest handshake comes first. The sort is stable, as glibc's is.
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
        if let Some(owner) = view.owners.get(&key) {
            line(text, paint, "owner", &format!("worker {}", owner.worker));
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
