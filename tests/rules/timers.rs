//! Rules 10 and 11: timers and timestamps.

use crate::lab::{Lab, hex, millis, random_key, secs};
use crate::puppet::{Puppet, with_puppet};
use ringtun::sim::{SimRng, Tapped, seeds};
use ringtun::time::Instant;
use ringtun::wire::message::MessageKind;
use std::collections::HashSet;
use std::time::Duration;

/// Times between messages.
fn gaps(tapped: &[Tapped]) -> Vec<Duration> {
    tapped.windows(2).map(|pair| pair[1].at.since(pair[0].at)).collect()
}

/// Initiations of site 0 to a site 1 that is down.
fn retries(seed: u64) -> (Lab, Vec<Tapped>) {
    let mut lab = Lab::pair(seed);
    lab.up(1, false);
    let flow = lab.udp(0, 1, 5);
    lab.send(0, flow, 1, 64);
    lab.run(secs(300));
    let tapped = lab.tapped(0, MessageKind::Initiation);
    (lab, tapped)
}

#[test]
fn rule_10_retries_have_jitter() {
    for seed in seeds(5) {
        let (_, tapped) = retries(seed);
        let gaps = gaps(&tapped);
        assert!(gaps.len() > 10 && gaps.iter().all(|gap| (secs(5)..=millis(5400)).contains(gap)), "{gaps:?}");
        assert!(gaps.iter().collect::<HashSet<_>>().len() > gaps.len() / 2, "{gaps:?}");
    }
}

#[test]
fn rule_10_handshake_is_given_up_after_90_seconds() {
    for seed in seeds(5) {
        let (mut lab, tapped) = retries(seed);
        let last = tapped.last().unwrap().at.since(tapped[0].at);
        // Eighteen times five seconds, as the kernel counts them: plus jitter, and the retry under way.
        assert!((secs(85)..=secs(102)).contains(&last), "{last:?}");
        assert!(!lab.host(0).take_others().is_empty(), "the sender hears of it");
        lab.up(1, true);
        lab.run(secs(30));
        assert_eq!(lab.missing(), 1, "what was staged is gone");
        assert_eq!(lab.tapped(0, MessageKind::Initiation).len(), tapped.len(), "nothing more by itself");
        let flow = lab.udp(0, 1, 5);
        lab.send(0, flow, 1, 64);
        lab.run(secs(1));
        assert_eq!(lab.missing(), 1, "a new packet begins anew");
    }
}

#[test]
fn rule_10_received_keepalive_never_answers_with_a_keepalive() {
    for seed in seeds(5) {
        let mut lab = Lab::pair(seed);
        lab.connect();
        lab.run(secs(60));
        lab.world.network.clear_tap();
        let flow = lab.udp(0, 1, 5);
        lab.send(0, flow, 1, 64);
        lab.run(secs(50));
        assert_eq!(lab.keepalives(1).len(), 1, "ten seconds after data that nothing answered");
        assert_eq!(lab.keepalives(0).len(), 0, "and that is the end of it");
        let (sent, answered) = (lab.tapped(0, MessageKind::Data)[0].at, lab.keepalives(1)[0].at);
        let after = answered.since(sent);
        assert!((secs(10)..secs(11)).contains(&after), "{after:?}");
    }
}

/// A pair with a persistent keepalive of five seconds at site 0.
fn persistent(seed: u64) -> Lab {
    let mut lab = Lab::pair(seed);
    let public = hex(&lab.public(1).0);
    lab.set(0, &format!("public_key={public}\npersistent_keepalive_interval=5\n"));
    lab.run(secs(1));
    lab
}

#[test]
fn rule_10_persistent_keepalive_begins_by_itself_and_goes_on() {
    let mut lab = persistent(1);
    lab.run(secs(60));
    let keepalives = lab.keepalives(0);
    assert!((11..=13).contains(&keepalives.len()), "{}", keepalives.len());
    assert!(gaps(&keepalives).iter().all(|gap| (secs(5)..millis(5100)).contains(gap)));
    assert_eq!(lab.keepalives(1).len(), 0);
}

#[test]
fn rule_10_no_persistent_keepalive_while_traffic_flows() {
    for from in [0, 1] {
        let mut lab = persistent(1);
        lab.connect();
        lab.world.network.clear_tap();
        for _ in 0..100 {
            let flow = lab.udp(from, 1 - from, 5);
            lab.send(from, flow, 1, 64);
            lab.run(secs(1));
        }
        let mut keepalives = lab.keepalives(0);
        // Received data, unanswered for ten seconds, does ask for one: that is the passive keepalive.
        if from == 1 {
            assert!(gaps(&keepalives).iter().all(|gap| *gap >= secs(10)));
            keepalives.clear();
        }
        assert_eq!(keepalives.len(), 0);
        lab.run(secs(21));
        assert!(lab.keepalives(0).len() >= 3, "it comes back with silence");
    }
}

#[test]
fn rule_10_keys_are_zeroed_after_three_times_reject_after_time() {
    let (mut lab, puppet, session) = with_puppet(1);
    let unknown = lab.counter(0, "rx_unknown_index");
    lab.run(secs(530));
    puppet.say(&mut lab, &session.seal(1, &[]));
    assert_eq!(lab.counter(0, "rx_expired"), 1, "too old to be opened, but still known");
    lab.run(secs(20));
    puppet.say(&mut lab, &session.seal(2, &[]));
    assert_eq!((lab.counter(0, "rx_expired"), lab.counter(0, "rx_unknown_index")), (1, unknown + 1));
}

#[test]
fn rule_10_session_is_dead_after_180_seconds() {
    let (mut lab, puppet, session) = with_puppet(1);
    lab.run(secs(170));
    let inner = crate::replay::from_puppet(&mut lab);
    puppet.say(&mut lab, &session.seal(1, &inner));
    lab.collect();
    assert_eq!(lab.missing(), 0);
    lab.run(secs(11));
    let inner = crate::replay::from_puppet(&mut lab);
    puppet.say(&mut lab, &session.seal(2, &inner));
    lab.collect();
    assert_eq!(lab.missing(), 1);
}

#[test]
fn rule_10_initiator_rekeys_after_120_seconds_of_traffic() {
    let mut lab = Lab::pair(1);
    for _ in 0..600 {
        // Not at once: both would begin, and both be initiators for good.
        for (from, to) in [(0, 1), (1, 0)] {
            let flow = lab.udp(from, to, 5);
            lab.send(from, flow, 1, 64);
            lab.run(millis(500));
        }
    }
    lab.assert_all_arrived_in_order();
    let gaps = gaps(&lab.tapped(0, MessageKind::Initiation));
    assert!(gaps.len() >= 4 && gaps.iter().all(|gap| (secs(120)..secs(122)).contains(gap)), "{gaps:?}");
    assert_eq!(lab.tapped(1, MessageKind::Initiation).len(), 0, "the responder leaves it to the initiator");
}

/// Sets site `at`'s preshared key with its peer `with`.
fn set_psk(lab: &mut Lab, at: usize, with: usize, byte: u8) {
    let public = hex(&lab.public(with).0);
    lab.set(at, &format!("public_key={public}\npreshared_key={}\n", hex(&[byte; 32])));
}

fn flow_for(lab: &mut Lab, seconds: u64) -> u64 {
    for _ in 0..seconds {
        let flow = lab.udp(0, 1, 5);
        lab.send(0, flow, 1, 64);
        lab.run(secs(1));
    }
    lab.missing()
}

#[test]
fn rule_10_psk_change_takes_effect_at_the_next_handshake_and_keeps_the_session() {
    for seed in seeds(3) {
        let mut lab = Lab::pair(seed);
        lab.connect();
        let before = lab.tapped(0, MessageKind::Initiation).len();
        set_psk(&mut lab, 0, 1, 7);
        assert_eq!(flow_for(&mut lab, 100), 0, "the session stays");
        assert_eq!(
            lab.tapped(0, MessageKind::Initiation).len(),
            before,
            "and no handshake follows from the change"
        );
        let lost = flow_for(&mut lab, 150);
        assert!(lost > 0, "but with different keys the next one fails");
        set_psk(&mut lab, 1, 0, 7);
        lab.run(secs(12));
        let lost = lab.missing();
        assert_eq!(flow_for(&mut lab, 20), lost, "until both have it");
    }
}

/// Rosenpass and its like agree on another preshared key every two minutes, which each end sets when it has it.
#[test]
fn preshared_keys_that_change_every_two_minutes_lose_no_packet() {
    const STEP: Duration = millis(250);
    for seed in seeds(6) {
        let (mut lab, mut rng) = (Lab::pair(seed), SimRng::new(seed));
        lab.connect();
        let (mut rotation, mut changes) = (lab.world.now() + secs(1), Vec::new());
        let (end, mut key) = (lab.world.now() + secs(1200), 0);
        while lab.world.now() < end {
            if lab.world.now() >= rotation {
                key += 1;
                let first = rng.below(2) as usize;
                let later = rotation + millis(rng.below(10_000));
                changes.extend([(rotation, first, key), (later, 1 - first, key)]);
                rotation = rotation + secs(120);
            }
            let now = lab.world.now();
            for &(_, site, key) in changes.iter().filter(|(at, ..)| *at <= now) {
                set_psk(&mut lab, site, 1 - site, key);
            }
            changes.retain(|(at, ..)| *at > now);
            for site in 0..2 {
                let flow = lab.udp(site, 1 - site, 5);
                lab.send(site, flow, 2, 900);
            }
            lab.run(STEP);
        }
        lab.run(secs(1));
        lab.assert_all_arrived_in_order();
        let completed = lab.handshakes(0, "responses_accepted") + lab.handshakes(1, "responses_accepted");
        assert!(
            completed >= 8,
            "seed {seed}: a session lives for at most three minutes, and there were {completed}"
        );
    }
}

#[test]
fn rule_10_new_private_key_drops_sessions_and_rekeys() {
    let mut lab = Lab::pair(1);
    lab.connect();
    let captured = {
        lab.world.network.filter = Some(Box::new(|_| false));
        let flow = lab.udp(1, 0, 5);
        lab.send(1, flow, 1, 64);
        lab.run(millis(50));
        lab.world.network.filter = None;
        lab.tapped(1, MessageKind::Data).pop().unwrap().datagram
    };
    let old = hex(&lab.public(0).0);
    lab.sites[0].key = random_key(&mut lab.world);
    let key = hex(&lab.sites[0].key.to_bytes());
    lab.set(0, &format!("private_key={key}\n"));
    let unknown = lab.counter(0, "rx_unknown_index");
    lab.world.inject(captured.from, captured.to, &captured.bytes);
    lab.run(secs(1));
    assert_eq!(lab.counter(0, "rx_unknown_index"), unknown + 1, "the old session is gone");
    let peer = lab.peer_text(0);
    lab.set(1, &format!("public_key={old}\nremove=true\n{peer}"));
    let (flow, before) = (lab.udp(0, 1, 5), lab.missing());
    let initiations = lab.tapped(0, MessageKind::Initiation).len();
    lab.send(0, flow, 3, 64);
    lab.run(secs(1));
    assert_eq!(lab.missing(), before, "a new one stands");
    assert_eq!(lab.tapped(0, MessageKind::Initiation).len(), initiations + 1);
}

#[test]
fn rule_10_old_session_serves_until_the_new_one_is_confirmed() {
    // The initiator's first data on the new session is lost: the responder must go on with the old one.
    for seed in seeds(5) {
        let mut lab = Lab::pair(seed);
        for second in 0..400 {
            let flow = lab.udp(1, 0, 5);
            lab.send(1, flow, 1, 64);
            lab.run(millis(500));
            if second % 3 == 0 {
                let flow = lab.udp(0, 1, 5);
                lab.send(0, flow, 1, 64);
            }
            lab.run(millis(500));
        }
        lab.assert_all_arrived_in_order();
    }
}

#[test]
fn rule_11_timestamp_must_be_strictly_greater() {
    let (mut lab, mut puppet, _) = with_puppet(1);
    let wall = lab.world.wall();
    let now = puppet.stamp(wall);
    for (timestamp, accepted) in [
        (now, true),
        (now, false),
        (puppet_stamp(wall - secs(3600)), false),
        (puppet_stamp(wall + secs(3600)), true),
        (puppet_stamp(wall + secs(1800)), false),
        (puppet_stamp(wall + secs(3601)), true),
    ] {
        let refused = lab.handshakes(0, "dropped_replayed");
        let initiation = puppet.initiation_at(&mut lab, timestamp);
        puppet.say(&mut lab, &initiation);
        assert_eq!(puppet.complete(&mut lab).is_some(), accepted, "{timestamp:?}");
        assert_eq!(lab.handshakes(0, "dropped_replayed"), refused + u64::from(!accepted));
    }
}

fn puppet_stamp(wall: Duration) -> ringtun::noise::tai64n::Tai64N {
    ringtun::noise::tai64n::Tai64NClock::default().stamp(wall)
}

#[test]
fn rule_11_last_timestamp_survives_sessions_and_time() {
    let (mut lab, mut puppet, _) = with_puppet(1);
    let initiation = puppet.initiation(&mut lab);
    puppet.say(&mut lab, &initiation);
    assert!(puppet.complete(&mut lab).is_some());
    // Long after every key was zeroed, and across a restart of the interface.
    lab.run(secs(2000));
    lab.up(0, false);
    lab.up(0, true);
    puppet.say(&mut lab, &initiation);
    assert!(puppet.hear(&mut lab, MessageKind::Response).is_none());
}

#[test]
fn rule_11_rekeys_survive_a_clock_that_jumps() {
    const DAY: Duration = secs(86_400);
    const YEAR: Duration = secs(365 * 86_400);
    for seed in seeds(3) {
        let mut lab = Lab::pair(seed);
        let jumps = [
            (DAY, Duration::ZERO),
            (Duration::ZERO, DAY),
            (YEAR, Duration::ZERO),
            (Duration::ZERO, Duration::ZERO),
            (Duration::ZERO, 10 * YEAR),
            (Duration::ZERO, 60 * YEAR),
        ];
        for (ahead, behind) in jumps {
            for site in 0..2 {
                lab.host(site).wall_ahead = ahead;
                lab.host(site).wall_behind = behind;
            }
            assert_eq!(flow_for(&mut lab, 130), 0, "ahead by {ahead:?}, behind by {behind:?}");
        }
        assert!(lab.handshakes(1, "initiations_accepted") >= 4);
        assert_eq!(lab.handshakes(1, "dropped_replayed"), 0);
    }
}

#[test]
fn rule_10_both_ends_talk_at_once_after_the_link_was_down() {
    for seed in seeds(5) {
        for (waits, speaks) in [(0, 1), (1, 0), (0, 0)] {
            let mut lab = Lab::pair(seed);
            lab.connect();
            lab.up(waits, false);
            lab.run(secs(2));
            lab.up(waits, true);
            lab.run(millis(500));
            let flow = lab.udp(speaks, 1 - speaks, 5);
            lab.send(speaks, flow, 1, 64);
            lab.run(millis(100));
            assert_eq!(lab.missing(), 0, "{waits} was down, {speaks} speaks");
        }
    }
}

#[test]
fn rule_10_link_that_comes_up_without_a_session_lost_says_nothing() {
    let mut lab = Lab::pair(1);
    for _ in 0..2 {
        lab.up(0, false);
        lab.run(secs(2));
        lab.up(0, true);
        lab.run(secs(10));
    }
    lab.connect();
    lab.run(secs(600));
    lab.world.network.clear_tap();
    lab.up(0, false);
    lab.up(0, true);
    lab.run(secs(10));
    assert_eq!(lab.world.network.tap().count(), 0, "all keys were zeroed long before");
}

#[test]
fn rule_10_no_keepalive_follows_packets_that_confirm_a_session() {
    for seed in seeds(10) {
        let mut lab = Lab::pair(seed);
        let flow = lab.udp(0, 1, 5);
        lab.send(0, flow, 3, 64);
        lab.run(secs(1));
        assert_eq!((lab.missing(), lab.keepalives(0).len()), (0, 0));
    }
}

#[test]
fn rule_10_first_packet_after_a_suspend_is_answered_at_once() {
    for (seed, from) in seeds(4).zip([0, 1].into_iter().cycle()) {
        for asleep in [100, 130, 175, 181, 300, 545, 10_000] {
            let mut lab = Lab::pair(seed);
            lab.host(1 - from).echo = true;
            lab.connect();
            lab.world.leap(secs(asleep));
            let flow = lab.udp(from, 1 - from, 5);
            lab.send(from, flow, 1, 64);
            lab.run(millis(500));
            assert_eq!(lab.missing(), 0, "after {asleep} s");
        }
    }
}

#[test]
fn rule_10_keys_that_fell_due_during_a_suspend_are_zeroed_on_waking() {
    let (mut lab, puppet, session) = with_puppet(1);
    let unknown = lab.counter(0, "rx_unknown_index");
    lab.world.leap(secs(550));
    puppet.say(&mut lab, &session.seal(1, &[]));
    assert_eq!(lab.counter(0, "rx_unknown_index"), unknown + 1);
}

#[test]
fn rule_11_monotonic_clock_that_leaps_is_survived() {
    // A suspended machine: all timers are late at once.
    let mut lab = Lab::pair(1);
    lab.connect();
    lab.world.leap(secs(100_000));
    assert_eq!(flow_for(&mut lab, 10), 0);
    assert!(lab.world.now() > Instant::START + secs(100_000));
    let _ = Puppet::new(&mut lab).connect(&mut lab);
}
