//! Which peer's hooks run next. A peer's own hooks never run at the same time and always end with what the peer is; one that goes
//! up and down while its hooks run or wait has only the last of that told.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;

/// Most peers whose hooks run at a time.
pub(super) const MAX_RUNNING: usize = 4;

/// What is to be told of a peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Transition {
    /// The public key in Base64.
    pub(super) key: String,
    /// Whether the peer is connected.
    pub(super) up: bool,
    /// The peer's endpoint, as it was last known.
    pub(super) endpoint: Option<SocketAddr>,
    /// Why the peer is not connected any more.
    pub(super) reason: Option<String>,
}

/// The peers that are up, and those whose hooks run or wait. It holds no more than there are peers.
#[derive(Default)]
pub(super) struct HookQueue {
    peers: HashMap<String, PeerTurn>,
    waiting: VecDeque<String>,
    running: usize,
}

struct PeerTurn {
    /// Whether its hooks were last run for a connection.
    told_up: bool,
    is: Transition,
    state: TurnState,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum TurnState {
    Idle,
    Waiting,
    Running,
}

impl HookQueue {
    /// Notes what a peer is now.
    pub(super) fn note(&mut self, mut is: Transition) {
        let key = is.key.clone();
        let turn = self.peers.entry(key.clone()).or_insert_with(|| PeerTurn {
            told_up: false,
            is: is.clone(),
            state: TurnState::Idle,
        });
        is.endpoint = is.endpoint.or(turn.is.endpoint);
        turn.is = is;
        self.settle(&key);
    }

    /// Notes which peers are up, of all that there are: those that are not named are down.
    pub(super) fn note_all(&mut self, up: Vec<Transition>) {
        let named: HashMap<&str, ()> = up.iter().map(|is| (is.key.as_str(), ())).collect();
        let gone = self.peers.values().filter(|turn| turn.is.up && !named.contains_key(turn.is.key.as_str()));
        let gone: Vec<Transition> =
            gone.map(|turn| Transition { up: false, reason: None, ..turn.is.clone() }).collect();
        gone.into_iter().chain(up).for_each(|is| self.note(is));
    }

    /// Has a peer wait for its turn where there is something to tell, and forgets one of which there is not.
    fn settle(&mut self, key: &str) {
        let Some(turn) = self.peers.get_mut(key) else { return };
        match turn.state {
            TurnState::Running | TurnState::Waiting => {}
            TurnState::Idle if turn.told_up != turn.is.up => {
                turn.state = TurnState::Waiting;
                self.waiting.push_back(key.to_owned());
            }
            TurnState::Idle if !turn.is.up => drop(self.peers.remove(key)),
            TurnState::Idle => {}
        }
    }

    /// The next peer whose hooks are to be run now. [`Self::done`] is to be called when they have.
    pub(super) fn next(&mut self) -> Option<Transition> {
        while self.running < MAX_RUNNING {
            let key = self.waiting.pop_front()?;
            let Some(turn) = self.peers.get_mut(&key) else { continue };
            if turn.told_up == turn.is.up {
                // It is again what was told of it.
                turn.state = TurnState::Idle;
                self.settle(&key);
                continue;
            }
            turn.told_up = turn.is.up;
            turn.state = TurnState::Running;
            self.running += 1;
            return Some(turn.is.clone());
        }
        None
    }

    /// Notes that a peer's hooks have run.
    pub(super) fn done(&mut self, key: &str) {
        self.running = self.running.saturating_sub(1);
        if let Some(turn) = self.peers.get_mut(key) {
            turn.state = TurnState::Idle;
        }
        self.settle(key);
    }

    /// How many peers' hooks run.
    pub(super) fn running(&self) -> usize {
        self.running
    }

    /// How many peers' hooks run or wait.
    pub(super) fn unfinished(&self) -> usize {
        self.running + self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn is(key: usize, up: bool) -> Transition {
        Transition { key: key.to_string(), up, endpoint: None, reason: None }
    }

    #[test]
    fn no_more_than_a_few_run_at_a_time_and_the_rest_wait_in_order() {
        let mut queue = HookQueue::default();
        (0..10).for_each(|key| queue.note(is(key, true)));
        let running: Vec<String> = std::iter::from_fn(|| queue.next()).map(|next| next.key).collect();
        assert_eq!(running, ["0", "1", "2", "3"]);
        queue.done("2");
        assert_eq!((queue.next().unwrap().key, queue.next()), ("4".to_owned(), None));
        assert_eq!(queue.unfinished(), 9);
    }

    #[test]
    fn a_peer_that_flaps_while_its_hooks_run_has_the_last_of_it_told() {
        let mut queue = HookQueue::default();
        queue.note(is(0, true));
        assert!(queue.next().unwrap().up);
        for up in [false, true, false] {
            queue.note(is(0, up));
        }
        assert_eq!(queue.next(), None, "not at the same time");
        queue.done("0");
        assert!(!queue.next().unwrap().up);
        queue.done("0");
        assert_eq!((queue.next(), queue.unfinished(), queue.peers.len()), (None, 0, 0));
    }

    #[test]
    fn those_that_are_named_no_more_are_down_with_the_endpoint_that_they_had() {
        let mut queue = HookQueue::default();
        let endpoint = Some("192.0.2.1:7".parse().unwrap());
        queue.note_all(vec![Transition { endpoint, ..is(0, true) }, is(1, true)]);
        while let Some(next) = queue.next() {
            queue.done(&next.key);
        }
        queue.note_all(vec![is(1, true)]);
        assert_eq!(queue.next(), Some(Transition { endpoint, ..is(0, false) }));
        assert_eq!(queue.next(), None);
    }

    proptest! {
        /// Whatever happens, in the end each peer's last hooks say what it is, and they came in turns.
        #[test]
        fn in_the_end_what_was_told_is_what_is(steps in prop::collection::vec((0..6_usize, any::<bool>(), any::<bool>()), 0..200)) {
            let mut queue = HookQueue::default();
            let mut running: Vec<String> = Vec::new();
            let (mut told, mut truth) = (HashMap::new(), HashMap::new());
            for (key, up, finish) in steps {
                queue.note(is(key, up));
                truth.insert(key.to_string(), up);
                while let Some(next) = queue.next() {
                    prop_assert!(!running.contains(&next.key));
                    prop_assert_ne!(told.insert(next.key.clone(), next.up).unwrap_or(false), next.up);
                    running.push(next.key);
                }
                prop_assert!(running.len() <= MAX_RUNNING);
                if finish && !running.is_empty() {
                    queue.done(&running.remove(0));
                }
            }
            while queue.unfinished() > 0 {
                while let Some(next) = queue.next() {
                    told.insert(next.key.clone(), next.up);
                    running.push(next.key);
                }
                if !running.is_empty() {
                    queue.done(&running.remove(0));
                }
            }
            for (key, up) in truth {
                prop_assert_eq!(told.get(&key).copied().unwrap_or(false), up, "{}", key);
            }
            prop_assert!(queue.peers.values().all(|turn| turn.is.up), "those that are down are forgotten");
        }
    }
}
