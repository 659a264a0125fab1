//! The frames that one worker keeps for peers without a session. Most workers have none at most times.

use super::hash::IndexHasher;
use crate::dataplane::directory::PeerDirectory;
use crate::dataplane::staging::Staging;
use crate::dataplane::{MAX_STAGED, PeerId, PeerShared};
use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasherDefault;
use std::sync::Arc;

/// Number of peers with staged frames whose room is kept when there are fewer.
const KEPT: usize = 64;

/// The TUN frames that wait for a session with one peer, oldest first.
struct Queue {
    peer: PeerId,
    frames: VecDeque<Box<[u8]>>,
    bytes: usize,
}

/// All staged frames of a worker.
pub(super) struct StagedFrames {
    /// The queues by slot. None is empty.
    queues: HashMap<u32, Queue, BuildHasherDefault<IndexHasher>>,
    staging: Arc<Staging>,
}

impl StagedFrames {
    /// Nothing staged. `staging` is the room that all workers share.
    pub(super) fn new(staging: Arc<Staging>) -> StagedFrames {
        StagedFrames { queues: HashMap::default(), staging }
    }

    /// Whether frames wait for a session with the peer in `slot`.
    pub(super) fn has(&self, slot: u32) -> bool {
        !self.queues.is_empty() && self.queues.contains_key(&slot)
    }

    /// Stages a copy of `frame` behind what the peer has staged already. Returns how many frames were dropped for it: the
    /// peer's oldest ones, or `frame` itself where other peers and workers take up all room.
    pub(super) fn push(&mut self, peer: &PeerShared, frame: &[u8]) -> usize {
        let slot = peer.id.slot;
        let mut dropped = 0;
        loop {
            let (count, bytes) =
                self.queues.get(&slot).map_or((0, 0), |queue| (queue.frames.len(), queue.bytes));
            let fits = count < MAX_STAGED && bytes + frame.len() <= self.staging.share();
            if fits && self.staging.take(frame.len()) {
                let empty = || Queue { peer: peer.id, frames: VecDeque::new(), bytes: 0 };
                let queue = self.queues.entry(slot).or_insert_with(empty);
                queue.frames.push_back(frame.into());
                queue.bytes += frame.len();
                return dropped;
            }
            dropped += 1;
            if self.pop(slot).is_none() {
                return dropped;
            }
        }
    }

    /// Takes the oldest frame that the peer in `slot` has staged.
    pub(super) fn pop(&mut self, slot: u32) -> Option<Box<[u8]>> {
        let queue = self.queues.get_mut(&slot)?;
        let frame = queue.frames.pop_front()?;
        queue.bytes -= frame.len();
        self.staging.give_back(frame.len());
        if queue.frames.is_empty() {
            self.queues.remove(&slot);
            if self.queues.is_empty() {
                self.queues.shrink_to(KEPT);
            }
        }
        Some(frame)
    }

    /// All frames, those of each peer in their order.
    pub(super) fn frames(&self) -> impl Iterator<Item = &[u8]> {
        self.queues.values().flat_map(|queue| &queue.frames).map(|frame| &**frame)
    }

    /// Drops what is staged for peers that are not in `directory`. Returns how many frames that were.
    pub(super) fn keep_only(&mut self, directory: &PeerDirectory) -> usize {
        let staging = &self.staging;
        let dropped = self
            .queues
            .extract_if(|&slot, queue| directory.get(slot).is_none_or(|peer| peer.id != queue.peer));
        dropped.fold(0, |count, (_, queue)| {
            staging.give_back(queue.bytes);
            count + queue.frames.len()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::directory::DirectoryWriter;
    use crate::dataplane::staging::MAX_STAGED_BYTES;

    fn peer(slot: u32, epoch: u32) -> Arc<PeerShared> {
        Arc::new(PeerShared::new(PeerId { slot, epoch }, 0))
    }

    #[test]
    fn frames_of_peers_that_are_gone_are_dropped_also_where_another_has_the_slot() {
        let mut staged = StagedFrames::new(Arc::default());
        let peers = [peer(0, 1), peer(1, 2), peer(2, 3)];
        peers.iter().for_each(|peer| assert_eq!(staged.push(peer, &[0; 100]), 0));
        let mut writer = DirectoryWriter::default();
        writer.insert(Arc::clone(&peers[0]));
        writer.insert(peer(1, 4));
        assert_eq!(staged.keep_only(&writer.publish()), 2);
        assert_eq!([0, 1, 2].map(|slot| staged.has(slot)), [true, false, false]);
        assert_eq!(staged.staging.used(), 100);
    }

    #[test]
    fn the_oldest_staged_frame_goes_first_when_the_peer_has_too_many() {
        let mut staged = StagedFrames::new(Arc::default());
        let peer = peer(0, 1);
        for i in 0..MAX_STAGED {
            assert_eq!(staged.push(&peer, &[i as u8]), 0);
        }
        assert_eq!(staged.push(&peer, &[255]), 1);
        assert_eq!(staged.pop(0).as_deref(), Some(&[1][..]));
        let rest = std::iter::from_fn(|| staged.pop(0)).collect::<Vec<_>>();
        assert_eq!(rest.len(), MAX_STAGED - 1);
        assert_eq!(rest.last().map(|frame| frame[0]), Some(255));
        assert_eq!((staged.staging.used(), staged.has(0)), (0, false));
    }

    #[test]
    fn staged_bytes_are_bounded_over_all_peers_and_workers() {
        let staging = Arc::<Staging>::default();
        let mut workers = [(); 2].map(|()| StagedFrames::new(Arc::clone(&staging)));
        let frame = vec![0; 64 << 10];
        let of_peer = staging.share() / frame.len();
        let peers_that_fit = MAX_STAGED_BYTES / staging.share();
        let peers: Vec<_> = (0..=peers_that_fit as u32).map(|slot| peer(slot, 1)).collect();
        for (number, peer) in peers[..peers_that_fit].iter().enumerate() {
            let worker = &mut workers[number % 2];
            for _ in 0..of_peer {
                assert_eq!(worker.push(peer, &frame), 0);
            }
            assert_eq!(worker.push(peer, &frame), 1, "the peer's own oldest makes room");
        }
        assert_eq!(staging.used(), MAX_STAGED_BYTES);
        assert_eq!(workers[1].push(&peers[0], &frame), 1, "no room for a newcomer");
        assert!(!workers[1].has(0));
        workers.iter_mut().for_each(|worker| {
            worker.keep_only(&PeerDirectory::default());
        });
        assert_eq!(staging.used(), 0);
    }

    #[test]
    fn one_peer_leaves_room_to_others_however_much_it_is_sent() {
        let mut staged = StagedFrames::new(Arc::default());
        for _ in 0..2 * MAX_STAGED {
            staged.push(&peer(0, 1), &[0; 64 << 10]);
        }
        assert_eq!(staged.push(&peer(1, 1), &[0; 64 << 10]), 0);
    }
}
