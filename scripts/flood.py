#!/usr/bin/env python3
"""Measures what a flood of forged handshakes costs: one TCP stream and pings through a tunnel, undisturbed and beside the flood;
processor time for each initiation; and how long peers wait that connect for the first time amid the flood.

The flood is of handshake initiations with a valid MAC1 and garbage for the rest, from many addresses, to the end that
receives the stream. Both ends, the load and the flood share this machine's processors, so a part of what is lost is the
flood's own work: compare implementations by the share that is left to each.

A newcomer is a device of the same implementation in a namespace of its own. It pings until the first answer; what is lost of its
handshake it tries again after 5 s, as the protocol has it.
"""

import argparse
import base64
import hashlib
import json
import os
import socket
import statistics
import struct
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
from bench import quantile, start_pings  # noqa: E402
from lab import Implementation, Lab, LabError, Tunnel, main_guard, process_seconds, public_key  # noqa: E402

SOURCES = 50
PORT = 51820
IDLE_SECONDS = 2  # of flood alone
WAIT_SECONDS = 30  # for a newcomer
LATE_SECONDS = 5.5  # what a newcomer waits that has to try once more
UDP_SEGMENT = 103  # a socket option of linux/udp.h
INITIATION = struct.Struct("<I4s32s48s28s")  # to where MAC1 begins
BATCH = 32  # initiations handed to the kernel at once


def forged(public_key, count):
    """So many initiations that only the first of two MACs speaks for."""
    key = hashlib.blake2s(b"mac1----" + public_key).digest()
    for _ in range(count):
        message = INITIATION.pack(1, os.urandom(4), os.urandom(32), os.urandom(48), os.urandom(28))
        yield message + hashlib.blake2s(message, key=key, digest_size=16).digest() + bytes(16)


class Family:
    """The outer addresses: of flooders and newcomers, of the end that they speak to, and what socket options want."""

    def __init__(self, version):
        self.socket_family = socket.AF_INET6 if version == 6 else socket.AF_INET
        self.version, self.victim = version, "fd19:0:0:ffff::1" if version == 6 else "198.19.255.254"
        self.length = 48 if version == 6 else 16

    def address(self, group, number):
        """An outer address: IPv6 senders have a /64 each, as hosts do."""
        return f"fd19:0:0:{group:x}{number:02x}::1" if self.version == 6 else f"198.19.{group}.{number}"

    def endpoint(self):
        """Whom they speak to, as wg(8) writes it."""
        return f"[{self.victim}]:{PORT}" if self.version == 6 else f"{self.victim}:{PORT}"

    def join(self, tunnel, name, addresses):
        """Lays a wire from a new namespace, with these addresses, to the end that is flooded; the namespace."""
        lab, victim, namespace = tunnel.lab, tunnel.namespace["b"], tunnel.lab.netns(name)
        near = f"to-{name}"
        lab.run(namespace, ["ip", "link", "add", "wire", "type", "veth", "peer", "name", near, "netns", victim])
        options = ["nodad"] if self.version == 6 else []
        for address in addresses:
            lab.run(namespace, ["ip", "addr", "add", f"{address}/{self.length}", "dev", "wire", *options])
        # The kernel cuts the batches on the way: every datagram arrives alone, as from many hosts.
        lab.run(namespace, "ethtool -K wire tx-udp-segmentation off")
        lab.run(namespace, "ip link set wire up")
        lab.run(victim, ["ip", "link", "set", near, "up"])
        # At each wire's end: IPv6 answers solicitations for the addresses of the interface alone.
        lab.run(victim, ["ip", "addr", "add", self.victim, "dev", near, *options])
        return namespace, near

    def route(self, tunnel, near, addresses):
        """Has the flooded end answer to these addresses by that wire, from the address that they speak to."""
        for address in addresses:
            tunnel.lab.run(tunnel.namespace["b"], ["ip", "route", "add", address, "dev", near, "src", self.victim])


def send(public_key, rate, family):
    """Sends for ever, `rate` initiations a second."""
    batches = [b"".join(forged(public_key, BATCH)) for _ in range(2000)]
    sockets = []
    for number in range(SOURCES):
        sender = socket.socket(family.socket_family, socket.SOCK_DGRAM)
        sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, len(batches[0]) // BATCH)
        sender.setblocking(False)
        sender.bind((family.address(0, number + 1), 0))
        sender.connect((family.victim, PORT))
        sockets.append(sender)
    print("ready", flush=True)
    sent, began = 0, time.monotonic()
    while True:
        try:
            sockets[sent % SOURCES].send(batches[sent % len(batches)])
        except (BlockingIOError, ConnectionRefusedError):
            pass
        sent += 1
        ahead = sent * BATCH / rate - (time.monotonic() - began)
        if ahead > 0:
            time.sleep(ahead)


def start(tunnel, rate, family):
    """Starts the flood from a namespace of its own; the namespace and the flood's process."""
    lab, addresses = tunnel.lab, [family.address(0, number + 1) for number in range(SOURCES)]
    attacker, near = family.join(tunnel, "flood", addresses)
    family.route(tunnel, near, addresses)
    log = lab.path("flood.log")
    # Of its own, or the word of an earlier flood would be taken for this one's.
    open(log, "wb").close()
    key = tunnel.keys["a"][2]
    command = [sys.executable, os.path.realpath(__file__), "--send", key, "--rate", str(rate), "--family", str(family.version)]
    process = lab.spawn(attacker, command, log)
    while True:
        with open(log, encoding="utf-8", errors="replace") as text:
            said = text.read()
        if "ready" in said:
            return attacker, process
        if process.poll() is not None:
            raise LabError(f"the flood does not start: {said[-500:]}")
        time.sleep(0.1)


def newcomer(tunnel, number, family):
    """Seconds until a new device's first ping is answered; None after half a minute."""
    lab, device, inside = tunnel.lab, f"rt{os.getpid() % 10**8}n{number}", f"10.96.0.{number + 1}"
    address = family.address(1, number + 1)
    namespace, near = family.join(tunnel, f"n{number}", [address])
    family.route(tunnel, near, [address])
    private = lab.host(["wg", "genkey"]).strip()
    lab.run(tunnel.namespace["b"], [
        "wg", "set", tunnel.device["b"], "peer", public_key(private), "allowed-ips", f"{inside}/32"])
    lab.run(tunnel.namespace["b"], ["ip", "route", "add", inside, "dev", tunnel.device["b"]])
    daemon = lab.device(namespace, tunnel.implementation, device)
    lab.set_configuration(namespace, device, (
        f"[Interface]\nPrivateKey = {private}\n[Peer]\nPublicKey = {tunnel.keys['a'][2]}\n"
        f"AllowedIPs = {tunnel.INNER['b']}/32\nEndpoint = {family.endpoint()}\n"))
    lab.run(namespace, ["ip", "addr", "add", f"{inside}/32", "dev", device])
    lab.run(namespace, ["ip", "link", "set", device, "up"])
    lab.run(namespace, ["ip", "route", "add", tunnel.INNER["b"], "dev", device])
    began = time.monotonic()
    try:
        lab.run(namespace, ["ping", "-q", "-c", "1", "-i", "0.2", "-w", str(WAIT_SECONDS), tunnel.INNER["b"]])
        return time.monotonic() - began
    except LabError:
        return None
    finally:
        lab.stop(daemon)
        lab.drop_netns(namespace)


def goodput(tunnel, seconds, pace):
    """Gb/s that one TCP stream delivers, at most `pace` as iperf3 writes it."""
    with tunnel.lab.iperf3_server(tunnel.namespace["b"]):
        text = tunnel.lab.run(tunnel.namespace["a"], [
            "iperf3", "-J", "-c", tunnel.INNER["b"], "-t", str(seconds), "-b", pace])
    return json.loads(text)["end"]["sum_received"]["bits_per_second"] / 1e9


def arrived(tunnel):
    """Packets that the flood's wire has brought."""
    return int(tunnel.lab.run(tunnel.namespace["b"], ["cat", "/sys/class/net/to-flood/statistics/rx_packets"]))


def measure(lab, implementation, arguments):
    """One fresh tunnel's figures by name, and what each newcomer waited."""
    seconds, family = arguments.seconds, Family(arguments.family)
    with Tunnel(lab, implementation) as tunnel:
        figures = {"calm": goodput(tunnel, seconds, arguments.pace), "calm p99": start_pings(tunnel, seconds)()["p99_us"]}
        attacker, process = start(tunnel, arguments.rate, family)
        try:
            before, began = arrived(tunnel), time.monotonic()
            figures["flood"] = goodput(tunnel, seconds, arguments.pace)
            figures["arrived"] = (arrived(tunnel) - before) / (time.monotonic() - began)
            figures["left"] = figures["flood"] / figures["calm"]
            figures["flood p99"] = start_pings(tunnel, seconds)()["p99_us"]
            before, used = arrived(tunnel), process_seconds(tunnel.daemon["b"].pid)
            time.sleep(IDLE_SECONDS)
            figures["cost"] = (process_seconds(tunnel.daemon["b"].pid) - used) / max(1, arrived(tunnel) - before) * 1e6
            waits = [newcomer(tunnel, number, family) for number in range(arguments.newcomers)]
        finally:
            lab.stop(process)
            lab.drop_netns(attacker)
    return figures, waits


def table(rows, rounds):
    """Medians of all rounds; of newcomers all."""
    print(f"\n{'':14} {'stream, Gb/s':^22} {'initiations':^18} {'ping p99, ms':^14}  newcomers")
    print(f"{'':14} {'calm':>6} {'flood':>6} {'left':>6}    {'a second':>9} {'us each':>7} {'calm':>7} {'flood':>6}"
          f"  {'in time':>9} {'median s':>8} {'longest':>8}   medians of {rounds}")
    for label, measured in rows.items():
        figure = {name: statistics.median(figures[name] for figures, _ in measured) for name in measured[0][0]}
        waits = sorted(WAIT_SECONDS if wait is None else wait for _, several in measured for wait in several)
        came = f"{sum(wait <= LATE_SECONDS for wait in waits)} of {len(waits)}" if waits else "-"
        times = f"{quantile(waits, 0.5):8.1f} {waits[-1]:8.1f}" if waits else f"{'-':>8} {'-':>8}"
        print(f"{label:14} {figure['calm']:6.2f} {figure['flood']:6.2f} {figure['left']:6.0%}    {figure['arrived']:9.0f}"
              f" {figure['cost']:7.2f} {figure['calm p99'] / 1e3:7.1f} {figure['flood p99'] / 1e3:6.1f}  {came:>9} {times}")


def main():
    """The whole run."""
    parser = argparse.ArgumentParser(prog="scripts/flood", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--impl", action="append", metavar="NAME [OPTIONS]", help="default: wireguard-go and ringtun")
    parser.add_argument("--rate", type=int, default=50_000, help="initiations a second, default: 50000")
    parser.add_argument("--pace", default="0", help="of the stream, as iperf3 writes it (500M), default: as fast as it goes")
    parser.add_argument("--family", type=int, choices=(4, 6), default=4, help="of IP outside, default: 4")
    parser.add_argument("--newcomers", type=int, default=0, help="peers that connect amid the flood, each round, default: 0")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--seconds", type=int, default=4, help="length of each measurement, default: 4")
    parser.add_argument("--send", metavar="KEY", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.send:
        send(base64.b64decode(arguments.send), arguments.rate, Family(arguments.family))
    if os.geteuid() != 0:
        raise LabError("namespaces and TUN devices need root")
    implementations = [Implementation(name) for name in arguments.impl or ["wireguard-go", "ringtun"]]
    rows = {implementation.label: [] for implementation in implementations}
    with Lab() as lab:
        for number in range(arguments.rounds):
            for implementation in implementations[number % 2:] + implementations[:number % 2]:
                print(f"   round {number + 1}/{arguments.rounds}  {implementation.label}", file=sys.stderr, flush=True)
                rows[implementation.label].append(measure(lab, implementation, arguments))
    table(rows, arguments.rounds)
    return 0


if __name__ == "__main__":
    main_guard(main)
