//! What anybody may send: datagrams of every length and type, and garbage on the UAPI socket.

use crate::implementation::{RINGTUN_TWO, stand_in, uapi_socket};
use crate::lab::{find_program, skip};
use crate::pair::{A, B, Pair, V4, V6};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Arguments: address, port. Datagrams of every length up to beyond the MTU, of every type, of the right lengths with
/// random contents, and trains of unlike parts (UDP_SEGMENT, socket option 103 of level 17).
const FLOOD: &str = r"
import errno, os, random, socket, struct, sys
address, port = sys.argv[1], int(sys.argv[2])
family = socket.AF_INET6 if ':' in address else socket.AF_INET
s = socket.socket(family, socket.SOCK_DGRAM)
s.connect((address, port))
seed = random.Random(1)
def send(data, *control):
    try:
        s.sendmsg([data], control)
    except OSError as error:
        if error.errno not in (errno.ECONNREFUSED, errno.EINVAL, errno.EMSGSIZE, errno.ENOBUFS, errno.EIO):
            raise
for size in range(0, 2048):
    send(seed.randbytes(size))
    for kind in (1, 2, 3, 4):
        send((struct.pack('<I', kind) + seed.randbytes(size))[:size])
for kind in range(256):
    for size in (1, 4, 16, 32, 64, 92, 148, 1452):
        send((bytes([kind]) + seed.randbytes(size))[:size])
for size, kind in ((148, 1), (92, 2), (64, 3), (32, 4), (1452, 4)):
    for _ in range(500):
        send((struct.pack('<I', kind) + seed.randbytes(size))[:size])
for stride in (1, 3, 31, 32, 33, 92, 148, 1452):
    for count in (1, 2, 40):
        train = b''.join((struct.pack('<I', seed.choice((1, 2, 3, 4, 77))) + seed.randbytes(1500))[:stride] for _ in range(count))
        for cut in (0, 1, stride // 2):
            send(train[:len(train) - cut], (17, 103, struct.pack('<H', stride)))
send(seed.randbytes(65507))
";

#[test]
fn datagrams_of_every_length_and_type_do_no_harm() {
    if find_program("python3").is_none() {
        skip("python3 is not installed");
        return;
    }
    let Some(mut pair) = Pair::connected(RINGTUN_TWO, RINGTUN_TWO) else { return };
    let before = pair[A].wg_show("latest-handshakes");
    for outer in [V4, V6] {
        let endpoint = pair[A].endpoint(outer);
        let (address, port) = endpoint.rsplit_once(':').expect("a port");
        let address = address.trim_matches(['[', ']']);
        let said = pair[B].host.start("python3", &["-c", FLOOD, address, port]).wait_said();
        assert_eq!(said, "", "the flood itself failed");
    }
    let process = pair[A].device.as_mut().expect("a device").process();
    assert!(process.ended().is_none(), "{}", process.said());
    assert!(!process.said().contains("panicked"), "{}", process.said());
    pair.expect_ping(B, V4);
    pair.expect_ping(A, V6);
    assert_eq!(pair[A].wg_show("endpoints"), pair[B].endpoint(V4), "garbage moved the endpoint");
    assert_eq!(pair[A].wg_show("latest-handshakes"), before, "garbage cost the session");
}

/// One exchange over the UAPI socket: writes all, closes that half, reads to the end.
fn exchange(name: &str, request: &[u8]) -> Vec<u8> {
    let mut stream = UnixStream::connect(uapi_socket(name)).expect("the UAPI socket");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    // The device may answer and hang up before it has read all.
    let _ = stream.write_all(request);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            panic!("no end to the answer: {request:?}")
        }
        _ => answer,
    }
}

#[test]
fn garbage_on_the_uapi_socket_is_refused_and_changes_nothing() {
    let Some(pair) = Pair::connected(RINGTUN_TWO, RINGTUN_TWO) else { return };
    let name = pair[A].name();
    let shown = || pair[A].host.run(&format!("wg showconf {name}"));
    let before = shown();
    let refused: [&[u8]; 12] = [
        b"set=1\nlisten_port=70000\n\n",
        b"set=1\nlisten_port=x\n\n",
        b"set=1\nfwmark=-1\n\n",
        b"set=1\nno_such_key=1\n\n",
        b"set=1\nprivate_key=00\n\n",
        b"set=1\npublic_key=zz\n\n",
        b"set=1\nallowed_ip=10.0.0.0/8\n\n",
        b"set=1\nprivate_key\n\n",
        b"set=1\npublic_key=0101010101010101010101010101010101010101010101010101010101010101\nendpoint=nowhere\n\n",
        b"set=1\npublic_key=0101010101010101010101010101010101010101010101010101010101010101\nupdate_only=true\nallowed_ip=1.2.3.4/33\n\n",
        b"set=1\npublic_key=0101010101010101010101010101010101010101010101010101010101010101\nupdate_only=true\nprotocol_version=2\n\n",
        b"set=1\n=\n\n",
    ];
    for request in refused {
        let answer = exchange(name, request);
        let text = String::from_utf8_lossy(&answer);
        let code = text
            .lines()
            .find_map(|line| line.strip_prefix("errno="))
            .unwrap_or_else(|| panic!("{:?} was answered with {text:?}", String::from_utf8_lossy(request)));
        assert_ne!(code, "0", "{:?}", String::from_utf8_lossy(request));
    }
    let garbage: [&[u8]; 8] = [
        b"",
        b"\n",
        b"\n\n\n\n",
        b"get=2\n\n",
        b"nonsense\n\n",
        b"set=1\nlisten_port=1",
        &[0xff; 4096],
        &[0; 100_000],
    ];
    for request in garbage {
        exchange(name, request);
    }
    exchange(name, &b"a".repeat(4 << 20));
    // It lives, and nothing was half-applied: not the keys before a bad one, not an operation that was cut short.
    let after = shown();
    if !stand_in() {
        // wireguard-go does both.
        assert_eq!(after, before);
        pair.expect_ping(B, V4);
    }
}

#[test]
fn idle_uapi_connections_do_not_keep_others_out() {
    let Some(pair) = Pair::connected(RINGTUN_TWO, RINGTUN_TWO) else { return };
    let idle: Vec<_> =
        (0..200).map_while(|_| UnixStream::connect(uapi_socket(pair[A].name())).ok()).collect();
    assert!(!idle.is_empty());
    for (at, mut stream) in idle.iter().enumerate().filter(|(at, _)| at % 3 == 0) {
        // Some have begun to say something; some will hang up in the middle of it.
        let _ = stream.write_all(if at % 2 == 0 { b"set=1\n" } else { b"ge" });
    }
    pair.expect_ping(A, V4);
    drop(idle);
    pair[A].host.run(&format!("wg show {}", pair[A].name()));
}
