#!/usr/bin/env python3
"""Measures memory: what an idle peer costs, by setting many peers on one device, and the most that a device holds while
eight TCP streams pass it. Prints a table; exit code 1 where a bound is exceeded.

Resident memory is what /proc/PID/status tells (VmRSS, VmHWM); memory of the kernel (socket buffers, the steering's maps) is
not in it. RINGTUN_BIN names the program (default: what cargo build --release made).
"""

import argparse
import base64
import os
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
from lab import Implementation, Lab, LabError, Tunnel, absent_peer, main_guard, process_status_kib  # noqa: E402

PEER_BOUND_BYTES, PEAK_BOUND_MIB = 1600, 40
SETTLE_SECONDS, SETTLED_AFTER = 0.5, 3


def configuration(peers):
    """A private key and so many peers that do not exist."""
    def text(key):
        return base64.b64encode(key).decode("ascii")

    lines = [f"[Interface]\nPrivateKey = {text(bytes([9] * 32))}\n"]
    for key, endpoint, prefixes in map(absent_peer, range(peers)):
        lines.append(f"[Peer]\nPublicKey = {text(key)}\nAllowedIPs = {', '.join(prefixes)}\nEndpoint = {endpoint}\n")
    return "".join(lines)


def settled(pid):
    """Resident memory in KiB once it has not changed for a while."""
    last, same = -1, 0
    while same < SETTLED_AFTER:
        time.sleep(SETTLE_SECONDS)
        now = process_status_kib(pid, "VmRSS")
        same = same + 1 if now == last else 0
        last = now
    return last


def idle_peers(lab, implementation, peers):
    """KiB without peers, and with them."""
    namespace, name = lab.netns("idle"), f"rt{os.getpid() % 10**8}m"
    daemon = lab.device(namespace, implementation, name)
    lab.run(namespace, f"ip link set {name} up")
    before = settled(daemon.pid)
    path = lab.path("peers.conf")
    with open(path, "w", encoding="ascii") as text:
        text.write(configuration(peers))
    lab.run(namespace, ["wg", "setconf", name, path])
    after = settled(daemon.pid)
    known = len(lab.run(namespace, ["wg", "show", name, "peers"]).split())
    if known != peers:
        raise LabError(f"{known} peers instead of {peers}")
    lab.stop(daemon)
    return before, after


def peaks(lab, implementation, seconds):
    """The most KiB that either end held, by side, after eight TCP streams each way."""
    with Tunnel(lab, implementation) as tunnel:
        for direction in ([], ["-R"]):
            with lab.iperf3_server(tunnel.namespace["b"]):
                lab.run(tunnel.namespace["a"], ["iperf3", "-c", tunnel.INNER["b"], "-P", "8", "-t", str(seconds), *direction])
        return {side: process_status_kib(daemon.pid, "VmHWM") for side, daemon in tunnel.daemon.items()}


def arguments_of(argv):
    """The command line, checked."""
    parser = argparse.ArgumentParser(prog="scripts/memory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--impl", default="ringtun --workers 2", metavar="NAME [OPTIONS]", help="default: ringtun --workers 2")
    parser.add_argument("--peers", type=int, default=10_000, help="idle peers to set; default: 10000")
    parser.add_argument("--seconds", type=int, default=10, help="of load in each direction; default: 10")
    arguments = parser.parse_args(argv)
    if not 1 <= arguments.peers < 2**22:
        parser.error("--peers: 1 to 4194303")
    return arguments


def main():
    """The whole run; the exit code."""
    arguments = arguments_of(sys.argv[1:])
    if os.geteuid() != 0:
        raise LabError("namespaces and TUN devices need root")
    implementation = Implementation(arguments.impl)
    with Lab() as lab:
        before, after = idle_peers(lab, implementation, arguments.peers)
        peak = peaks(lab, implementation, arguments.seconds)
    each = (after - before) * 1024 / arguments.peers
    most = max(peak.values()) / 1024
    rows = [("resident without peers", f"{before / 1024:.1f} MiB", ""),
            (f"resident with {arguments.peers} idle peers", f"{after / 1024:.1f} MiB", ""),
            ("each idle peer", f"{each:.0f} bytes", f"at most {PEER_BOUND_BYTES}"),
            *((f"peak under eight TCP streams, end {side}", f"{kib / 1024:.1f} MiB", f"at most {PEAK_BOUND_MIB}")
              for side, kib in peak.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    print(f"{implementation.label}\n")
    for what, figure, bound in rows:
        print(f"{what:{widths[0]}}  {figure:>{widths[1]}}  {bound}".rstrip())
    return 0 if each <= PEER_BOUND_BYTES and most <= PEAK_BOUND_MIB else 1


if __name__ == "__main__":
    main_guard(main)
