//! What a peer's limits let pass, both ways, and that nobody else can use them up.

use super::*;
use crate::dataplane::limits::{LimitSettings, QuotaSetting, RateSetting};

const ME: &str = "192.168.0.1";
const WALL: Duration = Duration::from_secs(1_000_000);

fn rate(burst: usize) -> Option<RateSetting> {
    // 1000 bytes a second.
    Some(RateSetting { bits_per_second: 8000, burst: burst as u64 })
}

fn limit(rig: &Rig, settings: LimitSettings) {
    rig.peers[0].set_limits(&settings, rig.now, WALL);
}

/// A train of so many packets of 100 bytes, 128 with their headers, and 160 as messages.
fn train(remote: &Remote, count: u32) -> (Vec<u8>, usize) {
    let packets: Vec<_> = (0..count).map(|tag| packet("10.0.0.1", ME, tag, 100)).collect();
    remote.seal(&packets.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

#[test]
fn of_a_super_packet_the_first_segments_pass_and_nothing_of_its_last_alone() {
    let mut rig = Rig::with_peers(2);
    let (mut limited, mut free) = (rig.connect(0), rig.connect(1));
    limit(&rig, LimitSettings { outbound: rate(10 * 1408), ..LimitSettings::default() });
    for to in ["10.0.0.1", "10.1.0.1"] {
        rig.push_frame(&tso_frame(ME, to, 45 * 1368, 1368));
        rig.push_frame(&frame(ME, to, 1, 100, 0));
    }
    rig.turn();
    let trains = rig.sent();
    let of = |remote: &mut Remote, slot: u8| -> Vec<Vec<u8>> {
        trains
            .iter()
            .filter(|train| train.to.addr == outer(slot))
            .flat_map(|train| remote.open(train))
            .collect()
    };
    let (passed, all) = (of(&mut limited, 0), of(&mut free, 1));
    assert_eq!((passed.len(), all.len()), (10, 46), "the other peer's are no matter of this one's");
    // Segments of two peers differ in their destination and checksums alone.
    assert!(
        passed.iter().zip(&all).all(|(one, other)| one[24..36] == other[24..36] && one[40..] == other[40..])
    );
    assert_eq!(rig.count(|stats| &stats.tx_limited), 36);
    assert_eq!(rig.count(|stats| &stats.tx_packets), 56);
    rig.pass(Duration::from_secs(2));
    rig.push_frame(&tso_frame(ME, "10.0.0.1", 45 * 1368, 1368));
    rig.turn();
    assert_eq!(rig.sent()[0].len, 1440, "one segment of 1408 bytes after two seconds");
    let limits = rig.peers[0].limits().unwrap();
    assert_eq!(limits.limited(), (0, 36 + 44));
}

#[test]
fn of_a_received_train_the_first_messages_are_opened() {
    let mut rig = Rig::with_peers(1);
    let remote = rig.connect(0);
    limit(&rig, LimitSettings { inbound: rate(4 * 128 + 50), ..LimitSettings::default() });
    rig.push_train(train(&remote, 10), outer(0));
    rig.turn();
    let written = rig.written();
    assert_eq!(written.iter().map(Vec::len).sum::<usize>(), 28 + 4 * 100, "one super-packet of four");
    assert_eq!(rig.count(|stats| &stats.rx_limited), 6);
    rig.push_train(train(&remote, 3), outer(0));
    rig.turn();
    assert!(rig.written().is_empty());
    let lost = (rig.count(|stats| &stats.rx_decrypt_failed), rig.count(|stats| &stats.rx_replayed));
    assert_eq!(lost, (0, 0), "what does not pass is not opened");
    // A keepalive has nothing in it, and passes.
    rig.push_train(remote.seal(&[&[]]), outer(0));
    rig.turn();
    assert_eq!(rig.count(|stats| &stats.rx_keepalives), 1);
}

#[test]
fn forged_and_replayed_messages_use_nothing_up() {
    let mut rig = Rig::with_peers(1);
    let remote = rig.connect(0);
    limit(&rig, LimitSettings { inbound: rate(10 * 128), ..LimitSettings::default() });
    let good = train(&remote, 4);
    for _ in 0..50 {
        let (mut bytes, stride) = train(&remote, 10);
        bytes.chunks_mut(stride).for_each(|message| message[20] ^= 1);
        rig.push_train((bytes, stride), outer(66));
        rig.turn();
    }
    assert_eq!(rig.count(|stats| &stats.rx_decrypt_failed), 500);
    for _ in 0..20 {
        rig.push_train(good.clone(), outer(0));
        rig.turn();
    }
    assert_eq!(rig.count(|stats| &stats.rx_packets), 4);
    assert_eq!(rig.count(|stats| &stats.rx_limited), 0);
    rig.push_train(train(&remote, 6), outer(0));
    rig.turn();
    assert_eq!(rig.count(|stats| &stats.rx_packets), 10);
}

#[test]
fn trains_that_others_open_are_drawn_for_once() {
    let links = Links::new(2).unwrap();
    let mut rig = Rig::of(&links, 0);
    rig.add_peers(1);
    let remote = rig.connect(0);
    rig.peers[0].assisted.store(true, Relaxed);
    links.assist.engage(1);
    limit(&rig, LimitSettings { inbound: rate(100 * 128), ..LimitSettings::default() });
    while_another_helps(&links, || {
        for _ in 0..5 {
            for _ in 0..6 {
                rig.push_train(train(&remote, 10), outer(0));
            }
            for _ in 0..20 {
                rig.turn();
            }
        }
    });
    assert_eq!(rig.count(|stats| &stats.rx_packets), 100);
    assert_eq!(rig.count(|stats| &stats.rx_limited), 200);
}

#[test]
fn a_quota_counts_both_ways_and_tells_when_it_is_used_up_and_begins_anew() {
    let mut rig = Rig::with_peers(1);
    let remote = rig.connect(0);
    let hour = Duration::from_secs(3600);
    let quota = Some(QuotaSetting { bytes: 2000, period: hour, then: None });
    limit(&rig, LimitSettings { quota, ..LimitSettings::default() });
    rig.events();
    rig.push_train(train(&remote, 10), outer(0));
    rig.turn();
    rig.push_frame(&frame(ME, "10.0.0.1", 1, 700, 0));
    rig.turn();
    assert_eq!((rig.written().len(), rig.sent().len()), (1, 1));
    assert!(rig.events().contains(&Event::Quota(id(0), true)));
    rig.push_frame(&frame(ME, "10.0.0.1", 1, 10, 0));
    rig.push_train(train(&remote, 1), outer(0));
    rig.turn();
    assert_eq!((rig.written().len(), rig.sent().len()), (0, 0));
    // The quota begins anew at a multiple of an hour; the session outlives that here.
    let over = Duration::from_secs(3600 - WALL.as_secs() % 3600);
    rig.pass(over);
    let remote = rig.connect(0);
    rig.push_train(train(&remote, 1), outer(0));
    rig.turn();
    assert_eq!(rig.written().len(), 1);
    assert!(rig.events().contains(&Event::Quota(id(0), false)));
}
