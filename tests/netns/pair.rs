//! Two devices on a wire, each with the other as its peer.

use crate::implementation::{Device, Implementation};
use crate::lab::{Host, Process, join, ready, sh, skip};
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

/// Which of the two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    /// The first.
    A,
    /// The second.
    B,
}

impl Side {
    /// The other one.
    pub(crate) fn other(self) -> Side {
        if self == Side::A { Side::B } else { Side::A }
    }
}

/// A version of IP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

pub(crate) use Family::{V4, V6};
pub(crate) use Side::{A, B};

/// One end.
pub(crate) struct Node {
    /// Where it runs.
    pub(crate) host: Arc<Host>,
    /// Its device; none while it is restarted.
    pub(crate) device: Option<Device>,
    /// Its private key.
    pub(crate) private: String,
    /// Its public key.
    pub(crate) public: String,
    /// Its outer port.
    pub(crate) port: u16,
    implementation: Implementation,
    side: Side,
    /// Grows with every move to another address.
    moves: u8,
}

impl Node {
    fn new(host: Arc<Host>, implementation: Implementation, side: Side) -> Node {
        let (private, public) = key_pair();
        Node { host, device: None, private, public, port: 51820, implementation, side, moves: 0 }
    }

    /// Its outer address. IPv6's is of a documentation prefix.
    fn outer(&self, family: Family) -> String {
        let last = if self.side == A { 10 } else { 20 } + self.moves;
        match family {
            V4 => format!("198.18.0.{last}"),
            V6 => format!("2001:db8::{last}"),
        }
    }

    /// Its address inside the tunnel.
    pub(crate) fn inner(&self, family: Family) -> &'static str {
        match (self.side, family) {
            (A, V4) => "10.99.0.1",
            (B, V4) => "10.99.0.2",
            (A, V6) => "fd99::1",
            (B, V6) => "fd99::2",
        }
    }

    /// Its outer address and port as `wg` writes them.
    pub(crate) fn endpoint(&self, family: Family) -> String {
        match family {
            V4 => format!("{}:{}", self.outer(V4), self.port),
            V6 => format!("[{}]:{}", self.outer(V6), self.port),
        }
    }

    /// The device's name.
    pub(crate) fn name(&self) -> &str {
        &self.device.as_ref().expect("a running device").name
    }

    fn add_outer_addresses(&self) {
        let link = &self.host.link;
        self.host.run(&format!("ip addr add {}/24 dev {link}", self.outer(V4)));
        self.host.run(&format!("ip addr add {}/64 dev {link} nodad", self.outer(V6)));
    }

    /// Makes the device and gives it its addresses; it has no key yet.
    fn start(&mut self) {
        let device = Device::start(&self.host, self.implementation);
        let name = &device.name;
        self.host.run(&format!(
            "ip addr add {}/24 dev {name} && ip addr add {}/64 dev {name} nodad && ip link set {name} mtu 1420 up",
            self.inner(V4),
            self.inner(V6)
        ));
        self.device = Some(device);
    }

    /// A value of `wg show`, of its only peer.
    pub(crate) fn wg_show(&self, what: &str) -> String {
        let answer = self.host.run(&format!("wg show {} {what}", self.name()));
        answer.split_whitespace().nth(1).unwrap_or_default().to_owned()
    }
}

/// A fresh private key and its public key.
pub(crate) fn key_pair() -> (String, String) {
    let private = sh("wg genkey").expect("wg genkey").trim().to_owned();
    let public = sh(&format!("echo {private} | wg pubkey")).expect("wg pubkey").trim().to_owned();
    (private, public)
}

/// Two nodes. The devices go before the namespaces.
pub(crate) struct Pair {
    a: Node,
    b: Node,
    /// Of both; none at first.
    pub(crate) psk: Option<String>,
}

impl Pair {
    /// Two devices on a wire, without keys or peers; nothing where the machine lacks something. The kernel can only be B.
    pub(crate) fn new(a: Implementation, b: Implementation) -> Option<Pair> {
        if !ready() {
            return None;
        }
        if let Some(because) = a.missing().or_else(|| b.missing()) {
            skip(&because);
            return None;
        }
        let host_a = Arc::new(Host::namespace());
        let host_b =
            Arc::new(if b == Implementation::Kernel { Host::guest(&host_a) } else { Host::namespace() });
        if b == Implementation::Kernel {
            host_b.run(&format!("ip link set {} up", host_b.link));
        } else {
            join(&host_a, &host_b);
        }
        let mut pair = Pair { a: Node::new(host_a, a, A), b: Node::new(host_b, b, B), psk: None };
        for side in [A, B] {
            pair[side].add_outer_addresses();
            pair[side].start();
        }
        Some(pair)
    }

    /// A pair that is configured over IPv4 without a preshared key, and has shaken hands.
    pub(crate) fn connected(a: Implementation, b: Implementation) -> Option<Pair> {
        let pair = Pair::new(a, b)?;
        pair.configure(V4);
        pair.expect_ping(A, V4);
        Some(pair)
    }

    /// The configuration of one side, as `wg setconf` takes it; the peer's endpoint only where it is to be known.
    pub(crate) fn configuration(&self, side: Side, endpoint: Option<Family>) -> String {
        let (me, peer) = (&self[side], &self[side.other()]);
        let mut text = format!(
            "[Interface]\nPrivateKey = {}\nListenPort = {}\n[Peer]\nPublicKey = {}\nAllowedIPs = {}/32, {}/128\n",
            me.private,
            me.port,
            peer.public,
            peer.inner(V4),
            peer.inner(V6)
        );
        if let Some(family) = endpoint {
            let _ = writeln!(text, "Endpoint = {}", peer.endpoint(family));
        }
        if let Some(psk) = &self.psk {
            let _ = writeln!(text, "PresharedKey = {psk}");
        }
        text
    }

    /// `wg setconf` on one side.
    pub(crate) fn configure_side(&self, side: Side, endpoint: Option<Family>) {
        let text = self.configuration(side, endpoint);
        let node = &self[side];
        let done = node.host.try_run_with_file(&text, &format!("wg setconf {} $FILE", node.name()));
        done.unwrap_or_else(|error| panic!("{error}"));
    }

    /// `wg setconf` on both sides, each knowing where the other is.
    pub(crate) fn configure(&self, outer: Family) {
        for side in [A, B] {
            self.configure_side(side, Some(outer));
        }
    }

    /// Pings the far side until one answer comes, at most for `limit`.
    pub(crate) fn ping(&self, from: Side, inner: Family, limit: Duration) -> Result<(), String> {
        let (me, peer) = (&self[from], &self[from.other()]);
        let flag = if inner == V4 { "-4" } else { "-6" };
        let (seconds, address) = (limit.as_secs(), peer.inner(inner));
        // busybox's ping sends as many as it is told, that of iputils until as many have come back.
        let script = if me.host.is_guest() {
            format!(
                "i=0; until ping {flag} -q -c 1 -W 1 {address}; do i=$((i+1)); [ $i -lt {seconds} ] || exit 1; done"
            )
        } else {
            format!("ping {flag} -q -c 1 -w {seconds} {address}")
        };
        me.host.try_run(&script).map(drop)
    }

    /// As [`Self::ping`], and must succeed in good time.
    #[track_caller]
    pub(crate) fn expect_ping(&self, from: Side, inner: Family) {
        if let Err(error) = self.ping(from, inner, Duration::from_secs(10)) {
            panic!("{error}\n{}", self.tell());
        }
    }

    /// Both sides' state, for a failure's message.
    pub(crate) fn tell(&self) -> String {
        let mut text = String::new();
        for side in [A, B] {
            let node = &self[side];
            let shown =
                node.device.as_ref().map(|device| node.host.try_run(&format!("wg show {}", device.name)));
            let said =
                node.device.as_ref().and_then(|device| device.process.as_ref()).map(|process| process.said());
            let _ = writeln!(
                text,
                "--- {side:?} {:?}\n{shown:?}\n{}",
                node.implementation,
                said.unwrap_or_default()
            );
        }
        text
    }

    /// Pings from A to B, 20 a second, until the guard is asked for the outcome.
    pub(crate) fn pinger(&self) -> Pinger {
        Pinger { process: self.a.host.start("ping", &["-i", "0.05", self.b.inner(V4)]) }
    }

    /// iperf3 from A to B for some seconds with further options; what it said.
    #[track_caller]
    pub(crate) fn iperf3(&self, inner: Family, options: &str) -> String {
        let _server = self.b.host.iperf3_server();
        let done = self.a.host.try_run(&format!("iperf3 -c {} {options}", self.b.inner(inner)));
        done.unwrap_or_else(|error| panic!("{error}\n{}", self.tell()))
    }

    /// Stops a side's device and makes another in its place, without configuration.
    pub(crate) fn restart(&mut self, side: Side) {
        self[side].device = None;
        self[side].start();
    }

    /// Gives a side another outer address and, if it can, port; its peer is not told.
    pub(crate) fn roam(&mut self, side: Side) {
        let node = &mut self[side];
        node.host.run(&format!("ip addr flush dev {} scope global", node.host.link));
        node.moves += 1;
        node.add_outer_addresses();
        // gotatun 0.10.2 now and then takes a change of its port for the end of its TUN device, and shuts down.
        if node.implementation != Implementation::Gotatun {
            node.port += 1;
            node.host.run(&format!("wg set {} listen-port {}", node.name(), node.port));
        }
    }
}

/// Pings that run beside a test.
pub(crate) struct Pinger {
    process: Process,
}

impl Pinger {
    /// Ends it; the numbers of those that did not come back, without the last one, which may have been under way.
    pub(crate) fn missing(mut self) -> Vec<u32> {
        std::thread::sleep(Duration::from_millis(500));
        self.process.signal("INT");
        self.process.wait(Duration::from_secs(15));
        let said = self.process.said();
        let (sent, _) = ping_counts(&said);
        (1..sent).filter(|number| !said.contains(&format!("icmp_seq={number} "))).collect()
    }

    /// Ends it; how many were sent and how many came back, without the last one if that was still under way.
    pub(crate) fn outcome(mut self) -> (u32, u32) {
        std::thread::sleep(Duration::from_millis(300));
        self.process.signal("INT");
        self.process.wait(Duration::from_secs(15));
        let said = self.process.said();
        let (sent, received) = ping_counts(&said);
        let came_back = said.contains(&format!("icmp_seq={sent} "));
        (sent - u32::from(sent > 0 && !came_back), received)
    }
}

/// Sent and received, as ping's last lines tell.
pub(crate) fn ping_counts(said: &str) -> (u32, u32) {
    let line = said
        .lines()
        .find(|line| line.contains("packets transmitted"))
        .unwrap_or_else(|| panic!("ping: {said}"));
    let mut counts =
        line.split(", ").map(|part| part.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0));
    (counts.next().unwrap_or(0), counts.next().unwrap_or(0))
}

impl std::ops::Index<Side> for Pair {
    type Output = Node;

    fn index(&self, side: Side) -> &Node {
        if side == A { &self.a } else { &self.b }
    }
}

impl std::ops::IndexMut<Side> for Pair {
    fn index_mut(&mut self, side: Side) -> &mut Node {
        if side == A { &mut self.a } else { &mut self.b }
    }
}
