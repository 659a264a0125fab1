//! Rule 5: oversized, empty, truncated and damaged datagrams and trains are dropped and counted.

use crate::lab::{Lab, millis, secs};
use crate::puppet::with_puppet;
use ringtun::crypto::random::Entropy;
use ringtun::sim::{Faults, HostConfig, seeds};

#[test]
fn rule_05_datagrams_of_every_length_are_dropped_and_counted() {
    let mut lab = Lab::pair(1);
    lab.connect();
    let (from, to) = (lab.sites[1].addr, lab.sites[0].addr);
    let mut sent = 0;
    for kind in [0, 1, 2, 3, 4, 5, 0xff] {
        for len in (0..200).chain([1500, 9000, 65_507]) {
            let mut bytes = vec![0; len];
            lab.world.rng().fill(&mut bytes);
            bytes.iter_mut().zip([kind, 0, 0, 0]).for_each(|(byte, fixed)| *byte = fixed);
            lab.world.inject(from, to, &bytes);
            sent += 1;
        }
        lab.run(millis(20));
    }
    let reasons = ["rx_malformed", "rx_bad_mac1", "rx_handshakes", "rx_unknown_index", "misdirected_out"];
    let before = 1; // The handshake that made the session.
    let counted: u64 = reasons.iter().map(|reason| lab.counter(0, reason)).sum();
    let misdirected = lab.counter(0, "misdirected_out");
    assert!(
        (sent..=sent + before + misdirected).contains(&counted),
        "{sent} sent, {counted} counted: {:?}",
        lab.host(0).counters()
    );
    let flow = lab.udp(0, 1, 5);
    lab.send(0, flow, 10, 64);
    lab.run(secs(1));
    assert_eq!(lab.missing(), 0, "the session is as it was");
}

#[test]
fn rule_05_truncated_and_damaged_data_is_dropped_and_its_neighbours_are_not() {
    for seed in seeds(20) {
        let config = HostConfig { gro: seed % 2 == 0, ..HostConfig::default() };
        let mut lab = Lab::mesh(seed, vec![config; 2]);
        lab.connect();
        lab.world.network.faults = Faults { corrupt: 200, ..Faults::default() };
        let flow = lab.udp(0, 1, 5);
        for _ in 0..20 {
            lab.send(0, flow, 20, 300);
            lab.run(millis(20));
        }
        lab.world.network.faults = Faults::default();
        lab.run(secs(1));
        let (sent, lost) = (lab.ledger.count_sent(), lab.missing());
        assert!(lost > 0 && lost < sent * 3 / 10, "{lost} of {sent}: one in five was damaged");
        assert_eq!(lab.ledger.overtakings(), 0);
    }
}

#[test]
fn rule_05_authentic_nonsense_inside_is_dropped_and_counted() {
    let (mut lab, puppet, session) = with_puppet(1);
    let good = crate::replay::from_puppet(&mut lab);
    let mut counter = 1;
    let mut say = |lab: &mut Lab, inner: &[u8]| {
        puppet.say(lab, &session.seal(counter, inner));
        counter += 1;
    };
    let mut dropped = 0;
    for version in [0, 0x10, 0x30, 0x50, 0xf0] {
        say(&mut lab, &[version; 64]);
        dropped += 1;
    }
    // A length beyond the message, one short of its own header, and a header without its end.
    for (at, bytes) in [(2, [0xff, 0xff]), (2, [0, 19]), (0, [0x44, 0])] {
        let mut bad = good.clone();
        bad[at..at + 2].copy_from_slice(&bytes);
        say(&mut lab, &bad);
        dropped += 1;
    }
    say(&mut lab, &good[..16]);
    let mut short6 = [0; 48];
    short6[0] = 0x60;
    short6[5] = 100;
    say(&mut lab, &short6);
    dropped += 2;
    assert_eq!(lab.counter(0, "rx_bad_inner"), dropped);
    say(&mut lab, &good);
    lab.collect();
    assert_eq!(lab.missing(), 0);
}

#[test]
fn rule_05_mixed_trains_are_taken_apart() {
    // One GRO train holds good, forged, foreign and shorter segments; each goes its own way.
    for seed in seeds(10) {
        let (mut lab, puppet, session) = with_puppet(seed);
        let to = lab.sites[0].addr;
        let mut messages = Vec::new();
        for counter in 1..40 {
            let inner = crate::replay::from_puppet(&mut lab);
            messages.push(session.seal(counter, &inner));
            let mut forged = session.seal(counter + 1000, &inner);
            forged[17] ^= 1;
            messages.push(forged);
            let mut foreign = session.seal(counter + 2000, &inner);
            foreign[5] ^= 0xff;
            messages.push(foreign);
        }
        lab.world.rng().shuffle(&mut messages);
        messages.iter().for_each(|message| lab.world.inject(puppet.addr, to, message));
        lab.run(secs(1));
        assert_eq!(lab.missing(), 0);
        assert_eq!(lab.counter(0, "rx_decrypt_failed"), 39);
        assert_eq!(lab.counter(0, "rx_unknown_index"), 39);
    }
}
