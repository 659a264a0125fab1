//! Whole devices against each other: datagrams are taken out of one's outputs and fed to the other, under virtual time.

mod arming;
mod configure;
mod events;
mod handshake;
mod lifecycle;
mod spreading;
mod sweeping;
mod timing;

use super::events::DisconnectReason;
use super::uapi::{AllowedIp, PeerRequest, SetRequest};
use super::*;
use crate::crypto::x25519::PrivateKey;
use crate::dataplane::HandshakeDatagram;
use crate::dataplane::handshakes::UNDER_LOAD;
use crate::io::LocalAddr;
use crate::noise::cookie::{Gate, Verdict};
use crate::noise::session::{RecvSession, Role, SendSession};
use crate::routing::RouteTable;
use crate::wire::message::{self, DATA_OVERHEAD, MessageKind, classify};
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;

pub(super) const WORKERS: u8 = 3;

/// A seeded generator (SplitMix64).
pub(super) struct Seeded(pub(super) u64);

impl Entropy for Seeded {
    fn fill(&mut self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            chunk.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes()[..chunk.len()]);
        }
    }
}

pub(super) fn private(seed: u8) -> PrivateKey {
    PrivateKey::from_bytes([seed; 32])
}

pub(super) fn public(seed: u8) -> PublicKey {
    private(seed).public()
}

pub(super) fn prefix(text: &str) -> Prefix {
    let (addr, len) = text.split_once('/').unwrap();
    Prefix::new(addr.parse().unwrap(), len.parse().unwrap()).unwrap()
}

pub(super) fn allow(text: &str) -> AllowedIp {
    match text.strip_prefix('-') {
        Some(text) => AllowedIp { prefix: prefix(text), remove: true },
        None => AllowedIp { prefix: prefix(text), remove: false },
    }
}

pub(super) fn at(mono: Instant) -> Now {
    Now { mono, wall: Duration::from_secs(1_700_000_000) + mono.since(Instant::from_nanos(0)) }
}

/// No bind is expected.
pub(super) fn no_bind(_: BindRequest) -> std::io::Result<u16> {
    panic!("bound without need")
}

/// A session that a worker would receive on; the sending half until it takes effect.
pub(super) struct Receiving {
    peer: PeerId,
    session: Box<RecvSession>,
    send: Option<Arc<SendSession>>,
}

/// A device and what its workers would hold.
pub(super) struct Side {
    pub(super) device: Device,
    pub(super) addr: SocketAddr,
    pub(super) bind_answer: Result<u16, i32>,
    pub(super) sends: VecDeque<(Endpoint, HandshakeDatagram)>,
    pub(super) keepalives: VecDeque<PeerId>,
    pub(super) peers: HashMap<PeerId, Arc<PeerShared>>,
    pub(super) send: HashMap<PeerId, Arc<SendSession>>,
    pub(super) receive: HashMap<u32, Receiving>,
    pub(super) routes: Vec<Arc<RouteTable>>,
    pub(super) steer: Vec<(Prefix, Option<Target>)>,
    pub(super) binds: Vec<Option<BindRequest>>,
    pub(super) purged: Vec<PeerId>,
    pub(super) identities: usize,
    gate: Option<Gate>,
    /// Sessions that took effect, not reported yet.
    confirmed: Vec<(PeerId, u32)>,
    /// Names of the outputs in order, those for all workers once.
    pub(super) log: Vec<&'static str>,
    /// The slot of the peer in question, where there are more.
    pub(super) only: Option<u32>,
}

impl Side {
    pub(super) fn new(seed: u8) -> Side {
        Side {
            device: Device::new(WorkerCount::nearest(WORKERS.into()), Box::new(Seeded(u64::from(seed)))),
            addr: SocketAddr::from(([192, 0, 2, seed], 51820)),
            bind_answer: Ok(51820),
            sends: VecDeque::new(),
            keepalives: VecDeque::new(),
            peers: HashMap::new(),
            send: HashMap::new(),
            receive: HashMap::new(),
            routes: Vec::new(),
            steer: Vec::new(),
            binds: Vec::new(),
            purged: Vec::new(),
            identities: 0,
            gate: None,
            confirmed: Vec::new(),
            log: Vec::new(),
            only: None,
        }
    }

    pub(super) fn apply(&mut self, now: Instant, request: &SetRequest) {
        self.device.apply(at(now), request, &mut no_bind).unwrap();
        self.drain();
    }

    pub(super) fn event(&mut self, now: Instant, event: Event) {
        self.device.handle_event(at(now), event);
        self.drain();
    }

    /// Reports the sessions that took effect.
    pub(super) fn report(&mut self, now: Instant) {
        for (peer, index) in std::mem::take(&mut self.confirmed) {
            self.event(now, Event::Confirmed(peer, index));
        }
    }

    /// The only peer, or that of [`Self::only`].
    pub(super) fn peer(&self) -> PeerId {
        if let Some(slot) = self.only {
            return *self.peers.keys().find(|id| id.slot == slot).unwrap();
        }
        assert_eq!(self.peers.len(), 1);
        *self.peers.keys().next().unwrap()
    }

    pub(super) fn endpoint(&self) -> Option<Endpoint> {
        self.peers[&self.peer()].sending.load().endpoint()
    }

    /// Goes on with what is done for a few peers at a time, until it is done for all.
    pub(super) fn settle(&mut self, now: Instant) {
        while self.device.poll_timeout().is_some_and(|due| due <= now) {
            self.device.handle_timeout(at(now));
            self.drain();
        }
    }

    pub(super) fn drain(&mut self) {
        let mut next_worker = 0;
        let mut confirmed = Vec::new();
        while let Some(output) = self.device.poll_output() {
            let Output::Control(worker, control) = output else {
                assert_eq!(next_worker, 0);
                self.edge(output);
                continue;
            };
            match control {
                Control::Install(peer, session, send) => {
                    let (index, peer) = (session.local_index(), peer.id);
                    assert_eq!(worker, index as u8);
                    self.log.push("Install");
                    let begun = session.role() == Role::Initiator;
                    let receiving = Receiving { peer, session, send: Some(send) };
                    assert!(self.receive.insert(index, receiving).is_none());
                    confirmed.extend(begun.then_some(index));
                }
                Control::Drop(id, index) => {
                    assert_eq!(worker, index as u8);
                    self.log.push("Drop");
                    let receiving = self.receive.remove(&index);
                    assert!(
                        receiving.is_some_and(|receiving| receiving.peer == id),
                        "dropped what it never had"
                    );
                    self.send.retain(|_, send| send.local_index() != index);
                }
                Control::Keepalive(peer) | Control::Confirm(peer) => {
                    let owners = self.receive.iter().filter(|(_, session)| session.peer == peer.id);
                    assert!(owners.map(|(&index, _)| index as u8).any(|owner| owner == worker));
                    self.log.push("Keepalive");
                    self.keepalives.push_back(peer.id);
                }
                Control::Send(slot, endpoint, datagram) => {
                    assert!(self.peers.keys().any(|id| id.slot == slot));
                    let index = message::index(datagram.bytes()).unwrap();
                    assert_eq!(worker, index as u8);
                    self.log.push("Send");
                    self.sends.push_back((endpoint, datagram));
                }
                control => {
                    // Those for all workers come as one run over them.
                    assert_eq!(worker, next_worker);
                    next_worker = (next_worker + 1) % WORKERS;
                    if worker == 0 {
                        self.everywhere(control);
                    }
                }
            }
        }
        assert_eq!(next_worker, 0);
        self.note_staged();
        confirmed.into_iter().for_each(|index| self.take_effect(index));
    }

    /// Every worker has frames staged for every peer.
    fn note_staged(&self) {
        for peer in self.peers.values() {
            (0..WORKERS).for_each(|worker| peer.note_staged(worker));
        }
    }

    /// A session takes effect as in the worker, which reports it.
    fn take_effect(&mut self, index: u32) {
        let Some(receiving) = self.receive.get_mut(&index) else { return };
        let (peer, Some(send)) = (receiving.peer, receiving.send.take()) else { return };
        if self.send.get(&peer).is_none_or(|before| before.born() < send.born()) {
            self.send.insert(peer, send);
        }
        self.confirmed.push((peer, index));
    }

    fn everywhere(&mut self, control: Control) {
        self.log.push(match control {
            Control::Identity(keys) => {
                self.identities += 1;
                self.gate = keys.map(|keys| Gate::new(*keys, 0));
                "Identity"
            }
            Control::Routes(table, directory) => {
                self.routes.push(table);
                self.peers = directory.iter().map(|peer| (peer.id, Arc::clone(peer))).collect();
                let left = self.receive.values().find(|receiving| !self.peers.contains_key(&receiving.peer));
                assert!(left.is_none(), "a session outlived its peer");
                "Routes"
            }
            Control::SendStaged(id) => {
                let endpoint = self.peers[&id].sending.load().endpoint();
                assert!(
                    self.send.contains_key(&id) || endpoint.is_some(),
                    "something to send with, or to ask"
                );
                "SendStaged"
            }
            Control::PurgeStaged(id) => {
                self.purged.push(id);
                "PurgeStaged"
            }
            Control::Mtu(_) => "Mtu",
            Control::RouteMtus(_) => "RouteMtus",
            _ => panic!("not for all workers"),
        });
    }

    fn edge(&mut self, output: Output) {
        match output {
            Output::Bind(request) => {
                self.log.push("Bind");
                self.binds.push(request);
                if request.is_some() {
                    self.device.bound(self.bind_answer.map_err(std::io::Error::from_raw_os_error));
                }
            }
            Output::Steer(prefix, target) => self.steer.push((prefix, target)),
            Output::Control(..) => unreachable!(),
        }
    }

    /// What a worker makes of an arriving handshake message, while so many wait, and the device of that.
    pub(super) fn receive_handshake(
        &mut self,
        now: Instant,
        from: SocketAddr,
        datagram: HandshakeDatagram,
        waiting: usize,
    ) {
        let (mut proven, bytes) = (false, datagram.bytes());
        if let Some(MessageKind::Initiation | MessageKind::Response) = classify(bytes)
            && let Some(gate) = &mut self.gate
        {
            match gate.judge(bytes, from, now, waiting >= UNDER_LOAD) {
                Verdict::Forged | Verdict::Unanswered => return,
                Verdict::Cookie(reply) => {
                    let datagram = HandshakeDatagram::new(&reply).unwrap();
                    return self.sends.push_back((Endpoint { addr: from, from: None }, datagram));
                }
                Verdict::Pass { proven: known } => proven = known,
            }
        }
        let to = Some(LocalAddr { ip: self.addr.ip(), interface: 7 });
        let before = self.settled();
        self.device.handle_handshake(at(now), IncomingHandshake { datagram, from, to, proven });
        assert_eq!(self.settled(), before + 1, "one message, one count: {:?}", self.device.stats());
        self.drain();
    }

    /// How many handshake messages were accepted, or dropped for a reason.
    pub(super) fn settled(&self) -> u64 {
        let counters = self.device.stats().snapshot().into_iter();
        let ends = |name: &str| name.starts_with("dropped_") || name.ends_with("_accepted");
        counters.filter(|(name, _)| ends(name)).map(|(_, count)| count).sum()
    }

    /// Seals a keepalive as the worker would.
    fn seal(&self, now: Instant, id: PeerId) -> Option<(u32, [u8; DATA_OVERHEAD])> {
        let session = self.send.get(&id)?;
        let mut train = [0; DATA_OVERHEAD];
        session.seal_train(session.reserve(1)?, &mut train, DATA_OVERHEAD);
        self.peers[&id].authenticated_sent(now);
        Some((session.remote_index(), train))
    }

    /// Opens it, and reports as the worker would. False: no such session, or not authentic.
    fn open(&mut self, now: Instant, index: u32, mut train: [u8; DATA_OVERHEAD]) -> bool {
        let Some(receiving) = self.receive.get_mut(&index) else { return false };
        if !receiving.session.open_train(&mut train, DATA_OVERHEAD).fresh.is_ok(0) {
            return false;
        }
        self.peers[&receiving.peer].authenticated_received(now);
        self.take_effect(index);
        self.report(now);
        true
    }
}

/// Two devices that are each other's peers, and a wire that loses nothing unless told to.
pub(super) struct Pair {
    pub(super) a: Side,
    pub(super) b: Side,
    pub(super) now: Instant,
    pub(super) lossy: bool,
}

impl Pair {
    /// Keys and peers set, both up; only `a` knows where the other is.
    pub(super) fn new() -> Pair {
        let now = Instant::START + Duration::from_secs(1000);
        let (mut a, mut b) = (Side::new(1), Side::new(2));
        let to_b = PeerRequest { endpoint: Some(b.addr), ..PeerRequest::new(public(2)) };
        for (side, seed, peer) in [(&mut a, 1, to_b), (&mut b, 2, PeerRequest::new(public(1)))] {
            let request = SetRequest {
                private_key: Some(Some(private(seed))),
                peers: vec![peer],
                ..SetRequest::default()
            };
            side.apply(now, &request);
            side.device.set_up(at(now), true);
            side.drain();
            assert!(side.device.is_up());
        }
        Pair { a, b, now, lossy: false }
    }

    /// As [`Self::new`], with a handshake done.
    pub(super) fn connected() -> Pair {
        let mut pair = Pair::new();
        pair.handshake();
        pair
    }

    /// `a` wants a handshake, and what it takes is exchanged.
    pub(super) fn handshake(&mut self) {
        self.a.event(self.now, Event::NeedHandshake(self.a.peer()));
        self.exchange();
    }

    /// Delivers until nothing is under way.
    pub(super) fn exchange(&mut self) {
        loop {
            let moved = Self::deliver(self.now, self.lossy, &mut self.a, &mut self.b)
                | Self::deliver(self.now, self.lossy, &mut self.b, &mut self.a);
            if !moved {
                return;
            }
        }
    }

    fn deliver(now: Instant, lossy: bool, from: &mut Side, to: &mut Side) -> bool {
        let mut moved = false;
        while let Some((endpoint, datagram)) = from.sends.pop_front() {
            moved = true;
            if endpoint.addr == to.addr && !lossy {
                to.receive_handshake(now, from.addr, datagram, 0);
                to.report(now);
            }
        }
        while let Some(id) = from.keepalives.pop_front() {
            moved = true;
            if let Some((index, train)) = from.seal(now, id)
                && !lossy
            {
                to.open(now, index, train);
            }
        }
        moved
    }

    /// Lets time pass, doing what falls due.
    pub(super) fn advance(&mut self, by: Duration) {
        let end = self.now + by;
        self.exchange();
        loop {
            let next = [&self.a, &self.b].into_iter().filter_map(|side| side.device.poll_timeout()).min();
            self.now = next.unwrap_or(end).clamp(self.now, end);
            for side in [&mut self.a, &mut self.b] {
                side.device.handle_timeout(at(self.now));
                side.drain();
            }
            self.exchange();
            if self.now == end && next.is_none_or(|next| next > end) {
                return;
            }
        }
    }

    /// Whether a keepalive of `a` opens at `b`, and one of `b` at `a`.
    pub(super) fn talks(&mut self) -> (bool, bool) {
        let (a, b) = (self.a.peer(), self.b.peer());
        let there = self.a.seal(self.now, a);
        let back = self.b.seal(self.now, b);
        (
            there.is_some_and(|(index, train)| self.b.open(self.now, index, train)),
            back.is_some_and(|(index, train)| self.a.open(self.now, index, train)),
        )
    }
}
