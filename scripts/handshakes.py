#!/usr/bin/env python3
"""Measures how many handshakes a second a device answers: on one processor, and on all that the machine has.

The load (examples/initiations.rs) makes its initiations beforehand and keeps 64 of them unanswered, so it takes little of a
processor. On one processor the device has the first, and the load the others.
"""

import argparse
import base64
import os
import re
import statistics
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
from lab import Implementation, Lab, LabError, main_guard  # noqa: E402

DEVICE, LOAD, PORT = "198.18.0.1", "198.18.0.2", 51820
LOAD_PROGRAM = "RINGTUN_LOAD"


def configure(lab, namespace, name, keys):
    """Gives the device a key, the port, and the load's peers; its public key."""
    private = lab.host(["wg", "genkey"]).strip()
    path = lab.path("device.conf")
    with open(path, "w", encoding="ascii") as text:
        text.write(f"[Interface]\nPrivateKey = {private}\nListenPort = {PORT}\n")
        text.writelines(f"[Peer]\nPublicKey = {key}\n" for key in keys)
    lab.run(namespace, ["wg", "setconf", name, path])
    lab.run(namespace, ["ip", "link", "set", name, "up"])
    return lab.run(namespace, ["wg", "show", name, "public-key"]).strip()


def measure(lab, implementation, processors, peers, count):
    """Handshakes a second of one fresh device that may use `processors`."""
    device, load = lab.netns("d"), lab.netns("l")
    lab.run(device, ["ip", "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", load])
    for namespace, address in ((device, DEVICE), (load, LOAD)):
        lab.run(namespace, ["ip", "addr", "add", f"{address}/24", "dev", "wire"])
        lab.run(namespace, ["ip", "link", "set", "wire", "up"])
    everything = os.sched_getaffinity(0)
    rest = everything - processors or everything
    program, name = os.environ[LOAD_PROGRAM], f"rt{os.getpid() % 10**8}h"
    keys = lab.host([program, "keys", str(peers)]).split()
    if any(len(base64.b64decode(key)) != 32 for key in keys):
        raise LabError("the load names no keys")
    try:
        os.sched_setaffinity(0, processors)
        daemon = lab.device(device, implementation, name)
    finally:
        os.sched_setaffinity(0, everything)
    public = configure(lab, device, name, keys)
    try:
        os.sched_setaffinity(0, rest)
        said = lab.run(load, [program, "send", f"{DEVICE}:{PORT}", public, str(peers), str(count)])
    finally:
        os.sched_setaffinity(0, everything)
    lab.stop(daemon)
    for namespace in (device, load):
        lab.drop_netns(namespace)
    rate, answered, lost = map(int, re.search(r"^(\d+) .*, (\d+) answered, (\d+) lost", said).groups())
    if lost * 10 > answered:
        raise LabError(f"most initiations are not answered: {said.strip()}")
    return rate


def main():
    """The whole run."""
    parser = argparse.ArgumentParser(prog="scripts/handshakes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--impl", action="append", metavar="NAME [OPTIONS]", help="default: wireguard-go and ringtun")
    parser.add_argument("--peers", type=int, default=2000, help="default: 2000")
    parser.add_argument("--count", type=int, default=20_000, help="initiations of each measurement, default: 20000")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        raise LabError("namespaces and TUN devices need root")
    if not os.environ.get(LOAD_PROGRAM):
        raise LabError(f"{LOAD_PROGRAM} must name the load, as scripts/handshakes does")
    implementations = [Implementation(name) for name in arguments.impl or ["wireguard-go", "ringtun"]]
    everything = os.sched_getaffinity(0)
    choices = {"1": {min(everything)}, str(len(everything)): everything}
    rates = {}
    with Lab() as lab:
        for number in range(arguments.rounds):
            for implementation in implementations[number % 2:] + implementations[:number % 2]:
                for label, processors in choices.items():
                    print(f"   round {number + 1}/{arguments.rounds}  {implementation.label}  {label}", file=sys.stderr, flush=True)
                    rate = measure(lab, implementation, processors, arguments.peers, arguments.count)
                    rates.setdefault((implementation.label, label), []).append(rate)
    print(f"\n{'implementation':20} {'processors':>10} {'handshakes/s':>13}   medians of {arguments.rounds}")
    for (label, processors), measured in rates.items():
        print(f"{label:20} {processors:>10} {statistics.median(measured):13.0f}")
    return 0


if __name__ == "__main__":
    main_guard(main)
