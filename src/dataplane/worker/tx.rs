//! TUN frame to UDP train: route, split into an open train of the peer's, seal, queue.
//!
//! Packets of one flow leave in the order in which they came (rule 3; [`super::trains`] says how), and what a peer
//! has staged is sent before anything newer. A [`Sender`] lives for part of one turn and leaves no train open.

use super::limiting::admit_frame;
use super::loops::Loops;
use super::outbox::WorkerOutbox;
use super::padding::Padding;
use super::reorder::Reorder;
use super::staged::StagedFrames;
use super::trains::{OpenTrain, OpenTrains, Ticket, TrainChoice};
use super::unreachable::UnreachableSender;
use crate::dataplane::assist::JobTask;
use crate::dataplane::directory::PeerDirectory;
use crate::dataplane::stats::add;
use crate::dataplane::{HandshakeDatagram, PeerShared};
use crate::io::slab::Buf;
use crate::io::{Endpoint, Io, SendTrain};
use crate::noise::session::SendSession;
use crate::offload::split::{Progress, Splitter};
use crate::offload::train::TrainLimits;
use crate::routing::RouteTable;
use crate::sys::trace;
use crate::time::Instant;
use crate::wire::icmp::Unreachable;
use crate::wire::ip;
use crate::wire::message::{DATA_OVERHEAD, MAX_INNER_LEN};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// DSCP AF41, not ECN-capable: what handshake messages bear (kernel `HANDSHAKE_DSCP`).
const HANDSHAKE_TOS: u8 = 0x88;
/// Number of staged frames of a given-up peer that are answered with ICMP. Their flows repeat, so that a few answers
/// reach every sender.
const PURGE_ICMP: usize = 4;
/// Bytes of the smallest train that is shared out. A smaller one is sealed in less time than it takes to pass it on and back.
const WORTH_SHARING: usize = 8 * 1024;

/// What is needed of a train once it is sealed: all of [`SendTrain`] but the buffer.
pub(super) struct WaitingSend {
    len: usize,
    stride: usize,
    to: Endpoint,
    peer: Option<u32>,
    tos: u8,
}

/// The sending side of a turn.
pub(super) struct Sender<'a, I: Io> {
    pub(super) io: &'a mut I,
    pub(super) directory: &'a PeerDirectory,
    pub(super) routes: &'a RouteTable,
    pub(super) staged: &'a mut StagedFrames,
    pub(super) loops: &'a mut Loops,
    pub(super) outbox: &'a mut WorkerOutbox,
    pub(super) unreachable: &'a mut UnreachableSender,
    pub(super) padding: &'a Padding,
    pub(super) sealing: &'a mut Reorder<WaitingSend>,
    pub(super) now: Instant,
    pub(super) open: OpenTrains,
}

impl<'a, I: Io> Sender<'a, I> {
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
        if let Some(to) = self.loops.find(splitter.packet(), destination, self.now, self.directory) {
            add(&self.outbox.stats.tx_looped, splitter.remaining());
            return self.outbox.routing_loop(to, self.now);
        }
        let Some(peer) = self.routes.lookup(destination).and_then(|slot| self.peer(slot)) else {
            add(&self.outbox.stats.tx_no_peer, 1);
            return self.refuse(frame);
        };
        let stats = &self.outbox.stats;
        let own = peer.owner() == self.outbox.id;
        add(if own { &stats.tx_frames_own } else { &stats.tx_frames_other }, 1);
        let slot = peer.id.slot;
        let (has_endpoint, has_session) = self.has_path(peer);
        if !has_endpoint {
            add(&self.outbox.stats.tx_no_endpoint, 1);
            return self.refuse(frame);
        }
        // The first packet of a super-packet is its longest.
        if splitter.next_len() > MAX_INNER_LEN {
            add(&self.outbox.stats.tx_oversized, splitter.remaining());
            return self.refuse_for(frame, Unreachable::TooBig(MAX_INNER_LEN as u32));
        }
        if let Some(limits) = peer.limits()
            && !admit_frame(limits, peer, self.outbox, self.now, &mut splitter)
        {
            return;
        }
        if has_session && !self.staged.has(slot) {
            self.pack(slot, &mut splitter);
        } else {
            self.stage(peer, frame);
            self.flush_staged(slot);
        }
    }

    /// How many frames this worker has taken so far, and how many of them were super-packets.
    pub(super) fn frames_taken(&self) -> [u64; 2] {
        let stats = &self.outbox.stats;
        [&stats.tx_frames, &stats.tx_super_packets].map(|counter| counter.load(Relaxed))
    }

    /// The peer in this slot. It outlives the borrow of the sender.
    fn peer(&self, slot: u32) -> Option<&'a PeerShared> {
        self.directory.get(slot).map(|peer| &**peer)
    }

    /// Whether the peer has an endpoint, and whether there is a session to send with. A train that is open found both in this
    /// turn, and will look for them again as it closes.
    fn has_path(&self, peer: &PeerShared) -> (bool, bool) {
        if self.open.first_of(peer.id.slot).is_some() {
            return (true, true);
        }
        let published = peer.sending.load();
        (published.endpoint().is_some(), published.session(self.now).is_some())
    }

    /// Closes all open trains and queues what is sealed, and so ends the sender. Returns whether other workers are still sealing
    /// some.
    pub(super) fn finish(mut self) -> bool {
        self.close_all();
        self.release();
        if self.sealing.note_waiting(self.now) {
            add(&self.outbox.stats.tx_assist_stalls, 1);
        }
        !self.sealing.is_empty()
    }

    /// Queues the oldest trains that were shared out, as far as they are sealed, and seals what nobody has begun.
    fn release(&mut self) {
        while let Some((WaitingSend { len, stride, to, peer, tos }, done)) = self.sealing.next() {
            let buf = self.io.restore(done.buf);
            self.io.send_udp(SendTrain { buf, len, stride, to, peer, tos });
        }
    }

    /// Queues all trains that were shared out. Another worker that has begun one needs microseconds for it, unless the kernel has
    /// taken its core away.
    pub(super) fn finish_all(&mut self) {
        while !self.sealing.is_empty() {
            self.io.linger();
            self.release();
        }
    }

    /// Sends in order what the peer has staged. Where it cannot be sent to, asks for a handshake instead.
    pub(super) fn flush_staged(&mut self, slot: u32) {
        let Some(peer) = self.peer(slot).filter(|_| self.staged.has(slot)) else { return };
        if !self.is_ready(peer) {
            // What is published after this note makes the slow path have this worker try again.
            peer.note_staged(self.outbox.id);
            if !self.is_ready(peer) {
                return self.outbox.need_handshake(peer, self.now);
            }
        }
        while self.is_ready(peer) {
            let Some(frame) = self.staged.pop(slot) else { break };
            // The frame was split before it was staged, so it will be split again without an error.
            if let Ok(mut splitter) = Splitter::new(&frame) {
                self.pack(slot, &mut splitter);
            }
        }
        while let Some(index) = self.open.first_of(slot) {
            self.close(index);
        }
    }

    /// Whether there is now a session and an endpoint to send with.
    fn is_ready(&self, peer: &PeerShared) -> bool {
        peer.sending.load().ready(self.now).is_some()
    }

    /// Sends a keepalive to the peer. Staged frames go instead, if there are any.
    pub(super) fn keepalive(&mut self, peer: &PeerShared) {
        let slot = peer.id.slot;
        if self.staged.has(slot) {
            return self.flush_staged(slot);
        }
        let published = peer.sending.load();
        let Some((session, to)) = published.ready(self.now) else {
            return self.outbox.need_handshake(peer, self.now);
        };
        let Some(mut buf) = alloc(self.io) else { return add(&self.outbox.stats.tx_no_buffer, 1) };
        let Some(first) = session.reserve(1) else {
            return self.outbox.need_handshake(peer, self.now);
        };
        session.seal_train(first, &mut buf[..DATA_OVERHEAD], DATA_OVERHEAD);
        let (len, stride) = (DATA_OVERHEAD, DATA_OVERHEAD);
        self.io.send_udp(SendTrain { buf, len, stride, to, peer: Some(slot), tos: 0 });
        add(&self.outbox.stats.tx_keepalives, 1);
        peer.traffic.tx_bytes.fetch_add(DATA_OVERHEAD as u64, Relaxed);
        peer.authenticated_sent(self.now);
        self.outbox.activity(peer);
        if session.wants_rekey(self.now) {
            self.outbox.need_handshake(peer, self.now);
        }
    }

    /// Sends a keepalive on a session that nothing was sent with yet, so that its responder may use it.
    pub(super) fn confirm(&mut self, peer: &PeerShared) {
        let is_used = peer.sending.load().session(self.now).is_some_and(SendSession::is_used);
        if self.staged.has(peer.id.slot) || !is_used {
            self.keepalive(peer);
        }
    }

    /// Sends a handshake message to the peer in `slot`.
    pub(super) fn handshake(&mut self, slot: u32, to: Endpoint, datagram: &HandshakeDatagram) {
        let Some(mut buf) = alloc(self.io) else { return add(&self.outbox.stats.tx_no_buffer, 1) };
        let bytes = datagram.bytes();
        let (len, stride) = (bytes.len(), bytes.len());
        buf[..len].copy_from_slice(bytes);
        self.io.send_udp(SendTrain { buf, len, stride, to, peer: Some(slot), tos: HANDSHAKE_TOS });
        add(&self.outbox.stats.tx_handshakes, 1);
    }

    /// Drops what the peer in `slot` has staged, and answers the first few senders with ICMP.
    pub(super) fn purge(&mut self, slot: u32) {
        let mut dropped = 0;
        while let Some(frame) = self.staged.pop(slot) {
            if dropped < PURGE_ICMP {
                self.refuse(&frame);
            }
            dropped += 1;
        }
        add(&self.outbox.stats.tx_staged_dropped, dropped);
    }

    fn stage(&mut self, peer: &PeerShared, frame: &[u8]) {
        add(&self.outbox.stats.tx_staged, 1);
        add(&self.outbox.stats.tx_staged_dropped, self.staged.push(peer, frame));
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
                    let buf = alloc(self.io).or_else(|| self.reclaim())?;
                    self.open.begin(ticket, buf);
                }
            }
        }
    }

    /// A buffer of those that our own open trains hold, or those that others have.
    #[cold]
    fn reclaim(&mut self) -> Option<Buf> {
        self.close_all();
        self.finish_all();
        alloc(self.io)
    }

    fn close_all(&mut self) {
        while !self.open.is_empty() {
            self.close(0);
        }
    }

    /// Seals and queues the open train at `index`, or an older one that has to leave before it.
    fn close(&mut self, index: usize) {
        let Some(OpenTrain { ticket, train, buf }) = self.open.take(index) else { return };
        let (len, stride, count) = (train.len(), train.stride(), train.count());
        let Some(peer) = self.peer(ticket.slot) else { return };
        if count == 0 {
            return;
        }
        let published = peer.sending.load();
        // The counters go in one step, so that the train's are consecutive and no other worker has any of them.
        let reserved = published
            .ready(self.now)
            .and_then(|(session, to)| Some((session, to, session.reserve(count as u64)?)));
        let Some((session, to, first)) = reserved else {
            add(&self.outbox.stats.tx_no_session, count);
            return self.outbox.need_handshake(peer, self.now);
        };
        let mut train = SendTrain { buf, len, stride, to, peer: Some(ticket.slot), tos: ticket.ecn };
        if self.sealing.is_in_use() {
            self.share_out(peer, session, first, train);
        } else {
            self.seal(session, first, &mut train, count);
            self.io.send_udp(train);
        }
        add(&self.outbox.stats.tx_trains, 1);
        add(&self.outbox.stats.tx_packets, count);
        peer.traffic.tx_bytes.fetch_add(len as u64, Relaxed);
        peer.data_sent(self.now);
        self.outbox.activity(peer);
        if session.wants_rekey(self.now) {
            self.outbox.need_handshake(peer, self.now);
        }
    }

    /// Seals a train of a peer's, of so many messages, in place.
    #[inline]
    fn seal(&self, session: &SendSession, first: u64, train: &mut SendTrain, messages: usize) {
        let SendTrain { len, stride, peer, .. } = *train;
        let slot = peer.unwrap_or_default();
        trace::seal_begin(self.outbox.id, slot, messages, len);
        session.seal_train(first, &mut train.buf[..len], stride);
        trace::train_sealed(self.outbox.id, slot, messages, len);
    }

    /// Gives a train to whoever has time to seal it, where its peer's are shared out. In any case it leaves behind all that were
    /// shared out before.
    #[inline(never)]
    fn share_out(&mut self, peer: &PeerShared, session: &Arc<SendSession>, first: u64, mut train: SendTrain) {
        let worth = train.len >= WORTH_SHARING && self.sealing.may_share(self.now);
        let shares = worth && peer.seal_assisted.load(Relaxed);
        if !shares {
            let messages = train.len.div_ceil(train.stride);
            self.seal(session, first, &mut train, messages);
            if self.sealing.is_empty() {
                return self.io.send_udp(train);
            }
        }
        while self.sealing.is_full() {
            self.io.linger();
            self.release();
        }
        let SendTrain { buf, len, stride, to, peer, tos } = train;
        let waiting = WaitingSend { len, stride, to, peer, tos };
        if shares {
            self.sealing.push(waiting, buf, 0..len, stride, JobTask::Seal(Arc::clone(session), first));
            self.sealing.assist.ring(self.outbox.id);
            add(&self.outbox.stats.tx_shared_out, 1);
        } else {
            self.sealing.push_done(waiting, buf);
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
