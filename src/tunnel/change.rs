//! Changes of a tunnel's configuration.

use crate::crypto::x25519::{PrivateKey, PublicKey, SharedSecret};
use crate::device::uapi::{AllowedIp, PeerRequest, SetRequest};
use crate::routing::Prefix;
use std::net::SocketAddr;

/// A change of a tunnel's configuration, which is carried out whole or not at all. What it does not mention stays as it is.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Change {
    request: SetRequest,
}

impl Change {
    /// Begins a change that changes nothing yet.
    pub fn new() -> Change {
        Change::default()
    }

    /// Takes another private key: all sessions end, and new ones are begun.
    pub fn private_key(mut self, key: PrivateKey) -> Change {
        self.request.private_key = Some(Some(key));
        self
    }

    /// Takes the private key away. The tunnel makes no handshakes without one.
    pub fn no_private_key(mut self) -> Change {
        self.request.private_key = Some(None);
        self
    }

    /// Listens on another UDP port. With 0 it is any that is free.
    pub fn listen_port(mut self, port: u16) -> Change {
        self.request.listen_port = Some(port);
        self
    }

    /// Gives the tunnel's own datagrams a firewall mark (SO_MARK), by which rules tell them apart. With 0 they have none.
    pub fn fwmark(mut self, mark: u32) -> Change {
        self.request.fwmark = Some(mark);
        self
    }

    /// Removes all peers before those of this change are added.
    pub fn replace_peers(mut self) -> Change {
        self.request.replace_peers = true;
        self
    }

    /// Adds, changes or removes a peer. Several such changes are carried out in the order of the calls.
    pub fn peer(mut self, peer: PeerChange) -> Change {
        self.request.peers.push(peer.request);
        self
    }

    pub(super) fn into_request(self) -> SetRequest {
        self.request
    }
}

/// A change of one peer. What it does not mention stays as it is.
#[derive(Clone, Debug)]
#[must_use]
pub struct PeerChange {
    request: PeerRequest,
}

impl PeerChange {
    /// Begins a change that adds the peer, if there is none with this key.
    pub fn new(key: PublicKey) -> PeerChange {
        PeerChange { request: PeerRequest::new(key) }
    }

    /// Makes a change that removes the peer, if there is one with this key.
    pub fn remove(key: PublicKey) -> PeerChange {
        PeerChange { request: PeerRequest { remove: true, ..PeerRequest::new(key) } }
    }

    /// Leaves the tunnel as it is where there is no such peer, instead of adding it.
    pub fn update_only(mut self) -> PeerChange {
        self.request.update_only = true;
        self
    }

    /// Sets the peer's address and port. They hold until an authentic packet of the peer comes from elsewhere.
    pub fn endpoint(mut self, address: SocketAddr) -> PeerChange {
        self.request.endpoint = Some(address);
        self
    }

    /// Mixes a preshared key into the handshakes to come.
    pub fn preshared_key(mut self, key: SharedSecret) -> PeerChange {
        self.request.preshared_key = Some(Box::new(key));
        self
    }

    /// Sends the peer something at least every so many seconds, so that NATs and firewalls on the way keep it open. With 0
    /// it is off.
    pub fn persistent_keepalive(mut self, seconds: u16) -> PeerChange {
        self.request.persistent_keepalive = Some(seconds);
        self
    }

    /// Sends what goes to `prefix` to this peer, and accepts packets from there from nobody else. Another peer that had exactly
    /// this prefix loses it.
    pub fn allow(mut self, prefix: Prefix) -> PeerChange {
        self.request.allowed_ips.push(AllowedIp { prefix, remove: false });
        self
    }

    /// Takes `prefix` away from this peer, if it has it.
    pub fn disallow(mut self, prefix: Prefix) -> PeerChange {
        self.request.allowed_ips.push(AllowedIp { prefix, remove: true });
        self
    }

    /// Takes all prefixes away from this peer before those of this change are given to it.
    pub fn replace_allowed_ips(mut self) -> PeerChange {
        self.request.replace_allowed_ips = true;
        self
    }
}
