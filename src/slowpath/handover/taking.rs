//! The side of the process that takes a tunnel over.

use super::giving::Setback;
use super::{PATIENCE, TO_REST, granted, surplus};
use crate::dataplane::Control;
use crate::dataplane::misdirected::Misdirected;
use crate::device::handover::{Imported, MAX_STATE};
use crate::index::WorkerCount;
use crate::io::steer::TunSteering;
use crate::io::tun;
use crate::io::udp::{InheritedSockets, UdpConfig, UdpGroup, UdpSockets};
use crate::slowpath::driver::Driver;
use crate::slowpath::netlink;
use crate::slowpath::runtime::SlowPathEnd;
use crate::sys::error::{explain, invalid};
use crate::sys::sealed::SealedFile;
use crate::sys::{passing, tun_namespace};
use std::io::{Error, Result};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// How long datagrams may still reach a socket after the program was changed that chose it: the kernel's softirq that looked it up is
/// over by then.
const SETTLING: Duration = Duration::from_millis(1);

/// Starts workers for these further queues, at rest.
pub type LateStart = Box<dyn FnOnce(Vec<OwnedFd>) -> Result<()> + Send>;

/// A tunnel that is to be taken over.
pub struct Takeover {
    /// The connection to the process that has it.
    pub connection: UnixStream,
    /// The maps of the program that chooses the TUN queue, where there is one.
    pub maps: Option<[OwnedFd; 2]>,
    /// Queues for which there is no worker, from that of the lowest number on.
    pub surplus: Vec<OwnedFd>,
    /// How many workers have no queue yet, and what starts them.
    pub late: Option<(usize, LateStart)>,
    /// Where the outcome is reported.
    pub report: TakenReport,
}

/// Where it is reported, once, whether the tunnel was taken over.
#[derive(Clone)]
pub struct TakenReport {
    to: SyncSender<Result<()>>,
    is_sent: Arc<AtomicBool>,
}

impl TakenReport {
    /// A report, and where it is read.
    pub fn new() -> (TakenReport, Receiver<Result<()>>) {
        let (to, reported) = sync_channel(1);
        (TakenReport { to, is_sent: Arc::default() }, reported)
    }

    /// Reports, unless that was done.
    fn send(&self, outcome: Result<()>) {
        if !self.is_sent.swap(true, Relaxed) {
            // There is room for one. Whoever waits for it is alive.
            let _ = self.to.try_send(outcome);
        }
    }

    /// What `ended` comes to where it was not reported yet whether the tunnel was taken over: it was not.
    pub(in crate::slowpath) fn complete(&self, ended: Result<SlowPathEnd>) -> Result<SlowPathEnd> {
        match ended {
            Err(error) if !self.is_sent.load(Relaxed) => {
                self.send(Err(error));
                Ok(SlowPathEnd::NotTaken)
            }
            ended => ended,
        }
    }
}

/// What was received, and waits for the last word.
struct TakenState {
    imported: Imported,
    /// Sockets for which there is no worker.
    surplus: Vec<UdpSockets>,
    /// Whether there are more or fewer sockets now than before.
    is_resized: bool,
}

impl Driver {
    /// Takes the tunnel over, and reports that. False where it stays where it was.
    pub(in crate::slowpath) fn take_over(&mut self, takeover: Takeover) -> bool {
        let Takeover { connection, maps, surplus, late, report } = takeover;
        let begun = Instant::now();
        let outcome = self.restore(&connection, late).and_then(|restored| {
            passing::send(connection.as_fd(), "taken=1\n", &[], begun + PATIENCE)?;
            granted(passing::receive(connection.as_fd(), begun + PATIENCE)?)?;
            Ok(restored)
        });
        let outcome = outcome.map(|restored| {
            self.begin_here(restored, maps, surplus);
            log::info!("the tunnel was taken over, and stood still for {} ms", begun.elapsed().as_millis());
        });
        let is_taken = outcome.is_ok();
        report.send(outcome);
        is_taken
    }

    /// Asks for the state, and gives everybody what is theirs. The workers rest.
    fn restore(&mut self, connection: &UnixStream, late: Option<(usize, LateStart)>) -> Result<TakenState> {
        let until = Instant::now() + PATIENCE;
        passing::send(connection.as_fd(), "handover=state\n", &[], until)?;
        let parcel = granted(passing::receive(connection.as_fd(), until)?)?;
        let steered = parcel.value("steered") == Some("true");
        let mut files = parcel.files.into_iter();
        let state = files.next().ok_or_else(|| invalid("no state was handed over"))?;
        let imported = {
            let state = SealedFile::received(state, MAX_STATE)?;
            self.device.import(&state.read()?, None).map_err(Error::other)?
        };
        if let Some((count, start)) = late {
            start(self.more_queues(count)?)?;
        }
        let (surplus, is_resized) = self.inherit_sockets(files.collect(), steered, &imported)?;
        match self.rest_workers(Instant::now() + TO_REST) {
            Ok(()) => Ok(TakenState { imported, surplus, is_resized }),
            Err(Setback::WorkerEnded(error) | Setback::Other(error)) => Err(error),
        }
    }

    /// Opens so many more queues of the device, wherever that is.
    fn more_queues(&mut self, count: usize) -> Result<Vec<OwnedFd>> {
        let terms = self.terms.as_mut().ok_or_else(|| invalid("nothing is known of the device"))?;
        let first = terms.queues.first().ok_or_else(|| invalid("the device has no queue"))?;
        let name = tun_namespace::interface_name(first.as_fd())?;
        let open = || {
            netlink::enter_namespace_of(first.as_fd())
                .map_err(|error| explain(error, "cannot enter the interface's namespace for more workers"))?;
            (0..count).map(|_| tun::add_queue(&name)).collect::<Result<Vec<_>>>()
        };
        let opened = std::thread::scope(|scope| scope.spawn(open).join());
        let queues = opened.unwrap_or_else(|_| Err(Error::other("the opening of queues panicked")))?;
        let again = queues.iter().map(OwnedFd::try_clone).collect::<Result<Vec<_>>>()?;
        terms.queues.extend(again);
        Ok(queues)
    }

    /// Hands the sockets out, if there are some. Returns those for which there is no worker, and whether there are more or fewer than
    /// before.
    fn inherit_sockets(
        &mut self,
        sockets: Vec<OwnedFd>,
        steered: bool,
        imported: &Imported,
    ) -> Result<(Vec<UdpSockets>, bool)> {
        let (v4, v6) = (usize::from(imported.sockets.v4), usize::from(imported.sockets.v6));
        if sockets.len() != v4 + v6 {
            return Err(invalid("other sockets were handed over than the state says"));
        }
        if sockets.is_empty() {
            return Ok((Vec::new(), false));
        }
        let workers = self.worker_count();
        let config = UdpConfig { port: 0, mark: imported.mark, workers, options: self.sockets };
        let InheritedSockets { group, pairs, surplus } = UdpGroup::inherit(sockets, v4, steered, &config)?;
        let is_resized = v4.max(v6) != workers.get();
        for (backlog, pair) in self.backlog.iter_mut().zip(pairs) {
            backlog.push_back(Control::Rebind(Some(pair)));
        }
        self.group = Some(group);
        Ok((surplus, is_resized))
    }

    /// Goes on with the tunnel. There is no way back.
    fn begin_here(&mut self, restored: TakenState, maps: Option<[OwnedFd; 2]>, queues: Vec<OwnedFd>) {
        let TakenState { imported, mut surplus, is_resized } = restored;
        self.steering = self.inherit_steering(maps);
        if is_resized && let Some(group) = &mut self.group {
            group.settle(!surplus.is_empty());
            std::thread::sleep(SETTLING);
        }
        let workers = self.backlog.len();
        let mut frames = imported.frames;
        let mut datagrams: Vec<Vec<Misdirected>> = (0..workers).map(|_| Vec::new()).collect();
        // From the last on, since the last takes the place of one that goes.
        for (more, queue) in queues.into_iter().enumerate().rev() {
            let sockets = if more < surplus.len() { surplus.remove(more) } else { UdpSockets::default() };
            match surplus::drain(queue, sockets) {
                Ok(strays) => {
                    datagrams[more % workers].extend(strays.datagrams);
                    frames[more % workers].extend(strays.frames);
                }
                Err(error) => log::warn!("what waited for worker {} is lost: {error}", workers + more),
            }
        }
        for ((backlog, frames), datagrams) in self.backlog.iter_mut().zip(frames).zip(datagrams) {
            backlog.extend([Control::Datagrams(datagrams), Control::Frames(frames), Control::Resume]);
        }
        self.deliver();
        for message in imported.handshakes {
            self.links.slow.handshakes.push(message);
        }
        self.work_pending = true;
    }

    /// Goes on with the program that chooses the queue of the TUN device, or puts one in place where there was but one queue.
    fn inherit_steering(&self, maps: Option<[OwnedFd; 2]>) -> Option<TunSteering> {
        let terms = self.terms.as_ref().filter(|terms| terms.settings.steering)?;
        let (queue, workers) = (terms.queues.first()?, self.worker_count());
        match maps {
            Some(maps) => Some(TunSteering::inherit(maps, queue.try_clone().ok()?, workers)),
            None if workers == WorkerCount::ONE => None,
            None => TunSteering::attach(queue.as_fd(), workers)
                .inspect_err(|error| log::warn!("no eBPF steering of the TUN queues ({error})"))
                .ok(),
        }
    }
}
