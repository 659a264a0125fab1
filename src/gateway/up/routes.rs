//! The routes of one tunnel: which of them are there, and how the missing ones for its AllowedIPs are added.

use super::host::{Host, MAIN, proto};
use super::journal::{Journal, Trace};
use super::{Failure, Result, Session};
use crate::gateway::config::Table;
use crate::gateway::control::DeviceState;
use crate::routing::Prefix;
use std::collections::BTreeSet;

/// All AllowedIPs of the device, the longest prefix first and then by text, as wg-quick's `sort -nr` has them.
pub(super) fn prefixes(device: &DeviceState) -> Vec<Prefix> {
    in_order(device.peers.iter().flat_map(|peer| peer.allowed_ips.iter().copied()).collect())
}

/// The prefixes in the order that [`prefixes`] has.
pub(super) fn in_order(all: BTreeSet<Prefix>) -> Vec<Prefix> {
    let mut all: Vec<Prefix> = all.into_iter().collect();
    all.sort_by_cached_key(|prefix| std::cmp::Reverse((prefix.len(), prefix.to_string())));
    all
}

/// Whether `prefix` is a default route that goes by policy rules.
pub(super) fn is_default(table: Table, prefix: Prefix) -> bool {
    table == Table::Auto && prefix.len() == 0
}

/// The table in which a route to `prefix` stands, if any does.
pub(super) fn table_of(table: Table, prefix: Prefix, mark: u32) -> Option<u32> {
    match table {
        Table::Off => None,
        Table::Number(number) => Some(number),
        Table::Auto if prefix.len() == 0 => Some(mark).filter(|&mark| mark != 0),
        Table::Auto => Some(MAIN),
    }
}

/// The text of `ip route VERB PREFIX dev NAME`, with the table where that is not the main one.
pub(super) fn command(verb: &str, name: &str, prefix: Prefix, table: u32) -> String {
    let proto = proto(prefix.addr().is_ipv6());
    let place = if table == MAIN { String::new() } else { format!(" table {table}") };
    format!("ip {proto} route {verb} {prefix} dev {name}{place}")
}

/// The routes by an interface at one moment, and which of them the notes say are the AllowedIPs' own.
pub(super) struct Routes {
    there: BTreeSet<(u32, Prefix)>,
    /// The routes among `there` that neither the kernel nor a routing daemon added.
    added: BTreeSet<(u32, Prefix)>,
    noted: BTreeSet<(u32, Prefix)>,
}

impl Routes {
    /// The routes as they are now.
    pub(super) fn read(host: &Host, index: u32, journal: &Journal) -> Result<Routes> {
        let all = host.routes(index).map_err(Failure::of("ip route show"))?;
        let added = all.iter().filter(|(_, _, added)| *added);
        let noted = journal.traces().into_iter().filter_map(|trace| match trace {
            Trace::Route { prefix, table } => Some((table, prefix)),
            _ => None,
        });
        Ok(Routes {
            there: all.iter().map(|&(table, prefix, _)| (table, prefix)).collect(),
            added: added.map(|&(table, prefix, _)| (table, prefix)).collect(),
            noted: noted.collect(),
        })
    }

    /// The note of a route to an AllowedIPs prefix that is there already and for which the file asks.
    pub(super) fn taken_over(&self, prefix: Prefix, table: Table, mark: u32) -> Option<Trace> {
        let table = table_of(table, prefix, mark)?;
        self.added.contains(&(table, prefix)).then_some(Trace::Route { prefix, table })
    }

    /// Whether exactly this route is there.
    pub(super) fn has(&self, prefix: Prefix, table: u32) -> bool {
        self.there.contains(&(table, prefix))
    }

    /// Whether the main table routes all of `prefix` here already, as by the interface's own network. Routes of other
    /// AllowedIPs do not count, nor do routes to the prefixes in `going`.
    fn covers(&self, prefix: Prefix, going: &BTreeSet<Prefix>) -> bool {
        let shorter = (0..=prefix.len()).filter_map(|len| Prefix::new(prefix.addr(), len));
        let mut there = shorter.filter(|held| self.has(*held, MAIN));
        there.any(|held| held == prefix || !(going.contains(&held) || self.noted.contains(&(MAIN, held))))
    }

    /// The table that lacks a route to an AllowedIPs prefix, if one does.
    pub(super) fn lacking(
        &self,
        prefix: Prefix,
        table: Table,
        mark: u32,
        going: &BTreeSet<Prefix>,
    ) -> Option<u32> {
        let at = table_of(table, prefix, mark)?;
        let is_there =
            self.has(prefix, at) || (table == Table::Auto && at == MAIN && self.covers(prefix, going));
        (!is_there).then_some(at)
    }

    /// Does as [`Self::add`] for each of these. All are noted before the first is added: a note without its route does no
    /// harm.
    pub(super) fn add_all(
        &mut self,
        session: &mut Session<'_>,
        index: u32,
        planned: &[(Prefix, u32)],
    ) -> Result<()> {
        session.interrupt.check()?;
        session
            .journal
            .note_all(planned.iter().map(|&(prefix, table)| Trace::Route { prefix, table }).collect())?;
        planned.iter().try_for_each(|&(prefix, table)| self.add(session, index, prefix, table))
    }

    /// Does as `ip route add`, noted beforehand.
    pub(super) fn add(
        &mut self,
        session: &mut Session<'_>,
        index: u32,
        prefix: Prefix,
        table: u32,
    ) -> Result<()> {
        session.journal.note(Trace::Route { prefix, table })?;
        let command = command("add", &session.name, prefix, table);
        let explain = |session: &Session<'_>, error: &std::io::Error| {
            match error.kind() {
            std::io::ErrorKind::AlreadyExists => session.host.holder(prefix, table).map(|holder| {
                format!("{holder} has this route already: remove it there, or set `Table = off` and route by a hook")
            }),
            _ => session.without_ipv6(prefix.addr().is_ipv6()),
        }
        };
        session.explained(&command, |host| host.add_route(index, prefix, table), explain)?;
        self.there.insert((table, prefix));
        self.noted.insert((table, prefix));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::x25519::PublicKey;
    use crate::gateway::control::PeerState;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn the_longest_prefix_goes_first_and_ipv6_before_ipv4() {
        let mut peer = PeerState::new(PublicKey([7; 32]));
        peer.allowed_ips =
            ["10.0.0.0/8", "0.0.0.0/0", "::/0", "10.1.0.0/16", "fd00::1/128"].map(prefix).to_vec();
        let device = DeviceState { peers: vec![peer], ..DeviceState::default() };
        let text: Vec<String> = prefixes(&device).iter().map(ToString::to_string).collect();
        assert_eq!(text, ["fd00::1/128", "10.1.0.0/16", "10.0.0.0/8", "::/0", "0.0.0.0/0"]);
    }

    #[test]
    fn a_network_covers_its_hosts_and_another_allowed_ip_does_not() {
        let routes = Routes {
            there: [
                (MAIN, prefix("192.168.96.0/24")),
                (MAIN, prefix("10.0.0.0/8")),
                (7, prefix("10.9.0.0/16")),
            ]
            .into(),
            added: BTreeSet::new(),
            noted: [(MAIN, prefix("10.0.0.0/8"))].into(),
        };
        let going = BTreeSet::from([prefix("192.168.96.0/24")]);
        let nothing = BTreeSet::new();
        let lacking = |to: &str, table, going| routes.lacking(prefix(to), table, 51820, going);
        assert_eq!(lacking("192.168.96.2/32", Table::Auto, &nothing), None);
        assert_eq!(lacking("192.168.96.2/32", Table::Auto, &going), Some(MAIN));
        assert_eq!(lacking("192.168.0.0/16", Table::Auto, &nothing), Some(MAIN));
        assert_eq!(lacking("10.0.0.0/8", Table::Auto, &nothing), None);
        assert_eq!(lacking("10.1.0.0/16", Table::Auto, &nothing), Some(MAIN));
        assert_eq!(lacking("10.9.0.0/16", Table::Number(7), &nothing), None);
        assert_eq!(lacking("10.9.1.0/24", Table::Number(7), &nothing), Some(7));
        assert_eq!(lacking("0.0.0.0/0", Table::Auto, &nothing), Some(51820));
        assert_eq!(lacking("10.1.0.0/16", Table::Off, &nothing), None);
    }
}
