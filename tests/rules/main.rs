//! The protocol rules that implementations got wrong, each clause a test by name, on whole
//! simulated devices under seeded faults. A failure prints its seed; `RINGTUN_SEED` repeats it.

#![allow(clippy::unwrap_used)] // all of it is test code

mod cookies;
mod frames;
mod handover;
mod lab;
mod lifecycle;
mod liveness;
mod order;
mod puppet;
mod random;
mod replay;
mod roaming;
mod rotten;
mod sessions;
mod timers;
