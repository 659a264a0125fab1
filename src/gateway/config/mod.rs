//! The configuration language of wg-quick(8) and wg(8): read into a typed [`Config`], written, edited in place.
//!
//! ```text
//!   file --load--> Document (lines, lossless) --parse--> Config (typed) --request--> SetRequest (UAPI)
//!                     |  ^                                  |
//!                   strip  edit: add a peer, save         print
//! ```
//!
//! What wg-quick and wg accept is accepted and means the same. Beyond them there are `MTU = exact` and peers' names
//! in comments (`# Name = laptop`). One thing is stricter on purpose: a port above 65535, which the C library cuts to
//! 16 bits, is an error.

mod dialect;
mod disabled;
mod document;
mod edit;
mod error;
mod file;
mod limits;
mod lint;
mod names;
mod naming;
mod parse;
mod peer_hooks;
mod print;
mod putout;
mod request;
mod rows;
mod sections;
pub(in crate::gateway) mod value;

pub use document::Document;
pub use edit::Runtime;
pub use error::{ConfigError, ConfigErrors, Warning};
pub use file::{DIRECTORY, FileLock, LoadError, Loaded, Permissions, Place, configured, write_private};
pub use limits::{LIMIT_KEYS, quota_text, rate_text, set_limit};
pub use parse::Salvage;
pub use peer_hooks::PeerHooks;
pub use request::{allowed_ips, diagnose_text, difference, get_text, set_text};
pub use value::ValueError;

use crate::crypto::x25519::{PrivateKey, PublicKey, SharedSecret};
use crate::dataplane::limits::LimitSettings;
use crate::routing::Prefix;
use crate::sys::link;
use std::fmt;
use std::io::{Error, ErrorKind};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};

/// The meaning of a whole file.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Config {
    /// All `[Interface]` sections together.
    pub interface: Interface,
    /// The `[Peer]` sections in the file's order. A public key may stand in several; then the last one decides.
    pub peers: Vec<PeerConfig>,
}

impl Config {
    /// Whether the interface needs IPv6: for an address, or for a route.
    pub fn has_ipv6(&self) -> bool {
        let mut addresses = self.interface.addresses.iter();
        let mut allowed = self.peers.iter().flat_map(|peer| &peer.allowed_ips);
        addresses.any(|address| address.addr.is_ipv6())
            || (self.interface.table != Table::Off && allowed.any(|prefix| prefix.addr().is_ipv6()))
    }
}

/// What a file says of the interface. Secrets are zeroized on drop and hidden from `Debug`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Interface {
    /// The private key. `None` where it is left to a hook, or where the interface has nobody to speak to.
    pub private_key: Option<PrivateKey>,
    /// The UDP port to listen on. `None` or 0 is any.
    pub listen_port: Option<u16>,
    /// The firewall mark of the tunnel's own packets; 0 is none.
    pub fwmark: Option<u32>,
    /// The addresses to be assigned to the interface.
    pub addresses: Vec<Address>,
    /// The resolvers under `DNS`.
    pub dns: Vec<DnsServer>,
    /// The search domains: the words under `DNS` that are no addresses.
    pub dns_search: Vec<String>,
    /// The interface's MTU. `None` where it follows from the routes to the endpoints.
    pub mtu: Option<Mtu>,
    /// The routing table that gets the routes.
    pub table: Table,
    /// Whether `down` saves the running tunnel to the file.
    pub save_config: bool,
    /// The commands to run before the interface is set up, in order. They still hold `%i` for the interface's name.
    pub pre_up: Vec<String>,
    /// The commands to run once the tunnel is up, as in [`Self::pre_up`].
    pub post_up: Vec<String>,
    /// The commands to run before the tunnel goes down, as in [`Self::pre_up`].
    pub pre_down: Vec<String>,
    /// The commands to run once the tunnel is down, as in [`Self::pre_up`].
    pub post_down: Vec<String>,
}

/// One `[Peer]` section.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerConfig {
    /// The peer's name, from a comment such as `# Name = …` in the section or directly above it.
    pub name: Option<String>,
    /// The peer's public key.
    pub public_key: PublicKey,
    /// The preshared key, if there is one.
    pub preshared_key: Option<SharedSecret>,
    /// The prefixes of the peer, in the file's order.
    pub allowed_ips: Vec<Prefix>,
    /// The peer's endpoint, if it is known.
    pub endpoint: Option<HostPort>,
    /// The interval of keepalives in seconds; 0 is off. `None` where the file says nothing of it.
    pub persistent_keepalive: Option<u16>,
    /// What the peer is limited to, from comments such as `# LimitIn = …`.
    pub limits: LimitSettings,
    /// The line of the section's header.
    pub line: Line,
}

impl PeerConfig {
    /// A peer of which only the key is known.
    pub fn new(public_key: PublicKey) -> PeerConfig {
        PeerConfig {
            name: None,
            public_key,
            preshared_key: None,
            allowed_ips: Vec::new(),
            endpoint: None,
            persistent_keepalive: None,
            limits: LimitSettings::default(),
            line: Line(0),
        }
    }
}

/// A line's number, counted from 1. It equals every other: where something stands is no part of what it means.
#[derive(Clone, Copy, Debug, Default)]
pub struct Line(pub usize);

impl PartialEq for Line {
    fn eq(&self, _: &Line) -> bool {
        true
    }
}

impl Eq for Line {}

/// An address of the interface, and the prefix length of its network.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Address {
    /// The address, its host bits included.
    pub addr: IpAddr,
    /// The prefix length in bits, at most 32 or 128.
    pub len: u8,
}

impl Address {
    /// The network in which the address lies.
    pub fn network(&self) -> Prefix {
        // `len` was checked where the address was made; a single host is the safe reading otherwise.
        Prefix::new(self.addr, self.len).unwrap_or_else(|| self.addr.into())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.len)
    }
}

/// A resolver.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DnsServer {
    /// The resolver's address.
    pub addr: IpAddr,
    /// The interface by which a link-local address is reached, such as `eth0` of `fe80::1%eth0`.
    pub scope: Option<String>,
}

impl fmt::Display for DnsServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.scope {
            Some(scope) => write!(f, "{}%{scope}", self.addr),
            None => write!(f, "{}", self.addr),
        }
    }
}

/// How the interface's MTU is chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mtu {
    /// The MTU is this many bytes.
    Bytes(u16),
    /// The MTU is what the outer path holds, without the room that the default leaves for IPv6.
    Exact,
}

impl fmt::Display for Mtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mtu::Bytes(bytes) => write!(f, "{bytes}"),
            Mtu::Exact => f.write_str("exact"),
        }
    }
}

/// The routing table that gets the routes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Table {
    /// The main table, with default routes by mark and policy rule.
    #[default]
    Auto,
    /// No table: no routes are added.
    Off,
    /// The table of this number, which default routes join like any other route.
    Number(u32),
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Table::Auto => f.write_str("auto"),
            Table::Off => f.write_str("off"),
            Table::Number(number) => write!(f, "{number}"),
        }
    }
}

/// A host, by address or name, and a UDP port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostPort {
    /// The address or name, without brackets.
    pub host: String,
    /// The UDP port.
    pub port: u16,
}

impl HostPort {
    /// Reads `HOST:PORT` or `[HOST]:PORT`.
    ///
    /// # Errors
    ///
    /// Where the text is neither.
    pub fn parse(text: &str) -> Result<HostPort, ValueError> {
        value::endpoint(text)
    }

    /// The host's address, unless the host is a name.
    pub fn address(&self) -> Option<IpAddr> {
        self.host.split('%').next()?.parse().ok()
    }

    /// Whether `addr` may be written like this, so that nothing is to be changed.
    pub(in crate::gateway) fn is_at(&self, addr: SocketAddr) -> bool {
        let scope = match addr {
            SocketAddr::V6(v6) => v6.scope_id(),
            SocketAddr::V4(_) => 0,
        };
        let written = self.host.split_once('%').map_or("", |(_, scope)| scope);
        let same_scope = match written {
            "" => scope == 0,
            text => text.parse() == Ok(scope) || link::index(text).is_ok_and(|index| index == scope),
        };
        self.port == addr.port() && self.address() == Some(addr.ip()) && same_scope
    }

    /// Asks the system's resolver, which may block. The first answer counts, as for wg(8).
    ///
    /// # Errors
    ///
    /// Where the name cannot be resolved.
    pub fn resolve(&self) -> std::io::Result<SocketAddr> {
        let nothing = || Error::new(ErrorKind::NotFound, "the name has no address");
        (self.host.as_str(), self.port).to_socket_addrs()?.next().ok_or_else(nothing)
    }
}

impl HostPort {
    /// Does as [`Self::resolve`], and returns all answers.
    ///
    /// # Errors
    ///
    /// Where the name cannot be resolved.
    pub fn resolve_all(&self) -> std::io::Result<Vec<SocketAddr>> {
        Ok((self.host.as_str(), self.port).to_socket_addrs()?.collect())
    }
}

impl From<SocketAddr> for HostPort {
    fn from(addr: SocketAddr) -> HostPort {
        let host = match addr {
            // The file outlives a start of the host. An interface's name does so, too; its number does not.
            SocketAddr::V6(v6) if v6.scope_id() != 0 => format!("{}%{}", v6.ip(), link::scope(v6.scope_id())),
            _ => addr.ip().to_string(),
        };
        HostPort { host, port: addr.port() }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

#[cfg(test)]
mod tests;
