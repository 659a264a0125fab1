//! `service`: a tunnel for a service manager.

use super::logger;
use crate::gateway::service;
use clap::Args;

#[derive(Args)]
#[command(after_help = "Examples:
  systemctl enable --now ringtun@wg0      runs `ringtun service wg0`
  systemctl reload ringtun@wg0            `ringtun reload wg0`; so does SIGHUP
  ringtun service ./office.conf           by hand; Ctrl-C takes the tunnel down

Tells the service manager (NOTIFY_SOCKET) when the tunnel is up, and every few seconds its peers and rate.")]
pub(super) struct ServiceArgs {
    /// Interface, for /etc/wireguard/NAME.conf, or path of a file NAME.conf
    #[arg(value_name = "NAME|FILE")]
    config: String,
}

pub(super) fn run(args: &ServiceArgs) -> Result<(), String> {
    logger::init(false, &args.config);
    service::run(&args.config)
}
