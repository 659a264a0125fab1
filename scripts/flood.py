#!/usr/bin/env python3
"""Measures what a flood of forged handshakes costs: one TCP stream through a tunnel, undisturbed and beside the flood.

The flood is of handshake initiations with a valid MAC1 and garbage for the rest, from many addresses, to the end that
receives the stream. Both ends, the load and the flood share this machine's processors, so a part of what is lost is the
flood's own work: compare implementations by the share that is left to each.
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
from lab import Implementation, Lab, LabError, Tunnel, main_guard  # noqa: E402

SOURCES = 50
ATTACKER, VICTIM = "198.19.0.", "198.19.0.254"
PORT = 51820
UDP_SEGMENT = 103  # a socket option of linux/udp.h
INITIATION = struct.Struct("<I4s32s48s28s")  # to where MAC1 begins
BATCH = 32  # initiations handed to the kernel at once


def forged(public_key, count):
    """So many initiations that only the first of two MACs speaks for."""
    key = hashlib.blake2s(b"mac1----" + public_key).digest()
    for _ in range(count):
        message = INITIATION.pack(1, os.urandom(4), os.urandom(32), os.urandom(48), os.urandom(28))
        yield message + hashlib.blake2s(message, key=key, digest_size=16).digest() + bytes(16)


def send(public_key, rate):
    """Sends for ever, `rate` initiations a second."""
    batches = [b"".join(forged(public_key, BATCH)) for _ in range(2000)]
    sockets = []
    for number in range(SOURCES):
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, len(batches[0]) // BATCH)
        sender.setblocking(False)
        sender.bind((f"{ATTACKER}{number + 1}", 0))
        sender.connect((VICTIM, PORT))
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


def start(tunnel, rate):
    """Starts the flood from a namespace of its own; its process."""
    lab, victim = tunnel.lab, tunnel.namespace["b"]
    attacker = lab.netns("c")
    lab.run(attacker, ["ip", "link", "add", "wire", "type", "veth", "peer", "name", "flood", "netns", victim])
    for number in range(SOURCES):
        lab.run(attacker, f"ip addr add {ATTACKER}{number + 1}/24 dev wire")
    lab.run(attacker, "ip link set wire up")
    # The kernel cuts the batches on the way: every datagram arrives alone, as from many hosts.
    lab.run(attacker, "ethtool -K wire tx-udp-segmentation off")
    lab.run(victim, f"ip addr add {VICTIM}/24 dev flood")
    lab.run(victim, "ip link set flood up")
    log = lab.path("flood.log")
    # Of its own, or the word of an earlier flood would be taken for this one's.
    open(log, "wb").close()
    key = tunnel.keys["a"][2]
    process = lab.spawn(attacker, [sys.executable, os.path.realpath(__file__), "--send", key, "--rate", str(rate)], log)
    while True:
        with open(log, encoding="utf-8", errors="replace") as text:
            said = text.read()
        if "ready" in said:
            return attacker, process
        if process.poll() is not None:
            raise LabError(f"the flood does not start: {said[-500:]}")
        time.sleep(0.1)


def goodput(tunnel, seconds):
    """Gb/s that one TCP stream delivers."""
    with tunnel.lab.iperf3_server(tunnel.namespace["b"]):
        text = tunnel.lab.run(tunnel.namespace["a"], ["iperf3", "-J", "-c", tunnel.INNER["b"], "-t", str(seconds)])
    return json.loads(text)["end"]["sum_received"]["bits_per_second"] / 1e9


def arrived(tunnel):
    """Packets that the flood's wire has brought."""
    return int(tunnel.lab.run(tunnel.namespace["b"], ["cat", "/sys/class/net/flood/statistics/rx_packets"]))


def measure(lab, implementation, rate, seconds):
    """Goodput without and with the flood, and the initiations that arrived each second, by one fresh tunnel."""
    with Tunnel(lab, implementation) as tunnel:
        calm = goodput(tunnel, seconds)
        attacker, process = start(tunnel, rate)
        try:
            before, began = arrived(tunnel), time.monotonic()
            stormy = goodput(tunnel, seconds)
            came = (arrived(tunnel) - before) / (time.monotonic() - began)
        finally:
            lab.stop(process)
            lab.drop_netns(attacker)
        return calm, stormy, came


def main():
    """The whole run."""
    parser = argparse.ArgumentParser(prog="scripts/flood", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--impl", action="append", metavar="NAME [OPTIONS]", help="default: wireguard-go and ringtun")
    parser.add_argument("--rate", type=int, default=50_000, help="initiations a second, default: 50000")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--seconds", type=int, default=4, help="length of each measurement, default: 4")
    parser.add_argument("--send", metavar="KEY", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.send:
        send(base64.b64decode(arguments.send), arguments.rate)
    if os.geteuid() != 0:
        raise LabError("namespaces and TUN devices need root")
    implementations = [Implementation(name) for name in arguments.impl or ["wireguard-go", "ringtun"]]
    rows = {implementation.label: [] for implementation in implementations}
    with Lab() as lab:
        for number in range(arguments.rounds):
            for implementation in implementations[number % 2:] + implementations[:number % 2]:
                print(f"   round {number + 1}/{arguments.rounds}  {implementation.label}", file=sys.stderr, flush=True)
                rows[implementation.label].append(measure(lab, implementation, arguments.rate, arguments.seconds))
    print(f"\n{'implementation':20} {'calm Gb/s':>10} {'flood Gb/s':>11} {'left':>6} {'arrived/s':>10}   medians of {arguments.rounds}")
    for label, measured in rows.items():
        calm, stormy, came = (statistics.median(row[column] for row in measured) for column in range(3))
        left = statistics.median(row[1] / row[0] for row in measured)
        print(f"{label:20} {calm:10.2f} {stormy:11.2f} {left:6.0%} {came:10.0f}")
    return 0


if __name__ == "__main__":
    main_guard(main)
