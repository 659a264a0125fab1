//! The table: what is sent, and how much of it any two routers hand on.

mod ip;
mod supers;
mod tcp;
mod transports;
mod udp;

use super::packet::{Ends, Packet};
use crate::pair::{Family, V4, V6};

/// Both versions of IP.
const BOTH: &[Family] = &[V4, V6];
const ONLY_V4: &[Family] = &[V4];
const ONLY_V6: &[Family] = &[V6];

/// How many packets arrive through a plain veth.
#[derive(Clone, Copy)]
pub(super) enum Fate {
    /// As many as were sent, once super-packets are taken apart.
    All,
    /// So many.
    Count(usize),
}

/// How IPv4 identifications are compared.
#[derive(Clone, Copy)]
pub(super) enum Ids {
    Compared,
    /// Not where DF is set. They mean nothing there (RFC 6864, section 4.1), and where they stand still, whoever joins packets and
    /// takes them apart again counts them up: ringtun, and the kernel where it forwards.
    WithoutDf,
    /// As they go on from the first one's, which the kernel chose.
    FromFirst,
}

/// One kind of traffic. Its packets are one flow, unless it says otherwise.
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) families: &'static [Family],
    /// Whether a program of the gateway's own can send it.
    pub(super) local: bool,
    /// Whether a client behind the gateway can.
    pub(super) forwarded: bool,
    pub(super) fate: Fate,
    /// Whether it is several flows, each of another port. Order counts within each.
    pub(super) flows: bool,
    pub(super) ids: Ids,
    pub(super) build: fn(&Ends) -> Vec<Packet>,
}

fn row(name: &'static str, families: &'static [Family], build: fn(&Ends) -> Vec<Packet>) -> Row {
    Row {
        name,
        families,
        local: true,
        forwarded: true,
        fate: Fate::All,
        flows: false,
        ids: Ids::Compared,
        build,
    }
}

impl Row {
    /// A program's raw socket would not let it out as it is.
    fn forwarded(self) -> Row {
        Row { local: false, ..self }
    }

    /// It is about what a program of the gateway sends.
    fn local(self) -> Row {
        Row { forwarded: false, ..self }
    }

    fn count(self, count: usize) -> Row {
        Row { fate: Fate::Count(count), ..self }
    }

    fn several_flows(self) -> Row {
        Row { flows: true, ..self }
    }

    fn loses_ids(self) -> Row {
        Row { ids: Ids::WithoutDf, ..self }
    }
}

/// All rows.
pub(super) fn rows() -> Vec<Row> {
    [tcp::rows(), udp::rows(), ip::rows(), transports::rows(), supers::rows()].into_iter().flatten().collect()
}
