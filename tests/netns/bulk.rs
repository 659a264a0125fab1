//! Bytes arrive as they were sent. iperf3 does not check them, and where checksums are left to offloads nobody else does.

use crate::implementation::{Implementation, Io, RINGTUN_TWO};
use crate::lab::{Host, find_program, skip};
use crate::pair::{A, B, Family, Pair, V4, V6};

/// Serves on the wildcard of both families: TCP on port 7000 (reads to the end, answers with the hash of what it read, then
/// sends as many bytes of its own and their hash), UDP on port 7001 (echo).
const SERVER: &str = r"
import hashlib, os, socket, threading
def udp():
    s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    s.bind(('::', 7001))
    while True:
        data, source = s.recvfrom(65535)
        s.sendto(data, source)
threading.Thread(target=udp, daemon=True).start()
t = socket.create_server(('::', 7000), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    c, _ = t.accept()
    seen, total = hashlib.sha256(), 0
    while chunk := c.recv(1 << 18):
        seen.update(chunk)
        total += len(chunk)
    c.sendall(seen.digest())
    sent = hashlib.sha256()
    while total > 0:
        block = os.urandom(min(total, 1 << 20))
        sent.update(block)
        c.sendall(block)
        total -= len(block)
    c.sendall(sent.digest())
    c.close()
";

/// Arguments: address, bytes for TCP. Fails when anything arrives altered.
const CLIENT: &str = r"
import hashlib, os, socket, sys, time
address, total = sys.argv[1], int(sys.argv[2])
for _ in range(50):
    try:
        c = socket.create_connection((address, 7000), timeout=60)
        break
    except ConnectionRefusedError:
        time.sleep(0.1)
sent, left = hashlib.sha256(), total
while left > 0:
    # Writes of every size, so that segments end where they like.
    block = os.urandom(min(left, 1 + int.from_bytes(os.urandom(3), 'big') % 300000))
    sent.update(block)
    c.sendall(block)
    left -= len(block)
c.shutdown(socket.SHUT_WR)
f = c.makefile('rb')
assert f.read(32) == sent.digest(), 'altered on the way there'
seen, left = hashlib.sha256(), total
while left > 0:
    block = f.read(min(left, 1 << 18))
    assert block, 'cut short on the way back'
    seen.update(block)
    left -= len(block)
assert f.read(32) == seen.digest(), 'altered on the way back'
family = socket.AF_INET6 if ':' in address else socket.AF_INET
u = socket.socket(family, socket.SOCK_DGRAM)
u.settimeout(1)
u.connect((address, 7001))
for size in [*range(0, 1500, 7), 1371, 1372, 1373, 1391, 1392, 1393, 4000, 9000, 30000, 65000]:
    data = os.urandom(size)
    for attempt in range(5):
        u.send(data)
        try:
            answer = u.recv(65535)
            break
        except socket.timeout:
            pass
    else:
        sys.exit(f'no echo of {size} bytes')
    assert answer == data, f'{size} bytes altered'
";

/// Moves `mebibytes` each way by TCP and datagrams of many sizes by UDP.
#[track_caller]
pub(crate) fn moves_unaltered(pair: &Pair, inner: Family, mebibytes: u32) {
    moves_unaltered_to(pair, pair[B].inner(inner), mebibytes);
}

/// The same to another address of B's.
#[track_caller]
pub(crate) fn moves_unaltered_to(pair: &Pair, address: &str, mebibytes: u32) {
    moves_unaltered_between(&pair[A].host, &pair[B].host, address, mebibytes, || pair.tell());
}

/// The same between two other hosts. What `tell` says is told when it fails.
#[track_caller]
pub(crate) fn moves_unaltered_between(
    client: &Host,
    server: &Host,
    address: &str,
    mebibytes: u32,
    tell: impl Fn() -> String,
) {
    let _server = server.start("python3", &["-c", SERVER]);
    let bytes = (mebibytes << 20).to_string();
    let mut client = client.start("python3", &["-c", CLIENT, address, &bytes]);
    let status = client.wait(std::time::Duration::from_secs(120));
    assert!(status.is_some_and(|status| status.success()), "{status:?} {}{}", client.said(), tell());
}

/// Whether what a checked transfer needs is there; says so where it is not.
pub(crate) fn ready() -> bool {
    for program in ["python3", "ethtool"] {
        if find_program(program).is_none() {
            skip(&format!("{program} is not installed"));
            return false;
        }
    }
    true
}

/// Sets both ends' inner MTU, and their wire to segment in software.
fn shape(pair: &Pair, mtu: u32, segmented: bool, gro: bool) {
    for side in [A, B] {
        let node = &pair[side];
        node.host.run(&format!("ip link set {} mtu {mtu}", node.name()));
        let on = |yes| if yes { "on" } else { "off" };
        // A veth merges nothing that comes from one with TSO (veth_skb_is_eligible_for_gro, drivers/net/veth.c).
        let (offload, gro) = (on(!segmented), on(gro));
        node.host.run(&format!("ethtool -K wire tso {offload} tx-udp-segmentation {offload} gro {gro}"));
    }
}

fn over_every_wire(implementation: Implementation) {
    if !ready() {
        return;
    }
    let Some(pair) = Pair::connected(implementation, implementation) else { return };
    for (mtu, segmented, gro) in
        [(1420, false, false), (1420, true, true), (1420, true, false), (1337, false, false)]
    {
        shape(&pair, mtu, segmented, gro);
        for inner in [V4, V6] {
            moves_unaltered(&pair, inner, 32);
        }
    }
}

#[test]
fn bytes_arrive_unaltered_over_io_uring() {
    over_every_wire(RINGTUN_TWO);
}

#[test]
fn bytes_arrive_unaltered_over_plain_syscalls() {
    over_every_wire(Implementation::Ringtun { workers: 2, io: Io::Syscalls });
}
