//! Rules 6 and 8: cookies, the limiter, and floods of handshakes.

use crate::lab::{Lab, millis, secs};
use crate::puppet::{Puppet, with_puppet};
use ringtun::noise::cookie::CookieJar;
use ringtun::noise::limiter::Limiter;
use ringtun::sim::seeds;
use ringtun::time::Instant;
use ringtun::wire::message::{INITIATION_LEN, MessageKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// `count` initiations of nobody to `site`, from so many addresses, with a valid MAC1: anyone can make them.
fn flood(lab: &mut Lab, site: usize, count: u32, sources: u32) {
    let mut jar = CookieJar::new(&lab.public(site));
    let (to, now) = (lab.sites[site].addr, lab.world.now());
    for i in 0..count {
        let mut message = [0; INITIATION_LEN];
        ringtun::crypto::random::Entropy::fill(lab.world.rng(), &mut message);
        message[..4].copy_from_slice(&[1, 0, 0, 0]);
        jar.seal(&mut message, now);
        let from = SocketAddr::from((Ipv4Addr::from_bits(0x0b00_0000 + i % sources), 5000));
        lab.world.inject(from, to, &message);
    }
}

/// Puts `site` under load for the next second.
fn load(lab: &mut Lab, site: usize) {
    lab.host(site).slow_path_stalled = true;
    flood(lab, site, 1000, 1000);
    lab.world.run_for(millis(11));
    lab.host(site).slow_path_stalled = false;
    lab.world.settle();
    assert!(lab.counter(site, "tx_cookies") > 0, "under load");
}

/// A puppet that has received a cookie, while site 0 is under load.
fn with_cookie(lab: &mut Lab) -> Puppet {
    let mut puppet = Puppet::new(lab);
    load(lab, 0);
    let initiation = puppet.initiation(lab);
    puppet.say(lab, &initiation);
    assert!(puppet.take_cookie(lab), "a cookie, and nothing else");
    puppet
}

#[test]
fn rule_06_cookie_is_asked_for_under_load_only() {
    for seed in seeds(5) {
        let mut lab = Lab::pair(seed);
        let mut puppet = Puppet::new(&mut lab);
        puppet.connect(&mut lab);
        assert_eq!(lab.counter(0, "tx_cookies"), 0);
        load(&mut lab, 0);
        let initiation = puppet.initiation(&mut lab);
        puppet.say(&mut lab, &initiation);
        assert!(puppet.complete(&mut lab).is_none(), "not without a cookie");
        lab.world.run_for(secs(2));
        let initiation = puppet.initiation(&mut lab);
        puppet.say(&mut lab, &initiation);
        assert!(puppet.complete(&mut lab).is_some(), "the load has passed");
    }
}

#[test]
fn rule_06_cookie_opens_the_door_to_its_address_and_port() {
    let mut lab = Lab::pair(1);
    let mut puppet = with_cookie(&mut lab);
    let initiation = puppet.initiation(&mut lab);
    puppet.say(&mut lab, &initiation);
    assert!(puppet.complete(&mut lab).is_some());
}

#[test]
fn rule_06_cookie_is_worthless_at_another_port_or_address() {
    for elsewhere in ["198.51.100.9:9998", "198.51.100.10:9999"] {
        let mut lab = Lab::pair(1);
        let elsewhere: SocketAddr = elsewhere.parse().unwrap();
        lab.world.play(elsewhere);
        let mut puppet = with_cookie(&mut lab);
        let accepted = lab.handshakes(0, "initiations_accepted");
        let initiation = puppet.initiation(&mut lab);
        puppet.say_from(&mut lab, elsewhere, &initiation);
        assert_eq!(lab.handshakes(0, "initiations_accepted"), accepted);
        assert!(puppet.hear_at(&mut lab, elsewhere, MessageKind::CookieReply).is_some());
    }
}

#[test]
fn rule_06_limiter_holds_back_one_source_and_no_other() {
    let mut lab = Lab::pair(1);
    let mut greedy = with_cookie(&mut lab);
    let mut modest = Puppet::stranger(&mut lab, "203.0.113.5:1000".parse().unwrap());
    modest.introduce(&mut lab, "10.8.0.0/24");
    let initiation = modest.initiation(&mut lab);
    modest.say(&mut lab, &initiation);
    assert!(modest.take_cookie(&mut lab));
    let to = lab.sites[0].addr;
    for _ in 0..20 {
        let initiation = greedy.initiation(&mut lab);
        lab.world.inject(greedy.addr, to, &initiation);
        lab.world.run_for(millis(21));
    }
    assert!(lab.handshakes(0, "dropped_rate_limited") > 3, "20 a second, after a burst of 5");
    let initiation = modest.initiation(&mut lab);
    modest.say(&mut lab, &initiation);
    assert!(modest.complete(&mut lab).is_some());
}

#[test]
fn rule_06_limiter_counts_by_ipv4_address_and_ipv6_network() {
    let mut limiter = Limiter::default();
    let mut allowed = |text: &str| limiter.allow(text.parse::<IpAddr>().unwrap(), Instant::START + secs(1));
    let mut burst = |addrs: [&str; 2]| (0..20).filter(|i| allowed(addrs[i % 2])).count();
    assert_eq!(burst(["2001:db8:0:1::1", "2001:db8:0:1:ffff::2"]), 5, "one /64");
    assert_eq!(burst(["2001:db8:0:2::1", "2001:db8:0:3::1"]), 10, "two /64s");
    assert_eq!(burst(["192.0.2.1", "192.0.2.2"]), 10, "two addresses");
}

#[test]
fn rule_06_cookie_reply_never_moves_the_endpoint() {
    let mut lab = Lab::pair(1);
    let attacker: SocketAddr = "203.0.113.66:666".parse().unwrap();
    load(&mut lab, 1);
    // The cookie reply does not arrive from where it was sent, but from elsewhere, authentic all the same.
    lab.world.network.filter = Some(Box::new(|datagram| datagram.kind() != Some(MessageKind::CookieReply)));
    lab.world.network.clear_tap();
    let flow = lab.udp(0, 1, 5);
    lab.send(0, flow, 1, 64);
    lab.run(millis(50));
    let me = lab.sites[0].addr;
    let replies = lab.tapped(1, MessageKind::CookieReply);
    let reply = replies.iter().find(|tapped| tapped.datagram.to == me).unwrap().datagram.clone();
    lab.world.inject(attacker, me, &reply.bytes);
    lab.run(millis(50));
    assert_eq!(lab.handshakes(0, "cookies_accepted"), 1);
    assert_eq!(lab.endpoint(0, 1), Some(lab.sites[1].addr));
    lab.run(secs(10));
    assert_eq!(lab.missing(), 0, "the retry got through");
}

#[test]
fn rule_08_flood_does_not_slow_established_sessions() {
    for seed in seeds(3) {
        let mut lab = Lab::pair(seed);
        lab.connect();
        // A slow path that is busy for good: the worst that a flood can do to it.
        lab.host(1).slow_path_stalled = true;
        for _ in 0..10 {
            flood(&mut lab, 1, 1000, 1000);
            let flow = lab.udp(0, 1, 5);
            lab.send(0, flow, 20, 500);
            lab.run(millis(11));
            assert_eq!(lab.missing(), 0, "at the wire's own delay");
        }
        let withheld = lab.counter(1, "tx_cookies_withheld");
        assert!(
            lab.counter(1, "tx_cookies") + withheld > 9000,
            "all but the first few are asked for a cookie"
        );
        lab.host(1).slow_path_stalled = false;
        lab.run(secs(1));
        assert_eq!(lab.handshakes(1, "initiations_accepted"), 1, "the one that made the session");
    }
}

#[test]
fn rule_08_flood_is_not_answered_one_by_one_and_a_newcomer_is_at_once() {
    for seed in seeds(3) {
        let (mut lab, mut puppet, _) = with_puppet(seed);
        lab.host(0).slow_path_stalled = true;
        let workers = u64::from(lab.host(0).workers());
        flood(&mut lab, 0, 20_000, 4);
        lab.world.run_for(millis(11));
        let answered = lab.counter(0, "tx_cookies");
        assert!((1000..workers * 1200).contains(&answered), "{answered}: a burst for all, and one a source");
        let initiation = puppet.initiation(&mut lab);
        puppet.say(&mut lab, &initiation);
        assert!(puppet.take_cookie(&mut lab), "what is the newcomer's, the flood has not taken");
    }
}

#[test]
fn rule_08_wrong_mac1_costs_the_slow_path_nothing() {
    let (mut lab, mut puppet, _) = with_puppet(1);
    let passed = lab.counter(0, "rx_handshakes");
    for at in [4, 80, 120] {
        let mut initiation = puppet.initiation(&mut lab);
        initiation[at] ^= 1;
        puppet.say(&mut lab, &initiation);
    }
    assert_eq!((lab.counter(0, "rx_bad_mac1"), lab.counter(0, "rx_handshakes")), (3, passed));
}
