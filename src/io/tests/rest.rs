//! A backend at rest, and another one that goes on with its sockets and its queue, as at a hand-over to another process.

use super::*;
use std::net::UdpSocket;
use std::os::fd::AsFd;

/// A backend, and handles by which another one takes over from it.
struct Handed {
    bench: Bench,
    tun: OwnedFd,
    sockets: UdpSockets,
}

fn handed(backend: Backend) -> Handed {
    let tun = open_tun("t0");
    let again = |fd: &Option<OwnedFd>| fd.as_ref().map(|fd| fd.as_fd().try_clone_to_owned().unwrap());
    let (first, addrs) = sockets();
    let sockets = UdpSockets { v4: again(&first.v4), v6: again(&first.v6), port: first.port };
    let mut bench = backend.open(tun.try_clone().unwrap(), 256);
    bench.io.rebind(Some(first));
    bench.sockets = addrs;
    Handed { bench, tun, sockets }
}

impl Handed {
    /// The backend that goes on.
    fn successor(self, backend: Backend) -> Bench {
        let mut next = backend.open(self.tun, 256);
        next.io.rest(true);
        next.io.rebind(Some(self.sockets));
        next.io.rest(false);
        next
    }
}

/// The numbers in datagrams that a backend has or gets, until none comes for a moment.
fn received(bench: &mut Bench) -> Vec<u32> {
    let mut numbers = Vec::new();
    for _ in 0..3 {
        bench.io.wait(Some(Clock.now() + Duration::from_millis(30))).unwrap();
        while let Some(train) = bench.io.recv_udp() {
            let bytes = &train.buf[train.start..train.start + train.len];
            numbers.extend(
                bytes.chunks(train.stride).map(|bytes| u32::from_be_bytes(bytes.try_into().unwrap())),
            );
        }
    }
    numbers
}

/// The numbers in frames that a backend gets, until none comes for a moment.
fn framed(bench: &mut Bench) -> Vec<u32> {
    let mut numbers = Vec::new();
    for _ in 0..3 {
        bench.io.wait(Some(Clock.now() + Duration::from_millis(30))).unwrap();
        while let Some(frame) = bench.io.recv_tun() {
            let bytes = &frame.buf[..frame.len];
            // Others are the young device's own.
            if bytes.len() == VNET_HDR_LEN + 28 + 4 {
                numbers.push(u32::from_be_bytes(*bytes.last_chunk().unwrap()));
            }
        }
    }
    numbers
}

#[test]
fn whoever_takes_over_gets_every_datagram_that_the_one_at_rest_did_not_and_none_twice() {
    in_namespace(|backend| {
        for next in BACKENDS {
            let mut handed = handed(backend);
            let (sender, to) = (UdpSocket::bind("127.0.0.1:0").unwrap(), handed.bench.sockets[0]);
            let send = |numbers: std::ops::Range<u32>| {
                for number in numbers {
                    sender.send_to(&number.to_be_bytes(), to).unwrap();
                }
            };
            send(0..20);
            // The kernel may have put them into the backend's buffers by now, and nobody has taken them.
            handed.bench.wait();
            send(20..40);
            handed.bench.io.rest(true);
            send(40..60);
            let mut all = received(&mut handed.bench);
            assert!(all.len() < 60, "it rests");
            let asleep = handed.bench.io.stats().waits;
            assert!(
                received(&mut handed.bench).is_empty() && handed.bench.io.stats().waits > asleep,
                "and sleeps"
            );
            let mut next = handed.successor(next);
            all.extend(received(&mut next));
            assert_eq!(all, (0..60).collect::<Vec<_>>());
        }
    });
}

#[test]
fn frames_wait_in_the_kernel_for_whoever_takes_over_or_goes_on() {
    in_namespace(|backend| {
        for next in BACKENDS {
            let mut handed = handed(backend);
            let host = UdpSocket::bind("10.9.0.1:0").unwrap();
            let send = |numbers: std::ops::Range<u32>| {
                for number in numbers {
                    host.send_to(&number.to_be_bytes(), "10.9.0.2:9").unwrap();
                }
            };
            send(0..5);
            let mut all = framed(&mut handed.bench);
            handed.bench.io.rest(true);
            send(5..10);
            assert!(framed(&mut handed.bench).is_empty());
            handed.bench.io.rest(false);
            all.extend(framed(&mut handed.bench));
            handed.bench.io.rest(true);
            send(10..15);
            assert!(framed(&mut handed.bench).is_empty());
            all.extend(framed(&mut handed.successor(next)));
            assert_eq!(all, (0..15).collect::<Vec<_>>());
        }
    });
}

#[test]
fn what_was_queued_leaves_at_rest() {
    in_namespace(|backend| {
        let mut bench = backend.bench();
        let host = UdpSocket::bind("127.0.0.1:0").unwrap();
        host.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        bench.send(&pattern(3000, 1), 1000, to(host.local_addr().unwrap()), 0);
        assert!(!bench.io.has_sent());
        bench.io.rest(true);
        bench.io.flush();
        assert!(bench.io.has_sent());
        let mut bytes = [0; 2000];
        assert!((0..3).all(|_| host.recv(&mut bytes).unwrap() == 1000));
    });
}
