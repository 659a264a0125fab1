//! `top` on a real terminal, which tmux has: what stands there, its keys, and that the terminal is as before afterwards.

use crate::implementation::{RINGTUN_TWO, ringtun, ringtun_itself};
use crate::lab::{Host, eventually, find_program, skip};
use crate::pair::{A, Pair};
use crate::updown::SOON;

/// A terminal of 80 × 24 in a namespace.
struct Screen<'a> {
    host: &'a Host,
    socket: String,
}

impl Screen<'_> {
    fn start<'a>(host: &'a Host, command: &str) -> Screen<'a> {
        let screen = Screen { host, socket: format!("{}-top", host.name()) };
        screen.tmux(&format!(
            "-f /dev/null new-session -d -x 80 -y 24 'sh -c \"{command}; echo it ended with \\$?; sleep 60\"'"
        ));
        screen
    }

    fn tmux(&self, words: &str) -> String {
        self.host.run(&format!("TERM=screen-256color LC_ALL=C.UTF-8 tmux -u -L {} {words}", self.socket))
    }

    fn shown(&self) -> String {
        self.tmux("capture-pane -p")
    }

    fn press(&self, key: &str) {
        self.tmux(&format!("send-keys {key}"));
    }

    #[track_caller]
    fn expect(&self, what: &str, holds: impl Fn(&str) -> bool) {
        eventually(what, SOON, || holds(&self.shown()));
    }
}

impl Drop for Screen<'_> {
    fn drop(&mut self) {
        let _ = self.host.try_run(&format!("tmux -L {} kill-server", self.socket));
    }
}

/// A tunnel with pings.
fn pair() -> Option<Pair> {
    if !ringtun_itself() {
        return None;
    }
    if find_program("tmux").is_none() {
        skip("tmux is not installed");
        return None;
    }
    Pair::connected(RINGTUN_TWO, RINGTUN_TWO)
}

#[test]
fn a_terminal_shows_the_tunnel_and_is_as_before_afterwards() {
    let Some(pair) = pair() else { return };
    let pinger = pair.pinger();
    let (name, program) = (pair[A].name(), ringtun().display().to_string());
    let screen = Screen::start(&pair[A].host, &format!("{program} top {name}"));
    screen.expect("there are rates", |shown| {
        let head = shown.lines().next().unwrap_or_default();
        head.starts_with(&format!("{name}  up  ↓ "))
            && !head.contains("↓ 0 b/s")
            && head.contains("1 of 1 connected")
    });
    let shown = screen.shown();
    for part in [
        "worker 0",
        "worker 1",
        "packets/s",
        &pair[A.other()].public[..10],
        "connected",
        "198.18.0.20:",
        "q quit",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    screen.press("/");
    screen.press("nobody");
    screen.press("Enter");
    screen.expect("the filter holds", |shown| shown.contains("(nobody)") && !shown.contains("198.18.0.20:"));
    screen.press("s");
    screen.expect("the column changed", |shown| shown.contains("sort (received)"));
    screen.press("q");
    screen.expect("it ended", |shown| shown.contains("it ended with 0") && !shown.contains("q quit"));
    drop(pinger);
}

#[test]
fn a_tunnel_that_ends_is_told_on_a_terminal_that_is_as_before() {
    let Some(mut pair) = pair() else { return };
    let (name, program) = (pair[A].name().to_owned(), ringtun().display().to_string());
    let host = std::sync::Arc::clone(&pair[A].host);
    let screen = Screen::start(&host, &format!("{program} top {name}"));
    screen.expect("it looks", |shown| shown.contains("q quit"));
    pair[A].device = None;
    screen.expect("it says why it ended", |shown| {
        // The line may be longer than the screen is wide.
        let shown = shown.replace('\n', "");
        shown.contains(&format!("no tunnel {name} runs here"))
            && shown.contains("it ended with 1")
            && !shown.contains("q quit")
    });
}

#[test]
fn once_is_for_programs_and_for_no_terminal() {
    let Some(pair) = pair() else { return };
    let pinger = pair.pinger();
    let (name, program, host) = (pair[A].name(), ringtun().display().to_string(), &pair[A].host);
    let told: serde_json::Value =
        serde_json::from_str(&host.run(&format!("{program} top {name} --once --json"))).unwrap();
    assert_eq!((&told["interface"], &told["connected"]), (&name.into(), &1.into()), "{told}");
    assert!(told["peers"][0]["rx_bits_per_second"].as_f64() > Some(0.0), "{told}");
    assert_eq!(told["workers"].as_array().map(Vec::len), Some(2));
    let text = host.run(&format!("{program} top --once {name}"));
    assert!(text.starts_with(&format!("{name}: up, received ")), "{text}");
    let error = host.try_run(&format!("{program} top {name} | cat; exit ${{PIPESTATUS:-1}}")).unwrap_err();
    assert!(error.contains("no terminal: `ringtun top --once` prints one look"), "{error}");
    drop(pinger);
}
