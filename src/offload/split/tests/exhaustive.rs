//! All frames of a small space: no combination of sizes, flags, offsets and room does what the reference does not say.

use super::*;

const KINDS: [(bool, bool); 4] = [(false, false), (false, true), (true, false), (true, true)];

/// All segments, unpadded, of a frame that is written to buffers of `room` bytes, train by train. What is not written stays as it was.
fn split_into(frame: &[u8], mtu: usize, limits: &TrainLimits, room: usize) -> Vec<Vec<Vec<u8>>> {
    let mut splitter = Splitter::new(frame).unwrap();
    let mut trains = vec![];
    loop {
        let mut out = vec![UNTOUCHED; room];
        let mut train = Train::default();
        let progress = splitter.write_into(&mut out, &mut train, mtu, limits);
        assert!(out[train.len()..].iter().all(|byte| *byte == UNTOUCHED), "beyond the train");
        assert!(train.count() <= limits.segments && train.len() <= limits.bytes);
        let mut segments = vec![];
        for message in out[..train.len()].chunks(train.stride().max(1)) {
            let (inner, tag) = message.split_at(message.len() - 16);
            assert!(tag.iter().chain(&inner[..16]).all(|byte| *byte == UNTOUCHED), "message header and tag");
            let len = ip::parse(&inner[16..]).unwrap().len;
            assert!(inner[16 + len..].iter().all(|byte| *byte == 0), "padding");
            segments.push(inner[16..16 + len].to_vec());
        }
        assert_eq!(segments.len(), train.count());
        trains.push(segments);
        if progress == Progress::Done {
            return trains;
        }
        assert!(!train.is_empty(), "progress");
    }
}

/// The segments that a super-packet stands for.
fn expected(spec: &Spec, gso_size: usize) -> Vec<Vec<u8>> {
    let count = spec.payload.len().div_ceil(gso_size).max(1);
    let segment = |index: usize| {
        let payload = spec.payload.chunks(gso_size).nth(index).unwrap_or_default().to_vec();
        let mut segment = Spec { payload, ..spec.clone() };
        if !spec.udp {
            segment.sequence = segment.sequence.wrapping_add((index * gso_size) as u32);
            segment.flags &= if index > 0 { !CWR } else { !0 };
            segment.flags &= if index + 1 < count { !(FIN | PSH) } else { !0 };
        }
        segment.id = segment.id.wrapping_add(index as u16);
        segment.packet()
    };
    (0..count).map(segment).collect()
}

#[test]
fn every_small_super_packet_is_split_as_the_reference_says_in_trains_of_every_length() {
    for (v6, udp) in KINDS {
        for (payload, gso_size) in (0..8).flat_map(|payload| (1..9).map(move |gso_size| (payload, gso_size)))
        {
            for bits in 0..if udp { 1 } else { 16 } {
                let mut spec = Spec::new(v6, udp, pattern(payload));
                spec.flags = [CWR, FIN, PSH].iter().enumerate().fold(spec.flags, |flags, (bit, flag)| {
                    flags | if bits & 1 << bit != 0 { *flag } else { 0 }
                });
                spec.options = if bits & 8 != 0 { vec![1; 4] } else { vec![] };
                spec.sequence = u32::MAX - 3;
                spec.id = u16::MAX - 1;
                let frame = spec.frame(Some(gso_size as u16));
                let expected = expected(&spec, gso_size);
                for (segments, mtu) in [(1, 0), (2, 1420), (3, 61), (64, 0)] {
                    let limits = TrainLimits { segments, ..TrainLimits::default() };
                    let trains = split_into(&frame, mtu, &limits, 1024);
                    assert_eq!(trains.concat(), expected, "{spec:?} in segments of {gso_size}");
                }
            }
        }
    }
}

#[test]
fn a_super_packet_takes_no_more_than_the_room_that_there_is() {
    for (v6, udp) in KINDS {
        let spec = Spec::new(v6, udp, pattern(5));
        let frame = spec.frame(Some(2));
        let expected = expected(&spec, 2);
        for mtu in [0, 1420] {
            let sizes: Vec<usize> = expected.iter().map(|packet| message_len(packet.len(), mtu)).collect();
            for room in 0..sizes.iter().sum::<usize>() + 2 {
                let trains = split_into(&frame, mtu, &TrainLimits::default(), room);
                // What not even an empty train holds ends the frame.
                let fitting = sizes.iter().take_while(|size| **size <= room).count();
                assert_eq!(trains.concat(), expected[..fitting], "{room} bytes");
                let filled = |train: &Vec<Vec<u8>>| {
                    train.iter().map(|packet| message_len(packet.len(), mtu)).sum::<usize>() <= room
                };
                assert!(trains.iter().all(filled));
            }
        }
    }
}

#[test]
fn every_place_of_a_checksum_is_within_the_packet_or_refused() {
    for (v6, udp) in KINDS {
        let spec = Spec::new(v6, udp, pattern(3));
        let header = if v6 { 40 } else { 20 };
        for gso_size in [None, Some(2)] {
            let mut frame = spec.frame(gso_size);
            let packet = frame[VNET_HDR_LEN..].to_vec();
            for (start, field) in
                (0..packet.len() + 3).flat_map(|start| (0..packet.len() + 3).map(move |field| (start, field)))
            {
                frame[6..8].copy_from_slice(&(start as u16).to_ne_bytes());
                frame[8..10].copy_from_slice(&(field as u16).to_ne_bytes());
                if start < header || start + field + 2 > packet.len() {
                    assert_eq!(error(&frame), Some(SplitError::Checksum), "at {start} + {field}");
                    continue;
                }
                let packets = split_into(&frame, 0, &TrainLimits::default(), 1024).concat();
                // The segments of a super-packet get their own, wherever the kernel would have put one.
                let Some(gso_size) = gso_size else {
                    let mut completed = packet.clone();
                    let sum = !naive(&packet[start..]);
                    let sum = if field == 6 && sum == 0 { 0xffff } else { sum };
                    completed[start + field..start + field + 2].copy_from_slice(&sum.to_be_bytes());
                    assert_eq!(packets, [completed], "at {start} + {field}");
                    continue;
                };
                assert_eq!(packets, expected(&spec, gso_size.into()), "at {start} + {field}");
            }
        }
    }
}

#[test]
fn a_frame_that_is_cut_anywhere_or_says_anything_of_itself_is_refused_or_split_within_its_bounds() {
    for (v6, udp) in KINDS {
        let whole = Spec::new(v6, udp, pattern(6)).frame(Some(2));
        for cut in 0..=whole.len() {
            let mut frame = whole[..cut].to_vec();
            assert_eq!(error(&frame).is_none(), cut == whole.len(), "cut at {cut}");
            for (kind, gso_size) in
                (0..=255u8).flat_map(|kind| [0u16, 1, 5, 6, 7, u16::MAX].map(|size| (kind, size)))
            {
                if let Some(byte) = frame.get_mut(1) {
                    *byte = kind;
                }
                if let Some(bytes) = frame.get_mut(4..6) {
                    bytes.copy_from_slice(&gso_size.to_ne_bytes());
                }
                let Ok(mut splitter) = Splitter::new(&frame) else { continue };
                assert!(cut == whole.len() && splitter.remaining() <= 6);
                let mut out = [UNTOUCHED; 1024];
                let mut train = Train::default();
                let progress = splitter.write_into(&mut out, &mut train, 0, &TrainLimits::default());
                assert_eq!(
                    (progress, splitter.remaining()),
                    (Progress::Done, 0),
                    "type {kind}, size {gso_size}"
                );
            }
        }
    }
}

#[test]
fn every_length_that_an_ip_header_states_is_within_the_frame_or_refused() {
    for (v6, udp) in KINDS {
        let spec = Spec::new(v6, udp, pattern(3));
        for gso_size in [None, Some(2)] {
            let mut frame = spec.frame(gso_size);
            let (len, at) = (frame.len() - VNET_HDR_LEN, VNET_HDR_LEN + if v6 { 4 } else { 2 });
            for stated in (0..len + 4).chain([255, 256, 65_535]) {
                frame[at..at + 2].copy_from_slice(&(stated as u16).to_be_bytes());
                let whole = stated + if v6 { 40 } else { 0 };
                let headers = if gso_size.is_some() {
                    spec.headers()
                } else {
                    spec.transport().max(if udp { spec.transport() + 8 } else { spec.transport() + 18 })
                };
                let found = Splitter::new(&frame);
                match found {
                    Ok(splitter) => assert!(
                        splitter.packet().len() == whole && whole <= len && whole >= headers,
                        "{stated}"
                    ),
                    Err(_) => assert!(whole > len || whole < headers, "{stated} of {len}"),
                }
            }
        }
    }
}
