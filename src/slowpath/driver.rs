//! Carries out what a [`Device`] wants: controls to workers, sockets, marks, steering. In return it brings the device
//! events, handshakes and operations. [`super::runtime`] calls it from its loop.

use crate::dataplane::{Control, Event, Links};
use crate::device::status::Status;
use crate::device::uapi::{Operation, SetRequest};
use crate::device::{BindRequest, ConfigureError, Device, Now, Output, Transaction};
use crate::index::WorkerCount;
use crate::io::steer::{Target, TunSteering};
use crate::io::udp::{self, SocketOptions, UdpConfig, UdpGroup, UdpSockets};
use crate::routing::Prefix;
use crate::slowpath::followers::Followers;
use crate::slowpath::handle::{Commands, Running};
use crate::slowpath::handover::{Asking, HandOverTerms};
use crate::slowpath::helpers::{self, Helpers};
use crate::slowpath::jobs::{Jobs, Request, SliceOutcome};
use crate::slowpath::listening::{LinkEvent, LinkState};
use crate::slowpath::pinning::Pinning;
use crate::sys::clock::Clock;
use crate::sys::refusals;
use crate::sys::source::RoutingTables;
use crate::time::Instant;
use std::collections::VecDeque;
use std::io::{Error, ErrorKind};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use zeroize::Zeroizing;

type Result<T, E = Error> = std::result::Result<T, E>;

/// How long handshakes, and then events, are worked on before timers and the control socket get their turn.
const SLICE: Duration = Duration::from_millis(1);
/// How many controls may wait for a worker before transactions pause, so that what a handshake needs is not far behind:
/// 1024 × ~220 bytes. A slice adds at most a few thousand.
const KEPT: usize = 1024;
/// How many peers a transaction must name or remove for the memory that it needed to be given back.
const LARGE: usize = 1000;
/// How long after such a transaction memory is given back: the workers have let go of what is gone by then.
const TIDY_AFTER: Duration = Duration::from_secs(1);
/// Pause before controls that did not fit a worker's queue are offered again.
const RETRY: Duration = Duration::from_millis(1);
/// How long the workers may take to close our sockets on a port that we left.
const PORT_RELEASE: Duration = Duration::from_millis(500);

/// The device, and everything its [`Output`]s touch.
pub(super) struct Driver {
    pub(super) device: Device,
    pub(super) links: Links,
    /// Controls that did not fit a worker's queue, in order. What one UAPI operation or timeout makes bounds them.
    pub(super) backlog: Vec<VecDeque<Control>>,
    pub(super) group: Option<UdpGroup>,
    /// The port that the sockets left last, and until when the workers may still have sockets on it.
    left: Option<(u16, Instant)>,
    /// A transaction that asks for the port in `left`, and waits for the workers to close their sockets.
    postponed: Option<Box<SetRequest>>,
    pub(super) steering: Option<TunSteering>,
    pinning: Option<Pinning>,
    pub(super) sockets: SocketOptions,
    uring: bool,
    commands: Commands,
    pub(super) helpers: Helpers,
    pub(super) work_pending: bool,
    jobs: Jobs,
    /// When memory is given back, after a large transaction.
    tidy_at: Option<Instant>,
    /// Whether it was logged that the kernel does not steer the UDP sockets.
    warned_unsteered: bool,
    /// How many refused system calls are worth another line of the log.
    refusals_to_tell: u64,
    /// Whether cookies are asked for, as far as it was told.
    pub(super) flooded: bool,
    pub(super) followers: Followers,
    /// What is handed over where another process asks for the tunnel. `None` where it stays in this one.
    pub(super) terms: Option<HandOverTerms>,
    /// A process that is to go on with the tunnel.
    pub(super) asked: Option<Asking>,
    /// The number of the process that goes on with the tunnel.
    pub(super) successor: Option<u32>,
}

impl Driver {
    pub(super) fn new(
        mut device: Device,
        links: Links,
        steering: Option<TunSteering>,
        pinning: Option<Pinning>,
        sockets: SocketOptions,
        uring: bool,
        commands: Commands,
    ) -> Driver {
        let backlog = links.workers.iter().map(|_| VecDeque::new()).collect();
        let stats: Vec<_> = links.workers.iter().map(|inbox| Arc::clone(&inbox.stats)).collect();
        device.follow_workers(stats.clone(), Arc::clone(&links.assist));
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let helpers = Helpers::new(stats, cores, links.slow.waker.clone());
        match RoutingTables::open() {
            Ok(mut routes) => {
                device.set_source_oracle(Box::new(move |departure| routes.may_depart(departure)));
            }
            Err(error) => {
                log::warn!(
                    "cannot ask for routes through netlink: {error}; answers leave from the addresses that peers spoke to"
                );
            }
        }
        Driver {
            device,
            links,
            backlog,
            group: None,
            left: None,
            postponed: None,
            steering,
            pinning,
            sockets,
            uring,
            commands,
            helpers,
            work_pending: false,
            jobs: Jobs::default(),
            tidy_at: None,
            warned_unsteered: false,
            refusals_to_tell: 1,
            flooded: false,
            followers: Followers::default(),
            terms: None,
            asked: None,
            successor: None,
        }
    }

    /// The driver of a tunnel that is handed over on these terms, if on any.
    pub(super) fn with_terms(self, terms: Option<HandOverTerms>) -> Driver {
        Driver { terms, ..self }
    }

    pub(super) fn now(&self) -> Now {
        Now { mono: Clock.now(), wall: wall() }
    }

    /// Does a bounded share of what waits, then the timers. `Err` where a worker ended.
    pub(super) fn take_turn(&mut self) -> Result<()> {
        if self.work_pending {
            self.work_pending = false;
            self.take_events()?;
            self.take_handshakes();
            while let Ok(command) = self.commands.next() {
                self.jobs.command(command);
            }
            self.take_notices();
        }
        let now = self.now();
        self.look_for_flood(now.mono);
        if self.device.poll_timeout().is_some_and(|due| due <= now.mono) {
            self.device.handle_timeout(now);
        }
        self.device.check_sources();
        self.work();
        if let Some(pinning) = &mut self.pinning {
            pinning.look(now.mono);
        }
        self.tell_refusals();
        if self.tidy_at.is_some_and(|due| due <= now.mono) {
            self.tidy();
        }
        if self.jobs.is_changing() || self.postponed.is_some() {
            return Ok(());
        }
        // Between two transactions.
        self.hand_over()
    }

    /// Does a slice of the control socket's operations and of the owner's commands.
    fn work(&mut self) {
        self.jobs.answer(&self.device, self.running());
        let may_begin = self.asked.is_none() || self.jobs.is_changing() || self.postponed.is_some();
        if !self.workers_keep_up() || !may_begin {
            return;
        }
        let now = self.now();
        let request = match self.postponed.take() {
            Some(request) => request,
            None => match self.jobs.change(&mut self.device, now) {
                SliceOutcome::Read(request) => request,
                SliceOutcome::Going | SliceOutcome::Done => return,
            },
        };
        if self.is_left(now.mono, &request) {
            self.postponed = Some(request);
        } else {
            let begun = self.begin(now, *request);
            if begun.as_ref().is_ok_and(|begun| begun.peers() >= LARGE) {
                self.tidy_at = Some(now.mono + TIDY_AFTER);
            }
            self.jobs.begun(begun);
        }
    }

    /// Whether no worker is far behind with its controls.
    fn workers_keep_up(&self) -> bool {
        self.backlog.iter().all(|backlog| backlog.len() < KEPT)
    }

    /// Logs which system calls a filter refused, at the first, and each time that they have doubled.
    fn tell_refusals(&mut self) {
        let refused = refusals::count();
        if refused < self.refusals_to_tell {
            return;
        }
        self.refusals_to_tell = refused.saturating_mul(2);
        let which: Vec<String> =
            refusals::list().iter().map(|(call, times)| format!("number {call} ({times} ×)")).collect();
        log::warn!(
            "the filter of system calls refused {}: nothing in this program is known to need them; \
             --unconfined leaves the filter out",
            which.join(", ")
        );
    }

    fn tidy(&mut self) {
        if self.jobs.has_changes() {
            self.tidy_at = Some(Clock.now() + TIDY_AFTER);
            return;
        }
        self.tidy_at = None;
        self.backlog.iter_mut().for_each(|backlog| backlog.shrink_to(KEPT));
        self.device.tidy();
        // This may take many milliseconds, in which this thread has other things to do.
        let begun =
            std::thread::Builder::new().name("ringtun-tidy".into()).spawn(crate::sys::memory::give_back);
        if let Err(error) = begun {
            log::debug!("cannot give memory back to the system: {error}");
        }
    }

    fn take_events(&mut self) -> Result<()> {
        let until = Clock.now() + SLICE;
        while Clock.now() < until {
            match self.links.slow.events.pop() {
                Some(Event::WorkerEnded(id, why)) => return Err(Driver::worker_ended(id, &why)),
                Some(event) => self.device.handle_event(self.now(), event),
                None => return Ok(()),
            }
        }
        self.work_pending = true;
        Ok(())
    }

    pub(super) fn worker_ended(id: u8, why: &str) -> Error {
        Error::other(format!("worker {id} stopped, the interface is gone: {why}"))
    }

    /// Works on handshake messages for a slice. Where many wait, helpers take part.
    fn take_handshakes(&mut self) {
        let until = Clock.now() + SLICE;
        while Clock.now() < until {
            if self.links.slow.handshakes.waiting() >= helpers::BUSY {
                self.helpers.follow_load(Clock.now());
            }
            let now = self.now();
            if let Some(result) = self.helpers.next() {
                let work = self.device.continue_handshake(now, result);
                work.into_iter().for_each(|work| self.helpers.give(work));
                continue;
            }
            let message = if self.helpers.has_room() { self.links.slow.handshakes.pop() } else { None };
            match message {
                Some(message) => {
                    let work = self.device.begin_handshake(now, &message);
                    work.into_iter().for_each(|work| self.helpers.give(work));
                }
                // A helper that has the last piece of work rings when it is done.
                None if !self.helpers.work() => return,
                None => {}
            }
        }
        self.work_pending = true;
    }

    /// Takes in an operation of the control socket.
    pub(super) fn take_request(&mut self, request: Request) {
        let Request { operation, answer, connection } = request;
        match operation {
            Operation::Monitor => self.followers.add(answer),
            Operation::Offer => self.offer(connection),
            Operation::HandOver => {
                self.asked = connection.map(|connection| Asking { connection, answer });
            }
            Operation::Diagnose { key, tries } => {
                let facts = self.device.facts(self.now(), &key, tries);
                // It is one piece, for which there is room. An asker who has gone needs no answer.
                let _ = answer.try_send(Zeroizing::new(facts));
            }
            operation => {
                let mut jobs = std::mem::take(&mut self.jobs);
                jobs.add(operation, answer, || self.status());
                self.jobs = jobs;
            }
        }
    }

    /// Whether the owner asked for the end.
    pub(super) fn is_stopped(&self) -> bool {
        self.commands.is_stopped()
    }

    pub(super) fn worker_count(&self) -> WorkerCount {
        WorkerCount::nearest(self.links.workers.len())
    }

    fn running(&self) -> Running {
        Running {
            uring: self.uring,
            tun_steering: self.steering.is_some(),
            udp_steering: self.group.as_ref().map(|group| group.steered),
            gro: self.sockets.gro,
        }
    }

    fn status(&self) -> Status {
        let Running { uring, tun_steering, udp_steering, gro } = self.running();
        Status {
            io: if uring { "io_uring" } else { "syscalls" }.to_owned(),
            tun_steering,
            udp_steering,
            gro,
            refused_calls: refusals::count(),
            ..self.device.status(&self.links)
        }
    }

    /// Begins a transaction. New sockets, if the request needs some, are bound while it begins and handed out after it;
    /// sockets that stay on their port get the request's mark.
    fn begin(&mut self, now: Now, request: SetRequest) -> Result<Transaction, ConfigureError> {
        let (options, workers, group) = (self.sockets, self.worker_count(), self.group.as_ref());
        let mut bound = None;
        let begun = self.device.begin(now, request, &mut |wanted| {
            if let Some(group) = group.filter(|group| group.port == wanted.port) {
                return group.set_mark(wanted.mark).map(|()| group.port);
            }
            let (group, sockets) = bind(wanted, workers, options)?;
            let port = group.port;
            bound = Some((group, sockets));
            Ok(port)
        });
        if let Some((group, sockets)) = bound {
            self.hand_out(group, sockets);
        }
        begun
    }

    /// Whether the request asks for a port that our own sockets still have. They are about to close, so it is not in use.
    fn is_left(&self, now: Instant, request: &SetRequest) -> bool {
        let Some((port, until)) = self.left else { return false };
        let is_asked_for = request.listen_port == Some(port) && now < until;
        let probe = UdpConfig { port, mark: 0, workers: WorkerCount::ONE, options: SocketOptions::default() };
        is_asked_for && udp::bind(&probe).is_err_and(|error| error.kind() == ErrorKind::AddrInUse)
    }

    /// Lets go of the sockets. The workers close theirs when [`Control::Rebind`] reaches them.
    fn leave(&mut self) {
        if let Some(group) = self.group.take() {
            self.left = Some((group.port, Clock.now() + PORT_RELEASE));
        }
    }

    fn hand_out(&mut self, group: UdpGroup, sockets: Vec<UdpSockets>) {
        if sockets.len() > 1 && !group.steered && !std::mem::replace(&mut self.warned_unsteered, true) {
            log::warn!(
                "no steering of the UDP sockets: workers pass on the datagrams that the kernel gives to the wrong one"
            );
        }
        self.leave();
        self.group = Some(group);
        for (backlog, pair) in self.backlog.iter_mut().zip(sockets) {
            backlog.push_back(Control::Rebind(Some(pair)));
        }
    }

    /// Binds or closes the sockets, as the interface went up or down, or as another attempt is due.
    fn bind_or_close(&mut self, request: Option<BindRequest>) {
        let Some(wanted) = request else {
            self.leave();
            self.send_all(|| Control::Rebind(None));
            return;
        };
        match bind(wanted, self.worker_count(), self.sockets) {
            Ok((group, sockets)) => {
                self.device.bound(Ok(group.port));
                self.hand_out(group, sockets);
            }
            Err(error) => self.device.bound(Err(error)),
        }
    }

    pub(super) fn send_all(&mut self, control: impl Fn() -> Control) {
        self.backlog.iter_mut().for_each(|backlog| backlog.push_back(control()));
    }

    pub(super) fn link_event(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::State(LinkState { up, mtu }) => {
                self.device.set_mtu(mtu);
                self.device.set_up(self.now(), up);
            }
            LinkEvent::Icmp(sockets) => {
                let sockets = sockets.map(Arc::new);
                self.send_all(|| Control::Icmp(sockets.clone()));
            }
            LinkEvent::Broadcasts(addresses) => {
                let addresses: Arc<[_]> = addresses.into();
                self.send_all(|| Control::Broadcasts(Arc::clone(&addresses)));
            }
            LinkEvent::Tunnels(ports) => self.send_all(|| Control::Tunnels(ports)),
            LinkEvent::RoutesChanged => self.device.routes_changed(),
            LinkEvent::RouteMtus(routes) => self.device.set_route_mtus(routes),
        }
    }

    /// Carries out what the device wants. Returns until when the loop may sleep; `None` is until something happens.
    pub(super) fn pump(&mut self) -> Option<Instant> {
        self.carry_out();
        self.tell_events();
        let stuck = self.deliver();
        let waits = self.postponed.is_some();
        let changes = self.jobs.has_changes() && self.workers_keep_up() && !waits;
        if self.work_pending || self.device.has_unchecked_sources() || changes || self.jobs.has_answers_due()
        {
            return Some(Instant::START);
        }
        let due = [self.device.poll_timeout(), self.tidy_at, self.flood_ends()].into_iter().flatten().min();
        let again = (stuck || waits).then(|| Clock.now() + RETRY);
        [due, again].into_iter().flatten().min()
    }

    /// Carries out what the device wants, except that controls are yet to be delivered.
    pub(super) fn carry_out(&mut self) {
        while let Some(output) = self.device.poll_output() {
            match output {
                Output::Control(worker, control) => self.backlog[usize::from(worker)].push_back(control),
                Output::Bind(request) => self.bind_or_close(request),
                Output::Steer(prefix, target) => self.steer(prefix, target),
            }
        }
    }

    /// Whether controls are yet to be delivered.
    pub(super) fn has_backlog(&self) -> bool {
        self.backlog.iter().any(|backlog| !backlog.is_empty())
    }

    /// Moves the backlog into the workers' queues as far as they have room. True where something is left.
    pub(super) fn deliver(&mut self) -> bool {
        let mut stuck = false;
        for (backlog, inbox) in self.backlog.iter_mut().zip(&self.links.workers) {
            if backlog.is_empty() {
                continue;
            }
            while let Some(control) = backlog.pop_front() {
                if let Err(control) = inbox.controls.push(control) {
                    backlog.push_front(control);
                    stuck = true;
                    break;
                }
            }
            inbox.waker.wake();
        }
        stuck
    }

    /// Steers a prefix, as a matter of policy: one that cannot be steered goes by the kernel's flow hash.
    fn steer(&mut self, prefix: Prefix, target: Option<Target>) {
        let Some(steering) = &mut self.steering else { return };
        let done = match target {
            Some(target) => steering.set(prefix, target),
            None => steering.remove(prefix),
        };
        if let Err(error) = done {
            log::debug!("cannot steer the packets to {prefix}: {error}");
        }
    }
}

/// The time since the Unix epoch.
pub(super) fn wall() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Binds one pair of sockets for each worker.
fn bind(
    wanted: BindRequest,
    workers: WorkerCount,
    options: SocketOptions,
) -> Result<(UdpGroup, Vec<UdpSockets>)> {
    udp::bind(&UdpConfig { port: wanted.port, mark: wanted.mark, workers, options })
}
