//! One function a parser of untrusted bytes: it must neither panic nor break the property it checks, whatever `data` is.
//!
//! `tests/fuzz/main.rs` runs them over the corpus and over random damage to it; `scripts/fuzz` has libFuzzer look for more.

mod answers;
mod config;
mod device;
mod state;
mod steering;

use ringtun::crypto::random::Entropy;
use ringtun::crypto::x25519::{PrivateKey, SharedSecret};
use ringtun::device::uapi::{Framer, Operation, SetRequest};
use ringtun::device::{Device, Now};
use ringtun::index::WorkerCount;
use ringtun::noise::cookie::{CookieJar, Gate, GateKeys, Mac1Key, Verdict};
use ringtun::noise::handshake::{Handshake, Identity, IncomingInitiation};
use ringtun::noise::session::{Role, SessionKeys};
use ringtun::offload::coalesce::{CoalesceOptions, Coalescer, TunnelKind, TunnelPorts};
use ringtun::offload::split::{Progress, Splitter};
use ringtun::offload::train::{Train, TrainLimits};
use ringtun::time::Instant;
use ringtun::wire::icmp::{self, Unreachable};
use ringtun::wire::ip;
use ringtun::wire::message::{self, CookieReply, DataHeader, Initiation, Response};
use ringtun::wire::vnet::VnetHeader;
use std::sync::Arc;
use std::time::Duration;

/// What is run on every input.
pub(crate) struct Target {
    /// The name, which is also that of the folder of its corpus.
    pub(crate) name: &'static str,
    pub(crate) run: fn(&[u8]),
    /// How many damaged and random inputs the test command tries: some seconds' worth.
    #[allow(dead_code)] // libFuzzer knows no end
    pub(crate) tries: usize,
}

const fn target(name: &'static str, run: fn(&[u8]), tries: usize) -> Target {
    Target { name, run, tries }
}

/// Every target.
pub(crate) const TARGETS: &[Target] = &[
    target("message", message, 2_000),
    target("handshake", handshake, 2_000),
    target("session", session, 2_000),
    target("ip", ip_packet, 2_000),
    target("tun_frame", tun_frame, 2_000),
    target("coalesce", coalesce, 2_000),
    target("uapi", uapi, 2_000),
    target("device", device::run, 300),
    target("steering", steering::run, 2_000),
    target("config", config::run, 500),
    target("openbsd", config::openbsd, 500),
    target("answer", answers::answer, 1_000),
    target("firewall", answers::firewall, 1_000),
    target("control_data", answers::control_data, 2_000),
    target("state", state::run, 1_000),
];

/// The lines of an answer to `get=1` that say what is configured, and not what has happened since.
fn settings(text: &str) -> String {
    const STATE: [&str; 7] = [
        "errno",
        "protocol_version",
        "last_handshake_time_sec",
        "last_handshake_time_nsec",
        "tx_bytes",
        "rx_bytes",
        "",
    ];
    let is_setting = |line: &&str| !STATE.contains(&line.split('=').next().unwrap_or_default());
    text.lines().filter(is_setting).flat_map(|line| [line, "\n"]).collect()
}

/// Bytes that follow from the input alone.
struct Counting(u8);

impl Entropy for Counting {
    fn fill(&mut self, out: &mut [u8]) {
        for byte in out {
            self.0 = self.0.wrapping_add(1);
            *byte = self.0;
        }
    }
}

/// The four messages: what parses is written back byte for byte.
pub(crate) fn message(data: &[u8]) {
    let kind = message::classify(data);
    if let Some(parsed) = Initiation::parse(data) {
        assert_eq!(parsed.to_bytes(), data);
    }
    if let Some(parsed) = Response::parse(data) {
        assert_eq!(parsed.to_bytes(), data);
    }
    if let Some(parsed) = CookieReply::parse(data) {
        assert_eq!(parsed.to_bytes(), data);
    }
    if kind == Some(message::MessageKind::Data) {
        let header = DataHeader::parse(data).expect("a data message has a header");
        let mut bytes = [0; message::DATA_HEADER_LEN];
        header.write(&mut bytes);
        assert_eq!(bytes, data[..message::DATA_HEADER_LEN]);
    }
}

/// Handshake messages and cookies on both sides: none is authentic.
pub(crate) fn handshake(data: &[u8]) {
    let now = Instant::START + Duration::from_secs(1);
    let from = "192.0.2.1:4500".parse().expect("an address");
    let local = Arc::new(Identity::new(PrivateKey::from_bytes([7; 32])));
    let remote = *Identity::new(PrivateKey::from_bytes([9; 32])).public();
    let mut entropy = Counting(data.first().copied().unwrap_or_default());
    let mut peer = Handshake::new(remote, SharedSecret([0; 32]));
    let mut jar = CookieJar::new(&remote);
    Mac1Key::new(local.public()).verify(data);
    let mut gate = Gate::new(GateKeys::new(local.public(), &mut entropy), 0);
    assert!(!matches!(gate.judge(data, from, now, true), Verdict::Pass { .. }));
    if let Some(initiation) = Initiation::parse(data) {
        assert!(IncomingInitiation::open(&local, &initiation).is_err());
    }
    if let Some(response) = Response::parse(data) {
        let sent = peer.initiate(&local, response.receiver, Default::default(), Instant::START, &mut entropy);
        assert!(sent.is_ok() && peer.complete(&local, &response).is_err());
    }
    if let Some(reply) = CookieReply::parse(data) {
        let mut sent = [0; message::INITIATION_LEN];
        jar.seal(&mut sent, now);
        assert!(!jar.accept(&reply, now));
    }
}

/// A train on a live session: nothing in it is authentic. The first byte chooses the segments' size.
pub(crate) fn session(data: &[u8]) {
    let Some((&stride, train)) = data.split_first() else { return };
    let keys = SessionKeys {
        send: [1; 32],
        receive: [2; 32],
        local_index: 3,
        remote_index: 4,
        role: Role::Responder,
    };
    let (_, mut session) = keys.into_halves(Instant::START);
    let got = session.open_train(&mut train.to_vec(), usize::from(stride));
    assert_eq!((got.fresh.0, got.replayed.0), (0, 0));
}

/// An inner packet, and the ICMP errors about it.
pub(crate) fn ip_packet(data: &[u8]) {
    if let Some(info) = ip::parse(data) {
        assert!(info.len <= data.len());
    }
    let _ = ip::transport(data);
    let mut marked = data.to_vec();
    ip::set_ce(&mut marked);
    assert_eq!(ip::parse(&marked).map(|info| info.len), ip::parse(data).map(|info| info.len));
    for why in [Unreachable::Host, Unreachable::TooBig(1280)] {
        let mut out = [0; 1500];
        if let Some(len) = icmp::unreachable(data, why, &mut out) {
            assert_eq!(ip::parse(&out[..len]).map(|info| info.len), Some(len));
        }
    }
}

/// A frame from the TUN device, split into trains. The first byte bends MTU and limits.
pub(crate) fn tun_frame(data: &[u8]) {
    let Some((&bend, frame)) = data.split_first() else { return };
    let _ = VnetHeader::parse(frame);
    let Ok(mut splitter) = Splitter::new(frame) else { return };
    let mtu = [0, 68, 1280, 1420, 1421, 65_535][usize::from(bend) % 6];
    let limits = TrainLimits { segments: 1 + usize::from(bend) % 64, ..TrainLimits::default() };
    let mut out = vec![0; 68 * 1024];
    loop {
        let mut train = Train::default();
        let before = splitter.remaining();
        match splitter.write_into(&mut out, &mut train, mtu, &limits) {
            Progress::Done => return,
            Progress::Full => assert!(splitter.remaining() < before, "a full train holds something"),
        }
        assert!(train.count() <= limits.segments);
    }
}

/// The packets of one opened train, coalesced. The first byte chooses the segments' size.
pub(crate) fn coalesce(data: &[u8]) {
    let Some((&stride, rest)) = data.split_first() else { return };
    let stride = usize::from(stride).max(1) * 8;
    let mut train = vec![0; 64];
    train.extend_from_slice(rest);
    let mut coalescer = Coalescer::default();
    let mut tunnels = TunnelPorts::default();
    tunnels.add(TunnelKind::Vxlan, 4789);
    tunnels.add(TunnelKind::Geneve, 6081);
    coalescer.set_tunnels(tunnels);
    coalescer.start(CoalesceOptions { tcp: true, udp: true, tunnels: true });
    let mut pushed = 0;
    for start in (64..train.len()).step_by(stride) {
        let Some(info) = train.get(start + 16..).and_then(ip::parse) else { continue };
        let len = info.len.min(stride.saturating_sub(32));
        if ip::parse(&train[start + 16..start + 16 + len]).is_some() {
            coalescer.push(&mut train, start + 16..start + 16 + len);
            pushed += 1;
        }
    }
    let whole = train.len();
    let runs = coalescer.finish(&mut train);
    assert_eq!(runs.iter().map(|run| run.packets).sum::<usize>(), pushed);
    assert!(
        runs.iter().flat_map(|run| &run.pieces).all(|piece| piece.start < piece.end && piece.end <= whole)
    );
}

/// What a client writes to the configuration socket: what is understood is applied, and the device still answers.
pub(crate) fn uapi(data: &[u8]) {
    let mut device = Device::new(WorkerCount::nearest(2), Box::new(Counting(0)));
    let now = Now { mono: Instant::START, wall: Duration::from_secs(1) };
    let mut framer = Framer::new();
    for piece in data.chunks(7) {
        framer.push(piece);
        while let Some(operation) = framer.next_operation() {
            match operation {
                Ok(Operation::Set(body)) => {
                    if let Ok(request) = SetRequest::parse(&body) {
                        let _ = device.apply(now, &request, &mut |wanted| Ok(wanted.port));
                        while device.poll_output().is_some() {}
                    }
                }
                Ok(Operation::GetPeers(named)) => {
                    assert!(named.len() <= data.len() / 76, "each takes a line");
                    assert!(device.uapi_get_peers(named).ends_with("errno=0\n\n"));
                }
                Ok(Operation::Diagnose { key, tries }) => {
                    let facts = device.facts(now, &key, tries);
                    assert!(facts.starts_with("facts={") && facts.ends_with("}\nerrno=0\n\n"));
                    while device.poll_output().is_some() {}
                }
                Ok(
                    Operation::Get
                    | Operation::Status
                    | Operation::StatusOfNoPeers
                    | Operation::Monitor
                    | Operation::Offer
                    | Operation::HandOver,
                )
                | Err(_) => {}
            }
        }
    }
    assert!(device.uapi_get().ends_with("errno=0\n\n"));
}
