//! Finds outer packets of this device on its own TUN device. A route leads them back into the tunnel, where each
//! would be wrapped once more, for ever.
//!
//! The kernel asks for the route of every packet that it sends (`send4`, `send6`: "Avoiding routing loop"). Here they
//! are known by what only this device sends: the index of a session or of a handshake, to the endpoint of its peer.

use crate::time::Instant;
use crate::wire::ip::{self, Fragment, UDP, UDP_HEADER_LEN, be16};
use crate::wire::message;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Flows of WireGuard messages whose verdict is remembered.
const MEMORY: usize = 16;
/// Time for which a verdict is remembered. It is bounded, since peers' endpoints change; it is needed, since
/// searching 10,000 peers takes some 100 µs.
const MEMORY_LIFE: Duration = Duration::from_secs(1);

/// A WireGuard message on its way through the tunnel, of this device or of a host behind it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Outer {
    /// Where it goes.
    pub(super) to: SocketAddr,
    /// Whether it is a data message; otherwise it is a handshake message.
    pub(super) data: bool,
    /// The receiver's index in a data message, the sender's in a handshake message.
    pub(super) index: u32,
}

impl Outer {
    /// The WireGuard message that `packet` holds. `None` for anything else, also for a later fragment.
    #[inline]
    fn parse(packet: &[u8], destination: IpAddr) -> Option<Outer> {
        let transport = ip::transport(packet)?;
        if transport.protocol != UDP || transport.fragment == Fragment::Later {
            return None;
        }
        let datagram = packet.get(transport.offset..)?;
        let (header, payload) = datagram.split_first_chunk::<UDP_HEADER_LEN>()?;
        let data = match *payload.first_chunk()? {
            [4, 0, 0, 0] => true,
            [1 | 2, 0, 0, 0] => false,
            _ => return None,
        };
        let to = SocketAddr::new(destination, be16(header, 2));
        Some(Outer { to, data, index: message::index(payload)? })
    }
}

/// The verdicts of the last moments.
#[derive(Default)]
pub(super) struct Loops([Option<(Outer, Instant, bool)>; MEMORY]);

impl Loops {
    /// Where the packet goes, if it is one of this device's. `is_ours` searches all peers.
    pub(super) fn find(
        &mut self,
        packet: &[u8],
        destination: IpAddr,
        now: Instant,
        is_ours: impl FnOnce(&Outer) -> bool,
    ) -> Option<SocketAddr> {
        let outer = Outer::parse(packet, destination)?;
        let place = &mut self.0[outer.index as usize % MEMORY];
        let known = place.filter(|(other, at, _)| *other == outer && now.since(*at) < MEMORY_LIFE);
        let (.., ours) = *place.insert(known.unwrap_or_else(|| (outer, now, is_ours(&outer))));
        ours.then_some(outer.to)
    }
}
