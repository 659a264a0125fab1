#!/usr/bin/env python3
"""Where the time goes: lays a tunnel through two namespaces, loads it with iperf3, samples both devices' processes with
perf, and writes a flame graph and a table of shares by cause.

Files in perf/out (or --out): NAME.folded (stacks, one a line), NAME.svg (the flame graph; open it in a browser), and
NAME.txt (the table). Uses the processor's cycle counter where there is one, else the kernel's clock (as in most virtual
machines): then code that runs with interrupts off is charged to where they come on again.
"""

import argparse
import collections
import html
import os
import re
import shutil
import sys
import time

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.realpath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "scripts"))
from lab import LOADS, WIRES, Implementation, Lab, LabError, Tunnel, main_guard  # noqa: E402

# What a stack is charged to: the first cause with a frame that matches, looked for from the innermost frame outwards; so
# a copy inside a TUN write is a copy, and the rest of that write is the TUN's.
CAUSES = [
    ("AEAD", r"chacha|poly1305|::aead|crypto::lanes|CRYPTO_|_open_|seal_in_place|open_within|x86_64_.*20poly|gcm"),
    ("copies", r"copy_user|copy_to_user|copy_from_user|_copy_(to|from)_iter|rep_movs|memcpy|memmove|skb_copy_|copyin|copyout"),
    ("split and coalesce", r"::offload::"),
    ("checksums", r"csum|checksum"),
    ("handshakes", r"x25519|curve25519|blake2|handshake"),
    ("TUN", r"^tun_|^tap_|tun_get_user|tun_put_user|virtio_net_hdr"),
    ("UDP", r"^udp|^udpv6|__udp|^ip_send_skb|^sock_sendmsg|^sock_recvmsg|____sys_(send|recv)msg|udp_gro|skb_segment"),
    ("ring and waiting", r"io_uring|^io_|epoll|schedule|futex|ep_poll"),
    ("TCP/IP behind the TUN", r"^tcp_|^ip_|^ip6_|^ipv6_|netif_receive|napi_|^net_rx"),
    ("packets of our own: split, merge, route", r"ringtun::(offload|dataplane|routing|wire|noise)"),
]
REST = "rest"
# The load runs once so many packets have passed, and no later than that.
LOAD_PACKETS, LOAD_STARTS_SECONDS = 1000, 10
TITLE_HEIGHT, ROW_HEIGHT, WIDTH, MIN_WIDTH = 40, 17, 1400, 0.3


def fold(script_output):
    """`perf script`'s text to a count by stack: a tuple of frames, outermost first, the thread's name before them."""
    counts = collections.Counter()
    name, frames = None, []
    for line in [*script_output.splitlines(), ""]:
        if not line.strip():
            if name is not None:
                counts[(name, *reversed(frames))] += 1
            name, frames = None, []
        elif not line[0].isspace():
            name = line.rsplit(None, 1)[0] if re.match(r".*\s\d+$", line) else line.split()[0]
        else:
            frames.append(frame_of(line))
    return counts


def frame_of(line):
    """The function's name out of one line of a stack: ADDRESS NAME+OFFSET (OBJECT)."""
    match = re.match(r"\s*[0-9a-f]+\s+(.*?)(?:\+0x[0-9a-f]+)?(?:\s+\((.*)\))?\s*$", line)
    if not match:
        return line.strip()
    name, place = match.group(1), match.group(2) or ""
    if name == "[unknown]":
        return f"[{os.path.basename(place) or 'unknown'}]"
    return re.sub(r"::h[0-9a-f]{16}$", "", name)


def cause_of(stack):
    """Whom a stack is charged to; see CAUSES."""
    for frame in reversed(stack[1:]):
        for cause, pattern in COMPILED:
            if pattern.search(frame):
                return cause
    return REST


COMPILED = [(cause, re.compile(pattern)) for cause, pattern in CAUSES]


def shares(counts):
    """The share of all samples by cause, and each cause's innermost functions, most first."""
    by_cause, leaves = collections.Counter(), collections.defaultdict(collections.Counter)
    for stack, count in counts.items():
        cause = cause_of(stack)
        by_cause[cause] += count
        leaves[cause][stack[-1]] += count
    total = sum(by_cause.values())
    lines = [f"{total} samples", "", f"{'share':>6}  cause"]
    for cause, count in by_cause.most_common():
        lines.append(f"{100 * count / total:5.1f}%  {cause}")
        lines += [f"{'':10}{100 * n / total:5.1f}%  {leaf}" for leaf, n in leaves[cause].most_common(5)]
    return "\n".join(lines)


class Node:
    """A frame of the flame graph with all that it called."""

    def __init__(self):
        self.count, self.children = 0, {}

    def add(self, stack, count):
        """Counts a stack from here on."""
        self.count += count
        node = self
        for frame in stack:
            node = node.children.setdefault(frame, Node())
            node.count += count

    def depth(self):
        """Rows needed."""
        return 1 + max((child.depth() for child in self.children.values()), default=0)


def colour(name):
    """One colour a name, the same in every graph: kernel-like names bluish, others warm."""
    seed = sum((at + 1) * ord(letter) for at, letter in enumerate(name))
    hue = 20 + seed % 35 if "::" in name or name.startswith("[") else 190 + seed % 40
    return f"hsl({hue},70%,{62 + seed % 13}%)"


def flame_graph(counts, title):
    """The graph as SVG: width is share, the outermost frame at the bottom; a click widens a frame, one on the title resets."""
    root = Node()
    for stack, count in counts.items():
        root.add(stack, count)
    height = TITLE_HEIGHT + root.depth() * ROW_HEIGHT + 10
    boxes = []

    def draw(name, node, left, row):
        width = WIDTH * node.count / root.count
        if width < MIN_WIDTH:
            return
        top = height - (row + 1) * ROW_HEIGHT - 5
        tip = html.escape(f"{name}: {node.count} samples, {100 * node.count / root.count:.1f}%")
        boxes.append(f'<g class="f" data-x="{left:.2f}" data-w="{width:.2f}" data-n="{html.escape(name, quote=True)}">'
                     f'<title>{tip}</title><rect x="{left:.2f}" y="{top}" width="{width:.2f}" height="{ROW_HEIGHT - 1}" '
                     f'fill="{colour(name)}"/><text x="{left + 3:.2f}" y="{top + 12}">{label(name, width)}</text></g>')
        for child, below in sorted(node.children.items()):
            draw(child, below, left, row + 1)
            left += WIDTH * below.count / root.count

    draw("all", root, 0.0, 0)
    return SVG.format(width=WIDTH, height=height, title=html.escape(title), boxes="\n".join(boxes))


def label(name, width):
    """As much of a name as fits."""
    letters = int((width - 6) / 6.6)
    if letters < 3:
        return ""
    return html.escape(name if len(name) <= letters else name[:letters - 2] + "..")


SVG = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="monospace" font-size="11">
<rect width="100%" height="100%" fill="#fff"/>
<text id="title" x="10" y="24" font-size="15" style="cursor:pointer">{title}</text>
{boxes}
<script><![CDATA[
const all = [...document.querySelectorAll('.f')], W = {width};
function zoom(x, w) {{
  for (const g of all) {{
    const gx = +g.dataset.x, gw = +g.dataset.w, out = gx + gw <= x + 0.01 || gx >= x + w - 0.01;
    g.style.display = out ? 'none' : '';
    const l = Math.max(0, (gx - x) / w * W), r = Math.min(W, (gx + gw - x) / w * W);
    const rect = g.querySelector('rect'), text = g.querySelector('text'), fit = Math.floor((r - l - 6) / 6.6);
    rect.setAttribute('x', l); rect.setAttribute('width', Math.max(0, r - l)); text.setAttribute('x', l + 3);
    const n = g.dataset.n;
    text.textContent = fit < 3 ? '' : n.length <= fit ? n : n.slice(0, fit - 2) + '..';
  }}
}}
for (const g of all) g.addEventListener('click', () => zoom(+g.dataset.x, +g.dataset.w));
document.getElementById('title').addEventListener('click', () => zoom(0, W));
]]></script>
</svg>
"""


def event():
    """`cycles` where the processor lets us count them, else the kernel's clock."""
    counters = "/sys/bus/event_source/devices/cpu"
    return "cycles" if os.path.exists(counters) else "cpu-clock"


def await_load(tunnel, client):
    """Waits until packets flow: on a busy machine iperf3 takes its time, and an idle device gives no samples."""
    def passed():
        return tunnel.counter("b", "rx_packets") + tunnel.counter("b", "tx_packets")
    before, until = passed(), time.monotonic() + LOAD_STARTS_SECONDS
    while passed() < before + LOAD_PACKETS and client.poll() is None:
        if time.monotonic() > until:
            raise LabError("iperf3 brings no load upon the tunnel")
        time.sleep(0.1)


def record(lab, tunnel, arguments):
    """Loads the tunnel and samples its devices; `perf script`'s text."""
    data = lab.path("perf.data")
    pids = ",".join(str(daemon.pid) for daemon in tunnel.daemon.values())
    with lab.iperf3_server(tunnel.far):
        # Longer than the samples at both ends: neither the start of the load nor its end is in them.
        longest = arguments.seconds + 2 * LOAD_STARTS_SECONDS
        client = lab.spawn(tunnel.namespace["a"], ["iperf3", "-c", tunnel.target, "-t", str(longest),
                                                   *LOADS[arguments.test]], lab.path("client.log"))
        await_load(tunnel, client)
        lab.host(["perf", "record", "-q", "-e", event(), "-F", str(arguments.frequency), "--call-graph",
                  arguments.call_graph, "-p", pids, "-o", data, "--", "sleep", str(arguments.seconds)])
        if client.poll() is not None:
            with open(lab.path("client.log"), encoding="utf-8") as log:
                raise LabError(f"iperf3 ended early: {log.read()}")
        lab.stop(client)
    return lab.host(["perf", "script", "-i", data, "-F", "comm,ip,sym,dso", "--no-inline"])


def arguments_of(argv):
    """The command line, checked."""
    parser = argparse.ArgumentParser(prog="perf/profile", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--impl", default="ringtun", metavar="NAME [OPTIONS]", help="default: ringtun; RINGTUN_BIN, else target/release")
    parser.add_argument("--wire", default="gso", choices=WIRES, help="default: gso")
    parser.add_argument("--test", default="tcp1", choices=LOADS, help="the load; default: tcp1")
    parser.add_argument("--seconds", type=int, default=10, help="how long to sample; default: 10")
    parser.add_argument("--frequency", type=int, default=997, help="samples a second and thread; default: 997")
    parser.add_argument("--call-graph", default="fp", choices=["fp", "dwarf"],
                        help="how stacks are unwound; fp wants RUSTFLAGS=-Cforce-frame-pointers=yes, dwarf is slow; default: fp")
    parser.add_argument("--out", default=os.path.join(HERE, "out"), help="default: perf/out")
    parser.add_argument("--fold", metavar="FILE", help="read perf script's text from FILE instead of recording")
    return parser.parse_args(argv)


def obtain(arguments):
    """`perf script`'s text, recorded or read."""
    if arguments.fold:
        with open(arguments.fold, encoding="utf-8", errors="replace") as text:
            return text.read()
    if os.geteuid() != 0:
        raise LabError("namespaces, TUN devices and perf on other processes need root")
    if shutil.which("perf") is None:
        raise LabError("perf is missing; on Debian: apt-get install linux-perf")
    with Lab() as lab, Tunnel(lab, Implementation(arguments.impl), arguments.wire) as tunnel:
        return record(lab, tunnel, arguments)


def main():
    """The whole run."""
    arguments = arguments_of(sys.argv[1:])
    counts = fold(obtain(arguments))
    if not counts:
        raise LabError("no samples: perf saw neither device run; sample longer (--seconds), or on a machine with time to spare")
    name = "-".join([*re.findall(r"[\w.]+", arguments.impl), arguments.wire, arguments.test])
    os.makedirs(arguments.out, exist_ok=True)
    table = shares(counts)
    folded = "\n".join(f"{';'.join(frame.replace(';', ':') for frame in stack)} {count}" for stack, count in counts.items())
    title = f"{arguments.impl}, {arguments.test} over {arguments.wire}"
    for ending, text in (("folded", folded), ("svg", flame_graph(counts, title)), ("txt", table)):
        with open(os.path.join(arguments.out, f"{name}.{ending}"), "w", encoding="utf-8") as file:
            file.write(text + "\n")
    print(f"{title}\n\n{table}\n\n{os.path.join(arguments.out, name)}.svg")
    return 0


if __name__ == "__main__":
    main_guard(main)
