//! Tests of tunnels in this very process, on real devices.

use super::*;
use crate::crypto::x25519::{PrivateKey, PublicKey};
use crate::sys::link;
use crate::sys::netns::{eventually, in_netns, ip};
use std::net::SocketAddr;

const LIMIT: Duration = Duration::from_secs(20);

fn builder(name: &str) -> Builder {
    Tunnel::builder(name).workers(2).pin(false)
}

fn key(seed: u8) -> PublicKey {
    PrivateKey::from_bytes([seed; 32]).public()
}

fn peer(seed: u8) -> PeerChange {
    PeerChange::new(key(seed)).allow(format!("10.0.{seed}.0/24").parse().unwrap())
}

/// Signals that this process has handlers for, its umask, its working directory, its limit on files.
fn process() -> (String, String, std::path::PathBuf, String) {
    let line = |file: &str, key: &str| {
        let text = std::fs::read_to_string(format!("/proc/self/{file}")).unwrap();
        text.lines().find(|line| line.starts_with(key)).unwrap_or_default().to_owned()
    };
    let directory = std::env::current_dir().unwrap();
    (line("status", "SigCgt"), line("status", "Umask"), directory, line("limits", "Max open files"))
}

#[test]
fn two_tunnels_of_one_process_are_started_asked_and_stopped_and_leave_the_process_as_it_was() {
    in_netns(|| {
        let before = process();
        let private = PrivateKey::from_bytes([1; 32]);
        let change = Change::new().private_key(private).listen_port(7001).peer(peer(2)).peer(peer(3));
        let first = builder("rt-lib0").configure(change).control_socket().start().unwrap();
        let second = builder("rt-lib1").backend(Backend::Syscalls).start().unwrap();
        assert_eq!((first.name(), first.workers()), ("rt-lib0", 2));
        let status = first.status().unwrap();
        assert_eq!((status.up, status.listen_port, status.peers, status.alive), (false, 7001, 2, 0));
        assert_eq!(status.public_key, Some(key(1)));
        assert!(!second.status().unwrap().io_uring);
        assert_eq!(second.status().unwrap().public_key, None);
        ip("link set rt-lib0 up");
        eventually(|| first.status().unwrap().up.then_some(()));
        assert_eq!(process(), before);
        let socket = socket::path("rt-lib0");
        assert!(socket.exists() && !socket::path("rt-lib1").exists());
        first.stop();
        assert!(matches!(first.wait_timeout(LIMIT), Some(Ok(()))));
        assert!(!socket.exists());
        assert!(matches!(first.status(), Err(Error::Stopped { .. })));
        assert!(matches!(first.configure(Change::new()), Err(Error::Stopped { .. })));
        assert!(second.wait_timeout(Duration::ZERO).is_none(), "the other one still runs");
        eventually(|| link::index("rt-lib0").err());
        link::index("rt-lib1").unwrap();
    });
}

#[test]
fn peers_are_told_as_they_are_more_than_a_page_of_them_too() {
    in_netns(|| {
        let tunnel = builder("rt-lib2").start().unwrap();
        let endpoint: SocketAddr = "192.0.2.1:51820".parse().unwrap();
        let named = |n: usize| {
            let mut bytes = [9; 32];
            bytes[..8].copy_from_slice(&n.to_le_bytes());
            PublicKey(bytes)
        };
        let many = 2 * PAGE + 1;
        let change = (0..many).fold(Change::new(), |change, n| change.peer(PeerChange::new(named(n))));
        tunnel.configure(change).unwrap();
        tunnel
            .configure(
                Change::new().peer(
                    PeerChange::new(named(1))
                        .endpoint(endpoint)
                        .persistent_keepalive(25)
                        .allow("10.0.0.0/8".parse().unwrap()),
                ),
            )
            .unwrap();
        let peers = tunnel.peers().unwrap();
        let keys: Vec<PublicKey> = peers.iter().map(|peer| peer.public_key).collect();
        assert_eq!(keys, (0..many).map(named).collect::<Vec<_>>());
        let peer = &peers[1];
        assert_eq!(
            (peer.endpoint, peer.persistent_keepalive, peer.last_handshake),
            (Some(endpoint), 25, None)
        );
        assert_eq!(peer.allowed_ips, ["10.0.0.0/8".parse().unwrap()]);
        let change = Change::new()
            .peer(PeerChange::remove(named(0)))
            .peer(PeerChange::new(named(many)).update_only())
            .peer(PeerChange::new(named(1)).replace_allowed_ips());
        tunnel.configure(change).unwrap();
        let peers = tunnel.peers().unwrap();
        assert_eq!((peers.len(), peers[0].public_key), (many - 1, named(1)));
        assert!(peers[0].allowed_ips.is_empty());
        tunnel.configure(Change::new().replace_peers()).unwrap();
        assert!(tunnel.peers().unwrap().is_empty());
    });
}

#[test]
fn a_change_that_cannot_be_made_changes_nothing_and_says_why() {
    in_netns(|| {
        let taken = std::net::UdpSocket::bind("0.0.0.0:7002").unwrap();
        let tunnel = builder("rt-lib3").configure(Change::new().listen_port(7003)).start().unwrap();
        ip("link set rt-lib3 up");
        eventually(|| tunnel.status().unwrap().up.then_some(()));
        let error = tunnel.configure(Change::new().listen_port(7002).peer(peer(2))).unwrap_err();
        let Error::Bind { name, source } = &error else { panic!("{error}") };
        assert_eq!((name.as_str(), source.kind()), ("rt-lib3", std::io::ErrorKind::AddrInUse));
        let status = tunnel.status().unwrap();
        assert_eq!((status.listen_port, status.peers), (7003, 0));
        drop(taken);
        tunnel.configure(Change::new().listen_port(7002)).unwrap();
        assert_eq!(tunnel.status().unwrap().listen_port, 7002);
    });
}

#[test]
fn a_tunnel_ends_with_its_last_handle_and_with_its_interface() {
    in_netns(|| {
        let tunnel = builder("rt-lib4").start().unwrap();
        let other = tunnel.clone();
        drop(tunnel);
        other.status().unwrap();
        drop(other);
        eventually(|| link::index("rt-lib4").err());
        let tunnel = builder("rt-lib5").start().unwrap();
        let waiting = std::thread::spawn({
            let tunnel = tunnel.clone();
            move || tunnel.wait()
        });
        ip("link delete dev rt-lib5");
        assert!(matches!(waiting.join().unwrap(), Err(Error::Deleted { name, .. }) if name == "rt-lib5"));
        assert!(matches!(tunnel.wait_timeout(LIMIT), Some(Err(Error::Deleted { .. }))));
    });
}

#[test]
fn a_tunnel_that_cannot_be_started_says_why_and_leaves_nothing() {
    let error = Tunnel::builder("no/name").start().unwrap_err();
    assert!(matches!(&error, Error::Name { name, .. } if name == "no/name"), "{error}");
    in_netns(|| {
        ip("link add rt-lib6 type veth peer name rt-lib7");
        let error = builder("rt-lib6").start().unwrap_err();
        assert!(matches!(error, Error::Interface { .. }), "{error}");
        let null = std::fs::File::open("/dev/null").unwrap();
        let error = Tunnel::builder("rt-lib8").tun_fd(null.into()).start().unwrap_err();
        assert!(matches!(error, Error::Interface { .. }), "{error}");
    });
}
