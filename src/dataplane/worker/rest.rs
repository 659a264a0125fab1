//! A worker at rest, while the tunnel is handed to another process: it takes nothing in, finishes what it has, and reports that.
//! Then it leaves a record, from which another process goes on, or it goes on itself.
//!
//! A worker that finishes may still pass datagrams on to another. So the slow path asks all of them more than once, until a round
//! in which nobody had anything left (`device/handover/quiesce.rs`).

use super::{Turn, Worker};
use crate::dataplane::Event;
use crate::dataplane::misdirected::Misdirected;
use crate::dataplane::record::{ReceivingRecord, RestoredSession, WorkerRecord};
use crate::io::Io;
use crate::time::Instant;
use crossbeam::queue::ArrayQueue;
use std::time::Duration;

/// How long a worker waits until a full socket has taken what it sealed before. What the socket has not taken by then leaves if the
/// worker goes on, and is lost otherwise.
const PATIENCE: Duration = Duration::from_millis(100);

/// A rest that has begun.
#[derive(Clone, Copy)]
pub(super) struct Rest {
    since: Instant,
    /// The number with which the worker has yet to report that it is done.
    unreported: Option<u32>,
}

impl Worker {
    /// Has the worker begin at rest, as the successor of another process's. It must have no backend yet that takes anything in.
    pub fn at_rest(mut self) -> Worker {
        self.rest = Some(Rest { since: Instant::START, unreported: None });
        self
    }

    /// Rests from now on, or goes on resting, and is to report that with the number of this `round`.
    pub(super) fn rest<I: Io>(&mut self, io: &mut I, now: Instant, round: u32) {
        io.rest(true);
        self.receiver(io, now).finish_all();
        self.sender(io, now).finish_all();
        let since = self.rest.take().map_or(now, |rest| rest.since);
        self.rest = Some(Rest { since, unreported: Some(round) });
    }

    /// Goes on.
    pub(super) fn resume<I: Io>(&mut self, io: &mut I) {
        if self.rest.take().is_some() {
            io.rest(false);
        }
    }

    /// Whether the backend is to take nothing in.
    pub(super) fn rests(&self) -> bool {
        self.rest.is_some()
    }

    /// When a worker at rest is to take another turn at the latest.
    pub fn rests_until(&self) -> Option<Instant> {
        self.rest.as_ref().filter(|rest| rest.unreported.is_some()).map(|rest| rest.since + PATIENCE)
    }

    /// Reports that all is done, if it is and the slow path has yet to hear of it. `turn` is what the turn came to.
    pub(super) fn report_rest<I: Io>(&mut self, io: &I, now: Instant, turn: Turn) -> Turn {
        let Some(Rest { since, unreported: Some(round) }) = self.rest else { return turn };
        let is_empty = self.inbox.controls.is_empty() && self.inbox.misdirected.waiting() == 0;
        let has_sent = io.has_sent() || now.since(since) >= PATIENCE;
        let is_done = turn == Turn::Idle && is_empty && self.rx.reorder.is_empty() && self.sealing.is_empty();
        if !is_done || !has_sent {
            return turn;
        }
        if !self.outbox.emit(Event::Rested(self.id, round)) {
            // The queue of the slow path is full, which it is about to empty.
            return Turn::Busy;
        }
        self.rest = Some(Rest { since, unreported: None });
        turn
    }

    /// Leaves a record of what this worker alone has, and rings the slow path.
    pub(super) fn leave_record(&mut self, records: &ArrayQueue<WorkerRecord>) {
        let sessions = self.rx.sessions.values();
        let record = WorkerRecord {
            worker: self.id,
            sessions: sessions
                .map(|receiving| ReceivingRecord {
                    peer: receiving.peer.id,
                    index: receiving.session.local_index(),
                    role: receiving.session.role(),
                    receive: receiving.session.record(),
                    effective: receiving.is_effective(),
                })
                .collect(),
            frames: self.peers.staged.frames().map(Box::from).collect(),
        };
        // There is room for a record of each worker, and the slow path asks each once.
        let _ = records.push(record);
        self.outbox.ring_slow_path();
    }

    /// Takes over sessions of another process's workers.
    pub(super) fn restore(&mut self, sessions: Vec<RestoredSession>) {
        sessions.into_iter().for_each(|session| self.rx.restore(session));
    }

    /// Handles datagrams that nobody has received.
    pub(super) fn take_over_datagrams<I: Io>(&mut self, io: &mut I, now: Instant, datagrams: &[Misdirected]) {
        datagrams.iter().for_each(|datagrams| self.receiver(io, now).misdirected(datagrams));
    }

    /// Handles frames that another process had read from the TUN device.
    pub(super) fn take_over_frames<I: Io>(&mut self, io: &mut I, now: Instant, frames: &[Box<[u8]>]) {
        let mut sender = self.sender(io, now);
        frames.iter().for_each(|frame| sender.frame(frame));
        sender.finish();
    }
}
