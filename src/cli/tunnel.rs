//! `ringtun NAME`: a tunnel of this process, in the foreground or in the background, until a signal or its interface's
//! end.
//!
//! This file takes over what a process has but one of: signals, the log, the limit on files, and the connection to the
//! service manager.

use super::args::TunnelArgs;
use super::{daemon, finish, logger};
use crate::device::status::Summary;
use crate::gateway::notify::{Notify, REPORT_INTERVAL, describe};
use crate::gateway::{Failure, confine, http, limits, upkeep};
use crate::tunnel::plural::counted;
use crate::tunnel::{Builder, Error, Tunnel, TunnelStatus};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;
use tokio::signal::unix::{SignalKind, signal};

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
    match live(&tunnel) {
        // Nobody waits for a background process, and deleting its interface is the way to end it.
        Err(Error::Deleted { name, .. }) if daemon::is_child() => {
            log::info!("{name}: the interface was deleted, and the tunnel ends");
            ExitCode::SUCCESS
        }
        outcome => finish(outcome.map_err(Failure::Tunnel)),
    }
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

/// Starts the threads beside the tunnel: for its endpoints, where it has a file, and for its listener, where one is asked for.
fn accompany(tunnel: &Tunnel, file: Option<PathBuf>, http: Option<http::Listener>) -> std::io::Result<()> {
    if let Some(file) = file {
        upkeep::start(tunnel.name().to_owned(), file)?;
    }
    http.map_or(Ok(()), |http| http.serve(tunnel.name().to_owned()))
}

/// Filters the system calls, once all rings are there.
fn confine_started(tunnel: &Tunnel) {
    // The slow path answers when it has its ring, and where it cannot have one, why not is known at the tunnel's end.
    let _ = tunnel.status();
    confine::after_start();
}

/// Tells those who wait that the tunnel is there, and the service manager from time to time how it fares.
fn live(tunnel: &Tunnel) -> Result<(), Error> {
    daemon::ready();
    let manager = if daemon::is_child() { None } else { Notify::from_env() };
    let Some(manager) = manager else { return tunnel.wait() };
    manager.ready(&format!("{}: {}, no peers yet", tunnel.name(), counted(tunnel.workers(), "worker")));
    let mut last = None;
    let ended = loop {
        if let Some(ended) = tunnel.wait_timeout(REPORT_INTERVAL) {
            break ended;
        }
        if let Ok(status) = tunnel.status() {
            let now = summary(&status);
            manager.status(&describe(last.replace(now), now));
        }
    };
    manager.stopping();
    ended
}

fn summary(status: &TunnelStatus) -> Summary {
    let &TunnelStatus { peers, alive, rx_bytes, tx_bytes, .. } = status;
    Summary { peers, alive, rx_bytes, tx_bytes }
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

/// SIGTERM and SIGINT, which a thread of their own catches.
struct Signals(mpsc::Sender<Tunnel>);

impl Signals {
    /// Catches the signals. From now on they do not end the process, but the tunnel that [`Self::stop`] names.
    fn catch() -> std::io::Result<Signals> {
        let (tunnels, to_stop) = mpsc::channel::<Tunnel>();
        let (caught, is_caught) = mpsc::channel();
        let wait = move || {
            let report = |outcome| drop(caught.send(outcome)); // the one who waits for it is alive
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return report(Err(error)),
            };
            runtime.block_on(async {
                let signals =
                    signal(SignalKind::terminate()).and_then(|t| Ok((t, signal(SignalKind::interrupt())?)));
                let (mut terminate, mut interrupt) = match signals {
                    Ok(signals) => signals,
                    Err(error) => return report(Err(error)),
                };
                report(Ok(()));
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
            });
            // A tunnel that failed to start is never named.
            if let Ok(tunnel) = to_stop.recv() {
                tunnel.stop();
            }
        };
        std::thread::Builder::new().name("ringtun-signal".into()).spawn(wait)?;
        is_caught.recv().map_err(std::io::Error::other)??;
        Ok(Signals(tunnels))
    }

    /// Names the tunnel that a signal stops, even a signal that arrived already.
    fn stop(&self, tunnel: &Tunnel) {
        let _ = self.0.send(tunnel.clone()); // the thread waits for it
    }
}
