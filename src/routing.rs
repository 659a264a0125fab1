//! AllowedIPs: longest-prefix match over IPv4 and IPv6, for the whole device, with one owner for each prefix.
//!
//! ```text
//!   RouteWriter ── table() ──> Arc<RouteTable { v4: Roots, v6: Roots }> ──> lookup
//!        │ change()                     │
//!        └────────── writes ──> nodes:  [ short | long | children | first child, first owner ] ...   a node that branches
//!                               │       [ key           | length   | owner                    ] ...   a lone prefix
//!                               │       [ key           | length   | node                     ] ...   a way without a branch
//!                               owners: [ owner, owner ] ...
//! ```
//!
//! A node branches on six bits. Its bitmaps say which of the 64 slots lead to nodes below, and which prefixes end in it.
//! Population counts of the bitmaps index the packed nodes and owners. That is the tree bitmap (Eatherton, Varghese,
//! Dittia: "Tree bitmap: hardware/software IP lookups with incremental updates", 2004, section 3) with the packed arrays of
//! the poptrie (Asai, Ohara, 2015). A prefix stands in one node only, so that a change touches that node and the way to it,
//! even for a default route. Where everything below a slot shares its next bits, one node and one comparison stand in place
//! of a chain of nodes.
//!
//! **Tables never change.** A change writes the nodes on its way anew, in room that belongs to no table. A table is no more
//! than the roots of both families and a reference to the room. So it costs nothing to make one, and it shares with the
//! table before whatever did not change. What only earlier tables have is written over once the last of these is gone,
//! which the [`RouteWriter`] sees by their reference counts. The words are atomic, since parts of the room are written
//! while other parts are read. What belongs to a table is never written.

mod node;
mod prefix;
mod room;
#[cfg(test)]
mod tests;
mod writer;

pub use prefix::{ParsePrefixError, Prefix};
pub use writer::RouteWriter;

use node::{AddressBits, FIRST, Kind, Node, STRIDE, rank};
use room::{Cells, NodeCell, OwnerCell, owner_at};
use std::net::IpAddr;
use std::sync::Arc;

/// A table in which workers look up destinations and sources. It never changes, and shares its memory with the other tables
/// of its [`RouteWriter`].
///
/// It must not be cloned, as the writer would not know of the clone.
#[derive(Default, Debug)]
pub struct RouteTable {
    nodes: Arc<Cells<NodeCell>>,
    owners: Arc<Cells<OwnerCell>>,
    v4: Roots,
    v6: Roots,
}

/// Where look-ups of one family begin: for each value of an address's first two bits, the node to go on with, and the owner
/// of the longest prefix of at most two bits.
#[derive(Clone, Copy, Default, Debug)]
struct Roots {
    nodes: [Node; 1 << FIRST],
    owners: [Option<u32>; 1 << FIRST],
}

impl RouteTable {
    /// Builds a table. A prefix that is given twice goes to its last owner.
    pub fn build(routes: impl IntoIterator<Item = (Prefix, u32)>) -> RouteTable {
        let mut writer = RouteWriter::default();
        writer.change(routes.into_iter().map(|(prefix, owner)| (prefix, Some(owner))));
        writer.into_table()
    }

    /// The owner (a peer's slot) of the longest prefix that contains `addr`.
    #[inline]
    pub fn lookup(&self, addr: IpAddr) -> Option<u32> {
        match addr {
            IpAddr::V4(v4) => self.longest(&self.v4, u64::from(v4.to_bits()) << 32),
            IpAddr::V6(v6) => self.longest(&self.v6, v6.to_bits()),
        }
    }

    #[inline]
    fn longest<K: AddressBits>(&self, roots: &Roots, key: K) -> Option<u32> {
        let nodes: &[NodeCell] = &self.nodes;
        let mut node = roots.nodes[key.first()];
        let mut rest = key.after(FIRST);
        // The place of the owner of the longest prefix found so far.
        let mut best = None;
        loop {
            match node.kind() {
                Kind::Branch => {
                    let slot = rest.slot();
                    if let Some(at) = node.longest(slot) {
                        best = Some(at);
                    }
                    if node.children >> slot & 1 == 0 {
                        break;
                    }
                    node = Node::load(nodes, node.first_child() + rank(node.children, slot));
                    rest = rest.after(STRIDE);
                }
                Kind::Lone if key.begins_as(&node) => return Some(node.owner()),
                Kind::Way if key.begins_as(&node) => {
                    rest = key.after(node.len());
                    node = Node::load(nodes, node.target());
                }
                Kind::Lone | Kind::Way => break,
            }
        }
        match best {
            Some(at) => Some(owner_at(&self.owners, at)),
            None => roots.owners[key.first()],
        }
    }
}
