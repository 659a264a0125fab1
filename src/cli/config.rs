//! `check`, `strip`: what a configuration says, without touching anything.

use super::candidates;
use super::output::{print_json, print_secret};
use crate::gateway::config::{Config, ConfigError, LoadError, Loaded, Permissions, Place, Warning};
use crate::gateway::{Failure, ipv6, up};
use crate::tunnel::plural::counted;
use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use serde::Serialize;
use std::path::Path;
use std::process::ExitCode;

#[derive(Args)]
#[command(after_help = "Examples:
  ringtun check wg0                  /etc/wireguard/wg0.conf
  ringtun check ./wg0.conf
  ringtun check --json wg0 | jq .errors

Prints every error and warning as FILE:LINE: what, and what was expected. Names are not resolved. What wg-quick and `up` accept and \
no tunnel works with, such as a peer with one's own key, is an error here.
Exit status: 0 without errors, 1 with errors, 2 wrong usage.")]
pub(super) struct CheckArgs {
    /// Interface's name, or a file NAME.conf
    #[arg(value_name = "NAME|FILE", add = ArgValueCompleter::new(candidates::configurations))]
    given: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[command(after_help = "Example:
  wg syncconf wg0 <(ringtun strip wg0)")]
pub(super) struct StripArgs {
    /// Interface's name, or a file NAME.conf
    #[arg(value_name = "NAME|FILE", add = ArgValueCompleter::new(candidates::configurations))]
    given: String,
}

#[derive(Serialize)]
struct CheckReport {
    file: String,
    ok: bool,
    peers: usize,
    errors: Vec<Diagnostic>,
    warnings: Vec<Diagnostic>,
}

#[derive(Serialize)]
struct Diagnostic {
    line: Option<usize>,
    message: String,
}

pub(super) fn check(args: &CheckArgs) -> Result<ExitCode, Failure> {
    let place = Place::find(&args.given)?;
    let file = place.file.clone();
    let (errors, warnings, peers) = match place.load(Permissions::Warn) {
        Ok(loaded) => {
            let (mut errors, mut warnings) = sorted(loaded.warnings);
            errors.extend(conflicting_routes(&loaded.place.interface, &loaded.config));
            errors.sort_by_key(|error| error.line);
            let lacking = loaded.config.has_ipv6().then(|| ipv6::why_not("default")).flatten();
            warnings.extend(lacking.map(Warning::Host));
            (errors, warnings, loaded.config.peers.len())
        }
        Err(LoadError::Content(found)) => (found.errors, Vec::new(), 0),
        Err(other) => return Err(other.into()),
    };
    let code = if errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if args.json {
        print_json(&report(&file, &errors, &warnings, peers))?;
        return Ok(code);
    }
    for error in &errors {
        eprintln!("{}:{}: {}", file.display(), error.line, error.message);
    }
    warn(&file, &warnings);
    if errors.is_empty() {
        println!("{}: good, {}", file.display(), counted(peers, "peer"));
    }
    Ok(code)
}

/// Separates what makes the configuration wrong from warnings. What no tunnel works with is an error here.
fn sorted(found: Vec<Warning>) -> (Vec<ConfigError>, Vec<Warning>) {
    let (mut errors, mut warnings) = (Vec::new(), Vec::new());
    for warning in found {
        match warning {
            Warning::Broken { line, message } => errors.push(ConfigError { line, message }),
            other => warnings.push(other),
        }
    }
    (errors, warnings)
}

/// The routes that `up` would fail to add, as errors.
fn conflicting_routes(interface: &str, config: &Config) -> impl Iterator<Item = ConfigError> {
    up::conflicting_routes(interface, config).into_iter().map(|(prefix, other)| {
        let peer = config.peers.iter().find(|peer| peer.allowed_ips.contains(&prefix));
        let message = format!(
            "AllowedIPs {prefix}: {other}, which is up, has this route: expected another network, or {other} to go down first"
        );
        ConfigError { line: peer.map_or(1, |peer| peer.line.0), message }
    })
}

fn report(file: &Path, errors: &[ConfigError], warnings: &[Warning], peers: usize) -> CheckReport {
    let error = |error: &ConfigError| Diagnostic { line: Some(error.line), message: error.message.clone() };
    let warning = |warning: &Warning| Diagnostic { line: warning.line(), message: warning.to_string() };
    CheckReport {
        file: file.display().to_string(),
        ok: errors.is_empty(),
        peers,
        errors: errors.iter().map(error).collect(),
        warnings: warnings.iter().map(warning).collect(),
    }
}

pub(super) fn strip(args: &StripArgs) -> Result<(), Failure> {
    let loaded = load(&args.given)?;
    print_secret(&loaded.document.strip())
}

/// Reads a configuration, and prints its warnings to standard error.
pub(super) fn load(given: &str) -> Result<Loaded, Failure> {
    let loaded = Place::find(given)?.load(Permissions::Warn)?;
    warn(&loaded.place.file, &loaded.warnings);
    Ok(loaded)
}

fn warn(file: &Path, warnings: &[Warning]) {
    for warning in warnings {
        eprintln!("warning: {}", warning.describe(file));
    }
}
