//! A tunnel that runs in another process, and is to go on in this one.

use crate::crypto::random::SystemEntropy;
use crate::device::Device;
use crate::index::WorkerCount;
use crate::io::tun;
use crate::io::udp::SocketOptions;
use crate::slowpath::handover::{Belongings, LateStart, Offer, TakenReport, Takeover, TunnelSettings};
use crate::slowpath::netlink;
use crate::slowpath::pinning::Pinning;
use crate::slowpath::runtime::SlowPath;
use crate::sys::error::{explain, invalid};
use crate::tunnel::builder::MTU;
use crate::tunnel::error::Error;
use crate::tunnel::start::{self, LateThreads, Socket, SocketChoice, Started, workers_of};
use crate::tunnel::workers::{self, Backend, LateWorkers, WorkerPlan, WorkerThreads};
use crate::tunnel::{Tunnel, cores, limits, socket};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, PoisonError};

/// A running tunnel of another process, which this one may take over: [`Self::ask`] for it, then [`Self::take_over`]. Until then
/// nothing happens to it, and where that fails it goes on as if nobody had asked.
///
/// That process must be of the same user, and have said that its tunnel may be taken over
/// ([`Builder::belongings`](crate::Builder::belongings)).
#[derive(Debug)]
pub struct Predecessor {
    name: String,
    connection: UnixStream,
    offer: Offer,
}

impl Predecessor {
    /// Asks for the tunnel whose interface is called `name`, at its control socket.
    ///
    /// # Errors
    ///
    /// [`Error::TakeOver`] where it does not run, stays with its process, is another user's, or is of a version that hands over another
    /// format.
    pub fn ask(name: impl Into<String>) -> Result<Predecessor, Error> {
        let name = name.into();
        let connection = connect(&name).map_err(Error::take_over(&name))?;
        let offer = Offer::ask(&connection).and_then(of_same_user).map_err(Error::take_over(&name))?;
        Ok(Predecessor { name, connection, offer })
    }

    /// The number of the process, as it sees itself.
    pub fn process(&self) -> u32 {
        self.offer.pid
    }

    /// The version of this library there.
    pub fn version(&self) -> &str {
        &self.offer.version
    }

    /// What the tunnel's owner there has left for its owner here. A second call finds nothing.
    pub fn belongings(&mut self) -> Belongings {
        std::mem::take(&mut self.offer.terms.belongings)
    }

    /// Moves the calling thread, and those that it will start, to the network namespace of the tunnel's sockets. It has to be there for
    /// [`Self::take_over`].
    ///
    /// # Errors
    ///
    /// EPERM without CAP_SYS_ADMIN, where it is another one.
    pub fn enter_network(&self) -> Result<(), Error> {
        netlink::enter(&self.offer.terms.network)
            .map_err(|error| explain(error, "cannot enter the network namespace of its sockets"))
            .map_err(Error::take_over(&self.name))
    }

    /// Goes on with the tunnel, in the same way, with as many workers as there were unless `workers` says otherwise. Other processes may
    /// take it over with these `belongings`. The tunnel stands still for some milliseconds, and a second for some 100,000 peers; what
    /// arrives meanwhile waits. With fewer workers than before, packets may be lost that leave in the moment when a queue is closed.
    ///
    /// # Errors
    ///
    /// Where this process cannot have what the tunnel needs, or the other one does not let go of it. Then the tunnel goes on there.
    pub fn take_over(self, workers: Option<usize>, belongings: Belongings) -> Result<Tunnel, Error> {
        let Predecessor { name, connection, offer } = self;
        let Offer { maps, mut terms, .. } = offer;
        let settings = terms.settings;
        let count = workers_of(Some(workers.unwrap_or(settings.workers)), settings.handed_in);
        let socket = Socket::open(&name, SocketChoice::Inherited(terms.listener));
        let socket = socket.map_err(Error::control_socket(&name))?;
        let surplus = terms.queues.split_off(count.get().min(terms.queues.len()));
        let passed = TunnelSettings { workers: count.get(), ..settings };
        let terms =
            start::terms(passed, Some(belongings), &socket, &terms.queues).map_err(Error::worker(&name))?;
        let pinning = settings.pin.then(|| {
            Pinning::new(count.get(), |allowed: &[usize]| cores::first_place(allowed, count.get(), &name))
        });
        let queues = terms.as_ref().map_or(&[][..], |terms| &terms.queues);
        let (threads, plan) = start_at_rest(&name, &settings, count, queues, pinning.as_ref())?;
        let queue = queues.first().map(OwnedFd::try_clone).transpose().map_err(Error::worker(&name))?;
        let started = LateThreads::default();
        let late = late(&threads, plan, pinning.as_ref(), Arc::clone(&started));
        let (report, is_taken) = TakenReport::new();
        let takeover = Takeover { connection, maps, surplus, late, report };
        let mut device = Device::new(count, Box::new(SystemEntropy));
        if settings.share_all {
            device.share_all();
        }
        let sockets = SocketOptions { gro: settings.gro, buffer: settings.socket_buffer };
        let started = start::run(name, device, threads, started, socket, |parts| SlowPath {
            queue,
            pinning,
            sockets,
            terms,
            takeover: Some(takeover),
            ..parts
        })?;
        once_taken(started, &is_taken)
    }
}

fn connect(name: &str) -> io::Result<UnixStream> {
    tun::check_name(name)?;
    let path = socket::path(name);
    UnixStream::connect(&path).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => explain(error, format!("{}: try it as root", path.display())),
        _ => explain(error, format!("no tunnel runs here that {} belongs to", path.display())),
    })
}

/// The offer, if the process is this one's user's: the kernel lets nobody else add to its queues and its group of sockets.
fn of_same_user(offer: Offer) -> io::Result<Offer> {
    let uid = rustix::process::geteuid().as_raw();
    if offer.uid == uid {
        return Ok(offer);
    }
    Err(invalid(format!(
        "it is user {}'s, and this process is user {uid}'s: do it as that user (setpriv --reuid={})",
        offer.uid, offer.uid
    )))
}

/// Starts the workers for whom there is a queue. They take nothing in.
fn start_at_rest(
    name: &str,
    settings: &TunnelSettings,
    count: WorkerCount,
    queues: &[OwnedFd],
    pinning: Option<&Pinning>,
) -> Result<(WorkerThreads, WorkerPlan), Error> {
    let total = count.get();
    limits::check_memory(settings.buffers, settings.socket_buffer).map_err(Error::memory(name))?;
    limits::check_descriptors(total).map_err(|shortage| Error::short_of(shortage, name, total))?;
    let backend = match settings.uring {
        None => Backend::Auto,
        Some(true) => Backend::Uring,
        Some(false) => Backend::Syscalls,
    };
    let uring = workers::choose_backend(backend).map_err(Error::io_uring(name))?;
    let plan = WorkerPlan {
        uring,
        buffers: settings.buffers,
        gso: settings.gso && !start::is_gso_mangled(),
        // The state says what it is.
        mtu: MTU,
        coalesce: settings.offloads.coalesce(),
        at_rest: true,
    };
    let queues = queues.iter().map(OwnedFd::try_clone).collect::<io::Result<_>>();
    let threads = queues.and_then(|queues| workers::start(queues, total, plan, pinning, backend));
    let threads = threads.map_err(Error::worker(name))?;
    start::tell(name, &threads, total, settings.offloads);
    let plan = WorkerPlan { uring: threads.uring, ..plan };
    Ok((threads, plan))
}

/// How many workers are to be started once there are queues for them, and what does that.
fn late(
    threads: &WorkerThreads,
    plan: WorkerPlan,
    pinning: Option<&Pinning>,
    started: LateThreads,
) -> Option<(usize, LateStart)> {
    let (first, links) = (threads.threads.len(), threads.links.clone());
    let count = links.workers.len() - first;
    let late = LateWorkers { first, links, plan, pinning: pinning.cloned() };
    let start = move |queues| {
        let threads = late.start(queues)?;
        started.lock().unwrap_or_else(PoisonError::into_inner).extend(threads);
        Ok(())
    };
    (count > 0).then(|| (count, Box::new(start) as LateStart))
}

/// The tunnel, once it is this process's.
fn once_taken(started: Started, is_taken: &Receiver<io::Result<()>>) -> Result<Tunnel, Error> {
    let outcome = is_taken.recv();
    let tunnel = Tunnel::running(started);
    // A thread that ended without a word panicked.
    let error = match outcome {
        Ok(Ok(())) => return Ok(tunnel),
        Ok(Err(error)) => error,
        Err(_) => io::Error::other("the thread of the tunnel panicked"),
    };
    // What is reported is why it was not taken over.
    let _ = tunnel.wait();
    Err(Error::take_over(tunnel.name())(error))
}
