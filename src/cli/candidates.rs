//! What a shell offers for an argument: interfaces that run, configurations, peers.

use crate::gateway::client;
use crate::gateway::config::{Permissions, Place, configured};
use clap_complete::engine::{CompletionCandidate, PathCompleter, ValueCompleter};
use std::ffi::OsStr;

/// The interfaces that run.
pub(super) fn interfaces() -> Vec<CompletionCandidate> {
    client::interfaces().unwrap_or_default().into_iter().map(CompletionCandidate::new).collect()
}

/// The interfaces that run, and the words that `show` takes instead.
pub(super) fn shown() -> Vec<CompletionCandidate> {
    let words = ["all", "interfaces"].map(CompletionCandidate::new);
    interfaces().into_iter().chain(words).collect()
}

/// The names of configurations, and files.
pub(super) fn configurations(current: &OsStr) -> Vec<CompletionCandidate> {
    let starts = |name: &String| current.to_str().is_some_and(|current| name.starts_with(current));
    let names = configured().into_iter().filter(starts).map(CompletionCandidate::new);
    names.chain(PathCompleter::file().complete(current)).collect()
}

/// The peers in the files that can be read: their names, or their keys where a shell would take a name apart.
pub(super) fn peers() -> Vec<CompletionCandidate> {
    let plain = |name: &String| name.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | '.'));
    let mut candidates = Vec::new();
    for place in configured().iter().filter_map(|name| Place::find(name).ok()) {
        let Ok(loaded) = place.load(Permissions::Warn) else { continue };
        for peer in loaded.config.peers.into_iter().chain(loaded.document.disabled_peers()) {
            let key = peer.public_key.to_base64();
            candidates.push(CompletionCandidate::new(peer.name.filter(plain).unwrap_or(key)));
        }
    }
    candidates
}
