//! What goes to standard output.

use crate::gateway::Failure;
use crate::gateway::show::Paint;
use serde::Serialize;
use std::io::{IsTerminal, Write};

pub(super) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(Failure::of("cannot write JSON"))?;
    print_bytes(format!("{text}\n").as_bytes())
}

/// Prints a secret to standard output, with a warning where that is a file that everyone may read.
pub(super) fn print_secret(bytes: &[u8]) -> Result<(), Failure> {
    super::keys::warn_if_world_readable();
    print_bytes(bytes)
}

/// Prints to standard output. A closed pipe is an error, not a panic.
pub(super) fn print_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(Failure::of("cannot write the output"))
}

/// Whether standard output is coloured: on a terminal, unless NO_COLOR says otherwise. WG_COLOR_MODE, which is wg(8)'s, wins over both.
pub(super) fn paint() -> Paint {
    let mode = std::env::var("WG_COLOR_MODE").ok();
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    Paint::chosen(mode.as_deref(), no_color, std::io::stdout().is_terminal())
}
