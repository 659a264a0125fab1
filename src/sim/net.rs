//! The virtual wire between hosts: datagrams with a delay and seeded faults, address translation, and a wiretap.

use crate::sim::rng::SimRng;
use crate::time::Instant;
use crate::wire::message::{DataHeader, MessageKind, classify};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// Most datagrams under way; more are lost, as in a router's full queue. 65,536 × ~1.5 KiB = 96 MiB at worst.
pub const MAX_FLYING: usize = 65_536;
/// How many datagrams the wiretap remembers, the newest. 16,384 × ~1.5 KiB = 24 MiB at worst.
pub const MAX_TAPPED: usize = 16_384;

/// One UDP datagram on the wire.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Datagram {
    /// Source address and port.
    pub from: SocketAddr,
    /// Destination address and port.
    pub to: SocketAddr,
    /// ECN bits of the outer header.
    pub ecn: u8,
    /// UDP payload.
    pub bytes: Arc<[u8]>,
}

impl Datagram {
    /// The kind of message that the payload claims to be.
    pub fn kind(&self) -> Option<MessageKind> {
        classify(&self.bytes)
    }

    /// The header, where the payload is a data message.
    pub fn data(&self) -> Option<DataHeader> {
        (self.kind() == Some(MessageKind::Data)).then(|| DataHeader::parse(&self.bytes)).flatten()
    }

    /// Whether it is a keepalive: a data message without content.
    pub fn is_keepalive(&self) -> bool {
        self.kind() == Some(MessageKind::Data) && self.bytes.len() == crate::wire::message::DATA_OVERHEAD
    }
}

/// A datagram as a host sent it, before any fault.
#[derive(Clone, Debug)]
pub struct Tapped {
    /// When it was sent.
    pub at: Instant,
    /// The datagram, with the addresses as seen on the public side.
    pub datagram: Datagram,
}

/// The faults of a wire. Chances are per mille, for each datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Faults {
    /// Chance that a datagram is lost.
    pub loss: u32,
    /// Chance that it is delivered twice.
    pub duplicate: u32,
    /// Chance that it is held back by up to [`Self::jitter`], so that later ones overtake it.
    pub reorder: u32,
    /// Chance that an older datagram, from the wiretap, is delivered once more.
    pub replay: u32,
    /// Chance that a bit is flipped, or the end cut off.
    pub corrupt: u32,
    /// Chance that it is marked Congestion Experienced, where it is ECN-capable.
    pub congestion: u32,
    /// Time on the wire of every datagram.
    pub delay: Duration,
    /// Most time by which a reordered, replayed or duplicated datagram comes later.
    pub jitter: Duration,
}

impl Default for Faults {
    /// No faults: every datagram arrives in order after 10 ms.
    fn default() -> Faults {
        Faults {
            loss: 0,
            duplicate: 0,
            reorder: 0,
            replay: 0,
            corrupt: 0,
            congestion: 0,
            delay: Duration::from_millis(10),
            jitter: Duration::from_millis(30),
        }
    }
}

impl Faults {
    /// All faults at once, at `per_mille` each.
    pub fn everything(per_mille: u32) -> Faults {
        Faults {
            loss: per_mille,
            duplicate: per_mille,
            reorder: per_mille,
            replay: per_mille,
            corrupt: per_mille,
            congestion: per_mille,
            ..Faults::default()
        }
    }
}

/// Decides what becomes of single datagrams, after the wiretap. False loses a datagram.
pub type Filter = Box<dyn FnMut(&Datagram) -> bool>;

/// The wire between all hosts.
pub struct Network {
    /// The present faults of the wire.
    pub faults: Faults,
    /// An adversary on the wire, who may lose datagrams.
    pub filter: Option<Filter>,
    rng: SimRng,
    flying: BTreeMap<(Instant, u64), Datagram>,
    serial: u64,
    tap: VecDeque<Tapped>,
    /// Address translations: the address behind, and the address in public.
    translations: Vec<(SocketAddr, SocketAddr)>,
    /// Translators that let in only what comes from an address and port that was spoken to: the address behind them, and
    /// those.
    guarded: HashMap<SocketAddr, HashSet<SocketAddr>>,
    /// The addresses that nothing reaches, and from which nothing comes.
    cut: HashSet<IpAddr>,
}

impl Network {
    /// Makes a wire without faults.
    pub fn new(rng: SimRng) -> Network {
        Network {
            faults: Faults::default(),
            filter: None,
            rng,
            flying: BTreeMap::new(),
            serial: 0,
            tap: VecDeque::new(),
            translations: Vec::new(),
            guarded: HashMap::new(),
            cut: HashSet::new(),
        }
    }

    /// Puts a host's datagram on the wire.
    pub fn send(&mut self, now: Instant, mut datagram: Datagram) {
        let inside = datagram.from;
        if self.cut.contains(&inside.ip()) {
            return;
        }
        if let Some(spoken_to) = self.guarded.get_mut(&inside) {
            spoken_to.insert(datagram.to);
        }
        datagram.from = self.public(inside);
        if self.tap.len() == MAX_TAPPED {
            self.tap.pop_front();
        }
        self.tap.push_back(Tapped { at: now, datagram: datagram.clone() });
        if self.filter.as_mut().is_some_and(|filter| !filter(&datagram)) || self.rng.chance(self.faults.loss)
        {
            return;
        }
        if self.rng.chance(self.faults.replay) {
            let old = self.rng.below(self.tap.len() as u64) as usize;
            if let Some(tapped) = self.tap.get(old) {
                let (again, late) = (tapped.datagram.clone(), self.lateness());
                self.fly(now + late, again);
            }
        }
        if self.rng.chance(self.faults.duplicate) {
            let late = self.lateness();
            self.fly(now + late, datagram.clone());
        }
        let late = if self.rng.chance(self.faults.reorder) { self.lateness() } else { self.faults.delay };
        self.spoil(&mut datagram);
        self.fly(now + late, datagram);
    }

    /// Puts a datagram on the wire that no host sent. It is not tapped, has no faults, and its source is not translated.
    pub fn inject(&mut self, now: Instant, datagram: Datagram) {
        let delay = self.faults.delay;
        self.fly(now + delay, datagram);
    }

    /// When the next datagram arrives.
    pub fn next_arrival(&self) -> Option<Instant> {
        self.flying.first_key_value().map(|(&(at, _), _)| at)
    }

    /// The next datagram that has arrived by `now`. Its destination is the one that a host behind a translation knows.
    pub fn receive(&mut self, now: Instant) -> Option<Datagram> {
        loop {
            let first = self.flying.first_entry()?;
            if first.key().0 > now {
                return None;
            }
            let mut datagram = first.remove();
            match self.translations.iter().find(|t| t.1 == datagram.to) {
                Some(translation) => datagram.to = translation.0,
                // From outside, a host behind a translation cannot be reached at its inner address.
                None if self.translations.iter().any(|t| t.0 == datagram.to) => continue,
                None => {}
            }
            let guarded = self.guarded.get(&datagram.to);
            if self.cut.contains(&datagram.to.ip())
                || guarded.is_some_and(|spoken_to| !spoken_to.contains(&datagram.from))
            {
                continue;
            }
            return Some(datagram);
        }
    }

    /// Has the translator before `inside` let in only what comes from where `inside` spoke to, from now on. What it knows of
    /// that is forgotten.
    pub fn guard(&mut self, inside: SocketAddr) {
        self.guarded.insert(inside, HashSet::new());
    }

    /// Whether what comes from `from` passes the translator before `inside`, if there is one.
    pub fn lets_in(&self, inside: SocketAddr, from: SocketAddr) -> bool {
        self.guarded.get(&inside).is_none_or(|spoken_to| spoken_to.contains(&from))
    }

    /// Cuts the wire of a host with this address, or mends it.
    pub fn cut(&mut self, inside: IpAddr, is_cut: bool) {
        match is_cut {
            true => self.cut.insert(inside),
            false => self.cut.remove(&inside),
        };
    }

    /// Mends every wire that was cut.
    pub fn mend(&mut self) {
        self.cut.clear();
    }

    /// Loses everything that is under way.
    pub fn lose_all(&mut self) {
        self.flying.clear();
    }

    /// The public address of `inside`: its own, where nothing is translated.
    pub fn public(&self, inside: SocketAddr) -> SocketAddr {
        self.translations.iter().find(|t| t.0 == inside).map_or(inside, |t| t.1)
    }

    /// Translates `inside` to `outside` from now on. An earlier mapping of either is gone, as in a NAT rebinding.
    pub fn translate(&mut self, inside: SocketAddr, outside: SocketAddr) {
        self.translations.retain(|t| t.0 != inside && t.1 != outside);
        self.translations.push((inside, outside));
    }

    /// The datagrams that were sent, oldest first; at most the last [`MAX_TAPPED`].
    pub fn tap(&self) -> impl DoubleEndedIterator<Item = &Tapped> {
        self.tap.iter()
    }

    /// Forgets the tapped datagrams.
    pub fn clear_tap(&mut self) {
        self.tap.clear();
    }

    fn lateness(&mut self) -> Duration {
        let jitter = u64::try_from(self.faults.jitter.as_nanos()).unwrap_or(u64::MAX);
        self.faults.delay + Duration::from_nanos(self.rng.below(jitter))
    }

    fn spoil(&mut self, datagram: &mut Datagram) {
        // ECT(0) and ECT(1) are 2 and 1; 0 is not capable.
        if datagram.ecn != 0 && self.rng.chance(self.faults.congestion) {
            datagram.ecn = 3;
        }
        if self.rng.chance(self.faults.corrupt) {
            let mut bytes = datagram.bytes.to_vec();
            let at = self.rng.below(bytes.len() as u64) as usize;
            if self.rng.chance(500) {
                bytes.truncate(at);
            } else if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << self.rng.below(8);
            }
            datagram.bytes = bytes.into();
        }
    }

    fn fly(&mut self, arrival: Instant, datagram: Datagram) {
        if self.flying.len() < MAX_FLYING {
            self.serial += 1;
            self.flying.insert((arrival, self.serial), datagram);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(byte: u8) -> Datagram {
        let addr = |port| SocketAddr::from(([192, 0, 2, 1], port));
        Datagram { from: addr(1), to: addr(2), ecn: 0, bytes: [byte; 40].into() }
    }

    fn arrivals(network: &mut Network) -> Vec<u8> {
        let end = Instant::START + Duration::from_secs(3600);
        std::iter::from_fn(|| network.receive(end)).map(|d| d.bytes.first().copied().unwrap_or(0)).collect()
    }

    fn run(faults: Faults) -> Vec<u8> {
        let mut network = Network::new(SimRng::new(9));
        network.faults = faults;
        (1..=200)
            .for_each(|i| network.send(Instant::START + Duration::from_micros(u64::from(i)), datagram(i)));
        arrivals(&mut network)
    }

    #[test]
    fn faultless_wire_keeps_order_and_loses_nothing() {
        assert_eq!(run(Faults::default()), (1..=200).collect::<Vec<_>>());
    }

    #[test]
    fn each_fault_shows() {
        assert!(run(Faults { loss: 300, ..Faults::default() }).len() < 200);
        assert!(run(Faults { duplicate: 300, ..Faults::default() }).len() > 200);
        assert!(run(Faults { replay: 300, ..Faults::default() }).len() > 200);
        let reordered = run(Faults { reorder: 300, ..Faults::default() });
        assert!(reordered.len() == 200 && !reordered.is_sorted());
        assert_ne!(run(Faults { corrupt: 300, ..Faults::default() }), (1..=200).collect::<Vec<_>>());
    }

    #[test]
    fn translated_host_is_reached_at_its_newest_public_address_only() {
        let mut network = Network::new(SimRng::new(9));
        let public = |port| SocketAddr::from(([203, 0, 113, 1], port));
        let inside = datagram(0).from;
        network.translate(inside, public(1));
        network.translate(inside, public(2));
        network.send(Instant::START, datagram(0));
        assert_eq!(network.tap().next().map(|t| t.datagram.from), Some(public(2)));
        network.receive(Instant::START + Duration::from_secs(1));
        for to in [inside, public(1), public(2)] {
            network.inject(Instant::START, Datagram { to, ..datagram(1) });
        }
        let reached: Vec<_> = std::iter::from_fn(|| network.receive(Instant::START + Duration::from_secs(1)))
            .map(|d| d.to)
            .collect();
        // The older mapping is an address like any other, and nobody's.
        assert_eq!(reached, [public(1), inside]);
    }

    #[test]
    fn one_seed_gives_one_run() {
        assert_eq!(run(Faults::everything(100)), run(Faults::everything(100)));
    }
}
