//! A running device seen from outside: its configuration socket, and what it answers.

use crate::crypto::x25519::{PrivateKey, PublicKey, SharedSecret};
use crate::dataplane::limits::{LimitSettings, QuotaUse};
use crate::device::facts::DeviceFacts;
use crate::device::status::Status;
use crate::device::uapi::{EINVAL, MAX_NAMED, SetRequest};
use crate::gateway::config::{diagnose_text, get_text, set_text};
use crate::routing::Prefix;
use crate::tunnel::socket;
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use zeroize::Zeroizing;

/// How long an answer may take: longer than any device needs, and short enough for a person.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest answer in bytes that is taken: some 200,000 peers with a few AllowedIPs each.
const MAX_ANSWER: usize = 128 << 20;
/// Bytes of an answer that are read at once.
const PIECE: usize = 64 * 1024;

/// What a device said of itself.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DeviceState {
    /// The private key, if one is set.
    pub private_key: Option<PrivateKey>,
    /// The UDP port; 0 where the device is not bound.
    pub listen_port: u16,
    /// The firewall mark; 0 is none.
    pub fwmark: u32,
    /// The peers, in the device's order.
    pub peers: Vec<PeerState>,
}

/// What a device said of a peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerState {
    /// The peer's public key.
    pub public_key: PublicKey,
    /// The preshared key, if there is one.
    pub preshared_key: Option<SharedSecret>,
    /// The peer's last known endpoint.
    pub endpoint: Option<SocketAddr>,
    /// The interval of keepalives in seconds; 0 is off.
    pub persistent_keepalive: u16,
    /// The prefixes of the peer, in the device's order.
    pub allowed_ips: Vec<Prefix>,
    /// The time of the last handshake since the Unix epoch; zero where there was none.
    pub last_handshake: Duration,
    /// The bytes sent to the peer.
    pub tx_bytes: u64,
    /// The bytes received from the peer.
    pub rx_bytes: u64,
    /// What the peer is limited to.
    pub limits: LimitState,
}

/// What a device said of a peer's limits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LimitState {
    /// The limits.
    pub settings: LimitSettings,
    /// Packets from the peer, and packets to it, that were dropped for them.
    pub limited: (u64, u64),
    /// How far the quota is used.
    pub quota: Option<QuotaUse>,
}

impl PeerState {
    /// A peer of which only the key is known.
    pub fn new(public_key: PublicKey) -> PeerState {
        PeerState {
            public_key,
            preshared_key: None,
            endpoint: None,
            persistent_keepalive: 0,
            allowed_ips: Vec::new(),
            last_handshake: Duration::ZERO,
            tx_bytes: 0,
            rx_bytes: 0,
            limits: LimitState::default(),
        }
    }
}

impl DeviceState {
    /// Reads the answer to `get=1`. Unknown keys are left out. `None` where this is no such answer.
    pub fn parse(answer: &str) -> Option<DeviceState> {
        let mut state = DeviceState::default();
        // All the room at once, since a list that grew would leave copies of the preshared keys behind.
        state.peers.reserve_exact(answer.lines().filter(|line| line.starts_with("public_key=")).count());
        for line in answer.lines().filter(|line| !line.is_empty()) {
            let (key, value) = line.split_once('=')?;
            match (key, state.peers.last_mut()) {
                ("public_key", _) => state.peers.push(PeerState::new(PublicKey(*key32(value)?))),
                ("private_key", None) => {
                    let bytes = key32(value)?;
                    state.private_key =
                        bytes.iter().any(|&byte| byte != 0).then(|| PrivateKey::from_bytes(*bytes));
                }
                ("listen_port", None) => state.listen_port = value.parse().ok()?,
                ("fwmark", None) => state.fwmark = value.parse().ok()?,
                (_, Some(peer)) => peer.take(key, value)?,
                _ => {}
            }
        }
        Some(state)
    }
}

/// Reads two numbers with a blank between them.
fn two(text: &str) -> Option<(u64, u64)> {
    let (one, other) = text.split_once(' ')?;
    Some((one.parse().ok()?, other.parse().ok()?))
}

impl PeerState {
    fn take(&mut self, key: &str, value: &str) -> Option<()> {
        match key {
            "preshared_key" => {
                let secret = SharedSecret(*key32(value)?);
                self.preshared_key = (secret != SharedSecret([0; 32])).then_some(secret);
            }
            "endpoint" => self.endpoint = Some(value.parse().ok()?),
            "persistent_keepalive_interval" => self.persistent_keepalive = value.parse().ok()?,
            "allowed_ip" => self.allowed_ips.push(value.parse().ok()?),
            "last_handshake_time_sec" => {
                self.add_to_last_handshake(Duration::from_secs(value.parse().ok()?))?
            }
            "last_handshake_time_nsec" => {
                self.add_to_last_handshake(Duration::from_nanos(value.parse().ok()?))?
            }
            "tx_bytes" => self.tx_bytes = value.parse().ok()?,
            "rx_bytes" => self.rx_bytes = value.parse().ok()?,
            "ringtun_limits" => self.limits.settings = value.parse().ok()?,
            "ringtun_limited" => self.limits.limited = two(value)?,
            "ringtun_quota" => {
                let (used, ends) = two(value)?;
                self.limits.quota = Some(QuotaUse { used, ends });
            }
            _ => {}
        }
        Some(())
    }

    /// Adds one of the two parts of which the time is made.
    fn add_to_last_handshake(&mut self, part: Duration) -> Option<()> {
        self.last_handshake = self.last_handshake.checked_add(part)?;
        Some(())
    }
}

fn key32(value: &str) -> Option<Zeroizing<[u8; 32]>> {
    let mut bytes = Zeroizing::new([0; 32]);
    let digit = |byte: u8| (byte as char).to_digit(16);
    let mut pairs = value.as_bytes().chunks_exact(2);
    for byte in bytes.iter_mut() {
        let [high, low] = *pairs.next()? else { return None };
        *byte = (digit(high)? << 4 | digit(low)?) as u8;
    }
    (value.len() == 64).then_some(bytes)
}

/// A device's configuration socket. Each question opens a connection of its own.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
}

impl ControlSocket {
    /// The socket of the device called `name`. `None` where nobody answers under that name, so that it is not running
    /// here.
    pub fn find(name: &str) -> Option<ControlSocket> {
        ControlSocket::at(socket::path(name))
    }

    fn at(path: PathBuf) -> Option<ControlSocket> {
        UnixStream::connect(&path).is_ok().then_some(ControlSocket { path })
    }

    /// The path of the socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Asks for the device's whole configuration and its peers' counters. That is a quarter of a second's work and 40 MB of
    /// text for 100,000 peers: where a few peers will do, [`Self::get_peers`] asks for these.
    ///
    /// # Errors
    ///
    /// Where the device does not answer, or answers something else.
    pub fn get(&self) -> Result<DeviceState> {
        self.ask("get=1\n\n")
    }

    /// Asks for the configuration of the interface and of these peers. What the device does not have is left out. There may be
    /// more peers in the answer, where these are too many for one question, or the device is another implementation, which
    /// does not know it.
    ///
    /// # Errors
    ///
    /// As for [`Self::get`].
    pub fn get_peers(&self, keys: &[PublicKey]) -> Result<DeviceState> {
        if keys.len() > MAX_NAMED {
            return self.get();
        }
        match self.ask(&get_text(keys)) {
            Err(error) if error.raw_os_error() == Some(EINVAL) => self.get(),
            answer => answer,
        }
    }

    /// Asks for the configuration of the interface, as [`Self::get_peers`] does.
    ///
    /// # Errors
    ///
    /// As for [`Self::get`].
    pub fn get_interface(&self) -> Result<DeviceState> {
        self.get_peers(&[])
    }

    fn ask(&self, question: &str) -> Result<DeviceState> {
        let answer = self.exchange(question)?;
        DeviceState::parse(&answer).ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidData,
                format!("{} answers what is no configuration", self.path.display()),
            )
        })
    }

    /// Asks for what the protocol cannot express. `Ok(None)` where the device is another implementation, which does not
    /// know the question.
    ///
    /// # Errors
    ///
    /// Where the device does not answer.
    pub fn status(&self) -> Result<Option<Status>> {
        self.ask_status("status=1\n\n")
    }

    /// Asks for the same without the owners of the peers, which takes little of the device's time. `Ok(None)` also where it is an
    /// earlier version of this program.
    ///
    /// # Errors
    ///
    /// Where the device does not answer.
    pub fn short_status(&self) -> Result<Option<Status>> {
        self.ask_status("status=1\npeers=none\n\n")
    }

    /// Asks what the device knows of a peer that does not connect; see [`DeviceFacts`]. With `tries` a handshake is tried.
    /// `Ok(None)` where the device is another implementation, or an earlier version of this program.
    ///
    /// # Errors
    ///
    /// Where the device does not answer.
    pub fn diagnose(&self, key: &PublicKey, tries: bool) -> Result<Option<DeviceFacts>> {
        let answer = match self.exchange(&diagnose_text(key, tries)) {
            Ok(answer) => answer,
            Err(error) if error.raw_os_error() == Some(EINVAL) => return Ok(None),
            Err(error) => return Err(error),
        };
        let text = answer.lines().find_map(|line| line.strip_prefix("facts="));
        Ok(text.and_then(|text| serde_json::from_str(text).ok()))
    }

    fn ask_status(&self, question: &str) -> Result<Option<Status>> {
        let answer = match self.exchange(question) {
            Ok(answer) => answer,
            Err(error) if error.raw_os_error().is_some() || error.kind() == ErrorKind::UnexpectedEof => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let text = answer.lines().find_map(|line| line.strip_prefix("status="));
        Ok(text.and_then(|text| serde_json::from_str(text).ok()))
    }

    /// Does as [`Self::get`]. The port is the one that is configured, even while another program has it.
    ///
    /// # Errors
    ///
    /// As for [`Self::get`].
    pub fn configured(&self) -> Result<DeviceState> {
        let mut device = self.get()?;
        if device.listen_port == 0 {
            let unbound = self.status()?.and_then(|status| status.unbound);
            device.listen_port = unbound.map_or(0, |unbound| unbound.port);
        }
        Ok(device)
    }

    /// Makes the changes of the request.
    ///
    /// # Errors
    ///
    /// The device's errno where it refuses the request, or another error where it does not answer.
    pub fn set(&self, request: &SetRequest) -> Result<()> {
        self.exchange(&set_text(request)).map(drop)
    }

    /// Sends a request, and once more where the connection is closed before the end of its answer: a process that hands its tunnel
    /// over leaves what it has not begun to its successor.
    fn exchange(&self, request: &str) -> Result<Zeroizing<String>> {
        let is_cut_short = |error: &Error| {
            matches!(
                error.kind(),
                ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
            )
        };
        match self.exchange_once(request) {
            Err(error) if is_cut_short(&error) => match self.exchange_once(request) {
                // It is gone. How it ended says more.
                Err(again) if again.kind() == ErrorKind::ConnectionRefused => Err(error),
                Err(again) if again.kind() == ErrorKind::NotFound => Err(error),
                answer => answer,
            },
            answer => answer,
        }
    }

    /// Sends a request. Returns the answer without its last line, `errno=0`. The answer is read into memory that is
    /// wiped, and into nothing else.
    fn exchange_once(&self, request: &str) -> Result<Zeroizing<String>> {
        let mut stream = UnixStream::connect(&self.path)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = Zeroizing::new(Vec::with_capacity(PIECE));
        // Where the first line begins that is not complete yet.
        let mut line = 0;
        loop {
            if read_more(&mut stream, &mut answer)? == 0 || answer.len() > MAX_ANSWER {
                return Err(Error::new(
                    ErrorKind::UnexpectedEof,
                    "the device closed the connection without an answer",
                ));
            }
            while let Some(len) = answer[line..].iter().position(|&byte| byte == b'\n') {
                let Some(errno) = answer[line..line + len].strip_prefix(b"errno=") else {
                    line += len + 1;
                    continue;
                };
                let errno = str::from_utf8(errno).ok().and_then(|errno| errno.trim_end().parse().ok());
                match errno.unwrap_or(-1_i32) {
                    0 => answer.truncate(line),
                    errno => return Err(Error::from_raw_os_error(errno.saturating_abs())),
                }
                return text(answer);
            }
        }
    }
}

/// Reads more of the answer behind what is there. Returns the number of bytes, 0 at the end. A signal, as when a
/// service is stopped, does not end the reading.
fn read_more(stream: &mut impl Read, answer: &mut Zeroizing<Vec<u8>>) -> Result<usize> {
    let start = answer.len();
    if start == answer.capacity() {
        // `Vec` is not left to grow by itself, since it would free the old copy unwiped.
        let mut larger = Zeroizing::new(Vec::with_capacity(2 * start));
        larger.extend_from_slice(answer);
        *answer = larger;
    }
    let end = answer.capacity().min(start + PIECE);
    answer.resize(end, 0);
    let read = loop {
        match stream.read(answer.get_mut(start..).unwrap_or_default()) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            read => break read,
        }
    };
    answer.truncate(start + read.as_ref().map_or(0, |count| *count));
    read
}

/// The answer as text, in the same memory.
fn text(mut answer: Zeroizing<Vec<u8>>) -> Result<Zeroizing<String>> {
    String::from_utf8(std::mem::take(&mut *answer)).map(Zeroizing::new).map_err(|error| {
        drop(Zeroizing::new(error.into_bytes()));
        Error::new(ErrorKind::InvalidData, "the device's answer is not in UTF-8")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixListener;

    const ANSWER: &str = "private_key=a8dac1d8a70a751f0f699fb14ba1cff3a8dac1d8a70a751f0f699fb14ba1cf73\nlisten_port=7\nfwmark=9\n\
        public_key=b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33\n\
        preshared_key=0000000000000000000000000000000000000000000000000000000000000000\nprotocol_version=1\n\
        endpoint=[fe80::1%3]:51820\nlast_handshake_time_sec=2\nlast_handshake_time_nsec=5\ntx_bytes=38333\nrx_bytes=2224\n\
        persistent_keepalive_interval=111\nallowed_ip=192.168.4.4/32\nsomething_new=1\n";

    #[test]
    fn an_answer_is_read_and_what_is_new_in_it_left_out() {
        let state = DeviceState::parse(ANSWER).unwrap();
        assert_eq!((state.listen_port, state.fwmark, state.peers.len()), (7, 9, 1));
        let peer = &state.peers[0];
        assert_eq!(peer.preshared_key, None);
        assert_eq!(peer.endpoint, Some("[fe80::1%3]:51820".parse().unwrap()));
        assert_eq!(peer.last_handshake, Duration::new(2, 5));
        assert_eq!((peer.tx_bytes, peer.rx_bytes, peer.persistent_keepalive), (38333, 2224, 111));
        assert_eq!(DeviceState::parse("what\n"), None);
        assert!(!format!("{state:?}").contains("a8dac1"));
    }

    #[test]
    fn a_time_beyond_all_times_is_no_answer() {
        let times = ["last_handshake_time_sec", "last_handshake_time_nsec"];
        for line in times.map(|key| format!("{key}={}\n", u64::MAX)) {
            assert_eq!(
                DeviceState::parse(&format!("{ANSWER}last_handshake_time_sec={}\n{line}", u64::MAX)),
                None
            );
        }
    }

    /// A device that gives these answers, one a connection, to what it then reports to have been asked.
    fn answering(name: &str, answers: Vec<String>) -> (ControlSocket, std::thread::JoinHandle<Vec<String>>) {
        let path = std::env::temp_dir().join(format!("rt-control-{}-{name}.sock", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let control = ControlSocket { path: path.clone() };
        let server = std::thread::spawn(move || {
            let serve = |answer: String| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut line = String::new();
                BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
                line
            };
            let asked = answers.into_iter().map(serve).collect();
            std::fs::remove_file(path).unwrap();
            asked
        });
        (control, server)
    }

    #[test]
    fn an_error_number_becomes_an_error() {
        let answers = ["errno=0\n\n".into(), "errno=-22\n\n".into(), format!("{ANSWER}errno=0\n\n")];
        let (control, server) = answering("errors", answers.to_vec());
        control.set(&SetRequest::default()).unwrap();
        assert_eq!(control.set(&SetRequest::default()).unwrap_err().raw_os_error(), Some(22));
        assert_eq!(control.configured().unwrap().listen_port, 7);
        server.join().unwrap();
    }

    #[test]
    fn only_the_peers_that_are_wanted_are_asked_for() {
        let key = PublicKey([0xab; 32]);
        assert_eq!(get_text(&[key]), format!("get=1\npublic_key={}\n\n", "ab".repeat(32)));
        assert_eq!(get_text(&[]), "get=1\npeers=none\n\n");
        let device = || format!("{ANSWER}errno=0\n\n");
        let answers = [device(), device(), device(), "errno=-22\n\n".into(), device()];
        let (control, server) = answering("some", answers.to_vec());
        for ask in
            [ControlSocket::get_interface, |control: &ControlSocket| control.get_peers(&[PublicKey([1; 32])])]
        {
            assert_eq!(ask(&control).unwrap().listen_port, 7);
        }
        control.get_peers(&[key; MAX_NAMED + 1]).unwrap();
        // Another implementation.
        assert_eq!(control.get_peers(&[key]).unwrap().peers.len(), 1);
        server.join().unwrap();
    }

    #[test]
    fn an_answer_longer_than_a_piece_is_read_whole() {
        let key = |number: u32| format!("{number:064x}");
        let peers: String = (1..5000).map(|number| format!("public_key={}\n", key(number))).collect();
        let (control, server) = answering("long", vec![format!("{peers}errno=0\n\n")]);
        let device = control.get().unwrap();
        assert_eq!(device.peers.len(), 4999);
        assert!((1u32..).zip(&device.peers).all(|(n, peer)| peer.public_key.0[28..] == n.to_be_bytes()));
        server.join().unwrap();
    }

    #[test]
    fn a_signal_while_an_answer_is_awaited_loses_nothing() {
        struct Interrupted(bool);
        impl Read for Interrupted {
            fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
                if std::mem::replace(&mut self.0, false) {
                    return Err(ErrorKind::Interrupted.into());
                }
                buffer[..3].copy_from_slice(b"end");
                Ok(3)
            }
        }
        let mut answer = Zeroizing::new(b"the ".to_vec());
        assert_eq!(read_more(&mut Interrupted(true), &mut answer).unwrap(), 3);
        assert_eq!(**answer, *b"the end");
    }

    #[test]
    fn a_port_that_somebody_else_has_is_configured_all_the_same() {
        let status = r#"status={"unbound":{"port":4500,"error":"in use"}}"#;
        let answers = ["fwmark=9\nerrno=0\n\n".into(), format!("{status}\nerrno=0\n\n")];
        let (control, server) = answering("unbound", answers.to_vec());
        let device = control.configured().unwrap();
        assert_eq!((device.listen_port, device.fwmark), (4500, 9));
        assert_eq!(server.join().unwrap(), ["get=1\n", "status=1\n"]);
        // Another implementation does not know the second question.
        let answers = ["errno=0\n\n".into(), "errno=-22\n\n".into()];
        let (control, server) = answering("other", answers.to_vec());
        assert_eq!(control.configured().unwrap().listen_port, 0);
        server.join().unwrap();
    }
}
