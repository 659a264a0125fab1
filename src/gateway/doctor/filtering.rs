//! Findings about this host's firewall: whether it stands in the way of the host's tunnels.

use super::Finding;
use super::Level::{Missing, Unknown, Warn};
use super::firewall::{self, BlockingChain, Chain, FirstPacket, Hook, Tool, blocking_chain};
use super::network::{output, program};
use super::tunnels::KnownTunnel;
use std::fmt::Write;

/// The usual port of a tunnel, which is looked at where no tunnel names another.
const USUAL_PORT: u16 = 51820;
const USUAL_NAME: &str = "wg0";

/// The programs of iptables for one family.
struct Iptables {
    /// The program that changes rules; `save` is the one that prints them.
    change: &'static str,
    save: &'static str,
    /// The same two programs for rules in the kernel's older interface, where there are both.
    legacy: (&'static str, &'static str),
    /// The file in which the kernel lists the tables of the older interface.
    names: &'static str,
    /// The name of the table in nft's words.
    table: &'static str,
}

const IPTABLES: [Iptables; 2] = [
    Iptables {
        change: "iptables",
        save: "iptables-save",
        legacy: ("iptables-legacy", "iptables-legacy-save"),
        names: "/proc/net/ip_tables_names",
        table: "ip filter",
    },
    Iptables {
        change: "ip6tables",
        save: "ip6tables-save",
        legacy: ("ip6tables-legacy", "ip6tables-legacy-save"),
        names: "/proc/net/ip6_tables_names",
        table: "ip6 filter",
    },
];

/// What stands in the way of the running tunnel `name`: a chain that drops what comes to its UDP port, and one that drops what its
/// peers send to others. `None` where no rule does so without a doubt.
pub fn blocking(name: &str, port: Option<u16>) -> (Option<Finding>, Option<Finding>) {
    let text = program("nft").and_then(|_| output("nft", &["-j", "list", "ruleset"]));
    let chains = chains(text.as_deref().and_then(|text| Some((text, firewall::nft(text)?))));
    let tunnels = [KnownTunnel::running(name, port)];
    let blocks = |finding: Finding| Some(finding).filter(|finding| finding.level == Warn);
    (blocks(input(&chains, &tunnels)), blocks(forward(&chains, &tunnels)))
}

/// Whether any rule translates the source addresses of packets that this host forwards.
pub fn translates() -> bool {
    let words = ["masquerade", "snat", "MASQUERADE", "SNAT"];
    // Without a table's name these programs print the tables that there are, and make none.
    let asked: [(&str, &[&str]); 5] = [
        ("nft", &["list", "ruleset"]),
        ("iptables-save", &[]),
        ("ip6tables-save", &[]),
        ("iptables-legacy-save", &[]),
        ("ip6tables-legacy-save", &[]),
    ];
    let has_rule =
        |text: String| words.iter().any(|word| text.split_whitespace().any(|other| other == *word));
    asked.into_iter().filter_map(|(program, arguments)| output(program, arguments)).any(has_rule)
}

/// Findings about the firewall's tools, and about what its rules do with packets to, from and for the tunnels.
pub(super) fn findings(tunnels: &[KnownTunnel]) -> Vec<Finding> {
    let nft = program("nft").map(|_| output("nft", &["-j", "list", "ruleset"]));
    let tool = match &nft {
        Some(Some(_)) => Finding::ok("nftables", "installed"),
        Some(None) => Finding::new(
            "nftables",
            Unknown,
            "installed; its rules cannot be read",
            "look again as root, with CAP_NET_ADMIN",
        ),
        None if program("iptables-restore").is_some() => {
            Finding::ok("nftables", "not installed; iptables stands in for it")
        }
        None => Finding::new(
            "nftables",
            Missing,
            "nft is not installed",
            "apt-get install nftables: default routes through a tunnel and MSS clamping need it",
        ),
    };
    let chains = match &nft {
        Some(text) => text.as_deref().and_then(|text| Some(chains(Some((text, firewall::nft(text)?))))),
        None => Some(chains(None)),
    };
    let mut findings = vec![tool];
    if let Some(chains) = chains {
        findings.push(input(&chains, tunnels));
        findings.push(forward(&chains, tunnels));
    }
    findings
}

/// Every rule set of the kernel: nft's, and iptables' own. What iptables put into nft's and only iptables can read is
/// read from iptables.
fn chains(nft: Option<(&str, Vec<Chain>)>) -> Vec<Chain> {
    let text = nft.as_ref().map(|(text, _)| *text);
    let is_foreign = |table: &str| text.is_some_and(|text| firewall::has_foreign(text, table));
    let mut all = Vec::new();
    for family in IPTABLES {
        let names = std::fs::read_to_string(family.names).unwrap_or_default();
        let (change, save) = family.legacy;
        let has_legacy = names.lines().any(|name| name == "filter") && program(save).is_some();
        // Without a table's name these programs print the tables that there are, and make none.
        let asked = [
            (text.is_none() || is_foreign(family.table), family.change, family.save),
            (has_legacy, change, save),
        ];
        for (_, change, save) in asked.into_iter().filter(|(is_asked, ..)| *is_asked) {
            all.extend(output(save, &[]).map(|text| firewall::iptables(&text, change)).unwrap_or_default());
        }
    }
    // What iptables printed is left out here, since nft has no words for it.
    all.extend(nft.map(|(_, chains)| chains).unwrap_or_default());
    all.retain(|chain| chain.tool != Tool::Nft || !is_foreign(&chain.table));
    all
}

fn input(chains: &[Chain], tunnels: &[KnownTunnel]) -> Finding {
    let what = "firewall input";
    let mut asked: Vec<(u16, String)> = tunnels
        .iter()
        .filter(|tunnel| !tunnel.will_change("input"))
        .filter_map(|tunnel| Some((tunnel.port?, tunnel.name.clone())))
        .collect();
    if tunnels.is_empty() {
        asked.push((USUAL_PORT, "the usual port; no tunnel says another".into()));
    }
    let walled = asked.iter().filter_map(|(port, name)| {
        Some((port, name, blocking_chain(chains, Hook::Input, &[FirstPacket::ToPort(*port)])?))
    });
    let walled: Vec<_> = walled.collect();
    let Some((_, _, first)) = walled.first() else {
        let ports: Vec<String> = asked.iter().map(|(port, name)| format!("{port} ({name})")).collect();
        return match ports.is_empty() {
            true => Finding::ok(what, "no tunnel waits at a port of its own"),
            false => Finding::ok(what, format!("no rule drops all UDP to {}", ports.join(", "))),
        };
    };
    let named: Vec<String> = walled.iter().map(|(port, name, _)| format!("{port} ({name})")).collect();
    let ports: Vec<String> = walled.iter().map(|(port, ..)| port.to_string()).collect();
    let remedy = match first.chain.tool {
        Tool::Iptables(program) => {
            let each = ports.iter().map(|port| format!("{program} -I INPUT -p udp --dport {port} -j ACCEPT"));
            format!("open it: {}", each.collect::<Vec<_>>().join("; "))
        }
        Tool::Nft => {
            let ports = if let [port] = ports.as_slice() {
                port.clone()
            } else {
                format!("'{{ {} }}'", ports.join(", "))
            };
            format!(
                "open it: nft insert rule {} {} udp dport {ports} accept",
                first.chain.table, first.chain.name
            )
        }
    };
    Finding::new(
        what,
        Warn,
        format!("{} drops UDP to port {}{}", chain_name(first), named.join(", "), cause(first)),
        &remedy,
    )
}

fn forward(chains: &[Chain], tunnels: &[KnownTunnel]) -> Finding {
    let what = "firewall forward";
    let mut asked: Vec<&str> = tunnels
        .iter()
        .filter(|tunnel| !tunnel.will_change("forward"))
        .map(|tunnel| tunnel.name.as_str())
        .collect();
    if tunnels.is_empty() {
        asked.push(USUAL_NAME);
    }
    let walled = asked.iter().filter_map(|name| {
        Some((
            *name,
            blocking_chain(chains, Hook::Forward, &[FirstPacket::OutOf(name), FirstPacket::Into(name)])?,
        ))
    });
    let walled: Vec<_> = walled.collect();
    let Some((_, first)) = walled.first() else {
        return Finding::ok(what, "no rule drops all that tunnels forward");
    };
    let names: Vec<&str> = walled.iter().map(|(name, _)| *name).collect();
    let mut remedy = String::from("to route for others (not for a client alone):");
    for name in &names {
        let chain = first.chain;
        // Writing to a string cannot fail, here and below.
        let _ = match chain.tool {
            Tool::Iptables(program) => {
                write!(
                    remedy,
                    " {program} -I FORWARD -i {name} -j ACCEPT; {program} -I FORWARD -o {name} -j ACCEPT;"
                )
            }
            Tool::Nft => write!(
                remedy,
                " nft insert rule {0} {1} iifname {name} accept; nft insert rule {0} {1} oifname {name} accept;",
                chain.table, chain.name
            ),
        };
    }
    let found = format!(
        "{} drops what goes out of {} and into it{}",
        chain_name(first),
        names.join(", "),
        cause(first)
    );
    Finding::new(what, Warn, found, remedy.trim_end_matches(';'))
}

fn chain_name(blocking: &BlockingChain<'_>) -> String {
    match blocking.chain.tool {
        Tool::Nft => format!("chain {} {}", blocking.chain.table, blocking.chain.name),
        Tool::Iptables(program) => format!("{program}'s chain {}", blocking.chain.name),
    }
}

fn cause(blocking: &BlockingChain<'_>) -> &'static str {
    if blocking.by_policy { " (its policy)" } else { " (a rule)" }
}
