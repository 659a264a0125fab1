//! Threads that do Diffie-Hellman for the slow path while more handshake messages wait than it can serve alone, and cores are
//! idle.
//!
//! Work is given out in order, and its results come back in that order, so that what each peer sent is handled in the order of
//! arrival. The slow path does work, too, and without helpers all of it.

use crate::dataplane::stats::WorkerStats;
use crate::device::{HandshakeResult, HandshakeWork};
use crate::sys::waker::Waker;
use crate::time::Instant;
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, unbounded};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

/// Number of handshake messages that wait for the slow path from which on it looks for idle cores.
pub(super) const BUSY: usize = 8;
/// How often it samples how busy the workers are.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(20);
/// Most helpers. Each does the work of some 10,000 handshakes a second.
const MAX_HELPERS: usize = 15;
/// Pieces of work that may be under way for each thread that does some: enough that none waits for the slow path.
const AHEAD: usize = 4;
/// How long a helper waits for work before it ends.
const REST: Duration = Duration::from_secs(10);

/// Work that was given out.
type Given = (u64, HandshakeWork);
/// What came of it; `None` where its thread panicked.
type Returned = (u64, Option<HandshakeResult>);

/// The helpers, and the work that is under way.
pub(super) struct Helpers {
    workers: Vec<Arc<WorkerStats>>,
    cores: usize,
    /// When the workers' time awake was last read, and what it was in nanoseconds.
    read_at: Option<(Instant, u64)>,
    threads: Vec<JoinHandle<()>>,
    crew: Arc<Crew>,
    give: Sender<Given>,
    take: Receiver<Given>,
    returned: Receiver<Returned>,
    returns: Sender<Returned>,
    waker: Waker,
    /// The number of the oldest piece of work under way.
    first: u64,
    /// The results of all pieces of work under way, the oldest first, as far as they are there.
    results: VecDeque<Option<Returned>>,
}

impl Helpers {
    /// No helpers. `workers` are those of the device, which may use `cores`; `waker` rings the slow path.
    pub(super) fn new(workers: Vec<Arc<WorkerStats>>, cores: usize, waker: Waker) -> Helpers {
        let (give, take) = unbounded();
        let (returns, returned) = unbounded();
        Helpers {
            workers,
            cores,
            read_at: None,
            threads: Vec::new(),
            crew: Arc::default(),
            give,
            take,
            returned,
            returns,
            waker,
            first: 0,
            results: VecDeque::new(),
        }
    }

    /// Reads how busy the workers are, now and then, and has as many helpers as there are idle cores beside the slow path's
    /// own.
    pub(super) fn follow_load(&mut self, now: Instant) {
        let awake = self.workers.iter().map(|stats| stats.io_awake_nanos.load(Relaxed)).sum::<u64>();
        let Some((then, before)) = self.read_at.filter(|(then, _)| now.since(*then) < 10 * SAMPLE_INTERVAL)
        else {
            self.read_at = Some((now, awake));
            return;
        };
        let passed = now.since(then);
        if passed < SAMPLE_INTERVAL {
            return;
        }
        self.read_at = Some((now, awake));
        let busy = Duration::from_nanos(awake.saturating_sub(before)).as_secs_f64() / passed.as_secs_f64();
        let idle = (self.cores as f64 - 1.0 - busy).max(0.0).round() as usize;
        self.want(idle.min(MAX_HELPERS));
    }

    fn want(&mut self, helpers: usize) {
        self.crew.wanted.store(helpers, Relaxed);
        self.threads.retain(|thread| !thread.is_finished());
        while self.crew.running.load(Relaxed) < helpers {
            let helper = HelperThread {
                take: self.take.clone(),
                returns: self.returns.clone(),
                waker: self.waker.clone(),
                member: Member::join(&self.crew),
            };
            match std::thread::Builder::new().name("ringtun-helper".into()).spawn(move || helper.run()) {
                Ok(thread) => self.threads.push(thread),
                Err(error) => {
                    log::debug!("cannot start a helper: {error}");
                    self.crew.wanted.store(self.crew.running.load(Relaxed), Relaxed);
                    return;
                }
            }
        }
    }

    /// Whether more work may be given out.
    pub(super) fn has_room(&self) -> bool {
        self.results.len() < AHEAD * (self.crew.wanted.load(Relaxed) + 1)
    }

    /// Whether work is under way.
    pub(super) fn is_busy(&self) -> bool {
        !self.results.is_empty()
    }

    /// Takes work in, behind all that was given before.
    pub(super) fn give(&mut self, work: HandshakeWork) {
        let number = self.first + self.results.len() as u64;
        self.results.push_back(None);
        // The receiver is ours, so the channel is open.
        let _ = self.give.send((number, work));
    }

    /// Does one piece of the work that no helper has begun. False where there is none.
    pub(super) fn work(&mut self) -> bool {
        match self.take.try_recv() {
            Ok((number, work)) => {
                self.put((number, Some(work.run())));
                true
            }
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => false,
        }
    }

    /// The next result, once all work given out before it has had its own.
    pub(super) fn next(&mut self) -> Option<HandshakeResult> {
        loop {
            while let Ok(returned) = self.returned.try_recv() {
                self.put(returned);
            }
            self.results.front_mut()?.as_ref()?;
            self.first += 1;
            match self.results.pop_front()?? {
                (_, Some(result)) => return Some(result),
                (_, None) => log::error!("a handshake is lost, as the thread that worked on it panicked"),
            }
        }
    }

    fn put(&mut self, returned: Returned) {
        let at = returned.0.wrapping_sub(self.first) as usize;
        if let Some(place) = self.results.get_mut(at) {
            *place = Some(returned);
        }
    }
}

impl Drop for Helpers {
    fn drop(&mut self) {
        // Without a sender the helpers end.
        self.give = unbounded().0;
        for thread in self.threads.drain(..) {
            // A panic was logged when it happened.
            let _ = thread.join();
        }
    }
}

/// How many helpers there are, and how many there should be.
#[derive(Default)]
struct Crew {
    /// How many helpers the idle cores allow.
    wanted: AtomicUsize,
    /// How many run, those included that have yet to start.
    running: AtomicUsize,
}

/// One helper's place in the crew, which counts as running until this is dropped or the helper leaves.
struct Member(Option<Arc<Crew>>);

impl Member {
    fn join(crew: &Arc<Crew>) -> Member {
        crew.running.fetch_add(1, Relaxed);
        Member(Some(Arc::clone(crew)))
    }

    /// Leaves where more run than are wanted, and says whether it did. No more leave than are too many.
    fn leave_if_too_many(&mut self) -> bool {
        let left = self.0.take_if(|crew| {
            let one_less = |running: usize| (running > crew.wanted.load(Relaxed)).then(|| running - 1);
            crew.running.fetch_update(Relaxed, Relaxed, one_less).is_ok()
        });
        left.is_some()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(crew) = &self.0 {
            crew.running.fetch_sub(1, Relaxed);
        }
    }
}

/// What a helper thread has.
struct HelperThread {
    take: Receiver<Given>,
    returns: Sender<Returned>,
    waker: Waker,
    member: Member,
}

impl HelperThread {
    fn run(mut self) {
        while !self.member.leave_if_too_many() {
            match self.take.recv_timeout(REST) {
                Ok((number, work)) => {
                    let mut report = Returning { number, result: None, helper: &self };
                    report.result = Some(work.run());
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return,
            }
        }
    }
}

/// Returns the result when it is dropped, so that a panic is reported, too.
struct Returning<'a> {
    number: u64,
    result: Option<HandshakeResult>,
    helper: &'a HelperThread,
}

impl Drop for Returning<'_> {
    fn drop(&mut self) {
        // The slow path may be gone, and then nobody waits for it.
        let _ = self.helper.returns.send((self.number, self.result.take()));
        self.helper.waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::testing::Seeded;
    use crate::crypto::x25519::{PrivateKey, SharedSecret};
    use crate::dataplane::{Control, HandshakeDatagram, IncomingHandshake, PeerId};
    use crate::device::uapi::{PeerRequest, SetRequest};
    use crate::device::{Device, Now, Output};
    use crate::index::WorkerCount;
    use crate::noise::handshake::{Handshake, Identity};
    use crate::noise::tai64n::Tai64NClock;
    use crate::sys::clock::Clock;

    const PEERS: u8 = 60;

    fn now() -> Now {
        Now { mono: Clock.now(), wall: Duration::from_secs(1_700_000_000) }
    }

    /// A device that is up and has so many peers, and an initiation of each.
    fn device() -> (Device, Vec<IncomingHandshake>) {
        let mut device = Device::new(WorkerCount::nearest(1), Box::new(Seeded(1)));
        let private = PrivateKey::from_bytes([200; 32]);
        let local = private.public();
        let peers =
            (1..=PEERS).map(|seed| Identity::new(PrivateKey::from_bytes([seed; 32]))).collect::<Vec<_>>();
        let request = SetRequest {
            private_key: Some(Some(private)),
            peers: peers.iter().map(|peer| PeerRequest::new(*peer.public())).collect(),
            ..SetRequest::default()
        };
        device.apply(now(), &request, &mut |_| Ok(1)).unwrap();
        device.set_up(now(), true);
        device.bound(Ok(51820));
        let initiation = |peer: &Identity| {
            let mut handshake = Handshake::new(local, SharedSecret([0; 32]));
            let stamp = Tai64NClock::default().stamp(Duration::from_secs(1));
            let message = handshake.initiate(peer, 7, stamp, Clock.now(), &mut Seeded(2)).unwrap();
            let from = "192.0.2.1:51820".parse().unwrap();
            let datagram = HandshakeDatagram::new(&message).unwrap();
            IncomingHandshake { datagram, from, to: None, proven: false }
        };
        let initiations = peers.iter().map(initiation).collect();
        (device, initiations)
    }

    /// The peers whose sessions were installed, in order.
    fn installed(device: &mut Device) -> Vec<PeerId> {
        let outputs = std::iter::from_fn(|| device.poll_output());
        let peer = |output| match output {
            Output::Control(_, Control::Install(peer, ..)) => Some(peer.id),
            _ => None,
        };
        outputs.filter_map(peer).collect()
    }

    #[test]
    fn results_come_in_the_order_of_arrival_however_many_helpers_there_are() {
        for wanted in [0, 1, 3] {
            let (mut device, initiations) = device();
            let mut helpers = Helpers::new(vec![Arc::default()], 16, Waker::new().unwrap());
            helpers.want(wanted);
            let mut waiting = VecDeque::from(initiations);
            let mut order = Vec::new();
            while order.len() < usize::from(PEERS) {
                if let Some(result) = helpers.next() {
                    let work = device.continue_handshake(now(), result);
                    work.into_iter().for_each(|work| helpers.give(work));
                } else if let Some(message) = waiting.pop_front_if(|_| helpers.has_room()) {
                    let work = device.begin_handshake(now(), &message);
                    work.into_iter().for_each(|work| helpers.give(work));
                } else {
                    helpers.work();
                }
                order.extend(installed(&mut device));
            }
            let slots: Vec<u32> = order.iter().map(|id| id.slot).collect();
            assert_eq!(slots, (0..PEERS.into()).collect::<Vec<_>>(), "{wanted} helpers");
            assert_eq!(helpers.results.len(), 0);
        }
    }

    #[test]
    fn there_are_as_many_helpers_as_idle_cores_and_none_while_workers_are_busy() {
        let stats = Arc::<WorkerStats>::default();
        let mut helpers = Helpers::new(vec![Arc::clone(&stats)], 4, Waker::new().unwrap());
        let mut now = Clock.now();
        let mut after = |helpers: &mut Helpers, awake_millis: u64| {
            now = now + SAMPLE_INTERVAL;
            stats.io_awake_nanos.fetch_add(awake_millis * 1_000_000, Relaxed);
            helpers.follow_load(now);
            helpers.crew.wanted.load(Relaxed)
        };
        assert_eq!(after(&mut helpers, 0), 0, "nothing to compare with yet");
        assert_eq!([0, 20, 40, 80].map(|awake| after(&mut helpers, awake)), [3, 2, 1, 0]);
    }

    #[test]
    fn no_more_leave_than_are_too_many() {
        let crew = Arc::<Crew>::default();
        let mut members = [(); 3].map(|()| Member::join(&crew));
        crew.wanted.store(1, Relaxed);
        assert_eq!([0, 1, 2].map(|member| members[member].leave_if_too_many()), [true, true, false]);
        assert_eq!(crew.running.load(Relaxed), 1);
        drop(members);
        assert_eq!(crew.running.load(Relaxed), 0, "who left is not counted twice");
    }

    #[test]
    fn a_panic_of_a_helper_is_reported_and_holds_up_nobody() {
        let mut helpers = Helpers::new(Vec::new(), 1, Waker::new().unwrap());
        helpers.results.extend([None, None]);
        let helper = HelperThread {
            take: helpers.take.clone(),
            returns: helpers.returns.clone(),
            waker: helpers.waker.clone(),
            member: Member::join(&helpers.crew),
        };
        drop(Returning { number: 0, result: None, helper: &helper });
        assert!(helpers.next().is_none());
        assert_eq!((helpers.first, helpers.results.len()), (1, 1));
    }
}
