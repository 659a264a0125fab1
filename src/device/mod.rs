//! What the slow path decides: peers, handshakes, timers, cookies under load, UAPI. All of it is sans-IO; [`crate::slowpath`]
//! drives a [`Device`].
//!
//! ```text
//!   handle_handshake ──> handshakes ─┐                    ┌─> Output::Control(worker, …)
//!   handle_event ──────> mod ────────┼─> peer, indices ──>│   Output::Bind, Steer
//!   handle_timeout ────> timers ─────┤   (PeerTable)      └─ poll_output, after every call
//!                    └─> balance ────┤
//!   begin, go_on ──────> transaction ─┤
//!   set_up, bound ─────> lifecycle ───┘
//! ```
//!
//! One thread calls it. After every `handle_*`, `set_*`, `bound`, `begin` and `go_on` that thread drains [`Device::poll_output`] and
//! asks [`Device::poll_timeout`] again.

mod allowed;
mod attempts;
mod balance;
mod connection;
pub mod events;
pub mod facts;
pub mod handover;
mod handshakes;
pub mod history;
mod indices;
mod lifecycle;
pub mod memory;
mod outputs;
mod peer;
mod sessions;
mod sources;
mod stats;
pub mod status;
pub mod strangers;
mod table;
mod timers;
mod transaction;
pub mod uapi;
mod work;

#[cfg(test)]
mod tests;

pub use stats::DeviceStats;
pub use transaction::{ConfigureError, More, Transaction};
pub use work::{HandshakeResult, HandshakeWork};

use crate::crypto::random::Entropy;
use crate::crypto::stack;
use crate::crypto::x25519::PublicKey;
use crate::dataplane::directory::{DirectoryWriter, PeerDirectory};
use crate::dataplane::{Control, Event, IncomingHandshake, PeerId, PeerShared};
use crate::index::{ReceiverIndex, WorkerCount};
use crate::io::Endpoint;
use crate::io::steer::Target;
use crate::noise::cookie::GateKeys;
use crate::noise::handshake::Identity;
use crate::noise::limiter::Limiter;
use crate::noise::tai64n::Tai64NClock;
use crate::routing::{Prefix, RouteTable};
use crate::sys::source::Departure;
use crate::time::Instant;
use crate::wire::message::MAX_INNER_LEN;
use allowed::AllowedIps;
use balance::Balancer;
use events::{EventKind, EventQueue, RefusalReason};
use indices::IndexTable;
use lifecycle::{InterfaceState, InterfaceSweep};
use outputs::{Broadcast, OutputQueue};
use peer::Peer;
use status::Unbound;
use std::collections::{BTreeMap, btree_map};
use std::io::Error;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use strangers::Strangers;
use table::PeerTable;
use timers::Schedule;

/// The time on both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// The monotonic clock.
    pub mono: Instant,
    /// The wall clock, as time since the Unix epoch. It may jump.
    pub wall: Duration,
}

/// A thing that the driver must do for the device. They are done in order.
pub enum Output {
    /// Deliver a control to one worker.
    Control(u8, Control),
    /// Bind sockets to this port and with this mark, report the outcome by [`Device::bound`] before any other call, and
    /// hand each worker its pair. `None` closes the sockets.
    Bind(Option<BindRequest>),
    /// Steer a prefix's packets to a target, or no longer.
    Steer(Prefix, Option<Target>),
}

/// The sockets that the device wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BindRequest {
    /// The UDP port. 0 is any that is free.
    pub port: u16,
    /// The firewall mark (SO_MARK). 0 is none.
    pub mark: u32,
}

/// Says whether packets may name the source address to which the peer spoke.
pub type SourceOracle = Box<dyn FnMut(&Departure) -> bool + Send>;

/// A peer, as `show` and the metrics see it.
pub struct PeerInfo<'a> {
    /// The peer's public key.
    pub public_key: &'a PublicKey,
    /// The peer's outer address and port.
    pub endpoint: Option<Endpoint>,
    /// When the last handshake completed, as time since the Unix epoch. `None` where there was none.
    pub last_handshake: Option<Duration>,
    /// Seconds between persistent keepalives. 0 is off.
    pub persistent_keepalive: u16,
    /// The peer's prefixes, in the order in which they were given.
    pub allowed_ips: &'a [Prefix],
    /// Whether the peer's packets are spread over all workers by flow, and do not go to its owner.
    #[cfg_attr(not(feature = "internals"), expect(dead_code))] // tests look at it
    pub spread: bool,
    /// The peer's slot, owning worker and byte counters.
    pub shared: &'a Arc<PeerShared>,
}

fn info(peer: &Peer) -> PeerInfo<'_> {
    PeerInfo {
        public_key: &peer.public_key,
        endpoint: peer.endpoint,
        last_handshake: peer.shared.last_handshake(),
        persistent_keepalive: peer.timers.persistent_keepalive(),
        allowed_ips: &peer.allowed,
        spread: peer.spread,
        shared: &peer.shared,
    }
}

/// The state of a device, and what it wants done.
pub struct Device {
    entropy: Box<dyn Entropy + Send>,
    identity: Option<Arc<Identity>>,
    limiter: Limiter,
    clock: Tai64NClock,
    peers: PeerTable,
    directory: DirectoryWriter,
    /// What the cookies come of that the workers give out.
    cookies: Option<GateKeys>,
    allowed: AllowedIps,
    indices: IndexTable,
    schedule: Schedule,
    out: OutputQueue,
    link: InterfaceState,
    port: u16,
    mark: u32,
    mtu: Option<u32>,
    may_depart: SourceOracle,
    /// Slots of peers whose sources are to be checked, since the routes changed.
    unchecked: Range<u32>,
    /// What is left to do for the peers after the interface went up or down.
    sweep: Option<InterfaceSweep>,
    /// The prefixes that are still to be steered, after a state was taken in.
    unsteered: btree_map::IntoIter<Prefix, Option<Target>>,
    /// Grows with each change of the identity.
    identity_number: u32,
    balancer: Balancer,
    stats: DeviceStats,
    events: EventQueue,
    strangers: Strangers,
}

impl Device {
    /// Makes a device that is down and has neither key nor peers.
    pub fn new(workers: WorkerCount, entropy: Box<dyn Entropy + Send>) -> Device {
        Device {
            entropy,
            identity: None,
            limiter: Limiter::default(),
            clock: Tai64NClock::default(),
            peers: PeerTable::new(workers),
            directory: DirectoryWriter::default(),
            cookies: None,
            allowed: AllowedIps::default(),
            indices: IndexTable::default(),
            schedule: Schedule::default(),
            out: OutputQueue::new(workers),
            link: InterfaceState::Down,
            port: 0,
            mark: 0,
            mtu: None,
            may_depart: Box::new(|_| true),
            unchecked: 0..0,
            sweep: None,
            unsteered: BTreeMap::new().into_iter(),
            identity_number: 0,
            balancer: Balancer::default(),
            stats: DeviceStats::default(),
            events: EventQueue::default(),
            strangers: Strangers::default(),
        }
    }

    /// Asks `oracle` whether a source address may be pinned before it is. Without an oracle, every source that was heard is
    /// pinned.
    pub fn set_source_oracle(&mut self, oracle: SourceOracle) {
        self.may_depart = oracle;
    }

    /// Handles a handshake message from a worker, with all the work that it makes.
    #[cfg(feature = "internals")]
    pub fn handle_handshake(&mut self, now: Now, message: IncomingHandshake) {
        let mut work = self.begin_handshake(now, &message);
        while let Some(some) = work {
            work = self.continue_handshake(now, some.run());
        }
    }

    /// Begins to handle a handshake message from a worker. Where that takes work, any thread may do it, and
    /// [`Self::continue_handshake`] takes the result.
    pub fn begin_handshake(&mut self, now: Now, message: &IncomingHandshake) -> Option<HandshakeWork> {
        stack::leaving_nothing(|| self.take_handshake(now, message))
    }

    /// Goes on with a handshake message, after its work was done. There may be more work, and then this is called again.
    ///
    /// Results may come at any time after their work was given out. Those of one peer's messages should come in the order in
    /// which these arrived, or a later one may make an earlier one worthless.
    pub fn continue_handshake(&mut self, now: Now, result: HandshakeResult) -> Option<HandshakeWork> {
        stack::leaving_nothing(|| self.go_on_with_handshake(now, result))
    }

    /// Handles an event from a worker.
    pub fn handle_event(&mut self, now: Now, event: Event) {
        match event {
            Event::Activity(id) => self.activity(now, id),
            Event::NeedHandshake(id) => self.need_handshake(now, id),
            Event::Confirmed(id, index) => self.confirmed(now, id, index),
            Event::Roamed(id, heard) => self.heard_from(id, heard),
            Event::SourceGone(id) => self.clear_source(id),
            Event::WrongMac1(from) => self.refuse_stranger(now, from, RefusalReason::WrongMac1, None),
            Event::SourceRefused(id, source) => self.source_refused(now, id, source),
            Event::Quota(id, used_up) => self.note(id, EventKind::Quota { used_up }),
            // These are the driver's, and nothing here depends on them.
            Event::WorkerEnded(..) | Event::Rested(..) => {}
        }
    }

    /// Handles timers that are due, and makes another attempt to bind where that is due. A call handles a bounded number of
    /// peers: [`Self::poll_timeout`] says whether more are due.
    pub fn handle_timeout(&mut self, now: Now) {
        self.try_again(now);
        self.run_timers(now);
    }

    /// When to call [`Self::handle_timeout`] next, at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let in_pieces = self.sweep.is_some() || self.has_unsteered() || self.balancer.is_weighing();
        if in_pieces || self.directory.has_garbage() {
            return Some(Instant::START);
        }
        [self.schedule.next(), self.balancer.next(), self.next_attempt()].into_iter().flatten().min()
    }

    /// What to do next. Call it until `None` after every `handle_*`, `set_*` and UAPI call.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.out.pop()
    }

    /// Notes the interface's MTU in bytes.
    pub fn set_mtu(&mut self, mtu: u32) {
        if self.mtu.replace(mtu) != Some(mtu) {
            if mtu as usize > MAX_INNER_LEN {
                log::warn!(
                    "an MTU of {mtu} is more than a datagram carries: packets above {MAX_INNER_LEN} bytes are refused; \
                     set the interface's MTU to {MAX_INNER_LEN} or less"
                );
            }
            self.out.all(Broadcast::Mtu(mtu));
        }
    }

    /// Notes the routes into the interface that have an MTU of their own, with that MTU in bytes.
    pub fn set_route_mtus(&mut self, routes: Vec<(Prefix, u32)>) {
        let table = (!routes.is_empty()).then(|| Arc::new(RouteTable::build(routes)));
        self.out.all(Broadcast::RouteMtus(table));
    }

    /// Gives back memory that was needed only by what the workers have let go of.
    pub fn tidy(&mut self) {
        self.allowed.tidy();
        self.directory.reclaim();
    }

    /// What workers share of each peer, for metrics, in the order in which the peers were added.
    #[cfg(feature = "internals")]
    pub fn peers(&self) -> Vec<Arc<PeerShared>> {
        self.peers.in_order().map(|peer| Arc::clone(&peer.shared)).collect()
    }

    /// How many peers, receiver indices and deadlines there are, in this order.
    #[cfg(feature = "internals")]
    pub fn held(&self) -> [usize; 3] {
        [self.peers.len(), self.indices.len(), self.schedule.len()]
    }

    /// Every peer, in the order in which they were added.
    #[cfg(feature = "internals")]
    pub fn peer_infos(&self) -> impl Iterator<Item = PeerInfo<'_>> {
        self.peers.in_order().map(info)
    }

    /// What workers know of the peers. Whoever has it reads their counters without asking the device again.
    pub fn directory(&self) -> Arc<PeerDirectory> {
        Arc::clone(self.directory.published())
    }

    /// The first peer added at or after place `order`, and its place.
    pub fn peer_from(&self, order: u32) -> Option<(u32, PeerInfo<'_>)> {
        self.peers.added_from(order).map(|(at, peer)| (at, info(peer)))
    }

    /// The local public key, where there is a private one.
    pub fn public_key(&self) -> Option<&PublicKey> {
        self.identity.as_deref().map(Identity::public)
    }

    /// The UDP port: the configured one while the interface is down, the bound one while it is up. 0 where any will do, or
    /// none is bound.
    pub fn listen_port(&self) -> u16 {
        if self.unbound().is_some() { 0 } else { self.port }
    }

    /// The port that is waited for and why it is not bound, where the interface is up but has no sockets.
    pub fn unbound(&self) -> Option<Unbound> {
        let InterfaceState::Unbound(attempts) = self.link else { return None };
        Some(Unbound { port: self.port, error: Error::from_raw_os_error(attempts.errno).to_string() })
    }

    /// The sockets' firewall mark. 0 is none.
    pub fn fwmark(&self) -> u32 {
        self.mark
    }

    /// Whether the sockets are bound and handshakes are answered.
    pub fn is_up(&self) -> bool {
        self.link == InterfaceState::Up
    }

    /// The counters of handshakes, by what became of them, and of changes of steering.
    pub fn stats(&self) -> &DeviceStats {
        &self.stats
    }

    /// Begins a handshake, if one is still needed, as a worker has a packet without a session, or a session that wants a rekey.
    fn need_handshake(&mut self, now: Now, id: PeerId) {
        let Some(peer) = self.peers.by_id(id) else { return };
        let shared = Arc::clone(&peer.shared);
        // The event may have crossed a session on its way to the workers: then there is nothing left to do.
        let settled = peer.sessions.current().is_some_and(|s| s.usable(now.mono) && !s.wants_rekey(now.mono));
        if !settled {
            self.want_handshake(now, id.slot);
            self.check_timers(now, id.slot);
        }
        shared.handshake_wanted.store(false, Relaxed);
    }

    /// Notes that a session has taken effect at its owner. Where this device answered, the handshake is complete only now,
    /// and one that it may have begun itself is over (kernel: `wg_noise_handshake_begin_session` zeroes the only handshake
    /// there is).
    fn confirmed(&mut self, now: Now, id: PeerId, index: u32) {
        self.take_confirmation(now, id, index);
        let Some(peer) = self.peers.by_id(id) else { return };
        if peer.sessions.current().is_some_and(|current| current.local_index() == index) {
            self.out.send_staged(&peer.shared);
        }
        self.check_timers(now, id.slot);
    }

    /// Notes that a session has taken effect, and begins nothing that follows of it.
    fn take_confirmation(&mut self, now: Now, id: PeerId, index: u32) {
        let Some(peer) = self.peers.by_id(id) else { return };
        let shared = Arc::clone(&peer.shared);
        let (complete, freed) = peer.sessions.confirm(index);
        if complete {
            peer.timers.handshake_complete(now.mono);
            peer.shared.note_handshake(now.wall);
            self.clear_handshake(id.slot);
            self.note(id, EventKind::SessionConfirmed);
            self.connect(now, id);
        }
        self.drop_freed(&shared, freed);
    }

    /// The worker that receives for this index.
    fn owner_of(&self, index: u32) -> u8 {
        ReceiverIndex(index).owner(self.out.workers())
    }

    /// Frees receiver indices of the peer's, and has their owners forget the sessions.
    fn drop_freed(&mut self, peer: &PeerShared, freed: Vec<u32>) {
        for index in freed {
            self.indices.free(index);
            self.out.one(self.owner_of(index), Control::Drop(peer.id, index));
        }
    }
}
