//! What the peer sends through the tunnel to others than this host, and whether answers go back: seen on the interface, for a
//! short while.

use super::facts::{Conversation, ForwardingFacts};
use crate::routing::Prefix;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Most conversations that are looked at.
const MAX_CONVERSATIONS: usize = 16;

/// Packets seen on a tunnel's interface.
pub(super) struct Observation {
    /// The prefixes of the peer.
    peer: Vec<Prefix>,
    /// The addresses of this host.
    own: BTreeSet<IpAddr>,
    seen: ForwardingFacts,
}

impl Observation {
    pub(super) fn new(peer: Vec<Prefix>, own: BTreeSet<IpAddr>) -> Observation {
        Observation { peer, own, seen: ForwardingFacts::default() }
    }

    /// Takes in a packet that came out of the tunnel, or with `outgoing` one that goes into it.
    pub(super) fn take(&mut self, packet: &[u8], outgoing: bool) {
        let Some((source, destination)) = addresses(packet) else { return };
        let (near, far) = if outgoing { (destination, source) } else { (source, destination) };
        if !self.peer.iter().any(|prefix| prefix.contains(near)) || !is_elsewhere(far, &self.own) {
            return;
        }
        let conversations = &mut self.seen.conversations;
        let known = conversations.iter().position(|one| (one.source, one.destination) == (near, far));
        let at = match known {
            Some(at) => at,
            // What this host forwards to the peer by itself is the peer's to answer.
            None if outgoing || conversations.len() >= MAX_CONVERSATIONS => return,
            None => {
                conversations.push(Conversation::between(near, far));
                conversations.len() - 1
            }
        };
        let Some(conversation) = conversations.get_mut(at) else { return };
        match outgoing {
            true => conversation.returned = conversation.returned.saturating_add(1),
            false => conversation.sent = conversation.sent.saturating_add(1),
        }
    }

    /// What was seen. Of each conversation is yet to be said what this host does with it.
    pub(super) fn seen(self) -> ForwardingFacts {
        self.seen
    }
}

/// Source and destination. The packet may be cut short behind its header.
fn addresses(packet: &[u8]) -> Option<(IpAddr, IpAddr)> {
    match packet.first()? >> 4 {
        4 => {
            let at = |from: usize| Some(IpAddr::from(<[u8; 4]>::try_from(packet.get(from..from + 4)?).ok()?));
            Some((at(12)?, at(16)?))
        }
        6 => {
            let at =
                |from: usize| Some(IpAddr::from(<[u8; 16]>::try_from(packet.get(from..from + 16)?).ok()?));
            Some((at(8)?, at(24)?))
        }
        _ => None,
    }
}

/// Whether an address is a single host's that is not this one.
fn is_elsewhere(address: IpAddr, own: &BTreeSet<IpAddr>) -> bool {
    let is_of_many = match address {
        IpAddr::V4(v4) => v4.is_broadcast() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !(own.contains(&address) || address.is_multicast() || address.is_unspecified() || is_of_many)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
        let mut packet = vec![0; 20];
        packet[0] = 0x45;
        packet[12..16].copy_from_slice(&source);
        packet[16..20].copy_from_slice(&destination);
        packet
    }

    #[test]
    fn only_the_peers_packets_to_others_and_the_answers_to_them_count() {
        let own = BTreeSet::from([IpAddr::from([10, 0, 0, 1])]);
        let mut observation = Observation::new(vec!["10.0.0.2/32".parse().unwrap()], own);
        let (peer, host, far) = ([10, 0, 0, 2], [10, 0, 0, 1], [192, 0, 2, 7]);
        for (source, destination, outgoing) in [
            (peer, host, false),
            (peer, [224, 0, 0, 1], false),
            ([10, 0, 0, 3], far, false),
            (far, peer, true),
            (peer, far, false),
            (peer, far, false),
            (far, peer, true),
        ] {
            observation.take(&packet(source, destination), outgoing);
        }
        observation.take(&[0x45, 1, 2], false);
        observation.take(&[], true);
        let seen = observation.seen().conversations;
        assert_eq!(seen.len(), 1);
        assert_eq!((seen[0].destination, seen[0].sent, seen[0].returned), (IpAddr::from(far), 2, 1));
    }

    #[test]
    fn ipv6_is_read_and_the_list_is_bounded() {
        let mut observation = Observation::new(vec!["fd00::/64".parse().unwrap()], BTreeSet::new());
        for host in 0..200_u8 {
            let mut packet = vec![0; 40];
            packet[0] = 0x60;
            packet[8..10].copy_from_slice(&[0xfd, 0]);
            packet[24..26].copy_from_slice(&[0x20, 1]);
            packet[39] = host;
            observation.take(&packet, false);
        }
        assert_eq!(observation.seen().conversations.len(), MAX_CONVERSATIONS);
    }
}
