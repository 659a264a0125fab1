use super::*;
use crate::offload::testing::*;
use proptest::prelude::*;

mod exhaustive;
mod tunnels;

/// What the buffer holds where nothing may be written.
const UNTOUCHED: u8 = 0xa5;

/// All segments of a frame, train by train, each padded as sent; asserts that headers, tags and the rest of the buffer were
/// left alone.
fn split(frame: &[u8], mtu: usize, limits: &TrainLimits) -> Result<Vec<Vec<Vec<u8>>>, SplitError> {
    let mut splitter = Splitter::new(frame)?;
    let mut trains = vec![];
    loop {
        let mut out = vec![UNTOUCHED; 69_632];
        let mut train = Train::default();
        let before = splitter.remaining();
        let progress = splitter.write_into(&mut out, &mut train, mtu, limits);
        assert_eq!(before - splitter.remaining(), train.count());
        assert!(out[train.len()..].iter().all(|byte| *byte == UNTOUCHED), "beyond the train");
        let mut segments = vec![];
        for message in out[..train.len()].chunks(train.stride().max(1)) {
            let (inner, tag) = message.split_at(message.len() - 16);
            assert!(tag.iter().chain(&inner[..16]).all(|byte| *byte == UNTOUCHED), "message header and tag");
            segments.push(inner[16..].to_vec());
        }
        assert_eq!(segments.len(), train.count());
        trains.push(segments);
        if progress == Progress::Done {
            assert_eq!(splitter.remaining(), 0);
            return Ok(trains);
        }
        assert!(!train.is_empty(), "progress");
    }
}

/// The inner packets, after checking the padding.
fn packets(frame: &[u8], mtu: usize) -> Result<Vec<Vec<u8>>, SplitError> {
    let unpad = |mut segment: Vec<u8>| {
        let len = ip::parse(&segment).unwrap().len;
        assert_eq!(segment.len() + 32, message_len(len, mtu));
        assert!(segment[len..].iter().all(|byte| *byte == 0));
        segment.truncate(len);
        segment
    };
    Ok(split(frame, mtu, &TrainLimits::default())?.into_iter().flatten().map(unpad).collect())
}

fn error(frame: &[u8]) -> Option<SplitError> {
    Splitter::new(frame).err()
}

/// Checks every segment of a super-packet against the reference.
fn check(spec: &Spec, gso_size: u16, mtu: usize) {
    let packets = packets(&spec.frame(Some(gso_size)), mtu).unwrap();
    let chunks: Vec<&[u8]> = match spec.payload.len() {
        0 => vec![&[]],
        _ => spec.payload.chunks(usize::from(gso_size)).collect(),
    };
    assert_eq!(packets.len(), chunks.len());
    for (index, (packet, chunk)) in packets.iter().zip(&chunks).enumerate() {
        let mut flags = spec.flags;
        if index > 0 {
            flags &= !CWR;
        }
        if index + 1 < chunks.len() {
            flags &= !(FIN | PSH);
        }
        let offset = if spec.udp { 0 } else { index as u32 * u32::from(gso_size) };
        let expected = Read {
            id: if spec.v6 { spec.id } else { spec.id.wrapping_add(index as u16) },
            sequence: spec.sequence.wrapping_add(offset),
            flags: if spec.udp { spec.flags } else { flags },
            payload: chunk.to_vec(),
        };
        assert_eq!(read(spec, packet), expected, "segment {index}");
    }
}

#[test]
fn a_full_tso_super_packet_becomes_one_train() {
    for v6 in [false, true] {
        let mut spec = Spec::new(v6, false, pattern(45 * 1348));
        spec.options = vec![1; 12];
        let gso_size = if v6 { 1348 } else { 1368 };
        spec.payload = pattern(45 * usize::from(gso_size));
        let trains = split(&spec.frame(Some(gso_size)), 1420, &TrainLimits::default()).unwrap();
        assert_eq!(trains.iter().map(Vec::len).collect::<Vec<_>>(), [45]);
        assert!(trains[0].iter().all(|segment| segment.len() == 1420));
        check(&spec, gso_size, 1420);
    }
}

#[test]
fn a_super_packet_that_exceeds_a_train_continues_in_the_next() {
    let spec = Spec::new(false, true, pattern(65_535 - 28));
    let trains = split(&spec.frame(Some(512)), 1420, &TrainLimits::default()).unwrap();
    assert_eq!(trains.iter().map(Vec::len).collect::<Vec<_>>(), [64, 64]);
    let single = TrainLimits { segments: 1, bytes: 65_340 };
    let trains = split(&spec.frame(Some(4096)), 1420, &single).unwrap();
    assert_eq!(trains.iter().map(Vec::len).collect::<Vec<_>>(), [1; 16]);
}

#[test]
fn frames_follow_one_another_in_a_train_until_one_is_larger_or_a_shorter_one_closed_it() {
    let limits = TrainLimits::default();
    let mut out = vec![0; 69_632];
    let mut train = Train::default();
    let mut write = |train: &mut Train, payload: usize| {
        let frame = Spec::new(false, true, pattern(payload)).frame(None);
        Splitter::new(&frame).unwrap().write_into(&mut out, train, 1420, &limits)
    };
    assert_eq!(write(&mut train, 100), Progress::Done);
    assert_eq!(write(&mut train, 100), Progress::Done);
    assert_eq!(write(&mut train, 200), Progress::Full);
    assert_eq!(write(&mut train, 50), Progress::Done);
    assert_eq!(write(&mut train, 50), Progress::Full);
    assert_eq!(train.count(), 3);
}

#[test]
fn cwr_is_on_the_first_segment_only_and_fin_and_psh_on_the_last_only() {
    let mut spec = Spec::new(false, false, pattern(300));
    spec.flags = ACK | CWR | ECE | FIN | PSH;
    let flags: Vec<u8> = packets(&spec.frame(Some(100)), 1420)
        .unwrap()
        .iter()
        .map(|packet| read(&spec, packet).flags)
        .collect();
    assert_eq!(flags, [ACK | CWR | ECE, ACK | ECE, ACK | ECE | FIN | PSH]);
}

#[test]
fn sequence_numbers_and_identifications_wrap() {
    let mut spec = Spec::new(false, false, pattern(5000));
    spec.sequence = u32::MAX - 1500;
    spec.id = u16::MAX;
    check(&spec, 1000, 1420);
}

#[test]
fn rule_12_odd_mtus_pad_no_further_than_the_mtu() {
    for mtu in [1281, 1407, 1419] {
        let spec = Spec::new(true, false, pattern(20_000));
        let gso_size = mtu - 60;
        let trains = split(&spec.frame(Some(gso_size)), usize::from(mtu), &TrainLimits::default()).unwrap();
        assert!(trains.iter().flatten().all(|segment| segment.len() <= usize::from(mtu)));
        check(&spec, gso_size, usize::from(mtu));
    }
    check(&Spec::new(true, false, pattern(20_000)), 1340, 0);
}

#[test]
fn rule_13_a_udp_checksum_of_zero_becomes_ffff() {
    for v6 in [false, true] {
        let mut spec = Spec::new(v6, true, vec![0, 0]);
        let field = spec.transport() + 6;
        // The two bytes of payload that make the sum all ones, its complement zero.
        let checksum = u16::from_be_bytes([spec.packet()[field], spec.packet()[field + 1]]);
        spec.payload = checksum.to_be_bytes().to_vec();
        for gso_size in [None, Some(2), Some(100)] {
            let packet = &packets(&spec.frame(gso_size), 1420).unwrap()[0];
            assert_eq!(packet[field..field + 2], [0xff, 0xff]);
        }
    }
}

#[test]
fn rule_13_hdr_len_is_not_trusted() {
    let spec = Spec::new(false, false, pattern(3000));
    let mut frame = spec.frame(Some(1000));
    let expected = packets(&frame, 1420).unwrap();
    for hdr_len in [0u16, 1, 39, 41, 0xffff] {
        frame[2..4].copy_from_slice(&hdr_len.to_ne_bytes());
        assert_eq!(packets(&frame, 1420).unwrap(), expected);
    }
}

#[test]
fn rule_13_gso_size_smaller_than_a_header_splits_all_the_same() {
    check(&Spec::new(false, false, pattern(100)), 1, 1420);
    check(&Spec::new(true, true, pattern(100)), 7, 1420);
}

#[test]
fn rule_13_a_zero_length_inner_udp_packet_passes() {
    for v6 in [false, true] {
        let spec = Spec::new(v6, true, vec![]);
        check(&spec, 1200, 1420);
        assert_eq!(packets(&spec.frame(None), 1420).unwrap(), [spec.packet()]);
    }
}

#[test]
fn rule_13_a_super_packet_of_one_segment_is_one_packet() {
    for (v6, udp) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut spec = Spec::new(v6, udp, pattern(100));
        spec.flags = ACK | CWR | FIN | PSH;
        for gso_size in [100, 101, u16::MAX] {
            check(&spec, gso_size, 1420);
        }
    }
}

#[test]
fn rule_13_the_ecn_bit_in_gso_type_changes_nothing_else() {
    let spec = Spec::new(true, false, pattern(3000));
    let mut frame = spec.frame(Some(1000));
    let expected = packets(&frame, 1420).unwrap();
    frame[1] |= 0x80;
    assert_eq!(packets(&frame, 1420).unwrap(), expected);
}

#[test]
fn a_plain_packet_is_completed_only_when_asked() {
    let mut spec = Spec::new(false, false, pattern(99));
    spec.options = vec![1; 8];
    assert_eq!(packets(&spec.frame(None), 1420).unwrap(), [spec.packet()]);
    let mut frame = spec.frame(None);
    frame[0] = 0;
    assert_eq!(packets(&frame, 1420).unwrap(), [spec.partial()]);
    frame.extend([9; 30]);
    assert_eq!(packets(&frame, 1420).unwrap(), [spec.partial()], "what lies behind the packet is not sent");
}

#[test]
fn super_packets_without_needs_csum_get_their_checksums_all_the_same() {
    let spec = Spec::new(false, true, pattern(300));
    let mut frame = spec.frame(Some(100));
    frame[0] = 0;
    frame[VNET_HDR_LEN + 26..VNET_HDR_LEN + 28].fill(0);
    packets(&frame, 1420).unwrap().iter().for_each(|packet| drop(read(&spec, packet)));
}

/// Whether the transport checksum of `packet`, shaped like `spec`, verifies; in UDP it must be there.
fn verifies(spec: &Spec, packet: &[u8]) -> bool {
    let transport = &packet[spec.transport()..];
    let pseudo = checksum::pseudo_header(packet, spec.protocol(), transport.len());
    let absent = spec.udp && be16(transport, 6) == 0;
    checksum::fold(checksum::sum(transport, pseudo)) == 0xffff && !absent
}

#[test]
fn rule_16_a_packet_with_a_whole_checksum_keeps_it_right_or_wrong() {
    for (v6, udp) in [(false, false), (false, true), (true, false), (true, true)] {
        let packet = Spec::new(v6, udp, pattern(33)).packet();
        let transport = if v6 { 40 } else { 20 };
        for bit in transport * 8..packet.len() * 8 {
            for flags in [0, F_DATA_VALID] {
                let mut frame = VnetHeader { flags, ..VnetHeader::default() }.to_bytes().to_vec();
                frame.extend(&packet);
                frame[VNET_HDR_LEN + bit / 8] ^= 1 << (bit % 8);
                assert_eq!(packets(&frame, 0).unwrap(), [&frame[VNET_HDR_LEN..]], "bit {bit}");
            }
        }
    }
}

#[test]
fn rule_16_no_segment_of_a_damaged_super_packet_verifies() {
    for (v6, udp) in [(false, false), (false, true), (true, false), (true, true)] {
        let spec = Spec::new(v6, udp, pattern(100));
        let mut whole = spec.frame(Some(33));
        whole.truncate(VNET_HDR_LEN);
        whole[0] = 0;
        whole.extend(spec.packet());
        let segments = packets(&whole, 0).unwrap();
        assert!(segments.len() == 4 && segments.iter().all(|segment| verifies(&spec, segment)));
        // Of TCP's data offset and UDP's length the split goes on; what they say must agree with the rest.
        let fixed = |byte: usize| byte == VNET_HDR_LEN + spec.transport() + if udp { 4 } else { 12 };
        for bit in (VNET_HDR_LEN + spec.transport()) * 8..whole.len() * 8 {
            let mut frame = whole.clone();
            frame[bit / 8] ^= 1 << (bit % 8);
            let absent = udp && be16(&frame, VNET_HDR_LEN + spec.transport() + 6) == 0;
            if fixed(bit / 8) || absent {
                continue;
            }
            for segment in packets(&frame, 0).unwrap() {
                assert!(!verifies(&spec, &segment), "v6 {v6}, udp {udp}, bit {bit}");
            }
        }
    }
}

#[test]
fn options_and_extension_headers_are_copied_to_every_segment() {
    let mut spec = Spec::new(false, false, pattern(3000));
    spec.between = (0, vec![1; 40]);
    spec.options = vec![1; 40];
    check(&spec, 1000, 1420);
    for udp in [false, true] {
        let mut spec = Spec::new(true, udp, pattern(3000));
        let mut extensions = vec![43, 0, 1, 4, 0, 0, 0, 0]; // hop by hop
        extensions.extend([60, 0, 0, 0, 0, 0, 0, 0]); // routing, no segment left
        extensions.extend([spec.protocol(), 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]); // destination options
        spec.between = (0, extensions);
        check(&spec, 1000, 1420);
    }
}

#[test]
fn a_routing_header_with_segments_left_keeps_the_final_destination_in_the_checksum() {
    let mut spec = Spec::new(true, false, pattern(2500));
    spec.between = (43, vec![6, 2, 2, 1, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
    let last = spec.between.1[8..].to_vec();
    let mut frame = spec.frame(Some(1000));
    // The kernel's partial checksum is over the source, the last address of the routing header, length and protocol.
    let mut pseudo = frame[VNET_HDR_LEN + 8..VNET_HDR_LEN + 24].to_vec();
    pseudo.extend(&last);
    pseudo.extend([0, 6]);
    pseudo.extend(((20 + spec.payload.len()) as u16).to_be_bytes());
    let field = VNET_HDR_LEN + spec.transport() + 16;
    frame[field..field + 2].copy_from_slice(&naive(&pseudo).to_be_bytes());
    let packets = packets(&frame, 1420).unwrap();
    assert_eq!(packets.len(), 3);
    for packet in &packets {
        let segment = &packet[spec.transport()..];
        let mut summed = packet[8..24].to_vec();
        summed.extend(&last);
        summed.extend([0, 6]);
        summed.extend((segment.len() as u16).to_be_bytes());
        summed.extend(segment);
        assert_eq!(naive(&summed), 0xffff);
    }
    frame[0] = 0;
    assert_eq!(error(&frame), Some(SplitError::Transport), "nothing to take the destination from");
}

#[test]
fn the_information_is_that_of_the_super_packet() {
    let mut spec = Spec::new(false, false, pattern(3000));
    spec.tos = 0xb9;
    let frame = spec.frame(Some(1000));
    let splitter = Splitter::new(&frame).unwrap();
    assert_eq!((splitter.info().len, splitter.info().ecn, splitter.remaining()), (3040, 1, 3));
}

#[test]
fn each_contradiction_has_its_error() {
    let tcp = Spec::new(false, false, pattern(3000)).frame(Some(1000));
    let with = |at: usize, bytes: &[u8]| {
        let mut frame = tcp.clone();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        error(&frame)
    };
    assert_eq!(error(&tcp), None);
    assert_eq!(error(&tcp[..VNET_HDR_LEN - 1]), Some(SplitError::Vnet));
    assert_eq!(with(1, &[3]), Some(SplitError::Vnet), "UFO");
    assert_eq!(error(&tcp[..VNET_HDR_LEN]), Some(SplitError::Ip));
    assert_eq!(error(&tcp[..100]), Some(SplitError::Ip), "truncated");
    assert_eq!(with(VNET_HDR_LEN, &[0x55]), Some(SplitError::Ip));
    assert_eq!(with(1, &[4]), Some(SplitError::Transport), "TCPv6 over IPv4");
    assert_eq!(with(1, &[5]), Some(SplitError::Transport), "USO of TCP");
    assert_eq!(with(VNET_HDR_LEN + 6, &[0x20]), Some(SplitError::Transport), "first fragment");
    assert_eq!(with(VNET_HDR_LEN + 7, &[1]), Some(SplitError::Transport), "later fragment");
    assert_eq!(with(VNET_HDR_LEN + 32, &[0x40]), Some(SplitError::Transport), "TCP header below 20 bytes");
    assert_eq!(with(4, &[0, 0]), Some(SplitError::GsoSize));
    for (start, offset) in [(3038u16, 1u16), (3040, 0), (0xffff, 0xffff), (20, 3019), (10, 0)] {
        let fields = [start.to_ne_bytes(), offset.to_ne_bytes()].concat();
        assert_eq!(with(6, &fields), Some(SplitError::Checksum), "{start} + {offset}");
    }
    let mut short = Spec::new(false, false, vec![]);
    short.options = vec![1; 20];
    let mut frame = short.frame(Some(1000));
    frame[0] = 0;
    frame[VNET_HDR_LEN + 32] = 0xf0;
    assert_eq!(error(&frame), Some(SplitError::Transport), "TCP header beyond the packet");
    let mut v6 = Spec::new(true, true, pattern(3000));
    v6.between = (44, vec![UDP, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(error(&v6.frame(Some(1000))), Some(SplitError::Transport), "atomic fragment");
    v6.between = (51, vec![UDP, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(error(&v6.frame(Some(1000))), Some(SplitError::Transport), "authentication header");
}

#[test]
fn a_segment_that_no_buffer_holds_ends_the_frame() {
    let frame = Spec::new(false, true, pattern(1000)).frame(None);
    let mut splitter = Splitter::new(&frame).unwrap();
    let mut train = Train::default();
    let limits = TrainLimits::default();
    assert_eq!(splitter.write_into(&mut [0; 1000], &mut train, 1420, &limits), Progress::Done);
    assert_eq!((splitter.remaining(), train.count()), (1, 0));
}

fn any_spec(max_payload: usize) -> impl Strategy<Value = Spec> {
    let fixed = (any::<(bool, bool, u8, u8, u16, u16)>(), any::<(u32, u32, u8, u16)>());
    (fixed, 0usize..11, 0..max_payload).prop_map(|((ip, tcp), options, len)| {
        let mut spec = Spec::new(ip.0, ip.1, pattern(len));
        (spec.tos, spec.ttl, spec.id, spec.label) = (ip.2, ip.3, ip.4, ip.5);
        (spec.sequence, spec.acknowledgment, spec.flags, spec.window) = tcp;
        if !spec.udp {
            spec.options = pattern(4 * options);
        }
        spec
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn every_segment_reads_back_to_the_original_payload(
        spec in any_spec(20_000), gso_size in 200u16..2000, mtu in prop::option::of(1280usize..1600),
    ) {
        check(&spec, gso_size, mtu.unwrap_or(0));
    }

    #[test]
    fn trains_keep_their_shape_whatever_the_limits(
        spec in any_spec(8000), gso_size in 50u16..2000, mtu in 0usize..1600, segments in 0usize..70,
        bytes in 0usize..70_000,
    ) {
        let limits = TrainLimits { segments, bytes };
        let frame = spec.frame(Some(gso_size));
        let trains = split(&frame, mtu, &limits).unwrap();
        for train in &trains {
            prop_assert!(train.len() == 1 || train.len() <= segments);
            let len: usize = train.iter().map(|segment| segment.len() + 32).sum();
            prop_assert!(train.len() == 1 || len <= bytes);
            prop_assert!(train.iter().rev().skip(1).all(|segment| segment.len() == train[0].len()));
        }
        let unlimited = split(&frame, mtu, &TrainLimits::default()).unwrap();
        prop_assert!(trains.into_iter().flatten().eq(unlimited.into_iter().flatten()));
    }

    #[test]
    fn rule_5_mutated_frames_never_panic(
        spec in any_spec(2000), gso_size in prop::option::of(0u16..600),
        mutations in prop::collection::vec((0usize..124, any::<u8>()), 1..6), cut in 0usize..3000,
        mtu in 0usize..1600, room in 0usize..4000,
    ) {
        let mut frame = spec.frame(gso_size);
        for (at, value) in mutations {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        frame.truncate(cut.max(frame.len() / 2));
        let _ = split(&frame, mtu, &TrainLimits::default());
        if let Ok(mut splitter) = Splitter::new(&frame) {
            let mut out = vec![UNTOUCHED; room];
            let mut train = Train::default();
            let _ = splitter.write_into(&mut out, &mut train, mtu, &TrainLimits::default());
            prop_assert!(train.len() <= room);
            prop_assert!(out[train.len()..].iter().all(|byte| *byte == UNTOUCHED));
        }
    }

    #[test]
    fn rule_5_garbage_never_panics(
        kind in prop::sample::select(vec![0u8, 1, 4, 5, 0x81, 0x21, 0x41, 0x24, 0x45]), version in 4u8..7,
        mut frame in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        if frame.len() > VNET_HDR_LEN + 7 {
            let len = (frame.len() - VNET_HDR_LEN) as u16;
            frame[1] = kind;
            frame[VNET_HDR_LEN] = version << 4 | frame[VNET_HDR_LEN] & 0xf;
            let (at, len) = if version == 4 { (2, len) } else { (4, len.saturating_sub(40)) };
            let at = VNET_HDR_LEN + at;
            frame[at..at + 2].copy_from_slice(&len.to_be_bytes());
        }
        let _ = split(&frame, 1420, &TrainLimits::default());
    }
}
