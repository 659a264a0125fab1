use super::*;
use crate::offload::split::{Progress, Splitter};
use crate::offload::testing::*;
use crate::offload::train::{Train, TrainLimits};
use proptest::prelude::*;

mod exhaustive;
mod properties;
mod tunnels;

const BOTH: CoalesceOptions = CoalesceOptions { tcp: true, udp: true, tunnels: true };

/// A train of messages around `packets`, and where the packets lie.
fn lay(packets: &[Vec<u8>]) -> (Vec<u8>, Vec<Range<usize>>) {
    let mut train = vec![0x5a; 16];
    let mut ranges = vec![];
    for packet in packets {
        train.extend([0xa5; 16]);
        ranges.push(train.len()..train.len() + packet.len());
        train.extend(packet);
        train.resize(train.len().next_multiple_of(16), 0);
        train.extend([0x5a; 16]);
    }
    (train, ranges)
}

/// Coalesces `packets` where no tunnel has a port. The same as [`coalesce_for`] otherwise.
fn coalesce_with(options: CoalesceOptions, packets: &[Vec<u8>]) -> (Vec<(Vec<u8>, usize)>, [u64; REFUSALS]) {
    coalesce_for(options, TunnelPorts::default(), packets)
}

/// Coalesces `packets`; the frames as the TUN device would get them, the packets in each, and the refusals.
fn coalesce_for(
    options: CoalesceOptions,
    tunnels: TunnelPorts,
    packets: &[Vec<u8>],
) -> (Vec<(Vec<u8>, usize)>, [u64; REFUSALS]) {
    let (mut train, ranges) = lay(packets);
    let mut coalescer = Coalescer::default();
    coalescer.set_tunnels(tunnels);
    coalescer.start(options);
    ranges.into_iter().for_each(|range| coalescer.push(&mut train, range));
    let runs = coalescer.finish(&mut train).to_vec();
    let frame = |run: &TunWrite| {
        (run.pieces.iter().flat_map(|piece| train[piece.clone()].to_vec()).collect(), run.packets)
    };
    (runs.iter().map(frame).collect(), coalescer.take_refusals())
}

fn coalesce(packets: &[Vec<u8>]) -> Vec<(Vec<u8>, usize)> {
    coalesce_with(BOTH, packets).0
}

/// The packets of a frame, as the kernel would segment it.
fn segment(frame: &[u8]) -> Vec<Vec<u8>> {
    let mut splitter = Splitter::new(frame).unwrap();
    let mut packets = vec![];
    let mut progress = Progress::Full;
    while progress == Progress::Full {
        let mut out = vec![0; 69_632];
        let mut train = Train::default();
        progress = splitter.write_into(&mut out, &mut train, 0, &TrainLimits::default());
        for message in out[..train.len()].chunks(train.stride()) {
            let len = crate::wire::ip::parse(&message[16..]).unwrap().len;
            packets.push(message[16..16 + len].to_vec());
        }
    }
    packets
}

/// Why the second of two packets did not join the first; `None` if it did.
fn refusal(first: &Spec, second: &Spec) -> Option<Refusal> {
    let (frames, refusals) = coalesce_with(BOTH, &[first.packet(), second.packet()]);
    let all = [
        Refusal::NotCoalescable,
        Refusal::Headers,
        Refusal::Sequence,
        Refusal::Size,
        Refusal::Flags,
        Refusal::Full,
        Refusal::Checksum,
    ];
    let counted: Vec<Refusal> = all.into_iter().filter(|refusal| refusals[*refusal as usize] > 0).collect();
    assert_eq!(counted.is_empty(), frames.len() == 1);
    assert!(counted.len() <= 1);
    counted.first().copied()
}

/// A packet and the one that follows it in its flow.
fn neighbours(v6: bool, udp: bool) -> (Spec, Spec) {
    let first = Spec::new(v6, udp, pattern(1000));
    let mut second = first.clone();
    second.id += 1;
    second.sequence += 1000;
    (first, second)
}

/// What joins once `change` was done to the second packet.
fn refused(v6: bool, udp: bool, change: impl Fn(&mut Spec)) -> Option<Refusal> {
    let (first, mut second) = neighbours(v6, udp);
    change(&mut second);
    refusal(&first, &second)
}

const KINDS: [(bool, bool); 4] = [(false, false), (false, true), (true, false), (true, true)];

#[test]
fn a_split_super_packet_coalesces_to_itself() {
    for (v6, udp) in KINDS {
        for len in [45 * 1360, 45 * 1360 - 999, 1361, 20_000] {
            let mut spec = Spec::new(v6, udp, pattern(len));
            spec.flags = ACK | PSH;
            spec.tos = 0xb8;
            if !udp {
                spec.options = pattern(12);
            }
            let mut frame = spec.frame(Some(1360));
            let frames = coalesce(&segment(&frame));
            // The one field that `frame` fills with rubbish.
            frame[2..4].copy_from_slice(&(spec.headers() as u16).to_ne_bytes());
            assert_eq!(frames.len(), 1);
            assert_eq!(frames[0], (frame, len.div_ceil(1360)));
        }
    }
}

#[test]
fn one_packet_goes_as_it_came_behind_a_header_of_zeros() {
    for (v6, udp) in KINDS {
        let packet = Spec::new(v6, udp, pattern(1000)).packet();
        let mut frame = vec![0; VNET_HDR_LEN];
        frame.extend(&packet);
        assert_eq!(coalesce(&[packet]), [(frame, 1)]);
    }
}

#[test]
fn neighbours_of_one_flow_join() {
    KINDS.into_iter().for_each(|(v6, udp)| assert_eq!(refused(v6, udp, |_| {}), None));
}

#[test]
fn other_ip_headers_are_refused() {
    for (v6, udp) in KINDS {
        assert_eq!(refused(v6, udp, |second| second.ttl = 63), Some(Refusal::Headers));
        assert_eq!(refused(v6, udp, |second| second.tos = 3), Some(Refusal::Headers));
        assert_eq!(refused(v6, udp, |second| second.label = 3), v6.then_some(Refusal::Headers));
        assert_eq!(refused(v6, udp, |second| second.fragment = 0), (!v6).then_some(Refusal::Headers));
    }
}

#[test]
fn other_tcp_headers_are_refused() {
    let refused = |change: fn(&mut Spec)| {
        let (mut first, mut second) = neighbours(false, false);
        first.options = vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
        second.options = first.options.clone();
        change(&mut second);
        refusal(&first, &second)
    };
    assert_eq!(refused(|_| {}), None);
    assert_eq!(refused(|second| second.options[7] = 2), Some(Refusal::Headers), "timestamp");
    assert_eq!(refused(|second| second.options = vec![]), Some(Refusal::Headers));
    assert_eq!(refused(|second| second.acknowledgment += 1), Some(Refusal::Headers));
    assert_eq!(refused(|second| second.window += 1), Some(Refusal::Headers));
}

#[test]
fn identifications_count_up_or_stand_still_under_df_but_never_mix() {
    for udp in [false, true] {
        let ids = |fragment: u16, ids: &[u16]| {
            let spec = |(index, id): (usize, &u16)| {
                let mut spec = Spec::new(false, udp, pattern(100));
                (spec.fragment, spec.id, spec.sequence) = (fragment, *id, index as u32 * 100);
                spec.packet()
            };
            let packets: Vec<Vec<u8>> = ids.iter().enumerate().map(spec).collect();
            coalesce(&packets).iter().map(|(_, packets)| *packets).collect::<Vec<_>>()
        };
        assert_eq!(ids(0x4000, &[7, 8, 9]), [3]);
        assert_eq!(ids(0x4000, &[0, 0, 0]), [3]);
        assert_eq!(ids(0x4000, &[0, 0, 1]), [2, 1]);
        assert_eq!(ids(0x4000, &[0, 1, 1]), [2, 1]);
        assert_eq!(ids(0x4000, &[7, 9]), [1, 1]);
        assert_eq!(ids(0, &[65_535, 0, 1]), [3]);
        assert_eq!(ids(0, &[7, 7]), [1, 1]);
    }
}

#[test]
fn a_sequence_gap_or_repetition_is_refused() {
    for v6 in [false, true] {
        assert_eq!(refused(v6, false, |second| second.sequence += 1), Some(Refusal::Sequence));
        assert_eq!(refused(v6, false, |second| second.sequence -= 1000), Some(Refusal::Sequence));
        assert_eq!(refused(v6, false, |second| second.sequence += 1000), Some(Refusal::Sequence));
    }
}

#[test]
fn only_the_last_packet_may_be_shorter() {
    for (v6, udp) in KINDS {
        assert_eq!(refused(v6, udp, |second| second.payload.truncate(1)), None);
        assert_eq!(refused(v6, udp, |second| second.payload.push(0)), Some(Refusal::Size));
        let (first, mut second) = neighbours(v6, udp);
        second.payload.truncate(999);
        let mut third = second.clone();
        third.id += 1;
        third.sequence += 999;
        let (frames, refusals) = coalesce_with(BOTH, &[first.packet(), second.packet(), third.packet()]);
        assert_eq!(frames.iter().map(|(_, packets)| *packets).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(refusals[Refusal::Size as usize], 1);
    }
}

#[test]
fn only_acknowledged_data_joins_and_psh_closes() {
    for flags in [ACK | SYN, ACK | FIN, ACK | RST, ACK | URG, ACK | ECE, ACK | CWR, PSH, 0] {
        assert_eq!(refused(false, false, |second| second.flags = flags), Some(Refusal::Flags), "{flags:#x}");
        let (mut first, second) = neighbours(true, false);
        first.flags = flags;
        assert_eq!(refusal(&first, &second), Some(Refusal::Flags), "{flags:#x}");
    }
    assert_eq!(refused(false, false, |second| second.flags = ACK | PSH), None);
    let (mut first, second) = neighbours(false, false);
    first.flags = ACK | PSH;
    assert_eq!(refusal(&first, &second), Some(Refusal::Flags));
}

#[test]
fn an_urgent_pointer_stays_with_its_packet_also_without_urg() {
    for v6 in [false, true] {
        assert_eq!(refused(v6, false, |second| second.urgent = 9), Some(Refusal::Flags));
        let (mut first, second) = neighbours(v6, false);
        first.urgent = 9;
        assert_eq!(refusal(&first, &second), Some(Refusal::Flags));
    }
}

#[test]
fn nothing_overtakes_a_pure_acknowledgment() {
    let (first, last) = neighbours(false, false);
    let mut pure = last.clone();
    pure.payload.clear();
    let frames = coalesce(&[first.packet(), pure.packet(), last.packet()]);
    let packets: Vec<Vec<u8>> = frames.iter().flat_map(|(frame, _)| segment(frame)).collect();
    assert_eq!(packets, [first.packet(), pure.packet(), last.packet()]);
}

#[test]
fn nothing_overtakes_a_fragment_between_the_same_hosts() {
    for (fragment, runs) in [(0x2000, 3), (1, 3), (0x4000, 2)] {
        let (first, last) = neighbours(false, true);
        let mut between = first.clone();
        between.port = 99;
        between.fragment = fragment;
        let frames = coalesce(&[first.packet(), between.packet(), last.packet()]);
        assert_eq!(frames.len(), runs);
    }
}

#[test]
fn what_the_kernel_could_not_segment_again_stays_alone() {
    let count = |packet: Vec<u8>| coalesce_with(BOTH, &[packet.clone(), packet]).1[0];
    let mut options = Spec::new(false, true, pattern(100));
    options.between = (0, vec![1; 4]);
    assert_eq!(count(options.packet()), 2, "IPv4 options");
    let mut extension = Spec::new(true, true, pattern(100));
    extension.between = (60, vec![UDP, 0, 1, 4, 0, 0, 0, 0]);
    assert_eq!(count(extension.packet()), 2, "extension headers");
    let mut unsummed = Spec::new(false, true, pattern(100)).packet();
    unsummed[26..28].fill(0);
    assert_eq!(count(unsummed), 2, "UDP without checksum");
    let mut longer = Spec::new(false, true, pattern(100)).packet();
    longer[25] += 1;
    assert_eq!(count(longer), 2, "UDP length beyond the packet");
    let mut icmp = Spec::new(false, true, pattern(100)).packet();
    icmp[9] = 1;
    assert_eq!(count(icmp), 2, "ICMP");
}

#[test]
fn empty_udp_packets_stay_alone() {
    for v6 in [false, true] {
        assert_eq!(refused(v6, true, |second| second.payload.clear()), Some(Refusal::Size));
        let (mut first, second) = neighbours(v6, true);
        first.payload.clear();
        assert_eq!(refusal(&first, &second), Some(Refusal::Size));
    }
}

#[test]
fn a_run_holds_64_packets_and_64_kib() {
    for (v6, udp) in KINDS {
        let frames = |payload: usize, count: usize| {
            let mut spec = Spec::new(v6, udp, pattern(payload));
            let mut packets = vec![];
            for _ in 0..count {
                packets.push(spec.packet());
                spec.id += 1;
                spec.sequence += payload as u32;
            }
            let (frames, refusals) = coalesce_with(BOTH, &packets);
            assert_eq!(refusals[Refusal::Full as usize], 1);
            assert!(frames.iter().flat_map(|(frame, _)| segment(frame)).eq(packets));
            frames.iter().map(|(_, packets)| *packets).collect::<Vec<_>>()
        };
        assert_eq!(frames(16, 65), [64, 1]);
        let headers = Spec::new(v6, udp, vec![]).headers();
        assert_eq!(frames(1400, 60), [(65_535 - headers) / 1400, 60 - (65_535 - headers) / 1400]);
    }
}

/// What the TUN device's reader gets of `frames`: a frame of one packet as it is, of a super-packet its segments.
fn delivered(frames: &[(Vec<u8>, usize)]) -> Vec<Vec<u8>> {
    let of = |(frame, packets): &(Vec<u8>, usize)| match packets {
        1 => {
            assert_eq!(
                frame[..VNET_HDR_LEN],
                [0; VNET_HDR_LEN],
                "nothing vouches for the checksum of a single packet"
            );
            vec![frame[VNET_HDR_LEN..].to_vec()]
        }
        _ => segment(frame),
    };
    frames.iter().flat_map(of).collect()
}

#[test]
fn rule_16_whatever_bit_of_a_packet_is_damaged_it_arrives_as_it_is() {
    for (v6, udp) in KINDS {
        let (mut first, mut second) = neighbours(v6, udp);
        first.payload.truncate(33);
        second.sequence = first.sequence + 33;
        second.payload.truncate(33);
        let mut third = second.clone();
        third.sequence += 33;
        third.id += 1;
        let packets = [first.packet(), second.packet(), third.packet()];
        assert_eq!(coalesce(&packets).len(), 1, "undamaged, they join");
        for damaged in 0..packets.len() {
            for bit in 0..packets[damaged].len() * 8 {
                let mut packets = packets.clone();
                packets[damaged][bit / 8] ^= 1 << (bit % 8);
                let mut delivered = delivered(&coalesce(&packets));
                // A damaged address or port makes it another flow's, which may come earlier or later.
                delivered.sort();
                packets.sort();
                assert_eq!(delivered, packets, "v6 {v6}, udp {udp}: bit {bit} of packet {damaged}");
            }
        }
    }
}

#[test]
fn rule_16_a_damaged_packet_keeps_its_place_in_its_flow() {
    for (v6, udp) in KINDS {
        let mut spec = Spec::new(v6, udp, pattern(100));
        let mut packets: Vec<Vec<u8>> = vec![];
        for _ in 0..9 {
            packets.push(spec.packet());
            spec.sequence += 100;
            spec.id += 1;
        }
        for damaged in [0, 4, 8] {
            *packets[damaged].last_mut().unwrap() ^= 0x10;
        }
        let frames = coalesce(&packets);
        assert_eq!(frames.iter().map(|(_, packets)| *packets).collect::<Vec<_>>(), [1, 3, 1, 3, 1]);
        assert_eq!(delivered(&frames), packets);
    }
}

#[test]
fn an_offload_that_the_device_lacks_is_not_used() {
    for (v6, udp) in KINDS {
        let (first, second) = neighbours(v6, udp);
        let packets = [first.packet(), second.packet()];
        let runs = |tcp, udp| coalesce_with(CoalesceOptions { tcp, udp, tunnels: true }, &packets).0.len();
        assert_eq!((runs(false, false), runs(true, true)), (2, 1));
        assert_eq!((runs(true, false), runs(false, true)), if udp { (2, 1) } else { (1, 2) });
    }
}

#[test]
fn more_flows_than_may_stay_open_lose_no_packet() {
    let mut packets = vec![];
    for round in 0..3 {
        for flow in 0..MAX_OPEN as u8 + 4 {
            let mut spec = Spec::new(false, true, pattern(50));
            (spec.host, spec.id) = (flow, round);
            packets.push(spec.packet());
        }
    }
    let frames = coalesce(&packets);
    assert_eq!(frames.iter().map(|(_, packets)| packets).sum::<usize>(), packets.len());
}

#[test]
fn working_memory_is_reused_from_train_to_train() {
    let spec = Spec::new(false, false, pattern(20_000));
    let (mut train, ranges) = lay(&segment(&spec.frame(Some(1000))));
    let clean = train.clone();
    let mut coalescer = Coalescer::default();
    let mut addresses = vec![];
    for _ in 0..3 {
        train.copy_from_slice(&clean);
        coalescer.start(BOTH);
        ranges.iter().for_each(|range| coalescer.push(&mut train, range.clone()));
        let runs = coalescer.finish(&mut train);
        assert_eq!((runs.len(), runs[0].packets, runs[0].pieces.len()), (1, 20, 20));
        addresses.push(runs[0].pieces.as_ptr());
    }
    assert_eq!(addresses[1], addresses[2]);
    coalescer.start(BOTH);
    assert!(coalescer.finish(&mut train).is_empty());
}

#[test]
fn rule_5_ranges_that_are_no_packet_are_ignored() {
    let mut train = vec![0x45; 100];
    let mut coalescer = Coalescer::default();
    coalescer.start(BOTH);
    for range in [VNET_HDR_LEN - 1..50, 0..0, 50..101, 200..300, usize::MAX - 1..usize::MAX] {
        coalescer.push(&mut train, range);
    }
    assert!(coalescer.finish(&mut train).is_empty());
}
