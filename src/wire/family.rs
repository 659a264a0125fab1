//! The two versions of IP.

use serde::Serialize;
use std::net::IpAddr;

/// A version of IP.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4 (RFC 791).
    Ipv4,
    /// IPv6 (RFC 8200).
    Ipv6,
}

impl Family {
    /// Both, in the order in which they index an array of two.
    pub const BOTH: [Family; 2] = [Family::Ipv4, Family::Ipv6];

    /// The family of `addr`.
    pub fn of(addr: IpAddr) -> Family {
        if addr.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 }
    }

    /// The one that this is not.
    pub fn other(self) -> Family {
        match self {
            Family::Ipv4 => Family::Ipv6,
            Family::Ipv6 => Family::Ipv4,
        }
    }

    /// Length in bytes of the IP header without options or extension headers.
    #[cfg(any(feature = "cli", feature = "internals"))]
    pub fn header_len(self) -> usize {
        match self {
            Family::Ipv4 => crate::wire::ip::V4_HEADER_LEN,
            Family::Ipv6 => crate::wire::ip::V6_HEADER_LEN,
        }
    }
}
