use super::*;
use crate::io::tun::{Tun, TunConfig, TunOffloads};
use crate::io::udp::{SocketOptions, UdpConfig, UdpSockets, bind};
use crate::sys::netns::{eventually, in_netns, ip};
use crate::wire::vnet::VNET_HDR_LEN;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, UdpSocket};

const WORKERS: usize = 4;
const COUNT: WorkerCount = WorkerCount::nearest(WORKERS);

fn prefix(text: &str) -> Prefix {
    let (addr, len) = text.split_once('/').unwrap();
    Prefix::new(addr.parse().unwrap(), len.parse().unwrap()).unwrap()
}

// ---------------------------------------------------------------- UDP

/// A group of sockets on loopback and how to reach it.
struct Group {
    sockets: Vec<UdpSocket>,
    target: SocketAddr,
}

fn groups(gro: bool) -> [Group; 2] {
    let (group, pairs) = bind(&UdpConfig {
        port: 0,
        mark: 0,
        workers: COUNT,
        options: SocketOptions { gro, ..SocketOptions::default() },
    })
    .unwrap();
    assert!(group.steered);
    let take = |pick: fn(&UdpSockets) -> &Option<OwnedFd>| {
        pairs.iter().map(|pair| UdpSocket::from(pick(pair).as_ref().unwrap().try_clone().unwrap())).collect()
    };
    [
        Group {
            sockets: take(|pair| &pair.v4),
            target: SocketAddr::new("127.0.0.1".parse().unwrap(), group.port),
        },
        Group { sockets: take(|pair| &pair.v6), target: SocketAddr::new("::1".parse().unwrap(), group.port) },
    ]
}

impl Group {
    /// A socket to send from, with a port of its own.
    fn sender(&self) -> UdpSocket {
        let any = if self.target.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" };
        let sender = UdpSocket::bind(any).unwrap();
        sender.connect(self.target).unwrap();
        sender
    }

    /// The worker that gets what is sent.
    fn worker_of(&self, sender: &UdpSocket, message: &[u8]) -> usize {
        sender.send(message).unwrap();
        self.receive().0
    }

    /// The worker that has received something, and how much.
    fn receive(&self) -> (usize, usize) {
        let mut buffer = [0; 65_535];
        eventually(|| {
            self.sockets
                .iter()
                .enumerate()
                .find_map(|(worker, socket)| socket.recv(&mut buffer).ok().map(|len| (worker, len)))
        })
    }
}

/// A message of type `kind` whose receiver index at `offset` has this low byte; all else looks like other workers' bytes.
fn message(kind: u8, offset: usize, worker: u8) -> Vec<u8> {
    let mut message = vec![0x03; 160];
    message[..4].copy_from_slice(&[kind, 0, 0, 0]);
    message[offset] = worker;
    message
}

#[test]
fn a_datagram_reaches_the_worker_its_receiver_index_names() {
    in_netns(|| {
        for group in groups(true) {
            let sender = group.sender();
            for worker in (0..WORKERS as u8).chain((0..WORKERS as u8).rev()) {
                for (kind, offset) in [(4, 4), (3, 4), (2, 8)] {
                    let got = group.worker_of(&sender, &message(kind, offset, worker));
                    assert_eq!(got, usize::from(worker), "type {kind} over {}", group.target);
                }
            }
        }
    });
}

#[test]
fn what_names_a_worker_of_another_process_reaches_the_one_that_took_over_from_it() {
    in_netns(|| {
        for group in groups(true) {
            let sender = group.sender();
            for named in [WORKERS as u8, WORKERS as u8 + 1, 255] {
                for (kind, offset) in [(4, 4), (3, 4), (2, 8)] {
                    let got = group.worker_of(&sender, &message(kind, offset, named));
                    assert_eq!(got, usize::from(named) % WORKERS, "type {kind} over {}", group.target);
                }
            }
        }
    });
}

#[test]
fn of_a_group_with_more_sockets_than_workers_the_others_get_nothing() {
    in_netns(|| {
        for group in groups(true) {
            let fewer = WorkerCount::nearest(2);
            attach_udp_to_some(group.sockets[3].as_fd(), fewer).unwrap();
            for _ in 0..20 {
                let sender = group.sender();
                assert!(group.worker_of(&sender, &message(1, 4, 3)) < 2);
                assert!(group.worker_of(&sender, &[4]) < 2);
                assert_eq!(group.worker_of(&sender, &message(4, 4, 3)), 1);
            }
        }
    });
}

#[test]
fn the_shortest_data_message_is_steered() {
    in_netns(|| {
        let [group, _] = groups(true);
        let sender = group.sender();
        for worker in 0..WORKERS as u8 {
            assert_eq!(group.worker_of(&sender, &message(4, 4, worker)[..32]), usize::from(worker));
        }
    });
}

#[test]
fn what_names_no_worker_goes_by_the_kernels_hash() {
    let strangers = [
        message(1, 4, 3),
        message(0, 4, 3),
        message(5, 4, 3),
        message(4, 4, 3)[..31].to_vec(),
        vec![4],
        vec![],
    ];
    in_netns(move || {
        for group in groups(true) {
            let senders: Vec<UdpSocket> = (0..64).map(|_| group.sender()).collect();
            for stranger in &strangers {
                let spread: Vec<usize> =
                    senders.iter().map(|sender| group.worker_of(sender, stranger)).collect();
                let again: Vec<usize> =
                    senders.iter().map(|sender| group.worker_of(sender, stranger)).collect();
                assert_eq!(spread, again, "one flow, one worker");
                assert!(spread.iter().any(|worker| *worker != spread[0]), "64 flows on one worker");
            }
        }
    });
}

#[test]
fn a_train_goes_whole_to_its_first_segments_worker() {
    in_netns(|| {
        for group in groups(true) {
            let sender = group.sender();
            sockopt::set(sender.as_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, 160).unwrap();
            for worker in 0..WORKERS as u8 {
                let others = (0..WORKERS as u8).flat_map(|other| message(4, 4, other));
                let train: Vec<u8> = message(4, 4, worker).into_iter().chain(others).collect();
                sender.send(&train).unwrap();
                assert_eq!(group.receive(), (usize::from(worker), train.len()));
            }
        }
    });
}

#[test]
fn a_stranger_who_joined_the_group_is_never_named() {
    in_netns(|| {
        for group in groups(true) {
            attach_udp(group.sockets[0].as_fd(), WorkerCount::nearest(WORKERS - 1)).unwrap();
            let for_stranger = message(4, 4, WORKERS as u8 - 1);
            let named = (0..64).all(|_| group.worker_of(&group.sender(), &for_stranger) == WORKERS - 1);
            assert!(!named, "64 flows to the socket beyond the workers");
        }
    });
}

// ---------------------------------------------------------------- TUN

/// A steered TUN device that all of 10.0.0.0/8 and fd00::/16 is routed to.
struct Tunnel {
    queues: Vec<File>,
    steering: TunSteering,
    offloads: TunOffloads,
}

impl Tunnel {
    fn new() -> Tunnel {
        let config = TunConfig { name: "rt-st0".into(), queues: COUNT, mtu: 1420, offloads: true };
        let tun = Tun::create(&config).unwrap();
        ip("addr add 10.0.0.1/8 dev rt-st0");
        ip("-6 addr add fd00::1/16 dev rt-st0 nodad");
        ip("link set rt-st0 up");
        let steering = TunSteering::attach(tun.queues[0].as_fd(), COUNT).unwrap();
        let queues = tun.queues.into_iter().map(File::from).collect();
        Tunnel { queues, steering, offloads: tun.offloads }
    }

    /// Sends a datagram of `len` bytes to `to` and returns the queue of each of its packets.
    fn queues_of(&mut self, sender: &UdpSocket, to: &str, len: usize) -> Vec<usize> {
        let to: IpAddr = to.parse().unwrap();
        sender.send_to(&vec![0; len], (to, 4433)).unwrap();
        let mut queues = Vec::new();
        eventually(|| {
            for (number, queue) in self.queues.iter_mut().enumerate() {
                while let Some(packet) = read(queue) {
                    if destination(&packet) == Some(to) {
                        queues.push(number);
                    }
                }
            }
            (!queues.is_empty()).then_some(())
        });
        queues
    }

    fn queue_of(&mut self, sender: &UdpSocket, to: &str) -> usize {
        let queues = self.queues_of(sender, to, 100);
        assert_eq!(queues.len(), 1, "one datagram, one packet");
        queues[0]
    }

    fn set(&mut self, text: &str, target: Target) {
        self.steering.set(prefix(text), target).unwrap();
    }
}

fn read(queue: &mut File) -> Option<Vec<u8>> {
    let mut frame = vec![0; 70_000];
    match queue.read(&mut frame) {
        Ok(len) => Some(frame[VNET_HDR_LEN..len].to_vec()),
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => panic!("{error}"),
    }
}

fn destination(packet: &[u8]) -> Option<IpAddr> {
    match packet[0] >> 4 {
        4 => Some(<[u8; 4]>::try_from(&packet[16..20]).unwrap().into()),
        6 => Some(<[u8; 16]>::try_from(&packet[24..40]).unwrap().into()),
        _ => None,
    }
}

fn sender_to(to: &str) -> UdpSocket {
    UdpSocket::bind(if to.contains(':') { "[fd00::1]:0" } else { "10.0.0.1:0" }).unwrap()
}

/// One destination under nested prefixes of each family.
const FAMILIES: [(&str, [&str; 3]); 2] = [
    ("10.1.2.3", ["10.0.0.0/8", "10.1.2.0/24", "10.1.2.3/32"]),
    ("fd00:1:2::3", ["fd00::/16", "fd00:1:2::/64", "fd00:1:2::3/128"]),
];

#[test]
fn a_packet_reaches_the_queue_of_its_longest_prefix_and_changes_act_at_once() {
    in_netns(|| {
        let mut tunnel = Tunnel::new();
        for (to, [wide, middle, narrow]) in FAMILIES {
            let sender = sender_to(to);
            for worker in 0..WORKERS as u8 {
                tunnel.set(wide, Target::Worker(worker));
                assert_eq!(tunnel.queue_of(&sender, to), usize::from(worker));
            }
            tunnel.set(narrow, Target::Worker(1));
            tunnel.set(middle, Target::Worker(2));
            assert_eq!(tunnel.queue_of(&sender, to), 1);
            tunnel.steering.remove(prefix(narrow)).unwrap();
            assert_eq!(tunnel.queue_of(&sender, to), 2);
            tunnel.steering.remove(prefix(middle)).unwrap();
            assert_eq!(tunnel.queue_of(&sender, to), 3);
            tunnel.steering.remove(prefix(wide)).unwrap();
            tunnel.steering.remove(prefix(wide)).unwrap();
        }
    });
}

#[test]
fn a_default_route_is_the_prefix_of_everything() {
    in_netns(|| {
        let mut tunnel = Tunnel::new();
        for (to, everything) in [("10.9.9.9", "0.0.0.0/0"), ("fd00:9::9", "::/0")] {
            tunnel.set(everything, Target::Worker(2));
            assert_eq!(tunnel.queue_of(&sender_to(to), to), 2);
        }
    });
}

/// Asserts that each of 64 flows keeps to one queue and that together they use all.
fn assert_spread(tunnel: &mut Tunnel, flows: &[(UdpSocket, String)]) {
    let mut used = [0; WORKERS];
    for (sender, to) in flows {
        let first = tunnel.queue_of(sender, to);
        assert_eq!(tunnel.queue_of(sender, to), first, "a flow changed its queue");
        used[first] += 1;
    }
    assert!(!used.contains(&0), "{} flows over queues: {used:?}", flows.len());
}

fn flows_by_port(to: &str) -> Vec<(UdpSocket, String)> {
    (0..64).map(|_| (sender_to(to), to.to_owned())).collect()
}

#[test]
fn spread_and_unknown_destinations_go_by_flow() {
    in_netns(|| {
        let mut tunnel = Tunnel::new();
        for (to, [wide, _, narrow]) in FAMILIES {
            let flows = flows_by_port(to);
            assert_spread(&mut tunnel, &flows);
            tunnel.set(wide, Target::Worker(1));
            tunnel.set(narrow, Target::Spread);
            assert_spread(&mut tunnel, &flows);
        }
    });
}

#[test]
fn flows_differ_by_address_alone() {
    in_netns(|| {
        let mut tunnel = Tunnel::new();
        for base in ["10.7.7.", "fd00:7::"] {
            let sender = sender_to(base);
            let to = (1..65).map(|host| format!("{base}{host}"));
            let flows: Vec<_> = to.map(|to| (sender.try_clone().unwrap(), to)).collect();
            assert_spread(&mut tunnel, &flows);
        }
    });
}

#[test]
fn all_fragments_of_a_datagram_take_one_queue() {
    in_netns(|| {
        let mut tunnel = Tunnel::new();
        for (to, _) in FAMILIES {
            for (sender, _) in flows_by_port(to).iter().take(16) {
                let queues = tunnel.queues_of(sender, to, 5000);
                assert!(queues.len() > 3, "{} fragments", queues.len());
                assert!(queues.iter().all(|queue| *queue == queues[0]), "{queues:?}");
            }
        }
    });
}

#[test]
fn super_packets_come_whole_out_of_every_queue() {
    in_netns(|| {
        let mut tunnel = Tunnel::new();
        let packets = if tunnel.offloads.uso { 1 } else { 20 };
        for (to, [wide, ..]) in FAMILIES {
            let sender = sender_to(to);
            sockopt::set(sender.as_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, 1000).unwrap();
            for worker in 0..WORKERS as u8 {
                tunnel.set(wide, Target::Worker(worker));
                assert_eq!(tunnel.queues_of(&sender, to, 20_000), vec![usize::from(worker); packets]);
            }
        }
    });
}

#[test]
fn dropping_the_steering_gives_the_choice_back_to_the_kernel() {
    in_netns(|| {
        let mut tunnel = Tunnel::new();
        let (to, [wide, ..]) = FAMILIES[0];
        tunnel.set(wide, Target::Worker(2));
        let flows = flows_by_port(to);
        assert!(flows.iter().all(|(sender, to)| tunnel.queue_of(sender, to) == 2));
        let Tunnel { queues, steering, offloads } = tunnel;
        let device = queues[0].try_clone().unwrap();
        drop(steering);
        // Another one on the device, detached by hand, so that `Tunnel` can go on reading.
        let steering = TunSteering::attach(device.as_fd(), COUNT).unwrap();
        ioctl::set_steering(device.as_fd(), None).unwrap();
        let mut tunnel = Tunnel { queues, steering, offloads };
        assert!(flows.iter().any(|(sender, to)| tunnel.queue_of(sender, to) != 2));
    });
}

#[test]
fn a_worker_without_queue_is_refused() {
    in_netns(|| {
        let mut tunnel = Tunnel::new();
        let error = tunnel.steering.set(prefix("10.0.0.0/8"), Target::Worker(WORKERS as u8)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    });
}

#[test]
fn a_file_that_is_no_tun_cannot_be_steered() {
    let null = File::open("/dev/null").unwrap();
    assert!(TunSteering::attach(null.as_fd(), WorkerCount::ONE).is_err());
}
