//! A peer played by hand, message by message, so that it can do what no device of ours would.

use crate::lab::{Lab, hex, random_key, secs};
use ringtun::crypto::x25519::SharedSecret;
use ringtun::noise::cookie::CookieJar;
use ringtun::noise::handshake::{Handshake, Identity};
use ringtun::noise::session::{RecvSession, SendSession, SessionKeys};
use ringtun::noise::tai64n::{Tai64N, Tai64NClock};
use ringtun::sim::Datagram;
use ringtun::wire::message::{
    CookieReply, DATA_HEADER_LEN, DATA_OVERHEAD, DataHeader, MessageKind, Response, TAG_LEN,
};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// Inner prefix of every puppet: 10.9.0.0/24.
pub(crate) fn puppet_inner() -> IpAddr {
    Ipv4Addr::new(10, 9, 0, 1).into()
}

/// A peer of site 0.
pub(crate) struct Puppet {
    pub(crate) addr: SocketAddr,
    pub(crate) identity: Arc<Identity>,
    pub(crate) jar: CookieJar,
    pub(crate) handshake: Handshake,
    clock: Tai64NClock,
    index: u32,
}

/// Both halves of a session with a puppet.
pub(crate) struct Session {
    pub(crate) send: Arc<SendSession>,
    pub(crate) receive: Box<RecvSession>,
}

impl Puppet {
    /// A peer of site 0, at an address of its own.
    pub(crate) fn new(lab: &mut Lab) -> Puppet {
        let mut puppet = Puppet::stranger(lab, SocketAddr::from(([198, 51, 100, 9], 9999)));
        puppet.introduce(lab, "10.9.0.0/24");
        puppet
    }

    /// Someone who is no peer (yet).
    pub(crate) fn stranger(lab: &mut Lab, addr: SocketAddr) -> Puppet {
        lab.world.play(addr);
        let identity = Arc::new(Identity::new(random_key(&mut lab.world)));
        let remote = lab.public(0);
        Puppet {
            addr,
            jar: CookieJar::new(&remote),
            handshake: Handshake::new(remote, SharedSecret([0; 32])),
            identity,
            clock: Tai64NClock::default(),
            index: 0x1000,
        }
    }

    /// Makes it a peer of site 0.
    pub(crate) fn introduce(&mut self, lab: &mut Lab, allowed: &str) {
        lab.set(0, &format!("public_key={}\nallowed_ip={allowed}\n", hex(&self.identity.public().0)));
    }

    /// The next timestamp at `wall`.
    pub(crate) fn stamp(&mut self, wall: Duration) -> Tai64N {
        self.clock.stamp(wall)
    }

    /// An initiation, both MACs in place.
    pub(crate) fn initiation(&mut self, lab: &mut Lab) -> Vec<u8> {
        let wall = lab.world.wall();
        let timestamp = self.stamp(wall);
        self.initiation_at(lab, timestamp)
    }

    pub(crate) fn initiation_at(&mut self, lab: &mut Lab, timestamp: Tai64N) -> Vec<u8> {
        self.index += 1;
        let now = lab.world.now();
        let rng = lab.world.rng();
        let mut message = self.handshake.initiate(&self.identity, self.index, timestamp, now, rng).unwrap();
        self.jar.seal(&mut message, now);
        message.to_vec()
    }

    /// Sends bytes to site 0 from its address, and lets them arrive and be answered.
    pub(crate) fn say(&self, lab: &mut Lab, bytes: &[u8]) {
        self.say_from(lab, self.addr, bytes);
    }

    pub(crate) fn say_from(&self, lab: &mut Lab, from: SocketAddr, bytes: &[u8]) {
        let to = lab.sites[0].addr;
        lab.world.inject(from, to, bytes);
        lab.world.run_for(Duration::from_millis(100));
    }

    /// The next datagram of one kind that came to `addr`; others before it are dropped.
    pub(crate) fn hear_at(&self, lab: &mut Lab, addr: SocketAddr, kind: MessageKind) -> Option<Datagram> {
        std::iter::from_fn(|| lab.world.take_outside(addr)).find(|datagram| datagram.kind() == Some(kind))
    }

    pub(crate) fn hear(&self, lab: &mut Lab, kind: MessageKind) -> Option<Datagram> {
        self.hear_at(lab, self.addr, kind)
    }

    /// Takes a cookie reply that has come.
    pub(crate) fn take_cookie(&mut self, lab: &mut Lab) -> bool {
        let Some(datagram) = self.hear(lab, MessageKind::CookieReply) else { return false };
        let reply = CookieReply::parse(&datagram.bytes).unwrap();
        self.jar.accept(&reply, lab.world.now())
    }

    /// Completes a handshake with the response that has come.
    pub(crate) fn complete(&mut self, lab: &mut Lab) -> Option<Session> {
        let datagram = self.hear(lab, MessageKind::Response)?;
        let keys = self.handshake.complete(&self.identity, &Response::parse(&datagram.bytes)?).ok()?;
        Some(Session::new(keys, lab))
    }

    /// A handshake from first to last, confirmed by a keepalive with counter 0.
    pub(crate) fn connect(&mut self, lab: &mut Lab) -> Session {
        let initiation = self.initiation(lab);
        self.say(lab, &initiation);
        let session = self.complete(lab).unwrap();
        self.say(lab, &session.seal(0, &[]));
        session
    }

    /// Answers one initiation.
    pub(crate) fn answer(&mut self, lab: &mut Lab, datagram: &Datagram) -> Option<Session> {
        let (message, session) = self.prepare_answer(lab, datagram)?;
        self.say(lab, &message);
        Some(session)
    }

    /// The answer to an initiation, and the session that comes of it.
    pub(crate) fn prepare_answer(
        &mut self,
        lab: &mut Lab,
        datagram: &Datagram,
    ) -> Option<(Vec<u8>, Session)> {
        let initiation = ringtun::wire::message::Initiation::parse(&datagram.bytes)?;
        let incoming =
            ringtun::noise::handshake::IncomingInitiation::open(&self.identity, &initiation).ok()?;
        self.index += 1;
        let (identity, index, now) = (self.identity.clone(), self.index, lab.world.now());
        let (mut message, keys) =
            self.handshake.respond(&identity, incoming, index, now, lab.world.rng()).ok()?;
        self.jar.seal(&mut message, now);
        Some((message.to_vec(), Session::new(keys, lab)))
    }
}

impl Session {
    pub(crate) fn new(keys: SessionKeys, lab: &Lab) -> Session {
        let (send, receive) = keys.into_halves(lab.world.now());
        Session { send, receive }
    }

    /// A data message with any counter.
    pub(crate) fn seal(&self, counter: u64, inner: &[u8]) -> Vec<u8> {
        let padded = inner.len().next_multiple_of(16);
        let mut message = vec![0; padded + DATA_OVERHEAD];
        message[DATA_HEADER_LEN..DATA_HEADER_LEN + inner.len()].copy_from_slice(inner);
        let len = message.len();
        self.send.seal_train(counter, &mut message, len);
        assert_eq!(DataHeader::parse(&message).map(|header| header.counter), Some(counter));
        message
    }

    /// The padded content of a data message, if it is authentic and fresh.
    pub(crate) fn open(&mut self, datagram: &Datagram) -> Option<Vec<u8>> {
        let mut bytes = datagram.bytes.to_vec();
        let len = bytes.len();
        let content = self.receive.open_train(&mut bytes, len).fresh.is_ok(0);
        content.then(|| bytes[DATA_HEADER_LEN..len - TAG_LEN].to_vec())
    }
}

/// A site, a peer of it played by hand, and a confirmed session between them.
pub(crate) fn with_puppet(seed: u64) -> (Lab, Puppet, Session) {
    let mut lab = Lab::pair(seed);
    let mut puppet = Puppet::new(&mut lab);
    let session = puppet.connect(&mut lab);
    lab.world.run_for(secs(1));
    (lab, puppet, session)
}
