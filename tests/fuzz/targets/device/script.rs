//! What the fuzzer's bytes say is to happen. Whatever they are, they say something.

use std::time::Duration;

/// Most steps of a script.
const MAX_STEPS: usize = 60;

/// The bytes that are left.
pub(crate) struct Script<'a> {
    rest: &'a [u8],
    steps: usize,
}

/// One of the two hosts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    A,
    B,
}

impl Side {
    pub(crate) const BOTH: [Side; 2] = [Side::A, Side::B];

    pub(crate) fn number(self) -> usize {
        self as usize
    }

    pub(crate) fn other(self) -> Side {
        match self {
            Side::A => Side::B,
            Side::B => Side::A,
        }
    }
}

/// From where a datagram comes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Source {
    /// From where it was sent.
    Same,
    /// From an address that may be anybody's, also an end's that has moved.
    Elsewhere(u8),
}

/// What is done to a datagram, or to the frame of a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Bend {
    /// Bytes that are changed: where, counted from the end if negative, and by what (exclusive or).
    pub(crate) bytes: Vec<(i8, u8)>,
    /// How many bytes are cut off the end, or added where it is negative.
    pub(crate) cut: i8,
}

impl Bend {
    pub(crate) fn apply(&self, to: &mut Vec<u8>) {
        match usize::try_from(self.cut) {
            Ok(less) => to.truncate(to.len().saturating_sub(less)),
            Err(_) => to.resize(to.len() + usize::from(self.cut.unsigned_abs()), 0x5a),
        }
        for &(at, by) in &self.bytes {
            let at = match usize::try_from(at) {
                Ok(at) => Some(at),
                Err(_) => to.len().checked_sub(usize::from(at.unsigned_abs())),
            };
            if let Some(byte) = at.and_then(|at| to.get_mut(at)) {
                *byte ^= by;
            }
        }
    }
}

/// A number of packets of one flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Talk {
    pub(crate) tcp: bool,
    pub(crate) is_ipv6: bool,
    pub(crate) port: u8,
    /// Bytes of each payload, a serial number among them.
    pub(crate) len: usize,
    pub(crate) count: usize,
    /// ECN bits.
    pub(crate) ecn: u8,
}

/// One change of the configuration, of the kind that an owner makes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Change {
    Psk(u8),
    Keepalive(u8),
    Endpoint(u8),
    /// Gives a prefix to the peer, or to a stranger.
    Allow(u8, bool),
    ReplaceAllowed,
    /// Removes the peer.
    Remove,
    /// Adds the peer as it was at first.
    Add,
    /// Another private key, or the first one.
    Key(u8),
    Port(u8),
    Mark(u8),
    /// So many peers that nobody is.
    Strangers(u8),
    ReplacePeers,
}

/// One step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Step<'a> {
    /// Packets enter the tunnel one by one.
    Say(Side, Talk),
    /// They enter it as one super-packet.
    SayAtOnce(Side, Talk),
    /// A packet is bent, with its virtio-net header, and enters the tunnel.
    SayBent(Side, Talk, Bend),
    /// A frame of any bytes enters the tunnel.
    Frame(Side, &'a [u8]),
    /// Time passes.
    Wait(Duration),
    /// Time leaps, as over a suspend.
    Leap(Duration),
    /// A datagram of any bytes comes from a stranger.
    Datagram(Side, &'a [u8]),
    /// A datagram of the past comes again, counted from the newest, so many times, perhaps to the other end and with an outer
    /// congestion mark.
    Again {
        back: u8,
        copies: u8,
        source: Source,
        crossed: bool,
        marked: bool,
    },
    /// One comes from a stranger, or from where it was sent, but bent.
    Bent {
        back: u8,
        bend: Bend,
        stranger: bool,
        crossed: bool,
    },
    /// Of the next eight datagrams, those are lost whose bits are set.
    Lose(u8),
    Set(Side, Change),
    /// Lines of the configuration protocol.
    Text(Side, &'a [u8]),
    Up(Side, bool),
    /// The wall clock is so many seconds off.
    Clock(Side, i64),
    /// The peer is given to another worker.
    Give(Side, u8),
    /// A worker's sockets take nothing, or do again.
    Block(Side, u8, bool),
    /// Datagrams reach any worker, or the one that they name.
    Steer(Side, bool),
    /// Sockets, TUN queues and mailboxes misbehave in the ways whose bits are set.
    Fail(Side, u8),
    /// The next port cannot be bound, with this error number.
    RefusePort(Side, u8),
    /// A datagram that the host has sent enters its own tunnel, as if it were routed there.
    Loop(Side, u8),
    /// The host has another address.
    Move(Side, u8),
    Restart(Side),
    /// It believes that it is flooded, for a second.
    Load(Side),
    /// Strangers who know its public key send so many initiations.
    Forge(Side, u8),
}

impl<'a> Script<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Script<'a> {
        Script { rest: bytes, steps: 0 }
    }

    /// The next byte, or 0.
    pub(crate) fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.rest.split_first() else { return 0 };
        self.rest = rest;
        first
    }

    /// The next step. `None` at the end.
    pub(crate) fn step(&mut self) -> Option<Step<'a>> {
        if self.rest.is_empty() || self.steps == MAX_STEPS {
            return None;
        }
        self.steps += 1;
        let [code, what] = [self.byte(), self.byte()];
        let side = if code & 0x80 == 0 { Side::A } else { Side::B };
        let [bit0, bit1, bit2] = [1, 2, 4].map(|bit| what & bit != 0);
        Some(match code & 0x7f {
            0..=9 => Step::Say(side, self.talk(what)),
            10..=13 => Step::SayAtOnce(side, self.talk(what)),
            14..=19 => Step::SayBent(side, self.talk(what), self.bend()),
            20..=23 => Step::Frame(side, self.bytes(what.into())),
            24..=35 => Step::Wait(duration(what)),
            36 => Step::Leap(duration(what)),
            37..=40 => Step::Datagram(side, self.bytes(what.into())),
            41..=54 => {
                let source = if bit0 { Source::Elsewhere(what >> 6) } else { Source::Same };
                let [back, copies] = [self.byte(), 1 + (what >> 3 & 7)];
                Step::Again { back, copies, source, crossed: bit1, marked: bit2 }
            }
            55..=67 => Step::Bent { back: self.byte(), bend: self.bend(), stranger: bit0, crossed: bit1 },
            68..=74 => Step::Lose(what),
            75..=90 => Step::Set(side, self.change(what)),
            91..=96 => Step::Text(side, self.line(what)),
            97..=99 => Step::Up(side, bit0),
            100 => Step::Fail(side, what),
            101 => Step::RefusePort(side, what),
            102 => Step::Loop(side, what),
            103 | 104 => Step::Clock(side, i64::from(what as i8).pow(5)),
            105..=107 => Step::Give(side, what),
            108..=110 => Step::Block(side, what >> 1, bit0),
            111..=113 => Step::Steer(side, bit0),
            114..=116 => Step::Move(side, what),
            117..=119 => Step::Restart(side),
            120..=124 => Step::Load(side),
            _ => Step::Forge(side, what % 16),
        })
    }

    fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(len.min(self.rest.len()));
        self.rest = rest;
        taken
    }

    /// Bytes up to a zero, but no more than sixteen times `most`.
    fn line(&mut self, most: u8) -> &'a [u8] {
        let end = self.rest.iter().position(|&byte| byte == 0).unwrap_or(self.rest.len());
        let line = self.bytes(end.min(16 * usize::from(most)));
        self.byte();
        line
    }

    fn talk(&mut self, what: u8) -> Talk {
        let more = self.byte();
        Talk {
            tcp: what & 1 != 0,
            is_ipv6: what & 2 != 0,
            ecn: what >> 2 & 3,
            port: what >> 4 & 3,
            len: [16, 17, 100, 1_200, 1_372, 1_392, 1_393, 3_000][usize::from(more & 7)],
            count: [1, 2, 3, 5, 8, 20, 64, 70][usize::from(more >> 3 & 7)],
        }
    }

    fn bend(&mut self) -> Bend {
        let what = self.byte();
        let bytes = (0..what & 7).map(|_| (self.byte() as i8, self.byte())).collect();
        let cut = if what & 8 != 0 { self.byte() as i8 } else { 0 };
        Bend { bytes, cut }
    }

    fn change(&mut self, what: u8) -> Change {
        let value = self.byte();
        match what % 14 {
            0 | 1 => Change::Psk(value),
            2 => Change::Keepalive(value),
            3 | 4 => Change::Endpoint(value),
            5 | 6 => Change::Allow(value, what & 0x80 != 0),
            7 => Change::ReplaceAllowed,
            8 => Change::Remove,
            9 => Change::Add,
            10 => Change::Key(value),
            11 => Change::Port(value),
            12 if value & 1 == 0 => Change::Mark(value),
            12 => Change::ReplacePeers,
            _ => Change::Strangers(value % 24),
        }
    }
}

/// A time whose logarithm is what the byte says: from a millisecond to half an hour.
fn duration(what: u8) -> Duration {
    const STEPS: [u64; 16] = [
        1, 20, 300, 999, 1_000, 5_000, 5_400, 10_000, 10_500, 15_000, 25_000, 90_000, 120_000, 180_000,
        540_000, 1_000_000,
    ];
    Duration::from_millis(STEPS[usize::from(what & 15)] + u64::from(what >> 4))
}
