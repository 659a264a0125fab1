//! ringtun with itself and with every other implementation, in both roles.

use crate::implementation::Implementation::{Boringtun, Gotatun, Kernel, Ringtun, WireguardGo};
use crate::implementation::{Implementation, Io, RINGTUN, RINGTUN_TWO};
use crate::lab::sh;
use crate::pair::{A, B, Family, Pair, Side, V4, V6};
use std::time::Duration;

/// A side that lost its session hears of it at the latest when the other has waited KEEPALIVE_TIMEOUT + REKEY_TIMEOUT
/// (15 s, whitepaper 6.5) for an answer and shakes hands anew, up to REKEY_TIMEOUT later.
const RECOVERY: Duration = Duration::from_secs(30);

/// Everything two implementations must agree on.
fn interoperate(a: Implementation, b: Implementation) {
    let Some(mut pair) = Pair::new(a, b) else { return };
    for outer in [V4, V6] {
        for initiator in [A, B] {
            shake_hands(&mut pair, outer, initiator);
        }
    }
    pair.psk = Some(sh("wg genpsk").expect("wg genpsk").trim().to_owned());
    for initiator in [A, B] {
        shake_hands(&mut pair, V4, initiator);
    }
    for inner in [V4, V6] {
        for options in ["-t 2", "-t 2 -R"] {
            let said = pair.iperf3(inner, options);
            assert!(said.contains("receiver"), "iperf3 {options}: {said}");
        }
    }
    for side in [A, B] {
        roams(&mut pair, side);
    }
    for side in [A, B] {
        recovers_from_restart(&mut pair, side);
    }
}

/// Fresh devices; only the initiator knows where the other is, and it pings first.
fn shake_hands(pair: &mut Pair, outer: Family, initiator: Side) {
    for side in [A, B] {
        pair.restart(side);
    }
    pair.configure_side(initiator.other(), None);
    pair.configure_side(initiator, Some(outer));
    pair.expect_ping(initiator, V4);
    pair.expect_ping(initiator, V6);
    pair.expect_ping(initiator.other(), V6);
    let learnt = pair[initiator.other()].wg_show("endpoints");
    assert_eq!(learnt, pair[initiator].endpoint(outer), "{}", pair.tell());
}

/// A side that moves to another address and port is followed by its peer once it has spoken.
fn roams(pair: &mut Pair, side: Side) {
    pair.roam(side);
    if let Err(error) = pair.ping(side, V4, RECOVERY) {
        panic!("{side:?} moved: {error}\n{}", pair.tell());
    }
    pair.expect_ping(side.other(), V4);
    assert_eq!(pair[side.other()].wg_show("endpoints"), pair[side].endpoint(V4), "{}", pair.tell());
}

/// A side that starts anew is reached again, whichever side speaks first.
fn recovers_from_restart(pair: &mut Pair, side: Side) {
    for first in [side, side.other()] {
        pair.restart(side);
        pair.configure_side(side, Some(V4));
        if let Err(error) = pair.ping(first, V4, RECOVERY) {
            panic!("{side:?} restarted, {first:?} speaks: {error}\n{}", pair.tell());
        }
    }
}

#[test]
fn ringtun_with_itself_over_io_uring() {
    interoperate(RINGTUN, RINGTUN);
}

#[test]
fn ringtun_with_itself_over_plain_syscalls() {
    let syscalls = |workers| Ringtun { workers, io: Io::Syscalls };
    interoperate(syscalls(1), syscalls(2));
}

#[test]
fn ringtun_on_two_workers_with_one_over_plain_syscalls() {
    interoperate(RINGTUN_TWO, Ringtun { workers: 1, io: Io::Syscalls });
}

#[test]
fn ringtun_on_two_workers_with_itself() {
    interoperate(RINGTUN_TWO, RINGTUN_TWO);
}

#[test]
fn ringtun_with_wireguard_go() {
    interoperate(RINGTUN, WireguardGo);
}

#[test]
fn ringtun_on_two_workers_with_wireguard_go() {
    interoperate(RINGTUN_TWO, WireguardGo);
}

#[test]
fn ringtun_with_boringtun() {
    interoperate(RINGTUN_TWO, Boringtun);
}

#[test]
fn ringtun_with_gotatun() {
    interoperate(RINGTUN, Gotatun);
}

#[test]
fn ringtun_with_the_kernel() {
    interoperate(RINGTUN_TWO, Kernel);
}
