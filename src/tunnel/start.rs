//! The start of a tunnel: TUN device, configuration socket, workers, slow path. On the tunnel's own thread, the removal of all
//! of it.

use crate::crypto::random::SystemEntropy;
use crate::device::Device;
use crate::index::WorkerCount;
use crate::io::steer::TunSteering;
use crate::io::tun::{self, Tun, TunConfig, TunOffloads};
use crate::io::udp::SocketOptions;
use crate::slowpath::handle::{self, Handle};
use crate::slowpath::pinning::Pinning;
use crate::slowpath::runtime::{self, SlowPath};
use crate::sys::error::errno;
use crate::sys::{group, gso, link};
use crate::tunnel::end::{End, Ending, Outcome};
use crate::tunnel::error::Error;
use crate::tunnel::plural::counted;
use crate::tunnel::socket::UapiSocket;
use crate::tunnel::workers::{self, Backend, WorkerPlan, WorkerThreads};
use crate::tunnel::{cores, leaving, limits};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
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
}

/// The socket by which other processes configure the tunnel.
#[derive(Debug)]
pub(super) enum SocketChoice {
    None,
    Own,
    Given(OwnedFd),
}

/// A tunnel that was started, and its end to come.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) name: String,
    pub(super) workers: usize,
    pub(super) handle: Handle,
    pub(super) end: Arc<End>,
}

pub(super) fn start(settings: Settings) -> Result<Started, Error> {
    let Settings { name, backend, sockets, .. } = settings;
    limits::check_memory(settings.buffers, sockets.buffer).map_err(Error::memory(&name))?;
    let count = workers_of(settings.workers, settings.tun_fd.is_some());
    let workers = count.get();
    if settings.tun_fd.is_none() {
        tun::check_name(&name).map_err(Error::name(&name))?;
    }
    limits::check_descriptors(workers).map_err(|shortage| Error::short_of(shortage, &name, workers))?;
    let uring = workers::choose_backend(backend).map_err(Error::io_uring(&name))?;
    let tun = match settings.tun_fd {
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
    let socket = Socket::open(&name, settings.control).map_err(Error::control_socket(&name))?;
    let steering = if settings.steering && workers > 1 { attach_steering(&tun.queues, count) } else { None };
    let queue = tun.queues[0].try_clone().map_err(Error::worker(&name))?;
    let plan = WorkerPlan {
        uring,
        buffers: settings.buffers,
        gso: settings.gso && !is_gso_mangled(),
        mtu: settings.mtu,
        coalesce: tun.offloads.coalesce(),
    };
    let first = |allowed: &[usize]| cores::first_place(allowed, workers, &name);
    let pinning = settings.pin.then(|| Pinning::new(workers, first));
    let threads =
        workers::start(tun.queues, plan, pinning.as_ref(), backend).map_err(Error::worker(&name))?;
    let backend = if threads.uring { "io_uring" } else { "plain syscalls" };
    log::info!("{name}: {}, {backend}, TUN offloads: {}", counted(workers, "worker"), listed(tun.offloads));
    let mut device = Device::new(count, Box::new(SystemEntropy));
    if settings.share_all {
        device.share_all();
    }
    run(name, device, threads, socket, |parts| SlowPath {
        queue: Some(queue),
        steering,
        pinning,
        sockets,
        ..parts
    })
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

/// Starts the tunnel's thread, which removes all of it at its end.
fn run(
    name: String,
    device: Device,
    threads: WorkerThreads,
    socket: Socket,
    complete: impl FnOnce(SlowPath) -> SlowPath,
) -> Result<Started, Error> {
    let WorkerThreads { links, threads, uring } = threads;
    let (handle, commands) = handle::channel(links.slow.waker.clone());
    let workers = threads.len();
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
    });
    let end = Arc::new(End::default());
    let (ending, interface, of_workers) = (Ending(Arc::clone(&end)), name.clone(), links.clone());
    let live = move || {
        let ended = runtime::run(parts);
        workers::stop_workers(&of_workers, threads);
        drop(socket.file);
        ending.with(match ended {
            Ok(()) => Outcome::Stopped,
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
struct Socket {
    file: Option<UapiSocket>,
    listener: Option<UnixListener>,
    removed: mpsc::Receiver<()>,
}

impl Socket {
    fn open(name: &str, control: SocketChoice) -> io::Result<Socket> {
        let (sender, removed) = mpsc::channel(1);
        let file = match control {
            SocketChoice::None => return Ok(Socket { file: None, listener: None, removed }),
            SocketChoice::Own => UapiSocket::listen(name, None)?,
            SocketChoice::Given(fd) => UapiSocket::listen(name, Some(fd))?,
        };
        file.follow_removal(sender)?;
        Ok(Socket { listener: Some(file.listener()?), file: Some(file), removed })
    }
}

/// Whether this kernel delivers something else than what UDP_SEGMENT was given. Where that cannot be found out, it is taken for
/// sound.
fn is_gso_mangled() -> bool {
    let mangled = matches!(gso::delivers_whole(), Ok(false));
    if mangled {
        log::warn!("this kernel damages trains of datagrams (UDP_SEGMENT): sending them one by one");
    }
    mangled
}

/// How many workers there will be.
fn workers_of(wanted: Option<usize>, is_handed_in: bool) -> WorkerCount {
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
