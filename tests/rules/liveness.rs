//! The purpose of rule 10: a peer that can be reached is reached within the protocol's own time, whatever went before.

use crate::lab::{Lab, millis, secs};
use ringtun::noise::{KEEPALIVE_TIMEOUT, REKEY_TIMEOUT};
use ringtun::sim::{HostConfig, SimRng, seeds};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

/// Jitter of a timer, and the way there and back.
const JITTER: Duration = millis(400);

/// Two sites of which the first speaks and the second only listens, is away at times, and may have lost its sessions.
struct Absence {
    lab: Lab,
    rng: SimRng,
    cut: Rc<Cell<bool>>,
    /// Pause between two packets.
    pace: Duration,
}

impl Absence {
    fn new(seed: u64) -> Absence {
        let mut rng = SimRng::new(seed);
        let mut lab = Lab::mesh(seed, vec![HostConfig::default(); 2]);
        let cut = Rc::new(Cell::new(false));
        let filter = Rc::clone(&cut);
        lab.world.network.filter = Some(Box::new(move |_| !filter.get()));
        let pace = millis(200 + rng.below(2800));
        // Whoever speaks first is the initiator.
        let first = rng.below(2) as usize;
        let flow = lab.udp(first, 1 - first, 5);
        lab.send(first, flow, 1, 16);
        lab.run(secs(1));
        assert_eq!(lab.missing(), 0);
        Absence { lab, rng, cut, pace }
    }

    /// The first site speaks for a while, heard or not.
    fn speak(&mut self, time: Duration) {
        let end = self.lab.world.now() + time;
        while self.lab.world.now() < end {
            let flow = self.lab.udp(0, 1, 5);
            self.lab.send(0, flow, 1, 16);
            self.lab.run(self.pace.min(end.since(self.lab.world.now())));
        }
    }

    /// The second site goes, is spoken to meanwhile, and comes back; asserts that it hears again in time.
    fn go_and_come_back(&mut self) {
        let forgets = self.rng.chance(600);
        let away = millis(self.rng.below(260_000));
        if forgets {
            self.lab.up(1, false)
        } else {
            self.cut.set(true)
        }
        self.speak(away);
        if forgets {
            self.lab.up(1, true)
        } else {
            self.cut.set(false)
        }
        // Attempts follow each other by REKEY_TIMEOUT, once the silence has been noticed.
        let noticed = KEEPALIVE_TIMEOUT + REKEY_TIMEOUT + JITTER + self.pace;
        let limit = noticed.saturating_sub(away) + REKEY_TIMEOUT + JITTER + self.pace;
        let before = self.lab.ledger.count_arrived();
        self.speak(limit);
        assert!(
            self.lab.ledger.count_arrived() > before,
            "seed {}: back after {away:?} (sessions lost: {forgets}), not reached within {limit:?}",
            self.lab.world.seed()
        );
    }
}

#[test]
fn rule_10_whoever_comes_back_is_reached_in_the_protocols_own_time() {
    for seed in seeds(40) {
        let mut absence = Absence::new(seed);
        for _ in 0..4 {
            let pause = millis(absence.rng.below(150_000));
            if absence.rng.chance(500) {
                absence.speak(pause)
            } else {
                absence.lab.run(pause)
            }
            absence.go_and_come_back();
        }
    }
}

#[test]
fn rule_10_attempts_go_on_for_as_long_as_data_goes_unanswered() {
    for seed in seeds(5) {
        let mut lab = Lab::pair(seed);
        // The peer initiates, and is gone.
        let flow = lab.udp(1, 0, 5);
        lab.send(1, flow, 1, 16);
        lab.run(secs(1));
        lab.up(1, false);
        for _ in 0..170 {
            let flow = lab.udp(0, 1, 5);
            lab.send(0, flow, 1, 16);
            lab.run(secs(1));
        }
        let initiations = lab.tapped(0, ringtun::wire::message::MessageKind::Initiation);
        let gaps: Vec<_> = initiations.windows(2).map(|two| two[1].at.since(two[0].at)).collect();
        assert!(gaps.iter().all(|gap| *gap < REKEY_TIMEOUT + JITTER), "{gaps:?}");
        assert!(initiations.len() >= 28, "from the 15th to the 170th second: {}", initiations.len());
    }
}
