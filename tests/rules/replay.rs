//! Rules 1, 2 and 4: counters, nonces, receiver indices.

use crate::lab::{Lab, assist_of, millis, secs};
use crate::puppet::{puppet_inner, with_puppet};
use ringtun::crypto::random::Entropy;
use ringtun::dataplane::{Control, Event};
use ringtun::device::uapi::SetRequest;
use ringtun::device::{Device, Now, Output};
use ringtun::index::WorkerCount;
use ringtun::noise::REJECT_AFTER_MESSAGES;
use ringtun::noise::session::{Role, SessionKeys};
use ringtun::sim::packet::{Flow, Inner};
use ringtun::sim::{Faults, HostConfig, seeds};
use ringtun::time::Instant;
use ringtun::wire::message::{Initiation, MessageKind};
use std::collections::HashSet;

/// A fresh inner packet from the puppet to site 0, entered in the ledger.
pub(crate) fn from_puppet(lab: &mut Lab) -> Vec<u8> {
    let flow = Flow::udp((puppet_inner(), 9).into(), (crate::lab::inner4(0), 9).into());
    let inner = lab.packet(flow, 40);
    lab.ledger.sent(inner.clone());
    inner.to_packet()
}

#[test]
fn rule_01_replay_no_packet_is_delivered_twice() {
    for seed in seeds(20) {
        let mut lab = Lab::pair(seed);
        lab.connect();
        lab.world.network.faults = Faults { duplicate: 300, replay: 300, ..Faults::default() };
        for _ in 0..20 {
            let flow = lab.udp(0, 1, 5);
            lab.send(0, flow, 20, 100);
            lab.run(millis(50));
        }
        lab.run(secs(1));
        lab.assert_all_arrived_in_order();
        assert!(lab.counter(1, "rx_replayed") > 100, "the faults were felt");
    }
}

#[test]
fn rule_01_replay_counter_is_accepted_once_and_the_window_is_8192_bits() {
    let (mut lab, puppet, session) = with_puppet(1);
    let old: Vec<_> = [20_000 - 8193, 20_000 - 8000, 20_000 - 1].map(|n| (n, from_puppet(&mut lab))).into();
    let newest = from_puppet(&mut lab);
    puppet.say(&mut lab, &session.seal(20_000, &newest));
    let sealed: Vec<_> = old.iter().map(|(n, inner)| session.seal(*n, inner)).collect();
    for message in sealed.iter().chain(&sealed) {
        puppet.say(&mut lab, message);
    }
    lab.collect();
    assert_eq!(lab.missing(), 1, "only the one behind the window is lost");
    assert_eq!(lab.counter(0, "rx_replayed"), 4, "it, and every second time");
}

#[test]
fn rule_01_replay_window_moves_only_after_the_tag_verified() {
    let (mut lab, puppet, session) = with_puppet(1);
    for counter in [1 << 20, 1 << 40, REJECT_AFTER_MESSAGES - 1] {
        let mut forged = session.seal(counter, &[0; 64]);
        forged[40] ^= 1;
        puppet.say(&mut lab, &forged);
    }
    assert_eq!(lab.counter(0, "rx_decrypt_failed"), 3);
    let inner = from_puppet(&mut lab);
    puppet.say(&mut lab, &session.seal(1, &inner));
    lab.collect();
    assert_eq!(lab.missing(), 0);
}

#[test]
fn rule_02_counters_are_64_bit() {
    let (mut lab, puppet, session) = with_puppet(1);
    for counter in [5, (1 << 32) + 5, (1 << 48) + 5] {
        let inner = from_puppet(&mut lab);
        puppet.say(&mut lab, &session.seal(counter, &inner));
    }
    lab.collect();
    assert_eq!((lab.missing(), lab.counter(0, "rx_replayed")), (0, 0));
}

#[test]
fn rule_02_counters_end_before_the_limit() {
    let keys = || SessionKeys {
        send: [1; 32],
        receive: [2; 32],
        local_index: 1,
        remote_index: 2,
        role: Role::Initiator,
    };
    let (send, _) = keys().into_halves(Instant::START);
    assert_eq!(send.reserve(REJECT_AFTER_MESSAGES - 10), Some(0));
    assert_eq!(send.reserve(64), None, "a block that would cross the limit");
    assert_eq!(send.reserve(u64::MAX), None, "nor does a huge one wrap");
    assert_eq!(send.reserve(5), Some(REJECT_AFTER_MESSAGES - 10));
    while let Some(counter) = send.reserve(1) {
        assert!(counter < REJECT_AFTER_MESSAGES);
    }
    assert!(!send.usable(Instant::START));
}

#[test]
fn rule_02_counter_at_the_limit_is_not_accepted() {
    let (mut lab, puppet, session) = with_puppet(1);
    for counter in [REJECT_AFTER_MESSAGES, u64::MAX] {
        let inner = from_puppet(&mut lab);
        puppet.say(&mut lab, &session.seal(counter, &inner));
    }
    lab.collect();
    assert_eq!(lab.missing(), 2);
}

#[test]
fn rule_02_no_nonce_repeats_whatever_worker_seals() {
    for seed in seeds(20) {
        let config = HostConfig { workers: 4, assist: assist_of(seed), ..HostConfig::default() };
        let mut lab = Lab::mesh(seed, vec![config; 2]);
        lab.connect();
        // The flow's hash spreads one peer's packets over all workers.
        lab.host(0).steer_tun = false;
        for port in 0..40 {
            let flow = lab.udp(0, 1, 100 + port);
            lab.send(0, flow, 10, 200);
            let (flow, payload) = (lab.tcp6(0, 1, 100 + port), lab.super_payload(12, 1000, 500));
            lab.send_super(0, Inner::new(flow, 1, payload), 1000);
            lab.run(millis(1));
        }
        lab.run(secs(1));
        lab.assert_all_arrived_in_order();
        // `collect` has asserted that the wire never saw a counter twice. None was left out either:
        let data: Vec<_> =
            lab.tapped(0, MessageKind::Data).iter().filter_map(|t| t.datagram.data()).collect();
        let newest = data.last().unwrap().receiver;
        let counters: HashSet<_> = data.iter().filter(|d| d.receiver == newest).map(|d| d.counter).collect();
        assert_eq!(counters.iter().max(), Some(&(counters.len() as u64 - 1)));
    }
}

#[test]
fn rule_04_indices_are_random_unique_and_name_the_owner() {
    for seed in seeds(5) {
        let mut lab = Lab::pair(seed);
        lab.connect();
        for _ in 0..12 {
            // A new session every two minutes.
            let flow = lab.udp(0, 1, 5);
            lab.send(0, flow, 1, 64);
            lab.run(secs(121));
        }
        // Uniqueness and low byte are asserted for every message by the host itself.
        let announced: Vec<u32> = lab
            .tapped(0, MessageKind::Initiation)
            .iter()
            .filter_map(|tapped| Initiation::parse(&tapped.datagram.bytes))
            .map(|initiation| initiation.sender)
            .collect();
        assert!(announced.len() >= 10, "{announced:x?}");
        let workers: HashSet<u8> = announced.iter().map(|&index| index as u8).collect();
        assert_eq!(workers.len(), 1, "a peer keeps its worker");
        let random: Vec<i64> = announced.iter().map(|index| i64::from(index >> 8)).collect();
        let steps: HashSet<_> = random.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(steps.len() > announced.len() / 2, "not sequential: {announced:x?}");
        assert!(random.iter().any(|&bits| bits > 1 << 20), "not small");
    }
}

/// Entropy that says everything `times` times, four bytes at a time.
struct Stutter {
    said: u32,
    times: u32,
}

impl Entropy for Stutter {
    fn fill(&mut self, out: &mut [u8]) {
        for chunk in out.chunks_mut(4) {
            self.said += 1;
            let word = (self.said / self.times).wrapping_mul(0x9e37_79b1);
            chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
        }
    }
}

#[test]
fn rule_04_colliding_index_is_drawn_again() {
    let mut device = Device::new(WorkerCount::nearest(1), Box::new(Stutter { said: 0, times: 40 }));
    let now = Now { mono: Instant::START, wall: secs(1_700_000_000) };
    let peers = (1..=20).map(|peer| format!("public_key={peer:064x}\nendpoint=192.0.2.1:{peer}\n"));
    let text = format!("set=1\nprivate_key={:064x}\n{}", 77, peers.collect::<String>());
    device.apply(now, &SetRequest::parse(text.as_bytes()).unwrap(), &mut |_| Ok(1)).unwrap();
    device.set_up(now, true);
    let mut indices = HashSet::new();
    let mut drain = |device: &mut Device| {
        while let Some(output) = device.poll_output() {
            match output {
                Output::Bind(Some(_)) => device.bound(Ok(1)),
                Output::Control(_, Control::Send(.., message)) => {
                    let index = Initiation::parse(message.bytes()).unwrap().sender;
                    assert!(indices.insert(index), "{index:#x} twice");
                }
                _ => {}
            }
        }
        indices.len()
    };
    drain(&mut device);
    let ids: Vec<_> = device.peers().iter().map(|peer| peer.id).collect();
    for id in ids {
        device.handle_event(now, Event::NeedHandshake(id));
    }
    // Some of the public keys are points of low order or none at all; most are not.
    assert!(drain(&mut device) >= 15);
}

#[test]
fn rule_04_index_is_freed_with_its_session() {
    let (mut lab, mut puppet, session) = with_puppet(1);
    // Four newer sessions that both ends have push the first one out.
    for _ in 0..4 {
        lab.run(secs(1));
        puppet.connect(&mut lab);
    }
    let before = lab.counter(0, "rx_unknown_index");
    puppet.say(&mut lab, &session.seal(1, &[]));
    assert_eq!(lab.counter(0, "rx_unknown_index"), before + 1);
}

#[test]
fn rule_04_index_is_freed_with_its_peer() {
    let (mut lab, puppet, session) = with_puppet(1);
    let public = crate::lab::hex(&puppet.identity.public().0);
    lab.set(0, &format!("public_key={public}\nremove=true\n"));
    puppet.say(&mut lab, &session.seal(1, &[]));
    assert_eq!(lab.counter(0, "rx_unknown_index"), 1);
    // And the peer may come back.
    let mut puppet = puppet;
    puppet.introduce(&mut lab, "10.9.0.0/24");
    puppet.connect(&mut lab);
}
