use super::*;
use crate::io::SourceGone;
use std::net::IpAddr;

#[test]
fn a_train_arrives_with_its_stride_sender_local_address_and_ecn() {
    in_namespace(|backend| {
        let mut bench = backend.bench();
        for family in 0..2 {
            for ecn in 0..4 {
                let (me, bytes) = (bench.sockets[family], pattern(20 * 1452 + 100, usize::from(ecn)));
                bench.send(&bytes, 1452, to(me), ecn);
                bench.io.flush();
                let train = bench.train();
                assert_eq!(train.buf[train.start..train.start + train.len], bytes);
                assert!(train.start >= 16);
                assert_eq!((train.stride, train.from, train.ecn), (1452, me, ecn));
                assert_eq!(train.to.unwrap().ip, me.ip());
                assert_eq!(train.to.unwrap().interface, 1);
            }
        }
        assert_eq!(bench.io.stats().udp_sent_datagrams, 8 * 21);
        assert_eq!(bench.io.stats().udp_sends, 8);
        assert!(bench.io.gso());
    });
}

#[test]
fn the_longest_trains_arrive_whole() {
    in_namespace(|backend| {
        let mut bench = backend.bench();
        for (stride, count) in [(1452, 45), (100, 64), (1, 64), (32, 1), (65_000, 1)] {
            for family in 0..2 {
                let bytes = pattern(stride * count, count);
                bench.send(&bytes, stride, to(bench.sockets[family]), 0);
                bench.io.flush();
                let came = bench.datagrams(count);
                assert_eq!(came, bytes.chunks(stride).map(<[u8]>::to_vec).collect::<Vec<_>>());
            }
        }
        assert_eq!(bench.io.stats().udp_receive_errors, 0);
    });
}

#[test]
fn a_train_of_too_many_segments_goes_one_by_one() {
    in_namespace(|backend| {
        let mut bench = backend.bench();
        let bytes = pattern(150 * 40 + 3, 1);
        bench.send(&bytes, 40, to(bench.sockets[1]), 1);
        bench.io.flush();
        let came = bench.datagrams(151);
        assert_eq!(came, bytes.chunks(40).map(<[u8]>::to_vec).collect::<Vec<_>>());
        assert!(bench.io.gso());
        assert_eq!(bench.io.stats().offload_fallbacks, 0);
    });
}

#[test]
fn what_is_queued_leaves_in_order() {
    in_namespace(|backend| {
        let mut bench = backend.bench();
        let mut sent = Vec::new();
        for n in 0..200 {
            let (stride, count) = [(300, 1), (500, 7), (64, 64)][n % 3];
            let bytes = pattern(stride * count, n);
            sent.extend(bytes.chunks(stride).map(<[u8]>::to_vec));
            bench.send(&bytes, stride, to(bench.sockets[0]), 0);
            if n % 16 == 0 {
                bench.io.flush();
            }
        }
        bench.io.flush();
        assert_eq!(bench.datagrams(sent.len()), sent);
    });
}

#[test]
fn a_datagram_without_bytes_is_dropped_and_counted() {
    in_namespace(|backend| {
        let mut bench = backend.bench();
        let peer = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for bytes in [&b"before"[..], b"", b"after"] {
            peer.send_to(bytes, bench.sockets[0]).unwrap();
        }
        assert_eq!(bench.datagrams(2), [b"before".to_vec(), b"after".to_vec()]);
        assert_eq!(bench.io.stats().udp_receive_errors, 1);
        assert_eq!(bench.io.stats().udp_receives, 2);
    });
}

#[test]
fn a_sticky_source_is_kept_and_one_that_is_gone_is_reported_once() {
    in_namespace(|backend| {
        let mut bench = backend.bench();
        let v4 = udp_socket("0.0.0.0:0");
        let v6 = udp_socket("[::]:0");
        bench.io.rebind(Some(UdpSockets { v4: Some(v4.into()), v6: Some(v6.into()), port: 0 }));
        for (listen, good, gone) in
            [("127.0.0.1:0", "127.0.0.77", "192.0.2.1"), ("[::1]:0", "::1", "2001:db8::1")]
        {
            let peer = std::net::UdpSocket::bind(listen).unwrap();
            peer.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let addr = peer.local_addr().unwrap();
            let from = |ip: &str| Some(LocalAddr { ip: ip.parse().unwrap(), interface: 0 });
            let endpoint = Endpoint { addr, from: from(good) };
            bench.send(b"hello", 5, endpoint, 0);
            bench.io.flush();
            let mut bytes = [0; 4000];
            assert_eq!(peer.recv_from(&mut bytes).unwrap().1.ip(), good.parse::<IpAddr>().unwrap());
            assert_eq!(bench.io.take_source_gone(), None);

            let endpoint = Endpoint { addr, from: from(gone) };
            for n in 0..3 {
                bench.send(&pattern(3000, n), 1000, endpoint, 0);
            }
            bench.io.flush();
            for n in 0..9 {
                let len = peer.recv(&mut bytes).unwrap();
                assert_eq!(bytes[..len], pattern(3000, n / 3)[n % 3 * 1000..][..1000]);
            }
            assert_eq!(bench.io.take_source_gone(), Some(SourceGone { peer: 3, endpoint }));
            assert_eq!(bench.io.take_source_gone(), None);
        }
        assert_eq!(bench.io.stats().offload_fallbacks, 0);
        assert_eq!(bench.io.stats().udp_send_errors, 0);
    });
}

#[test]
fn a_narrow_path_takes_its_datagrams_one_by_one_and_others_keep_their_trains() {
    in_namespace(|backend| {
        ip("link set lo mtu 1400");
        // Another loopback-like path: a route with a larger MTU does not exist on lo, so a smaller stride stands for it.
        let mut bench = backend.bench();
        for family in 0..2 {
            let (me, bytes) = (bench.sockets[family], pattern(4000, family));
            for _ in 0..3 {
                bench.send(&bytes, 2000, to(me), 0);
            }
            bench.io.flush();
            let came = bench.datagrams(6);
            assert_eq!(came, [&bytes[..2000], &bytes[2000..]].repeat(3));
            let fits = pattern(5000, 9);
            bench.send(&fits, 1000, to(me), 0);
            bench.io.flush();
            assert_eq!(bench.datagrams(5).concat(), fits);
            // One system call was refused, for the first train; the others of its kind went singly at once.
            assert_eq!(bench.io.stats().offload_fallbacks, family as u64 + 1);
            assert_eq!(bench.io.take_notice(), Some(Notice::NarrowPath { to: me, size: 2000 }));
        }
        assert!(bench.io.gso());
        assert_eq!(bench.io.stats().udp_send_errors, 0);
        // Six singles and one train a family.
        assert_eq!(bench.io.stats().udp_sends, 2 * 7);
    });
}

#[test]
fn one_unreachable_peer_costs_its_own_datagrams_only() {
    in_namespace(|backend| {
        let mut bench = backend.bench();
        let nowhere = Endpoint { addr: "198.51.100.1:9".parse().unwrap(), from: None };
        for n in 0..5 {
            bench.send(&pattern(3000, n), 1000, nowhere, 0);
            bench.send(&pattern(100, n), 100, to(bench.sockets[0]), 0);
        }
        bench.io.flush();
        assert_eq!(bench.datagrams(5), (0..5).map(|n| pattern(100, n)).collect::<Vec<_>>());
        assert_eq!(bench.io.stats().udp_send_errors, 15);
        assert!(bench.io.gso());
    });
}

#[test]
fn a_firewall_that_drops_what_is_sent_is_told_with_the_cause() {
    in_namespace(|backend| {
        let rules = "add table inet t; add chain inet t c { type filter hook output priority 0; }; \
                     add rule inet t c udp dport 9 drop";
        if !std::process::Command::new("nft").arg(rules).status().is_ok_and(|status| status.success()) {
            eprintln!("not run: no nft");
            return;
        }
        let mut bench = backend.bench();
        let dropped = Endpoint { addr: "127.0.0.1:9".parse().unwrap(), from: None };
        bench.send(&pattern(3000, 1), 1000, dropped, 0);
        bench.send(&pattern(100, 2), 100, to(bench.sockets[0]), 0);
        bench.io.flush();
        assert_eq!(bench.datagrams(1), [pattern(100, 2)]);
        let told = bench.io.take_notice();
        assert_eq!(told, Some(Notice::SendRefused { to: dropped.addr, errno: libc::EPERM, datagrams: 3 }));
        assert!(told.is_some_and(|notice| notice.to_string().contains("firewall")));
        assert_eq!(bench.io.stats().udp_send_errors, 3);
    });
}

#[test]
fn without_a_socket_of_the_family_a_train_is_dropped_and_counted() {
    in_namespace(|backend| {
        let mut bench = backend.bench();
        let (mut sockets, addrs) = sockets();
        sockets.v6 = None;
        bench.io.rebind(Some(sockets));
        bench.send(&pattern(3000, 0), 1000, to(addrs[1]), 0);
        bench.send(b"v4", 2, to(addrs[0]), 0);
        bench.io.flush();
        assert_eq!(bench.datagrams(1), [b"v4".to_vec()]);
        assert_eq!(bench.io.stats().udp_send_errors, 3);
    });
}

#[test]
fn other_sockets_take_over_at_once_and_the_old_port_is_free() {
    in_namespace(|backend| {
        let mut bench = backend.bench();
        let peer = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for round in 0..20 {
            let old = bench.sockets[0];
            // Datagrams in every stage: received by the ring, in the socket, on their way out.
            peer.send_to(b"old", old).unwrap();
            if round % 2 == 0 {
                bench.wait();
            }
            peer.send_to(b"old", old).unwrap();
            bench.send(b"dropped", 7, to(old), 0);
            let (sockets, addrs) = sockets();
            bench.io.rebind(Some(sockets));
            bench.sockets = addrs.clone();
            // For an instant a child of another test, between fork and exec, may hold a copy of the descriptor.
            let deadline = Clock.now() + Duration::from_secs(2);
            while let Err(error) = std::net::UdpSocket::bind(old) {
                assert!(Clock.now() < deadline, "the old port is to be free: {error}");
            }
            peer.send_to(b"new", addrs[0]).unwrap();
            assert_eq!(bench.datagrams(1), [b"new".to_vec()]);
        }
        bench.io.rebind(None);
        peer.send_to(b"nobody", bench.sockets[0]).unwrap();
        let soon = Clock.now() + Duration::from_millis(20);
        while bench.io.wait(Some(soon)).unwrap() < soon {}
        assert!(bench.io.recv_udp().is_none());
        assert_eq!(bench.io.stats().udp_send_errors, 20);
    });
}

#[test]
fn a_descriptor_that_others_hold_does_not_speak_after_a_rebind() {
    in_namespace(|backend| {
        let mut bench = backend.bench();
        let socket = udp_socket("127.0.0.1:0");
        let duplicate = socket.try_clone().unwrap();
        bench.io.rebind(Some(UdpSockets { v4: Some(socket.into()), v6: None, port: 0 }));
        bench.wait_until_quiet();
        bench.io.rebind(None);
        let peer = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        peer.send_to(b"for the duplicate", duplicate.local_addr().unwrap()).unwrap();
        bench.wait_until_quiet();
        assert!(bench.io.recv_udp().is_none());
        assert_eq!(duplicate.recv(&mut [0; 100]).unwrap(), 17);
    });
}

#[test]
fn trains_that_nobody_takes_leave_half_of_the_pool_to_sending() {
    in_namespace(|backend| {
        let mut bench = backend.open(open_tun("t0"), 32);
        let (sockets, addrs) = sockets();
        bench.io.rebind(Some(sockets));
        let peer = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for n in 0..100u8 {
            peer.send_to(&[n], addrs[0]).unwrap();
            bench.io.wait(Some(Instant::START)).unwrap();
        }
        let first = bench.io.recv_udp().unwrap().buf[192];
        let held: Vec<Buf> = std::iter::from_fn(|| bench.io.alloc()).collect();
        assert_eq!((first, held.len()), (0, 16));
        assert_eq!(bench.datagrams(99).concat(), (1..100).collect::<Vec<u8>>());
    });
}

#[test]
fn a_turn_that_takes_one_train_only_loses_none() {
    in_namespace(|backend| {
        let mut bench = backend.bench();
        let peer = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for n in 0..200u8 {
            peer.send_to(&[n], bench.sockets[0]).unwrap();
        }
        let mut came = Vec::new();
        let deadline = Clock.now() + Duration::from_secs(5);
        while came.len() < 200 && Clock.now() < deadline {
            bench.wait();
            came.extend(bench.io.recv_udp().map(|train| train.buf[train.start]));
        }
        assert_eq!(came, (0..200).collect::<Vec<u8>>());
        assert!(Clock.now() < deadline);
    });
}

#[test]
fn holders_of_every_buffer_block_nothing_for_ever() {
    in_namespace(|backend| {
        let mut bench = backend.open(open_tun("t0"), 16);
        let (sockets, addrs) = sockets();
        bench.io.rebind(Some(sockets));
        // The sending side takes all it gets; receiving keeps its share.
        let held: Vec<Buf> = std::iter::from_fn(|| bench.io.alloc()).collect();
        assert_eq!(held.len(), 8);
        let peer = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for n in 0..100u8 {
            peer.send_to(&[n], addrs[0]).unwrap();
        }
        assert_eq!(bench.datagrams(100), (0..100u8).map(|n| vec![n]).collect::<Vec<_>>());
        assert!(bench.io.alloc().is_none() && bench.io.recv_tun().is_none());
        // The receiving side's trains are all held: nothing comes, until they are given back.
        for n in 0..100u8 {
            peer.send_to(&[n], addrs[0]).unwrap();
        }
        let mut trains = Vec::new();
        while trains.len() < 8 {
            bench.wait();
            trains.extend(std::iter::from_fn(|| bench.io.recv_udp()));
        }
        bench.io.wait(Some(Instant::START)).unwrap();
        assert!(bench.io.recv_udp().is_none());
        let first: Vec<u8> = trains.drain(..).map(|train| train.buf[train.start]).collect();
        let rest = bench.datagrams(92).concat();
        assert_eq!([first, rest].concat(), (0..100).collect::<Vec<u8>>());
        drop(held);
        assert!(bench.io.alloc().is_some());
    });
}

#[test]
fn a_full_socket_keeps_order_and_stops_the_reading_of_the_tun() {
    in_namespace(|backend| {
        // What is sent waits for the neighbour's link address, and is the socket's memory while it does.
        let outer = open_device("tap0", libc::IFF_TAP);
        ip("addr add 10.7.0.1/24 dev tap0");
        ip("link set tap0 up");
        let mut bench = backend.bench();
        let socket = udp_socket("10.7.0.1:0");
        set_option(&socket, libc::SOL_SOCKET, libc::SO_SNDBUF, 1);
        bench.io.rebind(Some(UdpSockets { v4: Some(socket.into()), v6: None, port: 0 }));
        bench.wait_until_quiet();
        let peer = std::net::UdpSocket::bind("10.9.0.1:0").unwrap();
        peer.send_to(b"waits", "10.9.0.2:9").unwrap();
        for n in 0..20u8 {
            bench.send(&[n; 600], 600, to("10.7.0.2:9".parse().unwrap()), 0);
        }
        bench.io.flush();
        let sent = bench.io.stats().udp_sends;
        assert!(sent > 0 && sent < 20, "the socket was to fill up: {sent}");
        let until = Clock.now() + Duration::from_millis(20);
        while bench.io.wait(Some(until)).unwrap() < until {
            assert!(bench.io.recv_tun().is_none());
        }
        assert_eq!(bench.io.stats().udp_sends, sent);
        assert!((1..100).contains(&bench.io.stats().waits), "waiting for room is no spinning");
        ip("neigh replace 10.7.0.2 lladdr 02:00:00:00:00:02 dev tap0 nud permanent");
        let deadline = Clock.now() + Duration::from_secs(5);
        while bench.io.stats().udp_sends < 20 && Clock.now() < deadline {
            bench.wait();
        }
        let mut frame = [0; 2000];
        let mut order = Vec::new();
        while let Ok(len) = crate::sys::calls::read(std::os::fd::AsFd::as_fd(&outer), &mut frame) {
            if len == VNET_HDR_LEN + 14 + 28 + 600 {
                order.push(frame[VNET_HDR_LEN + 42]);
            }
        }
        assert_eq!(order, (0..20).collect::<Vec<u8>>());
        let frame = bench.io.recv_tun().unwrap();
        assert_eq!(frame.buf[VNET_HDR_LEN + 28..frame.len], *b"waits");
    });
}

#[test]
fn a_full_socket_of_one_family_does_not_hold_up_the_other() {
    in_namespace(|backend| {
        let outer = open_device("tap0", libc::IFF_TAP);
        ip("addr add fd07::1/64 dev tap0 nodad");
        ip("addr add 10.6.0.1/32 dev lo");
        ip("link set lo up");
        ip("link set tap0 up");
        let mut bench = backend.bench();
        let (v4, v6) = (udp_socket("10.6.0.1:0"), udp_socket("[fd07::1]:0"));
        set_option(&v6, libc::SOL_SOCKET, libc::SO_SNDBUF, 1);
        bench.io.rebind(Some(UdpSockets { v4: Some(v4.into()), v6: Some(v6.into()), port: 0 }));
        bench.wait_until_quiet();
        let there = std::net::UdpSocket::bind("10.6.0.1:0").unwrap();
        there.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let (v4, v6) = (to(there.local_addr().unwrap()), to("[fd07::2]:9".parse().unwrap()));
        // Both in one turn, the full one first and in between.
        for n in 0..20u8 {
            bench.send(&[n; 600], 600, v6, 0);
            bench.send(&[n; 600], 600, v4, 0);
        }
        bench.io.flush();
        let mut bytes = [0; 700];
        for n in 0..20 {
            assert_eq!((there.recv(&mut bytes).unwrap(), bytes[0]), (600, n));
        }
        let before = bench.io.stats().udp_sends;
        assert!(before > 20 && before < 40, "the other socket was to fill up: {before}");
        // Frames for either are read again after a moment, and those for the full one have a bound.
        let inner = std::net::UdpSocket::bind("10.9.0.1:0").unwrap();
        inner.send_to(b"waits", "10.9.0.2:9").unwrap();
        let deadline = Clock.now() + Duration::from_secs(5);
        let frame = loop {
            match bench.io.recv_tun() {
                Some(frame) => break frame,
                None => assert!(bench.io.wait(Some(deadline)).unwrap() < deadline, "the tunnel stands still"),
            }
        };
        assert_eq!(frame.buf[VNET_HDR_LEN + 28..frame.len], *b"waits");
        assert!(bench.io.stats().waits < 100, "waiting is no spinning");
        for _ in 0..100 {
            bench.send(&[99; 600], 600, v6, 0);
        }
        assert!(bench.io.stats().udp_send_errors >= 60);
        assert!(bench.io.alloc().is_some(), "and leave buffers to the other");
        bench.send(&[20; 600], 600, v4, 0);
        bench.io.flush();
        assert!(there.recv(&mut bytes).is_ok());
        // What waited leaves in its order.
        ip("neigh replace fd07::2 lladdr 02:00:00:00:00:02 dev tap0 nud permanent");
        let deadline = Clock.now() + Duration::from_secs(5);
        while bench.io.stats().udp_sends < 41 && Clock.now() < deadline {
            bench.io.wait(Some(deadline)).unwrap();
        }
        let (mut frame, mut order) = ([0; 2000], Vec::new());
        while let Ok(len) = crate::sys::calls::read(std::os::fd::AsFd::as_fd(&outer), &mut frame) {
            if len == VNET_HDR_LEN + 14 + 48 + 600 && frame[VNET_HDR_LEN + 62] < 99 {
                order.push(frame[VNET_HDR_LEN + 62]);
            }
        }
        assert_eq!(order, (0..20).collect::<Vec<u8>>());
    });
}

#[test]
fn both_backends_see_the_same_bytes_in_the_same_order() {
    use std::sync::Mutex;
    static SEEN: Mutex<Vec<Vec<Vec<u8>>>> = Mutex::new(Vec::new());
    in_namespace(|backend| {
        let mut bench = backend.bench();
        let mut seen = Vec::new();
        let mut state = 7u32;
        for round in 0..60 {
            let mut expected = 0;
            for n in 0..4 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let stride = 1 + (state >> 8) as usize % 1452;
                let len = (stride * (1 + (state >> 20) as usize % 64)).min(60_000);
                let family = (round / 7) % 2;
                bench.send(
                    &pattern(len, round * 4 + n),
                    stride,
                    to(bench.sockets[family]),
                    (state & 3) as u8,
                );
                expected += len.div_ceil(stride);
            }
            bench.io.flush();
            seen.extend(bench.datagrams(expected));
        }
        let stats = bench.io.stats();
        assert_eq!((stats.udp_send_errors, stats.udp_receive_errors), (0, 0));
        SEEN.lock().unwrap().push(seen);
    });
    let seen = SEEN.lock().unwrap();
    assert!(seen.windows(2).all(|pair| pair[0] == pair[1]) && seen.iter().all(|one| one.len() > 1000));
}
