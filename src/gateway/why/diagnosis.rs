//! What facts come to: a pure function. A cause is told where something speaks for it, the most certain first.

use super::facts::{Conversation, EndpointName, Facts, ResolvedName, RouteFacts};
use super::nat::commands;
use crate::device::events::RefusalReason;
use crate::device::facts::PeerFacts;
use crate::device::strangers::Stranger;
use serde::Serialize;
use std::net::{IpAddr, SocketAddr};

/// How long ago, in milliseconds, something may have been to still say something.
const RECENT_MS: u64 = 180_000;
/// How long a peer that is there may take to answer data, in milliseconds: its keepalive comes after ten seconds.
const ANSWER_MS: u64 = 13_000;
/// Number of answers in a row whose session nobody used, from which that is no accident.
const UNUSED_ANSWERS: u32 = 2;
/// Number of initiations of a connected peer that were refused, from which that is no copy.
const REFUSED_INITIATIONS: u32 = 2;
/// Number of packets that went to others unanswered, from which that is no accident.
const UNRETURNED: u32 = 3;

/// Why a peer is not connected, or why packets do not pass although it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CauseKind {
    /// The running tunnel does not have the peer.
    UnknownPeer,
    /// The interface is down.
    InterfaceDown,
    /// The UDP port cannot be bound.
    PortTaken,
    /// The tunnel has no private key.
    NoPrivateKey,
    /// The name of the endpoint has no address.
    NameUnresolved,
    /// The name of the endpoint has another address than the tunnel uses.
    NameMoved,
    /// There is no route to the endpoint.
    NoRoute,
    /// The route to the endpoint leads into the tunnel itself.
    EndpointInTunnel,
    /// A firewall of this host drops what comes to the UDP port.
    LocalFirewall,
    /// The two ends do not have each other's public key.
    WrongKey,
    /// The preshared keys differ.
    PresharedKey,
    /// The peer's clock is behind its last handshake.
    Clock,
    /// Nothing comes back from the endpoint.
    NothingComesBack,
    /// Nothing arrives from the peer, and no endpoint of it is known.
    NoEndpoint,
    /// What the peer sends is not in its AllowedIPs.
    AllowedIps,
    /// Large packets do not pass.
    Mtu,
    /// This host does not forward what the peer sends to others.
    Forwarding,
    /// Answers to what this host forwards do not find their way back.
    Nat,
    /// What is sent to the peer is not answered any more.
    Silent,
}

/// A cause, and what to do about it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Cause {
    /// Which one.
    pub kind: CauseKind,
    /// Whether nothing else explains what was found.
    pub certain: bool,
    /// What was found.
    pub found: String,
    /// What to do.
    pub remedy: String,
}

impl Cause {
    fn certain(kind: CauseKind, found: impl Into<String>, remedy: impl Into<String>) -> Cause {
        Cause { kind, certain: true, found: found.into(), remedy: remedy.into() }
    }

    fn likely(kind: CauseKind, found: impl Into<String>, remedy: impl Into<String>) -> Cause {
        Cause { certain: false, ..Cause::certain(kind, found, remedy) }
    }
}

/// What facts come to: the causes, the most certain first. There are none for a peer that is connected and whose packets pass.
pub fn causes(facts: &Facts) -> Vec<Cause> {
    let mut causes = of_the_tunnel(facts);
    if let Some(peer) = facts.device.peer.as_ref().filter(|_| causes.is_empty()) {
        causes = match peer.connected_ms {
            Some(_) => connected(facts, peer),
            None => not_connected(facts, peer),
        };
    }
    causes.sort_by_key(|cause| !cause.certain);
    causes
}

/// Causes that are no peer's.
fn of_the_tunnel(facts: &Facts) -> Vec<Cause> {
    let (name, device) = (&facts.interface, &facts.device);
    let cause = if device.peer.is_none() {
        let remedy = match facts.in_file {
            Some(true) => format!("ringtun reload {name}"),
            _ => format!("add it: ringtun peer add, or wg set {name} peer {} …", facts.key),
        };
        Cause::certain(CauseKind::UnknownPeer, format!("the running {name} has no such peer"), remedy)
    } else if let Some(unbound) = &device.unbound {
        let found = format!("UDP port {} cannot be bound: {}", unbound.port, unbound.error);
        let remedy =
            format!("see who has it: ss -ulpn 'sport = {}'; or set another ListenPort", unbound.port);
        Cause::certain(CauseKind::PortTaken, found, remedy)
    } else if !device.up {
        let found = format!("the interface {name} is down");
        Cause::certain(CauseKind::InterfaceDown, found, format!("ip link set {name} up"))
    } else if device.public_key.is_none() {
        let found = format!("{name} has no private key");
        let remedy = "set PrivateKey in [Interface], and reload; `ringtun genkey` makes one";
        Cause::certain(CauseKind::NoPrivateKey, found, remedy)
    } else {
        return Vec::new();
    };
    vec![cause]
}

fn not_connected(facts: &Facts, peer: &PeerFacts) -> Vec<Cause> {
    let mut causes = Vec::new();
    causes.extend(facts.endpoint_name.as_ref().and_then(|name| by_name(facts, peer, name)));
    causes.extend(peer.endpoint.and_then(|endpoint| by_route(facts, endpoint)));
    causes.extend(by_refusals(facts, peer));
    causes.extend(by_strangers(facts, peer));
    if let Some(blocked) = &facts.input_blocked {
        // What was heard of the peer got past the firewall, or came as an answer.
        let heard = peer.history.answered.is_some() || peer.history.refused_initiation.is_some();
        let cause = |make: fn(CauseKind, String, String) -> Cause| {
            make(CauseKind::LocalFirewall, blocked.found.clone(), blocked.remedy.clone())
        };
        if !heard {
            causes.push(cause(if peer.endpoint.is_none() { Cause::certain } else { Cause::likely }));
        }
    }
    if causes.is_empty() {
        causes.push(match peer.endpoint {
            Some(endpoint) => nothing_comes_back(facts, peer, endpoint),
            None => nothing_arrives(facts),
        });
    }
    causes
}

fn by_name(facts: &Facts, peer: &PeerFacts, name: &EndpointName) -> Option<Cause> {
    let text = &name.text;
    match (&name.resolved, peer.endpoint) {
        (ResolvedName::None(error), endpoint) => {
            let found = format!("the name in Endpoint = {text} has no address: {error}");
            let remedy = "look at the name, at /etc/resolv.conf, and whether the resolver is reached without the tunnel";
            // An address from before may still be good.
            let make = if endpoint.is_none() { Cause::certain } else { Cause::likely };
            Some(make(CauseKind::NameUnresolved, found, remedy))
        }
        (ResolvedName::At(address), Some(endpoint)) if *address != endpoint => {
            let found = format!("Endpoint = {text} is at {address} now, and the tunnel sends to {endpoint}");
            Some(Cause::likely(CauseKind::NameMoved, found, format!("ringtun reload {}", facts.interface)))
        }
        (ResolvedName::At(address), None) => {
            let found =
                format!("Endpoint = {text} is at {address}, and the running tunnel knows no endpoint");
            Some(Cause::certain(CauseKind::NameMoved, found, format!("ringtun reload {}", facts.interface)))
        }
        (ResolvedName::At(_), Some(_)) => None,
    }
}

fn by_route(facts: &Facts, endpoint: SocketAddr) -> Option<Cause> {
    match facts.route.as_ref()? {
        RouteFacts::None(error) => {
            let found = format!("there is no route to the endpoint {endpoint}: {error}");
            let remedy = format!("ip route get {}; is this host's own network up?", endpoint.ip());
            Some(Cause::certain(CauseKind::NoRoute, found, remedy))
        }
        RouteFacts::By(interface) if *interface == facts.interface => {
            let found = format!("the route to the endpoint {endpoint} leads into {interface} itself");
            let remedy = format!(
                "take the endpoint's address out of AllowedIPs, or give it a route of its own: ip route add {}/{} via GATEWAY; \
                 for a default route through the tunnel, `ringtun up` sets a mark that avoids this",
                endpoint.ip(),
                if endpoint.is_ipv4() { 32 } else { 128 }
            );
            Some(Cause::certain(CauseKind::EndpointInTunnel, found, remedy))
        }
        RouteFacts::By(_) => None,
    }
}

/// What the peer's own handshake messages say that were refused, or answered in vain.
fn by_refusals(facts: &Facts, peer: &PeerFacts) -> Option<Cause> {
    let history = &peer.history;
    if let Some(refused) =
        history.refused_response.filter(|refused| refused.why == RefusalReason::NotAuthentic)
    {
        let found =
            format!("its answers from {} do not authenticate: the preshared keys differ", refused.from);
        return Some(Cause::certain(CauseKind::PresharedKey, found, same_preshared_key(facts)));
    }
    if let Some(cause) = by_clock(peer, history.answered.map_or(0, |answered| answered.at_ms)) {
        return Some(cause);
    }
    (history.unused_answers >= UNUSED_ANSWERS).then(|| {
        let (count, from) = (history.unused_answers, history.answered.map(|answered| answered.address));
        let from = from.map(|from| format!(" from {from}")).unwrap_or_default();
        let found = format!(
            "its initiations{from} are answered, {count} times in a row, and it uses none of the sessions: the preshared keys differ, \
             or the answers do not arrive there"
        );
        let remedy = format!(
            "{}; else see whether UDP from here gets to it (its firewall, a translator before it)",
            same_preshared_key(facts)
        );
        Cause::likely(CauseKind::PresharedKey, found, remedy)
    })
}

/// What it says that the peer's initiations are refused, as their time is not after that of its last handshake. One that was good
/// at `good_ms` or later shows that those were copies.
fn by_clock(peer: &PeerFacts, good_ms: u64) -> Option<Cause> {
    let refused = peer.history.refused_initiation.filter(|refused| refused.at_ms >= good_ms)?;
    if refused.why != RefusalReason::Replayed {
        return None;
    }
    let found = format!(
        "its initiations from {} are refused, as their time is not after that of its last handshake: its clock was set back",
        refused.from
    );
    let remedy = "set the peer's clock, as by NTP; or forget what it said before: remove the peer here and add it again";
    Some(Cause::certain(CauseKind::Clock, found, remedy))
}

fn same_preshared_key(facts: &Facts) -> String {
    format!(
        "give both ends the same PresharedKey, or neither: wg show {} preshared-keys shows this end's",
        facts.interface
    )
}

/// What senders that are no peers say: one at the peer's address is the peer with other keys than are known here.
fn by_strangers(facts: &Facts, peer: &PeerFacts) -> Option<Cause> {
    let recent = |one: &&Stranger| facts.device.now_ms.saturating_sub(one.last_ms) < RECENT_MS;
    let at_address = |one: &Stranger| peer.endpoint.is_some_and(|endpoint| endpoint.ip() == one.from.ip());
    // Since then the peer may have been given the key that was not known.
    let unknown = |one: &&Stranger| one.key.as_ref() != Some(&facts.key);
    let strangers: Vec<&Stranger> = facts.device.strangers.iter().filter(recent).filter(unknown).collect();
    // One at another address may be anybody; where nothing is known of the peer's address, it may be the peer.
    let heard = peer.history.answered.is_some() || peer.history.refused_initiation.is_some();
    let candidates = strangers.iter().filter(|one| at_address(one) || (peer.endpoint.is_none() && !heard));
    let stranger = candidates.max_by_key(|one| (at_address(one), one.key.is_some(), one.last_ms))?;
    let from = stranger.from;
    let (found, remedy) = match (&stranger.key, stranger.why) {
        (Some(key), _) => (
            format!("{from} sends initiations with the public key {key}, which is no peer's here"),
            format!(
                "if that is this peer: give its section PublicKey = {key}; the peer has {} now",
                facts.key
            ),
        ),
        (None, RefusalReason::WrongMac1 | RefusalReason::NotAuthentic) => (
            format!("{from} sends initiations for another public key than this end's"),
            format!(
                "give the peer's section for this end PublicKey = {}",
                facts.device.public_key.as_deref().unwrap_or_default()
            ),
        ),
        (None, _) => return None,
    };
    let make = if at_address(stranger) { Cause::certain } else { Cause::likely };
    Some(make(CauseKind::WrongKey, found, remedy))
}

fn nothing_comes_back(facts: &Facts, peer: &PeerFacts, endpoint: SocketAddr) -> Cause {
    let key = facts.device.public_key.as_deref().unwrap_or_default();
    if peer.history.cookie_asked_ms.is_some() {
        let found = format!("{endpoint} is under a flood of handshakes, and asks for cookies");
        return Cause::likely(CauseKind::NothingComesBack, found, "wait: initiations with a cookie go on");
    }
    let (count, port) = (peer.history.unanswered, endpoint.port());
    let found = match peer.last_handshake_ms {
        Some(_) => format!("{count} initiations to {endpoint} were not answered, though it answered before"),
        None => format!("{count} initiations to {endpoint} were not answered, and it never answered"),
    };
    let remedy = format!(
        "at the other end: is it there, and is its tunnel up at UDP port {port}? Does a firewall let UDP {port} in: nft add rule inet filter \
         input udp dport {port} accept, or iptables -I INPUT -p udp --dport {port} -j ACCEPT? Does it have this end's key, PublicKey = {key}, \
         and is its own {}? It says nothing to whom it does not know",
        facts.key
    );
    Cause::likely(CauseKind::NothingComesBack, found, remedy)
}

fn nothing_arrives(facts: &Facts) -> Cause {
    let (port, key) = (facts.device.listen_port, facts.device.public_key.as_deref().unwrap_or_default());
    let found = match facts.anything_arrived {
        true => "no endpoint of the peer is known, so that it has to begin, and nothing of it arrived",
        false => {
            "no endpoint of the peer is known, so that it has to begin, and nothing at all arrived at the port"
        }
    };
    let remedy = format!(
        "at the peer: is its Endpoint this host's address and UDP port {port}, its PublicKey for this end {key}, and does it send \
         anything (PersistentKeepalive = 25)? Between: does a firewall or router let UDP {port} through? Or set Endpoint here"
    );
    Cause::likely(CauseKind::NoEndpoint, found, remedy)
}

fn connected(facts: &Facts, peer: &PeerFacts) -> Vec<Cause> {
    let mut causes = Vec::new();
    causes.extend(by_source(facts, peer));
    // A peer that was started anew has no use for the session that is still there.
    if peer.history.refused_initiations >= REFUSED_INITIATIONS {
        causes.extend(by_clock(peer, peer.last_data_ms.unwrap_or(0)));
    }
    causes.extend(by_size(facts));
    let conversations = facts.forwarding.iter().flat_map(|seen| &seen.conversations);
    causes.extend(conversations.filter_map(|seen| by_conversation(facts, seen)).next());
    let unanswered = peer.unanswered_data_ms.filter(|&millis| millis > ANSWER_MS);
    if let Some(millis) = unanswered.filter(|_| causes.is_empty()) {
        let found = format!("what was sent to it {} s ago is not answered", millis / 1000);
        let remedy = "wait some seconds: another handshake is tried, and this says then what came of it";
        causes.push(Cause::likely(CauseKind::Silent, found, remedy));
    }
    causes
}

fn by_source(facts: &Facts, peer: &PeerFacts) -> Option<Cause> {
    let (at_ms, source) = peer.history.refused_source?;
    let is_recent = facts.device.now_ms.saturating_sub(at_ms) < RECENT_MS;
    // Such addresses leave an interface by themselves, whatever the tunnel is for.
    let is_odd = match source {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_unspecified() || v4.is_multicast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.is_unspecified() || v6.is_multicast(),
    };
    if !is_recent || is_odd {
        return None;
    }
    let allowed = if peer.allowed_ips.is_empty() { "none".to_owned() } else { peer.allowed_ips.join(", ") };
    let found = format!(
        "packets that it sends from {source} are dropped ({} so far): its AllowedIPs here are {allowed}",
        peer.refused_sources
    );
    let bits = if source.is_ipv4() { 32 } else { 128 };
    let remedy = format!(
        "add {source}/{bits} to its AllowedIPs here, or have it send from an address that they hold (its Address, or NAT at its end)"
    );
    Some(Cause::certain(CauseKind::AllowedIps, found, remedy))
}

fn by_size(facts: &Facts) -> Option<Cause> {
    let sizes = facts.sizes.as_ref().filter(|sizes| sizes.largest < sizes.mtu)?;
    let found = format!(
        "{} answers packets of up to {} bytes, and none of {}, the MTU of {}: something on the way drops large ones silently",
        sizes.address, sizes.largest, sizes.mtu, facts.interface
    );
    let remedy = format!(
        "at both ends: MTU = {0} in [Interface] and `ringtun reload`, or ip link set {1} mtu {0}; `ringtun mtu` explains the sum",
        sizes.largest, facts.interface
    );
    Some(Cause::certain(CauseKind::Mtu, found, remedy))
}

/// What is wrong with what the peer sends to others. Answers that came back show that nothing is.
fn by_conversation(facts: &Facts, seen: &Conversation) -> Option<Cause> {
    if seen.returned > 0 || seen.sent == 0 {
        return None;
    }
    let sends = format!("it sends to {}", seen.destination);
    let sysctl = if seen.source.is_ipv4() { "net.ipv4.ip_forward" } else { "net.ipv6.conf.all.forwarding" };
    if !seen.forwards {
        let found = format!("{sends}, and this host forwards nothing: {sysctl} is 0");
        let remedy =
            format!("sysctl -w {sysctl}=1, and for good: echo {sysctl}=1 >/etc/sysctl.d/90-ringtun.conf");
        return Some(Cause::certain(CauseKind::Forwarding, found, remedy));
    }
    let Some(by) = &seen.by else {
        let found = format!("{sends}, and this host has no route there");
        let remedy = format!("ip route get {}", seen.destination);
        return Some(Cause::certain(CauseKind::Forwarding, found, remedy));
    };
    if let Some(blocked) = &facts.forward_blocked {
        let found = format!("{sends}, and {}", blocked.found);
        return Some(Cause::certain(CauseKind::Forwarding, found, blocked.remedy.clone()));
    }
    if seen.sent < UNRETURNED || seen.translates || *by == facts.interface {
        return None;
    }
    let found = format!(
        "{sends} by way of {by}, {} packets, and no answer comes back: nothing here translates its address {}, and whoever is \
         asked may have no route to that",
        seen.sent, seen.source
    );
    let remedy = commands(&facts.interface, seen.source.into(), by, facts.has_nft).join("; ");
    Some(Cause::likely(CauseKind::Nat, found, remedy))
}

#[cfg(test)]
mod tests;
