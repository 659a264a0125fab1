//! Static tracepoints (USDT) at the borders of batches, for bpftrace, perf and SystemTap: what a running tunnel does, without a
//! build of its own. `docs/profiling.md` says how they are read, and the scripts `perf/*.bt` read them.
//!
//! Each is a `nop` in the program and a note in its ELF file, which says where the arguments are. The kernel puts a breakpoint over
//! the `nop` while somebody looks. Without that it costs the `nop`, and that the arguments are in registers.
//!
//! Provider `ringtun`. Arguments are numbers of 64 bits. Threads are told by their kernel's number: what has no argument `worker` happens on
//! the thread of one.

/// Defines the tracepoints: for each a function that is to be called there, and its line in the list of all.
macro_rules! tracepoints {
    ($($(#[$doc:meta])* $name:ident($($argument:ident: $kind:ty),*);)*) => {
        $(
            $(#[$doc])*
            #[inline(always)]
            pub(crate) fn $name($($argument: $kind),*) {
                probe::probe!(ringtun, $name, $($argument),*);
            }
        )*

        /// The names of all tracepoints, each with the number of its arguments.
        #[cfg(feature = "internals")]
        pub const TRACEPOINTS: &[(&str, usize)] =
            &[$((stringify!($name), [$(stringify!($argument)),*].len())),*];
    };
}

tracepoints! {
    /// A worker begins a turn.
    turn_begin(worker: u8);
    /// The turn is over. `outcome` is 0 where more may be ready, 1 where the worker may sleep, 2 where it ends.
    turn_end(worker: u8, outcome: u8);
    /// So many frames were read from the TUN queue in this turn, and so many of them were super-packets.
    tun_read(worker: u8, frames: u64, super_packets: u64);
    /// A worker is about to seal a train of messages for the peer in `slot`. `bytes` are those of the messages.
    seal_begin(worker: u8, slot: u32, messages: usize, bytes: usize);
    /// The train is sealed.
    train_sealed(worker: u8, slot: u32, messages: usize, bytes: usize);
    /// So many messages, each a datagram or a train of them, are about to go to a UDP socket in one system call.
    send_begin(messages: usize);
    /// The call is over. It took so many datagrams; none where it was refused.
    datagrams_sent(messages: usize, datagrams: u64);
    /// A train of datagrams was taken from a UDP socket: `stride` is the size of each but perhaps the last.
    train_received(worker: u8, bytes: usize, stride: usize);
    /// A worker is about to open a train of messages of the peer in `slot`.
    open_begin(worker: u8, slot: u32, messages: usize, bytes: usize);
    /// The train is opened, as far as it is authentic.
    train_opened(worker: u8, slot: u32, messages: usize, bytes: usize);
    /// So many writes to the TUN queue are about to be made in one system call.
    write_begin(writes: usize);
    /// The writes are made. The host's receive path ran meanwhile.
    tun_written(writes: usize);
    /// A thread is about to do a train for worker `giver`. `kind` is 0 to open it, 1 to seal it.
    help_begin(giver: u8, kind: u8, bytes: usize);
    /// The train is done.
    train_helped(giver: u8, kind: u8, bytes: usize);
    /// The thread of a worker is about to sleep, for so many nanoseconds at most; -1 is without end.
    worker_sleep(nanos: i64);
    /// It woke after so many nanoseconds.
    worker_wake(nanos: u64);
    /// The slow path began a handshake with the peer in `slot`. `role` is 0 for the initiator, 1 for the responder.
    handshake_begun(slot: u32, role: u8);
    /// There is a session.
    handshake_finished(slot: u32, role: u8);
}
