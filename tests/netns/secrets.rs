//! Keys leave memory together with what they were for: the memory of the running program is searched for them from outside.
//!
//! The other end of every handshake is played by hand, since only who takes part in a handshake knows its keys.

use crate::implementation::{Device, Implementation, Io, ringtun_itself};
use crate::lab::{Host, ready, wait_for};
use crate::spy::{Secret, Spy};
use crate::updown::{Site, peer};
use crate::upgrade::{process, try_upgrade};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ringtun::crypto::random::{Entropy, SystemEntropy};
use ringtun::crypto::x25519::{PrivateKey, PublicKey, SharedSecret};
use ringtun::noise::INITIATION_INTERVAL;
use ringtun::noise::cookie::CookieJar;
use ringtun::noise::handshake::{Handshake, Identity, IncomingInitiation};
use ringtun::noise::session::{RecvSession, SendSession, SessionKeys};
use ringtun::noise::tai64n::Tai64NClock;
use ringtun::time::Instant;
use ringtun::wire::message::{DATA_HEADER_LEN, DATA_OVERHEAD, Initiation, MessageKind, Response, classify};
use std::fmt::Write;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long the program may take to let go of a key.
const SOON: Duration = Duration::from_secs(5);
/// Time in which a tunnel has looked at its file, twice.
const LOOKS: Duration = Duration::from_secs(12);
/// Outer ports of the device and of its peer, both on the loopback interface.
const PORT: u16 = 51820;
const PUPPET_PORT: u16 = 51821;
/// Echo requests sent over a session at once: enough that some of the answers are sealed together.
const BURST: usize = 64;
/// Sessions that a peer begins: the first of them, and the one before, are forgotten for the later ones.
const ROUNDS: usize = 6;
/// Peers beside the one that speaks: enough that what holds them grows.
const OTHERS: usize = 20;

/// The system's randomness, with what was drawn.
#[derive(Default)]
struct Recorded(Vec<[u8; 32]>);

impl Entropy for Recorded {
    fn fill(&mut self, out: &mut [u8]) {
        SystemEntropy.fill(out);
        self.0.extend(<[u8; 32]>::try_from(&*out).ok());
    }
}

/// A session with the device, seen from the other end.
struct Session {
    send: Arc<SendSession>,
    receive: Box<RecvSession>,
    /// What both ends may know only as long as the session lives.
    keys: [Secret; 2],
    /// What both ends may know only until the handshake is over.
    agreed: Vec<Secret>,
}

/// The device's peer.
struct Puppet {
    socket: UdpSocket,
    identity: Arc<Identity>,
    device: PublicKey,
    handshake: Handshake,
    jar: CookieJar,
    clock: Tai64NClock,
    entropy: Recorded,
    index: u32,
    begun: std::time::Instant,
}

impl Puppet {
    fn new(host: &Host, device: PublicKey, psk: [u8; 32]) -> Puppet {
        let socket = host.within(|| UdpSocket::bind((Ipv4Addr::LOCALHOST, PUPPET_PORT)).expect("a socket"));
        socket.connect((Ipv4Addr::LOCALHOST, PORT)).expect("an address");
        socket.set_read_timeout(Some(SOON)).expect("a timeout");
        Puppet {
            socket,
            identity: Arc::new(Identity::new(private_key())),
            device,
            handshake: Handshake::new(device, SharedSecret(psk)),
            jar: CookieJar::new(&device),
            clock: Tai64NClock::default(),
            entropy: Recorded::default(),
            index: 0,
            begun: std::time::Instant::now(),
        }
    }

    fn now(&self) -> Instant {
        Instant::START + self.begun.elapsed()
    }

    /// What the static keys agree on.
    fn static_secret(&self) -> Secret {
        agreed("what the static keys agree on", self.identity.private(), &self.device)
    }

    /// The next datagram of one kind.
    fn hear(&self, kind: MessageKind) -> Vec<u8> {
        let mut bytes = [0; 2048];
        loop {
            let len = self.socket.recv(&mut bytes).unwrap_or_else(|error| panic!("no {kind:?}: {error}"));
            if classify(&bytes[..len]) == Some(kind) {
                return bytes[..len].to_vec();
            }
        }
    }

    /// Begins a session and confirms it with what it sends.
    fn begin(&mut self) -> Session {
        let now = self.now();
        self.index += 1;
        let stamp = self.clock.stamp(SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock"));
        let message = self.handshake.initiate(&self.identity, self.index, stamp, now, &mut self.entropy);
        let mut message = message.expect("an initiation");
        let ephemeral = PrivateKey::from_bytes(*self.entropy.0.last().expect("an ephemeral key"));
        self.jar.seal(&mut message, now);
        self.socket.send(&message).expect("sent");
        let response = Response::parse(&self.hear(MessageKind::Response)).expect("a response");
        let keys = self.handshake.complete(&self.identity, &response).expect("a session");
        let remote = PublicKey(response.ephemeral);
        let agreed = vec![
            agreed("what ephemeral and static key agree on", &ephemeral, &self.device),
            agreed("what both ephemeral keys agree on", &ephemeral, &remote),
            agreed("what static and ephemeral key agree on", self.identity.private(), &remote),
        ];
        self.session(keys, agreed)
    }

    /// Answers the handshake that the device begins.
    fn answer(&mut self) -> Session {
        let now = self.now();
        let initiation = Initiation::parse(&self.hear(MessageKind::Initiation)).expect("an initiation");
        let incoming = IncomingInitiation::open(&self.identity, &initiation).expect("an initiation to us");
        self.index += 1;
        let answer = self.handshake.respond(&self.identity, incoming, self.index, now, &mut self.entropy);
        let (mut message, keys) = answer.expect("an answer");
        let ephemeral = PrivateKey::from_bytes(*self.entropy.0.last().expect("an ephemeral key"));
        self.jar.seal(&mut message, now);
        self.socket.send(&message).expect("sent");
        let remote = PublicKey(initiation.ephemeral);
        let agreed = vec![
            agreed("what ephemeral and static key agree on", self.identity.private(), &remote),
            agreed("what both ephemeral keys agree on", &ephemeral, &remote),
            agreed("what static and ephemeral key agree on", &ephemeral, &self.device),
        ];
        self.session(keys, agreed)
    }

    fn session(&self, keys: SessionKeys, agreed: Vec<Secret>) -> Session {
        // What one end sends with is what the other receives with.
        let secrets = [Secret::raw("a receiving key", keys.send), Secret::raw("a sending key", keys.receive)];
        let (send, receive) = keys.into_halves(self.now());
        Session { send, receive, keys: secrets, agreed }
    }

    /// Sends a burst of echo requests, and has the answers.
    fn talk(&self, session: &mut Session) {
        let ping = echo_request();
        let first = session.send.reserve(BURST as u64).expect("counters");
        for counter in first..first + BURST as u64 {
            let mut message = vec![0; ping.len() + DATA_OVERHEAD];
            message[DATA_HEADER_LEN..DATA_HEADER_LEN + ping.len()].copy_from_slice(&ping);
            let len = message.len();
            session.send.seal_train(counter, &mut message, len);
            self.socket.send(&message).expect("sent");
        }
        let mut answers = 0;
        while answers < BURST {
            let mut message = self.hear(MessageKind::Data);
            let len = message.len();
            let fresh = session.receive.open_train(&mut message, len).fresh.is_ok(0);
            // Type 0 is an echo reply; the device may send requests, and keepalives.
            answers +=
                usize::from(fresh && message.get(DATA_HEADER_LEN + 20) == Some(&0) && len > DATA_OVERHEAD);
        }
    }
}

fn private_key() -> PrivateKey {
    let mut bytes = [0; 32];
    SystemEntropy.fill(&mut bytes);
    PrivateKey::from_bytes(bytes)
}

fn agreed(name: &'static str, private: &PrivateKey, public: &PublicKey) -> Secret {
    Secret::raw(name, private.agree(public).expect("no key of low order").0)
}

/// An ICMP echo request of the peer to the device, a multiple of 16 bytes long, as a packet is padded to.
fn echo_request() -> [u8; 64] {
    let mut packet = [0; 64];
    packet[..20].copy_from_slice(&[0x45, 0, 0, 64, 0, 1, 0, 0, 64, 1, 0, 0, 10, 99, 0, 2, 10, 99, 0, 1]);
    packet[20] = 8;
    let (header, icmp) = packet.split_at_mut(20);
    for (part, at) in [(header, 10), (icmp, 2)] {
        let sum: u32 = part.as_chunks().0.iter().map(|&pair| u32::from(u16::from_be_bytes(pair))).sum();
        let folded = !((sum & 0xffff) + (sum >> 16)) as u16;
        part[at..at + 2].copy_from_slice(&folded.to_be_bytes());
    }
    packet
}

/// A device with one peer: the puppet.
struct Stage {
    host: Arc<Host>,
    device: Device,
    private: PrivateKey,
    psk: [u8; 32],
    puppet: Puppet,
    others: Vec<Secret>,
    /// The process that has the tunnel.
    pid: u32,
}

impl Stage {
    fn new(io: Io) -> Stage {
        let host = Arc::new(Host::namespace());
        let mut device = Device::start(&host, Implementation::Ringtun { workers: 2, io });
        let pid = device.process().pid();
        let name = &device.name;
        host.run(&format!("ip addr add 10.99.0.1/24 dev {name} && ip link set {name} up"));
        let private = private_key();
        let psk = private_key().to_bytes();
        let puppet = Puppet::new(&host, private.public(), psk);
        let mut stage = Stage { others: Vec::new(), host, device, private, psk, puppet, pid };
        let text = format!("[Interface]\nPrivateKey = {}\nListenPort = {PORT}\n", *stage.private.to_base64());
        let done = stage.host.try_run_with_file(&text, &format!("wg setconf {} $FILE", stage.device.name));
        done.expect("a configuration");
        stage.others = stage.add_peers();
        stage
    }

    /// The puppet becomes a peer, with others behind it; the preshared keys of those.
    fn add_peers(&self) -> Vec<Secret> {
        let mut text = format!(
            "[Peer]\nPublicKey = {}\nPresharedKey = {}\nAllowedIPs = 10.99.0.2/32\nEndpoint = 127.0.0.1:{PUPPET_PORT}\n",
            self.puppet.identity.public().to_base64(),
            STANDARD.encode(self.psk)
        );
        let mut keys = Vec::new();
        for _ in 0..OTHERS {
            let (public, psk) = (private_key().public(), private_key().to_bytes());
            let _ = write!(
                text,
                "[Peer]\nPublicKey = {}\nPresharedKey = {}\n",
                public.to_base64(),
                STANDARD.encode(psk)
            );
            keys.push(Secret::told("another peer's preshared key", psk));
        }
        let done = self.host.try_run_with_file(&text, &format!("wg addconf {} $FILE", self.device.name));
        done.expect("peers");
        keys
    }

    /// `wg set` on the device.
    fn set(&self, words: &str) {
        self.host.run(&format!("wg set {} {words}", self.device.name));
    }

    #[track_caller]
    fn expect_alive(&self, secrets: &[Secret]) {
        expect_alive(self.pid, secrets);
    }

    #[track_caller]
    fn expect_gone(&self, when: &str, secrets: &[Secret]) {
        expect_gone(self.pid, when, secrets);
    }
}

/// The secrets are there: the search finds what is to be found.
#[track_caller]
fn expect_alive(pid: u32, secrets: &[Secret]) {
    let spy = Spy::on(pid);
    for secret in secrets {
        assert!(!spy.find(std::slice::from_ref(secret)).is_empty(), "{} is nowhere", secret.name);
    }
}

/// The secrets are gone, or soon will be.
#[track_caller]
fn expect_gone(pid: u32, when: &str, secrets: &[Secret]) {
    let spy = Spy::on(pid);
    let mut found = Vec::new();
    let gone = wait_for(SOON, || {
        found = spy.find(secrets);
        found.is_empty().then_some(())
    });
    assert!(gone.is_some(), "{when}:\n{}", found.join("\n"));
}

/// The device's own handshake, then those of its peer, each with its traffic; the sessions.
fn shake_hands(stage: &mut Stage) -> Vec<Session> {
    let ping = stage.host.start("ping", &["-c", "1", "-W", "1", "10.99.0.2"]);
    let mut first = stage.puppet.answer();
    // Until it has spoken it may not have taken the session in.
    stage.puppet.hear(MessageKind::Data);
    stage.puppet.talk(&mut first);
    drop(ping);
    let mut sessions = vec![first];
    for _ in 0..ROUNDS {
        std::thread::sleep(INITIATION_INTERVAL * 2);
        let mut session = stage.puppet.begin();
        stage.puppet.talk(&mut session);
        sessions.push(session);
    }
    sessions
}

fn keys_leave_with_their_sessions_and_peer(io: Io) {
    let mut stage = Stage::new(io);
    let sessions = shake_hands(&mut stage);
    stage.expect_alive(&[stage.puppet.static_secret()]);
    keys_leave(&stage, &sessions);
}

fn keys_that_were_handed_over_leave_as_others(io: Io) {
    let mut stage = Stage::new(io);
    let mut sessions = shake_hands(&mut stage);
    let private = [Secret::told("the private key", stage.private.to_bytes())];
    // What is said goes on the latest session.
    let talk = |stage: &Stage, sessions: &mut Vec<Session>| stage.puppet.talk(&mut sessions[ROUNDS]);
    for words in ["", "--workers 3"] {
        try_upgrade(&stage.host, &stage.device.name, words).unwrap();
        stage.pid = process(&stage.host, &stage.device.name);
        talk(&stage, &mut sessions);
    }
    stage.expect_alive(&private);
    keys_leave(&stage, &sessions);
    stage.set("private-key /dev/null");
    stage.expect_gone("after the private key was taken away", &private);
}

/// The keys of these sessions, of which the last is in use, leave when they should.
fn keys_leave(stage: &Stage, sessions: &[Session]) {
    let agreed: Vec<Secret> = sessions.iter().flat_map(|session| session.agreed.clone()).collect();
    stage.expect_gone("after the handshakes", &agreed);
    let last = &sessions[ROUNDS].keys;
    stage.expect_alive(last);
    // For receiving, several of the later sessions stay; for sending, none.
    stage.expect_gone("two sessions after", &sessions[0].keys);
    stage.expect_gone("once another session sends", &sessions[ROUNDS - 1].keys[1..]);

    let own = [Secret::told("the preshared key", stage.psk), stage.puppet.static_secret()];
    stage.expect_alive(&own[..1]);
    stage.expect_alive(&stage.others.clone());
    let peers = stage.host.run(&format!("wg show {} peers", stage.device.name));
    for peer in peers.lines() {
        stage.set(&format!("peer {peer} remove"));
    }
    let mut keys: Vec<Secret> = sessions.iter().flat_map(|session| session.keys.clone()).collect();
    keys.extend(own.into_iter().chain(stage.others.clone()));
    stage.expect_gone("after the peers' removal", &keys);
}

fn private_keys_leave_with_all_that_came_of_them(io: Io) {
    let mut stage = Stage::new(io);
    let sessions = shake_hands(&mut stage);
    let private = Secret::told("the private key", stage.private.to_bytes());
    stage.expect_alive(std::slice::from_ref(&private));
    let mut old: Vec<Secret> = sessions.iter().flat_map(|session| session.keys.clone()).collect();
    old.extend([private, stage.puppet.static_secret()]);
    let next = private_key();
    let name = stage.device.name.clone();
    let done = stage.host.try_run_with_file(&next.to_base64(), &format!("wg set {name} private-key $FILE"));
    done.expect("another private key");
    stage.expect_gone("after another private key came", &old);
    let next = [Secret::told("the next private key", next.to_bytes())];
    stage.expect_alive(&next);
    stage.host.run(&format!("wg showconf {name} && wg show {name} dump"));
    stage.set("private-key /dev/null");
    stage.expect_gone("after the private key was taken away", &next);
}

/// The tunnel that `ringtun up` brings up reads its file, and asks itself how things stand, every few seconds.
#[test]
fn keys_of_a_file_are_nowhere_in_memory_once_the_tunnel_has_them_no_more() {
    let Some(site) = Site::new() else { return };
    let mut secrets = vec![Secret::told("the private key", bytes_of(&site.private_key))];
    let mut sections = String::new();
    for _ in 0..OTHERS {
        let psk = private_key().to_base64();
        sections += &peer(&format!("PresharedKey = {}", *psk));
        secrets.push(Secret::told("a preshared key", bytes_of(&psk)));
    }
    site.write("ListenPort = 4500", &sections);
    site.done("up");
    std::thread::sleep(LOOKS);
    let pids = site.host.run(&format!("ip netns pids {}", site.host.name()));
    // The processes that list them are among them, and gone by now.
    let is_ringtun = |pid: &&str| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "ringtun")
    };
    let pid = pids.lines().find(is_ringtun).and_then(|pid| pid.parse().ok()).expect("a process");
    expect_alive(pid, &secrets);
    let (name, host) = (&site.name, &site.host);
    host.run(&format!("for peer in $(wg show {name} peers); do wg set {name} peer $peer remove; done"));
    host.run(&format!("wg set {name} private-key /dev/null"));
    expect_gone(pid, "after the keys were taken away", &secrets);
}

fn bytes_of(key: &str) -> [u8; 32] {
    STANDARD.decode(key).expect("base64").try_into().expect("32 bytes")
}

fn on_both_backends(test: fn(Io)) {
    if !ready() || !ringtun_itself() {
        return;
    }
    [Io::Uring, Io::Syscalls].into_iter().for_each(test);
}

#[test]
fn a_session_key_is_nowhere_in_memory_once_its_session_or_peer_is_gone() {
    on_both_backends(keys_leave_with_their_sessions_and_peer);
}

#[test]
fn a_key_that_was_handed_over_is_nowhere_in_memory_once_its_session_or_peer_is_gone() {
    on_both_backends(keys_that_were_handed_over_leave_as_others);
}

#[test]
fn a_private_key_is_nowhere_in_memory_once_another_takes_its_place() {
    on_both_backends(private_keys_leave_with_all_that_came_of_them);
}
