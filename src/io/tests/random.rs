//! Random turns of a worker over the real edge. Whatever a turn does, and whatever comes meanwhile: all of it arrives, in order, and
//! nothing that came is slept through. A failure prints its seed; `RINGTUN_SEED` repeats it.

use super::tun::{PAYLOAD, listener, udp_packet, write};
use super::*;
use crate::sim::SimRng;
use crate::sim::seeds;
use std::net::UdpSocket;

/// How long a sleep may last that something should end.
const LONG: Duration = Duration::from_secs(4);
/// Most steps of a turn.
const STEPS: u64 = 6;

/// The far ends, and what is under way.
struct Rig {
    bench: Bench,
    rng: SimRng,
    /// A program on the host, to which frames that are written go.
    program: (UdpSocket, u16),
    /// A peer on the network.
    peer: UdpSocket,
    /// Numbers of what was written to the device, sent to the peer, routed into the device, sent by the peer.
    sent: [u32; 4],
    seen: [u32; 4],
    is_rung: bool,
}

impl Rig {
    fn new(backend: Backend, seed: u64) -> Rig {
        let bench = backend.bench();
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        peer.set_read_timeout(Some(LONG)).unwrap();
        let program = listener();
        Rig { bench, rng: SimRng::new(seed), program, peer, sent: [0; 4], seen: [0; 4], is_rung: false }
    }

    fn next(&mut self, which: usize) -> [u8; 4] {
        self.sent[which] += 1;
        self.sent[which].to_be_bytes()
    }

    /// Something of a turn, or of what comes meanwhile.
    fn step(&mut self) {
        match self.rng.below(8) {
            0 | 1 => {
                let (port, number) = (self.program.1, self.next(0));
                write(&mut self.bench, &udp_packet(port, &number), &[]);
            }
            2 => {
                let (number, peer) = (self.next(1), self.peer.local_addr().unwrap());
                self.bench.send(&number, 4, to(peer), 0);
            }
            3 => self.bench.io.flush(),
            4 => {
                let number = self.next(2);
                self.program.0.send_to(&number, "10.9.0.2:9").unwrap();
            }
            5 => {
                let number = self.next(3);
                self.peer.send_to(&number, self.bench.sockets[0]).unwrap();
            }
            6 => self.take_all(),
            _ => {
                self.bench.waker.wake();
                self.is_rung = true;
            }
        }
    }

    fn take(&mut self, which: usize, bytes: &[u8]) {
        let number = u32::from_be_bytes(bytes.try_into().unwrap());
        self.seen[which] += 1;
        assert_eq!(number, self.seen[which], "in order, {which}");
    }

    fn take_all(&mut self) {
        while let Some(frame) = self.bench.io.recv_tun() {
            // What the kernel itself says on the device is something else.
            if frame.len == PAYLOAD + 4 && frame.buf[PAYLOAD - 6..PAYLOAD - 4] == 9u16.to_be_bytes() {
                let bytes = frame.buf[PAYLOAD..PAYLOAD + 4].to_vec();
                self.take(2, &bytes);
            }
        }
        while let Some(train) = self.bench.io.recv_udp() {
            let bytes = train.buf[train.start..train.start + train.len].to_vec();
            bytes.chunks(train.stride).for_each(|bytes| self.take(3, bytes));
        }
    }

    /// Ends a turn: it sleeps only where nothing came.
    fn wait(&mut self) {
        self.bench.io.flush();
        // A worker looks for frames after it has written some, and that may be the last that it does.
        if self.rng.chance(500) {
            self.take_all();
            self.bench.io.flush();
        }
        let waits = self.is_rung || self.seen[2..] != self.sent[2..];
        let until = Clock.now() + if waits { LONG } else { Duration::ZERO };
        let now = self.bench.io.wait(Some(until)).unwrap();
        assert!(!waits || now < until, "slept through a ring ({}) or an arrival", self.is_rung);
        self.is_rung = false;
        self.take_all();
    }
}

/// Names the seed of a run that failed.
impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("after {:?}, of which {:?} came", self.sent, self.seen);
        }
    }
}

#[test]
fn nothing_that_comes_amid_a_turn_is_slept_through_or_lost_whatever_the_turn_does() {
    in_namespace(|backend| {
        for seed in seeds(4) {
            eprintln!("seed {seed}");
            let mut rig = Rig::new(backend, seed);
            rig.bench.wait_until_quiet();
            for _ in 0..150 {
                for _ in 0..1 + rig.rng.below(STEPS) {
                    rig.step();
                }
                rig.wait();
            }
            rig.bench.io.flush();
            let mut bytes = [0; 4];
            for _ in 0..rig.sent[0] {
                rig.program.0.recv(&mut bytes).unwrap();
                rig.take(0, &bytes);
            }
            for _ in 0..rig.sent[1] {
                rig.peer.recv(&mut bytes).unwrap();
                rig.take(1, &bytes);
            }
            while rig.seen[2..] != rig.sent[2..] {
                rig.wait();
            }
            rig.bench.wait_until_quiet();
        }
    });
}
