//! A prefix of addresses, and its text.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// An address prefix, whose host bits are zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Prefix {
    addr: IpAddr,
    len: u8,
}

#[allow(clippy::len_without_is_empty)] // a prefix length, not a container's
impl Prefix {
    /// Makes a prefix and clears the host bits. `None` where `len` exceeds the 32 or 128 bits of the address.
    pub fn new(addr: IpAddr, len: u8) -> Option<Prefix> {
        let addr = match addr {
            IpAddr::V4(v4) if len <= 32 => {
                let mask = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask))
            }
            IpAddr::V6(v6) if len <= 128 => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask(len))),
            _ => return None,
        };
        Some(Prefix { addr, len })
    }

    /// The network address.
    pub fn addr(&self) -> IpAddr {
        self.addr
    }

    /// The prefix length in bits.
    pub fn len(&self) -> u8 {
        self.len
    }

    /// Whether `addr` lies in the prefix. An address of the other family never does.
    pub fn contains(&self, addr: IpAddr) -> bool {
        self.addr.is_ipv4() == addr.is_ipv4() && (key(self.addr) ^ key(addr)) & mask(self.len) == 0
    }
}

/// Makes the prefix of one host: the address at full length.
impl From<IpAddr> for Prefix {
    fn from(addr: IpAddr) -> Prefix {
        Prefix { addr, len: if addr.is_ipv4() { 32 } else { 128 } }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.len)
    }
}

/// The error of a text that is not `address` or `address/length`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ParsePrefixError;

impl fmt::Display for ParsePrefixError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not an address, or a length that its family does not have")
    }
}

impl std::error::Error for ParsePrefixError {}

/// Reads `10.0.0.0/8`. A bare address is one host, and host bits are cleared, as wg(8) does.
impl FromStr for Prefix {
    type Err = ParsePrefixError;

    fn from_str(text: &str) -> Result<Prefix, ParsePrefixError> {
        let Some((addr, len)) = text.split_once('/') else {
            return text.parse::<IpAddr>().map(Prefix::from).map_err(|_| ParsePrefixError);
        };
        let addr = addr.parse().map_err(|_| ParsePrefixError)?;
        // `u8::from_str` would accept a sign.
        if !len.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(ParsePrefixError);
        }
        Prefix::new(addr, len.parse().map_err(|_| ParsePrefixError)?).ok_or(ParsePrefixError)
    }
}

/// The address as a bit string, whose first bit is the topmost, so that one tree serves both families.
pub(super) fn key(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// A key whose first `len` bits are set.
pub(super) fn mask(len: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0)
}
