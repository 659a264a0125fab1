//! client – gateway A – gateway B – server, where two ways lead from A to B: the tunnel, and a plain veth of the same MTU. On both,
//! what the client sends is forwarded twice, and what A's own programs send not at all.

use super::packet::{Ends, Unfinished};
use crate::implementation::Implementation;
use crate::lab::{Host, Process};
use crate::pair::{A, B, Family, Pair, Side, V4, V6};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// What the client's subnets have in their second byte, and those of A's own programs.
pub(super) const FORWARDED: u8 = 98;
pub(super) const LOCAL: u8 = 90;

/// Sends what its lines say: a frame with its virtio-net header by the interface `lan`, an IP packet by a raw
/// socket, or data by a UDP socket that the kernel cuts (UDP_SEGMENT). Answers `done` with the same.
const SENDER: &str = r"
import socket, struct, sys
def frames():
    s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    s.setsockopt(263, 15, 1) # SOL_PACKET, PACKET_VNET_HDR
    s.bind(('lan', 0))
    return s
def raw4():
    return socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
def raw6():
    s = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW)
    s.setsockopt(socket.IPPROTO_IPV6, 36, 1) # IPV6_HDRINCL
    return s
sockets = {}
def one(make):
    if make not in sockets:
        sockets[make] = make()
        sockets[make].setsockopt(socket.SOL_SOCKET, 32, 16 << 20) # SO_SNDBUFFORCE
    return sockets[make]
def program(source, destination, size, data):
    s = socket.socket(socket.AF_INET6 if ':' in source else socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.IPPROTO_IP, 15, 1) # IP_FREEBIND, of IPv6, too
    s.bind((source, 40000))
    s.sendmsg([data], [(17, 103, struct.pack('=H', size))], 0, (destination, 5001))
for line in sys.stdin:
    word, *rest = line.split()
    try:
        if word == 'done':
            print('done', flush=True)
        elif word == 'frame':
            one(frames).send(bytes.fromhex(rest[0]))
        elif word == 'raw':
            v6 = ':' in rest[0]
            one(raw6 if v6 else raw4).sendto(bytes.fromhex(rest[1]), (rest[0], 0))
        else:
            program(rest[0], rest[1], int(rest[2]), bytes.fromhex(rest[3]))
    except OSError as error:
        print('failed', word, rest[0][:60], error, flush=True)
";

/// Arguments: interface, second byte of addresses. Prints what comes in for subnet 2 of that network: length of the link's header,
/// virtio-net header, packet.
const CAPTURE: &str = r"
import socket, sys
interface, network = sys.argv[1], int(sys.argv[2])
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
s.setsockopt(263, 15, 1) # SOL_PACKET, PACKET_VNET_HDR
s.setsockopt(socket.SOL_SOCKET, 33, 64 << 20) # SO_RCVBUFFORCE
s.bind((interface, 3)) # ETH_P_ALL
print('ready', flush=True)
OUTGOING, ETHERNET = 4, 1
while True:
    try:
        data, (_, _, kind, link, _) = s.recvfrom(70000)
    except OSError:
        break # the interface is gone
    header = 14 if link == ETHERNET else 0
    packet = data[10 + header:]
    if kind == OUTGOING or not packet:
        continue
    v4 = packet[0] >> 4 == 4 and packet[16:19] == bytes([10, network, 2])
    v6 = packet[0] >> 4 == 6 and packet[24:28] == bytes([0xfd, network, 0, 2])
    if v4 or v6:
        print(header, data[:10].hex(), packet.hex(), flush=True)
";

/// A helper that reads lines and writes lines.
struct Helper {
    _process: Process,
    input: ChildStdin,
}

impl Helper {
    /// Starts it; its lines go to `lines`.
    fn start(host: &Host, script: &str, arguments: &[&str], lines: Sender<String>) -> Helper {
        let arguments = [&["-u", "-c", script], arguments].concat();
        let mut command = host.command("python3", &arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child: Child = command.spawn().expect("python3");
        let output = BufReader::new(child.stdout.take().expect("its output"));
        let input = child.stdin.take().expect("its input");
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if lines.send(line).is_err() {
                    return;
                }
            }
        });
        Helper { _process: Process::adopt(child), input }
    }
}

/// A sender, and what it answers.
struct SendingHelper {
    helper: Helper,
    answers: Receiver<String>,
}

impl SendingHelper {
    fn start(host: &Host) -> SendingHelper {
        let (lines, answers) = channel();
        SendingHelper { helper: Helper::start(host, SENDER, &[], lines), answers }
    }

    /// Has all lines carried out.
    fn send(&mut self, lines: &[String]) {
        writeln!(self.helper.input, "{}\ndone", lines.join("\n")).expect("the sender lives");
        let answer = self.answers.recv_timeout(Duration::from_secs(20)).expect("it answers");
        assert_eq!(answer, "done");
    }
}

/// What was captured of one packet or super-packet.
pub(super) struct Captured {
    pub(super) packet: Vec<u8>,
    pub(super) unfinished: Unfinished,
}

/// How packets reach B.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    Plain,
    Tunnel,
}

/// What the devices on the way do for packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Offloads {
    /// Super-packets pass every veth whole.
    Whole,
    /// The wire between the gateways cuts trains, and its ends join what comes in pieces, as network cards with GRO do.
    Joined,
    /// None of them, and the client's kernel finishes what it sends.
    Off,
}

/// The hosts.
pub(super) struct Lab {
    pub(super) pair: Pair,
    pub(super) client: Host,
    pub(super) server: Host,
    from_client: SendingHelper,
    from_gateway: SendingHelper,
    captured: Receiver<String>,
    _captures: Vec<Helper>,
}

/// Joins two namespaces by a veth of one name at both ends, with the hardware addresses 02:00:00:00:N:01 and :02.
fn join(a: &Host, b: &Host, link: &str, number: u8, mtu: u32) {
    a.run(&format!(
        "ip link add {link} address 02:00:00:00:{number:02}:01 mtu {mtu} type veth peer name {link} \
         address 02:00:00:00:{number:02}:02 mtu {mtu} netns {}",
        b.name()
    ));
    for (host, other) in [(a, 2), (b, 1)] {
        host.run(&format!(
            "ip link set {link} addrgenmode none up
             ip neigh replace 169.254.{number}.{other} lladdr 02:00:00:00:{number:02}:{other:02} dev {link} nud permanent
             ip neigh replace fe80::{other} lladdr 02:00:00:00:{number:02}:{other:02} dev {link} nud permanent"
        ));
    }
}

/// A route to a subnet of a network by the other end of a veth of [`join`].
fn by_veth(network: u8, subnet: u8, link: &str, number: u8, other: u8, source: Side, pair: &Pair) -> String {
    let (v4, v6) = (pair[source].inner(V4), pair[source].inner(V6));
    format!(
        "ip route replace 10.{network}.{subnet}.0/24 via 169.254.{number}.{other} dev {link} onlink src {v4}
         ip route replace fd{network:x}:{subnet}::/64 via fe80::{other} dev {link} src {v6}\n"
    )
}

/// Sets whether a veth takes super-packets and unfinished checksums, and whether it joins packets. It joins nothing that comes from
/// one with TSO (veth_skb_is_eligible_for_gro, drivers/net/veth.c).
fn set_link(host: &Host, link: &str, on: bool, gro: bool) {
    let [on, gro] = [on, gro].map(|on| if on { "on" } else { "off" });
    host.run(&format!("ethtool -K {link} tso {on} gso {on} tx-udp-segmentation {on} tx {on} gro {gro}"));
}

const LAN_A: u8 = 1;
const LAN_B: u8 = 2;
const PLAIN: u8 = 3;

impl Lab {
    /// All of it, with both ends of the tunnel of one kind, and the outer packets of one family.
    pub(super) fn new(implementation: Implementation, outer: Family) -> Option<Lab> {
        let pair = Pair::new(implementation, implementation)?;
        pair.configure(outer);
        let (client, server) = (Host::namespace(), Host::namespace());
        let (a, b) = (pair[A].host.clone(), pair[B].host.clone());
        join(&a, &client, "lan", LAN_A, 9000);
        join(&b, &server, "lan", LAN_B, 9000);
        join(&a, &b, "plain", PLAIN, 1420);
        for (side, subnet) in [(A, 2), (B, 1)] {
            let node = &pair[side];
            node.host.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
            node.host.run("for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 >$f; done");
            let peer = &pair[side.other()];
            let own = [FORWARDED, LOCAL]
                .map(|network| format!("10.{network}.{subnet}.0/24,fd{network:x}:{subnet}::/64"));
            node.host.run(&format!(
                "wg set {} peer {} allowed-ips {}/32,{}/128,{}",
                node.name(),
                peer.public,
                peer.inner(V4),
                peer.inner(V6),
                own.join(",")
            ));
        }
        // B's programs shall not answer what A's seem to say.
        b.run(&format!(
            "nft 'table inet mute {{ chain in {{ type filter hook prerouting priority raw; \
             ip daddr 10.{LOCAL}.2.0/24 drop; ip6 daddr fd{LOCAL:x}:2::/64 drop; }}; }}'"
        ));
        a.run(&format!(
            "ip route add local 10.{LOCAL}.1.0/24 dev lo; ip -6 route add local fd{LOCAL:x}:1::/64 dev lo"
        ));
        a.run(&by_veth(FORWARDED, 1, "lan", LAN_A, 2, A, &pair));
        b.run(&by_veth(FORWARDED, 2, "lan", LAN_B, 2, B, &pair));
        for (host, number, subnet) in [(&client, LAN_A, 1), (&server, LAN_B, 2)] {
            host.run(&format!(
                "ip addr add 10.{FORWARDED}.{subnet}.254/32 dev lan; ip addr add fd{FORWARDED:x}:{subnet}::fe/128 dev lan nodad
                 ip route add default via 169.254.{number}.1 dev lan onlink src 10.{FORWARDED}.{subnet}.254 mtu 1420
                 ip -6 route add default via fe80::1 dev lan src fd{FORWARDED:x}:{subnet}::fe mtu 1420"
            ));
        }
        let (lines, captured) = channel();
        let captures = [(&server, "lan", FORWARDED), (&*b, "plain", LOCAL), (&*b, pair[B].name(), LOCAL)]
            .map(|(host, link, network)| {
                Helper::start(host, CAPTURE, &[link, &network.to_string()], lines.clone())
            });
        for _ in &captures {
            assert_eq!(captured.recv_timeout(Duration::from_secs(20)).as_deref(), Ok("ready"));
        }
        let (from_client, from_gateway) = (SendingHelper::start(&client), SendingHelper::start(&a));
        pair.expect_ping(A, V4);
        Some(Lab { pair, client, server, from_client, from_gateway, captured, _captures: captures.into() })
    }

    /// Sets what the devices do.
    pub(super) fn set(&self, offloads: Offloads) {
        let (a, b) = (&*self.pair[A].host, &*self.pair[B].host);
        let is_on = offloads != Offloads::Off;
        for (host, link) in
            [(&self.client, "lan"), (a, "lan"), (a, "plain"), (b, "plain"), (b, "lan"), (&self.server, "lan")]
        {
            set_link(host, link, is_on, false);
        }
        for host in [a, b] {
            set_link(host, "wire", offloads == Offloads::Whole, offloads == Offloads::Joined);
        }
    }

    /// Has A's kernel join what the client sends in pieces. That is for streams alone: the kernel's GRO lets packets whose checksum
    /// is wrong, and some others, overtake those of their flow that it holds.
    pub(super) fn join_from_client(&self) {
        set_link(&self.client, "lan", false, false);
        set_link(&self.pair[A].host, "lan", true, true);
    }

    /// Leads everything to B by this way, and back.
    pub(super) fn lead(&self, way: Way) {
        let pair = &self.pair;
        for (side, subnet, other) in [(A, 2, 2), (B, 1, 1)] {
            let routes: String = [FORWARDED, LOCAL]
                .iter()
                .map(|&network| match way {
                    Way::Plain => by_veth(network, subnet, "plain", PLAIN, other, side, pair),
                    Way::Tunnel => {
                        let (name, v4, v6) = (pair[side].name(), pair[side].inner(V4), pair[side].inner(V6));
                        format!(
                            "ip route replace 10.{network}.{subnet}.0/24 dev {name} src {v4}
                             ip route replace fd{network:x}:{subnet}::/64 dev {name} src {v6}\n"
                        )
                    }
                })
                .collect();
            pair[side].host.run(&format!("set -e\n{routes}"));
        }
    }

    /// Sends these lines from the client or from A. By the tunnel, A's ringtun finds all of them at once.
    pub(super) fn send(&mut self, way: Way, is_local: bool, lines: &[String]) {
        let process =
            self.pair[A].device.as_ref().and_then(|device| device.process.as_ref()).expect("a process");
        let signal = |name| {
            if way == Way::Tunnel {
                process.signal(name)
            }
        };
        signal("STOP");
        let sender = if is_local { &mut self.from_gateway } else { &mut self.from_client };
        sender.send(lines);
        signal("CONT");
    }

    /// What is captured until `enough`, or for so long at most.
    pub(super) fn capture(&self, limit: Duration, mut enough: impl FnMut(Captured) -> bool) {
        let until = Instant::now() + limit;
        while let Ok(line) = self.captured.recv_timeout(until.saturating_duration_since(Instant::now())) {
            if enough(Captured::parse(&line)) {
                return;
            }
        }
    }
}

impl Captured {
    fn parse(line: &str) -> Captured {
        let mut words = line.split(' ');
        let mut word = || words.next().unwrap_or_default();
        let link: u16 = word().parse().expect("a length");
        let (head, packet) = (bytes(word()), bytes(word()));
        let field = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
        let unfinished = Unfinished {
            flags: head[0],
            gso: head[1],
            header_len: 0,
            gso_size: field(4),
            start: field(6).saturating_sub(link),
            field: field(8),
        };
        Captured { packet, unfinished }
    }
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("two digits");
    (0..hex.len()).step_by(2).map(digits).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The line that has the client send a packet by its interface.
pub(super) fn frame_line(family: Family, packet: &[u8], unfinished: &Unfinished) -> String {
    const ETHERNET: u16 = 14;
    let &Unfinished { flags, gso, header_len, gso_size, start, field } = unfinished;
    let shift = |offset: u16| if flags == 0 { 0 } else { offset + ETHERNET };
    let mut frame = vec![flags, gso];
    for field in [shift(header_len), gso_size, shift(start), field] {
        frame.extend(field.to_le_bytes());
    }
    frame.extend([2, 0, 0, 0, LAN_A, 1, 2, 0, 0, 0, LAN_A, 2]);
    frame.extend(if family == V4 { [8, 0] } else { [0x86, 0xdd] });
    frame.extend(packet);
    format!("frame {}", hex(&frame))
}

/// The line that has a raw socket of A's send a packet.
pub(super) fn raw_line(ends: &Ends, packet: &[u8]) -> String {
    format!("raw {} {}", text(&ends.destination), hex(packet))
}

/// The line that has a UDP socket of A's send data in datagrams of a size.
pub(super) fn program_line(ends: &Ends, data: &[u8], size: u16) -> String {
    format!("program {} {} {size} {}", text(&ends.source), text(&ends.destination), hex(data))
}

fn text(address: &[u8]) -> String {
    match <[u8; 4]>::try_from(address) {
        Ok(v4) => std::net::Ipv4Addr::from(v4).to_string(),
        Err(_) => std::net::Ipv6Addr::from(<[u8; 16]>::try_from(address).expect("an address")).to_string(),
    }
}
