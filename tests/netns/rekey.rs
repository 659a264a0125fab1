//! Sessions are renewed after REKEY_AFTER_TIME (120 s), and by a peer that was restarted, without a lost packet, with everyone.

use crate::implementation::Implementation::{self, Boringtun, Gotatun, Kernel, Ringtun, WireguardGo};
use crate::implementation::{Io, RINGTUN, RINGTUN_TWO};
use crate::pair::{A, B, Pair, Side, V4, ping_counts};

/// 5 a second over 135 s: beyond 120 s and the handshake's retries.
const PINGS: u32 = 675;

/// Pings through one pair over the time of a rekey.
fn survives_rekey(a: Implementation, b: Implementation, initiator: Side) {
    let Some(pair) = Pair::new(a, b) else { return };
    pair.configure(V4);
    pair.expect_ping(initiator, V4);
    let latest = |side: Side| pair[side].wg_show("latest-handshakes").parse::<u64>().expect("a time");
    let before = [latest(A), latest(B)];
    let said = pair[A]
        .host
        .start("ping", &["-q", "-i", "0.2", "-c", &PINGS.to_string(), pair[B].inner(V4)])
        .wait_said();
    assert_eq!(ping_counts(&said), (PINGS, PINGS), "{said}{}", pair.tell());
    for (side, before) in [A, B].into_iter().zip(before) {
        if side == B && b == Boringtun {
            // It tells the age where the time is asked for.
            continue;
        }
        let after = latest(side);
        assert!(after >= before + 100, "{side:?}: handshakes at {before} and {after}\n{}", pair.tell());
    }
}

#[test]
fn no_ping_is_lost_while_sessions_are_renewed() {
    let pairs = [
        (RINGTUN, RINGTUN_TWO, A),
        (Ringtun { workers: 2, io: Io::Syscalls }, RINGTUN, B),
        (RINGTUN, WireguardGo, A),
        (RINGTUN_TWO, WireguardGo, B),
        (RINGTUN_TWO, Boringtun, A),
        (RINGTUN, Gotatun, B),
        (RINGTUN, Kernel, A),
        (RINGTUN_TWO, Kernel, B),
    ];
    std::thread::scope(|scope| {
        let run = |(a, b, initiator)| {
            let name = format!("rekey of {a:?} and {b:?}");
            let thread = std::thread::Builder::new().name(name.clone());
            (name, thread.spawn_scoped(scope, move || survives_rekey(a, b, initiator)).expect("a thread"))
        };
        let threads = pairs.map(run);
        let failed = threads.map(|(name, thread)| thread.join().err().map(|_| name));
        let failed: Vec<String> = failed.into_iter().flatten().collect();
        assert!(failed.is_empty(), "{failed:?}");
    });
}

/// Restarts of one client.
const RESTARTS: u32 = 10;

#[test]
fn the_first_reply_to_a_client_that_was_restarted_arrives() {
    for gateway in [RINGTUN, RINGTUN_TWO, Ringtun { workers: 2, io: Io::Syscalls }] {
        let Some(mut pair) = Pair::connected(gateway, RINGTUN) else { return };
        for round in 0..RESTARTS {
            pair.restart(B);
            pair.configure_side(B, Some(V4));
            let target = pair[A].inner(V4);
            if round % 2 == 0 {
                let said = pair[B].host.try_run(&format!("ping -q -c 1 -W 2 {target}"));
                said.unwrap_or_else(|error| panic!("{gateway:?}, restart {round}: {error}\n{}", pair.tell()));
            } else {
                // Nobody listens there: the first reply refuses. Where it is lost, the kernel asks again after a second.
                let retransmitted = "nstat -asz TcpRetransSegs | awk '/TcpRetransSegs/ { print $2 }'";
                let connect = format!("bash -c '< /dev/tcp/{target}/9' 2>&1 || true; {retransmitted}");
                let said = pair[B].host.run(&connect);
                assert!(said.contains("refused"), "{gateway:?}, restart {round}: {said}");
                let again = said.lines().last().map(str::trim);
                assert_eq!(again, Some("0"), "{gateway:?}, restart {round}: {said}\n{}", pair.tell());
            }
        }
    }
}
