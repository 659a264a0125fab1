//! Carries out what a [`Device`] wants: controls to workers, sockets, marks, steering; and brings it events, handshakes and
//! operations. [`super::runtime`] calls it from its loop.

use crate::dataplane::{Control, Event, Links};
use crate::device::status::Status;
use crate::device::uapi::{self, Operation, SetRequest};
use crate::device::{BindRequest, Device, Now, Output};
use crate::io::steer::{Target, TunSteering};
use crate::io::udp::{self, UdpConfig, UdpGroup, UdpSockets};
use crate::routing::Prefix;
use crate::slowpath::netlink::LinkEvent;
use crate::sys::clock::Clock;
use crate::sys::source;
use std::collections::VecDeque;
use std::io::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use zeroize::Zeroizing;

type Result<T, E = Error> = std::result::Result<T, E>;

/// Handshakes and events worked on before timers and UAPI get their turn: about 64 × 150 µs of X25519.
const BATCH: usize = 64;
/// Controls whose room a worker's backlog keeps: 1024 × ~220 bytes. A transaction over 10,000 peers needs more for a moment.
const KEPT: usize = 1024;
/// Pause before controls that did not fit a worker's queue are offered again.
const RETRY: Duration = Duration::from_millis(1);
/// How long our own sockets on the same port may take to close in the workers before "in use" is believed.
const PORT_RELEASE: Duration = Duration::from_millis(500);

/// The device, and everything its [`Output`]s touch.
pub(super) struct Driver {
    pub(super) device: Device,
    pub(super) links: Links,
    /// Controls that did not fit a worker's queue, in order; bounded by what one UAPI operation or timeout makes.
    backlog: Vec<VecDeque<Control>>,
    group: Option<UdpGroup>,
    steering: Option<TunSteering>,
    gro: bool,
    uring: bool,
    /// The sockets' mark, for the route look-ups that decide about sticky sources.
    mark: Arc<AtomicU32>,
    pub(super) work_pending: bool,
    /// It was logged that the kernel does not steer the UDP sockets.
    told_unsteered: bool,
}

impl Driver {
    pub(super) fn new(
        mut device: Device,
        links: Links,
        steering: Option<TunSteering>,
        gro: bool,
        uring: bool,
    ) -> Driver {
        let backlog = links.workers.iter().map(|_| VecDeque::new()).collect();
        let mark = Arc::new(AtomicU32::new(0));
        let routed_by = Arc::clone(&mark);
        device.follow_workers(links.workers.iter().map(|inbox| Arc::clone(&inbox.stats)).collect());
        device.set_source_oracle(Box::new(move |to, local| {
            source::chosen_for(to, routed_by.load(Relaxed)) != Some(local.ip)
        }));
        Driver {
            device,
            links,
            backlog,
            group: None,
            steering,
            gro,
            uring,
            mark,
            work_pending: false,
            told_unsteered: false,
        }
    }

    pub(super) fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { mono: Clock.now(), wall }
    }

    /// A bounded share of what waits, then the timers. `Err`: a worker ended.
    pub(super) fn take_turn(&mut self) -> Result<()> {
        if self.work_pending {
            self.work_pending = false;
            self.take_events()?;
            self.take_handshakes();
            while let Some((worker, notice)) = self.links.slow.notices.pop() {
                log::warn!("worker {worker}: {notice}");
            }
        }
        let now = self.now();
        if self.device.poll_timeout().is_some_and(|due| due <= now.mono) {
            self.device.handle_timeout(now);
        }
        Ok(())
    }

    fn take_events(&mut self) -> Result<()> {
        for _ in 0..BATCH {
            match self.links.slow.events.pop() {
                Some(Event::WorkerEnded(id, why)) => {
                    return Err(Error::other(format!("worker {id} stopped, the interface is gone: {why}")));
                }
                Some(event) => self.device.handle_event(self.now(), event),
                None => return Ok(()),
            }
        }
        self.work_pending = true;
        Ok(())
    }

    fn take_handshakes(&mut self) {
        for _ in 0..BATCH {
            let Some(message) = self.links.slow.handshakes.pop() else { return };
            let waiting = self.links.slow.handshakes.len();
            self.device.handle_handshake(self.now(), message, waiting);
        }
        self.work_pending = true;
    }

    pub(super) fn operate(&mut self, operation: Operation) -> Zeroizing<String> {
        match operation {
            Operation::Get => self.device.uapi_get(),
            Operation::Status => Zeroizing::new(self.status().answer()),
            Operation::Set(body) => {
                let done = match SetRequest::parse_with(&body, &mut |name| interface_index(name)) {
                    Ok(request) => self.configure(&request),
                    Err(error) => {
                        log::error!("{error}");
                        Err(error.errno)
                    }
                };
                Zeroizing::new(uapi::answer(done))
            }
        }
    }

    fn status(&self) -> Status {
        Status {
            io: if self.uring { "io_uring" } else { "syscalls" }.to_owned(),
            tun_steering: self.steering.is_some(),
            udp_steering: self.group.as_ref().map(|group| group.steered),
            gro: self.gro,
            ..self.device.status(&self.links)
        }
    }

    /// New sockets, if the request needs some, are bound inside and handed out after it.
    fn configure(&mut self, request: &SetRequest) -> Result<(), i32> {
        let now = self.now();
        let (gro, workers) = (self.gro, self.links.workers.len());
        let mut bound = None;
        let done = self.device.apply(now, request, &mut |wanted| {
            let (group, sockets) = bind(wanted, workers, gro)?;
            let port = group.port;
            bound = Some((group, sockets));
            Ok(port)
        });
        if let Some((group, sockets)) = bound {
            self.hand_out(group, sockets);
        }
        done
    }

    fn hand_out(&mut self, group: UdpGroup, sockets: Vec<UdpSockets>) {
        self.mark.store(self.device.fwmark(), Relaxed);
        if sockets.len() > 1 && !group.steered && !std::mem::replace(&mut self.told_unsteered, true) {
            log::warn!(
                "no steering of the UDP sockets: workers hand on what the kernel gives to the wrong one"
            );
        }
        self.group = Some(group);
        for (backlog, pair) in self.backlog.iter_mut().zip(sockets) {
            backlog.push_back(Control::Rebind(Some(pair)));
        }
    }

    /// The interface went up or down. Our own sockets on the port may still be closing in the workers: wait for them.
    fn bind_or_close(&mut self, request: Option<BindRequest>) {
        let Some(wanted) = request else {
            self.group = None;
            self.backlog.iter_mut().for_each(|backlog| backlog.push_back(Control::Rebind(None)));
            return;
        };
        let begun = std::time::Instant::now();
        let result = loop {
            match bind(wanted, self.links.workers.len(), self.gro) {
                Err(libc::EADDRINUSE) if begun.elapsed() < PORT_RELEASE => {
                    self.deliver();
                    std::thread::sleep(RETRY);
                }
                result => break result,
            }
        };
        match result {
            Ok((group, sockets)) => {
                self.device.bound(Ok(group.port));
                self.hand_out(group, sockets);
            }
            Err(errno) => self.device.bound(Err(errno)),
        }
    }

    pub(super) fn link_event(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::State { up, mtu } => {
                self.device.set_mtu(mtu);
                self.device.set_up(self.now(), up);
            }
            LinkEvent::AddressGone(ip) => self.device.source_gone(ip),
        }
    }

    /// Carries out what the device wants; returns how long the loop may sleep, `None`: until something happens.
    pub(super) fn pump(&mut self) -> Option<Duration> {
        while let Some(output) = self.device.poll_output() {
            match output {
                Output::Control(worker, control) => self.backlog[usize::from(worker)].push_back(control),
                Output::Bind(request) => self.bind_or_close(request),
                Output::SetMark(mark) => self.set_mark(mark),
                Output::Steer(prefix, target) => self.steer(prefix, target),
            }
        }
        let stuck = self.deliver();
        if self.work_pending {
            return Some(Duration::ZERO);
        }
        let timer = self.device.poll_timeout().map(|due| due.since(Clock.now()));
        if stuck { Some(timer.map_or(RETRY, |timer| timer.min(RETRY))) } else { timer }
    }

    /// Moves the backlog into the workers' queues as far as they have room; true: something is left.
    fn deliver(&mut self) -> bool {
        let (mut stuck, mut shrunk) = (false, false);
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
            if backlog.is_empty() && backlog.capacity() > KEPT {
                backlog.shrink_to(KEPT);
                shrunk = true;
            }
        }
        if shrunk {
            crate::sys::memory::give_back();
        }
        stuck
    }

    fn set_mark(&mut self, mark: u32) {
        self.mark.store(mark, Relaxed);
        if let Some(group) = &self.group
            && let Err(error) = group.set_mark(mark)
        {
            log::error!("cannot set the firewall mark {mark:#x}: {error}");
        }
    }

    /// Steering is a policy: a prefix that cannot be steered goes by the kernel's flow hash.
    fn steer(&mut self, prefix: Prefix, target: Option<Target>) {
        let Some(steering) = &mut self.steering else { return };
        let done = match target {
            Some(target) => steering.set(prefix, target),
            None => steering.remove(prefix),
        };
        if let Err(error) = done {
            log::debug!("cannot steer {prefix:?}: {error}");
        }
    }
}

/// Binds one pair of sockets a worker; the error number where that fails.
fn bind(wanted: BindRequest, workers: usize, gro: bool) -> Result<(UdpGroup, Vec<UdpSockets>), i32> {
    let config = UdpConfig { port: wanted.port, mark: wanted.mark, workers, gro };
    udp::bind(&config).map_err(|error| {
        log::error!("cannot bind UDP port {}: {error}", wanted.port);
        crate::sys::error::errno(&error).unwrap_or(libc::EIO)
    })
}

/// The index of an interface of this namespace.
fn interface_index(name: &str) -> Option<u32> {
    let socket =
        rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None).ok()?;
    rustix::net::netdevice::name_to_index(socket, name).ok()
}
