//! The command line: arguments become a validated request, the request runs, an error becomes an exit code.
//!
//! Exit codes: 0 for done, 1 for failed, 2 for wrong usage (clap's own), 78 for a service whose configuration is missing
//! or wrong. `why` has its own, which its help tells.

mod args;
mod bench;
mod candidates;
mod config;
mod daemon;
mod doctor;
mod exchange;
mod generate;
mod keys;
mod living;
mod logger;
mod manual;
mod monitor;
mod mtu;
mod output;
mod peer;
mod peer_hooks;
mod service;
mod show;
mod suggest;
mod top;
mod tunnel;
mod updown;
mod upgrade;
mod why;

use crate::gateway::Failure;
use args::{Cli, Command};
use clap::{CommandFactory, Parser};
use clap_complete::CompleteEnv;
use std::process::ExitCode;

/// Runs the program with this process's arguments.
pub fn main() -> ExitCode {
    // A shell that completes a command line sets COMPLETE, and this ends the process then.
    CompleteEnv::with_factory(Cli::command).complete();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return wrong_usage(&error),
    };
    let done = match cli.command {
        Some(Command::Genkey) => keys::genkey(),
        Some(Command::Genpsk) => keys::genpsk(),
        Some(Command::Pubkey) => keys::pubkey(),
        Some(Command::Service(args)) => return service::run(&args),
        Some(Command::Show(args)) => show::show(&args),
        Some(Command::Showconf(args)) => show::showconf(&args),
        Some(Command::Status(args)) => show::status(&args),
        Some(Command::Top(args)) => top::run(&args),
        Some(Command::Why(args)) => match why::run(&args) {
            Ok(code) => return code,
            Err(failure) => Err(failure),
        },
        Some(Command::Monitor(args)) => monitor::run(&args),
        Some(Command::Generate(command)) => generate::run(&command, Cli::command()),
        Some(Command::Doctor(args)) => match doctor::run(&args) {
            Ok(code) => return code,
            Err(failure) => Err(failure),
        },
        Some(Command::Bench(args)) => bench::run(&args),
        Some(Command::Up(args)) => updown::up(&args),
        Some(Command::Down(args)) => updown::down(&args),
        Some(Command::Save(args)) => updown::save(&args),
        Some(Command::Reload(args)) => updown::reload(&args),
        Some(Command::Upgrade(args)) => upgrade::run(args),
        Some(Command::TakeOver(args)) => return upgrade::take_over(&args),
        Some(Command::Check(args)) => match config::check(&args) {
            Ok(code) => return code,
            Err(failure) => Err(failure),
        },
        Some(Command::Strip(args)) => config::strip(&args),
        Some(Command::Mtu(args)) => mtu::mtu(&args),
        Some(Command::PeerHooks(args)) => return peer_hooks::run(&args),
        Some(Command::Peer(command)) => peer::run(command),
        Some(Command::Import(args)) => exchange::import(&args),
        Some(Command::Export(args)) => exchange::export(&args),
        None => match &cli.tunnel.name {
            Some(name) if let Some(meant) = mistyped(name) => return not_a_name(name, &meant),
            Some(_) => return tunnel::run(cli.tunnel),
            None => {
                // clap has no way to say "a name or a subcommand"
                let _ = Cli::command().print_help();
                return ExitCode::from(2);
            }
        },
    };
    finish(done)
}

/// The answer to a command line that clap refuses. It is clap's own, unless the first word is a verb mistyped: then the
/// rest of the line is not at fault. Behind a verb that there is, the rest is.
fn wrong_usage(error: &clap::Error) -> ExitCode {
    let first = std::env::args_os().nth(1).and_then(|word| word.into_string().ok());
    match first.filter(|word| !is_verb(word)).and_then(|word| Some((mistyped(&word)?, word))) {
        Some((meant, word)) if error.use_stderr() => not_a_name(&word, &meant),
        _ => error.exit(),
    }
}

/// Whether there is a command of this name.
fn is_verb(word: &str) -> bool {
    word == "help" || Cli::command().get_subcommands().any(|verb| verb.get_name() == word)
}

/// The command that a name is probably meant to be. What stands behind `--` is a name, whatever it looks like.
fn mistyped(name: &str) -> Option<String> {
    if std::env::args_os().any(|word| word == "--") {
        return None;
    }
    let cli = Cli::command();
    let verbs = cli.get_subcommands().filter(|verb| !verb.is_hide_set()).map(clap::Command::get_name);
    suggest::command(name, verbs.chain(["help"]))
}

fn not_a_name(name: &str, meant: &str) -> ExitCode {
    logger::fail(&format!(
        "there is no command `{name}`: did you mean `{meant}`? For an interface of this name: ringtun -- {name}"
    ));
    ExitCode::from(2)
}

fn finish(outcome: Result<(), Failure>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            logger::fail(&format!("{failure:#}"));
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verb_is_told_from_a_verb_mistyped() {
        assert!(["show", "bench", "help", "generate"].iter().all(|word| is_verb(word)));
        assert!(!["shwo", "wg0", "-f", ""].iter().any(|word| is_verb(word)));
    }
}
