//! What a firewall does with a tunnel's packets, as far as its rules say so without a doubt.
//!
//! A packet is followed through the chains. The condition of a rule may hold, not hold, or depend on what is not known
//! here, such as the sender's address. A rule that drops counts if its condition holds without a doubt. A rule that
//! accepts counts also if it names the tunnel's port or interface: who wrote it knows whom it is to let in.

mod iptables;
mod nft;

pub(super) use iptables::read as iptables;
pub(super) use nft::{has_foreign, read as nft};

use std::collections::HashMap;
use std::ops::RangeInclusive;

/// How deep chains within chains are followed. The kernel allows sixteen.
const MAX_DEPTH: u32 = 16;

/// Where in the kernel a chain is entered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Hook {
    /// The chain sees packets for this host itself.
    Input,
    /// The chain sees packets for others, which this host forwards.
    Forward,
}

/// The program that keeps a chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Tool {
    /// The chain is nft(8)'s.
    Nft,
    /// The chain belongs to the program of iptables(8) by this name.
    Iptables(&'static str),
}

/// A firewall's chain: a list of rules.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Chain {
    /// The program that keeps the chain.
    pub(super) tool: Tool,
    /// The chain's table, such as `inet filter`. For iptables it is the table's family, which tells chains of one name
    /// apart.
    pub(super) table: String,
    /// The chain's name.
    pub(super) name: String,
    /// Where the kernel enters the chain by itself, if it does, and whether the chain drops what no rule decides.
    base: Option<(Hook, bool)>,
    rules: Vec<FirewallRule>,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct FirewallRule {
    conditions: Vec<Condition>,
    /// What the rule does with a packet. `None` where the packet goes on, after counting or the like.
    verdict: Option<RuleVerdict>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum RuleVerdict {
    Accept,
    Drop,
    Return,
    Jump(String),
    Goto(String),
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Condition {
    Protocol(Vec<String>),
    /// The destination port lies in one of these ranges.
    Ports(Vec<RangeInclusive<u16>>),
    /// The packet came by one of these interfaces. A `*` at the end of a name stands for anything.
    From(Vec<String>),
    /// The packet leaves by one of these interfaces.
    To(Vec<String>),
    /// Connection tracking has the packet in one of these states.
    States(Vec<String>),
    Not(Box<Condition>),
    /// The condition depends on what is not known here.
    Unknown,
}

/// A packet that is followed. It is always the first of its connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum FirstPacket<'a> {
    /// A UDP packet from a peer to this port.
    ToPort(u16),
    /// A packet that comes out of the tunnel with this interface.
    OutOf(&'a str),
    /// A packet that goes into the tunnel with this interface.
    Into(&'a str),
}

/// Whether a condition holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum RuleMatch {
    No,
    Perhaps,
    Yes,
    /// The condition holds, and it speaks of this very tunnel.
    Named,
}

/// What becomes of a packet in a chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum PacketVerdict {
    Accepted { named: bool },
    Dropped,
    Undecided,
}

impl Condition {
    fn matches(&self, packet: FirstPacket<'_>) -> RuleMatch {
        match self {
            Condition::Protocol(names) => match packet {
                FirstPacket::ToPort(_) => known(names.iter().any(|name| name == "udp")),
                _ => RuleMatch::Perhaps,
            },
            Condition::Ports(ranges) => match packet {
                FirstPacket::ToPort(port) if ranges.iter().any(|range| range.contains(&port)) => {
                    RuleMatch::Named
                }
                FirstPacket::ToPort(_) => RuleMatch::No,
                _ => RuleMatch::Perhaps,
            },
            Condition::From(names) => match packet {
                FirstPacket::OutOf(tunnel) => named(names, tunnel),
                FirstPacket::Into(tunnel) if names.iter().all(|name| name == tunnel) => RuleMatch::No,
                _ => elsewhere(names),
            },
            Condition::To(names) => match packet {
                FirstPacket::Into(tunnel) => named(names, tunnel),
                FirstPacket::OutOf(tunnel) if names.iter().all(|name| name == tunnel) => RuleMatch::No,
                _ => elsewhere(names),
            },
            Condition::States(names) => known(names.iter().any(|name| name == "new")),
            Condition::Not(condition) => match condition.matches(packet) {
                RuleMatch::No => RuleMatch::Yes,
                RuleMatch::Perhaps => RuleMatch::Perhaps,
                RuleMatch::Yes | RuleMatch::Named => RuleMatch::No,
            },
            Condition::Unknown => RuleMatch::Perhaps,
        }
    }
}

fn known(holds: bool) -> RuleMatch {
    if holds { RuleMatch::Yes } else { RuleMatch::No }
}

/// Whether a condition on an interface holds where that is the tunnel's.
fn named(names: &[String], tunnel: &str) -> RuleMatch {
    let is_it = |name: &String| match name.strip_suffix('*') {
        Some(beginning) => tunnel.starts_with(beginning),
        None => name == tunnel,
    };
    if names.iter().any(is_it) { RuleMatch::Named } else { RuleMatch::No }
}

/// Whether a condition on an interface holds where that is another than the tunnel's. Nothing comes from elsewhere by
/// loopback.
fn elsewhere(names: &[String]) -> RuleMatch {
    if names.iter().all(|name| name == "lo") { RuleMatch::No } else { RuleMatch::Perhaps }
}

impl FirewallRule {
    /// Whether the rule's conditions hold for the packet, and whether one of them names the tunnel.
    fn matches(&self, packet: FirstPacket<'_>) -> (RuleMatch, bool) {
        let (mut all, mut named) = (RuleMatch::Yes, false);
        for condition in &self.conditions {
            match condition.matches(packet) {
                RuleMatch::No => return (RuleMatch::No, false),
                RuleMatch::Perhaps => all = RuleMatch::Perhaps,
                RuleMatch::Yes => {}
                RuleMatch::Named => named = true,
            }
        }
        (all, named)
    }
}

/// A chain that stops a tunnel's packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockingChain<'a> {
    /// The chain that the kernel entered.
    pub(super) chain: &'a Chain,
    /// Whether no rule drops the packet, but the chain's policy.
    pub(super) by_policy: bool,
}

/// The first chain of `hook` that drops each of `packets`.
pub(super) fn blocking_chain<'a>(
    chains: &'a [Chain],
    hook: Hook,
    packets: &[FirstPacket<'_>],
) -> Option<BlockingChain<'a>> {
    let bases = chains.iter().filter_map(|chain| match chain.base {
        Some((at, drops)) if at == hook => Some((chain, drops)),
        _ => None,
    });
    let mut bases = bases.map(|(chain, drops)| {
        let verdict = |packet: &FirstPacket<'_>| {
            Following { chains, packet: *packet, known: HashMap::new() }.follow(chain, 0)
        };
        let verdicts: Vec<PacketVerdict> = packets.iter().map(verdict).collect();
        let is_dropped = |verdict: &PacketVerdict| {
            *verdict == PacketVerdict::Dropped || (*verdict == PacketVerdict::Undecided && drops)
        };
        let by_policy = verdicts.contains(&PacketVerdict::Undecided);
        verdicts.iter().all(is_dropped).then_some(BlockingChain { chain, by_policy })
    });
    bases.find_map(|blocking| blocking)
}

/// The names of the chains in nft's or iptables' text that drop what goes to a tunnel's port or comes out of it.
#[cfg(feature = "internals")]
pub fn blocked(text: &str, tunnel: &str, port: u16) -> Vec<String> {
    let chains = nft(text).unwrap_or_else(|| iptables(text, "iptables"));
    let asked = [
        blocking_chain(&chains, Hook::Input, &[FirstPacket::ToPort(port)]),
        blocking_chain(&chains, Hook::Forward, &[FirstPacket::OutOf(tunnel), FirstPacket::Into(tunnel)]),
    ];
    asked.into_iter().flatten().map(|blocking| blocking.chain.name.clone()).collect()
}

/// A packet on its way through the chains.
struct Following<'a> {
    chains: &'a [Chain],
    packet: FirstPacket<'a>,
    /// What becomes of the packet in the chains that it was in, by their places. Many rules may lead to one chain, which leads to
    /// another by many: each is gone through once.
    known: HashMap<usize, PacketVerdict>,
}

impl Following<'_> {
    fn follow(&mut self, chain: &Chain, depth: u32) -> PacketVerdict {
        for rule in &chain.rules {
            let (holds, is_named) = rule.matches(self.packet);
            let certain = holds == RuleMatch::Yes;
            if holds == RuleMatch::No {
                continue;
            }
            match &rule.verdict {
                Some(RuleVerdict::Accept) if certain || is_named => {
                    return PacketVerdict::Accepted { named: is_named };
                }
                Some(RuleVerdict::Drop) if certain => return PacketVerdict::Dropped,
                Some(RuleVerdict::Return) if certain => return PacketVerdict::Undecided,
                Some(RuleVerdict::Jump(name) | RuleVerdict::Goto(name)) if depth < MAX_DEPTH => {
                    let leaves = matches!(rule.verdict, Some(RuleVerdict::Goto(_)));
                    match self.enter(chain, name, depth + 1) {
                        PacketVerdict::Accepted { named } if certain || named || is_named => {
                            return PacketVerdict::Accepted { named: named || is_named };
                        }
                        PacketVerdict::Dropped if certain => return PacketVerdict::Dropped,
                        PacketVerdict::Undecided if certain && leaves => return PacketVerdict::Undecided,
                        _ => {}
                    }
                }
                _ => {}
            }
        }
        PacketVerdict::Undecided
    }

    /// What becomes of the packet in the chain of this name that stands beside `from`.
    fn enter(&mut self, from: &Chain, name: &str, depth: u32) -> PacketVerdict {
        let is_it = |one: &Chain| one.name == name && one.table == from.table && one.tool == from.tool;
        let chains = self.chains;
        let Some((at, inner)) = chains.iter().enumerate().find(|(_, one)| is_it(one)) else {
            return PacketVerdict::Undecided;
        };
        if let Some(known) = self.known.get(&at) {
            return *known;
        }
        let verdict = self.follow(inner, depth);
        self.known.insert(at, verdict);
        verdict
    }
}

#[cfg(test)]
mod tests;
