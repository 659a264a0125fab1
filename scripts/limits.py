#!/usr/bin/env python3
"""Measures limits: sets a rate, offers more, and prints what passed, as a share of the rate, for TCP and UDP, to the limited peer and from it,
with one worker and with more. Then what a packet costs that is dropped for a limit, beside one that passes. Then how long pings of a peer
without limits take, a hundred a second, while a limited peer sends nothing, sends more than it may, and sends as much without a limit.

Rates are of packets in the tunnel, their IP headers included; iperf3's payload is converted. The first second is left out, in which the burst
passes. RINGTUN_BIN names the program (default: what cargo build --release made).
"""

import argparse
import base64
import json
import os
import socket
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
from bench import start_pings  # noqa: E402
from lab import UAPI_DIRECTORY, Implementation, Lab, LabError, Tunnel, main_guard, process_seconds, public_key  # noqa: E402

RATES = [1, 10, 100, 1000]  # Mb/s
UDP_PAYLOAD, TCP_PAYLOAD, UDP_HEADERS, TCP_HEADERS = 1372, 1368, 28, 52
SMALL = 16  # bytes of payload of what is dropped
NARROW = 10_000_000  # bits a second of the peer that sends more
OTHER = {"a": "198.18.1.1", "c": "198.18.1.2", "inner": "10.99.0.3"}  # the addresses of the wire to another peer, and its own inside


def command(tunnel, text):
    """Sends an operation to the device of end a; its answer."""
    with socket.socket(socket.AF_UNIX) as control:
        control.connect(f"{UAPI_DIRECTORY}/{tunnel.device['a']}.sock")
        control.sendall(text.encode("ascii"))
        answer = b""
        while not answer.endswith(b"\n\n"):
            answer += control.recv(65536)
        return answer.decode("ascii")


def limit(tunnel, limits):
    """Limits the peer of end a."""
    key = base64.b64decode(tunnel.keys["a"][2]).hex()
    answer = command(tunnel, f"set=1\npublic_key={key}\nupdate_only=true\nringtun_limits={limits}\n\n")
    if answer != "errno=0\n\n":
        raise LabError(f"the limit was refused: {answer.strip()}")


def burst(rate):
    """The burst in bytes that ringtun gives a rate in bits a second."""
    return max(min(rate // 32, 2_500_000), rate // 800, 16384)


def passed(lab, tunnel, seconds, options, headers, payload):
    """Bits a second of packets that the receiver had."""
    with lab.iperf3_server(tunnel.namespace["b"]):
        said = lab.run(tunnel.namespace["a"], ["iperf3", "-c", tunnel.INNER["b"], "-J", "-O", "1", "-t", str(seconds), *options])
    bits = json.loads(said)["end"]["sum_received"]["bits_per_second"]
    return bits * (payload + headers) / payload


def rates(lab, tunnel, seconds):
    """A row for each rate: the shares that passed."""
    for megabits in RATES:
        rate = megabits * 1_000_000
        limit(tunnel, f"in {rate} {burst(rate)} out {rate} {burst(rate)}")
        row = []
        for udp in (False, True):
            for way in ([], ["-R"]):
                options = ["-u", "-b", str(rate * 3 // 2), "-l", str(UDP_PAYLOAD)] if udp else []
                sizes = (UDP_HEADERS, UDP_PAYLOAD) if udp else (TCP_HEADERS, TCP_PAYLOAD)
                row.append(passed(lab, tunnel, seconds, options + way, *sizes) / rate)
        yield megabits, row


def costs(lab, tunnel, seconds):
    """Microseconds of end a's processors for a small packet from the peer: one that passes, and one that is dropped."""
    for limits in ("none", "in 8000 1000"):
        limit(tunnel, limits)
        before = process_seconds(tunnel.daemon["a"].pid)
        with lab.iperf3_server(tunnel.namespace["b"]):
            said = lab.run(tunnel.namespace["a"], ["iperf3", "-c", tunnel.INNER["b"], "-J", "-R", "-t", str(seconds), "-u", "-b", "50M", "-l", str(SMALL)])
        packets = json.loads(said)["end"]["sum"]["packets"]
        yield (process_seconds(tunnel.daemon["a"].pid) - before) * 1e6 / max(packets, 1)


def tell_rates_and_costs(lab, tunnel, seconds):
    """Prints what passed of each rate, and what a packet costs."""
    print(f"what passed of the rate\n{'Mb/s':>6}  {'TCP out':>8}  {'TCP in':>8}  {'UDP out':>8}  {'UDP in':>8}", flush=True)
    for megabits, row in rates(lab, tunnel, seconds):
        print(f"{megabits:>6}  " + "  ".join(f"{share:>8.3f}" for share in row), flush=True)
    whole, dropped = costs(lab, tunnel, seconds)
    print(f"a {SMALL}-byte packet from the peer: {whole:.2f} us where it passes, {dropped:.2f} us where it is dropped", flush=True)


def join(lab, tunnel):
    """Gives end a another peer, on a wire of its own: from now on pings go there."""
    a, c = tunnel.namespace["a"], lab.netns("c")
    device = f"rt{os.getpid() % 10**8}c{len(lab.sockets)}"
    lab.run(c, ["ip", "link", "add", "wire", "type", "veth", "peer", "name", "to-c", "netns", a])
    for namespace, end, wire in ((c, "c", "wire"), (a, "a", "to-c")):
        lab.run(namespace, f"ip addr add {OTHER[end]}/24 dev {wire}")
        lab.run(namespace, f"ip link set {wire} up")
    private = lab.host(["wg", "genkey"]).strip()
    lab.run(a, ["wg", "set", tunnel.device["a"], "peer", public_key(private), "allowed-ips", f"{OTHER['inner']}/32"])
    daemon = lab.device(c, tunnel.implementation, device)
    tunnel.namespace["c"], tunnel.device["c"], tunnel.daemon["c"] = c, device, daemon
    lab.set_configuration(c, device, (
        f"[Interface]\nPrivateKey = {private}\n[Peer]\nPublicKey = {public_key(tunnel.keys['a'][0])}\n"
        f"AllowedIPs = {tunnel.INNER['a']}/32\nEndpoint = {OTHER['a']}:51820\n"))
    lab.run(c, f"ip addr add {OTHER['inner']}/24 dev {device}")
    lab.run(c, f"ip link set {device} mtu 1420 up")
    # The first of these has end a know where the other is.
    lab.run(c, f"ping -q -c 1 -w 10 {tunnel.INNER['a']}")
    tunnel.target = OTHER["inner"]


def latencies(lab, tunnel, seconds, flood):
    """Rows of pings with another peer: what the limited peer does meanwhile, Mb/s of it that came through, p50 and p99 in us, and per cent lost."""
    situations = [("sends nothing", None, 0), (f"sends {flood} Mb/s, limited", f"in {NARROW} {burst(NARROW)}", flood),
                  (f"sends {flood} Mb/s, unlimited", "none", flood)]
    for words, limits, megabits in situations:
        if not megabits:
            figures, carried = start_pings(tunnel, seconds)(), 0.0
        else:
            limit(tunnel, limits)
            with lab.iperf3_server(tunnel.namespace["b"]):
                load = lab.spawn(tunnel.namespace["a"], [
                    "iperf3", "-c", tunnel.INNER["b"], "-R", "-u", "-b", f"{megabits}M", "-l", str(UDP_PAYLOAD), "-t", str(seconds + 4)])
                time.sleep(1)
                before, began = tunnel.counter("a", "rx_bytes"), time.monotonic()
                figures = start_pings(tunnel, seconds)()
                carried = (tunnel.counter("a", "rx_bytes") - before) * 8 / (time.monotonic() - began) / 1e6
                if load.poll() is not None:
                    raise LabError("the flood ended before the pings did")
                lab.stop(load)
        yield words, carried, figures


def main():
    """The whole run; the exit code."""
    parser = argparse.ArgumentParser(prog="scripts/limits", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=5, help="of each load; default: 5")
    parser.add_argument("--flood", type=int, default=300, metavar="MBITS", help="Mb/s that the limited peer sends beside the pings; default: 300")
    parser.add_argument("--only-latency", action="store_true", help="leave out the rates and what packets cost")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="numbers of workers to try; default: 1 2")
    arguments = parser.parse_args(sys.argv[1:])
    if os.geteuid() != 0:
        raise LabError("namespaces and TUN devices need root")
    with Lab() as lab:
        for workers in arguments.workers:
            with Tunnel(lab, Implementation(f"ringtun --workers {workers}")) as tunnel:
                print(f"{workers} worker{'s' if workers > 1 else ''}")
                if not arguments.only_latency:
                    tell_rates_and_costs(lab, tunnel, arguments.seconds)
                join(lab, tunnel)
                print(f"pings of a peer without limits while one that may send {NARROW // 10**6} Mb/s ...")
                print(f"{'':30}  {'came through':>12}  {'p50':>8}  {'p99':>8}  {'lost':>6}", flush=True)
                for words, carried, ping in latencies(lab, tunnel, arguments.seconds, arguments.flood):
                    print(f"... {words:26}  {carried:>7.1f} Mb/s  {ping['p50_us']:>5.0f} us  {ping['p99_us']:>5.0f} us  {ping['lost_percent']:>5.1f}%", flush=True)
                print()
    return 0


if __name__ == "__main__":
    main_guard(main)
