//! A tunnel under a service manager: brought up, reported as ready, looked after, and taken down again.
//!
//! Each change of the host is a run of this very program (`up`, `reload`, `down`). What a person does by hand and what
//! the manager does is the same, and the output of each run goes to the journal.

mod end;

use crate::gateway::config::{Permissions, Place};
use crate::gateway::notify::{Notify, REPORT_INTERVAL, describe};
use crate::gateway::{Failure, client, executable};
use crate::sys::process;
use crate::tunnel::socket;
use end::{Fate, Watched};
use rustix::process::{Pid, Signal as Kill, getpid, kill_process, set_child_subreaper};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval, sleep};

/// Pause between two checks whether a run has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Runs the tunnel `given`, a name or a file, until SIGTERM or SIGINT. SIGHUP makes it reload its file. A tunnel whose process
/// crashes is started anew at once, unless it does so again and again.
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
            later: None,
            interface,
            manager: Notify::from_env(),
            stop: [catch(SignalKind::terminate())?, catch(SignalKind::interrupt())?],
            reload: catch(SignalKind::hangup())?,
            children: catch(SignalKind::child())?,
            crashes: Crashes::default(),
        };
        service.live().await
    })
}

/// How long a crash counts against the tunnel, and how many of them in that time are too many.
const CRASH_MEMORY: Duration = Duration::from_secs(60);
const MOST_CRASHES: usize = 5;

struct Service<'a> {
    given: &'a str,
    /// The program that changes the host, once the tunnel goes on in a later one. `None` is this one.
    later: Option<PathBuf>,
    interface: String,
    manager: Option<Notify>,
    stop: [Signal; 2],
    reload: Signal,
    children: Signal,
    crashes: Crashes,
}

/// Why the tunnel is looked after no more.
enum EndOfCare {
    /// A signal asked for it.
    Asked,
    /// The tunnel's process ended as none should: what the kernel said of it.
    Crashed(String),
    /// The tunnel ended in another way, which a new start would not mend.
    Gone(Failure),
}

impl Service<'_> {
    async fn live(mut self) -> Result<(), Failure> {
        // The tunnel's process becomes a child of this one when `up`, which starts it, ends: so its own end is heard of at once.
        if let Err(error) = set_child_subreaper(Some(getpid())) {
            log::debug!("the tunnel's process cannot become a child: {error}");
        }
        loop {
            if let Stopped(true) = self.verb("up").await? {
                self.tell(Notify::stopping);
                return Ok(());
            }
            self.tell(|manager| manager.ready("The tunnel is up"));
            let end = self.look_after().await;
            if let EndOfCare::Crashed(how) = &end {
                log::error!("the tunnel's process {how}");
                // Routes, rules and hooks are still to be undone.
                self.verb("down").await?;
                if self.crashes.may_start_anew(Instant::now()) {
                    self.tell(|manager| {
                        manager.status(&format!("Starting anew: the tunnel's process {how}"))
                    });
                    continue;
                }
                self.tell(Notify::stopping);
                return Err(Failure::new(format!(
                    "the tunnel's process {how}, and {MOST_CRASHES} times within {} s: it is not started again",
                    CRASH_MEMORY.as_secs()
                )));
            }
            self.tell(Notify::stopping);
            let down = self.verb("down").await.map(drop);
            return match end {
                EndOfCare::Gone(failure) => Err(failure),
                _ => down,
            };
        }
    }

    /// Reports the tunnel's state until a signal arrives or the tunnel ends.
    async fn look_after(&mut self) -> EndOfCare {
        let gone = |failure| EndOfCare::Gone(Failure::of("the tunnel ended by itself")(failure));
        let mut process = match client::status(&self.interface) {
            Ok(status) => status.map(|status| Watched::new(status.pid)),
            // It may have ended before it could be asked who it is.
            Err(failure) => {
                return match end::fate_of_unknown().await {
                    Some(Fate::Crashed(how)) => EndOfCare::Crashed(how),
                    _ => gone(failure),
                };
            }
        };
        let mut tick = interval(REPORT_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last = None;
        loop {
            let [terminate, interrupt] = &mut self.stop;
            tokio::select! {
                biased;
                _ = terminate.recv() => return EndOfCare::Asked,
                _ = interrupt.recv() => return EndOfCare::Asked,
                _ = self.reload.recv() => if let Err(failure) = self.reload_now().await {
                    return EndOfCare::Gone(failure);
                },
                _ = self.children.recv() => {}
                () = ended(process.as_ref()) => {}
                _ = tick.tick() => match client::summary(&self.interface) {
                    Ok(now) => self.tell(|manager| manager.status(&describe(last.replace(now), now))),
                    Err(failure) if process.is_none() => return gone(failure),
                    // The kernel says more of a child's end.
                    Err(_) => {}
                }
            }
            let mut fate = end::reap(|pid| process.as_ref().is_some_and(|process| process.pid == pid));
            if fate.is_none() {
                match &process {
                    Some(process) if !process::runs(process.pid) => fate = process.fate().await,
                    _ => continue,
                }
            }
            if let Some(Fate::Crashed(how)) = fate {
                return EndOfCare::Crashed(how);
            }
            process = match client::status(&self.interface) {
                // A successor took the tunnel over, and is perhaps of a later program.
                Ok(status) => {
                    self.later = executable::replacement();
                    status.map(|status| Watched::new(status.pid))
                }
                // Nobody says how it ended. One that ends as it should leaves no socket.
                Err(_) if fate.is_none() && socket::path(&self.interface).exists() => {
                    return EndOfCare::Crashed("ended without a word".to_owned());
                }
                Err(failure) => return gone(failure),
            };
        }
    }

    /// Reloads the file, after the tunnel went on in the program that stands in this one's place by now, if that is another. Where
    /// that fails, the tunnel stays as it is.
    async fn reload_now(&mut self) -> Result<(), Failure> {
        self.tell(Notify::reloading);
        let before = self.later.take();
        self.later = executable::replacement();
        let interface = self.interface.clone();
        if let Err(error) = self.run(&["upgrade", "--if-replaced", &interface]).await {
            log::error!("{error:#}");
            self.later = before;
        }
        let done = self.verb("reload").await;
        let status =
            if done.is_ok() { "Reloaded" } else { "Running; its configuration could not be reloaded" };
        if let Err(error) = done {
            log::error!("{error:#}");
        }
        self.tell(|manager| manager.ready(status));
        Ok(())
    }

    /// Runs `ringtun VERB GIVEN`.
    async fn verb(&mut self, verb: &str) -> Result<Stopped, Failure> {
        let given = self.given;
        self.run(&[verb, given]).await
    }

    /// Runs the program with these words, of which the first is a verb. A signal is passed on, once, to `up`, which then undoes what it
    /// did. The other verbs end soon, and must not be cut short.
    async fn run(&mut self, words: &[&str]) -> Result<Stopped, Failure> {
        let said = words.join(" ");
        let verb = words.first().copied().unwrap_or_default();
        let failed = |error: std::io::Error| Failure::of(format!("cannot run `ringtun {said}`"))(error);
        let program = self.later.clone().map_or_else(executable::path, Ok).map_err(failed)?;
        let mut command = Command::new(program);
        // The manager listens to this process, and not to the tunnel's own.
        command.args(words).env_remove("NOTIFY_SOCKET").stdin(Stdio::null());
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
            (false, false) => Err(Failure::new(format!("`ringtun {said}` failed ({status})"))),
        }
    }

    fn tell(&self, what: impl FnOnce(&Notify)) {
        if let Some(manager) = &self.manager {
            what(manager);
        }
    }
}

/// Waits for the end of the process, if it is known.
async fn ended(process: Option<&Watched>) {
    match process {
        Some(process) => process.ended().await,
        None => std::future::pending().await,
    }
}

/// When the tunnel crashed of late.
#[derive(Default)]
struct Crashes(Vec<Instant>);

impl Crashes {
    /// Notes a crash. Returns whether the tunnel may be started again, which a crash loop may not.
    fn may_start_anew(&mut self, now: Instant) -> bool {
        self.0.push(now);
        self.0.retain(|&at| now.duration_since(at) < CRASH_MEMORY);
        self.0.len() < MOST_CRASHES
    }
}

/// Whether a signal asked for the end of the service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stopped(bool);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_loop_ends_and_a_crash_now_and_then_does_not() {
        let mut crashes = Crashes::default();
        let begun = Instant::now();
        let after = |seconds| begun + Duration::from_secs(seconds);
        assert!((0..4).all(|at| crashes.may_start_anew(after(at))));
        assert!(!crashes.may_start_anew(after(5)));
        let mut crashes = Crashes::default();
        assert!((0..100).all(|at| crashes.may_start_anew(after(at * 20))));
    }

    #[test]
    fn a_tunnel_without_a_file_is_refused_before_anything_is_done() {
        let failure = run("/nonexistent/wg0.conf").unwrap_err();
        assert!(
            matches!(failure, Failure::Load(error) if error.to_string().contains("/nonexistent/wg0.conf"))
        );
    }
}
