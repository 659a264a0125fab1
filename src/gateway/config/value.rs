//! The values that may stand after a key. An error says what was expected. It quotes the value unless that may be
//! secret.

use super::document::quoted;
use super::{Address, DnsServer, HostPort, Mtu, Table, names};
use crate::crypto::x25519::{PrivateKey, PublicKey, SharedSecret};
use crate::routing::Prefix;
use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

/// Smallest and largest MTU of a TUN device in bytes (`ETH_MIN_MTU`; IP's longest packet).
const MTUS: std::ops::RangeInclusive<u16> = 68..=u16::MAX;

/// A value that is not what stands after its key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ValueError {
    /// The value in quotes, unless it may be secret.
    found: Option<Cow<'static, str>>,
    /// What was expected instead.
    expected: Cow<'static, str>,
}

impl fmt::Display for ValueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(found) = &self.found {
            write!(f, "{found}: ")?;
        }
        write!(f, "expected {}", self.expected)
    }
}

impl std::error::Error for ValueError {}

type Result<T> = std::result::Result<T, ValueError>;

fn expected(value: &str, what: impl Into<Cow<'static, str>>) -> ValueError {
    ValueError { found: Some(quoted(value.as_bytes())), expected: what.into() }
}

/// The error of a value that may be secret.
fn expected_key(what: &'static str) -> ValueError {
    ValueError { found: None, expected: what.into() }
}

/// A number of digits only. `from_str` would take a sign as well.
fn decimal<T: FromStr>(text: &str) -> Option<T> {
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

const KEY: &str = "a key: 44 characters of base64, as `ringtun genkey` and `ringtun pubkey` print";

/// Reads a private key. All zeros stand for none.
pub(in crate::gateway) fn private_key(value: &str) -> Result<Option<PrivateKey>> {
    let secret = SharedSecret::from_base64(value).ok_or_else(|| expected_key(KEY))?;
    let none = secret == SharedSecret([0; 32]);
    Ok(if none { None } else { PrivateKey::from_base64(value) })
}

pub(in crate::gateway) fn public_key(value: &str) -> Result<PublicKey> {
    PublicKey::from_base64(value).ok_or_else(|| expected_key(KEY))
}

/// Reads a preshared key. All zeros stand for none.
pub(in crate::gateway) fn preshared_key(value: &str) -> Result<Option<SharedSecret>> {
    let what = "a preshared key: 44 characters of base64, as `ringtun genpsk` prints";
    let secret = SharedSecret::from_base64(value).ok_or_else(|| expected_key(what))?;
    Ok(if secret == SharedSecret([0; 32]) { None } else { Some(secret) })
}

pub(in crate::gateway) fn port(value: &str) -> Result<u16> {
    let port = decimal(value).or_else(|| names::service_port(value));
    port.ok_or_else(|| expected(value, "a port from 0 to 65535, or a UDP service's name"))
}

pub(in crate::gateway) fn fwmark(value: &str) -> Result<u32> {
    if value.eq_ignore_ascii_case("off") {
        return Ok(0);
    }
    let mark = match value.strip_prefix("0x") {
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            u32::from_str_radix(digits, 16).ok()
        }
        Some(_) => None,
        None => decimal(value),
    };
    mark.ok_or_else(|| expected(value, "`off`, a number from 0 to 4294967295, or one from 0x0 to 0xffffffff"))
}

pub(in crate::gateway) fn keepalive(value: &str) -> Result<u16> {
    if value.eq_ignore_ascii_case("off") {
        return Ok(0);
    }
    decimal(value).ok_or_else(|| expected(value, "`off` or seconds from 0 to 65535"))
}

/// Reads a prefix, and says whether bits beyond its length were set.
pub(in crate::gateway) fn allowed_ip(value: &str) -> Result<(Prefix, bool)> {
    let (addr, len) = value.split_once('/').map_or((value, None), |(addr, len)| (addr, Some(len)));
    let what = "ADDRESS or ADDRESS/LENGTH such as 192.168.96.2/32 or fd00::/64";
    let addr: IpAddr = addr.parse().map_err(|_| expected(value, what))?;
    let prefix = match len {
        None => Some(Prefix::from(addr)),
        Some(len) => decimal(len).and_then(|len| Prefix::new(addr, len)),
    };
    let prefix = prefix.ok_or_else(|| {
        expected(value, if addr.is_ipv4() { "a length from 0 to 32" } else { "a length from 0 to 128" })
    })?;
    Ok((prefix, prefix.addr() != addr))
}

pub(in crate::gateway) fn endpoint(value: &str) -> Result<HostPort> {
    let what = "HOST:PORT, with an IPv6 address in brackets: [2001:db8::1]:51820";
    let wrong = || expected(value, what);
    let (host, port_text) = match value.strip_prefix('[') {
        Some(rest) => rest.split_once(']').and_then(|(host, rest)| Some((host, rest.strip_prefix(':')?))),
        None => value.rsplit_once(':'),
    }
    .ok_or_else(wrong)?;
    let address = host.split('%').next().unwrap_or(host);
    let literal = address.contains(':');
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_');
    let scope = host.get(address.len()..).unwrap_or_default();
    let good = match literal {
        true => address.parse::<IpAddr>().is_ok() && scope != "%" && scope.chars().skip(1).all(plain),
        false => !host.is_empty() && host.chars().all(plain),
    };
    if !good || port_text.is_empty() {
        return Err(wrong());
    }
    Ok(HostPort { host: host.to_owned(), port: port(port_text)? })
}

/// Reads an address with its network as ip(8) does: a length follows, or for IPv4 a netmask. Missing octets of an IPv4
/// address are zero.
pub(in crate::gateway) fn address(value: &str) -> Result<Address> {
    let wrong = || expected(value, "ADDRESS or ADDRESS/LENGTH such as 192.168.96.1/24 or fd00::1/64");
    let (addr, len) = value.split_once('/').map_or((value, None), |(addr, len)| (addr, Some(len)));
    let addr = addr.parse().ok().or_else(|| short_ipv4(addr).map(IpAddr::V4)).ok_or_else(wrong)?;
    let most = if addr.is_ipv4() { 32 } else { 128 };
    let len = match len {
        None => most,
        Some(len) => decimal(len).or_else(|| netmask(len).filter(|_| addr.is_ipv4())).ok_or_else(wrong)?,
    };
    if len > most {
        return Err(expected(value, format!("a length from 0 to {most}")));
    }
    Ok(Address { addr, len })
}

fn short_ipv4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        match parts.next() {
            // ip(8) would read a leading zero as octal.
            Some(part) if part.len() > 1 && part.starts_with('0') => return None,
            Some(part) => *octet = decimal(part)?,
            None => break,
        }
    }
    parts.next().is_none().then(|| octets.into())
}

/// The length of a contiguous netmask such as 255.255.255.0.
pub(in crate::gateway) fn netmask(text: &str) -> Option<u8> {
    let mask = text.parse::<Ipv4Addr>().ok()?.to_bits();
    (mask.count_ones() == mask.leading_ones()).then(|| mask.leading_ones() as u8)
}

/// One word under `DNS`.
pub(in crate::gateway) enum DnsWord {
    Server(DnsServer),
    SearchDomain(String),
}

/// Reads one word under `DNS`. As for wg-quick, what looks like an address is a server, and the rest are search domains.
pub(in crate::gateway) fn dns(value: &str) -> Result<DnsWord> {
    let server = value.contains(':') || value.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    if !server {
        return Ok(DnsWord::SearchDomain(value.to_owned()));
    }
    let (addr, scope) = value.split_once('%').map_or((value, None), |(addr, scope)| (addr, Some(scope)));
    match addr.parse() {
        Ok(addr) if scope != Some("") => {
            Ok(DnsWord::Server(DnsServer { addr, scope: scope.map(str::to_owned) }))
        }
        _ => Err(expected(value, "a resolver's IP address, or a search domain")),
    }
}

/// Reads an MTU. As for wg-quick, an empty value stands for none.
pub(in crate::gateway) fn mtu(value: &str) -> Result<Option<Mtu>> {
    if value.is_empty() {
        return Ok(None);
    }
    if value.eq_ignore_ascii_case("exact") {
        return Ok(Some(Mtu::Exact));
    }
    let bytes = decimal(value).filter(|bytes| MTUS.contains(bytes));
    bytes
        .map(|bytes| Some(Mtu::Bytes(bytes)))
        .ok_or_else(|| expected(value, "bytes from 68 to 65535, or `exact`"))
}

/// Reads a table. As for wg-quick, an empty value stands for `auto`.
pub(in crate::gateway) fn table(value: &str) -> Result<Table> {
    match value {
        "" | "auto" => return Ok(Table::Auto),
        "off" => return Ok(Table::Off),
        _ => {}
    }
    let hex = value.strip_prefix("0x").and_then(|digits| u32::from_str_radix(digits, 16).ok());
    let number = decimal(value).or(hex).filter(|&number| number != 0).or_else(|| names::table_number(value));
    number.map(Table::Number).ok_or_else(|| {
        expected(value, "`auto`, `off`, a routing table's number, or its name in /etc/iproute2/rt_tables")
    })
}

pub(in crate::gateway) fn truth(value: &str) -> Result<bool> {
    match value {
        _ if value.eq_ignore_ascii_case("true") => Ok(true),
        _ if value.eq_ignore_ascii_case("false") => Ok(false),
        _ => Err(expected(value, "`true` or `false`")),
    }
}
