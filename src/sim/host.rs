//! A whole device without threads. The slow path, its workers and the links between are stepped in a seeded order.

mod config;
mod handover;
mod outputs;
mod steps;
mod uplinks;
mod wiretap;

pub use config::{HostConfig, HostFaults};
pub use handover::HandOverPlan;
pub use uplinks::{FIRST_UPLINK, Uplinks};

use crate::dataplane::worker::{Worker, WorkerConfig};
use crate::dataplane::{Control, Links, PeerId};
use crate::device::uapi::SetRequest;
use crate::device::{BindRequest, Device, HandshakeWork, Now};
use crate::index::WorkerCount;
use crate::io::steer::Target;
use crate::routing::Prefix;
use crate::sim::io::SimIo;
use crate::sim::net::Datagram;
use crate::sim::packet::{Flow, Inner};
use crate::sim::rng::SimRng;
use crate::time::Instant;
use crate::wire::message::MessageKind;
use handover::HandOvers;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use wiretap::Wiretap;

/// Most rounds of turns at one instant, after which the device counts as spinning. It is far above what full queues need.
const MAX_ROUNDS: usize = 100_000;

/// Most handshake messages whose work is under way, as if helpers did it.
const WORK_AHEAD: usize = 8;

/// The port on which a host that echoes listens (RFC 862).
pub const ECHO_PORT: u16 = 7;

struct VirtualWorker {
    worker: Worker,
    io: SimIo,
    /// Controls that have not arrived, and when they do, or for which the worker's queue had no room.
    backlog: VecDeque<(Instant, Control)>,
    busy: bool,
    /// Whether it was rung since its last turn.
    rung: bool,
    /// Until when its thread has no core.
    stalled_until: Instant,
    stopped: bool,
}

/// What the routing tables know, as the device asks them.
type SharedRoutes = Arc<Mutex<(Vec<IpAddr>, Uplinks)>>;

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
    /// Until when the thread of the slow path has no core.
    pub slow_path_stalled_until: Instant,
    /// Until when the host sleeps: nothing runs, and what arrives is lost.
    pub suspended_until: Instant,
    /// What goes wrong at present.
    pub faults: HostFaults,
    /// The prefixes that it forwards to, as a router between its peers.
    pub forwards: Vec<Prefix>,
    /// The work that handshake messages made, in their order.
    handshakes: VecDeque<HandshakeWork>,
    /// Whether the TUN steering program is attached; otherwise the flow's hash picks the queue.
    pub steer_tun: bool,
    /// How many controls the workers were given.
    pub controls: u64,
    /// Whether frames that its kernel refuses may come out, as such frames were sent: then they are kept for
    /// [`Self::take_refused`], and are no violation.
    pub expects_refusals: bool,
    /// Whether the host answers what comes to port [`ECHO_PORT`], as its kernel would: at once, before any thread of the
    /// device goes on.
    pub echo: bool,
    config: HostConfig,
    device: Device,
    links: Links,
    lanes: Vec<VirtualWorker>,
    rng: SimRng,
    /// The time of the last step.
    at: Instant,
    /// Whether something was done to the host from outside since it came to rest.
    touched: bool,
    /// Whether the slow path was rung, and whether it has not yet found its queues empty since.
    slow_path_rung: bool,
    work_pending: bool,
    uplinks: Uplinks,
    routes: SharedRoutes,
    wiretap: Wiretap,
    passing: HandOvers,
    /// How many steps its threads have taken.
    pub steps: u64,
    port: Option<u16>,
    steering: BTreeMap<Prefix, Target>,
    /// Receiver indices of the sessions that exist.
    indices: HashMap<u32, PeerId>,
    delivered: Vec<Inner>,
    answered: Vec<Inner>,
    others: Vec<Vec<u8>>,
    refused: Vec<Vec<u8>>,
    violations: Vec<String>,
}

impl SimHost {
    /// Makes a host whose device is down and has neither key nor peers.
    ///
    /// # Errors
    ///
    /// Where the system has no memory or files left for its queues.
    pub fn new(config: HostConfig, mut rng: SimRng) -> std::io::Result<SimHost> {
        let workers = config.workers.into();
        let links = if config.narrow { Links::narrow(workers) } else { Links::new(workers) }?;
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
                rung: false,
                stalled_until: Instant::START,
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
            slow_path_stalled_until: Instant::START,
            suspended_until: Instant::START,
            faults: HostFaults::default(),
            forwards: Vec::new(),
            handshakes: VecDeque::new(),
            steer_tun: true,
            controls: 0,
            expects_refusals: false,
            echo: false,
            device: Device::new(WorkerCount::nearest(config.workers.into()), Box::new(rng.fork())),
            lanes,
            links,
            config,
            rng,
            at: Instant::START,
            touched: true,
            slow_path_rung: false,
            work_pending: false,
            uplinks: Uplinks::default(),
            routes: SharedRoutes::default(),
            wiretap: Wiretap::default(),
            passing: HandOvers::default(),
            steps: 0,
            port: None,
            steering: BTreeMap::new(),
            indices: HashMap::new(),
            delivered: Vec::new(),
            answered: Vec::new(),
            others: Vec::new(),
            refused: Vec::new(),
            violations: Vec::new(),
        })
    }

    /// The device. Settle the world after a change.
    pub fn device(&mut self) -> &mut Device {
        &mut self.device
    }

    /// The device, to look at.
    pub fn state(&self) -> &Device {
        &self.device
    }

    /// Takes the interface up or down. Settle the world after it.
    pub fn set_up(&mut self, now: Now, up: bool) {
        self.wiretap.forget_initiations();
        self.device.set_up(now, up);
    }

    /// Another start of the same program on the same host: nothing is left but the addresses and the clock.
    ///
    /// # Errors
    ///
    /// Where the system has no memory or files left for its queues.
    pub(crate) fn restarted(&self, rng: SimRng) -> std::io::Result<SimHost> {
        let mut next = SimHost::new(self.config.clone(), rng)?;
        (next.wall_ahead, next.wall_behind) = (self.wall_ahead, self.wall_behind);
        (next.steer_tun, next.echo, next.faults) = (self.steer_tun, self.echo, self.faults);
        next.expects_refusals = self.expects_refusals;
        next.forwards.clone_from(&self.forwards);
        next.violations = self.violations().cloned().collect();
        next.readdress(self.addresses.clone(), self.uplinks.clone());
        Ok(next)
    }

    /// Gives the host other outer addresses or another way out, and has the device ask for them. Settle the world after it.
    pub fn readdress(&mut self, addresses: Vec<IpAddr>, uplinks: Uplinks) {
        (self.addresses, self.uplinks) = (addresses.clone(), uplinks.clone());
        *self.routes.lock().unwrap_or_else(PoisonError::into_inner) = (addresses, uplinks);
        let routes = Arc::clone(&self.routes);
        self.device.set_source_oracle(Box::new(move |departure| {
            let (addresses, uplinks) = &*routes.lock().unwrap_or_else(PoisonError::into_inner);
            uplinks.may_depart(addresses, departure.from)
        }));
        self.device.routes_changed();
    }

    /// The ways out.
    pub fn uplinks(&self) -> &Uplinks {
        &self.uplinks
    }

    /// Sets what goes wrong from now on.
    pub fn fail(&mut self, faults: HostFaults) {
        self.faults = faults;
        for lane in &mut self.lanes {
            lane.io.fail(faults.io, self.rng.fork());
        }
    }

    /// Takes the core from a worker for a while.
    pub fn stall(&mut self, worker: u8, time: Duration) {
        if let Some(lane) = self.lanes.get_mut(usize::from(worker)) {
            lane.stalled_until = self.at + time;
        }
    }

    /// Ends whatever keeps threads and sockets from their work.
    pub fn relieve(&mut self) {
        self.fail(HostFaults::default());
        (self.suspended_until, self.slow_path_stalled_until) = (self.at, self.at);
        for lane in &mut self.lanes {
            lane.stalled_until = self.at;
            lane.io.blocked = false;
        }
    }

    /// Notes that something is done to the host at this time.
    pub(crate) fn touch(&mut self, now: Instant) {
        (self.touched, self.at) = (true, now);
        self.lanes.iter_mut().for_each(|lane| lane.io.now = now);
    }

    /// Applies the lines of a `set=1` operation, without that line itself.
    ///
    /// # Errors
    ///
    /// The error number with which the configuration socket would answer.
    pub fn configure(&mut self, now: Now, lines: &str) -> Result<(), i32> {
        self.wiretap.forget_initiations();
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

    /// Frames that reached the TUN device since the last call and that the kernel refused, as [`Self::expects_refusals`] says.
    pub fn take_refused(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.refused)
    }

    /// Has the workers believe for a second that more handshake messages wait than can be worked on.
    pub fn overload(&mut self) {
        self.links.slow.loaded_at.store(self.at.as_nanos().max(1), Relaxed);
    }

    /// Puts a frame of `flow` on a TUN queue, as the kernel does when it routes the frame into the tunnel. False where the
    /// queue was full.
    pub fn send(&mut self, flow: &Flow, frame: Vec<u8>) -> bool {
        if self.at < self.suspended_until {
            return false;
        }
        let target = if self.steer_tun { self.steered(flow.destination.ip()) } else { None };
        let queue = match target {
            // The kernel takes the program's answer modulo the number of queues.
            Some(Target::Worker(worker)) => usize::from(worker) % self.lanes.len().max(1),
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

    /// Whether a packet that came out of the tunnel goes to another peer.
    fn forwards_for(&self, destination: IpAddr) -> bool {
        self.forwards.iter().any(|prefix| prefix.contains(destination))
    }

    /// Whether a datagram to `addr` is for this host's sockets.
    pub(crate) fn listens_on(&self, addr: SocketAddr) -> bool {
        self.addresses.contains(&addr.ip()) && self.port == Some(addr.port())
    }

    /// Puts a datagram on the SO_REUSEPORT group, where it arrives.
    pub(crate) fn arrive(&mut self, now: Instant, datagram: Datagram) {
        if now < self.suspended_until {
            return;
        }
        self.touch(now);
        let interface = self.uplinks.interface(datagram.to.ip());
        let at = match datagram.kind() {
            Some(MessageKind::Data | MessageKind::CookieReply) => Some(4),
            Some(MessageKind::Response) => Some(8),
            _ => None,
        };
        let owner = at.and_then(|at| datagram.bytes.get(at)).filter(|_| self.config.steer);
        let strays = self.rng.chance(self.faults.missteer);
        let worker = match owner {
            Some(&byte) if !strays => byte % self.config.workers,
            _ => self.rng.below(self.config.workers.into()) as u8,
        };
        if let Some(lane) = self.lanes.get_mut(usize::from(worker)) {
            lane.io.arrive(datagram, interface);
        }
    }
}

/// A time from none to `most`.
fn random_time(rng: &mut SimRng, most: Duration) -> Duration {
    Duration::from_nanos(rng.below(u64::try_from(most.as_nanos()).unwrap_or(u64::MAX)))
}

/// The port that was asked for, or one of Linux's ephemeral range.
fn pick_port(request: BindRequest, error: Option<i32>, rng: &mut SimRng) -> std::io::Result<u16> {
    match (error, request.port) {
        (Some(error), _) => Err(std::io::Error::from_raw_os_error(error)),
        (None, 0) => Ok(32_768 + rng.below(28_232) as u16),
        (None, port) => Ok(port),
    }
}
