//! The atomics of what threads share here. `tests/models/` puts loom's in their place, and so explores the same code.

pub(super) use std::sync::atomic::{AtomicU64, Ordering};
