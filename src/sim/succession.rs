//! Which session an end sends with, seen from the wire: whether it ever goes back to one of the past.

use crate::noise::REKEY_TIMEOUT;
use crate::sim::net::Datagram;
use crate::time::Instant;
use crate::wire::message::{DataHeader, MessageKind, Response, index};
use std::collections::HashMap;
use std::time::Duration;

/// The longest jitter of a handshake's retry, and the way.
const JITTER: Duration = Duration::from_millis(400);

/// The sessions of a world, known by what is said in clear.
#[derive(Default)]
pub(super) struct Succession {
    /// The host that drew an index, and when the handshake began that it is of. `None` where two hosts drew it.
    indices: HashMap<u32, Option<(usize, Instant)>>,
    /// The latest beginning of the sessions with which a host sent to another.
    latest: HashMap<(usize, usize), (Instant, u32)>,
    pub(super) found: Vec<String>,
}

impl Succession {
    /// Notes what `host` sends.
    pub(super) fn sent(&mut self, now: Instant, host: usize, datagram: &Datagram) {
        match datagram.kind() {
            Some(MessageKind::Initiation) => {
                if let Some(index) = index(&datagram.bytes) {
                    self.drawn(index, host, now);
                }
            }
            Some(MessageKind::Response) => {
                let Some(response) = Response::parse(&datagram.bytes) else { return };
                if let Some(&Some((_, began))) = self.indices.get(&response.receiver) {
                    self.drawn(response.sender, host, began);
                }
            }
            Some(MessageKind::Data) => {
                let Some(DataHeader { receiver, .. }) = DataHeader::parse(&datagram.bytes) else { return };
                let Some(&Some((peer, began))) = self.indices.get(&receiver) else { return };
                let (latest, index) = self.latest.entry((host, peer)).or_insert((began, receiver));
                // Those that may have crossed on the wire have no order.
                if began + REKEY_TIMEOUT + JITTER <= *latest {
                    self.found.push(format!(
                        "succession: host {host} goes back to a session with {peer} begun at {began:?} (index {receiver:#x}), \
                         after one begun at {latest:?} ({index:#x})"
                    ));
                }
                if began > *latest {
                    (*latest, *index) = (began, receiver);
                }
            }
            _ => {}
        }
    }

    fn drawn(&mut self, index: u32, host: usize, began: Instant) {
        let drawn = self.indices.entry(index).or_insert(Some((host, began)));
        *drawn = drawn.filter(|(by, _)| *by == host).map(|_| (host, began));
    }
}
