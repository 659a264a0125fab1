use super::*;
use crate::offload::coalesce::RunKind;
use crate::wire::vnet::{F_NEEDS_CSUM, GsoType, VnetHeader, VnetTunnel};
use std::net::{TcpListener, UdpSocket};

/// Where the payload of a UDP packet over IPv4 starts in its frame.
pub(super) const PAYLOAD: usize = VNET_HDR_LEN + 28;

/// A UDP packet of IPv4 from 10.9.0.2:7 to 10.9.0.1 behind an empty virtio-net header; no UDP checksum.
pub(super) fn udp_packet(port: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; VNET_HDR_LEN];
    let total = (28 + payload.len()) as u16;
    packet.extend([0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 9, 0, 2, 10, 9, 0, 1]);
    packet[VNET_HDR_LEN + 2..VNET_HDR_LEN + 4].copy_from_slice(&total.to_be_bytes());
    let sum = checksum(&packet[VNET_HDR_LEN..]);
    packet[VNET_HDR_LEN + 10..VNET_HDR_LEN + 12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(7u16.to_be_bytes());
    packet.extend(port.to_be_bytes());
    packet.extend((total - 20).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    packet
}

fn checksum(bytes: &[u8]) -> u16 {
    !fold(bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum())
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Makes a UDP super-packet of it: segments of `size` bytes, checksum partial.
fn make_super(packet: &mut [u8], size: u16) {
    let udp_len = packet.len() - VNET_HDR_LEN - 20;
    let addresses: u32 = packet[VNET_HDR_LEN + 12..VNET_HDR_LEN + 20]
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let pseudo = fold(addresses + 17 + udp_len as u32);
    packet[VNET_HDR_LEN + 26..VNET_HDR_LEN + 28].copy_from_slice(&pseudo.to_be_bytes());
    packet[..2].copy_from_slice(&[1, 5]);
    packet[2..4].copy_from_slice(&28u16.to_ne_bytes());
    packet[4..6].copy_from_slice(&size.to_ne_bytes());
    packet[6..8].copy_from_slice(&20u16.to_ne_bytes());
    packet[8..10].copy_from_slice(&6u16.to_ne_bytes());
}

pub(super) fn write(bench: &mut Bench, packet: &[u8], cuts: &[usize]) {
    let mut buf = bench.io.alloc().unwrap();
    // Pieces with gaps between them, as a train has.
    let mut pieces = Vec::new();
    let (mut from, mut at) = (0, 40);
    for &cut in cuts.iter().chain([&packet.len()]) {
        buf[at..at + cut - from].copy_from_slice(&packet[from..cut]);
        pieces.push(at..at + cut - from);
        at += cut - from + 48;
        from = cut;
    }
    bench.io.write_tun(&buf.share(), &pieces);
}

pub(super) fn listener() -> (UdpSocket, u16) {
    let socket = UdpSocket::bind("10.9.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let port = socket.local_addr().unwrap().port();
    (socket, port)
}

fn next_frame(bench: &mut Bench) -> TunFrame {
    for _ in 0..5 {
        if let Some(frame) = bench.io.recv_tun() {
            return frame;
        }
        bench.wait();
    }
    panic!("no frame came");
}

#[test]
fn packets_that_are_written_arrive_in_order() {
    in_namespace(|backend| {
        let mut bench = backend.bench();
        let (socket, port) = listener();
        for n in 0..100 {
            write(&mut bench, &udp_packet(port, &pattern(1 + n * 13, n)), &[38]);
        }
        bench.io.flush();
        let mut bytes = [0; 2000];
        for n in 0..100 {
            let (len, from) = socket.recv_from(&mut bytes).unwrap();
            assert_eq!((from, &bytes[..len]), ("10.9.0.2:7".parse().unwrap(), &pattern(1 + n * 13, n)[..]));
        }
        assert_eq!((bench.io.stats().tun_writes, bench.io.stats().tun_write_errors), (100, 0));
        // Only those that wait for datagrams are out: 64 at most.
        assert!(bench.pool.free() >= bench.pool.count() - 64);
    });
}

#[test]
fn a_super_packet_of_many_pieces_arrives_as_its_datagrams() {
    in_namespace(|backend| {
        let mut bench = backend.bench();
        let (socket, port) = listener();
        let payload = pattern(40 * 1300 + 77, 3);
        let mut packet = udp_packet(port, &payload);
        make_super(&mut packet, 1300);
        let cuts: Vec<usize> = (1..=40).map(|n| PAYLOAD + n * 1300).collect();
        write(&mut bench, &packet, &cuts);
        bench.io.flush();
        let mut bytes = [0; 2000];
        for segment in payload.chunks(1300) {
            let len = socket.recv(&mut bytes).unwrap();
            assert_eq!(&bytes[..len], segment);
        }
        let writes = if has_udp_offload() { 1 } else { 41 };
        assert_eq!(bench.io.stats().tun_writes, writes);
    });
}

#[test]
fn packets_to_the_tunnel_are_read_in_order_at_the_start_of_the_buffer() {
    in_namespace(|backend| {
        let mut bench = backend.bench();
        bench.wait_until_quiet();
        let (socket, _) = listener();
        for n in 0..100 {
            socket.send_to(&pattern(100 + n, n), "10.9.0.2:9").unwrap();
        }
        for n in 0..100 {
            let frame = next_frame(&mut bench);
            assert_eq!(frame.buf[PAYLOAD..frame.len], pattern(100 + n, n));
            assert_eq!(frame.buf[VNET_HDR_LEN + 16..VNET_HDR_LEN + 20], [10, 9, 0, 2]);
        }
        assert!(bench.io.recv_tun().is_none());
        assert_eq!(bench.io.stats().tun_reads, 100);
    });
}

#[test]
fn a_super_packet_of_the_kernel_is_read_whole() {
    in_namespace(|backend| {
        if !has_udp_offload() {
            let _ = std::io::stderr().write_all(b"skipped: no UDP super-packets through TUN (Linux 6.2)\n");
            return;
        }
        let mut bench = backend.bench();
        bench.wait_until_quiet();
        let (socket, _) = listener();
        set_option(&socket, libc::SOL_UDP, libc::UDP_SEGMENT, 1000);
        let payload = pattern(30_500, 5);
        socket.send_to(&payload, "10.9.0.2:9").unwrap();
        let frame = next_frame(&mut bench);
        assert_eq!(frame.buf[1] & 0x7f, 5);
        assert_eq!(u16::from_ne_bytes([frame.buf[4], frame.buf[5]]), 1000);
        assert_eq!(frame.buf[PAYLOAD..frame.len], payload);
    });
}

#[test]
fn a_device_that_is_deleted_ends_the_wait_with_an_error() {
    in_namespace(|backend| {
        let mut bench = backend.bench();
        bench.wait_until_quiet();
        ip("link del t0");
        let until = Clock.now() + Duration::from_secs(5);
        let error = loop {
            match bench.io.wait(Some(until)) {
                Err(error) => break error,
                Ok(now) => assert!(now < until, "no error came"),
            }
            assert!(bench.io.recv_tun().is_none());
        };
        assert!(error.to_string().contains("TUN"), "{error}");
        assert!(bench.io.wait(None).is_err(), "and it stays so");
    });
}

#[test]
fn an_interface_that_is_down_costs_the_packets_only() {
    in_namespace(|backend| {
        let mut bench = backend.bench();
        bench.wait_until_quiet();
        let (socket, port) = listener();
        ip("link set t0 down");
        write(&mut bench, &udp_packet(port, b"lost"), &[]);
        bench.io.flush();
        assert_eq!(bench.io.stats().tun_write_errors, 1);
        bench.io.wait(Some(Instant::START)).unwrap();
        assert!(bench.io.recv_tun().is_none());
        ip("link set t0 up");
        write(&mut bench, &udp_packet(port, b"kept"), &[]);
        bench.io.flush();
        assert_eq!(socket.recv(&mut [0; 100]).unwrap(), 4);
        socket.send_to(b"out", "10.9.0.2:9").unwrap();
        while bench.io.recv_tun().is_none_or(|frame| frame.buf[PAYLOAD..frame.len] != *b"out") {
            bench.wait();
        }
    });
}

/// A device in another namespace, with 10.9.0.2/24, and what `open` opened there.
fn elsewhere<T: Send + 'static>(open: impl FnOnce() -> T + Send + 'static) -> (OwnedFd, T) {
    let there = std::thread::spawn(move || {
        // SAFETY: takes no pointers; affects this thread only.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
        let fd = open_device("t1", libc::IFF_TUN);
        ip("addr add 10.9.0.2/24 dev t1");
        ip("link set t1 up");
        (fd, open())
    });
    there.join().unwrap()
}

#[test]
fn tcp_flows_in_super_packets_both_ways() {
    in_namespace(|backend| {
        const BYTES: usize = 3 << 20;
        let mut bench = backend.bench();
        let (far, listener) = elsewhere(|| TcpListener::bind("10.9.0.2:80").unwrap());
        let echo = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            std::io::copy(&mut stream.try_clone().unwrap(), &mut stream).unwrap();
        });
        // This thread's namespace; the threads it makes inherit it.
        let stream = std::thread::spawn(move || {
            let stream = std::net::TcpStream::connect("10.9.0.2:80").unwrap();
            let mut writer = stream.try_clone().unwrap();
            let sent = std::thread::spawn(move || {
                writer.write_all(&pattern(BYTES, 1)).unwrap();
                writer.shutdown(std::net::Shutdown::Write).unwrap();
            });
            let mut came = Vec::new();
            std::io::Read::read_to_end(&mut { stream }, &mut came).unwrap();
            sent.join().unwrap();
            came
        });
        let far_fd = std::os::fd::AsFd::as_fd(&far);
        let (mut supers, mut frame) = ([0, 0], vec![0; 70_000]);
        while !stream.is_finished() {
            bench.io.wait(Some(Clock.now() + Duration::from_millis(1))).unwrap();
            while let Some(frame) = bench.io.recv_tun() {
                supers[0] += u32::from(frame.len > 5000);
                let _ = crate::sys::calls::write(far_fd, &frame.buf[..frame.len]);
            }
            while let Ok(len) = crate::sys::calls::read(far_fd, &mut frame) {
                supers[1] += u32::from(len > 5000);
                write(&mut bench, &frame[..len], &[10, len.min(600)]);
            }
            bench.io.flush();
        }
        assert!(stream.join().unwrap() == pattern(BYTES, 1));
        echo.join().unwrap();
        assert!(supers[0] > 10 && supers[1] > 10, "{supers:?}");
        assert_eq!(bench.io.tun_refuses(), CoalesceOptions::default());
    });
}

#[test]
fn a_super_packet_that_the_kernel_refuses_is_split_and_then_no_more_are_wanted() {
    in_namespace(|backend| {
        let mut bench = backend.bench();
        let (socket, port) = listener();
        // GSO_BY_FRAGS as a segment size is refused (`virtio_net_hdr_to_skb`) and means one segment here.
        let mut bytes = [0; 4000];
        for n in 0..8 {
            assert!(!bench.io.tun_refuses().udp);
            let payload = pattern(1200, n);
            let mut packet = udp_packet(port, &payload);
            make_super(&mut packet, 0xffff);
            write(&mut bench, &packet, &[PAYLOAD, 700]);
            bench.io.flush();
            let len = socket.recv(&mut bytes).unwrap();
            assert_eq!(&bytes[..len], payload);
        }
        assert_eq!(bench.io.tun_refuses(), CoalesceOptions { udp: true, ..CoalesceOptions::default() });
        assert_eq!(bench.io.take_notice(), Some(Notice::TunOffloadOff { kind: RunKind::Udp }));
        assert_eq!(bench.io.take_notice(), None);
        let stats = bench.io.stats();
        assert_eq!((stats.offload_fallbacks, stats.tun_writes, stats.tun_write_errors), (8, 8, 0));
    });
}

/// A super-packet of two segments of TCP in VXLAN without an outer checksum.
fn tunnel_super_packet(port: u16, payload: &[u8]) -> Vec<u8> {
    let mut inside = vec![8, 0, 0, 0, 0, 0, 42, 0, 2, 2, 2, 2, 2, 2, 4, 4, 4, 4, 4, 4, 8, 0];
    inside.extend([0x45, 0]);
    inside.extend((40 + payload.len() as u16).to_be_bytes());
    inside.extend([0, 7, 0x40, 0, 64, 6, 0, 0, 10, 1, 0, 2, 10, 1, 0, 1]);
    inside.extend([0, 9, 0, 9, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 2, 0, 0, 0, 0, 0]);
    inside.extend(payload);
    let mut packet = udp_packet(port, &inside);
    let vnet = VnetHeader {
        flags: F_NEEDS_CSUM,
        gso: GsoType::TcpV4,
        hdr_len: 90,
        gso_size: payload.len() as u16 / 2,
        csum_start: 70,
        csum_offset: 16,
        // Before the outer IP header's end, which the kernel refuses.
        tunnel: Some(VnetTunnel { v6: false, transport: 0, inner: 50 }),
        ..VnetHeader::default()
    };
    packet[..VNET_HDR_LEN].copy_from_slice(&vnet.to_bytes());
    packet
}

#[test]
fn a_tunnels_super_packet_that_the_kernel_refuses_is_split_and_then_no_more_are_wanted() {
    in_namespace(|backend| {
        let mut bench = backend.bench();
        let (socket, port) = listener();
        let mut bytes = [0; 4000];
        for n in 0..8 {
            assert!(!bench.io.tun_refuses().tunnels);
            let payload = pattern(2000, n);
            let packet = tunnel_super_packet(port, &payload);
            write(&mut bench, &packet, &[VNET_HDR_LEN + 90, 1500]);
            bench.io.flush();
            for half in payload.chunks(1000) {
                let len = socket.recv(&mut bytes).unwrap();
                assert_eq!(&bytes[62..len], half);
            }
        }
        let refused = CoalesceOptions { tunnels: true, ..CoalesceOptions::default() };
        assert_eq!(bench.io.tun_refuses(), refused);
        assert_eq!(bench.io.take_notice(), Some(Notice::TunOffloadOff { kind: RunKind::Tunnel }));
        assert_eq!(bench.io.stats().offload_fallbacks, 8);
    });
}

#[test]
fn a_super_packet_refused_among_others_costs_none_of_them() {
    in_namespace(|backend| {
        let mut bench = backend.bench();
        let (socket, port) = listener();
        bench.wait_until_quiet();
        let free = bench.pool.free();
        for n in 0..20 {
            let mut packet = udp_packet(port, &pattern(1200, n));
            if n % 7 == 3 {
                make_super(&mut packet, 0xffff);
            }
            write(&mut bench, &packet, &[PAYLOAD, 700]);
        }
        bench.io.flush();
        let mut bytes = [0; 2000];
        let mut came: Vec<Vec<u8>> = Vec::new();
        for _ in 0..20 {
            let len = socket.recv(&mut bytes).unwrap();
            came.push(bytes[..len].to_vec());
        }
        let sent = |n: usize| pattern(1200, n);
        // The refused ones may come after what was flushed with them; the others keep their order.
        let whole: Vec<usize> = (0..20).filter(|n| n % 7 != 3).collect();
        let places = whole.iter().map(|&n| came.iter().position(|packet| *packet == sent(n)).unwrap());
        assert!(places.is_sorted());
        assert!([3, 10, 17].into_iter().all(|n| came.contains(&sent(n))));
        let stats = bench.io.stats();
        assert_eq!((stats.offload_fallbacks, stats.tun_writes, stats.tun_write_errors), (3, 20, 0));
        assert_eq!(bench.pool.free(), free);
    });
}

/// What a turn does after it looked at its mailboxes, in which the waker may ring at any point.
#[derive(Clone, Copy, Debug)]
enum Step {
    Write,
    Flush,
    Send,
    Rebind,
    Ring,
}

#[test]
fn a_ring_amid_a_turn_is_not_slept_through_whatever_the_turn_does() {
    use Step::*;
    let works: [&[Step]; 8] = [
        &[Flush],
        &[Write, Flush],
        &[Write, Write, Flush],
        &[Write, Write, Write, Flush, Flush],
        &[Write, Write, Send, Flush],
        &[Send, Flush, Write, Write, Flush],
        &[Rebind, Flush],
        &[Write, Write, Rebind, Flush],
    ];
    in_namespace(move |backend| {
        let mut bench = backend.bench();
        let (socket, port) = listener();
        for work in works {
            for place in 0..=work.len() {
                bench.wait_until_quiet();
                let mut steps = work.to_vec();
                steps.insert(place, Ring);
                for step in &steps {
                    match step {
                        Write => write(&mut bench, &udp_packet(port, b"written"), &[]),
                        Flush => bench.io.flush(),
                        Send => bench.send(b"sent", 4, to(socket.local_addr().unwrap()), 0),
                        Rebind => bench.io.rebind(Some(sockets().0)),
                        Ring => bench.waker.wake(),
                    }
                }
                let until = Clock.now() + Duration::from_secs(4);
                assert!(bench.io.wait(Some(until)).unwrap() < until, "{steps:?}");
            }
        }
    });
}
