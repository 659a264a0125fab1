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
//!
//!   #[Peer]                  a peer out of use, in comments alone: nobody else's
//!   #PublicKey = …
//! ```

use super::Document;
use super::document::LineKind;
use super::naming::{self, NameComment};
use super::putout;
use super::rows::Row;
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

impl Document {
    /// The sections in order.
    pub(super) fn sections(&self) -> Vec<Section> {
        let mut rows = self.rows();
        for block in putout::blocks(&rows) {
            rows[block].iter_mut().for_each(Row::disable);
        }
        let headers: Vec<usize> = (0..rows.len()).filter(|&at| rows[at].is_header()).collect();
        let marks = rows.iter().filter_map(|row| row.mark.as_ref());
        let opened: HashSet<&[String]> = marks.filter(|mark| mark.opens).map(|mark| &mark.what[..]).collect();
        let mut sections = Vec::with_capacity(headers.len());
        let mut next_start = rows.len();
        for (at, &header) in headers.iter().enumerate().rev() {
            let next_header = headers.get(at + 1).copied().unwrap_or(rows.len());
            let lead = lead(&rows, header, next_header, next_start);
            let end = end(&rows, &opened, lead..header, next_start, next_header);
            let own = rows[header..end].iter().filter_map(|row| row.name.as_ref());
            let above = rows[lead..header].iter().rev().filter_map(|row| row.name.as_ref());
            let name = naming::best(own.chain(above)).map(|name| name.text.clone());
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
    let near = |&at: &usize| rows[at].comment && !rows[at].disabled;
    let start = (0..header).rev().take_while(near).last().unwrap_or(header);
    let theirs = |row: &Row| {
        row.closes()
            || row.value_put_out.is_some()
            || (row.opens() && !closed(rows, row, header, next_header))
    };
    let start = (start..header).rev().find(|&at| theirs(&rows[at])).map_or(start, |at| at + 1);
    let named = |range: Range<usize>| {
        rows[range].iter().any(|row| row.name.as_ref().is_some_and(NameComment::is_pair))
    };
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
        row.comment && !others && !row.header_put_out && !row.disabled
    };
    let below = || (last + 1..next_start).take_while(|&at| ours(&rows[at])).last().unwrap_or(last);
    // Values below the mark are the section's all the same.
    let end = closing.filter(|&at| at > last).unwrap_or_else(below) + 1;
    let blank = |&at: &usize| rows[at].kind == LineKind::Blank && !rows[at].comment;
    (end..next_start).take_while(blank).last().map_or(end, |at| at + 1)
}
