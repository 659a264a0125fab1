//! Peers that come to a running tunnel, and leave it, with their routes.

use super::apply::add_routes;
use super::reload::take_route;
use super::routes::in_order;
use super::snapshot::{Owned, Snapshot, of_peers};
use super::{Console, Failure, Result, Session, journal::Trace};
use crate::crypto::x25519::PublicKey;
use crate::device::uapi::{PeerRequest, SetRequest};
use crate::gateway::config::{Loaded, PeerConfig};
use crate::routing::Prefix;
use std::collections::BTreeSet;

/// Adds the routes to what a new peer of a running tunnel is allowed.
///
/// # Errors
///
/// Where the tunnel is not up in this network namespace, or a route cannot be added.
pub fn add_routes_of(peer: &PeerConfig, loaded: &Loaded, console: Console<'_>) -> Result<()> {
    let mut session = Session::new(&loaded.place, console)?;
    let control = session.control()?;
    let index = session.index()?.ok_or_else(|| elsewhere(&session.name))?;
    let prefixes = in_order(peer.allowed_ips.iter().copied().collect());
    add_routes(&mut session, &control, index, loaded.config.interface.table, &prefixes)?;
    session.journal.note_all(of_peers(std::slice::from_ref(peer)))
}

fn elsewhere(name: &str) -> Failure {
    Failure::new(format!("`{name}' is in another network namespace: its routes are to be changed there"))
}

/// Removes a peer from a running tunnel, and those routes of `up`'s that were for this peer alone.
///
/// # Errors
///
/// Where the tunnel is not up in this network namespace, or does not answer. Routes that cannot be removed are reported to the
/// console.
pub fn remove_peer(key: &PublicKey, loaded: &Loaded, console: Console<'_>) -> Result<()> {
    let mut session = Session::new(&loaded.place, console)?;
    let (name, control, table) = (session.name.clone(), session.control()?, loaded.config.interface.table);
    let link = session.host.link(&name).map_err(Failure::of(&name))?.ok_or_else(|| elsewhere(&name))?;
    let device = control.get().map_err(Failure::of(&name))?;
    let (leaving, staying): (Vec<_>, Vec<_>) = device.peers.iter().partition(|peer| peer.public_key == *key);
    let leaving: BTreeSet<Prefix> = leaving.into_iter().flat_map(|peer| &peer.allowed_ips).copied().collect();
    let staying = in_order(staying.into_iter().flat_map(|peer| peer.allowed_ips.iter().copied()).collect());
    let before = Snapshot::read(&session, link, device)?;
    let owned = Owned::of(&before, table);
    let request = PeerRequest { remove: true, ..PeerRequest::new(*key) };
    session.step(&format!("wg set {name} peer {} remove", key.to_base64()), |_| {
        control.set(&SetRequest { peers: vec![request], ..SetRequest::default() })
    })?;
    let mut gone = vec![Trace::Preshared(*key), Trace::Keepalive(*key)];
    for &(prefix, number) in owned.routes.iter().filter(|(prefix, _)| leaving.contains(prefix)) {
        if take_route(&mut session, link.index, table, &staying, (prefix, number)) {
            gone.push(Trace::Route { prefix, table: number });
        }
    }
    session.journal.retract(&gone)
}

/// Runs commands as hooks of the tunnel are run.
///
/// # Errors
///
/// Where one of them fails; the later ones are not run then.
pub fn run_commands(commands: &[String], loaded: &Loaded, console: Console<'_>) -> Result<()> {
    Session::new(&loaded.place, console)?.hooks(commands)
}
