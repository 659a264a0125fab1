//! `monitor`: what happens to the peers of running tunnels, line by line.

use super::candidates;
use crate::device::events::EventReport;
use crate::gateway::monitor::{EventStream, PeerNames, json, text};
use crate::gateway::{Failure, client};
use clap::Args;
use clap_complete::engine::ArgValueCandidates;
use rustix::event::{PollFd, PollFlags, poll};
use std::collections::HashMap;
use std::io::{ErrorKind, Write};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tokio::time::{MissedTickBehavior, interval};

/// Pause between two looks for tunnels that came, and for whether anybody still reads what is printed.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Most events that wait to be printed. What comes faster waits in the tunnels, which count what they leave out.
const WAITING_EVENTS: usize = 64;

#[derive(Args)]
#[command(after_help = "Examples:
  ringtun monitor                    all tunnels, also those that come up later
  ringtun monitor wg0
  ringtun monitor wg0 --json | jq -r 'select(.event == \"disconnected\") | .name'
  ringtun monitor --json >> /var/log/ringtun.jsonl

Each line has the time (UTC), the tunnel, the peer's name (else its key) and what happened: handshakes sent, answered and refused, \
and why; peers that connect, roam, disconnect, come and go; floods. A peer is connected while both ends are known to have a session and \
it answers. Who reads too slowly is told how many events are missing.

It ends at Ctrl-C, when nobody reads its output any more, and when the tunnel is gone.")]
pub(super) struct MonitorArgs {
    /// Interface [default: all]
    #[arg(value_name = "NAME", add = ArgValueCandidates::new(candidates::interfaces))]
    interface: Option<String>,
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
}

/// What comes from one tunnel.
enum Item {
    Happened(String, EventReport),
    Gone(String),
}

pub(super) fn run(args: &MonitorArgs) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(Failure::of("cannot wait for events"))?;
    LocalSet::new().block_on(&runtime, monitor(args))
}

async fn monitor(args: &MonitorArgs) -> Result<(), Failure> {
    let catch = |kind| signal(kind).map_err(Failure::of("cannot catch signals"));
    let (mut interrupt, mut terminate) = (catch(SignalKind::interrupt())?, catch(SignalKind::terminate())?);
    let (items, mut coming) = mpsc::channel(WAITING_EVENTS);
    let mut followed = HashMap::new();
    match &args.interface {
        Some(name) => follow(EventStream::open(name).await?, &items, &mut followed),
        None => {
            let failures = follow_new(&items, &mut followed).await?;
            if followed.is_empty() {
                let failure = failures.into_iter().next();
                return Err(failure
                    .unwrap_or_else(|| Failure::new("no tunnel runs here; `ringtun up NAME` starts one")));
            }
            failures.iter().for_each(|failure| eprintln!("ringtun: {failure:#}"));
        }
    }
    let mut look = interval(LOOK_INTERVAL);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !followed.is_empty() {
        tokio::select! {
            biased;
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            Some(item) = coming.recv() => if !take(item, args, &mut followed)? {
                return Ok(());
            },
            _ = look.tick() => {
                if !is_read() {
                    return Ok(());
                }
                if args.interface.is_none() {
                    // What was not followed before and cannot be now was reported at the start, or is about to go.
                    follow_new(&items, &mut followed).await?;
                }
            }
        }
    }
    Ok(())
}

/// Follows what runs and is not followed yet. Returns what cannot be followed, and why.
async fn follow_new(
    items: &mpsc::Sender<Item>,
    followed: &mut HashMap<String, PeerNames>,
) -> Result<Vec<Failure>, Failure> {
    let mut failures = Vec::new();
    let running = client::interfaces_besides(|name| followed.contains_key(name))?;
    for name in running {
        match EventStream::open(&name).await {
            Ok(events) => follow(events, items, followed),
            Err(failure) => failures.push(failure),
        }
    }
    Ok(failures)
}

fn follow(mut events: EventStream, items: &mpsc::Sender<Item>, followed: &mut HashMap<String, PeerNames>) {
    let (name, items) = (events.interface().to_owned(), items.clone());
    followed.insert(name.clone(), PeerNames::read(&name));
    tokio::task::spawn_local(async move {
        while let Some(report) = events.next().await {
            if items.send(Item::Happened(name.clone(), report)).await.is_err() {
                return;
            }
        }
        // Whoever took it has ended, otherwise.
        let _ = items.send(Item::Gone(name)).await;
    });
}

/// Prints what happened. False where nobody reads it any more.
fn take(item: Item, args: &MonitorArgs, followed: &mut HashMap<String, PeerNames>) -> Result<bool, Failure> {
    let (interface, report) = match item {
        Item::Happened(interface, report) => (interface, report),
        Item::Gone(interface) => {
            eprintln!("ringtun: {interface} is gone");
            followed.remove(&interface);
            return Ok(true);
        }
    };
    let names = followed.get_mut(&interface);
    let name = report.peer.as_deref().zip(names).and_then(|(key, names)| names.of(key));
    let line = if args.json { json(&interface, name, &report) } else { text(&interface, name, &report) };
    let mut out = std::io::stdout().lock();
    match out.write_all(line.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        done => done.map(|()| true).map_err(Failure::of("cannot write the output")),
    }
}

/// Whether somebody may still read the output: a pipe without a reader is in error.
fn is_read() -> bool {
    let out = std::io::stdout();
    let mut polled = [PollFd::new(&out, PollFlags::empty())];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut polled, Some(&now)).is_err() || !polled[0].revents().contains(PollFlags::ERR)
}
