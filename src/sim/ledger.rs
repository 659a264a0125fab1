//! The account of inner packets: what was sent, what arrived, and whether that can be.

use crate::sim::packet::{Flow, Inner};
use std::collections::HashMap;

/// The account of one run. Packets are told apart by their whole content, so give each a payload of its own.
#[derive(Default, Debug)]
pub struct Ledger {
    /// Place in the flow's order, and whether it arrived.
    packets: HashMap<Inner, (u64, bool)>,
    sent: HashMap<Flow, u64>,
    latest: HashMap<Flow, u64>,
    arrived: u64,
    overtakings: u64,
}

impl Ledger {
    /// Notes a packet that goes into the tunnel.
    pub fn sent(&mut self, inner: Inner) {
        let next = self.sent.entry(inner.flow).or_default();
        *next += 1;
        self.packets.insert(inner, (*next, false));
    }

    /// Notes a packet that came out.
    ///
    /// # Errors
    ///
    /// Where no such packet was sent, or it came out before.
    pub fn delivered(&mut self, mut inner: Inner) -> Result<(), String> {
        // A congested outer path may mark the inner packet (RFC 6040), so that the mark is no damage.
        if inner.tos & 3 == 3 && !self.packets.contains_key(&inner) {
            let marked = inner.tos;
            let original = [2, 1].map(|ect| marked & !3 | ect).into_iter().find(|&tos| {
                inner.tos = tos;
                self.packets.contains_key(&inner)
            });
            inner.tos = original.unwrap_or(marked);
        }
        let Some((place, seen)) = self.packets.get_mut(&inner) else {
            return Err(format!("never sent: {:?}, {} bytes", inner.flow, inner.payload.len()));
        };
        if std::mem::replace(seen, true) {
            return Err(format!("delivered twice: number {place} of {:?}", inner.flow));
        }
        let latest = self.latest.entry(inner.flow).or_default();
        self.overtakings += u64::from(*place < *latest);
        *latest = (*latest).max(*place);
        self.arrived += 1;
        Ok(())
    }

    /// How many packets went in.
    pub fn count_sent(&self) -> u64 {
        self.sent.values().sum()
    }

    /// How many packets came out.
    pub fn count_arrived(&self) -> u64 {
        self.arrived
    }

    /// The packets that did not come out: their flow, and their place in its order.
    pub fn missing(&self) -> Vec<(Flow, u64)> {
        let missing = self.packets.iter().filter(|(_, (_, arrived))| !arrived);
        let mut missing: Vec<_> = missing.map(|(inner, (place, _))| (inner.flow, *place)).collect();
        missing.sort_unstable();
        missing
    }

    /// How many packets came out after a later one of their flow.
    pub fn overtakings(&self) -> u64 {
        self.overtakings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inner(number: u8) -> Inner {
        let addr = |port| std::net::SocketAddr::from(([10, 0, 0, 1], port));
        Inner::new(Flow::udp(addr(1), addr(2)), 0, vec![number])
    }

    #[test]
    fn foreign_and_repeated_packets_are_errors() {
        let mut ledger = Ledger::default();
        ledger.sent(inner(1));
        assert!(ledger.delivered(inner(2)).is_err());
        assert!(ledger.delivered(inner(1)).is_ok());
        assert!(ledger.delivered(inner(1)).is_err());
        assert_eq!((ledger.count_sent(), ledger.count_arrived()), (1, 1));
    }

    #[test]
    fn overtaking_is_seen() {
        let mut ledger = Ledger::default();
        (1..=3).for_each(|number| ledger.sent(inner(number)));
        for number in [1, 3, 2] {
            assert!(ledger.delivered(inner(number)).is_ok());
        }
        assert_eq!(ledger.overtakings(), 1);
    }

    #[test]
    fn congestion_mark_is_no_damage() {
        let mut ledger = Ledger::default();
        ledger.sent(Inner { tos: 2, ..inner(1) });
        ledger.sent(inner(2));
        assert!(ledger.delivered(Inner { tos: 3, ..inner(1) }).is_ok());
        assert!(ledger.delivered(Inner { tos: 3, ..inner(2) }).is_err());
    }
}
