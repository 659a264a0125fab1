//! The cross-platform configuration protocol's text: `get=1` and `set=1` (<https://www.wireguard.com/xplatform/>).
//!
//! Some more operations are this program's own. `status=1` asks for the [`crate::device::status`], and with the
//! line `peers=none` for all of it but the list of the peers. `get=1` asks for a part
//! of the configuration where lines follow it: `public_key=` and a key for each of at most `MAX_NAMED` peers, in
//! hexadecimal, or `peers=none`. It is answered as ever, with the lines of the interface and those of the named peers in
//! the order in which they are named; of a peer that there is not, nothing is said.
//!
//! Limits of a peer are this program's own, too: a line `ringtun_limits=` in a `set=1`, which holds a [`LimitSettings`], and in an answer to
//! `get=1` for a peer that has some, followed by `ringtun_limited=` with the packets that were dropped each way, and `ringtun_quota=` with the
//! bytes that are used and the second since the Unix epoch at which the quota begins anew.
//!
//! A line `ringtun_memory=` in a `set=1` holds a [`PeerMemory`], which the status has of each peer that was heard.
//!
//! `monitor=1` is answered with `errno=0` and an empty line, and from then on with a line `event=` for whatever happens, until
//! the client closes. `diagnose=1` with a line `public_key=` asks what the device knows of a peer that does not connect, and is
//! answered with a line `facts=`. `handover=offer` and `handover=state` are how another process takes the tunnel over
//! (`slowpath/handover`); what it answers comes with files, so it is no text that this module makes.
//!
//! A connection's bytes go through a [`Framer`], which yields [`Operation`]s. `get` is answered with
//! [`Device::dump`](super::Device::dump). `set` is parsed whole by a [`SetParser`] into a [`SetRequest`], which
//! [`Device::begin`](super::Device::begin) and [`Device::go_on`](super::Device::go_on) carry out, and is answered with
//! [`answer`]. All of them work in slices.

mod framer;
mod get;
mod parse;

#[cfg(any(feature = "cli", test))]
pub use framer::MAX_NAMED;
pub use framer::{Framer, MAX_OPERATION, Operation};
pub use get::{CHUNK, Dump, chunk};
pub use parse::SetParser;

use crate::crypto::x25519::{PrivateKey, PublicKey, SharedSecret};
use crate::dataplane::limits::LimitSettings;
use crate::device::memory::PeerMemory;
use crate::routing::Prefix;
use std::net::SocketAddr;

/// EINVAL: a key or value that the protocol does not know.
pub const EINVAL: i32 = 22;
/// EIO: an error that has no number.
pub const EIO: i32 = 5;
/// EPROTO: a line that is not `key=value`.
pub const EPROTO: i32 = 71;
/// EBUSY: as many follow the events as may.
pub const EBUSY: i32 = 16;
/// ENOMEM: more peers than there may be, or more unfinished operations than are kept.
pub const ENOMEM: i32 = 12;
/// E2BIG: an operation longer than [`MAX_OPERATION`].
pub const E2BIG: i32 = 7;

/// A transaction: what to change. Fields that are `None` or empty leave things as they are.
#[derive(Clone, Debug, Default)]
pub struct SetRequest {
    /// Another private key. `Some(None)` removes the present one.
    pub private_key: Option<Option<PrivateKey>>,
    /// Another UDP port. 0 is any that is free.
    pub listen_port: Option<u16>,
    /// Another firewall mark. 0 is none.
    pub fwmark: Option<u32>,
    /// Whether all peers are removed first.
    pub replace_peers: bool,
    /// Changes of peers, which are applied in order.
    pub peers: Vec<PeerRequest>,
}

/// A change of one peer.
#[derive(Clone, Debug)]
pub struct PeerRequest {
    /// The peer's key. A peer is added if there is none, unless [`Self::update_only`] or [`Self::remove`].
    pub public_key: PublicKey,
    /// Whether the peer is removed. The other fields are ignored then.
    pub remove: bool,
    /// Whether nothing is done if there is no such peer.
    pub update_only: bool,
    /// Another preshared key. All zero is none. It is boxed, as requests are moved, and what is moved stays behind as a copy.
    pub preshared_key: Option<Box<SharedSecret>>,
    /// The peer's address and port.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between persistent keepalives. 0 is off.
    pub persistent_keepalive: Option<u16>,
    /// Other limits, which replace all that there were.
    pub limits: Option<Box<LimitSettings>>,
    /// What another process remembered of the peer.
    pub memory: Option<Box<PeerMemory>>,
    /// Whether all allowed IPs of the peer are removed first.
    pub replace_allowed_ips: bool,
    /// Changes of allowed IPs, which are applied in order.
    pub allowed_ips: Vec<AllowedIp>,
}

impl PeerRequest {
    /// Makes a request that adds the peer, or changes nothing about it.
    pub fn new(public_key: PublicKey) -> PeerRequest {
        PeerRequest {
            public_key,
            remove: false,
            update_only: false,
            preshared_key: None,
            endpoint: None,
            persistent_keepalive: None,
            limits: None,
            memory: None,
            replace_allowed_ips: false,
            allowed_ips: Vec::new(),
        }
    }
}

/// A prefix that is given to a peer, and taken from any other, or that is taken from the peer, if it has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AllowedIp {
    /// The prefix.
    pub prefix: Prefix,
    /// Whether the prefix is taken from the peer.
    pub remove: bool,
}

/// Why an operation was refused. It says nothing of a value that may be secret.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UapiError {
    /// The error number, which is positive.
    pub errno: i32,
    /// The line of the operation, of which the first (`set=1`) has number 1.
    pub line: usize,
    /// What is wrong with the line.
    pub what: String,
}

impl std::fmt::Display for UapiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "UAPI line {}: {}", self.line, self.what)
    }
}

impl std::error::Error for UapiError {}

/// Makes the answer to a `set`. Error numbers are negative on the wire, as wireguard-go sends them, and `wg` hands them to
/// its user.
pub fn answer(result: Result<(), i32>) -> String {
    match result {
        Ok(()) => "errno=0\n\n".to_owned(),
        Err(errno) => format!("errno={}\n\n", -errno.abs()),
    }
}

#[cfg(test)]
mod tests;
