//! How a peer is sent to (`src/dataplane/sending.rs`, which is explored itself, over a stand-in for arc-swap): what the owner, the
//! slow path and other workers change at once.

use crate::sending::Sending;
use loom::thread;
use ringtun::io::Endpoint;
use ringtun::noise::session::{Role, SendSession, SessionKeys};
use ringtun::time::Instant;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};

/// Sessions whose local indices are also the order of their births. They are made before the model runs: its threads have too small
/// a stack for that.
static SESSIONS: LazyLock<[Arc<SendSession>; 4]> = LazyLock::new(|| {
    [0, 1, 2, 3].map(|index| {
        let (send, receive) = ([1; 32], [2; 32]);
        let keys = SessionKeys { send, receive, local_index: index, remote_index: 9, role: Role::Responder };
        keys.into_halves(Instant::from_nanos(index.into())).0
    })
});

fn session(index: usize) -> Arc<SendSession> {
    Arc::clone(&SESSIONS[index])
}

fn endpoint(last: u8) -> Endpoint {
    Endpoint { addr: SocketAddr::from(([192, 0, 2, last], 51820)), from: None }
}

fn published(sending: &Sending) -> Option<u32> {
    sending.load().session(Instant::from_nanos(1000)).map(SendSession::local_index)
}

/// Explores two threads beside this one, and then looks at what came of it.
fn explore<T: 'static>(
    one: fn(&Sending) -> T,
    other: fn(&Sending) -> T,
    here: fn(&Sending) -> T,
    then: fn(&Sending, [T; 3]),
) {
    LazyLock::force(&SESSIONS);
    loom::model(move || {
        let sending = loom::sync::Arc::new(Sending::default());
        let others = [one, other].map(|act| {
            let sending = loom::sync::Arc::clone(&sending);
            thread::spawn(move || act(&sending))
        });
        let third = here(&sending);
        let [first, second] = others.map(|other| other.join().expect("it ends"));
        then(&sending, [first, second, third]);
    });
}

#[test]
fn the_later_handshake_wins_and_no_reader_sees_it_go_back() {
    explore(
        |sending| {
            sending.publish(&session(1));
            sending.publish(&session(3));
            Vec::new()
        },
        |sending| {
            sending.publish(&session(2));
            Vec::new()
        },
        |sending| (0..2).map(|_| published(sending)).collect(),
        |sending, [.., seen]| {
            assert!(seen.is_sorted(), "{seen:?}");
            assert_eq!(published(sending), Some(3));
        },
    );
}

#[test]
fn a_session_that_is_withdrawn_takes_no_younger_one_along() {
    explore(
        |sending| {
            sending.publish(&session(1));
            sending.withdraw(1);
        },
        |sending| {
            sending.publish(&session(2));
        },
        |sending| sending.set_endpoint(Some(endpoint(1))),
        |sending, _| {
            assert_eq!(published(sending), Some(2));
            assert_eq!(sending.load().endpoint(), Some(endpoint(1)), "whatever else changed");
        },
    );
}

#[test]
fn what_the_slow_path_sets_is_not_overwritten_by_what_was_heard_before() {
    explore(
        |sending| {
            let revision = sending.load().revision();
            sending.follow(endpoint(7), revision);
            revision
        },
        |sending| {
            sending.set_endpoint(Some(endpoint(1)));
            0
        },
        |sending| {
            sending.publish(&session(1));
            0
        },
        |sending, [revision, ..]| {
            let last = if revision == 0 { 1 } else { 7 };
            assert_eq!(sending.load().endpoint(), Some(endpoint(last)));
            assert_eq!(published(sending), Some(1));
        },
    );
}

#[test]
fn a_source_that_is_gone_is_let_go_of_once_and_no_other_endpoint_with_it() {
    explore(
        |sending| sending.set_endpoint(Some(endpoint(1))),
        |sending| sending.loosen(endpoint(1)),
        |sending| sending.set_endpoint(Some(endpoint(2))),
        |sending, _| {
            let revision = sending.load().revision();
            assert!((2..=3).contains(&revision), "{revision}: each change counts");
            assert!([Some(endpoint(1)), Some(endpoint(2))].contains(&sending.load().endpoint()));
        },
    );
}
