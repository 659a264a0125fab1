//! Trains that workers do for each other, forced: one stream of TCP arrives whole, in order, and without a packet sent twice.

use crate::implementation::{Hindrance, Implementation, ringtun, ringtun_itself};
use crate::lab::{find_program, skip};
use crate::pair::{A, B, Pair, Side, V4};
use std::time::{Duration, Instant};

/// Two workers that share the trains of every peer, whatever the load.
const SHARING: Hindrance = Hindrance { behind: &[], options: &["--workers", "2", "--share-all"] };
/// MiB that go through, unless `RINGTUN_ASSIST_MIB` says otherwise.
const MEBIBYTES: u64 = 128;
/// How slow the stream may be, in MiB a second: a program that is not optimized, on a machine that does other things as well.
const SLOWEST: u64 = 2;

/// What both ends agree on: every byte is known by its place. The length of the pattern has no factor in common with that of any
/// segment.
const PATTERN: &str = r"
import random, socket, sys
pattern = random.Random(7).randbytes(1000003)
twice = memoryview(pattern * 2)
";

/// Reads all of one connection to port 7000, compares it, and says how much there was.
const SERVER: &str = r"
listener = socket.create_server(('0.0.0.0', 7000))
connection, _ = listener.accept()
room, at = memoryview(bytearray(len(pattern))), 0
while count := connection.recv_into(room):
    place = at % len(pattern)
    assert room[:count] == twice[place:place + count], f'altered between {at} and {at + count}'
    at += count
connection.sendall(at.to_bytes(8, 'big'))
";

/// Arguments: address and bytes.
const CLIENT: &str = r"
import time
address, total, at = sys.argv[1], int(sys.argv[2]), 0
for _ in range(50):
    try:
        connection = socket.create_connection((address, 7000), timeout=60)
        break
    except ConnectionRefusedError:
        time.sleep(0.1)
while at < total:
    place = at % len(pattern)
    count = min(len(pattern), total - at)
    connection.sendall(twice[place:place + count])
    at += count
connection.shutdown(socket.SHUT_WR)
arrived = int.from_bytes(connection.makefile('rb').read(8), 'big')
assert arrived == total, f'{arrived} of {total} bytes arrived'
";

/// What the kernel's TCP counts where segments arrive out of order, or are sent again for that.
const REORDERED: [&str; 8] = [
    "TcpExtTCPOFOQueue",
    "TcpExtTCPOFOMerge",
    "TcpExtTCPSACKReorder",
    "TcpExtTCPRenoReorder",
    "TcpExtTCPTSReorder",
    "TcpExtTCPDSACKOfoSent",
    "TcpExtTCPFastRetrans",
    "TcpExtTCPSackRecovery",
];

/// What the kernel of a side has counted so far. A namespace counts its own.
fn kernel_counter(pair: &Pair, side: Side, name: &str) -> u64 {
    let counted = pair[side].host.run(&format!("nstat -asz {name}"));
    let line = counted.lines().find(|line| line.starts_with(name));
    let value = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    value.unwrap_or_else(|| panic!("no counter {name}: {counted}"))
}

/// The sum of a counter over a side's workers.
fn counter(pair: &Pair, side: Side, name: &str) -> u64 {
    let status = pair[side].host.run(&format!("{} status {} --all", ringtun().display(), pair[side].name()));
    let line = status.lines().find(|line| line.split_whitespace().next() == Some(name));
    line.map_or(0, |line| line.split_whitespace().skip(1).filter_map(|value| value.parse::<u64>().ok()).sum())
}

#[test]
fn a_stream_whose_trains_are_all_shared_out_arrives_in_order() {
    if !ringtun_itself() {
        return;
    }
    if let Some(program) = ["python3", "nstat"].into_iter().find(|program| find_program(program).is_none()) {
        return skip(&format!("{program} is not installed"));
    }
    let sharing = Implementation::Hindered(&SHARING);
    let Some(pair) = Pair::connected(sharing, sharing) else { return };
    let mebibytes = std::env::var("RINGTUN_ASSIST_MIB").ok().and_then(|text| text.parse().ok());
    let mebibytes: u64 = mebibytes.unwrap_or(MEBIBYTES);
    let (server, client) = (format!("{PATTERN}{SERVER}"), format!("{PATTERN}{CLIENT}"));
    let _server = pair[B].host.start("python3", &["-c", &server]);
    let bytes = (mebibytes << 20).to_string();
    let begin = Instant::now();
    let mut client = pair[A].host.start("python3", &["-c", &client, pair[B].inner(V4), &bytes]);
    let status = client.wait(Duration::from_secs(20 + mebibytes / SLOWEST));
    assert!(status.is_some_and(|status| status.success()), "{status:?} {}{}", client.said(), pair.tell());
    let took = begin.elapsed();
    println!("{mebibytes} MiB in {took:.1?}");
    for (side, way) in [(A, "tx"), (B, "rx")] {
        let count = |what: &str| counter(&pair, side, &format!("{way}_{what}"));
        let (all, shared, helped) = (count("trains"), count("shared_out"), count("assisted"));
        println!(
            "{way}: of {all} trains {shared} were shared out, {helped} of these done by the other worker"
        );
        assert!(shared > 0 && helped > 0, "{}", pair.tell());
    }
    for side in [A, B] {
        for name in REORDERED {
            assert_eq!(kernel_counter(&pair, side, name), 0, "{side:?}: {name}");
        }
        // An answer that is late on a busy machine makes the kernel send something again, and then it arrives twice.
        let [twice, probes, timeouts] = ["TcpExtTCPDSACKRecv", "TcpExtTCPLossProbes", "TcpExtTCPTimeouts"]
            .map(|name| kernel_counter(&pair, side, name));
        assert!(
            twice <= probes + timeouts,
            "{side:?}: {twice} segments came twice, {probes} + {timeouts} were late"
        );
        for dropped in ["rx_replayed", "rx_decrypt_failed", "tx_no_buffer", "rx_no_buffer"] {
            assert_eq!(counter(&pair, side, dropped), 0, "{side:?}: {dropped}");
        }
    }
}
