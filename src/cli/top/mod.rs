//! `top`: what a tunnel does at the moment, on the whole terminal, or once as JSON.

mod screen;

use super::candidates;
use super::output::{print_bytes, print_json};
use crate::gateway::live::{Look, TunnelActivity, rate_text, scaled};
use crate::gateway::{Failure, client};
use clap::Args;
use clap_complete::engine::ArgValueCandidates;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use screen::Screen;
use std::fmt::Write;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// The time between two looks.
const INTERVAL: Duration = Duration::from_secs(1);

#[derive(Args)]
#[command(after_help = "Examples:
  ringtun top                        the only tunnel that runs, or the first
  ringtun top wg0
  ringtun top wg0 --once             a summary as text, after a second
  ringtun top wg0 --once --json | jq '.peers[] | select(.rx_bits_per_second > 1e6)'

Keys: q quits, s and S choose the column by which peers are sorted, r turns the order, / filters, arrows and Page Up and Down scroll, \
p pauses, n goes to the next tunnel.")]
pub(super) struct TopArgs {
    /// Interface [default: the first that runs]
    #[arg(value_name = "NAME", add = ArgValueCandidates::new(candidates::interfaces))]
    interface: Option<String>,
    /// Look for a second, print what happened, and end
    #[arg(long)]
    once: bool,
    /// Print JSON
    #[arg(long, requires = "once")]
    json: bool,
}

pub(super) fn run(args: &TopArgs) -> Result<(), Failure> {
    let interface = match &args.interface {
        Some(name) => name.clone(),
        None => client::interfaces()?
            .into_iter()
            .next()
            .ok_or_else(|| Failure::new("no tunnel runs here; `ringtun up NAME` starts one"))?,
    };
    let first = Look::at(&interface)?;
    if args.once {
        std::thread::sleep(INTERVAL);
        let activity = Look::at(&interface)?.since(&first);
        return if args.json { print_json(&activity) } else { print_bytes(summary(&activity).as_bytes()) };
    }
    if !std::io::stdout().is_terminal() {
        return Err(Failure::new("standard output is no terminal: `ringtun top --once` prints one look"));
    }
    let mut terminal = ratatui::try_init().map_err(Failure::of("cannot draw on this terminal"))?;
    let ended = watch(&mut terminal, interface, first);
    ratatui::restore();
    ended
}

/// One look as lines of text.
fn summary(activity: &TunnelActivity) -> String {
    let mut text = format!(
        "{}: {}, received {}, sent {}, {} of {} connected\n",
        activity.interface,
        if activity.up { "up" } else { "down" },
        rate_text(activity.rx_bits_per_second),
        rate_text(activity.tx_bits_per_second),
        activity.connected,
        crate::tunnel::plural::counted(activity.peers.len(), "peer")
    );
    // Writing to a string cannot fail, here and below.
    for (id, worker) in activity.workers.iter().enumerate() {
        let packets = scaled(worker.packets_per_second, "");
        let _ = writeln!(text, "  worker {id}: {:.0} % busy, {packets} packets/s", worker.busy * 100.0);
    }
    for peer in activity.peers.iter().filter(|peer| peer.rate() > 0.0) {
        let (rx, tx) = (rate_text(peer.rx_bits_per_second), rate_text(peer.tx_bits_per_second));
        let _ = writeln!(text, "  {}: received {rx}, sent {tx}", peer.title());
    }
    text
}

fn watch(
    terminal: &mut ratatui::DefaultTerminal,
    mut interface: String,
    mut last: Look,
) -> Result<(), Failure> {
    let mut screen = Screen::default();
    let mut due = Instant::now() + INTERVAL;
    loop {
        let drawn = terminal.draw(|frame| screen.draw(frame));
        drawn.map_err(Failure::of("cannot draw on this terminal"))?;
        let wait = due.saturating_duration_since(Instant::now());
        if event::poll(wait).map_err(Failure::of("cannot read the keys"))? {
            let Event::Key(key) = event::read().map_err(Failure::of("cannot read the keys"))? else {
                continue;
            };
            match command(key, screen.is_filtering()) {
                Some(TopCommand::Quit) => return Ok(()),
                Some(TopCommand::Next) => {
                    interface = next_interface(&interface)?;
                    last = Look::at(&interface)?;
                    screen = Screen::default();
                    due = Instant::now() + INTERVAL;
                }
                Some(TopCommand::Screen(key)) => screen.key(key),
                None => {}
            }
        }
        if Instant::now() >= due {
            let now = Look::at(&interface)?;
            screen.take(now.since(&last));
            last = now;
            due = Instant::now() + INTERVAL;
        }
    }
}

/// What a key asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum TopCommand {
    Quit,
    Next,
    Screen(KeyCode),
}

fn command(key: KeyEvent, is_filtering: bool) -> Option<TopCommand> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    match key.code {
        KeyCode::Char('c' | 'd') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(TopCommand::Quit),
        code if is_filtering => Some(TopCommand::Screen(code)),
        KeyCode::Char('q') | KeyCode::Esc => Some(TopCommand::Quit),
        KeyCode::Char('n') => Some(TopCommand::Next),
        code => Some(TopCommand::Screen(code)),
    }
}

/// The tunnel after this one, in the order of their names.
fn next_interface(current: &str) -> Result<String, Failure> {
    let mut names = client::interfaces()?;
    names.sort();
    let after = names.iter().find(|name| name.as_str() > current).or(names.first());
    after.cloned().ok_or_else(|| Failure::new(format!("no tunnel {current} runs here any more")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn while_a_filter_is_typed_letters_are_letters() {
        let key = |code| KeyEvent::new(code, KeyModifiers::NONE);
        assert_eq!(command(key(KeyCode::Char('q')), false), Some(TopCommand::Quit));
        let typed = KeyCode::Char('q');
        assert_eq!(command(key(typed), true), Some(TopCommand::Screen(typed)));
        let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(command(interrupt, true), Some(TopCommand::Quit));
    }

    #[test]
    fn a_summary_names_who_moves_something() {
        let first = Instant::now();
        let look = crate::gateway::live::tests::look;
        let text = summary(&look(first, 4).since(&look(first, 2)));
        assert!(
            text.starts_with("wg0: up, received 1.00 Gb/s, sent 2.00 Gb/s, 1 of 3 peers connected\n"),
            "{text}"
        );
        assert!(text.contains("  worker 0: 75 % busy, 1.00 k packets/s\n"), "{text}");
        assert_eq!(text.lines().count(), 4, "{text}");
    }
}
