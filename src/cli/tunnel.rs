//! `ringtun NAME`: a tunnel of this process, in the foreground or in the background, until a signal or its interface's
//! end.

use super::args::TunnelArgs;
use super::living::{Signals, accompany, confine_started, ended, live};
use super::{daemon, finish, logger};
use crate::gateway::notify::Notify;
use crate::gateway::successor::ProcessNote;
use crate::gateway::{Failure, confine, http, limits};
use crate::tunnel::{Belongings, Builder, Tunnel};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Runs the tunnel in this process in the foreground. Otherwise a child does so, and this process waits until the child
/// is ready or failed.
pub(super) fn run(args: TunnelArgs) -> ExitCode {
    let background = !args.foreground && !daemon::asks_for_foreground() && !daemon::is_child();
    if background {
        return match daemon::spawn_and_wait() {
            Ok(code) => {
                if code == ExitCode::SUCCESS && !args.is_started_by_up() {
                    announce(args.name.as_deref().unwrap_or_default(), true);
                }
                code
            }
            Err(error) => finish(Err(Failure::of("cannot start the background process")(error))),
        };
    }
    logger::init(daemon::is_child(), args.name.as_deref().unwrap_or_default());
    // A process in the background has no standard error, and a panic ends it.
    std::panic::set_hook(Box::new(|panic| log::error!("{panic}")));
    let says = !daemon::is_child() && !args.is_started_by_up() && !TunnelArgs::is_handed_a_device();
    let upkeep = args.config.clone();
    let confined = !args.unconfined;
    let http = args.http.clone();
    let builder = match args.into_builder() {
        Ok(builder) => builder,
        Err(failure) => {
            logger::fail(&format!("{failure:#}"));
            return ExitCode::from(2);
        }
    };
    let tunnel = match begin(builder, upkeep, http.as_ref(), confined) {
        Ok(tunnel) => tunnel,
        Err(failure) => return finish(Err(failure)),
    };
    if says {
        announce(tunnel.name(), false);
    }
    let manager = if daemon::is_child() { None } else { Notify::from_env() };
    ended(&tunnel, live(&tunnel, manager, true))
}

/// Starts the tunnel and what accompanies it, and gives up what none of that needs.
fn begin(
    builder: Builder,
    file: Option<PathBuf>,
    http: Option<&http::HttpAddress>,
    confined: bool,
) -> Result<Tunnel, Failure> {
    limits::raise_descriptors();
    // A port below 1024 and the place of a socket may need rights that are about to go.
    let http = http.map(http::Listener::bind).transpose().map_err(Failure::of("--http"))?;
    if confined {
        confine::before_start(file.as_deref());
    }
    let signals = Signals::catch().map_err(Failure::of("cannot catch signals"))?;
    let builder = match belongings(file.as_deref(), http.as_ref(), confined) {
        Some(belongings) => builder.belongings(belongings.map_err(Failure::of("cannot share the listener"))?),
        None => builder,
    };
    let tunnel = builder.start().map_err(Failure::Tunnel)?;
    signals.stop(&tunnel);
    if let Err(error) = accompany(&tunnel, file, http) {
        tunnel.stop();
        // What is reported is why the tunnel had to end.
        let _ = tunnel.wait();
        return Err(Failure::of(format!("{}: cannot start a thread", tunnel.name()))(error));
    }
    if confined {
        confine_started(&tunnel);
    }
    Ok(tunnel)
}

/// What goes along where another process takes the tunnel over. None may where this is the first process of a container, which would
/// end with it.
fn belongings(
    file: Option<&Path>,
    http: Option<&http::Listener>,
    confined: bool,
) -> Option<std::io::Result<Belongings>> {
    let manager = if daemon::is_child() { None } else { std::env::var_os("NOTIFY_SOCKET") };
    let note = ProcessNote::of_this(file, confined, manager.as_deref());
    (std::process::id() != 1).then(|| note.belongings(http))
}

/// Says on a terminal what a bare name came to, so that `wg` and `ip` can go on from there.
fn announce(name: &str, is_background: bool) {
    if !std::io::stderr().is_terminal() {
        return;
    }
    let end = match is_background {
        true => format!("it runs in the background until `ip link delete dev {name}`"),
        false => "it runs until Ctrl-C".to_owned(),
    };
    eprintln!(
        "created the WireGuard interface {name}, down and without keys: `wg set {name} …` and `ip link set {name} up` \
         go on from here; {end}"
    );
}
