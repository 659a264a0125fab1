//! Gathers the facts for a diagnosis: asks the device, the file, the resolver, the routes and the firewall, and looks at the
//! interface.

use super::facts::{
    BlockedChain, Conversation, EndpointName, Facts, ForwardingFacts, ResolvedName, RouteFacts,
};
use super::observe::Observation;
use super::probe;
use crate::crypto::x25519::PublicKey;
use crate::device::facts::{DeviceFacts, PeerFacts};
use crate::gateway::config::{Config, HostPort};
use crate::gateway::control::ControlSocket;
use crate::gateway::up::find_program;
use crate::gateway::up::host::{Host, Link};
use crate::gateway::{Failure, client, doctor};
use crate::routing::Prefix;
use crate::sys::packets::{PacketSocket, SEEN_LEN};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// Pause between two questions to the device, and between two looks at the interface.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// What is asked.
#[derive(Clone, Debug)]
pub struct Asked<'a> {
    /// The tunnel's interface.
    pub interface: &'a str,
    /// The peer's public key.
    pub key: PublicKey,
    /// The peer's name, if it has one.
    pub name: Option<String>,
    /// The tunnel's file, if it can be read.
    pub config: Option<&'a Config>,
    /// How long to wait for what is tried, and to look at what passes.
    pub wait: Duration,
    /// Whether nothing is to be sent: neither a handshake nor packets through the tunnel.
    pub passive: bool,
}

/// Gathers the facts about a peer.
///
/// # Errors
///
/// Where the tunnel does not run or does not answer.
pub fn gather(asked: &Asked<'_>) -> Result<Facts, Failure> {
    let control = client::open(asked.interface)?;
    let device = ask_until_clear(asked, &control)?;
    let host = Host::new().map_err(Failure::of("cannot speak netlink"))?;
    let link = host.link(asked.interface).ok().flatten();
    let section =
        asked.config.and_then(|config| config.peers.iter().rev().find(|peer| peer.public_key == asked.key));
    let given = section.and_then(|section| section.endpoint.as_ref());
    let peer = device.peer.clone().unwrap_or_default();
    let mut facts = Facts {
        interface: asked.interface.to_owned(),
        key: asked.key.to_base64(),
        name: asked.name.clone(),
        in_file: asked.config.map(|_| section.is_some()),
        endpoint_name: given
            .filter(|given| given.address().is_none())
            .map(|given| named(given, peer.endpoint)),
        route: peer.endpoint.map(|endpoint| route(&host, device.fwmark, endpoint)),
        mtu: link.map(|link| link.mtu),
        anything_arrived: anything_arrived(&control),
        has_nft: find_program("nft").is_some(),
        device,
        ..Facts::default()
    };
    let (name, port) = (asked.interface, Some(facts.device.listen_port).filter(|&port| port != 0));
    let (input, forward) = doctor::blocking(name, port);
    let blocked = |finding: doctor::Finding| BlockedChain {
        found: finding.found,
        remedy: finding.remedy.unwrap_or_default(),
    };
    (facts.input_blocked, facts.forward_blocked) = (input.map(blocked), forward.map(blocked));
    if peer.connected_ms.is_some()
        && let Some(link) = link
    {
        look_inside(asked, &host, link, &peer, &mut facts);
        // What was sent inside may have had its own consequences.
        facts.device = ask(&control, asked, false)?;
    }
    Ok(facts)
}

fn ask(control: &ControlSocket, asked: &Asked<'_>, tries: bool) -> Result<DeviceFacts, Failure> {
    let answer = control.diagnose(&asked.key, tries).map_err(Failure::of(asked.interface))?;
    answer.ok_or_else(|| {
        Failure::new(format!(
            "{} cannot say what it knows: it is another implementation, or was started by an earlier version of ringtun",
            asked.interface
        ))
    })
}

/// Has a handshake tried, and asks until it is clear what becomes of it, or the time is over.
fn ask_until_clear(asked: &Asked<'_>, control: &ControlSocket) -> Result<DeviceFacts, Failure> {
    let begun = Instant::now();
    let mut facts = ask(control, asked, !asked.passive)?;
    let began_ms = facts.now_ms;
    while begun.elapsed() < asked.wait && !is_clear(&facts, began_ms) {
        std::thread::sleep(POLL_INTERVAL);
        facts = ask(control, asked, false)?;
    }
    Ok(facts)
}

/// Whether waiting would say no more.
fn is_clear(facts: &DeviceFacts, began_ms: u64) -> bool {
    let Some(peer) = &facts.peer else { return true };
    let refused = peer.history.refused_response.or(peer.history.refused_initiation);
    !facts.up || peer.connected_ms.is_some() || refused.is_some_and(|refused| refused.at_ms >= began_ms)
}

/// The name's address. Of several, the one that the tunnel uses counts.
fn named(given: &HostPort, used: Option<SocketAddr>) -> EndpointName {
    let resolved = given.resolve_all().and_then(|all| {
        let used = all.iter().copied().find(|address| Some(*address) == used);
        let nothing = || std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address");
        used.or(all.first().copied()).ok_or_else(nothing)
    });
    let resolved = match resolved {
        Ok(address) => ResolvedName::At(address),
        Err(error) => ResolvedName::None(error.to_string()),
    };
    EndpointName { text: given.to_string(), resolved }
}

fn route(host: &Host, mark: u32, endpoint: SocketAddr) -> RouteFacts {
    match host.route(endpoint.ip(), mark) {
        Ok(route) => RouteFacts::By(route.interface),
        Err(error) => RouteFacts::None(error.to_string()),
    }
}

fn anything_arrived(control: &ControlSocket) -> bool {
    let status = control.short_status().ok().flatten().unwrap_or_default();
    status.workers.iter().any(|worker| worker.get("rx_trains").is_some_and(|&trains| trains > 0))
}

/// Looks at what passes inside the tunnel, and tries which sizes do.
fn look_inside(asked: &Asked<'_>, host: &Host, link: Link, peer: &PeerFacts, facts: &mut Facts) {
    let prefixes: Vec<Prefix> = peer.allowed_ips.iter().filter_map(|text| text.parse().ok()).collect();
    let own = host.own_addresses().unwrap_or_default();
    let target = inner_address(&prefixes, asked.config, &own);
    let looks = || watch(link, asked.wait, Observation::new(prefixes.clone(), own.clone()));
    let (sizes, seen) = std::thread::scope(|scope| {
        let target = target.filter(|_| !asked.passive);
        let sizes = scope.spawn(move || target.and_then(|target| probe::sizes(target, link.mtu)));
        let seen = looks();
        (sizes.join().ok().flatten(), seen)
    });
    facts.sizes = sizes;
    let translates = seen.iter().any(|seen| !seen.conversations.is_empty()) && doctor::translates();
    facts.forwarding = seen.map(|seen| ForwardingFacts {
        conversations: seen
            .conversations
            .into_iter()
            .map(|one| Conversation {
                by: host.route(one.destination, 0).ok().map(|route| route.interface),
                forwards: doctor::forwards(one.source.is_ipv4()),
                translates,
                ..one
            })
            .collect(),
    });
}

/// What passes on the interface for a while. `None` where that cannot be seen, for want of rights.
fn watch(link: Link, time: Duration, mut observation: Observation) -> Option<ForwardingFacts> {
    let socket = PacketSocket::open(link.index).ok()?;
    let until = Instant::now() + time;
    let mut packet = [0; SEEN_LEN];
    while Instant::now() < until {
        match socket.next(&mut packet).ok()? {
            Some((len, outgoing)) => observation.take(packet.get(..len)?, outgoing),
            None => std::thread::sleep(POLL_INTERVAL),
        }
    }
    Some(observation.seen())
}

/// An address inside the tunnel that is the peer's: a prefix of one address, or else the first address of the tunnel's network,
/// where the peer that has it is usually the gateway.
fn inner_address(
    prefixes: &[Prefix],
    config: Option<&Config>,
    own: &std::collections::BTreeSet<IpAddr>,
) -> Option<IpAddr> {
    let is_host = |prefix: &&Prefix| prefix.len() == if prefix.addr().is_ipv4() { 32 } else { 128 };
    let host = prefixes.iter().find(is_host).map(Prefix::addr);
    host.or_else(|| {
        let networks = config?.interface.addresses.iter().map(|address| address.network());
        let first = |network: Prefix| match network.addr() {
            IpAddr::V4(v4) => IpAddr::from((v4.to_bits() | 1).to_be_bytes()),
            IpAddr::V6(v6) => IpAddr::from((v6.to_bits() | 1).to_be_bytes()),
        };
        let mut addresses = networks.map(first);
        addresses.find(|&address| {
            !own.contains(&address) && prefixes.iter().any(|prefix| prefix.contains(address))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::config::Document;
    use std::collections::BTreeSet;

    #[test]
    fn a_peer_is_asked_at_its_own_address_or_the_first_of_the_network() {
        let prefixes =
            |texts: &[&str]| -> Vec<Prefix> { texts.iter().map(|text| text.parse().unwrap()).collect() };
        let (config, _) = Document::new(b"[Interface]\nAddress = 10.0.0.7/24\n").parse().unwrap();
        let own = BTreeSet::from([IpAddr::from([10, 0, 0, 7])]);
        let asked = |texts: &[&str]| inner_address(&prefixes(texts), Some(&config), &own);
        assert_eq!(asked(&["10.7.0.0/16", "10.0.0.9/32"]), Some(IpAddr::from([10, 0, 0, 9])));
        assert_eq!(asked(&["0.0.0.0/0"]), Some(IpAddr::from([10, 0, 0, 1])));
        assert_eq!(asked(&["10.7.0.0/16"]), None);
        assert_eq!(inner_address(&prefixes(&["0.0.0.0/0"]), None, &own), None);
    }
}
