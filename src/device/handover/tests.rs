use super::format::{StateReader, StateWriter};
use super::*;
use crate::crypto::testing::Seeded;
use crate::crypto::x25519::{PrivateKey, PublicKey};
use crate::dataplane::Control;
use crate::dataplane::record::ReceivingRecord;
use crate::device::uapi::{AllowedIp, PeerRequest, SetRequest};
use crate::device::{Device, Now, Output};
use crate::index::WorkerCount;
use crate::time::Instant;
use proptest::prelude::*;
use std::time::Duration;

fn now(seconds: u64) -> Now {
    let passed = Duration::from_secs(1_000 + seconds);
    Now { mono: Instant::START + passed, wall: Duration::from_secs(1_700_000_000) + passed }
}

fn device(workers: usize) -> Device {
    Device::new(WorkerCount::nearest(workers), Box::new(Seeded(7)))
}

/// A device that is up and has so many peers.
fn with_peers(peers: u8) -> Device {
    let mut device = device(2);
    let peer = |number: u8| PeerRequest {
        preshared_key: Some(Box::new(crate::crypto::x25519::SharedSecret([number; 32]))),
        endpoint: Some(format!("[fe80::{number:x}%3]:51820").parse().unwrap()),
        persistent_keepalive: Some(number.into()),
        limits: number
            .is_multiple_of(3)
            .then(|| Box::new("in 1000000 16384 quota 1000 3600 0".parse().unwrap())),
        allowed_ips: [format!("10.{number}.0.0/16"), format!("fd00:{number:x}::/64")]
            .map(|prefix| AllowedIp { prefix: prefix.parse().unwrap(), remove: false })
            .to_vec(),
        ..PeerRequest::new(PrivateKey::from_bytes([number; 32]).public())
    };
    let request = SetRequest {
        private_key: Some(Some(PrivateKey::from_bytes([200; 32]))),
        listen_port: Some(51820),
        fwmark: Some(7),
        peers: (1..=peers).map(peer).collect(),
        ..SetRequest::default()
    };
    device.apply(now(0), &request, &mut |wanted| Ok(wanted.port)).unwrap();
    device.set_up(now(0), true);
    device.bound(Ok(51820));
    device.set_mtu(1400);
    device.handle_timeout(now(1));
    while device.poll_output().is_some() {}
    device
}

const SOCKETS: SocketCount = SocketCount { v4: 2, v6: 2 };

fn export(device: &mut Device, seconds: u64) -> Vec<u8> {
    let parts = StateParts { sockets: SOCKETS, ..StateParts::default() };
    device.export(now(seconds), parts).unwrap().to_vec()
}

#[test]
fn a_configuration_and_handshakes_under_way_are_as_before_on_the_other_side() {
    let mut old = with_peers(40);
    let (state, said) = (export(&mut old, 2), old.uapi_get());
    let mut new = device(2);
    let imported = new.import(&state, None).unwrap();
    assert_eq!((new.is_up(), imported.mark, imported.sockets), (true, 7, SOCKETS));
    assert_eq!(new.uapi_get(), said);
    assert_eq!(new.held()[..2], old.held()[..2], "peers and indices");
    let again = export(&mut new, 2);
    let at = again.iter().zip(&state).position(|(new, old)| new != old);
    assert_eq!((at, again.len()), (None, state.len()), "it is the same state");
    // Workers hear of their sessions last.
    let mut told = Vec::new();
    while let Some(output) = new.poll_output() {
        let Output::Control(worker, control) = output else { panic!("an interface that is up stays so") };
        let what = match control {
            Control::Identity(Some(_)) => "key",
            Control::Mtu(1400) => "mtu",
            Control::Routes(..) => "routes",
            Control::Restore(sessions) if sessions.is_empty() => "sessions",
            _ => panic!("another control"),
        };
        told.push((what, worker));
    }
    let all = ["mtu", "key", "routes", "sessions"].into_iter().flat_map(|what| [(what, 0), (what, 1)]);
    assert_eq!(told, all.collect::<Vec<_>>());
}

#[test]
fn prefixes_are_steered_once_the_device_goes_on() {
    let mut new = device(3);
    new.import(&export(&mut with_peers(150), 2), None).unwrap();
    while new.poll_output().is_some() {}
    let mut steered = 0;
    while new.has_unsteered() {
        assert_eq!(new.poll_timeout(), Some(Instant::START));
        new.steer_some();
        let outputs = std::iter::from_fn(|| new.poll_output());
        steered += outputs.filter(|output| matches!(output, Output::Steer(_, Some(_)))).count();
    }
    assert_eq!(steered, 300);
}

#[test]
fn a_device_without_key_that_is_down_is_handed_over_too() {
    let mut old = device(1);
    let state = export(&mut old, 0);
    let mut new = device(4);
    new.import(&state, None).unwrap();
    assert!(!new.is_up());
    assert_eq!(new.uapi_get(), old.uapi_get());
}

#[test]
fn a_state_of_another_version_is_refused_by_its_number() {
    let mut state = export(&mut with_peers(1), 2);
    state[8..10].copy_from_slice(&2_u16.to_le_bytes());
    let error = device(1).import(&state, None).unwrap_err();
    assert_eq!(error, StateError::Version(2));
    assert!(error.to_string().contains("format 2, and this program knows format 1"), "{error}");
    assert_eq!(device(1).import(b"ringtun", None).unwrap_err(), StateError::Foreign);
    assert_eq!(device(1).import(&state[..9], None).unwrap_err(), StateError::Malformed);
}

#[test]
fn what_ends_too_soon_or_goes_on_too_long_is_refused() {
    let state = export(&mut with_peers(2), 2);
    for len in 10..state.len() {
        assert_eq!(device(1).import(&state[..len], None).unwrap_err(), StateError::Malformed, "{len}");
    }
    let longer = [&state[..], &[0]].concat();
    assert_eq!(device(1).import(&longer, None).unwrap_err(), StateError::Malformed);
}

#[test]
fn a_peer_that_is_there_twice_is_refused() {
    let one = export(&mut with_peers(1), 2);
    let empty = export(&mut with_peers(0), 2);
    // The record of the peer is what the state of one has more, and the number of peers is the last byte before.
    let peer = &one[empty.len()..];
    let mut twice = [&one[..], peer].concat();
    twice[empty.len() - 1] = 2;
    assert!(
        matches!(device(1).import(&twice, None).unwrap_err(), StateError::Invalid(what) if what.contains("twice"))
    );
}

#[test]
fn a_session_that_took_effect_unheard_is_known_on_the_other_side() {
    // The worker has no room for the event, and the state is made all the same.
    let mut old = with_peers(1);
    let peer = old.peers()[0].id;
    let born = now(2).mono;
    let keys = crate::noise::session::SessionKeys {
        send: [1; 32],
        receive: [2; 32],
        local_index: 0x0102_0301,
        remote_index: 9,
        role: crate::noise::session::Role::Responder,
    };
    let (send, receive) = keys.into_halves(born);
    assert!(old.indices.claim(send.local_index(), peer.slot));
    old.peers.by_id(peer).unwrap().sessions.install(send);
    let record = |effective| WorkerRecord {
        worker: 1,
        sessions: vec![ReceivingRecord {
            peer,
            index: 0x0102_0301,
            role: receive.role(),
            receive: receive.record(),
            effective,
        }],
        frames: vec![[1, 2, 3].into()],
    };
    for effective in [false, true] {
        let parts =
            StateParts { workers: vec![record(effective)], sockets: SOCKETS, ..StateParts::default() };
        let state = old.export(now(3), parts).unwrap();
        let mut new = device(2);
        let imported = new.import(&state, None).unwrap();
        assert_eq!(imported.frames, [vec![], vec![Box::from([1, 2, 3])]]);
        let peer = &new.peers()[0];
        assert_eq!(peer.sending.load().session(now(3).mono).is_some(), effective);
        assert_eq!(peer.connected_since().is_some(), effective);
        while let Some(output) = new.poll_output() {
            if let Output::Control(worker, Control::Restore(sessions)) = output {
                let waits = sessions.iter().map(|session| session.send.is_some()).collect::<Vec<_>>();
                assert_eq!(waits, if worker == 1 { vec![!effective] } else { vec![] });
            }
        }
    }
}

#[test]
fn a_state_that_would_take_too_much_is_an_error() {
    let mut writer = StateWriter::new(1_000_000);
    let pushed = (0..100).take_while(|_| writer.push(&[7_u64; 32]).is_ok()).count();
    assert_eq!(pushed, 100);
    let pushed = (0..100_000).take_while(|_| writer.push(&[7_u64; 32]).is_ok()).count();
    assert_eq!(pushed, (1_000_000 - 10) / 32 - 100);
    assert_eq!(writer.push(&[7_u64; 32]), Err(StateError::TooLarge));
    assert!(writer.finish().len() <= 1_000_000);
}

proptest! {
    #[test]
    fn whatever_bytes_come_they_are_an_error_or_a_state(bytes: Vec<u8>) {
        prop_assert!(device(2).import(&bytes, None).is_err());
        let headed = [b"ringtun\0\x01\0".as_slice(), &bytes].concat();
        if device(2).import(&headed, None).is_ok() {
            prop_assert!(StateReader::new(&headed).is_ok());
        }
    }

    #[test]
    fn a_damaged_state_harms_nobody(at: prop::sample::Index, to: u8) {
        let mut state = export(&mut with_peers(3), 2);
        let at = at.index(state.len());
        state[at] = to;
        let mut new = device(2);
        if new.import(&state, None).is_ok() {
            let keys: Vec<PublicKey> = new.peer_infos().map(|peer| *peer.public_key).collect();
            prop_assert_eq!(keys.len(), 3);
            while new.poll_output().is_some() {}
            new.handle_timeout(now(3));
        }
    }
}
