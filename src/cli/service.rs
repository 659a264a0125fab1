//! `service`: a tunnel that a service manager runs.

use super::candidates;
use super::{finish, logger};
use crate::gateway::{Failure, service};
use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use std::process::ExitCode;

#[derive(Args)]
#[command(after_help = "Examples:
  systemctl enable --now ringtun@wg0      runs `ringtun service wg0`
  systemctl reload ringtun@wg0            `ringtun reload wg0`; so does SIGHUP
  ringtun service ./office.conf           by hand; Ctrl-C takes the tunnel down

Tells the service manager (NOTIFY_SOCKET) when the tunnel is up, and every few seconds its peers and rate.
Exit status: 0 stopped by a signal, 78 the file is missing or wrong, 1 anything else that failed.")]
pub(super) struct ServiceArgs {
    /// Interface, for /etc/wireguard/NAME.conf, or path of a file NAME.conf
    #[arg(value_name = "NAME|FILE", add = ArgValueCompleter::new(candidates::configurations))]
    config: String,
}

/// EX_CONFIG of sysexits(3), which systemd knows by name.
const CONFIGURATION: u8 = 78;

pub(super) fn run(args: &ServiceArgs) -> ExitCode {
    logger::init(false, &args.config);
    match service::run(&args.config) {
        Err(failure @ Failure::Load(_)) => {
            logger::fail(&format!("{failure:#}"));
            ExitCode::from(CONFIGURATION)
        }
        outcome => finish(outcome),
    }
}
