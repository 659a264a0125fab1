//! TCP: as many bytes as go, in one or more streams.

use super::super::lab::{FAR, NEAR, Way};
use super::super::report::BenchFigures;
use super::{LOOK_INTERVAL, costs, window};
use crate::gateway::Failure;
use crate::gateway::interrupt::Interrupt;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Bytes of one write or read, as iperf3's.
const PIECE: usize = 128 << 10;
/// How long a connection may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// How many streams there are, and whether the far end sends. The near end connects in any case.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::gateway::bench) struct Streams {
    pub(in crate::gateway::bench) count: usize,
    pub(in crate::gateway::bench) from_far: bool,
}

/// Measures the payload that arrives.
pub(in crate::gateway::bench) fn run(
    way: &Way<'_>,
    streams: Streams,
    length: Duration,
    interrupt: &Interrupt,
) -> Result<BenchFigures, Failure> {
    let pairs = connect(way, streams).map_err(Failure::of("cannot connect TCP streams"))?;
    let (done, received) = (AtomicBool::new(false), AtomicU64::new(0));
    let window = std::thread::scope(|scope| {
        let measure = || {
            for (sender, receiver) in &pairs {
                let named = |name: &str| std::thread::Builder::new().name(name.into());
                let failed = || Failure::of("cannot start a thread");
                named("bench-send").spawn_scoped(scope, || send(sender, &done)).map_err(failed())?;
                let receive = || receive(receiver, &done, &received);
                named("bench-receive").spawn_scoped(scope, receive).map_err(failed())?;
            }
            window(way, length, interrupt, || Ok([received.load(Relaxed)]))
        };
        let window = measure();
        done.store(true, Relaxed); // which the threads see, however this ended
        window
    })?;
    if window.counts[0] == 0 {
        return Err(Failure::new(
            "no byte of TCP arrived: is another firewall at work in new network namespaces?",
        ));
    }
    let gigabits = window.counts[0] as f64 * 8.0 / 1e9;
    let mut figures = costs(way, window.cpu_seconds, window.seconds);
    figures.gbps = Some(gigabits / window.seconds);
    figures.cores_per_gbps = figures.cores.map(|_| window.cpu_seconds / gigabits);
    Ok(figures)
}

/// Connected streams, each with the end that sends first.
fn connect(way: &Way<'_>, streams: Streams) -> std::io::Result<Vec<(TcpStream, TcpStream)>> {
    let far = way.addresses[FAR];
    let listener = way.at(FAR, move || TcpListener::bind((far, 0)))?;
    let to: SocketAddr = listener.local_addr()?;
    let connect = |_| {
        let client = way.at(NEAR, move || TcpStream::connect_timeout(&to, CONNECT_LIMIT))?;
        // It is there: the client's end of the handshake is done.
        let (server, _) = listener.accept()?;
        for end in [&client, &server] {
            end.set_read_timeout(Some(LOOK_INTERVAL))?;
            end.set_write_timeout(Some(LOOK_INTERVAL))?;
        }
        Ok(if streams.from_far { (server, client) } else { (client, server) })
    };
    (0..streams.count).map(connect).collect()
}

fn send(mut stream: &TcpStream, done: &AtomicBool) {
    let bytes = vec![0; PIECE];
    while !done.load(Relaxed) {
        match stream.write(&bytes) {
            Err(error) if !is_pause(error.kind()) => return,
            _ => {}
        }
    }
}

fn receive(mut stream: &TcpStream, done: &AtomicBool, received: &AtomicU64) {
    let mut bytes = vec![0; PIECE];
    while !done.load(Relaxed) {
        match stream.read(&mut bytes) {
            Ok(0) => return,
            Ok(count) => drop(received.fetch_add(count as u64, Relaxed)),
            Err(error) if !is_pause(error.kind()) => return,
            Err(_) => {}
        }
    }
}

/// Whether an error says that nothing moved for a while.
fn is_pause(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}
