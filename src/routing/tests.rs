//! Tables beside a list of routes.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn table(routes: &[(&str, u32)]) -> RouteTable {
    RouteTable::build(routes.iter().map(|&(text, owner)| (prefix(text), owner)))
}

/// Routes, each with its owner.
type List = Vec<(Prefix, u32)>;

/// The oracle: every prefix is tried; the last of the longest wins.
fn linear(routes: &[(Prefix, u32)], addr: IpAddr) -> Option<u32> {
    let held = routes.iter().filter(|(prefix, _)| prefix.contains(addr));
    held.max_by_key(|(prefix, _)| prefix.len()).map(|&(_, owner)| owner)
}

#[test]
fn host_bits_are_cleared() {
    assert_eq!(prefix("10.1.2.3/8").to_string(), "10.0.0.0/8");
    assert_eq!(prefix("10.1.2.3/0").to_string(), "0.0.0.0/0");
    assert_eq!(prefix("fd00::1:2:3/17").to_string(), "fd00::/17");
    assert_eq!(prefix("ffff::1/0").to_string(), "::/0");
}

#[test]
fn bare_address_is_one_host() {
    assert_eq!(prefix("10.1.2.3").to_string(), "10.1.2.3/32");
    assert_eq!(prefix("fd00::1").to_string(), "fd00::1/128");
}

#[test]
fn malformed_text_is_refused() {
    for text in [
        "",
        "/",
        "10.0.0.0/",
        "10.0.0.0/33",
        "::/129",
        "10.0.0/8",
        "10.0.0.0/+8",
        "10.0.0.0/8/8",
        " ::/0",
        "::/256",
    ] {
        assert_eq!(text.parse::<Prefix>(), Err(ParsePrefixError), "{text:?}");
    }
    assert_eq!(Prefix::new(Ipv4Addr::LOCALHOST.into(), 33), None);
}

#[test]
fn longest_prefix_wins_and_families_are_apart() {
    let t =
        table(&[("0.0.0.0/0", 1), ("10.0.0.0/8", 2), ("10.1.0.0/16", 3), ("10.1.1.1", 4), ("fd00::/8", 5)]);
    let look = |text: &str| t.lookup(text.parse().unwrap());
    assert_eq!(look("192.0.2.1"), Some(1));
    assert_eq!(look("10.2.0.1"), Some(2));
    assert_eq!(look("10.1.0.1"), Some(3));
    assert_eq!(look("10.1.1.1"), Some(4));
    assert_eq!(look("fd12::1"), Some(5));
    assert_eq!(look("2001:db8::1"), None);
    assert_eq!(look("::ffff:10.1.1.1"), None);
}

#[test]
fn duplicate_goes_to_its_last_owner() {
    let t = table(&[("10.0.0.0/8", 1), ("10.9.9.9/8", 2)]);
    assert_eq!(t.lookup("10.0.0.1".parse().unwrap()), Some(2));
}

#[test]
fn empty_table_holds_nothing() {
    let t = RouteTable::default();
    assert_eq!(t.lookup("10.0.0.1".parse().unwrap()), None);
    assert_eq!(RouteWriter::default().memory(), 0);
}

/// A writer of these routes.
fn writer(routes: impl IntoIterator<Item = (Prefix, u32)>) -> RouteWriter {
    let mut writer = RouteWriter::default();
    writer.change(routes.into_iter().map(|(prefix, owner)| (prefix, Some(owner))));
    writer
}

#[test]
fn few_routes_take_few_bytes() {
    let few = [("10.0.0.1", 0), ("10.0.0.2", 1), ("fd00::1", 0), ("fd00::2", 1)];
    assert!(writer(few.map(|(text, owner)| (prefix(text), owner))).memory() < 4096);
}

#[test]
fn sparse_hosts_take_no_chain_of_nodes() {
    // Two neighbours in each of 4,096 /64s that differ in scattered bits.
    let network =
        |i: u128| (0x2001 << 112) | ((i.wrapping_mul(0x9e37_79b9_7f4a_7c15) & 0xffff_ffff_ffff) << 64);
    let hosts = (0..8192).map(|i| Ipv6Addr::from_bits(network(i / 2) | (i % 2)));
    let memory = writer(hosts.map(|host| (Prefix::from(IpAddr::from(host)), 0))).memory();
    assert!(memory < 8192 * 64, "{memory} bytes");
}

/// Addresses from a narrow range, so that prefixes nest and lookups hit, and from everywhere.
fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|bits| Ipv4Addr::from_bits(bits).into()),
        (0u32..64, 0u32..4).prop_map(|(high, low)| Ipv4Addr::from_bits(0x0a00_0000 | high << 8 | low).into()),
        any::<u128>().prop_map(|bits| Ipv6Addr::from_bits(bits).into()),
        (0u128..8, 0u128..8, 0u128..8)
            .prop_map(|(a, b, c)| Ipv6Addr::from_bits((0xfd << 120) | (a << 90) | (b << 61) | c).into()),
    ]
}

fn route() -> impl Strategy<Value = (Prefix, u32)> {
    (address(), 0u8..=128, 0u32..100).prop_map(|(addr, len, owner)| {
        let len = if addr.is_ipv4() { len % 33 } else { len };
        (Prefix::new(addr, len).unwrap(), owner)
    })
}

/// Addresses that share many bits, so that all kinds of nodes turn into each other.
fn near_address() -> impl Strategy<Value = IpAddr> {
    let v4 =
        (0u32..4, 0u32..4, 0u32..64).prop_map(|(a, b, c)| Ipv4Addr::from_bits(a << 30 | b << 13 | c).into());
    let v6 = (0u128..4, 0u128..4, 0u128..64)
        .prop_map(|(a, b, c)| Ipv6Addr::from_bits(a << 126 | b << 60 | c).into());
    prop_oneof![v4, v6]
}

fn near_prefix() -> impl Strategy<Value = Prefix> {
    (near_address(), any::<prop::sample::Index>()).prop_map(|(addr, len)| {
        let longest = if addr.is_ipv4() { 33 } else { 129 };
        Prefix::new(addr, len.index(longest) as u8).unwrap()
    })
}

/// Some changes, and whether somebody keeps the table after them.
fn changes() -> impl Strategy<Value = (Vec<(Prefix, Option<u32>)>, bool)> {
    (prop::collection::vec((near_prefix(), prop::option::of(0u32..9)), 1..5), any::<bool>())
}

proptest! {
    #[test]
    fn lookup_agrees_with_a_linear_scan(
        routes in prop::collection::vec(route(), 0..120),
        addrs in prop::collection::vec(address(), 0..60),
    ) {
        let t = RouteTable::build(routes.iter().copied());
        // Also the first address of, and those just before and after, each prefix.
        let edges = routes.iter().flat_map(|(prefix, _)| match prefix.addr() {
            IpAddr::V4(v4) => [-1, 0, 1].map(|d| IpAddr::from(Ipv4Addr::from_bits(v4.to_bits().wrapping_add_signed(d)))),
            IpAddr::V6(v6) => [-1, 0, 1].map(|d| IpAddr::from(Ipv6Addr::from_bits(v6.to_bits().wrapping_add_signed(d)))),
        });
        for addr in addrs.iter().copied().chain(edges) {
            prop_assert_eq!(t.lookup(addr), linear(&routes, addr), "{}", addr);
        }
    }

    /// A table that somebody has answers as on the day it was made, whatever changed since.
    #[test]
    fn every_table_answers_as_the_list_of_its_time(
        all in prop::collection::vec(changes(), 1..40),
        addrs in prop::collection::vec(near_address(), 40),
    ) {
        let (mut writer, mut list) = (RouteWriter::default(), BTreeMap::new());
        let mut kept: Vec<(Arc<RouteTable>, List)> = Vec::new();
        for (changes, keeps) in all {
            for &(prefix, owner) in &changes {
                match owner {
                    Some(owner) => list.insert(prefix, owner),
                    None => list.remove(&prefix),
                };
            }
            writer.change(changes);
            if kept.len() > 4 || !keeps {
                kept.truncate(1);
            }
            kept.push((writer.table(), list.clone().into_iter().collect()));
            for (table, routes) in &kept {
                let edges = routes.iter().map(|(prefix, _)| prefix.addr());
                for addr in addrs.iter().copied().chain(edges) {
                    prop_assert_eq!(table.lookup(addr), linear(routes, addr), "{}", addr);
                }
            }
        }
    }

    /// The order of changes leaves no trace: the same routes have the same nodes.
    #[test]
    fn changed_routes_take_the_room_of_built_ones(all in prop::collection::vec(changes(), 1..40)) {
        let (mut changed, mut list) = (RouteWriter::default(), BTreeMap::new());
        for (prefix, owner) in all.iter().flat_map(|(changes, _)| changes).copied() {
            changed.change([(prefix, owner)]);
            changed.table();
            match owner {
                Some(owner) => list.insert(prefix, owner),
                None => list.remove(&prefix),
            };
        }
        let mut built = writer(list);
        built.table();
        changed.reclaim();
        prop_assert_eq!(changed.used(), built.used());
    }

    #[test]
    fn text_survives_the_round_trip((prefix, _) in route()) {
        prop_assert_eq!(prefix.to_string().parse(), Ok(prefix));
    }
}

/// A host of 10.0.0.0/8, and its owner.
fn host(number: u32) -> Prefix {
    IpAddr::from(Ipv4Addr::from_bits(0x0a00_0000 + number * 77)).into()
}

#[test]
fn room_of_changes_is_used_again() {
    let mut writer = writer((0..5000).map(|number| (host(number), number)));
    writer.table();
    let before = writer.memory();
    for round in 1..20 {
        for number in 0..500 {
            writer.change([(host(number), Some(number + round))]);
            writer.table();
        }
    }
    assert!(writer.memory() < before + before / 4, "{before} bytes became {}", writer.memory());
    assert!((500..5000).all(|number| writer.table().lookup(host(number).addr()) == Some(number)));
    assert!((0..500).all(|number| writer.table().lookup(host(number).addr()) == Some(number + 19)));
}

#[test]
fn room_of_many_routes_goes_back_when_they_are_gone_and_old_tables_stay_whole() {
    let mut writer = writer((0..50_000).map(|number| (host(number), number)));
    let old = writer.table();
    let before = writer.memory();
    for some in (10..50_000).collect::<Vec<_>>().chunks(1000) {
        writer.change(some.iter().map(|&number| (host(number), None)));
        writer.table();
    }
    assert!(writer.memory() < before / 8, "{before} bytes became {}", writer.memory());
    let new = writer.table();
    for number in 0..50_000 {
        assert_eq!(old.lookup(host(number).addr()), Some(number));
        assert_eq!(new.lookup(host(number).addr()), (number < 10).then_some(number));
    }
}

#[test]
fn who_lets_go_of_a_table_last_frees_nothing() {
    let mut writer = writer((0..50_000).map(|number| (host(number), number)));
    let old = writer.table();
    let cells = Arc::downgrade(&old.nodes);
    writer.change((0..50_000).map(|number| (host(number), None)));
    writer.table();
    drop(old);
    assert!(cells.upgrade().is_some());
    writer.reclaim();
    assert!(cells.upgrade().is_none());
}

#[test]
fn threads_that_look_up_while_routes_change_see_one_table_or_the_other() {
    let mut writer = writer((0..2000).map(|number| (host(number), 0)));
    let shared = Mutex::new(writer.table());
    let goes_on = AtomicBool::new(true);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while goes_on.load(Relaxed) {
                    let table = Arc::clone(&shared.lock().unwrap());
                    let first = table.lookup(host(0).addr());
                    assert!((0..2000).all(|number| table.lookup(host(number).addr()) == first));
                }
            });
        }
        for round in 1..200 {
            writer.change((0..2000).map(|number| (host(number), Some(round))));
            *shared.lock().unwrap() = writer.table();
        }
        goes_on.store(false, Relaxed);
    });
}
