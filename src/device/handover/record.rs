//! The records of a state. A change of any of them is another format ([`super::FORMAT`]).

use crate::crypto::secret::SecretBytes;
use crate::dataplane::record::TrafficRecord;
use crate::dataplane::{HandshakeDatagram, IncomingHandshake};
use crate::device::balance::policy::Engaged;
use crate::io::{Endpoint, LocalAddr};
use crate::noise::cookie::JarRecord;
use crate::noise::handshake::HandshakeRecord;
use crate::noise::session::{RecvRecord, Role, SendRecord};
use crate::noise::timers::TimersRecord;
use crate::routing::Prefix;
use crate::time::Offset;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr, SocketAddrV6};

/// The device, without its peers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct DeviceRecord {
    /// The time of the record in nanoseconds on the host's clock, CLOCK_BOOTTIME.
    pub(super) clock: u64,
    pub(super) private_key: Option<SecretBytes<32>>,
    /// What the cookies given out come of. There is one where there is a private key.
    pub(super) cookies: Option<SecretBytes<32>>,
    pub(super) port: u16,
    pub(super) mark: u32,
    /// Whether the sockets are bound.
    pub(super) up: bool,
    /// The interface's MTU in bytes, once it is known.
    pub(super) mtu: Option<u32>,
    /// The timestamp of the last initiation that was sent.
    pub(super) stamp: [u8; 12],
    pub(super) sockets: SocketCount,
    pub(super) handshakes: Vec<MessageRecord>,
    /// The frames that wait for a session, with the workers that have them.
    pub(super) frames: Vec<(u8, FrameBytes)>,
    /// Number of peers, whose records follow.
    pub(super) peers: u32,
}

/// How many UDP sockets there are of each family, in the order in which they were bound.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct SocketCount {
    /// Sockets of IPv4.
    pub v4: u16,
    /// Sockets of IPv6.
    pub v6: u16,
}

/// One peer, with all that belongs to it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct PeerRecord {
    pub(super) public_key: [u8; 32],
    pub(super) owner: u8,
    pub(super) endpoint: Option<EndpointRecord>,
    pub(super) heard: Option<EndpointRecord>,
    pub(super) allowed_ips: Vec<(IpAddr, u8)>,
    pub(super) handshake: HandshakeRecord,
    pub(super) jar: JarRecord,
    pub(super) timers: TimersRecord,
    /// The sessions in the order of their birth.
    pub(super) sessions: Vec<SessionRecord>,
    /// The index of the session that sends.
    pub(super) current: Option<u32>,
    pub(super) interrupted: bool,
    /// What is shared of the peer among the workers, by direction.
    pub(super) sharing: [Option<Engaged>; 3],
    pub(super) traffic: TrafficRecord,
    /// What was tried since the peer was last connected, as `diagnose` tells it (JSON).
    pub(super) history: Option<String>,
    /// Since when nothing was heard of the peer, and how many bytes had been received then.
    pub(super) silence: Option<(Offset, u64)>,
}

/// A session.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SessionRecord {
    pub(super) index: u32,
    pub(super) role: Role,
    pub(super) born: Offset,
    /// Whether both ends are known to have it.
    pub(super) shared: bool,
    pub(super) receive: RecvRecord,
    /// The sending half, where it is sent with, or may be.
    pub(super) send: Option<SendRecord>,
}

/// An address and port. Of an IPv6 address, the scope belongs to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct AddressRecord {
    ip: IpAddr,
    port: u16,
    scope: u32,
}

impl From<SocketAddr> for AddressRecord {
    fn from(address: SocketAddr) -> AddressRecord {
        let scope = match address {
            SocketAddr::V4(_) => 0,
            SocketAddr::V6(v6) => v6.scope_id(),
        };
        AddressRecord { ip: address.ip(), port: address.port(), scope }
    }
}

impl From<AddressRecord> for SocketAddr {
    fn from(record: AddressRecord) -> SocketAddr {
        match record.ip {
            IpAddr::V4(ip) => SocketAddr::from((ip, record.port)),
            IpAddr::V6(ip) => SocketAddrV6::new(ip, record.port, 0, record.scope).into(),
        }
    }
}

/// A local address and its interface.
type LocalRecord = (IpAddr, u32);

fn local_record(local: LocalAddr) -> LocalRecord {
    (local.ip, local.interface)
}

fn local_of((ip, interface): LocalRecord) -> LocalAddr {
    LocalAddr { ip, interface }
}

/// An endpoint, and the local address from which to speak to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct EndpointRecord {
    address: AddressRecord,
    from: Option<LocalRecord>,
}

impl From<Endpoint> for EndpointRecord {
    fn from(endpoint: Endpoint) -> EndpointRecord {
        EndpointRecord { address: endpoint.addr.into(), from: endpoint.from.map(local_record) }
    }
}

impl From<EndpointRecord> for Endpoint {
    fn from(record: EndpointRecord) -> Endpoint {
        Endpoint { addr: record.address.into(), from: record.from.map(local_of) }
    }
}

/// A handshake message that waits for the slow path.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct MessageRecord {
    bytes: FrameBytes,
    from: AddressRecord,
    to: Option<LocalRecord>,
    proven: bool,
}

impl MessageRecord {
    pub(super) fn new(message: &IncomingHandshake) -> MessageRecord {
        MessageRecord {
            bytes: FrameBytes(message.datagram.bytes().into()),
            from: message.from.into(),
            to: message.to.map(local_record),
            proven: message.proven,
        }
    }

    /// The message. `None` where it is longer than any.
    pub(super) fn message(&self) -> Option<IncomingHandshake> {
        let MessageRecord { bytes, from, to, proven } = self;
        let datagram = HandshakeDatagram::new(&bytes.0)?;
        Some(IncomingHandshake { datagram, from: (*from).into(), to: to.map(local_of), proven: *proven })
    }
}

/// Bytes of a packet.
#[derive(Debug)]
pub(super) struct FrameBytes(pub(super) Box<[u8]>);

impl Serialize for FrameBytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for FrameBytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<FrameBytes, D::Error> {
        <&[u8]>::deserialize(deserializer).map(|bytes| FrameBytes(bytes.into()))
    }
}

pub(super) fn prefix_record(prefix: &Prefix) -> (IpAddr, u8) {
    (prefix.addr(), prefix.len())
}
