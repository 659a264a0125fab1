//! Drives a [`Device`]: UAPI connections, queues from and to the workers, timers, netlink, signals.
//!
//! The runtime is tokio-uring where io_uring may be used, plain tokio where it may not. The difference is small: who runs the
//! loop, here, and who reads and writes a UAPI connection ([`super::stream`]).

use crate::crypto::stack;
use crate::dataplane::Links;
use crate::device::Device;
use crate::device::status::Summary;
use crate::io::steer::TunSteering;
use crate::slowpath::driver::Driver;
use crate::slowpath::{connections, netlink};
use crate::sys::clock::{Alarm, Clock};
use crate::time::Instant;
use std::io::Error;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener as StdListener;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc};

type Result<T, E = Error> = std::result::Result<T, E>;

/// Link events that may wait; the netlink thread waits when it is full.
const LINK_QUEUE: usize = 64;

/// Between two reports.
pub const REPORT_INTERVAL: Duration = Duration::from_secs(5);

/// What the slow path needs to run.
pub struct SlowPath {
    /// The device, without key or peers.
    pub device: Device,
    /// All queues.
    pub links: Links,
    /// The listening UAPI socket.
    pub uapi: StdListener,
    /// Says when the UAPI socket's file was removed: the end.
    pub socket_removed: mpsc::Receiver<()>,
    /// One of the TUN queues: the handle by which the interface is followed.
    pub queue: OwnedFd,
    /// Steering of the TUN queues, where the kernel took it.
    pub steering: Option<TunSteering>,
    /// Whether sockets ask for UDP_GRO.
    pub gro: bool,
    /// Whether io_uring may be used.
    pub uring: bool,
    /// Told every [`REPORT_INTERVAL`] how things stand, if anyone wants to know.
    pub reporter: Option<Reporter>,
}

/// Who wants to know how things stand.
pub type Reporter = Box<dyn FnMut(Summary)>;

/// Runs until a signal or the removal of the UAPI socket (`Ok`), or until a worker ended because the TUN device is gone (`Err` with its words).
pub fn run(parts: SlowPath) -> Result<()> {
    if parts.uring {
        // The workers' rings may have used up what RLIMIT_MEMLOCK allows.
        match tokio_uring::Runtime::new(&tokio_uring::builder()) {
            Ok(runtime) => return runtime.block_on(drive(parts, true)),
            Err(error) => {
                log::warn!("io_uring is not available to the slow path ({error}): using epoll there instead");
            }
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, drive(parts, false))
}

/// `streams`: this runtime has a ring, which reads and writes connections.
async fn drive(parts: SlowPath, streams: bool) -> Result<()> {
    let SlowPath { device, links, uapi, mut socket_removed, queue, steering, gro, uring, mut reporter } =
        parts;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (link_events, mut links_changed) = mpsc::channel(LINK_QUEUE);
    netlink::follow_link(queue, link_events.clone())?;
    netlink::follow_routes(link_events)?;
    uapi.set_nonblocking(true)?;
    let (requests, mut requested) = mpsc::channel(connections::MAX_CONNECTIONS);
    let answer_read = Rc::new(Notify::new());
    let listener = UnixListener::from_std(uapi)?;
    let (connections, read) = (Rc::default(), Rc::clone(&answer_read));
    tokio::task::spawn_local(connections::accept(connections, listener, requests, read, streams));
    let ring = links.slow.waker.register()?;
    let mut driver = Driver::new(device, links, steering, gro, uring);
    let mut alarm = Alarm::new()?;
    let mut report = tokio::time::interval(REPORT_INTERVAL);
    loop {
        let wake_at = stack::leaving_nothing(|| driver.pump());
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            Some(()) = socket_removed.recv() => return Ok(()),
            ready = ring.readable() => {
                ready?.clear_ready();
                driver.links.slow.waker.clear();
                driver.work_pending = true;
            }
            Some(request) = requested.recv() => driver.take_request(request),
            () = answer_read.notified() => {}
            Some(event) = links_changed.recv() => driver.link_event(event),
            _ = report.tick(), if reporter.is_some() => {
                if let Some(reporter) = &mut reporter {
                    reporter(driver.device.summary(driver.now().wall));
                }
            }
            rang = pause(&mut alarm, wake_at) => rang?,
        }
        // Handshakes and configurations leave keys there.
        stack::leaving_nothing(|| driver.take_turn())?;
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
