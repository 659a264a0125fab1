//! A whole device without threads. The slow path, its workers and the links between are stepped in a seeded order.

mod announced;
mod config;

pub use config::HostConfig;

use crate::dataplane::worker::{Turn, Worker, WorkerConfig};
use crate::dataplane::{Control, Links, PeerId};
use crate::device::uapi::SetRequest;
use crate::device::{BindRequest, Device, HandshakeWork, Now, Output};
use crate::index::{ReceiverIndex, WorkerCount};
use crate::io::SourceGone;
use crate::io::steer::Target;
use crate::io::udp::UdpSockets;
use crate::routing::Prefix;
use crate::sim::io::SimIo;
use crate::sim::net::Datagram;
use crate::sim::packet::{self, Delivered, Flow, Inner};
use crate::sim::rng::SimRng;
use crate::time::Instant;
use crate::wire::message::MessageKind;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Most rounds of turns at one instant, after which the device counts as spinning. It is far above what full queues need.
const MAX_ROUNDS: usize = 100_000;

/// Most handshake messages whose work is under way, as if helpers did it.
const WORK_AHEAD: usize = 8;

/// The port on which a host that echoes listens (RFC 862).
pub const ECHO_PORT: u16 = 7;

struct VirtualWorker {
    worker: Worker,
    io: SimIo,
    /// Controls for which the worker's queue had no room.
    backlog: VecDeque<Control>,
    busy: bool,
    stopped: bool,
}

/// One device with its workers.
pub struct SimHost {
    /// Its outer addresses. A datagram whose sticky source is not among them is refused at first, and sent from another.
    pub addresses: Vec<IpAddr>,
    /// How far the wall clock is ahead of the world's.
    pub wall_ahead: Duration,
    /// How far the wall clock is behind the world's.
    pub wall_behind: Duration,
    /// The error number with which the next binding fails.
    pub bind_error: Option<i32>,
    /// Whether the slow path does nothing, as if a flood kept it busy for good.
    pub slow_path_stalled: bool,
    /// The work that handshake messages made, in their order.
    handshakes: VecDeque<HandshakeWork>,
    /// Whether the TUN steering program is attached; otherwise the flow's hash picks the queue.
    pub steer_tun: bool,
    /// How many controls the workers were given.
    pub controls: u64,
    /// Whether the host answers what comes to port [`ECHO_PORT`], as its kernel would: at once, before any thread of the
    /// device goes on.
    pub echo: bool,
    config: HostConfig,
    device: Device,
    links: Links,
    lanes: Vec<VirtualWorker>,
    rng: SimRng,
    port: Option<u16>,
    steering: BTreeMap<Prefix, Target>,
    /// Receiver indices of the sessions that exist.
    indices: HashMap<u32, PeerId>,
    delivered: Vec<Inner>,
    answered: Vec<Inner>,
    others: Vec<Vec<u8>>,
    violations: Vec<String>,
}

impl SimHost {
    /// Makes a host whose device is down and has neither key nor peers.
    ///
    /// # Errors
    ///
    /// Where the system has no memory or files left for its queues.
    pub fn new(config: HostConfig, mut rng: SimRng) -> std::io::Result<SimHost> {
        let links = Links::new(config.workers.into())?;
        let mut lane = |id| {
            let worker = WorkerConfig { id, mtu: config.mtu, coalesce: config.coalesce };
            let mut io = SimIo::new(config.gro, config.gso)?;
            if config.assist > 0 {
                io.help(Arc::clone(&links.assist), rng.fork());
            }
            Ok(VirtualWorker {
                worker: Worker::new(worker, &links),
                io,
                backlog: VecDeque::new(),
                busy: true,
                stopped: false,
            })
        };
        let lanes = (0..config.workers).map(&mut lane).collect::<std::io::Result<_>>()?;
        Ok(SimHost {
            addresses: config.addresses.clone(),
            wall_ahead: Duration::ZERO,
            wall_behind: Duration::ZERO,
            bind_error: None,
            slow_path_stalled: false,
            handshakes: VecDeque::new(),
            steer_tun: true,
            controls: 0,
            echo: false,
            device: Device::new(WorkerCount::nearest(config.workers.into()), Box::new(rng.fork())),
            lanes,
            links,
            config,
            rng,
            port: None,
            steering: BTreeMap::new(),
            indices: HashMap::new(),
            delivered: Vec::new(),
            answered: Vec::new(),
            others: Vec::new(),
            violations: Vec::new(),
        })
    }

    /// The device. Settle the world after a change.
    pub fn device(&mut self) -> &mut Device {
        &mut self.device
    }

    /// Applies the lines of a `set=1` operation, without that line itself.
    ///
    /// # Errors
    ///
    /// The error number with which the configuration socket would answer.
    pub fn configure(&mut self, now: Now, lines: &str) -> Result<(), i32> {
        let request = SetRequest::parse(format!("set=1\n{lines}").as_bytes()).map_err(|error| error.errno)?;
        let (mut bound, error, rng) = (None, self.bind_error.take(), &mut self.rng);
        let port = self.port;
        let result = self.device.apply(now, &request, &mut |request| {
            if port == Some(request.port) {
                return Ok(request.port); // another mark, which nothing here minds
            }
            let port = pick_port(request, error, rng)?;
            bound = Some(port);
            Ok(port)
        });
        if bound.is_some() {
            self.rebind(bound);
        }
        self.drain_outputs();
        result.map_err(|error| error.errno())
    }

    /// Both clocks as this host reads them.
    pub fn now(&self, mono: Instant, wall: Duration) -> Now {
        Now { mono, wall: (wall + self.wall_ahead).saturating_sub(self.wall_behind) }
    }

    /// The virtual sockets and TUN queue of one worker.
    pub fn io(&mut self, worker: u8) -> Option<&mut SimIo> {
        self.lanes.get_mut(usize::from(worker)).map(|lane| &mut lane.io)
    }

    /// The virtual sockets and TUN queues of all workers.
    pub fn ios(&mut self) -> impl Iterator<Item = &mut SimIo> {
        self.lanes.iter_mut().map(|lane| &mut lane.io)
    }

    /// The UDP port, while one is bound.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Attaches the program that steers datagrams to their owners, or takes it away.
    pub fn set_steering(&mut self, steer: bool) {
        self.config.steer = steer;
    }

    /// Number of workers.
    pub fn workers(&self) -> u8 {
        self.config.workers
    }

    /// Bytes of the frames that wait for a session.
    pub fn staged(&self) -> usize {
        self.links.staging.used()
    }

    /// The sum of a counter over all workers, which is 0 for a counter that does not exist.
    pub fn counter(&self, name: &str) -> u64 {
        let counters = self.lanes.iter().flat_map(|lane| lane.worker.stats().snapshot());
        counters.filter(|&(known, _)| known == name).map(|(_, value)| value).sum()
    }

    /// All counters that are not zero, summed over the workers.
    pub fn counters(&self) -> BTreeMap<&'static str, u64> {
        let mut sums = BTreeMap::new();
        for (name, value) in self.lanes.iter().flat_map(|lane| lane.worker.stats().snapshot()) {
            if value > 0 {
                *sums.entry(name).or_default() += value;
            }
        }
        sums
    }

    /// Inner TCP and UDP packets that reached the TUN device since the last call, in order.
    pub fn take_delivered(&mut self) -> Vec<Inner> {
        std::mem::take(&mut self.delivered)
    }

    /// The answers that the host gave since the last call, as [`Self::echo`] says.
    pub fn take_answered(&mut self) -> Vec<Inner> {
        std::mem::take(&mut self.answered)
    }

    /// Inner packets of other protocols (ICMP) that reached the TUN device since the last call.
    pub fn take_others(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.others)
    }

    /// Frames that the kernel would have refused, and other faults of the device.
    pub fn violations(&self) -> &[String] {
        &self.violations
    }

    /// Puts a frame of `flow` on a TUN queue, as the kernel does when it routes the frame into the tunnel. False where the
    /// queue was full.
    pub fn send(&mut self, flow: &Flow, frame: Vec<u8>) -> bool {
        let target = if self.steer_tun { self.steered(flow.destination.ip()) } else { None };
        let queue = match target {
            Some(Target::Worker(worker)) => usize::from(worker),
            _ => {
                BuildHasherDefault::<DefaultHasher>::default().hash_one(flow) as usize
                    % self.lanes.len().max(1)
            }
        };
        self.lanes.get_mut(queue).is_some_and(|lane| lane.io.push_tun(frame))
    }

    fn steered(&self, addr: IpAddr) -> Option<Target> {
        let held = self.steering.iter().filter(|(prefix, _)| prefix.contains(addr));
        held.max_by_key(|(prefix, _)| prefix.len()).map(|(_, &target)| target)
    }

    /// Whether a datagram to `addr` is for this host's sockets.
    pub(crate) fn listens_on(&self, addr: SocketAddr) -> bool {
        self.addresses.contains(&addr.ip()) && self.port == Some(addr.port())
    }

    /// Puts a datagram on the SO_REUSEPORT group, where it arrives.
    pub(crate) fn arrive(&mut self, datagram: Datagram) {
        let at = match datagram.kind() {
            Some(MessageKind::Data | MessageKind::CookieReply) => Some(4),
            Some(MessageKind::Response) => Some(8),
            _ => None,
        };
        let owner = at.and_then(|at| datagram.bytes.get(at)).filter(|_| self.config.steer);
        let worker = match owner {
            Some(&byte) if byte < self.config.workers => byte,
            _ => self.rng.below(self.config.workers.into()) as u8,
        };
        if let Some(lane) = self.lanes.get_mut(usize::from(worker)) {
            lane.io.arrive(datagram);
        }
    }

    /// When the slow path must be called next, at the latest.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.device.poll_timeout().filter(|_| !self.slow_path_stalled)
    }

    /// Runs the slow path and the workers, one step each in a random order, until nothing is left to do at `now`. Returns the
    /// datagrams that were sent.
    pub(crate) fn settle(&mut self, now: Now) -> Vec<Datagram> {
        // Direct calls of the device may have left outputs.
        self.drain_outputs();
        let mut sent = Vec::new();
        let mut order: Vec<usize> = (0..=self.lanes.len()).collect();
        for _ in 0..MAX_ROUNDS {
            self.decide_on_assist();
            self.rng.shuffle(&mut order);
            let mut progress = false;
            for &actor in &order {
                // Now and then one is late, as threads are, and another has two steps.
                if self.rng.chance(150) {
                    progress |= self.ready(actor, now.mono);
                } else if actor == self.lanes.len() {
                    progress |= self.step_device(now);
                } else {
                    progress |= self.step_worker(actor, now.mono, &mut sent);
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

    fn ready(&self, actor: usize, now: Instant) -> bool {
        match (self.lanes.get(actor), self.links.workers.get(actor)) {
            (Some(lane), Some(inbox)) => {
                let inbox =
                    !inbox.controls.is_empty() || !inbox.misdirected.is_empty() || !lane.backlog.is_empty();
                !lane.stopped && (lane.busy || lane.io.readable() || inbox)
            }
            _ => {
                if self.slow_path_stalled {
                    return false;
                }
                let slow = &self.links.slow;
                let queues =
                    !slow.events.is_empty() || slow.handshakes.waiting() > 0 || !self.handshakes.is_empty();
                queues || self.device.poll_timeout().is_some_and(|at| at <= now)
            }
        }
    }

    fn step_worker(&mut self, id: usize, now: Instant, sent: &mut Vec<Datagram>) -> bool {
        let ready = self.ready(id, now);
        let Some(lane) = self.lanes.get_mut(id) else { return false };
        if ready {
            if let Some(inbox) = self.links.workers.get(id) {
                while let Some(control) = lane.backlog.pop_front() {
                    if let Err(control) = inbox.controls.push(control) {
                        lane.backlog.push_front(control);
                        break;
                    }
                }
            }
            lane.io.now = now;
            let turn = lane.worker.turn(&mut lane.io, now);
            lane.busy = turn == Turn::Busy;
            lane.stopped |= turn == Turn::Stop;
        }
        let (outgoing, written) = (lane.io.take_sent(), lane.io.take_written());
        for out in outgoing {
            let sticky = out.to.from.and_then(|source| self.addresses.iter().find(|&&ip| ip == source.ip));
            if let (None, Some(_), Some(peer)) = (sticky, out.to.from, out.peer) {
                lane.io.report_source_gone(SourceGone { peer, endpoint: out.to });
                lane.busy = true;
            }
            // The kernel backends, too, send again without the source that the kernel refused.
            let routed = || self.addresses.iter().find(|ip| ip.is_ipv4() == out.to.addr.is_ipv4());
            match (sticky.or_else(routed), self.port) {
                (Some(&ip), Some(port)) => {
                    let from = SocketAddr::new(ip, port);
                    sent.push(Datagram { from, to: out.to.addr, ecn: out.ecn, bytes: out.bytes });
                }
                _ => lane.io.count_send_errors(1),
            }
        }
        for frame in written {
            match packet::receive(&frame) {
                Ok(packets) => packets.into_iter().for_each(|packet| match packet {
                    Delivered::Packet(inner) => self.take_packet(inner),
                    Delivered::Other(other) => self.others.push(other),
                }),
                Err(why) => self.violations.push(why),
            }
        }
        ready
    }

    fn take_packet(&mut self, inner: Inner) {
        if self.echo && inner.flow.destination.port() == ECHO_PORT {
            let (source, destination) = (inner.flow.destination, inner.flow.source);
            let answer = Inner { flow: Flow { source, destination, ..inner.flow }, ..inner.clone() };
            if self.send(&answer.flow, answer.to_frame()) {
                self.answered.push(answer);
            }
        }
        self.delivered.push(inner);
    }

    /// Handles one event, one handshake message or the timers, whichever chance picks among those that wait.
    fn step_device(&mut self, now: Now) -> bool {
        if self.slow_path_stalled {
            return false;
        }
        let slow = &self.links.slow;
        let due = self.device.poll_timeout().is_some_and(|at| at <= now.mono);
        let handshakes = slow.handshakes.waiting() > 0 && self.handshakes.len() < WORK_AHEAD;
        let mut waiting =
            [(!slow.events.is_empty(), 0), (handshakes, 1), (due, 2), (!self.handshakes.is_empty(), 3)];
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
            Some(_) => self.device.handle_timeout(now),
            None => return self.drain_outputs(),
        }
        self.drain_outputs();
        true
    }

    fn drain_outputs(&mut self) -> bool {
        let mut any = false;
        while let Some(output) = self.device.poll_output() {
            any = true;
            match output {
                Output::Control(worker, control) => self.control(worker, control),
                Output::Bind(request) => self.bind(request),
                Output::Steer(prefix, Some(target)) => {
                    self.steering.insert(prefix, target);
                }
                Output::Steer(prefix, None) => {
                    self.steering.remove(&prefix);
                }
            }
        }
        any
    }

    fn control(&mut self, worker: u8, control: Control) {
        self.controls += 1;
        match self.lanes.get_mut(usize::from(worker)) {
            Some(lane) => {
                match &control {
                    Control::Install(peer, session, _) => {
                        let index = session.local_index();
                        if ReceiverIndex(index).worker() != worker {
                            self.violations.push(format!("session {index:#x} given to worker {worker}"));
                        }
                        if self.indices.insert(index, peer.id).is_some() {
                            self.violations.push(format!("index {index:#x} given to a second session"));
                        }
                    }
                    Control::Drop(_, index) => drop(self.indices.remove(index)),
                    _ => {}
                }
                lane.backlog.push_back(control);
            }
            None => self.violations.push(format!("control for worker {worker}, which does not exist")),
        }
    }

    /// Binds or closes the port. A refused binding leaves the interface without sockets, as in the kernel (`wg_socket_init`).
    fn bind(&mut self, request: Option<BindRequest>) {
        let result = request.map(|request| pick_port(request, self.bind_error.take(), &mut self.rng));
        self.rebind(result.as_ref().and_then(|result| result.as_ref().ok()).copied());
        if let Some(result) = result {
            self.device.bound(result);
        }
    }

    fn rebind(&mut self, port: Option<u16>) {
        self.port = port;
        for lane in &mut self.lanes {
            let sockets = port.map(|port| UdpSockets { v4: None, v6: None, port });
            lane.backlog.push_back(Control::Rebind(sockets));
        }
    }
}

/// The port that was asked for, or one of Linux's ephemeral range.
fn pick_port(request: BindRequest, error: Option<i32>, rng: &mut SimRng) -> std::io::Result<u16> {
    match (error, request.port) {
        (Some(error), _) => Err(std::io::Error::from_raw_os_error(error)),
        (None, 0) => Ok(32_768 + rng.below(28_232) as u16),
        (None, port) => Ok(port),
    }
}
