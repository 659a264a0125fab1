//! TUN frame to UDP train: route, split into an open train of the peer's, seal, queue.
//!
//! Packets of one flow leave in the order in which they came (rule 3; [`super::trains`] says how), and what a peer
//! has staged is sent before anything newer. A [`Sender`] lives for part of one turn and leaves no train open.

use super::outbox::WorkerOutbox;
use super::padding::Padding;
use super::peers::Peers;
use super::trains::{OpenTrain, OpenTrains, Ticket, TrainChoice};
use super::unreachable::UnreachableSender;
use crate::dataplane::stats::add;
use crate::dataplane::{HandshakeDatagram, PeerId};
use crate::io::slab::Buf;
use crate::io::{Endpoint, Io, SendTrain};
use crate::noise::session::SendSession;
use crate::offload::split::{Progress, Splitter};
use crate::offload::train::TrainLimits;
use crate::time::Instant;
use crate::wire::icmp::Unreachable;
use crate::wire::ip;
use crate::wire::message::{DATA_OVERHEAD, MAX_INNER_LEN};
use std::sync::atomic::Ordering::Relaxed;

/// DSCP AF41, not ECN-capable: what handshake messages bear (kernel `HANDSHAKE_DSCP`).
const HANDSHAKE_TOS: u8 = 0x88;
/// Number of staged frames of a given-up peer that are answered with ICMP. Their flows repeat, so that a few answers
/// reach every sender.
const PURGE_ICMP: usize = 4;

/// The sending side of a turn.
pub(super) struct Sender<'a, I: Io> {
    pub(super) io: &'a mut I,
    pub(super) peers: &'a mut Peers,
    pub(super) outbox: &'a mut WorkerOutbox,
    pub(super) unreachable: &'a mut UnreachableSender,
    pub(super) padding: &'a Padding,
    pub(super) now: Instant,
    open: OpenTrains,
}

impl<'a, I: Io> Sender<'a, I> {
    pub(super) fn new(
        io: &'a mut I,
        peers: &'a mut Peers,
        outbox: &'a mut WorkerOutbox,
        unreachable: &'a mut UnreachableSender,
        padding: &'a Padding,
        now: Instant,
    ) -> Self {
        Sender { io, peers, outbox, unreachable, padding, now, open: OpenTrains::default() }
    }

    /// Sends, stages or refuses one TUN frame.
    pub(super) fn frame(&mut self, frame: &[u8]) {
        add(&self.outbox.stats.tx_frames, 1);
        let mut splitter = match Splitter::new(frame) {
            Ok(splitter) => splitter,
            Err(why) => return add(self.outbox.stats.split_error(why), 1),
        };
        if splitter.remaining() > 1 {
            add(&self.outbox.stats.tx_super_packets, 1);
        }
        let destination = splitter.info().destination;
        if let Some(to) = self.peers.find_loop(splitter.packet(), destination, self.now) {
            add(&self.outbox.stats.tx_looped, splitter.remaining());
            return self.outbox.routing_loop(to, self.now);
        }
        let Some(slot) = self.peers.route(destination) else {
            add(&self.outbox.stats.tx_no_peer, 1);
            return self.refuse(frame);
        };
        let Some(peer) = self.peers.at(slot) else {
            add(&self.outbox.stats.tx_no_peer, 1);
            return self.refuse(frame);
        };
        let stats = &self.outbox.stats;
        let own = peer.shared.owner == self.outbox.id;
        add(if own { &stats.tx_frames_own } else { &stats.tx_frames_other }, 1);
        if peer.endpoint.is_none() {
            add(&self.outbox.stats.tx_no_endpoint, 1);
            return self.refuse(frame);
        }
        // The first packet of a super-packet is its longest.
        if splitter.next_len() > MAX_INNER_LEN {
            add(&self.outbox.stats.tx_oversized, splitter.remaining());
            return self.refuse_for(frame, Unreachable::TooBig(MAX_INNER_LEN as u32));
        }
        // A train that is open found a session in this turn, and will look for one again as it closes.
        if !peer.has_staged() && (self.open.first_of(slot).is_some() || peer.reachable(self.now)) {
            self.pack(slot, &mut splitter);
        } else {
            self.stage(slot, frame);
            self.flush_staged(slot);
        }
    }

    /// Closes and queues all open trains, and so ends the sender.
    pub(super) fn finish(mut self) {
        self.close_all();
    }

    /// Sends in order what the peer has staged. Where it has no session, asks for a handshake instead.
    pub(super) fn flush_staged(&mut self, slot: u32) {
        let Some(peer) = self.peers.at(slot).filter(|peer| peer.has_staged()) else { return };
        if !peer.reachable(self.now) {
            return self.outbox.need_handshake(peer, self.now);
        }
        while self.peers.at(slot).is_some_and(|peer| peer.reachable(self.now)) {
            let Some(frame) = self.peers.unstage(slot) else { break };
            // The frame was split before it was staged, so it will be split again without an error.
            if let Ok(mut splitter) = Splitter::new(&frame) {
                self.pack(slot, &mut splitter);
            }
        }
        while let Some(index) = self.open.first_of(slot) {
            self.close(index);
        }
    }

    /// Sends a keepalive to the peer. Staged frames go instead, if there are any.
    pub(super) fn keepalive(&mut self, id: PeerId) {
        let Some(peer) = self.peers.find(id) else { return };
        if peer.has_staged() {
            return self.flush_staged(id.slot);
        }
        let published = peer.shared.sending.load();
        let Some((session, to)) = published.usable(self.now).zip(peer.endpoint) else {
            return self.outbox.need_handshake(peer, self.now);
        };
        let Some(mut buf) = alloc(self.io) else { return add(&self.outbox.stats.tx_no_buffer, 1) };
        let Some(first) = session.reserve(1) else {
            return self.outbox.need_handshake(peer, self.now);
        };
        session.seal_train(first, &mut buf[..DATA_OVERHEAD], DATA_OVERHEAD);
        let rekey = session.wants_rekey(self.now);
        self.io.send_udp(SendTrain { buf, len: DATA_OVERHEAD, stride: DATA_OVERHEAD, to, tos: 0 });
        add(&self.outbox.stats.tx_keepalives, 1);
        peer.shared.tx_bytes.fetch_add(DATA_OVERHEAD as u64, Relaxed);
        peer.shared.authenticated_sent(self.now);
        self.outbox.activity(&peer.shared);
        if rekey {
            self.outbox.need_handshake(peer, self.now);
        }
    }

    /// Sends a keepalive on a session that nothing was sent with yet, so that its responder may use it.
    pub(super) fn confirm(&mut self, id: PeerId) {
        let Some(peer) = self.peers.find(id) else { return };
        if peer.has_staged() || !peer.shared.sending.load().usable(self.now).is_some_and(SendSession::is_used)
        {
            self.keepalive(id);
        }
    }

    /// Sends a handshake message.
    pub(super) fn handshake(&mut self, to: Endpoint, datagram: &HandshakeDatagram) {
        let Some(mut buf) = alloc(self.io) else { return add(&self.outbox.stats.tx_no_buffer, 1) };
        let bytes = datagram.bytes();
        buf[..bytes.len()].copy_from_slice(bytes);
        self.io.send_udp(SendTrain { buf, len: bytes.len(), stride: bytes.len(), to, tos: HANDSHAKE_TOS });
        add(&self.outbox.stats.tx_handshakes, 1);
    }

    /// Drops what the peer has staged, and answers the first few senders with ICMP.
    pub(super) fn purge(&mut self, id: PeerId) {
        let Some(peer) = self.peers.find(id) else { return };
        peer.asked = None;
        let mut dropped = 0;
        while let Some(frame) = self.peers.unstage(id.slot) {
            if dropped < PURGE_ICMP {
                self.refuse(&frame);
            }
            dropped += 1;
        }
        add(&self.outbox.stats.tx_staged_dropped, dropped);
    }

    fn stage(&mut self, slot: u32, frame: &[u8]) {
        add(&self.outbox.stats.tx_staged, 1);
        add(&self.outbox.stats.tx_staged_dropped, self.peers.stage(slot, frame));
    }

    fn refuse(&mut self, frame: &[u8]) {
        self.refuse_for(frame, Unreachable::Host);
    }

    fn refuse_for(&mut self, frame: &[u8], why: Unreachable) {
        self.unreachable.refuse(self.io, &self.outbox.stats, frame, why, self.now);
    }

    /// Splits a frame into an open train of the peer's, and into further trains as each is full.
    fn pack(&mut self, slot: u32, splitter: &mut Splitter<'_>) {
        let limits = match self.io.gso() {
            true => TrainLimits::default(),
            false => TrainLimits { segments: 1, ..TrainLimits::default() },
        };
        // RFC 6040, section 4.1, normal mode: the outer header carries the inner ECN bits.
        let ecn = splitter.info().ecn;
        let ticket = Ticket::new(slot, ecn, splitter.next_len(), ip::flow(splitter.packet()));
        let mtu = self.padding.limit(splitter.info().destination, splitter.next_len());
        loop {
            let Some(index) = self.open_train(ticket) else {
                return add(&self.outbox.stats.tx_no_buffer, splitter.remaining());
            };
            let Some(OpenTrain { train, buf, .. }) = self.open.get_mut(index) else { return };
            match splitter.write_into(buf, train, mtu, &limits) {
                Progress::Done => return,
                Progress::Full => self.close(index),
            }
        }
    }

    /// The index of the train that packets of `ticket` join; the train is begun if need be. `None` where no buffer is
    /// free.
    fn open_train(&mut self, ticket: Ticket) -> Option<usize> {
        loop {
            match self.open.place(ticket) {
                TrainChoice::Join(index) => return Some(index),
                TrainChoice::Close(index) => self.close(index),
                TrainChoice::Begin => {
                    let buf = alloc(self.io).or_else(|| {
                        self.close_all(); // Our own open trains hold buffers too.
                        alloc(self.io)
                    })?;
                    self.open.begin(ticket, buf);
                }
            }
        }
    }

    fn close_all(&mut self) {
        while !self.open.is_empty() {
            self.close(0);
        }
    }

    /// Seals and queues the open train at `index`, or an older one that has to leave before it.
    fn close(&mut self, index: usize) {
        let Some(OpenTrain { ticket, train, mut buf }) = self.open.take(index) else { return };
        let (len, stride, count) = (train.len(), train.stride(), train.count());
        let Some(peer) = self.peers.at(ticket.slot) else { return };
        if count == 0 {
            return;
        }
        let published = peer.shared.sending.load();
        let path = published.usable(self.now).zip(peer.endpoint);
        // The counters go in one step, so that the train's are consecutive and no other worker has any of them.
        let reserved = path.and_then(|(session, to)| Some((session, to, session.reserve(count as u64)?)));
        let Some((session, to, first)) = reserved else {
            add(&self.outbox.stats.tx_no_session, count);
            return self.outbox.need_handshake(peer, self.now);
        };
        session.seal_train(first, &mut buf[..len], stride);
        let rekey = session.wants_rekey(self.now);
        self.io.send_udp(SendTrain { buf, len, stride, to, tos: ticket.ecn });
        add(&self.outbox.stats.tx_trains, 1);
        add(&self.outbox.stats.tx_packets, count);
        peer.shared.tx_bytes.fetch_add(len as u64, Relaxed);
        peer.shared.data_sent(self.now);
        self.outbox.activity(&peer.shared);
        if rekey {
            self.outbox.need_handshake(peer, self.now);
        }
    }
}

/// A free buffer. If need be, what is queued is handed to the kernel first.
pub(super) fn alloc<I: Io>(io: &mut I) -> Option<Buf> {
    io.alloc().or_else(|| {
        io.flush();
        io.alloc()
    })
}
