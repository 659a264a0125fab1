//! Which lines belong to which section: its values, the comments that are about it, and what belongs to none.
//!
//! ```text
//!   ### begin alice ###      opens alice's section, since it is closed below
//!   [Peer]
//!   PublicKey = …
//!   #Endpoint = …            a value that was put out of use
//!   ### end alice ###        closes it
//!
//!   # ---- phones ----       nobody's
//!
//!   # bob's                  directly above a header: of that section
//!   [Peer]
//! ```

use super::Document;
use super::document::{LineKind, PEER_KEYS, name_in};
use std::collections::HashSet;
use std::ops::Range;

/// One section's lines, by index from 0.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Section {
    pub(super) interface: bool,
    /// The line of the header.
    pub(super) header: usize,
    /// All lines that are the section's, the empty lines behind it included.
    pub(super) lines: Range<usize>,
    /// The name of the peer, from a comment.
    pub(super) name: Option<String>,
}

/// A comment as generators set it around what they wrote: `### begin alice ###`, `# END_PEER alice`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Mark {
    opens: bool,
    /// The words of the comment beside the one that says begin or end.
    what: Vec<String>,
}

/// What a line is to the sections around it.
struct Row {
    kind: LineKind,
    comment: bool,
    name: Option<String>,
    mark: Option<Mark>,
    /// Whether the line is a comment that holds a peer's value.
    value_put_out: bool,
    /// Whether the line is a comment that holds a header.
    header_put_out: bool,
}

impl Row {
    fn new(line: &[u8], kind: LineKind) -> Row {
        let comment = kind == LineKind::Blank && line.contains(&b'#');
        let text = if comment { comment_text(line) } else { String::new() };
        let key = text.split('=').next().unwrap_or_default().trim();
        Row {
            kind,
            comment,
            name: name_in(line),
            mark: mark_in(&text),
            value_put_out: text.contains('=')
                && PEER_KEYS.iter().any(|known| key.eq_ignore_ascii_case(known)),
            header_put_out: text.starts_with('[') && text.ends_with(']'),
        }
    }

    fn is_header(&self) -> bool {
        matches!(self.kind, LineKind::Interface | LineKind::Peer)
    }

    fn closes(&self) -> bool {
        self.mark.as_ref().is_some_and(|mark| !mark.opens)
    }

    fn opens(&self) -> bool {
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
    /// The sections in order.
    pub(super) fn sections(&self) -> Vec<Section> {
        let rows: Vec<Row> = self.kinds().map(|(line, kind)| Row::new(line, kind)).collect();
        let headers: Vec<usize> = (0..rows.len()).filter(|&at| rows[at].is_header()).collect();
        let marks = rows.iter().filter_map(|row| row.mark.as_ref());
        let opened: HashSet<&[String]> = marks.filter(|mark| mark.opens).map(|mark| &mark.what[..]).collect();
        let mut sections = Vec::with_capacity(headers.len());
        let mut next_start = rows.len();
        for (at, &header) in headers.iter().enumerate().rev() {
            let next_header = headers.get(at + 1).copied().unwrap_or(rows.len());
            let lead = lead(&rows, header, next_header, next_start);
            let end = end(&rows, &opened, lead..header, next_start, next_header);
            let own = rows[header..next_start].iter().find_map(|row| row.name.as_ref());
            let above = rows[lead..header].iter().rev().find_map(|row| row.name.as_ref());
            let name = own.or(above).cloned();
            let interface = rows[header].kind == LineKind::Interface;
            sections.push(Section { interface, header, lines: lead..end, name });
            next_start = lead;
        }
        sections.reverse();
        sections
    }
}

/// Where the comments begin that stand directly above the header and belong to its section. A comment that closes the
/// section before does not; nor does an opening that encloses more than this section, nor a name where the section has
/// one of its own.
fn lead(rows: &[Row], header: usize, next_header: usize, next_start: usize) -> usize {
    let start = (0..header).rev().take_while(|&at| rows[at].comment).last().unwrap_or(header);
    let theirs = |row: &Row| {
        row.closes() || row.value_put_out || (row.opens() && !closed(rows, row, header, next_header))
    };
    let start = (start..header).rev().find(|&at| theirs(&rows[at])).map_or(start, |at| at + 1);
    let named = |range: Range<usize>| rows[range].iter().any(|row| row.name.is_some());
    if named(start..header) && named(header..next_start) { header } else { start }
}

/// Whether what `open` opens ends before the next header.
fn closed(rows: &[Row], open: &Row, header: usize, next_header: usize) -> bool {
    rows[header..next_header].iter().any(|row| closing(row, open))
}

fn closing(row: &Row, open: &Row) -> bool {
    match (&row.mark, &open.mark) {
        (Some(close), Some(open)) => !close.opens && open.opens && close.what == open.what,
        _ => false,
    }
}

/// Where the section ends: behind the mark that closes it, if no value follows, or else behind its last value and the comments directly
/// below; in either case behind the empty lines that follow. `opened` holds what marks open in the whole file.
fn end(
    rows: &[Row],
    opened: &HashSet<&[String]>,
    lead: Range<usize>,
    next_start: usize,
    next_header: usize,
) -> usize {
    let header = lead.end;
    let last = (header..next_start).rev().find(|&at| rows[at].kind != LineKind::Blank).unwrap_or(header);
    let opening = rows[lead].iter().find(|row| row.opens());
    let closing = opening.and_then(|open| (header..next_header).find(|&at| closing(&rows[at], open)));
    let ours = |row: &Row| {
        let others = row.mark.as_ref().is_some_and(|mark| mark.opens || opened.contains(&mark.what[..]));
        row.comment && !others && !row.header_put_out
    };
    let below = || (last + 1..next_start).take_while(|&at| ours(&rows[at])).last().unwrap_or(last);
    // Values below the mark are the section's all the same.
    let end = closing.filter(|&at| at > last).unwrap_or_else(below) + 1;
    let blank = |&at: &usize| rows[at].kind == LineKind::Blank && !rows[at].comment;
    (end..next_start).take_while(blank).last().map_or(end, |at| at + 1)
}
