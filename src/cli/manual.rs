//! The man pages, made of what describes the command line.
//!
//! The text behind a command's options is taken apart: its examples, its environment, its exit status, and the rest, which are notes.

use crate::dataplane::stats::WorkerStats;
use crate::device::DeviceStats;
use clap_mangen::Man;
use std::fmt::Write;

/// What the variables of the environment do that no command describes itself.
const COLOURS: &str = "NO_COLOR  where it is not empty, nothing is coloured";
const EXIT_STATUS: &str = "0 done, 1 failed, 2 wrong usage.";
const FILES: [(&str, &str); 3] = [
    ("/etc/wireguard/NAME.conf", "The configuration of the interface NAME, in the language of wg-quick(8)."),
    (
        "/var/run/wireguard/NAME.sock",
        "The configuration socket of the running interface, which wg(8) uses, too.",
    ),
    ("/run/ringtun/NAME", "What `up` did to the host, so that `down` can undo it."),
];
const OTHERS: [&str; 2] = ["wg(8)", "wg-quick(8)"];

/// The parts of the text behind a command's options.
#[derive(Default)]
struct HelpParts {
    examples: Vec<String>,
    environment: Vec<String>,
    exit_status: String,
    notes: Vec<String>,
}

impl HelpParts {
    fn of(text: &str) -> HelpParts {
        let mut parts = HelpParts::default();
        for block in text.split("\n\n") {
            parts.take(block);
        }
        parts
    }

    fn take(&mut self, block: &str) {
        let mut lines = block.lines().peekable();
        while let Some(line) = lines.next() {
            let mut indented = Vec::new();
            while let Some(more) = lines.next_if(|more| more.starts_with("  ")) {
                indented.push(more.trim().to_owned());
            }
            match line {
                "Example:" | "Examples:" => self.examples.extend(indented),
                "Environment:" => self.environment.extend(indented),
                _ => match line.split_once("Exit status: ") {
                    Some(("", status)) => self.exit_status = status.to_owned(),
                    _ => self.notes.push(line.to_owned()),
                },
            }
        }
    }
}

/// The page of one command in section 8. `name` is its whole name, such as `ringtun-peer-add`.
pub(super) fn page(command: clap::Command, name: &str) -> std::io::Result<Vec<u8>> {
    let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let mut parts = HelpParts::of(&help);
    parts.environment.extend(command.get_arguments().filter_map(variable));
    if !parts.environment.iter().any(|line| line.contains("NO_COLOR ")) {
        parts.environment.push(COLOURS.to_owned());
    }
    let subcommands: Vec<String> = command
        .get_subcommands()
        .filter(|child| !child.is_hide_set())
        .map(|child| format!("{name}-{}(8)", child.get_name()))
        .collect();
    let mut page = Vec::new();
    let man = Man::new(command).title(name.to_owned()).section("8").manual("ringtun");
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if !subcommands.is_empty() {
        man.render_subcommands_section(&mut page)?;
    }
    page.extend_from_slice(own_sections(name, &parts, &subcommands).as_bytes());
    Ok(page)
}

/// A line about the variable that stands for an option.
fn variable(argument: &clap::Arg) -> Option<String> {
    let variable = argument.get_env().filter(|_| !argument.is_hide_set())?.to_str()?;
    Some(format!("{variable}  as --{}", argument.get_long()?))
}

fn own_sections(name: &str, parts: &HelpParts, subcommands: &[String]) -> String {
    let mut text = String::new();
    if name == "ringtun-status" {
        counters(&mut text);
    }
    if !parts.notes.is_empty() {
        heading(&mut text, "NOTES");
        parts.notes.iter().for_each(|note| paragraph(&mut text, note));
    }
    if !parts.examples.is_empty() {
        heading(&mut text, "EXAMPLES");
        text.push_str(".nf\n");
        parts.examples.iter().for_each(|line| put(&mut text, line));
        text.push_str(".fi\n");
    }
    heading(&mut text, "ENVIRONMENT");
    for line in &parts.environment {
        let (variable, meaning) = line.split_once("  ").unwrap_or((line, ""));
        item(&mut text, variable, meaning.trim());
    }
    heading(&mut text, "FILES");
    FILES.iter().for_each(|(file, meaning)| item(&mut text, file, meaning));
    heading(&mut text, "EXIT STATUS");
    paragraph(&mut text, if parts.exit_status.is_empty() { EXIT_STATUS } else { &parts.exit_status });
    heading(&mut text, "SEE ALSO");
    let parents = name.match_indices('-').map(|(at, _)| format!("{}(8)", &name[..at]));
    let pages: Vec<String> =
        parents.chain(subcommands.iter().cloned()).chain(OTHERS.map(str::to_owned)).collect();
    paragraph(&mut text, &pages.join(", "));
    text
}

/// What each counter counts.
fn counters(text: &mut String) {
    heading(text, "COUNTERS");
    paragraph(text, "Each worker counts, since the start:");
    for (name, _) in WorkerStats::default().snapshot() {
        item(text, name, WorkerStats::describe(name).unwrap_or_default().trim());
    }
    paragraph(text, "The slow path, which does the handshakes, counts:");
    for (name, _) in DeviceStats::default().snapshot() {
        item(text, name, DeviceStats::describe(name).unwrap_or_default().trim());
    }
}

fn heading(text: &mut String, title: &str) {
    // Writing to a string cannot fail, here and below.
    let _ = match title.contains(' ') {
        true => writeln!(text, ".SH \"{title}\""),
        false => writeln!(text, ".SH {title}"),
    };
}

fn paragraph(text: &mut String, words: &str) {
    text.push_str(".PP\n");
    put(text, words);
}

fn item(text: &mut String, what: &str, meaning: &str) {
    let _ = writeln!(text, ".TP\n\\fB{}\\fR", escaped(what));
    put(text, meaning);
}

/// Appends a line of text, in which nothing is an instruction to roff.
fn put(text: &mut String, line: &str) {
    let _ = writeln!(text, "{}{}", if line.starts_with(['.', '\'']) { "\\&" } else { "" }, escaped(line));
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\(rs").replace('-', "\\-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_behind_the_options_is_taken_apart() {
        let text = "Examples:\n  one\n  two            says this\n\nA note.\nExit status: 0 good, 1 bad.\n\nEnvironment:\n  X   what it does\nAnother note.";
        let parts = HelpParts::of(text);
        assert_eq!(parts.examples, ["one", "two            says this"]);
        assert_eq!(parts.environment, ["X   what it does"]);
        assert_eq!(parts.exit_status, "0 good, 1 bad.");
        assert_eq!(parts.notes, ["A note.", "Another note."]);
    }

    #[test]
    fn no_text_is_an_instruction() {
        let mut text = String::new();
        put(&mut text, ".SH \\fB -x");
        item(&mut text, "a-b", "c");
        assert_eq!(text, "\\&.SH \\(rsfB \\-x\n.TP\n\\fBa\\-b\\fR\nc\n");
    }
}
