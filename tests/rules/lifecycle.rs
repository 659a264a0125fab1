//! Rule 15: what comes and goes in mid-traffic, keys that cannot work, and the ICMP that senders get.

use crate::lab::{Lab, hex, inner4, millis, secs};
use crate::puppet::{Puppet, puppet_inner};
use ringtun::dataplane::worker::{Worker, WorkerConfig};
use ringtun::dataplane::{Event, Links};
use ringtun::offload::coalesce::CoalesceOptions;
use ringtun::sim::io::{POOL_BUFFERS, SimIo};
use ringtun::sim::packet::{Flow, Inner};
use ringtun::sim::{HostConfig, seeds};
use ringtun::wire::message::MessageKind;
use ringtun::wire::vnet::VNET_HDR_LEN;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

fn traffic(lab: &mut Lab) {
    for (from, to) in [(0, 1), (1, 0)] {
        let flow = lab.udp(from, to, 5);
        lab.send(from, flow, 5, 200);
        let (flow, payload) = (lab.tcp6(from, to, 6), lab.super_payload(10, 1000, 500));
        lab.send_super(from, Inner::new(flow, 1, payload), 1000);
    }
    let time = lab.world.rng().below(20);
    lab.run(millis(time));
}

fn assert_no_buffer_is_lost(lab: &mut Lab) {
    for site in 0..lab.sites.len() {
        let held: Vec<_> = lab.host(site).ios().map(|io| POOL_BUFFERS - io.free_buffers()).collect();
        assert_eq!(held, vec![0; held.len()], "at site {site}");
    }
}

#[test]
fn rule_15_peer_is_removed_and_added_in_mid_traffic() {
    for seed in seeds(30) {
        let mut lab = Lab::pair(seed);
        let (public, peer) = (hex(&lab.public(1).0), lab.peer_text(1));
        for _ in 0..10 {
            traffic(&mut lab);
            lab.set(0, &format!("public_key={public}\nremove=true\n"));
            traffic(&mut lab);
            lab.set(0, &peer);
        }
        lab.assert_recovered();
        assert_no_buffer_is_lost(&mut lab);
    }
}

#[test]
fn rule_15_interface_goes_down_and_up_in_mid_traffic() {
    for seed in seeds(20) {
        let mut lab = Lab::pair(seed);
        for _ in 0..5 {
            traffic(&mut lab);
            lab.up(0, false);
            assert_eq!(lab.host(0).port(), None);
            traffic(&mut lab);
            lab.up(0, true);
        }
        lab.assert_recovered();
        assert_no_buffer_is_lost(&mut lab);
    }
}

#[test]
fn rule_15_port_changes_in_mid_traffic() {
    let mut lab = Lab::pair(1);
    lab.connect();
    for port in [51_821, 4_242, 51_820] {
        traffic(&mut lab);
        lab.set(0, &format!("listen_port={port}\n"));
        assert_eq!(lab.host(0).port(), Some(port));
        lab.assert_recovered();
    }
}

#[test]
fn rule_15_port_in_use_is_an_error_and_changes_nothing() {
    const EADDRINUSE: i32 = 98;
    let mut lab = Lab::pair(1);
    lab.connect();
    let (id, now) = (lab.sites[0].id, lab.world.host_now(lab.sites[0].id));
    lab.host(0).bind_error = Some(EADDRINUSE);
    assert_eq!(lab.world.host(id).configure(now, "listen_port=999\n"), Err(EADDRINUSE));
    assert_eq!(lab.host(0).port(), Some(51_820));
    traffic(&mut lab);
    lab.run(secs(1));
    assert_eq!(lab.missing(), 0);
}

#[test]
fn rule_15_worker_tells_when_the_tun_device_is_gone() {
    let links = Links::new(1).unwrap();
    let config = WorkerConfig { id: 0, mtu: 1420, coalesce: CoalesceOptions::default() };
    let mut io = SimIo::new(true, true).unwrap();
    io.gone = true;
    assert!(Worker::new(config, &links).run(&mut io).is_err());
    assert!(matches!(links.slow.events.pop(), Some(Event::WorkerEnded(0, _))));
}

/// Points of order 1, 2, 4 and 8 (and their like), encoded.
const LOW_ORDER: [&str; 4] = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
];

#[test]
fn rule_15_peer_of_low_order_is_never_spoken_to() {
    for key in LOW_ORDER {
        let mut lab = Lab::pair(1);
        lab.connect();
        lab.set(0, &format!("public_key={key}\nendpoint=198.51.100.1:1\nallowed_ip=10.9.0.0/24\npersistent_keepalive_interval=1\n"));
        lab.world.network.clear_tap();
        let inner = lab.packet(Flow::udp((inner4(0), 5).into(), (puppet_inner(), 5).into()), 64);
        lab.host(0).send(&inner.flow, inner.to_frame());
        lab.run(secs(10));
        let stranger = SocketAddr::from(([198, 51, 100, 1], 1));
        assert!(lab.world.network.tap().all(|tapped| tapped.datagram.to != stranger), "{key}");
        traffic(&mut lab);
        lab.run(secs(1));
        assert_eq!(lab.missing(), 0, "others are not disturbed");
    }
}

#[test]
fn rule_15_initiation_with_a_low_order_ephemeral_key_is_dropped() {
    let mut lab = Lab::pair(1);
    let mut puppet = Puppet::new(&mut lab);
    for key in LOW_ORDER {
        let mut initiation = puppet.initiation(&mut lab);
        for (byte, digits) in initiation[8..40].iter_mut().zip(key.as_bytes().chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap();
        }
        puppet.jar.seal(&mut initiation, lab.world.now());
        puppet.say(&mut lab, &initiation);
    }
    assert_eq!(lab.handshakes(0, "dropped_not_authentic"), 4);
    assert!(puppet.hear(&mut lab, MessageKind::Response).is_none());
}

#[test]
fn rule_15_own_public_key_is_no_peer() {
    let mut lab = Lab::pair(1);
    let own = hex(&lab.public(0).0);
    lab.set(0, &format!("public_key={own}\nendpoint=192.0.2.1:51820\nallowed_ip=10.0.1.0/24\n"));
    assert_eq!(lab.host(0).device().peers().len(), 1);
    lab.connect();
    // And a peer whose key becomes our own is no peer any more.
    let key = hex(&lab.sites[1].key.to_bytes());
    lab.set(0, &format!("private_key={key}\n"));
    assert_eq!(lab.host(0).device().peers().len(), 0);
}

#[test]
fn rule_15_host_without_ipv6_serves_its_ipv4_peers() {
    let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 3);
    let both: Vec<IpAddr> = vec![[192, 0, 2, 3].into(), v6.into()];
    let configs = vec![
        HostConfig::default(),
        HostConfig::default(),
        HostConfig { addresses: both, ..HostConfig::default() },
    ];
    let mut lab = Lab::mesh(1, configs);
    lab.set(0, &format!("public_key={}\nendpoint=[{v6}]:51820\n", hex(&lab.public(2).0)));
    let flow = lab.udp(0, 2, 5);
    lab.send(0, flow, 3, 64);
    lab.run(secs(10));
    assert_eq!(lab.missing(), 3);
    let errors: u64 = lab.host(0).ios().map(|io| ringtun::io::Io::stats(io).udp_send_errors).sum();
    assert!(errors > 0, "counted");
    traffic(&mut lab);
    lab.run(secs(1));
    assert_eq!(lab.missing(), 3, "IPv4 goes on");
}

/// Sends one packet from site 0 and returns the ICMP answers.
fn answers(lab: &mut Lab, to: IpAddr) -> Vec<Vec<u8>> {
    let from = if to.is_ipv4() { inner4(0) } else { crate::lab::inner6(0) };
    let inner = Inner::new(Flow::udp((from, 5).into(), (to, 5).into()), 0, vec![1; 64]);
    lab.host(0).send(&inner.flow, inner.to_frame());
    lab.run(secs(1));
    lab.host(0).take_others()
}

/// Whether `packet` is destination-unreachable for site 0.
fn is_unreachable(packet: &[u8]) -> bool {
    let is4 = packet[0] >> 4 == 4 && packet[9] == 1 && packet[16..20] == [10, 0, 0, 1] && packet[20] == 3;
    let is6 = packet[0] >> 4 == 6 && packet[6] == 58 && packet[24..26] == [0xfd, 0] && packet[40] == 1;
    is4 || is6
}

#[test]
fn rule_15_no_peer_for_the_destination_is_answered() {
    let mut lab = Lab::pair(1);
    for to in ["10.77.0.1", "2001:db8::77"] {
        let answers = answers(&mut lab, to.parse().unwrap());
        assert!(answers.len() == 1 && is_unreachable(&answers[0]), "{answers:02x?}");
    }
}

#[test]
fn rule_15_no_endpoint_for_the_peer_is_answered() {
    let mut lab = Lab::pair(1);
    Puppet::new(&mut lab);
    let answers = answers(&mut lab, puppet_inner());
    assert!(answers.len() == 1 && is_unreachable(&answers[0]), "{answers:02x?}");
}

#[test]
fn rule_15_no_key_is_answered() {
    let mut lab = Lab::pair(1);
    lab.connect();
    lab.set(0, &format!("private_key={:064x}\n", 0));
    let answers = answers(&mut lab, inner4(1));
    assert!(answers.len() == 1 && is_unreachable(&answers[0]), "{answers:02x?}");
    assert_eq!(lab.tapped(0, MessageKind::Initiation).len(), 1, "the one from before");
}

#[test]
fn rule_15_icmp_is_not_answered_with_icmp() {
    let mut lab = Lab::pair(1);
    let mut packet =
        Inner::new(Flow::udp((inner4(0), 5).into(), ([10, 77, 0, 1], 5).into()), 0, vec![0; 32]).to_packet();
    packet[9] = 1;
    packet[20..28].copy_from_slice(&[3, 1, 0, 0, 0, 0, 0, 0]);
    packet[10..12].fill(0);
    let sum: u32 = packet[..20].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let sum = !((sum >> 16) + (sum & 0xffff)) as u16;
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    let frame = [&[0; VNET_HDR_LEN][..], &packet].concat();
    let flow = lab.udp(0, 1, 5);
    lab.host(0).send(&flow, frame);
    lab.run(secs(1));
    assert!(lab.host(0).take_others().is_empty());
    assert_eq!(lab.counter(0, "tx_no_peer"), 1, "dropped, all the same");
}
