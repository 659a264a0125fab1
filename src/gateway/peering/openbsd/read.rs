//! From hostname.if(5) lines to a configuration, as netstart(8) and ifconfig(8) read them.

use super::{lines, routes};
use crate::gateway::config::value;
use crate::gateway::config::{Config, ConfigError, HostPort, PeerConfig, ValueError};
use crate::routing::Prefix;
use std::net::{IpAddr, Ipv4Addr};
use zeroize::Zeroizing;

/// Reads a hostname.if(5) file. Beside the configuration stands, line by line, what a wg-quick file cannot express.
///
/// # Errors
///
/// All that is wrong with the file.
pub fn parse(text: &str) -> Result<(Config, Vec<ConfigError>), Vec<ConfigError>> {
    if let Some(line) = wg_quick_header(text) {
        let message = "this is a wg-quick file already: expected OpenBSD's hostname.if(5); `ringtun check` reads it, \
            `ringtun export NAME --for openbsd` turns it into OpenBSD's";
        return Err(vec![ConfigError { line, message: message.into() }]);
    }
    let mut reader = OpenBsdReader::default();
    for line in lines::logical(text) {
        reader.line = line.number;
        if let Err(error) = reader.take(&line.text) {
            reader.errors.push(error);
        }
    }
    if reader.errors.is_empty() && !reader.has_wireguard {
        let message = "there is nothing of wg(4) in it: expected wgkey, wgport, wgpeer";
        reader.errors.push(ConfigError { line: 1, message: message.into() });
    }
    if !reader.errors.is_empty() {
        return Err(reader.errors);
    }
    reader.report_lost_routes();
    Ok((reader.config, reader.left_out))
}

/// The line of the first section's header, where this is a wg-quick file: its first line that says something is one.
fn wg_quick_header(text: &str) -> Option<usize> {
    let says = |line: &&str| !line.is_empty() && !line.starts_with('#');
    let (at, line) = text.lines().map(str::trim).enumerate().find(|(_, line)| says(line))?;
    line.starts_with('[').then_some(at + 1)
}

#[derive(Default)]
struct OpenBsdReader {
    config: Config,
    line: usize,
    /// The index of the peer about which this line speaks.
    peer: Option<usize>,
    /// Whether any word of the file was wg(4)'s.
    has_wireguard: bool,
    errors: Vec<ConfigError>,
    left_out: Vec<ConfigError>,
    /// The destinations to which the file adds a route, each with its line.
    routes: Vec<(usize, Prefix)>,
}

type Words = std::iter::Peekable<std::vec::IntoIter<Zeroizing<String>>>;

impl OpenBsdReader {
    fn take(&mut self, line: &str) -> Result<(), ConfigError> {
        self.peer = None;
        if let Some(command) = line.strip_prefix('!') {
            match routes::destination(command) {
                Some(prefix) => self.routes.push((self.line, prefix)),
                None => self.leave_out("a command: expected by wg-quick as PostUp"),
            }
            return Ok(());
        }
        let lines::Split { words, rest } = lines::split(self.line, line)?;
        if rest {
            self.leave_out("what follows `;`, `&` or `|` is a command: expected by wg-quick as PostUp");
        }
        let mut words = words.into_iter().peekable();
        if words.next_if(|word| word.as_str() == "dest").is_some() {
            return self.other_end(&mut words);
        }
        while let Some(word) = words.next() {
            if word.starts_with("wg") {
                self.has_wireguard = true;
                self.wireguard(&word, &mut words)?;
            } else {
                self.interface(&word, &mut words)?;
            }
        }
        Ok(())
    }

    /// Reads `dest ADDRESS`, the other end of the line above. Its use is the route to it.
    fn other_end(&mut self, words: &mut Words) -> Result<(), ConfigError> {
        let addr = words.next().and_then(|word| word.parse::<IpAddr>().ok());
        self.routes.push((self.line, addr.ok_or_else(|| self.error("dest: expected an address"))?.into()));
        Ok(())
    }

    /// Reports the routes that are lost. wg-quick adds a route for each prefix of AllowedIPs, and for nothing else.
    fn report_lost_routes(&mut self) {
        let allowed: Vec<Prefix> =
            self.config.peers.iter().flat_map(|peer| peer.allowed_ips.clone()).collect();
        let covers =
            |to: &Prefix| allowed.iter().any(|prefix| prefix.len() <= to.len() && prefix.contains(to.addr()));
        for (line, to) in self.routes.iter().filter(|(_, to)| !covers(to)) {
            let message = format!(
                "the route to {to}, which no wgaip covers: expected among a peer's AllowedIPs, or as PostUp = ip route add {to} …"
            );
            self.left_out.push(ConfigError { line: *line, message });
        }
        self.left_out.sort_by_key(|note| note.line);
    }

    fn leave_out(&mut self, message: impl Into<String>) {
        self.left_out.push(self.error(message));
    }

    /// The error of the line at hand.
    fn error(&self, message: impl Into<String>) -> ConfigError {
        ConfigError { line: self.line, message: message.into() }
    }

    fn wireguard(&mut self, word: &str, words: &mut Words) -> Result<(), ConfigError> {
        let line = self.line;
        let wrong = |message: String| ConfigError { line, message: format!("{word}: {message}") };
        let mut argument = || words.next().ok_or_else(|| wrong("expected a value".into()));
        let at = |error: ValueError| wrong(error.to_string());
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
                    self.config.peers.push(PeerConfig::new(key));
                }
            }
            "wgpsk" | "wgendpoint" | "wgaip" | "wgpka" | "wgdescr" | "wgdescription" => {
                let peer = self.peer.and_then(|at| self.config.peers.get_mut(at));
                let peer = peer.ok_or_else(|| wrong("expected after a wgpeer in the same line".into()))?;
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
                        peer.endpoint = Some(HostPort::parse(&text).map_err(at)?);
                    }
                    _ => peer.name = Some(first.to_string()).filter(|name| !name.is_empty()),
                }
            }
            _ => {
                return Err(self.error(format!(
                    "{word} is not known here: expected wgkey, wgport, wgrtable, wgpeer, wgpsk, wgendpoint, wgaip, wgpka or wgdescr"
                )));
            }
        }
        Ok(())
    }

    fn interface(&mut self, word: &str, words: &mut Words) -> Result<(), ConfigError> {
        match word {
            "up" | "create" => {}
            "mtu" => {
                let mtu = words.next().ok_or_else(|| self.error("mtu: expected bytes"))?;
                let mtu = value::mtu(&mtu).map_err(|error| self.error(format!("mtu: {error}")))?;
                self.config.interface.mtu = mtu;
            }
            "inet" | "inet6"
                if words.peek().is_some_and(|next| next.as_str() == "autoconf" || next.starts_with('-')) =>
            {
                words.next();
                self.leave_out(format!("{word}: an address that is not fixed"));
            }
            "inet" | "inet6" => {
                words.next_if(|next| next.as_str() == "alias");
                let text = words.next().ok_or_else(|| self.error(format!("{word}: expected an address")))?;
                self.address(&text, words)?;
            }
            _ if word.parse::<IpAddr>().is_ok() || word.contains('/') => self.address(word, words)?,
            _ => {
                // The word's arguments, whatever they look like, are not this interface's addresses.
                while words.next_if(|next| !is_read(next)).is_some() {}
                self.leave_out(format!(
                    "{}: there is nothing like it",
                    word.chars().take(19).collect::<String>()
                ));
            }
        }
        Ok(())
    }

    /// Reads `addr[/len] [netmask MASK | MASK | prefixlen LEN | LEN] [broadcast | NONE]`.
    fn address(&mut self, text: &str, words: &mut Words) -> Result<(), ConfigError> {
        let mut address = value::address(text).map_err(|error| self.error(error.to_string()))?;
        words.next_if(|next| matches!(next.as_str(), "netmask" | "prefixlen"));
        let v4 = address.addr.is_ipv4();
        let len = words
            .peek()
            .and_then(|next| if v4 { mask(next) } else { next.parse().ok().filter(|&len: &u8| len <= 128) });
        if let Some(len) = len.filter(|_| !text.contains('/')) {
            address.len = len;
            words.next();
        }
        let is_broadcast = len.is_some() | words.next_if(|next| next.as_str() == "broadcast").is_some();
        let other = words.next_if(|next| next.as_str() == "NONE" || (v4 && next.parse::<Ipv4Addr>().is_ok()));
        if let Some(other) = other.filter(|_| !is_broadcast).and_then(|other| other.parse::<IpAddr>().ok()) {
            self.routes.push((self.line, other.into()));
        }
        self.config.interface.addresses.push(address);
        Ok(())
    }
}

/// Whether the word is one that is understood wherever it stands in a line.
fn is_read(word: &str) -> bool {
    word.starts_with("wg") || matches!(word, "up" | "create" | "mtu" | "inet" | "inet6")
}

/// The length of a netmask in the form `255.255.255.0` or `0xffffff00`.
fn mask(text: &str) -> Option<u8> {
    let hex = text.strip_prefix("0x").and_then(|hex| u32::from_str_radix(hex, 16).ok());
    match hex {
        Some(bits) => value::netmask(&Ipv4Addr::from_bits(bits).to_string()),
        None => value::netmask(text),
    }
}
