//! `upgrade`: a running tunnel goes on in another program. And `take-over`, as which that program runs.

use super::living::{Signals, accompany, confine_started, ended, live};
use super::output::{print_bytes, print_json};
use super::{candidates, daemon, finish, logger};
use crate::gateway::successor::ProcessNote;
use crate::gateway::upgrade::{self, UpgradeRequest};
use crate::gateway::{Failure, confine, executable};
use crate::io::tun;
use crate::tunnel::{Predecessor, Tunnel};
use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Args)]
#[command(after_help = "Examples:
  ringtun upgrade wg0                  wg0 goes on in this program, after its file was replaced
  ringtun upgrade wg0 --workers 2      with another number of workers
  ringtun upgrade wg0 --program $(command -v ringtun)
  ringtun upgrade wg0 --if-replaced    nothing to do where wg0 runs in this very program
  for name in $(ringtun show interfaces); do ringtun upgrade $name; done

Sessions, counters and keys stay as they are, and so do the interface, its addresses and routes:
peers notice nothing. The tunnel stands still for some milliseconds; what arrives meanwhile waits.
Where the program does not take it over, it goes on as before.
Exit status: 0 done, 1 the tunnel goes on in the process that it was in.")]
pub(super) struct UpgradeArgs {
    /// Interface
    #[arg(value_name = "NAME", add = ArgValueCompleter::new(|_: &std::ffi::OsStr| candidates::interfaces()))]
    interface: String,
    /// The program that goes on [default: this one]
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
    /// Number of workers from now on [default: as many as there are]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    workers: Option<u16>,
    /// Do nothing where the running process is of the program's file already
    #[arg(long)]
    if_replaced: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: UpgradeArgs) -> Result<(), Failure> {
    tun::check_name(&args.interface).map_err(Failure::Invalid)?;
    let UpgradeArgs { interface, program, workers, if_replaced, json } = args;
    let this = || executable::path().map_err(Failure::of("cannot find this program"));
    let program = program.map_or_else(this, Ok)?;
    if if_replaced && upgrade::is_up_to_date(&interface, &program)? {
        return Ok(());
    }
    let upgraded = upgrade::run(&UpgradeRequest { interface: &interface, program: &program, workers })?;
    if json {
        return print_json(&upgraded);
    }
    let upgrade::Upgraded { interface, from, to, .. } = upgraded;
    print_bytes(
        format!(
            "{interface} goes on in process {} (version {}), in place of {} (version {})\n",
            to.pid, to.version, from.pid, from.version
        )
        .as_bytes(),
    )
}

#[derive(Args)]
pub(super) struct TakeOverArgs {
    /// Interface
    #[arg(value_name = "NAME")]
    interface: String,
    /// Number of workers
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    workers: Option<u16>,
}

/// Takes the tunnel over from the process that has it, and lives as that did.
pub(super) fn take_over(args: &TakeOverArgs) -> ExitCode {
    logger::init(daemon::is_child(), &args.interface);
    // A process in the background has no standard error, and a panic ends it.
    std::panic::set_hook(Box::new(|panic| log::error!("{panic}")));
    // Whoever ends the command that started this one must not end the tunnel. It may lead a session already.
    let _ = rustix::process::setsid();
    match begin(args) {
        Ok((tunnel, note)) => ended(&tunnel, live(&tunnel, note.manager(), false)),
        Err(failure) => finish(Err(failure)),
    }
}

fn begin(args: &TakeOverArgs) -> Result<(Tunnel, ProcessNote), Failure> {
    let mut predecessor = Predecessor::ask(&args.interface).map_err(Failure::Tunnel)?;
    let belongings = predecessor.belongings();
    let note = ProcessNote::parse(&belongings.note).ok_or_else(|| {
        Failure::new(format!(
            "{} is the tunnel of another program, which this one cannot go on with",
            args.interface
        ))
    })?;
    note.apply();
    let http = note.listener(belongings).map_err(Failure::of("--http"))?;
    predecessor.enter_network().map_err(Failure::Tunnel)?;
    if note.confined {
        confine::before_start(note.config.as_deref());
    }
    let signals = Signals::catch().map_err(Failure::of("cannot catch signals"))?;
    // The next process is to find what this one found, and not what it had from the command that started it.
    let left = note.belongings(http.as_ref()).map_err(Failure::of("cannot share the listener"))?;
    let workers = args.workers.map(usize::from);
    let tunnel = predecessor.take_over(workers, left).map_err(Failure::Tunnel)?;
    signals.stop(&tunnel);
    // There is no way back, so the tunnel goes on without what fails here.
    if let Err(error) = accompany(&tunnel, note.config.clone(), http) {
        log::error!("{}: cannot start a thread: {error}", tunnel.name());
    }
    if note.confined {
        confine_started(&tunnel);
    }
    Ok((tunnel, note))
}
