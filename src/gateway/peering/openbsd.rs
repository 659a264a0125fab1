//! A tunnel as OpenBSD writes it: hostname.if(5) lines, which netstart(8) hands to ifconfig(8).
//!
//! ```text
//! wgkey PRIVATEKEY
//! wgport 4500
//! wgpeer PUBLICKEY wgpsk KEY wgendpoint HOST PORT wgpka 25 wgaip 192.168.96.0/24
//! inet 192.168.96.2 255.255.255.0
//! !route add -inet 10.0.0.0/8 192.168.96.1
//! ```
//!
//! Each line is one run of ifconfig, and a peer's words hold for the `wgpeer` before them in the same line. wg(4) makes no
//! routes of its own: what lies beyond the interface's networks needs them.

use crate::gateway::config::value;
use crate::gateway::config::{Address, Config, ConfigError, Endpoint, Mtu, Peer, Table};
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};
use zeroize::Zeroizing;

/// Longest peer description (IFDESCRSIZE less its NUL).
const MAX_DESCRIPTION: usize = 63;

/// A hostname.if(5) file, and what of the configuration it has no words for. Secret.
pub fn print(config: &Config) -> (Zeroizing<String>, Vec<String>) {
    (lines(config, &Style { first: "", prefix: "", escape: "!", packed: true }), left_out(config))
}

/// The same as commands for the shell.
pub fn commands(config: &Config, interface: &str) -> Zeroizing<String> {
    let prefix = format!("ifconfig {interface} ");
    lines(config, &Style { first: "create ", prefix: &prefix, escape: "", packed: false })
}

/// How the file and the shell differ.
struct Style<'a> {
    /// After the first prefix.
    first: &'a str,
    /// Before what is ifconfig's.
    prefix: &'a str,
    /// Before what is another command.
    escape: &'a str,
    /// Addresses in hostname.if(5)'s own order of words, not ifconfig's.
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
            // On a line of its own: releases that do not know the word shall take the rest.
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
    let peer = |peer: &Peer| {
        1024 + peer.allowed_ips.len() * 192 + peer.endpoint.as_ref().map_or(0, |at| at.host.len())
    };
    1024 + config.interface.addresses.len() * 128 + config.peers.iter().map(peer).sum::<usize>()
}

fn peer_words(peer: &Peer) -> Zeroizing<String> {
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

/// Between double quotes in a line that a shell evaluates.
fn description(name: &str) -> String {
    let fitting = |(at, c): &(usize, char)| at + c.len_utf8() <= MAX_DESCRIPTION;
    let name = name.char_indices().take_while(fitting).map(|(_, c)| c);
    name.filter(|c| !matches!(c, '"' | '\\' | '$' | '`') && !c.is_control()).collect()
}

/// `inet [alias] addr netmask`, `inet6 [alias] addr prefixlen`
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

/// `inet addr/prefixlen [alias]`
fn ifconfig_address(address: &Address, again: bool) -> String {
    let family = if address.addr.is_ipv4() { "inet" } else { "inet6" };
    format!("{family} {address}{}", if again { " alias" } else { "" })
}

/// For what lies beyond the interface's networks. Any other address of a connected network will do as the gateway: wg(4) looks at
/// the packet's own destination.
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
        let gateway = addresses.iter().filter(|address| address.addr.is_ipv4() == v4).find_map(gateway);
        lines.push(match (prefix.len(), gateway) {
            (0, _) => format!("# all other {family} traffic: pin a route to the endpoint first, then make the tunnel the default"),
            (_, Some(gateway)) => format!("{escape}route add -{family} {prefix} {gateway}"),
            (_, None) => format!("# no route to {prefix}: the interface has no {family} network"),
        });
    }
    lines
}

fn gateway(address: &Address) -> Option<IpAddr> {
    super::next_free(address.network(), &[address.addr.into()])
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

/// Reads a hostname.if(5) file, and tells by line what of it a wg-quick file has no words for.
pub fn parse(text: &str) -> Result<(Config, Vec<ConfigError>), Vec<ConfigError>> {
    let mut reader = Reader::default();
    for (at, line) in text.lines().enumerate() {
        reader.line = at + 1;
        if let Err(message) = reader.take(line.trim()) {
            reader.errors.push(ConfigError { line: at + 1, message });
        }
    }
    if reader.errors.is_empty() { Ok((reader.config, reader.left_out)) } else { Err(reader.errors) }
}

#[derive(Default)]
struct Reader {
    config: Config,
    line: usize,
    /// The peer that this line speaks of.
    peer: Option<usize>,
    errors: Vec<ConfigError>,
    left_out: Vec<ConfigError>,
}

type Words = std::iter::Peekable<std::vec::IntoIter<Zeroizing<String>>>;

impl Reader {
    fn take(&mut self, line: &str) -> Result<(), String> {
        self.peer = None;
        if line.starts_with('#') || line.starts_with("!route add") || line.starts_with("!route -n add") {
            return Ok(()); // routes come of AllowedIPs
        }
        if line.starts_with('!') {
            self.leave_out("a command: expected by wg-quick as PostUp");
            return Ok(());
        }
        let mut words = split(line)?.into_iter().peekable();
        while let Some(word) = words.next() {
            if word.starts_with("wg") {
                self.wireguard(&word, &mut words)?;
            } else {
                self.interface(&word, &mut words)?;
            }
        }
        Ok(())
    }

    fn leave_out(&mut self, message: impl Into<String>) {
        self.left_out.push(ConfigError { line: self.line, message: message.into() });
    }

    fn wireguard(&mut self, word: &str, words: &mut Words) -> Result<(), String> {
        let mut argument = || words.next().ok_or_else(|| format!("{word}: expected a value"));
        let at = |message: String| format!("{word}: {message}");
        let interface = &mut self.config.interface;
        match word {
            "wgkey" => interface.private_key = value::private_key(&argument()?).map_err(at)?,
            "wgport" => interface.listen_port = Some(value::port(&argument()?).map_err(at)?),
            "wgrtable" => {
                argument()?;
                self.leave_out("wgrtable: the nearest thing is FwMark and a rule");
            }
            "wgpeer" => {
                let key = value::public_key(&argument()?).map_err(at)?;
                let known = self.config.peers.iter().position(|peer| peer.public_key == key);
                self.peer = Some(known.unwrap_or(self.config.peers.len()));
                if known.is_none() {
                    self.config.peers.push(Peer::new(key));
                }
            }
            "wgpsk" | "wgendpoint" | "wgaip" | "wgpka" | "wgdescr" | "wgdescription" => {
                let peer = self.peer.and_then(|at| self.config.peers.get_mut(at));
                let peer = peer.ok_or_else(|| format!("{word}: expected after a wgpeer in the same line"))?;
                let first = argument()?;
                match word {
                    "wgpsk" => peer.preshared_key = value::preshared_key(&first).map_err(at)?,
                    "wgaip" => peer.allowed_ips.push(value::allowed_ip(&first).map_err(at)?.0),
                    "wgpka" => peer.persistent_keepalive = Some(value::keepalive(&first).map_err(at)?),
                    "wgendpoint" => {
                        let port = argument()?;
                        let text = if first.contains(':') {
                            format!("[{}]:{}", *first, *port)
                        } else {
                            format!("{}:{}", *first, *port)
                        };
                        peer.endpoint = Some(Endpoint::parse(&text).map_err(at)?);
                    }
                    _ => peer.name = Some(first.to_string()).filter(|name| !name.is_empty()),
                }
            }
            _ => {
                return Err(format!(
                    "{word} is not known here: expected wgkey, wgport, wgrtable, wgpeer, wgpsk, wgendpoint, wgaip, wgpka or wgdescr"
                ));
            }
        }
        Ok(())
    }

    fn interface(&mut self, word: &str, words: &mut Words) -> Result<(), String> {
        match word {
            "up" | "create" => {}
            "mtu" => {
                let mtu = words.next().ok_or("mtu: expected bytes")?;
                self.config.interface.mtu = value::mtu(&mtu).map_err(|message| format!("mtu: {message}"))?;
            }
            "inet" | "inet6"
                if words.peek().is_some_and(|next| next.as_str() == "autoconf" || next.starts_with('-')) =>
            {
                words.next();
                self.leave_out(format!("{word}: an address that is not fixed"));
            }
            "inet" | "inet6" => {
                words.next_if(|next| next.as_str() == "alias");
                let text = words.next().ok_or_else(|| format!("{word}: expected an address"))?;
                self.address(&text, words)?;
            }
            "description" | "descr" | "rdomain" | "group" | "-group" | "priority" | "rtlabel" | "llprio" => {
                words.next();
                self.leave_out(format!("{word}: there is nothing like it"));
            }
            _ if word.parse::<IpAddr>().is_ok() || word.contains('/') => self.address(word, words)?,
            _ => self.leave_out(format!(
                "{}: there is nothing like it",
                word.chars().take(19).collect::<String>()
            )),
        }
        Ok(())
    }

    /// `addr[/len] [netmask MASK | MASK | prefixlen LEN | LEN] [broadcast | NONE]`
    fn address(&mut self, text: &str, words: &mut Words) -> Result<(), String> {
        let mut address = value::address(text)?;
        words.next_if(|next| matches!(next.as_str(), "netmask" | "prefixlen"));
        let v4 = address.addr.is_ipv4();
        let len = words
            .peek()
            .and_then(|next| if v4 { mask(next) } else { next.parse().ok().filter(|&len: &u8| len <= 128) });
        if let Some(len) = len.filter(|_| !text.contains('/')) {
            address.len = len;
            words.next();
        }
        words.next_if(|next| next.as_str() == "broadcast");
        words.next_if(|next| next.as_str() == "NONE" || (v4 && next.parse::<Ipv4Addr>().is_ok()));
        self.config.interface.addresses.push(address);
        Ok(())
    }
}

/// `255.255.255.0` or `0xffffff00`.
fn mask(text: &str) -> Option<u8> {
    let hex = text.strip_prefix("0x").and_then(|hex| u32::from_str_radix(hex, 16).ok());
    match hex {
        Some(bits) => value::netmask(&Ipv4Addr::from_bits(bits).to_string()),
        None => value::netmask(text),
    }
}

/// Words at blanks, with double quotes around what holds some.
fn split(line: &str) -> Result<Vec<Zeroizing<String>>, String> {
    let mut words = Vec::new();
    let mut word: Option<Zeroizing<String>> = None;
    let mut quoted = false;
    let start = || Zeroizing::new(String::with_capacity(line.len()));
    for c in line.chars() {
        match c {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_with(start);
            }
            c if c.is_whitespace() && !quoted => words.extend(word.take()),
            c => word.get_or_insert_with(start).push(c),
        }
    }
    words.extend(word);
    if quoted { Err("a double quote without its end".into()) } else { Ok(words) }
}

#[cfg(test)]
mod tests;
