//! UDP: as many small packets as go, one by one. What arrives is counted at the interface, so that no receiving program takes part.

use super::super::lab::{FAR, NEAR, Way};
use super::super::report::BenchFigures;
use super::{costs, window};
use crate::gateway::Failure;
use crate::gateway::interrupt::Interrupt;
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, sendmmsg};
use std::io::{Error, ErrorKind, IoSlice};
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Bytes of a packet's payload.
const PAYLOAD: usize = 16;
/// Bytes of headers of IPv4 and UDP.
const HEADERS: u64 = 28;
/// Packets that one system call sends.
const BATCH: usize = 64;
/// Sockets of a sending thread: flows, which the workers share among themselves.
const FLOWS: usize = 4;
/// Cores for each sending thread. One thread sends more than a few workers carry, and takes a core from them.
const CORES_PER_SENDER: usize = 4;

/// Measures the packets that arrive.
pub(in crate::gateway::bench) fn run(
    way: &Way<'_>,
    cores: usize,
    length: Duration,
    interrupt: &Interrupt,
) -> Result<BenchFigures, Failure> {
    let far = way.addresses[FAR];
    let open = Failure::of("cannot open UDP sockets");
    // Nobody reads it: what finds it full is dropped without an answer.
    let sink = way.at(FAR, move || UdpSocket::bind((far, 0)));
    let senders = (cores / CORES_PER_SENDER).max(1);
    let sockets = sink.and_then(|sink| Ok((connect(way, &sink, senders * FLOWS)?, sink)));
    let (sockets, _sink) = sockets.map_err(open)?;
    let (done, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let window = std::thread::scope(|scope| {
        let measure = || {
            for flows in sockets.chunks(FLOWS) {
                let thread = std::thread::Builder::new().name("bench-send".into());
                let flood = || flood(flows, &done, &sent);
                thread.spawn_scoped(scope, flood).map_err(Failure::of("cannot start a thread"))?;
            }
            window(way, length, interrupt, || Ok([sent.load(Relaxed), arrived(way)?]))
        };
        let window = measure();
        done.store(true, Relaxed); // which the threads see, however this ended
        window
    })?;
    let [sent, arrived] = window.counts.map(|count| count as f64);
    if arrived == 0.0 {
        return Err(Failure::new(
            "no UDP packet arrived: is another firewall at work in new network namespaces?",
        ));
    }
    let mut figures = costs(way, window.cpu_seconds, window.seconds);
    figures.packets_per_second = Some(arrived / window.seconds);
    figures.lost_percent = Some((100.0 * (1.0 - arrived / sent.max(1.0))).max(0.0));
    figures.cores_per_mpps = figures.cores.map(|_| window.cpu_seconds * 1e6 / arrived);
    Ok(figures)
}

fn connect(way: &Way<'_>, sink: &UdpSocket, count: usize) -> std::io::Result<Vec<UdpSocket>> {
    let (near, to) = (way.addresses[NEAR], sink.local_addr()?);
    let connect = move |_| {
        let socket = UdpSocket::bind((near, 0))?;
        socket.connect(to)?;
        Ok(socket)
    };
    way.at(NEAR, move || (0..count).map(connect).collect())
}

/// Sends over these sockets in turn until it is done.
fn flood(flows: &[UdpSocket], done: &AtomicBool, sent: &AtomicU64) {
    let payload = [0; PAYLOAD];
    let pieces = [IoSlice::new(&payload)];
    let mut controls: Vec<SendAncillaryBuffer<'_, '_, '_>> =
        (0..BATCH).map(|_| SendAncillaryBuffer::default()).collect();
    let mut batch: Vec<MMsgHdr<'_>> =
        controls.iter_mut().map(|control| MMsgHdr::new(&pieces, control)).collect();
    for socket in flows.iter().cycle() {
        if done.load(Relaxed) {
            return;
        }
        // What is refused for want of buffers is tried with the next batch.
        if let Ok(count) = sendmmsg(socket, &mut batch, SendFlags::empty()) {
            sent.fetch_add(count as u64, Relaxed);
        }
    }
}

/// Packets that came to the far end's interface so far.
fn arrived(way: &Way<'_>) -> std::io::Result<u64> {
    let read = || std::fs::read_to_string("/proc/thread-self/net/dev");
    let text = way.at(FAR, read)?;
    let counters = received(&text, &way.device);
    let (bytes, packets) = counters.ok_or_else(|| Error::new(ErrorKind::NotFound, way.device.clone()))?;
    Ok(datagrams(bytes, packets, way.link_header))
}

/// Bytes and packets that an interface received, by the text of `/proc/net/dev`.
fn received(text: &str, device: &str) -> Option<(u64, u64)> {
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix(device)?.strip_prefix(':'))?;
    let mut fields = line.split_whitespace();
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// How many datagrams there are in what an interface counted. A super-packet counts as one packet, of one header and all payloads.
fn datagrams(bytes: u64, packets: u64, link_header: u64) -> u64 {
    bytes.saturating_sub((HEADERS + link_header) * packets) / PAYLOAD as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0          0
  wire: 5800 100    0    0    0     0          0         0        0       0    0    0    0     0       0          0
rtb12b:1052       2    0    0    0     0          0         0        0       0    0    0    0     0       0          0
";

    #[test]
    fn counters_of_an_interface_are_found_by_its_whole_name() {
        assert_eq!(received(TEXT, "wire"), Some((5800, 100)));
        assert_eq!(received(TEXT, "rtb12b"), Some((1052, 2)));
        assert_eq!(
            (received(TEXT, "rtb12"), received(TEXT, "wire2"), received("", "lo")),
            (None, None, None)
        );
    }

    #[test]
    fn datagrams_are_counted_alone_and_in_super_packets() {
        assert_eq!(datagrams(5800, 100, 14), 100);
        // One alone, and one super-packet of 61.
        assert_eq!(datagrams(44 + 28 + 61 * 16, 2, 0), 62);
        assert_eq!(datagrams(0, 0, 14), 0);
    }
}
