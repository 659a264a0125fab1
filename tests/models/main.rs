//! Models of what threads share, with every interleaving explored (loom).

mod assisting;
mod atomic;
mod sleeping;
mod waking;

/// The very file of the program, over loom's atomics.
#[path = "../../src/dataplane/sleepers.rs"]
mod sleepers;
