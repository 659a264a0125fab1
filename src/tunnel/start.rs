//! The start of a tunnel: TUN device, configuration socket, workers, slow path. On the tunnel's own thread, the removal of all
//! of it.

use crate::crypto::random::SystemEntropy;
use crate::device::Device;
use crate::index::WorkerCount;
use crate::io::steer::TunSteering;
use crate::io::tun::{self, Tun, TunConfig, TunOffloads};
use crate::io::udp::SocketOptions;
use crate::slowpath::handle::{self, Handle};
use crate::slowpath::handover::{Belongings, HandOverTerms, TunnelSettings};
use crate::slowpath::pinning::Pinning;
use crate::slowpath::runtime::{self, SlowPath, SlowPathEnd};
use crate::sys::error::errno;
use crate::sys::{group, gso, link};
use crate::tunnel::end::{End, Ending, Outcome};
use crate::tunnel::error::Error;
use crate::tunnel::plural::counted;
use crate::tunnel::socket::UapiSocket;
use crate::tunnel::workers::{self, Backend, WorkerPlan, WorkerThreads};
use crate::tunnel::{cores, leaving, limits};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;
use tokio::sync::mpsc;

/// The settings of a tunnel, as the builder collected them.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) name: String,
    /// How many workers there are. `None` is one for each core that affinity and CPU quota leave.
    pub(super) workers: Option<usize>,
    /// How many packet buffers each worker has.
    pub(super) buffers: usize,
    pub(super) backend: Backend,
    pub(super) mtu: u32,
    pub(super) tun_offloads: bool,
    pub(super) gso: bool,
    pub(super) sockets: SocketOptions,
    pub(super) steering: bool,
    pub(super) pin: bool,
    /// Whether workers share the trains of every peer, whatever the load.
    pub(super) share_all: bool,
    /// An open TUN file to take over. With it there is one worker.
    pub(super) tun_fd: Option<OwnedFd>,
    pub(super) control: SocketChoice,
    /// What goes along where another process takes the tunnel over. `None` where none may.
    pub(super) belongings: Option<Belongings>,
}

/// The socket by which other processes configure the tunnel.
#[derive(Debug)]
pub(super) enum SocketChoice {
    None,
    Own,
    Given(OwnedFd),
    /// That of another process, which has yet to let go of it.
    Inherited(OwnedFd),
}

/// A tunnel that was started, and its end to come.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) name: String,
    pub(super) workers: usize,
    pub(super) handle: Handle,
    pub(super) end: Arc<End>,
}

pub(super) fn start(mut settings: Settings) -> Result<Started, Error> {
    let name = std::mem::take(&mut settings.name);
    let (buffers, sockets) = (settings.buffers, settings.sockets);
    limits::check_memory(buffers, sockets.buffer).map_err(Error::memory(&name))?;
    let tun_fd = settings.tun_fd.take();
    let count = workers_of(settings.workers, tun_fd.is_some());
    let workers = count.get();
    if tun_fd.is_none() {
        tun::check_name(&name).map_err(Error::name(&name))?;
    }
    limits::check_descriptors(workers).map_err(|shortage| Error::short_of(shortage, &name, workers))?;
    let uring = workers::choose_backend(settings.backend).map_err(Error::io_uring(&name))?;
    let handed_in = tun_fd.is_some();
    let tun = match tun_fd {
        Some(fd) => Tun::from_fd(fd),
        None => create_tun(&TunConfig {
            name: name.clone(),
            queues: count,
            mtu: settings.mtu,
            offloads: settings.tun_offloads,
        }),
    }
    .map_err(Error::interface(&name))?;
    // A device that was handed in has the name that its maker gave it.
    let name = tun.name;
    let control = std::mem::replace(&mut settings.control, SocketChoice::None);
    let socket = Socket::open(&name, control).map_err(Error::control_socket(&name))?;
    let steering = if settings.steering && workers > 1 { attach_steering(&tun.queues, count) } else { None };
    let queue = tun.queues[0].try_clone().map_err(Error::worker(&name))?;
    let passed = TunnelSettings { handed_in, offloads: tun.offloads, ..settings.passed_on(workers) };
    let terms =
        terms(passed, settings.belongings.take(), &socket, &tun.queues).map_err(Error::worker(&name))?;
    let plan = WorkerPlan {
        uring,
        buffers,
        gso: settings.gso && !is_gso_mangled(),
        mtu: settings.mtu,
        coalesce: tun.offloads.coalesce(),
        at_rest: false,
    };
    let first = |allowed: &[usize]| cores::first_place(allowed, workers, &name);
    let pinning = settings.pin.then(|| Pinning::new(workers, first));
    let threads = workers::start(tun.queues, workers, plan, pinning.as_ref(), settings.backend)
        .map_err(Error::worker(&name))?;
    tell(&name, &threads, workers, tun.offloads);
    let mut device = Device::new(count, Box::new(SystemEntropy));
    if settings.share_all {
        device.share_all();
    }
    run(name, device, threads, LateThreads::default(), socket, |parts| SlowPath {
        queue: Some(queue),
        steering,
        pinning,
        sockets,
        terms,
        ..parts
    })
}

impl Settings {
    /// What matters of them to a successor.
    fn passed_on(&self, workers: usize) -> TunnelSettings {
        TunnelSettings {
            workers,
            buffers: self.buffers,
            uring: match self.backend {
                Backend::Auto => None,
                Backend::Uring => Some(true),
                Backend::Syscalls => Some(false),
            },
            gso: self.gso,
            gro: self.sockets.gro,
            socket_buffer: self.sockets.buffer,
            steering: self.steering,
            pin: self.pin,
            share_all: self.share_all,
            handed_in: false,
            offloads: TunOffloads::default(),
        }
    }
}

/// What is handed over where another process asks. Without a control socket none can.
pub(super) fn terms(
    settings: TunnelSettings,
    belongings: Option<Belongings>,
    socket: &Socket,
    queues: &[OwnedFd],
) -> io::Result<Option<HandOverTerms>> {
    let (Some(belongings), Some(listener)) = (belongings, &socket.listener) else { return Ok(None) };
    Ok(Some(HandOverTerms {
        settings,
        network: File::open("/proc/thread-self/ns/net")?.into(),
        listener: listener.try_clone()?.into(),
        queues: queues.iter().map(OwnedFd::try_clone).collect::<io::Result<_>>()?,
        belongings,
    }))
}

/// Logs what a tunnel has.
pub(super) fn tell(name: &str, threads: &WorkerThreads, workers: usize, offloads: TunOffloads) {
    let backend = if threads.uring { "io_uring" } else { "plain syscalls" };
    log::info!("{name}: {}, {backend}, TUN offloads: {}", counted(workers, "worker"), listed(offloads));
}

/// The offloads that the device has, for a person.
fn listed(offloads: TunOffloads) -> String {
    let all = [
        (offloads.csum, "checksums"),
        (offloads.tso, "TCP segmentation"),
        (offloads.uso, "UDP segmentation"),
        (offloads.tunnels, "UDP tunnels"),
    ];
    let had: Vec<&str> = all.into_iter().filter_map(|(has, name)| has.then_some(name)).collect();
    if had.is_empty() { "none".to_owned() } else { had.join(", ") }
}

/// Threads of workers that are started by the tunnel's own thread.
pub(super) type LateThreads = Arc<Mutex<Vec<JoinHandle<()>>>>;

/// Starts the tunnel's thread, which removes all of it at its end.
pub(super) fn run(
    name: String,
    device: Device,
    threads: WorkerThreads,
    late: LateThreads,
    socket: Socket,
    complete: impl FnOnce(SlowPath) -> SlowPath,
) -> Result<Started, Error> {
    let WorkerThreads { links, mut threads, uring } = threads;
    let (handle, commands) = handle::channel(links.slow.waker.clone());
    let workers = links.workers.len();
    let parts = complete(SlowPath {
        device,
        links: links.clone(),
        commands,
        uapi: socket.listener,
        socket_removed: socket.removed,
        queue: None,
        steering: None,
        pinning: None,
        sockets: SocketOptions::default(),
        uring,
        terms: None,
        takeover: None,
    });
    let end = Arc::new(End::default());
    let (ending, interface, of_workers) = (Ending(Arc::clone(&end)), name.clone(), links.clone());
    let live = move || {
        let ended = runtime::run(parts);
        threads.append(&mut late.lock().unwrap_or_else(PoisonError::into_inner));
        workers::stop_workers(&of_workers, threads);
        match ended {
            Ok(SlowPathEnd::HandedOver(_) | SlowPathEnd::NotTaken) => socket.file.map(UapiSocket::leave),
            _ => socket.file.map(UapiSocket::remove),
        };
        ending.with(match ended {
            Ok(SlowPathEnd::Stopped | SlowPathEnd::NotTaken) => Outcome::Stopped,
            Ok(SlowPathEnd::HandedOver(successor)) => Outcome::HandedOver(successor),
            Err(error) if link::index(&interface).is_ok() => Outcome::Failed(Arc::new(error)),
            Err(error) => Outcome::Deleted(Arc::new(error)),
        });
    };
    if let Err(error) = std::thread::Builder::new().name("ringtun-slow".into()).spawn(live) {
        workers::stop_workers(&links, Vec::new());
        return Err(Error::worker(&name)(error));
    }
    Ok(Started { name, workers, handle, end })
}

/// The configuration socket's parts. Without such a socket, its removal never comes.
pub(super) struct Socket {
    file: Option<UapiSocket>,
    listener: Option<UnixListener>,
    removed: mpsc::Receiver<()>,
}

impl Socket {
    pub(super) fn open(name: &str, control: SocketChoice) -> io::Result<Socket> {
        let (sender, removed) = mpsc::channel(1);
        let file = match control {
            SocketChoice::None => return Ok(Socket { file: None, listener: None, removed }),
            SocketChoice::Own => UapiSocket::listen(name, None)?,
            SocketChoice::Given(fd) => UapiSocket::listen(name, Some(fd))?,
            SocketChoice::Inherited(fd) => UapiSocket::shared(name, fd),
        };
        file.follow_removal(sender)?;
        Ok(Socket { listener: Some(file.listener()?), file: Some(file), removed })
    }
}

/// Whether this kernel delivers something else than what UDP_SEGMENT was given. Where that cannot be found out, it is taken for
/// sound.
pub(super) fn is_gso_mangled() -> bool {
    let mangled = matches!(gso::delivers_whole(), Ok(false));
    if mangled {
        log::warn!("this kernel damages trains of datagrams (UDP_SEGMENT): sending them one by one");
    }
    mangled
}

/// How many workers there will be.
pub(super) fn workers_of(wanted: Option<usize>, is_handed_in: bool) -> WorkerCount {
    match wanted {
        _ if is_handed_in => WorkerCount::ONE,
        Some(count) => WorkerCount::nearest(count),
        None => cores::default_workers(cores::core_count(), group::cpu_quota()),
    }
}

/// Creates the device. The interface of a process that was killed a moment ago may still exist: the kernel takes down the
/// rings that hold its queues after the process is gone, 10 to 50 ms later. So a name in use is tried again for a while.
fn create_tun(config: &TunConfig) -> io::Result<Tun> {
    let begun = Instant::now();
    loop {
        match Tun::create(config) {
            Err(error) if errno(&error) == Some(libc::EBUSY) && leaving::may_go(&config.name, begun) => {
                std::thread::sleep(leaving::POLL_INTERVAL);
            }
            outcome => return outcome,
        }
    }
}

fn attach_steering(queues: &[OwnedFd], workers: WorkerCount) -> Option<TunSteering> {
    TunSteering::attach(queues[0].as_fd(), workers)
        .inspect_err(|error| {
            log::warn!("no eBPF steering of the TUN queues ({error}): the kernel's flow hash chooses a packet's queue")
        })
        .ok()
}
