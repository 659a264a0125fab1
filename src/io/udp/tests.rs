use super::*;
use crate::sys::netns::{eventually, in_netns, ip};
use std::io::ErrorKind;
use std::net::UdpSocket;
use std::os::fd::BorrowedFd;
use std::process::Command;

fn config(port: u16, workers: usize) -> UdpConfig {
    UdpConfig { port, mark: 0, workers: WorkerCount::nearest(workers), options: SocketOptions::default() }
}

fn option(socket: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int) -> libc::c_int {
    sockopt::get(socket, level, name).unwrap()
}

fn bound_port(socket: &OwnedFd) -> u16 {
    SockRef::from(socket).local_addr().unwrap().as_socket().unwrap().port()
}

fn sysctl(setting: &str) {
    assert!(Command::new("sysctl").args(["-qw", setting]).status().unwrap().success(), "{setting}");
}

/// What arrives at a non-blocking socket.
fn receive(socket: &UdpSocket) -> usize {
    let mut buffer = [0; 65_535];
    eventually(|| socket.recv(&mut buffer).ok())
}

#[test]
fn every_worker_gets_a_pair_on_one_port() {
    in_netns(|| {
        for (asked, workers) in [(0, 1), (0, 4), (51_820, 1), (51_821, 3)] {
            let (group, pairs) = bind(&config(asked, workers)).unwrap();
            assert!(group.port != 0 && (asked == 0 || asked == group.port));
            assert_eq!(pairs.len(), workers);
            assert_eq!(group.steered, workers > 1);
            for pair in &pairs {
                assert_eq!(pair.port, group.port);
                assert_eq!(bound_port(pair.v4.as_ref().unwrap()), group.port);
                assert_eq!(bound_port(pair.v6.as_ref().unwrap()), group.port);
            }
        }
    });
}

#[test]
fn a_port_that_anyone_holds_in_any_family_is_refused_by_number() {
    in_netns(|| {
        for (holder, port) in [("127.0.0.1", 4711), ("0.0.0.0", 4712), ("::1", 4713), ("::", 4714)] {
            let _holder = UdpSocket::bind((holder, port)).unwrap();
            for workers in [1, 2] {
                let error = bind(&config(port, workers)).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::AddrInUse);
                assert_eq!(errno(&error), Some(libc::EADDRINUSE));
                assert!(error.to_string().contains(&port.to_string()), "{error}");
            }
        }
        // A failed bind leaves nothing behind.
        eventually(|| bind(&config(4711, 2)).ok());
    });
}

#[test]
fn a_group_of_the_same_user_is_not_joined() {
    in_netns(|| {
        let _first = bind(&config(4711, 2)).unwrap();
        assert_eq!(bind(&config(4711, 2)).unwrap_err().kind(), ErrorKind::AddrInUse);
    });
}

#[test]
fn a_lone_worker_cannot_be_joined() {
    in_netns(|| {
        let _lone = bind(&config(4711, 1)).unwrap();
        let joiner = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        joiner.set_reuse_port(true).unwrap();
        let error = joiner.bind(&wildcard(Family::Ipv4, 4711)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
    });
}

#[test]
fn any_port_means_one_that_is_free_in_both_families() {
    in_netns(|| {
        // Three ports to choose from, all but one taken in IPv6: IPv4 alone would often be given another.
        sysctl("net.ipv4.ip_local_port_range=50001 50003");
        let _taken = [50_001, 50_003].map(|port| UdpSocket::bind(("::1", port)).unwrap());
        let held = bind(&config(0, 2)).unwrap();
        assert_eq!(held.0.port, 50_002);
        let error = bind(&config(0, 2)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
    });
}

#[test]
fn the_port_is_free_again_when_group_and_workers_have_let_go() {
    in_netns(|| {
        let (group, pairs) = bind(&config(4711, 2)).unwrap();
        drop(pairs);
        assert_eq!(bind(&config(4711, 2)).unwrap_err().kind(), ErrorKind::AddrInUse);
        drop(group);
        eventually(|| bind(&config(4711, 2)).ok());
    });
}

#[test]
fn sockets_have_the_options_that_the_backends_rely_on() {
    in_netns(|| {
        for options in [
            SocketOptions::default(),
            SocketOptions { gro: false, buffer: MIN_SOCKET_BUFFER },
            SocketOptions { buffer: MAX_SOCKET_BUFFER, ..SocketOptions::default() },
        ] {
            let (_, pairs) = bind(&UdpConfig { options, ..config(0, 2) }).unwrap();
            for pair in &pairs {
                let (v4, v6) = (pair.v4.as_ref().unwrap().as_fd(), pair.v6.as_ref().unwrap().as_fd());
                for socket in [v4, v6] {
                    assert!(SockRef::from(&socket).nonblocking().unwrap());
                    assert_eq!(option(socket, libc::SOL_UDP, libc::UDP_GRO), libc::c_int::from(options.gro));
                    for buffer in [libc::SO_RCVBUF, libc::SO_SNDBUF] {
                        assert_eq!(
                            option(socket, libc::SOL_SOCKET, buffer),
                            2 * options.buffer as libc::c_int
                        );
                    }
                }
                let ip = |name| option(v4, libc::IPPROTO_IP, name);
                assert_eq!((ip(libc::IP_PKTINFO), ip(libc::IP_RECVTOS)), (1, 1));
                assert_eq!(ip(libc::IP_MTU_DISCOVER), libc::IP_PMTUDISC_DONT);
                let ipv6 = |name| option(v6, libc::IPPROTO_IPV6, name);
                assert_eq!((ipv6(libc::IPV6_RECVPKTINFO), ipv6(libc::IPV6_RECVTCLASS)), (1, 1));
                assert_eq!(
                    (ipv6(libc::IPV6_MTU_DISCOVER), ipv6(libc::IPV6_V6ONLY)),
                    (libc::IPV6_PMTUDISC_DONT, 1)
                );
            }
        }
    });
}

#[test]
fn the_mark_is_set_at_birth_and_changed_on_every_socket() {
    in_netns(|| {
        let (group, pairs) = bind(&UdpConfig { mark: 0xca6c, ..config(0, 2) }).unwrap();
        let marks = || -> Vec<u32> {
            let all = pairs.iter().flat_map(|pair| [&pair.v4, &pair.v6]).flatten();
            all.map(|socket| SockRef::from(socket).mark().unwrap()).collect()
        };
        assert_eq!(marks(), [0xca6c; 4]);
        group.clone().set_mark(7).unwrap();
        assert_eq!(marks(), [7; 4]);
        group.set_mark(0).unwrap();
        assert_eq!(marks(), [0; 4]);
    });
}

#[test]
fn a_datagram_larger_than_the_path_is_fragmented() {
    in_netns(|| {
        ip("link set lo mtu 1300");
        let (_, senders) = bind(&config(0, 1)).unwrap();
        let (group, receivers) = bind(&config(0, 1)).unwrap();
        let sender = senders.into_iter().next().unwrap();
        let receiver = receivers.into_iter().next().unwrap();
        for (from, to, address) in [(sender.v4, receiver.v4, "127.0.0.1"), (sender.v6, receiver.v6, "::1")] {
            let (from, to) = (UdpSocket::from(from.unwrap()), UdpSocket::from(to.unwrap()));
            assert_eq!(from.send_to(&[0; 1452], (address, group.port)).unwrap(), 1452);
            assert_eq!(receive(&to), 1452);
        }
    });
}

#[test]
fn a_train_passes_with_fragmentation_allowed_while_its_segments_fit_the_path() {
    in_netns(|| {
        ip("link set lo mtu 1500");
        let (_, senders) = bind(&config(0, 1)).unwrap();
        let (group, receivers) = bind(&config(0, 1)).unwrap();
        let sender = senders.into_iter().next().unwrap();
        let receiver = receivers.into_iter().next().unwrap();
        for (from, to, address) in [(sender.v4, receiver.v4, "127.0.0.1"), (sender.v6, receiver.v6, "::1")] {
            let (from, to) = (UdpSocket::from(from.unwrap()), UdpSocket::from(to.unwrap()));
            let segment = |size: libc::c_int| {
                sockopt::set(from.as_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, size).unwrap();
            };
            segment(1452);
            from.send_to(&[0; 45 * 1452], (address, group.port)).unwrap();
            assert_eq!(receive(&to), 45 * 1452);
            // Wider than the path, the kernel refuses the train: the backend must send such segments one by one.
            segment(1480);
            let error = from.send_to(&[0; 3 * 1480], (address, group.port)).unwrap_err();
            assert!(matches!(error.raw_os_error(), Some(libc::EMSGSIZE | libc::EINVAL)), "{error}");
            segment(0);
            from.send_to(&[0; 1480], (address, group.port)).unwrap();
            assert_eq!(receive(&to), 1480);
        }
    });
}

#[test]
fn a_missing_family_is_no_error_and_other_failures_are() {
    let failed = |number| host_has::<()>(Err(explain(io::Error::from_raw_os_error(number), "bind")));
    for number in [libc::EAFNOSUPPORT, libc::EADDRNOTAVAIL] {
        assert!(matches!(failed(number), Ok(None)));
    }
    for number in [libc::EADDRINUSE, libc::EACCES, libc::EMFILE] {
        assert_eq!(errno(&failed(number).unwrap_err()), Some(number));
    }
}

#[test]
fn without_ipv6_addresses_sockets_are_bound_all_the_same() {
    in_netns(|| {
        sysctl("net.ipv6.conf.all.disable_ipv6=1");
        let (group, pairs) = bind(&config(0, 2)).unwrap();
        let socket = UdpSocket::from(pairs[0].v4.as_ref().unwrap().try_clone().unwrap());
        assert_eq!(bound_port(pairs[1].v4.as_ref().unwrap()), group.port);
        socket.send_to(&[1], ("127.0.0.1", 9)).unwrap();
    });
}

#[test]
fn a_privileged_port_names_the_capability() {
    in_netns(|| {
        sysctl("net.ipv4.ip_unprivileged_port_start=1024");
        // SAFETY: the raw system call changes this thread alone (libc's function would change all); root may.
        assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, 65_534, 65_534, 65_534) }, 0);
        let error = bind(&config(53, 2)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        assert!(error.to_string().contains("CAP_NET_BIND_SERVICE"), "{error}");
        let error = bind(&UdpConfig { mark: 1, ..config(0, 1) }).unwrap_err();
        assert!(error.to_string().contains("fwmark 0x1 needs CAP_NET_ADMIN"), "{error}");
        bind(&config(0, 2)).expect("unprivileged users get smaller buffers");
    });
}

#[test]
fn features_match_what_a_train_needs() {
    in_netns(|| {
        let features = UdpFeatures::probe();
        let (_, pairs) = bind(&config(0, 1)).unwrap();
        let gro = option(pairs[0].v4.as_ref().unwrap().as_fd(), libc::SOL_UDP, libc::UDP_GRO);
        assert_eq!(features.gro, gro == 1);
        assert!(features.gso || !features.gro, "GSO is the older of the two");
    });
}
