//! What the process of a tunnel does while it lives, whether it made the tunnel or took it over.
//!
//! This file takes over what a process has but one of: signals, and the connection to the service manager.

use super::{daemon, finish};
use crate::device::status::Summary;
use crate::gateway::notify::{Notify, REPORT_INTERVAL, describe};
use crate::gateway::{Failure, confine, http, upkeep};
use crate::tunnel::plural::counted;
use crate::tunnel::{Error, Tunnel, TunnelStatus};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;
use tokio::signal::unix::{SignalKind, signal};

/// Starts the threads beside the tunnel: for its endpoints, where it has a file, and for its listener, where one is asked for.
pub(super) fn accompany(
    tunnel: &Tunnel,
    file: Option<PathBuf>,
    http: Option<http::Listener>,
) -> std::io::Result<()> {
    if let Some(file) = file {
        upkeep::start(tunnel.name().to_owned(), file)?;
    }
    http.map_or(Ok(()), |http| http.serve(tunnel.name().to_owned()))
}

/// Filters the system calls, once all rings are there.
pub(super) fn confine_started(tunnel: &Tunnel) {
    // The slow path answers when it has its ring, and where it cannot have one, why not is known at the tunnel's end.
    let _ = tunnel.status();
    confine::after_start();
}

/// Tells those who wait that the tunnel is there, and the service manager from time to time how it fares. `is_new` says that the
/// tunnel was made here.
pub(super) fn live(tunnel: &Tunnel, manager: Option<Notify>, is_new: bool) -> Result<(), Error> {
    daemon::ready();
    let Some(manager) = manager else { return tunnel.wait() };
    if is_new {
        manager.ready(&format!("{}: {}, no peers yet", tunnel.name(), counted(tunnel.workers(), "worker")));
    }
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
    match tunnel.successor() {
        Some(process) => manager.succeeded_by(process),
        None => manager.stopping(),
    }
    ended
}

fn summary(status: &TunnelStatus) -> Summary {
    let &TunnelStatus { peers, alive, rx_bytes, tx_bytes, .. } = status;
    Summary { peers, alive, rx_bytes, tx_bytes }
}

/// The exit code of a tunnel that has ended.
pub(super) fn ended(tunnel: &Tunnel, outcome: Result<(), Error>) -> ExitCode {
    match outcome {
        // Nobody waits for a background process, and deleting its interface is the way to end it.
        Err(Error::Deleted { name, .. }) if daemon::is_child() => {
            log::info!("{name}: the interface was deleted, and the tunnel ends");
            ExitCode::SUCCESS
        }
        Ok(()) if let Some(process) = tunnel.successor() => {
            log::info!("{}: this process ends, as process {process} goes on", tunnel.name());
            ExitCode::SUCCESS
        }
        outcome => finish(outcome.map_err(Failure::Tunnel)),
    }
}

/// SIGTERM and SIGINT, which a thread of their own catches.
pub(super) struct Signals(mpsc::Sender<Tunnel>);

impl Signals {
    /// Catches the signals. From now on they do not end the process, but the tunnel that [`Self::stop`] names.
    pub(super) fn catch() -> std::io::Result<Signals> {
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
    pub(super) fn stop(&self, tunnel: &Tunnel) {
        let _ = self.0.send(tunnel.clone()); // the thread waits for it
    }
}
