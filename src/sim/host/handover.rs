//! A hand-over: the program of a host is replaced by another one while it runs. The slow path does what the driver does
//! (`slowpath/handover/`), a step at a time, among the steps of the workers; then the new program stands in the place of the old.

use super::{SimHost, VirtualWorker, WORK_AHEAD};
use crate::dataplane::misdirected::Misdirected;
use crate::dataplane::record::WorkerRecord;
use crate::dataplane::worker::{Worker, WorkerConfig};
use crate::dataplane::{Control, Event, IncomingHandshake};
use crate::device::Now;
use crate::device::handover::{Imported, Quiesce, SocketCount, StateError, StateParts};
use crate::index::WorkerCount;
use crate::io::LocalAddr;
use crate::sim::io::SimIo;
use crate::time::Instant;
use crossbeam::queue::ArrayQueue;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// A hand-over that is to begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HandOverPlan {
    /// How many steps the host's threads have taken when it begins ([`SimHost::steps`]).
    pub at_step: u64,
    /// The number of workers of the new program.
    pub workers: u8,
    /// Whether the new program fails after it was given everything, so that the old one goes on.
    pub fails: bool,
}

/// The hand-overs of a host: the one that is planned, the one that is under way, and how many there were.
#[derive(Default)]
pub(super) struct HandOvers {
    plan: Option<HandOverPlan>,
    under_way: Option<HandOver>,
    done: u64,
}

/// A hand-over that is under way.
struct HandOver {
    plan: HandOverPlan,
    quiesce: Quiesce,
    /// The records of the workers, once all rest.
    records: Option<Arc<ArrayQueue<WorkerRecord>>>,
}

impl SimHost {
    /// Has the host's program replaced by another one.
    pub fn plan_hand_over(&mut self, plan: HandOverPlan) {
        self.passing.plan = Some(plan);
    }

    /// How many hand-overs there were, those that failed among them.
    pub fn hand_overs(&self) -> u64 {
        self.passing.done
    }

    /// Begins a hand-over, if it is time. What is done in pieces is finished, and so is the work of handshakes.
    pub(super) fn begin_hand_over(&mut self, now: Now) -> bool {
        let due = |plan: &mut HandOverPlan| plan.at_step <= self.steps;
        let stalled = self.slow_path_stalled || now.mono < self.slow_path_stalled_until;
        if self.passing.under_way.is_some() || stalled {
            return false;
        }
        let Some(plan) = self.passing.plan.take_if(due) else { return false };
        self.device.finish_pieces(now);
        while let Some(work) = self.handshakes.pop_front() {
            self.handshakes.extend(self.device.continue_handshake(now, work.run()));
            debug_assert!(self.handshakes.len() <= WORK_AHEAD);
        }
        self.drain_outputs();
        let quiesce = Quiesce::begin(WorkerCount::nearest(self.lanes.len()));
        self.ask_to_rest(quiesce.round());
        self.passing.under_way = Some(HandOver { plan, quiesce, records: None });
        true
    }

    fn ask_to_rest(&mut self, round: u32) {
        let at = self.at;
        self.lanes.iter_mut().for_each(|lane| lane.queue(at, Control::Rest(round)));
    }

    /// Notes that a worker was given a control.
    pub(super) fn disturb_hand_over(&mut self) {
        self.passing.under_way.iter_mut().for_each(|hand_over| hand_over.quiesce.disturb());
    }

    /// When the slow path has something to do for a hand-over under way. `None` where there is none, and `Some(None)` where it waits
    /// for the workers.
    pub(super) fn hand_over_due(&self) -> Option<Option<Instant>> {
        let hand_over = self.passing.under_way.as_ref()?;
        let has_events = !self.links.slow.events.is_empty();
        let goes_on = match &hand_over.records {
            Some(records) => records.is_full(),
            None => hand_over.quiesce.is_answered(),
        };
        Some((has_events || goes_on).then_some(Instant::START))
    }

    /// Takes a step of a hand-over under way: handles one event, or goes on to the next round. `None` where there is none.
    pub(super) fn step_hand_over(&mut self, now: Now) -> Option<bool> {
        self.passing.under_way.as_ref()?;
        self.links.slow.waker.clear();
        match self.links.slow.events.pop() {
            Some(Event::Rested(worker, round)) => {
                self.passing
                    .under_way
                    .iter_mut()
                    .for_each(|hand_over| hand_over.quiesce.rested(worker, round));
                return Some(true);
            }
            Some(event) => {
                self.device.handle_event(now, event);
                self.drain_outputs();
                return Some(true);
            }
            None => {}
        }
        let HandOver { quiesce, records, .. } = self.passing.under_way.as_mut()?;
        if records.is_some() || !quiesce.is_answered() {
            return Some(false);
        }
        match quiesce.ends() {
            false => {
                let round = quiesce.round();
                self.ask_to_rest(round);
            }
            true => {
                let queue = Arc::new(ArrayQueue::new(self.lanes.len()));
                *records = Some(Arc::clone(&queue));
                let at = self.at;
                self.lanes.iter_mut().for_each(|lane| lane.queue(at, Control::Record(Arc::clone(&queue))));
            }
        }
        Some(true)
    }

    /// Replaces the program once all workers have left their records. True where that was done.
    pub(super) fn finish_hand_over(&mut self, now: Now) -> bool {
        let is_there = |hand_over: &mut HandOver| hand_over.records.as_ref().is_some_and(|all| all.is_full());
        let Some(HandOver { plan, records, .. }) = self.passing.under_way.take_if(is_there) else {
            return false;
        };
        let records = records
            .into_iter()
            .flat_map(|records| std::iter::from_fn(move || records.pop()).collect::<Vec<_>>());
        let slow = &self.links.slow;
        let waiting: Vec<IncomingHandshake> = std::iter::from_fn(|| slow.handshakes.pop()).collect();
        let count = self.port.map_or(0, |_| self.lanes.len() as u16);
        let sockets = SocketCount { v4: count, v6: count };
        let parts = StateParts { workers: records.collect(), handshakes: waiting.clone(), sockets };
        let state = match self.device.export(now, parts) {
            Ok(state) => state,
            Err(error) => return self.hand_over_failed(&error.to_string()),
        };
        // What the noting of sessions may have made.
        self.drain_outputs();
        self.passing.done += 1;
        if plan.fails {
            let at = self.at;
            self.lanes.iter_mut().for_each(|lane| lane.queue(at, Control::Resume));
            self.give_back(waiting);
            return true;
        }
        match self.succeeded(&state, plan.workers) {
            Ok(next) => *self = next,
            Err(error) => return self.hand_over_failed(&error.to_string()),
        }
        true
    }

    fn hand_over_failed(&mut self, why: &str) -> bool {
        self.violations.push(format!("hand-over: {why}"));
        true
    }

    /// The host with the new program.
    fn succeeded(&mut self, state: &[u8], workers: u8) -> Result<SimHost, Box<dyn std::error::Error>> {
        let mut config = self.config.clone();
        config.workers = workers;
        let mut next = SimHost::new(config, self.rng.fork())?;
        let imported = next.device.import(state, None)?;
        next.take_over_surroundings(self);
        let slots = next.slots_by_old(self);
        next.wiretap = std::mem::take(&mut self.wiretap).taken_over(&slots);
        let strays = next.take_over_lanes(std::mem::take(&mut self.lanes))?;
        next.drain_outputs();
        if next.indices.keys().collect::<std::collections::BTreeSet<_>>()
            != self.indices.keys().collect::<std::collections::BTreeSet<_>>()
        {
            next.violations.push(format!(
                "hand-over: {} sessions became {}",
                self.indices.len(),
                next.indices.len()
            ));
        }
        next.restore_workers();
        if workers == self.config.workers {
            next.check_round_trip(state, &imported)?;
        }
        next.go_on(imported, strays);
        Ok(next)
    }

    /// Takes over what is around the program: the host, its kernel, and what the test has asked for.
    fn take_over_surroundings(&mut self, old: &mut SimHost) {
        (self.wall_ahead, self.wall_behind) = (old.wall_ahead, old.wall_behind);
        (self.steer_tun, self.echo, self.faults) = (old.steer_tun, old.echo, old.faults);
        (self.bind_error, self.expects_refusals) = (old.bind_error, old.expects_refusals);
        (self.suspended_until, self.slow_path_stalled_until) =
            (old.suspended_until, old.slow_path_stalled_until);
        (self.port, self.at, self.controls) = (old.port, old.at, old.controls);
        (self.steps, self.passing.done, self.passing.plan) = (old.steps, old.passing.done, old.passing.plan);
        self.forwards = std::mem::take(&mut old.forwards);
        self.steering = std::mem::take(&mut old.steering);
        self.delivered = std::mem::take(&mut old.delivered);
        self.answered = std::mem::take(&mut old.answered);
        self.others = std::mem::take(&mut old.others);
        self.refused = std::mem::take(&mut old.refused);
        self.violations = std::mem::take(&mut old.violations);
        self.readdress(old.addresses.clone(), old.uplinks.clone());
    }

    /// The slot of each peer by the one that it had.
    fn slots_by_old(&self, old: &SimHost) -> HashMap<u32, u32> {
        let new: HashMap<_, _> =
            self.device.peer_infos().map(|peer| (*peer.public_key, peer.shared.id.slot)).collect();
        let slots = old.device.peer_infos().map(|peer| (peer.shared.id.slot, new.get(peer.public_key)));
        slots.filter_map(|(old, new)| Some((old, *new?))).collect()
    }

    /// Takes over sockets and queues of the TUN device. What those hold of which there are too many is returned, for the worker that
    /// takes it: frames, and datagrams.
    fn take_over_lanes(&mut self, old: Vec<VirtualWorker>) -> std::io::Result<Vec<(usize, SimIo)>> {
        let mut lanes = old.into_iter();
        let port = self.port;
        let mut taken = Vec::new();
        for (id, lane) in std::mem::take(&mut self.lanes).into_iter().enumerate() {
            let help = (self.config.assist > 0).then(|| (Arc::clone(&self.links.assist), self.rng.fork()));
            let (io, stalled_until) = match lanes.next() {
                Some(old) => (old.io.handed_over(help), old.stalled_until),
                None => {
                    let mut io = lane.io.handed_over(help);
                    io.join(port);
                    io.fail(self.faults.io, self.rng.fork());
                    (io, Instant::START)
                }
            };
            let config = WorkerConfig { id: id as u8, mtu: self.config.mtu, coalesce: self.config.coalesce };
            taken.push(VirtualWorker {
                worker: Worker::new(config, &self.links).at_rest(),
                io,
                backlog: VecDeque::new(),
                busy: true,
                rung: false,
                stalled_until,
                stopped: false,
            });
        }
        self.lanes = taken;
        let workers = self.lanes.len();
        Ok(lanes.enumerate().map(|(more, lane)| ((workers + more) % workers, lane.io)).collect())
    }

    /// Has the workers take over their sessions. None goes on before all have.
    fn restore_workers(&mut self) {
        for (lane, inbox) in self.lanes.iter_mut().zip(&self.links.workers) {
            while let Some((_, control)) = lane.backlog.pop_front() {
                if let Err(control) = inbox.controls.push(control) {
                    lane.backlog.push_front((self.at, control));
                }
                lane.worker.turn(&mut lane.io, self.at);
            }
        }
    }

    /// Exports what was imported, and compares.
    fn check_round_trip(&mut self, state: &[u8], imported: &Imported) -> Result<(), StateError> {
        let records = Arc::new(ArrayQueue::new(self.lanes.len()));
        for (lane, inbox) in self.lanes.iter_mut().zip(&self.links.workers) {
            let _ = inbox.controls.push(Control::Record(Arc::clone(&records)));
            lane.worker.turn(&mut lane.io, self.at);
        }
        let mut workers: Vec<WorkerRecord> = std::iter::from_fn(|| records.pop()).collect();
        workers.sort_by_key(|record| record.worker);
        for (record, frames) in workers.iter_mut().zip(&imported.frames) {
            record.frames.clone_from(frames);
        }
        let now = Now { mono: self.at, wall: Duration::ZERO };
        let parts =
            StateParts { workers, handshakes: imported.handshakes.clone(), sockets: imported.sockets };
        if *self.device.export(now, parts)? != state {
            self.violations.push("hand-over: what was taken over is not what was handed over".into());
        }
        Ok(())
    }

    /// Lets the workers go on, with what waited for them.
    fn go_on(&mut self, imported: Imported, strays: Vec<(usize, SimIo)>) {
        let mut frames = imported.frames;
        let mut datagrams: Vec<Vec<Misdirected>> = self.lanes.iter().map(|_| Vec::new()).collect();
        for (worker, mut io) in strays {
            let (received, waiting) = io.drain();
            frames[worker].extend(waiting.into_iter().map(Vec::into_boxed_slice));
            for (datagram, interface) in received {
                let stray = Misdirected {
                    stride: datagram.bytes.len(),
                    from: datagram.from,
                    to: Some(LocalAddr { ip: datagram.to.ip(), interface }),
                    ecn: datagram.ecn,
                    bytes: datagram.bytes.as_ref().into(),
                };
                datagrams[worker].push(stray);
            }
        }
        let at = self.at;
        for ((lane, frames), datagrams) in self.lanes.iter_mut().zip(frames).zip(datagrams) {
            lane.queue(at, Control::Datagrams(datagrams));
            lane.queue(at, Control::Frames(frames));
            lane.queue(at, Control::Resume);
        }
        self.give_back(imported.handshakes);
        self.touched = true;
    }

    /// Leaves handshake messages to the slow path again.
    fn give_back(&mut self, messages: Vec<IncomingHandshake>) {
        for message in messages {
            self.links.slow.handshakes.push(message);
        }
        self.links.slow.waker.wake();
    }
}
