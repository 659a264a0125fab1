//! The steps of `up`.

use super::journal::Trace;
use super::{Failure, Result, Session, dns, firewall, policy};
use crate::gateway::config::{Address, Config, Endpoint, Loaded, Table, allowed_ips};
use crate::gateway::control::{Control, DeviceState};
use crate::gateway::itself;
use crate::gateway::mtu::{self, Family, Path};
use crate::gateway::up::host::{Host, MAIN};
use crate::routing::Prefix;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Times a name is asked for again while the resolver cannot answer just now, as at boot; wg(8)'s number and variable.
const RETRIES: u32 = 15;
const RETRIES_VARIABLE: &str = "WG_ENDPOINT_RESOLUTION_RETRIES";
/// Pause after the first; each next one is a fifth longer, at most [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(90);
/// The least an IPv4 interface carries (RFC 791), and the most the kernel lets a TUN device have.
const MTUS: std::ops::RangeInclusive<u32> = 68..=65_535;

/// Endpoints and what they are now.
pub(in crate::gateway) type Resolved = Vec<(Endpoint, SocketAddr)>;

pub(super) fn bring_up(session: &mut Session<'_>, loaded: &Loaded, clamp: bool) -> Result<()> {
    let (config, name) = (&loaded.config, session.name.clone());
    let interface = &config.interface;
    is_possible(config, clamp)?;
    if let Some(port) = interface.listen_port {
        is_free(port)?;
    }
    let control = start(session, loaded)?;
    session.hooks(&interface.pre_up)?;
    let resolved = resolve_all(config, session)?;
    let mtu = mtu_for(&name, config, &resolved, interface.fwmark.unwrap_or(0), &session.host)?;
    let index = session.index()?.ok_or_else(|| Failure::new(format!("`{name}' is gone again")))?;
    let request = config.request(&mut |_, endpoint| address_of(endpoint, &resolved));
    session.step(&format!("wg addconf {name} <(ringtun strip {})", loaded.place.file.display()), |_| {
        control.set(&request)
    })?;
    for &address in &interface.addresses {
        add_address(session, index, address)?;
    }
    session.journal.note(&Trace::Mtu(mtu))?;
    session.step(&format!("ip link set mtu {mtu} up dev {name}"), |host| host.set_mtu(index, mtu, true))?;
    if !interface.dns.is_empty() {
        let manager = dns::manager(&name)?;
        session.interrupt.check()?;
        session.journal.note(&Trace::Dns(manager.clone()))?;
        dns::set(&manager, &name, interface, &mut session.console)?;
    }
    let device = control.get().map_err(Failure::of(&name))?;
    for prefix in prefixes(&device) {
        add_route(session, &control, index, interface.table, prefix, &BTreeSet::new())?;
    }
    if clamp {
        session.interrupt.check()?;
        session.journal.note(&Trace::Clamp)?;
        firewall::clamp(&name, mtu, &mut session.console)?;
    }
    session.hooks(&interface.post_up)?;
    session.interrupt.check()?;
    session.journal.note(&Trace::Finished)
}

/// Whether the host has what the file's wishes need. Asked before hooks run, which nothing undoes.
fn is_possible(config: &Config, clamp: bool) -> Result<()> {
    let interface = &config.interface;
    let mut defaults = allowed_ips(config).into_iter().filter(|prefix| is_default(interface.table, *prefix));
    defaults.try_for_each(policy::is_possible)?;
    if clamp {
        firewall::is_here_to_clamp()?;
    }
    if interface.dns.is_empty() { Ok(()) } else { dns::manager("").map(drop) }
}

/// Every endpoint's address.
fn resolve_all(config: &Config, session: &mut Session<'_>) -> Result<Resolved> {
    let mut resolved = Resolved::new();
    for endpoint in config.peers.iter().filter_map(|peer| peer.endpoint.as_ref()) {
        if resolved.iter().all(|(known, _)| known != endpoint) {
            resolved.push((endpoint.clone(), resolve(endpoint, session)?));
        }
    }
    Ok(resolved)
}

fn resolve(endpoint: &Endpoint, session: &mut Session<'_>) -> Result<SocketAddr> {
    let mut pause = FIRST_PAUSE;
    let mut left = retries(std::env::var(RETRIES_VARIABLE).ok().as_deref());
    loop {
        session.interrupt.check()?;
        match endpoint.resolve() {
            Ok(address) => return Ok(address),
            // EAI_AGAIN, which the standard library tells in words alone.
            Err(error) if left > 0 && error.to_string().contains("Temporary failure") => {
                session.console.remark(&format!("Endpoint {endpoint}: {error}; trying again in {pause:.0?}"));
                left -= 1;
                pause_for(pause, session)?;
                pause = pause.mul_f32(1.2).min(LONGEST_PAUSE);
            }
            Err(error) => return Err(Failure::new(format!("Endpoint {endpoint}: {error}"))),
        }
    }
}

fn retries(told: Option<&str>) -> u32 {
    match told {
        Some("infinity") => u32::MAX,
        told => told.and_then(|text| text.parse().ok()).unwrap_or(RETRIES),
    }
}

fn pause_for(pause: Duration, session: &Session<'_>) -> Result<()> {
    let until = std::time::Instant::now() + pause;
    while std::time::Instant::now() < until {
        session.interrupt.check()?;
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// What an endpoint resolved to.
pub(super) fn address_of(endpoint: &Endpoint, resolved: &Resolved) -> Option<SocketAddr> {
    resolved.iter().find(|(known, _)| known == endpoint).map(|(_, address)| *address)
}

/// The interface's MTU by the routes as they are now. `mark` is what the tunnel's own packets carry.
pub(in crate::gateway) fn mtu_for(
    name: &str,
    config: &Config,
    resolved: &Resolved,
    mark: u32,
    host: &Host,
) -> Result<u32> {
    let path = |(_, to): &(Endpoint, SocketAddr)| {
        // An endpoint that no route leads to says nothing.
        let mtu = host.path_mtu(name, mark, to.ip())?;
        Some(Path { outer: Family::of(to.ip()), mtu })
    };
    let paths: Vec<Path> = resolved.iter().filter_map(path).collect();
    let fallback = policy::FAR.into_iter().find_map(|far| host.path_mtu(name, mark, far));
    let mtu = mtu::choose(config.interface.mtu, &paths, fallback).min(*MTUS.end());
    if !MTUS.contains(&mtu) {
        return Err(Failure::new(format!(
            "the path to an endpoint leaves {mtu} bytes for the inside: expected at least {}, or set MTU",
            MTUS.start()
        )));
    }
    Ok(mtu)
}

/// The device would only log that it cannot have the port; so ask first.
pub(super) fn is_free(port: u16) -> Result<()> {
    for any in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
        if let Err(error) = UdpSocket::bind((any, port))
            && error.kind() == std::io::ErrorKind::AddrInUse
        {
            return Err(Failure::new(format!("ListenPort {port}: another program uses this UDP port")));
        }
    }
    Ok(())
}

/// Starts the background process, which makes the interface.
fn start(session: &mut Session<'_>, loaded: &Loaded) -> Result<Control> {
    session.interrupt.check()?;
    let name = session.name.clone();
    let said = format!("ringtun {name}");
    session.console.command(&said);
    session.journal.note(&Trace::Interface)?;
    let program = itself::program().map_err(Failure::of(&said))?;
    let mut command = Command::new(program);
    command.arg("--config").arg(&loaded.place.file).args(["--", &name]);
    let status = command.stdin(Stdio::null()).status().map_err(Failure::of(&said))?;
    if !status.success() {
        if status.code().is_some() {
            // It said why and made nothing; an interface that is there now is somebody else's.
            session.journal.retract(&Trace::Interface)?;
        }
        return Err(Failure::new(format!("{said}: {status}")));
    }
    session.control()
}

/// `ip address add`.
pub(super) fn add_address(session: &mut Session<'_>, index: u32, address: Address) -> Result<()> {
    let proto = policy::proto(address.addr.is_ipv6());
    let command = format!("ip {proto} address add {address} dev {}", session.name);
    session.step(&command, |host| host.add_address(index, address))
}

/// Whether it is a default route that goes by policy rules.
pub(super) fn is_default(table: Table, prefix: Prefix) -> bool {
    table == Table::Auto && prefix.len() == 0
}

/// All allowed IPs of the device, the longest first and then by text, as wg-quick's `sort -nr` has them.
pub(super) fn prefixes(device: &DeviceState) -> Vec<Prefix> {
    in_order(device.peers.iter().flat_map(|peer| peer.allowed_ips.iter().copied()).collect())
}

/// The order of [`prefixes`].
pub(super) fn in_order(all: BTreeSet<Prefix>) -> Vec<Prefix> {
    let mut all: Vec<Prefix> = all.into_iter().collect();
    all.sort_by_cached_key(|prefix| std::cmp::Reverse((prefix.len(), prefix.to_string())));
    all
}

/// A route to an allowed IP, as `Table` has it, unless there is one that covers it and is not `going`; and where it was added.
pub(super) fn add_route(
    session: &mut Session<'_>,
    control: &Control,
    index: u32,
    table: Table,
    prefix: Prefix,
    going: &BTreeSet<Prefix>,
) -> Result<Option<u32>> {
    let proto = policy::proto(prefix.addr().is_ipv6());
    let command = format!("ip {proto} route add {prefix} dev {}", session.name);
    let table = match table {
        Table::Off => return Ok(None),
        Table::Number(table) => {
            session.step(&format!("{command} table {table}"), |host| host.add_route(index, prefix, table))?;
            table
        }
        Table::Auto if prefix.len() == 0 => policy::add_default(session, control, index, prefix)?,
        Table::Auto => {
            if session.host.covers(index, prefix, going).map_err(Failure::of(&command))? {
                return Ok(None);
            }
            session.step(&command, |host| host.add_route(index, prefix, MAIN))?;
            MAIN
        }
    };
    Ok(Some(table))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::x25519::PublicKey;
    use crate::gateway::control::PeerState;

    #[test]
    fn the_longest_prefix_goes_first_and_ipv6_before_ipv4() {
        let mut peer = PeerState::new(PublicKey([7; 32]));
        peer.allowed_ips = ["10.0.0.0/8", "0.0.0.0/0", "::/0", "10.1.0.0/16", "fd00::1/128"]
            .map(|text| text.parse().unwrap())
            .to_vec();
        let device = DeviceState { peers: vec![peer], ..DeviceState::default() };
        let text: Vec<String> = prefixes(&device).iter().map(ToString::to_string).collect();
        assert_eq!(text, ["fd00::1/128", "10.1.0.0/16", "10.0.0.0/8", "::/0", "0.0.0.0/0"]);
    }

    #[test]
    fn retries_are_wgs() {
        assert_eq!((retries(None), retries(Some("3")), retries(Some("x"))), (15, 3, 15));
        assert_eq!(retries(Some("infinity")), u32::MAX);
    }

    #[test]
    fn a_port_that_is_taken_is_named() {
        let taken = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        assert!(is_free(port).unwrap_err().to_string().contains(&port.to_string()));
    }
}
