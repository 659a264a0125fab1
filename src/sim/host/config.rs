//! What a simulated host is like.

use crate::offload::coalesce::CoalesceOptions;
use crate::sim::io::IoFaults;
use std::net::IpAddr;
use std::time::Duration;

/// What goes wrong within a host.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct HostFaults {
    /// Chance in thousandths that a datagram reaches another worker than its session's owner.
    pub missteer: u32,
    /// Most time that a control takes to a worker. Those for one worker keep their order, those for two do not.
    pub late_controls: Duration,
    /// Faults of the workers' sockets and TUN queues.
    pub io: IoFaults,
}

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
    /// Whether its queues have little room, which makes a host in a fraction of the time.
    pub narrow: bool,
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
            narrow: false,
        }
    }
}
