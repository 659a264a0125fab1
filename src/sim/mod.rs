//! Queues in memory in place of a kernel.

pub mod memory;
