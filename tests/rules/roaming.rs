//! Rules 7 and 9: who moves an endpoint, and who may use an inner source address.

use crate::lab::{Lab, inner4, inner6, millis, secs};
use crate::puppet::{Puppet, with_puppet};
use crate::replay::from_puppet;
use ringtun::sim::packet::{Flow, Inner};
use ringtun::sim::{Faults, seeds};
use ringtun::wire::message::MessageKind;
use std::net::{IpAddr, SocketAddr};

fn elsewhere() -> SocketAddr {
    SocketAddr::from(([203, 0, 113, 77], 7777))
}

/// Where site 0 believes the puppet to be.
fn seen_at(lab: &mut Lab, puppet: &Puppet) -> Option<SocketAddr> {
    let public = *puppet.identity.public();
    lab.endpoint_of(0, &public)
}

#[test]
fn rule_07_any_authenticated_packet_moves_the_endpoint() {
    let (mut lab, mut puppet, session) = with_puppet(1);
    lab.world.play(elsewhere());
    assert_eq!(seen_at(&mut lab, &puppet), Some(puppet.addr));
    let inner = from_puppet(&mut lab);
    puppet.say_from(&mut lab, elsewhere(), &session.seal(1, &inner));
    assert_eq!(seen_at(&mut lab, &puppet), Some(elsewhere()), "data");
    puppet.say(&mut lab, &session.seal(2, &[]));
    assert_eq!(seen_at(&mut lab, &puppet), Some(puppet.addr), "a keepalive");
    let initiation = puppet.initiation(&mut lab);
    puppet.say_from(&mut lab, elsewhere(), &initiation);
    assert_eq!(seen_at(&mut lab, &puppet), Some(elsewhere()), "an initiation");
    assert!(
        puppet.hear_at(&mut lab, elsewhere(), MessageKind::Response).is_some(),
        "answered where it came from"
    );
}

#[test]
fn rule_07_data_follows_the_move_at_once() {
    let (mut lab, puppet, session) = with_puppet(1);
    lab.world.play(elsewhere());
    puppet.say_from(&mut lab, elsewhere(), &session.seal(1, &[]));
    let to: SocketAddr = (crate::puppet::puppet_inner(), 5).into();
    let inner = lab.packet(Flow::udp((inner4(0), 5).into(), to), 64);
    lab.host(0).send(&inner.flow, inner.to_frame());
    lab.world.run_for(millis(50));
    assert!(puppet.hear_at(&mut lab, elsewhere(), MessageKind::Data).is_some());
}

#[test]
fn rule_07_nothing_moves_it_before_authentication() {
    let (mut lab, mut puppet, session) = with_puppet(1);
    let stays = |lab: &mut Lab, puppet: &Puppet, bytes: &[u8], what: &str| {
        puppet.say_from(lab, elsewhere(), bytes);
        assert_eq!(seen_at(lab, puppet), Some(puppet.addr), "{what}");
    };
    let mut forged = session.seal(1, &[0; 32]);
    forged[20] ^= 1;
    stays(&mut lab, &puppet, &forged, "forged data");
    let seen = session.seal(2, &[]);
    puppet.say(&mut lab, &seen);
    stays(&mut lab, &puppet, &seen, "replayed data");
    let old = puppet.initiation(&mut lab);
    puppet.say(&mut lab, &old);
    stays(&mut lab, &puppet, &old, "a replayed initiation");
    let mut forged = puppet.initiation(&mut lab);
    forged[50] ^= 1;
    puppet.jar.seal(&mut forged, lab.world.now());
    stays(&mut lab, &puppet, &forged, "a forged initiation");
}

#[test]
fn rule_07_response_moves_the_endpoint() {
    let (mut lab, mut puppet, _) = with_puppet(1);
    let public = crate::lab::hex(&puppet.identity.public().0);
    // Site 0 starts the next handshake, and the answer comes from elsewhere.
    lab.run(secs(181));
    lab.set(0, &format!("public_key={public}\npersistent_keepalive_interval=25\n"));
    lab.run(secs(1));
    let home = std::mem::replace(&mut puppet.addr, elsewhere());
    let datagram = puppet.hear_at(&mut lab, home, MessageKind::Initiation).unwrap();
    lab.world.play(puppet.addr);
    puppet.answer(&mut lab, &datagram).unwrap();
    assert_eq!(seen_at(&mut lab, &puppet), Some(elsewhere()));
}

#[test]
fn rule_07_traffic_survives_a_nat_that_forgets() {
    for seed in seeds(10) {
        let mut lab = Lab::pair(seed);
        lab.connect();
        for rebinding in 0..10 {
            let public = SocketAddr::from(([203, 0, 113, 7], 40_000 + rebinding));
            let inside = lab.sites[1].addr;
            lab.world.network.translate(inside, public);
            // The one behind the NAT speaks first; from then on both are heard.
            for (from, to) in [(1, 0), (0, 1), (1, 0)] {
                let flow = lab.udp(from, to, 5);
                lab.send(from, flow, 3, 64);
                lab.run(millis(100));
            }
            assert_eq!((lab.missing(), lab.endpoint(0, 1)), (0, Some(public)));
        }
    }
}

#[test]
fn rule_07_replay_from_elsewhere_never_moves_it() {
    for seed in seeds(10) {
        let mut lab = Lab::pair(seed);
        lab.connect();
        let captured: Vec<_> = lab.world.network.tap().cloned().collect();
        lab.world.network.faults = Faults { duplicate: 200, ..Faults::default() };
        for tapped in captured {
            lab.world.inject(elsewhere(), tapped.datagram.to, &tapped.datagram.bytes);
            lab.run(millis(50));
            assert_eq!(lab.endpoint(0, 1), Some(lab.sites[1].addr));
            assert_eq!(lab.endpoint(1, 0), Some(lab.sites[0].addr));
        }
    }
}

/// Sends a packet with this source from the puppet; whether it was delivered.
fn passes(lab: &mut Lab, puppet: &Puppet, session: &crate::puppet::Session, source: IpAddr) -> bool {
    let to = if source.is_ipv4() { inner4(0) } else { inner6(0) };
    let inner = Inner::new(Flow::udp((source, 5).into(), (to, 5).into()), 0, lab.payload(40));
    let counter = lab.world.now().as_nanos();
    puppet.say(lab, &session.seal(counter, &inner.to_packet()));
    let delivered = lab.host(0).take_delivered();
    assert!(delivered.is_empty() || delivered == [inner]);
    !delivered.is_empty()
}

#[test]
fn rule_09_source_is_checked_by_device_wide_longest_prefix() {
    let mut lab = Lab::pair(1);
    let mut puppet = Puppet::stranger(&mut lab, elsewhere());
    // The puppet has the wide prefixes, site 1 the narrow ones inside them.
    puppet.introduce(&mut lab, "10.0.0.0/8\nallowed_ip=fd00::/8");
    let session = puppet.connect(&mut lab);
    for source in ["10.200.1.1".parse().unwrap(), "fd99::1".parse().unwrap()] {
        assert!(passes(&mut lab, &puppet, &session, source), "{source}");
    }
    for source in [inner4(1), inner6(1), "192.168.1.1".parse().unwrap(), "2001:db8::1".parse().unwrap()] {
        assert!(!passes(&mut lab, &puppet, &session, source), "{source}");
    }
    assert_eq!(lab.counter(0, "rx_bad_source"), 4);
}

#[test]
fn rule_09_prefix_that_moves_to_another_peer_moves_the_right_to_send() {
    let (mut lab, puppet, session) = with_puppet(1);
    assert!(passes(&mut lab, &puppet, &session, crate::puppet::puppet_inner()));
    let other = crate::lab::hex(&lab.public(1).0);
    lab.set(0, &format!("public_key={other}\nallowed_ip=10.9.0.0/24\n"));
    assert!(!passes(&mut lab, &puppet, &session, crate::puppet::puppet_inner()));
}
