//! A full mesh of simulated devices, and what tests do with it.

use ringtun::crypto::x25519::{PrivateKey, PublicKey};
use ringtun::sim::host::ECHO_PORT;
use ringtun::sim::packet::{Flow, Inner};
use ringtun::sim::{HostConfig, HostId, Ledger, Tapped, World};
use ringtun::wire::message::MessageKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

/// Port that every site listens on.
pub(crate) const PORT: u16 = 51820;

/// Lower-case hexadecimal, as the configuration protocol writes keys.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(crate) const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// One device, its key and its addresses.
pub(crate) struct Site {
    pub(crate) id: HostId,
    pub(crate) key: PrivateKey,
    /// Outer address.
    pub(crate) addr: SocketAddr,
}

/// The inner IPv4 address of a site: 10.0.SITE.1 of its 10.0.SITE.0/24.
pub(crate) fn inner4(site: usize) -> IpAddr {
    Ipv4Addr::new(10, 0, site as u8, 1).into()
}

/// The inner IPv6 address of a site: fd00:SITE::1 of its fd00:SITE::/64.
pub(crate) fn inner6(site: usize) -> IpAddr {
    Ipv6Addr::new(0xfd00, site as u16, 0, 0, 0, 0, 0, 1).into()
}

/// The world under test. Every delivered packet goes through the ledger.
pub(crate) struct Lab {
    pub(crate) world: World,
    pub(crate) sites: Vec<Site>,
    pub(crate) ledger: Ledger,
    serial: u64,
}

impl Lab {
    /// Two sites of two workers. With every other seed, peers are assisted and not, as chance has it.
    pub(crate) fn pair(seed: u64) -> Lab {
        let config = HostConfig { assist: assist_of(seed), ..HostConfig::default() };
        Lab::mesh(seed, vec![config; 2])
    }

    /// Sites that all know each other, up.
    pub(crate) fn mesh(seed: u64, configs: Vec<HostConfig>) -> Lab {
        let mut lab = Lab::down(seed, configs);
        for site in 0..lab.sites.len() {
            for other in (0..lab.sites.len()).filter(|&other| other != site) {
                let peer = lab.peer_text(other);
                lab.set(site, &peer);
            }
            lab.up(site, true);
        }
        lab
    }

    /// Sites with keys and ports, without peers, down.
    pub(crate) fn down(seed: u64, configs: Vec<HostConfig>) -> Lab {
        let mut world = World::new(seed);
        let mut sites = Vec::new();
        for (i, mut config) in configs.into_iter().enumerate() {
            if config.addresses.is_empty() {
                config.addresses = vec![Ipv4Addr::new(192, 0, 2, i as u8 + 1).into()];
            }
            let addr = SocketAddr::new(config.addresses[0], PORT);
            let id = world.add_host(config).unwrap();
            sites.push(Site { id, key: random_key(&mut world), addr });
        }
        let mut lab = Lab { world, sites, ledger: Ledger::default(), serial: 0 };
        for site in 0..lab.sites.len() {
            let key = hex(&lab.sites[site].key.to_bytes());
            lab.set(site, &format!("private_key={key}\nlisten_port={PORT}\n"));
        }
        lab
    }

    /// The configuration of `site` as a peer.
    pub(crate) fn peer_text(&self, site: usize) -> String {
        let Site { key, addr, .. } = &self.sites[site];
        let public = hex(&key.public().0);
        format!(
            "public_key={public}\nendpoint={addr}\nallowed_ip=10.0.{site}.0/24\nallowed_ip=fd00:{site}::/64\n"
        )
    }

    pub(crate) fn public(&self, site: usize) -> PublicKey {
        self.sites[site].key.public()
    }

    /// Applies configuration text at once.
    pub(crate) fn set(&mut self, site: usize, text: &str) {
        let id = self.sites[site].id;
        let now = self.world.host_now(id);
        self.world.host(id).configure(now, text).unwrap();
        self.world.settle();
    }

    pub(crate) fn up(&mut self, site: usize, up: bool) {
        let id = self.sites[site].id;
        let now = self.world.host_now(id);
        self.world.host(id).set_up(now, up);
        self.world.settle();
    }

    pub(crate) fn host(&mut self, site: usize) -> &mut ringtun::sim::SimHost {
        self.world.host(self.sites[site].id)
    }

    pub(crate) fn counter(&mut self, site: usize, name: &str) -> u64 {
        self.host(site).counter(name)
    }

    /// A counter of the slow path.
    pub(crate) fn handshakes(&mut self, site: usize, name: &str) -> u64 {
        let counters = self.host(site).device().stats().snapshot();
        counters
            .into_iter()
            .find(|(known, _)| *known == name)
            .unwrap_or_else(|| panic!("no counter {name}"))
            .1
    }

    /// Where `site` believes its peer `other` to be.
    pub(crate) fn endpoint(&mut self, site: usize, other: usize) -> Option<SocketAddr> {
        let public = self.public(other);
        self.endpoint_of(site, &public)
    }

    pub(crate) fn endpoint_of(&mut self, site: usize, public: &PublicKey) -> Option<SocketAddr> {
        let device = self.host(site).device();
        let endpoint =
            device.peer_infos().find(|peer| peer.public_key == public).and_then(|peer| peer.endpoint);
        endpoint.map(|endpoint| endpoint.addr)
    }

    /// A UDP flow between two sites, told apart by `port`.
    pub(crate) fn udp(&self, from: usize, to: usize, port: u16) -> Flow {
        Flow::udp((inner4(from), port).into(), (inner4(to), ECHO_PORT).into())
    }

    /// A TCP flow over IPv6.
    pub(crate) fn tcp6(&self, from: usize, to: usize, port: u16) -> Flow {
        Flow::tcp((inner6(from), port).into(), (inner6(to), 7).into())
    }

    /// A payload that occurs once: a serial number, filled up to `len` (at least 8).
    pub(crate) fn payload(&mut self, len: usize) -> Vec<u8> {
        self.serial += 1;
        let filler = self.serial as u8;
        let mut payload = self.serial.to_be_bytes().to_vec();
        payload.resize(len.max(8), filler);
        payload
    }

    /// A fresh packet of `flow`.
    pub(crate) fn packet(&mut self, flow: Flow, len: usize) -> Inner {
        Inner::new(flow, 0, self.payload(len))
    }

    /// Sends a packet into the tunnel at `site`; returns whether the TUN queue had room.
    pub(crate) fn send_inner(&mut self, site: usize, inner: Inner) -> bool {
        let (flow, frame) = (inner.flow, inner.to_frame());
        let sent = self.host(site).send(&flow, frame);
        if sent {
            self.ledger.sent(inner);
        }
        sent
    }

    /// Sends `count` fresh packets of one flow.
    pub(crate) fn send(&mut self, site: usize, flow: Flow, count: usize, len: usize) {
        for _ in 0..count {
            let inner = self.packet(flow, len);
            self.send_inner(site, inner);
        }
    }

    /// Sends a super-packet of `count` segments of `size` fresh bytes, the last one `last` bytes long.
    pub(crate) fn send_super(&mut self, site: usize, whole: Inner, size: u16) -> bool {
        let (flow, frame) = (whole.flow, whole.to_super_frame(size));
        let sent = self.host(site).send(&flow, frame);
        if sent {
            whole.segments(size).into_iter().for_each(|segment| self.ledger.sent(segment));
        }
        sent
    }

    /// The payload of a super-packet whose segments are all fresh.
    pub(crate) fn super_payload(&mut self, count: usize, size: usize, last: usize) -> Vec<u8> {
        let sizes = (0..count).map(|i| if i + 1 == count { last } else { size });
        sizes.flat_map(|size| self.payload(size)).collect()
    }

    /// Lets time pass and takes account of what was delivered.
    pub(crate) fn run(&mut self, time: Duration) {
        self.world.run_for(time);
        self.collect();
    }

    /// Takes account of what was delivered so far.
    pub(crate) fn collect(&mut self) {
        for site in 0..self.sites.len() {
            for inner in self.host(site).take_answered() {
                self.ledger.sent(inner);
            }
        }
        for site in 0..self.sites.len() {
            for inner in self.host(site).take_delivered() {
                self.ledger.delivered(inner).unwrap();
            }
        }
        assert_eq!(self.world.violations(), Vec::<String>::new());
    }

    /// Packets of all sites sent and not yet delivered.
    pub(crate) fn missing(&self) -> u64 {
        self.ledger.count_sent() - self.ledger.count_arrived()
    }

    /// Asserts that everything sent arrived, in order.
    pub(crate) fn assert_all_arrived_in_order(&self) {
        assert_eq!(
            (self.missing(), self.ledger.overtakings()),
            (0, 0),
            "of {}: {:#?}",
            self.ledger.count_sent(),
            self.ledger.missing()
        );
    }

    /// Every pair of sites, in both directions.
    fn pairs(&self) -> Vec<(usize, usize)> {
        let sites = self.sites.len();
        let pairs = (0..sites).flat_map(|from| (0..sites).map(move |to| (from, to)));
        pairs.filter(|(from, to)| from != to).collect()
    }

    /// Asserts that, whatever happened, traffic comes to flow again by itself: everything speaks to everything, and after a
    /// while all of it arrives. (15 s without an answer bring a new handshake, which may have to be retried.)
    pub(crate) fn assert_recovered(&mut self) {
        for site in 0..self.sites.len() {
            self.host(site).ios().for_each(|io| io.blocked = false);
        }
        for _ in 0..25 {
            self.speak(1);
            self.run(millis(900));
        }
        let missing = self.missing();
        self.speak(5);
        self.run(secs(2));
        assert_eq!(self.missing(), missing, "traffic recovers");
    }

    fn speak(&mut self, packets: usize) {
        for (from, to) in self.pairs() {
            let flow = self.udp(from, to, 9);
            self.send(from, flow, packets, 64);
        }
        self.run(millis(50));
    }

    /// Has every site speak to every other, so that sessions stand in both directions.
    pub(crate) fn connect(&mut self) {
        for (from, to) in self.pairs() {
            let flow = self.udp(from, to, 1);
            self.send(from, flow, 1, 32);
            self.run(secs(1));
        }
        assert_eq!(self.missing(), 0, "sessions stand");
    }

    /// What `site` sent of one kind.
    pub(crate) fn tapped(&self, site: usize, kind: MessageKind) -> Vec<Tapped> {
        let ip = self.sites[site].addr.ip();
        let sent = self.world.network.tap().filter(|tapped| tapped.datagram.from.ip() == ip);
        sent.filter(|tapped| tapped.datagram.kind() == Some(kind)).cloned().collect()
    }

    /// Keepalives that `site` sent.
    pub(crate) fn keepalives(&self, site: usize) -> Vec<Tapped> {
        self.tapped(site, MessageKind::Data)
            .into_iter()
            .filter(|tapped| tapped.datagram.is_keepalive())
            .collect()
    }
}

/// How often decisions on assist change: with every other seed now and then, else never.
pub(crate) fn assist_of(seed: u64) -> u32 {
    [0, 200][seed as usize % 2]
}

pub(crate) fn random_key(world: &mut World) -> PrivateKey {
    let mut bytes = [0; 32];
    ringtun::crypto::random::Entropy::fill(world.rng(), &mut bytes);
    PrivateKey::from_bytes(bytes)
}
