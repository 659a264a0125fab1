//! `peer list`, `peer show`.

use super::{KnownPeers, Meant, OnInterface};
use crate::cli::output::{print_bytes, print_json};
use crate::gateway::Failure;
use crate::gateway::live::age_text;
use crate::gateway::peering::RosterEntry;
use crate::gateway::show::{Align, amount, columns};
use clap::Args;
use std::time::{SystemTime, UNIX_EPOCH};

#[derive(Args)]
#[command(after_help = "Examples:
  ringtun peer list
  ringtun peer list --interface wg1
  ringtun peer list --json | jq -r '.[] | select(.state == \"silent\") | .name'

The states are: connected (there is a session that both ends have), silent (there was one), never (there was no handshake), disabled (out of \
use in the file), not applied (in the file, not in the running tunnel: `ringtun reload` applies it), tunnel down.")]
pub(in crate::cli) struct ListArgs {
    #[command(flatten)]
    on: OnInterface,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[command(after_help = "Examples:
  ringtun peer show laptop
  ringtun peer show laptop --json

The beginning of a public key means its peer, too. `ringtun why wg0 laptop` finds out why a peer does not connect.")]
pub(in crate::cli) struct ShowPeerArgs {
    #[command(flatten)]
    meant: Meant,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn list(args: &ListArgs) -> Result<(), Failure> {
    let peers = KnownPeers::read(&args.on.interface)?;
    let roster = peers.roster();
    if args.json {
        return print_json(&roster);
    }
    if roster.is_empty() {
        let name = &peers.interface;
        eprintln!("{name} has no peers; `ringtun peer add NAME --interface {}` adds one", args.on.interface);
        return Ok(());
    }
    let now = now();
    let heading = ["PEER", "STATE", "HANDSHAKE", "RECEIVED", "SENT", "ALLOWED IPS"].map(str::to_owned);
    let rows: Vec<[String; 6]> =
        std::iter::once(heading).chain(roster.iter().map(|one| row(one, now))).collect();
    let aligns = [Align::Left, Align::Left, Align::Right, Align::Right, Align::Right, Align::Left];
    print_bytes(columns(aligns, &rows).as_bytes())
}

fn row(entry: &RosterEntry, now: u64) -> [String; 6] {
    let nothing = || "-".to_owned();
    let some = |bytes: u64| if bytes == 0 { nothing() } else { amount(bytes) };
    let more = |list: &[String]| match list {
        [] => nothing(),
        [one] => one.clone(),
        [first, rest @ ..] => format!("{first} and {} more", rest.len()),
    };
    [
        entry.name.clone().unwrap_or_else(|| entry.public_key.clone()),
        entry.state.word().to_owned(),
        entry.latest_handshake.map_or_else(nothing, |at| age_text(now.saturating_sub(at))),
        some(entry.rx_bytes),
        some(entry.tx_bytes),
        more(&entry.allowed_ips),
    ]
}

pub(super) fn show(args: &ShowPeerArgs) -> Result<(), Failure> {
    let peers = KnownPeers::read(&args.meant.on.interface)?;
    let entry = peers.meant(&args.meant.peer)?;
    match args.json {
        true => print_json(&[entry]),
        false => print_bytes(described(&peers, &entry).as_bytes()),
    }
}

/// All that is known of a peer, a line for each fact.
fn described(peers: &KnownPeers, entry: &RosterEntry) -> String {
    let now = now();
    let ago = |at: u64| age_text(now.saturating_sub(at));
    let state = match entry.connected_since {
        Some(since) => format!("connected, for {}", ago(since)),
        None => entry.state.word().to_owned(),
    };
    let file = peers.loaded.as_ref().map(|loaded| loaded.place.file.display().to_string());
    let place = match (entry.line, file) {
        (Some(line), Some(file)) => format!("{file}, line {line}"),
        (None, Some(file)) => format!("not in {file}"),
        (_, None) => "unknown, there is no file".to_owned(),
    };
    let allowed = if entry.allowed_ips.is_empty() { "none".to_owned() } else { entry.allowed_ips.join(", ") };
    let every = Some(entry.persistent_keepalive).filter(|&seconds| seconds != 0);
    let facts = [
        ("name", entry.name.clone()),
        ("state", Some(state)),
        ("public key", Some(entry.public_key.clone())),
        ("preshared key", entry.has_preshared_key.then(|| "yes (hidden)".to_owned())),
        ("allowed ips", Some(allowed)),
        ("endpoint", entry.endpoint.clone()),
        ("keepalive", every.map(|seconds| format!("every {seconds} s"))),
        ("handshake", entry.latest_handshake.map(|at| format!("{} ago", ago(at)))),
        ("received", Some(amount(entry.rx_bytes)).filter(|_| entry.latest_handshake.is_some())),
        ("sent", Some(amount(entry.tx_bytes)).filter(|_| entry.latest_handshake.is_some())),
        ("worker", entry.worker.map(|worker| worker.to_string())),
        ("file", Some(place)),
    ];
    let limits =
        entry.limits.iter().flat_map(|limits| limits.words()).map(|(what, words)| (what, Some(words)));
    let rows = facts.into_iter().chain(limits).filter_map(|(what, value)| Some([what.to_owned(), value?]));
    columns([Align::Left, Align::Left], &rows.collect::<Vec<_>>())
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
