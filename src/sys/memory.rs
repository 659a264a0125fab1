//! Memory that the allocator holds and nobody uses.

/// Gives whole free pages back to the system, also between used ones. A large configuration leaves many: its text, its parsed
/// form, and the queues through which it went. It takes milliseconds, so it is for rare moments.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) is safe at any time and on any thread; it touches only memory that is free.
    unsafe {
        libc::malloc_trim(0);
    }
}
