//! Replay window of 8,192 bits (RFC 6479; kernel `counter_validate`).
//!
//! The window is a ring of 128 words with a bit for each counter. It slides by whole words, so that moving it clears
//! words and never shifts them. The price is that the word which holds the newest counter reaches ahead of it, and
//! what that word held before is forgotten. So 8,192 − 64 counters behind the newest are always told apart.

use crate::noise::REJECT_AFTER_MESSAGES;
use serde::{Deserialize, Serialize};

const WORD_BITS: u64 = u64::BITS as u64;
const WORDS: usize = 128;
/// How many counters up to the newest are told apart. All below are refused.
pub const WINDOW: u64 = (WORDS as u64 - 1) * WORD_BITS;

/// A replay window. It accepts each counter once, and none below the window's lower end.
pub struct ReplayWindow {
    /// Bit `c % 64` of word `c / 64 % 128`: counter `c` was accepted.
    words: [u64; WORDS],
    /// One above the largest counter accepted; zero before the first is.
    next: u64,
}

impl Default for ReplayWindow {
    fn default() -> Self {
        ReplayWindow { words: [0; WORDS], next: 0 }
    }
}

impl ReplayWindow {
    /// Accepts `counter` once, and only where it is inside or ahead of the window and below
    /// [`crate::noise::REJECT_AFTER_MESSAGES`]. To be called only after the tag verified, since it moves the window.
    pub fn accept(&mut self, counter: u64) -> bool {
        // No sum below overflows: both terms stay far enough from u64::MAX.
        if counter >= REJECT_AFTER_MESSAGES || counter + WINDOW < self.next {
            return false;
        }
        if counter >= self.next {
            self.advance(counter);
        }
        let word = &mut self.words[Self::slot(counter)];
        let bit = 1 << (counter % WORD_BITS);
        let fresh = *word & bit == 0;
        *word |= bit;
        fresh
    }

    /// Makes `newest` the window's upper end, and clears the words between the old end's word and the new one's.
    fn advance(&mut self, newest: u64) {
        // Before the first counter word 0 counts as entered; it is clear.
        let entered = self.next.saturating_sub(1) / WORD_BITS;
        let words = (newest / WORD_BITS - entered).min(WORDS as u64);
        for step in 1..=words {
            self.words[Self::slot((entered + step) * WORD_BITS)] = 0;
        }
        self.next = newest + 1;
    }

    fn slot(counter: u64) -> usize {
        (counter / WORD_BITS) as usize % WORDS
    }

    /// The window as plain data.
    pub fn record(&self) -> WindowRecord {
        let newest = self.next.saturating_sub(1) / WORD_BITS;
        let back = (0..=newest).rev().take(WORDS);
        let mut words: Vec<u64> = back.map(|word| self.words[word as usize % WORDS]).collect();
        words.truncate(words.iter().rposition(|&word| word != 0).map_or(0, |last| last + 1));
        WindowRecord { next: self.next, words }
    }

    /// The window that a record is of. `None` where no window can be like that: it would take in what its owner saw already.
    pub fn restore(record: &WindowRecord) -> Option<ReplayWindow> {
        let WindowRecord { next, ref words } = *record;
        if next > REJECT_AFTER_MESSAGES || words.len() > WORDS {
            return None;
        }
        let mut window = ReplayWindow { words: [0; WORDS], next };
        let Some(newest) = next.checked_sub(1) else { return words.is_empty().then_some(window) };
        // The newest counter was accepted, and none above it.
        if words.first()? >> (newest % WORD_BITS) != 1 {
            return None;
        }
        for (back, &bits) in (0..).zip(words) {
            window.words[(newest / WORD_BITS).checked_sub(back)? as usize % WORDS] = bits;
        }
        Some(window)
    }
}

/// A replay window as plain data.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WindowRecord {
    /// One above the largest counter accepted; zero before the first is.
    next: u64,
    /// Which counters were accepted, 64 in a word: the newest word first, without the zeros at the end.
    words: Vec<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    const LIMIT: u64 = REJECT_AFTER_MESSAGES;

    /// The rule in one line each: a set that never forgets, and the window's edge.
    #[derive(Default)]
    struct Model {
        seen: HashSet<u64>,
        next: u64,
    }

    impl Model {
        fn accept(&mut self, counter: u64) -> bool {
            let inside = counter < LIMIT && self.next.saturating_sub(counter) <= WINDOW;
            let fresh = inside && self.seen.insert(counter);
            if fresh {
                self.next = self.next.max(counter + 1);
            }
            fresh
        }
    }

    fn agree(counters: impl IntoIterator<Item = u64>) {
        let (mut window, mut model) = (ReplayWindow::default(), Model::default());
        for counter in counters {
            assert_eq!(
                window.accept(counter),
                model.accept(counter),
                "counter {counter}, next {}",
                model.next
            );
        }
    }

    #[test]
    fn the_window_is_full_size_behind_any_newest_counter() {
        const { assert!(WINDOW == 8192 - 64) };
        // Every alignment of the newest counter within its word, and then some.
        for newest in WINDOW..WINDOW + 200 {
            let mut window = ReplayWindow::default();
            assert!(window.accept(newest));
            assert!(window.accept(newest + 1 - WINDOW), "the oldest inside");
            assert!(!window.accept(newest + 1 - WINDOW), "a second time");
            assert!(!window.accept(newest - WINDOW), "the first outside");
        }
    }

    #[test]
    fn all_of_a_window_in_reverse_and_once_only() {
        for newest in [WINDOW - 1, WINDOW, 8191, 8192, 8193, 100_000, LIMIT - 1] {
            let all = newest.saturating_sub(8190)..=newest;
            agree(all.clone().rev().chain(all));
        }
    }

    #[test]
    fn in_order_over_many_windows() {
        agree((0..30_000).flat_map(|counter: u64| [counter, counter, counter.saturating_sub(5000)]));
    }

    #[test]
    fn steps_around_word_and_window_sizes() {
        for step in [1, 63, 64, 65, 127, 128, 8127, 8128, 8129, 8191, 8192, 8193, 16_384, 1 << 40] {
            agree(
                (0..40)
                    .map(|i| i * step)
                    .flat_map(|c: u64| [c, c + 1, c, c.saturating_sub(64), c.saturating_sub(WINDOW)]),
            );
        }
    }

    #[test]
    fn the_limit_is_refused_and_does_not_move_the_window() {
        let mut window = ReplayWindow::default();
        for counter in [LIMIT, LIMIT + 1, u64::MAX - 1, u64::MAX] {
            assert!(!window.accept(counter));
        }
        assert!(window.accept(0));
        assert!(window.accept(LIMIT - 1));
        assert!(!window.accept(LIMIT - 1));
        assert!(!window.accept(LIMIT));
        assert!(!window.accept(1));
        assert!(window.accept(LIMIT - WINDOW));
    }

    /// All walks of four counters, each at an edge of a word, of the window, of its ring or of the limit, seen from the first: there
    /// is no other place at which the window does anything else.
    #[test]
    fn agrees_with_a_set_on_every_walk_along_the_edges() {
        const EDGES: [u64; 9] = [0, 1, 63, 64, WINDOW - 1, WINDOW, WINDOW + 63, 8192, 2 * 8192 + 1];
        for base in [0, 62, 8192, LIMIT - WINDOW - 64, LIMIT - 1] {
            let ahead = EDGES.iter().map(|edge| base.saturating_add(*edge));
            let steps: Vec<u64> = ahead.chain(EDGES.iter().map(|edge| base.saturating_sub(*edge))).collect();
            for (second, third) in
                steps.iter().flat_map(|second| steps.iter().map(move |third| (second, third)))
            {
                for fourth in &steps {
                    agree([base, *second, *third, *fourth, *second]);
                }
            }
        }
    }

    fn steps() -> impl Strategy<Value = Vec<(u8, u64)>> {
        prop::collection::vec((0u8..4, 0u64..20_000), 1..400)
    }

    #[test]
    fn what_no_window_is_like_is_refused() {
        let is_one = |next, words: &[u64]| {
            ReplayWindow::restore(&WindowRecord { next, words: words.to_vec() }).is_some()
        };
        assert!(is_one(0, &[]) && is_one(1, &[1]) && is_one(65, &[1, 7]) && is_one(LIMIT, &[1 << 62, 0, 1]));
        for (next, words) in
            [(0, &[1][..]), (1, &[]), (1, &[2]), (1, &[3]), (2, &[1]), (1, &[1, 1]), (LIMIT + 1, &[1])]
        {
            assert!(!is_one(next, words), "{next}, {words:?}");
        }
        assert!(!is_one(1 << 20, &[1 << 63; WORDS + 1]));
    }

    proptest! {
        #[test]
        fn agrees_with_a_set_on_random_walks(base in prop_oneof![Just(0), 0..LIMIT - 10_000_000], steps in steps()) {
            let mut head = base;
            let mut counters = Vec::new();
            for (kind, size) in steps {
                match kind {
                    0 => head += 1,
                    1 => head += size % 100,
                    2 => head += size,
                    _ => {}
                }
                counters.push(if kind == 3 { head.saturating_sub(size) } else { head });
            }
            agree(counters.clone());
            let mut window = ReplayWindow::default();
            let (before, after) = counters.split_at(counters.len() / 2);
            for &counter in before {
                window.accept(counter);
            }
            let mut restored = ReplayWindow::restore(&window.record()).unwrap();
            prop_assert_eq!(restored.record(), window.record());
            for &counter in after {
                prop_assert_eq!(restored.accept(counter), window.accept(counter), "{}", counter);
            }
        }

        #[test]
        fn agrees_with_a_set_on_anything(counters: Vec<u64>) {
            agree(counters.iter().chain(&counters).copied());
        }
    }
}
