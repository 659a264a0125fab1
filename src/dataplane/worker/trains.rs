//! The trains under construction of one turn, and which of them a packet may join.
//!
//! A peer may have two: one of small packets, one of larger ones. Acknowledgments that run between full-size segments would
//! otherwise end each other's trains, as a train's segments are of one size. Packets of one flow leave in the order in which
//! they came (rule 3), because
//! - a packet joins a train only if none of its flow is in a younger train of its peer, and
//! - a train that shares a flow with an older one of its peer does not leave before that.

use crate::io::slab::Buf;
use crate::offload::train::Train;

/// Trains under construction at a time: 8 × 68 KiB of the worker's slab.
const MAX_OPEN: usize = 8;
/// Bytes up to which a packet is small: an acknowledgment over IPv6 with all the options that fit.
const SMALL_MAX: usize = 128;

/// What decides on the train that a packet joins. A train's own ticket says what the train takes, and which flows it
/// has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Ticket {
    /// The peer.
    pub(super) slot: u32,
    /// The packet's ECN bits. They are written to the outer header, which the messages of a train share.
    pub(super) ecn: u8,
    small: bool,
    flows: Flows,
}

impl Ticket {
    /// The ticket of packets of `len` bytes to the peer in `slot`. For `flow` see [`crate::wire::ip::flow`].
    pub(super) fn new(slot: u32, ecn: u8, len: usize, flow: Option<u32>) -> Ticket {
        Ticket { slot, ecn, small: len <= SMALL_MAX, flows: Flows::of(flow) }
    }
}

/// A set of flows, as a Bloom filter of one hash. Two sets may seem to share a flow that they do not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Flows(u64);

impl Flows {
    /// The set of one flow. Where it is not known which flow it is, the set of all flows.
    fn of(flow: Option<u32>) -> Flows {
        Flows(flow.map_or(u64::MAX, |flow| 1 << (flow % u64::BITS)))
    }

    fn shares(self, other: Flows) -> bool {
        self.0 & other.0 != 0
    }
}

/// A train under construction.
pub(super) struct OpenTrain {
    pub(super) ticket: Ticket,
    pub(super) train: Train,
    pub(super) buf: Buf,
}

/// What has to happen before a packet is written.
pub(super) enum TrainChoice {
    /// The packet joins the train at this index.
    Join(usize),
    /// The train at this index has to leave first; then the question is to be asked again.
    Close(usize),
    /// The packet needs a train of its own.
    Begin,
}

/// All trains under construction of a turn, the oldest first, in the first `len` places.
#[derive(Default)]
pub(super) struct OpenTrains {
    trains: [Option<OpenTrain>; MAX_OPEN],
    len: usize,
}

impl OpenTrains {
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn get_mut(&mut self, index: usize) -> Option<&mut OpenTrain> {
        self.trains[index].as_mut()
    }

    /// The oldest train of a peer.
    pub(super) fn first_of(&self, slot: u32) -> Option<usize> {
        self.position(|open| open.slot == slot)
    }

    /// Where packets of `ticket` go. A train that they join counts them among its flows.
    pub(super) fn place(&mut self, ticket: Ticket) -> TrainChoice {
        let Ticket { slot, ecn, small, flows } = ticket;
        let mine = self.position(|open| open.slot == slot && open.small == small);
        let other =
            self.position(|open| open.slot == slot && open.small != small && open.flows.shares(flows));
        match (mine, other) {
            (Some(mine), Some(other)) if mine < other => TrainChoice::Close(other),
            (Some(mine), _) => match &mut self.trains[mine] {
                Some(open) if open.ticket.ecn == ecn => {
                    open.ticket.flows.0 |= flows.0;
                    TrainChoice::Join(mine)
                }
                _ => TrainChoice::Close(mine),
            },
            (None, _) if self.len == MAX_OPEN => TrainChoice::Close(0),
            (None, _) => TrainChoice::Begin,
        }
    }

    /// Begins a train in `buf` for packets of `ticket`, which [`Self::place`] allowed.
    pub(super) fn begin(&mut self, ticket: Ticket, buf: Buf) {
        self.trains[self.len] = Some(OpenTrain { ticket, train: Train::default(), buf });
        self.len += 1;
    }

    /// Takes a train out: the one at `index`, or an older one that has to leave before it.
    pub(super) fn take(&mut self, index: usize) -> Option<OpenTrain> {
        let Ticket { slot, flows, .. } = self.trains.get(index)?.as_ref()?.ticket;
        let first = self.position(|open| open.slot == slot && open.flows.shares(flows))?;
        let open = self.trains[first].take();
        self.trains[first..self.len].rotate_left(1);
        self.len -= 1;
        open
    }

    fn position(&self, is: impl Fn(&Ticket) -> bool) -> Option<usize> {
        self.trains[..self.len].iter().position(|open| open.as_ref().is_some_and(|open| is(&open.ticket)))
    }
}
