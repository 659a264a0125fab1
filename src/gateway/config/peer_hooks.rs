//! `# PeerUp = …` and `# PeerDown = …`: commands for when a peer connects or disconnects, in comments, so that wg-quick and wg
//! skip them. In `[Interface]` they are for all peers, in `[Peer]` for that one.

use super::document::{LineKind, trim};
use super::sections::Section;
use super::{Config, Document};
use crate::crypto::x25519::PublicKey;
use std::collections::HashMap;
use std::ops::Range;

/// The commands of one section, in the file's order. They still hold `%i` for the interface's name.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct TransitionHooks {
    /// The commands to run when a peer connects.
    up: Vec<String>,
    /// The commands to run when it disconnects.
    down: Vec<String>,
}

/// The commands of a whole file.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PeerHooks {
    all: TransitionHooks,
    own: HashMap<PublicKey, TransitionHooks>,
}

impl TransitionHooks {
    fn is_empty(&self) -> bool {
        self.up.is_empty() && self.down.is_empty()
    }

    fn take(&mut self, line: &[u8]) {
        let Some((key, command)) = command_in(line) else { return };
        if key.eq_ignore_ascii_case(b"PeerUp") {
            self.up.push(command);
        } else if key.eq_ignore_ascii_case(b"PeerDown") {
            self.down.push(command);
        }
    }
}

impl PeerHooks {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty() && self.own.is_empty()
    }

    /// The commands to run for a peer as it connects (`up`) or disconnects: those for all peers, then its own.
    pub fn of(&self, key: &PublicKey, up: bool) -> Vec<String> {
        let part = |hooks: &TransitionHooks| if up { hooks.up.clone() } else { hooks.down.clone() };
        let own = self.own.get(key).map(part).unwrap_or_default();
        part(&self.all).into_iter().chain(own).collect()
    }
}

/// Key and command of a comment `# KEY = COMMAND`. A `#` in the command is the shell's.
fn command_in(line: &[u8]) -> Option<(&[u8], String)> {
    let comment = trim(line).strip_prefix(b"#")?;
    let at = comment.iter().position(|&byte| byte == b'=')?;
    let (key, command) = (trim(comment.get(..at)?), trim(comment.get(at + 1..)?));
    let command = String::from_utf8_lossy(command).into_owned();
    (!command.is_empty()).then_some((key, command))
}

/// Where the commands of each section stand. Comments directly above a header are of its section, unless no empty line parts
/// them from the values of the section before: then they stand below those.
fn places(rows: &[(&[u8], LineKind)], sections: &[Section]) -> Vec<Range<usize>> {
    let is_value = |at: usize| rows.get(at).is_some_and(|(_, kind)| *kind != LineKind::Blank);
    let start = |section: &Section| match section.lines.start.checked_sub(1) {
        Some(above) if is_value(above) => section.header,
        _ => section.lines.start,
    };
    let mut places: Vec<Range<usize>> =
        sections.iter().map(|section| start(section)..section.lines.end).collect();
    for at in 1..places.len() {
        if places[at].start == sections[at].header {
            places[at - 1].end = sections[at].header;
        }
    }
    places
}

impl Document {
    /// The commands of this document, whose meaning is `config`.
    pub fn peer_hooks(&self, config: &Config) -> PeerHooks {
        let rows: Vec<(&[u8], LineKind)> = self.kinds().collect();
        let sections = self.sections();
        let places: Vec<Range<usize>> = places(&rows, &sections);
        let mut hooks = PeerHooks::default();
        let mut peers = config.peers.iter();
        for (section, place) in sections.iter().zip(places) {
            let rows = rows.get(place).unwrap_or_default().iter();
            let lines = rows.filter(|(_, kind)| *kind == LineKind::Blank).map(|(line, _)| *line);
            if section.interface {
                lines.for_each(|line| hooks.all.take(line));
                continue;
            }
            let Some(peer) = peers.next() else { break };
            let mut own = TransitionHooks::default();
            lines.for_each(|line| own.take(line));
            if !own.is_empty() {
                let before = hooks.own.entry(peer.public_key).or_default();
                before.up.append(&mut own.up);
                before.down.append(&mut own.down);
            }
        }
        hooks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";

    fn hooks(text: &str) -> PeerHooks {
        let document = Document::new(text.as_bytes());
        let (config, _) = document.parse().unwrap();
        document.peer_hooks(&config)
    }

    #[test]
    fn those_of_the_interface_are_for_all_and_those_of_a_peer_for_that_one() {
        let hooks = hooks(&format!(
            "[Interface]\n# PeerUp = logger \"$PEER_NAME # up\" %i\n#peerdown=one; two\n# PeerUp =\n\n\
             # Name = laptop\n# PeerUp = arping %i\n[Peer]\nPublicKey = {KEY}\n## PeerUp = not this\n"
        ));
        let key: PublicKey = KEY.parse().unwrap();
        assert_eq!(hooks.of(&key, true), ["logger \"$PEER_NAME # up\" %i", "arping %i"]);
        assert_eq!(hooks.of(&key, false), ["one; two"]);
        assert_eq!(hooks.of(&PublicKey([1; 32]), true), ["logger \"$PEER_NAME # up\" %i"]);
        assert!(!hooks.is_empty());
    }

    #[test]
    fn what_stands_directly_below_values_is_of_their_section() {
        let hooks = hooks(&format!(
            "[Interface]\nListenPort = 7\n# PeerUp = all\n[Peer]\nPublicKey = {KEY}\n# PeerUp = first\n[Peer]\n\
             # PeerUp = second\nPublicKey = yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=\n"
        ));
        assert_eq!(hooks.of(&KEY.parse().unwrap(), true), ["all", "first"]);
        let other = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=".parse().unwrap();
        assert_eq!(hooks.of(&other, true), ["all", "second"]);
    }

    #[test]
    fn nothing_else_is_a_command() {
        let text = format!(
            "[Interface]\nPostUp = true # PeerUp = no\n# about PeerUp = x\n[Peer]\nPublicKey = {KEY}\n"
        );
        assert!(hooks(&text).is_empty());
        let stripped = Document::new(b"[Interface]\n# PeerUp = x\n").strip();
        assert!(!Document::new(&stripped).parse().unwrap().0.interface.save_config);
    }
}
