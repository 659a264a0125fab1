#!/usr/bin/env python3
"""Measures limits: sets a rate, offers more, and prints what passed, as a share of the rate, for TCP and UDP, to the limited peer and from it,
with one worker and with more. Then what a packet costs that is dropped for a limit, beside one that passes.

Rates are of packets in the tunnel, their IP headers included; iperf3's payload is converted. The first second is left out, in which the burst
passes. RINGTUN_BIN names the program (default: what cargo build --release made).
"""

import argparse
import base64
import json
import os
import socket
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
from lab import UAPI_DIRECTORY, Implementation, Lab, LabError, Tunnel, main_guard, process_seconds  # noqa: E402

RATES = [1, 10, 100, 1000]  # Mb/s
UDP_PAYLOAD, TCP_PAYLOAD, UDP_HEADERS, TCP_HEADERS = 1372, 1368, 28, 52
SMALL = 16  # bytes of payload of what is dropped


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


def main():
    """The whole run; the exit code."""
    parser = argparse.ArgumentParser(prog="scripts/limits", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=5, help="of each load; default: 5")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="numbers of workers to try; default: 1 2")
    arguments = parser.parse_args(sys.argv[1:])
    if os.geteuid() != 0:
        raise LabError("namespaces and TUN devices need root")
    with Lab() as lab:
        for workers in arguments.workers:
            with Tunnel(lab, Implementation(f"ringtun --workers {workers}")) as tunnel:
                print(f"{workers} worker{'s' if workers > 1 else ''}: what passed of the rate")
                print(f"{'Mb/s':>6}  {'TCP out':>8}  {'TCP in':>8}  {'UDP out':>8}  {'UDP in':>8}", flush=True)
                for megabits, row in rates(lab, tunnel, arguments.seconds):
                    print(f"{megabits:>6}  " + "  ".join(f"{share:>8.3f}" for share in row), flush=True)
                whole, dropped = costs(lab, tunnel, arguments.seconds)
                print(f"a {SMALL}-byte packet from the peer: {whole:.2f} us where it passes, {dropped:.2f} us where it is dropped\n", flush=True)
    return 0


if __name__ == "__main__":
    main_guard(main)
