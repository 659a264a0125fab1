//! The workers' threads: their backends, their cores, and their end.

use crate::dataplane::worker::{Worker, WorkerConfig};
use crate::dataplane::{Control, Links};
use crate::io::Io;
use crate::io::mmsg::Mmsg;
use crate::io::slab::Pool;
use crate::io::uring::Uring;
use crate::offload::coalesce::CoalesceOptions;
use crate::slowpath::pinning::Pinning;
use crate::sys::group;
use crate::tunnel::cores::THREAD_PREFIX;
use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::thread::JoinHandle;

/// How many buffers a worker has, unless somebody chose another number: 64 in its receive ring, the rest for frames read, trains
/// built and trains that wait for a full socket. Worst case 192 × 68 KiB = 12.75 MiB a worker, touched only as far as used.
pub const BUFFERS: usize = 192;
/// Fewest buffers of a worker, 1.06 MiB. Half of them wait for datagrams. Of the others a turn needs one for the frame that it
/// reads, and one for each train that it builds; with fewer, its trains leave early.
pub const MIN_BUFFERS: usize = 16;

/// The way in which workers speak to the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum Backend {
    /// Workers use io_uring where it is allowed, and plain system calls where it is not.
    #[default]
    Auto,
    /// Workers use io_uring, or the tunnel does not start.
    Uring,
    /// Workers use epoll and plain system calls.
    Syscalls,
}

/// Chooses the backend; true is io_uring. The error says why it cannot be used where it was demanded.
pub(super) fn choose_backend(choice: Backend) -> std::io::Result<bool> {
    match (choice, Uring::probe()) {
        (Backend::Syscalls, _) => Ok(false),
        (_, Ok(())) => Ok(true),
        (Backend::Uring, Err(error)) => Err(error),
        (Backend::Auto, Err(error)) => {
            tell_no_uring(&error);
            Ok(false)
        }
    }
}

fn tell_no_uring(why: &std::io::Error) {
    log::warn!("io_uring is not available ({why}): using epoll and plain syscalls instead");
}

/// The running workers, and the queues by which they are reached.
pub(super) struct WorkerThreads {
    pub(super) links: Links,
    pub(super) threads: Vec<JoinHandle<()>>,
    pub(super) uring: bool,
}

/// Starts the workers, over plain system calls where io_uring is refused after all, unless it was demanded. That a ring
/// could be made before does not mean that each worker may have one: rings and their buffers count against RLIMIT_MEMLOCK.
///
/// There are `total` workers. Those for whom there is no queue yet are started later, by [`LateWorkers`].
pub(super) fn start(
    queues: Vec<OwnedFd>,
    total: usize,
    plan: WorkerPlan,
    pinning: Option<&Pinning>,
    choice: Backend,
) -> std::io::Result<WorkerThreads> {
    if plan.uring {
        let handles = queues.iter().map(OwnedFd::try_clone).collect::<std::io::Result<_>>()?;
        let links = Links::new(total)?.within(group::memory_limit());
        match start_workers(handles, 0, &links, &plan, pinning) {
            Ok(threads) => return Ok(WorkerThreads { links, threads, uring: true }),
            Err(error) if choice == Backend::Auto => tell_no_uring(&error),
            Err(error) => return Err(error),
        }
    }
    // The queues are new ones, as those of the first attempt hold the word that ended its workers.
    let links = Links::new(total)?.within(group::memory_limit());
    let threads = start_workers(queues, 0, &links, &WorkerPlan { uring: false, ..plan }, pinning)?;
    Ok(WorkerThreads { links, threads, uring: false })
}

/// The workers of a tunnel that have no queue yet.
pub(super) struct LateWorkers {
    /// The number of the first of them.
    pub(super) first: usize,
    pub(super) links: Links,
    pub(super) plan: WorkerPlan,
    pub(super) pinning: Option<Pinning>,
}

impl LateWorkers {
    /// Starts them. After an error all workers have been told to end.
    pub(super) fn start(self, queues: Vec<OwnedFd>) -> std::io::Result<Vec<JoinHandle<()>>> {
        start_workers(queues, self.first, &self.links, &self.plan, self.pinning.as_ref())
    }
}

/// What all workers have in common.
#[derive(Clone, Copy)]
pub(super) struct WorkerPlan {
    pub(super) uring: bool,
    /// How many packet buffers each of them has.
    pub(super) buffers: usize,
    pub(super) gso: bool,
    pub(super) mtu: u32,
    pub(super) coalesce: CoalesceOptions,
    /// Whether they begin at rest, as another process still has the queues.
    pub(super) at_rest: bool,
}

fn start_workers(
    queues: Vec<OwnedFd>,
    first: usize,
    links: &Links,
    plan: &WorkerPlan,
    pinning: Option<&Pinning>,
) -> std::io::Result<Vec<JoinHandle<()>>> {
    let (started, starts) = mpsc::channel();
    let mut threads = Vec::with_capacity(queues.len());
    for (id, queue) in (first..).zip(queues) {
        let (links, plan, pinning, started) = (links.clone(), *plan, pinning.cloned(), started.clone());
        let work = move || {
            let work = || {
                run_worker(id as u8, queue, &links, &plan, |outcome| {
                    let _ = started.send(outcome); // the starter waits for exactly one word a worker
                });
            };
            match pinning {
                Some(pinning) => pinning.run(id, work),
                None => work(),
            }
        };
        threads.push(std::thread::Builder::new().name(format!("{THREAD_PREFIX}{id}")).spawn(work)?);
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
    let worker = if plan.at_rest { worker.at_rest() } else { worker };
    let waker = links.workers[usize::from(id)].waker.clone();
    if plan.uring {
        let backend = Pool::new(plan.buffers).and_then(|pool| Uring::new(queue, pool, waker));
        turn(worker, backend.map(|io| if plan.gso { io } else { io.without_gso() }), report);
    } else {
        let backend = Pool::new(plan.buffers).and_then(|pool| Mmsg::new(queue, pool, waker));
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

pub(super) fn stop_workers(links: &Links, threads: Vec<JoinHandle<()>>) {
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
            log::error!("the thread of a worker panicked");
        }
    }
}
