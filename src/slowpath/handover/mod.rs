//! The tunnel goes on in another process, without a pause that anybody notices.
//!
//! ```text
//!   successor                                   predecessor
//!     handover=offer  ────────────────────────>   settings, and all files but the sockets; nothing else happens
//!     starts its workers, at rest
//!     handover=state  ────────────────────────>   has its workers come to rest, writes the state
//!     restores it     <────────────────────────   the state in a sealed file, the UDP sockets
//!     taken=1         ────────────────────────>   will not seal anything any more
//!     goes on         <────────────────────────   errno=0; ends
//! ```
//!
//! All of it goes through the control socket, as lines with files (`sys/passing.rs`). Until the predecessor has said the last word
//! it may go on as if nothing had happened, and does so where the successor fails, is silent, or dies. After that it never does, and the
//! successor does not before: so at any time there is one at most that counts with a session's counter.

mod giving;
mod surplus;
mod taking;

pub(super) use giving::Asking;
pub use taking::{LateStart, TakenReport, Takeover};

use crate::device::handover::FORMAT;
use crate::io::tun::TunOffloads;
use crate::sys::error::invalid;
use crate::sys::passing::{self, Parcel};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io::{Error, Result};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// How long an answer may take that the other process has at hand.
const AT_ONCE: Duration = Duration::from_secs(2);
/// How long the workers may take to come to rest. What they had taken in is done in a few milliseconds.
const TO_REST: Duration = Duration::from_secs(2);
/// How long the successor may take to restore the state: a second for some 100,000 peers.
const TO_RESTORE: Duration = Duration::from_secs(10);
/// How long it waits for the state, and for the last word: longer than the predecessor takes until it gives up.
const PATIENCE: Duration = Duration::from_secs(15);
/// Most bytes of what goes along as text.
const MAX_NOTE: usize = 64 << 10;

/// EPERM: the process is another user's.
const EPERM: i32 = 1;
/// EINVAL, as which a program that knows no hand-over refuses it.
const EINVAL: i32 = 22;
/// EOPNOTSUPP: the tunnel stays with its process.
const EOPNOTSUPP: i32 = 95;
/// ECANCELED: it was tried, and the tunnel goes on where it was.
const ECANCELED: i32 = 125;

/// What a tunnel's owner leaves to the owner of the tunnel in the next process.
#[derive(Debug, Default)]
pub struct Belongings {
    /// A text that is the owners' affair, of at most 64 KiB.
    pub note: String,
    /// Open files that belong to it.
    pub files: Vec<OwnedFd>,
}

/// How the tunnel was asked for, as far as that matters to its successor.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TunnelSettings {
    /// The number of workers.
    pub workers: usize,
    /// How many packet buffers each worker has.
    pub buffers: usize,
    /// Whether workers are to use io_uring. `None` is where they can.
    pub uring: Option<bool>,
    /// Whether many datagrams are sent at once.
    pub gso: bool,
    /// Whether many datagrams are received at once.
    pub gro: bool,
    /// Bytes of each socket's buffers.
    pub socket_buffer: usize,
    /// Whether a program chooses the queue of the TUN device.
    pub steering: bool,
    /// Whether workers are pinned to cores.
    pub pin: bool,
    /// Whether workers share the trains of every peer.
    pub share_all: bool,
    /// Whether another process made the TUN device, so that it has one queue.
    pub handed_in: bool,
    /// What the TUN device takes.
    pub offloads: TunOffloads,
}

/// What is handed over where another process asks for the tunnel.
#[derive(Debug)]
pub struct HandOverTerms {
    /// How the tunnel was asked for.
    pub settings: TunnelSettings,
    /// The network namespace of the sockets.
    pub network: OwnedFd,
    /// The listening control socket.
    pub listener: OwnedFd,
    /// All queues of the TUN device, by worker.
    pub queues: Vec<OwnedFd>,
    /// What else goes along.
    pub belongings: Belongings,
}

/// The text of an offer.
#[derive(Debug, Serialize, Deserialize)]
struct OfferText {
    format: u16,
    version: String,
    pid: u32,
    uid: u32,
    settings: TunnelSettings,
    queues: usize,
    has_maps: bool,
    note: String,
}

/// What a tunnel in another process would hand over.
#[derive(Debug)]
pub struct Offer {
    /// The version of the program there.
    pub version: String,
    /// The number of the process, as it sees itself.
    pub pid: u32,
    /// The user of the process.
    pub uid: u32,
    /// The maps of the program that chooses the TUN queue, where there is one.
    pub maps: Option<[OwnedFd; 2]>,
    /// The rest.
    pub terms: HandOverTerms,
}

impl Offer {
    /// Asks for it at a connection to the tunnel's control socket. Nothing changes there.
    ///
    /// # Errors
    ///
    /// Where the process refuses, does not answer, or has another format.
    pub fn ask(connection: &UnixStream) -> Result<Offer> {
        let until = Instant::now() + AT_ONCE;
        passing::send(connection.as_fd(), "handover=offer\n", &[], until)?;
        let parcel = granted(passing::receive(connection.as_fd(), until)?)?;
        let text = parcel.value("offer").and_then(|text| serde_json::from_str::<OfferText>(text).ok());
        let text = text.ok_or_else(|| invalid("the running program offers what this one does not know"))?;
        if text.format != FORMAT {
            return Err(invalid(format!(
                "the running program (version {}) hands over format {}, and this one (version {}) knows format {FORMAT}: \
                 use a program of the same format, or restart the tunnel",
                text.version,
                text.format,
                env!("CARGO_PKG_VERSION")
            )));
        }
        let mut files = parcel.files.into_iter();
        let mut next =
            || files.next().ok_or_else(|| invalid("files are missing that should have been handed over"));
        let (network, listener) = (next()?, next()?);
        let maps = if text.has_maps { Some([next()?, next()?]) } else { None };
        let queues = (0..text.queues).map(|_| next()).collect::<Result<Vec<_>>>()?;
        if queues.is_empty() || text.settings.workers == 0 {
            return Err(invalid("a tunnel without workers was handed over"));
        }
        let belongings = Belongings { note: text.note, files: files.collect() };
        let terms = HandOverTerms { settings: text.settings, network, listener, queues, belongings };
        Ok(Offer { version: text.version, pid: text.pid, uid: text.uid, maps, terms })
    }
}

/// The answer, if it says that all is well.
fn granted(parcel: Parcel) -> Result<Parcel> {
    let errno = parcel.value("errno").and_then(|errno| errno.parse::<i32>().ok());
    match (errno.map(i32::saturating_abs), parcel.value("why")) {
        (Some(0), _) => Ok(parcel),
        (_, Some(why)) => Err(Error::other(why.to_owned())),
        (Some(EINVAL), None) => Err(Error::other(
            "the running program is of a version that cannot hand its tunnel over: restart the tunnel for this once",
        )),
        (Some(errno), None) => Err(Error::from_raw_os_error(errno)),
        (None, None) => Err(invalid("the running program gives no answer that is one")),
    }
}

/// Why a tunnel is not handed over.
#[derive(Debug)]
enum NotHandedOver {
    /// The one who asks is another user.
    NotYours,
    /// The tunnel stays with its process.
    Kept,
    /// It was begun, and could not be finished.
    Failed(Error),
}

impl NotHandedOver {
    fn errno(&self) -> i32 {
        match self {
            NotHandedOver::NotYours => EPERM,
            NotHandedOver::Kept => EOPNOTSUPP,
            NotHandedOver::Failed(_) => ECANCELED,
        }
    }
}

impl fmt::Display for NotHandedOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotHandedOver::NotYours => f.write_str("only root and the tunnel's own user may take it over"),
            NotHandedOver::Kept => f.write_str(
                "the running process hands its tunnel to no other: it is another program with the library, or the first process of \
                 a container, which ends with it",
            ),
            NotHandedOver::Failed(error) => write!(f, "the running process goes on with the tunnel: {error}"),
        }
    }
}

impl std::error::Error for NotHandedOver {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            NotHandedOver::Failed(error) => Some(error),
            _ => None,
        }
    }
}
