//! Peers that are out of use: sections whose every line is a comment, so that wg(8) and wg-quick(8) skip them.
//!
//! ```text
//!   # Name = laptop                    ## Name = laptop
//!   [Peer]              disable >      #[Peer]
//!   PublicKey = …       < enable       #PublicKey = …
//! ```
//!
//! Peers that people put out of use by hand are found as well.

use super::document::{LineKind, PEER_KEYS, wg_cleaned};
use super::naming;
use super::putout::blocks;
use super::{Document, PeerConfig};
use crate::crypto::x25519::PublicKey;
use std::ops::Range;
use zeroize::Zeroizing;

/// The line in use again. What was a comment before stays one.
fn restored(line: &[u8]) -> Zeroizing<Vec<u8>> {
    let mark = line.iter().position(|&byte| byte == b'#').unwrap_or(0);
    let rest = line.get(mark + 1..).unwrap_or_default();
    let cleaned = wg_cleaned(rest);
    let is_value = PEER_KEYS.iter().any(|key| {
        let (head, tail) = cleaned.split_at_checked(key.len()).unwrap_or_default();
        head.eq_ignore_ascii_case(key.as_bytes()) && tail.starts_with(b"=")
    });
    let goes_back = cleaned.is_empty() || is_value || cleaned.eq_ignore_ascii_case(b"[peer]");
    Zeroizing::new(if goes_back { rest.to_vec() } else { line.to_vec() })
}

impl Document {
    /// The peers that are out of use, in order. What would not be a peer if it were in use is left out.
    pub fn disabled_peers(&self) -> Vec<PeerConfig> {
        self.disabled().into_iter().map(|(_, peer)| peer).collect()
    }

    fn disabled(&self) -> Vec<(Range<usize>, PeerConfig)> {
        let read = |block: Range<usize>| {
            let lines = self.lines.get(block.clone())?.iter().map(|line| restored(line)).collect();
            let mut peers = Document { lines }.parse().ok()?.0.peers;
            let mut peer = peers.pop().filter(|_| peers.is_empty())?;
            peer.line.0 += block.start;
            Some((block, peer))
        };
        blocks(&self.rows()).into_iter().filter_map(read).collect()
    }

    /// The sections with this key, each with all lines that are its own.
    pub(super) fn sections_of(&self, key: &PublicKey) -> Vec<Range<usize>> {
        let Ok((config, _)) = self.parse() else { return Vec::new() };
        let sections = self.sections().into_iter().filter(|section| !section.interface);
        let pairs = sections.zip(&config.peers).filter(|(_, peer)| peer.public_key == *key);
        pairs.map(|(section, _)| section.lines).collect()
    }

    fn blocks_of(&self, key: &PublicKey) -> Vec<Range<usize>> {
        self.disabled()
            .into_iter()
            .filter(|(_, peer)| peer.public_key == *key)
            .map(|(block, _)| block)
            .collect()
    }

    /// Puts a peer out of use: makes comments of all of its lines. Returns whether there was one.
    pub fn disable_peer(&mut self, key: &PublicKey) -> bool {
        let sections = self.sections_of(key);
        for section in sections.iter().rev() {
            let end = section.clone().rfind(|&at| !self.is_empty_line(at)).map_or(section.start, |at| at + 1);
            for line in self.lines.get_mut(section.start..end).into_iter().flatten() {
                // A line that grew would leave a copy of its key behind.
                *line = Zeroizing::new([b"#", line.as_slice()].concat());
            }
            // Without empty lines around it, its comments would be its neighbours'.
            for at in [end, section.start] {
                if at > 0 && at < self.lines.len() && !self.is_empty_line(at) && !self.is_empty_line(at - 1) {
                    self.lines.insert(at, Zeroizing::new(self.newline().to_vec()));
                }
            }
        }
        !sections.is_empty()
    }

    /// Puts a peer in use again. Returns whether there was one that was out of use.
    pub fn enable_peer(&mut self, key: &PublicKey) -> bool {
        let blocks = self.blocks_of(key);
        for at in blocks.iter().cloned().flatten() {
            if let Some(line) = self.lines.get_mut(at) {
                *line = restored(line);
            }
        }
        !blocks.is_empty()
    }

    /// Removes a peer, in use or not, with all lines that are its own. Returns whether there was one.
    pub fn remove_peer(&mut self, key: &PublicKey) -> bool {
        let mut places = self.sections_of(key);
        places.extend(self.blocks_of(key).into_iter().map(|block| {
            let blank = (block.end..self.lines.len()).take_while(|&at| self.is_empty_line(at));
            block.start..block.end + blank.count()
        }));
        places.sort_by_key(|place| place.start);
        let was_last = places.last().is_some_and(|place| place.end == self.lines.len());
        places.iter().rev().for_each(|place| drop(self.lines.drain(place.clone())));
        // The empty line that parted the last peer from the one before has nothing to part.
        while was_last && self.lines.len().checked_sub(1).is_some_and(|last| self.is_empty_line(last)) {
            self.lines.pop();
        }
        !places.is_empty()
    }

    /// Gives a peer another name, in use or not. Its comment with a name takes it, or a new one below its header. Returns whether there
    /// was such a peer.
    pub fn rename_peer(&mut self, key: &PublicKey, name: &str) -> bool {
        let (sections, blocks) = (self.sections_of(key), self.blocks_of(key));
        let mut places: Vec<(Range<usize>, &str)> = sections.into_iter().map(|place| (place, "# ")).collect();
        places.extend(blocks.into_iter().map(|place| (place, "## ")));
        places.sort_by_key(|(place, _)| place.start);
        for (place, marks) in places.iter().rev() {
            self.rename_in(place.clone(), marks, name);
        }
        !places.is_empty()
    }

    fn rename_in(&mut self, place: Range<usize>, marks: &str, name: &str) {
        let rows = self.rows();
        let is_pair = |at: &usize| rows[*at].name.as_ref().is_some_and(|name| name.is_pair());
        let pairs: Vec<usize> = place.clone().filter(is_pair).collect();
        for &at in &pairs {
            if let Some(line) = self.lines.get_mut(at)
                && let Some(renamed) = naming::renamed(line, name)
            {
                *line = Zeroizing::new(renamed);
            }
        }
        let is_header = |at: &usize| rows[*at].kind == LineKind::Peer || rows[*at].peer_put_out;
        if let (true, Some(header)) = (pairs.is_empty(), place.clone().find(is_header)) {
            let newline = self.newline();
            if let Some(line) = self.lines.get_mut(header)
                && !line.ends_with(b"\n")
            {
                line.extend_from_slice(newline);
            }
            let line = self.line_of(&[marks, "Name = ", name].concat());
            self.lines.insert(header + 1, line);
        }
    }

    fn is_empty_line(&self, at: usize) -> bool {
        self.lines.get(at).is_some_and(|line| line.trim_ascii().is_empty())
    }
}
