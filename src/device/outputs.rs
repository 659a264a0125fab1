//! What the device wants done, in order. A control for all workers is queued once, and multiplied as it is taken out.

use super::{BindRequest, Output};
use crate::dataplane::directory::PeerDirectory;
use crate::dataplane::{Control, PeerId, PeerShared};
use crate::index::WorkerCount;
use crate::io::steer::Target;
use crate::noise::cookie::GateKeys;
use crate::routing::{Prefix, RouteTable};
use std::collections::VecDeque;
use std::sync::Arc;

/// Number of entries whose room is kept when the queue runs empty: 1024 × ~250 bytes. A transaction over 10,000 peers
/// needs more for a moment. The queue is bounded by what one call of the device yields, since its driver drains it
/// after each.
const KEPT: usize = 1024;

/// A control for every worker.
pub(super) enum Broadcast {
    Identity(Option<Box<GateKeys>>),
    Routes(Arc<RouteTable>, Arc<PeerDirectory>),
    Mtu(u32),
    RouteMtus(Option<Arc<RouteTable>>),
}

impl Broadcast {
    fn control(&self) -> Control {
        match self {
            Broadcast::Identity(key) => Control::Identity(key.clone()),
            Broadcast::Routes(table, directory) => Control::Routes(Arc::clone(table), Arc::clone(directory)),
            Broadcast::Mtu(mtu) => Control::Mtu(*mtu),
            Broadcast::RouteMtus(table) => Control::RouteMtus(table.clone()),
        }
    }
}

enum Entry {
    All(Broadcast),
    Other(Output),
}

/// The queue of what the device wants done.
pub(super) struct OutputQueue {
    entries: VecDeque<Entry>,
    /// The worker that gets the front entry next, where that entry is for all workers.
    cursor: u8,
    workers: WorkerCount,
}

impl OutputQueue {
    pub(super) fn new(workers: WorkerCount) -> OutputQueue {
        OutputQueue { entries: VecDeque::new(), cursor: 0, workers }
    }

    pub(super) fn workers(&self) -> WorkerCount {
        self.workers
    }

    pub(super) fn all(&mut self, broadcast: Broadcast) {
        self.entries.push_back(Entry::All(broadcast));
    }

    pub(super) fn one(&mut self, worker: u8, control: Control) {
        self.entries.push_back(Entry::Other(Output::Control(worker, control)));
    }

    /// Queues a control for the workers that may have staged frames for the peer. What lets them send those is published
    /// already.
    fn stagers(&mut self, peer: &PeerShared, control: fn(PeerId) -> Control) {
        // Whoever waits for the peer may ask again at once.
        peer.forget_asked();
        for worker in peer.take_staged(self.workers) {
            self.one(worker, control(peer.id));
        }
    }

    /// Has staged frames for the peer sent.
    pub(super) fn send_staged(&mut self, peer: &PeerShared) {
        self.stagers(peer, Control::SendStaged);
    }

    /// Has staged frames for the peer dropped.
    pub(super) fn purge_staged(&mut self, peer: &PeerShared) {
        self.stagers(peer, Control::PurgeStaged);
    }

    pub(super) fn bind(&mut self, request: Option<BindRequest>) {
        self.entries.push_back(Entry::Other(Output::Bind(request)));
    }

    pub(super) fn steer(&mut self, prefix: Prefix, target: Option<Target>) {
        self.entries.push_back(Entry::Other(Output::Steer(prefix, target)));
    }

    pub(super) fn pop(&mut self) -> Option<Output> {
        let output = match self.entries.pop_front() {
            None => return None,
            Some(Entry::Other(output)) => output,
            Some(Entry::All(broadcast)) => {
                let worker = self.cursor;
                let control = broadcast.control();
                let next = worker.checked_add(1).filter(|&next| usize::from(next) < self.workers.get());
                if next.is_some() {
                    self.entries.push_front(Entry::All(broadcast));
                }
                self.cursor = next.unwrap_or(0);
                Output::Control(worker, control)
            }
        };
        if self.entries.is_empty() {
            self.entries.shrink_to(KEPT);
        }
        Some(output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::MAX_WORKERS;

    #[test]
    fn what_is_for_all_workers_reaches_each_of_as_many_as_there_can_be() {
        for workers in [1, 2, 255, MAX_WORKERS] {
            let mut queue = OutputQueue::new(WorkerCount::nearest(workers));
            for mtu in [1420, 1280] {
                queue.all(Broadcast::Mtu(mtu));
            }
            let mut reached = Vec::new();
            while let Some(Output::Control(worker, Control::Mtu(mtu))) = queue.pop() {
                reached.push((mtu, usize::from(worker)));
            }
            let each: Vec<_> =
                [1420, 1280].iter().flat_map(|&mtu| (0..workers).map(move |id| (mtu, id))).collect();
            assert_eq!(reached, each, "{workers} workers");
        }
    }
}
