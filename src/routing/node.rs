//! One node in four words, and the places of prefixes and bits in it.
//!
//! A node begins after 2, 8, 14, ... 122 bits of the address, so that hosts of either family end exactly with a node. A
//! prefix ends in the node that begins before its last bit. There it has a position: a 1, followed by its bits from the
//! node's beginning on. Positions 2 to 63 are bits of `short`. Positions from 64 on are whole slots, and bits of `long`.
//! Prefixes of at most two bits stand before all nodes, in the roots.

use super::prefix::Prefix;
use super::room::NodeCell;
use std::sync::atomic::Ordering::Relaxed;

/// How many bits of an address come before the first nodes.
pub(super) const FIRST: u8 = 2;
/// How many bits of an address one node covers.
pub(super) const STRIDE: u8 = 6;
/// How many slots a node has.
pub(super) const SLOTS: usize = 1 << STRIDE;
/// Bits of `link` that tell the kind of a node which does not branch.
const LONE: u64 = 1 << 63;
const WAY: u64 = 1 << 62;

/// For each slot, the positions of the prefixes shorter than a slot that contain it.
pub(super) const PATHS: [u64; SLOTS] = {
    let mut paths = [0; SLOTS];
    let mut slot = 0;
    while slot < SLOTS {
        let mut position = (SLOTS | slot) >> 1;
        while position > 1 {
            paths[slot] |= 1 << position;
            position >>= 1;
        }
        slot += 1;
    }
    paths
};

/// A node, whose words mean what its kind says. The default is a branch without prefixes and children: nothing is below it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Node {
    /// Of a branch: the prefixes shorter than a slot that end here, by position. Otherwise the upper half of a key.
    pub(super) short: u64,
    /// Of a branch: the prefixes of a whole slot. Otherwise the lower half of a key.
    pub(super) long: u64,
    /// Of a branch: the slots that lead to children. Otherwise the length of the key in bits.
    pub(super) children: u64,
    link: u64,
}

/// The kind of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Branch,
    /// It stands for one prefix, and there is nothing else below.
    Lone,
    /// It stands for a chain without branches. Everything below begins with the key's bits, up to the branch to which it
    /// leads.
    Way,
}

impl Node {
    pub(super) fn branch(short: u64, long: u64, children: u64, first_child: u32, first_owner: u32) -> Node {
        Node { short, long, children, link: u64::from(first_child) << 32 | u64::from(first_owner) }
    }

    pub(super) fn lone(key: u128, len: u8, owner: u32) -> Node {
        Node { link: LONE | u64::from(owner), ..Node::of_key(key, len) }
    }

    pub(super) fn way(key: u128, len: u8, target: u32) -> Node {
        Node { link: WAY | u64::from(target), ..Node::of_key(key, len) }
    }

    fn of_key(key: u128, len: u8) -> Node {
        Node { short: (key >> 64) as u64, long: key as u64, children: len.into(), link: 0 }
    }

    #[inline]
    pub(super) fn kind(&self) -> Kind {
        match self.link & (LONE | WAY) {
            0 => Kind::Branch,
            LONE => Kind::Lone,
            _ => Kind::Way,
        }
    }

    #[inline]
    pub(super) fn first_child(&self) -> u32 {
        (self.link >> 32) as u32
    }

    #[inline]
    pub(super) fn first_owner(&self) -> u32 {
        self.link as u32
    }

    #[inline]
    pub(super) fn owner(&self) -> u32 {
        self.link as u32
    }

    #[inline]
    pub(super) fn target(&self) -> u32 {
        self.link as u32
    }

    #[inline]
    pub(super) fn key(&self) -> u128 {
        u128::from(self.short) << 64 | u128::from(self.long)
    }

    #[inline]
    pub(super) fn len(&self) -> u8 {
        self.children as u8
    }

    /// Where the owner of the longest prefix stands that ends in this node and contains this slot.
    #[inline]
    pub(super) fn longest(&self, slot: usize) -> Option<u32> {
        if self.short | self.long == 0 {
            return None;
        }
        if self.long >> slot & 1 != 0 {
            return Some(self.first_owner() + rank(self.long, slot));
        }
        let ends = self.short & PATHS[slot];
        if ends == 0 {
            return None;
        }
        let position = 63 - ends.leading_zeros() as usize;
        Some(self.first_owner() + self.long.count_ones() + rank(self.short, position))
    }

    /// How many prefixes end here.
    pub(super) fn owners(&self) -> u32 {
        self.short.count_ones() + self.long.count_ones()
    }

    #[inline]
    pub(super) fn load(cells: &[NodeCell], at: u32) -> Node {
        let [short, long, children, link] = &cells[at as usize];
        Node {
            short: short.load(Relaxed),
            long: long.load(Relaxed),
            children: children.load(Relaxed),
            link: link.load(Relaxed),
        }
    }

    pub(super) fn store(&self, cell: &NodeCell) {
        let words = [self.short, self.long, self.children, self.link];
        cell.iter().zip(words).for_each(|(cell, word)| cell.store(word, Relaxed));
    }
}

/// How many bits are set below bit `at`.
#[inline]
pub(super) fn rank(bits: u64, at: usize) -> u32 {
    (bits & ((1 << at) - 1)).count_ones()
}

/// The slot in a node that begins after `depth` bits.
pub(super) fn slot_of(key: u128, depth: u8) -> usize {
    ((key << depth) >> (128 - STRIDE)) as usize
}

/// The beginning of the last node that begins after at most so many bits.
pub(super) fn at_most(bits: u8) -> u8 {
    bits.saturating_sub(FIRST) / STRIDE * STRIDE + FIRST
}

/// The beginning of the node in which a prefix of this length ends. The prefix must have more than [`FIRST`] bits.
pub(super) fn holder(len: u8) -> u8 {
    at_most(len.saturating_sub(1))
}

/// The position of a prefix in its node.
pub(super) fn position(key: u128, len: u8) -> usize {
    let bits = len - holder(len);
    1 << bits | slot_of(key, holder(len)) >> (STRIDE - bits)
}

/// A key of either family, whose first bit is the topmost.
pub(super) trait AddressBits: Copy {
    /// Its first [`FIRST`] bits, as a number.
    fn first(self) -> usize;
    /// The slot in a node that begins with the key's first bit.
    fn slot(self) -> usize;
    /// The key without its first `bits` bits, which must be fewer than it has.
    fn after(self, bits: u8) -> Self;
    /// Whether the key begins as the node's key does.
    fn begins_as(self, node: &Node) -> bool;
}

impl AddressBits for u128 {
    #[inline]
    fn first(self) -> usize {
        (self >> (128 - FIRST)) as usize
    }

    #[inline]
    fn slot(self) -> usize {
        (self >> (128 - STRIDE)) as usize
    }

    #[inline]
    fn after(self, bits: u8) -> u128 {
        self << bits
    }

    #[inline]
    fn begins_as(self, node: &Node) -> bool {
        (node.key() ^ self) & super::prefix::mask(node.len()) == 0
    }
}

/// A key of IPv4: 64 bits are enough, as no prefix is longer than half of that.
impl AddressBits for u64 {
    #[inline]
    fn first(self) -> usize {
        (self >> (64 - FIRST)) as usize
    }

    #[inline]
    fn slot(self) -> usize {
        (self >> (64 - STRIDE)) as usize
    }

    #[inline]
    fn after(self, bits: u8) -> u64 {
        self << (bits & 63)
    }

    #[inline]
    fn begins_as(self, node: &Node) -> bool {
        (node.short ^ self) & !(u64::MAX >> (node.len() & 63)) == 0
    }
}

/// A prefix and its new owner. `None` takes the prefix away.
#[derive(Clone, Copy, Debug)]
pub(super) struct RouteChange {
    pub(super) key: u128,
    pub(super) len: u8,
    pub(super) owner: Option<u32>,
}

impl RouteChange {
    pub(super) fn new(prefix: Prefix, owner: Option<u32>) -> RouteChange {
        RouteChange { key: super::prefix::key(prefix.addr()), len: prefix.len(), owner }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_begin_where_hosts_of_both_families_end() {
        assert_eq!([3, 8, 9, 24, 32, 64, 128].map(holder), [2, 2, 8, 20, 26, 62, 122]);
        assert_eq!([2, 7, 8, 127, 128].map(at_most), [2, 2, 8, 122, 128]);
    }

    #[test]
    fn a_prefix_stands_on_the_path_of_the_slots_that_it_holds() {
        let key = 0b10_110101_111111 << 114;
        assert_eq!(position(key, 8), 64 | 0b110101);
        assert_eq!(position(key, 7), 32 | 0b11010);
        assert_eq!(position(key, 3), 2 | 1);
        let path = [32 | 0b11010, 16 | 0b1101, 8 | 0b110, 4 | 0b11, 2 | 1];
        assert_eq!(PATHS[0b110101], path.iter().map(|position| 1 << position).sum::<u64>());
    }

    #[test]
    fn a_key_of_ipv4_is_the_first_half_of_one_of_ipv6() {
        let whole = 0x0a01_ffff_u128 << 96;
        let half = (whole >> 64) as u64;
        let node = |len| Node::lone(0x0a00_0000 << 96, len, 1);
        for len in 0..=32 {
            assert_eq!(whole.begins_as(&node(len)), half.begins_as(&node(len)), "{len}");
            assert_eq!((whole.first(), whole.after(len).slot()), (half.first(), half.after(len).slot()));
        }
    }
}
