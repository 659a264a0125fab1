//! `reload`: the running tunnel is brought into line with its file, all of it or nothing. Peers that do not change
//! keep their sessions.
//!
//! ```text
//!   check, resolve > mark > new addresses > missing routes, rules, nft > MTU > keys and peers > what the file lacks is removed
//! ```
//!
//! What can fail comes first and only adds. Where it does fail, [`super::rollback`] removes that again, and what was
//! there before was never touched. Peers come after all of it, since a session that was dropped cannot be put back.

use super::apply::{self, Resolved};
use super::host::proto;
use super::journal::Trace;
use super::routes::{self, Routes, in_order, is_default, table_of};
use super::snapshot::{Owned, Snapshot, of_peers};
use super::{Console, Failure, Result, Session, firewall, load, policy, rights};
use crate::device::uapi::SetRequest;
use crate::gateway::config::{
    Address, Config, Loaded, PeerConfig, Permissions, Table, allowed_ips, difference,
};
use crate::gateway::control::ControlSocket;
use crate::gateway::mtu::IPV6_MINIMUM;
use crate::routing::Prefix;
use std::collections::BTreeSet;

/// Applies the file's changes to the running tunnel `given`, a name or a file. Hooks do not run and DNS stays as it is:
/// those take `down` and `up`.
///
/// # Errors
///
/// Where the tunnel is not up here, or a change fails; what was added is removed again then.
pub fn reload(given: &str, mut console: Console<'_>) -> Result<()> {
    rights::check("reload", given)?;
    let loaded = load(given, Permissions::Refuse, &mut console)?;
    let mut session = Session::new(&loaded.place, console)?;
    let reload = Reload::prepare(&loaded, &mut session)?;
    if let Err(failure) = reload.add(&mut session) {
        reload.roll_back(&mut session);
        return Err(failure);
    }
    if reload.remove(&mut session)? {
        return session.start_peer_hooks(&loaded);
    }
    Err(Failure::new(format!(
        "`{}' has what its file says, but not all of the rest could be removed",
        session.name
    )))
}

/// Everything that a reload needs to know, collected before it begins.
pub(super) struct Reload<'a> {
    pub(super) control: ControlSocket,
    pub(super) index: u32,
    pub(super) table: Table,
    pub(super) before: Snapshot,
    owned: Owned,
    said: String,
    /// The changes to ask the device for, without its mark.
    request: SetRequest,
    /// The device's new mark, where it changes.
    pub(super) mark: Option<u32>,
    pub(super) mtu: u32,
    /// The MTU in bytes for which file and paths ask, whatever somebody set.
    asked_mtu: u32,
    /// The file's addresses that are possible with the MTU.
    addresses: Vec<Address>,
    peers: &'a [PeerConfig],
    /// The AllowedIPs, in the order in which their routes are added.
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
        let resolved = resolve_what_can_be(config, session);
        let mut request =
            difference(&device, config, &mut |_, endpoint| apply::address_of(endpoint, &resolved));
        let (table, prefixes) = (config.interface.table, in_order(allowed_ips(config)));
        let has_default = prefixes.iter().any(|prefix| is_default(table, *prefix));
        // With `FwMark = off` and a default route, the mark is the one that `up` chose.
        let mark = request.fwmark.take().filter(|&mark| mark != 0 || !has_default);
        let asked_mtu =
            apply::mtu_for(&name, config, &resolved, mark.unwrap_or(device.fwmark), &session.host)?;
        if let Some(port) = request.listen_port {
            apply::is_free(port)?;
        }
        let before = Snapshot::read(session, link, device)?;
        let mut owned = Owned::of(&before, table);
        owned.keep_foreign(config, &mut request);
        let mtu = owned.mtu(asked_mtu, link.mtu);
        apply::fits_ipv6(config, mtu)?;
        let mut addresses = config.interface.addresses.clone();
        addresses.retain(|address| mtu >= IPV6_MINIMUM || !address.addr.is_ipv6());
        Ok(Reload {
            control,
            index: link.index,
            table,
            mtu,
            asked_mtu,
            before,
            owned,
            said: format!("wg syncconf {name} <(ringtun strip {})", loaded.place.file.display()),
            request,
            mark,
            addresses,
            peers: &config.peers,
            prefixes,
        })
    }

    /// Does all that may fail.
    fn add(&self, session: &mut Session<'_>) -> Result<()> {
        if let Some(mark) = self.mark {
            let request = SetRequest { fwmark: Some(mark), ..SetRequest::default() };
            let command = format!("wg set {} fwmark {mark}", session.name);
            session.step(&command, |_| self.control.set(&request))?;
        }
        // An interface that was too small has IPv6 once it has grown, and loses it when it shrinks.
        let grows = self.mtu > self.before.mtu;
        if grows {
            self.change_mtu(session)?;
        }
        for &address in self.addresses.iter().filter(|address| self.is_new(address)) {
            apply::add_address(session, self.index, address)?;
        }
        apply::add_routes_replacing(
            session,
            &self.control,
            self.index,
            self.table,
            &self.prefixes,
            &self.prefixes_to_remove(),
        )?;
        if !grows {
            self.change_mtu(session)?;
        }
        // What was there already and stands in the file now is the tunnel's own from here on.
        let (routes, mark) = (&self.before.routes, self.before.device.fwmark);
        let routes = self.prefixes.iter().filter_map(|&prefix| routes.taken_over(prefix, self.table, mark));
        session.journal.note_all(routes.collect())?;
        session.journal.note_all(self.addresses.iter().copied().map(Trace::Address).collect())?;
        session.journal.note_all(of_peers(self.peers))?;
        session.journal.note_mtu(self.asked_mtu)?;
        session.step(&self.said, |_| self.control.set(&self.request))
    }

    /// Whether the address can be added right away. An IPv6 address that is there with another network must go first.
    fn is_new(&self, address: &Address) -> bool {
        let in_the_way = |one: &Address| one == address || (one.addr == address.addr && one.addr.is_ipv6());
        !self.before.addresses.iter().any(in_the_way)
    }

    /// The addresses to remove: those that the file lacks, or has with another network.
    fn addresses_to_remove(&self) -> impl Iterator<Item = &Address> {
        let replaced = |one: &Address| {
            let mut new = self.addresses.iter();
            one.addr.is_ipv6() && new.any(|address| address.addr == one.addr)
        };
        // Below IPv6's least MTU the kernel removes its addresses by itself.
        let taken = |one: &Address| one.addr.is_ipv6() && self.mtu < IPV6_MINIMUM;
        let gone = self.before.addresses.iter().filter(|one| !self.addresses.contains(one));
        let gone = gone.filter(move |one| !taken(one));
        gone.filter(move |one| self.owned.addresses.contains(one) || replaced(one))
    }

    /// Whether the interface's addresses change.
    pub(super) fn changes_addresses(&self) -> bool {
        let mut wanted = self.addresses.iter();
        wanted.any(|address| !self.before.addresses.contains(address))
            || self.addresses_to_remove().next().is_some()
    }

    /// The prefixes whose routes in the main table will be gone once the reload is done.
    fn prefixes_to_remove(&self) -> BTreeSet<Prefix> {
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

    /// Removes what the file lacks. All of it is tried. Returns whether all of it was done.
    fn remove(&self, session: &mut Session<'_>) -> Result<bool> {
        let mark = self.mark_now()?;
        let prefixes: BTreeSet<Prefix> = self.prefixes.iter().copied().collect();
        let wanted = |(prefix, table): &(Prefix, u32)| {
            prefixes.contains(prefix) && table_of(self.table, *prefix, mark) == Some(*table)
        };
        let mut gone = Vec::new();
        let mut good = true;
        for &(prefix, table) in self.owned.routes.iter().filter(|route| !wanted(route)) {
            good &= take_route(session, self.index, self.table, &self.prefixes, (prefix, table));
            gone.push(Trace::Route { prefix, table });
        }
        for &address in self.addresses_to_remove() {
            good &= remove_address(session, self.index, address);
            gone.push(Trace::Address(address));
        }
        session.journal.retract(&gone)?;
        if !self.changes_addresses() {
            return Ok(good);
        }
        // When the first address of a network goes, the kernel removes the others of that network, too.
        let fits = |one: &Address| self.mtu >= IPV6_MINIMUM || !one.addr.is_ipv6();
        let stays = |one: &&Address| fits(one) && !gone.contains(&Trace::Address(**one));
        let staying: Vec<Address> = self.before.addresses.iter().filter(stays).copied().collect();
        good &= add_missing(session, self.index, &self.addresses)?;
        good &= add_missing(session, self.index, &staying)?;
        good &= self.restore_routes(session, &self.prefixes, mark)?;
        for prefix in self.prefixes.iter().filter(|prefix| is_default(self.table, **prefix)) {
            let guarded = policy::guard(session, self.index, prefix.addr().is_ipv6(), mark);
            good &= session.report(guarded);
        }
        Ok(good)
    }

    pub(super) fn mark_now(&self) -> Result<u32> {
        let device = self.control.get_interface().map_err(Failure::of(self.control.path().display()))?;
        Ok(device.fwmark)
    }

    /// Adds routes that the kernel removed together with an address; the last IPv4 address takes all IPv4 routes with it.
    /// Returns whether all of them were added.
    pub(super) fn restore_routes(
        &self,
        session: &mut Session<'_>,
        prefixes: &[Prefix],
        mark: u32,
    ) -> Result<bool> {
        let routes = Routes::read(&session.host, self.index, &session.journal)?;
        let mut good = true;
        for &prefix in prefixes {
            let Some(table) = routes.lacking(prefix, self.table, mark, &BTreeSet::new()) else { continue };
            session.journal.note(Trace::Route { prefix, table })?;
            let command = routes::command("add", &session.name, prefix, table);
            good &= session.regardless(&command, |host| host.add_route(self.index, prefix, table));
        }
        Ok(good)
    }
}

/// Resolves the endpoints. A peer whose name has no address now stays where it is, and that is reported.
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

/// Removes a route, which the second number names the table of. With a default route its rules go, too. `staying` has the prefixes
/// whose routes stay. Returns whether all of it was done.
pub(super) fn take_route(
    session: &mut Session<'_>,
    index: u32,
    kind: Table,
    staying: &[Prefix],
    (prefix, table): (Prefix, u32),
) -> bool {
    let v6 = prefix.addr().is_ipv6();
    let mut good = remove_route_from(session, index, prefix, table);
    let rules = Trace::Rules { v6, table };
    if prefix.len() != 0 || !session.journal.has(&rules) {
        return good;
    }
    let removed = policy::remove_rules(session, v6, table).and_then(|()| session.journal.retract(&[rules]));
    good &= session.report(removed);
    if !staying.iter().any(|other| is_default(kind, *other) && other.addr().is_ipv6() == v6) {
        let name = session.name.clone();
        let removed = firewall::remove_spoof(&name, Some(v6), &mut session.console);
        good &= session.report(removed);
    }
    good
}

pub(super) fn remove_route_from(session: &mut Session<'_>, index: u32, prefix: Prefix, table: u32) -> bool {
    let command = routes::command("delete", &session.name, prefix, table);
    session.regardless(&command, |host| host.remove_route(index, prefix, table))
}

pub(super) fn remove_address(session: &mut Session<'_>, index: u32, address: Address) -> bool {
    let proto = proto(address.addr.is_ipv6());
    let command = format!("ip {proto} address delete {address} dev {}", session.name);
    session.regardless(&command, |host| host.remove_address(index, address))
}

/// Adds the addresses of `wanted` that are not there. Returns whether all were added.
pub(super) fn add_missing(session: &mut Session<'_>, index: u32, wanted: &[Address]) -> Result<bool> {
    let has = session.host.plain_addresses(index).map_err(Failure::of(&session.name))?;
    let mut good = true;
    for &address in wanted.iter().filter(|address| !has.contains(address)) {
        let proto = proto(address.addr.is_ipv6());
        let command = format!("ip {proto} address add {address} dev {}", session.name);
        good &= session.regardless(&command, |host| host.add_address(index, address));
    }
    Ok(good)
}
