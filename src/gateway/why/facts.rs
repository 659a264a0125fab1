//! What is known when a diagnosis is made. Whoever gathers it judges nothing.

use crate::device::facts::DeviceFacts;
use serde::Serialize;
use std::net::{IpAddr, SocketAddr};

/// Everything that is known of a peer of a running tunnel, and of the host as far as that matters to it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Facts {
    /// The tunnel's interface.
    pub interface: String,
    /// The peer's public key in Base64.
    pub key: String,
    /// The peer's name in the file.
    pub name: Option<String>,
    /// What the device knows.
    pub device: DeviceFacts,
    /// Whether the file has the peer. `None` where no file can be read.
    pub in_file: Option<bool>,
    /// The peer's endpoint as the file has it, where that is a name.
    pub endpoint_name: Option<EndpointName>,
    /// How the tunnel's own packets get to the peer's endpoint, if one is known.
    pub route: Option<RouteFacts>,
    /// The interface's MTU in bytes. `None` where it is not in this network namespace.
    pub mtu: Option<u32>,
    /// Whether anything has ever arrived at the UDP port, whoever sent it.
    pub anything_arrived: bool,
    /// A firewall of this host that drops what comes to the UDP port.
    pub input_blocked: Option<BlockedChain>,
    /// A firewall of this host that drops what the tunnel's peers send to others.
    pub forward_blocked: Option<BlockedChain>,
    /// Whether nft(8) is installed.
    pub has_nft: bool,
    /// What was seen to come out of the tunnel from the peer, and to go back.
    pub forwarding: Option<ForwardingFacts>,
    /// Which sizes of packets the peer answered.
    pub sizes: Option<SizeFacts>,
}

/// An endpoint that is given by name.
#[derive(Clone, Debug, Serialize)]
pub struct EndpointName {
    /// The name and the port, as the file has them.
    pub text: String,
    /// What the resolver says of the name.
    pub resolved: ResolvedName,
}

/// What the resolver says of a name.
#[derive(Clone, Debug, Serialize)]
pub enum ResolvedName {
    /// This is its address.
    At(SocketAddr),
    /// It has none, for this reason.
    None(String),
}

/// The route of the tunnel's own packets to an endpoint.
#[derive(Clone, Debug, Serialize)]
pub enum RouteFacts {
    /// They leave by this interface.
    By(String),
    /// There is no route, and this is what the kernel says.
    None(String),
}

/// A firewall's chain that drops packets.
#[derive(Clone, Debug, Serialize)]
pub struct BlockedChain {
    /// What it drops.
    pub found: String,
    /// How to have it let them pass.
    pub remedy: String,
}

/// What was seen of packets that the peer sends to others than this host.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ForwardingFacts {
    /// Each conversation of the peer's with an address that is not this host's.
    pub conversations: Vec<Conversation>,
}

/// Packets between an address of the peer's and one that is not this host's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Conversation {
    /// The address of the peer's.
    pub source: IpAddr,
    /// The other address.
    pub destination: IpAddr,
    /// Number of packets that came out of the tunnel.
    pub sent: u32,
    /// Number of packets that went back into the tunnel.
    pub returned: u32,
    /// The interface by which this host would send them on. `None` where it has no route.
    pub by: Option<String>,
    /// Whether this host forwards packets of this family.
    pub forwards: bool,
    /// Whether a rule translates the source addresses of packets that this host forwards.
    pub translates: bool,
}

impl Conversation {
    /// A conversation of which nothing was seen yet.
    pub(super) fn between(source: IpAddr, destination: IpAddr) -> Conversation {
        Conversation {
            source,
            destination,
            sent: 0,
            returned: 0,
            by: None,
            forwards: false,
            translates: false,
        }
    }
}

/// Which sizes of packets the peer answered, all inside the tunnel and in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SizeFacts {
    /// The address that was asked.
    pub address: IpAddr,
    /// The smallest size that was tried, which the peer answered.
    pub small: u32,
    /// The largest size that the peer answered.
    pub largest: u32,
    /// The interface's MTU, which was tried, too.
    pub mtu: u32,
}
