//! From a configuration to hostname.if(5) lines, or to commands.

use crate::gateway::config::{Address, Config, Mtu, PeerConfig, Table};
use crate::gateway::peering::next_free;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};
use zeroize::Zeroizing;

/// Longest description of a peer in bytes (IFDESCRSIZE less its NUL).
const MAX_DESCRIPTION: usize = 63;

/// The configuration as a hostname.if(5) file, and what of it such a file cannot express. The file is secret.
pub fn print(config: &Config) -> (Zeroizing<String>, Vec<String>) {
    (lines(config, &Style { first: "", prefix: "", escape: "!", packed: true }), left_out(config))
}

/// The configuration as commands for the shell, which are secret.
pub fn commands(config: &Config, interface: &str) -> Zeroizing<String> {
    let prefix = format!("ifconfig {interface} ");
    lines(config, &Style { first: "create ", prefix: &prefix, escape: "", packed: false })
}

/// How the file and the shell's commands differ.
struct Style<'a> {
    /// What stands after the prefix of the first line.
    first: &'a str,
    /// What stands before a line for ifconfig.
    prefix: &'a str,
    /// What stands before another command.
    escape: &'a str,
    /// Whether addresses have hostname.if(5)'s own order of words, and not ifconfig's.
    packed: bool,
}

fn lines(config: &Config, style: &Style<'_>) -> Zeroizing<String> {
    let interface = &config.interface;
    let mut lines = Zeroizing::new(String::with_capacity(room(config)));
    let mut line = |parts: &[&str]| {
        let first = if lines.is_empty() { style.first } else { "" };
        for part in [style.prefix, first].iter().chain(parts).chain(&["\n"]) {
            lines.push_str(part);
        }
    };
    if let Some(key) = &interface.private_key {
        line(&["wgkey ", &key.to_base64()]);
    }
    if let Some(port) = interface.listen_port.filter(|&port| port != 0) {
        line(&["wgport ", &port.to_string()]);
    }
    if let Some(Mtu::Bytes(mtu)) = interface.mtu {
        line(&["mtu ", &mtu.to_string()]);
    }
    for peer in &config.peers {
        line(&[&peer_words(peer)]);
        if let Some(name) = &peer.name {
            // The name has a line of its own, so that releases that do not know the word take the rest.
            line(&["wgpeer ", &peer.public_key.to_base64(), " wgdescr \"", &description(name), "\""]);
        }
    }
    for (at, address) in interface.addresses.iter().enumerate() {
        let again =
            interface.addresses.iter().take(at).any(|other| other.addr.is_ipv4() == address.addr.is_ipv4());
        line(&[&if style.packed {
            packed_address(address, again)
        } else {
            ifconfig_address(address, again)
        }]);
    }
    line(&["up"]);
    for route in routes(config, style.escape) {
        lines.push_str(&route);
        lines.push('\n');
    }
    lines
}

fn room(config: &Config) -> usize {
    let peer = |peer: &PeerConfig| {
        1024 + peer.allowed_ips.len() * 192 + peer.endpoint.as_ref().map_or(0, |at| at.host.len())
    };
    1024 + config.interface.addresses.len() * 128 + config.peers.iter().map(peer).sum::<usize>()
}

fn peer_words(peer: &PeerConfig) -> Zeroizing<String> {
    let mut words = Zeroizing::new(String::with_capacity(256 + peer.allowed_ips.len() * 64));
    // Writing to a string cannot fail.
    let _ = write!(words, "wgpeer {}", peer.public_key.to_base64());
    if let Some(key) = &peer.preshared_key {
        let _ = write!(words, " wgpsk {}", key.to_base64().as_str());
    }
    if let Some(endpoint) = &peer.endpoint {
        let _ = write!(words, " wgendpoint {} {}", endpoint.host, endpoint.port);
    }
    if let Some(seconds) = peer.persistent_keepalive {
        let _ = write!(words, " wgpka {seconds}");
    }
    for prefix in &peer.allowed_ips {
        let _ = write!(words, " wgaip {prefix}");
    }
    words
}

/// A name as it may stand between double quotes in a line that a shell evaluates.
fn description(name: &str) -> String {
    let fitting = |(at, c): &(usize, char)| at + c.len_utf8() <= MAX_DESCRIPTION;
    let name = name.char_indices().take_while(fitting).map(|(_, c)| c);
    name.filter(|c| !matches!(c, '"' | '\\' | '$' | '`') && !c.is_control()).collect()
}

/// An address in the form `inet [alias] addr netmask` or `inet6 [alias] addr prefixlen`.
fn packed_address(address: &Address, again: bool) -> String {
    let alias = if again { "alias " } else { "" };
    match address.addr {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(address.len)).unwrap_or(0);
            format!("inet {alias}{v4} {}", Ipv4Addr::from_bits(mask))
        }
        IpAddr::V6(v6) => format!("inet6 {alias}{v6} {}", address.len),
    }
}

/// An address in the form `inet addr/prefixlen [alias]`.
fn ifconfig_address(address: &Address, again: bool) -> String {
    let family = if address.addr.is_ipv4() { "inet" } else { "inet6" };
    format!("{family} {address}{}", if again { " alias" } else { "" })
}

/// The routes to what lies beyond the interface's networks. Any other address of a connected network will do as the
/// gateway, since wg(4) looks at the packet's own destination. Where there is no such network, as with a /32, the
/// interface is named by its own address (`-iface`).
fn routes(config: &Config, escape: &str) -> Vec<String> {
    let addresses = &config.interface.addresses;
    let mut lines = Vec::new();
    for prefix in config.peers.iter().flat_map(|peer| &peer.allowed_ips) {
        let v4 = prefix.addr().is_ipv4();
        let connected = |address: &Address| {
            address.network().len() <= prefix.len() && address.network().contains(prefix.addr())
        };
        if addresses.iter().any(connected) {
            continue;
        }
        let family = if v4 { "inet" } else { "inet6" };
        let ours = || addresses.iter().filter(|address| address.addr.is_ipv4() == v4);
        let gateway = ours()
            .find_map(|address| next_free(address.network(), &[address.addr.into()]))
            .map(|addr| addr.to_string())
            .or_else(|| ours().next().map(|address| format!("-iface {}", address.addr)));
        match gateway {
            Some(gateway) if prefix.len() == 0 => lines.extend(default_route(config, escape, v4, &gateway)),
            Some(gateway) => lines.push(format!("{escape}route add -{family} {prefix} {gateway}")),
            None => lines.push(format!("# no route to {prefix}: the interface has no {family} address")),
        }
    }
    lines
}

/// The default route, as comments: only the other side's administrator knows the gateway that leads to the endpoint.
fn default_route(config: &Config, escape: &str, v4: bool, gateway: &str) -> Vec<String> {
    let (family, halves) =
        if v4 { ("inet", ["0.0.0.0/1", "128.0.0.0/1"]) } else { ("inet6", ["::/1", "8000::/1"]) };
    let mut lines = vec![format!(
        "# all other {family} traffic: give the endpoint a route by the present GATEWAY first, then take the # from these"
    )];
    let endpoints = config.peers.iter().filter_map(|peer| peer.endpoint.as_ref());
    let of_family = endpoints.filter(|at| at.address().is_none_or(|addr| addr.is_ipv4() == v4));
    lines.extend(of_family.map(|at| format!("#{escape}route add -{family} -host {} GATEWAY", at.host)));
    lines.extend(halves.map(|half| format!("#{escape}route add -{family} {half} {gateway}")));
    lines
}

fn left_out(config: &Config) -> Vec<String> {
    let interface = &config.interface;
    let mut out = Vec::new();
    let mut note = |there: bool, what: &str| out.extend(there.then(|| what.to_owned()));
    note(interface.fwmark.is_some_and(|mark| mark != 0), "FwMark: OpenBSD has wgrtable instead");
    note(interface.table != Table::Auto, "Table: OpenBSD has rdomain and wgrtable instead");
    note(
        !interface.dns.is_empty() || !interface.dns_search.is_empty(),
        "DNS: see resolv.conf(5) and resolvd(8)",
    );
    note(interface.mtu == Some(Mtu::Exact), "MTU = exact: expected a number");
    note(interface.save_config, "SaveConfig");
    let hooks = [&interface.pre_up, &interface.post_up, &interface.pre_down, &interface.post_down];
    note(
        hooks.iter().any(|hooks| !hooks.is_empty()),
        "PreUp, PostUp, PreDown, PostDown: `!command` lines are the nearest thing",
    );
    out
}
