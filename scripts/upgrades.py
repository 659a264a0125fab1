#!/usr/bin/env python3
"""Measures what peers notice of `ringtun upgrade`: pings at 10 ms go through a tunnel whose one end is upgraded once a second, beside
different loads, and for comparison while nothing is upgraded.

What is printed: of the longest ping of each second the median and the longest; pings lost; retransmission time-outs of TCP at both ends;
datagrams lost of UDP with 16 bytes at a fixed rate; and how many files and how much memory the last process has, after those of the first.
RINGTUN_BIN names the program (default: what cargo build --release made).
"""

import argparse
import json
import os
import re
import statistics
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
from lab import Implementation, Lab, LabError, Tunnel, main_guard, process_status_kib  # noqa: E402
from scale import peer, request  # noqa: E402

LOADS = {"none": None, "udp16": ["-u", "-b", "2560k", "-l", "16"], "tcp8": ["-P", "8"]}
PINGS, APART = 90, 0.01  # of a second, and seconds
LEAD = 2  # seconds that a load takes to begin


def timeouts(tunnel):
    """Retransmission time-outs of TCP so far, at both ends."""
    count = 0
    for side in "ab":
        names, values = tunnel.lab.run(tunnel.namespace[side], "grep ^TcpExt: /proc/net/netstat").splitlines()
        count += int(dict(zip(names.split(), values.split()))["TCPTimeouts"])
    return count


def upgrade(tunnel):
    """Upgrades end a; the number of the process that goes on."""
    program = tunnel.implementation.argv[0]
    said = tunnel.lab.run(tunnel.namespace["a"], [program, "upgrade", "--json", tunnel.device["a"]])
    return json.loads(said)["to"]["pid"]


def held(pid):
    """What a process has: files, and KiB of memory."""
    return len(os.listdir(f"/proc/{pid}/fd")), process_status_kib(pid, "VmRSS")


def second(tunnel, upgrades):
    """A second of pings, with an upgrade amid them if asked for. The longest, how many were lost, and what the new process has."""
    log = tunnel.lab.path("ping.log")
    if os.path.exists(log):
        os.unlink(log)
    argv = ["ping", "-i", str(APART), "-c", str(PINGS), "-W", "2", tunnel.INNER["b"]]
    ping = tunnel.lab.spawn(tunnel.namespace["a"], argv, log)
    time.sleep(PINGS * APART / 3)
    pid = upgrade(tunnel) if upgrades else None
    ping.wait()
    with open(log, encoding="ascii", errors="replace") as text:
        times = [float(word) for word in re.findall(r"time=([0-9.]+)", text.read())]
    return max(times, default=0.0), PINGS - len(times), held(pid) if pid else None


def run(tunnel, load, count, upgrades):
    """Seconds beside a load: the longest pings, lost pings, time-outs, lost datagrams and all, and what the processes have."""
    lab, before = tunnel.lab, timeouts(tunnel)
    with lab.iperf3_server(tunnel.namespace["b"]):
        process, log = None, lab.path("load.json")
        if LOADS[load]:
            if os.path.exists(log):
                os.unlink(log)
            argv = ["iperf3", "-c", tunnel.INNER["b"], "-J", "-t", str(count * 2 + LEAD), *LOADS[load]]
            process = lab.spawn(tunnel.namespace["a"], argv, log)
            time.sleep(LEAD)
        seconds = [second(tunnel, upgrades) for _ in range(count)]
        sent = lost = 0
        if process:
            process.wait()
            with open(log, encoding="ascii", errors="replace") as text:
                said = json.load(text)
            if "error" in said:
                raise LabError(f"the load ended: {said['error']}")
            if load.startswith("udp"):
                sent, lost = said["end"]["sum"]["packets"], said["end"]["sum"]["lost_packets"]
    return {"longest": [longest for longest, _, _ in seconds], "lost": sum(lost for _, lost, _ in seconds),
            "timeouts": timeouts(tunnel) - before, "datagrams": (lost, sent), "held": [held for _, _, held in seconds if held]}


def row(peers, load, what, got):
    """Prints a row."""
    lost, sent = got["datagrams"]
    datagrams = f"{lost} of {sent}" if sent else "-"
    first, last = (got["held"][0], got["held"][-1]) if got["held"] else (("-", "-"), ("-", "-"))
    print(f"{peers:>6}  {load:<6} {what:<12} {statistics.median(got['longest']):>8.1f} {max(got['longest']):>8.1f} {got['lost']:>6} "
          f"{got['timeouts']:>9}  {datagrams:<14}  {first[0]:>3} {last[0]:>3}  {first[1]:>7} {last[1]:>7}", flush=True)


def measure(lab, arguments, peers):
    """All loads with so many peers."""
    with Tunnel(lab, Implementation(f"ringtun --workers {arguments.workers}")) as tunnel:
        try:
            if peers:
                text = "".join(peer(number) for number in range(peers))
                request(tunnel.device["a"], f"set=1\n{text}\n")
            for load in arguments.load or LOADS:
                row(peers, load, "undisturbed", run(tunnel, load, arguments.upgrades, False))
                row(peers, load, "upgrades", run(tunnel, load, arguments.upgrades, True))
        finally:
            # The process that goes on is nobody's child.
            lab.run(tunnel.namespace["a"], ["ip", "link", "del", tunnel.device["a"]])


def main():
    """The whole run; the exit code."""
    parser = argparse.ArgumentParser(prog="scripts/upgrades", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upgrades", type=int, default=10, help="beside each load; default: 10")
    parser.add_argument("--peers", type=int, nargs="+", default=[0], help="numbers of further peers to try; default: 0")
    parser.add_argument("--workers", type=int, default=2, help="of each end; default: 2")
    parser.add_argument("--load", action="append", choices=LOADS, help="beside which; default: all")
    arguments = parser.parse_args(sys.argv[1:])
    if os.geteuid() != 0:
        raise LabError("namespaces and TUN devices need root")
    print(f"{'peers':>6}  {'load':<6} {'':<12} {'ms, med.':>8} {'longest':>8} {'lost':>6} {'time-outs':>9}  {'datagrams lost':<14}  {'files':>7}  {'KiB':>15}")
    with Lab() as lab:
        for peers in arguments.peers:
            measure(lab, arguments, peers)
    return 0


if __name__ == "__main__":
    main_guard(main)
