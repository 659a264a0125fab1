//! The atomics of what threads share here. `tests/models/` puts loom's in their place, and so explores the same code.

pub(super) use arc_swap::{ArcSwapOption, Guard};
pub(super) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
