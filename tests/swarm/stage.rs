//! The hosts of a plan at work: their configurations, what is done to them, and what they say.

use crate::account::{Account, MARK, inner4, inner6};
use crate::bounds::BURST_PAUSE;
use crate::plan::{Event, HostPlan, Plan, Timed, Translator, client_addresses, gateway_addresses, millis};
use ringtun::crypto::x25519::{PrivateKey, PublicKey};
use ringtun::sim::host::{ECHO_PORT, FIRST_UPLINK, HandOverPlan};
use ringtun::sim::world::InnerTraffic;
use ringtun::sim::{Faults, Flow, HostId, Inner, SimHost, SimRng, Uplinks, World};
use ringtun::time::Instant;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

pub(crate) const PORT: u16 = 51820;
/// Time on the wire when a calm is over.
pub(crate) const ROUGH_DELAY: Duration = millis(10);
/// Where the mark of a payload stands in a data message: behind its header, the headers of UDP over IPv4 or of TCP over IPv6, and a
/// serial number.
const MARK_PLACES: [usize; 2] = [16 + 28 + 8, 16 + 60 + 8];
/// Bytes of a segment of a super-packet.
const SEGMENT: u16 = 1_200;

/// What is to be done at a time.
enum Task {
    Do(Event),
    /// What the event did ends.
    End(Event),
    Say(Flow, Duration, Instant, usize),
    /// The gateway that is flooded, and until when.
    Flood(usize, Instant),
}

pub(crate) struct Site {
    pub(crate) id: HostId,
    key: PrivateKey,
    pub(crate) plan: HostPlan,
    /// The address and port that the host itself has.
    pub(crate) inside: SocketAddr,
    psk: u8,
    /// The furthest that its wall clock was ahead, in seconds.
    furthest: i64,
    restarted: bool,
    is_up: bool,
}

pub(crate) struct Stage {
    pub(crate) world: World,
    pub(crate) sites: Vec<Site>,
    pub(crate) gateways: usize,
    pub(crate) account: Account,
    pub(crate) rng: SimRng,
    tasks: BTreeMap<(Instant, u64), Task>,
    /// Whether a payload was seen on the wire.
    in_clear: Rc<Cell<bool>>,
    serial: u64,
    flows: u16,
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Stage {
    pub(crate) fn new(plan: &Plan) -> Stage {
        let mut world = World::new(plan.seed);
        let mut sites = Vec::new();
        for host in &plan.hosts {
            let id = world.add_host(host.config.clone()).expect("there is memory for a host");
            let mut bytes = [0; 32];
            ringtun::crypto::random::Entropy::fill(world.rng(), &mut bytes);
            let key = PrivateKey::from_bytes(bytes);
            let inside = SocketAddr::new(host.config.addresses[0], PORT);
            let plan = host.clone();
            sites.push(Site { id, key, plan, inside, psk: 0, furthest: 0, restarted: false, is_up: false });
        }
        let rng = world.rng().fork();
        let in_clear = Rc::new(Cell::new(false));
        let seen = Rc::clone(&in_clear);
        world.network.filter = Some(Box::new(move |datagram| {
            let shows = |at: usize| datagram.bytes.get(at..at + MARK.len()) == Some(&MARK);
            seen.set(seen.get() || MARK_PLACES.into_iter().any(shows));
            true
        }));
        let mut stage = Stage {
            world,
            sites,
            gateways: plan.gateways,
            account: Account::default(),
            rng,
            tasks: BTreeMap::new(),
            in_clear,
            serial: 0,
            flows: 0,
        };
        for host in 0..stage.sites.len() {
            stage.settle_in(host, 0);
            stage.configure(host);
            stage.up(host, true);
        }
        stage
    }

    pub(crate) fn host(&mut self, host: usize) -> &mut SimHost {
        self.world.host(self.sites[host].id)
    }

    pub(crate) fn look(&self, host: usize) -> &SimHost {
        self.world.look(self.sites[host].id)
    }

    pub(crate) fn public(&self, host: usize) -> PublicKey {
        self.sites[host].key.public()
    }

    pub(crate) fn is_gateway(&self, host: usize) -> bool {
        host < self.gateways
    }

    /// The clients of a gateway.
    pub(crate) fn clients_of(&self, gateway: usize) -> Vec<usize> {
        (self.gateways..self.sites.len()).filter(|&client| self.sites[client].plan.home == gateway).collect()
    }

    /// Gives a host its addresses, and a client its translator.
    fn settle_in(&mut self, host: usize, number: u8) {
        let asymmetric = self.sites[host].plan.asymmetric;
        let (addresses, uplinks) = match self.is_gateway(host) {
            true => {
                let addresses = gateway_addresses(host, asymmetric);
                let arrivals = addresses[4..].iter().map(|&ip| (ip, FIRST_UPLINK + 1)).collect();
                (addresses, Uplinks { arrivals, ..Uplinks::default() })
            }
            false => (client_addresses(host, number), Uplinks::default()),
        };
        let ip = match self.is_gateway(host) {
            true => addresses[0],
            false => addresses[self.spoken_to(host).is_ipv6() as usize],
        };
        self.host(host).readdress(addresses, uplinks);
        let before = std::mem::replace(&mut self.sites[host].inside, SocketAddr::new(ip, PORT));
        let outside = self.world.network.public(before);
        if self.has_translator(host) {
            let fresh = SocketAddr::new(outside_of(host, ip.is_ipv4()), PORT);
            self.translate(host, if outside == before { fresh } else { outside });
        }
    }

    fn has_translator(&self, host: usize) -> bool {
        !self.is_gateway(host) && self.sites[host].plan.translator != Translator::None
    }

    /// Whether the translator of a client lets in only what it asked for. Where its gateway may answer by another uplink, none
    /// such can be used.
    pub(crate) fn is_guarded(&self, host: usize) -> bool {
        let Site { plan, .. } = &self.sites[host];
        !self.is_gateway(host)
            && plan.translator == Translator::Guarded
            && !self.sites[plan.home].plan.asymmetric
    }

    fn translate(&mut self, host: usize, outside: SocketAddr) {
        let inside = self.sites[host].inside;
        self.world.network.translate(inside, outside);
        if self.is_guarded(host) {
            self.world.network.guard(inside);
        }
    }

    /// The address of its gateway that a client speaks to at first.
    pub(crate) fn spoken_to(&self, client: usize) -> IpAddr {
        let plan = &self.sites[client].plan;
        gateway_addresses(plan.home, false)[plan.spoken_to]
    }

    /// Gives a host its whole configuration.
    fn configure(&mut self, host: usize) {
        let key = hex(&self.sites[host].key.to_bytes());
        let mut text = format!("private_key={key}\nlisten_port={PORT}\n");
        if self.is_gateway(host) {
            for other in (0..self.gateways).filter(|&other| other != host) {
                text += &self.gateway_text(other);
            }
            for client in self.clients_of(host) {
                text += &self.client_text(client);
            }
            let forwards = self.clients_of(host).into_iter().chain(0..self.gateways);
            let all = self.sites.len();
            let elsewhere = (self.gateways..all).filter(|client| self.sites[*client].plan.home != host);
            let forwards: Vec<usize> = forwards.chain(elsewhere).filter(|&to| to != host).collect();
            let prefixes = forwards.into_iter().flat_map(prefixes_of);
            let prefixes = prefixes.map(|prefix| prefix.parse().expect("a prefix")).collect();
            self.host(host).forwards = prefixes;
        } else {
            text += &self.home_text(host);
        }
        self.host(host).echo = true;
        self.set(host, &text);
    }

    /// A gateway as another gateway's peer, with all that is behind it.
    fn gateway_text(&self, gateway: usize) -> String {
        let addr = SocketAddr::new(gateway_addresses(gateway, false)[0], PORT);
        let public = hex(&self.public(gateway).0);
        let behind = self.clients_of(gateway).into_iter().chain([gateway]).flat_map(prefixes_of);
        let behind: String = behind.map(|prefix| format!("allowed_ip={prefix}\n")).collect();
        format!("public_key={public}\nendpoint={addr}\n{behind}")
    }

    fn client_text(&self, client: usize) -> String {
        let (public, psk) = (hex(&self.public(client).0), hex(&[self.sites[client].psk; 32]));
        let prefixes: String = prefixes_of(client).map(|prefix| format!("allowed_ip={prefix}\n")).concat();
        format!("public_key={public}\npreshared_key={psk}\n{prefixes}")
    }

    /// A client's gateway as its peer: everything is behind it.
    fn home_text(&self, client: usize) -> String {
        let plan = &self.sites[client].plan;
        let (public, psk) = (hex(&self.public(plan.home).0), hex(&[self.sites[client].psk; 32]));
        let addr = SocketAddr::new(self.spoken_to(client), PORT);
        let keepalive = plan.keepalive;
        format!(
            "public_key={public}\npreshared_key={psk}\nendpoint={addr}\npersistent_keepalive_interval={keepalive}\n\
             allowed_ip=10.0.0.0/8\nallowed_ip=fd00::/8\n"
        )
    }

    fn set(&mut self, host: usize, text: &str) {
        let id = self.sites[host].id;
        let now = self.world.host_now(id);
        self.world.host(id).configure(now, text).expect("the configuration is right");
        self.world.settle();
    }

    pub(crate) fn up(&mut self, host: usize, up: bool) {
        let id = self.sites[host].id;
        let now = self.world.host_now(id);
        self.sites[host].is_up = up;
        self.world.host(id).set_up(now, up);
        self.world.settle();
    }

    /// Takes a round's events in.
    pub(crate) fn schedule<'a>(&mut self, events: impl Iterator<Item = &'a Timed>) {
        let begin = self.world.now();
        for timed in events {
            self.later(begin + timed.at, Task::Do(timed.event));
        }
    }

    fn later(&mut self, at: Instant, task: Task) {
        self.serial += 1;
        self.tasks.insert((at, self.serial), task);
    }

    /// Lets time pass, in which everything happens that is to happen.
    pub(crate) fn run(&mut self, time: Duration) -> Result<(), String> {
        let end = self.world.now() + time;
        while let Some(first) = self.tasks.first_entry().filter(|first| first.key().0 <= end) {
            let ((at, _), task) = first.remove_entry();
            self.pass(at.since(self.world.now()))?;
            match task {
                Task::Do(event) => self.begin(event),
                Task::End(event) => self.end(event),
                Task::Say(flow, pace, until, len) => {
                    self.say(flow, len);
                    if at + pace < until {
                        self.later(at + pace, Task::Say(flow, pace, until, len));
                    }
                }
                Task::Flood(gateway, until) => {
                    self.flood_on(gateway);
                    self.keep_flooding(gateway, until);
                }
            }
        }
        self.pass(end.since(self.world.now()))
    }

    fn pass(&mut self, time: Duration) -> Result<(), String> {
        self.world.run_for(time);
        let InnerTraffic { answered, delivered } = self.world.take_traffic();
        let now = self.world.now();
        for inner in answered {
            self.account.sent(now, &inner);
        }
        for (id, inner) in delivered {
            let host = self.sites.iter().position(|site| site.id == id).unwrap_or_default();
            self.account.delivered(host, self.gateways, &inner)?;
        }
        if self.in_clear.get() {
            return Err("plaintext: a payload in clear on the wire".into());
        }
        match self.world.violations().first() {
            Some(first) => Err(first.clone()),
            None => Ok(()),
        }
    }

    /// Sends a packet of a flow, or a super-packet where it is long.
    pub(crate) fn say(&mut self, flow: Flow, len: usize) {
        let from = (0..self.sites.len())
            .find(|&host| [inner4(host), inner6(host)].contains(&flow.source.ip()))
            .unwrap_or_default();
        let now = self.world.now();
        if len <= usize::from(SEGMENT) {
            let inner = Inner::new(flow, 0, self.account.payload(len));
            if self.host(from).send(&flow, inner.to_frame()) {
                self.account.sent(now, &inner);
            }
        } else {
            let segment = usize::from(SEGMENT);
            let count = len.div_ceil(segment);
            let payload = (0..count).flat_map(|_| self.account.payload(segment)).collect();
            let whole = Inner::new(flow, 1, payload);
            if self.host(from).send(&flow, whole.to_super_frame(SEGMENT)) {
                whole.segments(SEGMENT).iter().for_each(|segment| self.account.sent(now, segment));
            }
        }
    }

    /// A flow that nobody has used yet. To the port of echo, it is answered.
    pub(crate) fn flow(&mut self, from: usize, to: usize, len: usize, echo: bool) -> Flow {
        self.flows = self.flows.wrapping_add(1);
        let port = 1_000 + self.flows % 50_000;
        let to_port = if echo { ECHO_PORT } else { 9 };
        match len > usize::from(SEGMENT) {
            false => Flow::udp((inner4(from), port).into(), (inner4(to), to_port).into()),
            true => Flow::tcp((inner6(from), port).into(), (inner6(to), 9).into()),
        }
    }

    pub(crate) fn talk(&mut self, flow: Flow, pace: Duration, time: Duration, len: usize) {
        let now = self.world.now();
        self.later(now, Task::Say(flow, pace, now + time, len));
    }

    /// Has a stranger send the next burst of a flood, unless that is over by then.
    pub(crate) fn keep_flooding(&mut self, gateway: usize, until: Instant) {
        let next = self.world.now() + BURST_PAUSE;
        if next < until {
            self.later(next, Task::Flood(gateway, until));
        }
    }

    fn begin(&mut self, event: Event) {
        let now = self.world.now();
        match event {
            Event::Talk { from, to, pace, time, len, echo } => {
                let flow = self.flow(from, to, len, echo);
                self.talk(flow, pace, time, len);
            }
            Event::Wire { faults, time } => {
                self.world.network.faults = faults;
                self.later(now + time, Task::End(event));
            }
            Event::Cut { host, time } => {
                self.cut(host, true);
                self.later(now + time, Task::End(event));
            }
            Event::Block { host, time } => {
                self.host(host).ios().for_each(|io| io.blocked = true);
                self.later(now + time, Task::End(event));
            }
            Event::Fail { host, faults, time } => {
                self.host(host).fail(faults);
                self.later(now + time, Task::End(event));
            }
            Event::Suspend { host, time } => self.host(host).suspended_until = now + time,
            Event::Stall { host, worker, time } => self.host(host).stall(worker, time),
            Event::StallSlowPath { host, time } => self.host(host).slow_path_stalled_until = now + time,
            Event::Restart { host, after } => {
                self.restart(host);
                self.later(now + after, Task::End(event));
            }
            Event::Bounce { host, after } => {
                self.up(host, false);
                self.later(now + after, Task::End(event));
            }
            Event::Rebind { client, port } if self.has_translator(client) => {
                let ip = self.world.network.public(self.sites[client].inside).ip();
                self.translate(client, SocketAddr::new(ip, port));
            }
            Event::Move { client, number } => self.settle_in(client, number),
            Event::Prefer { gateway } | Event::Reroute { gateway } => self.reroute(gateway, event),
            Event::Clock { host, seconds } => self.set_clock(host, seconds),
            Event::Give { host, peer, worker } => {
                // There may be fewer by now.
                let worker = worker % self.look(host).workers();
                let peers = self.look(host).state().peers();
                if let Some(peer) = peers.get(peer % peers.len().max(1)) {
                    self.host(host).device().give_peer(peer.id, worker);
                }
            }
            Event::Forget { client } => {
                let (home, public) = (self.sites[client].plan.home, hex(&self.public(client).0));
                self.set(home, &format!("public_key={public}\nremove=true\n"));
                self.set(home, &self.client_text(client));
            }
            Event::Psk { client, byte } => {
                self.sites[client].psk = byte;
                let home = self.sites[client].plan.home;
                self.set(home, &self.client_text(client));
                let (public, psk) = (hex(&self.public(home).0), hex(&[byte; 32]));
                self.set(client, &format!("public_key={public}\npreshared_key={psk}\n"));
            }
            Event::HandOver { host, after, workers, fails } => {
                let at_step = self.look(host).steps + after;
                self.host(host).plan_hand_over(HandOverPlan { at_step, workers, fails });
            }
            Event::Spoof { client, of } if client != of => self.spoof(client, of),
            Event::Rebind { .. } | Event::Spoof { .. } => {}
        }
        self.world.settle();
    }

    fn end(&mut self, event: Event) {
        match event {
            Event::Wire { .. } => self.world.network.faults = Faults::default(),
            Event::Cut { host, .. } => self.cut(host, false),
            Event::Block { host, .. } => self.host(host).ios().for_each(|io| io.blocked = false),
            Event::Fail { host, .. } => self.host(host).fail(Default::default()),
            Event::Restart { host, .. } | Event::Bounce { host, .. } => self.up(host, true),
            _ => {}
        }
        self.world.settle();
    }

    fn cut(&mut self, host: usize, is_cut: bool) {
        for ip in self.look(host).addresses.clone() {
            self.world.network.cut(ip, is_cut);
        }
    }

    fn restart(&mut self, host: usize) {
        self.world.restart(self.sites[host].id).expect("there is memory for a host");
        (self.sites[host].restarted, self.sites[host].is_up) = (true, false);
        self.set_clock(host, 0);
        self.configure(host);
    }

    fn set_clock(&mut self, host: usize, seconds: i64) {
        let site = &mut self.sites[host];
        site.furthest = site.furthest.max(seconds);
        // Nothing but the clock makes newer time stamps than those before a restart.
        let seconds = if site.restarted { site.furthest } else { seconds };
        let off = Duration::from_secs(seconds.unsigned_abs());
        let (ahead, behind) = if seconds < 0 { (Duration::ZERO, off) } else { (off, Duration::ZERO) };
        (self.host(host).wall_ahead, self.host(host).wall_behind) = (ahead, behind);
    }

    fn reroute(&mut self, gateway: usize, event: Event) {
        let (addresses, mut uplinks) =
            (self.look(gateway).addresses.clone(), self.look(gateway).uplinks().clone());
        match event {
            Event::Prefer { .. } => {
                uplinks.preferred = if uplinks.preferred.is_some() { None } else { Some(addresses[1]) };
            }
            _ if self.sites[gateway].plan.asymmetric => uplinks.way = 2 * FIRST_UPLINK + 1 - uplinks.way,
            _ => return,
        }
        self.host(gateway).readdress(addresses, uplinks);
    }

    /// A client sends a packet from another's address. It is not in the account, so that it must not come out.
    fn spoof(&mut self, client: usize, of: usize) {
        let home = self.sites[client].plan.home;
        let flow = Flow::udp((inner4(of), 5).into(), (inner4(home), 9).into());
        let inner = Inner::new(flow, 0, self.account.payload(24));
        self.host(client).send(&flow, inner.to_frame());
    }

    /// Everything that is wrong ends at once.
    pub(crate) fn calm_down(&mut self, delay: Duration) {
        self.tasks.clear();
        self.world.network.faults = Faults { delay, ..Faults::default() };
        self.world.network.lose_all();
        self.world.network.mend();
        for host in 0..self.sites.len() {
            self.host(host).relieve();
            if !self.sites[host].is_up {
                self.up(host, true);
            }
            self.host(host).set_steering(true);
        }
        self.world.settle();
    }

    /// The calm is over.
    pub(crate) fn grow_rough(&mut self) {
        for host in 0..self.sites.len() {
            let steer = self.sites[host].plan.config.steer;
            self.host(host).set_steering(steer);
        }
        self.world.network.faults = Faults { delay: ROUGH_DELAY, ..Faults::default() };
    }
}

/// The public address of a translator.
fn outside_of(host: usize, is_ipv4: bool) -> IpAddr {
    match is_ipv4 {
        true => [203, 0, 113, host as u8].into(),
        false => [0x2001, 0xdb8, 0xfff, 0, 0, 0, 0, host as u16].into(),
    }
}

/// The inner prefixes of a host.
fn prefixes_of(host: usize) -> [String; 2] {
    [format!("10.0.{host}.0/24"), format!("fd00:{host:x}::/64")]
}
