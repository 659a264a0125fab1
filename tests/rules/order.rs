//! Rule 3: within a flow no packet overtakes one that was staged, queued or retried before it.

use crate::lab::{Lab, assist_of, millis, secs};
use ringtun::sim::packet::Inner;
use ringtun::sim::{HostConfig, seeds};
use ringtun::wire::message::MessageKind;

fn burst(lab: &mut Lab, flows: u16) {
    for port in 0..flows {
        let flow = lab.udp(0, 1, 100 + port);
        lab.send(0, flow, 3, 64 + 40 * usize::from(port));
        let (flow, payload) = (lab.tcp6(0, 1, 100 + port), lab.super_payload(12, 1300, 77));
        lab.send_super(0, Inner::new(flow, 1, payload), 1300);
    }
}

#[test]
fn rule_03_order_holds_across_the_handshake() {
    for seed in seeds(60) {
        let mut lab = Lab::pair(seed);
        lab.host(0).steer_tun = seed % 3 == 0;
        // 10 ms apart on a wire of 10 ms: some before the session, some while it comes, some after.
        for _ in 0..10 {
            burst(&mut lab, 2);
            lab.run(millis(3));
        }
        lab.run(secs(1));
        lab.assert_all_arrived_in_order();
    }
}

#[test]
fn rule_03_order_holds_while_the_socket_is_full() {
    for seed in seeds(40) {
        let mut lab = Lab::pair(seed);
        lab.connect();
        for _ in 0..10 {
            for io in lab.world.host(lab.sites[0].id).ios() {
                io.blocked = !io.blocked;
            }
            burst(&mut lab, 3);
            lab.run(millis(3));
        }
        lab.host(0).ios().for_each(|io| io.blocked = false);
        // Wakes the workers.
        burst(&mut lab, 3);
        lab.run(secs(1));
        lab.assert_all_arrived_in_order();
    }
}

#[test]
fn rule_03_order_holds_across_lost_handshakes_and_rekeys() {
    for seed in seeds(10) {
        let mut lab = Lab::pair(seed);
        let mut rng = lab.world.rng().fork();
        lab.world.network.filter =
            Some(Box::new(move |datagram| datagram.kind() == Some(MessageKind::Data) || rng.chance(700)));
        // Staging keeps the last 128 packets a worker: stay below it.
        for _ in 0..10 {
            let flow = lab.udp(0, 1, 5);
            lab.send(0, flow, 4, 64);
            lab.run(secs(1));
        }
        for _ in 0..300 {
            let flow = lab.udp(0, 1, 5);
            lab.send(0, flow, 2, 64);
            lab.run(secs(1));
        }
        lab.run(secs(30));
        lab.assert_all_arrived_in_order();
        assert!(lab.tapped(0, MessageKind::Initiation).len() >= 3);
    }
}

#[test]
fn rule_03_misdirected_datagrams_reach_their_owner_and_none_is_lost() {
    for seed in seeds(20) {
        // Without steering most trains reach a worker that does not own them.
        let (gro, assist) = (seed % 3 == 0, assist_of(seed));
        let config = HostConfig { workers: 3, steer: false, gro, assist, ..HostConfig::default() };
        let mut lab = Lab::mesh(seed, vec![config; 2]);
        lab.connect();
        let flow = lab.udp(0, 1, 5);
        for _ in 0..50 {
            lab.send(0, flow, 4, 100);
            lab.run(millis(30));
        }
        assert_eq!(lab.missing(), 0);
        assert!(lab.counter(1, "misdirected_in") > 10);
        assert_eq!(lab.counter(1, "misdirected_dropped"), 0);
    }
}

#[test]
fn rule_03_order_holds_while_workers_do_trains_for_each_other() {
    let [mut opened, mut sealed] = [(0, 0); 2];
    for seed in seeds(40) {
        let config = HostConfig { workers: 1 + (seed % 3) as u8, assist: 100, ..HostConfig::default() };
        let mut lab = Lab::mesh(seed, vec![config; 2]);
        lab.connect();
        for _ in 0..30 {
            burst(&mut lab, 3);
            lab.run(millis(1));
        }
        lab.run(secs(1));
        lab.assert_all_arrived_in_order();
        opened = (opened.0 + lab.counter(1, "rx_shared_out"), opened.1 + lab.counter(1, "rx_trains"));
        sealed = (sealed.0 + lab.counter(0, "tx_shared_out"), sealed.1 + lab.counter(0, "tx_trains"));
    }
    for (shared, all) in [opened, sealed] {
        assert!(shared > all / 20 && shared < all, "{shared} of {all}: chance decided both ways");
    }
}
