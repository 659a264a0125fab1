//! The state before a reload, and what of it is the tunnel's own: what `up` or an earlier `reload` made. Only that may
//! a `reload` take away; the rest was added by hooks and people.

use super::journal::Trace;
use super::routes::{Routes, prefixes, table_of};
use super::{Failure, Result, Session};
use crate::crypto::x25519::{PublicKey, SharedSecret};
use crate::device::uapi::SetRequest;
use crate::gateway::config::{Address, Config, PeerConfig, Table};
use crate::gateway::control::DeviceState;
use crate::gateway::up::host::Link;
use crate::routing::Prefix;
use std::collections::BTreeSet;

/// The state of a tunnel before a reload. Its MTU is in bytes.
pub(super) struct Snapshot {
    pub(super) device: DeviceState,
    /// The interface's addresses that have no other end, in the kernel's order.
    pub(super) addresses: Vec<Address>,
    pub(super) mtu: u32,
    pub(super) prefixes: BTreeSet<Prefix>,
    pub(super) routes: Routes,
    pub(super) traces: Vec<Trace>,
}

impl Snapshot {
    /// Reads the state as it is now.
    pub(super) fn read(session: &Session<'_>, link: Link, device: DeviceState) -> Result<Snapshot> {
        Ok(Snapshot {
            addresses: session.host.plain_addresses(link.index).map_err(Failure::of(&session.name))?,
            mtu: link.mtu,
            prefixes: prefixes(&device).into_iter().collect(),
            routes: Routes::read(&session.host, link.index, &session.journal)?,
            traces: session.journal.traces(),
            device,
        })
    }
}

/// What belongs to the tunnel according to the notes.
#[derive(Default)]
pub(super) struct Owned {
    pub(super) addresses: BTreeSet<Address>,
    /// The routes, each with the number of its table.
    pub(super) routes: BTreeSet<(Prefix, u32)>,
    /// The MTU in bytes that the interface was last given, if that is known.
    pub(super) mtu: Option<u32>,
    preshared: BTreeSet<PublicKey>,
    keepalive: BTreeSet<PublicKey>,
}

impl Owned {
    /// Reads it from the notes of before the reload. Where there are none, as after wg-quick's `up`, everything that is
    /// there counts. `table` is the file's.
    pub(super) fn of(before: &Snapshot, table: Table) -> Owned {
        let mut owned = Owned::default();
        for trace in &before.traces {
            match trace {
                Trace::Address(address) => drop(owned.addresses.insert(*address)),
                Trace::Route { prefix, table } => drop(owned.routes.insert((*prefix, *table))),
                Trace::Mtu(mtu) => owned.mtu = Some(*mtu),
                Trace::Preshared(key) => drop(owned.preshared.insert(*key)),
                Trace::Keepalive(key) => drop(owned.keepalive.insert(*key)),
                _ => {}
            }
        }
        if owned.mtu.is_none() {
            let mark = before.device.fwmark;
            let route = |prefix: &Prefix| Some((*prefix, table_of(table, *prefix, mark)?));
            let keys: BTreeSet<PublicKey> = before.device.peers.iter().map(|peer| peer.public_key).collect();
            owned.addresses = before.addresses.iter().copied().collect();
            owned.routes = before.prefixes.iter().filter_map(route).collect();
            (owned.preshared, owned.keepalive) = (keys.clone(), keys);
        }
        owned
    }

    /// The MTU in bytes to set. `asked` is what file and paths ask for. Where that is what it was last time, the MTU of
    /// `now` stays, since somebody may have set it.
    pub(super) fn mtu(&self, asked: u32, now: u32) -> u32 {
        if self.mtu == Some(asked) { now } else { asked }
    }

    /// Takes from the request the removal of preshared keys and keepalives that no file of this tunnel ever set.
    pub(super) fn keep_foreign(&mut self, config: &Config, request: &mut SetRequest) {
        self.preshared.extend(with_secret(&config.peers).map(|peer| peer.public_key));
        self.keepalive.extend(with_keepalive(&config.peers).map(|peer| peer.public_key));
        for peer in request.peers.iter_mut().filter(|peer| !peer.remove) {
            let key = peer.public_key;
            if peer.preshared_key.as_deref() == Some(&SharedSecret([0; 32])) && !self.preshared.contains(&key)
            {
                peer.preshared_key = None;
            }
            if peer.persistent_keepalive == Some(0) && !self.keepalive.contains(&key) {
                peer.persistent_keepalive = None;
            }
        }
    }
}

fn with_secret(peers: &[PeerConfig]) -> impl Iterator<Item = &PeerConfig> {
    peers.iter().filter(|peer| peer.preshared_key.is_some())
}

fn with_keepalive(peers: &[PeerConfig]) -> impl Iterator<Item = &PeerConfig> {
    peers.iter().filter(|peer| peer.persistent_keepalive.is_some())
}

/// The notes of what a file says of its peers.
pub(super) fn of_peers(peers: &[PeerConfig]) -> Vec<Trace> {
    let secret = with_secret(peers).map(|peer| Trace::Preshared(peer.public_key));
    secret.chain(with_keepalive(peers).map(|peer| Trace::Keepalive(peer.public_key))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::config::Document;

    #[test]
    fn what_somebody_set_stays_until_another_size_is_asked_for() {
        let owned = |mtu| Owned { mtu, ..Owned::default() };
        assert_eq!(owned(Some(1420)).mtu(1420, 1380), 1380);
        assert_eq!(owned(Some(1420)).mtu(1300, 1380), 1300);
        assert_eq!(owned(None).mtu(1420, 1380), 1420);
    }

    #[test]
    fn notes_of_peers_tell_whose_and_no_secret() {
        let text = "[Peer]\nPublicKey=xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\nPersistentKeepalive=0\n\
            PresharedKey=yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=\n";
        let config = Document::new(text.as_bytes()).parse().unwrap().0;
        let notes: String = of_peers(&config.peers).iter().map(|trace| format!("{trace}\n")).collect();
        let key = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
        assert_eq!(notes, format!("preshared {key}\nkeepalive {key}\n"));
    }
}
