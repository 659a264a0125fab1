//! Drives a [`Device`] by UAPI connections, queues from and to the workers, timers, netlink, and the owner's commands.
//!
//! The runtime is tokio-uring where io_uring may be used, plain tokio where it may not. The difference is small: who runs the
//! loop, in this file, and who reads and writes a UAPI connection ([`super::stream`]).

use crate::crypto::stack;
use crate::dataplane::Links;
use crate::device::Device;
use crate::io::steer::TunSteering;
use crate::io::udp::SocketOptions;
use crate::slowpath::driver::Driver;
use crate::slowpath::handle::Commands;
use crate::slowpath::handover::{HandOverTerms, Takeover};
use crate::slowpath::listening::{AbortOnDrop, LinkEvent};
use crate::slowpath::pinning::Pinning;
use crate::slowpath::{connections, netlink};
use crate::sys::clock::{Alarm, Clock};
use crate::time::Instant;
use std::io::Error;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener as StdListener;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::{Notify, mpsc};

type Result<T, E = Error> = std::result::Result<T, E>;

/// Most link events that may wait; the netlink threads wait while the queue is full.
const LINK_QUEUE: usize = 64;

/// What the slow path needs to run.
pub struct SlowPath {
    /// The device, without key or peers.
    pub device: Device,
    /// All queues from and to the workers.
    pub links: Links,
    /// The owner's commands.
    pub commands: Commands,
    /// The listening UAPI socket, if there is one.
    pub uapi: Option<StdListener>,
    /// Yields an item when the UAPI socket's file was removed, which ends the tunnel.
    pub socket_removed: mpsc::Receiver<()>,
    /// One of the TUN queues, the handle by which the interface is followed.
    pub queue: Option<OwnedFd>,
    /// Steering of the TUN queues, where the kernel accepted it.
    pub steering: Option<TunSteering>,
    /// The workers' cores, unless the scheduler chooses them.
    pub pinning: Option<Pinning>,
    /// What the UDP sockets ask for.
    pub sockets: SocketOptions,
    /// Whether io_uring may be used.
    pub uring: bool,
    /// What is handed over where another process asks for the tunnel. `None` where it stays in this one.
    pub terms: Option<HandOverTerms>,
    /// The tunnel of another process that is to be taken over first.
    pub takeover: Option<Takeover>,
}

/// How a slow path came to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SlowPathEnd {
    /// The owner stopped it, or the UAPI socket was removed.
    Stopped,
    /// Another process, of this number, goes on with the tunnel.
    HandedOver(u32),
    /// The tunnel was not taken over from the process that has it.
    NotTaken,
}

/// How long those who follow have to read that the tunnel is another process's now, and others the end of an answer.
const FAREWELL: Duration = Duration::from_millis(20);

/// Runs until the owner stops it, the UAPI socket is removed, or another process goes on.
///
/// # Errors
///
/// Where a worker ended because the TUN device is gone, with the worker's words, and where the system refuses what the
/// runtime needs.
pub fn run(parts: SlowPath) -> Result<SlowPathEnd> {
    let report = parts.takeover.as_ref().map(|takeover| takeover.report.clone());
    let ended = follow_and_run(parts);
    match report {
        Some(report) => report.complete(ended),
        None => ended,
    }
}

fn follow_and_run(mut parts: SlowPath) -> Result<SlowPathEnd> {
    let (events, changes) = mpsc::channel(LINK_QUEUE);
    let queue = parts.queue.take();
    let link = queue.map(|queue| netlink::follow_link(queue, events.clone())).transpose()?;
    let routes = netlink::follow_routes(events)?;
    let ended = on_runtime(parts, changes);
    // One of the threads holds a queue of the device, which exists as long as that is open.
    for thread in link.into_iter().chain([routes]) {
        if thread.join().is_err() {
            log::error!("a thread that follows netlink panicked");
        }
    }
    ended
}

fn on_runtime(parts: SlowPath, changes: mpsc::Receiver<LinkEvent>) -> Result<SlowPathEnd> {
    if parts.uring {
        // The workers' rings may have used up what RLIMIT_MEMLOCK allows.
        match tokio_uring::Runtime::new(&tokio_uring::builder()) {
            Ok(runtime) => return runtime.block_on(drive(parts, changes, true)),
            Err(error) => {
                log::warn!("io_uring is not available to the slow path ({error}): using epoll there instead");
            }
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, drive(parts, changes, false))
}

/// Serves the device until its end. `streams` says that this runtime has a ring, which reads and writes connections.
async fn drive(
    parts: SlowPath,
    mut changes: mpsc::Receiver<LinkEvent>,
    streams: bool,
) -> Result<SlowPathEnd> {
    let SlowPath { device, links, commands, uapi, mut socket_removed, steering, pinning, .. } = parts;
    let (requests, mut requested) = mpsc::channel(connections::MAX_CONNECTIONS);
    let answer_read = Rc::new(Notify::new());
    let ring = links.slow.waker.register()?;
    let (sockets, uring, terms) = (parts.sockets, parts.uring, parts.terms);
    let mut driver =
        Driver::new(device, links, steering, pinning, sockets, uring, commands).with_terms(terms);
    if let Some(takeover) = parts.takeover
        && !stack::leaving_nothing(|| driver.take_over(takeover))
    {
        return Ok(SlowPathEnd::NotTaken);
    }
    let mut accepting = None;
    if let Some(uapi) = uapi {
        uapi.set_nonblocking(true)?;
        let listener = UnixListener::from_std(uapi)?;
        let (connections, read) = (Rc::default(), Rc::clone(&answer_read));
        let accept = connections::accept(connections, listener, requests, read, streams);
        accepting = Some(AbortOnDrop(tokio::task::spawn_local(accept)));
    }
    let mut alarm = Alarm::new()?;
    loop {
        let wake_at = stack::leaving_nothing(|| driver.pump());
        tokio::select! {
            Some(()) = socket_removed.recv() => return Ok(SlowPathEnd::Stopped),
            ready = ring.readable() => {
                ready?.clear_ready();
                driver.links.slow.waker.clear();
                driver.work_pending = true;
            }
            Some(request) = requested.recv() => driver.take_request(request),
            () = answer_read.notified() => {}
            Some(event) = changes.recv() => driver.link_event(event),
            rang = pause(&mut alarm, wake_at) => rang?,
        }
        // Handshakes and configurations leave keys on the stack.
        stack::leaving_nothing(|| driver.take_turn())?;
        if let Some(successor) = driver.successor {
            // Whoever connects from now on is served there.
            drop(accepting);
            driver.let_go(successor);
            drop(driver);
            tokio::time::sleep(FAREWELL).await;
            return Ok(SlowPathEnd::HandedOver(successor));
        }
        if driver.is_stopped() {
            return Ok(SlowPathEnd::Stopped);
        }
    }
}

async fn pause(alarm: &mut Alarm, wake_at: Option<Instant>) -> Result<()> {
    match wake_at {
        // Whatever else is ready comes first.
        Some(at) if at <= Clock.now() => tokio::task::yield_now().await,
        Some(at) => alarm.ring_at(at).await?,
        None => std::future::pending().await,
    }
    Ok(())
}
