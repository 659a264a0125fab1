//! Models of what threads share, with every interleaving explored (loom).

mod waking;
