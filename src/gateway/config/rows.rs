//! What each line of a file is to the sections around it.

use super::Document;
use super::document::{LineKind, PEER_KEYS};
use super::naming::{self, NameComment};

/// A comment as generators set it around what they wrote: `### begin alice ###`, `# END_PEER alice`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Mark {
    pub(super) opens: bool,
    /// The words of the comment beside the one that says begin or end.
    pub(super) what: Vec<String>,
}

/// What a line is to the sections around it.
pub(super) struct Row {
    pub(super) kind: LineKind,
    pub(super) comment: bool,
    pub(super) name: Option<NameComment>,
    pub(super) mark: Option<Mark>,
    /// The key of a peer's value that the line holds as a comment.
    pub(super) value_put_out: Option<&'static str>,
    /// Whether the line is a comment that holds a header.
    pub(super) header_put_out: bool,
    /// Whether that is a peer's header.
    pub(super) peer_put_out: bool,
    /// Whether the line is a comment in a comment.
    pub(super) deep: bool,
    /// Whether the line is of a peer that is out of use, and so of no section.
    pub(super) disabled: bool,
}

impl Row {
    pub(super) fn new(line: &[u8], kind: LineKind) -> Row {
        let comment = kind == LineKind::Blank && line.contains(&b'#');
        let text = if comment { comment_text(line) } else { String::new() };
        // A header may have a comment of its own behind it.
        let header: String = text.split('#').next().unwrap_or_default().split_whitespace().collect();
        // As wg reads a key, blanks within it are nothing.
        let key: String = text.split_once('=').map_or("", |(key, _)| key).split_whitespace().collect();
        Row {
            kind,
            comment,
            name: naming::name_in(line),
            mark: mark_in(&text),
            value_put_out: PEER_KEYS.into_iter().find(|known| key.eq_ignore_ascii_case(known)),
            header_put_out: header.starts_with('[') && header.ends_with(']'),
            peer_put_out: header.eq_ignore_ascii_case("[peer]"),
            deep: comment && line.trim_ascii_start().starts_with(b"##"),
            disabled: false,
        }
    }

    /// Takes the line from its neighbours: it is of a peer that is out of use.
    pub(super) fn disable(&mut self) {
        (self.disabled, self.name, self.mark) = (true, None, None);
    }

    pub(super) fn is_header(&self) -> bool {
        matches!(self.kind, LineKind::Interface | LineKind::Peer)
    }

    pub(super) fn closes(&self) -> bool {
        self.mark.as_ref().is_some_and(|mark| !mark.opens)
    }

    pub(super) fn opens(&self) -> bool {
        self.mark.as_ref().is_some_and(|mark| mark.opens)
    }
}

fn comment_text(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    text.trim().trim_start_matches('#').trim().to_owned()
}

/// The mark of a comment whose first or last word says that something begins or ends.
fn mark_in(text: &str) -> Option<Mark> {
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    let mut what: Vec<String> = words.map(str::to_lowercase).collect();
    let opens = |word: &String| match word.as_str() {
        "begin" | "start" => Some(true),
        "end" | "stop" => Some(false),
        _ => None,
    };
    let (at, opens) = [what.first().map(|word| (0, word)), what.last().map(|word| (what.len() - 1, word))]
        .into_iter()
        .flatten()
        .find_map(|(at, word)| Some((at, opens(word)?)))?;
    what.remove(at);
    Some(Mark { opens, what })
}

impl Document {
    /// What each line is to the sections around it.
    pub(super) fn rows(&self) -> Vec<Row> {
        self.kinds().map(|(line, kind)| Row::new(line, kind)).collect()
    }
}
