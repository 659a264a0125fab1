//! UDP train to TUN writes: sort by message, open in place, check, coalesce, write.
//!
//! The kernel's GRO merges by address and port alone, so one train may mix message types and receiver indices. It is
//! therefore cut into runs of data messages for one index. Nearly every train is one run.

use super::hash::IndexHasher;
use super::limiting::admit_run;
use super::outbox::WorkerOutbox;
use super::receiving::{Origin, Receiving};
use super::reorder::Reorder;
use super::tx::alloc;
use crate::crypto::aead::{MAX_SEGMENTS, Opened};
use crate::dataplane::assist::{DoneTrain, JobTask, OpenedTrain};
use crate::dataplane::misdirected::Misdirected;
use crate::dataplane::record::RestoredSession;
use crate::dataplane::stats::add;
use crate::dataplane::{HandshakeDatagram, IncomingHandshake, PeerId, PeerShared};
use crate::index::ReceiverIndex;
use crate::io::slab::Buf;
use crate::io::{Endpoint, Io, SendTrain, UdpTrain};
use crate::noise::cookie::{Gate, Verdict};
use crate::noise::session::{Received, RecvSession, SendSession};
use crate::offload::coalesce::{CoalesceOptions, Coalescer, REFUSALS, TunnelPorts};
use crate::routing::RouteTable;
use crate::sys::trace;
use crate::time::Instant;
use crate::wire::ip;
use crate::wire::message::{DATA_HEADER_LEN, DataHeader, MessageKind, TAG_LEN, classify};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::BuildHasherDefault;
use std::hint::black_box;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// Outer ECN: Congestion Experienced (RFC 3168).
const ECN_CE: u8 = 3;

/// A received train that waits for its release.
pub(super) struct WaitingTrain {
    /// The receiver index of its first message.
    receiver: u32,
    /// Where it lies in its buffer.
    run: Range<usize>,
    stride: usize,
    origin: Origin,
}

/// How a run of data messages is opened.
enum Opening {
    /// Now, as far as the peer's limits let it.
    Limited,
    /// Now; its peer's limits let it.
    Admitted,
    /// Another worker did.
    Done(OpenedTrain),
}

/// What the receiving side keeps from turn to turn.
pub(super) struct Rx {
    pub(super) sessions: HashMap<u32, Receiving, BuildHasherDefault<IndexHasher>>,
    coalescer: Coalescer,
    coalesce: CoalesceOptions,
    pub(super) reorder: Reorder<WaitingTrain>,
    /// What checks handshake messages; `None` without a local identity.
    pub(super) gate: Option<Gate>,
}

impl Rx {
    /// Nothing received yet; `reorder` keeps the order of trains that other workers open.
    pub(super) fn new(coalesce: CoalesceOptions, reorder: Reorder<WaitingTrain>) -> Rx {
        Rx { sessions: HashMap::default(), coalescer: Coalescer::default(), coalesce, reorder, gate: None }
    }

    /// Adds a session of `peer`, which has not taken effect yet.
    pub(super) fn install(
        &mut self,
        peer: &Arc<PeerShared>,
        session: Box<RecvSession>,
        send: Arc<SendSession>,
    ) -> &mut Receiving {
        let index = session.local_index();
        let receiving = Receiving::new(peer, session, send);
        self.sessions.entry(index).insert_entry(receiving).into_mut()
    }

    /// Adds a session on which another process received.
    pub(super) fn restore(&mut self, session: RestoredSession) {
        self.sessions.insert(session.receive.local_index(), Receiving::restored(session));
    }

    /// Removes both halves of the session with this index, if it is the peer's.
    pub(super) fn remove(&mut self, index: u32, peer: PeerId) {
        if let Entry::Occupied(entry) = self.sessions.entry(index)
            && entry.get().peer.id == peer
        {
            entry.get().peer.sending.withdraw(index);
            entry.remove();
        }
    }

    /// How many sessions there are.
    #[cfg(feature = "internals")]
    pub(super) fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Has no more super-packets of these kinds built.
    pub(super) fn give_up(&mut self, refused: CoalesceOptions) {
        self.coalesce.tcp &= !refused.tcp;
        self.coalesce.udp &= !refused.udp;
        self.coalesce.tunnels &= !refused.tunnels;
    }

    /// Sets the ports at which UDP tunnels of the host listen.
    pub(super) fn set_tunnels(&mut self, tunnels: TunnelPorts) {
        self.coalescer.set_tunnels(tunnels);
    }

    /// The coalescer's counts of refusals since the last call.
    pub(super) fn take_refusals(&mut self) -> [u64; REFUSALS] {
        self.coalescer.take_refusals()
    }
}

/// The receiving side of a turn.
pub(super) struct Receiver<'a, I: Io> {
    pub(super) id: u8,
    pub(super) io: &'a mut I,
    pub(super) routes: &'a RouteTable,
    pub(super) outbox: &'a mut WorkerOutbox,
    pub(super) rx: &'a mut Rx,
    pub(super) now: Instant,
}

impl<I: Io> Receiver<'_, I> {
    /// Takes one received train through all steps.
    pub(super) fn train(&mut self, train: UdpTrain) {
        add(&self.outbox.stats.rx_trains, 1);
        trace::train_received(self.id, train.len, train.stride);
        self.take(train);
    }

    /// Takes data messages of this worker's sessions that another worker received.
    pub(super) fn misdirected(&mut self, misdirected: &Misdirected) {
        add(&self.outbox.stats.misdirected_in, misdirected.count());
        let Some(mut buf) = alloc(self.io) else {
            return add(&self.outbox.stats.rx_no_buffer, misdirected.count());
        };
        let (start, len) = (DATA_HEADER_LEN, misdirected.bytes.len());
        let Some(space) = buf.get_mut(start..start + len) else {
            return add(&self.outbox.stats.rx_malformed, misdirected.count());
        };
        space.copy_from_slice(&misdirected.bytes);
        let Misdirected { stride, from, to, ecn, .. } = *misdirected;
        self.take(UdpTrain { buf, start, len, stride, from, to, ecn });
    }

    fn take(&mut self, train: UdpTrain) {
        let UdpTrain { start, len, stride, .. } = train;
        // Below `start` the coalescer needs room for its virtio-net header.
        let bounds = start.checked_add(len).filter(|&end| start >= DATA_HEADER_LEN && end <= train.buf.len());
        let (Some(end), 1..) = (bounds, stride.min(len)) else {
            return add(&self.outbox.stats.rx_malformed, 1);
        };
        if self.rx.reorder.is_in_use() {
            if let Some(train) = self.share_out(train) {
                self.open(train, end, false);
            }
        } else {
            self.open(train, end, false);
        }
    }

    /// Gives a train to whoever has time to open it, where its peer's trains are shared out, or earlier trains are under way. It
    /// comes back where it is to be handled at once.
    fn share_out(&mut self, train: UdpTrain) -> Option<UdpTrain> {
        let UdpTrain { start, len, stride, from, to, ecn, .. } = train;
        let first = &train.buf[start..start + len.min(stride)];
        let header = DataHeader::parse(first).filter(|_| classify(first) == Some(MessageKind::Data));
        let Some(receiving) = header.and_then(|header| self.rx.sessions.get(&header.receiver)) else {
            // It begins with nothing for a helper. Only where more follows may that have to wait for earlier trains.
            if len > stride {
                self.finish_all();
            }
            return Some(train);
        };
        let shares = receiving.peer.assisted.load(Relaxed) && self.rx.reorder.may_share(self.now);
        if self.rx.reorder.is_empty() && !shares {
            return Some(train);
        }
        if self.io.alloc().is_none() {
            // All buffers are in use, many of them by trains that wait for their release.
            self.finish_all();
            return Some(train);
        }
        let (receiver, key) = (receiving.session.local_index(), Arc::clone(receiving.session.key()));
        let run = match receiving.peer.limits() {
            Some(limits) => {
                let all = start..start + len;
                let run = admit_run(limits, &receiving.peer, self.outbox, self.now, all, stride);
                // The others are counted as they are opened.
                add(&self.outbox.stats.rx_owned, len.div_ceil(stride) - run.len().div_ceil(stride));
                run
            }
            None => start..start + len,
        };
        if run.is_empty() {
            return None;
        }
        while self.rx.reorder.is_full() {
            self.io.linger();
            self.release();
        }
        let waiting = WaitingTrain { receiver, run: run.clone(), stride, origin: Origin { from, to, ecn } };
        self.rx.reorder.push(waiting, train.buf, run, stride, JobTask::Open(receiver, key));
        add(&self.outbox.stats.rx_shared_out, 1);
        None
    }

    /// Releases the oldest trains that were shared out, as far as they are opened, and opens what nobody has begun.
    pub(super) fn release(&mut self) {
        while let Some((train, DoneTrain { buf, opened, .. })) = self.rx.reorder.next() {
            let WaitingTrain { receiver, run, stride, origin } = train;
            let mut buf = self.io.restore(buf);
            let Some(opened) = opened else {
                let (start, len, Origin { from, to, ecn }) = (run.start, run.len(), origin);
                self.open(UdpTrain { buf, start, len, stride, from, to, ecn }, run.end, true);
                continue;
            };
            self.rx.coalescer.start(self.rx.coalesce);
            load_heads(&buf[run.clone()], stride);
            if self.data(&mut buf, run, stride, receiver, origin, Opening::Done(opened)) > 0 {
                self.deliver(buf);
            }
        }
    }

    /// Releases all trains that were shared out. Another worker that has begun one needs microseconds for it, unless the kernel
    /// has taken its core away.
    pub(super) fn finish_all(&mut self) {
        while !self.rx.reorder.is_empty() {
            self.io.linger();
            self.release();
        }
    }

    /// Handles a train of checked bounds, which ends at `end`, at once. `admitted` says that its peer's limits let it.
    fn open(&mut self, train: UdpTrain, end: usize, admitted: bool) {
        let UdpTrain { mut buf, start, stride, from, to, ecn, .. } = train;
        let origin = Origin { from, to, ecn };
        self.rx.coalescer.start(self.rx.coalesce);
        let mut at = start;
        let mut accepted = 0;
        while at < end {
            let (kind, len) = next_run(&buf[at..end], stride);
            let run = at..at + len;
            at = run.end;
            match kind {
                Run::Data(receiver) => {
                    let how = if admitted { Opening::Admitted } else { Opening::Limited };
                    accepted += self.data(&mut buf, run, stride, receiver, origin, how);
                }
                Run::Handshake(kind) => self.handshake(kind, &buf[run], origin),
                Run::Malformed => add(&self.outbox.stats.rx_malformed, 1),
            }
        }
        if accepted > 0 {
            self.deliver(buf);
        }
    }

    /// Checks a handshake message cheaply, and passes it to the slow path.
    fn handshake(&mut self, kind: MessageKind, message: &[u8], origin: Origin) {
        let Some(gate) = &mut self.rx.gate else {
            return add(&self.outbox.stats.rx_no_identity, 1);
        };
        let proven = match kind {
            // A cookie reply has no MAC1; its own tag covers the MAC1 that it answers (paper, section 5.4.7).
            MessageKind::CookieReply => false,
            _ => {
                match gate.judge(message, origin.from, self.now, self.outbox.slow_path_is_loaded(self.now)) {
                    Verdict::Forged => {
                        self.outbox.wrong_mac1(origin.from, self.now);
                        return add(&self.outbox.stats.rx_bad_mac1, 1);
                    }
                    Verdict::Unanswered => return add(&self.outbox.stats.tx_cookies_withheld, 1),
                    Verdict::Cookie(reply) => return self.reply_with_cookie(&reply, origin),
                    Verdict::Pass { proven } => proven,
                }
            }
        };
        let Some(datagram) = HandshakeDatagram::new(message) else {
            return add(&self.outbox.stats.rx_malformed, 1);
        };
        self.outbox.handshake(IncomingHandshake { datagram, from: origin.from, to: origin.to, proven });
    }

    /// Sends a cookie reply from the address that was spoken to. It moves no endpoint.
    fn reply_with_cookie(&mut self, reply: &[u8], origin: Origin) {
        let Some(mut buf) = alloc(self.io) else { return add(&self.outbox.stats.tx_no_buffer, 1) };
        buf[..reply.len()].copy_from_slice(reply);
        let to = Endpoint { addr: origin.from, from: origin.to };
        // Kernel `wg_socket_send_buffer_as_reply_to_skb`: an ordinary packet, unlike other handshake messages.
        let (len, stride) = (reply.len(), reply.len());
        self.io.send_udp(SendTrain { buf, len, stride, to, peer: None, tos: 0 });
        add(&self.outbox.stats.tx_cookies, 1);
    }

    /// Opens a run of data messages for one index, unless another worker did. Returns how many inner packets went to the
    /// coalescer.
    fn data(
        &mut self,
        buf: &mut Buf,
        mut run: Range<usize>,
        stride: usize,
        receiver: u32,
        origin: Origin,
        how: Opening,
    ) -> usize {
        let owner = ReceiverIndex(receiver).owner(self.outbox.workers());
        let count = run.len().div_ceil(stride);
        if owner != self.id {
            let Origin { from, to, ecn } = origin;
            let misdirected = || Misdirected { bytes: buf[run.clone()].into(), stride, from, to, ecn };
            self.outbox.misdirected(owner, count, run.len(), misdirected);
            return 0;
        }
        let stats = &self.outbox.stats;
        add(&stats.rx_owned, count);
        let Some(receiving) = self.rx.sessions.get_mut(&receiver) else {
            add(&stats.rx_unknown_index, count);
            return 0;
        };
        if receiving.session.expired(self.now) {
            add(&stats.rx_expired, count);
            return 0;
        }
        if let (Some(limits), Opening::Limited) = (receiving.peer.limits(), &how) {
            run = admit_run(limits, &receiving.peer, self.outbox, self.now, run, stride);
            if run.is_empty() {
                return 0;
            }
        }
        let slot = receiving.peer.id.slot;
        let train = &mut buf[run.clone()];
        let (received, verified) = match how {
            Opening::Done(opened) => {
                (receiving.session.admit(train, stride, opened.authentic), opened.verified)
            }
            _ => {
                let (id, bytes, count) = (self.id, train.len(), train.len().div_ceil(stride));
                trace::open_begin(id, slot, count, bytes);
                let received = receiving.session.open_train(train, stride);
                trace::train_opened(id, slot, count, bytes);
                (received, Opened::default())
            }
        };
        let opened = self.accept(slot, buf, run.clone(), stride, (received, verified), origin.ecn);
        if opened.bytes < run.len() {
            self.refund(receiver, run.len() - opened.bytes);
        }
        if let Some(source) = opened.refused_source {
            self.refuse_sources(receiver, opened.refused, source);
        }
        if opened.bytes > 0 {
            self.note(receiver, &opened, origin);
        }
        opened.accepted
    }

    /// Checks the inner packets of the messages that opened, and gives them to the coalescer. They came from the peer in that
    /// slot.
    fn accept(
        &mut self,
        slot: u32,
        buf: &mut Buf,
        run: Range<usize>,
        stride: usize,
        (received, verified): (Received, Opened),
        ecn: u8,
    ) -> RunOutcome {
        let mut opened = RunOutcome::default();
        let stats = &self.outbox.stats;
        for (i, start) in run.clone().step_by(stride).enumerate() {
            let end = run.end.min(start + stride);
            if !received.fresh.is_ok(i) {
                let replayed = received.replayed.is_ok(i);
                add(if replayed { &stats.rx_replayed } else { &stats.rx_decrypt_failed }, 1);
                continue;
            }
            opened.bytes += end - start;
            let text = start + DATA_HEADER_LEN..end - TAG_LEN;
            if text.is_empty() {
                add(&stats.rx_keepalives, 1);
                continue;
            }
            opened.data = true;
            let Some(info) = ip::parse(&buf[text.clone()]) else {
                add(&stats.rx_bad_inner, 1);
                continue;
            };
            // Device-wide longest prefix: a peer cannot speak from a subnet of another's (rule 9).
            if self.routes.lookup(info.source) != Some(slot) {
                opened.refused += 1;
                opened.refused_source = Some(info.source);
                continue;
            }
            let packet = text.start..text.start + info.len;
            if ecn == ECN_CE {
                ip::set_ce(&mut buf[packet.clone()]);
            }
            match verified.is_ok(i) {
                true => self.rx.coalescer.push_verified(buf, packet),
                false => self.rx.coalescer.push(buf, packet),
            }
            opened.accepted += 1;
        }
        opened
    }

    /// Gives back to the peer's limits what was drawn for messages that were forged or replayed: whoever sends those is to
    /// take nothing from the peer.
    #[cold]
    fn refund(&self, receiver: u32, bytes: usize) {
        let limits = self.rx.sessions.get(&receiver).and_then(|receiving| receiving.peer.limits());
        limits.into_iter().for_each(|limits| limits.refund(bytes));
    }

    #[cold]
    fn refuse_sources(&mut self, receiver: u32, count: usize, last: IpAddr) {
        if let Some(receiving) = self.rx.sessions.get(&receiver) {
            self.outbox.refused_sources(&receiving.peer, count, last, self.now);
        }
    }

    /// Notes that authentic and fresh messages arrived: stamps, counters, confirmation, roaming, rekeying.
    fn note(&mut self, receiver: u32, opened: &RunOutcome, origin: Origin) {
        let Some(receiving) = self.rx.sessions.get_mut(&receiver) else { return };
        let peer: &PeerShared = &receiving.peer;
        peer.traffic.rx_bytes.fetch_add(opened.bytes as u64, Relaxed);
        match opened.data {
            true => peer.data_received(self.now),
            false => peer.authenticated_received(self.now),
        }
        self.outbox.activity(peer);
        receiving.take_effect(self.outbox);
        receiving.roam(self.outbox, origin);
        if receiving.session.wants_rekey(self.now) {
            self.outbox.need_handshake(&receiving.peer, self.now);
        }
    }

    /// Writes what the coalescer made of a train.
    fn deliver(&mut self, mut buf: Buf) {
        let runs = self.rx.coalescer.finish(&mut buf);
        let buf = buf.share();
        let stats = &self.outbox.stats;
        for run in runs {
            add(&stats.rx_runs, 1);
            add(&stats.rx_packets, run.packets);
            if run.packets > 1 {
                add(&stats.rx_super_packets, 1);
                add(&stats.rx_tunnel_super_packets, usize::from(run.tunnel));
            }
            self.io.write_tun(&buf, &run.pieces);
        }
    }
}

/// What came out of a run of data messages.
#[derive(Default)]
struct RunOutcome {
    /// Bytes of the authentic and fresh messages.
    bytes: usize,
    /// Whether any of them was no keepalive.
    data: bool,
    /// Inner packets handed to the coalescer.
    accepted: usize,
    /// Inner packets whose source is not the peer's.
    refused: usize,
    /// The source of the last of these.
    refused_source: Option<IpAddr>,
}

/// Loads the heads of all messages at once. They may be in the cache of another core, and would be waited for one after the other.
fn load_heads(train: &[u8], stride: usize) {
    // The inner headers end in the second cache line.
    const LINE: usize = 64;
    let (first, second) = (train.iter().step_by(stride), train.iter().skip(LINE).step_by(stride));
    black_box(first.chain(second).fold(0, |all, byte| all ^ byte));
}

/// Consecutive datagrams of a train that are handled together.
enum Run {
    /// Data messages for one receiver index, at most [`MAX_SEGMENTS`].
    Data(u32),
    /// One handshake message.
    Handshake(MessageKind),
    /// One datagram that is no message.
    Malformed,
}

/// The run at the start of `bytes`, which must not be empty, and its length in bytes.
fn next_run(bytes: &[u8], stride: usize) -> (Run, usize) {
    let mut datagrams = bytes.chunks(stride);
    let Some(first) = datagrams.next() else { return (Run::Malformed, bytes.len()) };
    let receiver = match classify(first) {
        Some(MessageKind::Data) => DataHeader::parse(first).map(|header| header.receiver),
        Some(kind) => return (Run::Handshake(kind), first.len()),
        None => None,
    };
    let Some(receiver) = receiver else { return (Run::Malformed, first.len()) };
    let continues = |datagram: &&[u8]| {
        classify(datagram) == Some(MessageKind::Data)
            && DataHeader::parse(datagram).is_some_and(|header| header.receiver == receiver)
    };
    let more: usize = datagrams.take(MAX_SEGMENTS - 1).take_while(continues).map(<[u8]>::len).sum();
    (Run::Data(receiver), first.len() + more)
}
