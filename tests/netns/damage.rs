//! What is damaged before the tunnel fails its own checksum behind it (rule 16): client – gateway – gateway – server, where the
//! first gateway's firewall overwrites a byte of some packets as they come in from the client.

use crate::bulk;
use crate::implementation::{RINGTUN_TWO, ringtun_itself};
use crate::lab::{Host, find_program, skip};
use crate::pair::{A, B, Family, Pair, V4, V6};

/// Arguments: address. Serves TCP and UDP on port 7100: of each connection the hash of what came, of datagrams how many came and how
/// many of them were altered, asked for by the word `tell`.
const SERVER: &str = r"
import hashlib, socket, threading
def body(n):
    return n.to_bytes(4, 'big') + bytes((n * 7 + i) % 251 for i in range(996))
def udp():
    s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    s.bind(('::', 7100))
    came = altered = 0
    while True:
        data, source = s.recvfrom(65535)
        if data == b'tell':
            s.sendto(f'{came} {altered}'.encode(), source)
            continue
        came += 1
        altered += data != body(int.from_bytes(data[:4], 'big') % 100000)
threading.Thread(target=udp, daemon=True).start()
t = socket.create_server(('::', 7100), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    c, _ = t.accept()
    seen = hashlib.sha256()
    while chunk := c.recv(1 << 18):
        seen.update(chunk)
    c.sendall(seen.digest())
    c.close()
";

/// Arguments: address. Sends 4 MiB by TCP and bursts of equal datagrams by UDP; prints how many datagrams came, and fails when
/// anything did so altered.
const CLIENT: &str = r"
import hashlib, os, socket, sys, time
address = sys.argv[1]
for _ in range(50):
    try:
        c = socket.create_connection((address, 7100), timeout=60)
        break
    except OSError:
        time.sleep(0.1)
data = os.urandom(4 << 20)
c.sendall(data)
c.shutdown(socket.SHUT_WR)
assert c.makefile('rb').read(32) == hashlib.sha256(data).digest(), 'TCP altered'
def body(n):
    return n.to_bytes(4, 'big') + bytes((n * 7 + i) % 251 for i in range(996))
u = socket.socket(socket.AF_INET6 if ':' in address else socket.AF_INET, socket.SOCK_DGRAM)
u.settimeout(2)
u.connect((address, 7100))
for burst in range(50):
    for i in range(40):
        u.send(body(burst * 40 + i))
    time.sleep(0.005)
time.sleep(0.5)
for attempt in range(10):
    u.send(b'tell')
    try:
        came, altered = map(int, u.recv(100).split())
        break
    except socket.timeout:
        pass
assert altered == 0, f'{altered} of {came} datagrams altered'
print('came', came)
";

/// Overwrites the 16 bits at byte 200 of the transport part, which no checksum follows, in every 50th packet that comes in by `lan`.
const DAMAGE: &str = "nft -f - <<'END'
table inet damage {
  chain in {
    type filter hook prerouting priority -300;
    iifname lan meta length > 1000 numgen inc mod 50 0 @th,1600,16 set 0xa55a counter
  }
}
END";

/// A client behind A, whose packets A damages now and then.
fn client(pair: &Pair) -> Host {
    let (a, b) = (&pair[A], &pair[B]);
    let client = Host::namespace();
    client.run(&format!("ip link add lan type veth peer name lan netns {}", a.host.name()));
    for (host, last) in [(&client, 2), (&*a.host, 1)] {
        host.run(&format!(
            "ip addr add 10.98.0.{last}/24 dev lan; ip addr add fd98::{last}/64 dev lan nodad; ip link set lan mtu 1420 up"
        ));
        // Whole checksums and single packets, as a cable has them.
        host.run("ethtool -K lan tx off tso off gso off gro off");
    }
    client.run("ip route add default via 10.98.0.1; ip -6 route add default via fd98::1");
    a.host.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    a.host.run(DAMAGE);
    let prefixes = format!("{}/32,{}/128,10.98.0.0/24,fd98::/64", a.inner(V4), a.inner(V6));
    b.host.run(&format!("wg set {} peer {} allowed-ips {prefixes}", b.name(), a.public));
    b.host.run(&format!("ip route add 10.98.0.0/24 dev {0}; ip -6 route add fd98::/64 dev {0}", b.name()));
    client
}

/// Checksum errors of TCP and UDP together that the host counted.
fn checksum_errors(host: &Host) -> u64 {
    let counted = host.run("nstat -asz TcpInCsumErrors UdpInCsumErrors Udp6InCsumErrors");
    counted.lines().filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum()
}

fn nothing_altered_reaches_an_application(inner: Family) {
    if !ringtun_itself() || !bulk::ready() {
        return;
    }
    if let Some(missing) = ["nft", "nstat"].into_iter().find(|name| find_program(name).is_none()) {
        return skip(&format!("{missing} is not installed"));
    }
    let Some(pair) = Pair::connected(RINGTUN_TWO, RINGTUN_TWO) else { return };
    let client = client(&pair);
    let _server = pair[B].host.start("python3", &["-c", SERVER]);
    let mut sender = client.start("python3", &["-c", CLIENT, pair[B].inner(inner)]);
    let status = sender.wait(std::time::Duration::from_secs(90));
    assert!(status.is_some_and(|status| status.success()), "{status:?} {}{}", sender.said(), pair.tell());
    assert!(
        checksum_errors(&pair[B].host) > 0,
        "nothing was damaged: {}",
        pair[A].host.run("nft list ruleset")
    );
}

#[test]
fn what_is_damaged_before_the_tunnel_fails_behind_it_over_ipv4() {
    nothing_altered_reaches_an_application(V4);
}

#[test]
fn what_is_damaged_before_the_tunnel_fails_behind_it_over_ipv6() {
    nothing_altered_reaches_an_application(V6);
}
