//! Models of what threads share, with every interleaving explored (loom).

mod assisting;
mod atomic;
mod counting;
mod publishing;
mod sleeping;
mod staging;
mod waking;

/// The very files of the program, over loom's atomics.
#[path = "../../src/noise/counter.rs"]
mod counter;
#[path = "../../src/dataplane/notes.rs"]
mod notes;
#[path = "../../src/dataplane/sending.rs"]
#[expect(dead_code, unreachable_pub)] // the program has use for more of it, and shows it to its tests
mod sending;
#[path = "../../src/dataplane/sleepers.rs"]
mod sleepers;

/// What these import of the program.
mod io {
    pub(crate) use ringtun::io::Endpoint;
}
mod noise {
    pub(crate) mod session {
        pub(crate) use ringtun::noise::session::SendSession;
    }
}
mod time {
    pub(crate) use ringtun::time::Instant;
}
