//! The worker: one turn takes controls, TUN frames and UDP trains to completion.
//!
//! ```text
//! controls ─► peers, routes, sessions
//! misdirected ┐
//! io.recv_udp ─► rx: open ─► check ─► coalesce ─► io.write_tun
//! io.recv_tun ─► tx: route ─► split ─► seal ────► io.send_udp
//!                      └─► staged, until a session is installed
//! ```
//!
//! All of it runs on one thread, to completion: at the end of a turn nothing is half done but what is staged, and what other workers
//! open or seal (`dataplane/assist.rs`).

mod control;
mod hash;
mod limiting;
mod loops;
mod outbox;
mod padding;
mod patience;
mod peers;
mod receiving;
mod reorder;
mod rest;
mod rx;
mod staged;
#[cfg(test)]
mod tests;
mod trains;
mod tx;
mod unreachable;

use crate::crypto::stack;
use crate::dataplane::assist::JobKind;
use crate::dataplane::histograms::Turns;
use crate::dataplane::stats::add;
use crate::dataplane::{Event, Inbox, Links};
use crate::io::Io;
use crate::offload::coalesce::CoalesceOptions;
use crate::sys::trace;
use crate::time::Instant;
use outbox::WorkerOutbox;
use padding::Padding;
use patience::{Done, Patience};
use peers::Peers;
use reorder::Reorder;
use rest::Rest;
use rx::{Receiver, Rx};
use std::sync::Arc;
use std::time::Duration;
use trains::OpenTrains;
use tx::{Sender, WaitingSend};
use unreachable::UnreachableSender;

/// Most controls of a turn: a bulk configuration change must not keep packets waiting for long.
const CONTROL_BUDGET: usize = 256;
/// What one turn may take from each of the TUN queue, the sockets and the other workers: 64 small frames or trains, or 16
/// large ones.
const TRAFFIC_BUDGET: usize = 64;
/// Trains of other workers that a turn does at most: some 80 µs.
const HELP_BUDGET: usize = 4;
/// How long a worker that did trains for others goes on looking for more, instead of sleeping: to be woken takes as long.
const HELP_PATIENCE: Duration = Duration::from_micros(100);
/// How much of [`TRAFFIC_BUDGET`] a large frame or train costs.
const LARGE_COST: usize = 4;
/// Most bytes of a small frame or train.
const SMALL_MAX: usize = 2048;

/// The properties of a worker.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Its number, which is the low byte of its receiver indices.
    pub id: u8,
    /// The interface's MTU in bytes.
    pub mtu: u32,
    /// Which super-packets the TUN device accepts.
    pub coalesce: CoalesceOptions,
}

/// What a worker does after a turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Turn {
    /// It takes another turn at once, as more may be ready.
    Busy,
    /// It may sleep until something happens.
    Idle,
    /// It ends, as [`crate::dataplane::Control::Stop`] came.
    Stop,
}

/// A worker, without its edge.
pub struct Worker {
    id: u8,
    padding: Padding,
    inbox: Inbox,
    outbox: WorkerOutbox,
    peers: Peers,
    unreachable: UnreachableSender,
    rx: Rx,
    /// The trains that others seal for it.
    sealing: Reorder<WaitingSend>,
    /// When it last did trains for others.
    helped_at: Option<Instant>,
    /// Whether a control was carried out in this turn, which may have ended the life of a key.
    had_control: bool,
    /// The rest, while the tunnel is handed to another process.
    rest: Option<Rest>,
    turns: Turns,
}

impl Worker {
    /// Makes worker `config.id` of `links`, which must have that many.
    pub fn new(config: WorkerConfig, links: &Links) -> Worker {
        Worker {
            id: config.id,
            padding: Padding::new(config.mtu),
            inbox: links.workers[usize::from(config.id)].clone(),
            outbox: WorkerOutbox::new(config.id, links),
            peers: Peers::new(Arc::clone(&links.staging)),
            unreachable: UnreachableSender::default(),
            rx: Rx::new(config.coalesce, Reorder::new(config.id, JobKind::Open, Arc::clone(&links.assist))),
            sealing: Reorder::new(config.id, JobKind::Seal, Arc::clone(&links.assist)),
            helped_at: None,
            had_control: false,
            rest: None,
            turns: Turns::default(),
        }
    }

    /// The worker's counters.
    #[cfg(feature = "internals")]
    pub fn stats(&self) -> Arc<crate::dataplane::stats::WorkerStats> {
        self.outbox.stats.clone()
    }

    /// How many sessions it receives on.
    #[cfg(feature = "internals")]
    pub fn sessions(&self) -> usize {
        self.rx.sessions()
    }

    /// Takes one turn: carries what is ready to completion, within fixed budgets.
    pub fn turn<I: Io>(&mut self, io: &mut I, now: Instant) -> Turn {
        trace::turn_begin(self.id);
        let turn = self.take_all(io, now);
        io.flush();
        self.take_notices(io);
        let turn = self.report_rest(io, now, turn);
        self.outbox.ring();
        let stats = &self.outbox.stats;
        stats.add_refusals(&self.rx.take_refusals());
        let io_stats = io.stats();
        stats.publish_io(&io_stats);
        add(&stats.turns, 1);
        self.turns.note(stats, io_stats.awake_nanos, &self.inbox.histograms);
        trace::turn_end(self.id, turn as u8);
        turn
    }

    /// Takes turns until stopped (`Ok`), or until the TUN device is gone, which it reports to the slow path.
    ///
    /// # Errors
    ///
    /// Where the TUN device is gone.
    pub fn run<I: Io>(mut self, io: &mut I) -> std::io::Result<()> {
        let mut until = Some(Instant::START);
        let mut patience = Patience::default();
        let mut done = Done::by(&self.outbox.stats);
        if self.rests() {
            io.rest(true);
        }
        loop {
            let waited = io.wait(until);
            self.rx.reorder.assist.awake(self.id);
            let now = match waited {
                Ok(now) => now,
                Err(error) => {
                    self.outbox.emit(Event::WorkerEnded(self.id, error.to_string()));
                    self.outbox.ring();
                    return Err(error);
                }
            };
            let turn = stack::apart(|| self.turn(io, now));
            if std::mem::take(&mut self.had_control) {
                stack::wipe();
            }
            until = match turn {
                Turn::Busy => Some(now),
                Turn::Idle => {
                    let stats = &self.outbox.stats;
                    let before = std::mem::replace(&mut done, Done::by(stats));
                    let patience = patience.wait_until(now, done.since(before), stats);
                    let until = patience.into_iter().chain(self.rests_until()).min();
                    if self.is_needed(now) { Some(now) } else { until }
                }
                Turn::Stop => return Ok(()),
            };
        }
    }

    /// Whether an idle worker has trains of others to do, or may have in a moment. Otherwise it may sleep.
    fn is_needed(&mut self, now: Instant) -> bool {
        if !self.rx.reorder.assist.is_engaged() {
            return false;
        }
        if self.helped_at.is_some_and(|at| now.since(at) < HELP_PATIENCE) {
            return true;
        }
        let may_sleep = self.sealing.assist.may_sleep(self.id);
        if may_sleep && self.helped_at.take().is_some() {
            // The sessions of others whose keys these were may end, and this worker is not told.
            stack::wipe();
        }
        !may_sleep
    }

    fn take_all<I: Io>(&mut self, io: &mut I, now: Instant) -> Turn {
        let Some(controls) = self.take_controls(io, now) else { return Turn::Stop };
        let misdirected = self.take_misdirected(io, now);
        let trains = self.take_trains(io, now);
        let frames = self.take_frames(io, now);
        let helped = self.help(now);
        if controls || misdirected || frames || trains || helped { Turn::Busy } else { Turn::Idle }
    }

    /// Carries out what the slow path asked for. Returns whether the budget was used up, and `None` where the worker must
    /// stop.
    fn take_controls<I: Io>(&mut self, io: &mut I, now: Instant) -> Option<bool> {
        for _ in 0..CONTROL_BUDGET {
            let Some(control) = self.inbox.controls.pop() else { return Some(false) };
            self.had_control = true;
            if !self.control(io, now, control) {
                return None;
            }
        }
        Some(true)
    }

    /// Takes what other workers received for this one. Returns whether the budget was used up.
    fn take_misdirected<I: Io>(&mut self, io: &mut I, now: Instant) -> bool {
        let mut budget = TRAFFIC_BUDGET;
        while budget > 0 {
            let Some(misdirected) = self.inbox.misdirected.pop() else { return false };
            budget = budget.saturating_sub(cost(misdirected.bytes.len()));
            self.receiver(io, now).misdirected(&misdirected);
        }
        true
    }

    /// Takes frames from the TUN queue towards UDP. Returns whether the budget was used up.
    fn take_frames<I: Io>(&mut self, io: &mut I, now: Instant) -> bool {
        let mut sender = self.sender(io, now);
        let before = sender.frames_taken();
        // A large frame makes two trains. No more are read than there is room for among those that others seal.
        let mut budget = TRAFFIC_BUDGET.min(LARGE_COST / 2 * sender.sealing.room());
        while budget > 0 {
            let Some(frame) = sender.io.recv_tun() else { break };
            budget = budget.saturating_sub(cost(frame.len));
            sender.frame(frame.buf.get(..frame.len).unwrap_or_default());
        }
        // Counted by what is counted anyway: a sum of its own would cost each frame more than the tracepoint costs the turn.
        let [frames, supers] = sender.frames_taken();
        if frames != before[0] {
            trace::tun_read(sender.outbox.id, frames.wrapping_sub(before[0]), supers.wrapping_sub(before[1]));
        }
        // As long as another worker is at the oldest train, this one looks for it again and again.
        let waits = sender.finish();
        budget == 0 || waits
    }

    /// Takes trains from the UDP sockets towards TUN. Returns whether the budget was used up.
    fn take_trains<I: Io>(&mut self, io: &mut I, now: Instant) -> bool {
        let mut receiver = self.receiver(io, now);
        let mut budget = TRAFFIC_BUDGET;
        while budget > 0 && !receiver.rx.reorder.is_full() {
            let Some(train) = receiver.io.recv_udp() else { break };
            budget = budget.saturating_sub(cost(train.len));
            receiver.train(train);
        }
        if !receiver.rx.reorder.is_empty() {
            receiver.rx.reorder.assist.ring(receiver.id);
            receiver.release();
        }
        // As long as another worker is at the oldest train, this one looks for it again and again.
        let waits = !receiver.rx.reorder.is_empty();
        if receiver.rx.reorder.note_waiting(now) {
            add(&receiver.outbox.stats.rx_assist_stalls, 1);
        }
        // This comes before the frames, as what is written to the TUN device is often answered there at once.
        receiver.io.flush();
        budget == 0 || waits
    }

    /// Opens and seals trains for other workers. Returns whether there were any.
    fn help(&mut self, now: Instant) -> bool {
        if !self.rx.reorder.assist.is_engaged() {
            return false;
        }
        let stats = &self.outbox.stats;
        let mut helped = false;
        for kind in (0..HELP_BUDGET).map_while(|_| self.sealing.assist.work_once()) {
            let counter = if kind == JobKind::Open { &stats.rx_assisted } else { &stats.tx_assisted };
            add(counter, 1);
            helped = true;
        }
        if helped {
            self.helped_at = Some(now);
        }
        helped
    }

    /// Takes what the backend noticed while it sent and wrote: super-packets that the TUN device refuses, source addresses that are
    /// gone, and notices for the log.
    fn take_notices<I: Io>(&mut self, io: &mut I) {
        self.rx.give_up(io.tun_refuses());
        while let Some(gone) = io.take_source_gone() {
            let peer = self.peers.directory.get(gone.peer);
            let Some(peer) = peer.filter(|peer| peer.sending.load().endpoint() == Some(gone.endpoint)) else {
                continue;
            };
            // Where the event finds no room, the source stays: the next send that fails to use it notices it again.
            if self.outbox.emit(Event::SourceGone(peer.id)) {
                peer.sending.loosen(gone.endpoint);
                add(&self.outbox.stats.tx_source_gone, 1);
            }
        }
        while let Some(notice) = io.take_notice() {
            self.outbox.notice(self.id, notice);
        }
    }

    fn sender<'a, I: Io>(&'a mut self, io: &'a mut I, now: Instant) -> Sender<'a, I> {
        let Peers { directory, routes, staged, loops } = &mut self.peers;
        Sender {
            sealing: &mut self.sealing,
            io,
            directory,
            routes,
            staged,
            loops,
            outbox: &mut self.outbox,
            unreachable: &mut self.unreachable,
            padding: &self.padding,
            now,
            open: OpenTrains::default(),
        }
    }

    fn receiver<'a, I: Io>(&'a mut self, io: &'a mut I, now: Instant) -> Receiver<'a, I> {
        let Worker { id, peers, outbox, rx, .. } = self;
        Receiver { id: *id, io, routes: &peers.routes, outbox, rx, now }
    }
}

/// How much of the budget a frame or train of `len` bytes costs.
fn cost(len: usize) -> usize {
    if len <= SMALL_MAX { 1 } else { LARGE_COST }
}
