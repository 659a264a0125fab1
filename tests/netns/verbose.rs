//! What the log says at the level `verbose`: what became of handshakes, and why.

use crate::implementation::{Hindrance, Implementation, ringtun_itself};
use crate::lab::eventually;
use crate::pair::{A, B, Pair, Side, V4, key_pair};
use std::time::Duration;

static VERBOSE: Hindrance = Hindrance { behind: &["env", "LOG_LEVEL=verbose"], options: &["--workers", "1"] };
/// Longer than a handshake is tried again.
const SOON: Duration = Duration::from_secs(12);

fn pair() -> Option<Pair> {
    let verbose = Implementation::Hindered(&VERBOSE);
    ringtun_itself().then(|| Pair::new(verbose, verbose))?
}

/// Waits until the log of one side has a line about the other's key with these words.
#[track_caller]
fn expect(pair: &Pair, side: Side, words: &str) {
    let said = || {
        pair[side].device.as_ref().and_then(|device| device.process.as_ref()).map(|process| process.said())
    };
    eventually(&format!("{side:?} says {words}"), SOON, || {
        said().unwrap_or_default().lines().any(|line| line.contains("debug: ") && line.contains(words))
    });
}

#[test]
fn a_handshake_is_told_at_both_ends_with_the_abbreviated_key() {
    let Some(pair) = pair() else { return };
    pair.configure(V4);
    pair.expect_ping(A, V4);
    let (to_a, to_b) = (pair[A].endpoint(V4), pair[B].endpoint(V4));
    let key = |side: Side| format!("peer({}…{})", &pair[side].public[..4], &pair[side].public[39..43]);
    expect(&pair, A, &format!("{}: initiation sent to {to_b}", key(B)));
    expect(&pair, B, &format!("{}: initiation from {to_a} answered", key(A)));
    expect(&pair, A, &format!("{}: response from {to_b} received: the session is ready", key(B)));
    expect(&pair, B, &format!("{}: the session is ready: the peer uses it", key(A)));
}

#[test]
fn preshared_keys_that_differ_are_named_at_both_ends() {
    let Some(mut pair) = pair() else { return };
    pair.configure_side(B, None);
    pair.psk = Some(key_pair().0);
    pair.configure_side(A, Some(V4));
    assert!(pair.ping(A, V4, Duration::from_secs(7)).is_err());
    expect(&pair, A, "refused: it does not authenticate (do the preshared keys of both ends agree?)");
    expect(&pair, B, "either answers do not arrive there, or the preshared keys differ");
}

#[test]
fn strangers_are_named_by_key_and_address() {
    let Some(mut pair) = pair() else { return };
    pair.configure_side(A, Some(V4));
    let known = std::mem::replace(&mut pair[A].public, key_pair().1);
    pair.configure_side(B, None);
    assert!(pair.ping(A, V4, Duration::from_secs(1)).is_err());
    let from = pair[A].endpoint(V4);
    expect(&pair, B, &format!("initiation from {from} refused: {known} is no peer's public key"));
}
