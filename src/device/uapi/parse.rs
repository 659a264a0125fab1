//! Parses a `set=1` operation, whole, before anything of it is done.

use super::{AllowedIp, EINVAL, EPROTO, PeerRequest, SetRequest, UapiError};
use crate::crypto::x25519::{PrivateKey, PublicKey, SharedSecret};
use crate::device::More;
use crate::routing::Prefix;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::str::FromStr;
use zeroize::{Zeroize, Zeroizing};

/// The error number and text of a wrong line, before the line's number is known.
type What = (i32, String);

/// A `set=1` operation that is being parsed.
pub struct SetParser {
    /// The operation's lines, with the first and without the empty one.
    body: Zeroizing<Vec<u8>>,
    /// Where the next line begins, in bytes. `line` is its number.
    at: usize,
    line: usize,
    request: SetRequest,
}

impl SetParser {
    /// Makes a parser for the lines of one operation, with `set=1` first.
    pub fn new(body: Zeroizing<Vec<u8>>) -> SetParser {
        SetParser { body, at: 0, line: 1, request: SetRequest::default() }
    }

    /// Parses until the end (`Some`) or until `more` says that there is no time. `interface` is asked for the index of an
    /// interface that a scope identifier names (`[fe80::1%eth0]:51820`).
    pub fn go_on(
        &mut self,
        interface: &mut dyn FnMut(&str) -> Option<u32>,
        more: More<'_>,
    ) -> Option<Result<SetRequest, UapiError>> {
        loop {
            let rest = self.body.get(self.at..).unwrap_or_default();
            let end = rest.iter().position(|&byte| byte == b'\n');
            let line = &rest[..end.unwrap_or(rest.len())];
            let result = match (self.line, line) {
                (1, b"set=1") => Ok(()),
                (1, _) => Err((EINVAL, "the first line must be set=1".to_owned())),
                (_, line) => self.request.line(line, interface),
            };
            if let Err((errno, what)) = result {
                return Some(Err(UapiError { errno, line: self.line, what }));
            }
            self.at += line.len() + 1;
            self.line += 1;
            // A newline at the very end begins no line.
            if end.is_none() || self.at >= self.body.len() {
                return Some(Ok(std::mem::take(&mut self.request)));
            }
            if !more() {
                return None;
            }
        }
    }
}

impl SetRequest {
    /// Parses the lines of one operation at once, with `set=1` first. Scope identifiers of endpoints must be numbers.
    ///
    /// # Errors
    ///
    /// Where a line is not understood.
    #[cfg(feature = "internals")]
    pub fn parse(body: &[u8]) -> Result<SetRequest, UapiError> {
        let mut parser = SetParser::new(Zeroizing::new(body.to_vec()));
        loop {
            if let Some(parsed) = parser.go_on(&mut |_| None, &mut || true) {
                return parsed;
            }
        }
    }

    fn line(&mut self, line: &[u8], interface: &mut dyn FnMut(&str) -> Option<u32>) -> Result<(), What> {
        let not_a_pair = || (EPROTO, "not key=value".to_owned());
        let text = str::from_utf8(line).map_err(|_| not_a_pair())?;
        let (key, value) = text.split_once('=').ok_or_else(not_a_pair)?;
        if key == "public_key" {
            self.peers.push(PeerRequest::new(PublicKey(*key32(key, value)?)));
            return Ok(());
        }
        match self.peers.last_mut() {
            Some(peer) => peer.line(key, value, interface),
            None => self.device_line(key, value),
        }
    }

    fn device_line(&mut self, key: &str, value: &str) -> Result<(), What> {
        match key {
            "private_key" => {
                let bytes = key32(key, value)?;
                let some = bytes.iter().any(|&byte| byte != 0);
                self.private_key = Some(some.then(|| PrivateKey::from_bytes(*bytes)));
            }
            "listen_port" => self.listen_port = Some(number(key, value)?),
            "fwmark" => self.fwmark = Some(number(key, value)?),
            "replace_peers" => {
                only("true", key, value)?;
                self.replace_peers = true;
            }
            _ => return Err((EINVAL, format!("no key {:?} before the first public_key", clip(key)))),
        }
        Ok(())
    }
}

impl PeerRequest {
    fn line(
        &mut self,
        key: &str,
        value: &str,
        interface: &mut dyn FnMut(&str) -> Option<u32>,
    ) -> Result<(), What> {
        match key {
            "preshared_key" => self.preshared_key = Some(Box::new(SharedSecret(*key32(key, value)?))),
            "endpoint" => self.endpoint = Some(endpoint(value, interface).ok_or_else(|| bad(key, value))?),
            "persistent_keepalive_interval" => self.persistent_keepalive = Some(number(key, value)?),
            "ringtun_limits" => self.limits = Some(Box::new(value.parse().map_err(|_| bad(key, value))?)),
            "ringtun_memory" => self.memory = Some(Box::new(value.parse().map_err(|_| bad(key, value))?)),
            "allowed_ip" => self.allowed_ips.push(allowed_ip(value).ok_or_else(|| bad(key, value))?),
            "replace_allowed_ips" => {
                only("true", key, value)?;
                // It also replaces what stands before it in the request.
                self.allowed_ips.clear();
                self.replace_allowed_ips = true;
            }
            "remove" => {
                only("true", key, value)?;
                self.remove = true;
            }
            "update_only" => {
                only("true", key, value)?;
                self.update_only = true;
            }
            "protocol_version" => only("1", key, value)?,
            _ => return Err((EINVAL, format!("no key {:?} of a peer", clip(key)))),
        }
        Ok(())
    }
}

fn bad(key: &str, value: &str) -> What {
    (EINVAL, format!("{key}: {:?} makes no sense", clip(value)))
}

/// The beginning of a text that may be megabytes long.
fn clip(text: &str) -> &str {
    text.char_indices().nth(80).and_then(|(end, _)| text.get(..end)).unwrap_or(text)
}

fn only(expected: &str, key: &str, value: &str) -> Result<(), What> {
    if value == expected { Ok(()) } else { Err((EINVAL, format!("{key} must be {expected}"))) }
}

/// Reads the lines of a question that names peers, of which the first has number `first`.
pub(super) fn named_peers(lines: &[u8], first: usize) -> Result<Vec<PublicKey>, UapiError> {
    let name = |line: &[u8]| match str::from_utf8(line).ok().and_then(|line| line.split_once('=')) {
        Some(("public_key", value)) => key32("public_key", value).map(|bytes| PublicKey(*bytes)),
        Some(_) => Err((EINVAL, "a question has no such line".to_owned())),
        None => Err((EPROTO, "not key=value".to_owned())),
    };
    let lines = lines.strip_suffix(b"\n").unwrap_or(lines).split(|&byte| byte == b'\n');
    let numbered = lines.zip(first..);
    numbered.map(|(at, line)| name(at).map_err(|(errno, what)| UapiError { errno, line, what })).collect()
}

/// Reads 32 bytes in hexadecimal. The error does not quote the value, which may be a secret with a typing error.
fn key32(key: &str, value: &str) -> Result<Zeroizing<[u8; 32]>, What> {
    let digit = |byte: u8| (byte as char).to_digit(16).map(|digit| digit as u8);
    let mut bytes = Zeroizing::new([0; 32]);
    let mut pairs = value.as_bytes().chunks_exact(2);
    for byte in bytes.iter_mut() {
        let value = match pairs.next() {
            Some(&[high, low]) => digit(high).zip(digit(low)).map(|(high, low)| high << 4 | low),
            _ => None,
        };
        *byte = value.ok_or_else(|| (EINVAL, format!("{key} must be 64 hexadecimal digits")))?;
    }
    if value.len() != 64 {
        bytes.zeroize();
        return Err((EINVAL, format!("{key} must be 64 hexadecimal digits")));
    }
    Ok(bytes)
}

/// Reads a decimal number without sign that fits the type.
fn number<T: FromStr>(key: &str, value: &str) -> Result<T, What> {
    decimal(value).ok_or_else(|| bad(key, value))
}

fn decimal<T: FromStr>(value: &str) -> Option<T> {
    // `from_str` would accept a plus sign.
    value.bytes().all(|byte| byte.is_ascii_digit()).then(|| value.parse().ok())?
}

/// Reads `IP/len`, with a `-` before it to take the prefix away.
fn allowed_ip(value: &str) -> Option<AllowedIp> {
    let (value, remove) = value.strip_prefix('-').map_or((value, false), |value| (value, true));
    let (addr, len) = value.split_once('/')?;
    let prefix = Prefix::new(addr.parse::<IpAddr>().ok()?, decimal(len)?)?;
    Some(AllowedIp { prefix, remove })
}

/// Reads `IPv4:port`, `[IPv6]:port` or `[IPv6%scope]:port`.
fn endpoint(value: &str, interface: &mut dyn FnMut(&str) -> Option<u32>) -> Option<SocketAddr> {
    let Some((addr, rest)) = value.split_once('%') else { return value.parse().ok() };
    let (scope, port) = rest.split_once("]:")?;
    let addr: Ipv6Addr = addr.strip_prefix('[')?.parse().ok()?;
    let scope = decimal(scope).or_else(|| interface(scope))?;
    Some(SocketAddrV6::new(addr, decimal(port)?, 0, scope).into())
}
