//! Which session a peer is sent to with: one word that all workers read. Only the owner of the session's receiving
//! half publishes it, and whoever first notices the session's end withdraws it.
//!
//! So that no packet leaves that cannot be answered, a session is published only where its receiving half is in
//! place, and withdrawn before that is removed. A session that this device began is published as it is installed. One
//! that it answered is published as the first authentic packet on it arrives, before that packet is delivered (kernel
//! `wg_noise_received_with_keypair`). So whatever worker takes the answer to that packet from the TUN device finds
//! the session there.
//!
//! Reading takes no lock and counts no reference. A session that nobody reads any more is freed, and its key
//! zeroized, when it is replaced.

use crate::noise::session::SendSession;
use crate::time::Instant;
use arc_swap::{ArcSwapOption, Guard};
use std::fmt;
use std::sync::Arc;

/// Where the session is published.
#[derive(Default)]
pub struct Sending(ArcSwapOption<SendSession>);

impl Sending {
    /// The session published at this moment. To be held no longer than a train takes.
    pub fn load(&self) -> Published {
        Published(self.0.load())
    }

    /// Publishes a session whose receiving half this worker has, unless the published one is as young or younger. So
    /// the later handshake wins, whatever order packets arrive in. True where it is published now.
    pub fn publish(&self, session: &Arc<SendSession>) -> bool {
        loop {
            let before = self.0.load();
            if before.as_ref().is_some_and(|before| before.born() >= session.born()) {
                return false;
            }
            let found = self.0.compare_and_swap(&*before, Some(Arc::clone(session)));
            if is_same(&found, &before) {
                return true;
            }
        }
    }

    /// Withdraws the session with this local index, if it is the published one, as its receiving half is about to be
    /// removed.
    pub fn withdraw(&self, local_index: u32) {
        let before = self.0.load();
        if before.as_ref().is_some_and(|session| session.local_index() == local_index) {
            // Where another session took its place meanwhile, that one stays.
            self.0.compare_and_swap(&*before, None);
        }
    }
}

fn is_same(a: &Option<Arc<SendSession>>, b: &Option<Arc<SendSession>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (a, b) => a.is_none() && b.is_none(),
    }
}

impl fmt::Debug for Sending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sending").field(&self.0.load().as_ref().map(|session| session.local_index())).finish()
    }
}

/// The published session, kept from being freed.
pub struct Published(Guard<Option<Arc<SendSession>>>);

impl Published {
    /// The session, if it may still be sent with.
    pub fn usable(&self, now: Instant) -> Option<&SendSession> {
        self.0.as_deref().filter(|session| session.usable(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::session::{Role, SessionKeys};
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

    fn session(local_index: u32, born: u64) -> Arc<SendSession> {
        let (send, receive) = ([1; 32], [2; 32]);
        let keys = SessionKeys { send, receive, local_index, remote_index: 9, role: Role::Responder };
        keys.into_halves(Instant::from_nanos(born)).0
    }

    fn published(sending: &Sending) -> Option<u32> {
        sending.load().usable(Instant::from_nanos(1000)).map(SendSession::local_index)
    }

    #[test]
    fn the_later_handshake_wins_whatever_order_its_packets_come_in() {
        let sending = Sending::default();
        assert_eq!(published(&sending), None);
        assert!(sending.publish(&session(2, 200)));
        assert!(!sending.publish(&session(1, 100)), "an older one");
        assert!(!sending.publish(&session(2, 200)), "itself");
        assert_eq!(published(&sending), Some(2));
        assert!(sending.publish(&session(3, 300)));
        assert_eq!(published(&sending), Some(3));
    }

    #[test]
    fn only_the_published_session_is_withdrawn_and_freed() {
        let sending = Sending::default();
        let only = session(1, 100);
        sending.publish(&only);
        sending.withdraw(7);
        assert_eq!(published(&sending), Some(1));
        sending.withdraw(1);
        assert_eq!(published(&sending), None);
        assert_eq!(Arc::strong_count(&only), 1, "nobody keeps the key");
        sending.withdraw(1);
        sending.publish(&only);
        sending.publish(&session(2, 200));
        assert_eq!(Arc::strong_count(&only), 1, "nor that of a replaced one");
    }

    #[test]
    fn readers_on_other_threads_see_sessions_in_the_order_of_their_birth() {
        let (sending, end) = (Sending::default(), AtomicBool::new(false));
        sending.publish(&session(1, 1));
        std::thread::scope(|scope| {
            let read = || {
                let mut last = 0;
                loop {
                    let ended = end.load(SeqCst);
                    let now = published(&sending).unwrap_or_default();
                    assert!(now >= last, "{now} after {last}");
                    last = now;
                    if ended {
                        return last;
                    }
                }
            };
            let readers = [scope.spawn(read), scope.spawn(read)];
            let writers = [0, 1].map(|odd| {
                let sending = &sending;
                scope.spawn(move || {
                    (1..500).map(|i| 2 * i + odd).for_each(|i| {
                        sending.publish(&session(i, i.into()));
                    });
                })
            });
            let written = writers.map(|writer| writer.join().is_ok());
            end.store(true, SeqCst);
            assert_eq!(written, [true; 2]);
            for reader in readers {
                assert!(reader.join().is_ok_and(|last| last == 999));
            }
        });
    }
}
