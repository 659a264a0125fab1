//! What a simulated host is like.

use crate::offload::coalesce::CoalesceOptions;
use std::net::IpAddr;

/// The properties of a host.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// Number of workers.
    pub workers: u8,
    /// Its outer addresses.
    pub addresses: Vec<IpAddr>,
    /// The interface's MTU in bytes.
    pub mtu: u32,
    /// Which super-packets its TUN device accepts.
    pub coalesce: CoalesceOptions,
    /// Whether its sockets have UDP_GRO.
    pub gro: bool,
    /// Whether its sockets have UDP_SEGMENT.
    pub gso: bool,
    /// Whether datagrams reach the worker that their receiver index names; otherwise any worker gets them.
    pub steer: bool,
    /// How often, in thousandths, a peer is begun or ceased to be assisted wherever chance may decide on it. 0: never.
    pub assist: u32,
}

impl Default for HostConfig {
    fn default() -> HostConfig {
        HostConfig {
            workers: 2,
            addresses: Vec::new(),
            mtu: 1420,
            coalesce: CoalesceOptions { tcp: true, udp: true, tunnels: true },
            gro: true,
            gso: true,
            steer: true,
            assist: 0,
        }
    }
}
