//! Where in a file the peers stand that are out of use, which are made of comments alone.

use super::document::LineKind;
use super::rows::Row;
use std::ops::Range;

/// Where the peers that are out of use stand, in order.
pub(super) fn blocks(rows: &[Row]) -> Vec<Range<usize>> {
    let headers = (0..rows.len()).filter(|&at| rows[at].peer_put_out && !rows[at].deep);
    headers.filter_map(|header| Some(first(rows, header)..end(rows, header)?)).collect()
}

/// Where the comments begin that stand above the header and are its peer's: those in which comments were put out, and a name.
/// Comments directly below another section's values may be about that.
fn first(rows: &[Row], header: usize) -> usize {
    let ours = |row: &Row| {
        let names = row.name.as_ref().is_some_and(|name| name.is_pair());
        row.comment && (row.deep || names) && (row.deep || row.value_put_out.is_none() && !row.header_put_out)
    };
    let first = (0..header).rev().take_while(|&at| ours(&rows[at])).last().unwrap_or(header);
    match first.checked_sub(1) {
        Some(above) if rows[above].kind != LineKind::Blank => header,
        _ => first,
    }
}

/// Where the peer ends: behind its last value, and the comments that were put out directly below, unless another header follows
/// those. `None` where there is no public key, as in a note about how a section looks.
fn end(rows: &[Row], header: usize) -> Option<usize> {
    // What is a comment in a comment was one before, and is no line of this peer's but a note in it.
    let near = |&at: &usize| rows[at].comment && (rows[at].deep || !rows[at].header_put_out);
    let run = (header + 1..rows.len()).take_while(near);
    let values: Vec<usize> = run.filter(|&at| rows[at].value_put_out.is_some() && !rows[at].deep).collect();
    values.iter().find(|&&at| rows[at].value_put_out == Some("PublicKey"))?;
    let below = values.last()? + 1;
    let end = (below..rows.len()).find(|&at| !rows[at].deep).unwrap_or(rows.len());
    let is_header =
        |row: &Row| row.header_put_out || matches!(row.kind, LineKind::Interface | LineKind::Peer);
    Some(if rows.get(end).is_some_and(is_header) { below } else { end })
}
