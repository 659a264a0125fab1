//! What stands in for `src/dataplane/atomic.rs` and `src/noise/atomic.rs`.

use loom::sync::Mutex;
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::ops::Deref;
use std::sync::Arc;

/// What stands in for arc-swap's: each of its operations is one step, in an order that all threads agree on.
#[derive(Default)]
pub(crate) struct ArcSwapOption<T>(Mutex<Option<Arc<T>>>);

pub(crate) struct Guard<P>(P);

impl<P> Deref for Guard<P> {
    type Target = P;

    fn deref(&self) -> &P {
        &self.0
    }
}

impl<T> ArcSwapOption<T> {
    pub(crate) fn load(&self) -> Guard<Option<Arc<T>>> {
        Guard(self.0.lock().expect("no panic").clone())
    }

    /// Puts `new` in the place of `current`, if it still is there. Returns what was there.
    pub(crate) fn compare_and_swap(
        &self,
        current: &Option<Arc<T>>,
        new: Option<Arc<T>>,
    ) -> Guard<Option<Arc<T>>> {
        let mut place = self.0.lock().expect("no panic");
        let is_it = current.as_ref().map(Arc::as_ptr) == place.as_ref().map(Arc::as_ptr);
        Guard(if is_it { std::mem::replace(&mut *place, new) } else { place.clone() })
    }
}
