//! Changes in place: whatever is not changed keeps its bytes, comments and order included.

use super::document::{LineKind, hook_command, is_space, wg_cleaned};
use super::print::join;
use super::{Address, Config, ConfigError, Document, HostPort, Mtu, PeerConfig};
use crate::crypto::x25519::{PrivateKey, PublicKey, SharedSecret};
use crate::gateway::control::{DeviceState, PeerState};
use crate::routing::Prefix;
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use zeroize::Zeroizing;

/// What a tunnel is now, to be written to its file.
#[derive(Clone, Debug)]
pub struct Runtime<'a> {
    /// The device's keys, port, mark and peers.
    pub device: &'a DeviceState,
    /// The interface's addresses. `None` leaves the file's.
    pub addresses: Option<&'a [Address]>,
    /// The interface's MTU in bytes. It is written only where the file has a number for it.
    pub mtu: Option<u16>,
}

/// A key's new value, zeroized whether it is secret or not.
type Value = Zeroizing<String>;

fn value(text: impl ToString) -> Value {
    Zeroizing::new(text.to_string())
}

impl Document {
    /// Adds a `[Peer]` section at the end, with an empty line before it.
    pub fn add_peer(&mut self, peer: &PeerConfig) {
        let newline = self.newline();
        if let Some(last) = self.lines.last_mut()
            && !last.ends_with(b"\n")
        {
            last.extend_from_slice(newline);
        }
        if self.lines.last().is_some_and(|line| !wg_cleaned(line).is_empty() || line.contains(&b'#')) {
            self.lines.push(Zeroizing::new(newline.to_vec()));
        }
        for line in peer.print().lines() {
            self.lines.push(self.line_of(line));
        }
    }

    /// Writes what the tunnel is now. Values that are right already, comments and order stay. Peers that are gone go,
    /// together with their own comments; new ones come last. An endpoint given by name stays a name.
    ///
    /// # Errors
    ///
    /// All that is wrong with the file, where it cannot be understood; then nothing was changed.
    pub fn save(&mut self, runtime: &Runtime<'_>) -> Result<(), Vec<ConfigError>> {
        let (config, _) = self.parse()?;
        let current: HashMap<PublicKey, &PeerState> =
            runtime.device.peers.iter().map(|peer| (peer.public_key, peer)).collect();
        let sections: Vec<_> = self.sections().into_iter().filter(|section| !section.interface).collect();
        let mut kept = BTreeSet::new();
        // From the last to the first, so that line numbers above stay good. Of a peer's several sections the last counts.
        for (section, peer) in sections.iter().zip(&config.peers).rev() {
            match current.get(&peer.public_key) {
                Some(state) if kept.insert(peer.public_key) => {
                    self.save_peer(section.lines.clone(), peer, state)
                }
                _ => drop(self.lines.drain(section.lines.clone())),
            }
        }
        for state in runtime.device.peers.iter().filter(|peer| !kept.contains(&peer.public_key)) {
            self.add_peer(&as_section(state));
        }
        self.save_interface(&config, runtime);
        for peer in &config.peers {
            let now = current.get(&peer.public_key).map(|state| state.limits.settings);
            if let Some(limits) = now.filter(|limits| *limits != peer.limits) {
                self.limit_peer(&peer.public_key, &limits);
            }
        }
        Ok(())
    }

    fn save_peer(&mut self, mut section: Range<usize>, peer: &PeerConfig, state: &PeerState) {
        if peer.preshared_key != state.preshared_key {
            section =
                self.set(section, "PresharedKey", state.preshared_key.as_ref().map(SharedSecret::to_base64));
        }
        let has: BTreeSet<Prefix> = peer.allowed_ips.iter().copied().collect();
        if has != state.allowed_ips.iter().copied().collect() {
            let list = (!state.allowed_ips.is_empty()).then(|| value(join(&state.allowed_ips)));
            section = self.set(section, "AllowedIPs", list);
        }
        let named = peer.endpoint.as_ref().is_some_and(|endpoint| endpoint.address().is_none());
        let stands = |addr| peer.endpoint.as_ref().is_some_and(|endpoint| endpoint.is_at(addr));
        if let Some(addr) = state.endpoint.filter(|&addr| !named && !stands(addr)) {
            section = self.set(section, "Endpoint", Some(value(HostPort::from(addr))));
        }
        if peer.persistent_keepalive.unwrap_or(0) != state.persistent_keepalive {
            let seconds = Some(state.persistent_keepalive).filter(|&seconds| seconds != 0);
            self.set(section, "PersistentKeepalive", seconds.map(value));
        }
    }

    fn save_interface(&mut self, config: &Config, runtime: &Runtime<'_>) {
        let (interface, device) = (&config.interface, runtime.device);
        if interface.private_key != device.private_key {
            self.set_interface("PrivateKey", device.private_key.as_ref().map(PrivateKey::to_base64));
        }
        if interface.listen_port.unwrap_or(0) != device.listen_port {
            self.set_interface("ListenPort", Some(device.listen_port).filter(|&port| port != 0).map(value));
        }
        if interface.fwmark.unwrap_or(0) != device.fwmark {
            let mark = Some(device.fwmark).filter(|&mark| mark != 0);
            self.set_interface("FwMark", mark.map(|mark| value(format!("0x{mark:x}"))));
        }
        if let Some(addresses) = runtime.addresses {
            let has: BTreeSet<_> = interface.addresses.iter().collect();
            if has != addresses.iter().collect() {
                self.set_interface("Address", (!addresses.is_empty()).then(|| value(join(addresses))));
            }
        }
        if let (Some(Mtu::Bytes(stands)), Some(mtu)) = (interface.mtu, runtime.mtu)
            && stands != mtu
        {
            self.set_interface("MTU", Some(value(mtu)));
        }
    }

    /// Sets the key where it stands last, or else in the first `[Interface]` section. That is made if there is none.
    fn set_interface(&mut self, key: &'static str, text: Option<Value>) {
        let mut sections: Vec<_> = self.sections().into_iter().filter(|section| section.interface).collect();
        if sections.is_empty() {
            if text.is_none() {
                return;
            }
            let header = self.line_of("[Interface]");
            self.lines.insert(0, header);
            sections = self.sections().into_iter().filter(|section| section.interface).collect();
        }
        let holding: Vec<_> =
            sections.iter().filter(|section| !self.places(&section.lines, key).is_empty()).cloned().collect();
        match holding.split_last() {
            None => {
                if let Some(first) = sections.first() {
                    self.set(first.lines.clone(), key, text);
                }
            }
            Some((last, earlier)) => {
                self.set(last.lines.clone(), key, text);
                for section in earlier.iter().rev() {
                    self.set(section.lines.clone(), key, None);
                }
            }
        }
    }

    /// Adds a hook to the first `[Interface]` section, behind its values, unless the file has it already.
    pub fn add_hook(&mut self, key: &'static str, command: &str) {
        let has = |(line, kind): (&[u8], LineKind)| {
            matches!(kind, LineKind::Quick(quick) if quick == key) && hook_command(line) == command.as_bytes()
        };
        if self.kinds().any(has) {
            return;
        }
        let line = self.line_of(&[key, " = ", command].concat());
        if let Some(section) = self.sections().into_iter().find(|section| section.interface) {
            self.insert_below_values(&section.lines, line);
        }
    }

    /// Puts a line below the last value of a section.
    fn insert_below_values(&mut self, section: &Range<usize>, new: Zeroizing<Vec<u8>>) {
        let is_value =
            |(at, (_, kind)): &(usize, (&[u8], LineKind))| section.contains(at) && *kind != LineKind::Blank;
        let below = self.kinds().enumerate().filter(is_value).last().map_or(section.start, |(at, _)| at) + 1;
        let newline = self.newline();
        if let Some(line) = self.lines.get_mut(below - 1)
            && !line.ends_with(b"\n")
        {
            line.extend_from_slice(newline);
        }
        self.lines.insert(below, new);
    }

    /// The lines of a section that set `key`.
    fn places(&self, section: &Range<usize>, key: &'static str) -> Vec<usize> {
        let sets = |line: &[u8], kind: LineKind| match kind {
            LineKind::Quick(quick) => quick == key,
            LineKind::Wg => wg_cleaned(line).split_at_checked(key.len()).is_some_and(|(left, right)| {
                left.eq_ignore_ascii_case(key.as_bytes()) && right.starts_with(b"=")
            }),
            _ => false,
        };
        let lines = self.kinds().enumerate().filter(|(at, _)| section.contains(at));
        lines.filter(|(_, (line, kind))| sets(line, *kind)).map(|(at, _)| at).collect()
    }

    /// Sets or removes a key of a section. The last line that sets the key takes the value, and its other lines go. Where
    /// there is none, a line is added below the section's last value. Returns where the section is then.
    fn set(&mut self, section: Range<usize>, key: &'static str, text: Option<Value>) -> Range<usize> {
        let mut places = self.places(&section, key);
        let mut end = section.end;
        match (text, places.pop()) {
            (Some(text), Some(last)) => {
                if let Some(line) = self.lines.get_mut(last) {
                    *line = with_value(line, &text);
                }
            }
            (Some(text), None) => {
                let line = self.line_of(&Zeroizing::new([key, " = ", &text].concat()));
                self.insert_below_values(&section, line);
                end += 1;
            }
            (None, Some(last)) => places.push(last),
            (None, None) => {}
        }
        for at in places.into_iter().rev() {
            self.lines.remove(at);
            end -= 1;
        }
        section.start..end
    }

    pub(super) fn line_of(&self, text: &str) -> Zeroizing<Vec<u8>> {
        Zeroizing::new([text.as_bytes(), self.newline()].concat())
    }

    /// The line end of the file's first line.
    pub(super) fn newline(&self) -> &'static [u8] {
        if self.lines.first().is_some_and(|line| line.ends_with(b"\r\n")) { b"\r\n" } else { b"\n" }
    }
}

/// The line with another value. Its key, its blanks and a comment at its end stay.
fn with_value(line: &[u8], text: &str) -> Zeroizing<Vec<u8>> {
    let code = line.iter().position(|&byte| byte == b'#').unwrap_or(line.len());
    let equals = line.iter().position(|&byte| byte == b'=').map_or(code, |at| at + 1);
    let filled = |at: &usize| line.get(*at).is_some_and(|&byte| !is_space(byte));
    let start = (equals..code).find(filled).unwrap_or(equals);
    let end = (start..code).rfind(filled).map_or(start, |at| at + 1);
    let parts = [line.get(..start), Some(text.as_bytes()), line.get(end..)];
    Zeroizing::new(parts.into_iter().flatten().flatten().copied().collect())
}

/// A section for a peer that only the device knows.
fn as_section(state: &PeerState) -> PeerConfig {
    PeerConfig {
        preshared_key: state.preshared_key.clone(),
        allowed_ips: state.allowed_ips.clone(),
        endpoint: state.endpoint.map(HostPort::from),
        persistent_keepalive: Some(state.persistent_keepalive).filter(|&seconds| seconds != 0),
        limits: state.limits.settings,
        ..PeerConfig::new(state.public_key)
    }
}
