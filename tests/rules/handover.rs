//! A tunnel that is handed to another process in mid-traffic, at every point of the schedule: both ends keep their sessions, no
//! counter is used twice, no replay is accepted, and nothing is lost but by the wire.

use crate::lab::{Lab, assist_of, millis, secs};
use ringtun::sim::host::HandOverPlan;
use ringtun::sim::world::seeds;
use ringtun::sim::{Faults, HostConfig, HostFaults, IoFaults};

/// How many workers the gateway has before, by seed.
const WORKERS: [u8; 4] = [2, 1, 3, 4];

fn lab(seed: u64) -> Lab {
    let workers = WORKERS[seed as usize % WORKERS.len()];
    let config = HostConfig { assist: assist_of(seed), narrow: !strays(seed), ..HostConfig::default() };
    let mut lab = Lab::mesh(seed, vec![HostConfig { workers, ..config.clone() }, config]);
    if strays(seed) {
        lab.host(0).fail(HostFaults { missteer: 300, late_controls: millis(1), ..HostFaults::default() });
    }
    lab
}

/// Whether datagrams reach any worker, so that the owner gets them from another, and their order is lost.
fn strays(seed: u64) -> bool {
    seed % 4 > 1
}

/// Asserts that all that was sent arrived, in order where that can be kept.
fn assert_arrived(lab: &Lab, seed: u64) {
    match strays(seed) {
        true => assert_eq!(lab.missing(), 0, "{:#?}", lab.ledger.missing()),
        false => lab.assert_all_arrived_in_order(),
    }
}

/// Traffic in both directions, of single packets and super-packets, answers among it, while sessions begin and are renewed. Either end
/// begins, or both at once. All of it arrives soon.
fn traffic(lab: &mut Lab, seed: u64) {
    let first = seed as usize % 3;
    if first < 2 {
        let flow = lab.udp(first, 1 - first, 50);
        lab.send(first, flow, 1, 100);
        lab.run(millis(100));
    }
    for (port, pause) in [(1, 5), (2, 5_000), (3, 113_000), (4, 2_000)] {
        let (there, back, bulk) = (lab.udp(0, 1, port), lab.udp(1, 0, port), lab.tcp6(1, 0, port));
        for round in 0..4 {
            lab.send(0, there, 3, 100);
            lab.send(1, back, 3, 100);
            let payload = lab.super_payload(5, 900, 500);
            lab.send_super(1, ringtun::sim::Inner::new(bulk, 0, payload), 900);
            lab.run(millis(round));
        }
        lab.run(secs(1));
        assert_arrived(lab, seed);
        lab.run(millis(pause));
    }
}

/// The handshakes that both ends completed.
fn handshakes(lab: &mut Lab) -> u64 {
    (0..2).map(|site| lab.tapped(site, ringtun::wire::message::MessageKind::Response).len() as u64).sum()
}

/// Where hand-overs begin: at each of `steps` where RINGTUN_EVERY says so, else at some of them.
fn points(seed: u64, steps: std::ops::Range<u64>) -> impl Iterator<Item = u64> {
    let every = std::env::var_os("RINGTUN_EVERY").is_some();
    let stride = if every { 1 } else { 1 + (steps.end - steps.start) / 30 };
    steps.skip((seed % stride) as usize).step_by(stride as usize)
}

#[test]
fn rule_18_nothing_is_lost_wherever_a_tunnel_is_handed_over() {
    for seed in seeds(12) {
        let mut undisturbed = lab(seed);
        let begin = undisturbed.host(0).steps;
        traffic(&mut undisturbed, seed);
        let (steps, wanted) = (undisturbed.host(0).steps, handshakes(&mut undisturbed));
        for at_step in points(seed, begin..steps) {
            let workers = 1 + ((at_step + seed) % 4) as u8;
            println!("seed {seed}: to {workers} workers at step {at_step} of {steps}"); // where a run fails
            let mut lab = lab(seed);
            lab.host(0).plan_hand_over(HandOverPlan { at_step, workers, fails: at_step % 5 == 4 });
            traffic(&mut lab, seed);
            lab.run(secs(1));
            assert_eq!((lab.host(0).hand_overs(), at_step), (1, at_step));
            assert_eq!(
                handshakes(&mut lab),
                wanted,
                "seed {seed}, step {at_step} of {steps}: no session was made anew"
            );
            assert_eq!(lab.host(0).leaks(), Vec::<String>::new());
        }
    }
}

#[test]
fn rule_18_a_bad_wire_and_many_hand_overs_repeat_nothing() {
    for seed in seeds(12) {
        let mut lab = lab(seed);
        lab.world.network.faults = Faults {
            loss: 100,
            duplicate: 150,
            reorder: 200,
            replay: 150,
            corrupt: 20,
            delay: millis(3),
            jitter: millis(40),
            ..Faults::default()
        };
        let io = IoFaults { full: 30, unheard: 30, pause: millis(20), ..IoFaults::default() };
        let within = HostFaults { missteer: 200, late_controls: millis(2), io };
        (0..2).for_each(|site| lab.host(site).fail(within));
        for number in 0..12 {
            for site in 0..2 {
                let (steps, workers) = (lab.host(site).steps, 1 + lab.world.rng().below(4) as u8);
                let at_step = steps + lab.world.rng().below(60);
                let fails = lab.world.rng().chance(200);
                lab.host(site).plan_hand_over(HandOverPlan { at_step, workers, fails });
            }
            for port in 0..3 {
                let (there, back) = (lab.udp(0, 1, 100 + port), lab.udp(1, 0, 100 + port));
                lab.send(0, there, 4, 200);
                lab.send(1, back, 4, 200);
                lab.run(millis(300 + 700 * (number % 3)));
            }
            lab.run(secs(11));
        }
        assert!(lab.host(0).hand_overs() >= 8, "{}", lab.host(0).hand_overs());
        lab.world.network.faults = Faults::default();
        (0..2).for_each(|site| lab.host(site).fail(HostFaults::default()));
        lab.assert_recovered();
    }
}
