//! Tests of `sending.rs`, which the models of `tests/models` include without them.

use super::sending::Sending;
use crate::io::Endpoint;
use crate::noise::session::{Role, SendSession, SessionKeys};
use crate::time::Instant;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

fn session(local_index: u32, born: u64) -> Arc<SendSession> {
    let (send, receive) = ([1; 32], [2; 32]);
    let keys = SessionKeys { send, receive, local_index, remote_index: 9, role: Role::Responder };
    keys.into_halves(Instant::from_nanos(born)).0
}

fn published(sending: &Sending) -> Option<u32> {
    sending.load().session(Instant::from_nanos(1000)).map(SendSession::local_index)
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

fn endpoint(last: u8) -> Endpoint {
    Endpoint { addr: SocketAddr::from(([192, 0, 2, last], 51820)), from: None }
}

#[test]
fn endpoint_and_session_change_apart_from_each_other() {
    let sending = Sending::default();
    sending.set_endpoint(Some(endpoint(1)));
    sending.publish(&session(1, 100));
    sending.set_endpoint(Some(endpoint(2)));
    let now = Instant::from_nanos(1000);
    let ready = |sending: &Sending| {
        sending.load().ready(now).map(|(session, endpoint)| (session.local_index(), endpoint))
    };
    assert_eq!(ready(&sending), Some((1, endpoint(2))));
    sending.publish(&session(2, 200));
    assert_eq!(ready(&sending), Some((2, endpoint(2))));
    sending.withdraw(2);
    assert_eq!((ready(&sending), sending.load().endpoint()), (None, Some(endpoint(2))));
    sending.publish(&session(3, 300));
    sending.set_endpoint(None);
    assert_eq!((ready(&sending), published(&sending)), (None, Some(3)));
}

#[test]
fn what_the_owner_heard_gives_way_to_what_the_slow_path_set_meanwhile() {
    let sending = Sending::default();
    sending.set_endpoint(Some(endpoint(1)));
    let revision = sending.load().revision();
    sending.follow(endpoint(2), revision);
    assert_eq!(sending.load().endpoint(), Some(endpoint(2)));
    sending.set_endpoint(Some(endpoint(3)));
    sending.follow(endpoint(2), revision);
    assert_eq!(sending.load().endpoint(), Some(endpoint(3)));
}

#[test]
fn only_the_source_that_is_gone_is_let_go() {
    let sending = Sending::default();
    let from = Some(crate::io::LocalAddr { ip: [198, 51, 100, 1].into(), interface: 2 });
    let sticky = Endpoint { from, ..endpoint(1) };
    sending.set_endpoint(Some(sticky));
    sending.loosen(Endpoint { from, ..endpoint(2) });
    assert_eq!(sending.load().endpoint(), Some(sticky));
    let before = sending.load().revision();
    sending.loosen(sticky);
    assert_eq!(sending.load().endpoint(), Some(endpoint(1)));
    assert_ne!(sending.load().revision(), before, "what is heard counts anew");
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
