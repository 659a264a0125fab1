//! `peer-hooks`: the process that runs the hooks of a tunnel's peers. `up` and `reload` start it.

use super::{daemon, finish, logger};
use crate::gateway::{Failure, peer_hooks};
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Args)]
pub(super) struct PeerHooksArgs {
    /// Interface
    #[arg(value_name = "NAME")]
    interface: String,
    /// The configuration that has the hooks
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Goes to the background, where a child runs the hooks. This process waits until the child is ready or failed.
pub(super) fn run(args: &PeerHooksArgs) -> ExitCode {
    if !daemon::is_child() {
        return match daemon::spawn_and_wait() {
            Ok(code) => code,
            Err(error) => finish(Err(Failure::of("cannot start the background process")(error))),
        };
    }
    logger::init(true, &args.interface);
    finish(peer_hooks::run(&args.interface, &args.file, daemon::ready))
}
