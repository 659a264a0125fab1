//! AllowedIPs as configured: one owner a prefix, device-wide; changes are collected and published once.

use super::outbox::{Broadcast, Outbox};
use super::peer::Peer;
use super::table::PeerTable;
use crate::io::steer::Target;
use crate::routing::{Prefix, RouteTable};
use std::collections::HashMap;
use std::sync::Arc;

/// Where a prefix stands: in whose list, at which place. Constant time for every change, however long the lists.
#[derive(Clone, Copy)]
struct Place {
    slot: u32,
    at: u32,
}

/// Every prefix's owner. The peers' own lists hold the prefixes in order; both change only here.
#[derive(Default)]
pub(super) struct AllowedIps {
    places: HashMap<Prefix, Place>,
    /// Prefixes changed since the last publication, with where they were steered to before.
    changed: Vec<(Prefix, Option<Target>)>,
}

impl AllowedIps {
    /// Gives `prefix` to the peer in `slot`, whoever had it.
    pub(super) fn insert(&mut self, peers: &mut PeerTable, slot: u32, prefix: Prefix) {
        let before = match self.places.get(&prefix) {
            Some(place) if place.slot == slot => return,
            Some(&place) => self.unlink(peers, place),
            None => None,
        };
        let Some(peer) = peers.get_mut(slot) else { return };
        self.changed.push((prefix, before));
        self.places.insert(prefix, Place { slot, at: peer.allowed.len() as u32 });
        peer.allowed.push(prefix);
    }

    /// Takes `prefix` from the peer in `slot`; nothing happens if it is not that peer's.
    pub(super) fn remove(&mut self, peers: &mut PeerTable, slot: u32, prefix: Prefix) {
        let Some(&place) = self.places.get(&prefix).filter(|place| place.slot == slot) else { return };
        let before = self.unlink(peers, place);
        self.places.remove(&prefix);
        self.changed.push((prefix, before));
    }

    /// Takes all prefixes of the peer in `slot`.
    pub(super) fn remove_all(&mut self, peers: &mut PeerTable, slot: u32) {
        let Some(peer) = peers.get_mut(slot) else { return };
        let before = Some(peer.target());
        for prefix in std::mem::take(&mut peer.allowed) {
            self.places.remove(&prefix);
            self.changed.push((prefix, before));
        }
    }

    /// Tells the workers and the steering what changed since the last call; from then on no route names a removed peer.
    pub(super) fn publish(&mut self, peers: &PeerTable, out: &mut Outbox) {
        let mut changed = std::mem::take(&mut self.changed);
        if changed.is_empty() {
            return;
        }
        let routes = peers.iter().flat_map(|peer| {
            let slot = peer.shared.id.slot;
            peer.allowed.iter().map(move |&prefix| (prefix, slot))
        });
        out.all(Broadcast::Routes(Arc::new(RouteTable::build(routes))));
        // Stable: the first entry of a prefix tells what held before.
        changed.sort_by_key(|&(prefix, _)| prefix);
        changed.dedup_by_key(|&mut (prefix, _)| prefix);
        for (prefix, before) in changed {
            let owner = self.places.get(&prefix).and_then(|place| peers.get(place.slot));
            let after = owner.map(Peer::target);
            if before != after {
                out.steer(prefix, after);
            }
        }
    }

    /// Takes the entry at `place` out of its peer's list, whose last entry moves there; returns where that peer's go.
    fn unlink(&mut self, peers: &mut PeerTable, place: Place) -> Option<Target> {
        let peer = peers.get_mut(place.slot)?;
        peer.allowed.swap_remove(place.at as usize);
        if let Some(moved) = peer.allowed.get(place.at as usize).and_then(|moved| self.places.get_mut(moved))
        {
            moved.at = place.at;
        }
        Some(peer.target())
    }
}
