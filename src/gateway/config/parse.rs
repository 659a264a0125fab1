//! From a file's lines to its meaning. All errors of a file are reported at once.

use super::document::{
    HOOK_KEYS, INTERFACE_KEYS, LineKind, PEER_KEYS, QUICK_KEYS, hook_command, quick_pair, quoted, wg_cleaned,
};
use super::value::DnsWord;
use super::{
    Config, ConfigError, Document, Interface, Line, Mtu, PeerConfig, ValueError, Warning, dialect, value,
};
use crate::crypto::x25519::PublicKey;
use crate::gateway::mtu::IPV6_MINIMUM;
use crate::routing::Prefix;
use std::collections::{HashMap, HashSet};
use zeroize::Zeroizing;

/// What it takes to bring a tunnel down, read from a file that may be wrong in other places.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Salvage {
    /// The interface's part, without the lines that have mistakes.
    pub interface: Interface,
    /// The lines, counted from 1, that were meant as a hook of `down` and cannot be read.
    pub lost: Vec<usize>,
}

impl Document {
    /// Reads the interface's part as far as it can be read.
    pub fn salvage(&self) -> Salvage {
        let parser = self.taken();
        let lines = parser.errors.iter().map(|error| error.line);
        let is_hook = |at: &usize| {
            let line = self.lines.get(at - 1).map(|line| line.trim_ascii().to_ascii_lowercase());
            line.is_some_and(|line| line.starts_with(b"predown") || line.starts_with(b"postdown"))
        };
        Salvage { lost: lines.filter(is_hook).collect(), interface: parser.config.interface }
    }

    /// Reads the meaning of the lines, with warnings of what is odd.
    ///
    /// # Errors
    ///
    /// All that is wrong with the file, in its order.
    pub fn parse(&self) -> Result<(Config, Vec<Warning>), Vec<ConfigError>> {
        let mut parser = self.taken();
        for section in self.sections().into_iter().filter(|section| !section.interface) {
            let peer = parser.peers.iter_mut().find(|(_, peer)| peer.line.0 == section.header + 1);
            if let Some((_, peer)) = peer {
                peer.name = section.name;
                let (limits, warnings) = self.limits_in(section.lines);
                peer.limits = limits;
                parser.warnings.extend(warnings);
            }
        }
        parser.finish()
    }

    fn taken(&self) -> ConfigParser {
        let mut parser = ConfigParser::default();
        if let Some(error) = dialect::encoding(&self.lines) {
            parser.errors.push(error);
            return parser;
        }
        let mut unmarked = None;
        if let Some((rest, error)) = self.lines.first().and_then(|line| dialect::behind_mark(line)) {
            parser.errors.push(error);
            let mut document = self.clone();
            document.lines[0] = Zeroizing::new(rest.to_vec());
            unmarked = Some(document);
        }
        for (at, (line, kind)) in unmarked.as_ref().unwrap_or(self).kinds().enumerate() {
            parser.line = at + 1;
            parser.take(line, kind);
        }
        parser
    }
}

const BEFORE_ANY_SECTION: &str = "a value before any section: expected [Interface] or [Peer] first";

/// The error of a key's value in the line of number `at`.
fn value_error(at: usize, key: &str, error: ValueError, line: &[u8]) -> ConfigError {
    ConfigError { line: at, message: format!("{key}: {error}{}", dialect::of_value(key, line)) }
}

#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum In {
    #[default]
    Nothing,
    Interface,
    Peer,
}

#[derive(Default)]
struct ConfigParser {
    config: Config,
    /// The peers so far. A key may be missing still.
    peers: Vec<(Option<PublicKey>, PeerConfig)>,
    section: In,
    line: usize,
    /// The line that set MTU last.
    mtu_line: usize,
    /// The keys of a single value that were set so far: here the interface's, in `seen_peer` the last peer's.
    seen: HashSet<&'static str>,
    seen_peer: HashSet<&'static str>,
    /// Whether a key of AmneziaWG's was reported.
    saw_amnezia: bool,
    errors: Vec<ConfigError>,
    warnings: Vec<Warning>,
}

impl ConfigParser {
    fn take(&mut self, line: &[u8], kind: LineKind) {
        let taken = match kind {
            LineKind::Blank => Ok(()),
            LineKind::Interface => {
                self.section = In::Interface;
                Ok(())
            }
            LineKind::Peer => {
                self.section = In::Peer;
                self.seen_peer.clear();
                let mut peer = PeerConfig::new(PublicKey([0; 32]));
                peer.line = Line(self.line);
                self.peers.push((None, peer));
                Ok(())
            }
            LineKind::Quick(key) => self.quick_line(key, line),
            LineKind::Wg => self.wg_line(line),
        };
        if let Err(error) = taken {
            self.errors.push(error);
        }
    }

    /// The error of the line at hand.
    fn error(&self, message: impl Into<String>) -> ConfigError {
        ConfigError { line: self.line, message: message.into() }
    }

    fn quick_line(&mut self, key: &'static str, line: &[u8]) -> Result<(), ConfigError> {
        let (left, mut right) = quick_pair(line);
        if left == right && !line.contains(&b'=') {
            return Err(self.error(format!("expected `{key} = VALUE`")));
        }
        if HOOK_KEYS.contains(&key) {
            right = hook_command(line);
        }
        let text = str::from_utf8(right).map_err(|_| self.error(format!("{key}: expected text in UTF-8")))?;
        if text.contains('\0') {
            return Err(self.error(format!("{key}: there is a NUL byte, expected text")));
        }
        let at = self.line;
        let wrong = |error| value_error(at, key, error, line);
        // wg-quick leaves it to the shell to split the value, at commas and blanks.
        let words = || text.split([',', ' ', '\t']).filter(|word| !word.is_empty());
        let interface = &mut self.config.interface;
        match key {
            "Address" => {
                for word in words() {
                    interface.addresses.push(value::address(word).map_err(wrong)?);
                }
            }
            "DNS" => {
                for word in words() {
                    match value::dns(word).map_err(wrong)? {
                        DnsWord::Server(server) => interface.dns.push(server),
                        DnsWord::SearchDomain(domain) => interface.dns_search.push(domain),
                    }
                }
            }
            "MTU" => {
                interface.mtu = value::mtu(text).map_err(wrong)?;
                self.mtu_line = self.line;
            }
            "Table" => interface.table = value::table(text).map_err(wrong)?,
            "SaveConfig" => interface.save_config = value::truth(text).map_err(wrong)?,
            hook => {
                let hooks = match hook {
                    "PreUp" => &mut interface.pre_up,
                    "PostUp" => &mut interface.post_up,
                    "PreDown" => &mut interface.pre_down,
                    _ => &mut interface.post_down,
                };
                // An empty hook does nothing.
                hooks.extend((!text.is_empty()).then(|| text.to_owned()));
            }
        }
        if matches!(key, "MTU" | "Table" | "SaveConfig") && !self.seen.insert(key) {
            self.warnings.push(Warning::Replaced { line: self.line, key });
        }
        Ok(())
    }

    fn wg_line(&mut self, line: &[u8]) -> Result<(), ConfigError> {
        let cleaned = &wg_cleaned(line);
        let known: &[&'static str] = if self.section == In::Interface { &INTERFACE_KEYS } else { &PEER_KEYS };
        let found = known.iter().find_map(|key| {
            let (left, right) = cleaned.split_at_checked(key.len())?;
            Some((*key, right.strip_prefix(b"=")?)).filter(|_| left.eq_ignore_ascii_case(key.as_bytes()))
        });
        let Some((key, value)) = found else { return self.unknown_line(line, cleaned) };
        if self.section == In::Nothing {
            return Err(self.error(BEFORE_ANY_SECTION));
        }
        if value.is_empty() {
            return Err(self.error(format!("{key}: expected a value; remove the line if there is none")));
        }
        let text = str::from_utf8(value).map_err(|_| self.error(format!("{key}: expected text in UTF-8")))?;
        let at = self.line;
        let wrong = |error| value_error(at, key, error, line);
        let (again, list) = match self.section {
            In::Interface => {
                self.interface_value(key, text).map_err(wrong)?;
                (!self.seen.insert(key), false)
            }
            _ => {
                self.peer_value(key, text).map_err(wrong)?;
                (!self.seen_peer.insert(key), key == "AllowedIPs")
            }
        };
        if again && !list {
            self.warnings.push(Warning::Replaced { line: self.line, key });
        }
        Ok(())
    }

    fn interface_value(&mut self, key: &str, text: &str) -> Result<(), ValueError> {
        let interface = &mut self.config.interface;
        match key {
            "PrivateKey" => interface.private_key = value::private_key(text)?,
            "ListenPort" => interface.listen_port = Some(value::port(text)?),
            _ => interface.fwmark = Some(value::fwmark(text)?),
        }
        Ok(())
    }

    fn peer_value(&mut self, key: &str, text: &str) -> Result<(), ValueError> {
        let Some((public_key, peer)) = self.peers.last_mut() else { return Ok(()) };
        match key {
            "PublicKey" => *public_key = Some(value::public_key(text)?),
            "PresharedKey" => peer.preshared_key = value::preshared_key(text)?,
            "Endpoint" => peer.endpoint = Some(value::endpoint(text)?),
            "PersistentKeepalive" => peer.persistent_keepalive = Some(value::keepalive(text)?),
            _ => {
                for word in text.split(',') {
                    let (prefix, host_bits) = value::allowed_ip(word)?;
                    peer.allowed_ips.push(prefix);
                    if host_bits {
                        self.warnings.push(Warning::HostBits { line: self.line, value: word.to_owned() });
                    }
                }
            }
        }
        Ok(())
    }

    fn unknown_line(&mut self, line: &[u8], cleaned: &[u8]) -> Result<(), ConfigError> {
        let key = cleaned.split(|&byte| byte == b'=').next().unwrap_or_default();
        if let Some(message) = dialect::amnezia(key).filter(|_| self.section == In::Interface) {
            let seen = std::mem::replace(&mut self.saw_amnezia, true);
            return if seen { Ok(()) } else { Err(self.error(message)) };
        }
        if let Some(message) = dialect::of_line(line) {
            return Err(self.error(message));
        }
        Err(if self.section == In::Nothing && !cleaned.starts_with(b"[") {
            self.error(BEFORE_ANY_SECTION)
        } else {
            self.error(self.unknown(cleaned))
        })
    }

    /// What to say of a line that neither program knows. Its value may be a key. A key that stands without a name looks
    /// like one of these lines, too, and so only what is short is quoted.
    fn unknown(&self, cleaned: &[u8]) -> String {
        if cleaned.starts_with(b"[") {
            return format!("{}: expected [Interface] or [Peer]", quoted(cleaned));
        }
        if !cleaned.contains(&b'=') {
            return "expected `KEY = VALUE`, a section or a comment".into();
        }
        let key = cleaned.split(|&byte| byte == b'=').next().unwrap_or_default();
        let is = |known: &&&str| key.eq_ignore_ascii_case(known.as_bytes());
        if let Some(known) = INTERFACE_KEYS.iter().chain(&QUICK_KEYS).find(is) {
            return match self.section {
                In::Interface => {
                    format!("expected `{known}` without blanks in it, in a section headed `[Interface]`")
                }
                _ => format!("{known} belongs in [Interface]"),
            };
        }
        if let Some(known) = PEER_KEYS.iter().find(is) {
            return format!("{known} belongs in [Peer]");
        }
        let here: Vec<&str> = match self.section {
            In::Interface => INTERFACE_KEYS.iter().chain(&QUICK_KEYS).copied().collect(),
            _ => PEER_KEYS.to_vec(),
        };
        let name =
            String::from_utf8_lossy(key.get(..key.len().min(32)).unwrap_or_default()).to_ascii_lowercase();
        let near =
            here.iter().map(|known| (strsim::levenshtein(&name, &known.to_ascii_lowercase()), *known)).min();
        let shown = quoted(key).replace("the value", "the key");
        match near {
            Some((distance, known)) if distance <= 1 + name.len() / 4 => {
                format!("{shown} is not known here: expected {known}?")
            }
            _ => format!("{shown} is not known here: expected one of {}", here.join(", ")),
        }
    }

    fn finish(mut self) -> Result<(Config, Vec<Warning>), Vec<ConfigError>> {
        let mut owners: HashMap<Prefix, PublicKey> = HashMap::new();
        let mut keys = HashSet::new();
        let headers: Vec<usize> = self.peers.iter().map(|(_, peer)| peer.line.0).collect();
        for (at, (key, mut peer)) in self.peers.into_iter().enumerate() {
            let line = peer.line.0;
            let Some(key) = key else {
                // A PublicKey that is there and wrong has been reported.
                let end = headers.get(at + 1).copied().unwrap_or(usize::MAX);
                let is_about_the_key = |error: &ConfigError| error.message.contains("PublicKey");
                if self
                    .errors
                    .iter()
                    .any(|error| (line..end).contains(&error.line) && is_about_the_key(error))
                {
                    continue;
                }
                let message = "a peer without PublicKey: expected one in this section".into();
                self.errors.push(ConfigError { line, message });
                continue;
            };
            if !keys.insert(key) {
                self.warnings.push(Warning::SamePeer { line });
            }
            for prefix in &peer.allowed_ips {
                if owners.insert(*prefix, key).is_some_and(|owner| owner != key) {
                    self.warnings.push(Warning::Taken { line, prefix: prefix.to_string() });
                }
            }
            peer.public_key = key;
            self.config.peers.push(peer);
        }
        if let Some(Mtu::Bytes(mtu)) = self.config.interface.mtu
            && u32::from(mtu) < IPV6_MINIMUM
            && self.config.has_ipv6()
        {
            self.warnings.push(Warning::NoIpv6 { line: self.mtu_line, mtu });
        }
        self.warnings.sort_by_key(Warning::line);
        self.errors.sort_by_key(|error| error.line);
        if self.errors.is_empty() { Ok((self.config, self.warnings)) } else { Err(self.errors) }
    }
}
