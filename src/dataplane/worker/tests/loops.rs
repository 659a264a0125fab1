//! Our own outer packets that come back through the TUN device.

use super::*;
use crate::dataplane::HandshakeDatagram;
use crate::io::Notice;

const ME: &str = "198.51.100.1";

/// A frame to `to` with a UDP payload.
fn datagram(to: &str, payload: &[u8]) -> Vec<u8> {
    let mut frame = frame(ME, to, 0, payload.len(), 0);
    frame[VNET_HDR_LEN + 22..VNET_HDR_LEN + 24].copy_from_slice(&51820u16.to_be_bytes());
    frame[VNET_HDR_LEN + 28..].copy_from_slice(payload);
    frame
}

/// Peers as [`Rig::with_peers`] has them, the first of whom has all other destinations, too.
fn rig_with_everything(count: u32) -> Rig {
    let mut rig = Rig::with_peers(count);
    let routes = (0..count).map(|slot| (prefix(&format!("10.{slot}.0.0"), 16), slot));
    let routes = routes.chain([(prefix("0.0.0.0", 0), 0)]);
    rig.route(routes);
    rig.turn();
    rig
}

/// What the worker sends for a packet to the peer in `slot`.
fn outer_packet(rig: &mut Rig, slot: u32) -> Vec<u8> {
    rig.push_frame(&frame(ME, &format!("10.{slot}.0.1"), 1, 100, 0));
    rig.turn();
    let trains = rig.sent();
    trains[0].buf[..trains[0].len].to_vec()
}

#[test]
fn own_outer_packets_are_dropped_counted_and_told_once_a_minute() {
    let mut rig = rig_with_everything(3);
    let _remotes = [rig.connect(0), rig.connect(2)];
    // One peer's packets into that same peer's prefix, and another's.
    for slot in [0, 2] {
        let outer = outer_packet(&mut rig, slot);
        for _ in 0..3 {
            rig.push_frame(&datagram(&format!("203.0.113.{slot}"), &outer));
        }
        rig.turn();
        assert_eq!(rig.sent().len(), 0);
        assert!(rig.written().is_empty(), "nobody is told through the tunnel");
    }
    assert_eq!(rig.count(|stats| &stats.tx_looped), 6);
    let told = || std::iter::from_fn(|| rig.links.slow.notices.pop()).collect::<Vec<_>>();
    assert_eq!(told(), [(0, Notice::RoutingLoop { to: outer(0) })]);
    let again = datagram("203.0.113.2", &outer_packet(&mut rig, 2));
    rig.push_frame(&again);
    rig.turn();
    assert!(rig.links.slow.notices.pop().is_none());
    rig.pass(Duration::from_secs(61));
    rig.push_frame(&again);
    rig.turn();
    assert_eq!(rig.links.slow.notices.pop(), Some((0, Notice::RoutingLoop { to: outer(2) })));
}

#[test]
fn own_handshake_messages_are_dropped_too() {
    let mut rig = rig_with_everything(1);
    let initiation = [&[1, 0, 0, 0, 9, 9, 9, 9][..], &[7; 140]].concat();
    rig.peers[0].handshake_index.store(0x0909_0909, Relaxed);
    rig.control(Control::Send(
        0,
        Endpoint { addr: outer(0), from: None },
        HandshakeDatagram::new(&initiation).unwrap(),
    ));
    rig.push_frame(&datagram("203.0.113.0", &initiation));
    rig.turn();
    let counts = [rig.count(|stats| &stats.tx_looped), rig.count(|stats| &stats.tx_staged)];
    assert_eq!((counts, rig.sent().len(), rig.events()), ([1, 0], 1, vec![]));
}

#[test]
fn messages_of_a_host_behind_us_to_the_same_peer_pass() {
    let mut rig = rig_with_everything(2);
    let mut remote = rig.connect(0);
    let ours = outer_packet(&mut rig, 0);
    let theirs = |place: usize| {
        let mut message = ours.clone();
        message[place] ^= 1;
        message
    };
    // Another index; another type; another address; another port.
    let mut other_port = datagram("203.0.113.0", &ours);
    other_port[VNET_HDR_LEN + 23] ^= 1;
    let frames = [
        datagram("203.0.113.0", &theirs(5)),
        datagram("203.0.113.0", &theirs(0)),
        datagram("203.0.113.1", &ours),
        other_port,
    ];
    for frame in &frames {
        rig.push_frame(frame);
    }
    rig.turn();
    let passed: usize = rig.sent().iter().map(|train| remote.open(train).len()).sum();
    assert_eq!((passed, rig.count(|stats| &stats.tx_looped)), (frames.len(), 0));
}

#[test]
fn an_endpoint_that_moves_is_seen_within_a_second() {
    let mut rig = rig_with_everything(1);
    let _remote = rig.connect(0);
    let looped = datagram("203.0.113.9", &outer_packet(&mut rig, 0));
    let turn_with_it = |rig: &mut Rig| {
        rig.push_frame(&looped);
        rig.turn();
        rig.sent().len()
    };
    assert_eq!(turn_with_it(&mut rig), 1, "nobody is there");
    rig.set_endpoint(0, Some(Endpoint { addr: outer(9), from: None }));
    rig.pass(Duration::from_secs(1));
    assert_eq!(turn_with_it(&mut rig), 0);
}
