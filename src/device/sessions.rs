//! How a peer's sessions follow each other (kernel `noise.c`: `add_new_keypair`, `wg_noise_received_with_keypair`).
//!
//! The kernel keeps three sessions. The current one sends; the next one was answered and waits for the initiator's
//! first packet; the previous one goes on receiving until the next handshake, even if the other end still sends on
//! it.
//!
//! Here every session receives until it is too old, within bounds. The current one is, as in the kernel, the youngest
//! that both ends are known to have.

use crate::noise::REJECT_AFTER_TIME;
use crate::noise::session::{Role, SendSession};
use crate::time::Instant;
use std::sync::Arc;
use std::time::Duration;

/// Answered sessions that may wait for the initiator's first packet; a further one takes the place of the oldest. The
/// kernel keeps one. Here packets of an earlier one, delayed on their way, are delivered, too.
const MAX_WAITING: usize = 3;
/// Sessions that both ends are known to have, the current one among them. A further one takes the place of the oldest
/// of the others.
const MAX_SHARED: usize = 4;

/// A session that receives.
struct Live {
    index: u32,
    born: Instant,
    /// Whether both ends are known to have it.
    shared: bool,
    /// The sending half, as long as it may become the current one.
    send: Option<Arc<SendSession>>,
}

/// A session that another process had.
pub(super) struct RestoredLive {
    pub(super) index: u32,
    pub(super) born: Instant,
    /// Whether both ends are known to have it.
    pub(super) shared: bool,
    /// The sending half, of the current one or of one that may become it.
    pub(super) send: Option<Arc<SendSession>>,
}

/// A peer's sessions.
#[derive(Default)]
pub(super) struct Sessions {
    /// The sessions in the order of their birth.
    live: Vec<Live>,
    current: Option<Arc<SendSession>>,
}

impl Sessions {
    /// The index of the session that sends.
    pub(super) fn current(&self) -> Option<&Arc<SendSession>> {
        self.current.as_ref()
    }

    /// Every session: its index, when it was born, whether both ends are known to have it, and the sending half, of the current one
    /// or of one that may become it.
    pub(super) fn parts(&self) -> impl Iterator<Item = (u32, Instant, bool, Option<&Arc<SendSession>>)> {
        self.live.iter().map(|live| {
            let current = self.current.as_ref().filter(|current| current.local_index() == live.index);
            (live.index, live.born, live.shared, live.send.as_ref().or(current))
        })
    }

    /// Takes in the sessions of another process, in the order of their birth, of which the one with the index `current` sends. False
    /// where there cannot be such sessions.
    pub(super) fn restore(&mut self, sessions: Vec<RestoredLive>, current: Option<u32>) -> bool {
        let in_order = sessions.windows(2).all(|pair| pair[0].born < pair[1].born);
        let within = |shared, most| sessions.iter().filter(|live| live.shared == shared).count() <= most;
        if !in_order || !within(false, MAX_WAITING) || !within(true, MAX_SHARED) {
            return false;
        }
        for RestoredLive { index, born, shared, send } in sessions {
            let send = match Some(index) == current {
                true => {
                    self.current = send.filter(|_| shared);
                    None
                }
                // One that both ends have, and that does not send, will not any more.
                false => send.filter(|_| !shared),
            };
            self.live.push(Live { index, born, shared, send });
        }
        self.current_index() == current
    }

    /// When the youngest session was made that waits for the initiator's first packet. A response was sent then.
    pub(super) fn answered(&self) -> Option<Instant> {
        self.live.iter().rev().find(|live| live.send.is_some()).map(|live| live.born)
    }

    /// The time of birth for a session that is made now. No two of a peer are born at once, so that the order of
    /// birth is that of the handshakes.
    pub(super) fn birth(&self, now: Instant) -> Instant {
        self.live.last().map_or(now, |last| now.max(last.born + Duration::from_nanos(1)))
    }

    /// Adds a session whose birth is what [`Self::birth`] said. Returns the indices of those that were removed for
    /// it.
    ///
    /// As the initiator, this end has received the response, so both ends have the session, and it sends at once. As
    /// the responder, it waits for the first packet.
    pub(super) fn install(&mut self, new: Arc<SendSession>) -> Vec<u32> {
        let shared = new.role() == Role::Initiator;
        let (index, born) = (new.local_index(), new.born());
        self.live.push(Live { index, born, shared, send: Some(new) });
        if shared {
            self.take_effect(index);
        }
        self.bound()
    }

    /// Removes the sessions beyond the bounds.
    fn bound(&mut self) -> Vec<u32> {
        let mut freed = Vec::new();
        for (shared, most) in [(false, MAX_WAITING), (true, MAX_SHARED)] {
            while self.live.iter().filter(|live| live.shared == shared).count() > most {
                let current = self.current_index();
                let oldest =
                    self.live.iter().position(|live| live.shared == shared && Some(live.index) != current);
                let Some(oldest) = oldest else { break };
                freed.push(self.live.remove(oldest).index);
            }
        }
        freed
    }

    /// Notes that the initiator used a session that this end answered. Returns whether it sends from now on, which it
    /// does not where a younger one does, and the indices of those that were removed.
    pub(super) fn confirm(&mut self, index: u32) -> (bool, Vec<u32>) {
        let Some(live) = self.live.iter_mut().find(|live| live.index == index && !live.shared) else {
            return (false, Vec::new());
        };
        live.shared = true;
        (self.take_effect(index), self.bound())
    }

    /// Makes a session the current one, unless the current one is younger.
    fn take_effect(&mut self, index: u32) -> bool {
        let Some(live) = self.live.iter_mut().find(|live| live.index == index) else { return false };
        let Some(send) = live.send.take() else { return false };
        let born = send.born();
        self.current = Some(send);
        // What is older will not send any more.
        for older in self.live.iter_mut().filter(|live| live.born < born) {
            older.send = None;
        }
        true
    }

    /// Removes the sessions that no longer receive because of their age. The current session stays: the workers heed
    /// its age, until it is replaced or all keys are zeroed.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<u32> {
        let current = self.current_index();
        let dead = |live: &mut Live| Some(live.index) != current && now.since(live.born) >= REJECT_AFTER_TIME;
        self.live.extract_if(.., dead).map(|live| live.index).collect()
    }

    /// When [`Self::expire`] has something to do.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        let current = self.current_index();
        let oldest = self.live.iter().find(|live| Some(live.index) != current);
        oldest.map(|live| live.born + REJECT_AFTER_TIME)
    }

    /// Removes all sessions.
    pub(super) fn clear(&mut self) -> Vec<u32> {
        std::mem::take(self).live.into_iter().map(|live| live.index).collect()
    }

    fn current_index(&self) -> Option<u32> {
        self.current.as_ref().map(|current| current.local_index())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::session::SessionKeys;
    use proptest::prelude::*;

    fn session(index: u32, role: Role, born: Instant) -> Arc<SendSession> {
        let (send, receive) = ([1; 32], [2; 32]);
        SessionKeys { send, receive, local_index: index, remote_index: 0, role }.into_halves(born).0
    }

    /// The kernel's three keypairs and what it does with them, by index.
    #[derive(Default, Debug)]
    struct KernelModel {
        previous: Option<u32>,
        current: Option<u32>,
        next: Option<u32>,
    }

    impl KernelModel {
        /// `add_new_keypair`.
        fn add(&mut self, index: u32, role: Role) {
            match role {
                Role::Initiator => {
                    self.previous = self.next.take().or(self.current);
                    self.current = Some(index);
                }
                Role::Responder => (self.previous, self.next) = (None, Some(index)),
            }
        }

        /// `wg_noise_received_with_keypair`.
        fn received(&mut self, index: u32) {
            if self.next == Some(index) {
                (self.previous, self.current, self.next) = (self.current, self.next, None);
            }
        }

        fn all(&self) -> impl Iterator<Item = u32> {
            [self.previous, self.current, self.next].into_iter().flatten()
        }
    }

    /// What happens to the sessions.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Initiated,
        Answered,
        /// A packet comes on one of those that the kernel would still have.
        Received(prop::sample::Index),
        Pause(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            Just(Step::Initiated),
            Just(Step::Answered),
            any::<prop::sample::Index>().prop_map(Step::Received),
            (0..20_u64).prop_map(Step::Pause),
        ];
        prop::collection::vec(step, 0..60)
    }

    proptest! {
        /// Whatever order handshakes and packets come in: what the kernel would open opens, and what it would send with sends.
        #[test]
        fn nothing_is_forgotten_that_the_kernel_would_keep(steps in steps()) {
            let (mut sessions, mut kernel) = (Sessions::default(), KernelModel::default());
            let mut births: Vec<Instant> = Vec::new();
            let mut now = Instant::START;
            for step in steps {
                match step {
                    Step::Initiated | Step::Answered => {
                        let initiated = matches!(step, Step::Initiated);
                        let role = if initiated { Role::Initiator } else { Role::Responder };
                        let (index, born) = (births.len() as u32, sessions.birth(now));
                        prop_assert!(births.last().is_none_or(|last| *last < born));
                        births.push(born);
                        sessions.install(session(index, role, born));
                        kernel.add(index, role);
                    }
                    Step::Received(which) => {
                        let kept: Vec<u32> = kernel.all().collect();
                        if kept.is_empty() {
                            continue;
                        }
                        let index = *which.get(&kept);
                        sessions.confirm(index);
                        kernel.received(index);
                    }
                    Step::Pause(seconds) => {
                        now = now + Duration::from_secs(seconds);
                        sessions.expire(now);
                    }
                }
                prop_assert_eq!(sessions.current_index(), kernel.current, "{:?}", kernel);
                prop_assert!(sessions.live.len() <= MAX_WAITING + MAX_SHARED);
                for index in kernel.all() {
                    let live = sessions.live.iter().any(|live| live.index == index);
                    let dead = now.since(births[index as usize]) >= REJECT_AFTER_TIME;
                    prop_assert!(live || dead, "{index} of {kernel:?}");
                }
            }
            let live = sessions.live.len();
            prop_assert_eq!(sessions.clear().len(), live);
            prop_assert!(sessions.live.is_empty() && sessions.current().is_none());
        }
    }

    #[test]
    fn a_session_that_the_peer_may_still_send_on_outlives_the_next_handshakes() {
        let mut sessions = Sessions::default();
        let at = |seconds| Instant::START + Duration::from_secs(seconds);
        sessions.install(session(1, Role::Initiator, at(0)));
        for (index, role) in [(2, Role::Responder), (3, Role::Initiator), (4, Role::Responder)] {
            assert!(sessions.install(session(index, role, at(index.into()))).is_empty());
        }
        assert_eq!(sessions.next_expiry(), Some(at(180)));
        assert!(sessions.expire(at(179)).is_empty());
        assert_eq!(sessions.expire(at(182)), [1, 2]);
        assert_eq!(sessions.expire(at(500)), [4], "the current one stays");
    }

    #[test]
    fn answers_that_nobody_uses_leave_the_sessions_in_use_alone() {
        let mut sessions = Sessions::default();
        let at = |millis: u64| Instant::START + Duration::from_millis(millis);
        for index in 0..3 {
            sessions.install(session(index, Role::Initiator, at(index.into())));
        }
        let freed: Vec<u32> = (3..50)
            .flat_map(|index| sessions.install(session(index, Role::Responder, at(index.into()))))
            .collect();
        assert_eq!(freed, (3..47).collect::<Vec<_>>());
        assert_eq!(sessions.answered(), Some(at(49)));
        assert_eq!(sessions.confirm(48), (true, vec![]));
        assert_eq!(sessions.confirm(49), (true, vec![0]), "the later handshake wins");
        for (index, why) in [(47, "older"), (49, "twice"), (1, "ours"), (5, "gone")] {
            assert!(!sessions.confirm(index).0, "{why}");
        }
        assert_eq!((sessions.current_index(), sessions.answered()), (Some(49), None));
    }
}
