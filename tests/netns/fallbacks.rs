//! What a kernel or a container may refuse: each refusal is forced on a real device, the tunnel works on, and one line of
//! the log says what is missing.
//!
//! System calls are refused by a seccomp filter, as a container's runtime does it. Not forced here: a TUN write of a good
//! super-packet refused, of which only a few kernels are guilty; the tests of `io` have it.

use crate::bulk::{self, moves_unaltered};
use crate::failures::fails;
use crate::implementation::{
    Device, Hindrance, Implementation, RINGTUN_TWO, ringtun, ringtun_itself, uapi_socket,
};
use crate::lab::{Host, eventually, ready};
use crate::pair::{A, B, Pair, Side, V4, V6};
use crate::tunnels;
use std::time::Duration;

/// Becomes the command in its later arguments, under a filter that the first describes: rules, separated by spaces,
/// `CALL[,ARGUMENT=VALUE]...:ERRNO`, numbers in decimal. Only the lower half of an argument is compared.
const REFUSE: &str = r"
import ctypes, os, struct, sys
def instruction(code, jt, jf, k):
    return struct.pack('=HBBI', code, jt, jf, k)
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
X86_64, ALLOW, ERRNO = 0xc000003e, 0x7fff0000, 0x00050000
program = [instruction(LOAD, 0, 0, 4), instruction(EQUAL, 1, 0, X86_64), instruction(RETURN, 0, 0, ALLOW)]
for rule in sys.argv[1].split():
    condition, errno = rule.split(':')
    call, *arguments = condition.split(',')
    wanted = [(0, int(call))]
    for argument in arguments:
        at, value = argument.split('=')
        wanted.append((16 + 8 * int(at), int(value)))
    for left, (offset, value) in zip(range(len(wanted), 0, -1), wanted):
        # On a mismatch past the rest of this rule: two instructions a comparison, and the return.
        program += [instruction(LOAD, 0, 0, offset), instruction(EQUAL, 0, 2 * left - 1, value)]
    program.append(instruction(RETURN, 0, 0, ERRNO | int(errno)))
program.append(instruction(RETURN, 0, 0, ALLOW))
code = ctypes.create_string_buffer(b''.join(program))
filter = ctypes.create_string_buffer(struct.pack('=HxxxxxxQ', len(program), ctypes.addressof(code)))
PR_SET_SECCOMP, FILTER = 22, 2
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(PR_SET_SECCOMP, FILTER, ctypes.c_void_p(ctypes.addressof(filter)), 0, 0) != 0:
    sys.exit('no seccomp: ' + os.strerror(ctypes.get_errno()))
os.execvp(sys.argv[2], sys.argv[2:])
";

/// Becomes the command in its later arguments, and refuses it trains with the error number in the first: a child looks into
/// every sendmmsg (307) for UDP_SEGMENT in the first message, which is the one that the call's error speaks of.
const REFUSE_TRAINS: &str = r"
import ctypes, fcntl, os, signal, struct, sys
errno = int(sys.argv[1])
LOAD, EQUAL, RETURN, NOTIFY, ALLOW = 0x20, 0x15, 0x06, 0x7fc00000, 0x7fff0000
program = [(LOAD, 0, 0, 0), (EQUAL, 0, 1, 307), (RETURN, 0, 0, NOTIFY), (RETURN, 0, 0, ALLOW)]
code = ctypes.create_string_buffer(b''.join(struct.pack('=HBBI', *instruction) for instruction in program))
filter = ctypes.create_string_buffer(struct.pack('=HxxxxxxQ', len(program), ctypes.addressof(code)))
libc = ctypes.CDLL(None, use_errno=True)
SECCOMP, SET_MODE_FILTER, NEW_LISTENER = 317, 1, 8
listener = libc.syscall(SECCOMP, SET_MODE_FILTER, NEW_LISTENER, ctypes.c_void_p(ctypes.addressof(filter)))
if listener < 0:
    sys.exit('no seccomp: ' + os.strerror(ctypes.get_errno()))
if os.fork() != 0:
    os.close(listener)
    os.execvp(sys.argv[2], sys.argv[2:])
libc.prctl(1, signal.SIGKILL, 0, 0, 0)
RECEIVE, ANSWER, CONTINUE = 0xc0502100, 0xc0182101, 1
def is_train(thread, messages):
    with open(f'/proc/{thread}/mem', 'rb', 0) as memory:
        memory.seek(messages + 32)
        at, left = struct.unpack('=QQ', memory.read(16))
        memory.seek(at)
        control = memory.read(left) if left else b''
    while len(control) >= 16:
        length, level, kind = struct.unpack_from('=Qii', control)
        if (level, kind) == (17, 103):
            return True
        control = control[(length + 7) // 8 * 8:]
    return False
while True:
    notice = bytearray(80)
    fcntl.ioctl(listener, RECEIVE, notice, True)
    call, thread, messages = struct.unpack_from('=QI28xQ', notice)
    refused = is_train(thread, messages)
    answer = struct.pack('=QqiI', call, 0, -errno if refused else 0, 0 if refused else CONTINUE)
    try:
        fcntl.ioctl(listener, ANSWER, answer)
    except FileNotFoundError:
        pass # a signal ended the call
";

const INFO: [&str; 2] = ["env", "LOG_LEVEL=info"];
/// EPERM for io_uring_setup, _enter and _register, as Docker's default profile has it.
const NO_IO_URING: &str = "425:1 426:1 427:1";
/// EPERM for bpf.
const NO_BPF: &str = "321:1";
/// EPERM for setsockopt of SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF.
const NO_REUSEPORT_FILTER: &str = "54,1=1,2=51:1";
/// EINVAL for ioctl TUNSETOFFLOAD with the bits of UDP tunnels among the others.
const NO_TUNNELS: &str = "16,1=1074025680,2=487:22";
/// EINVAL for it with the bits of USO among the others.
const NO_USO: &str = "16,1=1074025680,2=487:22 16,1=1074025680,2=103:22";
/// EINVAL for any of its useful sets of bits.
const NO_TUN_OFFLOADS: &str =
    "16,1=1074025680,2=487:22 16,1=1074025680,2=103:22 16,1=1074025680,2=7:22 16,1=1074025680,2=1:22";
/// ENOPROTOOPT for setsockopt of SOL_UDP, UDP_GRO.
const NO_UDP_GRO: &str = "54,1=17,2=104:92";
/// EAFNOSUPPORT for an IPv6 socket.
const NO_IPV6: &str = "41,0=10:97";

/// A pair whose first end is hindered: it shakes hands, moves bytes unaltered in both directions, over both inner families.
#[track_caller]
fn works_without(hindrance: &'static Hindrance) -> Option<Pair> {
    if !bulk::ready() || !ringtun_itself() {
        return None;
    }
    let pair = Pair::connected(Implementation::Hindered(hindrance), RINGTUN_TWO)?;
    for inner in [V4, V6] {
        pair.expect_ping(B, inner);
        moves_unaltered(&pair, inner, 4);
    }
    Some(pair)
}

/// What a side's process has said.
fn said(pair: &Pair, side: Side) -> String {
    pair[side].device.as_ref().and_then(|device| device.process.as_ref()).expect("a process").said()
}

/// One line of the log, and no more, holds the words.
#[track_caller]
fn says_once(pair: &Pair, words: &str) {
    let said = said(pair, A);
    assert_eq!(said.lines().filter(|line| line.contains(words)).count(), 1, "{words:?} in\n{said}");
}

#[track_caller]
fn says_never(pair: &Pair, words: &str) {
    let said = said(pair, A);
    assert!(!said.contains(words), "{words:?} in\n{said}");
}

#[test]
fn without_io_uring_plain_system_calls_do() {
    static HINDRANCE: Hindrance = Hindrance {
        behind: &[INFO[0], INFO[1], "python3", "-c", REFUSE, NO_IO_URING],
        options: &["--workers", "2", "--io", "auto"],
    };
    let Some(mut pair) = works_without(&HINDRANCE) else { return };
    says_once(&pair, "io_uring is not available");
    says_once(&pair, "2 workers, plain syscalls");
    // The slow path, too: configuration, a new session, an orderly end.
    pair.configure(V6);
    pair.expect_ping(A, V4);
    let device = pair[A].device.as_mut().expect("a device").process();
    device.signal("TERM");
    let status = device.wait(Duration::from_secs(10));
    assert!(status.is_some_and(|status| status.success()), "{status:?}");
}

#[test]
fn io_uring_that_was_demanded_and_is_refused_is_an_error() {
    if !ready() || !ringtun_itself() {
        return;
    }
    let host = Host::namespace();
    let program = ringtun().display().to_string();
    let arguments = ["-c", REFUSE, NO_IO_URING, &program, "-f", "--io", "uring", "rt-demanded"];
    fails(host.start("python3", &arguments), 1, &["io_uring cannot be used here", "--io syscalls"]);
    assert_eq!(host.run("ip -br link").lines().count(), 1, "more than lo");
}

#[test]
fn without_bpf_the_kernels_hash_chooses_the_queue() {
    static HINDRANCE: Hindrance =
        Hindrance { behind: &["python3", "-c", REFUSE, NO_BPF], options: &["--workers", "2"] };
    let Some(pair) = works_without(&HINDRANCE) else { return };
    says_once(&pair, "no eBPF steering of the TUN queues");
}

#[test]
fn without_a_filter_on_the_sockets_misdirected_datagrams_are_handed_on() {
    static HINDRANCE: Hindrance =
        Hindrance { behind: &["python3", "-c", REFUSE, NO_REUSEPORT_FILTER], options: &["--workers", "2"] };
    let Some(mut pair) = works_without(&HINDRANCE) else { return };
    says_once(&pair, "no steering of the UDP sockets");
    // The hash of ports sends about every second flow to the worker that does not own the peer: all of them are heard.
    for _ in 0..6 {
        pair.roam(B);
        pair.expect_ping(B, V4);
        let burst = pair[B].host.run(&format!("ping -q -c 200 -i 0.002 {}", pair[A].inner(V4)));
        assert!(burst.contains(" 200 received"), "{burst}{}", pair.tell());
    }
}

#[test]
fn without_super_packets_of_tunnels_their_packets_pass_one_by_one() {
    static HINDRANCE: Hindrance = Hindrance {
        behind: &[INFO[0], INFO[1], "python3", "-c", REFUSE, NO_TUNNELS],
        options: &["--workers", "2"],
    };
    let Some(pair) = works_without(&HINDRANCE) else { return };
    says_once(&pair, "TUN offloads: checksums, TCP segmentation, UDP segmentation");
    says_never(&pair, "UDP tunnels");
    tunnels::carries_all(&pair);
}

#[test]
fn without_uso_tcp_alone_is_coalesced() {
    static HINDRANCE: Hindrance = Hindrance {
        behind: &[INFO[0], INFO[1], "python3", "-c", REFUSE, NO_USO],
        options: &["--workers", "2"],
    };
    let Some(pair) = works_without(&HINDRANCE) else { return };
    says_once(&pair, "TUN offloads: checksums, TCP segmentation");
    says_never(&pair, "UDP segmentation");
}

#[test]
fn without_tun_offloads_packets_pass_one_by_one() {
    static HINDRANCE: Hindrance = Hindrance {
        behind: &[INFO[0], INFO[1], "python3", "-c", REFUSE, NO_TUN_OFFLOADS],
        options: &["--workers", "2"],
    };
    let Some(pair) = works_without(&HINDRANCE) else { return };
    says_once(&pair, "TUN offloads: none");
}

#[test]
fn without_tun_offloads_by_choice_packets_pass_one_by_one() {
    static HINDRANCE: Hindrance =
        Hindrance { behind: &INFO, options: &["--workers", "2", "--no-tun-offload"] };
    let Some(pair) = works_without(&HINDRANCE) else { return };
    says_once(&pair, "TUN offloads: none");
}

#[test]
fn without_gso_datagrams_go_one_by_one() {
    static HINDRANCE: Hindrance = Hindrance { behind: &INFO, options: &["--workers", "2", "--no-gso"] };
    let Some(pair) = works_without(&HINDRANCE) else { return };
    says_never(&pair, "UDP segmentation offload");
}

#[test]
fn without_gro_datagrams_come_one_by_one() {
    static HINDRANCE: Hindrance = Hindrance { behind: &INFO, options: &["--workers", "2", "--no-gro"] };
    works_without(&HINDRANCE);
}

#[test]
fn without_gro_in_the_kernel_datagrams_come_one_by_one() {
    static HINDRANCE: Hindrance =
        Hindrance { behind: &["python3", "-c", REFUSE, NO_UDP_GRO], options: &["--workers", "2"] };
    works_without(&HINDRANCE);
}

#[test]
fn with_the_least_memory_all_passes_over_io_uring() {
    static HINDRANCE: Hindrance = Hindrance {
        behind: &INFO,
        options: &["--workers", "2", "--buffers", "16", "--socket-buffer", "262144"],
    };
    works_without(&HINDRANCE);
}

#[test]
fn with_the_least_memory_all_passes_over_plain_calls() {
    static HINDRANCE: Hindrance = Hindrance {
        behind: &INFO,
        options: &["--workers", "2", "--buffers", "16", "--socket-buffer", "262144", "--io", "syscalls"],
    };
    works_without(&HINDRANCE);
}

#[test]
fn with_every_offload_refused_at_once_it_works_on_plain_packets_and_plain_calls() {
    static HINDRANCE: Hindrance = Hindrance {
        behind: &["python3", "-c", REFUSE, NO_UDP_GRO, "python3", "-c", REFUSE, NO_TUN_OFFLOADS],
        options: &["--workers", "2", "--io", "syscalls", "--no-gso", "--no-steering", "--no-pin"],
    };
    works_without(&HINDRANCE);
}

/// The wire becomes narrower than a segment while the tunnel runs: trains are refused, datagrams go in fragments.
#[track_caller]
fn narrow_path_under_load(options: &'static Hindrance) {
    let Some(pair) = works_without(options) else { return };
    says_never(&pair, "takes no trains");
    for side in [A, B] {
        pair[side].host.run("ip link set wire mtu 1280");
    }
    for inner in [V4, V6] {
        moves_unaltered(&pair, inner, 4);
    }
    let told = || said(&pair, A).contains("sending them one by one");
    eventually("the narrow path is told", Duration::from_secs(5), told);
    says_never(&pair, "UDP segmentation offload switched off");
}

#[test]
fn a_path_too_narrow_for_trains_gets_fragments_over_io_uring() {
    static HINDRANCE: Hindrance = Hindrance { behind: &INFO, options: &["--workers", "2", "--io", "uring"] };
    narrow_path_under_load(&HINDRANCE);
}

#[test]
fn a_path_too_narrow_for_trains_gets_fragments_over_plain_syscalls() {
    static HINDRANCE: Hindrance =
        Hindrance { behind: &INFO, options: &["--workers", "2", "--io", "syscalls"] };
    narrow_path_under_load(&HINDRANCE);
}

/// Trains are refused from the first on; `told` is the line that says so.
#[track_caller]
fn refused_trains(hindrance: &'static Hindrance, told: &str) {
    let Some(pair) = works_without(hindrance) else { return };
    assert!(said(&pair, A).contains(told), "no {told:?}{}", pair.tell());
}

#[test]
fn eio_of_a_train_ends_all_trains_over_io_uring() {
    static HINDRANCE: Hindrance = Hindrance {
        behind: &["python3", "-c", REFUSE_TRAINS, "5"],
        options: &["--workers", "2", "--io", "uring"],
    };
    refused_trains(&HINDRANCE, "UDP segmentation offload switched off: Input/output error");
}

#[test]
fn eio_of_a_train_ends_all_trains_over_plain_syscalls() {
    static HINDRANCE: Hindrance = Hindrance {
        behind: &["python3", "-c", REFUSE_TRAINS, "5"],
        options: &["--workers", "2", "--io", "syscalls"],
    };
    refused_trains(&HINDRANCE, "UDP segmentation offload switched off: Input/output error");
}

#[test]
fn einval_of_a_train_ends_trains_on_its_path() {
    static HINDRANCE: Hindrance =
        Hindrance { behind: &["python3", "-c", REFUSE_TRAINS, "22"], options: &["--workers", "2"] };
    refused_trains(&HINDRANCE, "takes no trains of 1452-byte datagrams: sending them one by one");
}

#[test]
fn emsgsize_of_a_train_ends_trains_on_its_path() {
    static HINDRANCE: Hindrance =
        Hindrance { behind: &["python3", "-c", REFUSE_TRAINS, "90"], options: &["--workers", "2"] };
    refused_trains(&HINDRANCE, "takes no trains of 1452-byte datagrams: sending them one by one");
}

#[test]
fn without_checksums_on_the_card_trains_pass_all_the_same() {
    static HINDRANCE: Hindrance = Hindrance { behind: &INFO, options: &["--workers", "2"] };
    let Some(pair) = works_without(&HINDRANCE) else { return };
    // Kernels before 6.11 answer EIO to a train from here on (`udp_send_skb`); later ones compute the checksums.
    for side in [A, B] {
        pair[side].host.run("ethtool -K wire tx off");
    }
    for inner in [V4, V6] {
        moves_unaltered(&pair, inner, 4);
    }
}

/// RLIMIT_MEMLOCK in bytes, and no CAP_IPC_LOCK to override it.
macro_rules! little_memory_to_lock {
    ($($test:ident: $limit:literal),* $(,)?) => {$(
        #[test]
        fn $test() {
            static HINDRANCE: Hindrance = Hindrance {
                behind: &[
                    INFO[0],
                    INFO[1],
                    "prlimit",
                    concat!("--memlock=", $limit, ":", $limit),
                    "setpriv",
                    "--inh-caps=-ipc_lock",
                    "--bounding-set=-ipc_lock",
                ],
                options: &["--workers", "2"],
            };
            let Some(pair) = works_without(&HINDRANCE) else { return };
            says_never(&pair, "panicked");
        }
    )*};
}

little_memory_to_lock! {
    with_no_memory_to_lock_it_works: "0",
    with_8_kib_to_lock_it_works: "8192",
    with_16_kib_to_lock_it_works: "16384",
    with_32_kib_to_lock_it_works: "32768",
    with_64_kib_to_lock_it_works: "65536",
    with_128_kib_to_lock_it_works: "131072",
}

/// EPERM for inotify_init1.
const NO_INOTIFY: &str = "294:1";

#[test]
fn without_inotify_the_removal_of_the_socket_still_ends_the_tunnel() {
    static HINDRANCE: Hindrance = Hindrance {
        behind: &[INFO[0], INFO[1], "python3", "-c", REFUSE, NO_INOTIFY],
        options: &["--workers", "2"],
    };
    let Some(mut pair) = works_without(&HINDRANCE) else { return };
    says_once(&pair, "no inotify");
    std::fs::remove_file(uapi_socket(pair[A].name())).expect("its socket");
    let status = pair[A].device.as_mut().expect("a device").process().wait(Duration::from_secs(10));
    assert!(status.is_some_and(|status| status.success()), "{status:?}");
}

#[test]
fn too_few_file_descriptors_are_an_error_that_says_how_many_are_needed() {
    if !ready() || !ringtun_itself() {
        return;
    }
    let host = Host::namespace();
    let program = ringtun().display().to_string();
    for limit in [12, 24, 42] {
        let limit = format!("--nofile={limit}:{limit}");
        let arguments = [&limit, &program, "-f", "--workers", "2", "rt-few"];
        fails(host.start("prlimit", &arguments), 1, &["file descriptors", "limitnofile="]);
    }
    assert_eq!(host.run("ip -br link").lines().count(), 1, "more than lo");
}

#[test]
fn without_ipv6_sockets_ipv4_carries_both_inner_families() {
    static HINDRANCE: Hindrance =
        Hindrance { behind: &["python3", "-c", REFUSE, NO_IPV6], options: &["--workers", "2"] };
    works_without(&HINDRANCE);
}

#[test]
fn ipv6_switched_off_in_the_namespace_leaves_ipv4_alone() {
    if !bulk::ready() || !ringtun_itself() {
        return;
    }
    let Some(pair) = Pair::connected(RINGTUN_TWO, RINGTUN_TWO) else { return };
    for side in [A, B] {
        let name = pair[side].name();
        pair[side].host.run("echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6");
        // New sockets, and the interface once more, without any IPv6.
        pair[side].host.run(&format!("ip link set {name} down && ip link set {name} up"));
        // Addresses of IPv4 stay.
        pair[side].host.run("! ip -6 addr show scope global | grep -q inet6");
    }
    pair.configure(V4);
    pair.expect_ping(A, V4);
    moves_unaltered(&pair, V4, 4);
    // A device made there.
    drop(Device::start(&pair[A].host, RINGTUN_TWO));
}
