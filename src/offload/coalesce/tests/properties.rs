//! What holds of whatever trains there are: order and content of flows, and that nothing panics.

use super::*;

/// Under DF identifications that stood still count up after the kernel segmented again; blanks them, and the checksum.
fn forget_id(packet: &mut [u8]) {
    if packet[0] >> 4 == 4 && packet[6] & 0x40 != 0 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
}

/// What may happen between two packets of a flow.
fn any_step() -> impl Strategy<Value = (u8, usize)> {
    (prop_oneof![8 => Just(0u8), 1 => 1u8..14], prop_oneof![6 => Just(500usize), 1 => 0usize..700])
}

/// The packets of flow `number`, following `steps`.
fn flow(number: usize, steps: &[(u8, usize)]) -> Vec<Vec<u8>> {
    let (v6, udp) = KINDS[number % 4];
    let mut spec = Spec::new(v6, udp, vec![]);
    spec.host = number as u8;
    spec.options = if udp { vec![] } else { vec![1; 12] };
    let mut packets = vec![];
    for (step, len) in steps {
        let mut packet = Spec { payload: pattern(*len), ..spec.clone() };
        match step {
            1 => packet.flags |= PSH,
            2 => packet.flags |= FIN,
            3 => packet.ttl -= 1,
            4 => packet.tos = 1,
            5 => packet.fragment = 0x2000,
            6 => packet.id ^= 1,
            7 => spec.acknowledgment += 1,
            8 => spec.sequence += 1,
            9 => packet.window += 1,
            10 => packet.flags = SYN,
            11 => packet.label = 1,
            12 => {
                packet.between =
                    (60, if v6 { vec![packet.protocol(), 0, 1, 4, 0, 0, 0, 0] } else { vec![1; 4] })
            }
            13 if !udp => packet.options[3] = 0,
            _ => {}
        }
        packets.push(packet.packet());
        spec.id = spec.id.wrapping_add(1);
        spec.sequence = spec.sequence.wrapping_add(*len as u32);
    }
    packets
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn interleaved_flows_keep_their_order_and_content(
        flows in prop::collection::vec(prop::collection::vec(any_step(), 1..30), 1..24),
        order in prop::collection::vec(any::<prop::sample::Index>(), 0..400),
    ) {
        let expected: Vec<Vec<Vec<u8>>> =
            flows.iter().enumerate().map(|(number, steps)| flow(number, steps)).collect();
        let mut queues: Vec<_> = expected.iter().map(|packets| packets.iter()).collect();
        let mut packets = vec![];
        for index in order {
            packets.extend(index.get_mut(&mut queues).next().cloned());
        }
        packets.extend(queues.into_iter().flatten().cloned());

        let frames = coalesce(&packets);
        let mut seen = vec![vec![]; expected.len()];
        for (frame, count) in &frames {
            let segments = segment(frame);
            prop_assert_eq!(segments.len(), *count);
            for packet in segments {
                let host = if packet[0] >> 4 == 6 { packet[23] } else { packet[15] };
                seen[usize::from(host)].push(packet);
            }
        }
        let comparable = |mut flows: Vec<Vec<Vec<u8>>>| {
            flows.iter_mut().flatten().for_each(|packet| forget_id(packet));
            flows
        };
        prop_assert!(comparable(seen) == comparable(expected));
    }

    #[test]
    fn rule_5_mutated_trains_never_panic_and_nothing_else_is_touched(
        flows in prop::collection::vec(prop::collection::vec(any_step(), 1..8), 1..4),
        mutations in prop::collection::vec((any::<prop::sample::Index>(), 0usize..70, any::<u8>()), 0..12),
    ) {
        let mut packets: Vec<Vec<u8>> =
            flows.iter().enumerate().flat_map(|(number, steps)| flow(number, steps)).collect();
        for (which, at, value) in mutations {
            if let Some(byte) = which.get_mut(&mut packets).get_mut(at) {
                *byte = value;
            }
        }
        let (mut train, ranges) = lay(&packets);
        let before = train.clone();
        let mut coalescer = Coalescer::default();
        coalescer.start(BOTH);
        ranges.iter().for_each(|range| coalescer.push(&mut train, range.clone()));
        let runs = coalescer.finish(&mut train);
        prop_assert_eq!(runs.iter().map(|run| run.packets).sum::<usize>(), packets.len());

        // Only the virtio-net header and the headers of a run's first packet may change.
        let mut allowed = vec![false; train.len()];
        for run in runs {
            let first = run.pieces[0].clone();
            let headers = if run.packets > 1 { 134.min(first.len()) } else { VNET_HDR_LEN };
            allowed[first.start..first.start + headers].fill(true);
        }
        let changed = |at: &usize| train[*at] != before[*at];
        prop_assert_eq!((0..train.len()).filter(changed).find(|at| !allowed[*at]), None);
    }

    #[test]
    fn rule_5_garbage_never_panics(
        packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 0..20), version in 4u8..7,
    ) {
        let mut packets = packets;
        for packet in &mut packets {
            packet.iter_mut().take(1).for_each(|byte| *byte = version << 4 | *byte & 5);
        }
        prop_assert_eq!(coalesce(&packets).len() <= packets.len(), true);
    }
}
