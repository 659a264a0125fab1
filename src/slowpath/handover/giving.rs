//! The side of the process that hands its tunnel over.

use super::{
    AT_ONCE, Belongings, HandOverTerms, MAX_NOTE, NotHandedOver, OfferText, TO_REST, TO_RESTORE,
    TunnelSettings,
};
use crate::dataplane::{Control, Event, IncomingHandshake};
use crate::device::events::{DeviceEvent, EventKind};
use crate::device::handover::{FORMAT, Quiesce, SocketCount, StateParts};
use crate::slowpath::driver::{Driver, wall};
use crate::sys::passing::{self, OtherEnd};
use crate::sys::sealed::SealedFile;
use crossbeam::queue::ArrayQueue;
use rustix::event::PollFlags;
use rustix::process::geteuid;
use std::fmt::Write;
use std::io::{Error, ErrorKind, Result};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::Sender;
use zeroize::Zeroizing;

/// How long to sleep at most before looking again at what the workers did.
const LOOK: Duration = Duration::from_millis(2);

/// A process that is to go on with the tunnel.
pub(in crate::slowpath) struct Asking {
    pub(in crate::slowpath) connection: UnixStream,
    /// What the connection's own task waits for. As long as it does, nobody else reads there.
    pub(in crate::slowpath) answer: Sender<Zeroizing<String>>,
}

/// What was interrupted, to be taken up again.
struct Interrupted {
    /// Handshake messages that nobody has handled.
    handshakes: Vec<IncomingHandshake>,
}

/// Why workers did not come to rest, or a hand-over was not finished.
pub(super) enum Setback {
    /// A worker ended, and the tunnel with it.
    WorkerEnded(Error),
    /// Anything else. The tunnel goes on.
    Other(Error),
}

impl From<Error> for Setback {
    fn from(error: Error) -> Setback {
        Setback::Other(error)
    }
}

impl Driver {
    /// Answers a process that asks what would be handed over.
    pub(in crate::slowpath) fn offer(&mut self, connection: Option<UnixStream>) {
        let Some(connection) = connection else { return };
        let until = Instant::now() + AT_ONCE;
        let sent = match self.may_ask(&connection) {
            Ok((_, terms)) => {
                let text = self.offer_text(&terms.settings, &terms.belongings);
                passing::send(connection.as_fd(), &text, &self.offered_files(terms), until)
            }
            Err(refusal) => refuse(&connection, &refusal),
        };
        // Whoever asked and is gone needs no answer.
        sent.unwrap_or_else(|error| log::debug!("an offer was not taken: {error}"));
    }

    /// The process that asks, and what it may have.
    fn may_ask(
        &self,
        connection: &UnixStream,
    ) -> std::result::Result<(OtherEnd, &HandOverTerms), NotHandedOver> {
        let asker = OtherEnd::of(connection.as_fd()).map_err(NotHandedOver::Failed)?;
        if asker.uid != 0 && asker.uid != geteuid().as_raw() {
            return Err(NotHandedOver::NotYours);
        }
        self.terms.as_ref().map(|terms| (asker, terms)).ok_or(NotHandedOver::Kept)
    }

    fn offer_text(&self, settings: &TunnelSettings, belongings: &Belongings) -> String {
        let note = Some(&belongings.note).filter(|note| note.len() <= MAX_NOTE).cloned().unwrap_or_default();
        let text = OfferText {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uid: geteuid().as_raw(),
            settings: *settings,
            queues: self.links.workers.len(),
            has_maps: self.steering.is_some(),
            note,
        };
        // There are only numbers and text in it, none of which can fail.
        format!("offer={}\nerrno=0\n", serde_json::to_string(&text).unwrap_or_default())
    }

    fn offered_files<'a>(&'a self, terms: &'a HandOverTerms) -> Vec<BorrowedFd<'a>> {
        let maps = self.steering.iter().flat_map(|steering| steering.maps());
        let others = terms.queues.iter().chain(&terms.belongings.files).map(AsFd::as_fd);
        [terms.network.as_fd(), terms.listener.as_fd()].into_iter().chain(maps).chain(others).collect()
    }

    /// Hands the tunnel to the process that asked for it. Where that fails, all goes on here.
    ///
    /// # Errors
    ///
    /// Where a worker ended.
    pub(in crate::slowpath) fn hand_over(&mut self) -> Result<()> {
        let Some(Asking { connection, answer: _answer }) = self.asked.take() else { return Ok(()) };
        let asker = match self.may_ask(&connection) {
            Ok((asker, _)) => asker,
            Err(refusal) => {
                // Whoever asked and is gone needs no answer.
                let _ = refuse(&connection, &refusal);
                return Ok(());
            }
        };
        let begun = Instant::now();
        let mut interrupted = Interrupted { handshakes: Vec::new() };
        let setback = match self.give(&connection, &mut interrupted) {
            Ok(()) => {
                log::info!("process {} goes on with the tunnel", asker.pid);
                self.successor = Some(asker.pid);
                return Ok(());
            }
            Err(setback) => setback,
        };
        self.go_on(interrupted);
        let error = match setback {
            Setback::WorkerEnded(error) => return Err(error),
            Setback::Other(error) => error,
        };
        log::warn!(
            "process {} did not take the tunnel over, which goes on here after {} ms: {error}",
            asker.pid,
            begun.elapsed().as_millis()
        );
        let _ = refuse(&connection, &NotHandedOver::Failed(error)); // it may be gone
        let _ = connection.shutdown(Shutdown::Both);
        Ok(())
    }

    fn give(
        &mut self,
        connection: &UnixStream,
        interrupted: &mut Interrupted,
    ) -> std::result::Result<(), Setback> {
        self.finish_handshakes();
        self.device.finish_pieces(self.now());
        self.rest_workers(Instant::now() + TO_REST)?;
        let state = self.state(Instant::now() + TO_REST, interrupted)?;
        let steered = self.group.as_ref().is_some_and(|group| group.steered);
        let sockets = self.group.iter().flat_map(|group| group.all());
        let files: Vec<BorrowedFd<'_>> = [state.as_fd()].into_iter().chain(sockets).collect();
        let text = format!("steered={steered}\nerrno=0\n");
        passing::send(connection.as_fd(), &text, &files, Instant::now() + AT_ONCE)?;
        let parcel = passing::receive(connection.as_fd(), Instant::now() + TO_RESTORE)?;
        if parcel.value("taken") != Some("1") {
            return Err(Error::other("it says that it cannot").into());
        }
        // From here on nothing may be sealed here, as soon as this word has left.
        passing::send(connection.as_fd(), "errno=0\n", &[], Instant::now() + AT_ONCE)?;
        Ok(())
    }

    /// Does what is left of the handshakes that are being worked on.
    fn finish_handshakes(&mut self) {
        while self.helpers.is_busy() {
            match self.helpers.next() {
                Some(result) => {
                    let work = self.device.continue_handshake(self.now(), result);
                    work.into_iter().for_each(|work| self.helpers.give(work));
                }
                // A helper that has the last piece of work is done with it in a moment.
                None if !self.helpers.work() => std::thread::yield_now(),
                None => {}
            }
        }
    }

    /// Has all workers finish what they have taken in, and take in no more.
    pub(super) fn rest_workers(&mut self, until: Instant) -> std::result::Result<(), Setback> {
        self.carry_out();
        let mut quiesce = Quiesce::begin(self.worker_count());
        self.ask_to_rest(quiesce.round());
        loop {
            while let Some(event) = self.links.slow.events.pop() {
                match event {
                    Event::Rested(worker, round) => quiesce.rested(worker, round),
                    Event::WorkerEnded(worker, why) => {
                        return Err(Setback::WorkerEnded(Driver::worker_ended(worker, &why)));
                    }
                    event => self.device.handle_event(self.now(), event),
                }
            }
            self.carry_out();
            if self.has_backlog() {
                quiesce.disturb();
            }
            if quiesce.is_answered() {
                if quiesce.ends() {
                    return Ok(());
                }
                self.ask_to_rest(quiesce.round());
            }
            self.deliver();
            self.wait_for_workers(until)?;
        }
    }

    fn ask_to_rest(&mut self, round: u32) {
        self.send_all(|| Control::Rest(round));
        self.deliver();
    }

    fn wait_for_workers(&self, until: Instant) -> Result<()> {
        if Instant::now() > until {
            return Err(Error::new(ErrorKind::TimedOut, "the workers do not come to rest"));
        }
        passing::poll_for(self.links.slow.waker.as_fd(), PollFlags::IN, LOOK)?;
        self.links.slow.waker.clear();
        Ok(())
    }

    /// The state, once the workers rest.
    fn state(&mut self, until: Instant, interrupted: &mut Interrupted) -> Result<SealedFile> {
        let records = Arc::new(ArrayQueue::new(self.links.workers.len()));
        self.send_all(|| Control::Record(Arc::clone(&records)));
        while self.deliver() | !records.is_full() {
            self.wait_for_workers(until)?;
        }
        let handshakes = &self.links.slow.handshakes;
        interrupted.handshakes.extend(std::iter::from_fn(|| handshakes.pop()));
        let (v4, v6) = self.group.as_ref().map_or((0, 0), |group| group.count());
        let parts = StateParts {
            workers: std::iter::from_fn(|| records.pop()).collect(),
            handshakes: interrupted.handshakes.clone(),
            sockets: SocketCount { v4: v4 as u16, v6: v6 as u16 },
        };
        let state = self.device.export(self.now(), parts).map_err(Error::other)?;
        SealedFile::new(&state)
    }

    /// Goes on as if nobody had asked.
    fn go_on(&mut self, interrupted: Interrupted) {
        if let Some(group) = &mut self.group
            && group.steered
        {
            // The other process may have put its own in place.
            group.settle(false);
        }
        for message in interrupted.handshakes {
            self.links.slow.handshakes.push(message);
        }
        self.send_all(|| Control::Resume);
        self.deliver();
        self.work_pending = true;
    }

    /// Lets go of the tunnel, which goes on in the process with this number.
    pub(in crate::slowpath) fn let_go(&mut self, successor: u32) {
        if let Some(steering) = self.steering.take() {
            steering.leave();
        }
        let kind = EventKind::HandedOver { process: successor };
        self.followers.tell(&DeviceEvent { peer: None, kind }, wall());
    }
}

/// Says why not.
fn refuse(connection: &UnixStream, refusal: &NotHandedOver) -> Result<()> {
    let mut text = String::new();
    let why = refusal.to_string().replace('\n', " ");
    // Writing to a string cannot fail.
    let _ = write!(text, "why={why}\nerrno={}\n", -refusal.errno());
    passing::send(connection.as_fd(), &text, &[], Instant::now() + AT_ONCE)
}
