//! What finished work leaves on the stack, and how to overwrite it.
//!
//! Copies of keys are among it: of every value that was moved, and of what registers could not hold. Nobody owns
//! these copies, so they are overwritten together once the work is done.
//!
//! They would not even stay on the stack. A value in which not every byte is used, such as an enum's smaller variant,
//! takes along whatever lay where it was made, to the heap and into queues. So code that handles keys is run by
//! [`leaving_nothing`] before anything else is done, and what lives long is made by [`clean`], where nothing is left.

use std::hint::black_box;

/// How many bytes below the caller are overwritten: more than what handles keys uses. Code that is not optimized
/// keeps everything in memory, and needs more.
const DEPTH: usize = if cfg!(debug_assertions) { 128 * 1024 } else { 32 * 1024 };

/// Does `work` in a frame of its own. If it were inlined, what it leaves might lie in the caller's frame, which
/// [`wipe`] does not reach.
#[inline(never)]
pub fn apart<T>(work: impl FnOnce() -> T) -> T {
    work()
}

/// Does `work`, and overwrites what it leaves below the caller. What it returns should hold no secret except on the
/// heap.
pub fn leaving_nothing<T>(work: impl FnOnce() -> T) -> T {
    let result = apart(work);
    wipe();
    result
}

/// Does `work` on a stack from which the traces of earlier work were wiped.
pub fn clean<T>(work: impl FnOnce() -> T) -> T {
    wipe();
    apart(work)
}

/// Overwrites the stack below the caller, as far down as work that [`apart`] ran may have used it. Takes a
/// microsecond.
#[inline(never)]
pub fn wipe() {
    // The optimizer must believe that somebody reads it.
    black_box(&mut [0_u8; DEPTH]);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where a local variable lies.
    #[inline(never)]
    fn place() -> usize {
        let local = 0_u8;
        black_box(&raw const local) as usize
    }

    #[test]
    fn work_apart_lies_below_and_within_what_is_wiped() {
        let here = 0_u8;
        let here = black_box(&raw const here) as usize;
        for work in [apart(place), leaving_nothing(place), clean(place)] {
            assert!(work < here && here - work < DEPTH, "{here:#x}, {work:#x}");
        }
    }
}
