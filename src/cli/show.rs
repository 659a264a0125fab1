//! `show`, `showconf`, `status`: running devices, on standard output.

use super::candidates;
use super::output::{paint, print_bytes, print_json};
use crate::gateway::live::Look;
use crate::gateway::metrics::{self, Measured, TextFormat};
use crate::gateway::show::{self, Field, View};
use crate::gateway::{Failure, client};
use clap::{Args, ValueEnum};
use clap_complete::engine::ArgValueCandidates;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

#[derive(Args)]
#[command(after_help = "Examples:
  ringtun show                       all tunnels
  ringtun show wg0                   one of them
  ringtun show wg0 --verbose         with the peers' names and the worker that owns each
  ringtun show all dump              everything, tab-separated, each line with its interface
  ringtun show wg0 transfer
  ringtun show wg0 --json | jq '.[].peers[].owner'

Without --verbose and --json the output is that of `wg show`, to the letter.

Environment:
  WG_COLOR_MODE  always, never, auto (default: only on a terminal, and without NO_COLOR)
  WG_HIDE_KEYS   never: private and preshared keys are shown, too")]
pub(super) struct ShowArgs {
    /// Interface; `all` for each of them, `interfaces` for their names
    #[arg(value_name = "NAME|all|interfaces", default_value = "all", add = ArgValueCandidates::new(candidates::shown))]
    interface: String,
    /// One field only
    #[arg(value_name = "FIELD", conflicts_with_all = ["json", "verbose"])]
    field: Option<FieldArg>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Show also the peers' names and the worker that owns each peer
    #[arg(short, long, conflicts_with = "json")]
    verbose: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum FieldArg {
    PublicKey,
    PrivateKey,
    ListenPort,
    Fwmark,
    Peers,
    PresharedKeys,
    Endpoints,
    AllowedIps,
    LatestHandshakes,
    PersistentKeepalive,
    Transfer,
    /// All of them, tab-separated
    Dump,
}

impl From<FieldArg> for Field {
    fn from(field: FieldArg) -> Field {
        match field {
            FieldArg::PublicKey => Field::PublicKey,
            FieldArg::PrivateKey => Field::PrivateKey,
            FieldArg::ListenPort => Field::ListenPort,
            FieldArg::Fwmark => Field::Fwmark,
            FieldArg::Peers => Field::Peers,
            FieldArg::PresharedKeys => Field::PresharedKeys,
            FieldArg::Endpoints => Field::Endpoints,
            FieldArg::AllowedIps => Field::AllowedIps,
            FieldArg::LatestHandshakes => Field::LatestHandshakes,
            FieldArg::PersistentKeepalive => Field::PersistentKeepalive,
            FieldArg::Transfer => Field::Transfer,
            FieldArg::Dump => Field::Dump,
        }
    }
}

#[derive(Args)]
#[command(after_help = "Example:\n  (umask 077; ringtun showconf wg0 > wg0.setconf)")]
pub(super) struct ShowconfArgs {
    /// Interface
    #[arg(value_name = "NAME", add = ArgValueCandidates::new(candidates::interfaces))]
    interface: String,
}

#[derive(Args)]
#[command(after_help = "Examples:
  ringtun status wg0                 rates, shares, and what was dropped and why
  ringtun status wg0 --all           all counters of each worker; ringtun-status(8) explains them
  ringtun status --json
  ringtun status --prometheus > /var/lib/prometheus/node-exporter/ringtun.prom")]
pub(super) struct StatusArgs {
    /// Interface [default: all]
    #[arg(value_name = "NAME", add = ArgValueCandidates::new(candidates::interfaces))]
    interface: Option<String>,
    /// Print all counters of each worker, and how they were shared out
    #[arg(long)]
    all: bool,
    /// Print JSON
    #[arg(long, conflicts_with = "all")]
    json: bool,
    /// Print metrics in the text format of Prometheus
    #[arg(long, conflicts_with_all = ["json", "all"])]
    prometheus: bool,
}

pub(super) fn show(args: &ShowArgs) -> Result<(), Failure> {
    match args.interface.as_str() {
        "interfaces" => interfaces(args),
        "all" => all(args),
        name => one(args, &view(name, args.json || args.verbose)?),
    }
}

fn interfaces(args: &ShowArgs) -> Result<(), Failure> {
    if args.field.is_some() {
        return Err(Failure::new("`interfaces` has no fields"));
    }
    let names = client::interfaces()?;
    match (args.json, names.is_empty()) {
        (true, _) => print_json(&names),
        (false, true) => Ok(()),
        (false, false) => print_bytes(format!("{}\n", names.join(" ")).as_bytes()),
    }
}

fn one(args: &ShowArgs, view: &View) -> Result<(), Failure> {
    match args.field {
        Some(field) => print_bytes(show::field(view, field.into(), false).as_bytes()),
        None if args.json => print_json(&[show::json(view)]),
        None => print_bytes(show::pretty(view, paint(), args.verbose).as_bytes()),
    }
}

fn all(args: &ShowArgs) -> Result<(), Failure> {
    let names = client::interfaces()?;
    let views = each(&names, |name| view(name, args.json || args.verbose))?;
    if args.json {
        print_json(&views.iter().map(show::json).collect::<Vec<_>>())?;
    }
    for (index, view) in views.iter().enumerate().filter(|_| !args.json) {
        if let Some(field) = args.field {
            print_bytes(show::field(view, field.into(), true).as_bytes())?;
            continue;
        }
        print_bytes(show::pretty(view, paint(), args.verbose).as_bytes())?;
        if index + 1 < views.len() {
            print_bytes(b"\n")?;
        }
    }
    Ok(())
}

/// Asks each interface. One that ended meanwhile, does not answer or may not be asked is named and left out, as wg(8)
/// does. Where none is left, that is an error.
fn each<T>(names: &[String], ask: impl Fn(&str) -> Result<T, Failure>) -> Result<Vec<T>, Failure> {
    let mut answers = Vec::new();
    for name in names {
        match ask(name) {
            Ok(answer) => answers.push(answer),
            Err(failure) => eprintln!("ringtun: {failure:#}"),
        }
    }
    match answers.is_empty() && !names.is_empty() {
        true => Err(Failure::new("no tunnel could be shown")),
        false => Ok(answers),
    }
}

pub(super) fn showconf(args: &ShowconfArgs) -> Result<(), Failure> {
    print_bytes(show::showconf(&view(&args.interface, false)?).as_bytes())
}

/// The time between two looks, from which rates are made.
const INTERVAL: Duration = Duration::from_millis(500);

/// How each tunnel does, for people.
fn overviews(args: &StatusArgs) -> Result<(), Failure> {
    let names = match &args.interface {
        Some(name) => vec![name.clone()],
        None => client::interfaces()?,
    };
    let look = |name: &str| match client::status(name)? {
        Some(_) => Look::at(name).map(Some),
        None => Ok(None),
    };
    let first = match names.as_slice() {
        [one] => vec![(one, look(one)?)],
        _ => each(&names, |name| look(name).map(|look| (name.to_owned(), look)))?
            .into_iter()
            .filter_map(|(name, look)| Some((names.iter().find(|one| **one == name)?, look)))
            .collect(),
    };
    if first.iter().any(|(_, look)| look.is_some()) {
        std::thread::sleep(INTERVAL);
    }
    let mut texts = Vec::new();
    for (name, before) in first {
        texts.push(match before {
            Some(before) => {
                let now = Look::at(name)?;
                metrics::overview(&now.since(&before), now.status(), paint())
            }
            None => metrics::table(&Measured::counters_of(name)?),
        });
    }
    print_bytes(texts.join("\n").as_bytes())
}

pub(super) fn status(args: &StatusArgs) -> Result<(), Failure> {
    if !args.all && !args.json && !args.prometheus {
        return overviews(args);
    }
    // Only Prometheus is told of each peer.
    let measure = |name: &str| match args.prometheus {
        true => Measured::of(name).map(Measured::without_secrets),
        false => Measured::counters_of(name),
    };
    let measured = match &args.interface {
        Some(name) => vec![measure(name)?],
        None => each(&client::interfaces()?, measure)?,
    };
    if args.prometheus {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        return print_bytes(metrics::prometheus(&measured, wall, TextFormat::Classic).as_bytes());
    }
    if args.json {
        let of = |one: &Measured| serde_json::json!({ "interface": one.name, "status": one.status });
        return print_json(&measured.iter().map(of).collect::<Vec<_>>());
    }
    let tables: Vec<String> = measured.iter().map(metrics::table).collect();
    print_bytes(tables.join("\n").as_bytes())
}

/// A device as it is now. With `details` come what the file says and what the program itself reports.
fn view(name: &str, details: bool) -> Result<View, Failure> {
    let view = match details {
        true => View::of(&Measured::of(name)?),
        false => View { name: name.to_owned(), device: client::get(name)?, ..View::default() },
    };
    Ok(View {
        now: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        reveal: std::env::var("WG_HIDE_KEYS").is_ok_and(|value| value == "never"),
        ..view
    })
}
