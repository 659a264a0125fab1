//! Two hosts at the ends of a tunnel, what is done to them, and what the wire saw.

use super::account::{self, Account};
use super::script::{Bend, Change, Side, Source, Step, Talk};
use ringtun::crypto::x25519::{PrivateKey, PublicKey};
use ringtun::noise::cookie::CookieJar;
use ringtun::sim::{
    Datagram, Flow, HostConfig, HostFaults, HostId, Inner, IoFaults, SimHost, Uplinks, World,
};
use ringtun::wire::message::{INITIATION_LEN, MessageKind, classify};
use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

pub(crate) const PORT: u16 = 51820;
/// Bytes of a segment of a super-packet.
const SEGMENT: u16 = 600;
/// How long a socket takes nothing at most: what waits for it longer may leave after what was sealed with a later session.
const LONGEST_BLOCK: Duration = Duration::from_secs(2);
/// Most datagrams that strangers who know a host's key send in a script: each may cost an agreement.
const MOST_FORGED: u32 = 24;

/// One end.
pub(crate) struct Site {
    id: HostId,
    key: PrivateKey,
    /// All keys that it ever had.
    pub(crate) publics: Vec<PublicKey>,
    /// What it sent into the tunnel.
    pub(crate) account: Account,
}

/// What the wire did and saw.
#[derive(Default)]
pub(crate) struct Wire {
    /// Which of the next datagrams are lost, from the lowest bit on.
    lose: u8,
    /// What was sent to strangers.
    pub(crate) to_strangers: Vec<MessageKind>,
}

pub(crate) struct Stage {
    pub(crate) world: World,
    pub(crate) sites: Vec<Site>,
    pub(crate) wire: Rc<RefCell<Wire>>,
    /// Whether controls take their time, so that nobody knows which of them the workers have.
    pub(crate) late: bool,
    /// How long sockets may have been blocked.
    waited: Duration,
    serial: u64,
    forged: u32,
}

/// An address of which nothing authentic ever comes.
pub(crate) fn is_strange(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V4(ip) if ip.octets()[..3] == [203, 0, 113])
}

fn stranger(number: u8) -> SocketAddr {
    (Ipv4Addr::new(203, 0, 113, number), 4_000).into()
}

/// The outer addresses of an end, of which the first moves.
fn addresses(side: Side, number: u8) -> Vec<IpAddr> {
    let end = side.number() as u8 + 1;
    let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, end.into());
    vec![Ipv4Addr::new(192, 0, 2, 64 * end + number % 3).into(), v6.into()]
}

/// The inner addresses of an end.
fn inner(side: Side, is_ipv6: bool) -> IpAddr {
    let end = side.number() as u8 + 1;
    match is_ipv6 {
        false => Ipv4Addr::new(10, 0, end, 1).into(),
        true => Ipv6Addr::new(0xfd00, end.into(), 0, 0, 0, 0, 0, 1).into(),
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| DIGITS[usize::from(digit)] as char)
        .collect()
}

fn key(number: u8) -> PrivateKey {
    PrivateKey::from_bytes([number | 64; 32])
}

impl Stage {
    /// Two hosts that know each other and are up, of the kind that a byte says.
    pub(crate) fn new(kind: u8) -> Stage {
        let mut world = World::new(u64::from(kind & 0x0f));
        world.network.faults.delay = Duration::ZERO;
        let wire = Rc::new(RefCell::new(Wire::default()));
        let watching = Rc::clone(&wire);
        world.network.filter = Some(Box::new(move |datagram| watching.borrow_mut().pass(datagram)));
        let mut sites = Vec::new();
        for side in Side::BOTH {
            let config = HostConfig {
                workers: if kind & 1 << side.number() != 0 { 2 } else { 1 },
                addresses: addresses(side, 0),
                gro: kind & 4 == 0,
                gso: kind & 8 == 0,
                assist: if kind & 0x10 != 0 { 200 } else { 0 },
                narrow: true,
                ..HostConfig::default()
            };
            let id = world.add_host(config).expect("there is memory for a host");
            world.host(id).expects_refusals = true;
            let (key, account) = (key(side.number() as u8), Account::default());
            sites.push(Site { id, publics: vec![key.public()], key, account });
        }
        let mut stage =
            Stage { world, sites, wire, late: false, waited: Duration::ZERO, serial: 0, forged: 0 };
        for side in Side::BOTH {
            stage.begin_anew(side);
        }
        stage
    }

    pub(crate) fn host(&mut self, side: Side) -> &mut SimHost {
        self.world.host(self.sites[side.number()].id)
    }

    pub(crate) fn look(&self, side: Side) -> &SimHost {
        self.world.look(self.sites[side.number()].id)
    }

    /// Gives an end the configuration that it had at first, whatever it has, and takes it up.
    pub(crate) fn begin_anew(&mut self, side: Side) {
        self.host(side).readdress(addresses(side, 0), Uplinks::default());
        self.host(side).bind_error = None;
        let key = hex(&self.sites[side.number()].key.to_bytes());
        let peer = self.peer_text(side.other());
        let text = format!("private_key={key}\nlisten_port={PORT}\nfwmark=0\nreplace_peers=true\n{peer}");
        assert_eq!(self.set(side, &text), Ok(()));
        self.up(side, true);
    }

    /// An end as the other's peer.
    fn peer_text(&self, side: Side) -> String {
        let (public, end) = (hex(&self.sites[side.number()].publics[0].0), side.number() + 1);
        let endpoint = SocketAddr::new(addresses(side, 0)[0], PORT);
        format!(
            "public_key={public}\nendpoint={endpoint}\nallowed_ip=10.0.{end}.0/24\nallowed_ip=fd00:{end}::/64\n"
        )
    }

    /// Applies lines of configuration, with the answer's error number.
    fn set(&mut self, side: Side, text: &str) -> Result<(), i32> {
        let now = self.world.host_now(self.sites[side.number()].id);
        let answer = self.host(side).configure(now, text);
        let public = self.look(side).state().public_key().copied();
        let publics = &mut self.sites[side.number()].publics;
        publics.extend(public.filter(|public| !publics.contains(public)));
        answer
    }

    pub(crate) fn up(&mut self, side: Side, up: bool) {
        let now = self.world.host_now(self.sites[side.number()].id);
        self.host(side).set_up(now, up);
        self.world.settle();
    }

    /// Does what a step says, and lets everything come to rest.
    pub(crate) fn take(&mut self, step: &Step<'_>) {
        if let Step::Wait(time) | Step::Leap(time) = step {
            self.unblock_before(*time);
        }
        match step {
            Step::Say(side, talk) => self.say(*side, *talk, |inner| inner.to_frame()),
            Step::SayAtOnce(side, talk) => self.say_at_once(*side, *talk),
            Step::SayBent(side, talk, bend) => self.say(*side, *talk, |inner| {
                let mut frame = inner.to_frame();
                bend.apply(&mut frame);
                frame
            }),
            Step::Frame(side, frame) => self.enter(*side, frame.to_vec()),
            Step::Wait(time) => self.world.run_for(*time),
            Step::Leap(time) => self.world.leap(*time),
            Step::Datagram(side, bytes) => self.say_strange(*side, bytes),
            Step::Again { back, copies, source, crossed, marked } => {
                self.again(*back, *copies, *source, *crossed, *marked);
            }
            Step::Bent { back, bend, stranger, crossed } => self.bent(*back, bend, *stranger, *crossed),
            Step::Lose(mask) => self.wire.borrow_mut().lose = *mask,
            Step::Set(side, change) => self.change(*side, *change),
            Step::Text(side, bytes) => {
                let text = String::from_utf8_lossy(bytes).replace('@', &self.public(side.other()));
                let _ = self.set(*side, &text);
            }
            Step::Up(side, up) => self.up(*side, *up),
            Step::Clock(side, seconds) => {
                let off = Duration::from_secs(seconds.unsigned_abs());
                let ahead = if *seconds < 0 { [Duration::ZERO, off] } else { [off, Duration::ZERO] };
                [self.host(*side).wall_ahead, self.host(*side).wall_behind] = ahead;
            }
            Step::Give(side, worker) => {
                let peers = self.look(*side).state().peers();
                let worker = worker % self.look(*side).workers();
                peers.iter().for_each(|peer| self.host(*side).device().give_peer(peer.id, worker));
            }
            Step::Block(side, worker, blocked) => {
                let worker = worker % self.look(*side).workers();
                self.host(*side).io(worker).into_iter().for_each(|io| io.blocked = *blocked);
            }
            Step::Steer(side, steer) => self.host(*side).set_steering(*steer),
            Step::Fail(side, ways) => self.fail(*side, *ways),
            Step::RefusePort(side, errno) => self.host(*side).bind_error = Some(i32::from(*errno)),
            Step::Loop(side, back) => self.send_round(*side, *back),
            Step::Move(side, number) => {
                self.host(*side).readdress(addresses(*side, *number), Uplinks::default());
            }
            Step::Restart(side) => {
                self.world.restart(self.sites[side.number()].id).expect("there is memory for a host");
                self.begin_anew(*side);
            }
            Step::Load(side) => self.host(*side).overload(),
            Step::Forge(side, count) => self.forge(*side, *count),
        }
        self.world.settle();
    }

    /// Lets blocked sockets go on before they have been blocked for too long.
    fn unblock_before(&mut self, time: Duration) {
        self.waited += time;
        if self.waited > LONGEST_BLOCK {
            Side::BOTH.iter().for_each(|side| self.host(*side).ios().for_each(|io| io.blocked = false));
            self.waited = Duration::ZERO;
            self.world.settle();
        }
    }

    fn public(&self, side: Side) -> String {
        hex(&self.sites[side.number()].publics[0].0)
    }

    /// Puts a frame into the tunnel.
    fn enter(&mut self, side: Side, frame: Vec<u8>) {
        let flow = account::flow(frame.get(10..).unwrap_or_default());
        if self.host(side).send(&flow, frame.clone()) {
            self.sites[side.number()].account.sent(&frame);
        }
    }

    fn inner(&mut self, side: Side, talk: Talk, len: usize) -> Inner {
        let from = SocketAddr::new(inner(side, talk.is_ipv6), 1_000 + u16::from(talk.port));
        let to = SocketAddr::new(inner(side.other(), talk.is_ipv6), 2_000);
        let mut payload = Vec::with_capacity(len);
        while payload.len() < len {
            self.serial += 1;
            payload.extend(self.serial.to_be_bytes());
            payload.resize(payload.len().next_multiple_of(usize::from(SEGMENT)).min(len), self.serial as u8);
        }
        let flow = Flow { tcp: talk.tcp, source: from, destination: to };
        Inner { tos: talk.ecn, ..Inner::new(flow, self.serial as u32 * 8_192, payload) }
    }

    fn say(&mut self, side: Side, talk: Talk, frame: impl Fn(&Inner) -> Vec<u8>) {
        let mut sequence = 0;
        for number in 0..talk.count {
            let mut inner = self.inner(side, talk, talk.len);
            // They follow each other, so that they may be joined.
            if number > 0 && talk.tcp {
                inner.sequence = sequence;
            }
            sequence = inner.sequence.wrapping_add(inner.payload.len() as u32);
            self.enter(side, frame(&inner));
        }
    }

    fn say_at_once(&mut self, side: Side, talk: Talk) {
        let segments = talk.count + 1;
        let inner = self.inner(side, talk, segments * usize::from(SEGMENT) - talk.len % usize::from(SEGMENT));
        self.enter(side, inner.to_super_frame(SEGMENT));
    }

    /// A datagram of the past and the end that it was for.
    fn past(&self, back: u8) -> Option<(Datagram, Side)> {
        let tapped = self.world.network.tap().nth_back(back.into())?;
        let is_of_a = (0..3).any(|number| addresses(Side::A, number).contains(&tapped.datagram.from.ip()));
        Some((tapped.datagram.clone(), if is_of_a { Side::B } else { Side::A }))
    }

    fn again(&mut self, back: u8, copies: u8, source: Source, crossed: bool, marked: bool) {
        let Some((mut datagram, to)) = self.past(back) else { return };
        match source {
            Source::Elsewhere(number) => datagram.from = (Ipv4Addr::new(198, 18, 0, number), 5_000).into(),
            // Where nobody else could have sent it, it need not be authentic there.
            Source::Same if is_strange(datagram.from.ip()) => return,
            Source::Same => {}
        }
        datagram.ecn = if marked { 3 } else { datagram.ecn };
        for _ in 0..copies {
            self.fly(if crossed { to.other() } else { to }, datagram.clone());
        }
    }

    fn bent(&mut self, back: u8, bend: &Bend, strange: bool, crossed: bool) {
        let Some((mut datagram, to)) = self.past(back) else { return };
        let mut bytes = datagram.bytes.to_vec();
        bend.apply(&mut bytes);
        if strange && !self.is_authentic(&bytes) {
            datagram.from = stranger(back);
        }
        datagram.bytes = bytes.into();
        self.fly(if crossed { to.other() } else { to }, datagram);
    }

    /// Whether somebody sent the same, but for the MAC that counts under load alone.
    fn is_authentic(&self, bytes: &[u8]) -> bool {
        let signed = match classify(bytes) {
            Some(MessageKind::Initiation | MessageKind::Response) => bytes.len() - 16,
            _ => bytes.len(),
        };
        self.world.network.tap().any(|tapped| {
            tapped.datagram.bytes.len() == bytes.len() && tapped.datagram.bytes[..signed] == bytes[..signed]
        })
    }

    fn say_strange(&mut self, side: Side, bytes: &[u8]) {
        if !self.is_authentic(bytes) {
            let datagram = Datagram { from: stranger(0), to: stranger(0), ecn: 0, bytes: bytes.into() };
            self.fly(side, datagram);
        }
    }

    fn forge(&mut self, side: Side, count: u8) {
        let mut jar = CookieJar::new(&self.sites[side.number()].publics[0]);
        for number in 0..count {
            self.forged += 1;
            if self.forged > MOST_FORGED {
                return;
            }
            let mut message = [number; INITIATION_LEN];
            message[..4].copy_from_slice(&[1, 0, 0, 0]);
            message[4..8].copy_from_slice(&self.forged.to_le_bytes());
            jar.seal(&mut message, self.world.now());
            let bytes = message.as_slice().into();
            self.fly(side, Datagram { from: stranger(number), to: stranger(number), ecn: 0, bytes });
        }
    }

    fn fail(&mut self, side: Side, ways: u8) {
        let chance = |bit: u8| if ways & 1 << bit != 0 { 300 } else { 0 };
        let late = ways & 0x40 != 0;
        self.late |= late;
        self.host(side).fail(HostFaults {
            missteer: chance(5),
            late_controls: Duration::from_millis(if late { 50 } else { 0 }),
            io: IoFaults {
                full: chance(0),
                refused: chance(1),
                unsegmented: chance(2),
                unwritten: chance(3),
                unheard: chance(4),
                pause: Duration::from_millis(20),
            },
        });
    }

    /// Puts a datagram of the past into the tunnel of the end that sent it.
    fn send_round(&mut self, side: Side, back: u8) {
        let of_it = self.world.network.tap().rev().filter(|tapped| {
            (0..3).any(|number| addresses(side, number).contains(&tapped.datagram.from.ip()))
        });
        let Some(Datagram { from, to, bytes, .. }) =
            of_it.map(|tapped| tapped.datagram.clone()).nth(back.into())
        else {
            return;
        };
        if from.is_ipv4() == to.is_ipv4() {
            self.enter(side, Inner::new(Flow::udp(from, to), 0, bytes.to_vec()).to_frame());
        }
    }

    /// Has a datagram arrive at an end, where that is now.
    fn fly(&mut self, side: Side, mut datagram: Datagram) {
        let look = self.look(side);
        let same_family = look.addresses.iter().find(|ip| ip.is_ipv4() == datagram.from.is_ipv4());
        let Some(&ip) = same_family else { return };
        datagram.to = SocketAddr::new(ip, look.port().unwrap_or(PORT));
        let now = self.world.now();
        self.world.network.inject(now, datagram);
    }

    fn change(&mut self, side: Side, change: Change) {
        let other = side.other();
        let peer = format!("public_key={}\n", self.public(other));
        let text = match change {
            Change::Psk(byte) => format!("{peer}preshared_key={}\n", hex(&[byte; 32])),
            Change::Keepalive(seconds) => format!("{peer}persistent_keepalive_interval={seconds}\n"),
            Change::Endpoint(number) => {
                let ip = addresses(other, number / 2)[usize::from(number % 2)];
                format!("{peer}endpoint={}\n", SocketAddr::new(ip, PORT))
            }
            Change::Allow(number, stranger) => {
                const PREFIXES: [&str; 10] = [
                    "0.0.0.0/0",
                    "::/0",
                    "10.0.0.0/8",
                    "10.0.2.0/25",
                    "10.0.1.1/32",
                    "10.0.2.1/32",
                    "fd00::/16",
                    "fd00:2::/64",
                    "fd00:1::1/128",
                    "192.0.2.0/24",
                ];
                let whose = if stranger { format!("public_key={}\n", hex(&[number; 32])) } else { peer };
                format!("{whose}allowed_ip={}\n", PREFIXES[usize::from(number) % PREFIXES.len()])
            }
            Change::ReplaceAllowed => format!("{peer}replace_allowed_ips=true\n"),
            Change::Remove => format!("{peer}remove=true\n"),
            Change::Add => self.peer_text(other),
            Change::Key(number) => match number {
                0..128 => format!("private_key={}\n", hex(&self.sites[side.number()].key.to_bytes())),
                128..240 => format!("private_key={}\n", hex(&key(number % 4 + 2).to_bytes())),
                _ => format!("private_key={}\n", hex(&[0; 32])),
            },
            Change::Port(number) => {
                format!("listen_port={}\n", if number < 128 { PORT } else { number.into() })
            }
            Change::Mark(number) => format!("fwmark={number}\n"),
            Change::Strangers(count) => {
                (0..count).map(|i| format!("public_key={}\n", hex(&[i; 32]))).collect()
            }
            Change::ReplacePeers => "replace_peers=true\n".to_owned(),
        };
        let _ = self.set(side, &text);
    }
}

impl Wire {
    /// Whether a datagram that a host sends is not lost.
    fn pass(&mut self, datagram: &Datagram) -> bool {
        if is_strange(datagram.to.ip()) {
            self.to_strangers.extend(datagram.kind());
        }
        let lost = self.lose & 1 != 0;
        self.lose >>= 1;
        !lost
    }

    /// Loses nothing from now on.
    pub(crate) fn mend(&mut self) {
        self.lose = 0;
    }
}
