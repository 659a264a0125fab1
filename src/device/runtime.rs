//! Drives a [`Device`]: UAPI connections, queues from and to the workers, timers, netlink, signals.
//!
//! The runtime is tokio-uring where io_uring may be used, plain tokio where it may not; this file alone knows the
//! difference, and it is small: who runs the loop, and who reads and writes a UAPI connection ([`Stream`]).

use crate::dataplane::{Control, Event, Links};
use crate::device::netlink::{self, LinkEvent};
use crate::device::uapi::{self, Framer, Operation, SetRequest};
use crate::device::{BindRequest, Device, Now, Output};
use crate::io::clock::Clock;
use crate::io::source;
use crate::io::steer::{Target, TunSteering};
use crate::io::udp::{self, UdpConfig, UdpGroup, UdpSockets};
use crate::routing::Prefix;
use std::collections::VecDeque;
use std::io::{Error, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener as StdListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
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
/// Handshakes and events worked on before timers and UAPI get their turn: about 64 × 150 µs of X25519.
const BATCH: usize = 64;
/// Pause before controls that did not fit a worker's queue are offered again.
const RETRY: Duration = Duration::from_millis(1);
/// How long our own sockets on the same port may take to close in the workers before "in use" is believed.
const PORT_RELEASE: Duration = Duration::from_millis(500);

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
}

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
    let SlowPath { device, links, uapi, mut socket_removed, queue, steering, gro, uring } = parts;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (link_events, mut links_changed) = mpsc::channel(LINK_QUEUE);
    netlink::follow_link(queue, link_events.clone())?;
    netlink::follow_addresses(link_events)?;
    uapi.set_nonblocking(true)?;
    let (requests, mut requested) = mpsc::channel(MAX_CONNECTIONS);
    tokio::task::spawn_local(accept(UnixListener::from_std(uapi)?, requests, uring));
    let ring = links.slow.waker.register()?;
    let mut driver = Driver::new(device, links, steering, gro);
    loop {
        let wake_at = driver.pump();
        tokio::select! {
            biased;
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

/// The device, and everything its [`Output`]s touch.
struct Driver {
    device: Device,
    links: Links,
    /// Controls that did not fit a worker's queue, in order; bounded by what one UAPI operation or timeout makes.
    backlog: Vec<VecDeque<Control>>,
    group: Option<UdpGroup>,
    steering: Option<TunSteering>,
    gro: bool,
    /// The sockets' mark, for the route look-ups that decide about sticky sources.
    mark: Arc<AtomicU32>,
    work_pending: bool,
}

impl Driver {
    fn new(mut device: Device, links: Links, steering: Option<TunSteering>, gro: bool) -> Driver {
        let backlog = links.workers.iter().map(|_| VecDeque::new()).collect();
        let mark = Arc::new(AtomicU32::new(0));
        let routed_by = Arc::clone(&mark);
        device.set_source_oracle(Box::new(move |to, local| {
            source::chosen_for(to, routed_by.load(Relaxed)) != Some(local.ip)
        }));
        Driver { device, links, backlog, group: None, steering, gro, mark, work_pending: false }
    }

    fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { mono: Clock.now(), wall }
    }

    /// A bounded share of what waits, then the timers. `Err`: a worker ended.
    fn take_turn(&mut self) -> Result<()> {
        if self.work_pending {
            self.work_pending = false;
            self.take_events()?;
            self.take_handshakes();
            while let Some((worker, notice)) = self.links.slow.notices.pop() {
                log::warn!("worker {worker}: {notice}");
            }
        }
        let now = self.now();
        if self.device.poll_timeout().is_some_and(|due| due <= now.mono) {
            self.device.handle_timeout(now);
        }
        Ok(())
    }

    fn take_events(&mut self) -> Result<()> {
        for _ in 0..BATCH {
            match self.links.slow.events.pop() {
                Some(Event::WorkerEnded(id, why)) => {
                    return Err(Error::other(format!("worker {id} stopped, the interface is gone: {why}")));
                }
                Some(event) => self.device.handle_event(self.now(), event),
                None => return Ok(()),
            }
        }
        self.work_pending = true;
        Ok(())
    }

    fn take_handshakes(&mut self) {
        for _ in 0..BATCH {
            let Some(message) = self.links.slow.handshakes.pop() else { return };
            let waiting = self.links.slow.handshakes.len();
            self.device.handle_handshake(self.now(), message, waiting);
        }
        self.work_pending = true;
    }

    fn operate(&mut self, operation: Operation) -> Zeroizing<String> {
        match operation {
            Operation::Get => self.device.uapi_get(),
            Operation::Set(body) => {
                let done = match SetRequest::parse_with(&body, &mut |name| interface_index(name)) {
                    Ok(request) => self.configure(&request),
                    Err(error) => {
                        log::error!("{error}");
                        Err(error.errno)
                    }
                };
                Zeroizing::new(uapi::answer(done))
            }
        }
    }

    /// New sockets, if the request needs some, are bound inside and handed out after it.
    fn configure(&mut self, request: &SetRequest) -> Result<(), i32> {
        let now = self.now();
        let (gro, workers) = (self.gro, self.links.workers.len());
        let mut bound = None;
        let done = self.device.apply(now, request, &mut |wanted| {
            let (group, sockets) = bind(wanted, workers, gro)?;
            let port = group.port;
            bound = Some((group, sockets));
            Ok(port)
        });
        if let Some((group, sockets)) = bound {
            self.hand_out(group, sockets);
        }
        done
    }

    fn hand_out(&mut self, group: UdpGroup, sockets: Vec<UdpSockets>) {
        self.mark.store(self.device.fwmark(), Relaxed);
        self.group = Some(group);
        for (backlog, pair) in self.backlog.iter_mut().zip(sockets) {
            backlog.push_back(Control::Rebind(Some(pair)));
        }
    }

    /// The interface went up or down. Our own sockets on the port may still be closing in the workers: wait for them.
    fn bind_or_close(&mut self, request: Option<BindRequest>) {
        let Some(wanted) = request else {
            self.group = None;
            self.backlog.iter_mut().for_each(|backlog| backlog.push_back(Control::Rebind(None)));
            return;
        };
        let begun = std::time::Instant::now();
        let result = loop {
            match bind(wanted, self.links.workers.len(), self.gro) {
                Err(libc::EADDRINUSE) if begun.elapsed() < PORT_RELEASE => {
                    self.deliver();
                    std::thread::sleep(RETRY);
                }
                result => break result,
            }
        };
        match result {
            Ok((group, sockets)) => {
                self.device.bound(Ok(group.port));
                self.hand_out(group, sockets);
            }
            Err(errno) => self.device.bound(Err(errno)),
        }
    }

    fn link_event(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::State { up, mtu } => {
                self.device.set_mtu(mtu);
                self.device.set_up(self.now(), up);
            }
            LinkEvent::AddressGone(ip) => self.device.source_gone(ip),
        }
    }

    /// Carries out what the device wants; returns how long the loop may sleep, `None`: until something happens.
    fn pump(&mut self) -> Option<Duration> {
        while let Some(output) = self.device.poll_output() {
            match output {
                Output::Control(worker, control) => self.backlog[usize::from(worker)].push_back(control),
                Output::Bind(request) => self.bind_or_close(request),
                Output::SetMark(mark) => self.set_mark(mark),
                Output::Steer(prefix, target) => self.steer(prefix, target),
            }
        }
        let stuck = self.deliver();
        if self.work_pending {
            return Some(Duration::ZERO);
        }
        let timer = self.device.poll_timeout().map(|due| due.since(Clock.now()));
        if stuck { Some(timer.map_or(RETRY, |timer| timer.min(RETRY))) } else { timer }
    }

    /// Moves the backlog into the workers' queues as far as they have room; true: something is left.
    fn deliver(&mut self) -> bool {
        let mut stuck = false;
        for (backlog, inbox) in self.backlog.iter_mut().zip(&self.links.workers) {
            if backlog.is_empty() {
                continue;
            }
            while let Some(control) = backlog.pop_front() {
                if let Err(control) = inbox.controls.push(control) {
                    backlog.push_front(control);
                    stuck = true;
                    break;
                }
            }
            inbox.waker.wake();
        }
        stuck
    }

    fn set_mark(&mut self, mark: u32) {
        self.mark.store(mark, Relaxed);
        if let Some(group) = &self.group
            && let Err(error) = group.set_mark(mark)
        {
            log::error!("cannot set the firewall mark {mark:#x}: {error}");
        }
    }

    /// Steering is a policy: a prefix that cannot be steered goes by the kernel's flow hash.
    fn steer(&mut self, prefix: Prefix, target: Option<Target>) {
        let Some(steering) = &mut self.steering else { return };
        let done = match target {
            Some(target) => steering.set(prefix, target),
            None => steering.remove(prefix),
        };
        if let Err(error) = done {
            log::debug!("cannot steer {prefix:?}: {error}");
        }
    }
}

/// Binds one pair of sockets a worker; the error number where that fails.
fn bind(wanted: BindRequest, workers: usize, gro: bool) -> Result<(UdpGroup, Vec<UdpSockets>), i32> {
    let config = UdpConfig { port: wanted.port, mark: wanted.mark, workers, gro };
    udp::bind(&config).map_err(|error| {
        log::error!("cannot bind UDP port {}: {error}", wanted.port);
        crate::io::error::errno(&error).unwrap_or(libc::EIO)
    })
}

/// The index of an interface of this namespace.
fn interface_index(name: &str) -> Option<u32> {
    let socket =
        rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None).ok()?;
    rustix::net::netdevice::name_to_index(socket, name).ok()
}
