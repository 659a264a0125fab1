//! Tunnels inside the tunnel: VXLAN and GENEVE, as the nodes of a cluster use them.

use crate::bulk;
use crate::implementation::{Hindrance, Implementation, ringtun_itself};
use crate::lab::{eventually, skip};
use crate::pair::{A, B, Family, Pair, Side, V4, V6};
use std::io::Write;
use std::time::Duration;

/// ringtun that says at its start which offloads there are.
const INFORMS: Implementation = Implementation::Hindered(&Hindrance {
    behind: &["env", "LOG_LEVEL=info"],
    options: &["--workers", "2", "--io", "uring"],
});
/// Bytes of a frame that only a super-packet has.
const MORE_THAN_ONE: u64 = 4000;

/// A tunnel between both ends, gone when this is dropped.
struct Laid<'a> {
    pair: &'a Pair,
}

impl Laid<'_> {
    /// Lays a tunnel of this kind over the given family, with or without outer checksums. It has 10.97.0.1 and fd97::1 at A, .2
    /// and ::2 at B. Nothing where the kernel has no such tunnels.
    fn new<'a>(pair: &'a Pair, kind: &str, outer: Family, summed: bool) -> Option<Laid<'a>> {
        let laid = Laid { pair };
        for side in [A, B] {
            let (here, there) = (pair[side].inner(outer), pair[side.other()].inner(outer));
            let last = if side == A { 1 } else { 2 };
            // A GENEVE device has no local address of its own on older kernels.
            let local = if kind == "vxlan" { format!("local {here} dstport 4789") } else { String::new() };
            let checksums = match (outer, summed) {
                (V4, true) => "udpcsum",
                (V4, false) => "noudpcsum",
                (V6, true) => "noudp6zerocsumtx noudp6zerocsumrx",
                (V6, false) => "udp6zerocsumtx udp6zerocsumrx",
            };
            // IPv4, UDP, the tunnel's header, Ethernet: 50 bytes; 20 more for IPv6.
            let mtu = 1420 - if outer == V4 { 50 } else { 70 };
            let made = pair[side].host.try_run(&format!(
                "ip link add inner0 type {kind} id 42 remote {there} {local} {checksums} && \
                 ip addr add 10.97.0.{last}/24 dev inner0 && ip addr add fd97::{last}/64 dev inner0 nodad && \
                 ip link set inner0 mtu {mtu} up"
            ));
            match made {
                Err(error) if error.contains("Unknown device type") || error.contains("not supported") => {
                    // Without VXLAN nothing is tried at all.
                    match kind {
                        "vxlan" => skip("the kernel has no vxlan"),
                        _ => drop(writeln!(
                            std::io::stderr(),
                            "NOTE: the kernel has no {kind}: VXLAN alone is tried"
                        )),
                    }
                    return None;
                }
                made => made.unwrap_or_else(|error| panic!("{error}")),
            };
        }
        Some(laid)
    }
}

impl Drop for Laid<'_> {
    fn drop(&mut self) {
        for side in [A, B] {
            let _ = self.pair[side].host.try_run("ip link del inner0");
        }
    }
}

/// Whether the kernel takes super-packets of tunnels, as both ends say at their start.
fn has_offload(pair: &Pair) -> bool {
    pair.tell().contains("UDP tunnels")
}

/// A counter of one side's interface.
fn counter(pair: &Pair, side: Side, device: &str, name: &str) -> u64 {
    let text = pair[side].host.run(&format!("cat /sys/class/net/{device}/statistics/{name}"));
    text.trim().parse().expect("a number")
}

/// Moves bytes through a tunnel of each kind: both families outside and inside, with and without outer checksums. `look` is called
/// after each.
#[track_caller]
fn moves_through_each(pair: &Pair, mebibytes: u32, mut look: impl FnMut(&str)) {
    'kinds: for kind in ["vxlan", "geneve"] {
        for outer in [V4, V6] {
            for summed in [true, false] {
                let Some(_laid) = Laid::new(pair, kind, outer, summed) else { continue 'kinds };
                // The notification of the new tunnel reaches the workers a moment later.
                std::thread::sleep(Duration::from_millis(100));
                for address in ["10.97.0.2", "fd97::2"] {
                    bulk::moves_unaltered_to(pair, address, mebibytes);
                }
                look(&format!("{kind} over {outer:?}, checksums {summed}"));
            }
        }
    }
}

/// Checks that all shapes of tunnels are carried.
#[track_caller]
pub(crate) fn carries_all(pair: &Pair) {
    moves_through_each(pair, 2, |_| {});
}

fn bytes_arrive_unaltered(implementation: Implementation) {
    if !bulk::ready() || !ringtun_itself() {
        return;
    }
    let Some(pair) = Pair::connected(implementation, implementation) else { return };
    moves_through_each(&pair, 16, |shape| {
        if !has_offload(&pair) {
            return;
        }
        // The kernel counts a super-packet as one. What arrives at the inner device was joined by the receiving end.
        for side in [A, B] {
            let mean =
                counter(&pair, side, "inner0", "rx_bytes") / counter(&pair, side, "inner0", "rx_packets");
            assert!(mean > MORE_THAN_ONE, "{shape}: {mean} bytes a packet at {side:?}");
        }
    });
    if has_offload(&pair) {
        for side in [A, B] {
            let device = pair[side].name();
            let mean = counter(&pair, side, device, "tx_bytes") / counter(&pair, side, device, "tx_packets");
            assert!(mean > MORE_THAN_ONE, "{mean} bytes a packet out of the kernel at {side:?}");
        }
    }
}

#[test]
fn bytes_through_tunnels_in_the_tunnel_arrive_unaltered_over_io_uring() {
    bytes_arrive_unaltered(INFORMS);
}

#[test]
fn bytes_through_tunnels_in_the_tunnel_arrive_unaltered_over_plain_syscalls() {
    static SYSCALLS: Hindrance =
        Hindrance { behind: &["env", "LOG_LEVEL=info"], options: &["--workers", "2", "--io", "syscalls"] };
    bytes_arrive_unaltered(Implementation::Hindered(&SYSCALLS));
}

/// Binds VXLAN's port as a program does, receives for a while, and prints the lengths of the datagrams.
const PROGRAM: &str = r"
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('0.0.0.0', 4789))
print('bound', flush=True)
s.settimeout(2)
lengths = set()
try:
    while True:
        lengths.add(len(s.recv(65535)))
except socket.timeout:
    print('lengths', *sorted(lengths), flush=True)
";

/// Argument: address. Sends it 20 datagrams to VXLAN's port at once, with segments of one TCP flow inside, 1062 bytes each.
const SEGMENTS: &str = r"
import socket, struct, sys
def checksum(data):
    total = sum(struct.unpack(f'!{len(data) // 2}H', data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return struct.pack('!H', total ^ 0xffff)
def segment(n):
    hosts = bytes([10, 97, 0, 1, 10, 97, 0, 2])
    tcp = struct.pack('!HHIIBBHHH', 1111, 2222, 1 + 1000 * n, 1, 0x50, 0x10, 512, 0, 0) + bytes(1000)
    tcp = tcp[:16] + checksum(hosts + struct.pack('!HH', 6, len(tcp)) + tcp) + tcp[18:]
    ip = struct.pack('!BBHHHBBH', 0x45, 0, 20 + len(tcp), n, 0x4000, 64, 6, 0) + hosts
    ip = ip[:10] + checksum(ip) + ip[12:]
    return struct.pack('!II', 8 << 24, 42 << 8) + bytes([2] * 12) + struct.pack('!H', 0x800) + ip + tcp
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams = [segment(n) for n in range(20)]
UDP_SEGMENT = 103
s.setsockopt(socket.SOL_UDP if hasattr(socket, 'SOL_UDP') else 17, UDP_SEGMENT, len(datagrams[0]))
s.sendto(b''.join(datagrams), (sys.argv[1], 4789))
";

#[test]
fn a_program_at_a_tunnels_port_gets_single_datagrams() {
    if !bulk::ready() || !ringtun_itself() {
        return;
    }
    let Some(pair) = Pair::connected(INFORMS, INFORMS) else { return };
    let segments = || {
        let mut sender = pair[A].host.start("python3", &["-c", SEGMENTS, pair[B].inner(V4)]);
        assert!(
            sender.wait(Duration::from_secs(10)).is_some_and(|status| status.success()),
            "{}",
            sender.said()
        );
    };
    let Some(laid) = Laid::new(&pair, "vxlan", V4, true) else { return };
    std::thread::sleep(Duration::from_millis(100));
    let arrived = |name| counter(&pair, B, "inner0", name);
    let before = (arrived("rx_bytes"), arrived("rx_packets"));
    segments();
    eventually("the tunnel has them", Duration::from_secs(5), || arrived("rx_bytes") >= before.0 + 20_000);
    let packets = arrived("rx_packets") - before.1;
    assert!(!has_offload(&pair) || packets < 10, "20 segments came as {packets} packets: were they no good?");

    drop(laid);
    let mut program = pair[B].host.start("python3", &["-u", "-c", PROGRAM]);
    eventually("the program listens", Duration::from_secs(5), || program.said().contains("bound"));
    std::thread::sleep(Duration::from_millis(100));
    segments();
    program.wait(Duration::from_secs(20));
    assert!(program.said().trim().ends_with("lengths 1062"), "{}", program.said());
}
