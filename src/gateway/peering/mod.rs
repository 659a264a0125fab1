//! The other end of a tunnel: its configuration, and how OpenBSD writes that.

mod address;
mod egress;
pub mod openbsd;
mod roster;
mod select;

pub use address::next_free;
pub use egress::{EgressNeed, egress_needs, takes_everything};
pub use roster::{RosterEntry, RosterState, candidates, roster};
pub use select::{Candidate, select};

use super::Failure;
use super::config::{Address, Config, DnsServer, HostPort, Interface, Line, Mtu, PeerConfig};
use crate::crypto::x25519::{PrivateKey, PublicKey, SharedSecret};
use crate::dataplane::limits::LimitSettings;
use crate::routing::Prefix;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// What a new peer is to get.
#[derive(Debug)]
pub struct Invitation {
    /// The new peer's name, for people.
    pub name: String,
    /// The new peer's private key. It is in [`Introduction::there`] and nowhere else.
    pub private_key: PrivateKey,
    /// The preshared key for both ends.
    pub preshared_key: Option<SharedSecret>,
    /// This end's endpoint, as the new peer reaches it.
    pub endpoint: Option<HostPort>,
    /// The new peer's keepalive interval in seconds.
    pub keepalive: Option<u16>,
    /// The prefixes that the new peer sends into the tunnel. Where it is empty, they are the tunnel's networks.
    pub allowed_ips: Vec<Prefix>,
    /// The networks behind the new peer.
    pub behind: Vec<Prefix>,
    /// The new peer's addresses. Where it is empty, each family gets the next free address of a network of the tunnel.
    pub addresses: Vec<IpAddr>,
    /// The resolvers for the new peer.
    pub dns: Vec<DnsServer>,
    /// The search domains for the new peer.
    pub dns_search: Vec<String>,
    /// The MTU of the new peer. `None` stands for this end's.
    pub mtu: Option<Mtu>,
}

/// What each end is to know of the other.
#[derive(Debug)]
pub struct Introduction {
    /// The new peer's section in this end's file.
    pub here: PeerConfig,
    /// The whole configuration of the new peer, which is secret.
    pub there: Config,
}

/// Works out both ends of a new peer. `public_key` is this end's.
///
/// # Errors
///
/// Where the name or an address is taken, or no address is left.
pub fn introduce(
    config: &Config,
    public_key: PublicKey,
    invitation: Invitation,
) -> Result<Introduction, Failure> {
    let name = invitation.name.trim();
    if name.is_empty() || name.chars().any(char::is_control) {
        return Err(Failure::new("a peer's name is one line of text"));
    }
    if config.peers.iter().any(|peer| peer.name.as_deref() == Some(name)) {
        return Err(Failure::new(format!("there is a peer called {name} already: expected another name")));
    }
    let networks: BTreeSet<Prefix> = config.interface.addresses.iter().map(Address::network).collect();
    let addresses = match invitation.addresses.is_empty() {
        true => free_addresses(config, &networks)?,
        false => chosen_addresses(config, &networks, &invitation.addresses)?,
    };
    let own = invitation.private_key.public();
    let hosts = addresses.iter().map(|address| Prefix::from(address.addr));
    let here = PeerConfig {
        name: Some(name.to_owned()),
        preshared_key: invitation.preshared_key.clone(),
        allowed_ips: hosts.chain(invitation.behind).collect(),
        ..PeerConfig::new(own)
    };
    let allowed_ips = match invitation.allowed_ips.is_empty() {
        true => networks.into_iter().collect(),
        false => invitation.allowed_ips,
    };
    let interface = Interface {
        private_key: Some(invitation.private_key),
        addresses,
        dns: invitation.dns,
        dns_search: invitation.dns_search,
        mtu: invitation.mtu.or(config.interface.mtu),
        ..Interface::default()
    };
    let this_end = PeerConfig {
        name: None,
        public_key,
        preshared_key: invitation.preshared_key,
        allowed_ips,
        endpoint: invitation.endpoint,
        persistent_keepalive: invitation.keepalive,
        limits: LimitSettings::default(),
        line: Line(0),
    };
    Ok(Introduction { here, there: Config { interface, peers: vec![this_end] } })
}

/// The addresses and prefixes that are in use.
fn used(config: &Config) -> Vec<Prefix> {
    let own = config.interface.addresses.iter().map(|address| Prefix::from(address.addr));
    own.chain(config.peers.iter().flat_map(|peer| peer.allowed_ips.iter().copied())).collect()
}

/// One free address for each family, from its first network that has one left.
fn free_addresses(config: &Config, networks: &BTreeSet<Prefix>) -> Result<Vec<Address>, Failure> {
    let used = used(config);
    let roomy = |network: &&Prefix| network.len() < if network.addr().is_ipv4() { 32 } else { 128 };
    let roomy: Vec<&Prefix> = networks.iter().filter(roomy).collect();
    if roomy.is_empty() {
        return Err(Failure::new(
            "the tunnel has no network to take an address from: expected an Address such as 192.168.96.1/24 in [Interface], or --address",
        ));
    }
    let mut found: Vec<Address> = Vec::new();
    for network in &roomy {
        let of_family = |address: &Address| address.addr.is_ipv4() == network.addr().is_ipv4();
        if !found.iter().any(of_family)
            && let Some(addr) = next_free(**network, &used)
        {
            found.push(Address { addr, len: network.len() });
        }
    }
    for network in roomy {
        if !found.iter().any(|address| address.addr.is_ipv4() == network.addr().is_ipv4()) {
            return Err(Failure::new(format!(
                "no address is left in {network}: give the interface a larger network, or use --address"
            )));
        }
    }
    Ok(found)
}

fn chosen_addresses(
    config: &Config,
    networks: &BTreeSet<Prefix>,
    chosen: &[IpAddr],
) -> Result<Vec<Address>, Failure> {
    let used: BTreeSet<Prefix> = used(config).into_iter().collect();
    let mut addresses = Vec::new();
    for &addr in chosen {
        if used.contains(&Prefix::from(addr)) {
            return Err(Failure::new(format!("{addr} is in use: expected an address that no peer has")));
        }
        let network =
            networks.iter().filter(|network| network.contains(addr)).max_by_key(|network| network.len());
        let len = network.map_or(if addr.is_ipv4() { 32 } else { 128 }, Prefix::len);
        addresses.push(Address { addr, len });
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests;
