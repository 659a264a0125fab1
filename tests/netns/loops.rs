//! An endpoint whose route leads back into the tunnel.

use crate::implementation::{Implementation, Io, RINGTUN_TWO};
use crate::lab::eventually;
use crate::pair::{A, B, Family, Pair, V4, V6};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(15);

/// Packets that the kernel handed to A's device.
fn into_the_tunnel(pair: &Pair) -> u64 {
    let read = pair[A].host.run(&format!("cat /sys/class/net/{}/statistics/tx_packets", pair[A].name()));
    read.trim().parse().expect("a number")
}

fn is_dropped_and_told_once_until_the_route_is_mended(implementation: Implementation, outer: Family) {
    let Some(pair) = Pair::new(implementation, implementation) else { return };
    let (name, endpoint) = (pair[A].name().to_owned(), pair[B].endpoint(outer));
    let host = endpoint.rsplit_once(':').expect("a port").0.trim_matches(['[', ']']).to_owned();
    let length = if outer == V4 { 32 } else { 128 };
    let misroute = |verb: &str| {
        let family = if outer == V4 { "-4" } else { "-6" };
        pair[A].host.run(&format!("ip {family} route {verb} {host}/{length} dev {name}"));
    };
    pair.configure(outer);
    pair[A].host.run(&format!(
        "wg set {name} peer {} allowed-ips {}/32,{}/128,{host}/{length}",
        pair[B].public,
        pair[B].inner(V4),
        pair[B].inner(V6)
    ));
    let loops = |what: &str| {
        let before = into_the_tunnel(&pair);
        assert!(pair.ping(A, V4, Duration::from_secs(3)).is_err(), "{what}: no route leads there");
        let count = into_the_tunnel(&pair) - before;
        assert!(count < 60, "{what}: {count} packets of three pings");
    };
    let told = || {
        let said =
            pair[A].device.as_ref().and_then(|device| device.process.as_ref()).expect("a process").said();
        said.lines().filter(|line| line.contains("routing loop") && line.contains(&endpoint)).count()
    };
    misroute("add");
    loops("without a session");
    eventually("it is told", SOON, || told() == 1);
    misroute("del");
    pair.expect_ping(A, V4);
    misroute("add");
    loops("with a session");
    misroute("del");
    pair.expect_ping(A, V6);
    assert_eq!(told(), 1, "{}", pair.tell());
    let counted =
        pair[A].host.run(&format!("{} status {name} --all", crate::implementation::ringtun().display()));
    assert!(counted.contains("tx_looped"), "{counted}");
}

#[test]
fn a_routing_loop_over_ipv4_is_dropped_and_told_once_until_the_route_is_mended() {
    is_dropped_and_told_once_until_the_route_is_mended(RINGTUN_TWO, V4);
}

#[test]
fn a_routing_loop_over_ipv6_is_dropped_and_told_once_until_the_route_is_mended() {
    let implementation = Implementation::Ringtun { workers: 1, io: Io::Syscalls };
    is_dropped_and_told_once_until_the_route_is_mended(implementation, V6);
}
