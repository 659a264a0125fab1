//! A state becomes a device, and what its workers have to be given.

use super::format::{StateError, StateReader};
use super::record::{DeviceRecord, FrameBytes, MessageRecord, PeerRecord, SessionRecord, SocketCount};
use crate::crypto::stack;
use crate::crypto::x25519::{PrivateKey, PublicKey};
use crate::dataplane::record::RestoredSession;
use crate::dataplane::{Control, IncomingHandshake, PeerShared};
use crate::device::Device;
use crate::device::history::History;
use crate::device::lifecycle::InterfaceState;
use crate::device::outputs::Broadcast;
use crate::device::peer::Peer;
use crate::device::sessions::RestoredLive;
use crate::device::table::MAX_PEERS;
use crate::index::{ReceiverIndex, WorkerCount};
use crate::noise::cookie::{CookieJar, GateKeys};
use crate::noise::handshake::{Handshake, Identity};
use crate::noise::session::{RecvSession, SendSession};
use crate::noise::tai64n::{Tai64N, Tai64NClock};
use crate::noise::timers::Timers;
use crate::routing::Prefix;
use crate::time::Instant;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// What comes with the device.
#[derive(Debug)]
pub struct Imported {
    /// Handshake messages that waited for the slow path, the oldest first.
    pub handshakes: Vec<IncomingHandshake>,
    /// The frames that waited for a session, for each worker.
    pub frames: Vec<Vec<Box<[u8]>>>,
    /// How many UDP sockets there are.
    pub sockets: SocketCount,
    /// The firewall mark of the sockets; 0 is none.
    pub mark: u32,
}

/// The sessions of each worker.
type Restored = Vec<Vec<RestoredSession>>;

const INDEX_TWICE: StateError = StateError::Invalid("a receiver index belongs to two sessions");
const NO_SESSION: StateError = StateError::Invalid("a session that there cannot be");

impl Device {
    /// Takes a state in, as a device that was made a moment ago and has neither key nor peers. Its workers have to be at rest until
    /// the controls that follow have been carried out. `then` is the time of the state on this process's clock, for one that has
    /// another clock than the process from which the state is; else the state knows it.
    ///
    /// After an error the device is of no use.
    ///
    /// # Errors
    ///
    /// Why the state cannot be taken in.
    pub fn import(&mut self, state: &[u8], then: Option<Instant>) -> Result<Imported, StateError> {
        let mut reader = StateReader::new(state)?;
        let record: DeviceRecord = reader.next()?;
        if record.peers as usize > MAX_PEERS {
            return Err(StateError::Invalid("more peers than a device may have"));
        }
        let then = then.unwrap_or(Instant::from_nanos(record.clock)).max(Instant::START);
        stack::leaving_nothing(|| self.import_device(&record))?;
        self.peers.reserve(record.peers as usize);
        let workers = self.out.workers();
        let mut restored: Restored = workers.iter().map(|_| Vec::new()).collect();
        for _ in 0..record.peers {
            let peer: PeerRecord = reader.next()?;
            stack::leaving_nothing(|| self.import_peer(&peer, then, &mut restored))?;
        }
        reader.end()?;
        self.unsteered = self.publish().into_iter();
        for (worker, sessions) in workers.iter().zip(restored) {
            self.out.one(worker, Control::Restore(sessions));
        }
        let messages = record.handshakes.iter().map(MessageRecord::message).collect::<Option<Vec<_>>>();
        let mut frames: Vec<Vec<Box<[u8]>>> = workers.iter().map(|_| Vec::new()).collect();
        for (worker, FrameBytes(frame)) in record.frames {
            frames[usize::from(ReceiverIndex(worker.into()).owner(workers))].push(frame);
        }
        let DeviceRecord { sockets, mark, .. } = record;
        let handshakes = messages.ok_or(StateError::Malformed)?;
        Ok(Imported { handshakes, frames, sockets, mark })
    }

    fn import_device(&mut self, record: &DeviceRecord) -> Result<(), StateError> {
        self.clock = Tai64NClock::after(Tai64N(record.stamp));
        (self.port, self.mark) = (record.port, record.mark);
        self.link = if record.up { InterfaceState::Up } else { InterfaceState::Down };
        if let Some(mtu) = record.mtu {
            self.set_mtu(mtu);
        }
        if record.up && record.sockets == SocketCount::default() {
            return Err(StateError::Invalid("an interface that is up without sockets"));
        }
        let Some(key) = &record.private_key else { return Ok(()) };
        let identity = Arc::new(Identity::new(PrivateKey::from_bytes(*key.bytes())));
        let cookies = record.cookies.as_ref().ok_or(StateError::Invalid("a key without cookies"))?;
        let keys = GateKeys::restore(identity.public(), cookies, &mut *self.entropy);
        self.identity = Some(identity);
        self.cookies = Some(keys.clone());
        self.out.all(Broadcast::Identity(Some(Box::new(keys))));
        Ok(())
    }

    fn import_peer(
        &mut self,
        record: &PeerRecord,
        then: Instant,
        restored: &mut Restored,
    ) -> Result<(), StateError> {
        let key = PublicKey(record.public_key);
        if self.peers.find(&key).is_some() || self.public_key() == Some(&key) {
            return Err(StateError::Invalid("a peer that is there twice, or the device itself"));
        }
        let owner = ReceiverIndex(record.owner.into()).owner(self.out.workers());
        let id = self.peers.insert_for(key, Some(owner), |id, owner| {
            let handshake = Handshake::restore(key, &record.handshake, then);
            let jar = CookieJar::restore(&key, &record.jar, then);
            Peer::new(key, Arc::new(PeerShared::new(id, owner)), handshake, jar)
        });
        let up = self.is_up();
        let Some(peer) = self.peers.get_mut(id.slot) else { return Err(NO_SESSION) };
        let shared = Arc::clone(&peer.shared);
        shared.restore(&record.traffic, then);
        peer.timers = Timers::restore(&record.timers, then);
        peer.interrupted = record.interrupted;
        peer.endpoint = record.endpoint.map(Into::into);
        peer.heard = record.heard.map(Into::into);
        peer.sampled = (shared.traffic.tx_bytes.load(Relaxed), shared.traffic.rx_bytes.load(Relaxed));
        peer.history = history(record, then)?;
        shared.sending.set_endpoint(peer.endpoint);
        let pending = peer.handshake.pending_index();
        self.import_sessions(id.slot, record, then, restored)?;
        if pending.is_some_and(|index| !self.indices.claim(index, id.slot)) {
            return Err(INDEX_TWICE);
        }
        self.import_sharing(&shared, record);
        for &(ip, len) in &record.allowed_ips {
            let prefix =
                Prefix::new(ip, len).ok_or(StateError::Invalid("a prefix longer than its address"))?;
            self.allowed.insert(&mut self.peers, id.slot, prefix);
        }
        self.directory.insert(shared);
        if up {
            // Whether its stamps are to be watched, the first look decides.
            self.schedule.set(&mut self.peers, id.slot, Some(then));
        }
        Ok(())
    }

    fn import_sessions(
        &mut self,
        slot: u32,
        record: &PeerRecord,
        then: Instant,
        restored: &mut Restored,
    ) -> Result<(), StateError> {
        let Some(of) = self.peers.get_mut(slot) else { return Err(NO_SESSION) };
        let shared = Arc::clone(&of.shared);
        let mut live = Vec::with_capacity(record.sessions.len());
        for session in &record.sessions {
            let &SessionRecord { index, role, born, shared: confirmed, .. } = session;
            let born = born.from(then);
            let send = match &session.send {
                Some(send) => Some(SendSession::restore(send, index, born, role).ok_or(NO_SESSION)?),
                None => None,
            };
            let receive = RecvSession::restore(&session.receive, index, born, role).ok_or(NO_SESSION)?;
            if !self.indices.claim(index, slot) {
                return Err(INDEX_TWICE);
            }
            // One that the peer is not known to have takes effect with its first packet.
            let waiting = send.clone().filter(|_| !confirmed);
            let owner = usize::from(ReceiverIndex(index).owner(self.out.workers()));
            let peer = Arc::clone(&shared);
            restored[owner].push(RestoredSession { peer, receive, send: waiting, effective: confirmed });
            live.push(RestoredLive { index, born, shared: confirmed, send });
        }
        if !of.sessions.restore(live, record.current) {
            return Err(NO_SESSION);
        }
        if let Some(current) = of.sessions.current() {
            shared.sending.publish(current);
        }
        Ok(())
    }

    /// Goes on sharing among the workers what was shared.
    fn import_sharing(&mut self, peer: &PeerShared, record: &PeerRecord) {
        if self.out.workers() == WorkerCount::ONE {
            return;
        }
        self.balancer.restore(peer.id, record.sharing);
        let [sent, received, sealed] = record.sharing.map(|sharing| sharing.is_some());
        if let Some(peer) = self.peers.by_id(peer.id) {
            peer.spread = sent;
        }
        peer.assisted.store(received, Relaxed);
        peer.seal_assisted.store(sealed, Relaxed);
        self.share_added(peer);
    }

    /// Whether prefixes are still to be steered, after a state was taken in.
    pub(in crate::device) fn has_unsteered(&self) -> bool {
        self.unsteered.len() > 0
    }

    /// Steers some of the prefixes that came with a state.
    pub(in crate::device) fn steer_some(&mut self) {
        /// Prefixes steered in one call, as a transaction does.
        const STEERED: usize = 256;
        let Device { allowed, peers, out, unsteered, .. } = self;
        allowed.steer(peers, unsteered.by_ref().take(STEERED), out);
    }
}

fn history(record: &PeerRecord, then: Instant) -> Result<Option<Box<History>>, StateError> {
    let Some(text) = &record.history else { return Ok(None) };
    let mut history: History = serde_json::from_str(text).map_err(|_| StateError::Malformed)?;
    record.silence.into_iter().for_each(|silence| history.restore_silence(silence, then));
    Ok(Some(Box::new(history)))
}
