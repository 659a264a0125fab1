#!/usr/bin/env python3
"""Measures what many peers cost a device that works: one transaction that adds them all, one that asks for all, one that adds
one more, and how long handshakes take meanwhile.

A handshake is a ping right after the other end forgot its session; the ping's time is the handshake's and its own.
"""

import argparse
import base64
import os
import re
import socket
import sys
import threading
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
from lab import UAPI_DIRECTORY, Implementation, Lab, LabError, Tunnel, absent_peer, main_guard  # noqa: E402

ANSWER_SECONDS = 10
# Between two handshakes of one peer: initiations that follow each other faster, or bear one time stamp, are refused.
PACE_SECONDS = 0.05


def request(device, text):
    """One transaction over the device's socket; its answer, and the seconds that it took."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(f"{UAPI_DIRECTORY}/{device}.sock")
        began, answer = time.monotonic(), bytearray()
        client.sendall(text.encode("ascii"))
        while not answer.endswith(b"\n\n"):
            part = client.recv(1 << 20)
            if not part:
                raise LabError("the device closed the socket without an answer")
            answer += part
        took = time.monotonic() - began
    if b"errno=0\n" not in answer[-20:]:
        raise LabError(f"the device answered {bytes(answer[-40:])!r}")
    return bytes(answer), took


def peer(number):
    """The lines that set a peer which does not exist."""
    key, endpoint, prefixes = absent_peer(number)
    return (f"public_key={key.hex()}\nendpoint={endpoint}\nreplace_allowed_ips=true\n"
            + "".join(f"allowed_ip={prefix}\n" for prefix in prefixes))


def handshake(tunnel):
    """Has `a` forget its session with `b`, and pings; milliseconds until the answer."""
    time.sleep(PACE_SECONDS)
    _, _, public = tunnel.keys["a"]
    device, inner, outer = tunnel.device["a"], tunnel.INNER["b"], tunnel.OUTER["b"]
    key = base64.b64decode(public).hex()
    request(device, f"set=1\npublic_key={key}\nremove=true\n\n")
    request(device, f"set=1\npublic_key={key}\nendpoint={outer}:51820\nallowed_ip={inner}/32\n\n")
    said = tunnel.lab.run(tunnel.namespace["a"], f"ping -c 1 -W {ANSWER_SECONDS} {inner}")
    return float(re.search(r"time=([0-9.]+)", said).group(1))


def meanwhile(tunnel, text):
    """The transaction's answer and seconds, and the times of handshakes begun while it ran."""
    result, times = [], []
    worker = threading.Thread(target=lambda: result.append(request(tunnel.device["b"], text)))
    worker.start()
    while worker.is_alive() or not times:
        times.append(handshake(tunnel))
    worker.join()
    if not result:
        raise LabError("the transaction failed")
    return result[0], sorted(times)


def measure(tunnel, peers):
    """Rows of what was done, how long it took, and the handshakes meanwhile."""
    big = tunnel.device["b"]
    yield "no transaction", 0.0, sorted(handshake(tunnel) for _ in range(20))
    (_, took), times = meanwhile(tunnel, "set=1\n" + "".join(peer(number) for number in range(peers)) + "\n")
    yield f"set of {peers} peers", took, times
    (answer, took), times = meanwhile(tunnel, "get=1\n\n")
    if answer.count(b"public_key=") < peers:
        raise LabError("peers are missing in the answer")
    yield f"get of {peers} peers", took, times
    singles = sorted(request(big, "set=1\n" + peer(peers + number) + "\n")[1] for number in range(100))
    yield "set of one more (median of 100)", singles[50], []
    singles = sorted(request(big, f"set=1\n{peer(peers + number).splitlines()[0]}\nremove=true\n\n")[1]
                     for number in range(100))
    yield "removal of one (median of 100)", singles[50], []


def main():
    """The whole run."""
    parser = argparse.ArgumentParser(prog="scripts/scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--impl", action="append", metavar="NAME [OPTIONS]", help="default: ringtun; repeat to compare")
    parser.add_argument("--peers", type=int, default=100_000, help="default: 100000")
    arguments = parser.parse_args()
    if not 1 <= arguments.peers < 2**22 - 100:
        parser.error("--peers: 1 to 4194203")
    if os.geteuid() != 0:
        raise LabError("namespaces and TUN devices need root")
    print(f"{'':36} {'took ms':>9}   handshakes meanwhile: count, median, most ms")
    with Lab() as lab:
        for implementation in map(Implementation, arguments.impl or ["ringtun"]):
            print(implementation.label)
            with Tunnel(lab, implementation) as tunnel:
                for what, took, times in measure(tunnel, arguments.peers):
                    shown = f"{len(times):4} {times[len(times) // 2]:8.2f} {times[-1]:8.2f}" if times else ""
                    print(f"  {what:34} {took * 1000:9.2f}   {shown}", flush=True)
    return 0


if __name__ == "__main__":
    main_guard(main)
