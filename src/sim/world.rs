//! Hosts, the wire between them, and the clock that only the world moves.

use crate::sim::host::{HostConfig, SimHost};
use crate::sim::net::{Datagram, Network};
use crate::sim::packet::Inner;
use crate::sim::rng::SimRng;
use crate::sim::succession::Succession;
use crate::time::Instant;
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

/// Most steps without the clock moving, after which something counts as spinning.
const MAX_STEPS: usize = 100_000;
/// The wall clock at the beginning: 2026, in seconds since the Unix epoch.
const WALL_START: Duration = Duration::from_secs(1_767_225_600);

/// Names a host of a world.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct HostId(usize);

/// Inner packets that hosts took and made.
#[derive(Default)]
pub struct InnerTraffic {
    /// What came out of the tunnel, and where, in order.
    pub delivered: Vec<(HostId, Inner)>,
    /// What hosts answered to that ([`SimHost::echo`]).
    pub answered: Vec<Inner>,
}

/// A whole world, reproducible from one seed.
pub struct World {
    /// The wire between the hosts.
    pub network: Network,
    seed: u64,
    rng: SimRng,
    now: Instant,
    hosts: Vec<SimHost>,
    /// Datagrams for addresses that the test plays itself.
    outside: HashMap<SocketAddr, VecDeque<Datagram>>,
    succession: Succession,
}

impl World {
    /// Makes an empty world.
    pub fn new(seed: u64) -> World {
        let mut rng = SimRng::new(seed);
        World {
            network: Network::new(rng.fork()),
            seed,
            rng,
            now: Instant::START,
            hosts: Vec::new(),
            outside: HashMap::new(),
            succession: Succession::default(),
        }
    }

    /// The seed from which the world is made.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The time on the monotonic clock.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// The time on the wall clock of a host whose own is neither ahead nor behind.
    pub fn wall(&self) -> Duration {
        WALL_START + self.now.since(Instant::START)
    }

    /// The generator for the test's own decisions.
    pub fn rng(&mut self) -> &mut SimRng {
        &mut self.rng
    }

    /// Adds a host, down and without configuration.
    ///
    /// # Errors
    ///
    /// Where the system has no memory or files left for its queues.
    pub fn add_host(&mut self, config: HostConfig) -> std::io::Result<HostId> {
        let host = SimHost::new(config, self.rng.fork())?;
        self.hosts.push(host);
        Ok(HostId(self.hosts.len() - 1))
    }

    /// One host.
    pub fn host(&mut self, id: HostId) -> &mut SimHost {
        let host = &mut self.hosts[id.0];
        host.touch(self.now);
        host
    }

    /// One host, to look at.
    pub fn look(&self, id: HostId) -> &SimHost {
        &self.hosts[id.0]
    }

    /// The inner packets of all hosts since the last call.
    pub fn take_traffic(&mut self) -> InnerTraffic {
        let mut traffic = InnerTraffic::default();
        for (i, host) in self.hosts.iter_mut().enumerate() {
            traffic.answered.extend(host.take_answered());
            traffic.delivered.extend(host.take_delivered().into_iter().map(|inner| (HostId(i), inner)));
        }
        traffic
    }

    /// Ends the program of a host, at once, and starts it again: down, without keys and peers.
    ///
    /// # Errors
    ///
    /// Where the system has no memory or files left for its queues.
    pub fn restart(&mut self, id: HostId) -> std::io::Result<()> {
        let next = self.hosts[id.0].restarted(self.rng.fork())?;
        self.hosts[id.0] = next;
        Ok(())
    }

    /// Both clocks of one host.
    pub fn host_now(&self, id: HostId) -> crate::device::Now {
        self.hosts[id.0].now(self.now, self.wall())
    }

    /// Keeps what is sent to `addr` from now on for [`Self::take_outside`]: an endpoint that the test plays.
    pub fn play(&mut self, addr: SocketAddr) {
        self.outside.entry(addr).or_default();
    }

    /// The oldest datagram that came to an endpoint that the test plays.
    pub fn take_outside(&mut self, addr: SocketAddr) -> Option<Datagram> {
        self.outside.get_mut(&addr)?.pop_front()
    }

    /// Puts a datagram on the wire that no host sent.
    pub fn inject(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        self.network.inject(self.now, Datagram { from, to, ecn: 0, bytes: bytes.into() });
    }

    /// Runs until nothing is left to do at this instant.
    ///
    /// # Panics
    ///
    /// Where the hosts never come to rest.
    pub fn settle(&mut self) {
        for _ in 0..MAX_STEPS {
            self.deliver();
            let mut quiet = true;
            let (now, wall) = (self.now, self.wall());
            let due = |(_, host): &(usize, &mut SimHost)| host.due().is_some_and(|due| due <= now);
            for (i, host) in self.hosts.iter_mut().enumerate().filter(due) {
                for datagram in host.settle(host.now(now, wall)) {
                    self.succession.sent(now, i, &datagram);
                    self.network.send(now, datagram);
                    quiet = false;
                }
            }
            if quiet || self.network.next_arrival().is_none_or(|at| at > self.now) {
                return;
            }
        }
        panic!("the world never comes to rest at {:?}", self.now);
    }

    /// Lets virtual time pass.
    pub fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            self.settle();
            let timeouts = self.hosts.iter().filter_map(SimHost::due);
            let next = timeouts.chain(self.network.next_arrival()).min();
            match next {
                // A timeout that still lies in the past after settling waits for the clock to move.
                Some(at) if at < end => self.now = at.max(self.now + Duration::from_nanos(1)),
                _ => break,
            }
        }
        self.now = end;
        self.settle();
    }

    /// Lets the monotonic clock leap, as over a suspend: everything that was due meanwhile happens late.
    pub fn leap(&mut self, time: Duration) {
        self.now = self.now + time;
        self.settle();
    }

    /// Lets time pass in steps of `step` until `done`. False where it was not within `limit`.
    pub fn run_until(
        &mut self,
        limit: Duration,
        step: Duration,
        mut done: impl FnMut(&mut World) -> bool,
    ) -> bool {
        let end = self.now + limit;
        while !done(self) {
            if self.now >= end {
                return false;
            }
            self.run_for(step);
        }
        true
    }

    /// Everything that no run may show, from all hosts.
    pub fn violations(&self) -> Vec<String> {
        let hosts = self.hosts.iter().flat_map(SimHost::violations);
        hosts.chain(&self.succession.found).cloned().collect()
    }

    fn deliver(&mut self) {
        while let Some(datagram) = self.network.receive(self.now) {
            if let Some(queue) = self.outside.get_mut(&datagram.to) {
                queue.push_back(datagram);
            } else if let Some(host) = self.hosts.iter_mut().find(|host| host.listens_on(datagram.to)) {
                host.arrive(self.now, datagram);
            }
        }
    }
}

/// Names the seed of a run that failed, so that it can be repeated.
impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the world's seed was {0}: repeat it with RINGTUN_SEED={0}", self.seed);
        }
    }
}

/// The seeds of a test: `count` of them, or the one that `RINGTUN_SEED` names.
pub fn seeds(count: u64) -> std::ops::Range<u64> {
    match std::env::var("RINGTUN_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => seed..seed + 1,
        None => 1..count + 1,
    }
}
