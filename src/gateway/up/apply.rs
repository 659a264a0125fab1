//! The steps of `up`.

use super::journal::Trace;
use super::routes::{Routes, is_default, prefixes};
use super::{Failure, Result, Session, dns, firewall, policy, snapshot};
use crate::device::uapi::{PeerRequest, SetRequest};
use crate::gateway::config::{Address, Config, HostPort, Loaded, Mtu, Table, allowed_ips};
use crate::gateway::control::ControlSocket;
use crate::gateway::executable;
use crate::gateway::mtu::{self, IPV6_MINIMUM, Path};
use crate::gateway::recall;
use crate::gateway::up::host::{Host, proto};
use crate::routing::Prefix;
use crate::wire::family::Family;
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How often a name is asked for again while the resolver cannot answer just now, as at boot. Number and variable are
/// wg(8)'s.
const RETRIES: u32 = 15;
const RETRIES_VARIABLE: &str = "WG_ENDPOINT_RESOLUTION_RETRIES";
/// The pause after the first attempt. Each further one is a fifth longer, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(90);
/// The least MTU in bytes of an IPv4 interface (RFC 791), and the most that the kernel lets a TUN device have.
const MTUS: std::ops::RangeInclusive<u32> = 68..=65_535;

/// Endpoints as the file has them, each with its address now.
pub(in crate::gateway) type Resolved = Vec<(HostPort, SocketAddr)>;

pub(super) fn bring_up(session: &mut Session<'_>, loaded: &Loaded, clamp: bool) -> Result<()> {
    let (config, name) = (&loaded.config, session.name.clone());
    let interface = &config.interface;
    check_host(config, clamp)?;
    if let Some(port) = interface.listen_port {
        is_free(port)?;
    }
    let control = start(session, loaded)?;
    session.hooks(&interface.pre_up)?;
    let resolved = resolve_all(config, session)?;
    let mtu = mtu_for(&name, config, &resolved, interface.fwmark.unwrap_or(0), &session.host)?;
    fits_ipv6(config, mtu)?;
    if mtu < IPV6_MINIMUM && interface.mtu.is_none() && has_ipv6(&interface.addresses) {
        session.console.remark(&without_ipv6(mtu));
    }
    let index = session.index()?.ok_or_else(|| Failure::new(format!("`{name}' is gone again")))?;
    let request = config.request(&mut |_, endpoint| address_of(endpoint, &resolved));
    session.step(&format!("wg addconf {name} <(ringtun strip {})", loaded.place.file.display()), |_| {
        control.set(&request)
    })?;
    session.journal.note_all(snapshot::of_peers(&config.peers))?;
    recall_peers(session, loaded, &control);
    for &address in &interface.addresses {
        add_address(session, index, address)?;
    }
    session.journal.note_mtu(mtu)?;
    session.step(&format!("ip link set mtu {mtu} up dev {name}"), |host| host.set_mtu(index, mtu, true))?;
    if !interface.dns.is_empty() {
        let manager = dns::manager(&name)?;
        session.interrupt.check()?;
        session.journal.note(Trace::Dns(manager.clone()))?;
        dns::set(&manager, &name, interface, &mut session.console)?;
    }
    let device = control.get().map_err(Failure::of(&name))?;
    add_routes(session, &control, index, interface.table, &prefixes(&device))?;
    if clamp {
        session.interrupt.check()?;
        session.journal.note(Trace::Clamp)?;
        firewall::clamp(&name, mtu, &mut session.console)?;
    }
    session.hooks(&interface.post_up)?;
    session.start_peer_hooks(loaded)?;
    session.interrupt.check()?;
    session.journal.note(Trace::Finished)
}

/// Has peers go on from what an earlier process of this tunnel remembered. Without that the tunnel works as well, but a little later.
fn recall_peers(session: &mut Session<'_>, loaded: &Loaded, control: &ControlSocket) {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let Some(remembered) = recall::recall(&session.name, wall) else { return };
    let changed = std::fs::metadata(&loaded.place.file).and_then(|file| file.modified()).ok();
    let age = changed.and_then(|changed| SystemTime::now().duration_since(changed).ok());
    let peers = remembered.requests(&loaded.config, age.is_some_and(|age| age < remembered.age));
    let connected = |peer: &&PeerRequest| peer.memory.as_ref().is_some_and(|memory| memory.was_connected);
    match peers.iter().filter(connected).count() {
        0 => {}
        count => session.console.remark(&format!(
            "{} connected {:.0} s ago: looked for at once",
            if count == 1 { "1 peer was".to_owned() } else { format!("{count} peers were") },
            remembered.age.as_secs_f64()
        )),
    }
    if let Err(error) = control.set(&SetRequest { peers, ..SetRequest::default() }) {
        session.console.remark(&format!("what is remembered of peers cannot be set: {error}"));
    }
}

/// Adds routes for prefixes into the interface, as `table` says.
pub(super) fn add_routes(
    session: &mut Session<'_>,
    control: &ControlSocket,
    index: u32,
    table: Table,
    prefixes: &[Prefix],
) -> Result<()> {
    add_routes_replacing(session, control, index, table, prefixes, &BTreeSet::new())
}

/// Does as [`add_routes`], while the routes to the prefixes in `going` are about to be removed. Routes that are there
/// already stay as they are.
pub(super) fn add_routes_replacing(
    session: &mut Session<'_>,
    control: &ControlSocket,
    index: u32,
    table: Table,
    prefixes: &[Prefix],
    going: &BTreeSet<Prefix>,
) -> Result<()> {
    let mut routes = Routes::read(&session.host, index, &session.journal)?;
    let (defaults, others): (Vec<Prefix>, Vec<Prefix>) =
        prefixes.iter().partition(|prefix| is_default(table, **prefix));
    let lacking = |&prefix: &Prefix| Some((prefix, routes.lacking(prefix, table, 0, going)?));
    let planned: Vec<(Prefix, u32)> = others.iter().filter_map(lacking).collect();
    routes.add_all(session, index, &planned)?;
    for prefix in defaults {
        policy::add_default(session, control, &mut routes, index, prefix)?;
    }
    Ok(())
}

/// Checks that the host has what the file asks for. This is done before hooks run, since nothing undoes those.
fn check_host(config: &Config, clamp: bool) -> Result<()> {
    let interface = &config.interface;
    let mut defaults = allowed_ips(config).into_iter().filter(|prefix| is_default(interface.table, *prefix));
    defaults.try_for_each(policy::check_default_route)?;
    if let Some(Mtu::Bytes(mtu)) = interface.mtu {
        fits_ipv6(config, mtu.into())?;
    }
    if clamp {
        firewall::check_clamp_tools()?;
    }
    if interface.dns.is_empty() { Ok(()) } else { dns::manager("").map(drop) }
}

/// Checks that the routes that the file asks for are possible with this MTU, in bytes. Below IPv6's least MTU the
/// kernel takes IPv6 from the interface together with its addresses (`addrconf_notify`), and a missing route means
/// traffic in clear.
pub(super) fn fits_ipv6(config: &Config, mtu: u32) -> Result<()> {
    if mtu >= IPV6_MINIMUM || config.interface.table == Table::Off {
        return Ok(());
    }
    match allowed_ips(config).into_iter().find(|prefix| prefix.addr().is_ipv6()) {
        Some(prefix) => Err(Failure::new(format!(
            "{}, so AllowedIPs {prefix} cannot be routed: expected MTU = {IPV6_MINIMUM} or more, or no IPv6 in AllowedIPs",
            without_ipv6(mtu)
        ))),
        None => Ok(()),
    }
}

pub(super) fn without_ipv6(mtu: u32) -> String {
    format!("MTU {mtu} is below IPv6's least, {IPV6_MINIMUM}: the kernel leaves the interface without IPv6")
}

pub(super) fn has_ipv6(addresses: &[Address]) -> bool {
    addresses.iter().any(|address| address.addr.is_ipv6())
}

/// Resolves every endpoint.
fn resolve_all(config: &Config, session: &mut Session<'_>) -> Result<Resolved> {
    let mut resolved = Resolved::new();
    for endpoint in config.peers.iter().filter_map(|peer| peer.endpoint.as_ref()) {
        if resolved.iter().all(|(known, _)| known != endpoint) {
            resolved.push((endpoint.clone(), resolve(endpoint, session)?));
        }
    }
    Ok(resolved)
}

fn resolve(endpoint: &HostPort, session: &mut Session<'_>) -> Result<SocketAddr> {
    let mut pause = FIRST_PAUSE;
    let mut left = retries(std::env::var(RETRIES_VARIABLE).ok().as_deref());
    loop {
        session.interrupt.check()?;
        match endpoint.resolve() {
            Ok(address) => return Ok(address),
            // This is EAI_AGAIN, which the standard library reports by its text alone.
            Err(error) if left > 0 && error.to_string().contains("Temporary failure") => {
                session.console.remark(&format!("Endpoint {endpoint}: {error}; trying again in {pause:.0?}"));
                left -= 1;
                pause_for(pause, session)?;
                pause = pause.mul_f32(1.2).min(LONGEST_PAUSE);
            }
            Err(error) => return Err(Failure::of(format!("Endpoint {endpoint}"))(error)),
        }
    }
}

fn retries(setting: Option<&str>) -> u32 {
    match setting {
        Some("infinity") => u32::MAX,
        setting => setting.and_then(|text| text.parse().ok()).unwrap_or(RETRIES),
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

/// The address to which an endpoint resolved, if it did.
pub(super) fn address_of(endpoint: &HostPort, resolved: &Resolved) -> Option<SocketAddr> {
    resolved.iter().find(|(known, _)| known == endpoint).map(|(_, address)| *address)
}

/// The interface's MTU in bytes, by the routes as they are now. `mark` is the mark of the tunnel's own packets.
pub(in crate::gateway) fn mtu_for(
    name: &str,
    config: &Config,
    resolved: &Resolved,
    mark: u32,
    host: &Host,
) -> Result<u32> {
    let path = |(_, to): &(HostPort, SocketAddr)| {
        // An endpoint to which no route leads gives no MTU.
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

/// Checks that no other program has the UDP port. The device would only log that.
pub(super) fn is_free(port: u16) -> Result<()> {
    for any in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
        if let Err(error) = UdpSocket::bind((any, port))
            && error.kind() == ErrorKind::AddrInUse
        {
            return Err(Failure::new(format!("ListenPort {port}: another program uses this UDP port")));
        }
    }
    Ok(())
}

/// Starts the background process, which makes the interface, and connects to it.
fn start(session: &mut Session<'_>, loaded: &Loaded) -> Result<ControlSocket> {
    session.interrupt.check()?;
    let name = session.name.clone();
    let said = format!("ringtun {name}");
    session.console.command(&said);
    session.journal.note(Trace::Interface)?;
    // A path that does not fit on a line of the notes is left out of them.
    let file = loaded.place.file.to_str().filter(|file| !file.contains('\n'));
    session.journal.note_all(file.map(|file| Trace::File(file.into())).into_iter().collect())?;
    let program = executable::path().map_err(Failure::of(&said))?;
    let mut command = Command::new(program);
    command.arg("--config").arg(&loaded.place.file).args(["--", &name]);
    let status = command.stdin(Stdio::null()).status().map_err(Failure::of(&said))?;
    if !status.success() {
        if status.code().is_some() {
            // The process reported why and made nothing. An interface that is there now is somebody else's.
            session.journal.retract(&[Trace::Interface])?;
        }
        return Err(Failure::new(format!("{said}: {status}")));
    }
    session.control()
}

/// Does as `ip address add`, noted beforehand.
pub(super) fn add_address(session: &mut Session<'_>, index: u32, address: Address) -> Result<()> {
    let proto = proto(address.addr.is_ipv6());
    let command = format!("ip {proto} address add {address} dev {}", session.name);
    let is_again = session.journal.has(&Trace::Address(address));
    session.journal.note(Trace::Address(address))?;
    let explain = |session: &Session<'_>, error: &std::io::Error| match error.kind() {
        ErrorKind::AlreadyExists if is_again => {
            Some(format!("Address {address} stands twice in the file: expected it once"))
        }
        ErrorKind::AlreadyExists => {
            Some("the interface has this address already, as by PreUp: expected it in one place".to_owned())
        }
        _ => session.without_ipv6(address.addr.is_ipv6()),
    };
    session.explained(&command, |host| host.add_address(index, address), explain)
}

#[cfg(test)]
mod tests {
    use super::*;

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
