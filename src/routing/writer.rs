//! The writer, which changes routes and gives tables out. See [`super`] for what a table is.

use super::node::{
    AddressBits, FIRST, Kind, Node, RouteChange, SLOTS, STRIDE, at_most, holder, position, rank, slot_of,
};
use super::prefix::mask;
use super::room::{NodeCell, OwnerCell, Room, owner_at};
use super::{Prefix, Roots, RouteTable};
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// Room that was once needed is given back when less than one in so many cells is in use.
const SPARSE: usize = 8;
/// Number of cells whose room is kept even if none is in use.
const KEPT: usize = 4096;

/// All routes of a device, with one owner for each prefix. The device has it, and gives tables to those who look up.
#[derive(Default)]
pub struct RouteWriter {
    nodes: Lent<NodeCell>,
    owners: Lent<OwnerCell>,
    v4: FamilyRoutes,
    v6: FamilyRoutes,
    /// The table that was given out last.
    table: Arc<RouteTable>,
    changed: bool,
    /// Earlier tables in which somebody may still look up, the oldest first, each with the cells that are free once it and
    /// those before it are gone.
    replaced: VecDeque<Replaced>,
}

/// Where one family's routes begin.
#[derive(Clone, Copy, Default)]
struct FamilyRoutes {
    roots: Roots,
    /// Owners of the prefixes of at most two bits, by position: a 1, followed by the prefix's bits.
    shortest: [Option<u32>; 2 << FIRST],
}

struct Replaced {
    table: Arc<RouteTable>,
    nodes: Vec<CellRun>,
    owners: Vec<CellRun>,
}

/// The number of the first cell of a run, and how many cells it has.
type CellRun = (u32, usize);

impl RouteWriter {
    /// Gives prefixes to owners, or to none. Where a prefix is named twice the last change counts.
    pub fn change(&mut self, changes: impl IntoIterator<Item = (Prefix, Option<u32>)>) {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (prefix, owner) in changes {
            let list = if prefix.addr().is_ipv4() { &mut v4 } else { &mut v6 };
            list.push(RouteChange::new(prefix, owner));
        }
        self.changed |= !(v4.is_empty() && v6.is_empty());
        self.v4 = self.family_updated(self.v4, &in_order(v4));
        self.v6 = self.family_updated(self.v6, &in_order(v6));
    }

    /// The table of the routes as they are now. It is the same as before where nothing changed.
    pub fn table(&mut self) -> Arc<RouteTable> {
        if self.changed {
            self.changed = false;
            let (mut nodes, mut owners) = (self.nodes.publish(), self.owners.publish());
            if self.is_sparse() {
                self.write_anew();
                (nodes, owners) = (Vec::new(), Vec::new());
            }
            let new = Arc::new(self.as_table());
            let table = std::mem::replace(&mut self.table, new);
            self.replaced.push_back(Replaced { table, nodes, owners });
        }
        self.reclaim();
        Arc::clone(&self.table)
    }

    /// The table of a writer that will give out no other.
    pub(super) fn into_table(self) -> RouteTable {
        self.as_table()
    }

    fn as_table(&self) -> RouteTable {
        RouteTable {
            nodes: Arc::clone(self.nodes.room.cells()),
            owners: Arc::clone(self.owners.room.cells()),
            v4: self.v4.roots,
            v6: self.v6.roots,
        }
    }

    /// Takes back the cells of tables in which nobody looks up any more. A worker that lets go of a table never frees it:
    /// this does.
    pub fn reclaim(&mut self) {
        // Tables are given out by the writer's own references alone: one that only we hold stays ours. `get_mut` is ordered
        // after the readers' last reads.
        while self.replaced.front_mut().is_some_and(|oldest| Arc::get_mut(&mut oldest.table).is_some()) {
            let Some(Replaced { nodes, owners, .. }) = self.replaced.pop_front() else { return };
            nodes.into_iter().for_each(|(at, count)| self.nodes.room.give_back(at, count));
            owners.into_iter().for_each(|(at, count)| self.owners.room.give_back(at, count));
        }
    }

    /// Bytes of memory that the routes use.
    #[cfg(test)]
    pub(super) fn memory(&self) -> usize {
        self.nodes.room.memory() + self.owners.room.memory()
    }

    fn is_sparse(&self) -> bool {
        self.nodes.is_sparse() || self.owners.is_sparse()
    }

    /// How many cells of nodes and of owners are in use.
    #[cfg(test)]
    pub(super) fn used(&self) -> (usize, usize) {
        (self.nodes.in_use, self.owners.in_use)
    }

    /// Writes everything anew in no more room than it needs. Earlier tables keep the room that they have.
    fn write_anew(&mut self) {
        let mut less = RouteWriter::default();
        (less.v4, less.v6) = (self.v4, self.v6);
        less.v4.roots.nodes = self.v4.roots.nodes.map(|node| less.copy(node, self));
        less.v6.roots.nodes = self.v6.roots.nodes.map(|node| less.copy(node, self));
        (less.nodes.fresh, less.owners.fresh) = (HashSet::new(), HashSet::new());
        (self.nodes, self.owners, self.v4, self.v6) = (less.nodes, less.owners, less.v4, less.v6);
        for replaced in &mut self.replaced {
            (replaced.nodes, replaced.owners) = (Vec::new(), Vec::new());
        }
    }

    /// Copies a node of `other`, with everything below it.
    fn copy(&mut self, node: Node, other: &RouteWriter) -> Node {
        match node.kind() {
            Kind::Lone => node,
            Kind::Way => {
                let target = self.copy(other.load(node.target()), other);
                self.way_to(target, node.key(), node.len())
            }
            Kind::Branch => {
                let children = node.children.count_ones();
                let children: Vec<Node> =
                    (0..children).map(|at| self.copy(other.load(node.first_child() + at), other)).collect();
                let first = node.first_owner();
                let owners: Vec<u32> = (0..node.owners()).map(|at| other.owner(first + at)).collect();
                self.write(node.short, node.long, node.children, &children, &owners)
            }
        }
    }

    fn load(&self, at: u32) -> Node {
        Node::load(self.nodes.room.cells(), at)
    }

    fn owner(&self, at: u32) -> u32 {
        owner_at(self.owners.room.cells(), at)
    }

    fn family_updated(&mut self, mut family: FamilyRoutes, changes: &[RouteChange]) -> FamilyRoutes {
        for first in changes.chunk_by(|one, other| one.key.first() == other.key.first()) {
            let (short, long): (Vec<RouteChange>, Vec<RouteChange>) =
                first.iter().partition(|one| one.len <= FIRST);
            for change in &short {
                let bits = change.key.first() >> (FIRST - change.len);
                family.shortest[1 << change.len | bits] = change.owner;
            }
            let root = first.first().map_or(0, |change| change.key.first());
            family.roots.nodes[root] = self.updated(family.roots.nodes[root], FIRST, &long);
        }
        for (root, owner) in family.roots.owners.iter_mut().enumerate() {
            let position = 1 << FIRST | root;
            *owner = (0..=FIRST).find_map(|lacks| family.shortest[position >> lacks]);
        }
        family
    }

    /// Makes the node that stands for `node` after these changes of prefixes below it. `node` begins after `depth` bits.
    fn updated(&mut self, node: Node, depth: u8, changes: &[RouteChange]) -> Node {
        match node.kind() {
            _ if changes.is_empty() => node,
            Kind::Branch if node == Node::default() => {
                let new: Vec<RouteChange> =
                    changes.iter().filter(|change| change.owner.is_some()).copied().collect();
                self.planted(depth, &new)
            }
            Kind::Branch => self.branch_updated(node, depth, changes),
            Kind::Lone => {
                let old = RouteChange { key: node.key(), len: node.len(), owner: Some(node.owner()) };
                let mut all = vec![old];
                all.extend(changes);
                let mut all = in_order(all);
                all.retain(|change| change.owner.is_some());
                self.planted(depth, &all)
            }
            Kind::Way => self.way_updated(node, depth, changes),
        }
    }

    /// Makes a node for these prefixes alone, at a place where nodes begin after `depth` bits.
    fn planted(&mut self, depth: u8, new: &[RouteChange]) -> Node {
        match *new {
            [] => Node::default(),
            [RouteChange { key, len, owner: Some(owner) }] => Node::lone(key, len, owner),
            [first, ..] => {
                let at = parting(new, first.key);
                let node = self.filled(&mut Branch::new(first.key), at, new);
                if at == depth { node } else { self.way_to(node, first.key, at) }
            }
        }
    }

    fn branch_updated(&mut self, node: Node, depth: u8, changes: &[RouteChange]) -> Node {
        let mut branch = Branch::new(changes[0].key);
        for slot in bits(node.children) {
            branch.set_child(slot, self.load(node.first_child() + rank(node.children, slot)));
        }
        let prefixes = bits(node.long).map(|slot| slot + SLOTS).chain(bits(node.short));
        for (at, position) in prefixes.enumerate() {
            branch.set_owner(position, Some(self.owner(node.first_owner() + at as u32)));
        }
        self.nodes.drop((node.first_child(), node.children.count_ones() as usize));
        self.owners.drop((node.first_owner() / 2, node.owners().div_ceil(2) as usize));
        self.filled(&mut branch, depth, changes)
    }

    fn way_updated(&mut self, way: Node, depth: u8, changes: &[RouteChange]) -> Node {
        let (key, len) = (way.key(), way.len());
        let is_inside = |change: &&RouteChange| change.len > len && (change.key ^ key) & mask(len) == 0;
        let (inside, mut outside): (Vec<&RouteChange>, Vec<&RouteChange>) =
            changes.iter().partition(is_inside);
        outside.retain(|change| change.owner.is_some());
        let (inside, outside): (Vec<RouteChange>, Vec<RouteChange>) =
            (inside.into_iter().copied().collect(), outside.into_iter().copied().collect());
        let mut node = way;
        if !inside.is_empty() {
            let target = self.load(way.target());
            self.nodes.drop((way.target(), 1));
            let target = self.branch_updated(target, len, &inside);
            node = self.way_to(target, key, len);
        }
        if outside.is_empty() {
            return node;
        }
        if node.kind() != Kind::Way {
            return self.updated(node, depth, &outside);
        }
        let (key, len) = (node.key(), node.len());
        let at = parting(&outside, key).min(at_most(len.saturating_sub(1)));
        let mut branch = Branch::new(key);
        let mut child = node;
        if len == at + STRIDE {
            child = self.load(node.target());
            self.nodes.drop((node.target(), 1));
        }
        branch.set_child(slot_of(key, at), child);
        let node = self.filled(&mut branch, at, &outside);
        if at == depth { node } else { self.way_to(node, key, at) }
    }

    /// Makes the node of a branch that begins after `depth` bits, after these changes.
    fn filled(&mut self, branch: &mut Branch, depth: u8, changes: &[RouteChange]) -> Node {
        let below = depth + STRIDE;
        let mut rest = changes;
        while let Some(&change) = rest.first() {
            if change.len <= below {
                branch.set_owner(position(change.key, change.len), change.owner);
                rest = &rest[1..];
                continue;
            }
            // In this order, a prefix of the slot itself comes before those below it.
            let slot = slot_of(change.key, depth);
            let count =
                rest.iter().take_while(|one| slot_of(one.key, depth) == slot && one.len > below).count();
            let (group, others) = rest.split_at(count);
            let child = branch.child(slot);
            branch.set_child(slot, self.updated(child, below, group));
            rest = others;
        }
        self.finished(branch, depth)
    }

    /// Writes a branch, and returns the node that leads to its parts. Where nothing parts in it, a simpler node does.
    fn finished(&mut self, branch: &Branch, depth: u8) -> Node {
        let children: Vec<Node> = bits(branch.children).map(|slot| branch.child(slot)).collect();
        let positions = bits(branch.long).map(|slot| slot + SLOTS).chain(bits(branch.short));
        let owners: Vec<u32> = positions.map(|position| branch.owners[position]).collect();
        match (&children[..], &owners[..]) {
            ([], []) => Node::default(),
            ([], [owner]) => {
                let (key, len) = branch.only_prefix(depth);
                Node::lone(key, len, *owner)
            }
            ([child], []) => {
                let slot = branch.children.trailing_zeros() as usize;
                self.way_to(*child, branch.key_of(slot, depth), depth + STRIDE)
            }
            _ => self.write(branch.short, branch.long, branch.children, &children, &owners),
        }
    }

    fn write(&mut self, short: u64, long: u64, slots: u64, children: &[Node], owners: &[u32]) -> Node {
        let (mut first_child, mut first_owner) = (0, 0);
        if !children.is_empty() {
            first_child = self.nodes.take(children.len());
            for (at, child) in children.iter().enumerate() {
                self.nodes.room.write(first_child + at as u32, |cell| child.store(cell));
            }
        }
        if !owners.is_empty() {
            let pairs = owners.chunks(2);
            let first = self.owners.take(pairs.len());
            for (at, pair) in pairs.enumerate() {
                let store = |cell: &OwnerCell| {
                    cell.iter().zip(pair).for_each(|(cell, owner)| cell.store(*owner, Relaxed));
                };
                self.owners.room.write(first + at as u32, store);
            }
            first_owner = 2 * first;
        }
        Node::branch(short, long, slots, first_child, first_owner)
    }

    /// Makes the node that leads to `node`, which begins after the first `len` bits of `key`. A node that does not branch
    /// leads there itself.
    fn way_to(&mut self, node: Node, key: u128, len: u8) -> Node {
        if node.kind() != Kind::Branch || node == Node::default() {
            return node;
        }
        let target = self.nodes.take(1);
        self.nodes.room.write(target, |cell| node.store(cell));
        Node::way(key & mask(len), len, target)
    }
}

/// Room of which parts belong to tables.
struct Lent<C> {
    room: Room<C>,
    /// How many cells the present routes need.
    in_use: usize,
    /// The first cells of the runs that were taken since the last table, which belong to no table.
    fresh: HashSet<u32>,
    /// Runs that the last table has, and the present routes do not need.
    dropped: Vec<CellRun>,
}

impl<C: super::room::Cell> Default for Lent<C> {
    fn default() -> Lent<C> {
        Lent { room: Room::default(), in_use: 0, fresh: HashSet::new(), dropped: Vec::new() }
    }
}

impl<C: super::room::Cell> Lent<C> {
    fn take(&mut self, count: usize) -> u32 {
        let at = self.room.take(count);
        self.fresh.insert(at);
        self.in_use += count;
        at
    }

    fn drop(&mut self, run: CellRun) {
        self.in_use -= run.1;
        match run {
            (_, 0) => {}
            (at, count) if self.fresh.remove(&at) => self.room.give_back(at, count),
            run => self.dropped.push(run),
        }
    }

    fn is_sparse(&self) -> bool {
        self.room.touched() > KEPT && self.in_use < self.room.touched() / SPARSE
    }

    /// Notes that a table is given out. Returns the runs that it does not have, and the table before it has.
    fn publish(&mut self) -> Vec<CellRun> {
        self.fresh.clear();
        self.fresh.shrink_to(KEPT);
        std::mem::take(&mut self.dropped)
    }
}

/// A branch that is taken apart to be changed.
struct Branch {
    /// A key that lies below it.
    key: u128,
    short: u64,
    long: u64,
    children: u64,
    owners: [u32; 2 * SLOTS],
    nodes: [Node; SLOTS],
}

impl Branch {
    fn new(key: u128) -> Branch {
        let nodes = [Node::default(); SLOTS];
        Branch { key, short: 0, long: 0, children: 0, owners: [0; 2 * SLOTS], nodes }
    }

    fn child(&self, slot: usize) -> Node {
        self.nodes[slot]
    }

    fn set_child(&mut self, slot: usize, node: Node) {
        self.nodes[slot] = node;
        set(&mut self.children, slot, node != Node::default());
    }

    fn set_owner(&mut self, position: usize, owner: Option<u32>) {
        let (bits, bit) =
            if position < SLOTS { (&mut self.short, position) } else { (&mut self.long, position - SLOTS) };
        set(bits, bit, owner.is_some());
        self.owners[position] = owner.unwrap_or(0);
    }

    /// The key of what begins with this slot, up to the slot's end.
    fn key_of(&self, slot: usize, depth: u8) -> u128 {
        (self.key & mask(depth)) | (slot as u128) << (128 - (depth + STRIDE))
    }

    /// The key and length of the prefix that ends here, where only one does.
    fn only_prefix(&self, depth: u8) -> (u128, u8) {
        let position = match self.long {
            0 => self.short.trailing_zeros() as usize,
            long => SLOTS + long.trailing_zeros() as usize,
        };
        let lacks = position.leading_zeros() - SLOTS.leading_zeros();
        let slot = (position << lacks) - SLOTS;
        (self.key_of(slot, depth), depth + STRIDE - lacks as u8)
    }
}

fn set(bits: &mut u64, at: usize, to: bool) {
    *bits = *bits & !(1 << at) | u64::from(to) << at;
}

/// The numbers of the bits that are set.
fn bits(mut of: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = of.trailing_zeros() as usize;
        of &= of.wrapping_sub(1);
        (bit < SLOTS).then_some(bit)
    })
}

/// The beginning of the first node in which these prefixes part from each other and from `key`, or in which one ends. The
/// prefixes must be in order.
fn parting(changes: &[RouteChange], key: u128) -> u8 {
    let ends = changes.iter().map(|change| holder(change.len)).min().unwrap_or(0);
    let apart =
        |change: Option<&RouteChange>| change.map_or(128, |change| (change.key ^ key).leading_zeros() as u8);
    ends.min(at_most(apart(changes.first()).min(apart(changes.last()))))
}

/// Sorts changes, so that a prefix comes directly before those inside it, and keeps the last change of each.
fn in_order(mut changes: Vec<RouteChange>) -> Vec<RouteChange> {
    // The sort is stable, so the last change of a prefix stays last.
    changes.sort_by_key(|change| (change.key, change.len));
    changes.dedup_by(|later, kept| {
        let is_same = (later.key, later.len) == (kept.key, kept.len);
        if is_same {
            kept.owner = later.owner;
        }
        is_same
    });
    changes
}
