//! `reload`: the running tunnel is brought into line with its file, all of it or nothing. Peers that stay as they are keep
//! their sessions.
//!
//! ```text
//!   check, resolve > mark > new addresses > new routes, rules, nft > MTU > keys and peers > what the file lacks is removed
//! ```
//!
//! What can fail comes first and only adds; where it does fail, [`super::putback`] removes that again, and what was there was
//! never touched. Peers come after all of it, since a session that was dropped cannot be put back.

use super::apply::{self, Resolved, is_default};
use super::host::{Host, MAIN};
use super::journal::Trace;
use super::{Console, Failure, Result, Session, firewall, load, policy};
use crate::device::uapi::SetRequest;
use crate::gateway::config::{Address, Config, Loaded, Permissions, Table, allowed_ips, difference};
use crate::gateway::control::{Control, DeviceState};
use crate::routing::Prefix;
use std::collections::BTreeSet;

/// Applies the file's changes. Hooks do not run, and DNS stays as it is: those take `down` and `up`.
pub fn reload(given: &str, mut console: Console<'_>) -> Result<()> {
    let loaded = load(given, Permissions::Refuse, &mut console)?;
    let mut session = Session::new(&loaded.place, console)?;
    let reload = Reload::prepare(&loaded, &mut session)?;
    let mut added = Vec::new();
    if let Err(failure) = reload.add(&mut session, &mut added) {
        reload.put_back(&mut session, &added);
        return Err(failure);
    }
    if reload.remove(&mut session)? {
        return Ok(());
    }
    Err(Failure::new(format!(
        "`{}' has what its file says, but not all of the rest could be removed",
        session.name
    )))
}

/// What was before a reload.
pub(super) struct Before {
    pub(super) device: DeviceState,
    /// In the kernel's order.
    pub(super) addresses: Vec<Address>,
    pub(super) mtu: u32,
    pub(super) prefixes: BTreeSet<Prefix>,
    pub(super) traces: Vec<Trace>,
}

/// Everything that a reload needs to know, found out before it begins.
pub(super) struct Reload<'a> {
    pub(super) control: Control,
    pub(super) index: u32,
    pub(super) table: Table,
    pub(super) before: Before,
    said: String,
    /// What the device is asked for, but for its mark.
    request: SetRequest,
    /// The device's new mark, where that changes.
    pub(super) mark: Option<u32>,
    pub(super) mtu: u32,
    addresses: &'a [Address],
    /// In the order in which their routes are added.
    pub(super) prefixes: Vec<Prefix>,
}

impl<'a> Reload<'a> {
    fn prepare(loaded: &'a Loaded, session: &mut Session<'_>) -> Result<Reload<'a>> {
        let (config, name) = (&loaded.config, session.name.clone());
        let control = session.control()?;
        let link = session.host.link(&name).map_err(Failure::of(&name))?.ok_or_else(|| {
            Failure::new(format!("`{name}' is in another network namespace: run this there"))
        })?;
        let device = control.configured().map_err(Failure::of(control.path().display()))?;
        let addresses = session.host.addresses(link.index).map_err(Failure::of(&name))?;
        let resolved = resolve_what_can_be(config, session);
        let mut request =
            difference(&device, config, &mut |_, endpoint| apply::address_of(endpoint, &resolved));
        let (table, prefixes) = (config.interface.table, apply::in_order(allowed_ips(config)));
        let has_default = prefixes.iter().any(|prefix| is_default(table, *prefix));
        // `FwMark = off` with a default route: the mark is the one that `up` chose.
        let mark = request.fwmark.take().filter(|&mark| mark != 0 || !has_default);
        let mtu = apply::mtu_for(&name, config, &resolved, mark.unwrap_or(device.fwmark), &session.host)?;
        if let Some(port) = request.listen_port {
            apply::is_free(port)?;
        }
        let before = Before {
            addresses,
            mtu: link.mtu,
            prefixes: apply::prefixes(&device).into_iter().collect(),
            traces: session.journal.traces(),
            device,
        };
        let said = format!("wg syncconf {name} <(ringtun strip {})", loaded.place.file.display());
        let addresses = &config.interface.addresses;
        let index = link.index;
        Ok(Reload { control, index, table, before, said, request, mark, mtu, addresses, prefixes })
    }

    /// All that may fail. `added`: routes, and their tables.
    fn add(&self, session: &mut Session<'_>, added: &mut Vec<(Prefix, u32)>) -> Result<()> {
        if let Some(mark) = self.mark {
            let request = SetRequest { fwmark: Some(mark), ..SetRequest::default() };
            let command = format!("wg set {} fwmark {mark}", session.name);
            session.step(&command, |_| self.control.set(&request))?;
        }
        for &address in self.addresses.iter().filter(|address| self.is_new(address)) {
            apply::add_address(session, self.index, address)?;
        }
        self.add_routes(session, added)?;
        self.change_mtu(session)?;
        session.step(&self.said, |_| self.control.set(&self.request))
    }

    /// An IPv6 address that is there with another network has to go before it can come.
    fn is_new(&self, address: &Address) -> bool {
        let in_the_way = |one: &Address| one == address || (one.addr == address.addr && one.addr.is_ipv6());
        !self.before.addresses.iter().any(in_the_way)
    }

    /// Whether addresses change.
    pub(super) fn moves(&self) -> bool {
        let has: BTreeSet<&Address> = self.before.addresses.iter().collect();
        has != self.addresses.iter().collect()
    }

    fn add_routes(&self, session: &mut Session<'_>, added: &mut Vec<(Prefix, u32)>) -> Result<()> {
        let going = self.going();
        for &prefix in &self.prefixes {
            let is_new = !self.before.prefixes.contains(&prefix);
            let needs_route = match is_default(self.table, prefix) {
                true => is_new || self.mark.is_some(),
                // An address that goes may take along what covered it.
                false => is_new || (self.moves() && self.table == Table::Auto),
            };
            if needs_route {
                let table = apply::add_route(session, &self.control, self.index, self.table, prefix, &going)?;
                added.extend(table.map(|table| (prefix, table)));
            } else if self.moves() && is_default(self.table, prefix) {
                session.interrupt.check()?;
                policy::guard(session, self.index, prefix.addr().is_ipv6(), self.before.device.fwmark)?;
            }
        }
        Ok(())
    }

    /// Routes of the main table that are not there any more in the end.
    fn going(&self) -> BTreeSet<Prefix> {
        let network = |address: &Address| Prefix::new(address.addr, address.len);
        let staying: BTreeSet<Prefix> =
            self.addresses.iter().filter_map(network).chain(self.prefixes.iter().copied()).collect();
        let networks = self.before.addresses.iter().filter_map(network);
        networks.chain(self.before.prefixes.iter().copied()).filter(|one| !staying.contains(one)).collect()
    }

    fn change_mtu(&self, session: &mut Session<'_>) -> Result<()> {
        let (name, mtu) = (session.name.clone(), self.mtu);
        if self.before.mtu == mtu {
            return Ok(());
        }
        let command = format!("ip link set mtu {mtu} dev {name}");
        session.step(&command, |host| host.set_mtu(self.index, mtu, false))?;
        if self.before.traces.contains(&Trace::Clamp) {
            firewall::clamp(&name, mtu, &mut session.console)?;
        }
        Ok(())
    }

    /// What the file has no more. All of it is tried; whether all of it was done.
    fn remove(&self, session: &mut Session<'_>) -> Result<bool> {
        let mut good = true;
        for &prefix in &self.before.prefixes {
            if !self.prefixes.contains(&prefix) {
                good &= self.remove_route(session, prefix, true);
            } else if is_default(self.table, prefix) && self.mark.is_some() {
                good &= self.remove_route(session, prefix, false);
            }
        }
        if !self.moves() {
            return Ok(good);
        }
        for address in self.before.addresses.iter().filter(|address| !self.addresses.contains(address)) {
            good &= remove_address(session, self.index, *address);
        }
        // With the first address of a network, the kernel removes the others of it.
        good &= add_missing(session, self.index, self.addresses)?;
        let mark = self.control.get().map_err(Failure::of(self.control.path().display()))?.fwmark;
        good &= self.restore_routes(session, &self.prefixes, mark)?;
        for prefix in self.prefixes.iter().filter(|prefix| is_default(self.table, **prefix)) {
            let guarded = policy::guard(session, self.index, prefix.addr().is_ipv6(), mark);
            good &= session.told(guarded);
        }
        Ok(good)
    }

    /// A route of before. `unguard`: without it nothing of its family is left to be guarded.
    fn remove_route(&self, session: &mut Session<'_>, prefix: Prefix, unguard: bool) -> bool {
        let (v6, mark) = (prefix.addr().is_ipv6(), self.before.device.fwmark);
        let table = match table_of(self.table, prefix, mark) {
            Some(table) => table,
            None => return true,
        };
        let mut good = remove_route_from(session, self.index, prefix, table);
        if is_default(self.table, prefix) {
            let rules = policy::remove_rules(session, v6, mark)
                .and_then(|()| session.journal.retract(&Trace::Rules { v6, table: mark }));
            good &= session.told(rules);
            if unguard {
                let name = session.name.clone();
                let removed = firewall::remove_spoof(&name, Some(v6), &mut session.console);
                good &= session.told(removed);
            }
        }
        good
    }

    /// An address that went took routes along, with the last one of IPv4 all of them.
    pub(super) fn restore_routes(
        &self,
        session: &mut Session<'_>,
        prefixes: &[Prefix],
        mark: u32,
    ) -> Result<bool> {
        let mut good = true;
        for &prefix in prefixes {
            let Some(table) = table_of(self.table, prefix, mark) else { continue };
            let is_there = match table {
                MAIN => session.host.covers(self.index, prefix, &BTreeSet::new()),
                table => session.host.has_route(self.index, prefix, table),
            };
            if !is_there.map_err(Failure::of(prefix))? {
                let proto = policy::proto(prefix.addr().is_ipv6());
                let command = format!("ip {proto} route add {prefix} dev {} table {table}", session.name);
                good &= session.regardless(&command, |host| host.add_route(self.index, prefix, table));
            }
        }
        Ok(good)
    }
}

/// A name that has no address now leaves its peer where it is.
fn resolve_what_can_be(config: &Config, session: &mut Session<'_>) -> Resolved {
    let mut resolved = Resolved::new();
    for endpoint in config.peers.iter().filter_map(|peer| peer.endpoint.as_ref()) {
        match endpoint.resolve() {
            Ok(address) => resolved.push((endpoint.clone(), address)),
            Err(error) => session.console.remark(&format!("Endpoint {endpoint}: {error}")),
        }
    }
    resolved
}

/// Where a route to `prefix` stands, if anywhere.
fn table_of(table: Table, prefix: Prefix, mark: u32) -> Option<u32> {
    match table {
        Table::Off => None,
        Table::Number(number) => Some(number),
        Table::Auto if prefix.len() == 0 => Some(mark).filter(|&mark| mark != 0),
        Table::Auto => Some(MAIN),
    }
}

pub(super) fn remove_route_from(session: &mut Session<'_>, index: u32, prefix: Prefix, table: u32) -> bool {
    let proto = policy::proto(prefix.addr().is_ipv6());
    let place = if table == MAIN { String::new() } else { format!(" table {table}") };
    let command = format!("ip {proto} route delete {prefix} dev {}{place}", session.name);
    session.regardless(&command, |host| host.remove_route(index, prefix, table))
}

pub(super) fn remove_address(session: &mut Session<'_>, index: u32, address: Address) -> bool {
    let proto = policy::proto(address.addr.is_ipv6());
    let command = format!("ip {proto} address delete {address} dev {}", session.name);
    session.regardless(&command, |host| host.remove_address(index, address))
}

/// Adds those of `wanted` that are not there; whether all came.
pub(super) fn add_missing(session: &mut Session<'_>, index: u32, wanted: &[Address]) -> Result<bool> {
    let addresses = |host: &Host| host.addresses(index);
    let has = addresses(&session.host).map_err(Failure::of(&session.name))?;
    let mut good = true;
    for &address in wanted.iter().filter(|address| !has.contains(address)) {
        let proto = policy::proto(address.addr.is_ipv6());
        let command = format!("ip {proto} address add {address} dev {}", session.name);
        good &= session.regardless(&command, |host| host.add_address(index, address));
    }
    Ok(good)
}
