//! The other end of one of the many peers, played message by message.

use ringtun::crypto::x25519::{PrivateKey, PublicKey, SharedSecret};
use ringtun::noise::cookie::CookieJar;
use ringtun::noise::handshake::{Handshake, Identity, IncomingInitiation};
use ringtun::noise::session::{RecvSession, SendSession, SessionKeys};
use ringtun::noise::tai64n::Tai64NClock;
use ringtun::sim::{Flow, Inner, World};
use ringtun::wire::message::{DATA_HEADER_LEN, DATA_OVERHEAD, Initiation, Response};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

/// The outer address of the gateway.
pub(crate) fn gateway() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 51820))
}

/// The inner address of the gateway.
pub(crate) fn gateway_inner() -> SocketAddr {
    SocketAddr::from(([10, 200, 0, 1], 9))
}

/// The inner address of peer `number`.
pub(crate) fn inner(number: u32) -> IpAddr {
    let [_, a, b, c] = number.to_be_bytes();
    Ipv4Addr::new(10, a, b, c).into()
}

/// The other end of a peer.
pub(crate) struct Remote {
    pub(crate) number: u32,
    /// Where it is now.
    pub(crate) addr: SocketAddr,
    /// Whether it answers.
    pub(crate) answers: bool,
    /// How many data messages it opened.
    pub(crate) opened: u64,
    /// How many sessions it had.
    pub(crate) sessions: u32,
    pub(crate) identity: Arc<Identity>,
    jar: CookieJar,
    handshake: Handshake,
    clock: Tai64NClock,
    roams: u8,
    send: Option<Arc<SendSession>>,
    /// What it will send with when the gateway has spoken on it.
    next: Option<Arc<SendSession>>,
    receive: BTreeMap<u32, Box<RecvSession>>,
}

impl Remote {
    pub(crate) fn new(number: u32, key: PrivateKey, of: PublicKey) -> Remote {
        let mut remote = Remote {
            number,
            addr: gateway(),
            answers: true,
            opened: 0,
            sessions: 0,
            identity: Arc::new(Identity::new(key)),
            jar: CookieJar::new(&of),
            handshake: Handshake::new(of, SharedSecret([0; 32])),
            clock: Tai64NClock::default(),
            roams: 0,
            send: None,
            next: None,
            receive: BTreeMap::new(),
        };
        remote.roam();
        remote
    }

    /// Goes to another address.
    pub(crate) fn roam(&mut self) {
        self.roams += 1;
        let [_, a, b, c] = self.number.to_be_bytes();
        self.addr = SocketAddr::from(([20 + a, b, c, self.roams], 4500));
    }

    /// Learns that the gateway has another key. Sessions with the old one are of no use.
    pub(crate) fn learn(&mut self, of: PublicKey) {
        (self.jar, self.handshake) = (CookieJar::new(&of), Handshake::new(of, SharedSecret([0; 32])));
        self.forget();
    }

    /// Forgets all sessions.
    pub(crate) fn forget(&mut self) {
        (self.send, self.next) = (None, None);
        self.receive.clear();
    }

    /// Sends an inner packet to the gateway, or first the initiation that it takes.
    pub(crate) fn speak(&mut self, world: &mut World) {
        match self.send.clone().filter(|send| send.usable(world.now()) && !send.wants_rekey(world.now())) {
            Some(send) => self.say(world, &send),
            None => {
                let (index, stamp, now) = (self.index(), self.clock.stamp(world.wall()), world.now());
                let sent = self.handshake.initiate(&self.identity, index, stamp, now, world.rng());
                let mut message = sent.unwrap();
                self.jar.seal(&mut message, now);
                world.inject(self.addr, gateway(), &message);
            }
        }
    }

    fn say(&self, world: &mut World, send: &SendSession) {
        let flow = Flow::udp(SocketAddr::new(inner(self.number), 7), gateway_inner());
        let packet = Inner::new(flow, 0, vec![1; 20]).to_packet();
        let mut message = vec![0; packet.len() + DATA_OVERHEAD];
        message[DATA_HEADER_LEN..DATA_HEADER_LEN + packet.len()].copy_from_slice(&packet);
        let len = message.len();
        send.seal_train(send.reserve(1).unwrap(), &mut message, len);
        world.inject(self.addr, gateway(), &message);
    }

    /// Answers an initiation, if it is for this end.
    pub(crate) fn take_initiation(&mut self, world: &mut World, bytes: &[u8]) {
        let Some(initiation) = Initiation::parse(bytes).filter(|_| self.answers) else { return };
        let Ok(incoming) = IncomingInitiation::open(&self.identity, &initiation) else { return };
        let (index, now) = (self.index(), world.now());
        let answered = self.handshake.respond(&self.identity, incoming, index, now, world.rng());
        let Ok((mut message, keys)) = answered else { return };
        self.jar.seal(&mut message, now);
        world.inject(self.addr, gateway(), &message);
        self.next = Some(self.install(world, index, keys));
    }

    /// Completes its own handshake, and sends what it was begun for.
    pub(crate) fn take_response(&mut self, world: &mut World, bytes: &[u8]) {
        let Some(response) = Response::parse(bytes) else { return };
        let index = response.receiver;
        let Ok(keys) = self.handshake.complete(&self.identity, &response) else { return };
        self.send = Some(self.install(world, index, keys));
        self.speak(world);
    }

    fn install(&mut self, world: &World, index: u32, keys: SessionKeys) -> Arc<SendSession> {
        let (send, receive) = keys.into_halves(world.now());
        self.sessions += 1;
        self.receive.insert(index, receive);
        while self.receive.len() > 4 {
            self.receive.pop_first();
        }
        send
    }

    /// Opens a data message, and answers it if it is no keepalive.
    pub(crate) fn take_data(&mut self, world: &mut World, index: u32, bytes: &[u8]) {
        let Some(receive) = self.receive.get_mut(&index) else { return };
        let mut bytes = bytes.to_vec();
        let len = bytes.len();
        if receive.open_train(&mut bytes, len).fresh.is_ok(0) {
            self.opened += 1;
            self.send = self.next.take_if(|next| next.local_index() == index).or(self.send.take());
            if let Some(send) = self.send.clone().filter(|_| len > DATA_OVERHEAD) {
                self.say(world, &send);
            }
        }
    }

    /// Another receiver index, from which [`number_of`] knows this end.
    fn index(&self) -> u32 {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let next = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.number << 20 | next & 0xf_ffff
    }
}

/// The number of the end that drew a receiver index.
pub(crate) fn number_of(index: u32) -> usize {
    index as usize >> 20
}
