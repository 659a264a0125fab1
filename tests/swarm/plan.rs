//! What a seed stands for: hosts, and a list of events in rounds. Nothing here depends on how a run goes, so that events can be
//! left out and the rest stays what it is.

use ringtun::sim::{Faults, HostConfig, HostFaults, IoFaults, SimRng};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

pub(crate) const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(crate) const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// What stands between a client and the world.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Translator {
    None,
    /// It lets in what comes from anywhere.
    Open,
    /// It lets in only what comes from where the client spoke to.
    Guarded,
}

/// One host of a plan. The gateways come first.
#[derive(Clone, Debug)]
pub(crate) struct HostPlan {
    pub(crate) config: HostConfig,
    /// The gateway of a client; itself for a gateway.
    pub(crate) home: usize,
    /// Which of its gateway's addresses a client speaks to.
    pub(crate) spoken_to: usize,
    pub(crate) translator: Translator,
    /// A client's persistent keepalive in seconds; 0 is none.
    pub(crate) keepalive: u16,
    /// Whether a gateway's answers may leave by another uplink.
    pub(crate) asymmetric: bool,
}

/// One thing that happens. Hosts are named by their numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    /// One host speaks to another at a pace, which answers if `echo`. Large packets come as super-packets.
    Talk { from: usize, to: usize, pace: Duration, time: Duration, len: usize, echo: bool },
    /// The wire becomes bad.
    Wire { faults: Faults, time: Duration },
    /// Nothing reaches a host, or leaves it.
    Cut { host: usize, time: Duration },
    /// A host sleeps.
    Suspend { host: usize, time: Duration },
    /// A worker has no core.
    Stall { host: usize, worker: u8, time: Duration },
    /// The slow path has no core.
    StallSlowPath { host: usize, time: Duration },
    /// The sockets of a host take nothing.
    Block { host: usize, time: Duration },
    /// Edge and mailboxes of a host misbehave.
    Fail { host: usize, faults: HostFaults, time: Duration },
    /// The program of a host is killed, and started again after this time.
    Restart { host: usize, after: Duration },
    /// The interface of a host goes down, and up after this time.
    Bounce { host: usize, after: Duration },
    /// The translator before a client gives it another public port.
    Rebind { client: usize, port: u16 },
    /// A client has another address of its own.
    Move { client: usize, number: u8 },
    /// The route of a gateway prefers the other of two addresses as a source.
    Prefer { gateway: usize },
    /// The route of a gateway leaves by the other of two uplinks.
    Reroute { gateway: usize },
    /// The wall clock of a host jumps to be so many seconds off.
    Clock { host: usize, seconds: i64 },
    /// A peer of a host is given to another of its workers.
    Give { host: usize, peer: usize, worker: u8 },
    /// A gateway's configuration loses a client, and has it again.
    Forget { client: usize },
    /// A client and its gateway have another preshared key.
    Psk { client: usize, byte: u8 },
    /// A client sends a packet from another client's inner address.
    Spoof { client: usize, of: usize },
    /// The program of a host hands its tunnel to another one, after so many steps of its threads. Where that fails, it goes on itself.
    HandOver { host: usize, after: u64, workers: u8, fails: bool },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// A storm of events, a calm in which everything must work again, and an idle time.
#[derive(Clone, Debug)]
pub(crate) struct Round {
    pub(crate) storm: Duration,
    pub(crate) idle: Duration,
    /// Time on the wire during the calm.
    pub(crate) delay: Duration,
    /// How long a stranger floods a gateway in the calm.
    pub(crate) flood: Option<Duration>,
}

#[derive(Clone, Debug)]
pub(crate) struct Timed {
    pub(crate) round: usize,
    /// Since the beginning of the storm.
    pub(crate) at: Duration,
    pub(crate) event: Event,
}

#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) gateways: usize,
    pub(crate) hosts: Vec<HostPlan>,
    pub(crate) rounds: Vec<Round>,
    pub(crate) events: Vec<Timed>,
}

/// The outer addresses of a gateway: two on its first uplink, a third on the second where it has one, in both families.
pub(crate) fn gateway_addresses(number: usize, asymmetric: bool) -> Vec<IpAddr> {
    let v4 = |net: u8| IpAddr::from(Ipv4Addr::new(192, 0, 2, net + number as u8));
    let v6 = |net: u16| IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, net, 0, 0, 0, 0, 1 + number as u16));
    let mut addresses = vec![v4(10), v4(110), v6(1), v6(2)];
    if asymmetric {
        addresses.extend([v4(210), v6(3)]);
    }
    addresses
}

/// The outer addresses of a client, of which `number` counts the moves.
pub(crate) fn client_addresses(client: usize, number: u8) -> Vec<IpAddr> {
    let v4 = Ipv4Addr::new(198, 18, number, client as u8);
    let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0x100, number.into(), 0, 0, 0, client as u16);
    vec![v4.into(), v6.into()]
}

impl Plan {
    pub(crate) fn new(seed: u64) -> Plan {
        let mut rng = SimRng::new(seed ^ 0x5eed_0f57_0243);
        let gateways = 1 + rng.below(2) as usize;
        let count = gateways + 2 + rng.below(5) as usize;
        let hosts: Vec<_> = (0..count).map(|host| host_plan(&mut rng, host, gateways)).collect();
        let mut plan = Plan { seed, gateways, hosts, rounds: Vec::new(), events: Vec::new() };
        for round in 0..3 + rng.below(4) as usize {
            let storm = secs([20, 60, 130, 280][rng.below(4) as usize] + rng.below(30));
            let idle = secs([0, 0, 30, 200, 1000][rng.below(5) as usize]);
            let delay = millis([0, 10, 60][rng.below(3) as usize]);
            plan.rounds.push(Round { storm, idle, delay, flood: None });
            plan.fill(&mut rng, round, storm);
        }
        plan.add_hand_overs();
        plan.add_floods();
        plan
    }

    /// Has gateways flooded in some plans, others than those with hand-overs.
    fn add_floods(&mut self) {
        if !self.seed.is_multiple_of(4) {
            return;
        }
        let mut rng = SimRng::new(self.seed ^ 0xf100_ded0_5eed);
        for round in &mut self.rounds {
            // The longer ones are as long as it takes for every session to be made anew.
            round.flood = rng.chance(500).then(|| secs([10, 190][rng.below(2) as usize]));
        }
    }

    /// Has hosts replaced in some plans. Those that they are not in, and their seeds, are as they were before there were any.
    fn add_hand_overs(&mut self) {
        if self.seed % 4 != 3 {
            return;
        }
        let mut rng = SimRng::new(self.seed ^ 0x5ccc_e550_12ab);
        for (round, part) in self.rounds.clone().into_iter().enumerate() {
            for _ in 0..1 + rng.below(6) {
                let (host, after) = (self.any(&mut rng), rng.below(200));
                let (workers, fails) = (1 + rng.below(4) as u8, rng.chance(200));
                let event = Event::HandOver { host, after, workers, fails };
                self.events.push(Timed { round, at: random(&mut rng, part.storm), event });
            }
        }
    }

    pub(crate) fn clients(&self) -> std::ops::Range<usize> {
        self.gateways..self.hosts.len()
    }

    fn fill(&mut self, rng: &mut SimRng, round: usize, storm: Duration) {
        let mut events = Vec::new();
        let absent = rng.chance(400).then(|| self.client(rng));
        for client in self.clients() {
            let home = self.hosts[client].home;
            if Some(client) == absent {
                events.extend(absence(rng, client, home, storm));
                continue;
            }
            for (from, to) in [(client, home), (home, client)] {
                if rng.chance(500) {
                    events.push((Duration::ZERO, talk(rng, from, to, storm)));
                }
            }
        }
        for _ in 0..rng.below(4) {
            let (from, to) = (self.any(rng), self.any(rng));
            if from != to {
                events.push((random(rng, storm), talk(rng, from, to, storm)));
            }
        }
        for _ in 0..rng.below(16) {
            events.push((random(rng, storm), self.mishap(rng, storm)));
        }
        events.sort_by_key(|(at, _)| *at);
        self.events.extend(events.into_iter().map(|(at, event)| Timed { round, at, event }));
    }

    fn any(&self, rng: &mut SimRng) -> usize {
        rng.below(self.hosts.len() as u64) as usize
    }

    fn client(&self, rng: &mut SimRng) -> usize {
        self.gateways + rng.below((self.hosts.len() - self.gateways) as u64) as usize
    }

    fn mishap(&self, rng: &mut SimRng, storm: Duration) -> Event {
        let (host, client) = (self.any(rng), self.client(rng));
        let (gateway, time) = (rng.below(self.gateways as u64) as usize, random(rng, storm));
        let workers = u64::from(self.hosts[host].config.workers);
        let worker = rng.below(workers) as u8;
        match rng.below(20) {
            0 | 1 => Event::Wire { faults: wire(rng), time },
            2 | 3 => Event::Cut { host, time },
            4 => Event::Suspend { host, time },
            5 => Event::Stall { host, worker, time: random(rng, secs(8)) },
            6 => Event::StallSlowPath { host, time: random(rng, secs(8)) },
            7 => Event::Block { host, time: random(rng, secs(10)) },
            8 | 9 => Event::Fail { host, faults: host_faults(rng), time },
            10 => Event::Restart { host, after: random(rng, secs(10)) },
            11 => Event::Bounce { host, after: random(rng, secs(10)) },
            12 => Event::Rebind { client, port: 20_000 + rng.below(20_000) as u16 },
            13 => Event::Move { client, number: 1 + rng.below(200) as u8 },
            14 => Event::Prefer { gateway },
            15 => Event::Reroute { gateway },
            16 => {
                let off =
                    [0, 3_600, 100_000_000][rng.below(3) as usize] * if rng.chance(500) { 1 } else { -1 };
                Event::Clock { host, seconds: off }
            }
            17 => Event::Give { host, peer: rng.below(8) as usize, worker },
            18 => match rng.chance(500) {
                true => Event::Forget { client },
                false => Event::Psk { client, byte: rng.below(256) as u8 },
            },
            _ => Event::Spoof { client, of: self.client(rng) },
        }
    }
}

fn random(rng: &mut SimRng, most: Duration) -> Duration {
    millis(rng.below(most.as_millis() as u64))
}

fn host_plan(rng: &mut SimRng, host: usize, gateways: usize) -> HostPlan {
    let is_gateway = host < gateways;
    let asymmetric = is_gateway && rng.chance(300);
    let addresses = match is_gateway {
        true => gateway_addresses(host, asymmetric),
        false => client_addresses(host, 0),
    };
    let config = HostConfig {
        workers: 1 + rng.below(if is_gateway { 4 } else { 2 }) as u8,
        addresses,
        gro: rng.chance(800),
        gso: rng.chance(800),
        steer: rng.chance(800),
        assist: if rng.chance(400) { 100 } else { 0 },
        ..HostConfig::default()
    };
    HostPlan {
        config,
        home: if is_gateway { host } else { rng.below(gateways as u64) as usize },
        spoken_to: rng.below(4) as usize,
        translator: [Translator::None, Translator::Open, Translator::Guarded][rng.below(3) as usize],
        keepalive: if !is_gateway && rng.chance(300) { [5, 25][rng.below(2) as usize] } else { 0 },
        asymmetric,
    }
}

/// A client begins a session and is spoken to. Then its program is killed, and started again at the end of the storm, with nothing to
/// say.
fn absence(rng: &mut SimRng, client: usize, home: usize, storm: Duration) -> [(Duration, Event); 3] {
    let (pace, gone) = (millis(300 + rng.below(2_000)), secs(3 + rng.below(8)));
    [
        (Duration::ZERO, Event::Talk { from: home, to: client, pace, time: storm, len: 24, echo: false }),
        (Duration::ZERO, Event::Bounce { host: client, after: millis(200) }),
        (gone, Event::Restart { host: client, after: storm }),
    ]
}

fn talk(rng: &mut SimRng, from: usize, to: usize, storm: Duration) -> Event {
    let pace = millis([200, 1_000, 3_000, 9_000][rng.below(4) as usize] + rng.below(200));
    let len = [24, 24, 300, 1_300, 9_000][rng.below(5) as usize];
    let time = if rng.chance(500) { storm } else { random(rng, storm) };
    Event::Talk { from, to, pace, time, len, echo: rng.chance(500) }
}

fn wire(rng: &mut SimRng) -> Faults {
    let some = |rng: &mut SimRng| [0, 0, 20, 200][rng.below(4) as usize];
    Faults {
        loss: [0, 20, 200, 600][rng.below(4) as usize],
        duplicate: some(rng),
        reorder: some(rng),
        replay: some(rng),
        corrupt: some(rng),
        congestion: some(rng),
        delay: millis([1, 30, 150, 900][rng.below(4) as usize]),
        jitter: millis([1, 40, 1_000, 9_000][rng.below(4) as usize]),
    }
}

fn host_faults(rng: &mut SimRng) -> HostFaults {
    let some = |rng: &mut SimRng| [0, 20, 200][rng.below(3) as usize];
    HostFaults {
        missteer: some(rng),
        late_controls: millis([0, 1, 50, 700][rng.below(4) as usize]),
        io: IoFaults {
            full: some(rng),
            refused: some(rng),
            unsegmented: some(rng) / 10,
            unwritten: some(rng),
            unheard: some(rng),
            pause: millis([1, 20, 1_000][rng.below(3) as usize] + 1),
        },
    }
}
