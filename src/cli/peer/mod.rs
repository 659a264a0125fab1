//! `peer`: the peers of an interface, in its file and in its running tunnel.

mod add;
mod change;
mod list;

use crate::cli::candidates;
use crate::gateway::Failure;
use crate::gateway::config::{Loaded, Permissions, Place};
use crate::gateway::control::{ControlSocket, DeviceState};
use crate::gateway::metrics::Measured;
use crate::gateway::peering::{RosterEntry, candidates, roster, select};
use clap::{Args, Subcommand};
use clap_complete::engine::{ArgValueCandidates, ArgValueCompleter};
use std::time::{SystemTime, UNIX_EPOCH};

#[derive(Subcommand)]
pub(super) enum PeerCommand {
    /// Add a new peer: its keys, its address, its section in the file, and its own configuration
    Add(add::AddArgs),
    /// List the peers, with how it stands with each
    List(list::ListArgs),
    /// Show all that is known of a peer
    Show(list::ShowPeerArgs),
    /// Give a peer another name
    Rename(change::RenameArgs),
    /// Limit what a peer may move: a rate each way, and a quota
    Limit(change::LimitArgs),
    /// Put a peer out of use, and keep it in the file
    Disable(change::DisableArgs),
    /// Put a peer in use again
    Enable(change::EnableArgs),
    /// Remove a peer for good
    Remove(change::RemoveArgs),
}

/// Which peer is meant.
#[derive(Args)]
struct Meant {
    /// The peer's name, its public key, or the beginning of that
    #[arg(value_name = "PEER", add = ArgValueCandidates::new(candidates::peers))]
    peer: String,
    #[command(flatten)]
    on: OnInterface,
}

#[derive(Args)]
struct OnInterface {
    /// Interface's name, or a file NAME.conf
    #[arg(long, value_name = "NAME|FILE", default_value = "wg0", add = ArgValueCompleter::new(candidates::configurations))]
    interface: String,
}

pub(super) fn run(command: PeerCommand) -> Result<(), Failure> {
    match command {
        PeerCommand::Add(args) => add::run(args),
        PeerCommand::List(args) => list::list(&args),
        PeerCommand::Show(args) => list::show(&args),
        PeerCommand::Rename(args) => change::rename(&args),
        PeerCommand::Limit(args) => change::limit(&args),
        PeerCommand::Disable(args) => change::disable(&args),
        PeerCommand::Enable(args) => change::enable(&args),
        PeerCommand::Remove(args) => change::remove(&args),
    }
}

/// An interface's peers, in its file and in its running device, of which one at least is there.
struct KnownPeers {
    interface: String,
    loaded: Option<Loaded>,
    measured: Option<Measured>,
}

impl KnownPeers {
    fn read(given: &str) -> Result<KnownPeers, Failure> {
        let place = Place::named(given)?;
        let interface = place.interface.clone();
        let measured = match ControlSocket::find(&interface) {
            Some(_) => Some(Measured::of(&interface)?),
            None => None,
        };
        // What runs can be told of without its file.
        let loaded = match Place::find(given).map(|place| place.load(Permissions::Warn)) {
            Ok(Ok(loaded)) => Some(loaded),
            Ok(Err(error)) if measured.is_none() => return Err(error.into()),
            Ok(Err(error)) => {
                eprintln!("warning: {error}");
                None
            }
            Err(error) if measured.is_none() => return Err(error.into()),
            Err(_) => None,
        };
        Ok(KnownPeers { interface, loaded, measured })
    }

    fn roster(&self) -> Vec<RosterEntry> {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        roster(self.loaded.as_ref(), self.measured.as_ref(), wall)
    }

    /// The one peer that is meant.
    fn meant(&self, given: &str) -> Result<RosterEntry, Failure> {
        let roster = self.roster();
        let key = select(given, &candidates(&roster))?.key.to_base64();
        roster
            .into_iter()
            .find(|entry| entry.public_key == key)
            .ok_or_else(|| Failure::new(format!("{} has no peer {given}", self.interface)))
    }
}

/// The running device, if it belongs to this file. A device that only shares the interface's name has another key.
fn running(loaded: &Loaded) -> Result<Option<(ControlSocket, DeviceState)>, Failure> {
    let Some(control) = ControlSocket::find(&loaded.place.interface) else { return Ok(None) };
    let device = control.get_interface().map_err(unanswered(loaded))?;
    let key = loaded.config.interface.private_key.as_ref();
    if key.is_some() && key != device.private_key.as_ref() {
        let (interface, file) = (&loaded.place.interface, loaded.place.file.display());
        eprintln!("warning: the running {interface} has another private key than {file}: it is left alone");
        return Ok(None);
    }
    Ok(Some((control, device)))
}

/// Makes the failure of a device that runs, and does not answer as it should.
fn unanswered(loaded: &Loaded) -> impl FnOnce(std::io::Error) -> Failure {
    Failure::of(format!("the running {} does not answer as it should", loaded.place.interface))
}
