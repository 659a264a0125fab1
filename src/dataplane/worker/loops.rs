//! Finds outer packets of this device on its own TUN device. A route leads them back into the tunnel, where each
//! would be wrapped once more, for ever.
//!
//! The kernel asks for the route of every packet that it sends (`send4`, `send6`: "Avoiding routing loop"). Here they
//! are known by what only this device sends: the index of a session or of a handshake, to the endpoint of its peer.

use crate::dataplane::PeerShared;
use crate::dataplane::directory::PeerDirectory;
use crate::time::Instant;
use crate::wire::ip::{self, Fragment, UDP, UDP_HEADER_LEN, be16};
use crate::wire::message;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Flows of WireGuard messages whose verdict is remembered.
const MEMORY: usize = 16;
/// Time for which a verdict is remembered. It is bounded, since peers' endpoints change; it is needed, since
/// searching 10,000 peers takes some 100 µs.
const MEMORY_LIFE: Duration = Duration::from_secs(1);
/// Number of peers that may be searched in one [`MEMORY_LIFE`] before a further search is put off to the next: some 10 ms.
const SEARCHED: usize = 1_000_000;

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
pub(super) struct Loops {
    verdicts: [Option<(Outer, Instant, bool)>; MEMORY],
    /// Number of peers searched since [`Self::counted_from`].
    searched: usize,
    counted_from: Instant,
}

impl Loops {
    /// Where the packet goes, if it is one of this device's. A message of which there was no time to say it passes.
    #[inline]
    pub(super) fn find(
        &mut self,
        packet: &[u8],
        destination: IpAddr,
        now: Instant,
        peers: &PeerDirectory,
    ) -> Option<SocketAddr> {
        let outer = Outer::parse(packet, destination)?;
        self.is_ours(outer, now, peers).then_some(outer.to)
    }

    fn is_ours(&mut self, outer: Outer, now: Instant, peers: &PeerDirectory) -> bool {
        let place = &mut self.verdicts[outer.index as usize % MEMORY];
        if let Some((.., verdict)) =
            place.filter(|(other, at, _)| *other == outer && now.since(*at) < MEMORY_LIFE)
        {
            return verdict;
        }
        if now.since(self.counted_from) >= MEMORY_LIFE {
            (self.searched, self.counted_from) = (0, now);
        }
        if self.searched >= SEARCHED {
            return false;
        }
        let verdict = peers.iter().inspect(|_| self.searched += 1).any(|peer| is_sent_to(peer, &outer, now));
        *place = Some((outer, now, verdict));
        verdict
    }
}

/// Whether this device itself sends this message to the peer.
fn is_sent_to(peer: &PeerShared, outer: &Outer, now: Instant) -> bool {
    let published = peer.sending.load();
    let to = published.endpoint().map(|endpoint| (endpoint.addr.ip(), endpoint.addr.port()));
    to == Some((outer.to.ip(), outer.to.port()))
        && match outer.data {
            true => published.session(now).is_some_and(|session| session.remote_index() == outer.index),
            false => peer.handshake_index.load(Relaxed) == outer.index,
        }
}
