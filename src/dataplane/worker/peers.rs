//! The worker's table of peers, by slot, with what each has staged.

use super::loops::{Loops, Outer};
use crate::dataplane::staging::Staging;
use crate::dataplane::{MAX_STAGED, PeerId, PeerShared};
use crate::io::Endpoint;
use crate::routing::RouteTable;
use crate::time::Instant;
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// Number of slots whose room is kept even where they are empty.
const KEPT: usize = 1024;

/// A peer, as one worker sees it.
pub(super) struct WorkerPeer {
    pub(super) shared: Arc<PeerShared>,
    pub(super) endpoint: Option<Endpoint>,
    /// Indices of the peer's receiving sessions in this worker, so that they are removed with the peer.
    pub(super) receiving: Vec<u32>,
    /// Where the peer last spoke from, and to, as this worker reported it to the slow path. Cleared with every
    /// endpoint that the slow path sets.
    pub(super) heard: Option<Endpoint>,
    /// When this worker last asked for a handshake.
    pub(super) asked: Option<Instant>,
    /// TUN frames that wait for a session, oldest first.
    staged: VecDeque<Box<[u8]>>,
    staged_bytes: usize,
}

impl WorkerPeer {
    fn new(shared: Arc<PeerShared>) -> WorkerPeer {
        WorkerPeer {
            shared,
            endpoint: None,
            receiving: Vec::new(),
            heard: None,
            asked: None,
            staged: VecDeque::new(),
            staged_bytes: 0,
        }
    }

    /// Whether there is now a session and an endpoint to send with.
    pub(super) fn reachable(&self, now: Instant) -> bool {
        self.endpoint.is_some() && self.shared.sending.load().usable(now).is_some()
    }

    /// Whether this device itself sends this message to the peer.
    fn is_sent(&self, outer: &Outer, now: Instant) -> bool {
        let is_there = |endpoint: Endpoint| {
            (endpoint.addr.ip(), endpoint.addr.port()) == (outer.to.ip(), outer.to.port())
        };
        let is_its_index = || match outer.data {
            true => {
                let published = self.shared.sending.load();
                published.usable(now).is_some_and(|session| session.remote_index() == outer.index)
            }
            false => self.shared.handshake_index.load(Relaxed) == outer.index,
        };
        self.endpoint.is_some_and(is_there) && is_its_index()
    }

    /// Whether frames wait for a session.
    pub(super) fn has_staged(&self) -> bool {
        !self.staged.is_empty()
    }
}

/// All peers of the device, and the routes to them.
pub(super) struct Peers {
    /// The peers by [`PeerId::slot`]. Slots are small numbers, as the slow path reuses them.
    table: Vec<Option<WorkerPeer>>,
    pub(super) routes: Arc<RouteTable>,
    staging: Arc<Staging>,
    loops: Loops,
}

impl Peers {
    /// A table without peers. `staging` is the room that all workers share.
    pub(super) fn new(staging: Arc<Staging>) -> Peers {
        Peers { table: Vec::new(), routes: Arc::default(), staging, loops: Loops::default() }
    }

    /// The slot of the peer whose AllowedIPs hold `addr`.
    pub(super) fn route(&self, addr: IpAddr) -> Option<u32> {
        self.routes.lookup(addr)
    }

    /// Where a packet from the TUN device goes, if it is an outer packet of this device.
    pub(super) fn find_loop(
        &mut self,
        packet: &[u8],
        destination: IpAddr,
        now: Instant,
    ) -> Option<SocketAddr> {
        let table = &self.table;
        let is_ours = |outer: &Outer| table.iter().flatten().any(|peer| peer.is_sent(outer, now));
        self.loops.find(packet, destination, now, is_ours)
    }

    /// The peer that has this slot now, whatever its epoch.
    pub(super) fn at(&mut self, slot: u32) -> Option<&mut WorkerPeer> {
        self.table.get_mut(slot as usize)?.as_mut()
    }

    /// The peer with this slot and epoch. `None` where a successor has the slot.
    pub(super) fn find(&mut self, id: PeerId) -> Option<&mut WorkerPeer> {
        self.at(id.slot).filter(|peer| peer.shared.id == id)
    }

    /// Adds a peer. Where its slot was taken, the peer that had it is removed and returned.
    pub(super) fn add(&mut self, shared: Arc<PeerShared>) -> Option<Removed> {
        if self.find(shared.id).is_some() {
            return None;
        }
        let slot = shared.id.slot as usize;
        if self.table.len() <= slot {
            self.table.resize_with(slot + 1, || None);
        }
        let before = self.table[slot].replace(WorkerPeer::new(shared));
        before.map(|peer| self.taken_out(peer))
    }

    /// Removes a peer with its staged frames.
    pub(super) fn remove(&mut self, id: PeerId) -> Option<Removed> {
        self.find(id)?;
        let peer = self.table.get_mut(id.slot as usize)?.take()?;
        self.give_back_room();
        Some(self.taken_out(peer))
    }

    /// Gives back what a peer held that is no longer in the table, and withdraws its sessions.
    fn taken_out(&mut self, peer: WorkerPeer) -> Removed {
        self.staging.give_back(peer.staged_bytes);
        for &index in &peer.receiving {
            peer.shared.sending.withdraw(index);
        }
        Removed { id: peer.shared.id, receiving: peer.receiving, staged: peer.staged.len() }
    }

    /// Removes the empty slots at the end, and gives back their room once it is most of the table.
    fn give_back_room(&mut self) {
        while matches!(self.table.last(), Some(None)) {
            self.table.pop();
        }
        if self.table.capacity() > KEPT && self.table.len() < self.table.capacity() / 8 {
            self.table.shrink_to(2 * self.table.len());
        }
    }

    /// All peers there are.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut WorkerPeer> {
        self.table.iter_mut().flatten()
    }

    /// Stages a copy of `frame` behind what the peer has staged already. Returns how many frames were dropped for it:
    /// the peer's oldest ones, or `frame` itself where other peers and workers take up all room.
    pub(super) fn stage(&mut self, slot: u32, frame: &[u8]) -> usize {
        let mut dropped = 0;
        let staging = Arc::clone(&self.staging);
        loop {
            let Some(peer) = self.at(slot) else { return dropped + 1 };
            let fits = peer.staged.len() < MAX_STAGED && peer.staged_bytes + frame.len() <= staging.share();
            if fits && staging.take(frame.len()) {
                peer.staged.push_back(frame.into());
                peer.staged_bytes += frame.len();
                return dropped;
            }
            dropped += 1;
            if self.unstage(slot).is_none() {
                return dropped;
            }
        }
    }

    /// Takes the oldest frame that the peer has staged.
    pub(super) fn unstage(&mut self, slot: u32) -> Option<Box<[u8]>> {
        let peer = self.at(slot)?;
        let frame = peer.staged.pop_front()?;
        peer.staged_bytes -= frame.len();
        self.staging.give_back(frame.len());
        Some(frame)
    }
}

/// What a removed peer left.
pub(super) struct Removed {
    /// The slot and epoch of the peer.
    pub(super) id: PeerId,
    /// Indices of its receiving sessions.
    pub(super) receiving: Vec<u32>,
    /// Number of frames that were staged.
    pub(super) staged: usize,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::staging::MAX_STAGED_BYTES;

    fn peer(slot: u32, epoch: u32) -> Arc<PeerShared> {
        Arc::new(PeerShared::new(PeerId { slot, epoch }, 0))
    }

    #[test]
    fn a_reused_slot_is_another_peer() {
        let mut peers = Peers::new(Arc::default());
        peers.add(peer(2, 1));
        assert_eq!(peers.stage(2, &[0; 100]), 0);
        let removed = peers.add(peer(2, 2)).unwrap();
        assert_eq!(removed.staged, 1);
        assert!(peers.find(PeerId { slot: 2, epoch: 1 }).is_none());
        assert!(peers.remove(PeerId { slot: 2, epoch: 1 }).is_none());
        assert!(peers.find(PeerId { slot: 2, epoch: 2 }).is_some());
        assert!(peers.at(1).is_none() && peers.at(3).is_none());
    }

    #[test]
    fn the_room_of_many_peers_goes_back_when_they_are_gone() {
        let mut peers = Peers::new(Arc::default());
        (0..10_000).for_each(|slot| assert!(peers.add(peer(slot, 1)).is_none()));
        assert!(peers.table.capacity() >= 10_000);
        (1..10_000).for_each(|slot| assert!(peers.remove(PeerId { slot, epoch: 1 }).is_some()));
        assert!(peers.table.capacity() <= KEPT, "{}", peers.table.capacity());
        assert!(peers.find(PeerId { slot: 0, epoch: 1 }).is_some());
    }

    #[test]
    fn adding_a_peer_twice_keeps_what_it_has() {
        let mut peers = Peers::new(Arc::default());
        peers.add(peer(0, 1));
        peers.stage(0, &[1]);
        assert!(peers.add(peer(0, 1)).is_none());
        assert!(peers.at(0).unwrap().has_staged());
    }

    #[test]
    fn the_oldest_staged_frame_goes_first_when_the_peer_has_too_many() {
        let mut peers = Peers::new(Arc::default());
        peers.add(peer(0, 1));
        for i in 0..MAX_STAGED {
            assert_eq!(peers.stage(0, &[i as u8]), 0);
        }
        assert_eq!(peers.stage(0, &[255]), 1);
        assert_eq!(peers.unstage(0).as_deref(), Some(&[1][..]));
        let rest = std::iter::from_fn(|| peers.unstage(0)).collect::<Vec<_>>();
        assert_eq!(rest.len(), MAX_STAGED - 1);
        assert_eq!(rest.last().map(|frame| frame[0]), Some(255));
        assert_eq!(peers.staging.used(), 0);
    }

    #[test]
    fn staged_bytes_are_bounded_over_all_peers_and_workers() {
        let staging = Arc::<Staging>::default();
        let (mut one, mut other) = (Peers::new(Arc::clone(&staging)), Peers::new(Arc::clone(&staging)));
        let frame = vec![0; 64 << 10];
        let of_peer = staging.share() / frame.len();
        let peers_that_fit = (MAX_STAGED_BYTES / staging.share()) as u32;
        for slot in 0..=peers_that_fit {
            one.add(peer(slot, 1));
            other.add(peer(slot, 1));
        }
        for slot in 0..peers_that_fit {
            let worker = if slot % 2 == 0 { &mut one } else { &mut other };
            for _ in 0..of_peer {
                assert_eq!(worker.stage(slot, &frame), 0);
            }
            assert_eq!(worker.stage(slot, &frame), 1, "the peer's own oldest makes room");
        }
        assert_eq!(staging.used(), MAX_STAGED_BYTES);
        assert_eq!(other.stage(0, &frame), 1, "no room for a newcomer");
        assert!(!other.at(0).unwrap().has_staged());
        for slot in 0..=peers_that_fit {
            one.remove(PeerId { slot, epoch: 1 });
            other.remove(PeerId { slot, epoch: 1 });
        }
        assert_eq!(staging.used(), 0);
    }

    #[test]
    fn one_peer_leaves_room_to_others_however_much_it_is_sent() {
        let mut peers = Peers::new(Arc::default());
        peers.add(peer(0, 1));
        peers.add(peer(1, 1));
        for _ in 0..2 * MAX_STAGED {
            peers.stage(0, &[0; 64 << 10]);
        }
        assert_eq!(peers.stage(1, &[0; 64 << 10]), 0);
    }
}
