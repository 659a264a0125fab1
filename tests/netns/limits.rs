//! Limits of a peer: the rate is held, both ways, by one worker and by two; and file, tunnel and tools agree on them.

use crate::implementation::{RINGTUN, RINGTUN_TWO, ringtun, uapi_socket};
use crate::lab::{find_program, skip};
use crate::pair::{A, B, Pair, V4};
use crate::updown::{Site, peer};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

/// Has the device of side A limit its peer; `limits` is in the form of the configuration socket.
fn limit(pair: &Pair, limits: &str) {
    use base64::Engine;
    let key = base64::engine::general_purpose::STANDARD.decode(&pair[B].public).expect("a key");
    let key: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut socket = UnixStream::connect(uapi_socket(pair[A].name())).expect("the socket");
    let text = format!("set=1\npublic_key={key}\nupdate_only=true\nringtun_limits={limits}\n\n");
    socket.write_all(text.as_bytes()).expect("written");
    let mut answer = [0; 64];
    let len = socket.read(&mut answer).expect("an answer");
    assert_eq!(&answer[..len], b"errno=0\n\n");
}

/// Megabits a second of packets in the tunnel, as the receiver of iperf3 had them. `options` say which way and how.
fn received(pair: &Pair, options: &str, packet: f64, payload: f64) -> f64 {
    let said = pair.iperf3(V4, &format!("{options} -t 2 -J"));
    let json: serde_json::Value = serde_json::from_str(&said).unwrap_or_else(|_| panic!("{said}"));
    let bits = json["end"]["sum_received"]["bits_per_second"].as_f64();
    let bits = bits.filter(|&bits| bits > 0.0).or(json["end"]["sum"]["bits_per_second"].as_f64());
    bits.unwrap_or_else(|| panic!("{said}")) * packet / payload / 1e6
}

#[test]
fn a_rate_is_held_both_ways_whoever_has_the_peer() {
    if find_program("iperf3").is_none() {
        return skip("iperf3 is not installed");
    }
    for implementation in [RINGTUN, RINGTUN_TWO] {
        let Some(pair) = Pair::connected(implementation, RINGTUN) else { return };
        limit(&pair, "in 20000000 125000 out 40000000 250000");
        // A's peer is the server; what A sends is what goes out to it.
        for (options, megabits) in [("-u -b 100M -l 1000", 40.0), ("-u -b 100M -l 1000 -R", 20.0)] {
            let got = received(&pair, options, 1028.0, 1000.0);
            assert!((0.8..1.15).contains(&(got / megabits)), "{options}: {got} of {megabits} Mb/s");
        }
        // TCP wants room for what it sends at once.
        limit(&pair, "in 20000000 625000 out 40000000 1250000");
        for (options, megabits) in [("", 40.0), ("-R", 20.0)] {
            let got = received(&pair, options, 1420.0, 1368.0);
            assert!((0.5..1.3).contains(&(got / megabits)), "TCP {options}: {got} of {megabits} Mb/s");
        }
        // wg(8) reads past what is none of its business.
        assert!(pair[A].wg_show("endpoints").contains(":51820"));
        let before = pair[A].wg_show("latest-handshakes");
        limit(&pair, "none");
        assert!(received(&pair, "", 1420.0, 1368.0) > 60.0);
        assert_eq!(pair[A].wg_show("latest-handshakes"), before, "no session ended");
    }
}

#[test]
fn a_quota_stops_a_peer_and_is_told() {
    let Some(pair) = Pair::connected(RINGTUN, RINGTUN) else { return };
    limit(&pair, "quota 3500 86400 0");
    let ping =
        |size: u32| pair[A].host.try_run(&format!("ping -c 1 -W 1 -s {size} {}", pair[B].inner(V4))).is_ok();
    assert!(ping(1000) && ping(1000), "both ways together");
    assert!(!ping(10));
    let program = ringtun().display().to_string();
    let shown = pair[A].host.run(&format!("{program} show {} --json", pair[A].name()));
    let json: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
    let limits = &json[0]["peers"][0]["limits"];
    assert!(limits["quota"]["used_bytes"].as_u64() >= Some(3000), "{limits}");
    assert!(limits["limited_out"].as_u64() >= Some(1), "{limits}");
    let metrics = pair[A].host.run(&format!("{program} status {} --prometheus", pair[A].name()));
    assert!(metrics.contains("ringtun_peer_quota_used_bytes{"), "{metrics}");
    limit(&pair, "quota 9000 86400 0");
    assert!(ping(10), "more of the same quota");
}

#[test]
fn file_tunnel_and_commands_agree_on_limits() {
    let Some(site) = Site::new() else { return };
    let section = peer("AllowedIPs = 192.168.96.2/32")
        .replace("[Peer]\n", "[Peer]\n# Name = laptop\n# LimitIn = 20 Mbit/s\n");
    site.write("Address = 192.168.96.1/24\nListenPort = 4500", &section);
    site.done("up");
    let program = ringtun().display().to_string();
    let peer = |words: &str| {
        site.host.try_run(&format!("{program} peer {words} --interface {} 2>&1", site.file().display()))
    };
    let limits = || -> serde_json::Value {
        let shown = site.host.run(&format!("{program} show {} --json", site.name));
        serde_json::from_str::<serde_json::Value>(&shown).expect("JSON")[0]["peers"][0]["limits"].clone()
    };
    assert_eq!(limits()["in"]["bits_per_second"], 20_000_000);
    peer("limit laptop --out 1.5M --quota '5 GB a day, then 1 Mbit/s'")
        .unwrap_or_else(|error| panic!("{error}"));
    assert!(
        site.read().contains("# LimitOut = 1500 kbit/s\n# Quota = 5 GB per 1 days, then 1 Mbit/s\n"),
        "{}",
        site.read()
    );
    assert_eq!(
        (&limits()["in"]["bits_per_second"], &limits()["out"]["bits_per_second"]),
        (&20_000_000.into(), &1_500_000.into())
    );
    assert_eq!(limits()["quota"]["then_bits_per_second"], 1_000_000);
    assert!(peer("show laptop").expect("the peer").contains("5 GB per 1 days, then 1 Mbit/s"));
    let error = peer("limit laptop --in fast").expect_err("no rate");
    assert!(error.contains("20 Mbit/s"), "{error}");
    // The file is edited by hand, and wg-quick's strip knows nothing of it.
    site.write_whole(&site.read().replace("# LimitIn = 20 Mbit/s\n", "# LimitIn = 30 Mbit/s\n"));
    site.done("reload");
    assert_eq!(limits()["in"]["bits_per_second"], 30_000_000);
    site.write_whole(&site.read().replace("# LimitOut = 1500 kbit/s\n", ""));
    site.done("reload");
    assert!(limits().get("out").is_none(), "{}", limits());
    peer("limit laptop --in none --quota none").unwrap_or_else(|error| panic!("{error}"));
    assert!(limits().is_null(), "{}", limits());
    site.done("down");
}
