//! A device becomes a state.

use super::StateParts;
use super::format::{MAX_STATE, StateError, StateWriter};
use super::record::{
    DeviceRecord, FrameBytes, MessageRecord, PeerRecord, SessionRecord, SocketCount, prefix_record,
};
use crate::crypto::secret::SecretBytes;
use crate::dataplane::record::{ReceivingRecord, WorkerRecord};
use crate::device::peer::Peer;
use crate::device::{Device, Now};
use crate::noise::cookie::GateKeys;
use crate::noise::session::{RecvRecord, Role};
use crate::time::{Instant, Offset};
use std::collections::HashMap;
use zeroize::Zeroizing;

/// What the workers have of sessions, by index.
type OpeningHalves = HashMap<u32, (Role, RecvRecord)>;

impl Device {
    /// Does at once what is done for a few peers at a time, so that nothing is half done in the state. To be called before the workers
    /// come to rest, as they are told what comes of it.
    pub fn finish_pieces(&mut self, now: Now) {
        while self.sweep.is_some() {
            self.sweep(now);
        }
    }

    /// The state from which another process goes on. Sessions that have taken effect without anybody having heard of it are noted on
    /// the way; nothing else changes.
    ///
    /// # Errors
    ///
    /// [`StateError::TooLarge`].
    pub fn export(&mut self, now: Now, parts: StateParts) -> Result<Zeroizing<Vec<u8>>, StateError> {
        let StateParts { mut workers, handshakes, sockets } = parts;
        workers.sort_by_key(|record| record.worker);
        let mut writer = StateWriter::new(MAX_STATE);
        let (mut received, mut frames) = (OpeningHalves::new(), Vec::new());
        for WorkerRecord { worker, sessions, frames: waiting } in workers {
            sessions.into_iter().for_each(|session| self.take_received(now, session, &mut received));
            frames.extend(waiting.into_iter().map(|frame| (worker, FrameBytes(frame))));
        }
        writer.push(&DeviceRecord {
            handshakes: handshakes.iter().map(MessageRecord::new).collect(),
            frames,
            ..self.record(now.mono, sockets)
        })?;
        for peer in self.peers.in_order() {
            let sharing = self.balancer.sharing(peer.shared.id);
            writer.push(&PeerRecord { sharing, ..peer_record(peer, now.mono, &mut received) })?;
        }
        Ok(writer.finish())
    }

    /// Takes in what a worker has of a session.
    fn take_received(&mut self, now: Now, session: ReceivingRecord, received: &mut OpeningHalves) {
        let ReceivingRecord { peer, index, role, receive, effective } = session;
        if effective {
            self.take_confirmation(now, peer, index);
        }
        received.insert(index, (role, receive));
    }

    fn record(&self, now: Instant, sockets: SocketCount) -> DeviceRecord {
        let key = self.identity.as_deref().map(|identity| identity.private().to_bytes()).map(Zeroizing::new);
        DeviceRecord {
            clock: now.as_nanos(),
            private_key: key.map(|key| SecretBytes::copy_of(&key)),
            cookies: self.cookies.as_ref().map(GateKeys::record),
            port: self.port,
            mark: self.mark,
            up: self.is_up(),
            mtu: self.mtu,
            stamp: self.clock.last().0,
            sockets,
            handshakes: Vec::new(),
            frames: Vec::new(),
            peers: self.peers.len() as u32,
        }
    }
}

fn peer_record(peer: &Peer, now: Instant, received: &mut OpeningHalves) -> PeerRecord {
    let sessions = peer.sessions.parts().filter_map(|(index, born, shared, send)| {
        let (role, receive) = received.remove(&index)?;
        let send = send.map(|send| send.record());
        Some(SessionRecord { index, role, born: Offset::of(born, now), shared, receive, send })
    });
    PeerRecord {
        public_key: peer.public_key.0,
        owner: peer.shared.owner(),
        endpoint: peer.endpoint.map(Into::into),
        heard: peer.heard.map(Into::into),
        allowed_ips: peer.allowed.iter().map(prefix_record).collect(),
        handshake: peer.handshake.record(now),
        jar: peer.jar.record(now),
        timers: peer.timers.record(now),
        sessions: sessions.collect(),
        current: peer.sessions.current().map(|current| current.local_index()),
        interrupted: peer.interrupted,
        sharing: [None; 3],
        traffic: peer.shared.record(now),
        history: peer.history.as_ref().and_then(|history| serde_json::to_string(history).ok()),
        silence: peer.history.as_ref().and_then(|history| history.silence(now)),
    }
}
