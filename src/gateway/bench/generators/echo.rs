//! Round trips of single small packets, while nothing else goes.

use super::super::lab::{FAR, NEAR, Way};
use super::super::report::{BenchFigures, quantile};
use super::{LOOK_INTERVAL, costs};
use crate::gateway::Failure;
use crate::gateway::interrupt::Interrupt;
use std::io::ErrorKind;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Bytes of a packet's payload, as ping's.
const PAYLOAD: usize = 56;
/// Pause between two packets: longer than a worker busy-polls for an answer.
const INTERVAL: Duration = Duration::from_millis(5);
/// How long an answer is waited for.
const ANSWER_LIMIT: Duration = Duration::from_millis(500);

/// Measures round trips.
pub(in crate::gateway::bench) fn run(
    way: &Way<'_>,
    length: Duration,
    interrupt: &Interrupt,
) -> Result<BenchFigures, Failure> {
    let (asker, answerer) = sockets(way).map_err(Failure::of("cannot open UDP sockets"))?;
    let cpu = || way.cpu_seconds().map_err(Failure::of("cannot count"));
    let (begun, before) = (Instant::now(), cpu()?);
    let mut times = Vec::new();
    let mut asked = 0;
    answered(&answerer, || {
        while begun.elapsed() < length {
            interrupt.check()?;
            asked += 1;
            times.extend(ask(&asker, asked).map_err(Failure::of("cannot send a packet"))?);
            std::thread::sleep(INTERVAL);
        }
        Ok(())
    })?;
    let mut figures = costs(way, cpu()? - before, begun.elapsed().as_secs_f64());
    times.sort_by(f64::total_cmp);
    figures.lost_percent = Some(100.0 * (1.0 - times.len() as f64 / f64::from(asked)));
    figures.p50_us = quantile(&times, 0.50);
    figures.p99_us = quantile(&times, 0.99);
    match times.is_empty() {
        true => {
            Err(Failure::new("no packet came back: is another firewall at work in new network namespaces?"))
        }
        false => Ok(figures),
    }
}

/// Waits until the far end answers. False where it does not within `limit`.
pub(in crate::gateway::bench) fn reaches(
    way: &Way<'_>,
    limit: Duration,
    interrupt: &Interrupt,
) -> Result<bool, Failure> {
    let (asker, answerer) = sockets(way).map_err(Failure::of("cannot open UDP sockets"))?;
    let begun = Instant::now();
    let mut number = 0;
    answered(&answerer, || {
        while begun.elapsed() < limit {
            interrupt.check()?;
            number += 1;
            if ask(&asker, number).map_err(Failure::of("cannot send a packet"))?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    })
}

/// A socket that is connected to another one at the far end.
fn sockets(way: &Way<'_>) -> std::io::Result<(UdpSocket, UdpSocket)> {
    let [near, far] = way.addresses;
    let answerer = way.at(FAR, move || UdpSocket::bind((far, 0)))?;
    answerer.set_read_timeout(Some(LOOK_INTERVAL))?;
    let to = answerer.local_addr()?;
    let asker = way.at(NEAR, move || {
        let socket = UdpSocket::bind((near, 0))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(ANSWER_LIMIT))?;
        Ok(socket)
    })?;
    Ok((asker, answerer))
}

/// Does `work` while a thread sends back whatever comes.
fn answered<T>(answerer: &UdpSocket, work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    let done = AtomicBool::new(false);
    let answer = || {
        let mut packet = [0; PAYLOAD];
        while !done.load(Relaxed) {
            if let Ok((len, from)) = answerer.recv_from(&mut packet) {
                let _ = answerer.send_to(&packet[..len], from); // lost, where it does not go
            }
        }
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("bench-answer".into());
        thread.spawn_scoped(scope, answer).map_err(Failure::of("cannot start a thread"))?;
        let result = work();
        done.store(true, Relaxed);
        result
    })
}

/// Sends a packet with this number and waits for it: the time in microseconds. `None` where it does not come back.
fn ask(socket: &UdpSocket, number: u32) -> std::io::Result<Option<f64>> {
    let mut packet = [0; PAYLOAD];
    packet[..4].copy_from_slice(&number.to_ne_bytes());
    let begun = Instant::now();
    socket.send(&packet)?;
    let mut answer = [0; PAYLOAD];
    while begun.elapsed() < ANSWER_LIMIT {
        match socket.recv(&mut answer) {
            // A late answer to an earlier one is none to this.
            Ok(_) if answer[..4] == packet[..4] => return Ok(Some(begun.elapsed().as_secs_f64() * 1e6)),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Refused or unreachable comes as an error of a socket that is connected: it is lost, too.
            Err(_) => break,
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_that_comes_back_has_a_time_and_another_has_none() {
        let answerer = UdpSocket::bind("127.0.0.1:0").unwrap();
        answerer.set_read_timeout(Some(LOOK_INTERVAL)).unwrap();
        let asker = UdpSocket::bind("127.0.0.1:0").unwrap();
        asker.connect(answerer.local_addr().unwrap()).unwrap();
        asker.set_read_timeout(Some(ANSWER_LIMIT)).unwrap();
        // A late answer lies there already.
        answerer.send_to(&[9; PAYLOAD], asker.local_addr().unwrap()).unwrap();
        let time = answered(&answerer, || ask(&asker, 1).map_err(Failure::of("asking"))).unwrap();
        assert!(time.is_some_and(|micros| micros > 0.0 && micros < 1e6), "{time:?}");
        assert_eq!(ask(&asker, 2).unwrap(), None, "nobody answers now");
    }
}
