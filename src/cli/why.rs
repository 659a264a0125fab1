//! `why`: what stands between a peer and its connection.

use super::candidates;
use super::logger;
use super::output::{print_bytes, print_json};
use crate::gateway::Failure;
use crate::gateway::client;
use crate::gateway::config::{Config, Loaded, Permissions, Place};
use crate::gateway::peering::{Candidate, select};
use crate::gateway::why::{Asked, Diagnosis, gather};
use clap::Args;
use clap_complete::engine::ArgValueCandidates;
use std::process::ExitCode;
use std::time::Duration;

#[derive(Args)]
#[command(after_help = "Examples:
  ringtun why wg0 laptop
  ringtun why wg0 xTIB               by the beginning of its public key
  ringtun why wg0 laptop --wait 20   while somebody tries at the other end
  ringtun why wg0 laptop --json | jq -r '.causes[].kind'

Tells what was tried with a peer, what came back, and what stands in the way, with the remedy. To find out, a handshake is tried with a \
peer that is not connected; one that is connected is sent a few echo requests of all sizes, and what it sends to others is looked at \
on the interface.

Exit status: 0 connected, and nothing is in the way; 1 not connected, or no tunnel; 2 wrong usage, or no such peer; 3 connected, but \
something keeps packets from passing.")]
pub(super) struct WhyArgs {
    /// Interface
    #[arg(value_name = "NAME", add = ArgValueCandidates::new(candidates::interfaces))]
    interface: String,
    /// The peer's name, its public key, or the beginning of that
    #[arg(value_name = "PEER", add = ArgValueCandidates::new(candidates::peers))]
    peer: String,
    /// How long to wait for what is tried, and to look at what passes
    #[arg(long, value_name = "SECONDS", default_value_t = 6, value_parser = clap::value_parser!(u16).range(0..=600))]
    wait: u16,
    /// Send nothing, neither a handshake nor anything through the tunnel
    #[arg(long)]
    passive: bool,
    /// Print JSON, with all facts
    #[arg(long)]
    json: bool,
}

/// The exit status of a peer that is not connected.
const NOT_CONNECTED: u8 = 1;
/// The exit status where no such peer is known.
const NO_SUCH_PEER: u8 = 2;
/// The exit status of a peer that is connected, and whose packets do not pass.
const OBSTRUCTED: u8 = 3;

pub(super) fn run(args: &WhyArgs) -> Result<ExitCode, Failure> {
    client::open(&args.interface)?;
    let loaded = file(&args.interface);
    let config = loaded.as_ref().map(|loaded| &loaded.config);
    let peer = match select(&args.peer, &candidates(&args.interface, config)?) {
        Ok(peer) => peer,
        Err(failure) => {
            logger::fail(&failure.to_string());
            return Ok(ExitCode::from(NO_SUCH_PEER));
        }
    };
    let facts = gather(&Asked {
        interface: &args.interface,
        key: peer.key,
        name: peer.name,
        config,
        wait: Duration::from_secs(args.wait.into()),
        passive: args.passive,
    })?;
    let diagnosis = Diagnosis::of(facts);
    match args.json {
        true => print_json(&diagnosis)?,
        false => print_bytes(diagnosis.text().as_bytes())?,
    }
    Ok(match (diagnosis.connected, diagnosis.causes.is_empty()) {
        (true, true) => ExitCode::SUCCESS,
        (true, false) => ExitCode::from(OBSTRUCTED),
        (false, _) => ExitCode::from(NOT_CONNECTED),
    })
}

/// The tunnel's file, where there is one that can be read.
fn file(interface: &str) -> Option<Loaded> {
    Place::of_running(interface)?.load(Permissions::Warn).ok()
}

/// The peers that may be meant: those of the file, and those of the device.
fn candidates(interface: &str, config: Option<&Config>) -> Result<Vec<Candidate>, Failure> {
    let mut candidates: Vec<Candidate> = config
        .into_iter()
        .flat_map(|config| &config.peers)
        .map(|peer| Candidate { key: peer.public_key, name: peer.name.clone() })
        .collect();
    let known: std::collections::HashSet<_> = candidates.iter().map(|candidate| candidate.key).collect();
    let status = client::status(interface)?.unwrap_or_default();
    let of_device = status.peers.iter().filter_map(|owner| owner.public_key.parse().ok());
    candidates.extend(of_device.filter(|key| !known.contains(key)).map(|key| Candidate { key, name: None }));
    Ok(candidates)
}
