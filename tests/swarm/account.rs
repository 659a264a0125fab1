//! The account of inner packets: what went in where, what came out where, and whether that can be.

use ringtun::noise::REJECT_AFTER_TIME;
use ringtun::sim::{Flow, Inner};
use ringtun::time::Instant;
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// Stands in every payload, so that a payload in clear shows.
pub(crate) const MARK: [u8; 8] = *b"in clear";
/// How long a packet may be under way: it waits for a session, is sealed, and is delivered before that session is too old.
const MEMORY: Duration = REJECT_AFTER_TIME.saturating_mul(2);
/// Bytes of a payload at least: a serial number and the mark.
pub(crate) const LEAST: usize = 16;

/// The inner IPv4 address of a host: 10.0.HOST.1 of its 10.0.HOST.0/24.
pub(crate) fn inner4(host: usize) -> IpAddr {
    Ipv4Addr::new(10, 0, host as u8, 1).into()
}

/// The inner IPv6 address of a host: fd00:HOST::1 of its fd00:HOST::/64.
pub(crate) fn inner6(host: usize) -> IpAddr {
    Ipv6Addr::new(0xfd00, host as u16, 0, 0, 0, 0, 0, 1).into()
}

/// The host to which an inner address belongs.
fn host_of(ip: IpAddr) -> usize {
    match ip {
        IpAddr::V4(ip) => ip.octets()[2].into(),
        IpAddr::V6(ip) => ip.segments()[1].into(),
    }
}

struct Entry {
    at: Instant,
    /// Its place in the order of its flow.
    place: u64,
    arrived: bool,
}

/// What came of the packets that were sent since a time, of one flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Arrivals {
    pub(crate) sent: u64,
    pub(crate) arrived: u64,
}

#[derive(Default)]
pub(crate) struct Account {
    serial: u64,
    packets: HashMap<(Flow, u64), Entry>,
    sent: HashMap<Flow, u64>,
    latest: HashMap<Flow, u64>,
    /// What passed a gateway on its way to another host.
    passed: HashSet<(usize, Flow, u64)>,
    /// Flows on a way that keeps order.
    ordered: HashSet<Flow>,
    pub(crate) arrived: u64,
}

impl Account {
    /// A payload of `len` bytes that occurs once.
    pub(crate) fn payload(&mut self, len: usize) -> Vec<u8> {
        self.serial += 1;
        let mut payload = self.serial.to_be_bytes().to_vec();
        payload.extend(MARK);
        payload.resize(len.max(LEAST), self.serial as u8);
        payload
    }

    pub(crate) fn sent(&mut self, at: Instant, inner: &Inner) {
        let place = self.sent.entry(inner.flow).or_default();
        *place += 1;
        let entry = Entry { at, place: *place, arrived: false };
        self.packets.insert((inner.flow, serial(&inner.payload)), entry);
    }

    /// Asks that the packets of a flow arrive in order from now on.
    pub(crate) fn keep_order(&mut self, flow: Flow) {
        self.ordered.insert(flow);
    }

    /// Takes a packet that came out at `host`, of which `gateways` forward.
    pub(crate) fn delivered(&mut self, host: usize, gateways: usize, inner: &Inner) -> Result<(), String> {
        let (flow, serial) = (inner.flow, serial(&inner.payload));
        let Some(entry) = self.packets.get_mut(&(flow, serial)) else {
            return Err(format!("source: never sent, or long ago: {serial} of {flow:?} at host {host}"));
        };
        let filler = inner.payload.get(LEAST..).unwrap_or_default();
        if inner.payload.get(8..LEAST) != Some(&MARK) || filler.iter().any(|byte| *byte != serial as u8) {
            return Err(format!("damage: {serial} of {flow:?}"));
        }
        let to = host_of(flow.destination.ip());
        if host != to {
            let fresh = self.passed.insert((host, flow, serial));
            return match (host < gateways, fresh) {
                (true, true) => Ok(()),
                (true, false) => Err(format!("replay: {serial} of {flow:?} passes gateway {host} twice")),
                (false, _) => Err(format!("plaintext: {serial} of {flow:?} came out at host {host}")),
            };
        }
        if std::mem::replace(&mut entry.arrived, true) {
            return Err(format!("replay: {serial} of {flow:?} delivered twice"));
        }
        self.arrived += 1;
        let latest = self.latest.entry(flow).or_default();
        if entry.place < *latest && self.ordered.contains(&flow) {
            return Err(format!("order: number {} of {flow:?} after number {latest}", entry.place));
        }
        *latest = entry.place.max(*latest);
        Ok(())
    }

    /// What was sent of a flow since a time, and what of that arrived.
    pub(crate) fn since(&self, flow: Flow, since: Instant) -> Arrivals {
        let of_it = self.packets.iter().filter(|((of, _), entry)| *of == flow && entry.at >= since);
        of_it.fold(Arrivals::default(), |sum, (_, entry)| Arrivals {
            sent: sum.sent + 1,
            arrived: sum.arrived + u64::from(entry.arrived),
        })
    }

    /// Forgets what was sent so long ago that no session opens it any more, also where the wire lost it and delivers it again.
    pub(crate) fn forget(&mut self, now: Instant) {
        self.packets.retain(|_, entry| now.since(entry.at) < MEMORY);
        let packets = &self.packets;
        self.passed.retain(|(_, flow, serial)| packets.contains_key(&(*flow, *serial)));
        self.ordered.clear();
    }
}

fn serial(payload: &[u8]) -> u64 {
    payload.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}
