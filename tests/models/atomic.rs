//! What stands in for `src/dataplane/atomic.rs`.

pub(crate) use loom::sync::atomic::{AtomicBool, Ordering, fence};
