//! A hundred thousand peers in one device under virtual time: some speak and roam, some are silent, some go and come back, and at
//! last the device has another key. A failure prints its seed; `RINGTUN_SEED` repeats it.

#![allow(unsafe_code)] // a global allocator is an unsafe trait
#![allow(clippy::unwrap_used)] // all of it is test code

mod memory;
mod remote;

use remote::{Remote, gateway, gateway_inner, inner, number_of};
use ringtun::crypto::random::Entropy;
use ringtun::crypto::x25519::{PrivateKey, PublicKey};
use ringtun::device::uapi::{AllowedIp, PeerRequest, SetRequest};
use ringtun::routing::Prefix;
use ringtun::sim::{Datagram, Flow, HostConfig, HostId, Inner, World, seeds};
use ringtun::time::Instant;
use ringtun::wire::message::{MessageKind, Response};
use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

const PEERS: u32 = 100_000;
/// So many of them, the first, have another end.
const ENDS: u32 = 1200;
/// So many of these never answer.
const SILENT: u32 = 60;
/// So many go on speaking for all the time.
const BUSY: u32 = 40;
const WORKERS: u8 = 32;
/// The clock goes in steps of this length. What falls due within one is done at its end.
const STEP: Duration = Duration::from_millis(100);
/// How long a packet may take, with a handshake before it: two handshakes of one peer are 5 s apart, and a third more for what
/// crosses.
const PATIENCE: Duration = Duration::from_secs(12);
/// After which pause the other ends try again (REKEY_TIMEOUT).
const RETRY: Duration = Duration::from_secs(5);
/// Bytes that an idle peer may cost, in the device and in what stands for the kernel's steering.
const BYTES_PER_PEER: isize = 1600;
/// Bytes by which memory may have grown when all peers are gone.
const KEPT: isize = 2 << 20;

/// A packet that has to arrive.
struct Expected {
    by: Instant,
    /// When the other end tries again.
    again: Instant,
    number: u32,
    arrival: Arrival,
}

enum Arrival {
    /// At the other end, which opened so many before.
    Outwards(u64),
    /// At the gateway, which had so many of this peer before.
    Inwards(u64),
}

/// The gateway with its many peers, and their other ends.
struct Crowd {
    world: World,
    host: HostId,
    ends: Vec<Remote>,
    /// Who is where.
    at: HashMap<SocketAddr, usize>,
    sent: Rc<RefCell<Vec<Datagram>>>,
    /// Packets that arrived at the gateway, by peer.
    delivered: HashMap<u32, u64>,
    expected: Vec<Expected>,
}

fn random(rng: &mut impl Entropy) -> [u8; 32] {
    let mut bytes = [0; 32];
    rng.fill(&mut bytes);
    bytes
}

fn peer(key: PublicKey, number: u32) -> PeerRequest {
    let prefix = Prefix::new(inner(number), 32).unwrap();
    PeerRequest { allowed_ips: vec![AllowedIp { prefix, remove: false }], ..PeerRequest::new(key) }
}

impl Crowd {
    /// A gateway without peers.
    fn new(seed: u64) -> (Crowd, PublicKey) {
        let mut world = World::new(seed);
        let addresses = vec![gateway().ip()];
        let host =
            world.add_host(HostConfig { workers: WORKERS, addresses, ..HostConfig::default() }).unwrap();
        world.host(host).steer_tun = false;
        let sent: Rc<RefCell<Vec<Datagram>>> = Rc::default();
        let seen = Rc::clone(&sent);
        world.network.filter = Some(Box::new(move |datagram| {
            seen.borrow_mut().push(datagram.clone());
            false
        }));
        let (ends, at, delivered, expected) = (Vec::new(), HashMap::new(), HashMap::new(), Vec::new());
        let mut crowd = Crowd { world, host, ends, at, sent, delivered, expected };
        let key = PrivateKey::from_bytes(random(crowd.world.rng()));
        let public = key.public();
        let request = SetRequest { listen_port: Some(gateway().port()), ..with_key(key) };
        crowd.set(request);
        let now = crowd.world.host_now(host);
        crowd.world.host(host).set_up(now, true);
        crowd.run(STEP);
        (crowd, public)
    }

    fn set(&mut self, request: SetRequest) {
        let now = self.world.host_now(self.host);
        self.world.host(self.host).device().apply(now, &request, &mut |wanted| Ok(wanted.port)).unwrap();
        self.world.settle();
    }

    /// Adds all peers, those with another end first.
    fn populate(&mut self, of: PublicKey) {
        for number in 0..ENDS {
            let key = PrivateKey::from_bytes(random(self.world.rng()));
            let mut end = Remote::new(number, key, of);
            end.answers = number >= SILENT;
            self.at.insert(end.addr, number as usize);
            self.ends.push(end);
        }
        let mut peers = Vec::with_capacity(PEERS as usize);
        for number in 0..PEERS {
            peers.push(self.request(number));
        }
        self.set(SetRequest { peers, ..SetRequest::default() });
    }

    fn request(&mut self, number: u32) -> PeerRequest {
        let Some(end) = self.ends.get(number as usize) else {
            return peer(PublicKey(random(self.world.rng())), number);
        };
        PeerRequest { endpoint: Some(end.addr), ..peer(*end.identity.public(), number) }
    }

    /// The gateway's own program speaks to a peer.
    fn speak_to(&mut self, number: u32) {
        let flow = Flow::udp(gateway_inner(), SocketAddr::new(inner(number), 7));
        let frame = Inner::new(flow, 0, vec![2; 20]).to_frame();
        assert!(self.world.host(self.host).send(&flow, frame));
        let end = &self.ends[number as usize];
        if end.answers {
            self.expect(number, Arrival::Outwards(end.opened));
        }
    }

    /// A peer speaks to the gateway.
    fn hear_from(&mut self, number: u32) {
        let before = self.delivered.get(&number).copied().unwrap_or(0);
        self.expect(number, Arrival::Inwards(before));
        self.ends[number as usize].speak(&mut self.world);
    }

    fn expect(&mut self, number: u32, arrival: Arrival) {
        let now = self.world.now();
        self.expected.push(Expected { by: now + PATIENCE, again: now + RETRY, number, arrival });
    }

    fn roam(&mut self, number: u32) {
        let end = &mut self.ends[number as usize];
        self.at.remove(&end.addr);
        end.roam();
        self.at.insert(end.addr, number as usize);
    }

    fn run(&mut self, time: Duration) {
        let end = self.world.now() + time;
        while self.world.now() < end {
            self.world.leap(STEP);
            let now = self.world.now();
            let due = self.world.host(self.host).device().poll_timeout();
            assert!(due.is_none_or(|due| due > now), "what is due is done, and leaves nothing that is due");
            for datagram in self.sent.take() {
                self.arrive(&datagram);
            }
            for packet in self.world.host(self.host).take_delivered() {
                let [_, a, b, c] = match packet.flow.source.ip() {
                    std::net::IpAddr::V4(ip) => ip.octets(),
                    std::net::IpAddr::V6(_) => panic!("all are IPv4"),
                };
                *self.delivered.entry(u32::from_be_bytes([0, a, b, c])).or_default() += 1;
            }
            self.check_expected(now);
        }
        self.world.network.clear_tap();
        assert_eq!(self.world.violations(), [""; 0]);
    }

    fn check_expected(&mut self, now: Instant) {
        let (ends, world, delivered) = (&mut self.ends, &mut self.world, &self.delivered);
        self.expected.retain_mut(|Expected { by, again, number, arrival }| {
            let end = &mut ends[*number as usize];
            let (before, after) = match arrival {
                Arrival::Outwards(before) => (*before, end.opened),
                Arrival::Inwards(before) => (*before, delivered.get(number).copied().unwrap_or(0)),
            };
            if after <= before && matches!(arrival, Arrival::Inwards(_)) && now >= *again {
                *again = now + RETRY;
                end.speak(world);
            }
            assert!(after > before || now < *by, "a packet of peer {number} did not arrive");
            after <= before
        });
    }

    fn arrive(&mut self, datagram: &Datagram) {
        let (bytes, world) = (&datagram.bytes[..], &mut self.world);
        let at = self.at.get(&datagram.to).copied();
        let is_at = |number: usize| at == Some(number);
        match datagram.kind() {
            Some(MessageKind::Initiation) => {
                at.into_iter().for_each(|number| self.ends[number].take_initiation(world, bytes));
            }
            Some(MessageKind::Response) => {
                let index = Response::parse(bytes).map(|response| response.receiver);
                let number = index.map(number_of).filter(|&number| is_at(number));
                number.into_iter().for_each(|number| self.ends[number].take_response(world, bytes));
            }
            _ => {
                let Some(index) = datagram.data().map(|header| header.receiver) else { return };
                if is_at(number_of(index)) {
                    self.ends[number_of(index)].take_data(world, index, bytes);
                }
            }
        }
    }

    /// So many of the ends that answer and are not always busy, in any order.
    fn some(&mut self, count: usize) -> Vec<u32> {
        let mut numbers: Vec<u32> = (SILENT + BUSY..ENDS).collect();
        self.world.rng().shuffle(&mut numbers);
        numbers.truncate(count);
        numbers
    }

    fn held(&mut self) -> [usize; 3] {
        self.world.host(self.host).device().held()
    }

    fn handshakes(&mut self) -> u64 {
        let stats = self.world.host(self.host).device().stats();
        stats.initiations_accepted + stats.responses_accepted
    }

    /// Handshakes of peers that had none, in either direction, and how many controls each made.
    fn first_handshakes(&mut self) {
        for outwards in [true, false] {
            let fresh: Vec<u32> = self
                .some(ENDS as usize)
                .into_iter()
                .filter(|&n| self.ends[n as usize].sessions == 0)
                .collect();
            let (controls, handshakes) = (self.world.host(self.host).controls, self.handshakes());
            for &number in &fresh[..100] {
                if outwards { self.speak_to(number) } else { self.hear_from(number) }
            }
            self.run(Duration::from_secs(2));
            assert!(self.expected.is_empty(), "nothing had to be tried again");
            let controls = self.world.host(self.host).controls - controls;
            assert_eq!(self.handshakes() - handshakes, 100);
            assert!(controls <= 400, "{controls} controls for 100 handshakes, outwards: {outwards}");
        }
    }

    /// A minute in which some speak, some roam, and some go and come back.
    fn minute(&mut self) {
        for part in 0..6 {
            for number in self.some(30) {
                match self.world.rng().below(3) {
                    0 => self.speak_to(number),
                    1 => self.hear_from(number),
                    _ => {
                        self.roam(number);
                        self.hear_from(number);
                    }
                }
            }
            (SILENT..SILENT + BUSY).for_each(|number| self.speak_to(number));
            (0..SILENT / 6).for_each(|number| self.speak_to(part * (SILENT / 6) + number));
            self.run(Duration::from_secs(10));
        }
    }

    /// Peers go, with their sessions; their ends know nothing of it. When they are back, they begin anew.
    fn replace_some(&mut self) {
        let gone: Vec<u32> = self.some(50);
        // What is on its way to them is lost.
        self.expected.retain(|expected| !gone.contains(&expected.number));
        let peers = gone.iter().map(|&number| PeerRequest { remove: true, ..self.request(number) }).collect();
        self.set(SetRequest { peers, ..SetRequest::default() });
        assert_eq!(self.held()[0], PEERS as usize - gone.len());
        self.run(Duration::from_secs(1));
        let peers = gone.iter().map(|&number| self.request(number)).collect();
        self.set(SetRequest { peers, ..SetRequest::default() });
        for number in gone {
            self.ends[number as usize].forget();
            self.hear_from(number);
        }
        self.run(PATIENCE);
    }

    /// The gateway has another key, and whoever speaks has a session by it.
    fn change_key(&mut self) {
        let key = PrivateKey::from_bytes(random(self.world.rng()));
        self.expected.clear();
        self.ends.iter_mut().for_each(|end| end.learn(key.public()));
        self.set(with_key(key));
        assert_eq!(self.held()[1], 0, "no session outlives its key");
        for number in self.some(200) {
            if number % 2 == 0 { self.speak_to(number) } else { self.hear_from(number) }
        }
        self.run(PATIENCE);
        assert!(self.expected.is_empty());
    }
}

fn with_key(key: PrivateKey) -> SetRequest {
    SetRequest { private_key: Some(Some(key)), ..SetRequest::default() }
}

#[test]
fn a_hundred_thousand_peers_have_sessions_when_they_speak_and_leave_nothing_behind() {
    for seed in seeds(1) {
        let (mut crowd, public) = Crowd::new(seed);
        let start = memory::held();
        crowd.populate(public);
        let idle = memory::held() - start;
        assert!(idle <= BYTES_PER_PEER * PEERS as isize, "{} bytes a peer", idle / PEERS as isize);
        assert_eq!(crowd.held(), [PEERS as usize, 0, 0], "who says nothing has neither index nor deadline");
        crowd.first_handshakes();
        for _ in 0..5 {
            crowd.minute();
            crowd.replace_some();
        }
        let busy = (SILENT..SILENT + BUSY).map(|number| crowd.ends[number as usize].sessions);
        assert!(
            busy.clone().all(|sessions| (3..=6).contains(&sessions)),
            "a session serves 120 s: {:?}",
            busy.collect::<Vec<_>>()
        );
        crowd.change_key();
        crowd.set(SetRequest { replace_peers: true, ..SetRequest::default() });
        crowd.run(Duration::from_secs(10));
        assert_eq!((crowd.held(), crowd.world.host(crowd.host).staged()), ([0; 3], 0));
        (crowd.ends, crowd.at, crowd.delivered, crowd.expected) = Default::default();
        let now = crowd.world.host_now(crowd.host);
        crowd.world.host(crowd.host).device().tidy();
        crowd.world.host(crowd.host).device().handle_timeout(now);
        crowd.run(STEP);
        let left = memory::held() - start;
        assert!(left <= KEPT, "{left} bytes are left of {idle}");
    }
}
