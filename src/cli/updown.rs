//! `up`, `down`, `save` and `reload`, which work on a tunnel by its configuration.

use super::candidates;
use super::logger;
use crate::gateway::Failure;
use crate::gateway::up::{self, Console, Options};
use clap::Args;
use clap_complete::engine::ArgValueCompleter;

const UP_EXAMPLES: &str = "\
Examples:
  ringtun up wg0                      from /etc/wireguard/wg0.conf
  ringtun up ./office.conf            makes the interface `office'
  ringtun up --clamp-mss wg0          a gateway for hosts that know nothing of the tunnel's MTU

Each step is printed as the command that would do the same. Where one fails, or Ctrl-C is pressed, all of them are undone.
A line `# ClampMSS = true` in the file has the effect of --clamp-mss.";

#[derive(Args)]
#[command(after_help = UP_EXAMPLES)]
pub(super) struct UpArgs {
    /// Interface, for /etc/wireguard/NAME.conf, or path of a file NAME.conf
    #[arg(value_name = "NAME|FILE", add = ArgValueCompleter::new(candidates::configurations))]
    config: String,
    /// Clamp the segment size of forwarded TCP connections to what the tunnel holds (needs nft or iptables)
    #[arg(long)]
    clamp_mss: bool,
}

#[derive(Args)]
#[command(after_help = "Examples:\n  ringtun down wg0\n  ringtun down ./office.conf")]
pub(super) struct DownArgs {
    /// Interface, for /etc/wireguard/NAME.conf, or path of a file NAME.conf
    #[arg(value_name = "NAME|FILE", add = ArgValueCompleter::new(candidates::configurations))]
    config: String,
}

#[derive(Args)]
#[command(
    after_help = "Example:\n  ringtun save wg0                    keeps comments, order and names in /etc/wireguard/wg0.conf"
)]
pub(super) struct SaveArgs {
    /// Interface, for /etc/wireguard/NAME.conf, or path of a file NAME.conf
    #[arg(value_name = "NAME|FILE", add = ArgValueCompleter::new(candidates::configurations))]
    config: String,
}

#[derive(Args)]
#[command(
    after_help = "Example:\n  ringtun reload wg0                  after a change of /etc/wireguard/wg0.conf\n\n\
        Peers that stay as they are keep their sessions. Hooks do not run, and DNS stays as it is. Routes that somebody \
        deleted come back; what hooks or people added (addresses, routes, an MTU, preshared keys) stays.\n\
        Where a step fails, or Ctrl-C is pressed, everything is left as it was."
)]
pub(super) struct ReloadArgs {
    /// Interface, for /etc/wireguard/NAME.conf, or path of a file NAME.conf
    #[arg(value_name = "NAME|FILE", add = ArgValueCompleter::new(candidates::configurations))]
    config: String,
}

pub(super) fn up(args: &UpArgs) -> Result<(), Failure> {
    with_console(&args.config, |console| up::up(&args.config, Options { clamp_mss: args.clamp_mss }, console))
}

pub(super) fn down(args: &DownArgs) -> Result<(), Failure> {
    with_console(&args.config, |console| up::down(&args.config, console))
}

pub(super) fn save(args: &SaveArgs) -> Result<(), Failure> {
    with_console(&args.config, |console| up::save(&args.config, console))
}

pub(super) fn reload(args: &ReloadArgs) -> Result<(), Failure> {
    with_console(&args.config, |console| up::reload(&args.config, console))
}

/// Runs a command whose steps are reported on standard error, as wg-quick's are.
fn with_console(config: &str, act: impl FnOnce(Console<'_>) -> Result<(), Failure>) -> Result<(), Failure> {
    logger::init(false, config);
    act(Console::new(&mut logger::say))
}
