//! Drives a [`Device`]: UAPI connections, queues from and to the workers, timers, netlink, signals.
//!
//! The runtime is tokio-uring where io_uring may be used, plain tokio where it may not; this file alone knows the
//! difference, and it is small: who runs the loop, and who reads and writes a UAPI connection ([`Stream`]).

use crate::dataplane::Links;
use crate::device::Device;
use crate::device::status::Summary;
use crate::device::uapi::{self, Framer, Operation};
use crate::io::steer::TunSteering;
use crate::slowpath::driver::Driver;
use crate::slowpath::netlink;
use std::io::{Error, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener as StdListener;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use zeroize::{Zeroize, Zeroizing};

type Result<T, E = Error> = std::result::Result<T, E>;

/// UAPI connections served at once; further ones wait in the listen queue.
const MAX_CONNECTIONS: usize = 64;
/// Bytes read from a UAPI connection at once.
const READ_SIZE: usize = 64 * 1024;
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
        tokio_uring::start(drive(parts))
    } else {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        tokio::task::LocalSet::new().block_on(&runtime, drive(parts))
    }
}

/// A UAPI connection on either runtime.
enum Stream {
    Uring(tokio_uring::net::UnixStream),
    Tokio(tokio::net::UnixStream),
}

impl Stream {
    fn new(stream: tokio::net::UnixStream, uring: bool) -> Result<Stream> {
        if !uring {
            return Ok(Stream::Tokio(stream));
        }
        let stream = stream.into_std()?;
        stream.set_nonblocking(false)?; // the ring waits, where a non-blocking socket would answer EAGAIN
        Ok(Stream::Uring(tokio_uring::net::UnixStream::from_std(stream)))
    }

    /// Reads into `buffer` and returns it with the number of bytes; 0: the end.
    async fn read(&mut self, mut buffer: Vec<u8>) -> (Result<usize>, Vec<u8>) {
        match self {
            Stream::Uring(stream) => stream.read(buffer).await,
            Stream::Tokio(stream) => {
                buffer.resize(READ_SIZE, 0);
                (stream.read(&mut buffer).await, buffer)
            }
        }
    }

    async fn write_all(&mut self, bytes: Vec<u8>) -> Result<()> {
        match self {
            Stream::Uring(stream) => {
                let (done, bytes) = stream.write_all(bytes).await;
                drop(Zeroizing::new(bytes));
                done
            }
            Stream::Tokio(stream) => stream.write_all(&Zeroizing::new(bytes)).await,
        }
    }
}

/// One UAPI operation on its way to the device, and where the answer goes.
type Request = (Operation, oneshot::Sender<Zeroizing<String>>);

async fn drive(parts: SlowPath) -> Result<()> {
    let SlowPath { device, links, uapi, mut socket_removed, queue, steering, gro, uring, mut reporter } =
        parts;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (link_events, mut links_changed) = mpsc::channel(LINK_QUEUE);
    netlink::follow_link(queue, link_events.clone())?;
    netlink::follow_addresses(link_events)?;
    uapi.set_nonblocking(true)?;
    let (requests, mut requested) = mpsc::channel(MAX_CONNECTIONS);
    tokio::task::spawn_local(accept(UnixListener::from_std(uapi)?, requests, uring));
    let ring = links.slow.waker.register()?;
    let mut driver = Driver::new(device, links, steering, gro, uring);
    let mut report = tokio::time::interval(REPORT_INTERVAL);
    loop {
        let wake_at = driver.pump();
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            Some(()) = socket_removed.recv() => return Ok(()),
            ready = ring.readable() => {
                ready?.clear_ready();
                driver.links.slow.waker.clear();
                driver.work_pending = true;
            }
            Some((operation, answer)) = requested.recv() => {
                let _ = answer.send(driver.operate(operation)); // the client may have gone
            }
            Some(event) = links_changed.recv() => driver.link_event(event),
            _ = report.tick(), if reporter.is_some() => {
                if let Some(reporter) = &mut reporter {
                    reporter(driver.device.summary(driver.now().wall));
                }
            }
            _ = sleep_until(wake_at) => {}
        }
        driver.take_turn()?;
    }
}

async fn sleep_until(wake_in: Option<Duration>) {
    match wake_in {
        Some(duration) => tokio::time::sleep(duration).await,
        None => std::future::pending().await,
    }
}

async fn accept(listener: UnixListener, requests: mpsc::Sender<Request>, uring: bool) {
    let slots = Arc::new(tokio::sync::Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let requests = requests.clone();
                tokio::task::spawn_local(async move {
                    if let Err(error) = serve(stream, requests, uring).await {
                        log::debug!("a UAPI connection ended: {error}");
                    }
                    drop(slot);
                });
            }
            Err(error) => {
                log::warn!("cannot accept a UAPI connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await; // EMFILE does not pass by itself
            }
        }
    }
}

/// Serves one connection: operations one after the other until the client closes.
async fn serve(stream: tokio::net::UnixStream, requests: mpsc::Sender<Request>, uring: bool) -> Result<()> {
    let mut stream = Stream::new(stream, uring)?;
    let mut framer = Framer::default();
    let mut buffer = Vec::with_capacity(READ_SIZE);
    loop {
        let (read, filled) = stream.read(buffer).await;
        let count = read?;
        if count == 0 {
            return Ok(());
        }
        buffer = filled;
        framer.push(&buffer[..count]);
        buffer.zeroize();
        while let Some(next) = framer.next_operation() {
            let operation = match next {
                Ok(operation) => operation,
                Err(error) => {
                    log::error!("{error}");
                    return stream.write_all(uapi::answer(Err(error.errno)).into_bytes()).await;
                }
            };
            let (answer, answered) = oneshot::channel();
            if requests.send((operation, answer)).await.is_err() {
                return Ok(());
            }
            let text = answered.await.map_err(|_| Error::from(ErrorKind::BrokenPipe))?;
            stream.write_all(text.as_bytes().to_vec()).await?;
        }
    }
}
