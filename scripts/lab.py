"""A laboratory of network namespaces: two hosts, a wire, a WireGuard device in each, and a clock on the processors.

Everything made here bears the prefix `rt-PID-` and is removed when the `Lab` is left, also by SIGINT, SIGTERM and SIGHUP.
Only processes that the lab started are ended, by their ids. The host's own namespace is not touched, save for the UAPI
sockets, which every WireGuard implementation puts into /var/run/wireguard, whatever the namespace.
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time

PEERS = os.environ.get("RINGTUN_PEERS", "/opt/peers")
TREE = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
BUILT = os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(TREE, "target")), "release", "ringtun")
UAPI_DIRECTORY = "/var/run/wireguard"
VXLAN_HEADERS = 50  # bytes of IPv4, UDP, VXLAN and Ethernet
READY_SECONDS = 10
STOP_SECONDS = 5


class LabError(Exception):
    """What went wrong, in words for whoever ran the script."""


class Cpu:
    """Processor time by /proc/stat. What is busy is what is neither idle nor stolen by the host: the kernel measures idle time,
    while it only samples the rest at its ticks, which a load paced by timers falls between."""

    def __init__(self):
        with open("/proc/stat", encoding="ascii") as stat:
            lines = stat.readlines()
        field = [int(word) for word in lines[0].split()[1:]]
        self.idle, self.stolen = field[3] + field[4], field[7]
        self.cores = sum(line.startswith("cpu") for line in lines) - 1
        self.at = time.monotonic()

    def since(self, earlier):
        """Busy cores and stolen cores, on average since `earlier`."""
        ticks = (self.at - earlier.at) * os.sysconf("SC_CLK_TCK")
        idle, stolen = (self.idle - earlier.idle) / ticks, (self.stolen - earlier.stolen) / ticks
        return max(0.0, self.cores - idle - stolen), stolen


def process_seconds(pid):
    """Processor time that a process has used, user and system, all threads."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
        field = stat.read().rsplit(")", 1)[1].split()
    return (int(field[11]) + int(field[12])) / os.sysconf("SC_CLK_TCK")


def process_status_kib(pid, key):
    """A line such as VmHWM of /proc/PID/status, in KiB."""
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        for line in status:
            if line.startswith(key + ":"):
                return int(line.split()[1])
    return 0


class Lab:
    """Namespaces and processes with one owner. Use it in a `with` statement."""

    def __init__(self):
        self.prefix = f"rt-{os.getpid()}-"
        self.namespaces = []
        self.processes = []
        self.sockets = []
        self.directory = None

    def __enter__(self):
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, self._interrupted)
        self.directory = tempfile.mkdtemp(prefix=self.prefix)
        return self

    @staticmethod
    def _interrupted(number, _frame):
        raise SystemExit(128 + number)

    def __exit__(self, *_):
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        self.stop(*self.processes)
        for namespace in self.namespaces:
            subprocess.run(["ip", "netns", "del", namespace], check=False, capture_output=True)
        for path in self.sockets:
            if os.path.exists(path):
                os.unlink(path)
        shutil.rmtree(self.directory, ignore_errors=True)

    def netns(self, name):
        """A new namespace; its full name."""
        full = self.prefix + name
        self.namespaces.append(full)
        self.host(["ip", "netns", "add", full])
        self.run(full, "ip link set lo up")
        return full

    def drop_netns(self, full):
        """Removes a namespace and the devices that live in it."""
        self.host(["ip", "netns", "del", full])
        self.namespaces.remove(full)

    def path(self, name):
        """A path in the lab's own directory."""
        return os.path.join(self.directory, name)

    def host(self, argv):
        """Runs a command to its end; its output. A failure raises with what the command said."""
        process = self._popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            out, err = process.communicate()
        finally:
            self.stop(process)
        if process.returncode != 0:
            raise LabError(f"{shlex.join(argv)}: exit {process.returncode}: {(err or out).strip()[-2000:]}")
        return out

    def run(self, namespace, command):
        """Runs a command (string or list) in a namespace to its end; its output."""
        return self.host(self._inside(namespace, command))

    def spawn(self, namespace, command, log=None, environment=None):
        """Starts a command in a namespace and leaves it running. `ip netns exec` becomes the command: its id is the
        command's own."""
        with open(log or os.devnull, "ab") as out:
            return self._popen(self._inside(namespace, command), stdout=out, stderr=out,
                               env={**os.environ, **(environment or {})})

    def device(self, namespace, implementation, name):
        """Starts an implementation's device in a namespace; its process, once it can be configured."""
        log, socket = self.path(f"{name}.log"), f"{UAPI_DIRECTORY}/{name}.sock"
        if socket not in self.sockets:
            self.sockets.append(socket)
        daemon = self.spawn(namespace, [*implementation.argv, name], log, implementation.environment)
        until = time.monotonic() + READY_SECONDS
        while not os.path.exists(socket):
            if daemon.poll() is not None or time.monotonic() > until:
                with open(log, encoding="utf-8", errors="replace") as text:
                    raise LabError(f"{implementation.label} made no device; it said:\n{text.read()[-2000:]}")
            time.sleep(0.05)
        return daemon

    def set_configuration(self, namespace, device, text):
        """Configures a device by `wg setconf`; the text has secrets, and nobody else reads it."""
        path = self.path("wg.conf")
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii") as file:
            file.write(text)
        self.run(namespace, ["wg", "setconf", device, path])

    @contextlib.contextmanager
    def iperf3_server(self, namespace):
        """iperf3's server in a namespace, listening when the body begins."""
        process = self.spawn(namespace, ["iperf3", "-s"], self.path("server.log"))
        until = time.monotonic() + READY_SECONDS
        while not self.run(namespace, "ss -Hltn sport = :5201"):
            if process.poll() is not None or time.monotonic() > until:
                raise LabError("iperf3's server does not listen")
            time.sleep(0.05)
        try:
            yield
        finally:
            self.stop(process)

    def _popen(self, argv, **options):
        # A session of its own: Ctrl-C at the terminal reaches this process alone, which then stops the others in order.
        # And should this process be killed, the kernel ends the others.
        process = subprocess.Popen(["setpriv", "--pdeathsig", "TERM", *argv], stdin=subprocess.DEVNULL, start_new_session=True, **options)
        self.processes.append(process)
        return process

    def stop(self, *processes):
        """Ends processes that this lab started, gently and then not."""
        running = [process for process in processes if process.poll() is None]
        for process in running:
            process.terminate()
        until = time.monotonic() + STOP_SECONDS
        for process in running:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes = [process for process in self.processes if process not in processes]

    @staticmethod
    def _inside(namespace, command):
        argv = shlex.split(command) if isinstance(command, str) else list(command)
        return ["ip", "netns", "exec", namespace, *argv]


def public_key(private):
    """The public key of a private one."""
    return subprocess.run(["wg", "pubkey"], input=private, text=True, check=True, capture_output=True).stdout.strip()


def absent_peer(number):
    """A peer that does not exist: its key (any 32 bytes are one), its endpoint, and a prefix of both families. Up to 2**22."""
    high, middle, low = number.to_bytes(3, "big")
    return (number.to_bytes(4, "little") + bytes([9] * 28), f"100.{64 + high}.{middle}.{low}:51820",
            [f"10.{high}.{middle}.{low}/32", f"fd00::{number >> 16:x}:{number & 0xffff:x}/128"])


class Implementation:
    """A WireGuard program: `NAME OPTIONS...`, where NAME is one of PROGRAMS."""

    PROGRAMS = {
        "ringtun": (lambda: os.environ.get("RINGTUN_BIN") or BUILT, ["-f"], {}),
        "before": (lambda: os.environ.get("RINGTUN_BEFORE", "RINGTUN_BEFORE's program"), ["-f"], {}),
        "wireguard-go": (lambda: f"{PEERS}/bin/wireguard-go", ["-f"], {}),
        "boringtun": (lambda: f"{PEERS}/bin/boringtun-cli", ["-f", "--disable-drop-privileges"], {}),
        "gotatun": (lambda: f"{PEERS}/bin/gotatun", ["-f", "--disable-drop-privileges"], {}),
    }

    def __init__(self, specification):
        words = shlex.split(specification)
        if not words or words[0] not in self.PROGRAMS:
            raise LabError(f"unknown implementation {specification!r}; there are {', '.join(self.PROGRAMS)}")
        program, options, self.environment = self.PROGRAMS[words[0]]
        self.label = " ".join(words)
        self.argv = [program(), *options, *words[1:]]
        if shutil.which(self.argv[0]) is None:
            raise LabError(f"{self.argv[0]} is not there" + (
                "; scripts/peers installs it" if words[0] != "ringtun" else "; cargo build --release makes it"))


# iperf3's options by the name of the load.
LOADS = {
    "tcp1": ["-P", "1"],
    "tcp8": ["-P", "8"],
    "reverse": ["-R"],
    "bidir": ["--bidir"],
    "udp1372": ["-u", "-b", "0", "-l", "1372"],
    "udp16": ["-u", "-b", "0", "-l", "16"],
    "udp16x64": ["-u", "-b", "0", "-l", "16", "-P", "64"],
}

WIRES = {
    "gso": "veth as it is: a train crosses as one buffer, as on a card that segments and merges in hardware",
    "segmented": "veth that segments in software and merges again on receipt (GRO)",
    "plain": "veth that segments in software; every datagram arrives alone",
    "jumbo": "as gso, with an MTU of 9000 outside and 8920 inside",
    "rps": "as gso; b's kernel spreads what comes out of the tunnel over all cores by flow (RPS)",
    "forwarded": "as gso; the load's far end is a host in a LAN behind b, which forwards",
}


class Tunnel:
    """Two namespaces, `a` and `b`, joined by a wire, with a device of one implementation in each. What talks with `a` is at the
    address `target` of the namespace `far`, where it comes in by the device `far_device`."""

    # Outer addresses are RFC 2544's (benchmarking), inner ones RFC 1918's.
    OUTER = {"a": "198.18.0.1", "b": "198.18.0.2"}
    INNER = {"a": "10.99.0.1", "b": "10.99.0.2"}
    LAN = "10.98.0.0/24"
    GATEWAY, LAN_HOST = "10.98.0.1", "10.98.0.2"
    ETHERNET_HEADER = 14  # bytes
    VXLAN = {"a": "10.97.0.1", "b": "10.97.0.2"}

    def __init__(self, lab, implementation, wire="gso"):
        self.lab, self.implementation, self.wire = lab, implementation, wire
        serial = len(lab.sockets)
        self.namespace, self.daemon, self.device, self.keys = {}, {}, {}, {}
        for side in "ab":
            # At most 15 characters, and one for all namespaces: the UAPI sockets share a directory.
            self.device[side] = f"rt{os.getpid() % 10**8}{side}{serial}"

    def __enter__(self):
        lab = self.lab
        for side in "ab":
            self.namespace[side] = lab.netns(side)
        self._lay_wire()
        self.far, self.far_device, self.target = self.namespace["b"], self.device["b"], self.INNER["b"]
        if self.wire == "forwarded":
            self._lay_lan()
        private = {side: lab.host(["wg", "genkey"]).strip() for side in "ab"}
        public = {side: public_key(private[side]) for side in "ab"}
        for side, other in ("ab", "ba"):
            self.keys[side] = private[side], other, public[other]
            self._start(side)
            self._configure(side)
        self._await_handshake()
        return self

    def restart(self, side):
        """Ends one end's daemon, and starts and configures it again: it has no session then, the other end has one."""
        self.lab.stop(self.daemon[side])
        self._start(side)
        self._configure(side)

    def __exit__(self, *_):
        self.lab.stop(*self.daemon.values())
        for namespace in self.namespace.values():
            self.lab.drop_netns(namespace)

    def _lay_wire(self):
        a, b = self.namespace["a"], self.namespace["b"]
        self.lab.run(a, ["ip", "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", b])
        for side in "ab":
            namespace = self.namespace[side]
            self.lab.run(namespace, f"ip addr add {self.OUTER[side]}/24 dev wire")
            self.lab.run(namespace, f"ip link set wire mtu {9000 if self.wire == 'jumbo' else 1500} up")
            if self.wire in ("segmented", "plain"):
                gro = "on" if self.wire == "segmented" else "off"
                # Without TSO, too: what comes from a veth that has it is never merged (veth_skb_is_eligible_for_gro, drivers/net/veth.c).
                self.lab.run(namespace, "ethtool -K wire tso off tx-udp-segmentation off")
                self.lab.run(namespace, f"ethtool -K wire gro {gro}")

    def _lay_lan(self):
        lab, gateway, host = self.lab, self.namespace["b"], self.lab.netns("lan")
        self.namespace["lan"] = self.far = host
        self.far_device, self.target = "lan", self.LAN_HOST
        lab.run(gateway, ["ip", "link", "add", "lan", "type", "veth", "peer", "name", "lan", "netns", host])
        for namespace, address in ((gateway, self.GATEWAY), (host, self.LAN_HOST)):
            lab.run(namespace, f"ip addr add {address}/24 dev lan")
            lab.run(namespace, "ip link set lan up")
        lab.run(host, f"ip route add default via {self.GATEWAY}")
        lab.run(gateway, ["sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"])

    def _start(self, side):
        self.daemon[side] = self.lab.device(self.namespace[side], self.implementation, self.device[side])

    def _configure(self, side):
        private, other, public = self.keys[side]
        allowed = ", ".join([f"{self.INNER[other]}/32", *self._behind(side)])
        namespace, device = self.namespace[side], self.device[side]
        self.lab.set_configuration(namespace, device, (
            f"[Interface]\nPrivateKey = {private}\nListenPort = 51820\n[Peer]\nPublicKey = {public}\n"
            f"AllowedIPs = {allowed}\nEndpoint = {self.OUTER[other]}:51820\n"))
        self.lab.run(namespace, f"ip addr add {self.INNER[side]}/24 dev {device}")
        self.lab.run(namespace, f"ip link set {device} mtu {8920 if self.wire == 'jumbo' else 1420}")
        self.bring_up(side)
        if self.wire == "rps" and side == "b":
            cores = f"{(1 << os.cpu_count()) - 1:x}"
            each = f"for queue in /sys/class/net/{device}/queues/rx-*; do echo {cores} >$queue/rps_cpus; done"
            self.lab.run(namespace, ["sh", "-c", each])

    def _behind(self, side):
        return [self.LAN] if self.wire == "forwarded" and side == "a" else []

    def bring_up(self, side):
        """Brings one end's device up, with the routes that went when it went down."""
        namespace, device = self.namespace[side], self.device[side]
        self.lab.run(namespace, f"ip link set {device} up")
        for prefix in self._behind(side):
            self.lab.run(namespace, f"ip route add {prefix} dev {device}")

    def _await_handshake(self):
        try:
            self.lab.run(self.namespace["a"], f"ping -q -c 1 -w {READY_SECONDS} {self.target}")
        except LabError as error:
            raise LabError(f"{self.implementation.label}: no answer through the tunnel: {error}") from error

    @contextlib.contextmanager
    def vxlan(self, options):
        """Lays a VXLAN with these options in the tunnel while the body runs; the address of `b` in it. Without options nothing is
        laid, and the address is the tunnel's own target."""
        if options is None:
            yield self.target
            return
        for side, other in ("ab", "ba"):
            namespace = self.namespace[side]
            self.lab.run(namespace, f"ip link add vxlan0 type vxlan id 42 local {self.INNER[side]} remote {self.INNER[other]} "
                                    f"dstport 4789 {options}")
            self.lab.run(namespace, f"ip addr add {self.VXLAN[side]}/24 dev vxlan0")
            mtu = int(self.lab.run(namespace, f"cat /sys/class/net/{self.device[side]}/mtu")) - VXLAN_HEADERS
            self.lab.run(namespace, f"ip link set vxlan0 mtu {mtu} up")
        try:
            yield self.VXLAN["b"]
        finally:
            for side in "ab":
                self.lab.run(self.namespace[side], "ip link del vxlan0")

    def counter(self, side, name):
        """A counter of the WireGuard device, such as rx_packets."""
        path = f"/sys/class/net/{self.device[side]}/statistics/{name}"
        return int(self.lab.run(self.namespace[side], ["cat", path]))

    def received(self):
        """Packets that the far end received so far from `a`, and their bytes without those of the link. A super-packet counts
        as one."""
        path = f"/sys/class/net/{self.far_device}/statistics"
        packets, size = map(int, self.lab.run(self.far, ["cat", f"{path}/rx_packets", f"{path}/rx_bytes"]).split())
        return packets, size - (self.ETHERNET_HEADER * packets if self.far_device == "lan" else 0)


def main_guard(main):
    """Runs `main`, turning what went wrong into one line and an exit code."""
    try:
        sys.exit(main())
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
