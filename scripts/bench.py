#!/usr/bin/env python3
"""Measures WireGuard implementations side by side, in namespaces of this machine.

For every round, every wire and every implementation a fresh tunnel is laid and every test run through it; rounds are
interleaved, so that a machine that slows down does so for all. Both ends and the load itself run on this machine's
processors: the figure to compare is busy cores (less what the host stole) per Gb/s, not Gb/s alone.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
import chart  # noqa: E402
from lab import LOADS, WIRES, Cpu, Implementation, Lab, LabError, Tunnel, main_guard, process_seconds, process_status_kib  # noqa: E402

PING_INTERVAL_SECONDS = 0.01
UDP_HEADERS = 28  # bytes of IPv4 and UDP headers


class Test:
    """One measurement: iperf3 with `options`, its datagrams counted by their `payload`; pings, beside it or alone; or what
    `times` gives, in microseconds. With `vxlan`, iperf3 goes through a VXLAN in the tunnel that has these further options."""

    def __init__(self, words, options=None, payload=None, pings=False, times=None, vxlan=None):
        self.words, self.options, self.payload, self.pings, self.times = words, options, payload, pings, times
        self.vxlan = vxlan


DOWN_SECONDS = 2
# A server that lives in the far namespace, and a client that prints the microseconds which its connect took.
LISTEN = "import socket\nserver = socket.create_server(('', 5202))\nwhile True: server.accept()[0].close()"
CONNECT = ("import socket, sys, time\nclient = socket.socket()\nbegan = time.monotonic()\n"
           "client.connect((sys.argv[1], 5202))\nprint((time.monotonic() - began) * 1e6)")
# Prints the longest time, in microseconds, in which a device received nothing; it looks for so many seconds.
SILENCE = """import sys, time
path, end = f"/sys/class/net/{sys.argv[1]}/statistics/rx_bytes", time.monotonic() + float(sys.argv[2])
last, since, longest = None, time.monotonic(), 0
while (now := time.monotonic()) < end:
    count = open(path).read()
    if count != last:
        last, longest, since = count, max(longest, now - since), now
    time.sleep(0.002)
print(max(longest, now - since) * 1e6)
"""


def restart_times(tunnel, seconds):
    """Restarts `a` for a while, and connects to the far end at once: how long each connect took."""
    listener = tunnel.lab.spawn(tunnel.far, [sys.executable, "-c", LISTEN])
    times, until = [], time.monotonic() + seconds
    try:
        while not times or time.monotonic() < until:
            tunnel.restart("a")
            times.append(float(tunnel.lab.run(tunnel.namespace["a"], [sys.executable, "-c", CONNECT, tunnel.target])))
    finally:
        tunnel.lab.stop(listener)
    return times


def silence_times(tunnel, _seconds):
    """Takes the sending end's device down and up again amid a stream: how long nothing arrived."""
    lab, a, b = tunnel.lab, tunnel.namespace["a"], tunnel.namespace["b"]
    log = lab.path("silence.log")
    open(log, "wb").close()
    with lab.iperf3_server(tunnel.far):
        stream = lab.spawn(a, ["iperf3", "-c", tunnel.target, "-t", "12", "-b", "100M"])
        time.sleep(2)
        watcher = lab.spawn(b, [sys.executable, "-c", SILENCE, tunnel.device["b"], "9"], log)
        time.sleep(0.5)
        lab.run(a, ["ip", "link", "set", tunnel.device["a"], "down"])
        time.sleep(DOWN_SECONDS)
        tunnel.bring_up("a")
        watcher.wait()
        lab.stop(watcher, stream)
    with open(log, encoding="ascii") as text:
        return [float(text.read())]


TESTS = {
    "tcp1": Test("one TCP stream", LOADS["tcp1"]),
    "tcp1-2g": Test("one TCP stream of 2 Gb/s", ["-b", "2G"]),
    "tcp8": Test("eight TCP streams", LOADS["tcp8"]),
    "reverse": Test("one TCP stream, from the far side", LOADS["reverse"]),
    "bidir": Test("one TCP stream each way at once", LOADS["bidir"]),
    "udp1372": Test("UDP, 1372-byte payloads, as fast as they go", LOADS["udp1372"], payload=1372),
    "udp16": Test("UDP, 16-byte payloads, as fast as they go", LOADS["udp16"], payload=16),
    "udp16x64": Test("the same, 64 flows", LOADS["udp16x64"], payload=16),
    "vxlan": Test("one TCP stream, VXLAN in the tunnel without UDP checksums", LOADS["tcp1"], vxlan="noudpcsum"),
    "vxlan-csum": Test("one TCP stream, VXLAN in the tunnel with UDP checksums", LOADS["tcp1"], vxlan="udpcsum"),
    "ping": Test("round trips while idle", pings=True),
    "ping-1g": Test("round trips beside one TCP stream of 1 Gb/s", ["-b", "1G"], pings=True),
    "ping-loaded": Test("round trips beside eight TCP streams", LOADS["tcp8"], pings=True),
    "restart": Test("the first TCP connect after the connecting end's restart", times=restart_times),
    "link-down": Test(f"the silence of a TCP stream whose device is down for {DOWN_SECONDS} s", times=silence_times),
}

def start_pings(tunnel, seconds):
    """Pings from a to b for a while; a function that waits and gives the sorted times in microseconds."""
    log = tunnel.lab.path("ping.log")
    open(log, "wb").close()
    count = int(seconds / PING_INTERVAL_SECONDS)
    process = tunnel.lab.spawn(tunnel.namespace["a"], [
        "ping", "-i", str(PING_INTERVAL_SECONDS), "-c", str(count), "-w", str(seconds + 5), tunnel.target], log)

    def collect():
        process.wait()
        tunnel.lab.stop(process)
        with open(log, encoding="ascii", errors="replace") as text:
            times = sorted(float(line.rsplit("time=", 1)[1].split()[0]) * 1000 for line in text if "time=" in line)
        if not times:
            raise LabError("no ping came back")
        return {"p50_us": quantile(times, 0.50), "p99_us": quantile(times, 0.99),
                "lost_percent": 100.0 * (count - len(times)) / count}
    return collect


def quantile(ordered, share):
    """The value below which `share` of the ordered values lie (nearest rank)."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def measure(tunnel, test, seconds):
    """Runs one test through one tunnel; its figures by name."""
    if test.times is not None:
        times = sorted(test.times(tunnel, seconds))
        return {"p50_us": quantile(times, 0.50), "p99_us": quantile(times, 0.99)}
    daemons = tunnel.daemon.values()
    used = sum(process_seconds(daemon.pid) for daemon in daemons)
    before = Cpu()
    pings = start_pings(tunnel, seconds) if test.pings else None
    figures = {}
    if test.options is not None:
        # The VXLAN ends where the tunnel does, whatever is behind that.
        server = tunnel.namespace["b"] if test.vxlan else tunnel.far
        with tunnel.vxlan(test.vxlan) as address, tunnel.lab.iperf3_server(server):
            before = Cpu()
            figures = iperf3(tunnel, test, seconds, address)
    if pings is not None:
        figures.update(pings())
    after = Cpu()
    elapsed = after.at - before.at
    busy, stolen = after.since(before)
    figures["busy_cores"], figures["stolen_cores"] = busy, stolen
    figures["daemon_cores"] = (sum(process_seconds(daemon.pid) for daemon in daemons) - used) / elapsed
    figures["peak_mib"] = max(process_status_kib(daemon.pid, "VmHWM") for daemon in daemons) / 1024
    if figures.get("gbps"):
        figures["cores_per_gbps"] = busy / figures["gbps"]
    return figures


def datagrams(tunnel, payload):
    """Inner datagrams that the far end got so far. Its device counts a super-packet as one, of one header and all payloads."""
    packets, size = tunnel.received()
    return (size - UDP_HEADERS * packets) / payload


def iperf3(tunnel, test, seconds, address):
    """Runs iperf3's client; the rate. UDP is counted at the receiving device: iperf3's own figures for loss are not to be
    relied upon when the receiver cannot keep up."""
    arrived = -datagrams(tunnel, test.payload) if test.payload is not None else 0
    began = time.monotonic()
    text = tunnel.lab.run(tunnel.namespace["a"], [
        "iperf3", "-J", "-c", address, "-t", str(seconds), *test.options])
    elapsed = time.monotonic() - began
    if test.payload is not None:
        arrived += datagrams(tunnel, test.payload)
        return {"gbps": arrived * test.payload * 8 / elapsed / 1e9, "kpps": arrived / elapsed / 1e3}
    end = json.loads(text)["end"]
    bits = end["sum_received"]["bits_per_second"]
    bits += end.get("sum_received_bidir_reverse", {}).get("bits_per_second", 0)
    return {"gbps": bits / 1e9}


def run(arguments, implementations):
    """All rounds; a list of results."""
    results = []
    with Lab() as lab:
        for number in range(arguments.rounds):
            for wire in arguments.wire:
                # The order turns with the rounds: nobody is always first.
                turn = number % len(implementations)
                for implementation in implementations[turn:] + implementations[:turn]:
                    with Tunnel(lab, implementation, wire) as tunnel:
                        for name in arguments.test:
                            progress(f"round {number + 1}/{arguments.rounds}  {wire}  {implementation.label}  {name}")
                            figures = measure(tunnel, TESTS[name], arguments.seconds)
                            results.append({"round": number, "wire": wire, "implementation": implementation.label,
                                            "test": name, **figures})
                        if arguments.keep:
                            keep(tunnel)
    return results


def keep(tunnel):
    """Leaves the tunnel standing until interrupted."""
    print("The tunnel stands. Try:")
    for side, other in ("ab", "ba"):
        print(f"  ip netns exec {tunnel.namespace[side]} ping {tunnel.INNER[other]}")
    print("Ctrl-C removes it.", flush=True)
    with contextlib.suppress(SystemExit):
        while True:
            time.sleep(3600)


def progress(text):
    """One line of progress, apart from the results."""
    print(f"   {text}", file=sys.stderr, flush=True)


COLUMNS = [("gbps", "Gb/s", "{:.2f}"), ("kpps", "kpps", "{:.0f}"), ("busy_cores", "cores", "{:.2f}"),
           ("cores_per_gbps", "cores/Gb/s", "{:.3f}"), ("daemon_cores", "daemons", "{:.2f}"),
           ("stolen_cores", "stolen", "{:.2f}"), ("p50_us", "p50 us", "{:.0f}"), ("p99_us", "p99 us", "{:.0f}"),
           ("lost_percent", "lost %", "{:.2f}"), ("peak_mib", "peak MiB", "{:.0f}")]


def medians(results):
    """The median of every figure by (wire, test, implementation), in the order they were run first."""
    grouped = {}
    for result in results:
        grouped.setdefault((result["wire"], result["test"], result["implementation"]), []).append(result)
    return {group: {key: statistics.median(r[key] for r in rows if key in r)
                    for key, _, _ in COLUMNS if any(key in r for r in rows)} for group, rows in grouped.items()}


def merit(test):
    """The figure that a test is compared by, and whether less of it is better."""
    if test.startswith("udp"):
        return "kpps", False
    return ("p50_us" if TESTS[test].pings or TESTS[test].times else "cores_per_gbps"), True


def ratio(test, figures, baseline):
    """How many times better than the baseline."""
    key, lower = merit(test)
    if not (figures.get(key) and baseline and baseline.get(key)):
        return ""
    return f"{baseline[key] / figures[key] if lower else figures[key] / baseline[key]:.2f}x"


def table(results, baseline):
    """The medians as text."""
    by_group = medians(results)
    shown = [column for column in COLUMNS if any(column[0] in figures for figures in by_group.values())]
    compared = len({group[2] for group in by_group}) > 1
    rows = [["wire", "test", "implementation", *(column[1] for column in shown), *(["better"] if compared else [])]]
    tests = list(dict.fromkeys(group[1] for group in by_group))
    for (wire, test, implementation), figures in sorted(by_group.items(), key=lambda i: (i[0][0], tests.index(i[0][1]))):
        cells = [form.format(figures[key]) if key in figures else "" for key, _, form in shown]
        if compared:
            cells.append(ratio(test, figures, by_group.get((wire, test, baseline))))
        rows.append([wire, test, implementation, *cells])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) if i < 3 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def drawing(results, baseline, title):
    """The medians as an SVG document, each test by its own figure of merit."""
    by_group = medians(results)
    columns = {key: (words, form) for key, words, form in COLUMNS}
    panels = []
    for wire, test in dict.fromkeys((wire, test) for wire, test, _ in by_group):
        key, lower = merit(test)
        words, form = columns[key]
        bars = []
        for (_, _, name), figures in ((g, f) for g, f in by_group.items() if g[:2] == (wire, test) and f.get(key)):
            better = ratio(test, figures, by_group.get((wire, test, baseline)))
            bars.append((name, figures[key], f"{form.format(figures[key])}  {better}".rstrip()))
        if bars:
            panels.append((f"{test}, {wire} wire", words, lower, bars))
    return chart.svg(title, panels)


def machine():
    """What the figures were measured on."""
    model = "unknown"
    with open("/proc/cpuinfo", encoding="utf-8") as cpuinfo:
        for line in cpuinfo:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return {"kernel": platform.release(), "processor": model, "cores": os.cpu_count()}


def arguments_of(argv):
    """The command line, checked."""
    listed = "\n".join(f"  {name:12} {test.words}" for name, test in TESTS.items())
    wires = "\n".join(f"  {name:12} {words}" for name, words in WIRES.items())
    parser = argparse.ArgumentParser(prog="scripts/bench",
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"tests:\n{listed}\n\nwires:\n{wires}\n\nimplementations: {', '.join(Implementation.PROGRAMS)}; with options"
               " as in 'ringtun --io syscalls'.\nRINGTUN_BIN names ringtun's program (default: what cargo build\n--release made), RINGTUN_BEFORE another one that is called 'before', RINGTUN_PEERS (default /opt/peers)"
               " the directory of scripts/peers.")
    parser.add_argument("--impl", action="append", metavar="NAME [OPTIONS]", help="default: ringtun; repeat to compare")
    parser.add_argument("--wire", action="append", choices=WIRES, help="default: gso; may be repeated")
    parser.add_argument("--test", action="append", choices=TESTS, help="default: tcp1 tcp8; may be repeated")
    parser.add_argument("--rounds", type=positive, default=5, help="default: 5")
    parser.add_argument("--seconds", type=positive, default=5, help="length of each measurement, default: 5")
    parser.add_argument("--baseline", metavar="NAME", help="whom to compare with; default: the first --impl")
    parser.add_argument("--json", metavar="FILE", help="also write every result as JSON; - is standard output, without a table")
    parser.add_argument("--svg", metavar="FILE", help="also draw the comparison")
    parser.add_argument("--keep", action="store_true", help="leave each tunnel standing until Ctrl-C")
    arguments = parser.parse_args(argv)
    arguments.impl = arguments.impl or ["ringtun"]
    arguments.wire = arguments.wire or ["gso"]
    arguments.test = arguments.test or ["tcp1", "tcp8"]
    return arguments


def positive(text):
    """A whole number above zero."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be above zero")
    return number


def main():
    """The whole run."""
    arguments = arguments_of(sys.argv[1:])
    if os.geteuid() != 0:
        raise LabError("namespaces and TUN devices need root")
    implementations = [Implementation(specification) for specification in arguments.impl]
    baseline = Implementation(arguments.baseline).label if arguments.baseline else implementations[0].label
    results = run(arguments, implementations)
    report = {"machine": machine(), "seconds": arguments.seconds, "rounds": arguments.rounds, "results": results}
    if arguments.json == "-":
        json.dump(report, sys.stdout, indent=1)
        print()
        return 0
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)
    about = report["machine"]
    title = (f"{about['processor']}, {about['cores']} cores, Linux {about['kernel']}; medians of {arguments.rounds} round(s) of "
             f"{arguments.seconds} s")
    if arguments.svg:
        with open(arguments.svg, "w", encoding="utf-8") as file:
            file.write(drawing(results, baseline, title))
    print(f"\n{title}\n\n{table(results, baseline)}\n")
    print("cores: busy on the whole machine, less what the host stole: both tunnel ends and iperf3. daemons: both tunnel ends alone.")
    return 0


if __name__ == "__main__":
    main_guard(main)
