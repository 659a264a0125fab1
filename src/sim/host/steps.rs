//! The threads of a host, one step at a time: the slow path and the workers, which sleep until something wakes them.

use super::uplinks::Departing;
use super::{MAX_ROUNDS, SimHost, VirtualWorker, WORK_AHEAD};
use crate::dataplane::worker::Turn;
use crate::device::Now;
use crate::io::SourceGone;
use crate::sim::io::SentDatagram;
use crate::sim::net::Datagram;
use crate::sim::packet::{self, Delivered, Flow, Inner};
use crate::time::Instant;
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;

impl VirtualWorker {
    /// When it has something to do, at the latest.
    fn due(&self) -> Option<Instant> {
        if self.stopped {
            return None;
        }
        let woken = (self.rung || self.io.readable()).then_some(self.io.deaf_until);
        let busy = self.busy.then_some(Instant::START);
        let control = self.backlog.front().map(|(due, _)| *due);
        let rest = self.worker.rests_until();
        let due = [busy, woken, control, self.io.room_at(), rest].into_iter().flatten().min();
        due.map(|due| due.max(self.stalled_until))
    }
}

impl SimHost {
    /// When something is left to do here, at the latest.
    pub(crate) fn due(&self) -> Option<Instant> {
        let touched = self.touched.then_some(Instant::START);
        let lanes = self.lanes.iter().filter_map(VirtualWorker::due);
        let due = lanes.chain(touched).chain(self.slow_path_due()).min();
        due.map(|due| due.max(self.suspended_until))
    }

    /// When the slow path has something to do, at the latest.
    fn slow_path_due(&self) -> Option<Instant> {
        if self.slow_path_stalled {
            return None;
        }
        let slow = &self.links.slow;
        if let Some(due) = self.hand_over_due() {
            return due.map(|due| due.max(self.slow_path_stalled_until));
        }
        let queued = !slow.events.is_empty() || slow.handshakes.waiting() > 0;
        // It looks at its queues where it was rung, and goes on until they are empty.
        let waits = (self.slow_path_rung || self.work_pending) && queued;
        let at_once = waits || !self.handshakes.is_empty() || self.device.has_unchecked_sources();
        let at_once = at_once.then_some(Instant::START);
        let due = [at_once, self.device.poll_timeout()].into_iter().flatten().min();
        due.map(|due| due.max(self.slow_path_stalled_until))
    }

    /// Runs the slow path and the workers, one step each in a random order, until nothing is left to do at `now`. Returns the
    /// datagrams that were sent.
    pub(crate) fn settle(&mut self, now: Now) -> Vec<Datagram> {
        self.at = now.mono;
        if now.mono < self.suspended_until {
            return Vec::new();
        }
        self.touched = false;
        // Direct calls of the device may have left outputs.
        self.drain_outputs();
        let mut sent = Vec::new();
        let mut order: Vec<usize> = (0..=self.lanes.len()).collect();
        for _ in 0..MAX_ROUNDS {
            self.decide_on_assist();
            self.hear_rings();
            self.rng.shuffle(&mut order);
            let mut progress = false;
            for actor in order.clone() {
                if self.begin_hand_over(now) {
                    progress = true;
                }
                // Now and then one is late, as threads are, and another has two steps.
                if self.rng.chance(150) {
                    progress |= self.ready(actor, now.mono);
                } else if actor == self.lanes.len() {
                    progress |= self.step_device(now);
                } else {
                    progress |= self.step_worker(actor, now.mono, &mut sent);
                }
                self.steps += 1;
                if self.finish_hand_over(now) {
                    (progress, order) = (true, (0..=self.lanes.len()).collect());
                    break;
                }
            }
            if !progress {
                return sent;
            }
        }
        self.violations.push(format!("busy for {MAX_ROUNDS} rounds at {:?}", now.mono));
        sent
    }

    /// Begins or ceases to assist peers, whatever their load.
    fn decide_on_assist(&mut self) {
        let (chance, rng) = (self.config.assist, &mut self.rng);
        if chance == 0 {
            return;
        }
        for peer in self.device.peer_infos() {
            for flag in [&peer.shared.assisted, &peer.shared.seal_assisted] {
                flag.fetch_xor(rng.chance(chance), Relaxed);
            }
        }
        self.links.assist.engage(usize::from(!rng.chance(chance)));
    }

    /// Notes who was rung. Nobody looks at a mailbox without that, so that a ring which is forgotten shows.
    fn hear_rings(&mut self) {
        for (lane, inbox) in self.lanes.iter_mut().zip(&self.links.workers) {
            lane.rung |= inbox.waker.clear();
        }
        self.slow_path_rung |= self.links.slow.waker.clear();
    }

    fn ready(&self, actor: usize, now: Instant) -> bool {
        let due = match self.lanes.get(actor) {
            Some(lane) => lane.due(),
            None => self.slow_path_due(),
        };
        due.is_some_and(|due| due <= now)
    }

    fn step_worker(&mut self, id: usize, now: Instant, sent: &mut Vec<Datagram>) -> bool {
        let ready = self.ready(id, now);
        let Some(lane) = self.lanes.get_mut(id).filter(|lane| lane.stalled_until <= now) else {
            return false;
        };
        lane.io.now = now;
        if ready {
            if let Some(inbox) = self.links.workers.get(id) {
                while lane.backlog.front().is_some_and(|(due, _)| *due <= now) {
                    let Some((due, control)) = lane.backlog.pop_front() else { break };
                    if let Err(control) = inbox.controls.push(control) {
                        lane.backlog.push_front((due, control));
                        break;
                    }
                }
                // The ring is taken back before the mailboxes are looked at.
                inbox.waker.clear();
            }
            lane.rung = false;
            let turn = lane.worker.turn(&mut lane.io, now);
            lane.busy = turn == Turn::Busy;
            lane.stopped |= turn == Turn::Stop;
        }
        let (outgoing, written) = (lane.io.take_sent(), lane.io.take_written());
        for out in outgoing {
            self.wiretap.sent(&out);
            self.depart(id, out, sent);
        }
        for frame in written {
            match packet::receive(&frame) {
                Ok(packets) => packets.into_iter().for_each(|packet| match packet {
                    Delivered::Packet(inner) => self.take_packet(inner),
                    Delivered::Other(other) => self.others.push(other),
                }),
                Err(_) if self.expects_refusals => self.refused.push(frame),
                Err(why) => self.violations.push(why),
            }
        }
        ready
    }

    /// Sends a worker's datagram from the address and by the way that the routing tables say.
    fn depart(&mut self, id: usize, out: SentDatagram, sent: &mut Vec<Datagram>) {
        let departing = self.uplinks.depart(&self.addresses, out.told, out.to.addr.is_ipv4());
        let Some(lane) = self.lanes.get_mut(id) else { return };
        if let (Departing::FromAnother(_) | Departing::Unreachable, Some(_), Some(peer)) =
            (departing, out.told, out.peer)
        {
            lane.io.report_source_gone(SourceGone { peer, endpoint: out.to });
            lane.busy = true;
        }
        match (departing, self.port) {
            (Departing::Lost, Some(_)) => {}
            (Departing::From(ip) | Departing::FromAnother(ip), Some(port)) => {
                let from = SocketAddr::new(ip, port);
                let datagram = Datagram { from, to: out.to.addr, ecn: out.ecn, bytes: out.bytes };
                self.check_index(&datagram);
                sent.push(datagram);
            }
            _ => lane.io.count_send_errors(1),
        }
    }

    fn take_packet(&mut self, inner: Inner) {
        if self.echo && inner.flow.destination.port() == super::ECHO_PORT {
            let (source, destination) = (inner.flow.destination, inner.flow.source);
            let answer = Inner { flow: Flow { source, destination, ..inner.flow }, ..inner.clone() };
            if self.send(&answer.flow, answer.to_frame()) {
                self.answered.push(answer);
            }
        } else if self.forwards_for(inner.flow.destination.ip()) {
            // What finds no room is lost, as in a router.
            self.send(&inner.flow, inner.to_frame());
        }
        self.delivered.push(inner);
    }

    /// Handles one event, one handshake message or the timers, whichever chance picks among those that wait.
    fn step_device(&mut self, now: Now) -> bool {
        if self.slow_path_stalled || now.mono < self.slow_path_stalled_until {
            return false;
        }
        if let Some(progress) = self.step_hand_over(now) {
            return progress;
        }
        self.work_pending |= std::mem::take(&mut self.slow_path_rung);
        if self.work_pending {
            self.links.slow.waker.clear();
        }
        let slow = &self.links.slow;
        while slow.notices.pop().is_some() {}
        let (events, messages) = (!slow.events.is_empty(), slow.handshakes.waiting() > 0);
        let looks = self.work_pending;
        self.work_pending &= events || messages;
        let due = self.device.poll_timeout().is_some_and(|at| at <= now.mono);
        let handshakes = looks && messages && self.handshakes.len() < WORK_AHEAD;
        let mut waiting = [
            (looks && events, 0),
            (handshakes, 1),
            (due, 2),
            (!self.handshakes.is_empty(), 3),
            (self.device.has_unchecked_sources(), 4),
        ];
        self.rng.shuffle(&mut waiting);
        match waiting.iter().find(|(waits, _)| *waits) {
            Some((_, 0)) => {
                if let Some(event) = slow.events.pop() {
                    self.device.handle_event(now, event);
                }
            }
            Some((_, 1)) => {
                if let Some(message) = slow.handshakes.pop() {
                    self.handshakes.extend(self.device.begin_handshake(now, &message));
                }
            }
            Some((_, 3)) => {
                if let Some(work) = self.handshakes.pop_front() {
                    self.handshakes.extend(self.device.continue_handshake(now, work.run()));
                }
            }
            Some((_, 4)) => self.device.check_sources(),
            Some(_) => self.device.handle_timeout(now),
            None => return self.drain_outputs(),
        }
        self.drain_outputs();
        true
    }
}
