//! AllowedIPs: longest-prefix match over IPv4 and IPv6, device-wide, one owner a prefix.
//!
//! ```text
//!   RouteWriter ── table() ──> Arc<RouteTable { v4: Node, v6: Node }> ──> lookup
//!        │ change()                     │
//!        └────────── writes ──> nodes:  [ short | long | children | first child, first owner ] ...   a node that branches
//!                               │       [ key           | length   | owner                    ] ...   a lone prefix
//!                               │       [ key           | length   | node                     ] ...   a way without a branch
//!                               owners: [ owner, owner ] ...
//! ```
//!
//! A node branches on six bits. Its bitmaps say which of the 64 slots lead to nodes below, and which prefixes end in it;
//! population counts index the packed nodes and owners of both. That is the tree bitmap (Eatherton, Varghese, Dittia: "Tree
//! bitmap: hardware/software IP lookups with incremental updates", 2004, section 3) with the packed arrays of the poptrie (Asai,
//! Ohara, 2015). A prefix stands in one node only, so that a change touches that node and the way to it, be it a default route.
//! Where all below a slot share their next bits, one node stands in place of the chain, and one comparison.
//!
//! **Tables never change.** A change writes the nodes on its way anew, in room that no table has, and a table is no more than the
//! two nodes to begin from. So a table is made at no cost, and shares with the one before whatever did not change. What only
//! earlier tables have is written over once the last of these is gone, which the [`RouteWriter`] sees by their reference counts.
//! The words are atomic since room is written to while others read beside it; within a table nothing is ever written.

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

/// A table that workers look up in. It never changes, and shares its memory with those of the same [`RouteWriter`].
///
/// It is not to be cloned: the writer would not know of the clone.
#[derive(Default, Debug)]
pub struct RouteTable {
    nodes: Arc<Cells<NodeCell>>,
    owners: Arc<Cells<OwnerCell>>,
    v4: Roots,
    v6: Roots,
}

/// What addresses of one family begin with: by their first two bits, where to go on, and the owner of all of them.
#[derive(Clone, Copy, Default, Debug)]
struct Roots {
    nodes: [Node; 1 << FIRST],
    owners: [Option<u32>; 1 << FIRST],
}

impl RouteTable {
    /// Builds a table; a prefix that stands twice goes to its last owner.
    pub fn build(routes: impl IntoIterator<Item = (Prefix, u32)>) -> RouteTable {
        let mut writer = RouteWriter::default();
        writer.change(routes.into_iter().map(|(prefix, owner)| (prefix, Some(owner))));
        writer.into_table()
    }

    /// The owner (a peer's slot) of the longest prefix that holds `addr`.
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
        // Where the owner of the longest prefix so far stands.
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
