//! Cuts a connection's bytes into operations. Each ends with an empty line, and several may follow each other.

use super::{E2BIG, EINVAL, UapiError, parse};
use crate::crypto::x25519::PublicKey;
use zeroize::{Zeroize, Zeroizing};

/// Most bytes of an operation: room for 2^20 allowed IPs at up to 55 bytes a line, or for 200,000 peers with all their keys.
pub const MAX_OPERATION: usize = 64 << 20;

/// Most bytes of the next operation that may come with the end of one.
const SLACK: usize = 64 * 1024;
/// Most peers that one question may name. Its text is at most 304 KiB, and the keys are 128 KiB.
pub const MAX_NAMED: usize = 4096;
/// Bytes of a question's line that names a peer.
const NAME_LINE: usize = "public_key=".len() + 64 + 1;
/// The first lines of operations: of a question, or of a transaction.
const GET: &[u8] = b"get=1\n";
const STATUS: &[u8] = b"status=1\n";
const SET: &[u8] = b"set=1\n";
const MONITOR: &[u8] = b"monitor=1\n";
const DIAGNOSE: &[u8] = b"diagnose=1\n";
const OFFER: &[u8] = b"handover=offer\n";
const STATE: &[u8] = b"handover=state\n";
/// All of them.
const FIRST_LINES: [&[u8]; 7] = [GET, STATUS, SET, MONITOR, DIAGNOSE, OFFER, STATE];
/// The second line of a question about no peer.
const NO_PEERS: &[u8] = b"peers=none\n";
/// The last line of a question about one peer that also has a handshake tried.
const TRY: &[u8] = b"handshake=true\n";
/// How the lines of a question about some peers begin.
const NAME: &[u8] = b"public_key=";

/// An operation that a client asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Operation {
    /// The configuration is asked for (`get=1`).
    Get,
    /// The configuration of the interface and of these peers is asked for (`get=1`, and either a line `public_key=` for
    /// each peer or the line `peers=none`). This is this program's own operation, which other clients never send.
    GetPeers(Vec<PublicKey>),
    /// The status is asked for (`status=1`), which is this program's own operation; see [`crate::device::status`].
    Status,
    /// The status without the owners of the peers is asked for (`status=1` and the line `peers=none`).
    StatusOfNoPeers,
    /// All events from now on are asked for (`monitor=1`), until the client closes. This is this program's own operation; see
    /// [`crate::device::events`].
    Monitor,
    /// What is known of a peer is asked for (`diagnose=1` and a line `public_key=`), and with the line `handshake=true` a
    /// handshake is tried, too. This is this program's own operation; see [`crate::device::facts`].
    Diagnose {
        /// The key of the peer.
        key: PublicKey,
        /// Whether a handshake is tried.
        tries: bool,
    },
    /// What could be handed over to the asking process is asked for (`handover=offer`). This is this program's own operation, and so is
    /// the next.
    Offer,
    /// The tunnel's state is asked for (`handover=state`), upon which the asking process goes on with the tunnel.
    HandOver,
    /// A transaction (`set=1`): its lines with the first and without the empty one, for [`super::SetRequest::parse`].
    Set(Zeroizing<Vec<u8>>),
}

/// Takes bytes in and yields operations. What it holds may be private keys, so it wipes all memory of which it lets go.
#[derive(Default)]
pub struct Framer {
    buffer: Zeroizing<Vec<u8>>,
    /// How many bytes are known not to contain an operation's end.
    scanned: usize,
    failed: bool,
}

impl Framer {
    /// Makes the framer of a new connection.
    #[cfg(feature = "internals")]
    pub fn new() -> Framer {
        Framer::default()
    }

    /// Takes in what the connection delivered. After each call, take all of [`Self::next_operation`]: then what is held is
    /// no more than [`MAX_OPERATION`] and the length of one push.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.failed {
            return;
        }
        let room = self.room_after(bytes.len());
        if room > self.buffer.capacity() {
            // This is not left to `Vec`, which would free the old copy without wiping it.
            let mut larger = Zeroizing::new(Vec::with_capacity(room));
            larger.extend_from_slice(&self.buffer);
            self.buffer = larger;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Bytes of memory that are held once `more` further bytes came.
    pub fn room_after(&self, more: usize) -> usize {
        let needed = self.buffer.len() + more;
        if needed <= self.buffer.capacity() {
            return self.buffer.capacity();
        }
        // Twice as much each time, but at the end no more than the longest operation and what came with its last bytes.
        needed.next_power_of_two().min(needed.max(MAX_OPERATION + SLACK))
    }

    /// The next whole operation, or `None` until more bytes came. After an error, answer with its number and close the
    /// connection: what follows cannot be understood any more.
    pub fn next_operation(&mut self) -> Option<Result<Operation, UapiError>> {
        if self.failed {
            return None;
        }
        let next = self.cut();
        if matches!(next, Some(Err(_))) {
            self.failed = true;
            self.buffer = Zeroizing::default();
        }
        next
    }

    /// Whether an operation has begun and not ended, so that the connection should not close now.
    pub fn is_midway(&self) -> bool {
        !self.buffer.is_empty()
    }

    fn cut(&mut self) -> Option<Result<Operation, UapiError>> {
        if self.buffer.starts_with(GET) {
            return self.cut_get();
        }
        if self.buffer.starts_with(STATUS) {
            return self.cut_status();
        }
        if self.buffer.starts_with(MONITOR) {
            return self.cut_question(MONITOR, Operation::Monitor);
        }
        if self.buffer.starts_with(DIAGNOSE) {
            return self.cut_diagnose();
        }
        if self.buffer.starts_with(OFFER) {
            return self.cut_question(OFFER, Operation::Offer);
        }
        if self.buffer.starts_with(STATE) {
            return self.cut_question(STATE, Operation::HandOver);
        }
        if !self.buffer.starts_with(SET) {
            let may_become_one = FIRST_LINES.iter().any(|line| line.starts_with(&self.buffer));
            return (!may_become_one).then(|| Err(error(EINVAL, 1, "neither get=1 nor set=1")));
        }
        let end = match self.find_end(MAX_OPERATION)? {
            Ok(end) => end,
            Err(TooLong) => return Some(Err(error(E2BIG, 1, "an operation of more than 64 MiB"))),
        };
        let rest = Zeroizing::new(self.buffer[end + 1..].to_vec());
        let mut body = std::mem::replace(&mut self.buffer, rest);
        body.truncate(end); // what is cut off here is wiped with the rest of its memory
        self.scanned = 0;
        Some(Ok(Operation::Set(body)))
    }

    /// Looks for the empty line that ends an operation: a newline after the one of the line before. It must come within
    /// `most` bytes.
    fn find_end(&mut self, most: usize) -> Option<Result<usize, TooLong>> {
        let end = empty_line(&self.buffer, self.scanned.max(GET.len() - 1));
        if end.unwrap_or(self.buffer.len()) > most {
            return Some(Err(TooLong));
        }
        if end.is_none() {
            self.scanned = self.buffer.len() - 1;
        }
        end.map(Ok)
    }

    /// Takes a question for the configuration off: of all, of the interface alone, or of it and some peers.
    fn cut_get(&mut self) -> Option<Result<Operation, UapiError>> {
        let lines = self.buffer.get(GET.len()..).filter(|lines| !lines.is_empty())?;
        if lines.starts_with(b"\n") {
            return self.cut_question(GET, Operation::Get);
        }
        if lines.starts_with(NO_PEERS) {
            return self.cut_question(&[GET, NO_PEERS].concat(), Operation::GetPeers(Vec::new()));
        }
        if NO_PEERS.starts_with(lines) {
            return None;
        }
        let name = lines.get(..NAME.len()).unwrap_or(lines);
        if !NAME.starts_with(name) {
            return Some(Err(error(EINVAL, 2, "a question names peers, or has no lines")));
        }
        let end = match self.find_end(GET.len() + MAX_NAMED * NAME_LINE)? {
            Ok(end) => end,
            Err(TooLong) => return Some(Err(error(E2BIG, 1, "a question names too many peers"))),
        };
        let named = parse::named_peers(&self.buffer[GET.len()..end], 2);
        self.consume(end + 1);
        Some(named.map(Operation::GetPeers))
    }

    /// Takes a question for the status off.
    fn cut_status(&mut self) -> Option<Result<Operation, UapiError>> {
        let lines = self.buffer.get(STATUS.len()..).filter(|lines| !lines.is_empty())?;
        if lines.starts_with(NO_PEERS) {
            return self.cut_question(&[STATUS, NO_PEERS].concat(), Operation::StatusOfNoPeers);
        }
        if NO_PEERS.starts_with(lines) {
            return None;
        }
        self.cut_question(STATUS, Operation::Status)
    }

    /// Takes a question about one peer off.
    fn cut_diagnose(&mut self) -> Option<Result<Operation, UapiError>> {
        let end = match self.find_end(DIAGNOSE.len() + NAME_LINE + TRY.len())? {
            Ok(end) => end,
            Err(TooLong) => {
                return Some(Err(error(E2BIG, 1, "a question about one peer has too many lines")));
            }
        };
        let lines = &self.buffer[DIAGNOSE.len()..end];
        let (name, tries) = match lines.strip_suffix(TRY) {
            Some(name) => (name, true),
            None => (lines, false),
        };
        let operation = parse::named_peers(name, 2).and_then(|named| match named[..] {
            [key] => Ok(Operation::Diagnose { key, tries }),
            _ => Err(error(EINVAL, 3, "a question about one peer names one")),
        });
        self.consume(end + 1);
        Some(operation)
    }

    /// Takes a question off, which is `line` and the empty one.
    fn cut_question(&mut self, line: &[u8], operation: Operation) -> Option<Result<Operation, UapiError>> {
        match self.buffer.get(line.len())? {
            b'\n' => {
                self.consume(line.len() + 1);
                Some(Ok(operation))
            }
            _ => Some(Err(error(EINVAL, 2, "a question takes no lines"))),
        }
    }

    /// Drops the first `len` bytes. The memory of a large operation is given back.
    fn consume(&mut self, len: usize) {
        let rest = Zeroizing::new(self.buffer[len..].to_vec());
        self.buffer.zeroize();
        self.buffer = rest;
        self.scanned = 0;
    }
}

/// The end of an operation is further away than it may be.
struct TooLong;

/// The first newline at or after `from` that follows another one.
fn empty_line(bytes: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    loop {
        at += bytes.get(at..)?.iter().position(|&byte| byte == b'\n')? + 1;
        if *bytes.get(at)? == b'\n' {
            return Some(at);
        }
    }
}

fn error(errno: i32, line: usize, what: &str) -> UapiError {
    UapiError { errno, line, what: what.to_owned() }
}
