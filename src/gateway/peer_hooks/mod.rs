//! Runs the hooks `PeerUp` and `PeerDown` of a tunnel: a process beside that of the tunnel, which is confined and can run nothing.
//! It follows the tunnel's events, waits for hooks so that the tunnel never does, and ends with the tunnel.
//!
//! ```text
//!   tunnel ── events ──> HookQueue ── at most four at a time ──> bash
//! ```

mod command;
mod queue;

use super::config::{Config, Document, PeerHooks};
use super::monitor::EventStream;
use super::up::{HooksLock, hook_command};
use super::{Failure, client};
use crate::crypto::stack;
use crate::device::events::{EventKind, EventReport};
use queue::{HookQueue, Transition};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use zeroize::Zeroizing;

/// How long the hooks of all peers together may take once the tunnel is gone. `down` waits a little longer.
const LAST_HOOKS: Duration = Duration::from_secs(10);
/// How long it may take to end hooks.
const ENDING: Duration = Duration::from_secs(1);
/// Why peers of a tunnel that is gone are no longer connected.
const TUNNEL_GONE: &str = "the tunnel is gone";

/// Runs hooks until the tunnel is gone or a signal ends it. `ready` is called once no connection can be missed.
///
/// # Errors
///
/// Where the tunnel cannot be followed, or another process runs its hooks.
pub fn run(interface: &str, file: &Path, ready: impl FnOnce()) -> Result<(), Failure> {
    let _lock = HooksLock::take(interface)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(Failure::of("cannot wait for events"))?;
    runtime.block_on(async {
        let (done, finished) = mpsc::unbounded_channel();
        let mut supervisor = Supervisor {
            interface: interface.to_owned(),
            source: HookSource::new(file),
            queue: HookQueue::default(),
            done,
            finished,
            ended: Arc::default(),
        };
        let mut events = EventStream::open(interface).await?;
        ready();
        supervisor.look();
        supervisor.follow(&mut events).await
    })
}

struct Supervisor {
    interface: String,
    source: HookSource,
    queue: HookQueue,
    /// Where hooks that have run are reported: at most as many as run at a time.
    done: mpsc::UnboundedSender<String>,
    finished: mpsc::UnboundedReceiver<String>,
    /// Whether hooks that run are to be ended.
    ended: Arc<AtomicBool>,
}

impl Supervisor {
    async fn follow(&mut self, events: &mut EventStream) -> Result<(), Failure> {
        let catch = |kind| signal(kind).map_err(Failure::of("cannot catch signals"));
        let (mut terminate, mut interrupt) =
            (catch(SignalKind::terminate())?, catch(SignalKind::interrupt())?);
        loop {
            self.start();
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                Some(key) = self.finished.recv() => self.queue.done(&key),
                event = events.next() => match event {
                    Some(report) => self.take(report),
                    None => {
                        self.finish().await;
                        break;
                    }
                },
            }
        }
        self.end().await;
        Ok(())
    }

    /// Ends the hooks that still run. This process must not end before them.
    async fn end(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        let until = Instant::now() + ENDING;
        while self.queue.running() > 0 {
            let Ok(Some(key)) = timeout_at(until, self.finished.recv()).await else { return };
            self.queue.done(&key);
        }
    }

    fn take(&mut self, report: EventReport) {
        match (report.kind, report.peer) {
            (EventKind::Connected { endpoint }, Some(key)) => {
                self.queue.note(Transition { key, up: true, endpoint, reason: None });
            }
            (EventKind::Disconnected { why }, Some(key)) => {
                let reason = Some(why.to_string());
                self.queue.note(Transition { key, up: false, endpoint: None, reason });
            }
            (EventKind::Lost { .. } | EventKind::HandedOver { .. }, _) => self.look(),
            _ => {}
        }
    }

    /// Asks which peers are connected: some were before this process followed, or while events were lost.
    fn look(&mut self) {
        match connected(&self.interface) {
            Ok(up) => self.queue.note_all(up),
            Err(failure) => log::error!("cannot tell which peers are connected: {failure:#}"),
        }
    }

    /// Tells of all peers that they are not connected any more, and waits for that.
    async fn finish(&mut self) {
        self.queue.note_all(Vec::new());
        let until = Instant::now() + LAST_HOOKS;
        loop {
            self.start();
            if self.queue.unfinished() == 0 {
                return;
            }
            let Ok(Some(key)) = timeout_at(until, self.finished.recv()).await else { break };
            self.queue.done(&key);
        }
        log::error!(
            "the tunnel is gone, and the hooks of {} peers have not run to their end within {} s",
            self.queue.unfinished(),
            LAST_HOOKS.as_secs()
        );
    }

    /// Runs the hooks of those whose turn it is, each in a thread of its own.
    fn start(&mut self) {
        while let Some(next) = self.queue.next() {
            let key = next.key.clone();
            let commands = self.source.commands(&self.interface, &next);
            let (done, ended) = (self.done.clone(), Arc::clone(&self.ended));
            let run = move || {
                run_all(&next, commands, &ended);
                // Nobody waits for it where this process ends.
                let _ = done.send(next.key);
            };
            if let Err(error) = std::thread::Builder::new().name("ringtun-hook".into()).spawn(run) {
                log::error!("cannot run hooks: {error}");
                self.queue.done(&key);
            }
        }
    }
}

/// Runs the commands one after the other, until one fails.
fn run_all(transition: &Transition, commands: Vec<(String, Command)>, ended: &AtomicBool) {
    for (text, command) in commands {
        let what =
            format!("{} of {}: `{text}`", if transition.up { "PeerUp" } else { "PeerDown" }, transition.key);
        let said = |said: &str| if said.is_empty() { String::new() } else { format!("; it said: {said}") };
        match command::run(command, ended) {
            Ok(outcome) => match outcome.status {
                Some(status) if status.success() => log::info!("{what}: done{}", said(&outcome.said)),
                Some(status) => return log::error!("{what}: {status}{}", said(&outcome.said)),
                None => return log::error!("{what}: it took too long, and was ended{}", said(&outcome.said)),
            },
            Err(error) => return log::error!("{what}: cannot be run: {error}"),
        }
    }
}

/// The peers that are connected.
fn connected(interface: &str) -> Result<Vec<Transition>, Failure> {
    let control = client::open(interface)?;
    let status = control.status().map_err(Failure::of(interface))?.unwrap_or_default();
    let up: Vec<String> = status
        .peers
        .into_iter()
        .filter(|peer| peer.connected_ms.is_some())
        .map(|peer| peer.public_key)
        .collect();
    let keys: Vec<_> = up.iter().filter_map(|key| key.parse().ok()).collect();
    let device = stack::leaving_nothing(|| control.get_peers(&keys)).map_err(Failure::of(interface))?;
    let endpoints: std::collections::HashMap<String, _> =
        device.peers.iter().map(|peer| (peer.public_key.to_base64(), peer.endpoint)).collect();
    let transition = |key: String| {
        let endpoint = endpoints.get(&key).copied().flatten();
        Transition { key, up: true, endpoint, reason: None }
    };
    Ok(up.into_iter().map(transition).collect())
}

/// The file, read again whenever it changes.
struct HookSource {
    file: PathBuf,
    /// The file's time of change when it was last read.
    read: Option<SystemTime>,
    config: Config,
    hooks: PeerHooks,
}

impl HookSource {
    fn new(file: &Path) -> HookSource {
        HookSource {
            file: file.to_owned(),
            read: None,
            config: Config::default(),
            hooks: PeerHooks::default(),
        }
    }

    /// Reads the file where it changed. Where it is away or cannot be understood, what was read before stays.
    fn reread(&mut self) {
        let changed = std::fs::metadata(&self.file).and_then(|metadata| metadata.modified()).ok();
        if changed.is_none() || changed == self.read {
            return;
        }
        stack::leaving_nothing(|| {
            let Ok(bytes) = std::fs::read(&self.file).map(Zeroizing::new) else { return };
            let document = Document::new(&bytes).without_keys();
            if let Ok((config, _)) = document.parse() {
                self.read = changed;
                self.hooks = document.peer_hooks(&config);
                self.config = config;
            }
        });
    }

    /// The commands for what is to be told, each with its text.
    fn commands(&mut self, interface: &str, transition: &Transition) -> Vec<(String, Command)> {
        self.reread();
        let Ok(key) = transition.key.parse() else { return Vec::new() };
        let peer = self.config.peers.iter().rev().find(|peer| peer.public_key == key);
        let name = peer.and_then(|peer| peer.name.clone()).unwrap_or_default();
        let allowed = peer.map(|peer| peer.allowed_ips.iter().map(ToString::to_string).collect::<Vec<_>>());
        let endpoint = transition.endpoint.map(|endpoint| endpoint.to_string()).unwrap_or_default();
        let reason = match transition.up {
            true => "",
            false => transition.reason.as_deref().unwrap_or(TUNNEL_GONE),
        };
        let build = |hook: String| {
            let (text, mut command) = hook_command(&hook, interface, &self.file);
            command
                .env("PEER", &transition.key)
                .env("PEER_NAME", &name)
                .env("PEER_ENDPOINT", &endpoint)
                .env("PEER_ALLOWED_IPS", allowed.clone().unwrap_or_default().join(", "))
                .env("PEER_EVENT", if transition.up { "up" } else { "down" })
                .env("PEER_REASON", reason);
            (text, command)
        };
        self.hooks.of(&key, transition.up).into_iter().map(build).collect()
    }
}
