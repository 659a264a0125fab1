use super::*;
use crate::device::tests::{Seeded, at, no_bind, private, public};
use crate::device::{Device, Now};
use crate::index::WorkerCount;
use crate::time::Instant;
use proptest::prelude::*;
use zeroize::Zeroizing;

const KEY: &str = "e84b5a6d2717c1003a13b431570353dbaca9146cf150c5f8575680feba52027a";

fn parse(text: &str) -> Result<SetRequest, UapiError> {
    SetRequest::parse(text.as_bytes())
}

fn refused(lines: &str) -> (i32, usize) {
    let error = parse(&format!("set=1\n{lines}\n")).unwrap_err();
    (error.errno, error.line)
}

fn now() -> Now {
    at(Instant::START)
}

fn device() -> Device {
    Device::new(WorkerCount::nearest(2), Box::new(Seeded(1)))
}

#[test]
fn the_specification_s_example_is_understood() {
    let text = "set=1
private_key=e84b5a6d2717c1003a13b431570353dbaca9146cf150c5f8575680feba52027a
fwmark=0
listen_port=12912
replace_peers=true
public_key=b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33
preshared_key=188515093e952f5f22e865cef3012e72f8b5f0b598ac0309d5dacce3b70fcf52
replace_allowed_ips=true
allowed_ip=192.168.4.4/32
endpoint=[abcd:23::33%2]:51820
public_key=58402e695ba1772b1cc9309755f043251ea77fdcf10fbe63989ceb7e19321376
replace_allowed_ips=true
allowed_ip=192.168.4.6/32
persistent_keepalive_interval=111
endpoint=182.122.22.19:3233
public_key=662e14fd594556f522604703340351258903b64f35553763f19426ab2a515c58
endpoint=5.152.198.39:51820
replace_allowed_ips=true
allowed_ip=192.168.4.10/32
allowed_ip=192.168.4.11/32
public_key=e818b58db5274087fcc1be5dc728cf53d3b5726b4cef6b9bab8f8f8c2452c25c
remove=true
";
    let request = parse(text).unwrap();
    assert_eq!((request.fwmark, request.listen_port, request.replace_peers), (Some(0), Some(12912), true));
    assert_eq!(request.peers.len(), 4);
    assert_eq!(request.peers[0].endpoint, Some("[abcd:23::33%2]:51820".parse().unwrap()));
    assert_eq!(request.peers[1].persistent_keepalive, Some(111));
    assert_eq!(request.peers[2].allowed_ips.len(), 2);
    assert!(request.peers[3].remove && request.peers[0].preshared_key.is_some());
}

#[test]
fn an_error_names_its_line() {
    let peer = format!("public_key={KEY}\n");
    for (lines, errno) in [
        ("unknown=1", EINVAL),
        ("no pair", EPROTO),
        ("", EPROTO),
        ("\u{0}\u{1}", EPROTO),
        ("private_key=12", EINVAL),
        ("listen_port=65536", EINVAL),
        ("listen_port=+1", EINVAL),
        ("listen_port=", EINVAL),
        ("fwmark=-1", EINVAL),
        ("replace_peers=false", EINVAL),
        ("endpoint=1.2.3.4:5", EINVAL),
    ] {
        assert_eq!(refused(&format!("fwmark=1\n{lines}")), (errno, 3), "{lines}");
    }
    for lines in [
        "private_key=0",
        "allowed_ip=10.0.0.0",
        "allowed_ip=10.0.0.0/33",
        "allowed_ip=10.0.0.0/+8",
        "allowed_ip=--10.0.0.0/8",
        "allowed_ip=::/129",
        "endpoint=1.2.3.4",
        "endpoint=example.org:51820",
        "endpoint=::1:51820",
        "endpoint=[::1]",
        "endpoint=[::1]:65536",
        "endpoint=[fe80::1%eth0]:1",
        "preshared_key=zz",
        "persistent_keepalive_interval=off",
        "persistent_keepalive_interval=65536",
        "protocol_version=2",
        "remove=1",
        "update_only=false",
    ] {
        assert_eq!(refused(&format!("{peer}{lines}")), (EINVAL, 3), "{lines}");
    }
    assert_eq!(parse("get=1\n").unwrap_err().line, 1);
}

#[test]
fn an_error_does_not_tell_a_secret() {
    let key = format!("{}g", &KEY[..63]);
    for lines in
        [format!("private_key={key}"), format!("public_key={KEY}\npreshared_key={key}"), KEY.to_owned()]
    {
        let error = parse(&format!("set=1\n{lines}\n")).unwrap_err();
        assert!(!error.to_string().contains(&KEY[..8]), "{error}");
    }
}

#[test]
fn a_scope_may_be_a_number_or_a_known_name() {
    let text = format!("set=1\npublic_key={KEY}\nendpoint=[fe80::1%eth0]:51820\n");
    let mut lookup = |name: &str| (name == "eth0").then_some(4);
    let mut parser = SetParser::new(Zeroizing::new(text.as_bytes().to_vec()));
    let request = parser.go_on(&mut lookup, &mut || true).unwrap().unwrap();
    assert_eq!(request.peers[0].endpoint, Some("[fe80::1%4]:51820".parse().unwrap()));
    for text in ["127.0.0.1:1", "[::1]:51820", "[fe80::1%3]:2"] {
        let text = format!("set=1\npublic_key={KEY}\nendpoint={text}\n");
        assert!(parse(&text).is_ok(), "{text}");
    }
}

#[test]
fn replacing_allowed_ips_forgets_those_named_before() {
    let text = format!(
        "set=1\npublic_key={KEY}\nallowed_ip=::/0\nreplace_allowed_ips=true\nallowed_ip=-1.0.0.0/8\n"
    );
    let peer = parse(&text).unwrap().peers.remove(0);
    assert!(peer.replace_allowed_ips);
    assert_eq!(peer.allowed_ips.len(), 1);
    assert!(peer.allowed_ips[0].remove);
}

#[test]
fn an_all_zero_private_key_removes_it() {
    let mut device = device();
    let zero = "0".repeat(64);
    device.apply(now(), &parse(&format!("set=1\nprivate_key={KEY}\n")).unwrap(), &mut no_bind).unwrap();
    assert!(device.uapi_get().contains("private_key"));
    device.apply(now(), &parse(&format!("set=1\nprivate_key={zero}\n")).unwrap(), &mut no_bind).unwrap();
    assert_eq!(device.uapi_get().as_str(), "errno=0\n\n");
}

#[test]
fn get_tells_all_in_order() {
    let mut device = device();
    let mut request = SetRequest { private_key: Some(Some(private(1))), ..SetRequest::default() };
    (request.listen_port, request.fwmark) = (Some(51820), Some(4));
    let mut peer = PeerRequest::new(public(2));
    peer.endpoint = Some("[fe80::1%2]:7".parse().unwrap());
    peer.persistent_keepalive = Some(25);
    let prefix = |addr: &str, len| Prefix::new(addr.parse().unwrap(), len).unwrap();
    let given = [prefix("10.0.0.0", 8), prefix("::", 0)];
    peer.allowed_ips = given.map(|prefix| AllowedIp { prefix, remove: false }).to_vec();
    request.peers = vec![peer, PeerRequest::new(public(3))];
    device.apply(now(), &request, &mut no_bind).unwrap();

    let hex = |bytes: [u8; 32]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let zero = "0".repeat(64);
    let stats = "last_handshake_time_sec=0\nlast_handshake_time_nsec=0\ntx_bytes=0\nrx_bytes=0\n";
    let expected = format!(
        "private_key={}\nlisten_port=51820\nfwmark=4\n\
         public_key={}\npreshared_key={zero}\nprotocol_version=1\nendpoint=[fe80::1%2]:7\n{stats}\
         persistent_keepalive_interval=25\nallowed_ip=10.0.0.0/8\nallowed_ip=::/0\n\
         public_key={}\npreshared_key={zero}\nprotocol_version=1\n{stats}persistent_keepalive_interval=0\n\
         errno=0\n\n",
        hex(private(1).to_bytes()),
        hex(public(2).0),
        hex(public(3).0),
    );
    assert_eq!(device.uapi_get().as_str(), expected);
}

#[test]
fn answers_carry_negative_error_numbers() {
    assert_eq!(answer(Ok(())), "errno=0\n\n");
    assert_eq!(answer(Err(EINVAL)), "errno=-22\n\n");
}

/// What a framer makes of `bytes` pushed in pieces of `piece`.
fn frame(bytes: &[u8], piece: usize) -> Vec<Result<Operation, UapiError>> {
    let mut framer = Framer::new();
    let mut operations = Vec::new();
    for chunk in bytes.chunks(piece) {
        framer.push(chunk);
        operations.extend(std::iter::from_fn(|| framer.next_operation()));
    }
    operations
}

#[test]
fn operations_are_cut_wherever_the_reads_end() {
    let set = |text: &str| Ok(Operation::Set(Zeroizing::new(text.as_bytes().to_vec())));
    let stream = b"get=1\n\nset=1\nfwmark=1\n\nset=1\n\nstatus=1\n\nstatus=1\npeers=none\n\nget=1\n\nset=1\nunfinished=";
    let expected = vec![
        Ok(Operation::Get),
        set("set=1\nfwmark=1\n"),
        set("set=1\n"),
        Ok(Operation::Status),
        Ok(Operation::StatusOfNoPeers),
        Ok(Operation::Get),
    ];
    for piece in 1..=stream.len() {
        assert_eq!(frame(stream, piece), expected, "{piece}");
    }
}

#[test]
fn a_question_about_some_peers_is_cut_wherever_the_reads_end() {
    let name = |seed: u8| format!("public_key={}\n", format!("{seed:02x}").repeat(32));
    let stream = format!("get=1\n{}{}\nget=1\npeers=none\n\nget=1\n\nget=1\n{}", name(9), name(7), name(1));
    let keys = vec![PublicKey([9; 32]), PublicKey([7; 32])];
    let expected =
        vec![Ok(Operation::GetPeers(keys)), Ok(Operation::GetPeers(Vec::new())), Ok(Operation::Get)];
    for piece in 1..=stream.len() {
        assert_eq!(frame(stream.as_bytes(), piece), expected, "{piece}");
    }
}

#[test]
fn those_who_follow_and_those_who_ask_why_are_understood_wherever_the_reads_end() {
    let key = "07".repeat(32);
    let stream = format!(
        "diagnose=1\npublic_key={key}\n\ndiagnose=1\npublic_key={key}\nhandshake=true\n\nmonitor=1\n\n\
         handover=offer\n\nhandover=state\n\nget=1\n\n"
    );
    let diagnose = |tries| Ok(Operation::Diagnose { key: PublicKey([7; 32]), tries });
    let others = [Operation::Monitor, Operation::Offer, Operation::HandOver, Operation::Get].map(Ok);
    let expected: Vec<_> = [diagnose(false), diagnose(true)].into_iter().chain(others).collect();
    for piece in 1..=stream.len() {
        assert_eq!(frame(stream.as_bytes(), piece), expected, "{piece}");
    }
    for (lines, errno) in [
        (format!("public_key={key}\npublic_key={key}\n\n"), E2BIG),
        (format!("handshake=true\npublic_key={key}\n\n"), EINVAL),
        ("handshake=true\n\n".to_owned(), EPROTO),
        ("public_key=07\n\n".to_owned(), EINVAL),
        ("\n".to_owned(), EPROTO),
    ] {
        let operations = frame(format!("diagnose=1\n{lines}").as_bytes(), 7);
        let refused = operations.first().and_then(|first| first.as_ref().err()).map(|error| error.errno);
        assert_eq!((operations.len(), refused), (1, Some(errno)), "{lines}");
    }
    assert_eq!(frame(b"handover=all\n\n", 3)[0].as_ref().unwrap_err().errno, EINVAL);
    assert_eq!(frame(b"monitor=1\nx", 3)[0].as_ref().unwrap_err().errno, EINVAL);
}

#[test]
fn a_question_about_peers_that_is_wrong_or_too_long_is_refused() {
    let name = |digits: usize| format!("public_key={}\n", "0".repeat(digits));
    for (lines, errno, line) in [
        (name(63) + "\n", EINVAL, 2),
        (name(64) + &name(65) + "\n", EINVAL, 3),
        (name(64) + "peers=none\n\n", EINVAL, 3),
        (name(64) + "what\n\n", EPROTO, 3),
        ("peers=none\npublic_key=".to_owned(), EINVAL, 2),
        ("peers=all".to_owned(), EINVAL, 2),
        ("private_key=".to_owned(), EINVAL, 2),
        (name(64).repeat(MAX_NAMED + 1), E2BIG, 1),
    ] {
        let operations = frame(format!("get=1\n{lines}").as_bytes(), 1000);
        let refused =
            operations.first().and_then(|first| first.as_ref().err()).map(|error| (error.errno, error.line));
        assert_eq!((operations.len(), refused), (1, Some((errno, line))), "{:.40}", lines);
    }
    let most = format!("get=1\n{}\n", name(64).repeat(MAX_NAMED));
    assert!(
        matches!(&frame(most.as_bytes(), 4096)[..], [Ok(Operation::GetPeers(named))] if named.len() == MAX_NAMED)
    );
}

#[test]
fn an_unknown_operation_ends_the_connection() {
    for stream in [
        "put=1\n\nget=1\n\n",
        "\nget=1\n\n",
        "get=1\nx=1\n\n",
        "set=2\n\n",
        "x",
        "status=2\n\n",
        "status=1\nx\n\n",
        "status=1\npeers=all\n\n",
    ] {
        let operations = frame(stream.as_bytes(), 3);
        assert_eq!(operations.len(), 1, "{stream:?}");
        assert_eq!(operations[0].as_ref().unwrap_err().errno, EINVAL);
    }
}

#[test]
fn an_operation_without_end_is_refused_before_it_fills_the_memory() {
    let mut framer = Framer::new();
    framer.push(b"set=1\n");
    framer.push(&vec![b'x'; MAX_OPERATION - 6]);
    assert_eq!(framer.next_operation(), None);
    framer.push(b"x");
    assert_eq!(framer.next_operation().unwrap().unwrap_err().errno, E2BIG);
    assert!(!framer.is_midway());
}

/// The lines of a `get` that a `set` takes.
fn as_set(get: &str) -> String {
    let told = ["last_handshake_time", "tx_bytes", "rx_bytes", "errno"];
    let lines = get.lines().filter(|line| !line.is_empty() && !told.iter().any(|key| line.starts_with(key)));
    std::iter::once("set=1").chain(lines).map(|line| format!("{line}\n")).collect()
}

fn any_peer() -> impl Strategy<Value = String> {
    let allowed = proptest::collection::vec((any::<std::net::IpAddr>(), 0u8..=32), 0..5);
    let endpoint = proptest::option::of(any::<std::net::SocketAddr>());
    (any::<[u8; 32]>(), any::<[u8; 32]>(), endpoint, any::<u16>(), allowed).prop_map(
        |(key, psk, endpoint, keepalive, allowed)| {
            let hex = |bytes: [u8; 32]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
            let mut text = format!("public_key={}\npreshared_key={}\n", hex(key), hex(psk));
            if let Some(endpoint) = endpoint {
                // The flow label is not part of an address here.
                text += &format!("endpoint={}\n", std::net::SocketAddr::new(endpoint.ip(), endpoint.port()));
            }
            text += &format!("persistent_keepalive_interval={keepalive}\n");
            text + &allowed.iter().map(|(ip, len)| format!("allowed_ip={ip}/{len}\n")).collect::<String>()
        },
    )
}

fn any_set() -> impl Strategy<Value = String> {
    (any::<[u8; 32]>(), any::<u16>(), any::<u32>(), proptest::collection::vec(any_peer(), 0..4)).prop_map(
        |(key, port, mark, peers)| {
            let key: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("set=1\nprivate_key={key}\nlisten_port={port}\nfwmark={mark}\n{}", peers.concat())
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_get_tells_set_restores(text in any_set()) {
        let (mut one, mut other) = (device(), device());
        one.apply(now(), &parse(&text).unwrap(), &mut no_bind).unwrap();
        let told = one.uapi_get();
        other.apply(now(), &parse(&as_set(&told)).unwrap(), &mut no_bind).unwrap();
        prop_assert_eq!(other.uapi_get(), told);
    }

    #[test]
    fn a_change_anywhere_in_a_valid_text_never_panics(
        text in any_set(), edits in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = text.into_bytes();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(request) = SetRequest::parse(&bytes) {
            device().apply(now(), &request, &mut no_bind).unwrap();
        }
        frame(&bytes, 7);
    }

    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), piece in 1usize..40) {
        let _ = SetRequest::parse(&bytes);
        let _ = SetRequest::parse(&[b"set=1\n", &bytes[..]].concat());
        frame(&bytes, piece);
        frame(&[b"set=1\n", &bytes[..]].concat(), piece);
        frame(&[b"get=1\npublic_key=", &bytes[..]].concat(), piece);
    }
}

/// An answer in slices of one step each.
fn dump_in_slices(device: &Device, mut dump: Dump) -> String {
    let mut whole = String::new();
    loop {
        let mut piece = chunk();
        let done = device.dump(&mut dump, &mut piece, &mut || false);
        whole.push_str(&piece);
        if done {
            return whole;
        }
    }
}

/// The interface's part of an answer, and those of the peers by key.
fn parts(answer: &str) -> (&str, std::collections::HashMap<PublicKey, &str>) {
    let all = answer.strip_suffix("errno=0\n\n").unwrap();
    let starts: Vec<usize> = all.match_indices("public_key=").map(|(at, _)| at).chain([all.len()]).collect();
    let peer = |ends: &[usize]| {
        let text = &all[ends[0]..ends[1]];
        (super::parse::named_peers(text.lines().next().unwrap().as_bytes(), 1).unwrap()[0], text)
    };
    (&all[..starts[0]], starts.windows(2).map(peer).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn an_answer_about_some_peers_has_of_each_what_the_whole_answer_has(
        text in any_set(), asked in proptest::collection::vec(prop_oneof![
            any::<proptest::sample::Index>().prop_map(Ok), any::<[u8; 32]>().prop_map(Err),
        ], 0..8),
    ) {
        let mut device = device();
        device.apply(now(), &parse(&text).unwrap(), &mut no_bind).unwrap();
        let whole = device.uapi_get();
        let (interface, peers) = parts(&whole);
        let known: Vec<PublicKey> = peers.keys().copied().collect();
        let key = |one: Result<proptest::sample::Index, [u8; 32]>| match one {
            Ok(index) if !known.is_empty() => *index.get(&known),
            Ok(_) => PublicKey([0; 32]),
            Err(bytes) => PublicKey(bytes),
        };
        let named: Vec<PublicKey> = asked.into_iter().map(key).collect();
        let expected = named.iter().filter_map(|key| peers.get(key).copied());
        let expected = format!("{interface}{}errno=0\n\n", expected.collect::<String>());
        let at_once = device.uapi_get_peers(named.clone());
        prop_assert_eq!(&*at_once, &expected);
        prop_assert_eq!(&dump_in_slices(&device, Dump::of(named)), &expected);
        prop_assert_eq!(&dump_in_slices(&device, Dump::default()), &*whole);
    }

    #[test]
    fn what_is_parsed_in_slices_is_what_is_parsed_at_once(text in any_set(), spoilt in any::<Option<proptest::sample::Index>>()) {
        let mut bytes = text.into_bytes();
        if let Some(at) = spoilt {
            let at = at.index(bytes.len());
            bytes[at] = b'?';
        }
        let mut parser = SetParser::new(Zeroizing::new(bytes.clone()));
        let sliced = std::iter::repeat_with(|| parser.go_on(&mut |_| None, &mut || false)).find_map(|parsed| parsed).unwrap();
        let (whole, sliced) = (SetRequest::parse(&bytes).map(|it| format!("{it:?}")), sliced.map(|it| format!("{it:?}")));
        prop_assert_eq!(sliced, whole);
    }

    #[test]
    fn a_framer_says_beforehand_what_it_will_hold(pieces in proptest::collection::vec(1usize..5000, 1..20)) {
        let mut framer = Framer::new();
        framer.push(b"set=1\n");
        for length in pieces {
            let (before, after) = (framer.room_after(0), framer.room_after(length));
            prop_assert!(before <= after && after < 2 * (before + length + 6));
            framer.push(&vec![b'x'; length]);
            prop_assert!(framer.next_operation().is_none());
            prop_assert_eq!(framer.room_after(0), after);
        }
    }
}
