//! A device's beginning and end, and its moves between namespaces.

use crate::implementation::{
    Device, Implementation, Io, RINGTUN, RINGTUN_TWO, ringtun, ringtun_itself, stand_in, uapi_socket,
};
use crate::lab::{Host, eventually, find_program, ready, serial, sh, skip};
use crate::pair::{A, B, Pair, V4, V6};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(10);

#[test]
fn a_device_moved_to_another_namespace_keeps_its_sockets_where_they_were() {
    let Some(pair) = Pair::connected(RINGTUN_TWO, RINGTUN) else { return };
    // A namespace without any other way out.
    let cell = Host::namespace();
    let name = pair[A].name();
    pair[A].host.run(&format!("ip link set {name} netns {}", cell.name()));
    cell.run(&format!("ip addr add {}/24 dev {name} && ip link set {name} up", pair[A].inner(V4)));
    cell.run(&format!("ip addr add {}/64 dev {name} nodad", pair[A].inner(V6)));
    for family in [V4, V6] {
        let said = cell.try_run(&format!("ping -q -c 1 -w 20 {}", pair[B].inner(family)));
        said.unwrap_or_else(|error| panic!("{error}\n{}", pair.tell()));
    }
    let _server = pair[B].host.iperf3_server();
    eventually("bulk data passes", SOON, || {
        cell.try_run(&format!("iperf3 -c {} -t 1", pair[B].inner(V4))).is_ok()
    });
    assert_eq!(pair[B].wg_show("endpoints"), pair[A].endpoint(V4));
    assert!(pair[A].host.run("ss -Hlun").contains(":51820"), "the sockets went along");
    // And it is still configured from anywhere.
    pair[A].host.run(&format!("wg set {name} listen-port 51999"));
    let done = cell.try_run(&format!("ping -q -c 1 -w 20 {}", pair[B].inner(V4)));
    done.unwrap_or_else(|error| panic!("{error}\n{}", pair.tell()));
}

#[test]
fn the_kernel_makes_up_no_link_local_address_after_a_move_or_a_small_mtu() {
    if !ready() || !ringtun_itself() {
        return;
    }
    let (host, cell) = (Arc::new(Host::namespace()), Host::namespace());
    let device = Device::start(&host, RINGTUN);
    let name = &device.name;
    let addresses = |place: &Host| place.run(&format!("ip -6 -br addr show dev {name} scope link"));
    let is_quiet = |place: &Host| {
        let mode = place.run(&format!("ip -d link show {name}")).contains("addrgenmode none");
        mode && !addresses(place).contains("fe80:")
    };
    host.run(&format!("ip link set {name} up"));
    assert!(is_quiet(&host));
    host.run(&format!("ip link set {name} mtu 1000"));
    eventually("the device's IPv6 is gone", SOON, || {
        !host.run(&format!("ip -d link show {name}")).contains("addrgenmode none")
    });
    host.run(&format!("ip link set {name} mtu 1420"));
    eventually("it is quiet with its old MTU", SOON, || is_quiet(&host));
    host.run(&format!("ip link set {name} netns {0} && ip -n {0} link set {name} up", cell.name()));
    eventually("it is quiet where it was moved", SOON, || is_quiet(&cell));
    // Who wants such an address gives one, or has the kernel make one.
    cell.run(&format!(
        "ip link set {name} down && ip link set {name} addrgenmode random && ip link set {name} up
         ip addr add fe80::7/64 dev {name} nodad && ip link set {name} mtu 1400 && ip link set {name} mtu 1410"
    ));
    std::thread::sleep(Duration::from_secs(1));
    let shown = addresses(&cell);
    assert!(shown.contains("fe80::7/64") && shown.matches("fe80:").count() == 2, "{shown}");
}

#[test]
fn signals_remove_device_and_socket() {
    for signal in ["TERM", "INT"] {
        let Some(mut pair) = Pair::connected(RINGTUN, RINGTUN) else { return };
        let name = pair[A].name().to_owned();
        let process = pair[A].device.as_mut().expect("a device").process();
        process.signal(signal);
        let status = process.wait(SOON).expect("an end");
        let said = process.said();
        assert_eq!(status.code(), Some(0), "SIG{signal}: {said}");
        assert!(!said.contains("panicked"), "{said}");
        assert!(!Path::new(&uapi_socket(&name)).exists(), "SIG{signal} left the socket");
        assert!(
            pair[A].host.try_run(&format!("ip link show {name}")).is_err(),
            "SIG{signal} left the interface"
        );
    }
}

/// The kernel takes down an io_uring, and what it holds of the interface, after its process is gone.
#[test]
fn a_process_that_was_killed_can_be_started_again_at_once() {
    if !ready() || stand_in() {
        return;
    }
    let program = ringtun().display().to_string();
    let host = Host::namespace();
    for io in ["uring", "syscalls"] {
        let name = format!("rtk{}x{}", std::process::id() % 100_000, serial());
        for round in 0..12 {
            let arguments = ["-f", "--workers", "4", "--io", io, &name];
            let mut process = host.start(&program, &arguments);
            let serves = || host.try_run(&format!("wg show {name} && ip link set {name} up")).is_ok();
            let up = (0..500).any(|_| {
                std::thread::sleep(Duration::from_millis(10));
                serves() || process.ended().is_some()
            });
            assert!(up, "round {round} over {io}: nothing for 5 s: {}", process.said());
            assert!(serves(), "round {round} over {io}: {:?} {}", process.ended(), process.said());
            host.run(&format!("wg set {name} listen-port 51820"));
            process.signal("KILL");
            // Without a pause, in which the interface could go.
            while process.ended().is_none() {}
        }
    }
}

#[test]
fn a_device_deleted_in_mid_traffic_ends_its_process() {
    let implementations = [RINGTUN_TWO, Implementation::Ringtun { workers: 2, io: Io::Syscalls }];
    for implementation in implementations {
        let Some(mut pair) = Pair::connected(implementation, RINGTUN) else { return };
        let _server = pair[B].host.iperf3_server();
        let target = pair[B].inner(V4);
        eventually("the server listens", SOON, || {
            pair[A].host.try_run(&format!("iperf3 -c {target} -n 1K")).is_ok()
        });
        let _client = pair[A].host.start("iperf3", &["-c", target, "-P", "4", "-t", "30"]);
        std::thread::sleep(Duration::from_secs(1));
        let name = pair[A].name().to_owned();
        pair[A].host.run(&format!("ip link del {name}"));
        let process = pair[A].device.as_mut().expect("a device").process();
        let status = process.wait(SOON).expect("the process lives on without its device");
        let said = process.said();
        assert!(status.code().is_some() && !said.contains("panicked"), "{status}: {said}");
        assert!(!Path::new(&uapi_socket(&name)).exists(), "the socket stayed");
        if !stand_in() {
            assert!(said.contains(&name), "it does not say which device is gone: {said}");
        }
    }
}

#[test]
fn removing_the_uapi_socket_ends_the_process() {
    // As wireguard-go does; wg-quick takes userspace devices down so on systems other than Linux.
    let Some(mut pair) = Pair::connected(RINGTUN, RINGTUN) else { return };
    let name = pair[A].name().to_owned();
    std::fs::remove_file(uapi_socket(&name)).expect("its socket");
    let process = pair[A].device.as_mut().expect("a device").process();
    assert_eq!(process.wait(SOON).and_then(|status| status.code()), Some(0), "{}", process.said());
    assert!(pair[A].host.try_run(&format!("ip link show {name}")).is_err(), "the interface stayed");
}

#[test]
fn down_and_up_again_carries_on() {
    let Some(pair) = Pair::connected(RINGTUN_TWO, RINGTUN) else { return };
    let (host, name) = (&pair[A].host, pair[A].name());
    for _ in 0..3 {
        host.run(&format!("ip link set {name} down"));
        host.run(&format!("ip link set {name} up"));
    }
    // Down takes IPv6 addresses away; IPv4 stays.
    pair.expect_ping(A, V4);
    pair.expect_ping(B, V4);
}

#[test]
fn an_mtu_beyond_what_a_datagram_carries_is_told_and_no_black_hole() {
    let Some(pair) = Pair::connected(RINGTUN, RINGTUN) else { return };
    if !ringtun_itself() {
        return;
    }
    for side in [A, B] {
        pair[side].host.run(&format!("ip link set {} mtu 65535", pair[side].name()));
    }
    eventually("both tell it", SOON, || pair.tell().matches("an MTU of 65535 is more than").count() == 2);
    let ping = |size: u32, inner| {
        let to = pair[B].inner(inner);
        pair[A].host.try_run(&format!("ping -M do -c 2 -i 0.3 -W 3 -s {size} {to}"))
    };
    for (inner, headers) in [(V4, 28), (V6, 48)] {
        let said = ping(65_475 - headers, inner);
        said.unwrap_or_else(|error| panic!("the longest: {error}\n{}", pair.tell()));
        let error = ping(65_475 - headers + 1, inner).expect_err("one byte more");
        assert!(error.contains("65475"), "the source hears the limit: {error}");
    }
}

/// Length of the UDP payload that a ping of `len` bytes, headers included, leaves A in.
fn outer_payload(pair: &Pair, to: &str, len: u32) -> u32 {
    const UDP_HEADER: u32 = 8;
    let host = &pair[A].host;
    host.run(
        "nft 'table inet spy { set seen { typeof udp length; flags dynamic; size 100; }; \
         chain out { type filter hook output priority 0; udp length > 1000 add @seen { udp length }; }; }'",
    );
    host.run(&format!("ping -q -c 1 -W 5 -s {} {to}", len - 28));
    let said = host.run("nft list set inet spy seen; nft delete table inet spy");
    let seen = said.lines().find_map(|line| line.trim().strip_prefix("elements = { ")?.strip_suffix(" }"));
    let length = seen.and_then(|seen| seen.parse::<u32>().ok());
    length.unwrap_or_else(|| panic!("no length, or more than one: {said}")) - UDP_HEADER
}

#[test]
fn padding_does_not_exceed_the_mtu_of_the_route() {
    let Some(pair) = Pair::connected(RINGTUN_TWO, RINGTUN) else { return };
    if stand_in() {
        return;
    }
    let (name, to) = (pair[A].name(), pair[B].inner(V4));
    assert_eq!(outer_payload(&pair, to, 1405), 1408 + 32, "the interface has 1420");
    for (route, padded) in [
        (format!("ip route add {to} dev {name} mtu 1405"), 1405),
        (format!("ip route change {to} dev {name} mtu 1407"), 1407),
        (format!("ip route change {to} dev {name}"), 1408),
        (format!("ip route change {to} dev {name} mtu 1406"), 1406),
        (format!("ip route del {to} dev {name}"), 1408),
    ] {
        pair[A].host.run(&route);
        eventually(&route, SOON, || outer_payload(&pair, to, 1405) == padded + 32);
    }
}

#[test]
fn changes_of_the_mtu_are_followed() {
    let Some(pair) = Pair::connected(RINGTUN_TWO, RINGTUN) else { return };
    for mtu in [1280, 1420, 576, 9000, 1420] {
        for side in [A, B] {
            pair[side].host.run(&format!("ip link set {} mtu {mtu}", pair[side].name()));
        }
        // Above the wire's own MTU the outer packets are fragments.
        let size = mtu - 28;
        let said = pair[A].host.try_run(&format!("ping -q -M do -s {size} -c 1 -w 10 {}", pair[B].inner(V4)));
        said.unwrap_or_else(|error| panic!("MTU {mtu}: {error}\n{}", pair.tell()));
    }
}

#[test]
fn without_f_it_goes_to_the_background_once_the_device_is_there() {
    if !ready() {
        return;
    }
    let host = Host::namespace();
    let name = format!("rt{}n{}", std::process::id() % 10_000_000, serial());
    // Should it hold on to the pipes of its parent, this call does not end.
    host.run(&format!("timeout 20 {} {name}", ringtun().display()));
    assert!(Path::new(&uapi_socket(&name)).exists());
    host.run(&format!("ip link show {name}"));
    let listed = sh("wg show interfaces").expect("wg");
    assert!(listed.split_whitespace().any(|listed| listed == name), "{listed}");
    let pids = host.run(&format!("ip netns pids {}", host.name()));
    let daemon = pids.split_whitespace().find(|pid| {
        std::fs::read_to_string(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| line.split('\0').any(|word| word == name))
    });
    sh(&format!("kill -s TERM {}", daemon.expect("a daemon"))).expect("kill");
    eventually("it goes away", SOON, || !Path::new(&uapi_socket(&name)).exists());
}

#[test]
fn a_second_device_of_a_name_is_refused_and_the_first_lives_on() {
    if !ready() {
        return;
    }
    let host = Arc::new(Host::namespace());
    let device = Device::start(&host, RINGTUN);
    let mut second = host.start(&ringtun().display().to_string(), &["-f", &device.name]);
    let status = second.wait(SOON).expect("the second of the name runs");
    assert_eq!(status.code(), Some(1), "{}", second.said());
    assert!(!second.said().contains("panicked"), "{}", second.said());
    host.run(&format!("wg set {0} listen-port 51820 && ip link show {0}", device.name));
}

/// wg-quick takes the kernel's implementation wherever there is one.
fn kernel_has_wireguard() -> bool {
    let host = Host::namespace();
    host.try_run("ip link add probe type wireguard").is_ok()
}

#[test]
fn wg_quick_brings_a_device_up_and_down() {
    if !ready() {
        return;
    }
    if find_program("wg-quick").is_none() || kernel_has_wireguard() {
        skip("wg-quick is not installed, or would take the kernel's own WireGuard");
        return;
    }
    let Some(pair) = Pair::new(RINGTUN, RINGTUN) else { return };
    pair.configure_side(B, None);
    let directory = std::env::temp_dir().join(format!("rt-{}-{}", std::process::id(), serial()));
    std::fs::create_dir(&directory).expect("a directory");
    let name = format!("rt{}n{}", std::process::id() % 10_000_000, serial());
    let file = directory.join(format!("{name}.conf"));
    let (mine, inner) = (&pair[A], pair[A].inner(V4));
    mine.host.run(&format!(
        "ip addr flush dev {0} && ip link set {0} down && wg set {0} listen-port 0",
        mine.name()
    ));
    let text = pair.configuration(A, Some(V4)).replace("[Peer]", &format!("Address = {inner}/24\n[Peer]"));
    std::fs::write(&file, text).expect("a file");
    let quick = |verb: &str| {
        let binary = ringtun().display().to_string();
        mine.host.try_run(&format!(
            "WG_QUICK_USERSPACE_IMPLEMENTATION={binary} timeout 30 wg-quick {verb} {}",
            file.display()
        ))
    };
    let up = quick("up");
    let ping = mine.host.try_run(&format!("ping -q -c 1 -w 10 {}", pair[B].inner(V4)));
    let down = quick("down");
    let gone = mine.host.try_run(&format!("ip link show {name}"));
    let _ = std::fs::remove_dir_all(&directory);
    assert!(
        up.is_ok() && ping.is_ok() && down.is_ok(),
        "up {up:?}\nping {ping:?}\ndown {down:?}\n{}",
        pair.tell()
    );
    assert!(gone.is_err() || gone.is_ok_and(|line| !line.contains(&name)), "the interface stayed");
}
