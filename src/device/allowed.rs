//! AllowedIPs as configured. Each prefix has one owner, device-wide. Changes are collected and published once.

use super::outputs::OutputQueue;
use super::peer::Peer;
use super::table::PeerTable;
use crate::io::steer::Target;
use crate::routing::{Prefix, RouteTable, RouteWriter};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Number of changes that the routes take in at once, at a few microseconds each at most. Those taken in together rewrite a
/// node that they share only once.
const TAKEN_IN: usize = 128;

/// The position of a prefix: in whose list, and at which place there. It makes a change take the same time however
/// long the lists are.
#[derive(Clone, Copy)]
struct ListPosition {
    slot: u32,
    at: u32,
}

/// The owner of every prefix. The peers' own lists hold the prefixes in order; both change only here.
#[derive(Default)]
pub(super) struct AllowedIps {
    places: BTreeMap<Prefix, ListPosition>,
    routes: RouteWriter,
    /// Changes that the routes did not take in yet.
    pending: Vec<(Prefix, Option<u32>)>,
    /// The prefixes that changed since the last publication, each with the owner to whom it was steered before the
    /// first change.
    changed: BTreeMap<Prefix, Option<Target>>,
}

impl AllowedIps {
    /// Gives `prefix` to the peer in `slot`, whoever had it before.
    pub(super) fn insert(&mut self, peers: &mut PeerTable, slot: u32, prefix: Prefix) {
        let before = match self.places.get(&prefix) {
            Some(place) if place.slot == slot => return,
            Some(&place) => self.unlink(peers, place),
            None => None,
        };
        let Some(peer) = peers.get_mut(slot) else { return };
        self.note(prefix, before, Some(slot));
        self.places.insert(prefix, ListPosition { slot, at: peer.allowed.len() as u32 });
        peer.allowed.push(prefix);
    }

    /// Takes `prefix` from the peer in `slot`. Does nothing where it is another peer's.
    pub(super) fn remove(&mut self, peers: &mut PeerTable, slot: u32, prefix: Prefix) {
        let Some(&place) = self.places.get(&prefix).filter(|place| place.slot == slot) else { return };
        let before = self.unlink(peers, place);
        self.places.remove(&prefix);
        self.note(prefix, before, None);
    }

    /// Takes at most `most` prefixes from the peer in `slot`. True where it has more.
    pub(super) fn remove_some(&mut self, peers: &mut PeerTable, slot: u32, most: usize) -> bool {
        let Some(peer) = peers.get_mut(slot) else { return false };
        let before = Some(peer.target());
        let kept = peer.allowed.len().saturating_sub(most);
        let taken = peer.allowed.split_off(kept);
        if kept == 0 {
            peer.allowed = Vec::new();
        }
        for prefix in taken {
            self.places.remove(&prefix);
            self.note(prefix, before, None);
        }
        kept > 0
    }

    /// Notes that a prefix goes to the peer in `slot`, or to none, and was steered to `before`.
    fn note(&mut self, prefix: Prefix, before: Option<Target>, slot: Option<u32>) {
        self.changed.entry(prefix).or_insert(before);
        self.pending.push((prefix, slot));
        if self.pending.len() >= TAKEN_IN {
            self.routes.change(self.pending.drain(..));
        }
    }

    /// The routes as they are now, for the workers.
    pub(super) fn table(&mut self) -> Arc<RouteTable> {
        self.routes.change(self.pending.drain(..));
        self.routes.table()
    }

    /// The prefixes that changed since the last call and may have to be steered anew, for [`Self::steer`].
    pub(super) fn take_changed(&mut self) -> BTreeMap<Prefix, Option<Target>> {
        std::mem::take(&mut self.changed)
    }

    /// Takes back the memory of tables that no worker has any more.
    pub(super) fn tidy(&mut self) {
        self.routes.reclaim();
    }

    /// Steers each of the prefixes to its present owner, where that is another than before.
    pub(super) fn steer(
        &self,
        peers: &PeerTable,
        changed: impl Iterator<Item = (Prefix, Option<Target>)>,
        out: &mut OutputQueue,
    ) {
        for (prefix, before) in changed {
            let owner = self.places.get(&prefix).and_then(|place| peers.get(place.slot));
            let after = owner.map(Peer::target);
            if before != after {
                out.steer(prefix, after);
            }
        }
    }

    /// Removes the entry at `place` from its peer's list, whose last entry moves there. Returns where the removed
    /// prefix's peer is steered to.
    fn unlink(&mut self, peers: &mut PeerTable, place: ListPosition) -> Option<Target> {
        let peer = peers.get_mut(place.slot)?;
        peer.allowed.swap_remove(place.at as usize);
        if let Some(moved) = peer.allowed.get(place.at as usize).and_then(|moved| self.places.get_mut(moved))
        {
            moved.at = place.at;
        }
        Some(peer.target())
    }
}
