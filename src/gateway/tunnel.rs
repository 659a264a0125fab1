//! One tunnel from creation to end: TUN device, UAPI socket, workers, slow path, and the removal of all of it.

use crate::crypto::random::SystemEntropy;
use crate::dataplane::worker::{Worker, WorkerConfig};
use crate::dataplane::{Control, Links};
use crate::device::Device;
use crate::gateway::notify::Notify;
use crate::gateway::socket::UapiSocket;
use crate::gateway::{leaving, limits, upkeep};
use crate::index::MAX_WORKERS;
use crate::io::Io;
use crate::io::mmsg::Mmsg;
use crate::io::slab::Pool;
use crate::io::steer::TunSteering;
use crate::io::tun::{Tun, TunConfig};
use crate::io::uring::Uring;
use crate::slowpath::runtime::{self, SlowPath};
use crate::sys::error::errno;
use crate::sys::{gso, link, memory};
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Instant;

/// Buffers a worker may hold: 64 in its receive ring, the rest for frames read, trains built and trains that wait for a full
/// socket. Worst case 192 × 68 KiB = 12.75 MiB a worker, touched only as far as used.
pub const BUFFERS: usize = 192;

/// How workers speak to the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IoChoice {
    /// io_uring where it is allowed.
    Auto,
    /// io_uring, or an error.
    Uring,
    /// epoll and plain syscalls.
    Syscalls,
}

/// A tunnel to be.
#[derive(Debug)]
pub struct TunnelConfig {
    /// Interface name.
    pub name: String,
    /// Number of workers; `None`: one per core.
    pub workers: Option<usize>,
    /// Backend.
    pub io: IoChoice,
    /// MTU of a new interface, bytes.
    pub mtu: u32,
    /// TUN segmentation offloads.
    pub tun_offloads: bool,
    /// UDP_SEGMENT.
    pub gso: bool,
    /// UDP_GRO.
    pub gro: bool,
    /// eBPF steering of the TUN queues.
    pub steering: bool,
    /// Tell the service manager that started this process.
    pub notify: bool,
    /// Pin each worker to a core.
    pub pin: bool,
    /// The configuration whose endpoints are looked after: names resolved again, the MTU following the path.
    pub upkeep: Option<PathBuf>,
    /// An inherited TUN file (then one worker).
    pub tun_fd: Option<OwnedFd>,
    /// An inherited listening UAPI socket.
    pub uapi_fd: Option<OwnedFd>,
}

/// Why a tunnel did not start, or ended other than by a signal.
#[derive(Debug)]
pub struct TunnelError {
    doing: String,
    source: std::io::Error,
    deleted: bool,
}

impl TunnelError {
    fn new(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> TunnelError {
        let doing = doing.into();
        move |source| TunnelError { doing, source, deleted: false }
    }

    /// Whether the tunnel ran, and ended since somebody deleted its interface: what `down` does, too.
    pub fn is_deletion(&self) -> bool {
        self.deleted
    }
}

impl fmt::Display for TunnelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.doing, self.source)
    }
}

impl std::error::Error for TunnelError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Creates the tunnel, calls `ready` (and tells the service manager) once device and socket exist, and runs until SIGTERM, SIGINT or the device's end. Device
/// and socket are gone when it returns.
pub fn run(config: TunnelConfig, ready: impl FnOnce()) -> Result<(), TunnelError> {
    let name = config.name.clone();
    let failed = |doing: &str| TunnelError::new(format!("{name}: {doing}"));
    limits::check_descriptors(workers_of(&config)).map_err(failed("cannot start"))?;
    let uring =
        choose_backend(config.io).map_err(failed("io_uring cannot be used here (try --io syscalls)"))?;
    let (tun, workers) = open_tun(&config).map_err(failed("cannot create the interface"))?;
    let socket =
        UapiSocket::listen(&tun.name, config.uapi_fd).map_err(failed("cannot listen for configuration"))?;
    let steering = if config.steering && workers > 1 { attach_steering(&tun, workers) } else { None };
    let follow = tun.queues[0].try_clone().map_err(failed("cannot follow the interface"))?;
    let device = Device::new(workers as u8, Box::new(SystemEntropy));
    let plan = WorkerPlan {
        uring,
        gso: config.gso && !is_gso_mangled(),
        pin: config.pin,
        first_core: tun.name.bytes().map(usize::from).sum(),
        mtu: config.mtu,
        coalesce: tun.offloads.coalesce(),
    };
    let Crew { links, threads, uring } =
        hire(tun.queues, plan, config.io).map_err(failed("cannot start a worker"))?;
    log::info!(
        "{}: {workers} worker(s), {}, TUN offloads {:?}",
        tun.name,
        if uring { "io_uring" } else { "plain syscalls" },
        tun.offloads
    );
    if let Some(file) = config.upkeep {
        upkeep::start(tun.name.clone(), file).map_err(failed("cannot start a thread"))?;
    }
    let listener = socket.listener().map_err(failed("cannot listen for configuration"))?;
    let (removed, socket_removed) = tokio::sync::mpsc::channel(1);
    socket.follow_removal(removed).map_err(failed("cannot follow the configuration socket"))?;
    ready();
    let manager = config.notify.then(Notify::from_env).flatten();
    if let Some(manager) = &manager {
        manager.ready(&format!("{}: {workers} worker(s), no peers yet", tun.name));
    }
    let parts = SlowPath {
        socket_removed,
        device,
        links: links.clone(),
        uapi: listener,
        queue: follow,
        steering,
        gro: config.gro,
        uring,
        reporter: manager.as_ref().and_then(Notify::reporter),
    };
    let ended = runtime::run(parts);
    if let Some(manager) = &manager {
        manager.stopping();
    }
    stop_workers(&links, threads);
    ended
        .map_err(failed("the tunnel ended"))
        .map_err(|error| TunnelError { deleted: link::index(&tun.name).is_err(), ..error })
}

/// True: io_uring. The error is why it cannot be used where it was demanded.
fn choose_backend(choice: IoChoice) -> std::io::Result<bool> {
    match (choice, Uring::probe()) {
        (IoChoice::Syscalls, _) => Ok(false),
        (_, Ok(())) => Ok(true),
        (IoChoice::Uring, Err(error)) => Err(error),
        (IoChoice::Auto, Err(error)) => {
            tell_no_uring(&error);
            Ok(false)
        }
    }
}

/// Whether this kernel delivers something else than what UDP_SEGMENT was given. Where that cannot be found out it is taken for good.
fn is_gso_mangled() -> bool {
    let mangled = matches!(gso::delivers_whole(), Ok(false));
    if mangled {
        log::warn!("this kernel damages trains of datagrams (UDP_SEGMENT): sending them one by one");
    }
    mangled
}

fn tell_no_uring(why: &std::io::Error) {
    log::warn!("io_uring is not available ({why}): using epoll and plain syscalls instead");
}

/// How many workers there will be.
fn workers_of(config: &TunnelConfig) -> usize {
    if config.tun_fd.is_some() {
        return 1;
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    config.workers.unwrap_or(cores).clamp(1, MAX_WORKERS)
}

fn open_tun(config: &TunnelConfig) -> std::io::Result<(Tun, usize)> {
    if let Some(fd) = &config.tun_fd {
        return Ok((Tun::from_fd(fd.try_clone()?)?, 1));
    }
    let workers = workers_of(config);
    let tun = create_tun(&TunConfig {
        name: config.name.clone(),
        queues: workers,
        mtu: config.mtu,
        offloads: config.tun_offloads,
    })?;
    Ok((tun, workers))
}

/// Creates the device. The interface of a process that was killed a moment ago may still be there: the kernel takes down the rings
/// that hold its queues after the process is gone, 10 to 50 ms later. So a name in use is tried again for a while.
fn create_tun(config: &TunConfig) -> std::io::Result<Tun> {
    let begun = Instant::now();
    loop {
        match Tun::create(config) {
            Err(error) if errno(&error) == Some(libc::EBUSY) && leaving::may_go(&config.name, begun) => {
                std::thread::sleep(leaving::LOOK);
            }
            outcome => return outcome,
        }
    }
}

fn attach_steering(tun: &Tun, workers: usize) -> Option<TunSteering> {
    TunSteering::attach(tun.queues[0].as_fd(), workers)
        .inspect_err(|error| {
            log::warn!("no eBPF steering of the TUN queues ({error}): the kernel's flow hash chooses")
        })
        .ok()
}

/// Workers that turn, and how they are spoken to.
struct Crew {
    links: Links,
    threads: Vec<JoinHandle<()>>,
    uring: bool,
}

/// Starts the workers: over plain syscalls where io_uring is refused after all, unless it was demanded. That a ring could be made
/// before does not mean that each worker may have one: rings and their buffers count against RLIMIT_MEMLOCK.
fn hire(queues: Vec<OwnedFd>, plan: WorkerPlan, choice: IoChoice) -> std::io::Result<Crew> {
    if plan.uring {
        let handles = queues.iter().map(OwnedFd::try_clone).collect::<std::io::Result<_>>()?;
        let links = Links::new(queues.len())?.within(memory::group_limit());
        match start_workers(handles, &links, &plan) {
            Ok(threads) => return Ok(Crew { links, threads, uring: true }),
            Err(error) if choice == IoChoice::Auto => tell_no_uring(&error),
            Err(error) => return Err(error),
        }
    }
    // New queues: those of the first attempt hold the word that ended its workers.
    let links = Links::new(queues.len())?.within(memory::group_limit());
    let threads = start_workers(queues, &links, &WorkerPlan { uring: false, ..plan })?;
    Ok(Crew { links, threads, uring: false })
}

/// What all workers have in common.
#[derive(Clone, Copy)]
struct WorkerPlan {
    uring: bool,
    gso: bool,
    pin: bool,
    /// Core of worker 0. Tunnels of one host start on different ones, as the first peer of each goes to its worker 0.
    first_core: usize,
    mtu: u32,
    coalesce: crate::offload::coalesce::CoalesceOptions,
}

fn start_workers(
    queues: Vec<OwnedFd>,
    links: &Links,
    plan: &WorkerPlan,
) -> std::io::Result<Vec<JoinHandle<()>>> {
    let cores = if plan.pin { core_affinity::get_core_ids().unwrap_or_default() } else { Vec::new() };
    let (started, starts) = mpsc::channel();
    let mut threads = Vec::with_capacity(queues.len());
    for (id, queue) in queues.into_iter().enumerate() {
        let core = (!cores.is_empty()).then(|| cores[(id + plan.first_core) % cores.len()]);
        let (links, plan, started) = (links.clone(), *plan, started.clone());
        let work = move || {
            if let Some(core) = core
                && !core_affinity::set_for_current(core)
            {
                log::warn!("worker {id}: cannot be pinned to core {}", core.id);
            }
            run_worker(id as u8, queue, &links, &plan, |outcome| {
                let _ = started.send(outcome); // the starter waits for exactly one word a worker
            });
        };
        threads.push(std::thread::Builder::new().name(format!("ringtun-{id}")).spawn(work)?);
    }
    drop(started);
    let workers = threads.len();
    for outcome in starts.iter().take(workers) {
        if let Err(error) = outcome {
            stop_workers(links, threads);
            return Err(error);
        }
    }
    Ok(threads)
}

/// A worker's thread: sets up its backend, reports that, and turns until it is stopped or the device is gone.
fn run_worker(
    id: u8,
    queue: OwnedFd,
    links: &Links,
    plan: &WorkerPlan,
    report: impl FnOnce(std::io::Result<()>),
) {
    let worker = Worker::new(WorkerConfig { id, mtu: plan.mtu, coalesce: plan.coalesce }, links);
    let waker = links.workers[usize::from(id)].waker.clone();
    if plan.uring {
        let backend = Pool::new(BUFFERS).and_then(|pool| Uring::new(queue, pool, waker));
        turn(worker, backend.map(|io| if plan.gso { io } else { io.without_gso() }), report);
    } else {
        let backend = Pool::new(BUFFERS).and_then(|pool| Mmsg::new(queue, pool, waker));
        turn(worker, backend.map(|io| if plan.gso { io } else { io.without_gso() }), report);
    }
}

fn turn<I: Io>(worker: Worker, backend: std::io::Result<I>, report: impl FnOnce(std::io::Result<()>)) {
    match backend {
        Ok(mut io) => {
            report(Ok(()));
            // Its end, and why, reaches the slow path as an event.
            let _ = worker.run(&mut io);
        }
        Err(error) => report(Err(error)),
    }
}

fn stop_workers(links: &Links, threads: Vec<JoinHandle<()>>) {
    for inbox in &links.workers {
        let mut stop = Control::Stop;
        // A full queue empties as its worker turns; one that ended does not, and needs no word.
        for _ in 0..1000 {
            match inbox.controls.push(stop) {
                Ok(()) => break,
                Err(back) => stop = back,
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        inbox.waker.wake();
    }
    for thread in threads {
        if thread.join().is_err() {
            log::error!("a worker panicked");
        }
    }
}
