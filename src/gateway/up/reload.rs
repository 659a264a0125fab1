//! `reload`: the running tunnel is brought into line with its file. Peers that stay as they are keep their sessions.

use super::apply::{self, Resolved};
use super::host::MAIN;
use super::journal::Trace;
use super::{Console, Failure, Result, Session, firewall, load, policy};
use crate::gateway::config::{Address, Config, Loaded, Permissions, Table, difference};
use crate::gateway::control::{Control, DeviceState};
use crate::routing::Prefix;
use std::collections::BTreeSet;

/// Applies the file's changes. Hooks do not run, and DNS stays as it is: those take `down` and `up`.
pub fn reload(given: &str, mut console: Console<'_>) -> Result<()> {
    let loaded = load(given, Permissions::Refuse, &mut console)?;
    let mut session = Session::new(&loaded.place.interface, console)?;
    let control = session.control()?;
    let name = session.name.clone();
    let index = session
        .index()?
        .ok_or_else(|| Failure::new(format!("`{name}' is in another network namespace: run this there")))?;
    let before = control.get().map_err(Failure::of(control.path().display()))?;
    let resolved = resolve_what_can_be(&loaded.config, &mut session);
    let request =
        difference(&before, &loaded.config, &mut |_, endpoint| apply::address_of(endpoint, &resolved));
    session.step(&format!("wg syncconf {name} <(ringtun strip {})", loaded.place.file.display()), |_| {
        control.set(&request)
    })?;
    let after = control.get().map_err(Failure::of(control.path().display()))?;
    let moved = change_addresses(&mut session, index, &loaded.config.interface.addresses)?;
    change_mtu(&mut session, index, &loaded, &resolved, after.fwmark)?;
    change_routes(&mut session, &control, index, loaded.config.interface.table, &before, &after, moved)
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

/// True: something changed.
fn change_addresses(session: &mut Session<'_>, index: u32, wanted: &[Address]) -> Result<bool> {
    let name = session.name.clone();
    let has: BTreeSet<Address> =
        session.host.addresses(index).map_err(Failure::of(&name))?.into_iter().collect();
    let wanted: BTreeSet<Address> = wanted.iter().copied().collect();
    // Added first: with the last address of a family all its routes go, somebody else's, too.
    for &address in wanted.difference(&has) {
        apply::add_address(session, index, address)?;
    }
    for &address in has.difference(&wanted) {
        let proto = policy::proto(address.addr.is_ipv6());
        let command = format!("ip {proto} address delete {address} dev {name}");
        session.step(&command, |host| host.remove_address(index, address))?;
    }
    // With the first address of a network, the kernel removes the others of it.
    let left: BTreeSet<Address> =
        session.host.addresses(index).map_err(Failure::of(&name))?.into_iter().collect();
    for &address in wanted.difference(&left) {
        apply::add_address(session, index, address)?;
    }
    Ok(has != wanted)
}

fn change_mtu(
    session: &mut Session<'_>,
    index: u32,
    loaded: &Loaded,
    resolved: &Resolved,
    mark: u32,
) -> Result<()> {
    let name = session.name.clone();
    let mtu = apply::mtu_for(&name, &loaded.config, resolved, mark, &session.host)?;
    let has = session.host.link(&name).map_err(Failure::of(&name))?.map(|link| link.mtu);
    if has == Some(mtu) {
        return Ok(());
    }
    session.step(&format!("ip link set mtu {mtu} dev {name}"), |host| host.set_mtu(index, mtu, false))?;
    if session.journal.traces().contains(&Trace::Clamp) {
        firewall::remove_clamp(&name, &mut session.console)?;
        firewall::clamp(&name, mtu, &mut session.console)?;
    }
    Ok(())
}

/// Routes of allowed IPs that went go, those of new ones come; a route that somebody else added stays.
fn change_routes(
    session: &mut Session<'_>,
    control: &Control,
    index: u32,
    table: Table,
    before: &DeviceState,
    after: &DeviceState,
    moved: bool,
) -> Result<()> {
    let (old, new): (BTreeSet<Prefix>, BTreeSet<Prefix>) =
        (apply::prefixes(before).into_iter().collect(), apply::prefixes(after).into_iter().collect());
    let other_mark = before.fwmark != after.fwmark;
    let again = |prefix: &Prefix| table == Table::Auto && prefix.len() == 0 && (other_mark || moved);
    for &prefix in old.iter().filter(|prefix| !new.contains(prefix) || again(prefix)) {
        remove_route(session, index, table, prefix, before.fwmark)?;
    }
    // An address that went took routes along; one that came may stand in for others.
    for prefix in apply::prefixes(after) {
        let lost = moved && table == Table::Auto;
        if lost || !old.contains(&prefix) || again(&prefix) {
            apply::add_route(session, control, index, table, prefix)?;
        }
    }
    Ok(())
}

fn remove_route(
    session: &mut Session<'_>,
    index: u32,
    table: Table,
    prefix: Prefix,
    mark: u32,
) -> Result<()> {
    let v6 = prefix.addr().is_ipv6();
    let command = format!("ip {} route delete {prefix} dev {}", policy::proto(v6), session.name);
    match table {
        Table::Off => Ok(()),
        Table::Number(table) => {
            session.step(&format!("{command} table {table}"), |host| host.remove_route(index, prefix, table))
        }
        Table::Auto if prefix.len() != 0 => {
            session.step(&command, |host| host.remove_route(index, prefix, MAIN))
        }
        Table::Auto => {
            let name = session.name.clone();
            session
                .step(&format!("{command} table {mark}"), |host| host.remove_route(index, prefix, mark))?;
            policy::remove_rules(session, v6, mark)?;
            firewall::remove_spoof(&name, Some(v6), &mut session.console)?;
            session.journal.retract(&Trace::Rules { v6, table: mark })
        }
    }
}
