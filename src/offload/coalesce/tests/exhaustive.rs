//! All short trains of a small space: what is joined may be joined by the kernel's rules, and is segmented again to what it was.

use super::*;

/// What may be special about a packet of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Special {
    Nothing,
    Push,
    Fin,
    /// The sequence number leaves a gap (TCP).
    Gap,
    Ttl,
    Tos,
    /// The identification stands still.
    StandingId,
    Acknowledgment,
    /// The checksum is wrong.
    Damaged,
    OtherFlow,
}

const ALL: [Special; 10] = [
    Special::Nothing,
    Special::Push,
    Special::Fin,
    Special::Gap,
    Special::Ttl,
    Special::Tos,
    Special::StandingId,
    Special::Acknowledgment,
    Special::Damaged,
    Special::OtherFlow,
];

/// A packet of a train.
#[derive(Clone, Debug)]
struct Item {
    spec: Spec,
    special: Special,
    bytes: Vec<u8>,
}

/// The packets with these sizes and specialities, each in the order of its flow.
fn items(v6: bool, udp: bool, parts: &[(usize, Special)]) -> Vec<Item> {
    let mut flows = [1, 2].map(|host| Spec { host, ..Spec::new(v6, udp, vec![]) });
    let mut made = vec![];
    for (number, (len, special)) in parts.iter().enumerate() {
        let flow = &mut flows[usize::from(*special == Special::OtherFlow)];
        match special {
            Special::Gap => flow.sequence += 7,
            Special::StandingId => flow.id -= u16::from(number > 0),
            _ => {}
        }
        let mut spec = Spec { payload: pattern(*len), ..flow.clone() };
        match special {
            Special::Push => spec.flags |= PSH,
            Special::Fin => spec.flags |= FIN,
            Special::Ttl => spec.ttl -= 1,
            Special::Tos => spec.tos = 4,
            Special::Acknowledgment => spec.acknowledgment += 1,
            _ => {}
        }
        flow.id += 1;
        flow.sequence += *len as u32;
        let mut bytes = spec.packet();
        if *special == Special::Damaged {
            let field = spec.transport() + if udp { 6 } else { 16 };
            bytes[field] ^= 1;
        }
        made.push(Item { spec, special: *special, bytes });
    }
    made
}

/// Whether `next` may follow `last` in a run that `first` began (Linux `tcp_gro_receive`, `udp_gro_receive`, `inet_gro_receive`).
fn may_follow(first: &Item, last: &Item, next: &Item) -> bool {
    let (one, two) = (&first.spec, &next.spec);
    let same = (one.host, one.ttl, one.tos) == (two.host, two.ttl, two.tos);
    let sizes = !two.payload.is_empty()
        && last.spec.payload.len() == one.payload.len()
        && two.payload.len() <= one.payload.len();
    let whole = [first, last, next].iter().all(|item| item.special != Special::Damaged);
    let tcp = one.acknowledgment == two.acknowledgment
        && two.sequence == last.spec.sequence + last.spec.payload.len() as u32
        && [first, last].iter().all(|item| item.spec.flags == ACK)
        && two.flags & !(ACK | PSH) == 0;
    // Under DF, identifications may stand or count.
    let id = two.v6 || two.id == last.spec.id + 1 || two.id == last.spec.id;
    same && sizes && whole && id && (two.udp || tcp)
}

/// A packet as it has to come out: an identification that stood counts up after the kernel segmented again.
fn comparable(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 4 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

fn check(v6: bool, udp: bool, parts: &[(usize, Special)]) {
    let items = items(v6, udp, parts);
    let bytes: Vec<Vec<u8>> = items.iter().map(|item| item.bytes.clone()).collect();
    let frames = coalesce(&bytes);
    let mut left: Vec<Option<&Item>> = items.iter().map(Some).collect();
    for (frame, count) in frames {
        // A run is of one flow, and the flows may pass each other.
        let packets = if count == 1 { vec![frame[VNET_HDR_LEN..].to_vec()] } else { segment_small(&frame) };
        assert_eq!(packets.len(), count);
        let mut run: Vec<&Item> = vec![];
        for packet in packets {
            let of_flow = |item: &Option<&Item>| {
                item.is_some_and(|item| item.bytes[..20].len() == 20 && host(&item.bytes) == host(&packet))
            };
            let at = left.iter().position(of_flow).expect("a packet that went in");
            let item = left[at].take().expect("found above");
            assert_eq!(comparable(&packet), comparable(&item.bytes), "in order, and as it was");
            if let Some(last) = run.last() {
                assert!(may_follow(run[0], last, item), "{:?} joins {:?}", item.special, last.special);
            }
            run.push(item);
        }
    }
    assert!(left.iter().all(Option::is_none), "what went in comes out");
}

fn host(packet: &[u8]) -> u8 {
    if packet[0] >> 4 == 6 { packet[23] } else { packet[15] }
}

/// As [`segment`], in a small buffer.
fn segment_small(frame: &[u8]) -> Vec<Vec<u8>> {
    let mut splitter = Splitter::new(frame).unwrap();
    let (mut out, mut train) = ([0; 1024], Train::default());
    assert_eq!(splitter.write_into(&mut out, &mut train, 0, &TrainLimits::default()), Progress::Done);
    let packets = out[..train.len()].chunks(train.stride());
    packets
        .map(|message| message[16..16 + crate::wire::ip::parse(&message[16..]).unwrap().len].to_vec())
        .collect()
}

#[test]
fn every_train_of_three_small_packets_comes_out_as_it_went_in_and_joined_by_the_rules() {
    let choices: Vec<(usize, Special)> = (0..3).flat_map(|len| ALL.map(|special| (len, special))).collect();
    for (v6, udp) in KINDS {
        for (first, second) in
            choices.iter().flat_map(|first| choices.iter().map(move |second| (first, second)))
        {
            for third in &choices {
                check(v6, udp, &[*first, *second, *third]);
            }
        }
    }
}

#[test]
fn every_train_of_plain_packets_is_joined_wherever_sizes_let_it_be() {
    for (v6, udp) in KINDS {
        for sizes in (0..256usize).map(|code| [code & 3, code >> 2 & 3, code >> 4 & 3, code >> 6]) {
            let parts = sizes.map(|len| (len, Special::Nothing));
            check(v6, udp, &parts);
            // A run goes on until a packet is longer, empty, or behind a shorter one.
            let (mut runs, mut run): (usize, Vec<usize>) = (0, vec![]);
            for len in sizes {
                let joins =
                    run.first().is_some_and(|first| len > 0 && len <= *first && run.last() == Some(first));
                if !joins {
                    runs += 1;
                    run.clear();
                }
                run.push(len);
            }
            let packets: Vec<Vec<u8>> = items(v6, udp, &parts).into_iter().map(|item| item.bytes).collect();
            assert_eq!(coalesce(&packets).len(), runs, "{sizes:?}");
        }
    }
}
