//! Super-packets as the TUN device gives them, and the trains that they become.

use ringtun::offload::coalesce::{CoalesceOptions, Coalescer};
use ringtun::offload::split::Splitter;
use ringtun::offload::train::{Train, TrainLimits};
use ringtun::wire::ip;
use ringtun::wire::vnet::{F_NEEDS_CSUM, GsoType, VnetHeader};
use std::hint::black_box;
use std::ops::Range;

const MTU: usize = 1420;
/// Bytes of room for a train: 64 KiB and more.
pub(crate) const ROOM: usize = 68 * 1024;

/// Makes a TUN frame: a super-packet over IPv4 from the given port, of `segments` of `gso_size` bytes. TCP has a timestamp
/// option.
pub(crate) fn frame(udp: bool, port: u16, segments: usize, gso_size: u16) -> Vec<u8> {
    let headers = if udp { 28 } else { 52 };
    let len = headers + segments * usize::from(gso_size);
    let vnet = VnetHeader {
        flags: F_NEEDS_CSUM,
        gso: if udp { GsoType::UdpL4 } else { GsoType::TcpV4 },
        gso_size,
        csum_start: 20,
        csum_offset: if udp { 6 } else { 16 },
        ..VnetHeader::default()
    };
    let mut packet: Vec<u8> = (0..len).map(|i| i as u8).collect();
    packet[..20].copy_from_slice(&[0x45, 0, 0, 0, 0, 7, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    packet[20..22].copy_from_slice(&port.to_be_bytes());
    if udp {
        packet[9] = ip::UDP;
    } else {
        packet[32..34].copy_from_slice(&[0x80, ip::tcp_flags::ACK]);
        packet[38..40].copy_from_slice(&[0, 0]); // no urgent pointer
        packet[40..52].copy_from_slice(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    }
    [vnet.to_bytes().to_vec(), packet].concat()
}

/// Splits `frame` into `out`.
pub(crate) fn split(frame: &[u8], out: &mut [u8]) -> Train {
    let mut train = Train::default();
    let mut splitter = Splitter::new(frame).expect("a frame made above");
    splitter.write_into(out, &mut train, MTU, &TrainLimits::default());
    train
}

/// Makes a received train: the segments of several super-packets, in turn.
pub(crate) fn received(frames: &[Vec<u8>]) -> (Vec<u8>, Vec<Range<usize>>) {
    let split = |frame: &Vec<u8>| {
        let mut out = vec![0; ROOM];
        let train = split(frame, &mut out);
        out[..train.len()].chunks(train.stride()).map(<[u8]>::to_vec).collect::<Vec<_>>()
    };
    let flows: Vec<Vec<Vec<u8>>> = frames.iter().map(split).collect();
    // Room for the virtio-net header before the first packet.
    let (mut bytes, mut ranges) = (vec![0; 16], vec![]);
    for turn in 0..flows.iter().map(Vec::len).max().unwrap_or(0) {
        for message in flows.iter().filter_map(|flow| flow.get(turn)) {
            let start = bytes.len() + 16;
            let len = ip::parse(&message[16..]).map_or(0, |info| info.len);
            ranges.push(start..start + len);
            bytes.extend(message);
        }
    }
    (bytes, ranges)
}

/// A received train that is coalesced again and again. Only the heads of the runs change, and are put right each time.
pub(crate) struct Received {
    clean: Vec<u8>,
    train: Vec<u8>,
    ranges: Vec<Range<usize>>,
    runs: usize,
    coalescer: Coalescer,
}

impl Received {
    /// The segments of `frames` in turn: one run each.
    pub(crate) fn new(frames: &[Vec<u8>]) -> Received {
        let (clean, ranges) = received(frames);
        let coalescer = Coalescer::default();
        Received { train: clean.clone(), clean, ranges, runs: frames.len(), coalescer }
    }

    /// Inner packets, and their bytes.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.ranges.len(), self.ranges.iter().map(ExactSizeIterator::len).sum())
    }

    /// Coalesces the train.
    pub(crate) fn coalesce(&mut self) {
        const HEAD: usize = 128;
        self.coalescer.start(CoalesceOptions { tcp: true, udp: true, tunnels: true });
        for range in &self.ranges {
            self.coalescer.push(&mut self.train, range.clone());
        }
        let runs = self.coalescer.finish(black_box(&mut self.train));
        assert_eq!(runs.len(), self.runs);
        for run in runs {
            let start = run.pieces[0].start;
            self.train[start..start + HEAD].copy_from_slice(&self.clean[start..start + HEAD]);
        }
    }
}
