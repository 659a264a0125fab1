//! The room for nodes and owners, which is taken and given back in runs of up to 64 cells.

use bytemuck::Zeroable;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU32, AtomicU64};

/// A cell for a node: its words.
pub(super) type NodeCell = [AtomicU64; 4];
/// A cell for two owners, so that as many as a node can have fit in a run.
pub(super) type OwnerCell = [AtomicU32; 2];

/// Cells of a page, so that one word has a bit for each. A run lies within a page.
const PAGE: usize = 64;
/// Number of cells from which on the work of growing is spread over the runs that are taken meanwhile.
const LARGE: usize = 4096;
/// Cells copied for each run taken while growing. A quarter of the room is enough to be done before it is full.
const COPIED: usize = 5 * PAGE;

/// What a cell must be able to do.
pub(super) trait Cell: Zeroable {
    fn copy(&self, from: &Self);
}

impl Cell for NodeCell {
    fn copy(&self, from: &NodeCell) {
        self.iter().zip(from).for_each(|(to, from)| to.store(from.load(Relaxed), Relaxed));
    }
}

impl Cell for OwnerCell {
    fn copy(&self, from: &OwnerCell) {
        self.iter().zip(from).for_each(|(to, from)| to.store(from.load(Relaxed), Relaxed));
    }
}

#[inline]
pub(super) fn owner_at(cells: &[OwnerCell], at: u32) -> u32 {
    cells[at as usize / 2][at as usize % 2].load(Relaxed)
}

/// The cells themselves, as one array.
pub(super) type Cells<C> = Box<[C]>;

/// Cells, and which of them are free. Growing moves all of them to a larger array, under the same numbers. Who reads in the
/// old array keeps it.
pub(super) struct Room<C> {
    cells: Arc<Cells<C>>,
    /// The larger array while growing, and how many of its cells are written so far.
    larger: Option<(Arc<Cells<C>>, usize)>,
    space: Space,
}

impl<C: Cell> Default for Room<C> {
    fn default() -> Room<C> {
        Room { cells: Arc::default(), larger: None, space: Space::default() }
    }
}

impl<C: Cell> Room<C> {
    pub(super) fn cells(&self) -> &Arc<Cells<C>> {
        &self.cells
    }

    /// Takes `count` neighbouring cells, at most 64, and returns the number of the first.
    pub(super) fn take(&mut self, count: usize) -> u32 {
        self.grow();
        loop {
            if let Some(at) = self.space.take(count, self.cells.len() / PAGE) {
                return at as u32;
            }
            match self.larger {
                Some(_) => self.copy(usize::MAX),
                None => self.begin_growing(),
            }
        }
    }

    /// Gives back cells that [`Self::take`] returned, with the same count.
    pub(super) fn give_back(&mut self, at: u32, count: usize) {
        self.space.give_back(at as usize, count);
    }

    /// Writes a cell that was taken, and that nobody reads yet.
    pub(super) fn write(&self, at: u32, write: impl Fn(&C)) {
        write(&self.cells[at as usize]);
        if let Some((larger, _)) = &self.larger {
            write(&larger[at as usize]);
        }
    }

    fn grow(&mut self) {
        let all = self.cells.len();
        if self.larger.is_none() && all >= LARGE && self.space.touched() * 4 >= all * 3 {
            self.begin_growing();
        }
        self.copy(COPIED);
    }

    fn begin_growing(&mut self) {
        let more = (self.cells.len() * 2).max(PAGE);
        // Zeroed memory comes from the kernel as it is used, so what is not used yet costs nothing.
        self.larger = Some((Arc::new(bytemuck::zeroed_slice_box(more)), 0));
    }

    /// Copies at most `most` more cells into the larger array, and moves there once it has all of them.
    fn copy(&mut self, most: usize) {
        let Some((larger, done)) = &mut self.larger else { return };
        let until = self.space.touched().min(done.saturating_add(most));
        for at in *done..until {
            larger[at].copy(&self.cells[at]);
        }
        *done = until;
        if *done == self.space.touched() {
            self.cells = Arc::clone(larger);
            self.larger = None;
        }
    }

    /// How many cells are or were in use.
    pub(super) fn touched(&self) -> usize {
        self.space.touched()
    }

    /// Bytes of memory that have been used, for the cells and for the account of them.
    #[cfg(test)]
    pub(super) fn memory(&self) -> usize {
        self.touched().min(self.cells.len()) * size_of::<C>() + self.space.memory()
    }
}

/// The account of free cells: the pages that were ever used. Pages beyond these are wholly free.
struct Space {
    pages: Vec<Page>,
    /// The pages' numbers, by the length of their longest free run.
    by_run: [Vec<u32>; PAGE + 1],
}

#[derive(Clone, Copy)]
struct Page {
    /// Bits of the cells that are free.
    free: u64,
    /// Length of the longest free run.
    run: u8,
    /// Place of the page in the list of its free run's length.
    place: u32,
}

impl Default for Space {
    fn default() -> Space {
        Space { pages: Vec::new(), by_run: [const { Vec::new() }; PAGE + 1] }
    }
}

impl Space {
    fn touched(&self) -> usize {
        self.pages.len() * PAGE
    }

    /// Takes cells of the page with the shortest run that is long enough, or else of a page that was never used, where
    /// there are fewer than `pages`.
    fn take(&mut self, count: usize, pages: usize) -> Option<usize> {
        let fits = self.by_run[count..].iter().find_map(|list| list.last().copied());
        let page = match fits {
            Some(page) => page as usize,
            None if self.pages.len() < pages => {
                let page = self.pages.len();
                self.pages.push(Page {
                    free: u64::MAX,
                    run: PAGE as u8,
                    place: self.by_run[PAGE].len() as u32,
                });
                self.by_run[PAGE].push(page as u32);
                page
            }
            None => return None,
        };
        let free = self.pages[page].free;
        let first = beginnings(free, count).trailing_zeros() as usize;
        self.set(page, free & !(run_of(count) << first));
        Some(page * PAGE + first)
    }

    fn give_back(&mut self, at: usize, count: usize) {
        let page = at / PAGE;
        self.set(page, self.pages[page].free | run_of(count) << (at % PAGE));
    }

    /// Sets which cells of a page are free, and moves it to the list where it then belongs.
    fn set(&mut self, page: usize, free: u64) {
        let run = longest_run(free);
        let old = std::mem::replace(&mut self.pages[page], Page { free, run, place: 0 });
        let list = &mut self.by_run[usize::from(old.run)];
        list.swap_remove(old.place as usize);
        if let Some(&moved) = list.get(old.place as usize) {
            self.pages[moved as usize].place = old.place;
        }
        let list = &mut self.by_run[usize::from(run)];
        self.pages[page].place = list.len() as u32;
        list.push(page as u32);
    }

    #[cfg(test)]
    fn memory(&self) -> usize {
        let lists: usize = self.by_run.iter().map(|list| list.capacity() * size_of::<u32>()).sum();
        self.pages.capacity() * size_of::<Page>() + lists
    }
}

/// A word with the lowest `count` bits set.
fn run_of(count: usize) -> u64 {
    u64::MAX >> (PAGE - count)
}

/// The bits at which `count` or more set bits in a row begin.
fn beginnings(bits: u64, count: usize) -> u64 {
    let (mut found, mut have) = (bits, 1);
    while have < count {
        let step = have.min(count - have);
        found &= found >> step;
        have += step;
    }
    found
}

fn longest_run(mut bits: u64) -> u8 {
    let mut run = 0;
    while bits != 0 {
        bits &= bits >> 1;
        run += 1;
    }
    run
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn runs_are_found_where_they_begin() {
        assert_eq!(beginnings(0b1110_0110, 2), 0b0110_0010);
        assert_eq!(beginnings(0b1110_0110, 3), 0b0010_0000);
        assert_eq!(beginnings(u64::MAX, 64), 1);
        assert_eq!((longest_run(0b1110_0110), longest_run(0), longest_run(u64::MAX)), (3, 0, 64));
    }

    proptest! {
        /// What is held is never given to another, however the room grows, and what was written stays.
        #[test]
        fn what_was_taken_is_nobody_elses_until_it_is_given_back(
            steps in prop::collection::vec((1usize..=64, any::<bool>(), any::<prop::sample::Index>()), 1..600),
        ) {
            let mut room = Room::<OwnerCell>::default();
            let mut held: Vec<(u32, usize, u32)> = Vec::new();
            for (number, (count, gives, which)) in steps.into_iter().enumerate() {
                if gives && !held.is_empty() {
                    let (at, count, _) = held.swap_remove(which.index(held.len()));
                    room.give_back(at, count);
                } else {
                    let (at, number) = (room.take(count), number as u32);
                    (at..at + count as u32).for_each(|at| room.write(at, |cell| cell[0].store(number, Relaxed)));
                    held.push((at, count, number));
                }
                for &(at, count, number) in &held {
                    prop_assert!((at..at + count as u32).all(|at| owner_at(room.cells(), 2 * at) == number));
                }
            }
        }
    }

    #[test]
    fn large_room_grows_bit_by_bit_and_keeps_what_was_written() {
        let mut room = Room::<OwnerCell>::default();
        let mut runs = Vec::new();
        for number in 0..20_000 {
            let at = room.take(number as usize % 5 + 1);
            room.write(at, |cell| cell[0].store(number, Relaxed));
            runs.push(at);
        }
        let written = |number: usize| owner_at(room.cells(), 2 * runs[number]);
        assert!((0..runs.len()).all(|number| written(number) == number as u32));
    }
}
