//! Rule 17: sessions follow each other without a packet lost, whatever becomes of the handshakes.

use crate::lab::{Lab, inner4, millis, secs};
use crate::puppet::{puppet_inner, with_puppet};
use ringtun::noise::REKEY_TIMEOUT;
use ringtun::sim::{Datagram, Faults, Flow, HostConfig, SimRng, seeds};
use ringtun::time::Instant;
use ringtun::wire::message::MessageKind;
use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

/// Longest time on the wire.
const LONGEST_DELAY: Duration = secs(20);
/// How long data goes unanswered before a new handshake is tried: KEEPALIVE_TIMEOUT and REKEY_TIMEOUT, without the jitter.
const SILENCE: Duration = secs(15);
/// Jitter of a handshake's retry, and a little.
const JITTER: Duration = millis(400);

/// What the wire does to what each of two sites sends.
struct Wire {
    rng: SimRng,
    cut: [bool; 2],
    loss: u32,
    /// Chance that a response is held back, for [`Storm::calm`] to deliver it, now or after further troubles.
    withhold: u32,
    withheld: Vec<Datagram>,
    /// Inner packets that it lost.
    lost: u64,
}

/// Sees on the wire whether an end ever goes back to a session of the past.
#[derive(Default)]
struct Wiretap {
    /// When the handshake began that a receiver index of an end is of.
    began: HashMap<(SocketAddr, u32), Instant>,
    /// The latest beginning of those that an end has sent with.
    latest: HashMap<SocketAddr, Instant>,
}

impl Wiretap {
    /// Takes what was sent since the last time.
    fn read(&mut self, lab: &mut Lab) {
        let tapped: Vec<_> = lab.world.network.tap().cloned().collect();
        lab.world.network.clear_tap();
        for tapped in tapped {
            let (from, to, bytes) = (tapped.datagram.from, tapped.datagram.to, &tapped.datagram.bytes);
            let index = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            match tapped.datagram.kind() {
                Some(MessageKind::Initiation) => {
                    self.began.insert((from, index(4)), tapped.at);
                }
                Some(MessageKind::Response) => {
                    self.began.insert((from, index(4)), self.began[&(to, index(8))]);
                }
                Some(MessageKind::Data) => {
                    let began = self.began[&(to, index(4))];
                    let latest = self.latest.entry(from).or_insert(began);
                    // Those that may have crossed on the wire have no order.
                    assert!(
                        began + REKEY_TIMEOUT + JITTER > *latest,
                        "{from} goes back to a session begun at {began:?}, after one begun at {latest:?}"
                    );
                    *latest = began.max(*latest);
                }
                _ => {}
            }
        }
    }
}

/// Two sites that answer each other's packets, on a wire that cuts, loses and delays.
struct Storm {
    lab: Lab,
    wire: Rc<RefCell<Wire>>,
    wiretap: Wiretap,
    rng: SimRng,
}

impl Storm {
    fn new(seed: u64) -> Storm {
        let mut rng = SimRng::new(seed);
        let workers =
            |rng: &mut SimRng| HostConfig { workers: 1 + rng.below(3) as u8, ..HostConfig::default() };
        let configs = vec![workers(&mut rng), workers(&mut rng)];
        let mut lab = Lab::mesh(seed, configs);
        for site in 0..2 {
            lab.host(site).echo = true;
            lab.host(site).steer_tun = rng.chance(500);
        }
        let (rng_of_wire, withheld) = (rng.fork(), Vec::new());
        let wire = Wire { rng: rng_of_wire, cut: [false; 2], loss: 0, withhold: 0, withheld, lost: 0 };
        let wire = Rc::new(RefCell::new(wire));
        let (first, filter) = (lab.sites[0].addr, Rc::clone(&wire));
        lab.world.network.filter = Some(Box::new(move |datagram| {
            let Wire { rng, cut, loss, withhold, withheld, lost } = &mut *filter.borrow_mut();
            if datagram.kind() == Some(MessageKind::Response) && rng.chance(*withhold) {
                withheld.push(datagram.clone());
                return false;
            }
            let passes = !cut[usize::from(datagram.from != first)] && !rng.chance(*loss);
            let inner = datagram.kind() == Some(MessageKind::Data) && !datagram.is_keepalive();
            *lost += u64::from(!passes && inner);
            passes
        }));
        Storm { lab, wire, wiretap: Wiretap::default(), rng }
    }

    /// One packet from `site` to the other, which answers it.
    fn speak(&mut self, site: usize) {
        let port = 100 + self.rng.below(4) as u16;
        let flow = self.lab.udp(site, 1 - site, port);
        self.lab.send(site, flow, 1, 16);
    }

    fn both_speak(&mut self, every: Duration, time: Duration) {
        let end = self.lab.world.now() + time;
        while self.lab.world.now() < end {
            for site in 0..2 {
                self.speak(site);
            }
            self.lab.run(every.min(end.since(self.lab.world.now())));
        }
    }

    /// Asserts that, once all is well and everything has arrived, nothing is missing but what the wire lost.
    fn calm(&mut self) {
        let faults = self.lab.world.network.faults;
        let late = if faults.reorder > 0 { faults.jitter } else { Duration::ZERO };
        self.lab.world.network.faults = Faults::default();
        let withheld = {
            let mut wire = self.wire.borrow_mut();
            (wire.cut, wire.loss, wire.withhold) = ([false; 2], 0, 0);
            if self.rng.chance(400) { std::mem::take(&mut wire.withheld) } else { Vec::new() }
        };
        for Datagram { from, to, bytes, .. } in withheld {
            self.lab.world.inject(from, to, &bytes);
            self.lab.run(millis(20));
        }
        for site in 0..2 {
            self.speak(site);
        }
        self.lab.run(late + millis(500));
        self.wiretap.read(&mut self.lab);
        let lost = self.wire.borrow().lost;
        assert_eq!(self.lab.missing(), lost, "seed {}", self.lab.world.seed());
    }

    /// The wire becomes slow, or keeps no order.
    fn delay(&mut self) {
        let delay = [1, 30, 150][self.rng.below(3) as usize];
        let jitter = [millis(1), millis(40), secs(1), LONGEST_DELAY][self.rng.below(4) as usize];
        let reorder = [0, 200, 1000][self.rng.below(3) as usize];
        self.lab.world.network.faults = Faults { delay: millis(delay), jitter, reorder, ..Faults::default() };
    }

    /// The wire is cut just as long as both ends, or one of them, need to begin a handshake; of what follows some is lost, and
    /// responses are held back.
    fn cut(&mut self) {
        let cut = [[true; 2], [true; 2], [true, false], [false, true]][self.rng.below(4) as usize];
        let withhold = [0, 0, 300, 800][self.rng.below(4) as usize];
        (self.wire.borrow_mut().cut, self.wire.borrow_mut().withhold) = (cut, withhold);
        let more = [300, 6000][self.rng.below(2) as usize];
        let time = SILENCE + millis(self.rng.below(more));
        self.both_speak(secs(1), time);
        self.wire.borrow_mut().cut = [false; 2];
        self.wire.borrow_mut().loss = [0, 0, 100, 300][self.rng.below(4) as usize];
        let every = millis(20 + self.rng.below(40));
        self.both_speak(every, secs(2));
    }

    /// One end forgets all sessions, and speaks first.
    fn restart(&mut self) {
        let site = self.rng.below(2) as usize;
        self.lab.up(site, false);
        self.lab.up(site, true);
        self.speak(site);
        // An initiation of its former life may arrive just before the first of this one, which then has to be tried again.
        self.lab.run(REKEY_TIMEOUT + secs(1));
    }

    fn handshakes(&mut self) -> u64 {
        (0..2).map(|site| self.lab.handshakes(site, "responses_accepted")).sum()
    }
}

/// Runs of `cycles` troubles each, as many at once as there are cores; returns how many handshakes were completed.
fn storms(count: u64, cycles: u32) -> u64 {
    let seeds: Vec<u64> = seeds(count).collect();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let share = seeds.len().div_ceil(cores);
    std::thread::scope(|scope| {
        let parts: Vec<_> =
            seeds.chunks(share).map(|part| scope.spawn(move || storms_of(part, cycles))).collect();
        parts.into_iter().map(|part| part.join().expect("the seed stands above")).sum()
    })
}

fn storms_of(seeds: &[u64], cycles: u32) -> u64 {
    let mut handshakes = 0;
    for seed in seeds.iter().copied() {
        let mut storm = Storm::new(seed);
        storm.lab.connect();
        for _ in 0..cycles {
            if storm.rng.chance(200) {
                storm.restart();
            } else {
                storm.delay();
                storm.cut();
            }
            storm.calm();
        }
        handshakes += storm.handshakes();
    }
    handshakes
}

#[test]
fn rule_17_no_packet_is_lost_whatever_handshakes_cross_come_late_or_never() {
    let handshakes = storms(20, 25);
    assert!(handshakes > 100 || std::env::var("RINGTUN_SEED").is_ok(), "{handshakes}");
}

/// Takes minutes, as it is the proof of the rule.
#[test]
fn rule_17_no_packet_is_lost_in_ten_thousand_rekeys() {
    let handshakes = storms(640, 25);
    assert!(handshakes > 10_000, "{handshakes}");
}

#[test]
fn rule_17_the_answer_to_the_packet_that_confirms_a_session_arrives() {
    for seed in seeds(30) {
        let mut storm = Storm::new(seed);
        storm.lab.connect();
        for _ in 0..3 {
            storm.restart();
            storm.calm();
        }
    }
}

#[test]
fn rule_17_a_response_that_comes_after_the_peers_own_handshakes_changes_nothing() {
    for seed in seeds(5) {
        let (mut lab, mut puppet, _) = with_puppet(seed);
        let flow = Flow::udp((inner4(0), 5).into(), (puppet_inner(), 5).into());
        // Its silence after data brings an initiation of the site's, the answer to which it withholds.
        let inner = lab.packet(flow, 64);
        lab.host(0).send(&inner.flow, inner.to_frame());
        lab.run(SILENCE + JITTER);
        let initiation = puppet.hear(&mut lab, MessageKind::Initiation).unwrap();
        let (withheld, _) = puppet.prepare_answer(&mut lab, &initiation).unwrap();
        let mut last = None;
        for _ in 0..4 {
            last = Some(puppet.connect(&mut lab));
            lab.run(secs(5));
        }
        puppet.say(&mut lab, &withheld);
        let inner = lab.packet(flow, 64);
        while puppet.hear(&mut lab, MessageKind::Data).is_some() {}
        lab.host(0).send(&inner.flow, inner.to_frame());
        lab.run(secs(1));
        let sealed = puppet.hear(&mut lab, MessageKind::Data).unwrap();
        assert!(last.unwrap().open(&sealed).is_some(), "not sealed for the puppet's youngest session");
    }
}
