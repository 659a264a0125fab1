//! Memory that is wiped although the type of the value in it does not wipe itself.
//!
//! To overwrite such a value with another one is not enough: of an enum only the bytes of the new variant are
//! written, and the others keep what lay there before.

#![allow(unsafe_code)]

use std::hint::black_box;
use std::mem::{MaybeUninit, needs_drop};
use std::ops::Deref;

/// A value whose every byte is zeroed when it is dropped.
pub(super) struct Wiped<T>(MaybeUninit<T>);

impl<T> Wiped<T> {
    /// Takes a value in, whose type must have nothing to do when it is dropped.
    pub(super) fn new(value: T) -> Wiped<T> {
        const { assert!(!needs_drop::<T>()) };
        Wiped(MaybeUninit::new(value))
    }
}

impl<T> Deref for Wiped<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: `new` wrote a value, and nothing but `drop` overwrites it.
        unsafe { self.0.assume_init_ref() }
    }
}

impl<T> Drop for Wiped<T> {
    fn drop(&mut self) {
        // SAFETY: any bytes are a `MaybeUninit`, zeros too; nobody looks at the value in it any more, and it has no drop of its
        // own (see `new`).
        unsafe { (&raw mut self.0).write_bytes(0, 1) }
        // The optimizer must believe that somebody reads it. Volatile writes are slower: a byte at a time.
        black_box(&mut self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_a_value_is_zeroed_also_what_it_does_not_use() {
        #[derive(Clone, Copy)]
        #[repr(C)]
        enum Either {
            Large([u8; 64]),
            Small(u8),
        }
        let mut place = MaybeUninit::new(Wiped::new(Either::Large([7; 64])));
        // SAFETY: it was just written, and both variants are plain bytes.
        let wiped = unsafe { place.assume_init_mut() };
        assert!(matches!(**wiped, Either::Large(bytes) if bytes == [7; 64]));
        wiped.0 = MaybeUninit::new(Either::Small(1));
        assert!(matches!(**wiped, Either::Small(1)));
        // SAFETY: as before; it is dropped this once.
        unsafe { place.assume_init_drop() };
        let bytes = place.as_ptr().cast::<u8>();
        for at in 0..size_of::<Wiped<Either>>() {
            // SAFETY: within the place, and every byte of it was written by the drop.
            assert_eq!(unsafe { bytes.add(at).read_volatile() }, 0, "byte {at}");
        }
    }
}
