//! What finished work leaves on the stack: copies of keys among it, wherever a value was moved, and what a register could not
//! hold. Nobody owns these copies, so they are overwritten together once the work is done.
//!
//! They would not even stay there. A value in which not every byte is used, as one of an enum with a larger variant, takes along
//! what lay where it was made, to the heap and into queues. So what handles keys leaves nothing behind ([`leaving_nothing`])
//! before anything else is done, and what lives long is made where nothing is left ([`clean`]).

use std::hint::black_box;

/// How far below the caller the stack is overwritten: more than what handles keys uses. Code that is not optimized moves all
/// through memory, and needs more.
const DEPTH: usize = if cfg!(debug_assertions) { 128 * 1024 } else { 32 * 1024 };

/// Does `work` in a frame of its own. Were it inlined, what it leaves might lie in the caller's frame, where [`wipe`] does not
/// reach.
#[inline(never)]
pub fn apart<T>(work: impl FnOnce() -> T) -> T {
    work()
}

/// Does `work`, and overwrites what it leaves below the caller. What it returns should hold no secret but on the heap.
pub fn leaving_nothing<T>(work: impl FnOnce() -> T) -> T {
    let result = apart(work);
    wipe();
    result
}

/// Does `work` where nothing is left of what was done before.
pub fn clean<T>(work: impl FnOnce() -> T) -> T {
    wipe();
    apart(work)
}

/// Overwrites the stack below the caller, as far down as work [`apart`] may have used it. Takes a microsecond.
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
