//! AllowedIPs: longest-prefix match over IPv4 and IPv6, device-wide, one owner a prefix.
//!
//! ```text
//!   RouteTable { v4: Trie, v6: Trie }
//!
//!   Trie    nodes:  [ children: u64 | runs: u64 | first_child: u32 | first_leaf: u32 ] ...     six bits a level
//!           leaves: [ owner | NONE | INDEX + jump ] ...                                        one a run of slots
//!           jumps:  [ key, length, inside: owner | INDEX + node, otherwise: owner | NONE ] ... over levels without a choice
//! ```
//!
//! The structure is a poptrie (Asai, Ohara: "Poptrie", SIGCOMM 2015, section 3): a node splits on six bits; one bitmap says
//! which of its 64 slots lead to child nodes, another where runs of equal leaves begin, and population counts index
//! the packed children and leaves. Shorter prefixes are pushed down to the leaves, so the first leaf met is the answer.
//! Where all below a slot share their next bits, a jump stands in place of the chain of nodes, one comparison: to the owner of
//! a lone prefix, or to the node where several part. So a sparse IPv6 /128 costs 48 bytes instead of twenty nodes.

mod patch;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// An address prefix, host bits cleared.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Prefix {
    addr: IpAddr,
    len: u8,
}

#[allow(clippy::len_without_is_empty)] // a prefix length, not a container's
impl Prefix {
    /// Clears the host bits. `None` where `len` exceeds 32 or 128.
    pub fn new(addr: IpAddr, len: u8) -> Option<Prefix> {
        let addr = match addr {
            IpAddr::V4(v4) if len <= 32 => {
                let mask = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask))
            }
            IpAddr::V6(v6) if len <= 128 => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask(len))),
            _ => return None,
        };
        Some(Prefix { addr, len })
    }

    /// The network address.
    pub fn addr(&self) -> IpAddr {
        self.addr
    }

    /// The prefix length in bits.
    pub fn len(&self) -> u8 {
        self.len
    }

    /// Whether `addr` lies in the prefix; never across families.
    pub fn contains(&self, addr: IpAddr) -> bool {
        self.addr.is_ipv4() == addr.is_ipv4() && (key(self.addr) ^ key(addr)) & mask(self.len) == 0
    }
}

/// One host: the address at full length.
impl From<IpAddr> for Prefix {
    fn from(addr: IpAddr) -> Prefix {
        Prefix { addr, len: if addr.is_ipv4() { 32 } else { 128 } }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.len)
    }
}

/// Text that is not `address` or `address/length`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ParsePrefixError;

impl fmt::Display for ParsePrefixError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not an address, or a length that its family does not have")
    }
}

impl std::error::Error for ParsePrefixError {}

/// `10.0.0.0/8`; a bare address is one host; host bits are cleared, as wg(8) does.
impl FromStr for Prefix {
    type Err = ParsePrefixError;

    fn from_str(text: &str) -> Result<Prefix, ParsePrefixError> {
        let Some((addr, len)) = text.split_once('/') else {
            return text.parse::<IpAddr>().map(Prefix::from).map_err(|_| ParsePrefixError);
        };
        let addr = addr.parse().map_err(|_| ParsePrefixError)?;
        // `u8::from_str` would take a sign.
        if !len.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(ParsePrefixError);
        }
        Prefix::new(addr, len.parse().map_err(|_| ParsePrefixError)?).ok_or(ParsePrefixError)
    }
}

/// The immutable table that workers look up in: built whole or patched, shared by `Arc`.
#[derive(Clone, Default, Debug)]
pub struct RouteTable {
    v4: Trie,
    v6: Trie,
}

/// Owners lie below this: the bit above tells leaves apart.
pub const MAX_OWNERS: u32 = INDEX;

impl RouteTable {
    /// Builds the table; a prefix that stands twice goes to its last owner.
    ///
    /// # Panics
    /// Where an owner is not below [`MAX_OWNERS`].
    pub fn build(routes: impl IntoIterator<Item = (Prefix, u32)>) -> RouteTable {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (prefix, owner) in routes {
            assert!(owner < MAX_OWNERS, "route owner {owner} out of range");
            let route = Route { key: key(prefix.addr), len: prefix.len, owner };
            if prefix.addr.is_ipv4() { v4.push(route) } else { v6.push(route) }
        }
        RouteTable { v4: Trie::build(v4), v6: Trie::build(v6) }
    }

    /// The owner (a peer's slot) of the longest prefix that holds `addr`.
    #[inline]
    pub fn lookup(&self, addr: IpAddr) -> Option<u32> {
        match addr {
            IpAddr::V4(_) => self.v4.lookup(key(addr)),
            IpAddr::V6(_) => self.v6.lookup(key(addr)),
        }
    }

    /// Bytes of memory that the table holds.
    #[cfg(feature = "internals")]
    pub fn memory(&self) -> usize {
        self.v4.memory() + self.v6.memory()
    }
}

/// The address as a bit string, first bit topmost, so that one trie serves both families.
fn key(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The first `len` bits of a key set.
fn mask(len: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0)
}

/// Bits a level.
const STRIDE: u8 = 6;
/// Slots a node.
const SLOTS: usize = 1 << STRIDE;
/// No prefix holds the address.
const NONE: u32 = u32::MAX;
/// The rest is an index, of a jump or a node; without this bit it is an owner.
const INDEX: u32 = 1 << 31;

#[derive(Clone, Copy, Debug)]
struct Route {
    key: u128,
    len: u8,
    owner: u32,
}

/// The slot of `key`, `depth` bits down.
fn slot_of(key: u128, depth: u8) -> usize {
    ((key << depth) >> (128 - STRIDE)) as usize
}

/// Bits that all of these sorted routes share; of a lone one, its length.
fn common_len(first: &Route, last: &Route, routes: &[Route]) -> u8 {
    let shortest = routes.iter().map(|route| route.len).min().unwrap_or(0);
    shortest.min((first.key ^ last.key).leading_zeros() as u8)
}

#[derive(Clone, Copy, Default, Debug)]
struct Node {
    /// Slots that lead to a child.
    children: u64,
    /// Slots, among the others, at which a run of equal leaves begins.
    runs: u64,
    first_child: u32,
    first_leaf: u32,
}

impl Node {
    /// Where the child of a slot that has one is.
    #[inline]
    fn child(&self, slot: usize) -> usize {
        (self.first_child + (self.children & upto(slot)).count_ones() - 1) as usize
    }

    /// Where the leaf of a slot without a child is: the first of these begins a run, so there is one at or before it.
    #[inline]
    fn leaf(&self, slot: usize) -> usize {
        (self.first_leaf + (self.runs & upto(slot)).count_ones() - 1) as usize
    }
}

/// Bits 0 ..= slot.
#[inline]
fn upto(slot: usize) -> u64 {
    u64::MAX >> (63 - slot)
}

#[derive(Clone, Copy, Debug)]
struct Jump {
    /// What the address must begin with,
    key: u128,
    /// in so many bits; below 128 where it leads to a node.
    len: u8,
    /// Then: an owner, or `INDEX` and the node that goes on after those bits.
    inside: u32,
    /// Else: an owner or `NONE`.
    otherwise: u32,
}

/// Routes below one slot that share their bits up to `depth`, and what holds where none of them does.
struct Below<'a> {
    routes: &'a [Route],
    depth: u8,
    inherited: u32,
}

/// Node 0 is the root; an empty trie has none.
#[derive(Clone, Default, Debug)]
struct Trie {
    nodes: Vec<Node>,
    leaves: Vec<u32>,
    jumps: Vec<Jump>,
    /// Entries of all three when it was built whole.
    built: usize,
}

/// What became of the routes below a slot.
enum Attached {
    /// The slot's leaf says it all.
    Leaf,
    /// They need a child of the slot's node, at the depth below it.
    Child,
    /// The slot's leaf is this jump; a node at this depth is still to be made for it.
    Node(usize, u8),
}

impl Trie {
    fn build(mut routes: Vec<Route>) -> Trie {
        // A prefix sorts directly before everything inside it; the sort is stable, so the last duplicate is the winner.
        routes.sort_by_key(|route| (route.key, route.len));
        routes.dedup_by(|later, kept| {
            let same = (later.key, later.len) == (kept.key, kept.len);
            if same {
                kept.owner = later.owner;
            }
            same
        });
        let mut trie = Trie::default();
        if !routes.is_empty() {
            trie.nodes.push(Node::default());
            trie.fill(0, &Below { routes: &routes, depth: 0, inherited: NONE });
            trie.nodes.shrink_to_fit();
            trie.leaves.shrink_to_fit();
            trie.jumps.shrink_to_fit();
        }
        trie.built = trie.entries();
        trie
    }

    fn entries(&self) -> usize {
        self.nodes.len() + self.leaves.len() + self.jumps.len()
    }

    /// Makes `node` out of sorted routes. Recurses at most 22 times (128 bits in steps of six or more).
    fn fill(&mut self, node: usize, below: &Below<'_>) {
        let &Below { routes, depth, inherited } = below;
        let end = depth + STRIDE;
        let mut slots = [inherited; SLOTS];
        // In sorted order an enclosing prefix comes first, so later ones overwrite it where they are longer.
        for route in routes.iter().filter(|route| route.len <= end) {
            let first = slot_of(route.key, depth);
            slots[first..first + (1 << (end - route.len))].fill(route.owner);
        }
        let (mut children, mut direct, mut jumped) = (0, Vec::new(), Vec::new());
        for group in routes.chunk_by(|a, b| slot_of(a.key, depth) == slot_of(b.key, depth)) {
            // Within a slot those that end here come first: they share its address and are shorter.
            let routes = &group[group.partition_point(|route| route.len <= end)..];
            let Some(first) = routes.first() else { continue };
            let slot = slot_of(first.key, depth);
            let below = Below { routes, depth: end, inherited: slots[slot] };
            match self.attach(&below, &mut slots[slot]) {
                Attached::Leaf => {}
                Attached::Child => {
                    children |= 1 << slot;
                    direct.push(below);
                }
                Attached::Node(jump, depth) => jumped.push((jump, Below { depth, ..below })),
            }
        }
        let first_child = self.nodes.len();
        self.nodes[node] = Node {
            children,
            first_child: first_child as u32,
            first_leaf: self.leaves.len() as u32,
            runs: self.push_leaves(&slots, children),
        };
        self.nodes.resize(first_child + direct.len(), Node::default());
        for (i, below) in direct.iter().enumerate() {
            self.fill(first_child + i, below);
        }
        for (jump, below) in &jumped {
            self.fill_jump(*jump, below);
        }
    }

    /// Makes the node that a jump leads to.
    fn fill_jump(&mut self, jump: usize, below: &Below<'_>) {
        let node = self.nodes.len();
        self.jumps[jump].inside = INDEX | node as u32;
        self.nodes.push(Node::default());
        self.fill(node, below);
    }

    /// Decides how a slot leads to the routes below it, and sets its leaf.
    fn attach(&mut self, below: &Below<'_>, leaf: &mut u32) -> Attached {
        let &Below { routes, depth, inherited } = below;
        *leaf = inherited;
        let (Some(first), Some(last)) = (routes.first(), routes.last()) else { return Attached::Leaf };
        let common = common_len(first, last, routes);
        if routes.len() > 1 && common < depth + STRIDE {
            return Attached::Child;
        }
        let jump = self.jumps.len();
        *leaf = INDEX | jump as u32;
        self.jumps.push(Jump { key: first.key, len: common, inside: first.owner, otherwise: inherited });
        if routes.len() > 1 { Attached::Node(jump, common) } else { Attached::Leaf }
    }

    /// Packs the leaves of a node, one a run of equal ones (children in between do not end a run).
    fn push_leaves(&mut self, slots: &[u32; SLOTS], children: u64) -> u64 {
        let (mut runs, mut last) = (0, None);
        for (slot, &leaf) in slots.iter().enumerate() {
            if children & (1 << slot) == 0 && last != Some(leaf) {
                runs |= 1 << slot;
                self.leaves.push(leaf);
                last = Some(leaf);
            }
        }
        runs
    }

    #[inline]
    fn lookup(&self, key: u128) -> Option<u32> {
        let mut node = self.nodes.first()?;
        let mut rest = key;
        loop {
            let slot = (rest >> (128 - STRIDE)) as usize;
            if node.children & (1 << slot) != 0 {
                node = &self.nodes[node.child(slot)];
                rest <<= STRIDE;
                continue;
            }
            let leaf = self.leaves[node.leaf(slot)];
            if leaf & INDEX == 0 || leaf == NONE {
                return (leaf != NONE).then_some(leaf);
            }
            let jump = &self.jumps[(leaf & !INDEX) as usize];
            if (jump.key ^ key) & mask(jump.len) != 0 {
                return (jump.otherwise != NONE).then_some(jump.otherwise);
            }
            if jump.inside & INDEX == 0 {
                return Some(jump.inside);
            }
            node = &self.nodes[(jump.inside & !INDEX) as usize];
            rest = key << jump.len;
        }
    }

    #[cfg(feature = "internals")]
    fn memory(&self) -> usize {
        self.nodes.capacity() * size_of::<Node>()
            + self.leaves.capacity() * size_of::<u32>()
            + self.jumps.capacity() * size_of::<Jump>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    fn table(routes: &[(&str, u32)]) -> RouteTable {
        RouteTable::build(routes.iter().map(|&(text, owner)| (prefix(text), owner)))
    }

    /// The oracle: every prefix is tried; the last of the longest wins.
    fn linear(routes: &[(Prefix, u32)], addr: IpAddr) -> Option<u32> {
        let held = routes.iter().filter(|(prefix, _)| prefix.contains(addr));
        held.max_by_key(|(prefix, _)| prefix.len()).map(|&(_, owner)| owner)
    }

    #[test]
    fn host_bits_are_cleared() {
        assert_eq!(prefix("10.1.2.3/8").to_string(), "10.0.0.0/8");
        assert_eq!(prefix("10.1.2.3/0").to_string(), "0.0.0.0/0");
        assert_eq!(prefix("fd00::1:2:3/17").to_string(), "fd00::/17");
        assert_eq!(prefix("ffff::1/0").to_string(), "::/0");
    }

    #[test]
    fn bare_address_is_one_host() {
        assert_eq!(prefix("10.1.2.3").to_string(), "10.1.2.3/32");
        assert_eq!(prefix("fd00::1").to_string(), "fd00::1/128");
    }

    #[test]
    fn malformed_text_is_refused() {
        for text in [
            "",
            "/",
            "10.0.0.0/",
            "10.0.0.0/33",
            "::/129",
            "10.0.0/8",
            "10.0.0.0/+8",
            "10.0.0.0/8/8",
            " ::/0",
            "::/256",
        ] {
            assert_eq!(text.parse::<Prefix>(), Err(ParsePrefixError), "{text:?}");
        }
        assert_eq!(Prefix::new(Ipv4Addr::LOCALHOST.into(), 33), None);
    }

    #[test]
    fn longest_prefix_wins_and_families_are_apart() {
        let t = table(&[
            ("0.0.0.0/0", 1),
            ("10.0.0.0/8", 2),
            ("10.1.0.0/16", 3),
            ("10.1.1.1", 4),
            ("fd00::/8", 5),
        ]);
        let look = |text: &str| t.lookup(text.parse().unwrap());
        assert_eq!(look("192.0.2.1"), Some(1));
        assert_eq!(look("10.2.0.1"), Some(2));
        assert_eq!(look("10.1.0.1"), Some(3));
        assert_eq!(look("10.1.1.1"), Some(4));
        assert_eq!(look("fd12::1"), Some(5));
        assert_eq!(look("2001:db8::1"), None);
        assert_eq!(look("::ffff:10.1.1.1"), None);
    }

    #[test]
    fn duplicate_goes_to_its_last_owner() {
        let t = table(&[("10.0.0.0/8", 1), ("10.9.9.9/8", 2)]);
        assert_eq!(t.lookup("10.0.0.1".parse().unwrap()), Some(2));
    }

    #[test]
    fn empty_table_holds_nothing() {
        let t = RouteTable::default();
        assert_eq!(t.lookup("10.0.0.1".parse().unwrap()), None);
        assert_eq!(t.memory(), 0);
    }

    #[test]
    fn few_routes_take_few_bytes() {
        assert!(table(&[("10.0.0.1", 0), ("10.0.0.2", 1), ("fd00::1", 0), ("fd00::2", 1)]).memory() < 2048);
    }

    #[test]
    fn sparse_hosts_take_no_chain_of_nodes() {
        // Two neighbours in each of 4,096 /64s that differ in scattered bits.
        let network =
            |i: u128| (0x2001 << 112) | ((i.wrapping_mul(0x9e37_79b9_7f4a_7c15) & 0xffff_ffff_ffff) << 64);
        let hosts = (0..8192).map(|i| Ipv6Addr::from_bits(network(i / 2) | (i % 2)));
        let hosts = hosts.map(|host| (Prefix::from(IpAddr::from(host)), 0));
        let t = RouteTable::build(hosts);
        assert!(t.memory() < 8192 * 160, "{} bytes", t.memory());
    }

    /// Addresses from a narrow range, so that prefixes nest and lookups hit, and from everywhere.
    fn address() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            any::<u32>().prop_map(|bits| Ipv4Addr::from_bits(bits).into()),
            (0u32..64, 0u32..4)
                .prop_map(|(high, low)| Ipv4Addr::from_bits(0x0a00_0000 | high << 8 | low).into()),
            any::<u128>().prop_map(|bits| Ipv6Addr::from_bits(bits).into()),
            (0u128..8, 0u128..8, 0u128..8)
                .prop_map(|(a, b, c)| Ipv6Addr::from_bits((0xfd << 120) | (a << 90) | (b << 61) | c).into()),
        ]
    }

    fn route() -> impl Strategy<Value = (Prefix, u32)> {
        (address(), 0u8..=128, 0u32..100).prop_map(|(addr, len, owner)| {
            let len = if addr.is_ipv4() { len % 33 } else { len };
            (Prefix::new(addr, len).unwrap(), owner)
        })
    }

    proptest! {
        #[test]
        fn lookup_agrees_with_a_linear_scan(
            routes in prop::collection::vec(route(), 0..120),
            addrs in prop::collection::vec(address(), 0..60),
        ) {
            let t = RouteTable::build(routes.iter().copied());
            // Also the first address of, and those just before and after, each prefix.
            let edges = routes.iter().flat_map(|(prefix, _)| match prefix.addr() {
                IpAddr::V4(v4) => [-1, 0, 1].map(|d| IpAddr::from(Ipv4Addr::from_bits(v4.to_bits().wrapping_add_signed(d)))),
                IpAddr::V6(v6) => [-1, 0, 1].map(|d| IpAddr::from(Ipv6Addr::from_bits(v6.to_bits().wrapping_add_signed(d)))),
            });
            for addr in addrs.iter().copied().chain(edges) {
                prop_assert_eq!(t.lookup(addr), linear(&routes, addr), "{}", addr);
            }
        }

        #[test]
        fn text_survives_the_round_trip((prefix, _) in route()) {
            prop_assert_eq!(prefix.to_string().parse(), Ok(prefix));
        }
    }
}
