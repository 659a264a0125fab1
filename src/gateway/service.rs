//! A tunnel under a service manager: brought up, reported as ready, looked after, and taken down again.
//!
//! Each change of the host is a run of this very program (`up`, `reload`, `down`). What a person does by hand and what
//! the manager does is the same, and the output of each run goes to the journal.

use crate::gateway::config::{Permissions, Place};
use crate::gateway::notify::{Notify, REPORT_INTERVAL, describe};
use crate::gateway::{Failure, client, executable};
use rustix::process::{Pid, Signal as Kill, kill_process};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval, sleep};

/// Pause between two checks whether a run has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Runs the tunnel `given`, a name or a file, until SIGTERM or SIGINT. SIGHUP makes it reload its file.
///
/// # Errors
///
/// [`Failure::Load`] where the file is missing or wrong: a new start is of no use before somebody mends it. Another
/// where the tunnel does not come up, or ends by itself, which a new start may get past.
pub fn run(given: &str) -> Result<(), Failure> {
    let interface = Place::find(given)?.load(Permissions::Refuse)?.place.interface;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(Failure::of("cannot wait for signals"))?;
    runtime.block_on(async {
        let catch = |kind| signal(kind).map_err(Failure::of("cannot catch signals"));
        let service = Service {
            given,
            interface,
            manager: Notify::from_env(),
            stop: [catch(SignalKind::terminate())?, catch(SignalKind::interrupt())?],
            reload: catch(SignalKind::hangup())?,
        };
        service.live().await
    })
}

struct Service<'a> {
    given: &'a str,
    interface: String,
    manager: Option<Notify>,
    stop: [Signal; 2],
    reload: Signal,
}

impl Service<'_> {
    async fn live(mut self) -> Result<(), Failure> {
        if let Stopped(true) = self.verb("up").await? {
            self.tell(Notify::stopping);
            return Ok(());
        }
        self.tell(|manager| manager.ready("The tunnel is up"));
        let ended = self.look_after().await;
        self.tell(Notify::stopping);
        // This is done also where the tunnel ended by itself: routes, rules and hooks are still to be undone.
        let down = self.verb("down").await.map(drop);
        ended.and(down)
    }

    /// Reports the tunnel's state until a signal arrives (`Ok`) or the tunnel ends.
    async fn look_after(&mut self) -> Result<(), Failure> {
        let mut tick = interval(REPORT_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last = None;
        loop {
            let [terminate, interrupt] = &mut self.stop;
            tokio::select! {
                biased;
                _ = terminate.recv() => return Ok(()),
                _ = interrupt.recv() => return Ok(()),
                _ = self.reload.recv() => self.reload_now().await?,
                _ = tick.tick() => {
                    let now =
                        client::summary(&self.interface).map_err(Failure::of("the tunnel ended by itself"))?;
                    self.tell(|manager| manager.status(&describe(last.replace(now), now)));
                }
            }
        }
    }

    /// Reloads the file. Where that fails, the tunnel stays as it is.
    async fn reload_now(&mut self) -> Result<(), Failure> {
        self.tell(Notify::reloading);
        let done = self.verb("reload").await;
        let status =
            if done.is_ok() { "Reloaded" } else { "Running; its configuration could not be reloaded" };
        if let Err(error) = done {
            log::error!("{error:#}");
        }
        self.tell(|manager| manager.ready(status));
        Ok(())
    }

    /// Runs `ringtun VERB GIVEN`. A signal is passed on, once, to `up`, which then undoes what it did. The other verbs
    /// end soon, and must not be cut short.
    async fn verb(&mut self, verb: &str) -> Result<Stopped, Failure> {
        let failed = |error: std::io::Error| Failure::of(format!("cannot run `ringtun {verb}`"))(error);
        let program = executable::path().map_err(failed)?;
        let mut command = Command::new(program);
        // The manager listens to this process, and not to the tunnel's own.
        command.args([verb, self.given]).env_remove("NOTIFY_SOCKET").stdin(Stdio::null());
        let mut child = command.spawn().map_err(failed)?;
        let mut stopped = false;
        let status: ExitStatus = loop {
            if let Some(status) = child.try_wait().map_err(failed)? {
                break status;
            }
            let [terminate, interrupt] = &mut self.stop;
            tokio::select! {
                _ = terminate.recv(), if verb == "up" && !stopped => stopped = true,
                _ = interrupt.recv(), if verb == "up" && !stopped => stopped = true,
                _ = sleep(POLL_INTERVAL) => continue,
            }
            // This fails only where the run ended meanwhile, which the next look finds.
            let _ = kill_process(Pid::from_child(&child), Kill::TERM);
        };
        match (status.success(), stopped) {
            (true, false) => Ok(Stopped(false)),
            // The signal arrived when all was done. The tunnel is taken down as if it had come a moment later.
            (true, true) => {
                Box::pin(self.verb("down")).await?;
                Ok(Stopped(true))
            }
            (false, true) => Ok(Stopped(true)),
            (false, false) => Err(Failure::new(format!("`ringtun {verb} {}` failed ({status})", self.given))),
        }
    }

    fn tell(&self, what: impl FnOnce(&Notify)) {
        if let Some(manager) = &self.manager {
            what(manager);
        }
    }
}

/// Whether a signal asked for the end of the service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stopped(bool);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tunnel_without_a_file_is_refused_before_anything_is_done() {
        let failure = run("/nonexistent/wg0.conf").unwrap_err();
        assert!(
            matches!(failure, Failure::Load(error) if error.to_string().contains("/nonexistent/wg0.conf"))
        );
    }
}
